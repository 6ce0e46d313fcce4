/* PCIDs in hot loops: translations kept over CR3 writes with bit 63, dropped without it, by INVPCID
 * of each type, by INVLPG, and with CR4.PCIDE. */
#include "guest.h"

enum { ROUNDS = 600, A = 0x10000000, B = A + 4096 };
enum { P = 1, W = 2, GLOBAL = 0x100, SPACES = 3 };
#define KEEP (UINT64_C(1) << 63)

/* Spaces 0, 1, 2 have PCIDs 1, 2, 3; in each, A and B are pages of its own. */
static struct {
    uint64_t root;
    volatile uint64_t *table;
} space[SPACES];

static uint64_t frame(unsigned number)
{
    return 0x800000 + number * 4096;
}

static volatile uint64_t *words(uint64_t address)
{
    return (volatile uint64_t *)address;
}

static volatile uint64_t *entry(unsigned number, uint64_t address)
{
    return &space[number].table[address >> 12 & 511];
}

static void enter(unsigned number, uint64_t keep)
{
    cr3_write(space[number].root | (number + 1) | keep);
}

static void invpcid(uint64_t type, uint64_t pcid, uint64_t address)
{
    struct {
        uint64_t pcid, address;
    } descriptor = {pcid, address};
    __asm__ volatile("invpcid %0, %1" ::"m"(descriptor), "r"(type) : "memory");
}

/* Each space reads and writes its own pages while CR3 changes every few instructions. */
static void kept(void)
{
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < 4 * ROUNDS; i++) {
        unsigned number = (unsigned)(i * i + i / 3) % SPACES;
        enter(number, i % 7 ? KEEP : 0);
        wrong += *words(A) != 10 + number;
        *words(B + 8) = i;
        wrong += *words(frame(number + SPACES) + 8) != i;
        *words(B - 4) = (i + 1) << 32 | (10 + number) >> 16; /* across the two */
        wrong += *(volatile uint32_t *)frame(number + SPACES) != (uint32_t)(i + 1);
        *(volatile uint32_t *)B = (uint32_t)(20 + number);
        wrong += *(volatile uint32_t *)frame(number + SPACES) != 20 + number;
    }
    enter(0, 0);
    check_equal("spaces that keep their translations", wrong, 0);
}

/* How what space 1 knows of A is dropped while space 0 is current. */
static void drop(unsigned how)
{
    switch (how) {
    case 0: enter(1, 0); break;
    case 1: invpcid(0, 2, A); break;
    case 2: invpcid(1, 2, 0); break;
    case 3: invpcid(2, 0, 0); break;
    case 4: invpcid(3, 0, 0); break;
    case 5: /* CR4.PCIDE may be set again only where the PCID is 0 */
        cr3_write(space[2].root);
        cr4_write(cr4_read() & ~(UINT64_C(1) << 17));
        cr4_write(cr4_read() | 1 << 17);
        break;
    case 6:
        cr4_write(cr4_read() ^ 0x80); /* PGE */
        break;
    default:
        enter(1, KEEP);
        invlpg(A);
        enter(0, KEEP);
    }
}

static void dropped(void)
{
    uint64_t wrong[8] = {0};
    for (uint64_t i = 0; i < 2 * ROUNDS; i++) {
        unsigned how = i % 8;
        uint64_t one = frame(8 + i % 2), two = frame(9 - i % 2);
        enter(1, 0);
        *words(one) = i;
        *words(two) = ~i;
        *entry(1, A) = one | P | W;
        invlpg(A);
        wrong[how] += *words(A) != i;
        enter(0, KEEP);
        wrong[how] += *words(A) != 10;
        *entry(1, A) = two | P | W;
        drop(how);
        enter(1, KEEP);
        wrong[how] += *words(A) != ~i;
        enter(0, KEEP);
        wrong[how] += *words(A) != 10;
    }
    *entry(1, A) = frame(1) | P | W;
    invpcid(2, 0, 0);
    check_equal("CR3 without bit 63", wrong[0], 0);
    check_equal("INVPCID of an address", wrong[1], 0);
    check_equal("INVPCID of a PCID", wrong[2], 0);
    check_equal("INVPCID of everything", wrong[3], 0);
    check_equal("INVPCID of all PCIDs", wrong[4], 0);
    check_equal("CR4.PCIDE", wrong[5], 0);
    check_equal("CR4.PGE", wrong[6], 0);
    check_equal("INVLPG in its space", wrong[7], 0);
    cr4_write(cr4_read() & ~UINT64_C(0x80));
}

/* A global page is every PCID's, and only some ways drop it. */
static void global(void)
{
    uint64_t wrong = 0;
    cr4_write(cr4_read() | 0x80);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t one = frame(8 + i % 2), two = frame(9 - i % 2);
        *words(one) = i;
        *words(two) = ~i;
        enter(0, KEEP);
        for (unsigned number = 0; number < SPACES; number++)
            *entry(number, B) = one | P | W | GLOBAL;
        invlpg(B);
        wrong += *words(B) != i;
        enter(1, KEEP);
        wrong += *words(B) != i;
        for (unsigned number = 0; number < SPACES; number++)
            *entry(number, B) = two | P | W | GLOBAL;
        enter(2, KEEP);
        wrong += *words(B) != i && *words(B) != ~i;
        if (i % 2)
            invpcid(2, 0, 0);
        else
            invlpg(B);
        wrong += *words(B) != ~i;
        enter(1, KEEP);
        wrong += *words(B) != ~i;
    }
    cr4_write(cr4_read() & ~UINT64_C(0x80));
    enter(0, 0);
    check_equal("global pages and PCIDs", wrong, 0);
}

static void bad_type(void *argument)
{
    invpcid((uint64_t)argument, 1, 0);
}
static void bad_pcid(void *argument)
{
    invpcid((uint64_t)argument, 0x1000, 0);
}
static void bad_address(void *argument)
{
    invpcid((uint64_t)argument, 1, UINT64_C(1) << 63);
}
static void set_pcide(void *argument)
{
    (void)argument;
    cr4_write(cr4_read() | 1 << 17);
}

void guest_main(uint32_t multiboot_info)
{
    uint32_t features[4], more[4];
    (void)multiboot_info;
    cpuid(1, 0, features);
    cpuid(7, 0, more);
    if (!(features[2] & 1 << 17) || !(more[1] & 1 << 10)) {
        print("SKIP PCID and INVPCID\n");
        check("there is nothing to test", true);
        return;
    }
    uint64_t plain = cr3_read(), *table;
    cr3_write(plain | 8); /* PCD: no PCID, but CR3's low twelve bits are not 0 */
    check_equal("PCIDE with low bits in CR3", (uint64_t)guest_try(set_pcide, NULL).vector, 13);
    cr3_write(plain);
    for (unsigned i = 0; i < SPACES; i++) {
        space[i].root = guest_space(A, &table);
        space[i].table = table;
        *entry(i, A) = frame(i) | P | W;
        *entry(i, B) = frame(i + SPACES) | P | W;
        *words(frame(i)) = 10 + i;
    }
    cr4_write(cr4_read() | 1 << 17);
    kept();
    dropped();
    global();
    check_equal("no such type", (uint64_t)guest_try(bad_type, (void *)4).vector, 13);
    check_equal("reserved bits", (uint64_t)guest_try(bad_pcid, (void *)1).vector, 13);
    check_equal("a non-canonical address", (uint64_t)guest_try(bad_address, (void *)0).vector, 13);
    cr3_write(plain);
    cr4_write(cr4_read() & ~(UINT64_C(1) << 17));
}
