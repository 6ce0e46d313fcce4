#include "base/bytes.h"
#include "board/load_boot.h"
#include "board/load_place.h"

#include <errno.h>
#include <string.h>

/* xen/include/public/arch-x86/hvm/start_info.h, version 1 of the structure. */
enum {
    START_MAGIC = 0x336ec578,
    START_SIZE = 56,
    MODULE_AT = 64, /* behind the structure: one module, then the memory map */
    MODULE_SIZE = 32,
    MAP_AT = MODULE_AT + MODULE_SIZE,
    MAP_ENTRY_SIZE = 24,
    INFO_SIZE = MAP_AT + LOAD_RANGES_MAX * MAP_ENTRY_SIZE,
};
_Static_assert(START_SIZE <= MODULE_AT, "the module list lies behind the structure");

static void start_info_fill(uint8_t *info, const struct load_request *request,
                            const struct load_initrd *initrd)
{
    le32_write(info, START_MAGIC);
    le32_write(info + 4, 1); /* version */
    if (initrd->size) {
        le32_write(info + 12, 1); /* nr_modules */
        le64_write(info + 16, LOAD_AT_INFO + MODULE_AT);
        le64_write(info + MODULE_AT, initrd->start);
        le64_write(info + MODULE_AT + 8, initrd->size);
    }
    le64_write(info + 24, LOAD_AT_COMMAND_LINE);
    le64_write(info + 32, request->rsdp);
    le64_write(info + 40, LOAD_AT_INFO + MAP_AT);
    le32_write(info + 48, request->range_count);
    for (unsigned i = 0; i < request->range_count; i++) {
        uint8_t *entry = info + MAP_AT + i * MAP_ENTRY_SIZE;
        le64_write(entry, request->ranges[i].start);
        le64_write(entry + 8, request->ranges[i].size);
        le32_write(entry + 16, request->ranges[i].type);
    }
}

int load_pvh(const struct load_request *request, const struct load_source *file,
             const struct load_elf *elf, const struct load_bzimage *bzimage,
             struct load_entry *ret_entry, struct err *err)
{
    if (!load_elf_holds(elf, elf->pvh_entry))
        return err_set(err, -ENOEXEC, "the kernel's PVH entry 0x%x lies outside it",
                       elf->pvh_entry);
    uint64_t longest = bzimage && bzimage->command_line_max ? bzimage->command_line_max
                                                            : LOAD_COMMAND_LINE_MAX - 1;
    struct load_initrd initrd;
    int r = load_place_kernel(request, elf->low, elf->high, err);
    if (r >= 0)
        r = load_place_command_line(request, longest, err);
    if (r >= 0)
        r = load_elf_place(file, elf, request->mem, err);
    if (r >= 0)
        r = load_place_initrd(request, elf->high, UINT32_MAX, &initrd, err);
    if (r < 0)
        return r;

    uint8_t info[INFO_SIZE] = {0};
    start_info_fill(info, request, &initrd);
    if (mem_write(request->mem, LOAD_AT_INFO, info, sizeof info) < 0)
        return err_set(err, -ENOMEM, "the guest has no memory at its start");
    *ret_entry = (struct load_entry){
        .protocol = LOAD_PROTOCOL_PVH, .rip = elf->pvh_entry, .info = LOAD_AT_INFO};
    return 0;
}
