/*
 * Blocks: what a translator may get wrong between instructions rather than in one.
 *
 *   near addresses   a few registers point into the window, and most memory operands add something
 *                    small to one of them; at a page's edge the first of several accesses is good
 *                    and the third is not. The registers move on and are copied now and then.
 *   branches         forward over a few instructions: conditional ones (often behind CMP or TEST),
 *                    JRCXZ, JMP, and indirect ones by JMP, or by PUSH and RET
 *   loops            a counter of at most six, and in the body all of this
 *   calls            of one function behind the end, direct and indirect; it may return one byte
 *                    behind where it was called from
 *
 *                     +---------- forward branch ----------+
 *                     |                                    v
 *     block:   ... cmp jz ... mov ecx, 3 [ ... call f ... dec ecx; jnz ] ... int3   f: ... ret int3
 *                                        ^-----------------------------|
 *
 * Every test ends: loops are entered at their head only, no other branch goes backwards, and nobody
 * but the loop's end writes its counter. Flags that are undefined on one of the ways to a place
 * count as undefined there.
 */
#include "generator.h"

#include <assert.h>
#include <string.h>

enum {
    RSP = 4,
    RCX = 1,
    BRANCHES_MAX = 8,
    CALLS_MAX = 3,
    /* An instruction and what goes with it (CMP and Jcc, the ends of a loop): never more. */
    ITEM_MAX = 48,
    FUNCTION_MAX = 64,
    TRIES_MAX = 200,
    CF = 1 << 0,
    PF = 1 << 2,
    ZF = 1 << 6,
    SF = 1 << 7,
    OF = 1 << 11,
};

/* A displacement that is filled in when its target is known. */
struct branch {
    unsigned at, size; /* 1 or 4 bytes, counted from their end */
    unsigned left;     /* items until the target is here */
    uint32_t undefined;
};

struct block {
    struct maker *maker;
    struct test *test;
    struct branch branches[BRANCHES_MAX];
    unsigned branch_count;
    struct {
        bool open;
        unsigned head, counter, left;
        uint32_t undefined;
    } loop;
    struct branch calls[CALLS_MAX];
    unsigned call_count;
    uint32_t counters; /* of all loops: the function may be called in one */
    bool skips;        /* the function returns behind the byte after the call */
    bool knows_pc;     /* addresses of the test itself are in registers or on the stack */
    unsigned tries;
};

static uint64_t roll(struct block *block)
{
    return maker_random(block->maker);
}

static void put(struct block *block, const uint8_t *bytes, unsigned count)
{
    assert(block->test->length + count <= TEST_CODE_MAX);
    memcpy(block->test->code + block->test->length, bytes, count);
    block->test->length += count;
}
#define PUT(...) put(block, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void put32(struct block *block, int32_t value)
{
    put(block, (const uint8_t *)&value, sizeof value);
}

static uint8_t rex(bool w, unsigned reg, unsigned rm)
{
    return (uint8_t)(0x40 | w << 3 | (reg >> 3) << 2 | rm >> 3);
}

static uint8_t modrm(unsigned mod, unsigned reg, unsigned rm)
{
    return (uint8_t)(mod << 6 | (reg & 7) << 3 | (rm & 7));
}

static void done(struct block *block, ZydisMnemonic mnemonic)
{
    block->test->insns++;
    block->test->mnemonic = mnemonic;
}

/* A register that nobody relies on; it is written now. -1 where there is none. */
static int free_register(struct block *block)
{
    struct maker *maker = block->maker;
    for (unsigned tries = 0; tries < 16; tries++) {
        unsigned reg = roll(block) % 16;
        if (reg != RSP && !(maker->pinned >> reg & 1)) {
            maker->written |= 1u << reg;
            return (int)reg;
        }
    }
    return -1;
}

/* ---- branches ---- */

static void displacement(struct block *block, struct branch *list, unsigned *count, unsigned size)
{
    list[(*count)++] = (struct branch){.at = block->test->length,
                                       .size = size,
                                       .left = 2 + roll(block) % 4, /* its own item is one */
                                       .undefined = block->test->undefined_flags};
    put(block, (const uint8_t[4]){0}, size);
}

static void forward(struct block *block, unsigned size)
{
    displacement(block, block->branches, &block->branch_count, size);
}

static void branch_bind(struct block *block, const struct branch *branch)
{
    struct test *test = block->test;
    int32_t distance = (int32_t)(test->length - branch->at - branch->size);
    assert(branch->size == 4 || distance < 128);
    memcpy(test->code + branch->at, &distance, branch->size);
    test->undefined_flags |= branch->undefined;
}

/* One item is over: branches whose target is here. */
static void branches_bind(struct block *block, bool all)
{
    for (unsigned i = 0; i < block->branch_count;)
        if (all || --block->branches[i].left == 0) {
            branch_bind(block, &block->branches[i]);
            block->branches[i] = block->branches[--block->branch_count];
        } else {
            i++;
        }
}

static const uint32_t condition_flags[8] = {OF, CF, ZF, CF | ZF, SF, PF, SF | OF, SF | OF | ZF};

static bool branch_conditional(struct block *block)
{
    uint64_t r = roll(block);
    if (r % 2 && !maker_append(block->maker, r & 2 ? ZYDIS_MNEMONIC_CMP : ZYDIS_MNEMONIC_TEST))
        return false;
    uint8_t condition = r >> 8 & 15;
    if (block->test->undefined_flags & condition_flags[condition >> 1])
        return false;
    bool near = (r >> 16) % 4 == 0;
    if (near)
        PUT(0x0f, (uint8_t)(0x80 | condition));
    else
        PUT((uint8_t)(0x70 | condition));
    forward(block, near ? 4 : 1);
    done(block, ZYDIS_MNEMONIC_JZ);
    return true;
}

static bool branch_always(struct block *block)
{
    uint64_t r = roll(block);
    if (r % 4 == 0) {
        if (r & 0x100)
            PUT(0x67);
        PUT(0xe3); /* JRCXZ, JECXZ */
        forward(block, 1);
        done(block, ZYDIS_MNEMONIC_JRCXZ);
    } else {
        PUT(r & 0x100 ? 0xe9 : 0xeb);
        forward(block, r & 0x100 ? 4 : 1);
        done(block, ZYDIS_MNEMONIC_JMP);
    }
    return true;
}

/* LEA of the target, then JMP, or PUSH and RET. */
static bool branch_indirect(struct block *block)
{
    int reg = free_register(block);
    if (reg < 0)
        return false;
    block->knows_pc = true;
    PUT(rex(true, (unsigned)reg, 0), 0x8d, modrm(0, (unsigned)reg, 5));
    forward(block, 4);
    if (roll(block) % 2 && !block->maker->keep_stack) {
        PUT(rex(false, 0, (unsigned)reg), (uint8_t)(0x50 | (reg & 7)), 0xc3);
        done(block, ZYDIS_MNEMONIC_RET);
    } else {
        PUT(rex(false, 0, (unsigned)reg), 0xff, modrm(3, 4, (unsigned)reg));
        done(block, ZYDIS_MNEMONIC_JMP);
    }
    return true;
}

/* ---- loops ---- */

static bool loop_open(struct block *block)
{
    /* A branch from before must not reach the body: the counter would be anything. */
    int counter = block->loop.open || block->branch_count ? -1 : free_register(block);
    if (counter < 0)
        return false;
    PUT(rex(false, 0, (unsigned)counter), (uint8_t)(0xb8 | (counter & 7)));
    put32(block, (int32_t)(1 + roll(block) % 6));
    done(block, ZYDIS_MNEMONIC_MOV);
    block->maker->pinned |= 1u << counter;
    block->counters |= 1u << counter;
    block->loop.open = true;
    block->loop.head = block->test->length;
    block->loop.counter = (unsigned)counter;
    block->loop.left = 2 + roll(block) % 6;
    block->loop.undefined = block->test->undefined_flags;
    return true;
}

/* Flags that are undefined here and were not at the head must be set before it is reached again. */
static void loop_close(struct block *block)
{
    struct test *test = block->test;
    unsigned counter = block->loop.counter;
    uint32_t undefined = test->undefined_flags & ~block->loop.undefined;
    uint64_t r = roll(block);
    int32_t back = (int32_t)(block->loop.head - test->length);
    if (counter == RCX && !undefined && back > -120 && r % 2) {
        PUT(0xe2, (uint8_t)(back - 2)); /* LOOP */
        done(block, ZYDIS_MNEMONIC_LOOP);
    } else {
        if (undefined & CF || r % 4 == 0) {
            PUT(rex(r & 16, 0, counter), 0x83, modrm(3, 5, counter), 1);
            test->undefined_flags = 0;
        } else {
            PUT(rex(r & 16, 0, counter), 0xff, modrm(3, 1, counter));
            test->undefined_flags &= CF;
        }
        back = (int32_t)(block->loop.head - test->length);
        if (back > -120) {
            PUT(0x75, (uint8_t)(back - 2));
        } else {
            PUT(0x0f, 0x85);
            put32(block, back - 6);
        }
        done(block, ZYDIS_MNEMONIC_JNZ);
    }
    block->loop.open = false;
    block->maker->pinned &= ~(1u << counter);
    block->maker->written |= 1u << counter;
}

/* ---- calls ---- */

static bool call(struct block *block)
{
    if (block->call_count == CALLS_MAX || block->maker->keep_stack)
        return false;
    int reg = roll(block) % 4 ? -1 : free_register(block);
    if (reg >= 0)
        PUT(rex(true, (unsigned)reg, 0), 0x8d, modrm(0, (unsigned)reg, 5));
    else
        PUT(0xe8);
    displacement(block, block->calls, &block->call_count, 4);
    if (reg >= 0)
        PUT(rex(false, 0, (unsigned)reg), 0xff, modrm(3, 2, (unsigned)reg));
    if (block->skips)
        PUT(0xf9); /* STC */
    block->knows_pc = true;
    done(block, ZYDIS_MNEMONIC_CALL);
    return true;
}

/* ---- instructions ---- */

static const ZydisMnemonic common[] = {
    ZYDIS_MNEMONIC_MOV,      ZYDIS_MNEMONIC_MOV,       ZYDIS_MNEMONIC_MOV,
    ZYDIS_MNEMONIC_MOV,      ZYDIS_MNEMONIC_MOV,       ZYDIS_MNEMONIC_MOV,
    ZYDIS_MNEMONIC_ADD,      ZYDIS_MNEMONIC_ADD,       ZYDIS_MNEMONIC_SUB,
    ZYDIS_MNEMONIC_ADC,      ZYDIS_MNEMONIC_SBB,       ZYDIS_MNEMONIC_AND,
    ZYDIS_MNEMONIC_OR,       ZYDIS_MNEMONIC_XOR,       ZYDIS_MNEMONIC_CMP,
    ZYDIS_MNEMONIC_TEST,     ZYDIS_MNEMONIC_INC,       ZYDIS_MNEMONIC_DEC,
    ZYDIS_MNEMONIC_NEG,      ZYDIS_MNEMONIC_NOT,       ZYDIS_MNEMONIC_SHL,
    ZYDIS_MNEMONIC_SHR,      ZYDIS_MNEMONIC_SAR,       ZYDIS_MNEMONIC_ROL,
    ZYDIS_MNEMONIC_RCR,      ZYDIS_MNEMONIC_SHLD,      ZYDIS_MNEMONIC_SHLX,
    ZYDIS_MNEMONIC_IMUL,     ZYDIS_MNEMONIC_MUL,       ZYDIS_MNEMONIC_MULX,
    ZYDIS_MNEMONIC_DIV,      ZYDIS_MNEMONIC_MOVZX,     ZYDIS_MNEMONIC_MOVSX,
    ZYDIS_MNEMONIC_MOVSXD,   ZYDIS_MNEMONIC_MOVBE,     ZYDIS_MNEMONIC_LEA,
    ZYDIS_MNEMONIC_LEA,      ZYDIS_MNEMONIC_XCHG,      ZYDIS_MNEMONIC_XADD,
    ZYDIS_MNEMONIC_CMPXCHG,  ZYDIS_MNEMONIC_CMPXCHG8B, ZYDIS_MNEMONIC_BT,
    ZYDIS_MNEMONIC_BTS,      ZYDIS_MNEMONIC_BTR,       ZYDIS_MNEMONIC_BSF,
    ZYDIS_MNEMONIC_TZCNT,    ZYDIS_MNEMONIC_POPCNT,    ZYDIS_MNEMONIC_BSWAP,
    ZYDIS_MNEMONIC_SETZ,     ZYDIS_MNEMONIC_SETB,      ZYDIS_MNEMONIC_SETLE,
    ZYDIS_MNEMONIC_CMOVNZ,   ZYDIS_MNEMONIC_CMOVB,     ZYDIS_MNEMONIC_CMOVL,
    ZYDIS_MNEMONIC_PUSH,     ZYDIS_MNEMONIC_PUSH,      ZYDIS_MNEMONIC_POP,
    ZYDIS_MNEMONIC_POP,      ZYDIS_MNEMONIC_CDQE,      ZYDIS_MNEMONIC_CQO,
    ZYDIS_MNEMONIC_LAHF,     ZYDIS_MNEMONIC_SAHF,      ZYDIS_MNEMONIC_STC,
    ZYDIS_MNEMONIC_CMC,      ZYDIS_MNEMONIC_CLD,       ZYDIS_MNEMONIC_MOVSB,
    ZYDIS_MNEMONIC_MOVSQ,    ZYDIS_MNEMONIC_STOSD,     ZYDIS_MNEMONIC_LODSB,
    ZYDIS_MNEMONIC_SCASB,    ZYDIS_MNEMONIC_CMPSB,     ZYDIS_MNEMONIC_MOVUPS,
    ZYDIS_MNEMONIC_MOVAPS,   ZYDIS_MNEMONIC_MOVDQU,    ZYDIS_MNEMONIC_MOVDQA,
    ZYDIS_MNEMONIC_MOVSS,    ZYDIS_MNEMONIC_MOVSD,     ZYDIS_MNEMONIC_MOVQ,
    ZYDIS_MNEMONIC_MOVD,     ZYDIS_MNEMONIC_PXOR,      ZYDIS_MNEMONIC_PADDD,
    ZYDIS_MNEMONIC_PCMPEQB,  ZYDIS_MNEMONIC_PMOVMSKB,  ZYDIS_MNEMONIC_PSHUFD,
    ZYDIS_MNEMONIC_ADDPS,    ZYDIS_MNEMONIC_MULSD,     ZYDIS_MNEMONIC_UCOMISD,
    ZYDIS_MNEMONIC_CVTSI2SD, ZYDIS_MNEMONIC_CVTTSD2SI, ZYDIS_MNEMONIC_VMOVDQU,
    ZYDIS_MNEMONIC_VPADDD,   ZYDIS_MNEMONIC_VPXOR,     ZYDIS_MNEMONIC_VZEROUPPER,
    ZYDIS_MNEMONIC_FLD,      ZYDIS_MNEMONIC_FSTP,      ZYDIS_MNEMONIC_FADD,
    ZYDIS_MNEMONIC_FXCH,
};

static bool instruction(struct block *block)
{
    const struct generator *generator = block->maker->generator;
    if (roll(block) % 3 &&
        maker_append(block->maker, common[roll(block) % (sizeof common / sizeof *common)]))
        return true;
    return maker_append(block->maker,
                        generator->mnemonics[roll(block) % generator->mnemonic_count]);
}

/* A base moves on by some bytes, or gets a second name. */
static bool base_change(struct block *block)
{
    struct maker *maker = block->maker;
    uint64_t r = roll(block);
    unsigned base = maker->bases[(r >> 8) % maker->base_count];
    uint32_t written = maker->written;
    uint8_t step = (uint8_t)((r >> 16) % 64 - 32);
    step &= r & 0x1000000 ? 0xf0 : 0xff;
    if (r % 4 == 0 && maker->base_count < sizeof maker->bases / sizeof *maker->bases) {
        int copy = free_register(block);
        if (copy < 0)
            return false;
        PUT(rex(true, base, (unsigned)copy), 0x89, modrm(3, base, (unsigned)copy));
        if (!(written >> copy & 1)) /* a branch may go around the copy */
            block->test->in.gpr[copy] = block->test->in.gpr[base];
        maker->pinned |= 1u << copy;
        maker->bases[maker->base_count++] = (unsigned)copy;
        done(block, ZYDIS_MNEMONIC_MOV);
    } else if (r % 4 == 1) {
        PUT(rex(true, base, base), 0x8d, modrm(1, base, base));
        if ((base & 7) == RSP)
            PUT(0x24);
        PUT(step);
        done(block, ZYDIS_MNEMONIC_LEA);
    } else {
        bool subtracts = r & 4;
        PUT(rex(true, 0, base), 0x83, modrm(3, subtracts ? 5 : 0, base), step);
        block->test->undefined_flags = 0;
        done(block, subtracts ? ZYDIS_MNEMONIC_SUB : ZYDIS_MNEMONIC_ADD);
    }
    return true;
}

/* ---- the whole ---- */

static void choose_bases(struct block *block)
{
    struct maker *maker = block->maker;
    struct registers *in = &block->test->in;
    unsigned count = 1 + roll(block) % 3;
    maker->pinned = 1u << RSP;
    maker->index = -1;
    while (maker->base_count < count) {
        unsigned reg = roll(block) % 16;
        if (maker->pinned >> reg & 1)
            continue;
        uint64_t r = roll(block);
        in->gpr[reg] = r % 8 < 5 ? WINDOW_AT + 256 + (r >> 8) % (WINDOW_WRITABLE - 512)
                                 : window_address(&maker->random);
        if (r >> 32 & 3)
            in->gpr[reg] &= ~UINT64_C(15);
        maker->pinned |= 1u << reg;
        maker->bases[maker->base_count++] = reg;
    }
    unsigned reg = roll(block) % 16;
    if (!(maker->pinned >> reg & 1)) {
        maker->pinned |= 1u << reg;
        maker->index = (int)reg;
        in->gpr[reg] = roll(block) % 64 & (roll(block) % 2 ? ~UINT64_C(15) : ~UINT64_C(0));
    }
    if (roll(block) % 4) /* else wherever it is, which is often at an edge */
        in->gpr[RSP] = WINDOW_AT + 512 + (roll(block) % (WINDOW_WRITABLE - 1024) & ~UINT64_C(7));
}

/* False where the dice gave nothing that fits here. */
static bool item(struct block *block)
{
    bool room = block->branch_count < BRANCHES_MAX;
    switch (roll(block) % 24) {
    case 0:
    case 1:
    case 2: return room && branch_conditional(block);
    case 3: return room && branch_always(block);
    case 4: return room && branch_indirect(block);
    case 5:
    case 6: return loop_open(block);
    case 7: return call(block);
    case 8:
    case 9: return base_change(block);
    default: return instruction(block);
    }
}

/* Any number of calls lead here, each with its own undefined flags; the function leaves none. */
static void function(struct block *block)
{
    struct maker *maker = block->maker;
    struct test *test = block->test;
    uint32_t after = test->undefined_flags;
    test->undefined_flags = 0;
    PUT(0xcc);
    for (unsigned i = 0; i < block->call_count; i++)
        branch_bind(block, &block->calls[i]);
    maker->keep_stack = maker->keep_flags = true;
    maker->pinned |= block->counters;
    for (unsigned tries = 0, insns = roll(block) % 3; insns > 0 && tries < 20; tries++)
        insns -= maker_append(maker, common[roll(block) % (sizeof common / sizeof *common)]);
    if (block->skips)
        PUT(0x48, 0xff, 0x04, 0x24); /* INC of the return address */
    PUT(0xc3, 0xcc);
    test->undefined_flags = after;
}

bool block_make(struct maker *maker, unsigned insns)
{
    struct test *test = maker->test;
    struct block block = {.maker = maker, .test = test};
    maker->block = true;
    maker->keep_stack = maker->keep_flags = maker->may_branch = false;
    maker->base_count = 0;
    block.skips = roll(&block) % 4 == 0;
    choose_bases(&block);
    while (test->insns < insns && test->length + ITEM_MAX + FUNCTION_MAX < TEST_CODE_MAX) {
        if (++block.tries > TRIES_MAX)
            return false;
        if (!item(&block))
            continue;
        if (block.loop.open && block.loop.left-- == 0)
            loop_close(&block);
        branches_bind(&block, false);
    }
    if (block.loop.open)
        loop_close(&block);
    branches_bind(&block, true);
    /* Any branch may end it that cannot lead back into it. */
    maker->may_branch = !block.knows_pc;
    maker_append(maker,
                 maker->generator->mnemonics[roll(&block) % maker->generator->mnemonic_count]);
    test->end = test->length;
    if (block.call_count)
        function(&block);
    return true;
}
