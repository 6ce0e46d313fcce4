#include "chip/pic.h"

#include "chip/chip_test.h"

struct fixture {
    struct pic *pic;
    struct line output;
};

static void master(struct fixture *f, unsigned offset, uint8_t value)
{
    out8(&pic_master_ops, f->pic, offset, value);
}

static void slave(struct fixture *f, unsigned offset, uint8_t value)
{
    out8(&pic_slave_ops, f->pic, offset, value);
}

/* ICW1..4 as every PC system does it, with `icw4` for both; nothing masked. */
static void start(struct fixture *f, uint8_t icw4)
{
    f->output = (struct line){0};
    f->pic = pic_new(&(struct pic_config){.output = {line_set, &f->output, 0}});
    assert_non_null(f->pic);
    master(f, 0, 0x11);
    master(f, 1, 0x30);
    master(f, 1, 0x04);
    master(f, 1, icw4);
    slave(f, 0, 0x11);
    slave(f, 1, 0x38);
    slave(f, 1, 0x02);
    slave(f, 1, icw4);
}

static void pulse(struct fixture *f, unsigned irq)
{
    pic_line(f->pic, irq, false);
    pic_line(f->pic, irq, true);
}

static void expect(struct fixture *f, int vector)
{
    assert_int_equal(pic_poll(f->pic), vector);
    assert_int_equal(f->output.level, vector >= 0);
    if (vector >= 0)
        assert_int_equal(pic_accept(f->pic), vector);
}

static void nothing_comes_before_initialization(void **state)
{
    (void)state;
    struct line output = {0};
    struct pic *pic = pic_new(&(struct pic_config){.output = {line_set, &output, 0}});
    pic_line(pic, 0, true);
    pic_line(pic, 9, true);
    assert_int_equal(pic_poll(pic), -1);
    assert_false(output.level);
    pic_free(pic);
}

static void lower_numbers_come_first_and_nest(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    pulse(&f, 5);
    pulse(&f, 3);
    expect(&f, 0x33);
    expect(&f, -1); /* 5 waits for 3 */
    pulse(&f, 1);
    expect(&f, 0x31);
    master(&f, 0, 0x20); /* ends 1, the highest */
    expect(&f, -1);
    master(&f, 0, 0x20);
    expect(&f, 0x35);
    master(&f, 0, 0x0b);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0x20);
    master(&f, 0, 0x65); /* specific EOI */
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0x00);
    pic_free(f.pic);
}

static void slave_ranks_as_irq_2(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    pulse(&f, 3);
    pulse(&f, 12);
    pulse(&f, 8);
    expect(&f, 0x38);
    expect(&f, -1);
    slave(&f, 0, 0x20);
    expect(&f, -1); /* the master still serves 2 */
    master(&f, 0, 0x20);
    expect(&f, 0x3c);
    slave(&f, 0, 0x20);
    master(&f, 0, 0x20);
    expect(&f, 0x33);
    pic_free(f.pic);
}

static void masks_hold_edges_back(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    master(&f, 1, 0x10);
    assert_int_equal(in8(&pic_master_ops, f.pic, 1), 0x10);
    pulse(&f, 4);
    expect(&f, -1);
    master(&f, 0, 0x0a);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0x10);
    master(&f, 1, 0x00);
    expect(&f, 0x34);
    /* The line is still high: without a new edge there is no second request. */
    master(&f, 0, 0x20);
    expect(&f, -1);
    pic_free(f.pic);
}

static void level_triggered_inputs_repeat_while_high(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    out8(&pic_elcr_ops, f.pic, 0, 0xff);
    out8(&pic_elcr_ops, f.pic, 1, 0xff);
    assert_int_equal(in8(&pic_elcr_ops, f.pic, 0), 0xf8);
    assert_int_equal(in8(&pic_elcr_ops, f.pic, 1), 0xde);
    pic_line(f.pic, 11, true);
    expect(&f, 0x3b);
    slave(&f, 0, 0x20);
    master(&f, 0, 0x20);
    expect(&f, 0x3b);
    pic_line(f.pic, 11, false);
    slave(&f, 0, 0x20);
    master(&f, 0, 0x20);
    expect(&f, -1);
    pic_free(f.pic);
}

static void vanished_requests_are_spurious(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    out8(&pic_elcr_ops, f.pic, 0, 0x20);
    out8(&pic_elcr_ops, f.pic, 1, 0x04);
    pic_line(f.pic, 5, true);
    assert_int_equal(pic_poll(f.pic), 0x35);
    pic_line(f.pic, 5, false);
    assert_int_equal(pic_accept(f.pic), 0x37);
    master(&f, 0, 0x0b);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0);
    /* At the slave: vector 15, and the master serves its IRQ 2. */
    pic_line(f.pic, 10, true);
    pic_line(f.pic, 10, false);
    expect(&f, 0x3f);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0x04);
    slave(&f, 0, 0x0b);
    assert_int_equal(in8(&pic_slave_ops, f.pic, 0), 0);
    pic_free(f.pic);
}

static void rotation_moves_the_lowest_place(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    pulse(&f, 3);
    expect(&f, 0x33);
    master(&f, 0, 0xa0); /* rotate on non-specific EOI: 3 becomes lowest */
    pulse(&f, 3);
    pulse(&f, 6);
    expect(&f, 0x36);
    master(&f, 0, 0xe6); /* rotate on specific EOI: 6 becomes lowest */
    pulse(&f, 6);
    expect(&f, 0x33);
    master(&f, 0, 0x20);
    expect(&f, 0x36);
    master(&f, 0, 0x20);
    master(&f, 0, 0xc0); /* set priority: 0 lowest, 1 highest */
    pulse(&f, 0);
    pulse(&f, 1);
    expect(&f, 0x31);
    pic_free(f.pic);
}

static void automatic_eoi_serves_nothing_and_may_rotate(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x03);
    pulse(&f, 4);
    expect(&f, 0x34);
    master(&f, 0, 0x0b);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0);
    master(&f, 0, 0x80);
    pulse(&f, 4);
    expect(&f, 0x34);
    pulse(&f, 4);
    pulse(&f, 7);
    expect(&f, 0x37);
    expect(&f, 0x34);
    pic_free(f.pic);
}

static void special_mask_mode_lets_lower_ones_through(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    pulse(&f, 1);
    expect(&f, 0x31);
    pulse(&f, 6);
    expect(&f, -1);
    master(&f, 1, 0x02);
    master(&f, 0, 0x68);
    expect(&f, 0x36);
    /* A non-specific EOI does not end what is masked. */
    master(&f, 0, 0x20);
    master(&f, 0, 0x20);
    master(&f, 0, 0x0b);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0x02);
    pic_free(f.pic);
}

static void special_nested_mode_lets_the_slave_nest(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x11);
    pulse(&f, 12);
    expect(&f, 0x3c);
    pulse(&f, 9);
    expect(&f, 0x39);
    pic_free(f.pic);
}

static void poll_command_acknowledges(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    master(&f, 0, 0x0c);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0) & 0x80, 0);
    pulse(&f, 6);
    master(&f, 0, 0x0c);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0x86);
    assert_int_equal(pic_poll(f.pic), -1);
    master(&f, 0, 0x0b);
    assert_int_equal(in8(&pic_master_ops, f.pic, 0), 0x40);
    pic_free(f.pic);
}

static void initialization_forgets_edges_but_not_levels(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0x01);
    out8(&pic_elcr_ops, f.pic, 1, 0x02);
    pulse(&f, 4);
    pic_line(f.pic, 9, true);
    master(&f, 0, 0x11);
    master(&f, 1, 0x40);
    master(&f, 1, 0x04);
    master(&f, 1, 0x01);
    expect(&f, 0x39);
    slave(&f, 0, 0x20);
    pic_line(f.pic, 9, false);
    master(&f, 0, 0x20);
    expect(&f, 0x3f); /* the slave had asked again before the line fell */
    pic_free(f.pic);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_comes_before_initialization),
        cmocka_unit_test(lower_numbers_come_first_and_nest),
        cmocka_unit_test(slave_ranks_as_irq_2),
        cmocka_unit_test(masks_hold_edges_back),
        cmocka_unit_test(level_triggered_inputs_repeat_while_high),
        cmocka_unit_test(vanished_requests_are_spurious),
        cmocka_unit_test(rotation_moves_the_lowest_place),
        cmocka_unit_test(automatic_eoi_serves_nothing_and_may_rotate),
        cmocka_unit_test(special_mask_mode_lets_lower_ones_through),
        cmocka_unit_test(special_nested_mode_lets_the_slave_nest),
        cmocka_unit_test(poll_command_acknowledges),
        cmocka_unit_test(initialization_forgets_edges_but_not_levels),
    };
    return cmocka_run_group_tests_name("pic", tests, NULL, NULL);
}
