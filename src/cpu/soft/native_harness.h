/*
 * native_harness.h: for native_test.c and native_forms_test.c. A vCPU over flat memory, the rest of
 * the engine replaced by a few functions, and the means to run one instruction by its handler and
 * on the host (host_harness.h) from the same random state.
 */
#pragma once

#include "cpu/soft/host_harness.h"
#include "cpu/soft/native_stub.h"

enum { MODE_TEST = MODE_64 | MODE_PROTECTED | MODE_LONG | MODE_SSE | MODE_AVX | 3 };

struct outcome {
    struct host_state state;
    uint8_t data[HOST_DATA_SIZE];
    unsigned trap; /* number of the exception, or 0; 256 is #DE */
};

struct form {
    uint8_t bytes[16];
    ZydisDecodedInstruction zydis;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    const struct op_row *row;
};

struct harness {
    struct soft_vm vm;
    struct soft_vcpu *vcpu;
    uint64_t seed;
    unsigned rounds;
    ZydisDecoder decoder_64, decoder_32, decoder_16;
};
extern struct harness harness;

void harness_start(void);
void harness_stop(void);

uint64_t random_64(void);
unsigned random_below(unsigned bound);
uint64_t random_value(void);
void random_fx(uint8_t *fx, bool unmasked);
void random_state(struct host_state *state, bool unmasked); /* host_data() too */

void load_vcpu(const struct host_state *state);
void set_tlb(bool fast); /* false: no access hits */
unsigned run_vcpu(const struct insn *insns, struct outcome *outcome);
void run_host(const uint8_t *code, unsigned length, struct outcome *outcome);
const char *difference(const struct outcome *a, const struct outcome *b); /* NULL: none */

/* Decodes form->bytes; false when no row of ours has it. */
bool form_decode(struct form *form, const ZydisDecoder *zydis);
/* Is it one of the integer instructions that stand for what other rows give to native_bind()? */
bool row_is_integer(const struct op_row *row);
/* As decode.c does: insns[0] is bound, insns[1] ends the block. False: it raises #UD. */
bool form_bind(struct form *form, uint32_t mode, struct insn insns[2]);
uint64_t form_signature(const struct form *form);
void form_print(const struct form *form, const char *what);

/* native_forms_test.c */
void forms_agree_with_the_host(void **state);
void legacy_modes_make_the_same_stubs(void **state);
void operand_size_follows_the_mode(void **state);
