#include "chip/fw_cfg.h"

#include "base/bytes.h"
#include "base/record.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum {
    NAMED_MAX = 4, /* items below FW_CFG_FILE_FIRST: signature, ID, CPUs, directory */
    ITEMS_MAX = NAMED_MAX + FW_CFG_FILES_MAX,
    ENTRY_SIZE = 8 + FW_CFG_NAME_SIZE, /* of the directory */
    DIRECTORY_SIZE = 4 + FW_CFG_FILES_MAX * ENTRY_SIZE,

    ID_TRADITIONAL = 1 << 0,
    ID_DMA = 1 << 1,

    /* The control block: control, length, address. */
    BLOCK_SIZE = 16,
    CONTROL_ERROR = 1 << 0,
    CONTROL_READ = 1 << 1,
    CONTROL_SKIP = 1 << 2,
    CONTROL_SELECT = 1 << 3,
    CONTROL_WRITE = 1 << 4,

    /* What one control block may ask for: an item, and the zeros behind it up to a page. */
    CHUNK = 4096,
};

/* What the DMA register reads as. */
#define DMA_SIGNATURE UINT64_C(0x51454d5520434647) /* "QEMU CFG" */

struct item {
    uint16_t number;
    uint8_t *bytes;
    uint32_t size;
};

struct fw_cfg {
    pthread_mutex_t lock;
    struct fw_cfg_config config;
    struct item items[ITEMS_MAX];
    unsigned item_count, file_count;
    uint8_t directory[DIRECTORY_SIZE];

    uint16_t selected;
    uint32_t at;
    uint32_t dma_high;
};

static struct item *find(struct fw_cfg *fw_cfg, uint16_t number)
{
    for (unsigned i = 0; i < fw_cfg->item_count; i++)
        if (fw_cfg->items[i].number == number)
            return &fw_cfg->items[i];
    return NULL;
}

static void prepare_selected(struct fw_cfg *fw_cfg)
{
    uint16_t number = fw_cfg->selected;
    if (number >= FW_CFG_FILE_FIRST && fw_cfg->config.prepare && find(fw_cfg, number))
        fw_cfg->config.prepare(fw_cfg->config.opaque, number);
}

static void select_item(struct fw_cfg *fw_cfg, uint16_t number)
{
    fw_cfg->selected = number;
    fw_cfg->at = 0;
    prepare_selected(fw_cfg);
}

/* The next bytes of the selected item; zeros where it has ended. */
static void take(struct fw_cfg *fw_cfg, uint8_t *to, uint32_t size)
{
    const struct item *item = find(fw_cfg, fw_cfg->selected);
    uint32_t left = item && fw_cfg->at < item->size ? item->size - fw_cfg->at : 0;
    uint32_t have = min(left, size);
    if (have)
        memcpy(to, item->bytes + fw_cfg->at, have);
    memset(to + have, 0, size - have);
    fw_cfg->at += have;
}

/* --- ports --- */

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    struct fw_cfg *fw_cfg = opaque;
    uint8_t byte = 0;
    if (offset != 1 || size != 1)
        return UINT64_MAX;
    pthread_mutex_lock(&fw_cfg->lock);
    take(fw_cfg, &byte, 1);
    pthread_mutex_unlock(&fw_cfg->lock);
    return byte;
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *fw_cfg = opaque;
    if (offset != 0 || size != 2)
        return;
    pthread_mutex_lock(&fw_cfg->lock);
    select_item(fw_cfg, (uint16_t)value);
    pthread_mutex_unlock(&fw_cfg->lock);
}

/* --- direct access to memory --- */

/* Copies at most what the item still has: what a guest asks for beyond is zeros up to the end of
 * one page, and an error after. So the work is bounded by our items, not by the guest's number. */
static bool copy_out(struct fw_cfg *fw_cfg, uint64_t to, uint32_t length)
{
    uint8_t chunk[CHUNK];
    const struct item *item = find(fw_cfg, fw_cfg->selected);
    uint64_t left = item ? item->size - min(item->size, fw_cfg->at) : 0;
    if (length > left + CHUNK)
        return false;
    for (uint32_t done = 0; done < length;) {
        uint32_t size = min(length - done, (uint32_t)CHUNK);
        take(fw_cfg, chunk, size);
        if (fw_cfg->config.write(fw_cfg->config.opaque, to + done, chunk, size) < 0)
            return false;
        done += size;
    }
    return true;
}

static void skip(struct fw_cfg *fw_cfg, uint32_t length)
{
    const struct item *item = find(fw_cfg, fw_cfg->selected);
    uint32_t left = item ? item->size - min(item->size, fw_cfg->at) : 0;
    fw_cfg->at += min(left, length);
}

static void dma_run(struct fw_cfg *fw_cfg, uint64_t gpa)
{
    uint8_t block[BLOCK_SIZE];
    if (fw_cfg->config.read(fw_cfg->config.opaque, gpa, block, sizeof block) < 0)
        return;
    uint32_t control = be32_read(block), length = be32_read(block + 4);
    bool fine = true;
    if (control & CONTROL_SELECT)
        select_item(fw_cfg, (uint16_t)(control >> 16));
    if (control & CONTROL_READ)
        fine = copy_out(fw_cfg, be64_read(block + 8), length);
    else if (control & CONTROL_WRITE)
        fine = false;
    else if (control & CONTROL_SKIP)
        skip(fw_cfg, length);
    be32_write(block, fine ? 0 : CONTROL_ERROR);
    fw_cfg->config.write(fw_cfg->config.opaque, gpa, block, 4);
}

static uint64_t dma_read(void *opaque, uint64_t offset, unsigned size)
{
    /* Its bytes are in the order of memory, the most significant first. */
    uint8_t bytes[FW_CFG_DMA_PORTS + 8] = {0};
    be64_write(bytes, DMA_SIGNATURE);
    return offset < FW_CFG_DMA_PORTS ? le64_read(bytes + offset) : 0;
}

static void dma_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *fw_cfg = opaque;
    if (size != 4 || (offset != 0 && offset != 4))
        return;
    pthread_mutex_lock(&fw_cfg->lock);
    uint32_t half = __builtin_bswap32((uint32_t)value);
    if (offset == 0) {
        fw_cfg->dma_high = half;
    } else {
        uint64_t gpa = (uint64_t)fw_cfg->dma_high << 32 | half;
        fw_cfg->dma_high = 0;
        dma_run(fw_cfg, gpa);
    }
    pthread_mutex_unlock(&fw_cfg->lock);
}

const struct bus_ops fw_cfg_ops = {.name = "fw_cfg", .read = port_read, .write = port_write};
const struct bus_ops fw_cfg_dma_ops = {.name = "fw_cfg-dma", .read = dma_read, .write = dma_write};

/* The items are the machine's, and not saved. Those that depend on what the guest has done to it
 * are made once more: the machine may have been saved while it read one. */
static void fw_cfg_state(void *opaque, struct record *record)
{
    struct fw_cfg *fw_cfg = opaque;
    pthread_mutex_lock(&fw_cfg->lock);
    record_u16(record, &fw_cfg->selected);
    record_u32(record, &fw_cfg->at);
    record_u32(record, &fw_cfg->dma_high);
    if (record->loading && !record->failed)
        prepare_selected(fw_cfg);
    pthread_mutex_unlock(&fw_cfg->lock);
}

const struct device_ops fw_cfg_device = {.name = "fw_cfg",
                                         .reset = fw_cfg_reset,
                                         .free = fw_cfg_free,
                                         .state = fw_cfg_state,
                                         .state_version = 1};

/* --- set-up --- */

int fw_cfg_add(struct fw_cfg *fw_cfg, uint16_t number, const void *bytes, size_t size,
               struct err *err)
{
    if (fw_cfg->item_count == ITEMS_MAX || size > FW_CFG_ITEM_MAX)
        return err_set(err, -ENOSPC, "too much for fw_cfg");
    uint8_t *copy = malloc(size + 1);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory for fw_cfg");
    if (size)
        memcpy(copy, bytes, size);
    fw_cfg->items[fw_cfg->item_count++] =
        (struct item){.number = number, .bytes = copy, .size = (uint32_t)size};
    return 0;
}

int fw_cfg_add_file(struct fw_cfg *fw_cfg, const char *name, const void *bytes, size_t size,
                    struct err *err)
{
    size_t length = strlen(name);
    if (length >= FW_CFG_NAME_SIZE)
        return err_set(err, -EINVAL, "'%s' is too long a name for fw_cfg", name);
    if (fw_cfg->file_count == FW_CFG_FILES_MAX)
        return err_set(err, -ENOSPC, "more than %d files for fw_cfg", FW_CFG_FILES_MAX);
    uint16_t number = (uint16_t)(FW_CFG_FILE_FIRST + fw_cfg->file_count);
    int r = fw_cfg_add(fw_cfg, number, bytes, size, err);
    if (r < 0)
        return r;
    uint8_t *entry = fw_cfg->directory + 4 + fw_cfg->file_count++ * ENTRY_SIZE;
    be32_write(entry, (uint32_t)size);
    be16_write(entry + 4, number);
    memcpy(entry + 8, name, length);
    be32_write(fw_cfg->directory, fw_cfg->file_count);
    fw_cfg_replace(fw_cfg, FW_CFG_DIRECTORY, fw_cfg->directory);
    return number;
}

void fw_cfg_replace(struct fw_cfg *fw_cfg, uint16_t number, const void *bytes)
{
    struct item *item = find(fw_cfg, number);
    if (item)
        memcpy(item->bytes, bytes, item->size);
}

void fw_cfg_reset(void *opaque)
{
    struct fw_cfg *fw_cfg = opaque;
    pthread_mutex_lock(&fw_cfg->lock);
    fw_cfg->selected = 0;
    fw_cfg->at = fw_cfg->dma_high = 0;
    pthread_mutex_unlock(&fw_cfg->lock);
}

struct fw_cfg *fw_cfg_new(const struct fw_cfg_config *config)
{
    struct fw_cfg *fw_cfg = calloc(1, sizeof *fw_cfg);
    if (!fw_cfg)
        return NULL;
    pthread_mutex_init(&fw_cfg->lock, NULL);
    fw_cfg->config = *config;
    uint8_t id[4];
    le32_write(id, ID_TRADITIONAL | ID_DMA);
    if (fw_cfg_add(fw_cfg, FW_CFG_SIGNATURE, "QEMU", 4, NULL) < 0 ||
        fw_cfg_add(fw_cfg, FW_CFG_ID, id, sizeof id, NULL) < 0 ||
        fw_cfg_add(fw_cfg, FW_CFG_DIRECTORY, fw_cfg->directory, sizeof fw_cfg->directory, NULL) <
            0) {
        fw_cfg_free(fw_cfg);
        return NULL;
    }
    return fw_cfg;
}

void fw_cfg_free(void *opaque)
{
    struct fw_cfg *fw_cfg = opaque;
    if (!fw_cfg)
        return;
    for (unsigned i = 0; i < fw_cfg->item_count; i++)
        free(fw_cfg->items[i].bytes);
    pthread_mutex_destroy(&fw_cfg->lock);
    free(fw_cfg);
}
