/*
 * fw_cfg.h: QEMU's firmware configuration device, by which OVMF learns what machine it runs on
 * (QEMU, docs/specs/fw_cfg).
 *
 * A list of items, each a number and bytes. The guest selects one at port 0x510 (16 bits) and reads
 * it byte by byte at 0x511; past the end come zeros. Or it puts the address of a control block into
 * 0x514 (8 bytes, big-endian, the low half last) and the bytes are copied to where the block says.
 * Items from FW_CFG_FILE_FIRST on have names, which item FW_CFG_DIRECTORY lists. Nothing can be
 * written: that is how QEMU has it too, but for a few items that are not here.
 *
 * Ownership: bytes that are added are copied. Add before the first vCPU runs; afterwards only
 * fw_cfg_replace(), inside `prepare`. Threads: any; own mutex, held during `prepare`, `read` and
 * `write`. Errors: -ENOMEM, -ENOSPC where there are too many files, -EINVAL for a name that is too
 * long.
 */
#pragma once

#include "base/err.h"
#include "bus/bus.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FW_CFG_PORT = 0x510,
    FW_CFG_PORTS = 2,
    FW_CFG_DMA_PORT = 0x514,
    FW_CFG_DMA_PORTS = 8,

    FW_CFG_SIGNATURE = 0x0000,
    FW_CFG_ID = 0x0001,
    FW_CFG_CPUS = 0x0005,
    FW_CFG_DIRECTORY = 0x0019,
    FW_CFG_FILE_FIRST = 0x0020,

    FW_CFG_NAME_SIZE = 56, /* with the final NUL */
    FW_CFG_FILES_MAX = 16,
    FW_CFG_ITEM_MAX = 1 << 20, /* bytes */
};

struct fw_cfg;

struct fw_cfg_config {
    /* Guest memory; -EFAULT where there is none. */
    int (*read)(void *opaque, uint64_t gpa, void *to, uint64_t size);
    int (*write)(void *opaque, uint64_t gpa, const void *from, uint64_t size);
    /* A file was selected that may have to be made first; may be NULL. */
    void (*prepare)(void *opaque, uint16_t item);
    void *opaque;
};

struct fw_cfg *fw_cfg_new(const struct fw_cfg_config *config);
void fw_cfg_reset(void *fw_cfg);
void fw_cfg_free(void *fw_cfg);

int fw_cfg_add(struct fw_cfg *fw_cfg, uint16_t item, const void *bytes, size_t size,
               struct err *err);
/* Returns its item. The directory is sorted by nothing but the order of adding. */
int fw_cfg_add_file(struct fw_cfg *fw_cfg, const char *name, const void *bytes, size_t size,
                    struct err *err);
/* Other bytes, as many; inside `prepare`, or while no vCPU runs. */
void fw_cfg_replace(struct fw_cfg *fw_cfg, uint16_t item, const void *bytes);

extern const struct bus_ops fw_cfg_ops, fw_cfg_dma_ops;
extern const struct device_ops fw_cfg_device;
