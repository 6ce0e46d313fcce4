/*
 * block.h: decoded blocks, how one leads to the next, and the loop's private door.
 *
 * A block is a run of instructions of one guest page, decoded once and kept by guest-physical
 * address and mode. It ends with a terminator that is no guest instruction: it goes on at the
 * address after the block (a full block, or a branch not taken). A branch ends a block, but for the
 * body of a loop that is to be translated (block_extend): there Jcc may leave in the middle.
 *
 * VALID. A block is valid while `generation` equals the counter of its page. Whoever wants to run
 * one looks first (block_valid). A stale block is compared with memory (it keeps a copy of its
 * bytes): the same bytes make it valid again, others are decoded anew. The invariant that makes
 * this safe: a valid block's 64-byte granules are set in vm->code_granules and its page carries
 * MEM_PAGE_CODE, both changed only under vm->code_lock, together with the counter.
 *
 * NEXT BLOCK. A direct branch remembers its successor in insn->data, when both lie in the same
 * page: whatever maps the running instruction maps that too. Everything else goes through the jump
 * cache, by linear address, mode and count of TLB flushes; then through the loop, which translates
 * and decodes. Blocks are freed all at once (block_forget_all), or all that have no unit, with all
 * links undone (block_forget_cold), never under a running handler, so that no link ever dangles. A
 * block whose one instruction straddles two pages is never linked to by pointer. With MODE_SEGCHECK
 * on (real mode, odd segments) every block goes through the loop, which checks the limit of CS.
 *
 * Each entry of a block by handlers looks at v->attention once, so that no loop of the guest
 * escapes; units (jit.h) have polls of their own.
 *
 * Threads: blocks belong to their vCPU's thread; soft_code_written() (vcpu.h) is for any.
 */
#pragma once

#include "cpu/soft/insn.h"

enum {
    BLOCK_JUMPS = 2048,       /* jump cache entries */
    BLOCK_HASH = 32768,       /* chains */
    BLOCK_CHUNK = 256 * 1024, /* the arena grows by this */
    /* So much a vCPU, then room is made: 9 MiB where there is one, 5 MiB each where there are
     * several. A boot of Debian decodes some 25 MiB and needs a third of it at a time. */
    BLOCK_CHUNKS_MAX = 36,
    BLOCK_CHUNKS_SHARED = 20,
    /* With a translator only what has no unit is forgotten; where that is less than half of it, the
     * limit grows by a step, up to the bound of the code cache. */
    BLOCK_CHUNKS_STEP = 16,
    BLOCK_CHUNKS_JIT = 256,
    BLOCK_BYTES_MAX = 255, /* struct insn.end is one byte */
    BLOCK_JCC_MAX = 3,     /* inside one */
    BLOCK_LOOP_MAX = 16,   /* instructions of a loop's body with such */
    BLOCK_TEXT = 272,      /* bytes looked at for one block: one instruction more */
};

enum soft_block_flag {
    BLOCK_ALONE = 1 << 0,     /* the loop looks at events after it */
    BLOCK_STRADDLES = 1 << 1, /* its one instruction lies in two pages */
    BLOCK_SPOILED = 1 << 2,   /* its instructions were changed: never valid again */
};

struct soft_block {
    const uint32_t *generation_at;
    uint32_t generation;
    uint16_t count; /* guest instructions */
    uint8_t size;   /* their bytes (in the first page) */
    uint8_t flags;  /* enum soft_block_flag */
    uint32_t mode;  /* enum soft_mode, and BLOCK_MODE_STEP */
    uint32_t generation2;
    uint64_t gpa;
    uint64_t gpa2; /* of the second page, with BLOCK_STRADDLES */
    uint8_t size2; /* bytes there */
    const uint32_t *generation2_at;
    struct soft_block *next; /* in the hash chain */
    const uint8_t *bytes;
    int32_t heat;        /* entries; from the vCPU's limit on handlers leave to the loop */
    uint32_t unit;       /* of the translator; 0: none */
    uint32_t room;       /* bytes of the arena */
    struct insn insns[]; /* count, and the terminator */
};

/* In soft_block.mode beside enum soft_mode: one instruction only (single-stepping). */
#define BLOCK_MODE_STEP (1u << 31)

struct soft_jump {
    uint64_t linear;
    uint64_t stamp; /* block_stamp() */
    struct soft_block *block;
    uint64_t reserved; /* two entries a cache line */
};

/* One instruction as Zydis gave it, between the passes of decode.c. */
struct decoded {
    ZydisDecodedInstruction zydis;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    uint8_t end;
    unsigned seen;         /* bytes of the text that decided what it and its predecessors are */
    uint32_t flags_needed; /* after it */
    bool undefined;        /* #UD */
    bool too_long;         /* #GP */
};

struct soft_cache {
    struct soft_jump jumps[BLOCK_JUMPS] __attribute__((aligned(64)));
    struct soft_block *hash[BLOCK_HASH];
    struct soft_block *next;   /* without SOFT_TAIL_CALLS: what the loop runs next */
    int32_t heat_limit;        /* INT32_MAX: nothing is translated */
    struct soft_block nowhere; /* never valid: what a branch without a link points to */
    uint32_t never;            /* its counter */
    uint8_t *chunks[BLOCK_CHUNKS_JIT];
    unsigned chunk_limit;                    /* how many of them this vCPU may have */
    unsigned chunk;                          /* the one being filled */
    size_t used;                             /* of it */
    uint32_t filled[BLOCK_CHUNKS_JIT];       /* of those before it */
    uint64_t blocks, forgotten, revalidated; /* for those who measure */

    /* decode.c */
    struct decode_tables *tables;
    bool through; /* go on behind Jcc, if that leads back to the start */
    uint8_t text[BLOCK_TEXT];
    struct decoded decoded[INSN_BLOCK_MAX];
    struct insn insns[INSN_BLOCK_MAX + 1];

    /* One instruction that is not kept: fetched from MMIO, or soft_step(). */
    struct soft_block *single;
};

/* ---- decode.c ---- */

/* Tables that depend on v->vm->cpuid. NULL: no memory. */
struct decode_tables *decode_tables_new(const struct soft_vcpu *v);
void decode_tables_free(struct decode_tables *tables);

struct decode_result {
    unsigned count; /* instructions; 0: the first one needs more bytes than there are */
    unsigned size;  /* bytes that they depend on */
    bool alone;
};

/* Decodes and binds up to `max` instructions of cache->text[0, size) into cache->insns, with the
 * terminator. With `size` of 15 and more the count is never 0: what is longer raises #GP. */
struct decode_result decode_text(struct soft_vcpu *v, unsigned size, unsigned max);
/* Fills cache->decoded again for the block, whose mode must be the current one. */
void decode_again(struct soft_vcpu *v, const struct soft_block *block);

/* op_branch.c: makes a Jcc one that may stand inside a block. */
void branch_inside(struct insn *insn);

/* Handler of the terminator. */
void op_continue(struct soft_vcpu *v, const struct insn *insn);

/* ---- block.c ---- */

int block_cache_new(struct soft_vcpu *v, struct err *err);
void block_cache_free(struct soft_vcpu *v);
int block_vm_init(struct soft_vm *vm, struct err *err);
void block_vm_fini(struct soft_vm *vm);
void block_forget_all(struct soft_vcpu *v);
/* Makes room by forgetting the blocks that have no unit; all, where those with one are too many. As
 * block_forget_all(), never under a running handler. */
void block_forget_cold(struct soft_vcpu *v);
/* The block at SOFT_RIP for the current mode, valid; `step`: of one instruction. Raises #PF or #GP
 * of the fetch. */
struct soft_block *block_lookup(struct soft_vcpu *v, bool step);
/* The block ends before `insn`, which is to be executed next: RIP and the instruction count say so.
 * The handler then returns to the loop. */
void block_restart(struct soft_vcpu *v, const struct insn *insn);
/* The block, valid and entered at SOFT_RIP, ends with Jcc. If what follows leads back to its start:
 * one block of all that, in its place. Else the same. */
struct soft_block *block_extend(struct soft_vcpu *v, struct soft_block *block);

/* One instruction at SOFT_RIP, decoded anew and not kept. */
struct soft_block *block_single(struct soft_vcpu *v);

/* ---- run.c ---- */

int soft_run(struct soft_vcpu *v, struct engine_exit *ret_exit);
/* Executes exactly one instruction at RIP, decoded anew, no event delivered before or after it.
 * Returns -1, or the vector it raised: v->raised has the rest, nothing is delivered, and RIP is at
 * the instruction. For comparison with the host CPU. TF is ignored. */
int soft_step(struct soft_vcpu *v);
/* Sets bits of `attention` and wakes the vCPU when it sleeps. Any thread. */
void soft_attend(struct soft_vcpu *v, uint32_t bits);

/* ---- exclusive.c ---- */

/* As exclusive_begin() and _end(), for a thread that is no vCPU's. */
void exclusive_begin_outside(struct soft_vm *vm);
void exclusive_end_outside(struct soft_vm *vm);

/* ---- going on ---- */

static inline bool block_valid(const struct soft_block *block)
{
    return block->generation == __atomic_load_n(block->generation_at, __ATOMIC_RELAXED);
}

/* Also for a block that straddles. */
static inline bool block_usable(const struct soft_block *block)
{
    return block_valid(block) &&
           block->generation2 == __atomic_load_n(block->generation2_at, __ATOMIC_RELAXED);
}

static inline uint64_t block_stamp(const struct soft_vcpu *v)
{
    _Static_assert(offsetof(struct soft_vcpu, tlb_flushes) ==
                       offsetof(struct soft_vcpu, mode) + sizeof(uint32_t),
                   "one look");
    uint64_t stamp;
    memcpy(&stamp, &v->mode, sizeof stamp);
    return stamp;
}

static inline struct soft_jump *block_jump_slot(struct soft_cache *cache, uint64_t linear)
{
    return &cache->jumps[(linear ^ (linear >> 11)) % BLOCK_JUMPS];
}

static inline bool block_attention(struct soft_vcpu *v)
{
    return unlikely(atomic_load_explicit(&v->attention, memory_order_relaxed) != 0);
}

/* Runs the block, whatever its heat: for the loop. */
static inline void block_start(struct soft_vcpu *v, struct soft_block *block)
{
    v->block = block;
    v->instructions += block->count;
#ifdef SOFT_TAIL_CALLS
    return block->insns[0].run(v, block->insns);
#else
    v->cache->next = block;
#endif
}

static inline void block_enter(struct soft_vcpu *v, struct soft_block *block)
{
    if (unlikely(block->heat >= v->cache->heat_limit))
        LEAVE;
    block->heat++;
    return block_start(v, block);
}

/* Goes on at gpr[SOFT_RIP], just changed. Through the jump cache, or the loop. */
static inline void block_jump(struct soft_vcpu *v)
{
    uint64_t linear = v->gpr[SOFT_RIP] + v->ea_base[CPU_CS];
    struct soft_jump *jump = block_jump_slot(v->cache, linear);
    if (likely(jump->linear == linear && jump->stamp == block_stamp(v))) {
        struct soft_block *block = jump->block;
        if (likely(block_usable(block)) && !block_attention(v))
            return block_enter(v, block);
    }
    LEAVE;
}

/* Missed its link: jump cache or loop, which then makes the link. */
void block_unlinked(struct soft_vcpu *v, const struct insn *insn);

/* Goes on at gpr[SOFT_RIP], just changed to a place that `insn` always leads to. */
static inline void block_follow(struct soft_vcpu *v, const struct insn *insn)
{
    struct soft_block *block = insn->data;
    if (likely(block_valid(block)) && !block_attention(v))
        return block_enter(v, block);
    return block_unlinked(v, insn);
}

/* A branch to the constant target in insn->imm; and past the block. */
static inline void block_branch(struct soft_vcpu *v, const struct insn *insn)
{
    v->gpr[SOFT_RIP] += insn->imm;
    return block_follow(v, insn);
}

/* Bind functions of direct branches call this; `imm` must be set. */
static inline void block_linkable(struct decoder *decoder)
{
    decoder->insn->data = &decoder->v->cache->nowhere;
    decoder->insn->flags |= INSN_LINK;
}
