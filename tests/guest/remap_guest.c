/* Hot code whose pages become other pages: a page table entry and INVLPG, CR3 with and without
 * PCIDs, pages that are no longer there or no longer executable. The loops are in remap_code.S. */
#include "guest.h"

enum { ROUNDS = 2000, COPIES = 0x800000 }; /* the other pages, in memory */

#define NX (UINT64_C(1) << 63)

struct loop {
    const char *name;
    uint64_t (*run)(uint64_t rounds, uint64_t *entry, uint64_t now, uint64_t difference,
                    uint64_t value, uint64_t mask);
    uint8_t *page;
    uint32_t *immediate;
    const uint8_t *rip;
};
extern const struct loop remap_pte[], remap_cr3[]; /* each ended by one without a name */

static void complain(const struct loop *loop, uint64_t wrong)
{
    if (wrong) {
        print("wrong: ");
        print(loop->name);
        print("\n");
    }
}

/* A copy of the loop's page in which the immediate is 2, as a page table entry. */
static uint64_t copy_of(const struct loop *loop, unsigned number)
{
    uint8_t *copy = (uint8_t *)(uint64_t)(COPIES + number * 4096);
    memcpy(copy, loop->page, 4096);
    *(uint32_t *)(copy + ((uint64_t)loop->immediate & 0xfff)) = 2;
    serialize();
    return (uint64_t)copy | 3;
}

/* Both pages in turn: each round, and after they were hot for a while. */
static uint64_t in_turn(const struct loop *loop, uint64_t *entry, uint64_t now, uint64_t other)
{
    uint64_t wrong = 0;
    for (unsigned i = 0; i < 2; i++) {
        wrong += loop->run(ROUNDS, entry, now, now ^ other, 1, 255);
        wrong += loop->run(ROUNDS, entry, now, now ^ other, 1, 0);
    }
    complain(loop, wrong);
    return wrong;
}

static void by_entry(void)
{
    uint64_t wrong = 0;
    unsigned number = 0;
    for (const struct loop *loop = remap_pte; loop->name; loop++) {
        uint64_t *entry = guest_page((uint64_t)loop->page);
        uint64_t now = *entry & ~UINT64_C(0x60);
        wrong += in_turn(loop, entry, now, copy_of(loop, number++));
        guest_map((uint64_t)loop->page, now);
    }
    check_equal("code that moved by INVLPG", wrong, 0);
}

static uint64_t fault_error, fault_address;
static const uint8_t *fault_rip;
static uint64_t *fault_entry, fault_good;
static volatile uint64_t faults, wrong_faults;

static void on_page_fault(struct frame *frame)
{
    faults++;
    wrong_faults += frame->error != fault_error || frame->rip != (uint64_t)fault_rip ||
                    cr2_read() != fault_address;
    *fault_entry = fault_good;
    invlpg(fault_address);
}

/* Of four calls, one finds its page gone (`bad` clear) or not executable. */
static uint64_t taken_away(const struct loop *loop, uint64_t clear, uint64_t set, uint64_t error)
{
    uint64_t wrong = 0;
    fault_entry = guest_page((uint64_t)loop->page);
    fault_good = *fault_entry;
    fault_error = error;
    fault_address = (uint64_t)loop->page;
    fault_rip = loop->rip;
    wrong_faults = 0;
    guest_handle(14, on_page_fault);
    for (unsigned i = 0; i < ROUNDS / 2; i++) {
        bool gone = i > 300 && i % 4 == 1;
        if (gone) {
            *fault_entry = (fault_good & ~clear) | set;
            invlpg(fault_address);
        }
        faults = 0;
        wrong += loop->run(1, NULL, 0, 0, 1, 1); /* one round without a switch */
        wrong += faults != gone;
    }
    guest_handle(14, NULL);
    wrong += wrong_faults;
    complain(loop, wrong);
    return wrong;
}

static void permissions(void)
{
    uint64_t absent = 0, no_execute = 0;
    for (const struct loop *loop = remap_pte; loop->name; loop++) {
        absent += taken_away(loop, 1, 0, 0x10);
        no_execute += taken_away(loop, 0, NX, 0x11);
    }
    check_equal("code that is not there", absent, 0);
    check_equal("code that is not executable", no_execute, 0);
}

/* Another space in which all the loops' pages are their copies. */
static uint64_t other_space(void)
{
    uint64_t *table;
    unsigned number = 0;
    uint64_t root = guest_space((uint64_t)remap_cr3[0].page, &table);
    for (const struct loop *loop = remap_cr3; loop->name; loop++)
        table[(uint64_t)loop->page >> 12 & 511] = copy_of(loop, number++);
    return root;
}

static uint64_t by_space(uint64_t one, uint64_t two)
{
    uint64_t wrong = 0, saved = cr3_read();
    for (const struct loop *loop = remap_cr3; loop->name; loop++) {
        cr3_write(one);
        wrong += in_turn(loop, NULL, one, two);
        cr3_write(saved);
    }
    return wrong;
}

static void spaces(void)
{
    uint32_t features[4];
    uint64_t one = cr3_read(), two = other_space();
    check_equal("code that moved by CR3", by_space(one, two), 0);
    cpuid(1, 0, features);
    if (!(features[2] & 1 << 17)) {
        print("SKIP PCID\n");
        return;
    }
    cr4_write(cr4_read() | 1 << 17);
    check_equal("code that moved by CR3 with PCIDs", by_space(one | 1, two | 2), 0);
    check_equal("and with PCIDs that keep their translations", by_space(one | 1 | NX, two | 2 | NX),
                0);
    cr4_write(cr4_read() & ~(UINT64_C(1) << 17));
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    by_entry();
    permissions();
    spaces();
}
