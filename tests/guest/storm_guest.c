/* A storm of timer interrupts over hot loops that use every register: whatever the handler does to
 * them, the work comes to what it comes to with interrupts off. The loops are in storm_code.S. */
#include "guest.h"

enum { CHUNK = 300, CHUNKS = 400, TICKS = 2000, WAITS = 30, USER_IF = 0x202 };
enum { SVR = 0xf0 / 4, EOI = 0xb0 / 4, TIMER = 0x320 / 4, COUNT = 0x380 / 4, DIVIDE = 0x3e0 / 4 };

static volatile uint32_t *const apic = (volatile uint32_t *)0xfee00000;

extern void storm_mix(void), storm_user(void), storm_clobber(void);
extern uint64_t storm_strings(uint8_t *buffer, uint64_t rounds);
extern void storm_wait_jump(uint64_t), storm_wait_register(uint64_t), storm_wait_call(uint64_t),
    storm_wait_indirect(uint64_t), storm_wait_return(uint64_t), storm_wait_loop(uint64_t),
    storm_wait_rep(uint64_t), storm_wait_pages(uint64_t);
extern uint8_t storm_vectors[1024], storm_area[0x8000];
extern uint64_t storm_state[16];
extern volatile uint64_t storm_rounds, storm_ticks;

static uint8_t user_stack[4096] __attribute__((aligned(4096)));
static struct guest_place back;
static volatile uint64_t from_user;
static bool with_vectors;

static void on_timer(struct frame *frame)
{
    storm_ticks++;
    from_user += (frame->cs & 3) == 3;
    if (with_vectors)
        storm_clobber();
    apic[EOI] = 0;
}

static void timer(bool on)
{
    apic[TIMER] = on ? 0x20042 : 0x10000; /* periodic */
    apic[COUNT] = on ? 20000 : 0;
}

/* ---- the mix of everything ---- */

struct result {
    uint64_t state[16];
    uint8_t vectors[1024];
};

static void start(uint64_t seed)
{
    uint64_t *quads = (uint64_t *)storm_vectors;
    memset(storm_vectors, 0, 1024);
    quads[0] = 0x37f | UINT64_C(0xff) << 32; /* all eight registers of x87 are in use */
    quads[3] = 0x1f80;
    for (unsigned i = 0; i < 8; i++) {
        quads[4 + i * 2] = seed * 0x123456789 << i | UINT64_C(1) << 63;
        quads[5 + i * 2] = 0x3fff + i;
    }
    for (unsigned i = 20; i < 104; i++)
        if (i < 52 || i >= 72)
            quads[i] = seed = seed * 6364136223846793005 + 1;
    quads[64] = 7;
    for (unsigned i = 0; i < 15; i++)
        storm_state[i] = seed = seed * 6364136223846793005 + 1;
    storm_rounds = CHUNK;
}

/* Bytes that count: not the addresses that x87 keeps, not the header of XSAVE. */
static bool same(const struct result *one)
{
    const uint64_t *saved = (const uint64_t *)one->vectors;
    const uint64_t *now = (const uint64_t *)storm_vectors;
    bool equal = (saved[0] & 0xffffffffffff) == (now[0] & 0xffffffffffff);
    for (unsigned i = 0; i < 15; i++)
        equal &= one->state[i] == storm_state[i];
    equal &= ((one->state[15] ^ storm_state[15]) & 0x8d5) == 0;
    for (unsigned i = 4; i < 104; i++)
        if (i < 52 || i >= 72)
            equal &= saved[i] == now[i];
    return equal;
}

static void on_gate(struct frame *frame)
{
    (void)frame;
    guest_return(&back);
}

static void in_ring_3(void (*body)(void))
{
    if (guest_save(&back) == 0)
        __asm__ volatile("mov %3, %%r15; push %0; push %1; push $0x202; push %2; push $storm_user;"
                         "iretq" ::"r"((uint64_t)SELECTOR_USER_DATA),
                         "r"((uint64_t)user_stack + sizeof user_stack),
                         "r"((uint64_t)SELECTOR_USER_CODE), "r"(body)
                         : "memory");
}

static void mixed(bool user)
{
    static struct result wanted;
    uint64_t wrong = 0, ticks = storm_ticks;
    for (unsigned i = 0; i < CHUNKS || (storm_ticks - ticks < TICKS && i < 50 * CHUNKS); i++) {
        start(i / 8 + 1);
        if (i % 8 == 0) { /* as it should be */
            interrupts_off();
            storm_mix();
            memcpy(wanted.state, storm_state, sizeof wanted.state);
            memcpy(wanted.vectors, storm_vectors, sizeof wanted.vectors);
            start(i / 8 + 1);
        }
        interrupts_on();
        if (user)
            in_ring_3(storm_mix);
        else
            storm_mix();
        wrong += !same(&wanted);
    }
    interrupts_off();
    check_equal(user ? "all registers, in ring 3" : "all registers", wrong, 0);
    check("and the timer came", storm_ticks - ticks >= TICKS / 4);
}

static void strings(void)
{
    uint64_t wrong = 0, ticks = storm_ticks;
    memset(storm_area, 0, sizeof storm_area);
    uint64_t wanted = storm_strings(storm_area, 20);
    interrupts_on();
    for (unsigned i = 0; i < 60 || (storm_ticks - ticks < TICKS / 2 && i < 2000); i++)
        wrong += storm_strings(storm_area, 20) != wanted;
    interrupts_off();
    check("string instructions ran", wanted != 0);
    check_equal("string instructions", wrong, 0);
}

static void waits(void)
{
    static void (*const loops[])(uint64_t) = {
        storm_wait_jump,   storm_wait_register, storm_wait_call, storm_wait_indirect,
        storm_wait_return, storm_wait_loop,     storm_wait_rep,  storm_wait_pages};
    interrupts_on();
    for (unsigned i = 0; i < WAITS; i++)
        for (unsigned k = 0; k < sizeof loops / sizeof loops[0]; k++)
            loops[k](storm_ticks);
    interrupts_off();
    check("every loop lets the timer in", true);
}

void guest_main(uint32_t multiboot_info)
{
    uint32_t features[4];
    (void)multiboot_info;
    outb(0x21, 0xff); /* the PIC is not part of this */
    outb(0xa1, 0xff);
    apic[SVR] = 0x1ff;
    apic[DIVIDE] = 0xb; /* by 1 */
    guest_handle(0x42, on_timer);
    timer(true);
    waits();
    strings();
    cpuid(1, 0, features);
    if (guest_emulated("SSE and x87 in ring 0") || !(features[2] & 1 << 28) ||
        !(features[2] & 1 << 26)) {
        print("SKIP registers of AVX\n");
        return;
    }
    cr4_write(cr4_read() | 1 << 18 | 0x600);
    __asm__ volatile("xsetbv" ::"a"(7), "d"(0), "c"(0));
    with_vectors = true;
    mixed(false);
    check_equal("nothing of that was ring 3", from_user, 0);
    page_level4[0] |= 4;
    page_level3[0] |= 4;
    page_level2[0] |= 4;
    cr3_write(cr3_read());
    guest_handle(0x81, on_gate);
    guest_gate(0x81, 0, 3, false);
    mixed(true);
    check("all of that was", from_user > 0);
    timer(false);
}
