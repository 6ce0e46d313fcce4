// needs: base chip chip/state
/*
 * Random register accesses to every chip of src/chip, wired as on a board, on a clock that the
 * input moves. Beside what the sanitizers find it checks what must hold after any history:
 * apic_accept() returns what apic_poll() announced, a saved APIC page loads again to the same
 * page, serial_receive() takes no more than it was offered, and whatever state a chip takes, it
 * goes on with it and saves as much again.
 */
#include "base/bytes.h"
#include "base/record.h"
#include "chip/apic.h"
#include "chip/debug.h"
#include "chip/i8042.h"
#include "chip/ioapic.h"
#include "chip/pic.h"
#include "chip/pit.h"
#include "chip/port92.h"
#include "chip/power.h"
#include "chip/rtc.h"
#include "chip/serial.h"

#include <assert.h>
#include <semaphore.h>
#include <stdlib.h>

enum { VCPUS = 4, STEPS_MAX = 2000 };

struct board {
    struct timers *timers;
    struct apic *apic;
    struct ioapic *ioapic;
    struct pic *pic;
    struct pit *pit;
    struct rtc *rtc;
    struct serial *serial;
    struct i8042 *i8042;
    struct power *power;
    struct debug *debug;
    struct port92 *port92;
    struct timer stop;
    sem_t stopped;
};

struct input {
    const uint8_t *data;
    size_t size;
};

static uint64_t take(struct input *input, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && input->size; i++, input->size--)
        value = value << 8 | *input->data++;
    return value;
}

static void irq(void *opaque, unsigned number, bool level)
{
    struct board *board = opaque;
    pic_line(board->pic, number, level);
    ioapic_line(board->ioapic, number ? number : 2, level);
}

static uint64_t tsc(void *opaque, unsigned vcpu)
{
    struct board *board = opaque;
    return timers_now(board->timers) * 3;
}

static void notify(void *opaque, unsigned vcpu)
{
    assert(vcpu < VCPUS);
}

static void signal_vcpu(void *opaque, unsigned vcpu, enum apic_signal signal, uint8_t vector)
{
    assert(vcpu < VCPUS && signal <= APIC_SIGNAL_SIPI);
}

static void eoi(void *opaque, uint8_t vector)
{
    struct board *board = opaque;
    ioapic_eoi(board->ioapic, vector);
}

static bool deliver(void *opaque, uint64_t address, uint32_t data)
{
    struct board *board = opaque;
    return apic_message(board->apic, address, data);
}

static void lint0(void *opaque, unsigned vcpu, bool level)
{
    struct board *board = opaque;
    if (board->apic) /* not yet made while the PIC is */
        apic_lint0(board->apic, vcpu, level);
}

static void sink(void *opaque, const uint8_t *bytes, size_t count)
{
    assert(count > 0 && count <= SERIAL_BATCH);
}

static void room(void *opaque)
{
    struct board *board = opaque;
    assert(serial_receive(board->serial, (const uint8_t *)"fed", 3) <= 3);
}

static void stop_due(void *opaque)
{
    struct board *board = opaque;
    timers_pause(board->timers);
    sem_post(&board->stopped);
}

static void run_until(struct board *board, uint64_t until)
{
    timers_set_now(board->timers, until);
    timer_arm(&board->stop, until);
    timers_resume(board->timers);
    sem_wait(&board->stopped);
    timers_set_now(board->timers, until);
}

static void board_make(struct board *board)
{
    *board = (struct board){.timers = timers_new()};
    timers_pause(board->timers);
    timers_set_now(board->timers, 0);
    sem_init(&board->stopped, 0, 0);
    timer_init(&board->stop, board->timers, stop_due, board);
    board->pic = pic_new(&(struct pic_config){.output = {lint0, board, 0}});
    board->apic = apic_new(&(struct apic_config){.vcpus = VCPUS,
                                                 .timers = board->timers,
                                                 .tsc = tsc,
                                                 .tsc_khz = 3000000,
                                                 .notify = notify,
                                                 .signal = signal_vcpu,
                                                 .eoi = eoi,
                                                 .opaque = board,
                                                 .pic_poll = pic_poll,
                                                 .pic_accept = pic_accept,
                                                 .pic = board->pic});
    board->ioapic = ioapic_new(&(struct ioapic_config){.deliver = deliver, .opaque = board});
    board->pit = pit_new(&(struct pit_config){.timers = board->timers, .irq = {irq, board, 0}});
    board->rtc = rtc_new(&(struct rtc_config){.timers = board->timers, .irq = {irq, board, 8}});
    board->serial = serial_new(&(struct serial_config){.timers = board->timers,
                                                       .irq = {irq, board, 4},
                                                       .output = sink,
                                                       .room = room,
                                                       .opaque = board});
    board->i8042 = i8042_new(&(struct i8042_config){.keyboard_irq = {irq, board, 1}});
    board->power =
        power_new(&(struct power_config){.timers = board->timers, .sci = {irq, board, 9}});
    board->debug = debug_new(&(struct debug_config){.console = sink});
    board->port92 = port92_new(&(struct port92_config){0});
}

static void board_free(struct board *board)
{
    timers_free(board->timers);
    pit_free(board->pit);
    rtc_free(board->rtc);
    serial_free(board->serial);
    i8042_free(board->i8042);
    power_free(board->power);
    debug_free(board->debug);
    port92_free(board->port92);
    ioapic_free(board->ioapic);
    apic_free(board->apic);
    pic_free(board->pic);
    sem_destroy(&board->stopped);
}

static void access_ports(struct board *board, struct input *input, bool write)
{
    struct {
        const struct bus_ops *ops;
        void *device;
        unsigned ports, widest;
    } claims[] = {
        {&pic_master_ops, board->pic, 2, 2},
        {&pic_slave_ops, board->pic, 2, 2},
        {&pic_elcr_ops, board->pic, 2, 2},
        {&pit_ops, board->pit, PIT_PORTS, 4},
        {&pit_speaker_ops, board->pit, 1, 1},
        {&rtc_ops, board->rtc, RTC_PORTS, 2},
        {&serial_ops, board->serial, SERIAL_PORTS, 4},
        {&i8042_data_ops, board->i8042, 1, 1},
        {&i8042_command_ops, board->i8042, 1, 1},
        {&power_ops, board->power, POWER_PORTS, 4},
        {&debug_exit_ops, board->debug, 4, 4},
        {&debug_post_ops, board->debug, 1, 1},
        {&debug_console_ops, board->debug, 1, 1},
        {&port92_ops, board->port92, 1, 1},
        {&ioapic_ops, board->ioapic, IOAPIC_SIZE, 8},
    };
    unsigned which = (unsigned)take(input, 1) % ARRAY_LEN(claims);
    unsigned size = min(1u << take(input, 1) % 4, claims[which].widest);
    uint64_t offset = take(input, 1);
    if (claims[which].device == board->ioapic)
        offset = offset % 8 * 16;
    offset %= claims[which].ports - size + 1;
    if (write)
        claims[which].ops->write(claims[which].device, offset, size, take(input, size));
    else
        claims[which].ops->read(claims[which].device, offset, size);
}

static void access_apic(struct board *board, struct input *input, bool write)
{
    unsigned vcpu = (unsigned)take(input, 1) % VCPUS, reg = (unsigned)take(input, 1);
    uint64_t value;
    if (reg < 0x40) {
        uint64_t gpa = APIC_ADDRESS + reg * 16;
        if (write)
            apic_mmio_write(board->apic, vcpu, gpa, 4, take(input, 4));
        else
            apic_mmio_read(board->apic, vcpu, gpa, 4, &value);
    } else if (reg < 0x80) {
        if (write)
            apic_msr_write(board->apic, vcpu, 0x800 + reg - 0x40, take(input, 5));
        else
            apic_msr_read(board->apic, vcpu, 0x800 + reg - 0x40, &value);
    } else if (reg < 0xa0) {
        /* EN and EXTD from the input; the base stays where the accesses above go. */
        apic_msr_write(board->apic, vcpu, 0x1b, APIC_ADDRESS | (reg & 3) << 10);
    } else if (reg < 0xc0) {
        apic_msr_write(board->apic, vcpu, 0x6e0, tsc(board, vcpu) + take(input, 3) - 1000);
    } else if (reg < 0xd0) {
        apic_cr8_write(board->apic, vcpu, reg & 0xf);
        assert(apic_cr8_read(board->apic, vcpu) == (reg & 0xf));
    } else if (reg == 0xd0) {
        apic_init(board->apic, vcpu);
    } else {
        int announced = apic_poll(board->apic, vcpu);
        int taken = apic_accept(board->apic, vcpu);
        assert(announced == taken);
    }
}

static void check_page(struct board *board, unsigned vcpu)
{
    uint8_t page[APIC_PAGE_SIZE], again[APIC_PAGE_SIZE];
    uint64_t base;
    apic_save(board->apic, vcpu, page);
    assert(apic_msr_read(board->apic, vcpu, 0x1b, &base));
    assert(apic_base_restore(board->apic, vcpu, base));
    assert(apic_load(board->apic, vcpu, page));
    apic_save(board->apic, vcpu, again);
    assert(memcmp(page, again, sizeof page) == 0);
}

/* As in a snapshot that somebody has changed. False where the chip will not have it: the machine
 * would end here. */
static bool change_state(struct board *board, struct input *input)
{
    struct {
        const struct device_ops *ops;
        void *chip;
    } chips[] = {
        {&pic_device, board->pic},       {&pit_device, board->pit},
        {&rtc_device, board->rtc},       {&serial_device, board->serial},
        {&i8042_device, board->i8042},   {&power_device, board->power},
        {&port92_device, board->port92}, {&debug_device, board->debug},
        {&ioapic_device, board->ioapic},
    };
    unsigned which = (unsigned)take(input, 1) % ARRAY_LEN(chips);
    const struct device_ops *ops = chips[which].ops;
    struct record saved, loaded, again;
    record_save(&saved, ops->state_version);
    ops->state(chips[which].chip, &saved);
    assert(record_ended(&saved));
    for (unsigned changes = 1 + (unsigned)take(input, 1) % 16; changes && saved.size; changes--)
        saved.bytes[take(input, 1) % saved.size] = (uint8_t)take(input, 1);
    record_load(&loaded, saved.bytes, saved.size, ops->state_version);
    ops->state(chips[which].chip, &loaded);
    bool taken = record_ended(&loaded);
    if (taken) {
        record_save(&again, ops->state_version);
        ops->state(chips[which].chip, &again);
        assert(record_ended(&again) && again.size == saved.size);
        record_free(&again);
    }
    record_free(&saved);
    return taken;
}

/* False: the machine has ended. */
static bool step(struct board *board, struct input *input, uint64_t *now)
{
    uint8_t what = (uint8_t)take(input, 1);
    uint8_t bytes[20] = "twenty bytes of text";
    size_t count;
    switch (what % 16) {
    case 0 ... 4: access_ports(board, input, true); break;
    case 5 ... 6: access_ports(board, input, false); break;
    case 7 ... 9: access_apic(board, input, true); break;
    case 10: access_apic(board, input, false); break;
    case 11: irq(board, (unsigned)take(input, 1) % IOAPIC_PINS, what & 0x80); break;
    case 12: apic_msi(board->apic, APIC_ADDRESS | take(input, 3), (uint32_t)take(input, 2)); break;
    case 13:
        *now += take(input, 1 + what / 64);
        if (what & 0x10)
            run_until(board, *now);
        else
            timers_set_now(board->timers, *now);
        break;
    case 14:
        count = take(input, 1) % (sizeof bytes + 1);
        assert(serial_receive(board->serial, bytes, count) <= count);
        if (what & 0x80)
            power_button(board->power);
        break;
    case 15:
        if (what & 0x80)
            return change_state(board, input);
        check_page(board, what / 16 % VCPUS);
        break;
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct board board;
    struct input input = {data, size};
    uint64_t now = 0;
    board_make(&board);
    for (unsigned i = 0; i < STEPS_MAX && input.size && step(&board, &input, &now); i++)
        ;
    board_free(&board);
    return 0;
}
