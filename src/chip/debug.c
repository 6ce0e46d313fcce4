#include "chip/debug.h"

#include "base/record.h"

#include <stdatomic.h>
#include <stdlib.h>

enum { CONSOLE_MAGIC = 0xe9 };

struct debug {
    struct debug_config config;
    _Atomic uint8_t post;
};

static uint64_t exit_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0;
}

static void exit_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug *debug = opaque;
    /* One value per write, however wide; ports after the first belong to the same register. */
    if (offset == 0 && debug->config.exit)
        debug->config.exit(debug->config.opaque, (uint32_t)value);
}

static uint64_t post_read(void *opaque, uint64_t offset, unsigned size)
{
    struct debug *debug = opaque;
    return debug->post;
}

static void post_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug *debug = opaque;
    debug->post = (uint8_t)value;
}

static uint64_t console_read(void *opaque, uint64_t offset, unsigned size)
{
    struct debug *debug = opaque;
    return debug->config.console ? CONSOLE_MAGIC : UINT64_MAX;
}

static void console_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug *debug = opaque;
    uint8_t byte = (uint8_t)value;
    if (debug->config.console)
        debug->config.console(debug->config.opaque, &byte, 1);
}

const struct bus_ops debug_exit_ops = {
    .name = "debug-exit", .read = exit_read, .write = exit_write};
const struct bus_ops debug_post_ops = {
    .name = "debug-post", .read = post_read, .write = post_write};
const struct bus_ops debug_console_ops = {
    .name = "debug-console", .read = console_read, .write = console_write};
static void debug_state(void *opaque, struct record *record)
{
    struct debug *debug = opaque;
    uint8_t post = debug->post;
    record_u8(record, &post);
    debug->post = post;
}

const struct device_ops debug_device = {.name = "debug",
                                        .reset = debug_reset,
                                        .free = debug_free,
                                        .state = debug_state,
                                        .state_version = 1};

void debug_reset(void *opaque)
{
    struct debug *debug = opaque;
    debug->post = 0;
}

struct debug *debug_new(const struct debug_config *config)
{
    struct debug *debug = calloc(1, sizeof *debug);
    if (debug)
        debug->config = *config;
    return debug;
}

void debug_free(void *opaque)
{
    free(opaque);
}
