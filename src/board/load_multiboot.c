/*
 * Multiboot specification 0.6.96: 3.1 the header, 3.3 the information structure. Flag bit 16 says
 * that the header's own addresses hold, whatever format the file has ("a.out kludge").
 */
#include "base/bytes.h"
#include "board/load_boot.h"
#include "board/load_place.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum {
    HEADER_MAGIC = 0x1badb002,
    SEARCH_SIZE = 8192,
    HEADER_SIZE = 12,
    HEADER_SIZE_ADDRESSES = 32,

    FLAG_ALIGN_MODULES = 1 << 0, /* ours always are */
    FLAG_MEMORY_INFO = 1 << 1,   /* ours always is */
    FLAGS_REQUIRED = 0xffff,
    FLAG_ADDRESSES = 1 << 16,

    INFO_MEMORY = 1 << 0,
    INFO_COMMAND_LINE = 1 << 2,
    INFO_MODULES = 1 << 3,
    INFO_MEMORY_MAP = 1 << 6,
    INFO_LOADER_NAME = 1 << 9,

    NAME_AT = 128, /* behind the structure: our name, the module, the memory map */
    MODULE_AT = 160,
    MAP_AT = 192,
    MAP_ENTRY_SIZE = 24,
    INFO_SIZE = MAP_AT + LOAD_RANGES_MAX * MAP_ENTRY_SIZE,
};

bool load_multiboot_probe(const struct load_source *file, struct load_multiboot *ret_header)
{
    uint8_t bytes[SEARCH_SIZE];
    uint64_t size = min(file->size, (uint64_t)SEARCH_SIZE);
    if (load_source_read(file, 0, bytes, size, NULL) < 0)
        return false;
    for (uint32_t at = 0; at + HEADER_SIZE <= size; at += 4) {
        if (le32_read(bytes + at) != HEADER_MAGIC)
            continue;
        uint32_t flags = le32_read(bytes + at + 4);
        if (le32_read(bytes + at + 8) + flags + HEADER_MAGIC != 0)
            continue;
        struct load_multiboot header = {.at = at, .flags = flags};
        if (flags & FLAG_ADDRESSES) {
            if (at + HEADER_SIZE_ADDRESSES > size)
                continue;
            header.header_addr = le32_read(bytes + at + 12);
            header.load_addr = le32_read(bytes + at + 16);
            header.load_end_addr = le32_read(bytes + at + 20);
            header.bss_end_addr = le32_read(bytes + at + 24);
            header.entry_addr = le32_read(bytes + at + 28);
        }
        *ret_header = header;
        return true;
    }
    return false;
}

/* The header's own addresses as an image of one segment. */
static int addresses_image(const struct load_source *file, const struct load_multiboot *header,
                           struct load_elf *ret_elf, struct err *err)
{
    uint64_t before = (uint64_t)header->header_addr - header->load_addr;
    if (header->load_addr > header->header_addr || before > header->at)
        return err_set(err, -ENOEXEC,
                       "the kernel is damaged: its multiboot header lies before its load address");
    uint64_t offset = header->at - before;
    uint64_t available = file->size - offset;
    uint64_t length = available;
    if (header->load_end_addr) {
        if (header->load_end_addr < header->load_addr)
            return err_set(err, -ENOEXEC,
                           "the kernel is damaged: its multiboot load address range "
                           "ends before it starts");
        length = header->load_end_addr - header->load_addr;
    }
    if (length > available)
        return err_set(err, -ENOEXEC,
                       "the kernel is truncated: it has %" PRIu64 " bytes and needs %" PRIu64,
                       file->size, offset + length);
    uint64_t size = length;
    if (header->bss_end_addr) {
        if (header->bss_end_addr < header->load_addr + length)
            return err_set(err, -ENOEXEC,
                           "the kernel is damaged: its multiboot BSS ends inside its data");
        size = header->bss_end_addr - (uint64_t)header->load_addr;
    }
    *ret_elf = (struct load_elf){.entry = header->entry_addr,
                                 .low = header->load_addr,
                                 .high = header->load_addr + size,
                                 .count = 1,
                                 .segments = {{.offset = offset,
                                               .file_size = length,
                                               .start = header->load_addr,
                                               .size = size,
                                               .virtual = header->load_addr}}};
    return 0;
}

/* The entry is physical by the specification; images linked for the higher half give a virtual one,
 * which the segment that holds it translates. */
static int entry_find(const struct load_elf *elf, uint64_t *ret_entry, struct err *err)
{
    *ret_entry = elf->entry;
    if (load_elf_holds(elf, elf->entry))
        return 0;
    for (unsigned i = 0; i < elf->count; i++) {
        const struct load_elf_segment *segment = &elf->segments[i];
        if (elf->entry - segment->virtual < segment->size) {
            *ret_entry = segment->start + (elf->entry - segment->virtual);
            return 0;
        }
    }
    return err_set(err, -ENOEXEC, "the kernel's multiboot entry 0x%" PRIx64 " lies outside it",
                   elf->entry);
}

static void info_fill(uint8_t *info, const struct load_request *request,
                      const struct load_initrd *initrd)
{
    uint32_t flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    for (unsigned i = 0; i < request->range_count; i++) {
        const struct load_range *range = &request->ranges[i];
        uint8_t *entry = info + MAP_AT + i * MAP_ENTRY_SIZE;
        le32_write(entry, MAP_ENTRY_SIZE - 4); /* its own size does not count */
        le64_write(entry + 4, range->start);
        le64_write(entry + 12, range->size);
        le32_write(entry + 20, range->type);
        if (range->type != LOAD_RANGE_RAM)
            continue;
        if (range->start == 0)
            le32_write(info + 4, (uint32_t)(range->size >> 10)); /* mem_lower, KiB */
        else if (range->start == MIB(1))
            le32_write(info + 8, (uint32_t)(range->size >> 10)); /* mem_upper, KiB */
    }
    le32_write(info + 16, LOAD_AT_COMMAND_LINE);
    if (initrd->size) {
        flags |= INFO_MODULES;
        le32_write(info + 20, 1);
        le32_write(info + 24, LOAD_AT_INFO + MODULE_AT);
        le32_write(info + MODULE_AT, (uint32_t)initrd->start);
        le32_write(info + MODULE_AT + 4, (uint32_t)(initrd->start + initrd->size));
        le32_write(info + MODULE_AT + 8, LOAD_AT_COMMAND_LINE);
    }
    le32_write(info + 44, request->range_count * MAP_ENTRY_SIZE);
    le32_write(info + 48, LOAD_AT_INFO + MAP_AT);
    memcpy(info + NAME_AT, "lodge", 6);
    le32_write(info + 64, LOAD_AT_INFO + NAME_AT);
    le32_write(info, flags);
}

int load_multiboot(const struct load_request *request, const struct load_source *file,
                   const struct load_multiboot *header, struct load_entry *ret_entry,
                   struct err *err)
{
    if (header->flags & FLAGS_REQUIRED & ~(FLAG_ALIGN_MODULES | FLAG_MEMORY_INFO))
        return err_set(err, -ENOEXEC,
                       "the kernel's multiboot header asks for features 0x%x that this machine "
                       "does not offer (such as a video mode)",
                       header->flags & FLAGS_REQUIRED);
    struct load_elf image;
    int r = header->flags & FLAG_ADDRESSES ? addresses_image(file, header, &image, err)
                                           : load_elf_parse(file, &image, err);
    if (r < 0)
        return r;
    uint64_t entry;
    r = entry_find(&image, &entry, err);
    if (r < 0)
        return r;
    if (image.high > GIB(4))
        return err_set(err, -ENOEXEC, "the kernel lies above 4 GiB, which multiboot cannot reach");

    struct load_initrd initrd;
    r = load_place_kernel(request, image.low, image.high, err);
    if (r >= 0)
        r = load_place_command_line(request, LOAD_COMMAND_LINE_MAX - 1, err);
    if (r >= 0)
        r = load_elf_place(file, &image, request->mem, err);
    if (r >= 0)
        r = load_place_initrd(request, image.high, UINT32_MAX, &initrd, err);
    if (r < 0)
        return r;

    uint8_t info[INFO_SIZE] = {0};
    info_fill(info, request, &initrd);
    if (mem_write(request->mem, LOAD_AT_INFO, info, sizeof info) < 0)
        return err_set(err, -ENOMEM, "the guest has no memory at its start");
    *ret_entry = (struct load_entry){
        .protocol = LOAD_PROTOCOL_MULTIBOOT, .rip = entry, .info = LOAD_AT_INFO};
    return 0;
}
