/*
 * One processor runs code that the other one changes, hundreds of times, with the handshakes that
 * kernels use. The runner checks every single result; after each handshake it must have seen the
 * new code.
 *
 * Each change has a number. xmc_reached is the last one whose handshake is over: older code must
 * not be seen any more. xmc_begun is the last one that was begun: newer code cannot be seen yet.
 * The loops are in xmc_code.S.
 */
#include "guest.h"

enum { ROUNDS = 250, ALIAS = 0x10000000, COPY = 0x800000 };

extern void xmc_run_inline(void), xmc_run_value(void), xmc_run_poked(void), xmc_run_key(void),
    xmc_run_target(void), xmc_run_page(void);
extern uint8_t xmc_inline[], xmc_value[], xmc_poked[], xmc_key[], xmc_key_jump[], xmc_target[],
    xmc_even[], xmc_odd[], xmc_page[];
extern const char xmc_poked_after[];
extern volatile uint32_t xmc_reached, xmc_begun, xmc_request, xmc_answered;
extern volatile uint64_t xmc_wrong, xmc_rounds;

static volatile uint32_t *const apic = (volatile uint32_t *)0xfee00000;
static volatile uint32_t arrived, released; /* of the handshakes */
static volatile bool poll;

struct piece {
    const char *name;
    void (*run)(void);
    void (*change)(uint32_t number);
};
static const struct piece *volatile wanted,
    *volatile running; /* what the runner shall do, and does */

static uint8_t *through(uint8_t *code, uint32_t number)
{
    uint64_t at = (uint64_t)code;
    if (number % 2)
        return code;
    guest_map(ALIAS, (at & ~UINT64_C(0xfff)) | 3);
    guest_map(ALIAS + 4096, ((at & ~UINT64_C(0xfff)) + 4096) | 3);
    return (uint8_t *)(ALIAS + (at & 0xfff));
}

/* ---- handshakes ---- */

static void answer(void)
{
    uint32_t number = xmc_request;
    arrived = number;
    while (released != number)
        __asm__ volatile("pause");
    invlpg((uint64_t)xmc_page);
    serialize();
    xmc_answered = number;
}

static void on_ipi(struct frame *frame)
{
    (void)frame;
    if (xmc_answered != xmc_request)
        answer();
    apic[0xb0 / 4] = 0;
}

static void ask(void)
{
    memory_barrier();
    xmc_request++;
    if (!poll)
        apic[0x300 / 4] = 0x60;
}

/* Between the two, the other processor runs nothing of what changes. */
static void stop_other(void)
{
    ask();
    while (arrived != xmc_request)
        __asm__ volatile("pause");
}

static void release_other(void)
{
    memory_barrier();
    released = xmc_request;
    while (xmc_answered != xmc_request)
        __asm__ volatile("pause");
}

/* It serializes, and has not stopped. */
static void sync_other(void)
{
    released = xmc_request + 1;
    ask();
    while (xmc_answered != xmc_request)
        __asm__ volatile("pause");
}

/* ---- changes ---- */

static void change_stopped(uint8_t *code, uint32_t number)
{
    stop_other();
    xmc_begun = number;
    *(volatile uint32_t *)(through(code, number) + 1) = number;
    serialize();
    release_other();
}

static void change_inline(uint32_t number)
{
    change_stopped(xmc_inline, number);
}

static void change_value(uint32_t number)
{
    change_stopped(xmc_value, number);
}

/* An aligned immediate may change while the other one runs: it sees the old or the new one. */
static void change_live(uint8_t *code, uint32_t number)
{
    xmc_begun = number;
    *(volatile uint32_t *)(through(code, number) + 1) = number;
    sync_other();
}

static void change_inline_live(uint32_t number)
{
    change_live(xmc_inline, number);
}

static void change_value_live(uint32_t number)
{
    change_live(xmc_value, number);
}

static void on_breakpoint(struct frame *frame)
{
    xmc_wrong += frame->rip != (uint64_t)xmc_poked + 1;
    frame->rax = xmc_begun;
    frame->rip = (uint64_t)xmc_poked_after;
}

static void change_poked(uint32_t number)
{
    volatile uint8_t *code = through(xmc_poked, number);
    xmc_begun = number;
    code[0] = 0xcc;
    sync_other();
    for (unsigned i = 0; i < 4; i++)
        code[1 + i] = (uint8_t)(number >> i * 8);
    sync_other();
    code[0] = 0xb8;
    sync_other();
}

static void change_key(uint32_t number)
{
    static const uint8_t nop[5] = {0x0f, 0x1f, 0x44, 0, 0};
    stop_other();
    xmc_begun = number;
    memcpy(through(xmc_key, number / 2), number % 2 ? xmc_key_jump : nop, 5);
    serialize();
    release_other();
}

static void change_target(uint32_t number)
{
    const uint8_t *target = number % 2 ? xmc_odd : xmc_even;
    stop_other();
    xmc_begun = number;
    *(volatile int32_t *)(through(xmc_target, number / 2) + 1) =
        (int32_t)(target - (xmc_target + 5));
    serialize();
    release_other();
}

static void change_page(uint32_t number)
{
    xmc_begun = number;
    *guest_page((uint64_t)xmc_page) = (number % 2 ? (uint64_t)COPY : (uint64_t)xmc_page) | 3;
    sync_other();
}

static const struct piece pieces[] = {
    {"an instruction of the loop, the runner stopped", xmc_run_inline, change_inline},
    {"an instruction of the loop, the runner running", xmc_run_inline, change_inline_live},
    {"a function, the runner stopped", xmc_run_value, change_value},
    {"a function, the runner running", xmc_run_value, change_value_live},
    {"an instruction under an INT3", xmc_run_poked, change_poked},
    {"a NOP that becomes a jump", xmc_run_key, change_key},
    {"the target of a call", xmc_run_target, change_target},
    {"a page that becomes another", xmc_run_page, change_page},
};

/* ---- the runner ---- */

static void runner(void)
{
    apic[0xf0 / 4] = 0x1ff;
    for (;;) {
        running = wanted;
        if (poll)
            interrupts_off();
        else
            interrupts_on();
        if (running)
            running->run();
        if (poll && xmc_answered != xmc_request)
            answer();
    }
}

static void let_run(unsigned times)
{
    for (uint64_t until = xmc_rounds + times; xmc_rounds < until;)
        __asm__ volatile("pause");
}

static void change_often(const struct piece *piece)
{
    uint64_t before = xmc_wrong;
    xmc_begun = xmc_reached = 0;
    /* The runner does nothing yet: all of them begin at 0. */
    *(volatile uint32_t *)(xmc_inline + 1) = 0;
    *(volatile uint32_t *)(xmc_value + 1) = 0;
    *(volatile uint32_t *)(xmc_poked + 1) = 0;
    wanted = piece;
    let_run(300);
    for (uint32_t number = 1; number <= ROUNDS; number++) {
        piece->change(number);
        xmc_reached = number;
        let_run(number % 50 ? 3 : 300);
    }
    wanted = NULL;
    while (running)
        __asm__ volatile("pause");
    if (xmc_wrong != before) {
        print("wrong: ");
        print(piece->name);
        print("\n");
    }
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    apic[0xf0 / 4] = 0x1ff;
    apic[0x310 / 4] = 1 << 24;
    memcpy((void *)COPY, xmc_page, 4096);
    ((uint8_t *)COPY)[1] = 1;
    guest_page((uint64_t)xmc_page);
    guest_handle(3, on_breakpoint);
    guest_handle(0x60, on_ipi);
    guest_start_cpu(1, runner);
    bool breakpoints = !guest_emulated("INT3 in ring 0");
    for (unsigned i = 0; i < 2; i++) {
        xmc_wrong = 0;
        for (unsigned k = 0; k < sizeof pieces / sizeof pieces[0]; k++)
            if (pieces[k].change != change_poked || breakpoints)
                change_often(&pieces[k]);
        check_equal(poll ? "code changed by the other, asked by a flag"
                         : "code changed by the other, asked by an IPI",
                    xmc_wrong, 0);
        poll = true;
    }
}
