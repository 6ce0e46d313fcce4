/* The balloon from the guest's side. */
#include "virtio/balloon.h"

#include "base/bytes.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cmocka.h>

enum {
    QUEUES = 5,
    INFLATE = 0,
    DEFLATE = 1,
    STATS = 2,
    REPORT = 3,
    LIST_AT = 16 << 20, /* page numbers and statistics */
    PAGES_AT = 20 << 20,
    PAGES = 600,
};

#define F_STATS     (UINT64_C(1) << 1)
#define F_OOM       (UINT64_C(1) << 2)
#define F_POISON    (UINT64_C(1) << 4)
#define F_REPORTING (UINT64_C(1) << 5)
#define COMMON      (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

struct fixture {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_pci *transport;
    struct virtio_balloon *balloon;
    _Atomic int heard;
};

static struct fixture *f;

static void heard(void *opaque)
{
    ((struct fixture *)opaque)->heard++;
}

static void live(uint64_t features)
{
    assert_true(driver_negotiate(&f->driver, features));
    driver_msix_on(&f->driver, QUEUES + 1);
    for (unsigned i = 0; i < QUEUES; i++)
        assert_true(driver_queue(&f->driver, i, 64, true));
    driver_live(&f->driver);
}

static int set_up(void **state)
{
    (void)state;
    f = calloc(1, sizeof *f);
    const struct virtio_balloon_config config = {.heard = heard, .opaque = f};
    driver_machine_init(&f->machine);
    assert_int_equal(virtio_balloon_new(f->machine.mem, &config, &f->balloon, NULL), 0);
    assert_int_equal(virtio_pci_new(f->machine.host, PCI_SLOT_ANY,
                                    virtio_balloon_device(f->balloon), &f->transport, NULL),
                     0);
    assert_int_equal(virtio_begin(virtio_balloon_device(f->balloon), NULL), 0);
    driver_machine_place(&f->machine);
    driver_init(&f->driver, &f->machine, pci_device_slot(virtio_pci_device(f->transport)));
    live(COMMON | F_STATS | F_OOM | F_REPORTING);
    memset(mem_at(f->machine.mem, PAGES_AT, PAGES * MEM_PAGE_SIZE, true), 0x5a,
           PAGES * MEM_PAGE_SIZE);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    virtio_pci_free(f->transport);
    driver_machine_fini(&f->machine);
    free(f);
    return 0;
}

static bool taken(unsigned queue)
{
    uint32_t head, length;
    return eventually(driver_ring_take(&f->driver.rings[queue], &head, &length));
}

static bool failed(void)
{
    return eventually(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET);
}

static void offer(unsigned queue, const struct driver_buffer *buffers, unsigned count)
{
    assert_true(driver_ring_add(&f->driver.rings[queue], buffers, count) >= 0);
    driver_kick(&f->driver, queue);
}

static void offer_pages(unsigned queue, const uint32_t *pfns, unsigned count)
{
    uint8_t *list = mem_at(f->machine.mem, LIST_AT, count * 4, true);
    for (unsigned i = 0; i < count; i++)
        le32_write(list + 4 * i, pfns[i]);
    /* In two parts, the cut inside a number: a list is bytes, however it lies in buffers. */
    const struct driver_buffer parts[] = {{LIST_AT, count * 4 - 2, false},
                                          {LIST_AT + count * 4 - 2, 2, false}};
    offer(queue, parts, 2);
}

static bool resident(uint64_t gpa)
{
    unsigned char page;
    assert_int_equal(
        mincore(mem_at(f->machine.mem, gpa, MEM_PAGE_SIZE, false), MEM_PAGE_SIZE, &page), 0);
    return page & 1;
}

static unsigned resident_pages(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < PAGES; i++)
        count += resident(PAGES_AT + i * MEM_PAGE_SIZE);
    return count;
}

static struct virtio_balloon_info info(void)
{
    struct virtio_balloon_info now;
    virtio_balloon_info(f->balloon, &now);
    return now;
}

static void inflated_pages_are_the_hosts(void **state)
{
    (void)state;
    uint32_t pfns[PAGES / 2];
    /* Every second page, backwards: nothing to be joined. */
    for (unsigned i = 0; i < PAGES / 2; i++)
        pfns[i] = (PAGES_AT >> MEM_PAGE_SHIFT) + PAGES - 1 - 2 * i;
    assert_int_equal(resident_pages(), PAGES);
    offer_pages(INFLATE, pfns, PAGES / 2);
    assert_true(taken(INFLATE));
    assert_int_equal(resident_pages(), PAGES / 2);
    for (unsigned i = 0; i < PAGES; i++)
        assert_int_equal(*(uint8_t *)mem_at(f->machine.mem, PAGES_AT + i * MEM_PAGE_SIZE, 1, false),
                         i % 2 ? 0 : 0x5a);
    /* While they are away, memory comes in small pages. */
    assert_true(f->machine.mem->keep_small);
    offer_pages(DEFLATE, pfns, PAGES / 2);
    assert_true(taken(DEFLATE));
    assert_false(f->machine.mem->keep_small);
}

static void a_run_of_pages_and_the_same_page_twice(void **state)
{
    (void)state;
    uint32_t pfns[PAGES];
    for (unsigned i = 0; i < PAGES; i++)
        pfns[i] = (PAGES_AT >> MEM_PAGE_SHIFT) + (i < PAGES - 1 ? i : 0);
    offer_pages(INFLATE, pfns, PAGES);
    assert_true(taken(INFLATE));
    assert_int_equal(resident_pages(), 1);
    assert_true(resident(PAGES_AT + (PAGES - 1) * MEM_PAGE_SIZE));
}

static void the_target_and_what_is_given_are_in_the_configuration(void **state)
{
    (void)state;
    int before = f->machine.messages[0];
    virtio_balloon_target(f->balloon, MIB(8));
    assert_int_equal(f->machine.messages[0], before + 1);
    assert_int_equal(driver_read(&f->driver, f->driver.device, 4), MIB(8) >> 12);
    driver_write(&f->driver, f->driver.device + 4, 4, 77);
    driver_write(&f->driver, f->driver.device, 4, 1); /* not the driver's to write */
    assert_int_equal(driver_read(&f->driver, f->driver.device, 4), MIB(8) >> 12);
    assert_int_equal(info().actual, 77 << 12);
    assert_int_equal(info().target, MIB(8));
    virtio_balloon_target(f->balloon, UINT64_MAX);
    assert_int_equal(info().target, DRIVER_MEMORY);
    driver_write(&f->driver, f->driver.device + 4, 4, UINT32_MAX);
    assert_int_equal(info().actual, DRIVER_MEMORY);
    driver_set_status(&f->driver, 0);
    assert_int_equal(info().actual, 0);
    assert_int_equal(info().target, DRIVER_MEMORY);
    assert_false(info().driver);
}

static void offer_stats(uint64_t free_bytes)
{
    uint8_t *list = mem_at(f->machine.mem, LIST_AT, 30, true);
    const struct {
        uint16_t tag;
        uint64_t value;
    } stats[] = {{4, free_bytes}, {999, 1}, {5, MIB(64)}};
    for (unsigned i = 0; i < ARRAY_LEN(stats); i++) {
        le16_write(list + 10 * i, stats[i].tag);
        le64_write(list + 10 * i + 2, stats[i].value);
    }
    offer(STATS, &(struct driver_buffer){LIST_AT, 30, false}, 1);
}

static void statistics_are_fresh_when_asked_for(void **state)
{
    (void)state;
    offer_stats(1000);
    assert_true(eventually(info().stats_at));
    assert_int_equal(info().known, 1 << 4 | 1 << 5);
    assert_int_equal(info().stats[4], 1000);
    assert_int_equal(f->heard, 0); /* nobody had asked */
    assert_false(driver_ring_take(&f->driver.rings[STATS], &(uint32_t){0}, &(uint32_t){0}));
    assert_true(virtio_balloon_ask(f->balloon));
    assert_true(taken(STATS));
    offer_stats(2000);
    assert_true(eventually(f->heard));
    assert_int_equal(f->heard, 1);
    assert_int_equal(info().stats[4], 2000);
    assert_int_equal(info().stats[5], MIB(64));
    driver_set_status(&f->driver, 0);
    assert_false(virtio_balloon_ask(f->balloon));
    assert_int_equal(info().known, 0);
}

static void report(unsigned queue)
{
    const struct driver_buffer blocks[] = {
        {PAGES_AT, 100 * MEM_PAGE_SIZE, true},
        {PAGES_AT + 300 * MEM_PAGE_SIZE, 200 * MEM_PAGE_SIZE, true}};
    offer(queue, blocks, 2);
    assert_true(taken(queue));
}

static void reported_blocks_are_the_hosts(void **state)
{
    (void)state;
    report(REPORT);
    assert_int_equal(resident_pages(), PAGES - 300);
    assert_int_equal(info().reported, 300 * MEM_PAGE_SIZE);
    assert_false(f->machine.mem->keep_small); /* blocks are large */
}

/* Queues are numbered differently by who counts those only that are there. */
/* What lies over a file would be the file's again. */
static void reported_blocks_of_a_file_stay(void **state)
{
    (void)state;
    mem_note_file(f->machine.mem, PAGES_AT + 310 * MEM_PAGE_SIZE, MEM_PAGE_SIZE);
    report(REPORT);
    assert_int_equal(resident_pages(), PAGES - 100);
    assert_int_equal(info().reported, 100 * MEM_PAGE_SIZE);
}

static void reports_come_wherever_a_driver_counts_to(void **state)
{
    (void)state;
    report(4);
    assert_int_equal(resident_pages(), PAGES - 300);
    driver_set_status(&f->driver, 0);
    live(COMMON | F_REPORTING);
    memset(mem_at(f->machine.mem, PAGES_AT, PAGES * MEM_PAGE_SIZE, true), 0x5a,
           PAGES * MEM_PAGE_SIZE);
    report(2);
    assert_int_equal(resident_pages(), PAGES - 300);
}

static void poisoned_blocks_stay(void **state)
{
    (void)state;
    for (unsigned poison = 0; poison < 2; poison++) {
        driver_set_status(&f->driver, 0);
        live(COMMON | F_STATS | F_POISON | F_REPORTING);
        driver_write(&f->driver, f->driver.device + 12, 4, poison ? 0xaaaaaaaa : 0);
        memset(mem_at(f->machine.mem, PAGES_AT, PAGES * MEM_PAGE_SIZE, true), 0xaa,
               PAGES * MEM_PAGE_SIZE);
        report(REPORT);
        assert_int_equal(resident_pages(), poison ? PAGES : PAGES - 300);
    }
}

static void lies_fail_the_device_and_a_reset_heals_it(void **state)
{
    (void)state;
    static const uint32_t wrong[] = {DRIVER_MEMORY >> 12, UINT32_MAX, 0xb0000};
    for (unsigned i = 0; i < ARRAY_LEN(wrong); i++) {
        const uint32_t pfns[] = {(PAGES_AT >> 12), wrong[i]};
        offer_pages(INFLATE, pfns, 2);
        assert_true(failed());
        driver_set_status(&f->driver, 0);
        live(COMMON | F_STATS);
    }
    offer(INFLATE, &(struct driver_buffer){LIST_AT, 7, false}, 1); /* no whole numbers */
    assert_true(failed());
    driver_set_status(&f->driver, 0);
    live(COMMON | F_STATS);
    /* More numbers than there are pages. */
    offer(DEFLATE, &(struct driver_buffer){0, (DRIVER_MEMORY >> 12) * 4 + 4, false}, 1);
    assert_true(failed());
    driver_set_status(&f->driver, 0);
    live(COMMON | F_STATS);
    /* Reports without the feature, and of more than there is. */
    offer(REPORT, &(struct driver_buffer){PAGES_AT, MEM_PAGE_SIZE, true}, 1);
    assert_true(failed());
    driver_set_status(&f->driver, 0);
    live(COMMON | F_STATS | F_REPORTING);
    const struct driver_buffer twice[] = {{MIB(1), DRIVER_MEMORY / 2, true},
                                          {MIB(1), DRIVER_MEMORY / 2 + MEM_PAGE_SIZE, true}};
    offer(REPORT, twice, 2);
    assert_true(failed());
    driver_set_status(&f->driver, 0);
    live(COMMON | F_STATS | F_REPORTING);
    memset(mem_at(f->machine.mem, PAGES_AT, PAGES * MEM_PAGE_SIZE, true), 0x5a,
           PAGES * MEM_PAGE_SIZE);
    report(REPORT);
    assert_int_equal(resident_pages(), PAGES - 300);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(inflated_pages_are_the_hosts),
        TEST(a_run_of_pages_and_the_same_page_twice),
        TEST(the_target_and_what_is_given_are_in_the_configuration),
        TEST(statistics_are_fresh_when_asked_for),
        TEST(reported_blocks_are_the_hosts),
        TEST(reported_blocks_of_a_file_stay),
        TEST(reports_come_wherever_a_driver_counts_to),
        TEST(poisoned_blocks_stay),
        TEST(lies_fail_the_device_and_a_reset_heals_it),
    };
    return cmocka_run_group_tests_name("balloon", tests, NULL, NULL);
}
