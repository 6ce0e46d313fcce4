#include "chip/port92.h"

#include "base/record.h"

#include <pthread.h>
#include <stdlib.h>

enum { FAST_RESET = 1 << 0, A20_OPEN = 1 << 1 };

struct port92 {
    pthread_mutex_t lock;
    struct port92_config config;
    uint8_t value;
};

static uint64_t port92_read(void *opaque, uint64_t offset, unsigned size)
{
    struct port92 *port92 = opaque;
    pthread_mutex_lock(&port92->lock);
    uint8_t value = port92->value;
    pthread_mutex_unlock(&port92->lock);
    return value;
}

static void port92_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct port92 *port92 = opaque;
    pthread_mutex_lock(&port92->lock);
    uint8_t changed = port92->value ^ (uint8_t)value;
    port92->value = (uint8_t)value;
    pthread_mutex_unlock(&port92->lock);
    if (changed & A20_OPEN && port92->config.a20)
        port92->config.a20(port92->config.opaque, value & A20_OPEN);
    if (changed & value & FAST_RESET && port92->config.reset)
        port92->config.reset(port92->config.opaque);
}

const struct bus_ops port92_ops = {.name = "port92", .read = port92_read, .write = port92_write};
static void port92_state(void *opaque, struct record *record)
{
    struct port92 *port92 = opaque;
    pthread_mutex_lock(&port92->lock);
    record_u8(record, &port92->value);
    pthread_mutex_unlock(&port92->lock);
}

const struct device_ops port92_device = {.name = "port92",
                                         .reset = port92_reset,
                                         .free = port92_free,
                                         .state = port92_state,
                                         .state_version = 1};

void port92_reset(void *opaque)
{
    struct port92 *port92 = opaque;
    pthread_mutex_lock(&port92->lock);
    port92->value = A20_OPEN;
    pthread_mutex_unlock(&port92->lock);
}

struct port92 *port92_new(const struct port92_config *config)
{
    struct port92 *port92 = calloc(1, sizeof *port92);
    if (!port92)
        return NULL;
    pthread_mutex_init(&port92->lock, NULL);
    port92->config = *config;
    port92_reset(port92);
    return port92;
}

void port92_free(void *opaque)
{
    struct port92 *port92 = opaque;
    if (!port92)
        return;
    pthread_mutex_destroy(&port92->lock);
    free(port92);
}
