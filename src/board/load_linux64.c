/*
 * boot_params ("zero page") and identity page tables. The field offsets are those of
 * Documentation/arch/x86/zero-page.rst and boot.rst.
 */
#include "base/bytes.h"
#include "board/load_boot.h"
#include "board/load_place.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum {
    BOOT_PARAMS_SIZE = 4096,
    ACPI_RSDP_ADDR = 0x070,
    EXT_RAMDISK_IMAGE = 0x0c0,
    EXT_RAMDISK_SIZE = 0x0c4,
    E820_ENTRIES = 0x1e8,
    SENTINEL = 0x1ef, /* stays 0: tells the kernel that the loader cleared the page */
    BOOT_FLAG = 0x1fe,
    HEADER_MAGIC = 0x202,
    VERSION = 0x206,
    TYPE_OF_LOADER = 0x210,
    LOAD_FLAGS = 0x211,
    RAMDISK_IMAGE = 0x218,
    RAMDISK_SIZE = 0x21c,
    CMD_LINE_PTR = 0x228,
    E820_TABLE = 0x2d0,
    E820_ENTRY_SIZE = 20,

    LOADED_HIGH = 1 << 0,
    CAN_USE_HEAP = 1 << 7,
    LOADER_UNDEFINED = 0xff,

    /* A bare vmlinux does not say; these hold for every x86-64 Linux since 2.6.2x. */
    COMMAND_LINE_LONGEST = 2047,
    INITRD_LAST = 0x7fffffff,
};

enum { PAGE_PRESENT = 1 << 0, PAGE_WRITE = 1 << 1, PAGE_LARGE = 1 << 7 };

static int page_tables_write(struct mem *mem, struct err *err)
{
    enum { DIRECTORIES = 4, ENTRIES = 512 };
    uint8_t *tables = mem_at(mem, LOAD_AT_PAGE_TABLES, (2 + DIRECTORIES) * MEM_PAGE_SIZE, true);
    if (!tables)
        return err_set(err, -ENOMEM, "the guest has no memory at its start");
    uint8_t *pml4 = tables, *pdpt = tables + MEM_PAGE_SIZE, *directory = pdpt + MEM_PAGE_SIZE;
    le64_write(pml4, (LOAD_AT_PAGE_TABLES + MEM_PAGE_SIZE) | PAGE_PRESENT | PAGE_WRITE);
    for (uint64_t i = 0; i < DIRECTORIES; i++)
        le64_write(pdpt + i * 8,
                   (LOAD_AT_PAGE_TABLES + (2 + i) * MEM_PAGE_SIZE) | PAGE_PRESENT | PAGE_WRITE);
    for (uint64_t i = 0; i < DIRECTORIES * ENTRIES; i++)
        le64_write(directory + i * 8, i << 21 | PAGE_PRESENT | PAGE_WRITE | PAGE_LARGE);
    mem_written(mem, LOAD_AT_PAGE_TABLES, (2 + DIRECTORIES) * MEM_PAGE_SIZE);
    return 0;
}

static void header_fill(uint8_t *page, const struct load_bzimage *bzimage,
                        const struct load_initrd *initrd)
{
    if (bzimage) {
        memcpy(page + LOAD_BZIMAGE_HEADER_AT, bzimage->header, bzimage->header_size);
    } else {
        le16_write(page + BOOT_FLAG, 0xaa55);
        memcpy(page + HEADER_MAGIC, "HdrS", 4);
        le16_write(page + VERSION, 0x20f);
    }
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    page[LOAD_FLAGS] |= LOADED_HIGH;
    page[LOAD_FLAGS] &= (uint8_t)~CAN_USE_HEAP;
    le32_write(page + CMD_LINE_PTR, LOAD_AT_COMMAND_LINE);
    le32_write(page + RAMDISK_IMAGE, (uint32_t)initrd->start);
    le32_write(page + EXT_RAMDISK_IMAGE, (uint32_t)(initrd->start >> 32));
    le32_write(page + RAMDISK_SIZE, (uint32_t)initrd->size);
    le32_write(page + EXT_RAMDISK_SIZE, (uint32_t)(initrd->size >> 32));
}

static void e820_fill(uint8_t *page, const struct load_request *request)
{
    page[E820_ENTRIES] = (uint8_t)request->range_count;
    for (unsigned i = 0; i < request->range_count; i++) {
        uint8_t *entry = page + E820_TABLE + i * E820_ENTRY_SIZE;
        le64_write(entry, request->ranges[i].start);
        le64_write(entry + 8, request->ranges[i].size);
        le32_write(entry + 16, request->ranges[i].type);
    }
}

int load_linux64(const struct load_request *request, const struct load_source *file,
                 const struct load_elf *elf, const struct load_bzimage *bzimage,
                 struct load_entry *ret_entry, struct err *err)
{
    if (!load_elf_holds(elf, elf->entry) || elf->high > GIB(4))
        return err_set(err, -ENOEXEC,
                       "the kernel's entry 0x%" PRIx64
                       " is not a physical address inside it: neither Linux nor PVH nor multiboot",
                       elf->entry);
    uint64_t longest = COMMAND_LINE_LONGEST, last = INITRD_LAST;
    if (bzimage) {
        longest = bzimage->command_line_max ? bzimage->command_line_max : 255;
        last = bzimage->initrd_last ? bzimage->initrd_last : 0x37ffffff;
    }
    struct load_initrd initrd;
    int r = load_place_kernel(request, elf->low, elf->high, err);
    if (r >= 0)
        r = load_place_command_line(request, longest, err);
    if (r >= 0)
        r = load_elf_place(file, elf, request->mem, err);
    if (r >= 0)
        r = load_place_initrd(request, elf->high, last, &initrd, err);
    if (r >= 0)
        r = page_tables_write(request->mem, err);
    if (r < 0)
        return r;

    uint8_t page[BOOT_PARAMS_SIZE] = {0};
    header_fill(page, bzimage, &initrd);
    e820_fill(page, request);
    page[SENTINEL] = 0;
    le64_write(page + ACPI_RSDP_ADDR, request->rsdp);
    if (mem_write(request->mem, LOAD_AT_BOOT_PARAMS, page, sizeof page) < 0)
        return err_set(err, -ENOMEM, "the guest has no memory at its start");
    *ret_entry = (struct load_entry){
        .protocol = LOAD_PROTOCOL_LINUX64, .rip = elf->entry, .info = LOAD_AT_BOOT_PARAMS};
    return 0;
}
