#include "chip/serial.h"

#include "base/bytes.h"
#include "chip/chip_test.h"

struct fixture {
    struct timers *timers;
    struct serial *serial;
    struct line irq;
    char output[1024];
    size_t length;
    int calls, rooms;
    const char *input; /* room() feeds from here */
};

static void output(void *opaque, const uint8_t *bytes, size_t count)
{
    struct fixture *f = opaque;
    assert_true(f->length + count < sizeof f->output);
    memcpy(f->output + f->length, bytes, count);
    f->length += count;
    f->calls++;
}

static void feed(struct fixture *f)
{
    f->input += serial_receive(f->serial, (const uint8_t *)f->input, strlen(f->input));
}

static void room(void *opaque)
{
    struct fixture *f = opaque;
    f->rooms++;
    if (f->input)
        feed(f);
}

static uint8_t in(struct fixture *f, unsigned reg)
{
    return in8(&serial_ops, f->serial, reg);
}

static void out(struct fixture *f, unsigned reg, uint8_t value)
{
    out8(&serial_ops, f->serial, reg, value);
}

static void start(struct fixture *f)
{
    *f = (struct fixture){.timers = timers_new()};
    f->serial = serial_new(&(struct serial_config){.timers = f->timers,
                                                   .irq = {line_set, &f->irq, 4},
                                                   .output = output,
                                                   .room = room,
                                                   .opaque = f});
    assert_non_null(f->serial);
    out(f, 4, 0x0b); /* DTR, RTS, OUT2 */
}

static void stop(struct fixture *f)
{
    timers_free(f->timers);
    serial_free(f->serial);
}

static size_t give(struct fixture *f, const char *text)
{
    return serial_receive(f->serial, (const uint8_t *)text, strlen(text));
}

static void output_comes_by_line_and_after_a_while(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    for (const char *c = "hello\nlogin: "; *c; c++) {
        assert_int_equal(in(&f, 5) & 0x60, 0x60);
        out(&f, 0, (uint8_t)*c);
    }
    assert_string_equal(f.output, "hello\n");
    assert_int_equal(f.calls, 1);
    clock_run(f.timers, SERIAL_BATCH_NS);
    assert_string_equal(f.output, "hello\nlogin: ");
    for (int i = 0; i < SERIAL_BATCH; i++)
        out(&f, 0, 'x');
    assert_int_equal(f.length, 13 + SERIAL_BATCH);
    out(&f, 0, 'y');
    serial_flush(f.serial);
    assert_int_equal(f.output[f.length - 1], 'y');
    stop(&f);
}

static void transmitter_interrupt_is_acknowledged_by_iir(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    assert_int_equal(in(&f, 2), 0x01);
    out(&f, 1, 0x02);
    assert_true(f.irq.level);
    assert_int_equal(in(&f, 2), 0x02);
    assert_int_equal(in(&f, 2), 0x01);
    assert_false(f.irq.level);
    out(&f, 0, 'a');
    assert_true(f.irq.level);
    assert_int_equal(in(&f, 2), 0x02);
    /* Disabling and enabling again raises it again (the drivers' test for broken UARTs). */
    out(&f, 1, 0x00);
    out(&f, 1, 0x02);
    assert_int_equal(in(&f, 2), 0x02);
    assert_int_equal(f.irq.rises, 3);
    stop(&f);
}

static void receive_without_fifo(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    out(&f, 1, 0x01);
    assert_int_equal(give(&f, "ab"), 1);
    assert_true(f.irq.level);
    assert_int_equal(in(&f, 2), 0x04);
    assert_int_equal(in(&f, 5) & 0x03, 0x01);
    assert_int_equal(f.rooms, 0);
    assert_int_equal(in(&f, 0), 'a');
    assert_int_equal(f.rooms, 1);
    assert_false(f.irq.level);
    assert_int_equal(in(&f, 5) & 0x01, 0);
    stop(&f);
}

static void fifo_triggers_and_times_out(void **state)
{
    (void)state;
    static const struct {
        uint8_t fcr;
        unsigned level;
    } rows[] = {{0x01, 1}, {0x41, 4}, {0x81, 8}, {0xc1, 14}};
    for (unsigned i = 0; i < 4; i++) {
        struct fixture f;
        start(&f);
        out(&f, 2, rows[i].fcr);
        out(&f, 1, 0x01);
        for (unsigned n = 1; n < rows[i].level; n++)
            assert_int_equal(give(&f, "x"), 1);
        assert_int_equal(in(&f, 2), 0xc1);
        assert_int_equal(give(&f, "x"), 1);
        assert_int_equal(in(&f, 2), 0xc4);
        assert_true(f.irq.level);
        if (rows[i].level > 1) {
            in(&f, 0);
            assert_false(f.irq.level);
            /* 40 bits at 115200 baud are 347 us. */
            clock_run(f.timers, 340 * USEC);
            assert_false(f.irq.level);
            clock_run(f.timers, 348 * USEC);
            assert_true(f.irq.level);
            assert_int_equal(in(&f, 2), 0xcc);
            in(&f, 0);
            assert_false(f.irq.level);
        }
        stop(&f);
    }
}

static void nothing_is_lost_for_want_of_room(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    out(&f, 2, 0x01);
    f.input = "The quick brown fox jumps over the lazy dog and much more than that.";
    const char *whole = f.input;
    feed(&f);
    assert_int_equal(f.input - whole, SERIAL_FIFO);
    char got[128] = {0};
    size_t n = 0;
    while (in(&f, 5) & 1)
        got[n++] = (char)in(&f, 0);
    assert_string_equal(got, whole);
    assert_int_equal(in(&f, 5) & 0x02, 0);
    stop(&f);
}

static void input_waits_until_the_guest_listens(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    out(&f, 4, 0x00);
    f.input = "early";
    feed(&f);
    assert_string_equal(f.input, "early");
    out(&f, 2, 0x07); /* the driver clears its FIFOs */
    assert_int_equal(in(&f, 5) & 1, 0);
    out(&f, 4, 0x03);
    assert_int_equal(f.rooms, 1);
    for (const char *c = "early"; *c; c++)
        assert_int_equal(in(&f, 0), *c);
    stop(&f);
}

static void loopback_returns_bytes_and_modem_lines(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    assert_int_equal(in(&f, 6), 0xb0);
    out(&f, 4, 0x1a); /* loop, OUT2, RTS: what drivers test for */
    assert_int_equal(in(&f, 6) & 0xf0, 0x90);
    out(&f, 4, 0x1f);
    assert_int_equal(in(&f, 6) & 0xf0, 0xf0);
    out(&f, 4, 0x10);
    assert_int_equal(in(&f, 6), 0x0f); /* all fell, RI's trailing edge among them */
    assert_int_equal(in(&f, 6), 0x00);
    assert_int_equal(give(&f, "z"), 0);
    out(&f, 2, 0x01);
    for (int i = 0; i < SERIAL_FIFO; i++)
        out(&f, 0, (uint8_t)i);
    assert_int_equal(in(&f, 5) & 0x03, 0x01);
    out(&f, 0, 0xff);
    assert_int_equal(in(&f, 5) & 0x03, 0x03); /* overrun */
    assert_int_equal(in(&f, 5) & 0x03, 0x01);
    for (int i = 0; i < SERIAL_FIFO; i++)
        assert_int_equal(in(&f, 0), i);
    assert_int_equal(f.length, 0);
    stop(&f);
}

static void status_interrupts(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    out(&f, 2, 0xc1);
    out(&f, 1, 0x0f);
    in(&f, 2); /* acknowledges the transmitter */
    assert_false(f.irq.level);
    assert_true(serial_break(f.serial));
    assert_int_equal(in(&f, 2), 0xc6);
    assert_int_equal(in(&f, 5), 0xf1); /* data, break, error in FIFO */
    assert_int_equal(in(&f, 5), 0x61);
    assert_int_equal(in(&f, 0), 0);
    assert_false(f.irq.level);
    out(&f, 4, 0x10);
    assert_int_equal(in(&f, 2), 0xc0);
    in(&f, 6);
    assert_int_equal(in(&f, 2), 0xc1);
    stop(&f);
}

static void divisor_and_scratch(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    out(&f, 7, 0xa5);
    out(&f, 1, 0x05);
    out(&f, 3, 0x83);
    out(&f, 0, 0x0c);
    out(&f, 1, 0x34);
    assert_int_equal(in(&f, 0), 0x0c);
    assert_int_equal(in(&f, 1), 0x34);
    out(&f, 3, 0x03);
    assert_int_equal(in(&f, 1), 0x05);
    assert_int_equal(in(&f, 3), 0x03);
    assert_int_equal(in(&f, 7), 0xa5);
    assert_int_equal(f.length, 0);
    out(&f, 1, 0xff);
    assert_int_equal(in(&f, 1), 0x0f);
    out(&f, 4, 0xff);
    assert_int_equal(in(&f, 4), 0x1f);
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(output_comes_by_line_and_after_a_while),
        cmocka_unit_test(transmitter_interrupt_is_acknowledged_by_iir),
        cmocka_unit_test(receive_without_fifo),
        cmocka_unit_test(fifo_triggers_and_times_out),
        cmocka_unit_test(nothing_is_lost_for_want_of_room),
        cmocka_unit_test(input_waits_until_the_guest_listens),
        cmocka_unit_test(loopback_returns_bytes_and_modem_lines),
        cmocka_unit_test(status_interrupts),
        cmocka_unit_test(divisor_and_scratch),
    };
    return cmocka_run_group_tests_name("serial", tests, NULL, NULL);
}
