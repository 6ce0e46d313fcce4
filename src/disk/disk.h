/*
 * disk.h: virtual disks, whatever lies under them: a raw file, qcow2 with its backing chain, LUKS,
 * a web server.
 *
 * A `struct disk` is an array of bytes with a size, in sectors of 512 bytes. Formats stack: a qcow2
 * disk has a raw disk under it and may have a whole disk behind it (its backing). The one on top is
 * what a device or a tool holds.
 *
 * Two ways to data:
 *
 *   the calls      disk_read() and its like do it all and return when it is done; they may block on
 *                  the host's I/O and on metadata. Any format, any range, many threads at once.
 *   direct         disk_direct() says where in a host file a range lies, when that is all there is
 *                  to it: then a device does the transfer itself, by io_uring, from guest memory.
 *                  Until disk_direct_end() that place is given to nobody else, whatever happens to
 *                  the range; neither call does I/O, and no call waits for extents to end: before
 *                  disk_resize() and disk_close() all have. Where it says no, the calls do it.
 *
 * Consistency. After a crash at any instant an image is as consistent as qemu-img check wants it,
 * with leaked clusters at worst, and holds everything that was written before the last disk_flush()
 * that returned 0. Between flushes writes may reach the host's disk in any order.
 *
 * Threads: every call below may be made by any thread at any time between open and close, unless it
 * says otherwise. Overlapping writes at the same time leave either's bytes, sector by sector.
 *
 * Errors: -errno. -EINVAL for a range outside the disk (nothing is done), -EIO also for an image
 * that contradicts itself, -ENOSPC and -EDQUOT when the host's disk is full (the image is as whole
 * as before, and the call may be made again), -EFBIG when the format has no room for more, -EROFS
 * for a write to what was opened for reading only, -EBUSY for an image in use, -EACCES where a key
 * does not open what is encrypted, -ESTALE when a web server has something else than before.
 * Images are hostile: sizes and offsets in them are believed only after they were checked against
 * the file.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { DISK_SECTOR = 512 };

enum disk_cache {
    DISK_CACHE_WRITEBACK, /* the host's page cache; flushes reach the disk */
    DISK_CACHE_NONE,      /* O_DIRECT; flushes reach the disk */
    DISK_CACHE_UNSAFE,    /* flushes do nothing: for guests that are thrown away */
};

enum disk_format {
    DISK_FORMAT_PROBE,
    DISK_FORMAT_RAW,
    DISK_FORMAT_QCOW2,
    DISK_FORMAT_OTHER, /* an image names one that we do not know; refused where it is opened */
};

/* How files are opened: the VMM cannot open any and hands out descriptors that it was given.
 * Returns a descriptor that the disk owns, or -errno. `path` is as the image has it; `from` is the
 * path of the image that names it, NULL for the first. A first path that is a URL (http, https)
 * wants the client's end of a lodge-http's socket (disk/http_wire.h); the disk is read-only, and
 * stands on nothing. */
struct disk_opener {
    int (*open)(void *opaque, const char *path, const char *from, bool write, bool direct);
    void *opaque;
};
/* open(2); relative to the folder of `from`; no URL. */
extern const struct disk_opener disk_opener_files;

/*
 * What opens an encrypted disk: a passphrase, or what an unlocked disk handed on. Encryption (LUKS)
 * is a layer of its own: inside it is a raw disk or a qcow2. Who gives a key gets plaintext, or an
 * error where nothing is encrypted; who gives none gets the container's bytes as they are, for a
 * guest may encrypt its disk itself. The key is for the first image only.
 */
struct disk_key;

/* All bytes of a file, a final newline too, as cryptsetup --key-file takes them; "-" is standard
 * input. */
int disk_key_read(const char *path, struct disk_key **ret_key, struct err *err);
void disk_key_free(struct disk_key *key); /* wiped; NULL is fine */

/* One may write to an image, or many may read it: others are kept away, as long as anybody has the
 * descriptor, also QEMU and its tools (lock.c). -EBUSY. What a disk opens it locks, unless it is
 * told that it is unlocked, or that its files are locked already. */
int disk_lock(int fd, bool write);

/* A writer that has become a reader: lets other readers in. All who have the descriptor from the
 * same open(2) hold one lock, so any of them may say it. */
void disk_lock_share(int fd);

struct disk_options {
    enum disk_format format; /* of the first image; backing images say theirs, or are probed */
    enum disk_cache cache;
    bool read_only;
    bool alone;    /* without its backing, which reads as zeros: to look at the image itself */
    bool unlocked; /* takes no locks: to look at what seldom changes, or where somebody took them */
    const struct disk_opener *opener; /* NULL: disk_opener_files */
    const struct disk_key *key;       /* NULL: the bytes are taken as they are */
};

struct disk;

/* Opens an image and its backing chain. The format is probed by its magic if nobody says; where it
 * was probed to be raw, the guest cannot write another format's magic into its first sector
 * (-EPERM), or the next probe would believe it. */
int disk_open(const char *path, const struct disk_options *options, struct disk **ret_disk,
              struct err *err);
/* Flushes metadata and closes. -errno of that flush; the disk is gone all the same. NULL is fine.
 */
int disk_close(struct disk *disk);

/* A descriptor by which another process opens the same disk without the passphrase and without a
 * look at the header; -ENOENT where nothing is encrypted. The one reads it with
 * disk_key_receive(), which leaves it open. */
int disk_key_unlocked(const struct disk *disk);
int disk_key_receive(int fd, struct disk_key **ret_key, struct err *err);

/* ---- another image on top, while the disk is in use ---- */

/* Opens a qcow2 that was made with a backing (disk_create()) and puts it on `below`, which is
 * flushed and belongs to the new disk from then on, whatever name that has for its backing. Nothing
 * may be under way on `below`. -ELOOP where the chain would be too long. */
int disk_stack(const char *path, const struct disk_options *options, struct disk *below,
               struct disk **ret_disk, struct err *err);
/* Takes it off again and closes it: what it stood on. With nothing under way. */
struct disk *disk_unstack(struct disk *disk);
struct disk *disk_below(const struct disk *disk); /* what it stands on; NULL: nothing */
/* What is below the top is never written again. With nothing under way. */
void disk_stack_for_good(struct disk *disk);

/* The host's file of the top image, still the disk's own; -1 where there is none. */
int disk_host_fd(const struct disk *disk);

/* Another name for what a qcow2 stands on; nobody has it open. `key`: it is inside a container. */
int disk_rename_backing(const char *path, const struct disk_key *key, const char *name,
                        struct err *err);

uint64_t disk_size(const struct disk *disk); /* bytes, a multiple of DISK_SECTOR */
bool disk_read_only(const struct disk *disk);
const char *disk_format_name(const struct disk *disk); /* "raw", "qcow2", ... */

/* Whole ranges of bytes, any alignment; 0 or -errno. What was never written reads as zeros. */
int disk_read(struct disk *disk, uint64_t offset, void *to, size_t length);
int disk_write(struct disk *disk, uint64_t offset, const void *from, size_t length);
int disk_readv(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);
int disk_writev(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);
/* Zeros from now on. `may_unmap`: the space may go back to the host. */
int disk_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap);
/* The contents do not matter any more; space that can go back, goes. They may read as before, or as
 * zeros. */
int disk_discard(struct disk *disk, uint64_t offset, uint64_t length);
int disk_flush(struct disk *disk);

/* Bytes [offset, offset + length) of the disk are bytes [file_offset, ...) of `fd`. */
struct disk_extent {
    int fd;
    uint64_t file_offset;
    uint64_t length;
    uint32_t
        alignment; /* file offset, length and memory must be multiples of it (O_DIRECT); or 1 */
    void *held;    /* for disk_direct_end() */
};

/* Where the longest part of the range that begins at `offset` lies: 1 to `length` bytes of
 * ret_extent->length, whole sectors if the range is; false: it is not that simple, and nothing is
 * held. File offset and length are multiples of the alignment; whether memory is, the caller looks.
 * For a write, too, nothing but the data is left to be done. Reads end within the file. */
bool disk_direct(struct disk *disk, uint64_t offset, uint64_t length, bool write,
                 struct disk_extent *ret_extent);
void disk_direct_end(struct disk *disk, const struct disk_extent *extent);

/* ---- what tools do ---- */

enum disk_extent_kind {
    DISK_EXTENT_DATA,
    DISK_EXTENT_ZERO,
    DISK_EXTENT_HOLE /* zero, and no space */
};

/* What lies at `offset`, and how far it goes on like that: through the whole chain. */
int disk_status(struct disk *disk, uint64_t offset, uint64_t length,
                enum disk_extent_kind *ret_kind, uint64_t *ret_length);

/* Grows or shrinks. Shrinking loses what lies behind; nobody may use the disk meanwhile. */
int disk_resize(struct disk *disk, uint64_t size, struct err *err);

enum disk_kdf { DISK_KDF_ARGON2ID, DISK_KDF_PBKDF2 };

struct disk_create {
    enum disk_format format;
    uint64_t size; /* bytes; rounded up to a sector. 0 with a backing: as large as that */
    bool preallocate;
    const char *backing; /* NULL: none; written into the image as it stands here */
    enum disk_format backing_format;
    unsigned cluster_bits; /* 9 to 21; 0: 16 */

    const struct disk_key *key; /* a passphrase: inside a LUKS2 container; NULL: in the clear */
    enum disk_kdf kdf;
    unsigned unlock_ms;    /* how long unlocking shall take here; 0: 1000 */
    unsigned crypt_sector; /* 512 to 4096, a power of two; 0: 512 */
};

/* Makes a new image. -EEXIST: there is something; nothing is overwritten. */
int disk_create(const char *path, const struct disk_create *create, struct err *err);

struct disk_info {
    const char *format;
    uint64_t size;      /* as the guest sees it */
    uint64_t allocated; /* bytes that the file takes on the host's disk */
    unsigned cluster_bits;
    bool dirty, corrupt;
    char *backing; /* as the image has it, or NULL; freed by disk_info_free() */
    enum disk_format backing_format;
    unsigned snapshots;
    char encryption[256]; /* what the container is, for people; "" without one */
};

int disk_info(struct disk *disk, struct disk_info *ret_info);
void disk_info_free(struct disk_info *info);

struct disk_check {
    uint64_t errors; /* the guest's data is at risk; after a repair, those that are left */
    uint64_t leaks;  /* space is lost, nothing else; likewise */
    uint64_t repaired;
};

struct disk_checker {
    const struct disk_key *key;                                  /* or NULL */
    bool repair;                                                 /* leaks, refcounts, flags */
    void (*report)(void *opaque, const char *line);              /* one finding; or NULL */
    void (*progress)(void *opaque, uint64_t done, uint64_t all); /* or NULL */
    void *opaque;
};

/* Consistency of the image itself, not of what it stands on. -ENOTSUP for a format that has none.
 */
int disk_check(const char *path, enum disk_format format, const struct disk_checker *checker,
               struct disk_check *ret_check, struct err *err);
