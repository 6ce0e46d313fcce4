/*
 * A fault in the middle of every kind of instruction that reaches memory, in code that is hot: its
 * page, or the second page of two, is absent or read-only, or an operand is not aligned. At the
 * fault, all registers, flags, vectors and memory must be as before the instruction; the handler
 * then repairs the page and returns, and the result must be that of a run without a fault.
 */
#include "guest.h"

enum {
    ROUNDS = 400,
    WINDOWS = 0x10000000, /* four pages for each operand; the outer ones are never there */
    WINDOW = 0x4000,
    FRAMES = 0x800000,
    GS_BASE = 0x1000,
    FLAGS = 0xcd5, /* OF DF SF ZF AF PF CF */
};
enum { P = 1, W = 2 };
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R14 = 14, R15 };

enum access { /* as in faults_code.S */
              READ = 1,
              WRITE = 2,
              ALIGNED = 4,
              PARTIAL = 8,
              SIXTEEN = 16,
              LOOSE = 32,
              BEHIND = 64,
};
enum prepare {
    PREPARE_NOTHING,
    PREPARE_AFTER,
    PREPARE_DIVISOR,
    PREPARE_MATCH,
    PREPARE_BITS,
    PREPARE_FLAGS,
    PREPARE_IRET,
    PREPARE_MXCSR,
    PREPARE_SELECTOR,
    PREPARE_INDEX,
    PREPARE_HIGH,
    PREPARE_TABLE,
    PREPARE_FRAMES,
    PREPARE_STATE,
    PREPARE_TARGET,
};

struct operand {
    int reg, displacement, size, access;
};
struct body {
    void (*run)(void);
    const char *at, *after;
};
struct kind {
    const char *name;
    struct body by_cmp, by_add;
    int prepare, vector;
    struct operand operand[2];
};
struct registers {
    uint64_t gpr[16];
    uint64_t rflags; /* going in: R15 before R14 is added to it */
};

extern const struct kind faults_cases[], faults_vector_cases[], faults_cases_end[];
extern struct registers faults_in, faults_out;
extern uint8_t faults_vectors_in[1024], faults_vectors_out[1024];

enum trouble {
    NONE,
    ABSENT,
    FIRST_ABSENT,
    SECOND_ABSENT,
    READ_ONLY,
    FIRST_READ_ONLY,
    SECOND_READ_ONLY,
    MISALIGNED,
    TROUBLES
};

enum {
    WRONG_VECTOR = 1,
    WRONG_ADDRESS = 2,
    WRONG_RIP = 4,
    WRONG_REGISTERS = 8,
    WRONG_FLAGS = 16,
    WRONG_MEMORY = 32,
    WRONG_VECTORS = 64,
    WRONG_COUNT = 128,
    WRONG_RESULT = 256
};

static const struct kind *kind;
static const struct body *body;                 /* of it */
static unsigned reach;                          /* bytes on each side of the boundary that matter */
static uint8_t before[2][2048], after[2][2048]; /* of both windows */
static struct registers wanted;
static uint8_t wanted_vectors[1024], seen_vectors[1024] __attribute__((aligned(64)));
static uint64_t aligned_value; /* what a register that was not aligned becomes */
static struct {
    unsigned count, wrong;
    uint64_t vector, error, address, rflags;
    int fix; /* register, or -1 */
    bool loose, partial;
} expected;

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1d;
}

static unsigned random_below(unsigned limit)
{
    return (unsigned)((random_next() >> 32) % limit);
}

static bool same(const void *one, const void *two, size_t n)
{
    bool equal;
    __asm__ volatile("cmp %%eax, %%eax; repe cmpsb"
                     : "=@ccz"(equal), "+S"(one), "+D"(two), "+c"(n)::"memory");
    return equal;
}

/* ---- windows ---- */

static uint64_t boundary(unsigned window) /* where its second page begins */
{
    return WINDOWS + window * WINDOW + 0x2000;
}

static uint8_t *memory_at(unsigned window, uint64_t address)
{
    return (uint8_t *)(FRAMES + window * 0x2000 + 0x1000 + (address - boundary(window)));
}

static void set_pages(unsigned window, uint64_t first, uint64_t second)
{
    uint64_t frame = FRAMES + window * 0x2000;
    guest_map(boundary(window) - 4096, first ? frame | first : 0);
    guest_map(boundary(window), second ? (frame + 4096) | second : 0);
}

static void copy_windows(uint8_t to[2][2048])
{
    for (unsigned i = 0; i < 2; i++)
        memcpy(to[i], memory_at(i, boundary(i) - reach), 2 * reach);
}

static void restore_windows(uint8_t from[2][2048])
{
    for (unsigned i = 0; i < 2; i++)
        memcpy(memory_at(i, boundary(i) - reach), from[i], 2 * reach);
}

static bool same_windows(uint8_t with[2][2048])
{
    return same(memory_at(0, boundary(0) - reach), with[0], 2 * reach) &&
           same(memory_at(1, boundary(1) - reach), with[1], 2 * reach);
}

/* ---- vectors ---- */

static void save_vectors(uint8_t *to)
{
    __asm__ volatile("xsave (%0)" ::"r"(to), "a"(7), "d"(0) : "memory");
}

/* Not the addresses that x87 keeps, and not what XSAVE knows to be initial. */
static bool same_vectors(const uint8_t *one, const uint8_t *two)
{
    return same(one, two, 5) && same(one + 24, two + 24, 4) && same(one + 32, two + 32, 384) &&
           same(one + 576, two + 576, 256);
}

static void make_vectors(void)
{
    memset(faults_vectors_in, 0, sizeof faults_vectors_in);
    uint64_t *quads = (uint64_t *)faults_vectors_in;
    quads[0] = 0x37f | 4 << 27 | UINT64_C(0xf0) << 32; /* FCW; TOP is 4; four registers in use */
    quads[3] = 0x1f80;
    for (unsigned i = 0; i < 8; i++) {
        quads[4 + i * 2] = random_next() | UINT64_C(1) << 63;
        quads[5 + i * 2] = 0x3ff0 + random_below(32);
    }
    for (unsigned i = 20; i < 52; i++)
        quads[i] = random_next();
    quads[64] = 7;
    for (unsigned i = 72; i < 104; i++)
        quads[i] = random_next();
}

/* ---- the fault ---- */

static uint64_t *frame_register(struct frame *frame, unsigned number)
{
    static const uint8_t at[16] = {14, 13, 12, 11, 20, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    return (uint64_t *)frame + at[number];
}

static void on_fault(struct frame *frame)
{
    uint64_t address = cr2_read();
    if (!kind || expected.count > 3) {
        print("FAIL fault ");
        print_hex(frame->vector);
        print(" at ");
        print_hex(frame->rip);
        print("\n");
        guest_exit(1);
    }
    expected.count++;
    if (frame->vector != expected.vector || frame->error != expected.error)
        expected.wrong |= WRONG_VECTOR;
    if (expected.loose)
        address &= ~UINT64_C(0xfff);
    if (frame->vector == 14 &&
        address != (expected.loose ? expected.address & ~UINT64_C(0xfff) : expected.address))
        expected.wrong |= WRONG_ADDRESS;
    if (frame->rip != (uint64_t)body->at)
        expected.wrong |= WRONG_RIP;
    for (unsigned i = 0; i < 16; i++)
        if (*frame_register(frame, i) != faults_in.gpr[i])
            expected.wrong |= WRONG_REGISTERS;
    if ((frame->rflags & FLAGS) != expected.rflags)
        expected.wrong |= WRONG_FLAGS;
    if (!expected.partial && !same_windows(before))
        expected.wrong |= WRONG_MEMORY;
    if (kind->vector) {
        save_vectors(seen_vectors);
        if (!same_vectors(seen_vectors, faults_vectors_in))
            expected.wrong |= WRONG_VECTORS;
    }
    if (expected.fix >= 0)
        *frame_register(frame, (unsigned)expected.fix) = aligned_value;
    set_pages(0, P | W, P | W);
    set_pages(1, P | W, P | W);
}

/* ---- one round ---- */

static bool possible(const struct operand *operand, enum trouble trouble)
{
    bool straddles = trouble == FIRST_ABSENT || trouble == SECOND_ABSENT ||
                     trouble == FIRST_READ_ONLY || trouble == SECOND_READ_ONLY;
    bool protects =
        trouble == READ_ONLY || trouble == FIRST_READ_ONLY || trouble == SECOND_READ_ONLY;
    if (operand->access & BEHIND && trouble != SECOND_ABSENT && trouble != SECOND_READ_ONLY)
        return false;
    if (straddles && (operand->size == 1 || operand->access & ALIGNED))
        return false;
    if (protects && !(operand->access & WRITE))
        return false;
    return trouble != MISALIGNED || operand->access & ALIGNED;
}

/* Where the operand begins. */
static uint64_t place(const struct operand *operand, unsigned window, enum trouble trouble)
{
    unsigned size = (unsigned)operand->size;
    uint64_t inside = boundary(window) - 96 - size + random_below(32);
    switch (trouble) {
    case FIRST_ABSENT:
    case SECOND_ABSENT:
    case FIRST_READ_ONLY:
    case SECOND_READ_ONLY:
        if (operand->access & SIXTEEN)
            return boundary(window) - 16 - 16 * random_below(size / 16 - 1);
        return boundary(window) - 1 - random_below(size - 1);
    default:
        if (operand->access & (ALIGNED | SIXTEEN))
            inside &= ~UINT64_C(31);
        return inside;
    }
}

static void arrange(unsigned window, enum trouble trouble, const struct operand *operand,
                    uint64_t start)
{
    bool write = operand->access & WRITE;
    expected.vector = 14;
    expected.error = write ? 2 : 0;
    expected.address = start;
    expected.loose = operand->access & LOOSE;
    expected.partial = (kind->operand[0].access | kind->operand[1].access) & PARTIAL;
    switch (trouble) {
    case ABSENT:
    case FIRST_ABSENT: set_pages(window, 0, P | W); break;
    case SECOND_ABSENT:
        set_pages(window, P | W, 0);
        expected.address = boundary(window);
        break;
    case READ_ONLY:
    case FIRST_READ_ONLY:
        set_pages(window, P, P | W);
        expected.error = 3;
        break;
    case SECOND_READ_ONLY:
        set_pages(window, P | W, P);
        expected.error = 3;
        expected.address = boundary(window);
        break;
    case MISALIGNED:
        expected.vector = 13;
        expected.error = 0;
        aligned_value = faults_in.gpr[operand->reg];
        faults_in.gpr[operand->reg] += 1 + random_below((unsigned)operand->size - 1);
        expected.fix = operand->reg;
        break;
    default: break;
    }
}

static void prepare(uint64_t start)
{
    uint64_t *gpr = faults_in.gpr;
    uint64_t *quads = (uint64_t *)memory_at(0, start);
    uint64_t flags = 2 | (random_next() & FLAGS);
    switch ((enum prepare)kind->prepare) {
    case PREPARE_AFTER: quads[0] = (uint64_t)body->after; break;
    case PREPARE_DIVISOR:
        gpr[RDX] = 0;
        gpr[RAX] &= 0x7fffffff3fffffff;
        *(uint32_t *)quads |= 1;
        break;
    case PREPARE_MATCH: /* every other time */
        if (random_next() >> 63)
            break;
        gpr[RAX] = kind->operand[0].size == 16 || gpr[RBX] & 1 ? quads[0] : (uint32_t)quads[0];
        if (kind->operand[0].size == 16)
            gpr[RDX] = quads[1];
        else
            gpr[RDX] = quads[0] >> 32;
        break;
    case PREPARE_BITS: gpr[RCX] = 3 * 64 + random_below(64); break;
    case PREPARE_FLAGS: quads[0] = flags; break;
    case PREPARE_IRET:
        quads[0] = (uint64_t)body->after;
        quads[1] = SELECTOR_CODE;
        quads[2] = flags;
        quads[3] = random_next() >> 20;
        quads[4] = SELECTOR_DATA;
        break;
    case PREPARE_MXCSR: *(uint32_t *)quads = 0x1f80 | (random_next() & 0x603f); break;
    case PREPARE_SELECTOR: *(uint16_t *)quads = SELECTOR_DATA; break;
    case PREPARE_INDEX: gpr[RCX] = 3; break;
    case PREPARE_HIGH: gpr[RDI] |= random_next() << 32; break;
    case PREPARE_TABLE: gpr[RAX] &= ~UINT64_C(0xff); break;
    case PREPARE_STATE:
        memcpy(quads, faults_vectors_in, 512);
        ((uint8_t *)quads)[200] ^= 0x55;
        break;
    case PREPARE_TARGET: gpr[RAX] = (uint64_t)body->after; break;
    case PREPARE_NOTHING:
    case PREPARE_FRAMES: break;
    }
}

static uint64_t flags_before(void)
{
    uint64_t flags, target = faults_in.rflags;
    if (body == &kind->by_add)
        __asm__ volatile("add %2, %1; pushfq; pop %0"
                         : "=r"(flags), "+r"(target)
                         : "r"(faults_in.gpr[R14])
                         : "cc");
    else
        __asm__ volatile("cmp %1, %2; pushfq; pop %0"
                         : "=r"(flags)
                         : "r"(faults_in.gpr[R14]), "r"(faults_in.gpr[R15])
                         : "cc");
    return flags & FLAGS;
}

static void randomize(void)
{
    for (unsigned i = 0; i < 16; i++)
        faults_in.gpr[i] = random_next() >> (i == RSP ? 30 : 0);
    if (random_below(4) == 0)
        faults_in.gpr[R14] = faults_in.gpr[R15];
    faults_in.rflags = faults_in.gpr[R15] - faults_in.gpr[R14];
    for (unsigned w = 0; w < 2; w++)
        for (unsigned i = 0; i < 2 * reach; i += 8)
            *(uint64_t *)memory_at(w, boundary(w) - reach + i) = random_next();
    if (kind->vector)
        make_vectors();
}

static bool same_results(void)
{
    faults_out.rflags &= FLAGS;
    return same(&faults_out, &wanted, sizeof wanted) && same_windows(after) &&
           (!kind->vector || same_vectors(faults_vectors_out, wanted_vectors));
}

/* Bits of what was wrong. */
static unsigned one_round(unsigned operands, bool down)
{
    enum trouble trouble = NONE;
    unsigned faulty = random_below(operands);
    if (random_below(2)) {
        trouble = (enum trouble)random_below(TROUBLES);
        if (!possible(&kind->operand[faulty], trouble))
            trouble = NONE;
    }
    uint64_t start[2] = {0};
    body = random_below(2) ? &kind->by_cmp : &kind->by_add;
    randomize();
    for (unsigned i = 0; i < operands; i++) {
        const struct operand *operand = &kind->operand[i];
        start[i] = place(operand, i, i == faulty ? trouble : NONE);
        faults_in.gpr[operand->reg] = start[i] - (uint64_t)(int64_t)operand->displacement;
    }
    prepare(start[0]);
    copy_windows(before);
    expected.count = expected.wrong = 0;
    expected.fix = -1;
    body->run(); /* as it should be */
    wanted = faults_out;
    wanted.rflags &= FLAGS;
    memcpy(wanted_vectors, faults_vectors_out, sizeof wanted_vectors);
    copy_windows(after);
    if (expected.count)
        expected.wrong |= WRONG_COUNT;

    restore_windows(before);
    expected.count = 0;
    expected.rflags = flags_before() | (down ? 0x400 : 0);
    arrange(faulty, trouble, &kind->operand[faulty], start[faulty]);
    body->run();
    if (expected.count != (trouble != NONE))
        expected.wrong |= WRONG_COUNT;
    if (!same_results())
        expected.wrong |= WRONG_RESULT;
    return expected.wrong;
}

static bool ends_in_down(const char *name)
{
    while (*name && *name != '_')
        name++;
    return *(const uint32_t *)name == 0x776f645f; /* "_dow" */
}

static uint64_t all_rounds(const struct kind *begin, const struct kind *end)
{
    uint64_t wrong_kinds = 0;
    for (kind = begin; kind < end; kind++) {
        unsigned wrong = 0, operands = kind->operand[1].size ? 2 : 1;
        reach = kind->operand[0].size > 64 ? 1024 : 192;
        for (unsigned i = 0; i < ROUNDS; i++)
            wrong |= one_round(operands, ends_in_down(kind->name));
        if (wrong) {
            print("wrong: ");
            print(kind->name);
            print(" ");
            print_hex(wrong);
            print("\n");
            wrong_kinds++;
        }
    }
    kind = NULL;
    return wrong_kinds;
}

void guest_main(uint32_t multiboot_info)
{
    uint32_t features[4];
    (void)multiboot_info;
    if (guest_emulated("faults of every kind of instruction in ring 0")) {
        check("there is nothing to test", true);
        return;
    }
    set_pages(0, P | W, P | W);
    set_pages(1, P | W, P | W);
    wrmsr(0xc0000101, GS_BASE);
    guest_gate(13, 1, 0, false); /* the stack may be what faults */
    guest_gate(14, 1, 0, false);
    guest_handle(13, on_fault);
    guest_handle(14, on_fault);
    check_equal("faults of general instructions", all_rounds(faults_cases, faults_vector_cases), 0);

    cpuid(1, 0, features);
    if (!(features[2] & 1 << 28) || !(features[2] & 1 << 26)) {
        print("SKIP faults of vector instructions\n");
        return;
    }
    cr4_write(cr4_read() | 1 << 18 | 0x600); /* OSXSAVE, OSXMMEXCPT, OSFXSR */
    __asm__ volatile("xsetbv" ::"a"(7), "d"(0), "c"(0));
    check_equal("faults of vector and x87 instructions",
                all_rounds(faults_vector_cases, faults_cases_end), 0);
}
