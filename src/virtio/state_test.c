/* What the transport and every device have in common, saved and loaded. */
#include "base/bytes.h"
#include "virtio/state_fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum {
    SLOT = 4,
    QUEUES = 2,
    RING = 16,
    DATA = 32 << 20,
    FEATURE = 1 << 3,
};

/* A driver that is interrupted for each answer. */
#define PLAIN (VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC)
#define USUAL (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

/* Where fields lie in what virtio_pci_state() saves of a device with two queues. */
enum {
    AT_FEATURE_SELECT = 0,
    AT_QUEUE_SELECT = 16,
    AT_CONFIG_VECTOR = 18,
    AT_QUEUES = 20,
    AT_VECTORS = 24,
    AT_ISR = 28,
    AT_KIND = 29,
    AT_QUEUES_AGAIN = 33,
    AT_FEATURES = 37,
    AT_STATUS = 45,
    AT_QUEUE = 47,
    QUEUE_AT_DESCRIPTORS = 2,
    QUEUE_AT_AVAILABLE = 10,
    QUEUE_AT_USED = 18,
    QUEUE_AT_READY = 28,
    QUEUE_SIZE = 37,
    AT_OWN_VERSION = AT_QUEUE + QUEUES * QUEUE_SIZE,
    AT_OWN = AT_OWN_VERSION + 4,
};

/* It echoes readable bytes into writable ones, adds a number of its own, and counts. */
struct echo {
    struct virtio_device device;
    uint8_t number;
    uint32_t served;
    bool live;
    int starts, settles;
    struct queue_chain chain;
};

static struct echo *of(struct virtio_device *device)
{
    return (struct echo *)device;
}

static void echo_start(struct virtio_device *device)
{
    of(device)->live = true;
    of(device)->starts++;
}

static void echo_reset(struct virtio_device *device)
{
    of(device)->live = false;
}

static void echo_notified(struct virtio_device *device, unsigned queue)
{
    struct echo *echo = of(device);
    while (echo->live && virtio_pop(device, queue, &echo->chain)) {
        uint8_t bytes[64];
        size_t have = queue_chain_read(&echo->chain, 0, bytes, sizeof bytes);
        for (size_t i = 0; i < have; i++)
            bytes[i] = (uint8_t)(bytes[i] + echo->number);
        virtio_push(device, queue, &echo->chain, queue_chain_write(&echo->chain, 0, bytes, have));
        echo->served++;
    }
    virtio_notify(device, queue);
}

static void echo_settle(struct virtio_device *device)
{
    of(device)->settles++;
}

static void echo_state(struct virtio_device *device, struct record *record)
{
    record_u8(record, &of(device)->number);
    if (record->version >= 2)
        record_u32(record, &of(device)->served);
}

static void echo_free(struct virtio_device *device)
{
    virtio_device_fini(device);
    free(device);
}

static const struct virtio_device_ops echo_ops = {
    .name = "echo",
    .id = 42,
    .class_code = 0xff0000,
    .start = echo_start,
    .reset = echo_reset,
    .queue_notified = echo_notified,
    .settle = echo_settle,
    .state = echo_state,
    .state_version = 2,
    .free = echo_free,
};

static const struct virtio_device_ops plain_ops = {
    .name = "plain",
    .id = 42,
    .class_code = 0xff0000,
    .start = echo_start,
    .reset = echo_reset,
    .queue_notified = echo_notified,
    .settle = echo_settle,
    .state_version = 2,
    .free = echo_free,
};

static struct side *make(const struct virtio_device_ops *ops, uint64_t features, unsigned queues)
{
    static const uint16_t sizes[] = {RING, 256, 8};
    struct side *side = calloc(1, sizeof *side);
    struct echo *echo = calloc(1, sizeof *echo);
    driver_machine_init(&side->machine);
    assert_int_equal(
        virtio_device_init(&echo->device, ops, side->machine.mem, features, sizes, queues, NULL),
        0);
    assert_int_equal(side_init(side, &echo->device, SLOT), 0);
    return side;
}

static struct side *make_echo(uint8_t number)
{
    struct side *side = make(&echo_ops, FEATURE, QUEUES);
    of(side->device)->number = number;
    return side;
}

static void done(struct side *side)
{
    side_fini(side);
    free(side);
}

static void bring_up(struct side *side, uint64_t features, bool msix)
{
    struct driver *driver = &side->driver;
    assert_true(driver_negotiate(driver, features));
    if (msix)
        driver_msix_on(driver, QUEUES + 1);
    for (unsigned queue = 0; queue < QUEUES; queue++)
        assert_true(driver_queue(driver, queue, RING, msix));
    driver_live(driver);
}

/* Makes a chain available, without a kick. */
static void offer(struct side *side, unsigned queue, const char *text)
{
    const struct driver_buffer buffers[] = {{DATA, (uint32_t)strlen(text), false},
                                            {DATA + 4096, 64, true}};
    mem_write(side->machine.mem, DATA, text, strlen(text));
    assert_true(driver_ring_add(&side->driver.rings[queue], buffers, 2) >= 0);
}

static void check_answer(struct side *side, unsigned queue, const char *text)
{
    uint32_t head, length;
    assert_true(driver_ring_take(&side->driver.rings[queue], &head, &length));
    assert_int_equal(length, strlen(text));
    assert_memory_equal(mem_at(side->machine.mem, DATA + 4096, 64, false), text, length);
}

static void echo_once(struct side *side, unsigned queue, const char *text, const char *answer)
{
    offer(side, queue, text);
    driver_kick(&side->driver, queue);
    check_answer(side, queue, answer);
}

/* All that a driver can read without changing anything, in both machines. */
static void check_same_registers(struct side *one, struct side *two)
{
    struct driver *a = &one->driver, *b = &two->driver;
    for (unsigned offset = 0; offset < 256; offset += 4)
        if (offset < a->access || offset >= a->access + 20)
            assert_int_equal(driver_config(a, offset, 4), driver_config(b, offset, 4));
    for (unsigned vector = 0; vector < (QUEUES + 1) * 4; vector++)
        assert_int_equal(driver_read(a, a->msix_table + vector * 4, 4),
                         driver_read(b, b->msix_table + vector * 4, 4));
    for (unsigned offset = 0; offset < 56; offset += 4)
        assert_int_equal(driver_read(a, a->common + offset, 4),
                         driver_read(b, b->common + offset, 4));
    for (unsigned queue = 0; queue < QUEUES; queue++) {
        driver_write(a, a->common + 22, 2, queue);
        driver_write(b, b->common + 22, 2, queue);
        for (unsigned offset = 16; offset < 56; offset += 2)
            assert_int_equal(driver_read(a, a->common + offset, 2),
                             driver_read(b, b->common + offset, 2));
    }
}

/* ---- */

static void a_device_goes_on_in_another_machine(void **state)
{
    struct side *one = make_echo(1), *two = make_echo(99);
    bring_up(one, PLAIN | FEATURE, true);
    for (unsigned i = 0; i < 100; i++)
        echo_once(one, i % 2, "HAL", "IBM");
    driver_write(&one->driver, one->driver.common + 0, 4, 1);  /* device_feature_select */
    driver_write(&one->driver, one->driver.common + 8, 4, 77); /* driver_feature_select */
    driver_write(&one->driver, one->driver.common + 22, 2, 1); /* queue_select */
    struct saved saved = side_save(one);
    assert_int_equal(of(one->device)->settles, 1);
    assert_null(side_load(two, &saved));
    driver_follow(two, one);
    check_same_registers(one, two);
    assert_int_equal(two->device->features, PLAIN | FEATURE);
    assert_int_equal(of(two->device)->starts, 1);
    assert_int_equal(of(two->device)->served, 100);
    int before = two->machine.messages[1];
    for (unsigned i = 0; i < 100; i++)
        echo_once(two, i % 2, "HAL", "IBM");
    assert_int_equal(two->machine.messages[1], before + 50);
    /* The one that was saved goes on as well. */
    virtio_release(one->device);
    echo_once(one, 0, "HAL", "IBM");
    saved_free(&saved);
    done(one);
    done(two);
}

/* A driver that has got no further than a part of its way. */
static void a_half_made_device_goes_on(void **state)
{
    for (unsigned steps = 0; steps < 5; steps++) {
        struct side *one = make_echo(0), *two = make_echo(0);
        struct driver *driver = &one->driver;
        if (steps >= 1)
            driver_set_status(driver, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
        if (steps >= 2)
            assert_true(driver_negotiate(driver, USUAL));
        if (steps >= 3)
            assert_true(driver_queue(driver, 0, RING, false));
        if (steps >= 4) {
            assert_true(driver_queue(driver, 1, RING, false));
            /* A register that was set, of a queue that cannot be changed any more. */
            driver_config_set(driver, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
        }
        struct saved saved = side_save(one);
        assert_null(side_load(two, &saved));
        driver_follow(two, one);
        check_same_registers(one, two);
        assert_int_equal(of(two->device)->starts, 0);
        driver = &two->driver;
        if (steps == 4) {
            driver_config_set(driver, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
            driver_live(driver);
            echo_once(two, 1, "abc", "abc");
        }
        saved_free(&saved);
        done(one);
        done(two);
    }
}

static void what_was_offered_and_not_served_is_served_there(void **state)
{
    struct side *one = make_echo(1), *two = make_echo(1);
    bring_up(one, PLAIN, true);
    echo_once(one, 0, "HAL", "IBM");
    virtio_hold(one->device);
    offer(one, 0, "VMS");
    driver_kick(&one->driver, 0); /* nobody comes: it is held */
    assert_int_equal(of(one->device)->served, 1);
    struct saved saved = side_save(one);
    assert_null(side_load(two, &saved));
    driver_follow(two, one);
    check_answer(two, 0, "WNT");
    assert_int_equal(two->machine.messages[1], 1);
    virtio_release(one->device);
    check_answer(one, 0, "WNT");
    saved_free(&saved);
    done(one);
    done(two);
}

/* Without bus mastering nothing is served, here nor there, until the guest allows it. */
static void bus_mastering_is_the_guests(void **state)
{
    struct side *one = make_echo(0), *two = make_echo(0);
    bring_up(one, USUAL, true);
    driver_config_set(&one->driver, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    offer(one, 0, "abc");
    driver_kick(&one->driver, 0);
    struct saved saved = side_save(one);
    assert_null(side_load(two, &saved));
    driver_follow(two, one);
    assert_int_equal(of(two->device)->served, 0);
    driver_config_set(&two->driver, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    check_answer(two, 0, "abc");
    saved_free(&saved);
    done(one);
    done(two);
}

/* ---- interrupts ---- */

static void an_interrupt_that_is_up_stays_up(void **state)
{
    struct side *one = make_echo(0), *two = make_echo(0);
    bring_up(one, USUAL, false);
    echo_once(one, 0, "abc", "abc");
    assert_int_equal(one->machine.line[SLOT % 4], 1);
    struct saved saved = side_save(one);
    assert_int_equal(saved.device.bytes[AT_ISR], 1);
    assert_null(side_load(two, &saved));
    driver_follow(two, one);
    assert_int_equal(two->machine.line[SLOT % 4], 1);
    assert_int_equal(driver_read(&two->driver, two->driver.isr, 1), 1);
    assert_int_equal(two->machine.line[SLOT % 4], 0);
    assert_int_equal(driver_read(&two->driver, two->driver.isr, 1), 0);
    echo_once(two, 1, "abc", "abc");
    assert_int_equal(two->machine.line[SLOT % 4], 1);
    saved_free(&saved);
    done(one);
    done(two);
}

static void a_masked_message_waits_there_too(void **state)
{
    struct side *one = make_echo(0), *two = make_echo(0);
    bring_up(one, USUAL, true);
    driver_write(&one->driver, one->driver.msix_table + 16 + 12, 4, 1); /* vector 1 is masked */
    echo_once(one, 0, "abc", "abc");
    echo_once(one, 1, "abc", "abc");
    assert_int_equal(one->machine.messages[1], 0);
    struct saved saved = side_save(one);
    assert_null(side_load(two, &saved));
    driver_follow(two, one);
    uint64_t pending = two->driver.msix_table - VIRTIO_PCI_MSIX_TABLE + VIRTIO_PCI_MSIX_PENDING;
    assert_int_equal(driver_read(&two->driver, pending, 8), 1 << 1);
    assert_int_equal(two->machine.messages[1], 0);
    assert_int_equal(two->machine.messages[2], 0); /* that one has come already */
    driver_write(&two->driver, two->driver.msix_table + 16 + 12, 4, 0);
    assert_int_equal(two->machine.messages[1], 1);
    assert_int_equal(driver_read(&two->driver, pending, 8), 0);
    saved_free(&saved);
    done(one);
    done(two);
}

static void a_device_that_wants_a_reset_still_wants_it(void **state)
{
    struct side *one = make_echo(0), *two = make_echo(0);
    bring_up(one, USUAL, true);
    driver_ring_offer(&one->driver.rings[0], 5000); /* there is no such descriptor */
    driver_kick(&one->driver, 0);
    assert_true(driver_status(&one->driver) & VIRTIO_STATUS_NEEDS_RESET);
    struct saved saved = side_save(one);
    assert_null(side_load(two, &saved));
    driver_follow(two, one);
    assert_true(driver_status(&two->driver) & VIRTIO_STATUS_NEEDS_RESET);
    offer(two, 1, "abc");
    driver_kick(&two->driver, 1);
    assert_int_equal(of(two->device)->served, 0);
    bring_up(two, USUAL, true);
    echo_once(two, 0, "abc", "abc");
    saved_free(&saved);
    done(one);
    done(two);
}

/* ---- what is refused ---- */

static struct saved saved_live(struct side **ret_side)
{
    *ret_side = make_echo(1);
    bring_up(*ret_side, USUAL | FEATURE, true);
    for (unsigned i = 0; i < 10; i++)
        echo_once(*ret_side, 0, "HAL", "IBM");
    struct saved saved = side_save(*ret_side);
    /* The layout, so that the tests below change what they mean to. */
    const uint8_t *bytes = saved.device.bytes;
    assert_int_equal(saved.device.size, AT_OWN + 5);
    assert_int_equal(le32_read(bytes + AT_QUEUES), QUEUES);
    assert_int_equal(le16_read(bytes + AT_VECTORS), 1);
    assert_int_equal(le32_read(bytes + AT_KIND), 42);
    assert_int_equal(le32_read(bytes + AT_QUEUES_AGAIN), QUEUES);
    assert_int_equal(le64_read(bytes + AT_FEATURES), USUAL | FEATURE);
    assert_int_equal(bytes[AT_STATUS], 15);
    assert_int_equal(le16_read(bytes + AT_QUEUE), RING);
    assert_int_equal(le64_read(bytes + AT_QUEUE + QUEUE_AT_DESCRIPTORS),
                     (*ret_side)->driver.rings[0].descriptors);
    assert_int_equal(bytes[AT_QUEUE + QUEUE_AT_READY], 1);
    assert_int_equal(le32_read(bytes + AT_OWN_VERSION), 2);
    assert_int_equal(bytes[AT_OWN], 1);
    return saved;
}

static void check_refused(const struct saved *saved, struct side *two, const char *why)
{
    const char *told = side_load(two, saved);
    if (!told || !strstr(told, why))
        fail_msg("'%s' instead of '%s'", told ? told : "nothing", why);
    assert_int_equal(of(two->device)->starts, 0);
    done(two);
}

static void features_that_are_not_offered_are_refused(void **state)
{
    struct side *one;
    struct saved saved = saved_live(&one);
    check_refused(&saved, make(&echo_ops, 0, QUEUES), "features that this host's device lacks");
    le64_write(saved.device.bytes + AT_FEATURES, USUAL | FEATURE | UINT64_C(1) << 63);
    check_refused(&saved, make_echo(0), "features that this host's device lacks");
    saved_free(&saved);
    done(one);
}

static void other_devices_are_refused(void **state)
{
    struct side *one;
    struct saved saved = saved_live(&one);
    check_refused(&saved, make(&echo_ops, FEATURE, QUEUES + 1), "number of vectors");
    le32_write(saved.device.bytes + AT_QUEUES, QUEUES + 1);
    check_refused(&saved, make_echo(0), "number of queues");
    le32_write(saved.device.bytes + AT_QUEUES, QUEUES);
    le32_write(saved.device.bytes + AT_QUEUES_AGAIN, 1);
    check_refused(&saved, make_echo(0), "number of queues");
    le32_write(saved.device.bytes + AT_QUEUES_AGAIN, QUEUES);
    le32_write(saved.device.bytes + AT_KIND, 2);
    check_refused(&saved, make_echo(0), "another kind");
    saved_free(&saved);
    done(one);
}

static void rings_outside_memory_are_refused(void **state)
{
    struct side *one;
    struct saved saved = saved_live(&one);
    const unsigned fields[] = {QUEUE_AT_DESCRIPTORS, QUEUE_AT_AVAILABLE, QUEUE_AT_USED};
    const uint64_t places[] = {DRIVER_MEMORY - 16, DRIVER_MEMORY, UINT64_C(1) << 60,
                               UINT64_MAX - 15, 4096 + 1};
    for (size_t i = 0; i < ARRAY_LEN(fields); i++)
        for (size_t j = 0; j < ARRAY_LEN(places); j++) {
            uint8_t *at = saved.device.bytes + AT_QUEUE + QUEUE_SIZE + fields[i];
            uint64_t before = le64_read(at);
            le64_write(at, places[j]);
            check_refused(&saved, make_echo(0), "queue that lies nowhere");
            le64_write(at, before);
        }
    const uint16_t sizes[] = {0, 3, 512, 0xffff};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        le16_write(saved.device.bytes + AT_QUEUE, sizes[i]);
        check_refused(&saved, make_echo(0), "queue that lies nowhere");
    }
    saved_free(&saved);
    done(one);
}

static void a_vector_that_is_not_there_is_none(void **state)
{
    struct side *one, *two = make_echo(0);
    struct saved saved = saved_live(&one);
    le16_write(saved.device.bytes + AT_VECTORS, QUEUES + 1);
    le16_write(saved.device.bytes + AT_CONFIG_VECTOR, 4000);
    assert_null(side_load(two, &saved));
    driver_follow(two, one);
    struct driver *driver = &two->driver;
    driver_write(driver, driver->common + 22, 2, 0);
    assert_int_equal(driver_read(driver, driver->common + 26, 2), VIRTIO_NO_VECTOR);
    assert_int_equal(driver_read(driver, driver->common + 16, 2), VIRTIO_NO_VECTOR);
    echo_once(two, 0, "HAL", "IBM");
    saved_free(&saved);
    done(one);
    done(two);
}

static void the_devices_own_part_has_its_own_version(void **state)
{
    struct side *one, *two = make_echo(0);
    struct saved saved = saved_live(&one);
    le32_write(saved.device.bytes + AT_OWN_VERSION, 3);
    const char *why = side_load(two, &saved);
    assert_non_null(why);
    assert_non_null(strstr(why, "newer version"));
    done(two);
    two = make_echo(0);
    le32_write(saved.device.bytes + AT_OWN_VERSION, 1); /* it did not count yet */
    saved.device.size -= 4;
    assert_null(side_load(two, &saved));
    assert_int_equal(of(two->device)->number, 1);
    assert_int_equal(of(two->device)->served, 0);
    done(two);
    /* One without a part of its own has nothing there. */
    two = make(&plain_ops, FEATURE, QUEUES);
    assert_non_null(side_load(two, &saved));
    done(two);
    two = make(&plain_ops, FEATURE, QUEUES);
    saved.device.size -= 1;
    assert_null(side_load(two, &saved));
    done(two);
    saved_free(&saved);
    done(one);
}

static void what_is_cut_off_is_refused(void **state)
{
    struct side *one;
    struct saved saved = saved_live(&one);
    size_t bridge = saved.bridge.size, device = saved.device.size;
    struct side *two = make_echo(0);
    for (size_t size = 0; size < device; size += 1 + size / 32) {
        saved.device.size = size;
        assert_non_null(side_load(two, &saved));
        virtio_reset(two->device);
    }
    saved.device.size = device;
    for (size_t size = 0; size < bridge; size += 1 + size / 32) {
        saved.bridge.size = size;
        assert_non_null(side_load(two, &saved));
    }
    done(two);
    saved.bridge.size = bridge;
    saved_free(&saved);
    done(one);
}

/* Whatever the bytes: refused, or a device that can be used. (Sanitizers look on.) */
static void any_bytes_do_no_harm(void **state)
{
    uint32_t noise = 1;
    struct side *one;
    struct saved saved = saved_live(&one);
    uint8_t *bridge = malloc(saved.bridge.size), *device = malloc(saved.device.size);
    memcpy(bridge, saved.bridge.bytes, saved.bridge.size);
    memcpy(device, saved.device.bytes, saved.device.size);
    unsigned accepted = 0;
    for (unsigned round = 0; round < 300; round++) {
        struct side *two = make_echo(0);
        memcpy(saved.bridge.bytes, bridge, saved.bridge.size);
        memcpy(saved.device.bytes, device, saved.device.size);
        for (unsigned i = 0; i < 1 + round % 4; i++) {
            struct record *record = round % 3 ? &saved.device : &saved.bridge;
            noise = noise * 1664525 + 1013904223;
            record->bytes[(noise >> 8) % record->size] = (uint8_t)(noise >> 24);
        }
        if (!side_load(two, &saved)) {
            accepted++;
            driver_follow(two, one);
            offer(two, 0, "abc");
            driver_kick(&two->driver, 0);
            driver_kick(&two->driver, 1);
        }
        done(two);
    }
    assert_true(accepted > 30 && accepted < 300);
    free(bridge);
    free(device);
    saved_free(&saved);
    done(one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_goes_on_in_another_machine),
        cmocka_unit_test(a_half_made_device_goes_on),
        cmocka_unit_test(what_was_offered_and_not_served_is_served_there),
        cmocka_unit_test(bus_mastering_is_the_guests),
        cmocka_unit_test(an_interrupt_that_is_up_stays_up),
        cmocka_unit_test(a_masked_message_waits_there_too),
        cmocka_unit_test(a_device_that_wants_a_reset_still_wants_it),
        cmocka_unit_test(features_that_are_not_offered_are_refused),
        cmocka_unit_test(other_devices_are_refused),
        cmocka_unit_test(rings_outside_memory_are_refused),
        cmocka_unit_test(a_vector_that_is_not_there_is_none),
        cmocka_unit_test(the_devices_own_part_has_its_own_version),
        cmocka_unit_test(what_is_cut_off_is_refused),
        cmocka_unit_test(any_bytes_do_no_harm),
    };
    return cmocka_run_group_tests_name("virtio state", tests, NULL, NULL);
}
