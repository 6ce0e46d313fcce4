#include "board/load_source.h"

#include "base/bytes.h"
#include "mem/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Less than this is read: a mapping costs more than it saves. */
enum { MAP_WORTH = 64 * 1024 };

int load_source_open(struct load_source *ret_source, const char *what, int fd, struct err *err)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return err_errno(err, errno, "%s", what);
    if (!S_ISREG(status.st_mode))
        return err_set(err, -EINVAL, "the %s is not a regular file", what);
    if (status.st_size == 0)
        return err_set(err, -ENOEXEC, "the %s file is empty", what);
    *ret_source = (struct load_source){.what = what, .fd = fd, .size = (uint64_t)status.st_size};
    return 0;
}

void load_source_borrow(struct load_source *ret_source, const char *what, const void *bytes,
                        uint64_t size)
{
    *ret_source = (struct load_source){.what = what, .fd = -1, .bytes = bytes, .size = size};
}

int load_source_room(struct load_source *ret_source, const char *what, uint64_t size,
                     struct err *err)
{
    void *room = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return err_errno(err, errno, "no room for %" PRIu64 " bytes of %s", size, what);
    *ret_source = (struct load_source){
        .what = what, .fd = -1, .bytes = room, .size = size, .room = room, .room_size = size};
    return 0;
}

void load_source_free(struct load_source *source)
{
    if (source->room)
        munmap(source->room, source->room_size);
    *source = (struct load_source){.fd = -1};
}

int load_source_read(const struct load_source *source, uint64_t offset, void *to, uint64_t size,
                     struct err *err)
{
    if (!range_fits(offset, size, source->size))
        return err_set(err, -ENOEXEC,
                       "the %s is truncated: it has %" PRIu64 " bytes and speaks of %" PRIu64
                       " at %" PRIu64 "; fetch or build the file again",
                       source->what, source->size, size, offset);
    if (source->bytes) {
        memcpy(to, source->bytes + offset, size);
        return 0;
    }
    uint64_t done = 0;
    while (done < size) {
        ssize_t n = pread(source->fd, (char *)to + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "cannot read the %s", source->what);
        if (n == 0)
            return err_set(err, -ENOEXEC, "the %s became shorter while it was read", source->what);
        done += (uint64_t)n;
    }
    return 0;
}

/* Maps the whole pages of [to, to + size) from the file, privately, where it cannot change under
 * the guest: nobody may write to it. Returns how many bytes from the start of the range are now
 * there, edges read; 0 where mapping is not possible, which is no error. */
static uint64_t map_pages(const struct load_source *source, uint64_t offset, uint8_t *to,
                          uint64_t size)
{
    struct stat status;
    if (fstat(source->fd, &status) < 0 || status.st_mode & (S_IWUSR | S_IWGRP | S_IWOTH) ||
        ((uintptr_t)to - offset) % MEM_PAGE_SIZE)
        return 0;
    uint64_t before = -(uintptr_t)to % MEM_PAGE_SIZE;
    uint64_t length = size > before ? align_down(size - before, MEM_PAGE_SIZE) : 0;
    if (length < MAP_WORTH || load_source_read(source, offset, to, before, NULL) < 0)
        return 0;
    void *at = mmap(to + before, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
                    source->fd, (off_t)(offset + before));
    return at == MAP_FAILED ? 0 : before + length;
}

int load_source_place(const struct load_source *source, uint64_t offset, uint8_t *to, uint64_t size,
                      struct err *err)
{
    uint64_t mapped = 0;
    if (!source->bytes && range_fits(offset, size, source->size))
        mapped = map_pages(source, offset, to, size);
    return load_source_read_sparse(source, offset + mapped, to + mapped, size - mapped, err);
}

int load_source_read_sparse(const struct load_source *source, uint64_t offset, void *to,
                            uint64_t size, struct err *err)
{
    if (source->bytes || !range_fits(offset, size, source->size))
        return load_source_read(source, offset, to, size, err);
    uint64_t at = offset, end = offset + size;
    while (at < end) {
        off_t data = lseek(source->fd, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0; /* nothing but a hole to the end of the file */
        off_t hole = data < 0 ? -1 : lseek(source->fd, data, SEEK_HOLE);
        if (hole < 0) { /* a file system that cannot tell */
            data = (off_t)at;
            hole = (off_t)end;
        }
        uint64_t from = max((uint64_t)data, at), until = min((uint64_t)hole, end);
        if (from >= end)
            return 0;
        if (until <= from) /* the file changes under our hands */
            until = end;
        int r = load_source_read(source, from, (char *)to + (from - offset), until - from, err);
        if (r < 0)
            return r;
        at = until;
    }
    return 0;
}
