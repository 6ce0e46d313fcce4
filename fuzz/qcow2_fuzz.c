// needs: base disk
// flags: -max_len=16384
// -seed_inputs=../../fuzz/seeds/qcow2/data,../../fuzz/seeds/qcow2/snapshot,../../fuzz/seeds/qcow2/packed,../../fuzz/seeds/qcow2/backed,../../fuzz/seeds/qcow2/bitmap,../../fuzz/seeds/qcow2/zstd
/*
 * An image of an attacker's choice: opened, read, checked, written to, mended. The first byte says
 * what is done, the rest is the image. What stands behind it is the same image once more (which
 * must be noticed), another copy of it, or a small raw disk.
 *
 * After a repair that left no errors a second check finds none.
 */
#include "base/bytes.h"
#include "disk/disk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DO_WRITE = 1, DO_REPAIR = 2, DO_RESIZE = 4, BACKING_COPY = 8, BACKING_SELF = 16 };

struct image {
    int fd, copy, raw;
    unsigned flags;
};

static int open_again(int fd, bool write)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, write ? O_RDWR : O_RDONLY);
    return again < 0 ? -errno : again;
}

static int open_image(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    struct image *image = opaque;
    int fd = !from || image->flags & BACKING_SELF ? image->fd
             : image->flags & BACKING_COPY        ? image->copy
                                                  : image->raw;
    return open_again(fd, write);
}

static int make_file(const uint8_t *data, size_t size)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    assert(fd >= 0);
    ssize_t put = write(fd, data, size);
    assert(put == (ssize_t)size);
    return fd;
}

static void read_about(struct disk *disk)
{
    static uint8_t bytes[1 << 16];
    uint64_t size = disk_size(disk), length;
    enum disk_extent_kind kind;
    struct disk_info info;
    if (disk_info(disk, &info) == 0)
        disk_info_free(&info);
    for (uint64_t at = 0, n = 0; at < size && n < 64; at += length, n++) {
        length = 1;
        if (disk_status(disk, at, size - at, &kind, &length) < 0)
            length = DISK_SECTOR;
        assert(length > 0 && length <= size - at);
        (void)disk_read(disk, at, bytes, (size_t)min(length, (uint64_t)sizeof bytes));
    }
    struct disk_extent extent;
    if (disk_direct(disk, 0, min(size, UINT64_C(65536)), false, &extent))
        disk_direct_end(disk, &extent);
}

static void write_about(struct disk *disk, unsigned flags)
{
    static uint8_t bytes[3000];
    uint64_t size = disk_size(disk);
    memset(bytes, 0x5a, sizeof bytes);
    for (unsigned i = 0; i < 12; i++) {
        uint64_t at = size / 12 * i + i * 100, length = sizeof bytes;
        if (!range_fits(at, length, size))
            continue;
        int r = i % 3 == 0   ? disk_write(disk, at, bytes, length)
                : i % 3 == 1 ? disk_write_zeroes(disk, at, min(size - at, UINT64_C(65536)), i & 1)
                             : disk_discard(disk, at, min(size - at, UINT64_C(65536)));
        if (r < 0)
            continue;
        if (i % 3 == 0) {
            static uint8_t back[sizeof bytes];
            /* What was written is there, unless two clusters share a place. */
            (void)disk_read(disk, at, back, length);
        }
        if (i == 6)
            (void)disk_flush(disk);
    }
    struct disk_extent extent;
    if (size && disk_direct(disk, 0, min(size, UINT64_C(65536)), true, &extent)) {
        assert(extent.file_offset); /* never the header */
        disk_direct_end(disk, &extent);
    }
    if (flags & DO_RESIZE) {
        (void)disk_resize(disk, size + 100000, NULL);
        (void)disk_resize(disk, size / 2, NULL);
    }
}

static bool check_image(struct image *image, bool repair)
{
    char path[64];
    struct disk_check found;
    struct disk_checker checker = {.repair = repair};
    snprintf(path, sizeof path, "/proc/self/fd/%d", image->fd);
    return disk_check(path, DISK_FORMAT_QCOW2, &checker, &found, NULL) == 0 && !found.errors;
}

static void use(struct image *image, bool write)
{
    struct err err = {0};
    struct disk *disk = NULL;
    struct disk_opener opener = {open_image, image};
    struct disk_options options = {
        .format = DISK_FORMAT_QCOW2,
        .read_only = !write,
        .cache = DISK_CACHE_UNSAFE,
        .opener = &opener,
    };
    int r = disk_open("image", &options, &disk, &err);
    assert(r == 0 || (r < 0 && *err.text));
    if (r < 0)
        return;
    read_about(disk);
    if (write)
        write_about(disk, image->flags);
    disk_close(disk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t raw[5000] = "what stands behind";
    if (size < 2)
        return 0;
    struct image image = {.flags = data[0]};
    image.fd = make_file(data + 1, size - 1);
    image.copy = make_file(data + 1, size - 1);
    image.raw = make_file(raw, sizeof raw);
    use(&image, false);
    (void)check_image(&image, false);
    if (image.flags & DO_REPAIR) {
        bool clean = check_image(&image, true);
        assert(!clean || check_image(&image, false));
    }
    if (image.flags & DO_WRITE) {
        use(&image, true);
        (void)check_image(&image, false);
    }
    close(image.fd);
    close(image.copy);
    close(image.raw);
    return 0;
}
