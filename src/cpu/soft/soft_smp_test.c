/* Several vCPU threads: kicks, sleep, atomic instructions, code that another vCPU changes. */
#include "cpu/soft/block.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "cpu/soft/guest_harness.h"

enum { VCPUS = 2, STACKS = 0x30000, SHARED = 0x60000 };

/* Two vCPUs over the memory of a harness guest, whose own VM stays idle. */
struct machine {
    struct guest guest;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu[VCPUS];
    struct engine_exit exit[VCPUS];
    struct cpu_state state[VCPUS];
    pthread_t thread[VCPUS];
};

static struct machine machine;

static int set_up(void **state)
{
    (void)state;
    guest_begin(&machine.guest, NULL);
    guest_long(&machine.guest, 0);
    struct cpuid cpuid;
    guest_cpuid(&cpuid, false);
    struct engine_config config = {
        .mem = machine.guest.mem, .vcpus = VCPUS, .irqchip = ENGINE_IRQCHIP_NONE, .cpuid = &cpuid};
    assert_int_equal(engine_soft.vm_new(&config, &machine.vm, NULL), 0);
    for (unsigned i = 0; i < VCPUS; i++) {
        assert_int_equal(engine_soft.vcpu_new(machine.vm, i, &machine.vcpu[i], NULL), 0);
        machine.state[i] = machine.guest.state;
        machine.state[i].gpr[CPU_RSP] = STACKS + i * 0x1000;
        machine.state[i].gpr[CPU_RDI] = i;
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (unsigned i = 0; i < VCPUS; i++)
        engine_soft.vcpu_free(machine.vcpu[i]);
    engine_soft.vm_free(machine.vm);
    guest_end(&machine.guest);
    return 0;
}

static void *run_thread(void *opaque)
{
    unsigned i = (unsigned)(uintptr_t)opaque;
    engine_soft.vcpu_set_state(machine.vcpu[i], &machine.state[i], NULL);
    engine_soft.vcpu_run(machine.vcpu[i], &machine.exit[i], NULL);
    engine_soft.vcpu_get_state(machine.vcpu[i], &machine.state[i], NULL);
    return NULL;
}

static void start(unsigned i)
{
    assert_int_equal(pthread_create(&machine.thread[i], NULL, run_thread, (void *)(uintptr_t)i), 0);
}

static enum engine_exit_reason finish(unsigned i)
{
    pthread_join(machine.thread[i], NULL);
    return machine.exit[i].reason;
}

static void load(const uint8_t *code, const uint8_t *end)
{
    guest_load(&machine.guest, code, end);
    /* The observer of code is the last VM's that was made: ours. */
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- kicks ---- */

GUEST_CODE(spin, 64, "1: jmp 1b");
GUEST_CODE(spin_calls, 64, "1: call 2f; jmp 1b; .skip 5000; 2: ret");
GUEST_CODE(spin_rep, 64,
           "1: mov $0x400000, %edi; mov $0x400000, %esi; mov $0x100000, %ecx; rep movsb; jmp 1b");

static void kicked_soon(const uint8_t *code, const uint8_t *end)
{
    load(code, end);
    machine.state[0].rip = GUEST_CODE_AT;
    start(0);
    usleep(20000);
    double before = seconds();
    engine_soft.vcpu_kick(machine.vcpu[0]);
    assert_int_equal(finish(0), ENGINE_EXIT_KICK);
    /* 10 ms where the machine is idle; the bound leaves room for one that is not. */
    assert_true(seconds() - before < 0.2);
}

static void a_kick_ends_any_loop(void **state)
{
    (void)state;
    kicked_soon(spin, spin_end);
    kicked_soon(spin_calls, spin_calls_end);
    kicked_soon(spin_rep, spin_rep_end);
}

static void a_kick_before_run_ends_the_next_run_only(void **state)
{
    (void)state;
    static const uint8_t code[] = {0xff, 0xc0, 0xf4}; /* inc %eax; hlt */
    load(code, code + sizeof code);
    engine_soft.vcpu_set_state(machine.vcpu[0], &machine.state[0], NULL);
    engine_soft.vcpu_kick(machine.vcpu[0]);
    assert_int_equal(engine_soft.vcpu_run(machine.vcpu[0], &machine.exit[0], NULL), 0);
    assert_int_equal(machine.exit[0].reason, ENGINE_EXIT_KICK);
    assert_int_equal(engine_soft.vcpu_instructions(machine.vcpu[0]), 0);
    assert_int_equal(engine_soft.vcpu_run(machine.vcpu[0], &machine.exit[0], NULL), 0);
    assert_int_equal(machine.exit[0].reason, ENGINE_EXIT_HALT);
}

/* ---- atomic instructions ---- */

/* Both vCPUs count in the same places; one of them crosses cache lines, one crosses pages. */
GUEST_CODE(count, 64,
           "mov $20000, %ecx; mov $0x60000, %ebx;"
           "1: lock incq (%rbx); mov $1, %eax; lock xadd %rax, 8(%rbx);"
           "mov 16(%rbx), %rax; 2: lea 1(%rax), %rdx; lock cmpxchg %rdx, 16(%rbx); jnz 2b;"
           "lock addq $1, 60(%rbx);"                             /* split line */
           "test $15, %cl; jnz 3f; lock addl $1, 4094(%rbx); 3:" /* split page */
           "lock xorl $1, 128(%rbx); lock btsl $0, 132(%rbx); lock btrl $0, 132(%rbx);"
           "4: mov $1, %eax; xchg %eax, 136(%rbx); test %eax, %eax; jnz 4b;" /* a spin lock */
           "incq 144(%rbx); movl $0, 136(%rbx); dec %ecx; jnz 1b; hlt");

static void locked_instructions_lose_nothing(void **state)
{
    (void)state;
    load(count, count_end);
    for (unsigned i = 0; i < VCPUS; i++)
        start(i);
    for (unsigned i = 0; i < VCPUS; i++)
        assert_int_equal(finish(i), ENGINE_EXIT_HALT);
    uint8_t *ram = machine.guest.ram + SHARED;
    assert_int_equal(le64_read(ram), VCPUS * 20000);
    assert_int_equal(le64_read(ram + 8), VCPUS * 20000);
    assert_int_equal(le64_read(ram + 16), VCPUS * 20000);
    assert_int_equal(le64_read(ram + 60), VCPUS * 20000);
    assert_int_equal(le32_read(ram + 4094), VCPUS * 20000 / 16);
    assert_int_equal(le32_read(ram + 128), 0);
    assert_int_equal(le64_read(ram + 144), VCPUS * 20000);
}

GUEST_CODE(wide_count, 64,
           "mov $20000, %ecx; mov %ecx, %r8d; mov $0x60000, %esi;"
           "1: mov (%rsi), %rax; mov 8(%rsi), %rdx;"
           "2: lea 1(%rax), %rbx; lea -1(%rdx), %rcx; lock cmpxchg16b (%rsi); jnz 2b;"
           "dec %r8d; jnz 1b; hlt");

static void sixteen_bytes_change_as_one(void **state)
{
    (void)state;
    load(wide_count, wide_count_end);
    for (unsigned i = 0; i < VCPUS; i++)
        start(i);
    for (unsigned i = 0; i < VCPUS; i++)
        assert_int_equal(finish(i), ENGINE_EXIT_HALT);
    assert_int_equal(le64_read(machine.guest.ram + SHARED), VCPUS * 20000);
    assert_int_equal(le64_read(machine.guest.ram + SHARED + 8), (uint64_t) - (VCPUS * 20000));
}

/* ---- code that another vCPU, or a device, changes ---- */

/* vCPU 0 spins on `mov $0, %eax` until its immediate has changed; vCPU 1 changes it. */
GUEST_CODE(patched, 64,
           "test %edi, %edi; jnz 2f; 1: mov $0, %eax; test %eax, %eax; jz 1b; hlt;"
           "2: mov $100000, %ecx; 3: dec %ecx; jnz 3b; movb $1, 1b+1(%rip); hlt");

static void one_vcpu_changes_the_code_of_another(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        load(patched, patched_end);
        for (unsigned i = 0; i < VCPUS; i++) {
            machine.state[i].rip = GUEST_CODE_AT;
            machine.state[i].gpr[CPU_RDI] = i;
            start(i);
        }
        for (unsigned i = VCPUS; i-- > 0;)
            assert_int_equal(finish(i), ENGINE_EXIT_HALT);
        assert_int_equal(machine.state[0].gpr[CPU_RAX], 1);
    }
}

GUEST_CODE(waits_for_device, 64, "1: mov $0, %eax; test %eax, %eax; jz 1b; hlt");

static void a_device_changes_the_code_of_a_running_vcpu(void **state)
{
    (void)state;
    load(waits_for_device, waits_for_device_end);
    start(0);
    usleep(10000);
    uint8_t five = 5;
    assert_int_equal(mem_write(machine.guest.mem, GUEST_CODE_AT + 1, &five, 1), 0);
    assert_int_equal(finish(0), ENGINE_EXIT_HALT);
    assert_int_equal(machine.state[0].gpr[CPU_RAX], 5);
}

/* Both vCPUs write functions into one page and run them, again and again: a JIT with threads. */
GUEST_CODE(writes_functions, 64,
           "mov $2000, %ecx; mov %edi, %ebx; shl $8, %ebx; add $0x400000, %ebx;"
           "1: movb $0xb8, (%rbx); mov %ecx, 1(%rbx); movb $0xc3, 5(%rbx); call *%rbx;"
           "add %rax, %r8; dec %ecx; jnz 1b; hlt");

static void vcpus_write_code_side_by_side(void **state)
{
    (void)state;
    load(writes_functions, writes_functions_end);
    for (unsigned i = 0; i < VCPUS; i++)
        start(i);
    for (unsigned i = 0; i < VCPUS; i++) {
        assert_int_equal(finish(i), ENGINE_EXIT_HALT);
        assert_int_equal(machine.state[i].gpr[CPU_R8], 2000 * 2001 / 2);
    }
}

/* ---- the dirty log ---- */

GUEST_CODE(dirties, 64, "1: incq 0x405000; incq 0x60000; jmp 1b");

static void the_dirty_log_misses_no_page(void **state)
{
    (void)state;
    const struct mem_region *region = mem_find(machine.guest.mem, 0);
    uint8_t *mark = &region->marks[0x405], *other = &region->marks[0x406];
    load(dirties, dirties_end);
    start(0);
    usleep(5000);
    assert_int_equal(engine_soft.dirty_start(machine.vm, NULL), 0);
    for (unsigned round = 0; round < 20; round++) {
        __atomic_fetch_and(mark, (uint8_t)~MEM_PAGE_DIRTY, __ATOMIC_SEQ_CST);
        assert_int_equal(engine_soft.dirty_sync(machine.vm, NULL), 0);
        uint64_t before = *(volatile uint64_t *)(machine.guest.ram + 0x405000);
        while (*(volatile uint64_t *)(machine.guest.ram + 0x405000) == before)
            ;
        assert_true(*(volatile uint8_t *)mark & MEM_PAGE_DIRTY);
    }
    assert_false(*other & MEM_PAGE_DIRTY);
    assert_int_equal(engine_soft.dirty_stop(machine.vm, NULL), 0);
    engine_soft.vcpu_kick(machine.vcpu[0]);
    assert_int_equal(finish(0), ENGINE_EXIT_KICK);
}

/* ---- sleep ---- */

GUEST_CODE(sleeps, 64, "sti; hlt; nop; hlt");

static void *halted_thread(void *opaque)
{
    struct guest *guest = opaque;
    engine_soft.vcpu_run(guest->vcpu, &guest->exit, NULL);
    return NULL;
}

static void hlt_sleeps_until_notified(void **state)
{
    (void)state;
    static struct guest guest;
    guest_begin_with_apic(&guest);
    guest_long(&guest, 0);
    guest_load(&guest, sleeps, sleeps_end);
    engine_soft.vcpu_set_state(guest.vcpu, &guest.state, NULL);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, halted_thread, &guest), 0);
    usleep(20000);
    struct timespec cpu_before, cpu_after;
    clockid_t clock;
    assert_int_equal(pthread_getcpuclockid(thread, &clock), 0);
    clock_gettime(clock, &cpu_before);
    usleep(50000);
    clock_gettime(clock, &cpu_after);
    assert_true((cpu_after.tv_sec - cpu_before.tv_sec) * 1000000000 + cpu_after.tv_nsec -
                    cpu_before.tv_nsec <
                10000000); /* it does not spin */
    atomic_store(&guest.apic.pending, 0x40);
    engine_soft.vcpu_notify(guest.vcpu);
    for (unsigned i = 0; i < 2000 && atomic_load(&guest.apic.pending) >= 0; i++)
        usleep(1000);
    assert_int_equal(guest.apic.pending, -1);
    engine_soft.vcpu_kick(guest.vcpu);
    pthread_join(thread, NULL);
    assert_int_equal(guest.exit.reason, ENGINE_EXIT_KICK);
    engine_soft.vcpu_get_state(guest.vcpu, &guest.state, NULL);
    assert_int_equal(guest_vector(&guest), 0x40);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 2);
    guest_end(&guest);
}

/* ---- INIT and SIPI ---- */

GUEST_CODE(starts, 16, "incl %cs:0x100; cli; hlt");

static unsigned inits;

/* Called between the two halves of INIT. */
static void init_again(void *opaque, unsigned vcpu)
{
    (void)opaque;
    if (inits++ > 0)
        return;
    engine_soft.vcpu_signal(machine.vcpu[vcpu], ENGINE_SIGNAL_INIT, 0);
    engine_soft.vcpu_signal(machine.vcpu[vcpu], ENGINE_SIGNAL_SIPI, 0x12);
}

/* INIT and SIPI may come while the vCPU looks at what has come before: the later of the two is what
 * counts. */
static void sipi_right_behind_init_is_not_lost(void **state)
{
    (void)state;
    struct soft_vm *vm = ((struct soft_vcpu *)machine.vcpu[1])->vm;
    uint8_t *ram = machine.guest.ram;
    memcpy(ram + 0x12000, starts, (size_t)(starts_end - starts));
    machine.state[1].run_state = CPU_WAIT_FOR_SIPI;
    inits = 0;
    engine_soft.vcpu_set_state(machine.vcpu[1], &machine.state[1], NULL);
    vm->has_apic = true;
    vm->apic.init = init_again;
    engine_soft.vcpu_signal(machine.vcpu[1], ENGINE_SIGNAL_INIT, 0);
    struct engine_exit out;
    assert_int_equal(engine_soft.vcpu_run(machine.vcpu[1], &out, NULL), 0);
    assert_int_equal(out.reason, ENGINE_EXIT_HALT);
    assert_int_equal(inits, 2);
    assert_int_equal(ram[0x12100], 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_kick_ends_any_loop),
        TEST(a_kick_before_run_ends_the_next_run_only),
        TEST(locked_instructions_lose_nothing),
        TEST(sixteen_bytes_change_as_one),
        TEST(one_vcpu_changes_the_code_of_another),
        TEST(a_device_changes_the_code_of_a_running_vcpu),
        TEST(vcpus_write_code_side_by_side),
        TEST(the_dirty_log_misses_no_page),
        TEST(hlt_sleeps_until_notified),
        TEST(sipi_right_behind_init_is_not_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
