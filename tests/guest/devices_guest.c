/* Ports and MMIO: empty places, serial, CMOS, PCI by both ways, virtio identities, ACPI. */
#include "guest.h"

static uint32_t pci_read(unsigned device, unsigned offset)
{
    outl(0xcf8, 0x80000000u | device << 11 | (offset & 0xfc));
    return inl(0xcfc);
}

static void pci(void)
{
    check("host bridge", (pci_read(0, 0) & 0xffff) != 0xffff);
    check_equal("it is a host bridge", pci_read(0, 8) >> 16, 0x0600);
    check_equal("an empty slot", pci_read(31, 0), 0xffffffff);
    unsigned virtio = 0;
    for (unsigned device = 1; device < 8; device++) {
        uint32_t id = pci_read(device, 0);
        if ((id & 0xffff) != 0x1af4)
            continue;
        virtio++;
        check("modern virtio id", id >> 16 >= 0x1040);
        check("has capabilities", pci_read(device, 4) & 0x100000);
        /* Size a BAR the way every system does. */
        uint32_t bar = pci_read(device, 0x10);
        outl(0xcf8, 0x80000000u | device << 11 | 0x10);
        outl(0xcfc, 0xffffffff);
        uint32_t mask = inl(0xcfc);
        outl(0xcfc, bar);
        check("BAR sizing", bar == 0 || (mask & 0xfffffff0) != 0xfffffff0);
    }
    check("there are virtio devices", virtio >= 1);
}

static const uint8_t *find_rsdp(void)
{
    for (uint64_t at = 0xe0000; at < 0x100000; at += 16)
        if (*(const uint64_t *)at == UINT64_C(0x2052545020445352)) /* "RSD PTR " */
            return (const uint8_t *)at;
    return NULL;
}

static uint8_t sum(const uint8_t *bytes, unsigned n)
{
    uint8_t total = 0;
    for (unsigned i = 0; i < n; i++)
        total = (uint8_t)(total + bytes[i]);
    return total;
}

static void acpi(void)
{
    const uint8_t *rsdp = find_rsdp();
    check("RSDP", rsdp != NULL);
    if (!rsdp)
        return;
    check_equal("RSDP checksum", sum(rsdp, 20), 0);
    const uint8_t *xsdt = (const uint8_t *)*(const uint64_t *)(rsdp + 24);
    check_equal("XSDT", *(const uint32_t *)xsdt, 0x54445358);
    unsigned tables = (*(const uint32_t *)(xsdt + 4) - 36) / 8, known = 0;
    for (unsigned i = 0; i < tables; i++) {
        uint64_t address;
        memcpy(&address, xsdt + 36 + i * 8, 8);
        const uint8_t *table = (const uint8_t *)address;
        uint32_t name = *(const uint32_t *)table;
        known += name == 0x43495041 || name == 0x50434146 || name == 0x4746434d;
        if (name == 0x4746434d) { /* MCFG: the same function through ECAM */
            uint64_t base;
            memcpy(&base, table + 44, 8);
            check_equal("ECAM reads the same id", *(volatile uint32_t *)base, pci_read(0, 0));
            check_equal("ECAM, empty slot", *(volatile uint32_t *)(base + (31 << 15)), 0xffffffff);
        }
    }
    check_equal("MADT, FADT, MCFG", known, 3);
}

void guest_main(uint32_t multiboot_info)
{
    uint32_t flags = *(uint32_t *)(uint64_t)multiboot_info;
    check("multiboot has memory and a map", (flags & 0x41) == 0x41);
    uint32_t upper = *(uint32_t *)(uint64_t)(multiboot_info + 8);
    check("upper memory", upper >= 30 * 1024);

    check_equal("an empty port, 1 byte", inb(0x2345), 0xff);
    check_equal("an empty port, 2 bytes", inw(0x2345), 0xffff);
    check_equal("an empty port, 4 bytes", inl(0x2344), 0xffffffff);
    check_equal("empty MMIO", *(volatile uint32_t *)0xfd000000, 0xffffffff);

    outb(0x3f8 + 7, 0x5a);
    check_equal("serial scratch register", inb(0x3f8 + 7), 0x5a);
    outb(0x3f8 + 3, 0x80);
    outb(0x3f8, 0x01);
    check_equal("serial divisor", inb(0x3f8), 1);
    outb(0x3f8 + 3, 3);
    outb(0x3f8 + 4, 0x1a); /* loop back, RTS, OUT2 */
    check_equal("serial loop-back, CTS and DCD follow", inb(0x3f8 + 6) & 0xf0, 0x90);
    outb(0x3f8, 0x42);
    check("serial loop-back has data", inb(0x3f8 + 5) & 1);
    check_equal("serial loop-back data", inb(0x3f8), 0x42);
    outb(0x3f8 + 4, 3);
    const char *line = "serial speaks\n";
    while (*line) {
        while (!(inb(0x3f8 + 5) & 0x20))
            ;
        outb(0x3f8, (uint8_t)*line++);
    }

    outb(0x70, 0x0d);
    check_equal("CMOS is valid", inb(0x71) & 0x80, 0x80);
    outb(0x70, 0x32);
    check_equal("CMOS century", inb(0x71), 0x20);
    uint32_t first = inl(0x608) & 0xffffff;
    (void)first;
    pci();
    acpi();
}
