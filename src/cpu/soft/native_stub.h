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
    uint32_t used;          /* bytes of the arena */
    uint32_t *table;        /* hash of a stub's bytes to its offset; 0 = empty */
    bool has_avx;           /* of the host */
    uint8_t isa[ZYDIS_ISA_SET_MAX_VALUE + 1]; /* bool: the guest's CPUID offers it */
};

/* Writes the whole stub for the instruction. False: it has no native form. */
bool native_encode(const struct decoder *decoder, struct native_stub *ret_stub);

/* The encoding of a stub that is just this instruction on [rdx], no registers renamed: for x87 and
 * the like. */

/* Does the guest have the instruction at all, and do CR0, CR4 and XCR0 let it run? When not, sets
 * insn->run to what raises #UD or #NM (NULL is #UD) and returns false. */
bool native_allowed(struct decoder *decoder);

/* For memory handlers: the address of an operand of `size` bytes, segment and alignment checked as
 * insn->flags and insn->aux say. */
uint64_t native_linear(struct soft_vcpu *v, const struct insn *insn, unsigned size, bool write);

/* aux of an instruction with memory: size in bits 0..15, alignment mask in 16..23 (raises #GP),
 * alignment mask under EFLAGS.AC in 24..31 (raises #AC). */
enum { NATIVE_ALIGN_SHIFT = 16, NATIVE_AC_SHIFT = 24 };

/* Sets insn->aux for a memory operand of `size` bytes. */
void native_set_memory(struct decoder *decoder, unsigned size);

/* The memory operand among decoder->operands, or NULL. */
const ZydisDecodedOperand *native_memory_operand(const struct decoder *decoder);

/* op_vector.c: binders that op rows of several files name. */
void vector_move_bind(struct decoder *decoder);
void vector_masked_bind(struct decoder *decoder);
