#include "chip/flash.h"

#include "base/bytes.h"
#include "base/record.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum command {
    COMMAND_READ_ARRAY = 0xff,
    COMMAND_READ_ARRAY_AMD = 0x00, /* what probes for other kinds of flash send */
    COMMAND_PROGRAM = 0x10,
    COMMAND_ERASE = 0x20,
    COMMAND_PROGRAM_2 = 0x40,
    COMMAND_CLEAR_STATUS = 0x50,
    COMMAND_LOCK = 0x60, /* and 0x01, 0xd0 or 0x2f after: there is nothing to lock */
    COMMAND_READ_STATUS = 0x70,
    COMMAND_READ_ID = 0x90,
    COMMAND_QUERY = 0x98,
    COMMAND_CONFIRM = 0xd0,
    COMMAND_BUFFER = 0xe8,
};

enum {
    STATUS_READY = 1 << 7,
    STATUS_ERASE_ERROR = 1 << 5,
    STATUS_PROGRAM_ERROR = 1 << 4,

    ID_MAKER = 0x89, /* Intel */
    ID_DEVICE = 0x18,

    QUERY_SIZE = 0x40,
};

/* What a read gives. */
enum view { VIEW_ARRAY, VIEW_STATUS, VIEW_ID, VIEW_QUERY, VIEW_MAX };

/* What the next write means. */
enum step {
    STEP_COMMAND,
    STEP_ERASE,   /* the confirmation */
    STEP_LOCK,    /* which kind */
    STEP_PROGRAM, /* a byte */
    STEP_COUNT,   /* of the buffer */
    STEP_BUFFER,  /* a byte of it */
    STEP_CONFIRM, /* that it be programmed */
    STEP_MAX
};

struct flash {
    pthread_mutex_t lock;
    struct flash_config config;
    uint8_t *bytes;
    uint32_t dirty_start, dirty_end; /* not in the file yet */

    uint8_t view, step; /* enum view, enum step */
    uint8_t status;
    uint8_t status_shown; /* while the view is VIEW_STATUS */
    uint8_t buffer[FLASH_BUFFER];
    uint32_t buffer_at;                  /* where in the array its first byte goes */
    uint32_t buffer_count, buffer_taken; /* bytes */
};

/* --- the file --- */

static int write_all(int fd, const uint8_t *bytes, uint32_t size, uint32_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, bytes, size, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        bytes += n;
        offset += (uint32_t)n;
        size -= (uint32_t)n;
    }
    return 0;
}

static int flush(struct flash *flash)
{
    uint32_t size = flash->dirty_end - flash->dirty_start;
    if (size == 0)
        return 0;
    int r =
        write_all(flash->config.fd, flash->bytes + flash->dirty_start, size, flash->dirty_start);
    if (r < 0) {
        flash->status |= STATUS_PROGRAM_ERROR;
        if (flash->config.on_error)
            flash->config.on_error(flash->config.opaque, -r);
        return r;
    }
    flash->dirty_start = flash->dirty_end = 0;
    return 0;
}

static void changed(struct flash *flash, uint32_t at, uint32_t size)
{
    if (flash->dirty_start == flash->dirty_end) {
        flash->dirty_start = at;
        flash->dirty_end = at + size;
    }
    flash->dirty_start = min(flash->dirty_start, at);
    flash->dirty_end = max(flash->dirty_end, at + size);
}

/* --- what is read --- */

/* The query table of CFI, JESD68.01, with the Intel extension: enough for a driver to find the
 * size, the blocks and the buffer. */
static uint8_t query(const struct flash *flash, uint32_t at)
{
    uint32_t blocks = flash->config.size / FLASH_BLOCK - 1;
    switch (at) {
    case 0x10: return 'Q';
    case 0x11: return 'R';
    case 0x12: return 'Y';
    case 0x13: return 0x01; /* Intel command set */
    case 0x15: return 0x31; /* where its table is */
    case 0x1b: return 0x45; /* 4.5 to 5.5 V */
    case 0x1c: return 0x55;
    case 0x1f: return 0x07; /* times to program, to fill the buffer, to erase, as powers of two */
    case 0x20: return 0x07;
    case 0x21: return 0x0a;
    case 0x23: return 0x04; /* and at most so many times that */
    case 0x24: return 0x04;
    case 0x25: return 0x04;
    case 0x27: return (uint8_t)(32 - __builtin_clz(flash->config.size - 1)); /* of the device */
    case 0x2a: return 8; /* a buffer of 256 bytes */
    case 0x2c: return 1; /* all blocks are alike */
    case 0x2d: return (uint8_t)blocks;
    case 0x2e: return (uint8_t)(blocks >> 8);
    case 0x2f: return (uint8_t)(FLASH_BLOCK >> 8);
    case 0x30: return (uint8_t)(FLASH_BLOCK >> 16);
    case 0x31: return 'P';
    case 0x32: return 'R';
    case 0x33: return 'I';
    case 0x34: return '1';
    default: return 0;
    }
}

static void show(struct flash *flash)
{
    uint8_t *shown = flash->config.shown;
    switch (flash->view) {
    case VIEW_STATUS: memset(shown, flash->status, flash->config.size); break;
    case VIEW_ID:
        memset(shown, 0, flash->config.size);
        shown[0] = ID_MAKER;
        shown[1] = ID_DEVICE;
        break;
    case VIEW_QUERY:
        memset(shown, 0, flash->config.size);
        for (uint32_t at = 0; at < QUERY_SIZE; at++)
            shown[at] = query(flash, at);
        break;
    default: memcpy(shown, flash->bytes, flash->config.size); break;
    }
    flash->status_shown = flash->status;
    if (flash->config.changed)
        flash->config.changed(flash->config.opaque);
}

/* --- commands --- */

static void look_at(struct flash *flash, enum view view, enum step step)
{
    bool same =
        flash->view == view && (view != VIEW_STATUS || flash->status == flash->status_shown);
    flash->view = (uint8_t)view;
    flash->step = (uint8_t)step;
    if (!same)
        show(flash);
}

static void read_array(struct flash *flash)
{
    look_at(flash, VIEW_ARRAY, STEP_COMMAND);
    flush(flash);
}

static void done(struct flash *flash, uint8_t error)
{
    flash->status |= (uint8_t)(STATUS_READY | error);
    look_at(flash, VIEW_STATUS, STEP_COMMAND);
}

static void expect(struct flash *flash, enum step step)
{
    look_at(flash, VIEW_STATUS, step);
}

static void command(struct flash *flash, uint8_t value)
{
    switch (value) {
    case COMMAND_PROGRAM:
    case COMMAND_PROGRAM_2: expect(flash, STEP_PROGRAM); break;
    case COMMAND_ERASE: expect(flash, STEP_ERASE); break;
    case COMMAND_LOCK: expect(flash, STEP_LOCK); break;
    case COMMAND_BUFFER:
        flash->status |= STATUS_READY; /* there is a buffer */
        expect(flash, STEP_COUNT);
        break;
    case COMMAND_READ_STATUS: look_at(flash, VIEW_STATUS, STEP_COMMAND); break;
    case COMMAND_READ_ID: look_at(flash, VIEW_ID, STEP_COMMAND); break;
    case COMMAND_QUERY: look_at(flash, VIEW_QUERY, STEP_COMMAND); break;
    case COMMAND_CLEAR_STATUS:
        flash->status = 0;
        read_array(flash);
        break;
    default: read_array(flash); break;
    }
}

static void erase(struct flash *flash, uint32_t at)
{
    uint32_t block = (uint32_t)align_down(at, FLASH_BLOCK);
    memset(flash->bytes + block, 0xff, FLASH_BLOCK);
    changed(flash, block, FLASH_BLOCK);
}

static void program(struct flash *flash, uint32_t at, const uint8_t *bytes, uint32_t size)
{
    memcpy(flash->bytes + at, bytes, size);
    changed(flash, at, size);
}

/* The first byte says where they go; the others must lie behind it, in the same stretch of the
 * buffer's size. */
static void buffer_take(struct flash *flash, uint32_t at, uint8_t value)
{
    if (flash->buffer_taken == 0)
        flash->buffer_at = at;
    uint32_t offset = at - flash->buffer_at;
    if (at < flash->buffer_at || offset >= flash->buffer_count ||
        !range_fits(flash->buffer_at, flash->buffer_count, flash->config.size)) {
        flash->buffer_at = flash->buffer_count = 0;
        done(flash, STATUS_PROGRAM_ERROR | STATUS_ERASE_ERROR);
        return;
    }
    flash->buffer[offset] = value;
    if (++flash->buffer_taken == flash->buffer_count)
        flash->step = STEP_CONFIRM;
}

static void buffer_count(struct flash *flash, uint8_t value)
{
    flash->buffer_count = (uint32_t)value + 1;
    flash->buffer_at = flash->buffer_taken = 0;
    memset(flash->buffer, 0xff, sizeof flash->buffer);
    flash->step = STEP_BUFFER;
}

static void write8(struct flash *flash, uint32_t at, uint8_t value)
{
    enum { BOTH = STATUS_PROGRAM_ERROR | STATUS_ERASE_ERROR }; /* "command sequence error" */
    switch (flash->step) {
    case STEP_ERASE:
        if (value == COMMAND_CONFIRM)
            erase(flash, at);
        done(flash, value == COMMAND_CONFIRM ? 0 : BOTH);
        break;
    case STEP_LOCK: done(flash, 0); break;
    case STEP_PROGRAM:
        program(flash, at, &value, 1);
        done(flash, 0);
        break;
    case STEP_COUNT: buffer_count(flash, value); break;
    case STEP_BUFFER: buffer_take(flash, at, value); break;
    case STEP_CONFIRM:
        if (value == COMMAND_CONFIRM)
            program(flash, flash->buffer_at, flash->buffer, flash->buffer_count);
        done(flash, value == COMMAND_CONFIRM ? 0 : BOTH);
        break;
    default: command(flash, value); break;
    }
}

/* The chip is a byte wide: a wide access is as many cycles of its bus. */
static void flash_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct flash *flash = opaque;
    pthread_mutex_lock(&flash->lock);
    for (unsigned i = 0; i < size && offset + i < flash->config.size; i++)
        write8(flash, (uint32_t)offset + i, (uint8_t)(value >> 8 * i));
    pthread_mutex_unlock(&flash->lock);
}

const struct bus_ops flash_ops = {.name = "flash", .write = flash_write};

/* The contents, too: a machine that goes on from a snapshot has its own, whatever the first one
 * has written since. */
static void flash_state(void *opaque, struct record *record)
{
    struct flash *flash = opaque;
    pthread_mutex_lock(&flash->lock);
    record_same(record, flash->config.size, "has a flash of another size");
    record_u8_below(record, &flash->view, VIEW_MAX);
    record_u8_below(record, &flash->step, STEP_MAX);
    record_u8(record, &flash->status);
    record_bytes(record, flash->buffer, sizeof flash->buffer);
    record_u32_below(record, &flash->buffer_at, flash->config.size);
    record_u32_below(record, &flash->buffer_count, FLASH_BUFFER + 1);
    record_u32_below(record, &flash->buffer_taken, FLASH_BUFFER + 1);
    if (!range_fits(flash->buffer_at, flash->buffer_count, flash->config.size))
        record_fail(record, "has a flash that is written to behind its end");
    record_bytes(record, flash->bytes, flash->config.size);
    if (record->loading && !record->failed) {
        changed(flash, 0, flash->config.size);
        show(flash);
    }
    pthread_mutex_unlock(&flash->lock);
}

const struct device_ops flash_device = {.name = "flash",
                                        .reset = flash_reset,
                                        .free = flash_free,
                                        .state = flash_state,
                                        .state_version = 1};

void flash_show(struct flash *flash)
{
    pthread_mutex_lock(&flash->lock);
    show(flash);
    pthread_mutex_unlock(&flash->lock);
}

int flash_flush(struct flash *flash)
{
    pthread_mutex_lock(&flash->lock);
    int r = flush(flash);
    pthread_mutex_unlock(&flash->lock);
    return r;
}

void flash_reset(void *opaque)
{
    struct flash *flash = opaque;
    pthread_mutex_lock(&flash->lock);
    flash->status = 0;
    flash->buffer_at = flash->buffer_count = flash->buffer_taken = 0;
    read_array(flash);
    pthread_mutex_unlock(&flash->lock);
}

static int read_all(struct flash *flash, struct err *err)
{
    for (uint32_t at = 0; at < flash->config.size;) {
        ssize_t n = pread(flash->config.fd, flash->bytes + at, flash->config.size - at, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "the flash's file");
        if (n == 0)
            return err_set(err, -EINVAL, "the flash's file has become shorter");
        at += (uint32_t)n;
    }
    return 0;
}

int flash_new(const struct flash_config *config, struct flash **ret_flash, struct err *err)
{
    if (config->size == 0 || config->size % FLASH_BLOCK || config->size > FLASH_SIZE_MAX)
        return err_set(err, -EINVAL, "a flash of %u bytes: it has blocks of %d, and at most %d MiB",
                       config->size, FLASH_BLOCK, FLASH_SIZE_MAX >> 20);
    struct flash *flash = calloc(1, sizeof *flash);
    if (flash)
        flash->bytes = malloc(config->size);
    if (!flash || !flash->bytes) {
        free(flash);
        return err_set(err, -ENOMEM, "no memory for a flash");
    }
    pthread_mutex_init(&flash->lock, NULL);
    flash->config = *config;
    int r = read_all(flash, err);
    if (r < 0) {
        flash_free(flash);
        return r;
    }
    show(flash);
    *ret_flash = flash;
    return 0;
}

void flash_free(void *opaque)
{
    struct flash *flash = opaque;
    if (!flash)
        return;
    flush(flash);
    pthread_mutex_destroy(&flash->lock);
    free(flash->bytes);
    free(flash);
}
