/*
 * One processor runs code that the other one changes, hundreds of times, with the handshakes that
 * kernels use. The runner checks every single result; after each handshake it must have seen the
 * new code.
 *
 * Each change has a number. `reached` is the last one whose handshake is over: older code must not
 * be seen any more. `begun` is the last one that was begun: newer code cannot be seen yet.
 */
#include "guest.h"

enum { ROUNDS = 250, ALIAS = 0x10000000, COPY = 0x800000 };

extern uint32_t xmc_call_value(void), xmc_call_poked(void), xmc_call_key(void),
    xmc_call_target(void), xmc_call_page(void);
extern uint8_t xmc_value[], xmc_poked[], xmc_key[], xmc_key_jump[], xmc_target[], xmc_one[],
    xmc_two[], xmc_page[];
extern const char xmc_poked_after[];

static volatile uint32_t *const apic = (volatile uint32_t *)0xfee00000;
static volatile uint32_t begun, reached;                       /* changes */
static volatile uint32_t request, arrived, released, answered; /* handshakes */
static volatile uint64_t rounds, wrong;
static volatile bool poll;

struct piece {
    const char *name;
    uint32_t (*call)(void);
    uint32_t first, period; /* change n returns first + n % period */
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
    uint32_t number = request;
    arrived = number;
    while (released != number)
        __asm__ volatile("pause");
    invlpg((uint64_t)xmc_page);
    serialize();
    answered = number;
}

static void on_ipi(struct frame *frame)
{
    (void)frame;
    if (answered != request)
        answer();
    apic[0xb0 / 4] = 0;
}

static void ask(void)
{
    memory_barrier();
    request++;
    if (!poll)
        apic[0x300 / 4] = 0x60;
}

/* Between the two, the other processor runs nothing of what changes. */
static void stop_other(void)
{
    ask();
    while (arrived != request)
        __asm__ volatile("pause");
}

static void release_other(void)
{
    memory_barrier();
    released = request;
    while (answered != request)
        __asm__ volatile("pause");
}

/* It serializes, and has not stopped. */
static void sync_other(void)
{
    released = request + 1;
    ask();
    while (answered != request)
        __asm__ volatile("pause");
}

/* ---- changes ---- */

static void change_value(uint32_t number)
{
    stop_other();
    begun = number;
    *(volatile uint32_t *)(through(xmc_value, number) + 1) = number;
    serialize();
    release_other();
}

/* An aligned immediate may change while the other one runs: it sees the old or the new one. */
static void change_value_live(uint32_t number)
{
    begun = number;
    *(volatile uint32_t *)(through(xmc_value, number) + 1) = number;
    sync_other();
}

static void on_breakpoint(struct frame *frame)
{
    wrong += frame->rip != (uint64_t)xmc_poked + 1;
    frame->rax = begun;
    frame->rip = (uint64_t)xmc_poked_after;
}

static void change_poked(uint32_t number)
{
    volatile uint8_t *code = through(xmc_poked, number);
    begun = number;
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
    begun = number;
    memcpy(through(xmc_key, number / 2), number % 2 ? xmc_key_jump : nop, 5);
    serialize();
    release_other();
}

static void change_target(uint32_t number)
{
    const uint8_t *target = number % 2 ? xmc_two : xmc_one;
    stop_other();
    begun = number;
    *(volatile int32_t *)(through(xmc_target, number / 2) + 1) =
        (int32_t)(target - (xmc_target + 5));
    serialize();
    release_other();
}

static void change_page(uint32_t number)
{
    begun = number;
    *guest_page((uint64_t)xmc_page) = (number % 2 ? (uint64_t)COPY : (uint64_t)xmc_page) | 3;
    sync_other();
}

static const struct piece pieces[] = {
    {"an immediate, the runner stopped", xmc_call_value, 0, UINT32_MAX, change_value},
    {"an immediate, the runner running", xmc_call_value, 0, UINT32_MAX, change_value_live},
    {"an instruction under an INT3", xmc_call_poked, 0, UINT32_MAX, change_poked},
    {"a NOP that becomes a jump", xmc_call_key, 0, 2, change_key},
    {"the target of a call", xmc_call_target, 1, 2, change_target},
    {"a page that becomes another", xmc_call_page, 1, 2, change_page},
};

/* ---- the runner ---- */

static void run_piece(const struct piece *piece)
{
    uint32_t least = reached;
    uint32_t value = piece->call();
    uint32_t most = begun;
    bool good = false;
    for (uint32_t number = least; number <= most && !good; number++)
        good = value == piece->first + number % piece->period;
    wrong += !good;
    rounds++;
    if (poll && answered != request)
        answer();
}

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
            run_piece(running);
    }
}

static void let_run(unsigned times)
{
    for (uint64_t until = rounds + times; rounds < until;)
        __asm__ volatile("pause");
}

static void change_often(const struct piece *piece)
{
    uint64_t before = wrong;
    begun = reached = 0;
    if (piece->period == UINT32_MAX) { /* begin where this piece begins */
        *(volatile uint32_t *)(xmc_value + 1) = 0;
        *(volatile uint32_t *)(xmc_poked + 1) = 0;
    }
    wanted = piece;
    let_run(300);
    for (uint32_t number = 1; number <= ROUNDS; number++) {
        piece->change(number);
        reached = number;
        let_run(number % 50 ? 3 : 300);
    }
    wanted = NULL;
    while (running)
        __asm__ volatile("pause");
    if (wrong != before) {
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
    ((uint8_t *)COPY)[1] = 2;
    guest_page((uint64_t)xmc_page);
    guest_handle(3, on_breakpoint);
    guest_handle(0x60, on_ipi);
    guest_start_cpu(1, runner);
    bool breakpoints = !guest_emulated("INT3 in ring 0");
    for (unsigned i = 0; i < 2; i++) {
        wrong = 0;
        for (unsigned k = 0; k < sizeof pieces / sizeof pieces[0]; k++)
            if (pieces[k].change != change_poked || breakpoints)
                change_often(&pieces[k]);
        check_equal(poll ? "code changed by the other, asked by a flag"
                         : "code changed by the other, asked by an IPI",
                    wrong, 0);
        poll = true;
    }
}
