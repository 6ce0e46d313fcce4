#include "demand.h"

enum { RESIDENT = 6 };
enum { P = 1, W = 2 };

uint64_t demand_wrong, demand_from, demand_to, demand_total;
bool (*demand_check)(struct frame *frame, uint64_t address);

static uint64_t faults, resident[RESIDENT];
static unsigned next_out;

uint64_t demand_random(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1d;
}

void demand_fill(uint64_t begin)
{
    uint64_t *quads = at(begin);
    for (unsigned i = 0; i < SIZE / 8; i++)
        quads[i] = demand_random();
}

static void page_in(uint64_t address, bool write)
{
    uint64_t page = address & ~UINT64_C(0xfff);
    uint64_t frame = page - SOURCE + FRAMES;
    if (*guest_page(page) & P) { /* read-only so far */
        guest_map(page, frame | P | W);
        return;
    }
    if (resident[next_out])
        guest_map(resident[next_out], 0);
    resident[next_out] = page;
    next_out = (next_out + 1) % RESIDENT;
    guest_map(page, frame | P | (write && demand_random() >> 62 ? W : 0));
}

static void all_out(void)
{
    for (unsigned i = 0; i < RESIDENT; i++) {
        if (resident[i])
            guest_map(resident[i], 0);
        resident[i] = 0;
    }
}

static void on_fault(struct frame *frame)
{
    uint64_t address = cr2_read();
    bool ours = (address >= SOURCE && address < SOURCE + SIZE) ||
                (address >= TARGET && address < TARGET + SIZE);
    if (!ours || !demand_check || faults > 1000000) {
        print("FAIL fault at ");
        print_hex(frame->rip);
        print(" for ");
        print_hex(address);
        print("\n");
        guest_exit(1);
    }
    faults++;
    WRONG(!demand_check(frame, address));
    WRONG((frame->error & 1) != (*guest_page(address) & P));
    page_in(address, frame->error & 2);
}

void demand_begin(void)
{
    guest_gate(14, 1, 0, false); /* the stack may be what faults */
    guest_handle(14, on_fault);
    for (uint64_t page = SOURCE - 4096; page <= TARGET + SIZE; page += 4096)
        guest_map(page, 0);
}

void demand_choose(uint64_t source_offset, uint64_t target_offset, uint64_t count)
{
    demand_from = SOURCE + source_offset;
    demand_to = TARGET + target_offset;
    demand_total = count;
}

uint64_t demand_run(demand_loop *loop)
{
    all_out();
    uint64_t value = loop(demand_to, demand_from, demand_total);
    all_out();
    return value;
}

bool demand_at(struct frame *frame, const char *label, uint64_t start, unsigned size, bool write)
{
    uint64_t address = cr2_read();
    uint64_t second = (start + size - 1) & ~UINT64_C(0xfff);
    return frame->rip == (uint64_t)label && (frame->error & ~UINT64_C(1)) == (write ? 2 : 0) &&
           (address == start || (address == second && second > start));
}

void demand_often(const char *name, void (*body)(unsigned pass))
{
    demand_wrong = faults = 0;
    for (unsigned pass = 0; pass < PASSES; pass++)
        body(pass);
    check_equal(name, demand_wrong, 0);
    if (faults < PASSES * SIZE / 4096 - 6)
        check("there were faults", false);
}
