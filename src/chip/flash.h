/*
 * flash.h: a parallel NOR flash with the Intel command set (JEDEC JEP137 set 0001), one byte wide,
 * as the pflash_cfi01 that UEFI firmware for virtual machines keeps its variables in.
 *
 *            0xff, 0x00, 0x50 (clears the status too)
 *     READ ARRAY <------------------ any ---------------------------------------+
 *         |                                                                     |
 *         | 0x70 status, 0x90 identifiers, 0x98 query: what is read from then on|
 *         | 0x20 then 0xd0: erases the block to 0xff        -> reads status ----+
 *         | 0x10 or 0x40, then a byte: programs it          -> reads status ----+
 *         | 0xe8, count - 1, so many bytes, 0xd0: programs them -> reads status-+
 *
 * What is wrong with a sequence shows in the status (bits 4 and 5). Two things are as QEMU has
 * them, for that is what OVMF looks for: programming sets bits as well as it clears them, and a
 * cleared status is 0, not 0x80.
 *
 * The guest reads it as memory that it cannot write to, `shown`, and only its writes come here:
 * OVMF looks through all of the array, byte by byte, at each start. What a read gives there is
 * changed as a whole with the view, which costs little, for it happens a few times for each
 * variable.
 *
 * The contents are kept apart from that, and in a file: what was changed is written there whenever
 * the guest goes back to reading the array, which OVMF does after each piece of a variable, and by
 * flash_flush(). A write that fails is told through `on_error` and in the status; it is tried again
 * with the next.
 *
 * Threads: any; own mutex, held while the file is written, during `on_error` and `changed`. Errors:
 * -EINVAL for a size that is no number of blocks, -ENOMEM, what reading gave.
 */
#pragma once

#include "base/err.h"
#include "bus/bus.h"

#include <stdint.h>

enum {
    FLASH_BLOCK = 4096,
    FLASH_SIZE_MAX = 4 << 20,
    FLASH_BUFFER = 256, /* bytes of one buffered write */
};

struct flash;

struct flash_config {
    int fd;                        /* borrowed; read once, written to, never closed */
    uint32_t size;                 /* bytes, FLASH_BLOCK times anything, at most FLASH_SIZE_MAX */
    uint8_t *shown;                /* so many bytes; borrowed */
    void (*changed)(void *opaque); /* they have; may be NULL */
    void (*on_error)(void *opaque, int number); /* may be NULL */
    void *opaque;
};

int flash_new(const struct flash_config *config, struct flash **ret_flash, struct err *err);
void flash_reset(void *flash); /* reads the array; the contents stay */
void flash_free(void *flash);

/* Writes `shown` anew, where somebody has cleared it. */
void flash_show(struct flash *flash);
/* Everything is in the file, or -errno. */
int flash_flush(struct flash *flash);

extern const struct bus_ops flash_ops;
extern const struct device_ops flash_device;
