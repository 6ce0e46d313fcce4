/* The PCI transport and the entropy device, from the guest's side. */
#include "virtio/pci.h"

#include "base/bytes.h"
#include "virtio/rng.h"
#include "virtio/test_driver.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { DATA = 32 << 20, WAIT_MS = 10000, SLOT = 4 };

#define USUAL (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

/* A device of the simplest kind: it echoes readable bytes into writable ones, at once. */
struct echo {
    struct virtio_device device;
    bool live;
    int starts, resets, frees;
    uint8_t config[16];
    int *ret_frees;
    struct queue_chain chain;
};

static struct echo *echo_of(struct virtio_device *device)
{
    return (struct echo *)device;
}

static void echo_config_read(struct virtio_device *device, uint32_t offset, void *to, unsigned size)
{
    memcpy(to, echo_of(device)->config + offset, size);
}

static void echo_config_write(struct virtio_device *device, uint32_t offset, const void *from,
                              unsigned size)
{
    memcpy(echo_of(device)->config + offset, from, size);
}

static void echo_start(struct virtio_device *device)
{
    echo_of(device)->live = true;
    echo_of(device)->starts++;
}

static void echo_reset(struct virtio_device *device)
{
    echo_of(device)->live = false;
    echo_of(device)->resets++;
}

static void echo_notified(struct virtio_device *device, unsigned queue)
{
    struct echo *echo = echo_of(device);
    while (echo->live && virtio_pop(device, queue, &echo->chain)) {
        uint8_t bytes[64];
        size_t have = queue_chain_read(&echo->chain, 0, bytes, sizeof bytes);
        virtio_push(device, queue, &echo->chain, queue_chain_write(&echo->chain, 0, bytes, have));
    }
    virtio_notify(device, queue);
}

static void echo_free(struct virtio_device *device)
{
    (*echo_of(device)->ret_frees)++;
    virtio_device_fini(device);
    free(device);
}

static const struct virtio_device_ops echo_ops = {
    .name = "echo",
    .id = 42,
    .class_code = 0xff0000,
    .config_size = 16,
    .config_read = echo_config_read,
    .config_write = echo_config_write,
    .start = echo_start,
    .reset = echo_reset,
    .queue_notified = echo_notified,
    .free = echo_free,
};

struct fixture {
    struct driver_machine machine;
    struct driver driver;
    struct echo *echo;
    struct virtio_pci *transport;
    int frees;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    driver_machine_init(&f->machine);
    f->echo = calloc(1, sizeof *f->echo);
    const uint16_t sizes[] = {16, 256};
    if (virtio_device_init(&f->echo->device, &echo_ops, f->machine.mem, 1 << 3, sizes, 2, NULL) <
            0 ||
        virtio_pci_new(f->machine.host, SLOT, &f->echo->device, &f->transport, NULL) < 0)
        return -1;
    f->echo->ret_frees = &f->frees;
    driver_machine_place(&f->machine);
    driver_init(&f->driver, &f->machine, SLOT);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    virtio_pci_free(f->transport);
    int frees = f->frees;
    driver_machine_fini(&f->machine);
    free(f);
    return frees == 1 ? 0 : -1;
}

/* One round trip; the number of bytes that came back, -1 when none did. */
static int echo_once(struct fixture *f, unsigned queue, const char *text)
{
    struct driver_ring *ring = &f->driver.rings[queue];
    uint32_t size = (uint32_t)strlen(text);
    mem_write(f->machine.mem, DATA, text, size);
    const struct driver_buffer buffers[] = {{DATA, size, false}, {DATA + 0x1000, 64, true}};
    int head = driver_ring_add(ring, buffers, 2);
    assert_true(head >= 0);
    driver_kick(&f->driver, queue);
    uint32_t used, length;
    if (!driver_ring_take(ring, &used, &length))
        return -1;
    assert_int_equal(used, head);
    assert_memory_equal(mem_at(f->machine.mem, DATA + 0x1000, size, false), text, size);
    return (int)length;
}

static void a_driver_brings_it_up(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    assert_int_equal(driver_config(d, 0, 4), (0x1040 + 42) << 16 | 0x1af4);
    assert_int_equal(driver_config(d, PCI_REVISION, 1), 1);
    assert_true(d->common && d->notify && d->isr && d->device && d->access && d->msix);
    assert_int_equal(driver_offered(d), USUAL | 1 << 3);
    assert_true(driver_negotiate(d, USUAL | 1 << 3));
    driver_msix_on(d, 3);
    assert_int_equal(driver_read(d, d->common + 18, 2), 2);
    assert_true(driver_queue(d, 0, 16, true));
    assert_true(driver_queue(d, 1, 128, true));
    assert_int_equal(f->echo->starts, 0);
    assert_int_equal(echo_once(f, 0, "too early"), -1);
    driver_live(d);
    assert_int_equal(f->echo->starts, 1);
    assert_int_equal(driver_status(d), 15);
    assert_int_equal(echo_once(f, 1, "hello"), 5);
    assert_int_equal(f->machine.messages[2], 1);
    assert_int_equal(f->machine.messages[1], 0);
    driver_kick(d, 0); /* now what came too early is served */
    assert_int_equal(f->machine.messages[1], 1);
    assert_int_equal(driver_read(d, d->isr, 1), 0); /* MSI-X leaves the queue bit alone */
    /* There is no queue 2. */
    driver_write(d, d->common + 22, 2, 2);
    assert_int_equal(driver_read(d, d->common + 24, 2), 0);
}

static void features_are_checked(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    assert_false(driver_negotiate(d, VIRTIO_F_EVENT_IDX));          /* without VERSION_1 */
    assert_false(driver_negotiate(d, VIRTIO_F_VERSION_1 | 1 << 4)); /* not offered */
    driver_live(d);
    assert_int_equal(driver_status(d) & VIRTIO_STATUS_DRIVER_OK, 0);
    assert_int_equal(f->echo->starts, 0);
    assert_true(driver_negotiate(d, VIRTIO_F_VERSION_1));
    /* Fixed from here on. */
    driver_write(d, d->common + 8, 4, 0);
    driver_write(d, d->common + 12, 4, 1 << 3);
    assert_int_equal(f->echo->device.features, VIRTIO_F_VERSION_1);
    /* A feature past bit 63. */
    driver_set_status(d, 0);
    driver_write(d, d->common + 8, 4, 2);
    driver_write(d, d->common + 12, 4, 1);
    driver_write(d, d->common + 8, 4, 1);
    driver_write(d, d->common + 12, 4, 1);
    driver_set_status(d, 3);
    driver_set_status(d, 11);
    assert_int_equal(driver_status(d), 3);
}

static void live(struct fixture *f, uint64_t features, bool msix)
{
    assert_true(driver_negotiate(&f->driver, features));
    if (msix)
        driver_msix_on(&f->driver, 3);
    assert_true(driver_queue(&f->driver, 0, 16, msix));
    assert_true(driver_queue(&f->driver, 1, 256, msix));
    driver_live(&f->driver);
}

static void the_pin_works_too(void **state)
{
    struct fixture *f = *state;
    live(f, VIRTIO_F_VERSION_1, false);
    unsigned line = SLOT % PCI_LINES;
    assert_int_equal(echo_once(f, 0, "pin"), 3);
    assert_int_equal(f->machine.line[line], 1);
    assert_int_equal(driver_read(&f->driver, f->driver.isr, 1), 1);
    assert_int_equal(f->machine.line[line], 0);
    assert_int_equal(driver_read(&f->driver, f->driver.isr, 1), 0);
    virtio_config_changed(&f->echo->device);
    assert_int_equal(f->machine.line[line], 1);
    assert_int_equal(driver_read(&f->driver, f->driver.isr, 1), 2);
    assert_int_equal(f->machine.line[line], 0);
}

static void configuration_is_read_and_written(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    live(f, USUAL, true);
    for (unsigned i = 0; i < 16; i++)
        f->echo->config[i] = (uint8_t)i;
    assert_int_equal(driver_read(d, d->device + 2, 2), 0x0302);
    assert_int_equal(driver_read(d, d->device + 8, 8), UINT64_C(0x0f0e0d0c0b0a0908));
    assert_int_equal(driver_read(d, d->device + 14, 4), 0); /* over the end */
    driver_write(d, d->device + 4, 4, 0xcafef00d);
    assert_int_equal(le32_read(f->echo->config + 4), 0xcafef00d);
    driver_write(d, d->device + 14, 4, UINT32_MAX);
    assert_int_equal(f->echo->config[15], 15);
    uint64_t generation = driver_read(d, d->common + 21, 1);
    virtio_config_changed(&f->echo->device);
    assert_int_equal(driver_read(d, d->common + 21, 1), generation + 1);
    assert_int_equal(f->machine.messages[0], 1);
    assert_int_equal(driver_read(d, d->isr, 1), 2);
}

static void a_reset_forgets_everything(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    live(f, USUAL, true);
    assert_int_equal(echo_once(f, 0, "before"), 6);
    int resets = f->echo->resets;
    driver_set_status(d, 0);
    assert_int_equal(driver_status(d), 0);
    assert_int_equal(f->echo->resets, resets + 1);
    assert_int_equal(driver_read(d, d->common + 16, 2), VIRTIO_NO_VECTOR);
    driver_write(d, d->common + 22, 2, 1);
    assert_int_equal(driver_read(d, d->common + 24, 2), 256);
    assert_int_equal(driver_read(d, d->common + 26, 2), VIRTIO_NO_VECTOR);
    assert_int_equal(driver_read(d, d->common + 28, 2), 0);
    assert_int_equal(driver_read(d, d->common + 32, 8), 0);
    live(f, USUAL, true);
    assert_int_equal(echo_once(f, 0, "after"), 5);
    /* And the whole machine's. */
    pci_host_reset(f->machine.host);
    assert_int_equal(f->echo->live, false);
    driver_machine_place(&f->machine);
    driver_init(d, &f->machine, SLOT);
    assert_int_equal(driver_status(d), 0);
    live(f, USUAL, true);
    assert_int_equal(echo_once(f, 1, "again"), 5);
}

static void a_liar_is_told_to_reset(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    live(f, USUAL, true);
    driver_ring_offer(&d->rings[0], 999);
    driver_kick(d, 0);
    assert_int_equal(driver_status(d), 15 | VIRTIO_STATUS_NEEDS_RESET);
    assert_int_equal(f->machine.messages[0], 1);
    assert_int_equal(driver_read(d, d->isr, 1), 2);
    assert_int_equal(echo_once(f, 1, "dead"), -1); /* all queues rest */
    driver_set_status(d, 15);                      /* does not help */
    assert_int_equal(driver_status(d), 15 | VIRTIO_STATUS_NEEDS_RESET);
    live(f, USUAL, true);
    assert_int_equal(driver_status(d), 15);
    assert_int_equal(echo_once(f, 1, "alive"), 5);
}

static void bad_rings_need_a_reset(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    assert_true(driver_negotiate(d, USUAL));
    d->next_base = DRIVER_MEMORY - 0x4000;
    assert_true(driver_queue(d, 0, 16, false));
    driver_write(d, d->common + 22, 2, 1);
    driver_write(d, d->common + 32, 4, DRIVER_MEMORY); /* descriptors past memory */
    driver_write(d, d->common + 28, 2, 1);
    assert_int_equal(driver_read(d, d->common + 28, 2), 0);
    assert_int_equal(driver_status(d), 11 | VIRTIO_STATUS_NEEDS_RESET);
}

static void a_live_queue_does_not_move(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    live(f, USUAL, true);
    driver_write(d, d->common + 22, 2, 0);
    for (unsigned i = 24; i < 56; i += 2)
        if (i != 26)
            driver_write(d, d->common + i, 2, 0xffff);
    for (unsigned i = 32; i < 56; i += 4)
        driver_write(d, d->common + i, 4, 0xffffffff);
    for (unsigned i = 32; i < 56; i += 8)
        driver_write(d, d->common + i, 8, UINT64_MAX);
    assert_int_equal(driver_read(d, d->common + 24, 2), 16);
    assert_int_equal(driver_read(d, d->common + 32, 8), d->rings[0].descriptors);
    assert_int_equal(driver_read(d, d->common + 48, 8), d->rings[0].used);
    assert_int_equal(echo_once(f, 0, "still"), 5);
    /* Vectors may change; one that does not exist reads back as none. */
    driver_write(d, d->common + 26, 2, 3);
    assert_int_equal(driver_read(d, d->common + 26, 2), VIRTIO_NO_VECTOR);
    int before = f->machine.messages[1];
    assert_int_equal(echo_once(f, 0, "quiet"), 5);
    assert_int_equal(f->machine.messages[1], before);
}

static void without_bus_mastering_memory_is_left_alone(void **state)
{
    struct fixture *f = *state;
    live(f, USUAL, true);
    driver_config_set(&f->driver, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(echo_once(f, 0, "wait"), -1);
    driver_config_set(&f->driver, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    uint32_t head, length;
    assert_true(driver_ring_take(&f->driver.rings[0], &head, &length));
    assert_int_equal(length, 4);
}

static void window(struct fixture *f, uint32_t offset, uint32_t size)
{
    driver_config_set(&f->driver, f->driver.access + 4, 1, VIRTIO_PCI_BAR);
    driver_config_set(&f->driver, f->driver.access + 8, 4, offset);
    driver_config_set(&f->driver, f->driver.access + 12, 4, size);
}

static void configuration_space_reaches_the_bar(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    unsigned data = d->access + 16;
    window(f, VIRTIO_PCI_COMMON + 18, 2);
    assert_int_equal(driver_config(d, data, 2), 2); /* num_queues */
    window(f, VIRTIO_PCI_COMMON + 20, 1);
    driver_config_set(d, data, 1, VIRTIO_STATUS_ACKNOWLEDGE);
    assert_int_equal(driver_status(d), VIRTIO_STATUS_ACKNOWLEDGE);
    window(f, VIRTIO_PCI_DEVICE + 4, 4);
    driver_config_set(d, data, 4, 0x01020304);
    assert_int_equal(le32_read(f->echo->config + 4), 0x01020304);
    assert_int_equal(driver_config(d, data, 4), 0x01020304);
    /* Windows that lead nowhere. */
    window(f, VIRTIO_PCI_BAR_SIZE, 4);
    driver_config_set(d, data, 4, 0xffffffff);
    window(f, 0xfffffffc, 4);
    driver_config_set(d, data, 4, 0xffffffff);
    window(f, VIRTIO_PCI_COMMON + 20, 3);
    driver_config_set(d, data, 4, 0);
    assert_int_equal(driver_status(d), VIRTIO_STATUS_ACKNOWLEDGE);
}

struct moved {
    uint64_t base;
    int calls;
};

static void note_moved(void *opaque, uint64_t base)
{
    struct moved *moved = opaque;
    *moved = (struct moved){base, moved->calls + 1};
}

static void the_notification_area_can_be_bound(void **state)
{
    struct fixture *f = *state;
    struct moved moved = {0};
    virtio_pci_observe_notify(f->transport, note_moved, &moved);
    assert_int_equal(moved.calls, 1);
    assert_int_equal(moved.base, f->driver.notify);
    assert_int_equal(virtio_pci_notify_address(f->transport, 1), f->driver.notify + 4);
    driver_config_set(&f->driver, PCI_COMMAND, 2, 0);
    assert_int_equal(moved.base, 0);
    assert_int_equal(virtio_pci_notify_address(f->transport, 1), 0);
    driver_config_set(&f->driver, PCI_BAR0, 4, 0xd0000000);
    driver_config_set(&f->driver, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(moved.base, 0xd0000000 + VIRTIO_PCI_NOTIFY);
}

/* The entropy device. */

static bool wait_take(struct driver_ring *ring, uint32_t *ret_head, uint32_t *ret_length)
{
    for (int i = 0; i < WAIT_MS; i++) {
        if (driver_ring_take(ring, ret_head, ret_length))
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return false;
}

static void entropy_comes(void **state)
{
    (void)state;
    struct driver_machine machine;
    struct driver *d = calloc(1, sizeof *d);
    struct virtio_device *rng;
    struct virtio_pci *transport;
    driver_machine_init(&machine);
    assert_int_equal(virtio_rng_new(machine.mem, &rng, NULL), 0);
    assert_int_equal(virtio_pci_new(machine.host, PCI_SLOT_ANY, rng, &transport, NULL), 0);
    assert_int_equal(virtio_begin(rng, NULL), 0);
    driver_machine_place(&machine);
    driver_init(d, &machine, pci_device_slot(virtio_pci_device(transport)));
    assert_int_equal(driver_config(d, 0, 4), 0x10441af4);
    assert_int_equal(d->device, 0);
    for (int round = 0; round < 3; round++) { /* a reset each */
        assert_true(driver_negotiate(d, round == 1 ? VIRTIO_F_VERSION_1 : USUAL));
        driver_msix_on(d, 2);
        assert_true(driver_queue(d, 0, 64, true));
        driver_live(d);
        machine.messages[1] = 0;
        uint32_t head, length;
        uint8_t *bytes = mem_at(machine.mem, DATA, 3 * 4096, true);
        memset(bytes, 0, 3 * 4096);
        const struct driver_buffer split[] = {{DATA, 10, true}, {DATA + 4096, 100, true}};
        const struct driver_buffer large = {DATA, 3 * 4096, true};
        const struct driver_buffer useless = {DATA, 8, false};
        driver_ring_add(&d->rings[0], split, 2);
        driver_kick(d, 0);
        assert_true(wait_take(&d->rings[0], &head, &length));
        assert_int_equal(length, 110);
        assert_int_equal(bytes[10] | bytes[4095] | bytes[4096 + 100], 0);
        unsigned zeros = 0;
        for (int i = 0; i < 100; i++)
            zeros += bytes[4096 + i] == 0;
        assert_true(zeros < 20); /* 2^-100 or so */
        driver_ring_add(&d->rings[0], &large, 1);
        driver_ring_add(&d->rings[0], &useless, 1);
        driver_kick(d, 0);
        assert_true(wait_take(&d->rings[0], &head, &length));
        assert_int_equal(length, RNG_CHAIN_BYTES);
        assert_true(wait_take(&d->rings[0], &head, &length));
        assert_int_equal(length, 0);
        /* Many at once: more than one batch, one notification. */
        const struct driver_buffer small = {DATA, 16, true};
        for (int i = 0; i < 64; i++)
            assert_true(driver_ring_add(&d->rings[0], &small, 1) >= 0);
        driver_kick(d, 0);
        for (int i = 0; i < 64; i++) {
            assert_true(wait_take(&d->rings[0], &head, &length));
            assert_int_equal(length, 16);
        }
    }
    virtio_pci_free(transport);
    driver_machine_fini(&machine);
    free(d);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_driver_brings_it_up),
        TEST(features_are_checked),
        TEST(the_pin_works_too),
        TEST(configuration_is_read_and_written),
        TEST(a_reset_forgets_everything),
        TEST(a_liar_is_told_to_reset),
        TEST(bad_rings_need_a_reset),
        TEST(a_live_queue_does_not_move),
        TEST(without_bus_mastering_memory_is_left_alone),
        TEST(configuration_space_reaches_the_bar),
        TEST(the_notification_area_can_be_bound),
        cmocka_unit_test(entropy_comes),
    };
    return cmocka_run_group_tests_name("virtio", tests, NULL, NULL);
}
