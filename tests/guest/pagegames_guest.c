/* Page tables that change under hot loops: aliases, permissions with and without INVLPG, large
 * pages split and merged, global pages, accessed and dirty bits, privileges. */
#include "guest.h"

enum {
    ROUNDS = 600,
    A = 0x10000000, /* two pages side by side that are no memory by themselves */
    B = A + 4096,
    LARGE = 0x10200000,      /* a large page, */
    LARGE_FRAME = 0x1000000, /* and its memory */
    GIANT_FRAME = 0,
};
enum { P = 1, W = 2, U = 4, ACCESSED = 0x20, DIRTY = 0x40, SIZE = 0x80, GLOBAL = 0x100 };
#define NX    (UINT64_C(1) << 63)
#define GIANT (UINT64_C(4) << 30)

static volatile uint64_t *entry_a, *entry_b;

static uint64_t frame(unsigned number)
{
    return 0x800000 + number * 4096;
}

static volatile uint64_t *words(uint64_t address)
{
    return (volatile uint64_t *)address;
}

/* ---- faults that are expected, counted and repaired ---- */

static volatile struct {
    uint64_t count, error, address;
    volatile uint64_t *entry; /* NULL: left alone */
    uint64_t value;
    uint64_t rflags; /* set in the interrupted flags */
    bool quiet;      /* without an INVLPG */
} fault;

static void on_fault(struct frame *at)
{
    fault.count++;
    fault.error = at->error;
    fault.address = cr2_read();
    at->rflags |= fault.rflags;
    if (fault.entry)
        *fault.entry = fault.value;
    if (!fault.quiet)
        invlpg(fault.address);
}

static void repair(volatile uint64_t *entry, uint64_t value)
{
    fault.entry = entry;
    fault.value = value;
}

/* Since the last call: one fault, as described. */
static bool faulted(uint64_t error, uint64_t address)
{
    bool good = fault.count == 1 && fault.error == error && fault.address == address;
    fault.count = 0;
    return good;
}

static bool faultless(void)
{
    bool good = fault.count == 0;
    fault.count = 0;
    return good;
}

static void map(volatile uint64_t *entry, uint64_t address, uint64_t value)
{
    *entry = value;
    invlpg(address);
}

/* ---- aliases ---- */

static void aliases(void)
{
    uint64_t wrong = 0, seed = 1;
    map(entry_a, A, frame(0) | P | W);
    map(entry_b, B, frame(0) | P | W);
    for (unsigned i = 0; i < 2 * ROUNDS; i++) {
        seed = seed * 6364136223846793005 + 1;
        uint64_t at = seed >> 40 & 0xff8;
        *words(A + at) = seed;
        wrong += *words(B + at) != seed;
        *(volatile uint8_t *)(B + at + 3) = 0x5a;
        wrong += *(volatile uint32_t *)(A + at) != ((uint32_t)seed & 0xffffff) + 0x5a000000;
        *words(B + at) += 7;
        wrong += *words(A + at) != (seed & ~UINT64_C(0xff000000)) + 0x5a000000 + 7;
        __asm__ volatile("lock xadd %0, %1" : "+r"(seed), "+m"(*words(A + at))::"memory");
        wrong += *words(B + at) != *words(frame(0) + at);
        /* Across the boundary: the end of the frame, then its beginning. */
        *words(B - 4) = seed;
        wrong += *(volatile uint32_t *)(A + 4092) != (uint32_t)seed;
        wrong += *(volatile uint32_t *)A != (uint32_t)(seed >> 32);
        wrong += *words(B - 4) != seed;
    }
    check_equal("aliases in a hot loop", wrong, 0);
}

static void alias_of_the_stack(void)
{
    uint64_t wrong = 0;
    for (uint64_t i = 1; i <= ROUNDS; i++) {
        uint64_t seen, popped;
        __asm__ volatile(
            "mov %%rsp, %%r8; lea 2048(%[a]), %%rsp; push %[i]; mov 2040(%[b]), %[seen];"
            "lea (%[i], %[i]), %%r9; mov %%r9, 2040(%[b]); pop %[popped]; mov %%r8, %%rsp"
            : [seen] "=&r"(seen), [popped] "=&r"(popped)
            : [a] "r"((uint64_t)A), [b] "r"((uint64_t)B), [i] "r"(i)
            : "r8", "r9", "memory");
        wrong += seen != i || popped != 2 * i;
    }
    check_equal("a stack and its alias", wrong, 0);
}

/* ---- permissions ---- */

static void with_invlpg(void)
{
    uint64_t wrong = 0;
    uint64_t good = frame(1) | P | W;
    map(entry_a, A, good);
    repair(entry_a, good);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t at = A + i % 512 * 8;
        if (i % 3 == 1)
            map(entry_a, A, frame(1) | P);
        *words(at) = i;
        wrong += i % 3 == 1 ? !faulted(3, at) : !faultless();
        if (i % 3 == 2)
            map(entry_a, A, 0);
        wrong += *words(at) != i;
        wrong += i % 3 == 2 ? !faulted(0, at) : !faultless();
        if (i % 5 == 0)
            map(entry_a, A, frame(1) | P);
        *words(at) += 3;
        wrong += i % 5 == 0 ? !faulted(3, at) : !faultless();
        wrong += *words(frame(1) + i % 512 * 8) != i + 3;
    }
    check_equal("permissions and INVLPG", wrong, 0);
}

/* Without INVLPG, a processor may go on with what it knows, until INVLPG. It caches no absent
 * pages, and what a fault was raised for is looked up again. */
static void without_invlpg(void)
{
    uint64_t wrong = 0;
    uint64_t good = frame(1) | P | W;
    fault.quiet = true;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        map(entry_a, A, good);
        *words(A) = i;
        repair(entry_a, good);
        *entry_a = frame(1) | P;
        *words(A) = i + 1;
        wrong += fault.count > 1 || *words(frame(1)) != i + 1;
        fault.count = 0;
        *entry_a = frame(1) | P;
        invlpg(A);
        *words(A) = i + 2;
        wrong += !faulted(3, A) || *words(frame(1)) != i + 2;

        *entry_a = 0;
        uint64_t seen = *words(A);
        wrong += fault.count > 1 || seen != i + 2;
        fault.count = 0;
        map(entry_a, A, 0);
        wrong += *words(A) != i + 2 || !faulted(0, A); /* repaired without INVLPG */

        map(entry_a, A, frame(1) | P);
        wrong += *words(A) != i + 2;
        *entry_a = good;
        repair(NULL, 0);
        *words(A) = i + 3; /* more rights: one fault at most, for nothing */
        wrong += fault.count > 1 || *words(frame(1)) != i + 3;
        fault.count = 0;

        *words(frame(2)) = ~i;
        *entry_a = frame(2) | P | W;
        seen = *words(A);
        wrong += seen != i + 3 && seen != ~i;
        invlpg(A);
        wrong += *words(A) != ~i || !faultless();
    }
    fault.quiet = false;
    check_equal("changes without INVLPG", wrong, 0);
}

/* The second page of an access is another one each time. */
static void second_pages(void)
{
    uint64_t wrong = 0;
    map(entry_a, A, frame(3) | P | W);
    for (unsigned i = 0; i < 2 * ROUNDS; i++) {
        uint64_t at = frame(4 + i % 5);
        uint32_t low = i * 3, high = i * 5;
        *(volatile uint32_t *)(frame(3) + 4092) = low;
        *(volatile uint32_t *)at = high;
        map(entry_b, B, at | P | W);
        wrong += *words(B - 4) != ((uint64_t)high << 32 | low);
        *words(B - 4) = (uint64_t)(high + 1) << 32 | (low + 1);
        wrong += *(volatile uint32_t *)(frame(3) + 4092) != low + 1;
        wrong += *(volatile uint32_t *)at != high + 1;
    }
    check_equal("a second page that changes", wrong, 0);
}

/* Through a CR3 write instead, and from the table one level up. */
static void by_cr3_and_upper_levels(void)
{
    static uint64_t other[512] __attribute__((aligned(4096)));
    uint64_t wrong = 0, table = page_level2[A >> 21];
    for (unsigned i = 0; i < 4; i++)
        *words(frame(4 + i)) = 100 + i;
    for (unsigned i = 0; i < 2 * ROUNDS; i++) {
        *entry_a = frame(4 + i % 2) | P | W;
        cr3_write(cr3_read());
        wrong += *words(A) != 100 + i % 2;
        other[0] = frame(6 + i % 2) | P;
        page_level2[A >> 21] = (uint64_t)other | P | W | U;
        invlpg(A);
        wrong += *words(A) != 102 + i % 2;
        page_level2[A >> 21] = table;
        invlpg(A);
        wrong += *words(A) != 100 + i % 2;
    }
    check_equal("CR3 and upper levels", wrong, 0);
}

/* ---- large pages ---- */

static void split_and_merge(void)
{
    static uint64_t small[512] __attribute__((aligned(4096)));
    uint64_t wrong = 0, seed = 3;
    volatile uint64_t *large = &page_level2[LARGE >> 21];
    map(large, LARGE, LARGE_FRAME | P | W | SIZE);
    for (unsigned i = 0; i < 512; i++)
        small[i] = (LARGE_FRAME + i * 4096) | P | W;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        unsigned page[4];
        for (unsigned k = 0; k < 4; k++) {
            seed = seed * 6364136223846793005 + 1;
            page[k] = (unsigned)(seed >> 40 & 0x7f) * 4 + k;
            *words(LARGE + page[k] * 4096) = i + k;
            wrong += *words(LARGE_FRAME + page[k] * 4096) != i + k;
        }
        *words(frame(9)) = ~i;
        small[page[1]] = frame(9) | P | W;
        *large = (uint64_t)small | P | W;
        invlpg(LARGE + page[i % 4] * 4096); /* any address in the page drops all of it */
        wrong += *words(LARGE + page[0] * 4096) != i || *words(LARGE + page[1] * 4096) != ~i ||
                 *words(LARGE + page[2] * 4096) != i + 2;
        *words(LARGE + page[1] * 4096 + 8) = i;
        wrong += *words(frame(9) + 8) != i;
        small[page[1]] = (LARGE_FRAME + page[1] * 4096) | P | W;
        *large = LARGE_FRAME | P | W | SIZE;
        if (i % 2)
            cr3_write(cr3_read());
        else
            for (unsigned k = 0; k < 4; k++)
                invlpg(LARGE + page[k] * 4096);
        for (unsigned k = 0; k < 4; k++)
            wrong += *words(LARGE + page[k] * 4096) != i + k;
    }
    check_equal("large pages split and merged", wrong, 0);
}

static void giant_pages(void)
{
    static uint64_t large[512] __attribute__((aligned(4096)));
    uint32_t features[4];
    uint64_t wrong = 0;
    cpuid(0x80000001, 0, features);
    if (!(features[3] & 1 << 26)) {
        print("SKIP pages of 1 GiB\n");
        return;
    }
    for (unsigned i = 0; i < 512; i++)
        large[i] = (GIANT_FRAME + i * UINT64_C(0x200000)) | P | W | SIZE;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t at = frame(i % 32);
        page_level3[GIANT >> 30] = GIANT_FRAME | P | W | SIZE;
        invlpg(GIANT + at);
        *words(GIANT + at) = i;
        wrong += *words(at) != i;
        *words(at + 0x200000) = ~i; /* seen where the 2 MiB before it were */
        large[at >> 21] = ((at & ~UINT64_C(0x1fffff)) + 0x200000) | P | W | SIZE;
        page_level3[GIANT >> 30] = (uint64_t)large | P | W;
        invlpg(GIANT + 0x3ff00000 + i % 8 * 4096);
        wrong += *words(GIANT + at) != ~i;
        large[at >> 21] = (at & ~UINT64_C(0x1fffff)) | P | W | SIZE;
        invlpg(GIANT + at);
        wrong += *words(GIANT + at) != i;
    }
    page_level3[GIANT >> 30] = 0;
    invlpg(GIANT);
    check_equal("pages of 1 GiB split and merged", wrong, 0);
}

/* ---- global pages ---- */

static void global_pages(void)
{
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t one = frame(10 + i % 2), two = frame(11 - i % 2);
        *words(one) = i;
        *words(two) = ~i;
        cr4_write(cr4_read() | 0x80);
        map(entry_a, A, one | P | W | GLOBAL);
        map(entry_b, B, one | P | W);
        wrong += *words(A) != i || *words(B) != i;
        *entry_a = two | P | W | GLOBAL;
        *entry_b = two | P | W;
        cr3_write(cr3_read());
        wrong += *words(B) != ~i;
        wrong += *words(A) != i && *words(A) != ~i; /* global: both are right */
        if (i % 2)
            invlpg(A);
        else
            cr4_write(cr4_read() & ~UINT64_C(0x80));
        wrong += *words(A) != ~i;
        cr4_write(cr4_read() & ~UINT64_C(0x80));
    }
    check_equal("global pages", wrong, 0);
}

/* ---- accessed and dirty ---- */

static void accessed_and_dirty(void)
{
    uint64_t wrong = 0, clean = frame(12) | P | W;
    map(entry_b, B, frame(13) | P | W);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        map(entry_a, A, clean);
        memory_barrier();
        wrong += *entry_a != clean;
        uint64_t seen = 0;
        for (unsigned k = 0; k < 16; k++)
            seen += words(A)[k];
        (void)seen;
        wrong += (*entry_a ^ clean) != ACCESSED;
        __asm__ volatile("btl $3, %0; testq $1, %0; cmp %1, %0" ::"m"(*words(A)), "r"(i) : "cc");
        wrong += (*entry_a ^ clean) != ACCESSED;
        for (unsigned k = 0; k < 8; k++) {
            words(B)[k] = i; /* another page's stores */
            wrong += (*entry_a ^ clean) != ACCESSED;
        }
        words(A)[i % 512] = i;
        memory_barrier();
        wrong += (*entry_a ^ clean) != (ACCESSED | DIRTY);
        *entry_a &= ~(uint64_t)(ACCESSED | DIRTY);
        invlpg(A);
        uint64_t guess = ~i;
        switch (i % 4) { /* the first access is a store, in one of many ways */
        case 0: words(A)[1] = i; break;
        case 1: /* a compare that fails writes as well */
            __asm__ volatile("lock cmpxchg %2, %0"
                             : "+m"(*words(A)), "+a"(guess)
                             : "r"(i)
                             : "memory", "cc");
            break;
        case 2:
            *words(A + 4092) = i; /* and the next page */
            break;
        default:
            __asm__ volatile(
                "push %%rdi; mov %0, %%edi; mov $8, %%ecx; rep stosb; pop %%rdi" ::"r"(A)
                : "rcx", "memory");
        }
        memory_barrier();
        wrong += (*entry_a ^ clean) != (ACCESSED | DIRTY);
    }
    check_equal("accessed and dirty bits in a hot loop", wrong, 0);
}

/* A large page and the tables above it. */
static void accessed_above(void)
{
    uint64_t wrong = 0;
    volatile uint64_t *large = &page_level2[LARGE >> 21], *table = &page_level2[A >> 21];
    for (uint64_t i = 0; i < ROUNDS; i++) {
        map(large, LARGE, LARGE_FRAME | P | W | SIZE);
        (void)*words(LARGE + i * 4096 % 0x200000);
        wrong += (*large & (ACCESSED | DIRTY)) != ACCESSED;
        *words(LARGE + i * 64) = i;
        memory_barrier();
        wrong += (*large & (ACCESSED | DIRTY)) != (ACCESSED | DIRTY);
        *table &= ~(uint64_t)ACCESSED;
        map(entry_a, A, frame(1) | P | W);
        *words(A) = i;
        memory_barrier();
        wrong += !(*table & ACCESSED);
    }
    check_equal("accessed and dirty bits above", wrong, 0);
}

/* ---- CR0, CR4, EFER and EFLAGS decide too ---- */

static void write_protect(void)
{
    uint64_t wrong = 0;
    map(entry_a, A, frame(1) | P);
    repair(NULL, 0);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        cr0_write(cr0_read() & ~UINT64_C(0x10000));
        *words(A) = i;
        wrong += !faultless() || *words(A) != i;
        cr0_write(cr0_read() | 0x10000);
        wrong += *words(A) != i;
        repair(entry_a, frame(1) | P | W);
        *words(A) = i + 1;
        wrong += !faulted(3, A) || *words(frame(1)) != i + 1;
        map(entry_a, A, frame(1) | P);
    }
    check_equal("CR0.WP in a hot loop", wrong, 0);
}

static void no_execute_enable(void)
{
    uint64_t wrong = 0, good = frame(1) | P | W;
    map(entry_a, A, good | NX);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        *words(A) = i;
        wrong += !faultless();
        wrmsr(0xc0000080, rdmsr(0xc0000080) & ~UINT64_C(0x800));
        invlpg(A);
        repair(entry_a, good);
        wrong += *words(A) != i || !faulted(9, A); /* without NXE the bit is reserved */
        wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
        map(entry_a, A, good | NX);
    }
    check_equal("EFER.NXE in a hot loop", wrong, 0);
}

static void user_bit_and_smep(void)
{
    uint32_t features[4];
    uint64_t wrong = 0, good = frame(1) | P | W;
    cpuid(7, 0, features);
    if (!(features[1] & 1 << 7)) {
        print("SKIP SMEP in a hot loop\n");
        return;
    }
    map(entry_a, A, good);
    *(volatile uint8_t *)A = 0xc3;
    repair(entry_a, good);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        map(entry_a, A, good | U);
        ((void (*)(void))(uint64_t)A)();
        wrong += !faultless();
        cr4_write(cr4_read() | 1 << 20);
        ((void (*)(void))(uint64_t)A)();
        wrong += !faulted(0x11, A);
        ((void (*)(void))(uint64_t)A)();
        wrong += !faultless();
        map(entry_a, A, good | U);
        ((void (*)(void))(uint64_t)A)();
        wrong += !faulted(0x11, A);
        cr4_write(cr4_read() & ~(UINT64_C(1) << 20));
    }
    check_equal("SMEP in a hot loop", wrong, 0);
}

static void user_bit_and_smap(void)
{
    uint32_t features[4];
    uint64_t wrong = 0;
    cpuid(7, 0, features);
    if (!(features[1] & 1 << 20) || guest_emulated("STAC and CLAC")) {
        print("SKIP SMAP in a hot loop\n");
        return;
    }
    map(entry_a, A, frame(1) | P | W | U);
    repair(NULL, 0);
    fault.rflags = 1 << 18; /* AC: it may, from then on */
    for (uint64_t i = 0; i < ROUNDS; i++) {
        *words(A) = i;
        wrong += !faultless();
        cr4_write(cr4_read() | 1 << 21);
        __asm__ volatile("stac" ::: "memory");
        wrong += *words(A) != i || !faultless();
        *words(A) = i + 1;
        __asm__ volatile("clac" ::: "memory");
        wrong += *words(A) != i + 1 || !faulted(1, A);
        *words(A) = i + 2;
        wrong += !faultless();
        __asm__ volatile("clac" ::: "memory");
        *words(A + 8) = i + 2;
        wrong += !faulted(3, A + 8);
        __asm__ volatile("pushfq; btrq $18, (%%rsp); popfq" ::: "memory", "cc");
        __asm__ volatile("incq %0" : "+m"(*words(A))::"cc");
        wrong += !faulted(3, A) || *words(A) != i + 3 || *words(A + 8) != i + 2;
        __asm__ volatile("clac" ::: "memory");
        cr4_write(cr4_read() & ~(UINT64_C(1) << 21));
    }
    fault.rflags = 0;
    check_equal("SMAP in a hot loop", wrong, 0);
}

/* ---- ring 3 ---- */

/* Reads (RSI) again and again, and lets the kernel do its worst in between. */
__asm__(".balign 4096\n"
        "user_reads: mov (%rsi), %rax; add %rax, %rbx; int $0x81; add 8(%rsi), %rbx;"
        "  dec %edi; jnz user_reads; int $0x82\n"
        ".balign 4096\n");
extern const char user_reads[];

static uint8_t user_stack[4096] __attribute__((aligned(4096)));
static struct guest_place back;
static volatile uint64_t user_sum, user_wrong, user_round;

static void on_round(struct frame *at)
{
    (void)at;
    uint64_t round = user_round++;
    user_wrong += round % 2 ? !faulted(5, A) : !faultless();
    user_wrong += *words(A) != 5;
    map(entry_a, A, frame(1) | P | W | (round % 2 ? U : 0)); /* 8(%rsi) comes next */
    user_wrong += *words(A + 8) != 6;
    if (round % 2)
        return;
    /* The page is the kernel's: the read of A + 8 must fault, and the handler gives it back. */
    fault.count = 0;
}

static void on_user_fault(struct frame *at)
{
    uint64_t address = cr2_read();
    user_wrong += at->error != 5 || *words(address) != (address == A ? 5 : 6);
    if (address == A) {
        on_fault(at);
        return;
    }
    map(entry_a, A, frame(1) | P | W); /* the next read of A faults again */
    *entry_a |= U;                     /* more rights need no INVLPG */
    user_wrong += user_round % 2 != 1;
    user_sum++;
    invlpg(A);
    at->rflags |= 0x100; /* one step, then it is the kernel's again */
}

static void on_user_step(struct frame *at)
{
    at->rflags &= ~UINT64_C(0x100);
    map(entry_a, A, frame(1) | P | W);
}

static void on_end(struct frame *at)
{
    user_wrong += at->rbx != 11 * ROUNDS;
    guest_return(&back);
}

static void in_ring_3(void)
{
    if (guest_emulated("software interrupts from ring 3"))
        return;
    *guest_page((uint64_t)user_reads) |= U;
    *guest_page((uint64_t)user_stack) |= U;
    map(entry_a, A, frame(1) | P | W | U);
    cr3_write(cr3_read());
    *words(A) = 5;
    *words(A + 8) = 6;
    repair(entry_a, frame(1) | P | W | U);
    guest_handle(14, on_user_fault);
    guest_handle(1, on_user_step);
    guest_handle(0x81, on_round);
    guest_handle(0x82, on_end);
    guest_gate(0x81, 0, 3, false);
    guest_gate(0x82, 0, 3, false);
    fault.count = 0;
    if (guest_save(&back) == 0)
        __asm__ volatile(
            "push %0; push %1; push $2; push %2; push %3; xor %%ebx, %%ebx; iretq" ::"r"(
                (uint64_t)SELECTOR_USER_DATA),
            "r"((uint64_t)user_stack + sizeof user_stack), "r"((uint64_t)SELECTOR_USER_CODE),
            "r"((uint64_t)user_reads), "D"(ROUNDS), "S"(A)
            : "memory");
    check_equal("pages between ring 3 and the kernel", user_wrong, 0);
    check_equal("each fault of ring 3 came", user_sum, ROUNDS / 2);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    page_level4[0] |= U;
    page_level3[0] |= U;
    entry_a = guest_page(A);
    entry_b = guest_page(B);
    guest_handle(14, on_fault);
    aliases();
    alias_of_the_stack();
    with_invlpg();
    without_invlpg();
    second_pages();
    by_cr3_and_upper_levels();
    split_and_merge();
    giant_pages();
    global_pages();
    accessed_and_dirty();
    accessed_above();
    write_protect();
    no_execute_enable();
    user_bit_and_smep();
    user_bit_and_smap();
    in_ring_3();
}
