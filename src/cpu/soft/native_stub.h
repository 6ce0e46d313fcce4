/*
 * native_stub.h: what native.c, native_encode.c and the op_*.c files beside them share. How stubs
 * look and who may raise what is described in native.h.
 */
#pragma once

#include "cpu/soft/insn.h"
#include "cpu/soft/native.h"

enum {
    NATIVE_STUB_MAX = 256,    /* bytes of one stub */
    NATIVE_BOUNCE_SIZE = 128, /* the largest memory operand of a stub is FNSAVE's 108 bytes */
};

/* One stub in the making, with what its memory operand needs. */
struct native_stub {
    uint8_t bytes[NATIVE_STUB_MAX];
    unsigned length;
    unsigned memory_size; /* bytes, 0 = no memory operand */
    bool memory_read, memory_write;
};

/* A stub as the memory handlers call it. */
typedef void native_code(struct soft_vcpu *v, const struct insn *insn, void *memory);

struct soft_native {
    uint8_t bounce[NATIVE_BOUNCE_SIZE] __attribute__((aligned(64)));
    /* A stub called as a function: [0] is a copy of the instruction, [1] returns to the caller. */
    struct insn call[2];
    const struct insn *call_origin; /* whom call[0] stands for */
    uint8_t *write_alias, *execute_alias;
    uint32_t used;                            /* bytes of the arena */
    uint32_t count;                           /* stubs in it */
    uint32_t *table;                          /* hash of a stub's bytes to its offset; 0 = empty */
    bool has_avx;                             /* of the host */
    bool sha_unaligned;                       /* the guest's CPU is one of those that allow it */
    uint8_t isa[ZYDIS_ISA_SET_MAX_VALUE + 1]; /* bool: the guest's CPUID offers it */
};

/* Writes the whole stub for the instruction. False: it has no native form. */
bool native_encode(const struct decoder *decoder, struct native_stub *ret_stub);

/* Does the guest have the instruction at all, and do CR0, CR4 and XCR0 let it run? When not, sets
 * insn->run to what raises #UD or #NM (NULL is #UD) and returns false. */
bool native_allowed(struct decoder *decoder);

/* The alignment, in bytes, that a vector operand of `size` bytes in memory must have; 1: none. */
unsigned native_alignment(const ZydisDecodedInstruction *zydis, unsigned size);

/* For memory handlers: the address of an operand of `size` bytes, segment and alignment checked as
 * insn->flags and insn->aux say. */
uint64_t native_linear(struct soft_vcpu *v, const struct insn *insn, unsigned size, bool write);

/* aux of an instruction with memory: its size in the low 16 bits, then masks of address bits that
 * must be 0, else #GP(0), or #AC(0) where alignment checks are on. insn->a holds both masks. */
enum {
    NATIVE_ALIGN_SHIFT = 16, /* 6 bits */
    NATIVE_AC_SHIFT = 24,    /* 4 bits */
    NATIVE_X87 = 1 << 29,    /* an x87 instruction: may leave its destination alone */
    NATIVE_WAITS = 1 << 30,  /* a pending x87 exception comes first */
};

/* Sets insn->aux for a memory operand of `size` bytes that must be aligned to `align`. */
void native_set_memory(struct decoder *decoder, unsigned size, unsigned align);

/* The bound on direct host access: where `size` bytes at `linear` can be read or written as they
 * lie, else NULL. */
static inline void *native_direct(struct soft_vcpu *v, uint64_t linear, unsigned size, bool write)
{
    const struct soft_tlb_entry *entry = tlb_slot(v, linear);
    if (tlb_hit(write ? entry->write : entry->read, linear, size))
        return (void *)(linear + entry->addend);
    return NULL;
}

/* The operand's host address in the case that needs no further check, else NULL. */
static inline void *native_fast(struct soft_vcpu *v, const struct insn *insn, bool write)
{
    uint64_t linear = insn_offset(v, insn) + v->ea_base[insn->seg];
    if (unlikely((insn->flags & INSN_SEGCHECK) || (linear & insn->a)))
        return NULL;
    return native_direct(v, linear, (uint16_t)insn->aux, write);
}

/* The memory operand among decoder->operands, or NULL. */
const ZydisDecodedOperand *native_memory_operand(const struct decoder *decoder);

/* Binders of rows, beside native_bind(). All fall back on it for forms they do not handle. */
void vector_move_bind(struct decoder *decoder);    /* op_vector_move.c; arg: enum vector_move */
void vector_zero_bind(struct decoder *decoder);    /* XOR of a register with itself */
void vector_upper_bind(struct decoder *decoder);   /* VZEROUPPER, VZEROALL */
void vector_masked_bind(struct decoder *decoder);  /* op_vector_masked.c: VMASKMOV, VPMASKMOV */
void vector_maskmov_bind(struct decoder *decoder); /* MASKMOVQ, MASKMOVDQU */
void vector_gather_bind(struct decoder *decoder);
void mxcsr_load_bind(struct decoder *decoder); /* op_xsave.c */
void xsave_bind(struct decoder *decoder);      /* arg: enum xsave_form */

enum vector_move {
    MOVE_16 = 16,      /* whole XMM registers, unaligned or aligned as native_bind() would say */
    MOVE_ZERO_8 = 8,   /* 8 bytes; loads zero the rest */
    MOVE_ZERO_4 = 4,   /* 4 bytes; loads zero the rest */
    MOVE_LOW_8 = 0x80, /* 8 bytes; loads keep the rest (MOVLPS) */
    MOVE_HIGH_8,       /* bytes 8..15 (MOVHPS) */
};

enum xsave_form { XSAVE_FXSAVE, XSAVE_FXRSTOR, XSAVE_XSAVE, XSAVE_XSAVEOPT, XSAVE_XRSTOR };
