#include "chip/ioapic.h"

#include "chip/chip_test.h"

struct fixture {
    struct ioapic *ioapic;
    int sent;
    uint64_t address;
    uint32_t data;
    bool refuse;
};

static bool deliver(void *opaque, uint64_t address, uint32_t data)
{
    struct fixture *f = opaque;
    f->sent++;
    f->address = address;
    f->data = data;
    return !f->refuse;
}

static void start(struct fixture *f)
{
    *f = (struct fixture){0};
    f->ioapic = ioapic_new(&(struct ioapic_config){.deliver = deliver, .opaque = f, .id = 5});
    assert_non_null(f->ioapic);
}

static uint32_t get(struct fixture *f, uint32_t index)
{
    ioapic_ops.write(f->ioapic, 0x00, 4, index);
    return (uint32_t)ioapic_ops.read(f->ioapic, 0x10, 4);
}

static void set(struct fixture *f, uint32_t index, uint32_t value)
{
    ioapic_ops.write(f->ioapic, 0x00, 4, index);
    ioapic_ops.write(f->ioapic, 0x10, 4, value);
}

static void entry(struct fixture *f, unsigned pin, uint64_t value)
{
    set(f, 0x11 + 2 * pin, (uint32_t)(value >> 32));
    set(f, 0x10 + 2 * pin, (uint32_t)value);
}

static void registers(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    assert_int_equal(get(&f, 0), 0x05000000);
    assert_int_equal(get(&f, 1), 0x00170011);
    assert_int_equal(get(&f, 2), 0x05000000);
    assert_int_equal(get(&f, 0x10), 0x00010000);
    assert_int_equal(get(&f, 0x3f), 0);
    assert_int_equal(get(&f, 0x40), 0);
    set(&f, 0, 0xffffffff);
    assert_int_equal(get(&f, 0), 0x0f000000);
    set(&f, 0x10, 0xffffffff);
    set(&f, 0x11, 0xffffffff);
    assert_int_equal(get(&f, 0x10), 0x0001afff); /* delivery status and remote IRR read-only */
    assert_int_equal(get(&f, 0x11), 0xff000000);
    ioapic_free(f.ioapic);
}

static void edges_send_once(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    ioapic_line(f.ioapic, 4, true);
    ioapic_line(f.ioapic, 4, false);
    assert_int_equal(f.sent, 0); /* masked: lost */
    entry(&f, 4, 0x0300000000000041);
    assert_int_equal(f.sent, 0);
    ioapic_line(f.ioapic, 4, true);
    ioapic_line(f.ioapic, 4, true);
    assert_int_equal(f.sent, 1);
    assert_int_equal(f.address, 0xfee03000);
    assert_int_equal(f.data, 0x4041);
    assert_int_equal(get(&f, 0x18) & 0x4000, 0);
    ioapic_line(f.ioapic, 4, false);
    ioapic_line(f.ioapic, 4, true);
    assert_int_equal(f.sent, 2);
    /* Logical, lowest priority. */
    entry(&f, 5, 0xff00000000000951);
    ioapic_line(f.ioapic, 5, true);
    assert_int_equal(f.address, 0xfeeff00c);
    assert_int_equal(f.data, 0x4151);
    ioapic_line(f.ioapic, 24, true);
    assert_int_equal(f.sent, 3);
    ioapic_free(f.ioapic);
}

static void levels_wait_for_their_eoi(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    entry(&f, 11, 0x000000000000a061); /* level, active low */
    ioapic_line(f.ioapic, 11, true);
    assert_int_equal(f.sent, 1);
    assert_int_equal(f.data, 0xc061);
    assert_int_equal(get(&f, 0x26) & 0x4000, 0x4000);
    ioapic_line(f.ioapic, 11, false);
    ioapic_line(f.ioapic, 11, true);
    assert_int_equal(f.sent, 1);
    ioapic_eoi(f.ioapic, 0x62);
    assert_int_equal(f.sent, 1);
    ioapic_eoi(f.ioapic, 0x61); /* still asserted */
    assert_int_equal(f.sent, 2);
    ioapic_line(f.ioapic, 11, false);
    ioapic_ops.write(f.ioapic, 0x40, 4, 0x61); /* by the EOI register */
    assert_int_equal(f.sent, 2);
    assert_int_equal(get(&f, 0x26) & 0x4000, 0);
    ioapic_free(f.ioapic);
}

static void a_masked_level_is_sent_when_unmasked(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    entry(&f, 9, 0x18071);
    ioapic_line(f.ioapic, 9, true);
    assert_int_equal(f.sent, 0);
    set(&f, 0x22, 0x8071);
    assert_int_equal(f.sent, 1);
    /* Masked while in service: the EOI clears remote IRR and sends nothing. */
    set(&f, 0x22, 0x18071);
    assert_int_equal(get(&f, 0x22), 0x1c071);
    ioapic_eoi(f.ioapic, 0x71);
    assert_int_equal(f.sent, 1);
    set(&f, 0x22, 0x8071);
    assert_int_equal(f.sent, 2);
    /* The way out of a stuck remote IRR: edge and back. */
    set(&f, 0x22, 0x10071);
    set(&f, 0x22, 0x18071);
    assert_int_equal(get(&f, 0x22), 0x18071);
    ioapic_free(f.ioapic);
}

static void a_refused_level_is_not_in_service(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    f.refuse = true;
    entry(&f, 9, 0x8071);
    ioapic_line(f.ioapic, 9, true);
    assert_int_equal(f.sent, 1);
    assert_int_equal(get(&f, 0x22) & 0x4000, 0);
    f.refuse = false;
    entry(&f, 9, 0x0100000000008071);
    assert_int_equal(get(&f, 0x22) & 0x4000, 0x4000);
    ioapic_reset(f.ioapic);
    assert_int_equal(get(&f, 0x22), 0x10000);
    ioapic_free(f.ioapic);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registers),
        cmocka_unit_test(edges_send_once),
        cmocka_unit_test(levels_wait_for_their_eoi),
        cmocka_unit_test(a_masked_level_is_sent_when_unmasked),
        cmocka_unit_test(a_refused_level_is_not_in_service),
    };
    return cmocka_run_group_tests_name("ioapic", tests, NULL, NULL);
}
