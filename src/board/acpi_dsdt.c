#include "board/acpi_dsdt.h"

enum { SLOTS = 32, PINS = 4, BUS_SHIFT = 20 };

/* \_S5: SLP_TYP for PM1a and PM1b (7.4.2). */
static void soft_off(struct aml *aml, const struct acpi_config *config)
{
    aml_name(aml, "_S5_");
    size_t package = aml_open_package(aml, 4);
    aml_integer(aml, config->s5_type);
    aml_integer(aml, config->s5_type);
    aml_integer(aml, 0);
    aml_integer(aml, 0);
    aml_close(aml, package);
}

/* _PRT (6.2.13): slot S, pin P to a fixed GSI. Slot 0 is the host bridge itself. */
static void pci_routing(struct aml *aml, const struct acpi_config *config)
{
    aml_name(aml, "_PRT");
    size_t table = aml_open_package(aml, (SLOTS - 1) * PINS);
    for (unsigned slot = 1; slot < SLOTS; slot++)
        for (unsigned pin = 0; pin < PINS; pin++) {
            size_t entry = aml_open_package(aml, 4);
            aml_integer(aml, (uint64_t)slot << 16 | 0xffff);
            aml_integer(aml, pin);
            aml_integer(aml, 0);
            aml_integer(aml, config->pci_gsi[(slot + pin) % ACPI_PCI_LINES]);
            aml_close(aml, entry);
        }
    aml_close(aml, table);
}

static void pci_root(struct aml *aml, const struct acpi_config *config)
{
    size_t device = aml_open_device(aml, "PCI0");
    aml_name_eisa(aml, "_HID", "PNP0A08");
    aml_name_eisa(aml, "_CID", "PNP0A03");
    aml_name_integer(aml, "_UID", 0);
    aml_name_integer(aml, "_SEG", 0);
    aml_name_integer(aml, "_BBN", 0);

    aml_name(aml, "_CRS");
    struct aml_resources windows = aml_open_resources(aml);
    aml_bus_window(aml, 0, (uint16_t)(config->ecam_size >> BUS_SHIFT));
    aml_io(aml, 0xcf8, 8);
    aml_io_window(aml, 0, 0xcf8);
    aml_io_window(aml, 0xd00, 0x10000 - 0xd00);
    aml_memory32_window(aml, config->window32, config->window32_size);
    if (config->window64_size)
        aml_memory64_window(aml, config->window64, config->window64_size);
    aml_close_resources(aml, windows);

    /* _OSC (6.2.11): whatever the system asks to control, it may: there is no firmware that does.
     */
    size_t control = aml_open_method(aml, "_OSC", 4);
    aml_return_argument(aml, 3);
    aml_close(aml, control);

    pci_routing(aml, config);
    aml_close(aml, device);
}

/* Linux trusts MCFG only where a motherboard resource covers it (PCI Firmware 3.3, 4.1.2). */
static void motherboard(struct aml *aml, const struct acpi_config *config)
{
    size_t device = aml_open_device(aml, "MBRD");
    aml_name_eisa(aml, "_HID", "PNP0C02");
    aml_name_integer(aml, "_UID", 0);
    aml_name(aml, "_CRS");
    struct aml_resources resources = aml_open_resources(aml);
    aml_memory_fixed(aml, (uint32_t)config->ecam, (uint32_t)config->ecam_size);
    aml_close_resources(aml, resources);
    aml_close(aml, device);
}

static void isa_device(struct aml *aml, const char *name, const char *id, uint16_t port,
                       uint8_t ports, unsigned irq)
{
    size_t device = aml_open_device(aml, name);
    aml_name_eisa(aml, "_HID", id);
    aml_name_integer(aml, "_UID", 0);
    aml_name(aml, "_CRS");
    struct aml_resources resources = aml_open_resources(aml);
    aml_io(aml, port, ports);
    aml_irq(aml, irq);
    aml_close_resources(aml, resources);
    aml_close(aml, device);
}

/* The name that Linux's pvpanic driver looks for. */
static void panic_port(struct aml *aml, const struct acpi_config *config)
{
    size_t device = aml_open_device(aml, "PEVT");
    aml_name_string(aml, "_HID", "QEMU0001");
    aml_name(aml, "_CRS");
    struct aml_resources resources = aml_open_resources(aml);
    aml_io(aml, config->panic_port, 1);
    aml_close_resources(aml, resources);
    aml_close(aml, device);
}

/* The names that its specification gives, and what happens when the ID changes. */
static void generation(struct aml *aml)
{
    size_t device = aml_open_device(aml, "VGEN");
    aml_name_string(aml, "_HID", "LODG0001");
    aml_name_string(aml, "_CID", "VM_Gen_Counter");
    aml_name_string(aml, "_DDN", "VM_Gen_Counter");
    aml_name(aml, "ADDR");
    size_t address = aml_open_package(aml, 2);
    aml_integer(aml, ACPI_GENERATION);
    aml_integer(aml, 0);
    aml_close(aml, address);
    aml_close(aml, device);
}

/* _E00 (5.6.4.1): the edge-triggered event of that number. */
static void events(struct aml *aml)
{
    _Static_assert(ACPI_GENERATION_EVENT == 0, "the method's name has the number");
    size_t scope = aml_open_scope(aml, "_GPE");
    size_t method = aml_open_method(aml, "_E00", 0);
    aml_notify(aml, "_SB_", "VGEN", 0x80);
    aml_close(aml, method);
    aml_close(aml, scope);
}

void acpi_dsdt_write(struct aml *aml, const struct acpi_config *config)
{
    soft_off(aml, config);
    size_t scope = aml_open_scope(aml, "_SB_");
    pci_root(aml, config);
    motherboard(aml, config);
    isa_device(aml, "COM1", "PNP0501", 0x3f8, 8, 4);
    isa_device(aml, "RTC0", "PNP0B00", 0x70, 2, 8);
    panic_port(aml, config);
    generation(aml);
    aml_close(aml, scope);
    events(aml);
}
