#include "board/load_place.h"

#include "base/bytes.h"
#include "board/load_source.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static uint64_t whole_mib(uint64_t bytes)
{
    return (bytes >> 20) + (bytes % MIB(1) != 0);
}

static const struct load_range *ram_find(const struct load_request *request, uint64_t at)
{
    for (unsigned i = 0; i < request->range_count; i++)
        if (request->ranges[i].type == LOAD_RANGE_RAM &&
            at - request->ranges[i].start < request->ranges[i].size)
            return &request->ranges[i];
    return NULL;
}

int load_place_kernel(const struct load_request *request, uint64_t low, uint64_t high,
                      struct err *err)
{
    if (low < LOAD_KERNEL_LOWEST)
        return err_set(err, -ENOEXEC,
                       "the kernel wants to be loaded at 0x%" PRIx64
                       ", below 1 MiB, where the machine's own tables are: link it higher",
                       low);
    const struct load_range *ram = ram_find(request, low);
    if (!ram || high > ram->start + ram->size)
        return err_set(err, -ENOMEM,
                       "the kernel needs memory up to %" PRIu64 " MiB and the guest has %" PRIu64
                       " MiB: give it more (--memory)",
                       whole_mib(high), mem_size(request->mem) >> 20);
    return 0;
}

int load_place_command_line(const struct load_request *request, uint64_t longest, struct err *err)
{
    uint64_t length = strlen(request->command_line);
    longest = min(longest, (uint64_t)LOAD_COMMAND_LINE_MAX - 1);
    if (length > longest)
        return err_set(err, -E2BIG,
                       "the kernel command line has %" PRIu64
                       " bytes and this kernel takes %" PRIu64 ": shorten it (--append)",
                       length, longest);
    if (mem_write(request->mem, LOAD_AT_COMMAND_LINE, request->command_line, length + 1) < 0)
        return err_set(err, -ENOMEM, "the guest has no memory at its start");
    return 0;
}

int load_place_initrd(const struct load_request *request, uint64_t kernel_end, uint64_t last,
                      struct load_initrd *ret_initrd, struct err *err)
{
    *ret_initrd = (struct load_initrd){0};
    if (request->initrd_fd < 0)
        return 0;
    struct load_source file;
    int r = load_source_open(&file, "initrd", request->initrd_fd, err);
    if (r < 0)
        return r;
    const struct load_range *ram = ram_find(request, kernel_end - 1);
    uint64_t lowest = align_up(kernel_end, MEM_PAGE_SIZE);
    uint64_t end = ram ? ram->start + ram->size : 0;
    if (last < end)
        end = last + 1;
    if (end < lowest || align_down(end, MEM_PAGE_SIZE) < lowest ||
        file.size > align_down(end, MEM_PAGE_SIZE) - lowest)
        return err_set(err, -ENOMEM,
                       "the initrd of %" PRIu64 " MiB does not fit beside the kernel in %" PRIu64
                       " MiB of memory: give the guest at least %" PRIu64 "M (--memory)",
                       whole_mib(file.size), mem_size(request->mem) >> 20,
                       whole_mib(lowest) + whole_mib(file.size) + 1);
    uint64_t start = align_down(align_down(end, MEM_PAGE_SIZE) - file.size, MEM_PAGE_SIZE);
    uint8_t *to = mem_at(request->mem, start, file.size, true);
    if (!to || start < lowest)
        return err_set(err, -ENOMEM, "the initrd does not fit the guest's memory");
    r = load_source_read(&file, 0, to, file.size, err);
    if (r < 0)
        return r;
    mem_written(request->mem, start, file.size);
    *ret_initrd = (struct load_initrd){.start = start, .size = file.size};
    return 0;
}
