#include "chip/power.h"

#include "chip/chip_test.h"
#include "chip/debug.h"
#include "chip/i8042.h"
#include "chip/port92.h"

struct fixture {
    struct timers *timers;
    struct power *power;
    struct line sci;
    int offs, resets;
    int opens; /* A20 open calls minus close calls */
    uint32_t exit_value;
    char console[16];
    size_t length;
};

static void off(void *opaque)
{
    ((struct fixture *)opaque)->offs++;
}

static void reset(void *opaque)
{
    ((struct fixture *)opaque)->resets++;
}

static void a20(void *opaque, bool open)
{
    ((struct fixture *)opaque)->opens += open ? 1 : -1;
}

static void start(struct fixture *f)
{
    *f = (struct fixture){.timers = timers_new()};
    f->power = power_new(&(struct power_config){.timers = f->timers,
                                                .s5_type = POWER_S5_TYPE,
                                                .sci = {line_set, &f->sci, 9},
                                                .power_off = off,
                                                .reset = reset,
                                                .opaque = f});
    assert_non_null(f->power);
}

static void stop(struct fixture *f)
{
    timers_free(f->timers);
    power_free(f->power);
}

static uint32_t get(struct fixture *f, unsigned reg, unsigned size)
{
    return (uint32_t)power_ops.read(f->power, reg, size) & (uint32_t)((1ull << 8 * size) - 1);
}

static void set(struct fixture *f, unsigned reg, unsigned size, uint32_t value)
{
    power_ops.write(f->power, reg, size, value);
}

static void power_button_raises_sci(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    assert_int_equal(get(&f, POWER_PM1_CONTROL, 2) & 1, 1);
    assert_false(power_button(f.power));
    assert_false(f.sci.level);
    assert_int_equal(get(&f, POWER_PM1_EVENT, 2), 0x100);
    set(&f, POWER_PM1_EVENT + 2, 2, 0x100);
    assert_true(f.sci.level);
    set(&f, POWER_PM1_EVENT, 2, 0x100);
    assert_false(f.sci.level);
    assert_int_equal(get(&f, POWER_PM1_EVENT, 4), 0x01000000);
    assert_true(power_button(f.power));
    assert_true(f.sci.level);
    /* Without ACPI mode there is no SCI. */
    set(&f, POWER_SMI_COMMAND, 1, POWER_ACPI_DISABLE);
    assert_false(f.sci.level);
    set(&f, POWER_SMI_COMMAND, 1, POWER_ACPI_ENABLE);
    assert_true(f.sci.level);
    stop(&f);
}

static void soft_off_is_type_5_with_enable(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    set(&f, POWER_PM1_CONTROL, 2, POWER_S5_TYPE << 10 | 1);
    assert_int_equal(f.offs, 0);
    set(&f, POWER_PM1_CONTROL, 2, 1 << 13 | 3 << 10);
    assert_int_equal(f.offs, 0);
    assert_int_equal(get(&f, POWER_PM1_CONTROL, 2), 3 << 10 | 1); /* SLP_EN reads 0, SCI_EN stays */
    set(&f, POWER_PM1_CONTROL, 2, 1 << 13 | POWER_S5_TYPE << 10);
    assert_int_equal(f.offs, 1);
    set(&f, POWER_PM1_CONTROL + 1, 1, 0x20 | POWER_S5_TYPE << 2);
    assert_int_equal(f.offs, 2);
    stop(&f);
}

static void timer_runs_at_its_rate_and_carries(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    clock_run(f.timers, NSEC_PER_SEC);
    assert_int_equal(get(&f, POWER_TIMER, 4), POWER_TIMER_HZ);
    set(&f, POWER_PM1_EVENT + 2, 2, 1);
    uint64_t half = (uint64_t)((unsigned __int128)(1ull << 31) * NSEC_PER_SEC / POWER_TIMER_HZ);
    clock_run(f.timers, half - MSEC);
    assert_false(f.sci.level);
    clock_run(f.timers, half + MSEC);
    assert_true(f.sci.level);
    assert_int_equal(get(&f, POWER_PM1_EVENT, 2), 1);
    set(&f, POWER_PM1_EVENT, 2, 1);
    assert_false(f.sci.level);
    clock_run(f.timers, 2 * half + MSEC);
    assert_int_equal(f.sci.rises, 2);
    assert_in_range(get(&f, POWER_TIMER, 4), 3000, 4000); /* wrapped a millisecond ago */
    stop(&f);
}

static void general_purpose_events(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    set(&f, POWER_GPE0 + 2, 2, 1 << 9);
    power_gpe(f.power, 3);
    assert_false(f.sci.level);
    power_gpe(f.power, 9);
    assert_true(f.sci.level);
    assert_int_equal(get(&f, POWER_GPE0, 4), 0x02000208);
    set(&f, POWER_GPE0 + 1, 1, 0x02);
    assert_false(f.sci.level);
    assert_int_equal(get(&f, POWER_GPE0, 2), 1 << 3);
    stop(&f);
}

static void reset_register(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    power_reset_write(f.power, 0x02);
    assert_int_equal(f.resets, 0);
    assert_int_equal(power_reset_read(f.power), 0x02);
    power_reset_write(f.power, 0x06);
    assert_int_equal(f.resets, 1);
    set(&f, POWER_RESET, 1, 0x0e);
    assert_int_equal(f.resets, 2);
    assert_int_equal(power_reset_read(f.power) & 4, 0);
    stop(&f);
}

/* --- the small ones --- */

static struct i8042 *i8042_start(struct fixture *f, struct line *irq)
{
    *f = (struct fixture){0};
    *irq = (struct line){0};
    struct i8042 *i8042 = i8042_new(&(struct i8042_config){
        .keyboard_irq = {line_set, irq, 1}, .reset = reset, .a20 = a20, .opaque = f});
    assert_non_null(i8042);
    return i8042;
}

static void command(struct i8042 *i8042, uint8_t value)
{
    out8(&i8042_command_ops, i8042, 0, value);
}

static uint8_t status(struct i8042 *i8042)
{
    return in8(&i8042_command_ops, i8042, 0);
}

static uint8_t data(struct i8042 *i8042)
{
    return in8(&i8042_data_ops, i8042, 0);
}

static void keyboard_controller_answers_a_probe(void **state)
{
    (void)state;
    struct fixture f;
    struct line irq;
    struct i8042 *i8042 = i8042_start(&f, &irq);
    assert_int_equal(status(i8042), 0x14); /* empty, system flag, not locked */
    command(i8042, 0x20);
    assert_int_equal(status(i8042) & 0x21, 0x01);
    uint8_t mode = data(i8042);
    assert_int_equal(status(i8042) & 0x01, 0);
    assert_true(mode & 0x40);
    command(i8042, 0x60);
    out8(&i8042_data_ops, i8042, 0, mode | 0x10);
    command(i8042, 0x20);
    assert_int_equal(data(i8042), mode | 0x10);
    command(i8042, 0xaa);
    assert_int_equal(data(i8042), 0x55);
    command(i8042, 0xab);
    assert_int_equal(data(i8042), 0x00);
    /* The aux loop is answered, not as aux; the aux test then names a fault. */
    command(i8042, 0xd3);
    out8(&i8042_data_ops, i8042, 0, 0x5a);
    assert_int_equal(status(i8042) & 0x21, 0x01);
    command(i8042, 0xa9);
    assert_int_equal(data(i8042), 0x01);
    assert_int_equal(status(i8042) & 0x01, 0);
    assert_int_equal(irq.rises, 0);
    i8042_free(i8042);
}

static void an_absent_keyboard_times_out_at_once(void **state)
{
    (void)state;
    struct fixture f;
    struct line irq;
    struct i8042 *i8042 = i8042_start(&f, &irq);
    command(i8042, 0x60);
    out8(&i8042_data_ops, i8042, 0, 0x45);
    out8(&i8042_data_ops, i8042, 0, 0xf2);
    assert_true(irq.level);
    assert_int_equal(status(i8042) & 0x61, 0x41);
    assert_int_equal(data(i8042), 0xfe);
    assert_false(irq.level);
    command(i8042, 0xd4);
    out8(&i8042_data_ops, i8042, 0, 0xf2);
    assert_int_equal(status(i8042) & 0x61, 0x61);
    assert_int_equal(irq.rises, 1);
    i8042_free(i8042);
}

static void keyboard_controller_resets_and_gates(void **state)
{
    (void)state;
    struct fixture f;
    struct line irq;
    struct i8042 *i8042 = i8042_start(&f, &irq);
    command(i8042, 0xff);
    assert_int_equal(f.resets, 0);
    command(i8042, 0xfe);
    assert_int_equal(f.resets, 1);
    command(i8042, 0xd0);
    assert_int_equal(data(i8042) & 3, 3);
    command(i8042, 0xd1);
    out8(&i8042_data_ops, i8042, 0, 0xdd);
    assert_int_equal(f.opens, -1);
    command(i8042, 0xd0);
    assert_int_equal(data(i8042) & 3, 1);
    command(i8042, 0xdf);
    assert_int_equal(f.opens, 0);
    command(i8042, 0xd1);
    out8(&i8042_data_ops, i8042, 0, 0x02);
    assert_int_equal(f.resets, 2);
    i8042_free(i8042);
}

static void port_92_gates_and_resets_on_the_edge(void **state)
{
    (void)state;
    struct fixture f = {0};
    struct port92 *port92 =
        port92_new(&(struct port92_config){.reset = reset, .a20 = a20, .opaque = &f});
    assert_int_equal(in8(&port92_ops, port92, 0), 0x02);
    out8(&port92_ops, port92, 0, 0x00);
    assert_int_equal(f.opens, -1);
    out8(&port92_ops, port92, 0, 0x02);
    assert_int_equal(f.opens, 0);
    out8(&port92_ops, port92, 0, 0x03);
    assert_int_equal(f.resets, 1);
    out8(&port92_ops, port92, 0, 0x03);
    assert_int_equal(f.resets, 1);
    port92_free(port92);
}

static void leave(void *opaque, uint32_t value)
{
    ((struct fixture *)opaque)->exit_value = value;
}

static void print(void *opaque, const uint8_t *bytes, size_t count)
{
    struct fixture *f = opaque;
    for (size_t i = 0; i < count && f->length < sizeof f->console - 1; i++)
        f->console[f->length++] = (char)bytes[i];
}

static void debug_ports(void **state)
{
    (void)state;
    struct fixture f = {0};
    struct debug *debug =
        debug_new(&(struct debug_config){.exit = leave, .console = print, .opaque = &f});
    debug_exit_ops.write(debug, 0, 4, 0x31);
    assert_int_equal(f.exit_value, 0x31);
    assert_int_equal(debug_exit_status(0x31), 0x63);
    assert_int_equal(debug_exit_status(0), 1);
    out8(&debug_post_ops, debug, 0, 0x42);
    assert_int_equal(in8(&debug_post_ops, debug, 0), 0x42);
    assert_int_equal(in8(&debug_console_ops, debug, 0), 0xe9);
    out8(&debug_console_ops, debug, 0, 'o');
    out8(&debug_console_ops, debug, 0, 'k');
    assert_string_equal(f.console, "ok");
    debug_free(debug);
    debug = debug_new(&(struct debug_config){0});
    debug_exit_ops.write(debug, 0, 1, 1);
    out8(&debug_console_ops, debug, 0, 'x');
    assert_int_equal(in8(&debug_console_ops, debug, 0), 0xff);
    debug_free(debug);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_button_raises_sci),
        cmocka_unit_test(soft_off_is_type_5_with_enable),
        cmocka_unit_test(timer_runs_at_its_rate_and_carries),
        cmocka_unit_test(general_purpose_events),
        cmocka_unit_test(reset_register),
        cmocka_unit_test(keyboard_controller_answers_a_probe),
        cmocka_unit_test(an_absent_keyboard_times_out_at_once),
        cmocka_unit_test(keyboard_controller_resets_and_gates),
        cmocka_unit_test(port_92_gates_and_resets_on_the_edge),
        cmocka_unit_test(debug_ports),
    };
    return cmocka_run_group_tests_name("power", tests, NULL, NULL);
}
