/* Single step and breakpoints in code that is hot: every step once and in order, every breakpoint
 * where it is, set and cleared while the code runs on. The code is in step_code.S. */
#include "guest.h"

enum { ROUNDS = 120, WARM = 20, RF = 1 << 16, TF = 1 << 8, TRACE = 256 };
enum { DR6_BS = 1 << 14, DR6_CLEAR = 0xffff0ff0 };
enum { TYPE_RUN = 0, TYPE_WRITE = 1, TYPE_PORT = 2, TYPE_ACCESS = 3 };

extern uint32_t step_hot(uint32_t n), step_by_step(uint32_t n);
extern void step_rep(void *to, const void *from, uint64_t count), step_shadow(void);
extern void watch_fill(volatile uint64_t *array, uint64_t count), watch_kinds(void *quad);
extern uint64_t watch_sum(volatile uint64_t *array, uint64_t count);
extern uint32_t watch_toggle(volatile uint64_t *quad, uint64_t rounds, uint64_t dr7,
                             uint64_t difference);
extern void watch_port(uint32_t times);
extern uint64_t step_word;
extern const char step_0[], step_1[], step_2[], step_3[], step_4[], step_5[], step_6[], step_7[],
    step_8[], step_9[], step_10[], step_11[], step_12[], step_13[], step_14[], step_returned[],
    step_popf[], step_popped[], step_rep_at[], step_rep_after[], step_rep_pushed[], step_rep_end[],
    step_shadow_1[], step_shadow_2[], step_shadow_3[], step_shadow_4[], step_shadow_5[],
    step_shadow_6[], watch_filled[], watch_summed[], watch_toggled[], watch_port_after[];
static const char *const steps[] = {step_0,  step_1,  step_2,  step_3,  step_4,
                                    step_5,  step_6,  step_7,  step_8,  step_9,
                                    step_10, step_11, step_12, step_13, step_14};

#define DEFINE_DEBUG(name)                                                                         \
    static void name##_write(uint64_t value)                                                       \
    {                                                                                              \
        __asm__ volatile("mov %0, %%" #name ::"r"(value) : "memory");                              \
    }
DEFINE_DEBUG(dr0)
DEFINE_DEBUG(dr1)
DEFINE_DEBUG(dr2)
DEFINE_DEBUG(dr3)
DEFINE_DEBUG(dr6)
DEFINE_DEBUG(dr7)

/* What DR6 says of breakpoints that are on; of the others it may say anything. */
static uint64_t dr6_read(void)
{
    uint64_t value, dr7;
    __asm__ volatile("mov %%dr6, %0; mov %%dr7, %1" : "=r"(value), "=r"(dr7)::"memory");
    for (unsigned i = 0; i < 4; i++)
        if (!(dr7 >> i * 2 & 3))
            value &= ~(UINT64_C(1) << i);
    return value;
}

/* DR7 with breakpoint `number` on; lengths are 1, 2, 4, 8. */
static uint64_t enabled(unsigned number, unsigned type, unsigned length)
{
    unsigned code = length == 8 ? 2 : length - 1;
    return 0x400 | UINT64_C(2) << number * 2 | (uint64_t)(type | code << 2) << (16 + number * 4);
}

/* ---- what #DB saw ---- */

struct event {
    uint64_t rip, rax, rcx, dr6;
};
static struct event trace[TRACE];
static volatile unsigned traced;
static volatile uint64_t set_flags, clear_flags;
static volatile unsigned steps_left; /* of those that a breakpoint began */

static void on_debug(struct frame *frame)
{
    uint64_t dr6 = dr6_read();
    dr6_write(DR6_CLEAR);
    if (traced < TRACE)
        trace[traced] = (struct event){frame->rip, frame->rax, frame->rcx, dr6 & ~DR6_CLEAR};
    traced++;
    frame->rflags |= RF | set_flags;
    frame->rflags &= ~clear_flags;
    if (steps_left && --steps_left == 0)
        frame->rflags &= ~(uint64_t)TF;
    else if (steps_left)
        frame->rflags |= TF;
}

static bool traced_at(unsigned index, const char *rip, uint64_t dr6)
{
    return index < traced && trace[index].rip == (uint64_t)rip && trace[index].dr6 == dr6;
}

/* ---- single step ---- */

/* What step_hot(n) does, instruction by instruction: fills `ret_events`, returns their number. */
static unsigned model(uint32_t n, struct event *ret_events)
{
    unsigned count = 0;
    uint64_t eax = 0, ecx = n;
#define STEP(number) ret_events[count++] = (struct event){(uint64_t)steps[number], eax, ecx, DR6_BS}
    STEP(1);
    STEP(2);
    do {
        eax = (uint32_t)(eax + ecx);
        STEP(3);
        STEP(4);
        if (ecx & 1) {
            STEP(5);
            eax = (uint32_t)(eax + 100);
        }
        STEP(6);
        STEP(10);
        STEP(11);
        STEP(12);
        eax += step_word;
        STEP(13);
        eax = (uint32_t)(eax - step_word) ^ 5;
        STEP(14);
        STEP(7);
        ecx--;
        STEP(8);
        if (ecx)
            STEP(2);
    } while (ecx);
    STEP(9);
#undef STEP
    return count;
}

static uint32_t model_value(uint32_t n)
{
    uint32_t eax = 0;
    for (uint32_t ecx = n; ecx; ecx--)
        eax = (eax + ecx + (ecx & 1) * 100) ^ 5;
    return eax;
}

static uint64_t warm(uint32_t n)
{
    uint64_t wrong = 0;
    unsigned before = traced;
    for (unsigned i = 0; i < WARM; i++)
        wrong += step_hot(n + i) != model_value(n + i);
    return wrong + (traced != before);
}

static void every_step(void)
{
    static struct event wanted[TRACE];
    uint64_t wrong = 0, wrong_state = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t n = 1 + round % 7;
        wrong += warm(n);
        traced = 0;
        wrong += step_by_step(n) != model_value(n);
        unsigned count = model(n, wanted);
        /* The call's step comes first, and three after the return. */
        wrong += traced != count + 5 || !traced_at(0, step_0, DR6_BS);
        for (unsigned i = 0; i < count; i++) {
            wrong += !traced_at(i + 1, (const char *)wanted[i].rip, DR6_BS);
            if (i) /* RCX before its first MOV is what the caller left */
                wrong_state +=
                    trace[i + 1].rax != wanted[i].rax || trace[i + 1].rcx != wanted[i].rcx;
        }
        wrong += !traced_at(count + 1, step_returned, DR6_BS);
        wrong += !traced_at(count + 3, step_popf, DR6_BS);
        wrong += !traced_at(count + 4, step_popped, DR6_BS); /* TF was set when POPF began */
    }
    check_equal("every step of a hot function, in order", wrong, 0);
    check_equal("and its registers", wrong_state, 0);
}

static void string_steps(void)
{
    static uint8_t one[32], two[32];
    uint64_t wrong = 0;
    for (unsigned round = 0; round < 2 * ROUNDS; round++) {
        unsigned n = round % 9;
        for (unsigned i = 0; i < 32; i++)
            one[i] = (uint8_t)(round + i);
        traced = 0;
        step_rep(two, one, n);
        unsigned at = n ? n : 1; /* each iteration traps; nothing to do traps once */
        wrong += traced != at + 2;
        for (unsigned i = 0; i + 1 < at; i++)
            wrong += !traced_at(i, step_rep_at, DR6_BS) || trace[i].rcx != n - 1 - i;
        wrong += !traced_at(at - 1, step_rep_after, DR6_BS) || trace[at - 1].rcx;
        wrong +=
            !traced_at(at, step_rep_pushed, DR6_BS) || !traced_at(at + 1, step_rep_end, DR6_BS);
        for (unsigned i = 0; i < n; i++)
            wrong += two[i] != one[i];
    }
    check_equal("steps of a string instruction", wrong, 0);
}

static void shadows(void)
{
    static const char *const wanted[] = {step_shadow_1, step_shadow_2, step_shadow_3,
                                         step_shadow_4, step_shadow_5, step_shadow_6};
    uint64_t wrong = 0;
    for (unsigned round = 0; round < 2 * ROUNDS; round++) {
        traced = 0;
        step_shadow();
        wrong += traced != 6;
        for (unsigned i = 0; i < 6; i++)
            wrong += !traced_at(i, wanted[i], DR6_BS);
    }
    check_equal("steps over MOV SS", wrong, 0);
}

static volatile uint64_t faults, fault_flags;

static void on_fault(struct frame *frame)
{
    faults++;
    fault_flags = frame->rflags;
    guest_map((uint64_t)&step_word, (uint64_t)&step_word | 3);
}

/* An instruction that faults, is repaired and goes on traps once, when it is done. */
static void steps_and_faults(void)
{
    static struct event wanted[TRACE];
    uint64_t wrong = 0;
    guest_handle(14, on_fault);
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t n = 1 + round % 5;
        unsigned count = model(n, wanted);
        wrong += warm(n);
        guest_map((uint64_t)&step_word, 0);
        faults = traced = 0;
        wrong += step_by_step(n) != model_value(n) || faults != 1 || !(fault_flags & TF);
        wrong += traced != count + 5;
        for (unsigned i = 0; i < count; i++)
            wrong += !traced_at(i + 1, (const char *)wanted[i].rip, DR6_BS);
    }
    guest_handle(14, NULL);
    check_equal("steps and page faults", wrong, 0);
}

/* ---- breakpoints ---- */

static void instructions(void)
{
    static void (*const set[])(uint64_t) = {dr0_write, dr1_write, dr2_write, dr3_write};
    static const uint8_t places[] = {2, 8, 11, 5, 0, 6, 14, 4, 9, 7, 1, 12, 3, 10, 13};
    uint64_t wrong = 0;
    for (unsigned round = 0; round < 3 * ROUNDS; round++) {
        unsigned number = round % 4, place = places[round % sizeof places];
        uint32_t n = 1 + round % 6;
        bool once = place == 0 || place == 1 || place == 9;
        unsigned hits = once ? 1 : place == 5 ? (n + 1) / 2 : n;
        wrong += warm(n);
        set[number]((uint64_t)steps[place]);
        dr7_write(enabled(number, TYPE_RUN, 1));
        traced = 0;
        wrong += step_hot(n) != model_value(n) || traced != hits;
        for (unsigned i = 0; i < hits; i++) {
            wrong += !traced_at(i, steps[place], UINT64_C(1) << number);
            if (place == 2)
                wrong += trace[i].rcx != n - i;
        }
        dr7_write(0x400);
        wrong += warm(n);
    }
    check_equal("instruction breakpoints", wrong, 0);

    /* Four at once, one of them where another address in the page is hot. */
    wrong = 0;
    for (unsigned i = 0; i < 4; i++)
        set[i]((uint64_t)steps[2 + i * 3]);
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t n = 1 + round % 6;
        dr7_write(enabled(0, 0, 1) | enabled(1, 0, 1) | enabled(2, 0, 1) | enabled(3, 0, 1));
        traced = 0;
        wrong += step_hot(n) != model_value(n) || traced != 3 * n + (n + 1) / 2;
        dr7_write(0x400);
        wrong += warm(n);
    }
    check_equal("four breakpoints at once", wrong, 0);
}

/* A breakpoint in the middle of hot code begins to step. */
static void steps_from_a_breakpoint(void)
{
    static struct event wanted[TRACE];
    uint64_t wrong = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t n = 2 + round % 5;
        unsigned length = 3 + round % 9;
        model(n, wanted); /* its second is at step_2 */
        wrong += warm(n);
        dr1_write((uint64_t)step_2);
        dr7_write(enabled(1, TYPE_RUN, 1));
        traced = 0;
        steps_left = length + 1;
        wrong += step_hot(n) != model_value(n);
        dr7_write(0x400);
        wrong += !traced_at(0, step_2, 2);
        for (unsigned i = 1; i <= length; i++)
            wrong += trace[i].rip != wanted[1 + i].rip || !(trace[i].dr6 & DR6_BS);
    }
    check_equal("steps that begin at a breakpoint", wrong, 0);
}

static volatile uint64_t array[1024] __attribute__((aligned(4096)));

static void writes(void)
{
    uint64_t wrong = 0;
    for (unsigned round = 0; round < 2 * ROUNDS; round++) {
        uint64_t place = 1 + round * 7 % 300;
        watch_fill(array, 300);
        dr2_write((uint64_t)&array[place]);
        dr7_write(enabled(2, TYPE_WRITE, 8));
        traced = 0;
        watch_fill(array, 300);
        wrong += traced != 1 || !traced_at(0, watch_filled, 4) || array[place] != place;
        traced = 0;
        wrong += watch_sum(array + 1, 300) != 300 * 301 / 2 || traced;
        dr7_write(enabled(2, TYPE_ACCESS, 8));
        wrong += watch_sum(array + 1, 300) != 300 * 301 / 2;
        wrong += traced != 1 || !traced_at(0, watch_summed, 4) || trace[0].rax == 0;
        dr7_write(0x400);
        traced = 0;
        watch_fill(array, 300);
        wrong += watch_sum(array + 1, 300) != 300 * 301 / 2 || traced;
    }
    check_equal("data breakpoints in hot loops", wrong, 0);
}

static void kinds_of_accesses(void)
{
    uint64_t wrong = 0;
    volatile uint64_t *quad = &array[77];
    dr3_write((uint64_t)quad);
    for (unsigned round = 0; round < 3 * ROUNDS; round++) {
        unsigned hits = 0;
        dr7_write(round % 3 == 0   ? UINT64_C(0x400)
                  : round % 3 == 1 ? enabled(3, TYPE_WRITE, 8)
                                   : enabled(3, TYPE_ACCESS, 8));
        traced = 0;
        watch_kinds((void *)quad);
        hits = traced;
        dr7_write(0x400);
        wrong += hits != (round % 3 == 0 ? 0 : round % 3 == 1 ? 9 : 13);
    }
    check_equal("kinds of accesses", wrong, 0);

    /* Short ones: only what overlaps. */
    wrong = 0;
    for (unsigned round = 0; round < 2 * ROUNDS; round++) {
        unsigned length = 1u << round % 3, offset = round % 8 & ~(length - 1);
        dr0_write((uint64_t)quad + offset);
        dr7_write(enabled(0, TYPE_WRITE, length));
        traced = 0;
        for (unsigned i = 0; i < 8; i++)
            ((volatile uint8_t *)quad)[i] = (uint8_t)i;
        unsigned bytes = traced;
        for (unsigned i = 0; i < 7; i++)
            *(volatile uint16_t *)((uint8_t *)quad + i) = 7;
        unsigned shorts = traced - bytes;
        dr7_write(0x400);
        unsigned overlaps = length + 1 - (offset == 0) - (offset + length == 8);
        wrong += bytes != length || shorts != overlaps;
    }
    check_equal("lengths of breakpoints", wrong, 0);
}

/* DR7 changes in the loop itself. */
static void toggled(void)
{
    uint64_t wrong = 0;
    dr0_write((uint64_t)&array[5]);
    dr1_write((uint64_t)&array[5]);
    for (unsigned round = 0; round < 10; round++) {
        uint64_t on = enabled(0, TYPE_WRITE, 8), both = on | enabled(1, TYPE_ACCESS, 4);
        traced = 0;
        wrong += watch_toggle(&array[5], 200, 0x400, on ^ 0x400) != 200;
        wrong +=
            traced != 100 || !traced_at(0, watch_toggled, 1) || !traced_at(99, watch_toggled, 1);
        traced = 0;
        wrong += watch_toggle(&array[5], 200, on, both ^ on) != 200;
        wrong += traced != 200;
        for (unsigned i = 0; i < 200; i++)
            wrong += !traced_at(i, watch_toggled, i % 2 ? 1 : 3);
    }
    check_equal("breakpoints that come and go in a loop", wrong, 0);
}

static void ports(void)
{
    uint64_t wrong = 0;
    cr4_write(cr4_read() | 8); /* DE */
    for (unsigned round = 0; round < ROUNDS; round++) {
        dr0_write(0x80);
        watch_port(4);
        dr7_write(enabled(0, TYPE_PORT, 1));
        traced = 0;
        watch_port(5);
        dr7_write(0x400);
        wrong += traced != 5;
        for (unsigned i = 0; i < 5; i++)
            wrong += !traced_at(i, watch_port_after, 1);
        traced = 0;
        watch_port(3);
        wrong += traced != 0;
    }
    cr4_write(cr4_read() & ~UINT64_C(8));
    check_equal("breakpoints of ports", wrong, 0);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    if (guest_emulated("single step and breakpoints in ring 0")) {
        check("there is nothing to test", true);
        return;
    }
    guest_page((uint64_t)&step_word);
    guest_gate(1, 1, 0, false); /* the stack may be what is watched */
    guest_handle(1, on_debug);
    dr6_write(DR6_CLEAR);
    every_step();
    string_steps();
    shadows();
    steps_and_faults();
    instructions();
    steps_from_a_breakpoint();
    writes();
    kinds_of_accesses();
    toggled();
    ports();
}
