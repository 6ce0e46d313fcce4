/*
 * What there is to test: at start every opcode of every map, with every mandatory prefix, REX.W or
 * VEX.W and L, and every ModRM.reg, is offered to Zydis; what it accepts and ring 3 may run is
 * filed under its mnemonic.
 */
#include "generator.h"

#include <stdlib.h>
#include <string.h>

bool form_left_out(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_CPUID: /* the guest has a CPU of its own */
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_UD0: /* models disagree about their length, which a page's end shows */
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_MASKMOVQ: /* whether and where a masked store faults is the model's choice
                                   */
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_SYSCALL: /* the host's kernel would answer */
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_VMCALL: /* a hypervisor under the host might */
    case ZYDIS_MNEMONIC_VMMCALL:
    case ZYDIS_MNEMONIC_VMFUNC:
    case ZYDIS_MNEMONIC_ENCLU:
    case ZYDIS_MNEMONIC_WRFSBASE: /* the C library's own thread pointer */
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE: /* differ in what they start from */
    case ZYDIS_MNEMONIC_WRGSBASE:
    case ZYDIS_MNEMONIC_LAR: /* look into the host's descriptor tables */
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_POPF: /* TF, AC, ID: the signal frame is no fair witness */
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_PUSHF: /* shows RF and the like */
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_IN: /* the host may grant ports; ours does not: tested by guests */
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD:
    case ZYDIS_MNEMONIC_XSAVE: /* native_test.c and the guests test these */
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVES: /* hidden: #UD there, #GP here */
    case ZYDIS_MNEMONIC_XSAVES64:
    case ZYDIS_MNEMONIC_XRSTORS:
    case ZYDIS_MNEMONIC_XRSTORS64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FNSAVE: /* instruction and data pointers */
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_STAC: /* ring 3: #UD on the host, tested by guests */
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_SERIALIZE:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_CLZERO:
    case ZYDIS_MNEMONIC_UMONITOR:
    case ZYDIS_MNEMONIC_UMWAIT:
    case ZYDIS_MNEMONIC_TPAUSE:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDPRU:
    case ZYDIS_MNEMONIC_RDPKRU:
    case ZYDIS_MNEMONIC_WRPKRU:
    case ZYDIS_MNEMONIC_MCOMMIT:
    case ZYDIS_MNEMONIC_PSMASH:
    case ZYDIS_MNEMONIC_INVLPGB: return true;
    default: break;
    }
    const ZydisISAExt ext = insn->meta.isa_ext;
    switch (ext) { /* hidden from the guest: there they are #UD, here they run */
    case ZYDIS_ISA_EXT_AVX512VEX:
    case ZYDIS_ISA_EXT_SSE4A:
    case ZYDIS_ISA_EXT_AMD3DNOW:
    case ZYDIS_ISA_EXT_TBM:
    case ZYDIS_ISA_EXT_XOP:
    case ZYDIS_ISA_EXT_FMA4:
    case ZYDIS_ISA_EXT_MPX:
    case ZYDIS_ISA_EXT_CET:
    case ZYDIS_ISA_EXT_RTM:
    case ZYDIS_ISA_EXT_GFNI:
    case ZYDIS_ISA_EXT_VAES:
    case ZYDIS_ISA_EXT_VPCLMULQDQ:
    case ZYDIS_ISA_EXT_MOVDIR:
    case ZYDIS_ISA_EXT_PKU:
    case ZYDIS_ISA_EXT_AMX_TILE:
    case ZYDIS_ISA_EXT_UINTR:
    case ZYDIS_ISA_EXT_HRESET:
    case ZYDIS_ISA_EXT_KEYLOCKER:
    case ZYDIS_ISA_EXT_KEYLOCKER_WIDE:
    case ZYDIS_ISA_EXT_ENQCMD:
    case ZYDIS_ISA_EXT_SNP:
    case ZYDIS_ISA_EXT_SVM:
    case ZYDIS_ISA_EXT_VTX:
    case ZYDIS_ISA_EXT_CLDEMOTE:
    case ZYDIS_ISA_EXT_AVX_VNNI:
    case ZYDIS_ISA_EXT_RDPRU:
    case ZYDIS_ISA_EXT_MONITOR:
    case ZYDIS_ISA_EXT_MONITORX: return true;
    default: break;
    }
    return insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ||
           insn->encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX ||
           insn->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP;
}

unsigned form_write(const struct form *form, uint64_t bits, uint8_t *code)
{
    unsigned n = 0;
    uint8_t r = bits & 1, x = bits >> 1 & 1, b = bits >> 2 & 1, v = bits >> 3 & 15;
    if (form->vex) {
        code[n++] = 0xc4;
        code[n++] = (uint8_t)(!r << 7 | !x << 6 | !b << 5 | form->map);
        code[n++] = (uint8_t)(form->w << 7 | (v ^ 15) << 3 | form->l << 2 | form->prefix);
    } else {
        if (form->lock)
            code[n++] = 0xf0;
        if (form->prefix)
            code[n++] = form->prefix;
        if (form->w || r || x || b || (bits >> 7 & 7) == 0)
            code[n++] = (uint8_t)(0x40 | form->w << 3 | r << 2 | x << 1 | b);
        if (form->map >= 1)
            code[n++] = 0x0f;
        if (form->map == 2)
            code[n++] = 0x38;
        if (form->map == 3)
            code[n++] = 0x3a;
    }
    code[n++] = form->opcode;
    return n;
}

static void offer(struct generator *generator, const struct form *form, const char *only)
{
    for (unsigned mod = 0; mod < 4; mod += 3) {
        uint8_t code[32] = {0};
        unsigned at = form_write(form, UINT64_C(1) << 7 | UINT64_C(0) << 3, code);
        code[at] = (uint8_t)(mod << 6 | form->reg << 3 | 3);
        ZydisDecodedInstruction insn;
        if (ZYAN_FAILED(ZydisDecoderDecodeInstruction(&generator->decoder, NULL, code, sizeof code,
                                                      &insn)) ||
            form_left_out(&insn))
            continue;
        if (only && strcmp(ZydisMnemonicGetString(insn.mnemonic), only) != 0)
            continue;
        struct forms *forms = &generator->by_mnemonic[insn.mnemonic];
        if (forms->count == forms->room) {
            forms->room = forms->room ? forms->room * 2 : 16;
            forms->list = reallocarray(forms->list, forms->room, sizeof *forms->list);
        }
        forms->list[forms->count++] = *form;
        return;
    }
}

struct generator *generator_new(const char *only)
{
    struct generator *generator = calloc(1, sizeof *generator);
    ZydisDecoderInit(&generator->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    const uint8_t prefixes[] = {0, 0x66, 0xf2, 0xf3};
    struct form form;
    for (unsigned n = 0; n < 1u << 18; n++) {
        form = (struct form){.opcode = (uint8_t)n,
                             .reg = n >> 8 & 7,
                             .map = n >> 11 & 3,
                             .w = n >> 13 & 1,
                             .prefix = prefixes[n >> 14 & 3],
                             .lock = n >> 16 & 1};
        if (n < 1u << 17)
            offer(generator, &form, only);
        form.vex = true;
        form.prefix = n >> 14 & 3;
        form.l = n >> 16 & 1;
        form.lock = false;
        if (form.map && n < 1u << 17)
            offer(generator, &form, only);
    }
    for (unsigned i = 0; i <= ZYDIS_MNEMONIC_MAX_VALUE; i++)
        if (generator->by_mnemonic[i].count)
            generator->mnemonics[generator->mnemonic_count++] = i;
    return generator;
}

void generator_free(struct generator *generator)
{
    for (unsigned i = 0; i <= ZYDIS_MNEMONIC_MAX_VALUE; i++)
        free(generator->by_mnemonic[i].list);
    free(generator);
}

unsigned generator_mnemonics(const struct generator *generator)
{
    return generator->mnemonic_count;
}
