#include "board/load_bzimage.h"

#include "base/bytes.h"
#include "base/own.h"
#include "board/load_unpack.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Offsets in the file; boot.rst, "Details of header fields". */
enum {
    SETUP_SECTS = 0x1f1,
    BOOT_FLAG = 0x1fe,
    JUMP_SIZE = 0x201, /* the header ends at 0x202 + this byte */
    HEADER_MAGIC = 0x202,
    VERSION = 0x206,
    LOAD_FLAGS = 0x211,
    INITRD_ADDR_MAX = 0x22c,
    CMDLINE_SIZE = 0x238,
    PAYLOAD_OFFSET = 0x248,
    PAYLOAD_LENGTH = 0x24c,

    LOADED_HIGH = 1 << 0,
    VERSION_OLDEST = 0x208, /* the first with the payload's place; Linux 2.6.26 */
    SECTOR = 512,
    SETUP_SECTS_DEFAULT = 4,
};

bool load_bzimage_probe(const uint8_t *start, uint64_t size)
{
    return size >= VERSION && le16_read(start + BOOT_FLAG) == 0xaa55 &&
           memcmp(start + HEADER_MAGIC, "HdrS", 4) == 0;
}

static int header_check(const uint8_t *start, struct err *err)
{
    unsigned version = le16_read(start + VERSION);
    if (version < VERSION_OLDEST)
        return err_set(err, -ENOEXEC,
                       "the kernel speaks boot protocol %u.%02u, older than 2.08: use Linux 2.6.26 "
                       "or later",
                       version >> 8, version & 0xff);
    if (!(start[LOAD_FLAGS] & LOADED_HIGH))
        return err_set(err, -ENOEXEC, "the kernel is a zImage: build it as a bzImage");
    return 0;
}

int load_bzimage_open(const struct load_source *file, uint64_t limit,
                      struct load_bzimage *ret_header, struct load_source *ret_kernel,
                      struct err *err)
{
    uint8_t start[LOAD_BZIMAGE_PROBE];
    int r = load_source_read(file, 0, start, sizeof start, err);
    if (r < 0)
        return r;
    r = header_check(start, err);
    if (r < 0)
        return r;

    uint64_t setup = start[SETUP_SECTS] ? start[SETUP_SECTS] : SETUP_SECTS_DEFAULT;
    uint64_t payload = (setup + 1) * SECTOR + le32_read(start + PAYLOAD_OFFSET);
    uint32_t length = le32_read(start + PAYLOAD_LENGTH);
    if (!range_fits(payload, length, file->size))
        return err_set(err, -ENOEXEC,
                       "the kernel is truncated: it has %" PRIu64 " bytes of at least %" PRIu64
                       "; fetch or build the file again",
                       file->size, payload + length);

    _cleanup_free_ uint8_t *packed = NULL;
    const uint8_t *from = file->bytes ? file->bytes + payload : NULL;
    if (!from) {
        from = packed = malloc(length ? length : 1);
        if (!packed)
            return err_set(err, -ENOMEM, "no memory for %" PRIu32 " bytes of kernel", length);
        r = load_source_read(file, payload, packed, length, err);
        if (r < 0)
            return r;
    }
    r = load_unpack(from, length, limit, ret_kernel, err);
    if (r < 0)
        return r;

    *ret_header = (struct load_bzimage){
        .header_size = min((uint32_t)start[JUMP_SIZE] + 0x202 - LOAD_BZIMAGE_HEADER_AT,
                           (uint32_t)LOAD_BZIMAGE_HEADER_MAX),
        .command_line_max = le32_read(start + CMDLINE_SIZE),
        .initrd_last = le32_read(start + INITRD_ADDR_MAX),
    };
    memcpy(ret_header->header, start + LOAD_BZIMAGE_HEADER_AT, ret_header->header_size);
    return 0;
}
