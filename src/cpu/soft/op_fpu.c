/*
 * op_fpu.c: x87.
 *
 * The guest's x87 state is in the host's registers while it runs (native.h), so nearly everything
 * is native_bind(): also what waits for a pending exception, which the host then raises. Only the
 * instructions that show the environment are here, because the instruction and operand pointers in
 * it would be addresses of ours: they read as 0, in real-address and protected layouts alike (SDM
 * vol. 1, figures 8-9 to 8-12). Of the four layouts just the size matters then: 14 bytes or 28.
 */
#include "cpu/soft/native_stub.h"

enum {
    ENVIRONMENT_16 = 14, /* three words and four of pointers */
    ENVIRONMENT_32 = 28, /* the same in doublewords */
    REGISTERS_SIZE = 80,
    SAVE_MAX = ENVIRONMENT_32 + REGISTERS_SIZE,
};

/* Writes the environment in the guest's layout from the host's 28-byte one. Reserved halves are
 * what the host wrote: ones. */
static void environment_put(uint8_t *to, const uint8_t *host, unsigned size)
{
    memset(to, 0, size);
    if (size == ENVIRONMENT_32) {
        memcpy(to, host, 12);
        memcpy(to + 26, host + 26, 2);
    } else {
        for (unsigned i = 0; i < 3; i++)
            memcpy(to + 2 * i, host + 4 * i, 2);
    }
}

static void environment_get(uint8_t *host, const uint8_t *from, unsigned size)
{
    memset(host, 0, ENVIRONMENT_32);
    for (unsigned i = 0; i < 3; i++)
        memcpy(host + 4 * i, from + (size == ENVIRONMENT_32 ? 4 : 2) * i, 2);
}

/* In the four handlers insn->b is the size of the environment. FLDENV and FRSTOR wait for a pending
 * exception, which native_linear() has raised before they meet it in our own C. */
static void fpu_store_environment(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t host[ENVIRONMENT_32], bytes[ENVIRONMENT_32];
    uint64_t linear = native_linear(v, insn, insn->b, true);
    soft_probe_write(v, insn, linear, insn->b, insn->seg);
    asm volatile("fnstenv %0" : "=m"(host));
    environment_put(bytes, host, insn->b);
    soft_store_bytes(v, insn, linear, bytes, insn->b, insn->seg);
    NEXT(v, insn);
}

static void fpu_save(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t host[SAVE_MAX], bytes[SAVE_MAX];
    unsigned size = insn->b + (unsigned)REGISTERS_SIZE;
    uint64_t linear = native_linear(v, insn, size, true);
    soft_probe_write(v, insn, linear, size, insn->seg);
    asm volatile("fnsave %0" : "=m"(host));
    environment_put(bytes, host, insn->b);
    memcpy(bytes + insn->b, host + ENVIRONMENT_32, REGISTERS_SIZE);
    soft_store_bytes(v, insn, linear, bytes, size, insn->seg);
    NEXT(v, insn);
}

static void fpu_load_environment(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t host[ENVIRONMENT_32], bytes[ENVIRONMENT_32];
    uint64_t linear = native_linear(v, insn, insn->b, false);
    soft_load_bytes(v, insn, linear, bytes, insn->b, insn->seg);
    environment_get(host, bytes, insn->b);
    asm volatile("fldenv %0" ::"m"(host));
    NEXT(v, insn);
}

static void fpu_restore(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t host[SAVE_MAX], bytes[SAVE_MAX];
    unsigned size = insn->b + (unsigned)REGISTERS_SIZE;
    uint64_t linear = native_linear(v, insn, size, false);
    soft_load_bytes(v, insn, linear, bytes, size, insn->seg);
    environment_get(host, bytes, insn->b);
    memcpy(host + ENVIRONMENT_32, bytes + insn->b, REGISTERS_SIZE);
    asm volatile("frstor %0" ::"m"(host));
    NEXT(v, insn);
}

static void fpu_environment_bind(struct decoder *decoder)
{
    static insn_run *const runs[] = {fpu_store_environment, fpu_save, fpu_load_environment,
                                     fpu_restore};
    if (!native_allowed(decoder))
        return;
    uint8_t size = decoder->zydis->operand_width == 16 ? ENVIRONMENT_16 : ENVIRONMENT_32;
    native_set_memory(decoder, size, 1);
    if (decoder->mode & MODE_AC) { /* words or doublewords, SDM vol. 3, table 6-7 */
        uint32_t mask = size == ENVIRONMENT_16 ? 1 : 3;
        decoder->insn->aux &= ~(15u << NATIVE_AC_SHIFT);
        decoder->insn->aux |= mask << NATIVE_AC_SHIFT;
    }
    decoder->insn->b = size;
    decoder->insn->run = runs[decoder->arg];
}

#define NATIVE(name)                                                                               \
    {                                                                                              \
        ZYDIS_MNEMONIC_##name, native_bind, 0                                                      \
    }

const struct op_row op_fpu_rows[] = {
    {ZYDIS_MNEMONIC_FNSTENV, fpu_environment_bind, 0},
    {ZYDIS_MNEMONIC_FNSAVE, fpu_environment_bind, 1},
    {ZYDIS_MNEMONIC_FLDENV, fpu_environment_bind, 2},
    {ZYDIS_MNEMONIC_FRSTOR, fpu_environment_bind, 3},
    {ZYDIS_MNEMONIC_FXSAVE, xsave_bind, XSAVE_FXSAVE},
    {ZYDIS_MNEMONIC_FXSAVE64, xsave_bind, XSAVE_FXSAVE},
    {ZYDIS_MNEMONIC_FXRSTOR, xsave_bind, XSAVE_FXRSTOR},
    {ZYDIS_MNEMONIC_FXRSTOR64, xsave_bind, XSAVE_FXRSTOR},
    {ZYDIS_MNEMONIC_XSAVE, xsave_bind, XSAVE_XSAVE},
    {ZYDIS_MNEMONIC_XSAVE64, xsave_bind, XSAVE_XSAVE},
    {ZYDIS_MNEMONIC_XSAVEOPT, xsave_bind, XSAVE_XSAVEOPT},
    {ZYDIS_MNEMONIC_XSAVEOPT64, xsave_bind, XSAVE_XSAVEOPT},
    {ZYDIS_MNEMONIC_XRSTOR, xsave_bind, XSAVE_XRSTOR},
    {ZYDIS_MNEMONIC_XRSTOR64, xsave_bind, XSAVE_XRSTOR},

    /* On the host CPU. */
    // clang-format off
    NATIVE(F2XM1), NATIVE(FABS), NATIVE(FADD), NATIVE(FADDP), NATIVE(FBLD), NATIVE(FBSTP),
    NATIVE(FCHS), NATIVE(FCMOVB), NATIVE(FCMOVBE), NATIVE(FCMOVE), NATIVE(FCMOVNB),
    NATIVE(FCMOVNBE), NATIVE(FCMOVNE), NATIVE(FCMOVNU), NATIVE(FCMOVU), NATIVE(FCOM), NATIVE(FCOMI),
    NATIVE(FCOMIP), NATIVE(FCOMP), NATIVE(FCOMPP), NATIVE(FCOS), NATIVE(FDECSTP),
    NATIVE(FDISI8087_NOP), NATIVE(FDIV), NATIVE(FDIVP), NATIVE(FDIVR), NATIVE(FDIVRP),
    NATIVE(FENI8087_NOP), NATIVE(FFREE), NATIVE(FFREEP), NATIVE(FIADD), NATIVE(FICOM),
    NATIVE(FICOMP), NATIVE(FIDIV), NATIVE(FIDIVR), NATIVE(FILD), NATIVE(FIMUL), NATIVE(FINCSTP),
    NATIVE(FIST), NATIVE(FISTP), NATIVE(FISTTP), NATIVE(FISUB), NATIVE(FISUBR), NATIVE(FLD),
    NATIVE(FLD1), NATIVE(FLDCW), NATIVE(FLDL2E), NATIVE(FLDL2T), NATIVE(FLDLG2), NATIVE(FLDLN2),
    NATIVE(FLDPI), NATIVE(FLDZ), NATIVE(FMUL), NATIVE(FMULP), NATIVE(FNCLEX), NATIVE(FNINIT),
    NATIVE(FNOP), NATIVE(FNSTCW), NATIVE(FNSTSW), NATIVE(FPATAN), NATIVE(FPREM), NATIVE(FPREM1),
    NATIVE(FPTAN), NATIVE(FRNDINT), NATIVE(FSCALE), NATIVE(FSETPM287_NOP), NATIVE(FSIN),
    NATIVE(FSINCOS), NATIVE(FSQRT), NATIVE(FST), NATIVE(FSTP), NATIVE(FSTPNCE), NATIVE(FSUB),
    NATIVE(FSUBP), NATIVE(FSUBR), NATIVE(FSUBRP), NATIVE(FTST), NATIVE(FUCOM), NATIVE(FUCOMI),
    NATIVE(FUCOMIP), NATIVE(FUCOMP), NATIVE(FUCOMPP), NATIVE(FWAIT), NATIVE(FXAM), NATIVE(FXCH),
    NATIVE(FXTRACT), NATIVE(FYL2X), NATIVE(FYL2XP1),
    // clang-format on
    {0},
};
