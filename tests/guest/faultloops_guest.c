/*
 * Hot loops over memory that is paged on demand: faults come at every instruction of the loop
 * sooner or later, and at each one the state must be exactly what so many rounds make of it. The
 * loops are in faultloops_code.S.
 */
#include "demand.h"

enum { FLAG_CF = 1 };

/* ---- the loops ---- */

#define LOOP(name)  extern demand_loop loop_##name
#define LABEL(name) extern const char at_##name[]

static struct {
    uint64_t index, value, carry;
} so_far; /* what the rounds before come demand_to */

static uint64_t run(demand_loop *loop)
{
    so_far.index = so_far.value = so_far.carry = 0;
    return demand_run(loop);
}

LOOP(sum);
LABEL(sum);

static void sum_until(uint64_t index)
{
    for (; so_far.index < index; so_far.index++)
        so_far.value += quad(demand_from + so_far.index * 8);
}

static bool check_sum(struct frame *frame, uint64_t address)
{
    (void)address;
    sum_until(frame->rcx);
    return demand_at(frame, at_sum, demand_from + frame->rcx * 8, 8, false) &&
           frame->rax == so_far.value;
}

static void sum(unsigned pass)
{
    demand_fill(SOURCE);
    demand_check = check_sum;
    demand_choose(pass * 3, 0, SIZE / 8 - 1);
    uint64_t value = run(loop_sum);
    sum_until(demand_total);
    WRONG(value != so_far.value);
}

LOOP(carry);
LABEL(carry);

static void carry_until(uint64_t index)
{
    for (; so_far.index < index; so_far.index++) {
        unsigned __int128 wide =
            (unsigned __int128)so_far.value + quad(demand_from + so_far.index * 8) + so_far.carry;
        so_far.value = (uint64_t)wide;
        so_far.carry = (uint64_t)(wide >> 64);
    }
}

static bool check_carry(struct frame *frame, uint64_t address)
{
    (void)address;
    carry_until(demand_total - frame->rcx);
    return demand_at(frame, at_carry, demand_from + so_far.index * 8, 8, false) &&
           frame->rsi == demand_from + so_far.index * 8 && frame->rax == so_far.value &&
           (frame->rflags & FLAG_CF) == so_far.carry;
}

static void carry(unsigned pass)
{
    demand_fill(SOURCE);
    demand_check = check_carry;
    demand_choose(pass * 5, 0, SIZE / 8 - 2);
    uint64_t value = run(loop_carry);
    carry_until(demand_total);
    WRONG(value != so_far.value + so_far.carry);
}

LOOP(fill);
LABEL(fill);

static void sequence_until(uint64_t index)
{
    if (so_far.index == 0 && so_far.value == 0)
        so_far.value = 1;
    for (; so_far.index < index; so_far.index++)
        so_far.value = so_far.value * 0x5851f42d4c957f2d + 1;
}

static bool check_fill(struct frame *frame, uint64_t address)
{
    (void)address;
    sequence_until(demand_total - frame->rcx);
    return demand_at(frame, at_fill, demand_to - (so_far.index + 1) * 8, 8, true) &&
           frame->rdi == demand_to - so_far.index * 8 && frame->rax == so_far.value;
}

static void fill_down(unsigned pass)
{
    memset(at(TARGET), 0, SIZE);
    demand_check = check_fill;
    demand_choose(0, SIZE - pass * 3, SIZE / 8 - 2);
    run(loop_fill);
    so_far.index = so_far.value = 0;
    for (uint64_t i = 0; i < demand_total; i++) {
        sequence_until(i);
        WRONG(quad(demand_to - (i + 1) * 8) != so_far.value);
    }
}

LOOP(copy);
LABEL(copy_load);
LABEL(copy_load2);
LABEL(copy_load3);
LABEL(copy_store);
LABEL(copy_store2);
LABEL(copy_store3);

static bool check_copy(struct frame *frame, uint64_t address)
{
    uint64_t one = demand_from + frame->rcx * 8, two = demand_to + frame->rcx * 8;
    (void)address;
    if (frame->rip == (uint64_t)at_copy_load)
        return demand_at(frame, at_copy_load, one, 8, false);
    if (frame->r8 != quad(one))
        return false;
    if (frame->rip == (uint64_t)at_copy_load2)
        return demand_at(frame, at_copy_load2, one + 8, 8, false);
    if (frame->r9 != quad(one + 8))
        return false;
    if (frame->rip == (uint64_t)at_copy_store)
        return demand_at(frame, at_copy_store, two, 8, true) && quad(two) == UINT64_MAX;
    if (quad(two) != frame->r8)
        return false;
    if (frame->rip == (uint64_t)at_copy_load3)
        return demand_at(frame, at_copy_load3, one + 16, 8, false);
    if (frame->r10 != quad(one + 16))
        return false;
    if (frame->rip == (uint64_t)at_copy_store2)
        return demand_at(frame, at_copy_store2, two + 8, 8, true) && quad(two + 8) == UINT64_MAX;
    return demand_at(frame, at_copy_store3, two + 16, 8, true) && quad(two + 8) == frame->r9 &&
           quad(two + 16) == UINT64_MAX;
}

static void copy(unsigned pass)
{
    demand_fill(SOURCE);
    memset(at(TARGET), 0xff, SIZE);
    demand_check = check_copy;
    demand_choose(pass * 9, pass * 13 + 1, SIZE / 24 * 3 - 12);
    run(loop_copy);
    for (uint64_t i = 0; i < demand_total; i++)
        WRONG(quad(demand_from + i * 8) != quad(demand_to + i * 8));
}

LOOP(change);
LABEL(change_add);
LABEL(change_lock);
LABEL(change_xadd);
LABEL(change_inc);

/* What was at `linear` before: a copy is in the source. */
static bool unchanged(uint64_t linear, unsigned size)
{
    const uint8_t *one = at(linear), *two = at(linear - TARGET + SOURCE);
    for (unsigned i = 0; i < size; i++)
        if (one[i] != two[i])
            return false;
    return true;
}

static bool check_change(struct frame *frame, uint64_t address)
{
    uint64_t place = demand_to + (demand_total - frame->rcx) * 20;
    (void)address;
    if (frame->rdi != place || frame->rax != 3)
        return false;
    if (frame->rip == (uint64_t)at_change_add)
        return demand_at(frame, at_change_add, place, 8, true) && unchanged(place, 20);
    if (frame->rip == (uint64_t)at_change_lock)
        return demand_at(frame, at_change_lock, place + 8, 4, true) && unchanged(place + 8, 12);
    if (frame->rip == (uint64_t)at_change_xadd)
        return demand_at(frame, at_change_xadd, place + 12, 4, true) && unchanged(place + 12, 8) &&
               frame->r8 == 7;
    return demand_at(frame, at_change_inc, place + 16, 2, true) && unchanged(place + 16, 4);
}

static void change(unsigned pass)
{
    demand_fill(TARGET);
    memcpy(at(SOURCE), at(TARGET), SIZE);
    demand_check = check_change;
    demand_choose(0, pass * 7, SIZE / 20 - 4);
    run(loop_change);
    for (uint64_t i = 0; i < demand_total; i++) {
        uint8_t *now = at(demand_to + i * 20), *then = at(demand_to + i * 20 - TARGET + SOURCE);
        WRONG(*(uint64_t *)now != *(uint64_t *)then + 3);
        WRONG(*(uint32_t *)(now + 8) != *(uint32_t *)(then + 8) + 5);
        WRONG(*(uint32_t *)(now + 12) != *(uint32_t *)(then + 12) + 7);
        WRONG(*(uint16_t *)(now + 16) != (uint16_t)(*(uint16_t *)(then + 16) + 1));
        WRONG(*(uint16_t *)(now + 18) != *(uint16_t *)(then + 18));
    }
}

LOOP(loads);
LABEL(load0);
LABEL(load1);
LABEL(load2);
LABEL(load3);

static void loads_until(uint64_t index)
{
    for (; so_far.index < index; so_far.index++)
        for (unsigned i = 0; i < 4; i++)
            so_far.value += quad(demand_from + so_far.index * 40 + i * 8);
}

static bool check_loads(struct frame *frame, uint64_t address)
{
    static const char *const labels[] = {at_load0, at_load1, at_load2, at_load3};
    const uint64_t seen[] = {frame->r8, frame->r9, frame->r10, frame->r11};
    uint64_t index = demand_total - frame->rcx, place = demand_from + index * 40;
    unsigned number = 0;
    (void)address;
    while (number < 3 && frame->rip != (uint64_t)labels[number])
        number++;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t last = index ? quad(place - 40 + i * 8) : 0;
        if (seen[i] != (i < number ? quad(place + i * 8) : last))
            return false;
    }
    loads_until(index);
    return demand_at(frame, labels[number], place + number * 8, 8, false) && frame->rsi == place &&
           frame->rax == so_far.value;
}

static void loads(unsigned pass)
{
    demand_fill(SOURCE);
    demand_check = check_loads;
    demand_choose(pass * 5, 0, SIZE / 40 - 1);
    uint64_t value = run(loop_loads);
    loads_until(demand_total);
    WRONG(value != so_far.value);
}

LOOP(stores);
LABEL(store0);
LABEL(store1);
LABEL(store2);
LABEL(store3);

static bool check_stores(struct frame *frame, uint64_t address)
{
    static const char *const labels[] = {at_store0, at_store1, at_store2, at_store3};
    uint64_t place = demand_to + (demand_total - frame->rcx) * 40;
    unsigned number = 0;
    (void)address;
    while (number < 3 && frame->rip != (uint64_t)labels[number])
        number++;
    for (unsigned i = 0; i < 4; i++)
        if (quad(place + i * 8) != (i < number ? frame->rcx + i : UINT64_MAX))
            return false;
    return demand_at(frame, labels[number], place + number * 8, 8, true) && frame->rdi == place;
}

static void stores(unsigned pass)
{
    memset(at(TARGET), 0xff, SIZE);
    demand_check = check_stores;
    demand_choose(0, pass * 11, SIZE / 40 - 2);
    run(loop_stores);
    for (uint64_t i = 0; i < demand_total; i++)
        for (unsigned k = 0; k < 5; k++)
            WRONG(quad(demand_to + i * 40 + k * 8) != (k < 4 ? demand_total - i + k : UINT64_MAX));
}

LOOP(vectors);
LABEL(vector_load);
LABEL(vector_store);

static bool check_vectors(struct frame *frame, uint64_t address)
{
    uint64_t index = demand_total - frame->rcx, place = demand_from + index * 16;
    uint32_t now[4], then[4];
    (void)address;
    if (frame->rip == (uint64_t)at_vector_load)
        return demand_at(frame, at_vector_load, place, 16, false);
    __asm__ volatile("movups %%xmm0, %0" : "=m"(now));
    memcpy(then, at(place), 16);
    for (unsigned i = 0; i < 4; i++)
        if (now[i] != then[i] + 1)
            return false;
    return demand_at(frame, at_vector_store, demand_to + index * 16, 16, true) &&
           quad(demand_to + index * 16) == UINT64_MAX &&
           quad(demand_to + index * 16 + 8) == UINT64_MAX;
}

static void vectors(unsigned pass)
{
    uint64_t wanted = 0;
    demand_fill(SOURCE);
    memset(at(TARGET), 0xff, SIZE);
    demand_check = check_vectors;
    demand_choose(pass * 6, pass * 3, SIZE / 16 - 2);
    uint64_t value = run(loop_vectors);
    for (uint64_t i = 0; i < demand_total * 4; i++)
        WRONG(*(uint32_t *)at(demand_to + i * 4) != *(uint32_t *)at(demand_from + i * 4) + 1);
    for (uint64_t i = 0; i < demand_total * 2; i++)
        wanted += quad(demand_from + i * 8);
    WRONG(value != wanted);
}

LOOP(chase);
LABEL(chase);

static uint64_t chased; /* the pointer after so_far.index links */

static bool check_chase(struct frame *frame, uint64_t address)
{
    for (; so_far.index < frame->rax; so_far.index++)
        chased = quad(chased);
    return demand_at(frame, at_chase, frame->rsi, 8, false) && address == chased;
}

static void chase(unsigned pass)
{
    uint64_t nodes = 3000, place = SOURCE + 64;
    demand_check = check_chase;
    memset(at(SOURCE), 0, SIZE);
    demand_choose(64, 0, 0);
    for (uint64_t i = 1; i < nodes; i++) { /* to somewhere free, most often in another page */
        uint64_t next;
        do
            next = SOURCE + demand_random() % (SIZE / 32 - 1) * 32 + 8 * pass;
        while (quad(next) || next == place);
        *(uint64_t *)at(place) = next;
        place = next;
    }
    *(uint64_t *)at(place) = 0;
    chased = demand_from;
    uint64_t value = run(loop_chase);
    WRONG(value != nodes);
}

LOOP(scan);
LABEL(scan);

static bool check_scan(struct frame *frame, uint64_t address)
{
    return demand_at(frame, at_scan, frame->rax, 1, false) && (address & 0xfff) == 0;
}

static void scan(unsigned pass)
{
    uint64_t length = SIZE - 5000 + pass * 1000;
    demand_check = check_scan;
    memset(at(SOURCE), 1, SIZE);
    *(uint8_t *)at(SOURCE + length) = 0;
    demand_choose(0, 0, 0);
    uint64_t value = run(loop_scan);
    WRONG(value != length);
}

LOOP(push);
LABEL(push);
LABEL(pop);

static bool check_push(struct frame *frame, uint64_t address)
{
    (void)address;
    if (frame->rip == (uint64_t)at_push)
        return frame->rsp == demand_to - (demand_total - frame->rcx) * 8 &&
               demand_at(frame, at_push, frame->rsp - 8, 8, true);
    uint64_t popped = demand_total - frame->rcx;
    return frame->rsp == demand_to - frame->rcx * 8 && frame->rax == popped * (popped + 1) / 2 &&
           demand_at(frame, at_pop, frame->rsp, 8, false);
}

static void push(unsigned pass)
{
    demand_check = check_push;
    demand_choose(0, SIZE - pass * 3, SIZE / 8 - 8);
    uint64_t value = run(loop_push);
    WRONG(value != demand_total * (demand_total + 1) / 2);
}

LOOP(recurse);
LABEL(recurse_call);
LABEL(recurse_call2);
LABEL(recurse_push);
LABEL(recurse_push2);
LABEL(recurse_add);
LABEL(recurse_leave);
LABEL(recurse_ret);

static bool check_recurse(struct frame *frame, uint64_t address)
{
    static const char *const pushes[] = {at_recurse_call, at_recurse_call2, at_recurse_push,
                                         at_recurse_push2};
    (void)address;
    for (unsigned i = 0; i < 4; i++)
        if (frame->rip == (uint64_t)pushes[i])
            return demand_at(frame, pushes[i], frame->rsp - 8, 8, true);
    if (frame->rip == (uint64_t)at_recurse_add)
        return demand_at(frame, at_recurse_add, frame->rbp - 8, 8, false);
    if (frame->rip == (uint64_t)at_recurse_leave)
        return demand_at(frame, at_recurse_leave, frame->rbp, 8, false);
    return demand_at(frame, at_recurse_ret, frame->rsp, 8, false);
}

static void recurse(unsigned pass)
{
    demand_check = check_recurse;
    demand_choose(0, SIZE - pass * 3, SIZE / 56 - 20);
    uint64_t value = run(loop_recurse);
    WRONG(value != demand_total * (demand_total + 1) / 2);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    if (guest_emulated("loops of so many rounds in ring 0")) {
        check("there is nothing to test", true);
        return;
    }
    cr4_write(cr4_read() | 0x600);
    demand_begin();
    demand_often("a sum", sum);
    demand_often("a sum with carries", carry);
    demand_often("stores downwards", fill_down);
    demand_often("a copy", copy);
    demand_often("read-modify-writes happen once", change);
    demand_often("four loads of one base", loads);
    demand_often("four stores of one base", stores);
    demand_often("vectors", vectors);
    demand_often("a linked list", chase);
    demand_often("a scan", scan);
    demand_often("pushes and pops", push);
    demand_often("recursion", recurse);
}
