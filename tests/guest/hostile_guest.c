/*
 * A guest that means harm: millions of small pieces of code, code at every address, pages that move
 * all the time, code that is written to at every instruction, by the other processor too, storms of
 * exceptions, wild addresses. It may be slow; it must come to the right results and to its end, and
 * tests/test_guests.py looks at how much memory it takes meanwhile. With the word "long" it does
 * ten times as much.
 */
#include "guest.h"

enum {
    PIECES = 0x1000000, /* 32 MiB of memory for code */
    PIECES_SIZE = 0x2000000,
    GROUP = 2000,
    HOT = 64,
    WINDOW = 0x10000000,
    FRAMES = 0x800000,
    NOBODY = 0x10000000, /* addresses where no memory and no device is */
    NOBODY_SIZE = 0x60000000,
};

extern uint64_t hostile_every(uint64_t rounds), hostile_beside(uint64_t rounds),
    hostile_victim(uint64_t rounds);
extern uint32_t hostile_call(const void *function, uint32_t value);
extern uint64_t hostile_sled(const void *entry, uint64_t from);
extern void hostile_load(uint64_t), hostile_store(uint64_t), hostile_add(uint64_t),
    hostile_vector(uint64_t), hostile_copy(uint64_t), hostile_push(uint64_t),
    hostile_jump(uint64_t), hostile_undefined(uint64_t);
extern uint8_t hostile_victim_end[];

static uint64_t times = 1;

static uint64_t random_next(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1d;
}

/* ---- more code than any cache holds ---- */

/* Functions of 8 bytes, `add $number, %eax; ret`: each is called until it is hot. */
static void many_functions(void)
{
    uint64_t wrong = 0, count = 200000 * times;
    uint8_t *at = (uint8_t *)PIECES;
    for (uint32_t i = 0; i < count; i++) {
        at[i * 8] = 0x05;
        memcpy(at + i * 8 + 1, &i, 4);
        at[i * 8 + 5] = 0xc3;
    }
    for (uint32_t group = 0; group < count; group += GROUP)
        for (uint32_t k = 0; k < HOT; k++)
            for (uint32_t i = group; i < group + GROUP; i++)
                wrong += hostile_call(at + i * 8, k) != i + k;
    check_equal("many hot functions", wrong, 0);
}

/* The same, each going on to the next by a jump: one path through all of them. */
static void long_path(void)
{
    uint64_t wrong = 0, count = 200000 * times;
    uint8_t *at = (uint8_t *)PIECES;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        at[i * 8] = 0x05;
        memcpy(at + i * 8 + 1, &i, 4);
        at[i * 8 + 5] = i + 1 < count ? 0xeb : 0xc3; /* JMP 1 */
        at[i * 8 + 6] = 1;
        sum += i;
    }
    for (uint32_t k = 0; k < 8; k++)
        wrong += hostile_call(at, k) != sum + k;
    for (uint32_t k = 0; k < HOT * 4; k++) /* the end of it, hot */
        wrong += hostile_call(at + (count - 1000) * 8, k) !=
                 (uint32_t)((count - 1000 + count - 1) * 1000 / 2) + k;
    check_equal("one path through all of it", wrong, 0);
}

/* One-byte instructions: each address is an entry of its own. */
static void every_address(void)
{
    uint64_t wrong = 0, count = 100000 * times;
    uint8_t *at = (uint8_t *)PIECES;
    for (uint64_t i = 0; i < count; i++)
        at[i] = i % 16 == 15 ? 0xc3 : 0xac;
    for (unsigned k = 0; k < 3; k++)
        for (uint64_t i = 0; i < count; i++)
            wrong += hostile_sled(at + i, FRAMES + k) != FRAMES + k + 15 - i % 16;
    for (uint64_t group = 0; group < count; group += count / 10)
        for (unsigned k = 0; k < HOT; k++)
            for (uint64_t i = group; i < group + 256; i++)
                wrong += hostile_sled(at + i, FRAMES) != FRAMES + 15 - i % 16;
    check_equal("an entry at every address", wrong, 0);
}

/* ---- code that never rests ---- */

static void moving_pages(void)
{
    uint64_t wrong = 0, count = 60000 * times;
    for (uint32_t i = 0; i < 64; i++) {
        uint8_t *at = (uint8_t *)(uint64_t)(FRAMES + i * 4096);
        at[0] = 0x05;
        memcpy(at + 1, &i, 4);
        at[5] = 0xc3;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t number = i * 7 % 64;
        guest_map(WINDOW, (FRAMES + number * 4096) | 3);
        if (i % 16 == 0)
            cr3_write(cr3_read());
        wrong += hostile_call((void *)WINDOW, (uint32_t)i) != i + number;
    }
    check_equal("pages that move all the time", wrong, 0);
}

static void written_code(void)
{
    check_equal("code written at every instruction", hostile_every(5000 * times), 0);
    uint64_t rounds = 50000 * times;
    check_equal("data in the line of the code", hostile_beside(rounds), rounds * (rounds + 1) / 2);
}

static volatile uint32_t stage;
static volatile uint64_t writes;

static void other(void)
{
    stage = 1;
    while (stage == 1)
        __asm__ volatile("pause");
    while (stage == 2)
        for (volatile uint8_t *at = (volatile uint8_t *)hostile_victim; at < hostile_victim_end;
             at++, writes++)
            *at = *at;
    stage = 4;
}

static void written_by_the_other(void)
{
    uint64_t wrong = 0, first;
    guest_start_cpu(1, other);
    while (stage != 1)
        __asm__ volatile("pause");
    stage = 2;
    while (writes == 0)
        __asm__ volatile("pause");
    first = writes;
    for (unsigned i = 0; i < 300 * times; i++)
        wrong += hostile_victim(1000) != 7000;
    while (writes < first + 1000)
        __asm__ volatile("pause");
    stage = 3;
    while (stage != 4)
        __asm__ volatile("pause");
    check_equal("code that the other one writes to", wrong, 0);
}

/* ---- exceptions and wild addresses ---- */

static struct guest_place back;
static volatile uint64_t caught[32];

static void on_exception(struct frame *frame)
{
    caught[frame->vector]++;
    guest_return(&back);
}

static void attempt(void (*access)(uint64_t address), uint64_t address)
{
    if (guest_save(&back) == 0)
        access(address);
}

/* Addresses that nothing maps: any 64 bits but the first 4 GiB, the edges of canonical ones too. */
static uint64_t wild_address(void)
{
    static const uint64_t edges[] = {0x0000800000000000, 0xffff800000000000, 0x8000000000000000,
                                     0xfffffffffffff000, 0x0000000100001000, 0x7ffffffff000};
    uint64_t address = random_next();
    switch (address & 3) {
    case 0: address = edges[(address >> 8) % 6] + (address >> 32) % 128 - 64; break;
    case 1: address &= 0x00007fffffffffff; break;
    case 2: address |= 0xffff800000000000; break;
    default: break;
    }
    return address >> 32 ? address : ~address;
}

static void wild_accesses(bool vectors)
{
    static void (*const accesses[])(uint64_t) = {hostile_load,      hostile_store, hostile_add,
                                                 hostile_copy,      hostile_push,  hostile_jump,
                                                 hostile_undefined, hostile_vector};
    uint64_t count = 40000 * times, total = 0;
    unsigned kinds = vectors ? 8 : 7;
    const uint64_t *sample = (const uint64_t *)0x300000; /* memory that nobody uses */
    guest_handle(6, on_exception);
    for (unsigned vector = 12; vector <= 14; vector++) {
        guest_gate(vector, 1, 0, false);
        guest_handle(vector, on_exception);
    }
    for (unsigned i = 0; i < 0x20000; i++)
        ((uint64_t *)sample)[i] = i;
    for (uint64_t i = 0; i < count; i++)
        attempt(accesses[i % kinds], wild_address());
    for (unsigned i = 0; i < 32; i++)
        total += caught[i];
    check_equal("every wild access faults", total, count);
    check("in more than one way", caught[6] && caught[12] && caught[13] && caught[14]);

    uint64_t wrong = 0;
    for (uint64_t i = 0; i < count / 4; i++) {
        uint64_t address = NOBODY + random_next() % NOBODY_SIZE;
        *(volatile uint32_t *)address = 0x12345678;
        wrong += *(volatile uint32_t *)address != 0xffffffff;
    }
    check_equal("where nobody is, all bits are set", wrong, 0);
    for (unsigned i = 0; i < 0x20000; i++)
        wrong += sample[i] != i;
    check_equal("and memory is as it was", wrong, 0);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    if (guest_emulated("so much work in ring 0")) {
        check("there is nothing to test", true);
        return;
    }
    if (guest_told("long"))
        times = 10;
    moving_pages();
    written_code();
    written_by_the_other();
    many_functions();
    long_path();
    every_address();
    cr4_write(cr4_read() | 0x600);
    wild_accesses(true);
    check("it came to its end", true);
}
