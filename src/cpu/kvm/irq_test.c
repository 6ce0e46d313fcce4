#include "cpu/kvm/guest_test.h"

#include <poll.h>
#include <sys/eventfd.h>

/* Real mode, interrupts on, sleeping; each handler of the vector table says its vector on port
 * 0x520 and returns. Vectors are set up by handlers(). */
PROGRAM16(sleeper, "sti\n 1: hlt\n jmp 1b")

/* The first PIC at vectors 0x20.., all of its inputs open, then sleep. */
PROGRAM16(pic_sleeper, "mov $0x11, %al\n out %al, $0x20\n mov $0x20, %al\n out %al, $0x21\n"
                       "mov $4, %al\n out %al, $0x21\n mov $1, %al\n out %al, $0x21\n"
                       "xor %al, %al\n out %al, $0x21\n"
                       "mov $0x520, %dx\n mov $0xaa, %al\n out %al, %dx\n"
                       "sti\n 1: hlt\n jmp 1b")

/* PIT channel 0 at 1 kHz, PIC as above. */
PROGRAM16(pit_sleeper, "mov $0x11, %al\n out %al, $0x20\n mov $0x20, %al\n out %al, $0x21\n"
                       "mov $4, %al\n out %al, $0x21\n mov $1, %al\n out %al, $0x21\n"
                       "mov $0xfe, %al\n out %al, $0x21\n"
                       "mov $0x34, %al\n out %al, $0x43\n mov $0xa9, %al\n out %al, $0x40\n"
                       "mov $4, %al\n out %al, $0x40\n"
                       "sti\n 1: hlt\n jmp 1b")

/* x2APIC: INIT and SIPI (page 3) to APIC ID 1. */
PROGRAM16(start_other, "mov $0x830, %ecx\n mov $1, %edx\n mov $0x4500, %eax\n wrmsr\n"
                       "mov $0x4603, %eax\n wrmsr\n 1: hlt\n jmp 1b")
PROGRAM16(other, "mov $0x521, %dx\n mov %cs, %ax\n out %ax, %dx\n 1: hlt\n jmp 1b")

PROGRAM16(notify,
          "mov $0xd000, %ax\n mov %ax, %ds\n movl $5, 0x10\n movl $6, 0x14\n movl $7, 0x10\n"
          "mov $0x520, %dx\n out %al, %dx\n 1: hlt\n jmp 1b")

enum { HANDLERS_AT = 0x3000, APIC_SVR = 0xf0, MSI_ADDRESS = 0xfee00000 };

/* push ax, dx; mov dx, 0x520; mov al, VECTOR; out dx, al; EOI to PIC and (x2APIC) to APIC */
static void handlers(struct guest *guest)
{
    for (unsigned vector = 0; vector < 256; vector++) {
        const uint8_t code[] = {0x50, 0x52, 0xba, 0x20, 0x05, 0xb0, (uint8_t)vector, 0xee,
                                /* mov al, 0x20; out 0x20, al */
                                0xb0, 0x20, 0xe6, 0x20,
                                /* mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr */
                                0x66, 0xb9, 0x0b, 0x08, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2,
                                0x0f, 0x30,
                                /* pop dx, ax; iret */
                                0x5a, 0x58, 0xcf};
        uint16_t at = (uint16_t)(HANDLERS_AT + 32 * vector);
        _Static_assert(sizeof code <= 32, "handlers are 32 bytes apart");
        memcpy(mem_at(guest->mem, at, sizeof code, true), code, sizeof code);
        le32_write(mem_at(guest->mem, 4 * vector, 4, true), at);
    }
}

static void apic_on(struct cpu_state *state)
{
    state->msr[CPU_MSR_APIC_BASE] |= 1 << 10;
    le32_write(state->apic + 0x20, 0);
    le32_write(state->apic + APIC_SVR, 0x1ff);
}

/* One vCPU, asleep in `program` on a thread of its own. */
static void sleep_in(struct guest *guest, struct runner *runner, const uint8_t *begin,
                     const uint8_t *end, bool pic)
{
    struct cpu_state state;
    guest_make(guest, ENGINE_IRQCHIP_ENGINE, 1);
    guest_load(guest, begin, end);
    handlers(guest);
    real_mode(&state);
    apic_on(&state);
    if (pic)
        le32_write(state.apic + 0x350, 0x700); /* LINT0: ExtINT */
    guest_set(guest, 0, &state);
    runner_start(runner, guest, 0);
}
#define SLEEP_IN(guest, runner, name, pic)                                                         \
    sleep_in(guest, runner, guest_##name, guest_##name##_end, pic)

static void wake_up(struct guest *guest, struct runner *runner)
{
    runner_stop(runner);
    assert_int_equal(runner->exit.reason, ENGINE_EXIT_KICK);
    guest_end(guest);
}

static void a_message_wakes_and_interrupts(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    SLEEP_IN(&guest, &runner, sleeper, false);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(engine_kvm.msi(guest.vm, MSI_ADDRESS, 0x41 + i), 0);
        assert_true(guest_wait(&guest, i + 1));
        assert_int_equal(guest.log[i].value, 0x41 + i);
    }
    assert_false(runner.ended);
    wake_up(&guest, &runner);
}

static void a_line_goes_through_the_pic(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    SLEEP_IN(&guest, &runner, pic_sleeper, true);
    assert_true(guest_wait(&guest, 1));
    assert_int_equal(guest.log[0].value, 0xaa);
    for (unsigned i = 1; i <= 3; i++) { /* an edge each */
        assert_int_equal(engine_kvm.irq_line(guest.vm, 4, true) < 0, 0);
        assert_true(guest_wait(&guest, i + 1));
        assert_int_equal(guest.log[i].value, 0x24);
        assert_int_equal(engine_kvm.irq_line(guest.vm, 4, false) < 0, 0);
    }
    assert_int_equal(engine_kvm.irq_line(guest.vm, GSI_LINES, true), -EINVAL);
    wake_up(&guest, &runner);
}

static void the_interval_timer_ticks(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    SLEEP_IN(&guest, &runner, pit_sleeper, true);
    assert_true(guest_wait(&guest, 5));
    assert_int_equal(guest.log[4].value, 0x20);
    wake_up(&guest, &runner);
}

static void set_redirection(struct guest *guest, unsigned pin, uint64_t entry)
{
    struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
    assert_int_equal(kvm_ioctl(guest->vm->fd, KVM_GET_IRQCHIP, &chip), 0);
    chip.chip.ioapic.redirtbl[pin].bits = entry;
    assert_int_equal(kvm_ioctl(guest->vm->fd, KVM_SET_IRQCHIP, &chip), 0);
}

static void a_line_goes_through_the_ioapic(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    SLEEP_IN(&guest, &runner, sleeper, false);
    set_redirection(&guest, 20, 0x61);
    set_redirection(&guest, 2, 0x62);
    engine_kvm.irq_line(guest.vm, 20, true);
    assert_true(guest_wait(&guest, 1));
    assert_int_equal(guest.log[0].value, 0x61);
    engine_kvm.irq_line(guest.vm, 20, false);
    engine_kvm.irq_line(guest.vm, 0, true); /* ISA 0 arrives at pin 2 */
    assert_true(guest_wait(&guest, 2));
    assert_int_equal(guest.log[1].value, 0x62);
    wake_up(&guest, &runner);
}

static void fire(int fd)
{
    uint64_t one = 1;
    assert_int_equal(write(fd, &one, sizeof one), sizeof one);
}

static void an_event_descriptor_sends_its_message(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    struct err err = {0};
    SLEEP_IN(&guest, &runner, sleeper, false);
    set_redirection(&guest, 20, 0x61);
    int a = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), b = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(engine_kvm.irq_fd(guest.vm, a, 0, MSI_ADDRESS, 0x51, true, &err), 0);
    assert_int_equal(engine_kvm.irq_fd(guest.vm, b, 1023, MSI_ADDRESS, 0x52, true, &err), 0);
    assert_int_equal(engine_kvm.irq_fd(guest.vm, b, 1024, MSI_ADDRESS, 0x52, true, &err), -EINVAL);
    fire(a);
    assert_true(guest_wait(&guest, 1));
    assert_int_equal(guest.log[0].value, 0x51);
    fire(b);
    assert_true(guest_wait(&guest, 2));
    assert_int_equal(guest.log[1].value, 0x52);
    /* The same slot again: another message, same descriptor. */
    assert_int_equal(engine_kvm.irq_fd(guest.vm, a, 0, MSI_ADDRESS, 0x53, true, &err), 0);
    fire(a);
    assert_true(guest_wait(&guest, 3));
    assert_int_equal(guest.log[2].value, 0x53);
    /* Another descriptor takes the slot over. */
    assert_int_equal(engine_kvm.irq_fd(guest.vm, b, 1023, 0, 0, false, &err), 0);
    assert_int_equal(engine_kvm.irq_fd(guest.vm, b, 0, MSI_ADDRESS, 0x54, true, &err), 0);
    fire(a);
    fire(b);
    assert_true(guest_wait(&guest, 4));
    assert_int_equal(guest.log[3].value, 0x54);
    /* Lines still work beside the messages, and a released slot is silent. */
    assert_int_equal(engine_kvm.irq_fd(guest.vm, b, 0, 0, 0, false, &err), 0);
    assert_int_equal(engine_kvm.irq_fd(guest.vm, b, 0, 0, 0, false, &err), 0);
    fire(b);
    engine_kvm.irq_line(guest.vm, 20, true);
    assert_true(guest_wait(&guest, 5));
    assert_int_equal(guest.log[4].value, 0x61);
    nap_ms(10);
    assert_int_equal(guest.count, 5);
    wake_up(&guest, &runner);
    close(a);
    close(b);
}

static void a_notification_does_not_leave_the_kernel(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    struct runner runner;
    struct err err = {0};
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 1);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(engine_kvm.io_fd(guest.vm, fd, MMIO_AT + 0x10, 4, true, &err), 0);
    assert_true(engine_kvm.io_fd(guest.vm, fd, MMIO_AT + 0x10, 4, true, &err) < 0);
    assert_int_equal(engine_kvm.io_fd(guest.vm, fd, MMIO_AT, 3, true, &err), -EINVAL);
    GUEST_LOAD(&guest, notify);
    real_mode(&state);
    guest_set(&guest, 0, &state);
    runner_start(&runner, &guest, 0);
    assert_true(guest_wait(&guest, 2));
    assert_int_equal(guest.log[0].kind, MMIO_WRITE);
    assert_int_equal(guest.log[0].address, MMIO_AT + 0x14);
    assert_int_equal(guest.log[1].address, 0x520);
    uint64_t fired = 0;
    assert_int_equal(read(fd, &fired, sizeof fired), sizeof fired);
    assert_int_equal(fired, 2);
    runner_stop(&runner);
    /* Taken away, the same writes are the board's. */
    assert_int_equal(engine_kvm.io_fd(guest.vm, fd, MMIO_AT + 0x10, 4, false, &err), 0);
    guest.count = 0;
    guest_set(&guest, 0, &state);
    runner_start(&runner, &guest, 0);
    assert_true(guest_wait(&guest, 4));
    assert_int_equal(guest.log[0].address, MMIO_AT + 0x10);
    assert_int_equal(guest.log[0].value, 5);
    assert_int_equal(guest.log[2].value, 7);
    runner_stop(&runner);
    close(fd);
    guest_end(&guest);
}

static void a_second_processor_starts(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    struct runner first, second;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 2);
    GUEST_LOAD(&guest, start_other);
    memcpy(mem_at(guest.mem, 0x3000, 64, true), guest_other,
           (size_t)(guest_other_end - guest_other));
    /* Once as KVM makes it, once as the canonical reset state makes it. */
    for (int reset = 0; reset < 2; reset++) {
        guest.count = 0;
        if (reset) {
            cpu_state_reset(&state, 1);
            state.msr[CPU_MSR_APIC_BASE] |= 1 << 10;
            le32_write(state.apic + 0x20, 1);
            le32_write(state.apic + APIC_SVR, 0x1ff);
            guest_set(&guest, 1, &state);
        }
        real_mode(&state);
        apic_on(&state);
        guest_set(&guest, 0, &state);
        runner_start(&second, &guest, 1);
        nap_ms(reset ? 0 : 10); /* asleep already, or about to be */
        assert_false(second.ended);
        runner_start(&first, &guest, 0);
        assert_true(guest_wait(&guest, 1));
        assert_int_equal(guest.log[0].vcpu, 1);
        assert_int_equal(guest.log[0].address, 0x521);
        assert_int_equal(guest.log[0].value, 0x300);
        runner_stop(&first);
        runner_stop(&second);
        guest_get(&guest, 1, &state);
        assert_int_equal(state.segment[CPU_CS].base, 0x3000);
    }
    guest_end(&guest);
}

static void a_kick_wakes_who_waits(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 2);
    for (int i = 0; i < 10; i++) {
        runner_start(&runner, &guest, 1); /* waits for SIPI */
        nap_ms(i % 2 ? 2 : 0);
        runner_stop(&runner);
        assert_int_equal(runner.exit.reason, ENGINE_EXIT_KICK);
    }
    struct cpu_state state;
    guest_get(&guest, 1, &state);
    assert_int_equal(state.run_state, CPU_WAIT_FOR_SIPI);
    guest_end(&guest);
}

static void an_nmi_wakes_a_sleeper(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    SLEEP_IN(&guest, &runner, sleeper, false);
    for (unsigned i = 0; i < 3; i++) {
        nap_ms(2);
        engine_kvm.vcpu_signal(guest.vcpu[0], ENGINE_SIGNAL_NMI, 0);
        assert_true(guest_wait(&guest, i + 1));
        assert_int_equal(guest.log[i].value, 2);
    }
    assert_false(runner.ended);
    wake_up(&guest, &runner);
}

static void a_sleeping_state_is_halted(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    struct cpu_state state;
    SLEEP_IN(&guest, &runner, sleeper, false);
    engine_kvm.msi(guest.vm, MSI_ADDRESS, 0x41);
    assert_true(guest_wait(&guest, 1));
    nap_ms(20);
    runner_stop(&runner);
    guest_get(&guest, 0, &state);
    assert_int_equal(state.run_state, CPU_HALTED);
    /* and wakes from its saved state as from the live one */
    guest_set(&guest, 0, &state);
    runner_start(&runner, &guest, 0);
    engine_kvm.msi(guest.vm, MSI_ADDRESS, 0x42);
    assert_true(guest_wait(&guest, 2));
    assert_int_equal(guest.log[1].value, 0x42);
    wake_up(&guest, &runner);
}

static void without_controllers_there_are_no_interrupts(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct err err = {0};
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    assert_int_equal(engine_kvm.irq_line(guest.vm, 4, true), -ENOTSUP);
    assert_int_equal(engine_kvm.msi(guest.vm, MSI_ADDRESS, 0x41), -ENOTSUP);
    assert_int_equal(engine_kvm.irq_fd(guest.vm, 0, 0, MSI_ADDRESS, 0x41, true, &err), -ENOTSUP);
    guest_end(&guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_wakes_and_interrupts),
        cmocka_unit_test(a_line_goes_through_the_pic),
        cmocka_unit_test(the_interval_timer_ticks),
        cmocka_unit_test(a_line_goes_through_the_ioapic),
        cmocka_unit_test(an_event_descriptor_sends_its_message),
        cmocka_unit_test(a_notification_does_not_leave_the_kernel),
        cmocka_unit_test(a_second_processor_starts),
        cmocka_unit_test(a_kick_wakes_who_waits),
        cmocka_unit_test(an_nmi_wakes_a_sleeper),
        cmocka_unit_test(a_sleeping_state_is_halted),
        cmocka_unit_test(without_controllers_there_are_no_interrupts),
    };
    int failed = cmocka_run_group_tests_name("kvm irq", tests, NULL, NULL);
    return tests_result(failed, ARRAY_LEN(tests));
}
