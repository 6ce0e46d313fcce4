/*
 * A machine that begins with firmware instead of a kernel: what OVMF wants to find of it.
 *
 * The image lies below 4 GiB so that it ends there, where a processor begins after reset, as memory
 * that is not written to. So does the flash for its variables, below the image: what is written
 * there comes over the bus, and changes what is read (chip/flash.h). The host bridge is an Intel
 * Q35's, which OVMF tells by its device ID; the LPC bridge in slot 31 has the registers that go
 * with it, so that OVMF finds the ACPI ports and, by its class, COM1. All else it asks fw_cfg for.
 *
 * Tables of ACPI name address windows that the firmware chooses. So they are written anew when it
 * selects them, which it does after it has placed the BARs.
 */
#include "board/board_firmware.h"
#include "base/own.h"
#include "board/acpi_script.h"
#include "board/board_private.h"
#include "chip/flash.h"
#include "chip/fw_cfg.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LPC_SLOT = 31,
    LPC_PMBASE = 0x40,
    LPC_ACPI_CONTROL = 0x44,
    LPC_PIRQ_A = 0x60, /* four bytes, and four at 0x68 */
    LPC_PIRQ_E = 0x68,
    LPC_RCBA = 0xf0,

    E820_ENTRY = 20, /* start, size, type */
    E820_RAM = 1,
    E820_MAX = 2,

    NAME_SIZE = 64, /* of a boot device */
};

/* ---- memory ---- */

static int size_of(int fd, const char *what, uint64_t most, uint64_t *ret_size, struct err *err)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return err_errno(err, errno, "%s", what);
    uint64_t size = status.st_size > 0 ? (uint64_t)status.st_size : 0;
    if (!S_ISREG(status.st_mode) || size == 0 || size > most || size % MEM_PAGE_SIZE)
        return err_set(err, -ENOEXEC,
                       "%s must be a file of whole pages and at most %llu MiB, as OVMF's are", what,
                       (unsigned long long)most >> 20);
    *ret_size = size;
    return 0;
}

int board_firmware_map(struct board *board, const struct board_config *config, struct err *err)
{
    uint64_t size;
    if (!config->firmware)
        return 0;
    board->has_firmware = true;
    board->firmware_fd = config->firmware->fd;
    int r = size_of(board->firmware_fd, "the firmware", MAP_FIRMWARE_MAX, &size, err);
    if (r < 0)
        return r;
    board->firmware_size = size;
    r = mem_add(board->mem, MAP_FIRMWARE_END - size, size, true, err);
    if (r < 0 || config->firmware->nvram_fd < 0)
        return r;
    r = size_of(config->firmware->nvram_fd, "the firmware's variable store", FLASH_SIZE_MAX,
                &board->nvram_size, err);
    if (r < 0)
        return r;
    return mem_add(board->mem, MAP_FIRMWARE_END - board->firmware_size - board->nvram_size,
                   board->nvram_size, true, err);
}

/* OVMF maps whatever the processor could address, 2 MiB at a time, before it does anything else: a
 * minute's work under the software engine for a terabyte. So it is told no more than holds RAM and
 * the 32 GiB that it sets aside for BARs, aligned to their size. */
unsigned board_firmware_bits(const struct board *board)
{
    const uint64_t window = GIB(32);
    if (!board->has_firmware)
        return 0;
    uint64_t end = align_up(MAP_HIGH_RAM + map_high_memory(board->mem), window) + window;
    return max(36u, 64 - (unsigned)__builtin_clzll(end - 1));
}

int board_firmware_load(struct board *board, struct err *err)
{
    uint64_t start = MAP_FIRMWARE_END - board->firmware_size;
    uint8_t *to = mem_at_load(board->mem, start, board->firmware_size);
    for (uint64_t at = 0; at < board->firmware_size;) {
        ssize_t n = pread(board->firmware_fd, to + at, board->firmware_size - at, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "cannot read the firmware");
        if (n == 0)
            return err_set(err, -ENOEXEC, "the firmware's file has become shorter");
        at += (uint64_t)n;
    }
    mem_written(board->mem, start, board->firmware_size);
    mem_write(board->mem, ACPI_GENERATION, board->generation, sizeof board->generation);
    if (board->flash)
        flash_show(board->flash);
    return 0;
}

/* ---- flash ---- */

static void flash_failed(void *opaque, int number)
{
    const struct board_firmware *firmware = &((struct board *)opaque)->firmware;
    if (firmware->on_error)
        firmware->on_error(firmware->opaque, number);
}

static void flash_changed(void *opaque)
{
    struct board *board = opaque;
    mem_written(board->mem, MAP_FIRMWARE_END - board->firmware_size - board->nvram_size,
                board->nvram_size);
}

static int make_flash(struct board *board, const struct board_firmware *config, struct err *err)
{
    if (board->nvram_size == 0)
        return 0;
    uint64_t start = MAP_FIRMWARE_END - board->firmware_size - board->nvram_size;
    board->firmware = *config;
    int r =
        flash_new(&(struct flash_config){.fd = config->nvram_fd,
                                         .size = (uint32_t)board->nvram_size,
                                         .shown = mem_at_load(board->mem, start, board->nvram_size),
                                         .changed = flash_changed,
                                         .on_error = flash_failed,
                                         .opaque = board},
                  &board->flash, err);
    if (r < 0)
        return r;
    r = board_device_add(board, &flash_device, board->flash, err);
    if (r < 0)
        return r;
    return bus_claim(board->bus, BUS_MMIO, start, board->nvram_size, &flash_ops, board->flash, err);
}

/* ---- the LPC bridge ---- */

static uint64_t lpc_read(void *opaque, unsigned bar, uint64_t offset, unsigned size)
{
    return UINT64_MAX;
}

static void lpc_write(void *opaque, unsigned bar, uint64_t offset, unsigned size, uint64_t value)
{
}

static void lpc_free(void *opaque)
{
    pci_device_free(opaque);
}

/* Its registers are an ICH9's (Intel I/O Controller Hub 9, 13.1), its ID is that of a bridge that
 * no driver takes for more than a bridge: there is nothing behind the rest of an ICH9. */
static int make_lpc(struct board *board, struct err *err)
{
    static const struct device_ops device_ops = {.name = "lpc", .free = lpc_free};
    static const struct pci_ops ops = {.name = "lpc", .bar_read = lpc_read, .bar_write = lpc_write};
    static const struct pci_identity identity = {.vendor = 0x8086,
                                                 .device = 0x7110,
                                                 .subsystem_vendor = 0x1af4,
                                                 .subsystem = 0x1100,
                                                 .class_code = 0x060100};
    static const struct {
        uint8_t at, size;
        uint32_t value, writable;
    } registers[] = {
        {LPC_PMBASE, 4, MAP_POWER_PORT | 1, 0}, /* where the board has it, whatever is asked */
        {LPC_ACPI_CONTROL, 1, 1 << 7, 0},       /* and it answers */
        {LPC_PIRQ_A, 4, 0x80808080, 0x8f8f8f8f},
        {LPC_PIRQ_E, 4, 0x80808080, 0x8f8f8f8f},
        {LPC_RCBA, 4, 0, 0xffffc001},
    };
    struct pci_device *lpc;
    int r = pci_device_new(board->pci, LPC_SLOT, &identity, &ops, NULL, &lpc, err);
    if (r < 0)
        return r;
    r = board_device_add(board, &device_ops, lpc, err);
    for (size_t i = 0; r >= 0 && i < ARRAY_LEN(registers); i++)
        r = pci_register_add(lpc, registers[i].at, registers[i].size, registers[i].value,
                             registers[i].writable, err);
    return r;
}

/* ---- fw_cfg ---- */

static int guest_read(void *opaque, uint64_t gpa, void *to, uint64_t size)
{
    return mem_read(((struct board *)opaque)->mem, gpa, to, size);
}

static int guest_write(void *opaque, uint64_t gpa, const void *from, uint64_t size)
{
    return mem_write(((struct board *)opaque)->mem, gpa, from, size);
}

/* The windows are those that the firmware has chosen, as far as they can be told. */
static void image_of(struct board *board, struct acpi_image *image)
{
    struct acpi_config acpi;
    board_acpi_config(board, &acpi);
    uint64_t base, size, low = UINT64_MAX, end = 0;
    if (pci_host_ecam(board->pci, &base, &size) && base + size <= GIB(4)) {
        acpi.ecam = base;
        acpi.ecam_size = size;
        /* Later versions of OVMF place it higher, and the BARs behind it. */
        uint64_t window_end = (uint64_t)acpi.window32 + acpi.window32_size;
        if (base + size > acpi.window32 && base + size < window_end) {
            acpi.window32 = (uint32_t)(base + size);
            acpi.window32_size = (uint32_t)(window_end - acpi.window32);
        }
    }
    pci_host_bars(board->pci, GIB(4), UINT64_C(1) << 46, &low, &end);
    if (end > 0) {
        acpi.window64 = align_down(low, MAP_WINDOW64_SIZE);
        acpi.window64_size = align_up(end, MAP_WINDOW64_SIZE) - acpi.window64;
    }
    acpi_image(&acpi, 0, image);
}

static void prepare(void *opaque, uint16_t item)
{
    struct board *board = opaque;
    if (item != board->acpi_item)
        return;
    struct acpi_image *image = malloc(sizeof *image);
    if (!image) /* then with the windows of before */
        return;
    image_of(board, image);
    fw_cfg_replace(board->fw_cfg, item, image->bytes);
    free(image);
}

static int add_acpi(struct board *board, struct err *err)
{
    _cleanup_free_ struct acpi_image *image = malloc(sizeof *image);
    if (!image)
        return err_set(err, -ENOMEM, "no memory for ACPI tables");
    uint8_t script[ACPI_SCRIPT_MAX];
    image_of(board, image);
    int r = fw_cfg_add_file(board->fw_cfg, ACPI_SCRIPT_FILE, image->bytes, image->size, err);
    if (r < 0)
        return r;
    board->acpi_item = (uint16_t)r;
    size_t size = acpi_script(image, script);
    return fw_cfg_add_file(board->fw_cfg, "etc/table-loader", script, size, err);
}

static void e820_add(uint8_t *map, size_t *used, uint64_t start, uint64_t size)
{
    uint8_t *entry = map + *used;
    le64_write(entry, start);
    le64_write(entry + 8, size);
    le32_write(entry + 16, E820_RAM);
    *used += E820_ENTRY;
}

/* RAM, as QEMU says it: from 0 on without the hole below 1 MiB, and from 4 GiB on. */
static int add_e820(struct board *board, struct err *err)
{
    uint8_t map[E820_MAX * E820_ENTRY];
    size_t used = 0;
    uint64_t low = map_low_memory(board->mem), high = map_high_memory(board->mem);
    e820_add(map, &used, 0, low);
    if (high)
        e820_add(map, &used, MAP_HIGH_RAM, high);
    return fw_cfg_add_file(board->fw_cfg, "etc/e820", map, used, err);
}

/* Disks in their order, in the words of Open Firmware, each ended by a newline and all by a NUL.
 * OVMF knows a device by its place on the bus, whatever its kind is called. */
static int add_boot_order(struct board *board, struct err *err)
{
    char text[BOARD_DISKS_MAX * NAME_SIZE + 1] = "";
    size_t used = 0;
    for (unsigned i = 0; i < board->disk_count; i++)
        used += (size_t)snprintf(text + used, NAME_SIZE, "/pci@i0cf8/disk@%x/boot@0\n",
                                 board->disk_slots[i]);
    if (used == 0)
        return 0;
    return fw_cfg_add_file(board->fw_cfg, "bootorder", text, used + 1, err);
}

static int make_fw_cfg(struct board *board, struct err *err)
{
    uint8_t cpus[2];
    board->fw_cfg = fw_cfg_new(&(struct fw_cfg_config){
        .read = guest_read, .write = guest_write, .prepare = prepare, .opaque = board});
    int r = board_device_add(board, &fw_cfg_device, board->fw_cfg, err);
    if (r < 0)
        return r;
    le16_write(cpus, (uint16_t)board->cpus);
    r = fw_cfg_add(board->fw_cfg, FW_CFG_CPUS, cpus, sizeof cpus, err);
    if (r >= 0)
        r = add_e820(board, err);
    if (r >= 0)
        r = add_boot_order(board, err);
    if (r >= 0)
        r = add_acpi(board, err);
    if (r >= 0)
        r = bus_claim(board->bus, BUS_PORT, FW_CFG_PORT, FW_CFG_PORTS, &fw_cfg_ops, board->fw_cfg,
                      err);
    if (r >= 0)
        r = bus_claim(board->bus, BUS_PORT, FW_CFG_DMA_PORT, FW_CFG_DMA_PORTS, &fw_cfg_dma_ops,
                      board->fw_cfg, err);
    return r;
}

int board_firmware_make(struct board *board, const struct board_firmware *config, struct err *err)
{
    int r = make_flash(board, config, err);
    if (r >= 0)
        r = make_lpc(board, err);
    return r < 0 ? r : make_fw_cfg(board, err);
}
