/*
 * private.h: what a format is to disk.c. Nobody outside src/disk includes this.
 *
 * A format is a row of functions. Ranges were checked against the size before they get here, and
 * are not empty; a disk that is read-only gets no write. Any thread may be in any of them.
 */
#pragma once

#include "disk/disk.h"
#include "disk/file.h"
#include "disk/span.h"

#include <pthread.h>
#include <stdatomic.h>

enum { DISK_CHAIN_MAX = 64, DISK_NAME_MAX = 1023 };

/* How an image is being opened; `from` is the image that named it. */
struct disk_opening {
    const char *path;
    const struct disk_options *options;
    enum disk_format format; /* of this image, as somebody said */
    bool write;
    const struct disk *from;
    unsigned depth;
};

struct disk_ops {
    const char *name;
    enum disk_format format;
    int (*open)(const struct disk_opening *opening, struct file *file, struct disk **ret_disk,
                struct err *err);    /* owns `file` when it returned 0 */
    int (*close)(struct disk *disk); /* frees all but `file`, `path` and `backing` */
    int (*read)(struct disk *disk, uint64_t offset, struct span *to, uint64_t length);
    int (*write)(struct disk *disk, uint64_t offset, struct span *from, uint64_t length);
    int (*write_zeroes)(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap);
    int (*discard)(struct disk *disk, uint64_t offset, uint64_t length);
    int (*flush)(struct disk *disk);
    bool (*direct)(struct disk *disk, uint64_t offset, uint64_t length, bool write,
                   struct disk_extent *ret_extent);
    void (*direct_end)(struct disk *disk, const struct disk_extent *extent);
    int (*status)(struct disk *disk, uint64_t offset, uint64_t length,
                  enum disk_extent_kind *ret_kind, uint64_t *ret_length);
    int (*resize)(struct disk *disk, uint64_t size, struct err *err);
    int (*info)(struct disk *disk, struct disk_info *info); /* NULL: nothing to add */
};

/* The first member of every format's own struct. */
struct disk {
    const struct disk_ops *ops;
    struct file *file;
    char *path;
    struct disk *backing;    /* NULL: none */
    const struct disk *from; /* whose backing this is; while the chain is being opened */
    _Atomic uint64_t size;
    bool read_only;
    bool guarded; /* the guest must not write a magic: see disk_open() */
    pthread_mutex_t guard;
};

extern const struct disk_ops raw_ops, qcow2_ops;

/* Opens the image that `disk` stands on. DISK_FORMAT_PROBE: the image does not say what it is. */
int disk_open_backing(struct disk *disk, const struct disk_opening *opening, const char *path,
                      enum disk_format format, struct err *err);

/* A qcow2 that was opened alone names a backing; and gets one. */
bool qcow2_stands_on_something(const struct disk *disk);
void qcow2_join(struct disk *disk, struct disk *below);

/* As disk_read(), and zeros behind the end: a backing may be shorter than what stands on it. */
int disk_read_padded(struct disk *disk, uint64_t offset, struct span *to, uint64_t length);

/* True for the first bytes of a format that can name other files. */
bool disk_magic_names_files(const uint8_t *bytes, size_t length);

int raw_create(const char *path, const struct disk_create *create, struct err *err);
int qcow2_create(const char *path, const struct disk_create *create, struct err *err);
/* Into a new and empty file. */
int qcow2_create_in(struct file *file, const char *path, const struct disk_create *create,
                    struct err *err);
int qcow2_check(const struct disk_opening *opening, struct file *file,
                const struct disk_checker *checker, struct disk_check *ret_check, struct err *err);
