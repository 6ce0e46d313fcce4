/*
 * Which kind of kernel is it? First match wins:
 *
 *   "HdrS" at 0x202          bzImage: unpack, then as ELF below
 *   multiboot header         multiboot
 *   ELF, 64-bit, Linux       64-bit boot protocol
 *   ELF with PVH note        PVH
 *   ELF, 64-bit              64-bit boot protocol (a Linux without notes)
 */
#include "board/load.h"

#include "base/bytes.h"
#include "base/own.h"
#include "board/load_boot.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/types.h>

static int elf_load(const struct load_request *request, const struct load_source *file,
                    const struct load_bzimage *bzimage, struct load_entry *ret_entry,
                    struct err *err)
{
    struct load_elf elf;
    int r = load_elf_parse(file, &elf, err);
    if (r < 0)
        return r;
    if (elf.has_pvh && !(elf.is_64 && elf.is_linux))
        return load_pvh(request, file, &elf, bzimage, ret_entry, err);
    if (!elf.is_64)
        return err_set(
            err, -ENOEXEC,
            "the kernel is a 32-bit ELF image without a PVH entry or a multiboot header: "
            "use a 64-bit Linux, or give it one of the two");
    return load_linux64(request, file, &elf, bzimage, ret_entry, err);
}

static int bzimage_load(const struct load_request *request, const struct load_source *file,
                        struct load_entry *ret_entry, struct err *err)
{
    struct load_bzimage header;
    _cleanup_(load_source_free)
    struct load_source kernel = {.fd = -1};
    int r = load_bzimage_open(file, mem_size(request->mem), &header, &kernel, err);
    if (r < 0)
        return r;
    return elf_load(request, &kernel, &header, ret_entry, err);
}

static int no_kernel(struct err *err)
{
    return err_set(err, -ENOEXEC,
                   "the file is no kernel: neither a Linux bzImage nor an ELF image (vmlinux, PVH, "
                   "multiboot)");
}

/* Reads as much of the file's start as a probe wants. */
static int start_read(const struct load_source *file, uint8_t *ret_start, uint64_t *ret_size,
                      struct err *err)
{
    *ret_size = min(file->size, (uint64_t)LOAD_BZIMAGE_PROBE);
    return load_source_read(file, 0, ret_start, *ret_size, err);
}

int load_kernel(const struct load_request *request, struct load_entry *ret_entry, struct err *err)
{
    if (request->kernel_fd < 0)
        return err_set(err, -ENOEXEC, "no kernel is given (--kernel FILE, or name an image)");
    struct load_source file;
    int r = load_source_open(&file, "kernel", request->kernel_fd, err);
    if (r < 0)
        return r;
    uint8_t start[LOAD_BZIMAGE_PROBE];
    uint64_t size;
    r = start_read(&file, start, &size, err);
    if (r < 0)
        return r;

    struct load_entry entry;
    struct load_multiboot multiboot;
    if (load_bzimage_probe(start, size))
        r = bzimage_load(request, &file, &entry, err);
    else if (load_multiboot_probe(&file, &multiboot))
        r = load_multiboot(request, &file, &multiboot, &entry, err);
    else if (load_elf_probe(start, size))
        r = elf_load(request, &file, NULL, &entry, err);
    else
        r = no_kernel(err);
    if (r < 0)
        return r;
    r = load_gdt_write(request->mem, &entry, err);
    if (r < 0)
        return r;
    *ret_entry = entry;
    return 0;
}

static int chunk_write(int fd, const uint8_t *chunk, size_t size, struct err *err)
{
    for (size_t out = 0; out < size;) {
        ssize_t n = write(fd, chunk + out, size - out);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "cannot write the unpacked kernel");
        out += (size_t)n;
    }
    return 0;
}

/* Pages of zeros become holes where the output can have them: a quarter of a vmlinux is BSS that
 * its file spells out, and a machine's start need not read it (load_source_read_sparse()). */
static int all_write(int fd, const struct load_source *image, struct err *err)
{
    enum { CHUNK = 4096 };
    uint8_t chunk[CHUNK];
    off_t start = lseek(fd, 0, SEEK_CUR);
    for (uint64_t done = 0; done < image->size; done += CHUNK) {
        uint64_t size = min(image->size - done, (uint64_t)CHUNK);
        int r = load_source_read(image, done, chunk, size, err);
        if (r < 0)
            return r;
        if (start >= 0 && bytes_are_zero(chunk, size) && lseek(fd, (off_t)size, SEEK_CUR) >= 0)
            continue;
        r = chunk_write(fd, chunk, size, err);
        if (r < 0)
            return r;
    }
    if (start >= 0 && ftruncate(fd, start + (off_t)image->size) < 0)
        return err_errno(err, errno, "cannot write the unpacked kernel");
    return 0;
}

int load_unpack_kernel(int in_fd, int out_fd, uint64_t limit, struct err *err)
{
    struct load_source file;
    int r = load_source_open(&file, "kernel", in_fd, err);
    if (r < 0)
        return r;
    uint8_t start[LOAD_BZIMAGE_PROBE];
    uint64_t size;
    r = start_read(&file, start, &size, err);
    if (r < 0)
        return r;
    struct load_elf elf;
    if (load_bzimage_probe(start, size)) {
        struct load_bzimage header;
        _cleanup_(load_source_free)
        struct load_source kernel = {.fd = -1};
        r = load_bzimage_open(&file, limit, &header, &kernel, err);
        if (r >= 0)
            r = load_elf_parse(&kernel, &elf, err);
        return r < 0 ? r : all_write(out_fd, &kernel, err);
    }
    if (!load_elf_probe(start, size))
        return no_kernel(err);
    if (file.size > limit)
        return err_set(err, -ENOMEM, "the kernel has more than %" PRIu64 " MiB", limit >> 20);
    r = load_elf_parse(&file, &elf, err);
    return r < 0 ? r : all_write(out_fd, &file, err);
}
