/*
 * insn.h: a decoded instruction, and how one gets its handler.
 *
 * To add an instruction: find the op_*.c file of its kind, add a row {mnemonic, bind, arg} to its
 * table, and write the bind function (once per decoding: looks at the Zydis operands and the mode,
 * picks a handler, fills fields) and the handler (once per execution). One of a new ISA set wants
 * its CPUID bit too (cpuid.c, decode.c); docs/engine.md has an example.
 *
 * A block is an array of `struct insn` that ends with one whose handler does not go on to the next.
 * A handler ends with NEXT(v, insn), a tail call to its successor; those that change RIP set
 * gpr[SOFT_RIP] and return to the loop with LEAVE, or go on to the next block with block_branch(),
 * block_follow() or block_jump() of block.h. Blocks have at most INSN_BLOCK_MAX instructions, so
 * that a build without tail calls (sanitizers) uses a bounded stack.
 */
#pragma once

#include "cpu/soft/vcpu.h"

#include <Zydis/Zydis.h>

enum { INSN_BLOCK_MAX = 32 };

typedef void insn_run(struct soft_vcpu *v, const struct insn *insn);

enum insn_flag {
    INSN_SEGCHECK =
        1 << 0, /* call soft_segment_check(), wrap linear addresses at 32 bits: set
                   outside MODE_64 when MODE_SEGCHECK is on or the segment is FS, GS, CS */
    INSN_LOCK = 1 << 1,
    INSN_REP = 1 << 2,    /* F3 */
    INSN_REPNE = 1 << 3,  /* F2 */
    INSN_MEMORY = 1 << 5, /* there is a memory operand in base/index/... */
    INSN_JCC = 1 << 6,    /* Jcc of 64-bit mode, its condition in aux */
    INSN_LINK = 1 << 7,   /* `data` is a block that it leads to */
};

struct insn {
    insn_run *run;
    uint64_t imm;        /* immediate, sign-extended; branches: target minus block base */
    int64_t disp;        /* displacement; for RIP-relative operands with `end` added */
    uint64_t amask;      /* effective addresses wrap at the address size */
    void *data;          /* native code, chained blocks: belongs to the handler */
    uint8_t a, b, c;     /* register operands: byte offsets into gpr (or vector register numbers) */
    uint8_t base, index; /* byte offsets into gpr; SOFT_ZERO * 8 when absent */
    uint8_t scale;       /* shift, 0..3 */
    uint8_t seg;         /* enum cpu_seg of the memory operand */
    uint8_t size;        /* operand size in bytes */
    uint8_t len;         /* 1..15 */
    uint8_t end;         /* offset of the next instruction from the block's base... */
    uint16_t flags;      /* enum insn_flag */
    uint32_t aux;        /* belongs to the handler */
};
_Static_assert(sizeof(struct insn) == 56, "a block of 32 stays small");

#define NEXT(v, insn) return (insn)[1].run((v), (insn) + 1)
#define LEAVE         return

/* Address of this instruction, and of the one that follows. */
static inline uint64_t insn_address(const struct soft_vcpu *v, const struct insn *insn)
{
    return v->gpr[SOFT_RIP] + insn->end - insn->len;
}

static inline uint64_t insn_next(const struct soft_vcpu *v, const struct insn *insn)
{
    return v->gpr[SOFT_RIP] + insn->end;
}

/* Effective address of the memory operand, wrapped, without the segment base. */
static inline uint64_t insn_offset(const struct soft_vcpu *v, const struct insn *insn)
{
    return (REG64(v, insn->base) + (REG64(v, insn->index) << insn->scale) + (uint64_t)insn->disp) &
           insn->amask;
}

/* Linear address of the memory operand, checked against the segment where the mode needs it.
 * Outside 64-bit mode linear addresses wrap at 32 bits; ea_base is below 4 GiB there. */
static inline uint64_t insn_linear(struct soft_vcpu *v, const struct insn *insn, unsigned size,
                                   bool write)
{
    uint64_t offset = insn_offset(v, insn);
    if (unlikely(insn->flags & INSN_SEGCHECK)) {
        soft_segment_check(v, insn, insn->seg, offset, size, write);
        return (uint32_t)(offset + v->ea_base[insn->seg]);
    }
    return offset + v->ea_base[insn->seg];
}

/* One instruction being bound. Filled by decode.c before bind() is called: insn->len, end, size,
 * flags, and base/index/scale/disp/seg/amask when an operand is memory; everything else is 0.
 * bind() sets insn->run, or leaves it NULL for #UD. */
struct decoder {
    struct soft_vm *vm;
    struct soft_vcpu *v; /* for its native code arena; no guest state may be read */
    const ZydisDecodedInstruction *zydis;
    const ZydisDecodedOperand *operands; /* zydis->operand_count of them, hidden ones included */
    uint32_t mode;                       /* enum soft_mode */
    uint32_t arg;                        /* of the row */
    uint32_t flags_needed; /* ZYDIS_CPUFLAG_* that somebody may look at after this instruction */
    struct insn *insn;
    bool ends_block; /* set by bind(): the handler leaves the block */
    bool alone;      /* set by bind(): nothing may be decoded after it in this block, and the loop
                        looks at events after it (STI, MOV SS, CR writes, ...) */
};

struct op_row {
    ZydisMnemonic mnemonic;
    void (*bind)(struct decoder *decoder);
    uint32_t arg;
};

/* Tables, each ended by a row with bind == NULL. decode.c makes one index of them all. */
extern const struct op_row op_move_rows[], op_alu_rows[], op_shift_rows[], op_muldiv_rows[],
    op_bit_rows[], op_branch_rows[], op_stack_rows[], op_string_rows[], op_atomic_rows[],
    op_bcd_rows[];                                                        /* the core */
extern const struct op_row op_vector_rows[], op_fpu_rows[];               /* native */
extern const struct op_row op_system_rows[], op_far_rows[], op_io_rows[]; /* system */

/* Byte offset into gpr of a general register of any width (AH..BH included). decode.c */
uint8_t decode_register(ZydisRegister reg);

/* Handlers that several binders use. */
void op_undefined(struct soft_vcpu *v, const struct insn *insn);  /* raises #UD */
void op_privileged(struct soft_vcpu *v, const struct insn *insn); /* raises #GP(0) */
void op_no_device(struct soft_vcpu *v, const struct insn *insn);  /* raises #NM */

/* Fallback: runs the instruction on the host CPU with its operands loaded from and stored to the
 * vCPU (native.c). Any instruction without control flow, RSP or segment side effects; memory
 * operands, flags, general and vector registers are taken care of. Sets insn->run, or leaves it
 * NULL when the instruction has no native form here (then #UD). */
void native_bind(struct decoder *decoder);
