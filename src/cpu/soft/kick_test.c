/* Kicks: whatever loop a guest is in, with interrupts off, run() returns within 10 ms, between two
 * instructions, and goes on from there when called again. */
#include "cpu/engine.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "cpu/soft/guest_harness.h"

enum { KICKS = 8 };

/* Of the vCPU's own CPU time, so that a busy machine does not count. */
#ifdef __SANITIZE_ADDRESS__
static const double limit = 0.100;
#else
static const double limit = 0.010;
#endif

static struct guest guest;
static pthread_t thread;
static sem_t go, returned;
static _Atomic bool stop;
static double cpu_at_return;

static int set_up(void **state)
{
    (void)state;
    guest_begin(&guest, NULL);
    guest_long(&guest, 0);
    sem_init(&go, 0, 0);
    sem_init(&returned, 0, 0);
    atomic_store(&stop, false);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    sem_destroy(&go);
    sem_destroy(&returned);
    guest_end(&guest);
    return 0;
}

static double clock_read(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void *run_thread(void *opaque)
{
    (void)opaque;
    for (;;) {
        while (sem_wait(&go) < 0)
            ;
        if (atomic_load(&stop))
            return NULL;
        engine_soft.vcpu_run(guest.vcpu, &guest.exit, NULL);
        cpu_at_return = clock_read(CLOCK_THREAD_CPUTIME_ID);
        sem_post(&returned);
    }
}

/* A vCPU that does not come back cannot be freed either: nothing is left but to end. */
static void wait_for_return(const char *name)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    while (sem_timedwait(&returned, &until) < 0) {
        if (errno == EINTR)
            continue;
        fprintf(stderr, "%s: run() did not return within ten seconds of a kick\n", name);
        abort();
    }
}

/* One kick out of a loop that has run for a while; what was wrong, or NULL. */
static const char *kick_once(const char *name, unsigned usecs, bool (*check)(void))
{
    clockid_t clock;
    pthread_getcpuclockid(thread, &clock);
    sem_post(&go);
    usleep(usecs);
    double before = clock_read(clock);
    engine_soft.vcpu_kick(guest.vcpu);
    wait_for_return(name);
    if (guest.exit.reason != ENGINE_EXIT_KICK)
        return "another exit than that of the kick";
    if (cpu_at_return - before > limit)
        return "run() returned too late";
    engine_soft.vcpu_get_state(guest.vcpu, &guest.state, NULL);
    if (check && !check())
        return "a state between two instructions that never was";
    return NULL;
}

/* Several, of the guest that guest.state and memory describe. */
static void kick_often(const char *name, bool (*check)(void))
{
    struct err err = {0};
    const char *wrong = NULL;
    if (engine_soft.vcpu_set_state(guest.vcpu, &guest.state, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(pthread_create(&thread, NULL, run_thread, NULL), 0);
    for (unsigned i = 0; i < KICKS && !wrong; i++)
        wrong = kick_once(name, i == 0 ? 20000 : 2000, check); /* hot, the first time */
    atomic_store(&stop, true);
    sem_post(&go);
    pthread_join(thread, NULL);
    if (wrong)
        fail_msg("%s: %s", name, wrong);
    assert_true(engine_soft.vcpu_instructions(guest.vcpu) > 0);
}

/* ---- loops ---- */

struct shape {
    const char *name;
    const uint8_t *code, *end;
    bool (*check)(void);
};

#define SHAPE(name, text) GUEST_CODE(shape_##name, 64, text)

SHAPE(jump, "1: jmp 1b");
SHAPE(branch, "1: test %eax, %eax; jz 1b");
SHAPE(count, "1: decq 0x60000; jnz 1b; jmp 1b");
SHAPE(pair, "1: incq 0x60000; incq 0x60008; jmp 1b");
SHAPE(loop, "1: mov $-1, %rcx; 2: loop 2b; jmp 1b");
SHAPE(jrcxz, "xor %ecx, %ecx; 1: jrcxz 1b");
SHAPE(long_block, "1: .rept 200; add $1, %rax; lea 1(%rbx), %rbx; .endr; jmp 1b");
SHAPE(call, "1: call 2f; jmp 1b; 2: ret");
SHAPE(call_far, "1: call 2f; jmp 1b; .skip 5000; 2: ret");
SHAPE(recursion, "1: mov $500, %ecx; call 2f; jmp 1b; 2: dec %ecx; jz 3f; call 2b; 3: ret");
SHAPE(pages, "1: jmp 2f; .skip 4096; 2: jmp 3f; .skip 4096; 3: jmp 1b");
SHAPE(fall, "1: .skip 6000, 0x90; jmp 1b");
SHAPE(straddle, "1: .skip 4093, 0x90; mov $5, %eax; jmp 1b");
SHAPE(indirect, "lea 1f(%rip), %rax; 1: jmp *%rax");
SHAPE(table,
      "lea 3f(%rip), %rsi; xor %ecx, %ecx; 1: inc %ecx; and $3, %ecx; mov (%rsi, %rcx, 8), %rax;"
      "lea (%rsi, %rax), %rax; jmp *%rax; 4: nop; jmp 1b; 5: jmp 1b; 6: jmp 1b; 7: jmp 1b;"
      ".balign 8; 3: .quad 4b - 3b, 5b - 3b, 6b - 3b, 7b - 3b");
SHAPE(return, "lea 1f(%rip), %rax; 1: push %rax; ret");
SHAPE(far_return, "lea 1f(%rip), %rax; 1: push $8; push %rax; lretq");
SHAPE(iret, "1: mov %rsp, %rax; push $0x10; push %rax; push $2; push $8; lea 1b(%rip), %rcx;"
            "push %rcx; iretq");
SHAPE(movs, "1: mov $0x400000, %esi; mov $0x800000, %edi; mov $0x400000, %ecx; rep movsb; jmp 1b");
SHAPE(movs_overlap,
      "1: mov $0x400000, %esi; mov $0x400001, %edi; mov $0x400000, %ecx; rep movsb; jmp 1b");
SHAPE(movs_down,
      "std; 1: mov $0x7ffff8, %esi; mov $0xbffff8, %edi; mov $0x80000, %ecx; rep movsq; jmp 1b");
SHAPE(stos, "1: mov $0x400000, %edi; mov $0xb00000, %ecx; rep stosb; jmp 1b");
SHAPE(lods, "1: mov $0x400000, %esi; mov $0x100000, %ecx; rep lodsq; jmp 1b");
SHAPE(cmps, "1: mov $0x400000, %esi; mov $0x800000, %edi; mov $0x400000, %ecx; repe cmpsb; jmp 1b");
SHAPE(scas, "mov $1, %al; 1: mov $0x400000, %edi; mov $0x400000, %ecx; repne scasb; jmp 1b");
SHAPE(stos_device, "1: mov $0x8000000, %edi; mov $0x1000000, %ecx; rep stosb; jmp 1b");
SHAPE(outs, "mov $0x70, %edx; 1: mov $0x400000, %esi; mov $0x400000, %ecx; rep outsb; jmp 1b");
SHAPE(ins, "mov $0x70, %edx; 1: mov $0x400000, %edi; mov $0x400000, %ecx; rep insb; jmp 1b");
SHAPE(port, "1: in $0x70, %al; jmp 1b");
SHAPE(device, "1: mov 0x8000000, %eax; jmp 1b");
SHAPE(pause, "1: pause; jmp 1b");
SHAPE(time, "1: rdtsc; jmp 1b");
SHAPE(cpuid, "1: xor %eax, %eax; cpuid; jmp 1b");
SHAPE(sti_cli, "1: sti; cli; jmp 1b");
SHAPE(mov_ss, "mov %ss, %eax; 1: mov %eax, %ss; jmp 1b");
SHAPE(flush, "mov %cr3, %rax; 1: mov %rax, %cr3; invlpg 0x400000; jmp 1b");
SHAPE(undefined, "1: ud2; jmp 1b");
SHAPE(page_fault, "mov $0x7ffffffff000, %rax; 1: mov (%rax), %rbx; jmp 1b");
SHAPE(breakpoint, "1: int3; jmp 1b");
SHAPE(steps, "pushfq; orq $0x100, (%rsp); popfq; 1: inc %eax; jmp 1b");
SHAPE(vector, "1: paddd %xmm0, %xmm1; mulpd %xmm2, %xmm3; pshufd $1, %xmm1, %xmm0; jmp 1b");
SHAPE(x87, "fninit; fldpi; 1: fld %st(0); fsin; fstp %st(0); jmp 1b");
SHAPE(locked, "1: lock incq 0x60000; lock addl $1, 0x60fff; jmp 1b");
SHAPE(changes_itself, "1: incb 2f+1(%rip); 2: mov $0, %al; jmp 1b");
SHAPE(changes_everything,
      "1: lea 2f(%rip), %rdi; mov $0x90, %al; mov $64, %ecx; rep stosb; 2: .skip 64, 0x90; jmp 1b");

static bool check_pair(void)
{
    uint64_t first = *guest_quad(&guest, 0x60000), second = *guest_quad(&guest, 0x60008);
    bool between = guest.state.rip == GUEST_CODE_AT + 8;
    return first == second + between;
}

static bool check_movs(void)
{
    const uint64_t *gpr = guest.state.gpr;
    if (guest.state.rip != GUEST_CODE_AT + 15) /* not at the REP MOVSB */
        return true;
    return gpr[CPU_RDI] - gpr[CPU_RSI] == 0x400000 && gpr[CPU_RCX] + gpr[CPU_RSI] == 0x800000;
}

#define ROW(name, check)                                                                           \
    {                                                                                              \
#name, shape_##name, shape_##name##_end, check                                             \
    }

static const struct shape shapes[] = {
    ROW(jump, NULL),       ROW(branch, NULL),         ROW(count, NULL),
    ROW(pair, check_pair), ROW(loop, NULL),           ROW(jrcxz, NULL),
    ROW(long_block, NULL), ROW(call, NULL),           ROW(call_far, NULL),
    ROW(recursion, NULL),  ROW(pages, NULL),          ROW(fall, NULL),
    ROW(straddle, NULL),   ROW(indirect, NULL),       ROW(table, NULL),
    ROW(return, NULL),     ROW(far_return, NULL),     ROW(iret, NULL),
    ROW(movs, check_movs), ROW(movs_overlap, NULL),   ROW(movs_down, NULL),
    ROW(stos, NULL),       ROW(lods, NULL),           ROW(cmps, NULL),
    ROW(scas, NULL),       ROW(stos_device, NULL),    ROW(outs, NULL),
    ROW(ins, NULL),        ROW(port, NULL),           ROW(device, NULL),
    ROW(pause, NULL),      ROW(time, NULL),           ROW(cpuid, NULL),
    ROW(sti_cli, NULL),    ROW(mov_ss, NULL),         ROW(flush, NULL),
    ROW(undefined, NULL),  ROW(page_fault, NULL),     ROW(breakpoint, NULL),
    ROW(steps, NULL),      ROW(vector, NULL),         ROW(x87, NULL),
    ROW(locked, NULL),     ROW(changes_itself, NULL), ROW(changes_everything, NULL),
};

/* Exceptions come back to the instruction that raised them, for ever. */
static void return_from(unsigned vector, bool with_error)
{
    static const uint8_t iret[] = {0x48, 0xcf}, pop_iret[] = {0x48, 0x83, 0xc4, 8, 0x48, 0xcf};
    uint8_t *at = guest.ram + GUEST_HANDLERS + vector * 16;
    memcpy(at, with_error ? pop_iret : iret, with_error ? sizeof pop_iret : sizeof iret);
}

static void a_kick_ends_any_loop(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        if (i) {
            tear_down(state);
            set_up(state);
        }
        guest_load(&guest, shapes[i].code, shapes[i].end);
        return_from(VECTOR_UD, false);
        return_from(VECTOR_BP, false);
        return_from(VECTOR_DB, false);
        return_from(VECTOR_PF, true);
        kick_often(shapes[i].name, shapes[i].check);
    }
}

/* ---- from ring 3, and in 32 bits ---- */

GUEST_CODE(user_spin, 64, "1: incq 0x60000; jmp 1b");
GUEST_CODE(user_syscalls, 64, "1: syscall; inc %rbx; jmp 1b");
GUEST_CODE(compat_spin, 32, "1: inc %eax; call 2f; jmp 1b; 2: ret");
GUEST_CODE(real_spin, 16, "1: inc %ax; call 2f; jmp 1b; 2: ret");

static void a_kick_ends_any_loop_in_any_mode(void **state)
{
    static const uint8_t sysretq[] = {0x48, 0x0f, 0x07};
    guest_long(&guest, 3);
    guest_load(&guest, user_spin, user_spin_end);
    kick_often("user", NULL);
    tear_down(state);
    set_up(state);
    guest_long(&guest, 3);
    guest_load(&guest, user_syscalls, user_syscalls_end);
    memcpy(guest.ram + GUEST_HANDLERS + 256 * 16, sysretq, sizeof sysretq);
    kick_often("system calls", NULL);
    tear_down(state);
    set_up(state);
    guest_compat(&guest, 3);
    guest_load(&guest, compat_spin, compat_spin_end);
    kick_often("compatibility", NULL);
    tear_down(state);
    set_up(state);
    guest_real(&guest);
    guest_load(&guest, real_spin, real_spin_end);
    kick_often("real mode", NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_kick_ends_any_loop),
        TEST(a_kick_ends_any_loop_in_any_mode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
