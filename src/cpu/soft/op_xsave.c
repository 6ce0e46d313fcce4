/*
 * op_xsave.c: FXSAVE, XSAVE, MXCSR, and the canonical XSAVE image of state.h.
 *
 * The layouts are those of SDM vol. 1, 10.5 (FXSAVE) and 13.4 (XSAVE, standard format); the compact
 * format does not exist here, since CPUID shows no XSAVEC. Components are x87, SSE and AVX.
 * Pointers to the last x87 instruction read as 0 (native.h), so FXSAVE and FXSAVE64 do the same.
 *
 * "In use" (XINUSE) is computed from the values, as the SDM allows: a component in its initial
 * configuration is not in use. Outside 64-bit mode only registers 0..7 exist, and the others keep
 * what they have.
 */
#include "cpu/soft/native_stub.h"

enum component { COMPONENT_X87 = 1, COMPONENT_SSE = 2, COMPONENT_AVX = 4, COMPONENTS = 7 };

enum { /* offsets in the image */
       AT_MXCSR = 24,
       AT_MXCSR_MASK = 28,
       AT_STACK = 32,
       AT_XMM = 160,
       AT_HEADER = NATIVE_XSAVE_LEGACY,
       AT_AVX = NATIVE_XSAVE_AVX,
};

/* ---- parts of an image ---- */

/* x87 and MXCSR as the host has them now; the XMM part is left 0. */
static void image_of_host(uint8_t image[NATIVE_XSAVE_LEGACY])
{
    uint8_t host[NATIVE_XSAVE_LEGACY] __attribute__((aligned(16)));
    asm volatile("fxsave64 %0" : "=m"(host));
    memset(image, 0, NATIVE_XSAVE_LEGACY);
    memcpy(image, host, 5); /* FCW, FSW, FTW; not FOP, FIP, FDP */
    memcpy(image + AT_MXCSR, host + AT_MXCSR, 4);
    le32_write(image + AT_MXCSR_MASK, NATIVE_MXCSR_MASK);
    memcpy(image + AT_STACK, host + AT_STACK, 128);
}

/* The other way; the host's XMM registers hold nothing of the guest. */
static void image_to_host(const uint8_t image[NATIVE_XSAVE_LEGACY])
{
    uint8_t host[NATIVE_XSAVE_LEGACY] __attribute__((aligned(16)));
    memcpy(host, image, sizeof host);
    memset(host + 5, 0, AT_MXCSR - 5);
    asm volatile("fxrstor64 %0" ::"m"(host)
                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void image_reset_x87(uint8_t image[NATIVE_XSAVE_LEGACY])
{
    memset(image, 0, AT_MXCSR);
    memset(image + AT_STACK, 0, 128);
    le16_write(image, NATIVE_FCW_INIT);
}

static void image_copy_x87(uint8_t *to, const uint8_t *from)
{
    memcpy(to, from, AT_MXCSR);
    memcpy(to + AT_STACK, from + AT_STACK, 128);
}

/* `size` is a multiple of 8. */
static bool is_zero(const uint8_t *bytes, unsigned size)
{
    uint64_t all = 0;
    for (unsigned i = 0; i < size; i += 8)
        all |= le64_read(bytes + i);
    return all == 0;
}

static uint64_t components_in_use(const struct soft_vcpu *v, const uint8_t *image,
                                  unsigned registers)
{
    uint8_t initial[NATIVE_XSAVE_LEGACY] = {0};
    uint64_t used = 0;
    image_reset_x87(initial);
    if (memcmp(image, initial, AT_MXCSR) != 0 || !is_zero(image + AT_STACK, 128))
        used |= COMPONENT_X87;
    for (unsigned i = 0; i < registers; i++) {
        if (!is_zero(v->vector[i], 16))
            used |= COMPONENT_SSE;
        if (!is_zero(v->vector[i] + 16, 16))
            used |= COMPONENT_AVX;
    }
    return used;
}

static unsigned registers_of(const struct soft_vcpu *v)
{
    return v->mode & MODE_64 ? 16 : 8;
}

/* ---- FXSAVE, FXRSTOR ---- */

static void fxsave(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t image[NATIVE_XSAVE_LEGACY];
    unsigned registers = registers_of(v);
    uint64_t linear = native_linear(v, insn, NATIVE_XSAVE_LEGACY, true);
    soft_probe_write(v, insn, linear, NATIVE_XSAVE_LEGACY, insn->seg);
    image_of_host(image);
    for (unsigned i = 0; i < registers; i++)
        memcpy(image + AT_XMM + 16 * i, v->vector[i], 16);
    soft_store_bytes(v, insn, linear, image, AT_XMM + 16 * registers, insn->seg);
    NEXT(v, insn);
}

static void check_mxcsr(struct soft_vcpu *v, const struct insn *insn, const uint8_t *image)
{
    if (le32_read(image + AT_MXCSR) & ~(uint32_t)NATIVE_MXCSR_MASK)
        soft_raise_error(v, insn, VECTOR_GP, 0);
}

static void fxrstor(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t image[NATIVE_XSAVE_LEGACY];
    uint64_t linear = native_linear(v, insn, NATIVE_XSAVE_LEGACY, false);
    soft_load_bytes(v, insn, linear, image, NATIVE_XSAVE_LEGACY, insn->seg);
    check_mxcsr(v, insn, image);
    image_to_host(image);
    for (unsigned i = 0; i < registers_of(v); i++)
        memcpy(v->vector[i], image + AT_XMM + 16 * i, 16);
    NEXT(v, insn);
}

/* ---- XSAVE, XRSTOR ---- */

static uint64_t requested(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(v->cr4 & CR4_OSXSAVE))
        op_undefined(v, insn);
    if (v->mode & MODE_TS)
        op_no_device(v, insn);
    return ((v->gpr[CPU_RDX] << 32) | (uint32_t)v->gpr[CPU_RAX]) & v->xcr0;
}

static unsigned area_size(uint64_t components)
{
    return components & COMPONENT_AVX ? NATIVE_XSAVE_TOTAL : NATIVE_XSAVE_AVX;
}

static void area_store(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                       const uint8_t *area, unsigned from, unsigned to)
{
    soft_store_bytes(v, insn, linear + from, area + from, to - from, insn->seg);
}

/* Writes the chosen components and nothing between them. */
static void area_store_components(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                                  const uint8_t *area, uint64_t rfbm, uint64_t chosen)
{
    unsigned registers = registers_of(v);
    if ((chosen & 3) == 3) {
        area_store(v, insn, linear, area, 0, AT_XMM + 16 * registers);
    } else {
        if (chosen & COMPONENT_X87) {
            area_store(v, insn, linear, area, 0, AT_MXCSR);
            area_store(v, insn, linear, area, AT_STACK, AT_XMM);
        }
        if (rfbm & (COMPONENT_SSE | COMPONENT_AVX))
            area_store(v, insn, linear, area, AT_MXCSR, AT_STACK);
        if (chosen & COMPONENT_SSE)
            area_store(v, insn, linear, area, AT_XMM, AT_XMM + 16 * registers);
    }
    if (chosen & COMPONENT_AVX)
        area_store(v, insn, linear, area, AT_AVX, AT_AVX + 16 * registers);
}

/* The live state in the standard format, header apart. */
static void area_fill(const struct soft_vcpu *v, uint8_t *area)
{
    for (unsigned i = 0; i < 16; i++) {
        memcpy(area + AT_XMM + 16 * i, v->vector[i], 16);
        memcpy(area + AT_AVX + 16 * i, v->vector[i] + 16, 16);
    }
}

static void xsave(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t area[NATIVE_XSAVE_TOTAL] = {0};
    uint64_t rfbm = requested(v, insn);
    unsigned size = area_size(rfbm);
    uint64_t linear = native_linear(v, insn, size, true);
    soft_probe_write(v, insn, linear, NATIVE_XSAVE_LEGACY, insn->seg);
    soft_probe_write(v, insn, linear + AT_HEADER, size - AT_HEADER, insn->seg);
    uint64_t header = load_64(v, insn, linear + AT_HEADER, insn->seg);

    image_of_host(area);
    area_fill(v, area);
    uint64_t used = components_in_use(v, area, registers_of(v));
    bool optimize = insn->b == XSAVE_XSAVEOPT;
    area_store_components(v, insn, linear, area, rfbm, optimize ? rfbm & used : rfbm);
    header = (header & ~rfbm) | (rfbm & used);
    store_64(v, insn, linear + AT_HEADER, insn->seg, header);
    NEXT(v, insn);
}

/* What of the header an XRSTOR in the standard format refuses, SDM vol. 1, 13.8.1. */
static bool header_is_valid(const uint8_t *header, uint64_t components)
{
    return (le64_read(header) & ~components) == 0 && is_zero(header + 8, 16);
}

static void xrstor(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t area[NATIVE_XSAVE_TOTAL], image[NATIVE_XSAVE_LEGACY];
    uint64_t rfbm = requested(v, insn);
    unsigned size = area_size(rfbm), registers = registers_of(v);
    uint64_t linear = native_linear(v, insn, size, false);
    soft_load_bytes(v, insn, linear, area, NATIVE_XSAVE_LEGACY, insn->seg);
    soft_load_bytes(v, insn, linear + AT_HEADER, area + AT_HEADER, size - AT_HEADER, insn->seg);
    if (!header_is_valid(area + AT_HEADER, v->xcr0))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    if (rfbm & (COMPONENT_SSE | COMPONENT_AVX))
        check_mxcsr(v, insn, area);

    uint64_t present = le64_read(area + AT_HEADER);
    image_of_host(image);
    if (rfbm & COMPONENT_X87) {
        if (present & COMPONENT_X87)
            image_copy_x87(image, area);
        else
            image_reset_x87(image);
    }
    if (rfbm & (COMPONENT_SSE | COMPONENT_AVX))
        memcpy(image + AT_MXCSR, area + AT_MXCSR, 4);
    image_to_host(image);
    for (unsigned i = 0; i < registers; i++) {
        static const uint8_t zero[16];
        if (rfbm & COMPONENT_SSE)
            memcpy(v->vector[i], present & COMPONENT_SSE ? area + AT_XMM + 16 * i : zero, 16);
        if (rfbm & COMPONENT_AVX)
            memcpy(v->vector[i] + 16, present & COMPONENT_AVX ? area + AT_AVX + 16 * i : zero, 16);
    }
    NEXT(v, insn);
}

void xsave_bind(struct decoder *decoder)
{
    static insn_run *const runs[] = {
        [XSAVE_FXSAVE] = fxsave,  [XSAVE_FXRSTOR] = fxrstor, [XSAVE_XSAVE] = xsave,
        [XSAVE_XSAVEOPT] = xsave, [XSAVE_XRSTOR] = xrstor,
    };
    bool fx = decoder->arg == XSAVE_FXSAVE || decoder->arg == XSAVE_FXRSTOR;
    struct insn *insn = decoder->insn;
    if (!native_allowed(decoder))
        return;
    if (fx && (decoder->mode & (MODE_TS | MODE_EM))) {
        insn->run = op_no_device;
        return;
    }
    native_set_memory(decoder, fx ? 512 : NATIVE_XSAVE_AVX, fx ? 16 : 64);
    insn->b = (uint8_t)decoder->arg;
    insn->run = runs[decoder->arg];
}

/* ---- MXCSR ---- */

static void mxcsr_load(struct soft_vcpu *v, const struct insn *insn)
{
    uint32_t value = load_32(v, insn, native_linear(v, insn, 4, false), insn->seg);
    if (value & ~(uint32_t)NATIVE_MXCSR_MASK)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    asm volatile("ldmxcsr %0" ::"m"(value));
    NEXT(v, insn);
}

void mxcsr_load_bind(struct decoder *decoder)
{
    if (!native_allowed(decoder))
        return;
    native_set_memory(decoder, 4, 1);
    decoder->insn->run = mxcsr_load;
}

/* ---- the canonical image ---- */

void native_xsave_image(const struct soft_vcpu *v, uint8_t *to)
{
    memset(to, 0, CPU_XSAVE_SIZE);
    memcpy(to, v->fpu, AT_XMM);
    area_fill(v, to);
    uint64_t used = components_in_use(v, to, 16);
    le64_write(to + AT_HEADER, COMPONENT_X87 | COMPONENT_SSE | (used & COMPONENT_AVX));
}

bool native_xrstor_image(struct soft_vcpu *v, const uint8_t *from)
{
    uint64_t present = le64_read(from + AT_HEADER);
    uint32_t mxcsr =
        present & (COMPONENT_SSE | COMPONENT_AVX) ? le32_read(from + AT_MXCSR) : NATIVE_MXCSR_INIT;
    if (!header_is_valid(from + AT_HEADER, COMPONENTS) || (mxcsr & ~(uint32_t)NATIVE_MXCSR_MASK))
        return false;
    image_reset_x87(v->fpu);
    if (present & COMPONENT_X87) {
        image_copy_x87(v->fpu, from);
        memset(v->fpu + 5, 0, AT_MXCSR - 5);
    }
    le32_write(v->fpu + AT_MXCSR, mxcsr);
    le32_write(v->fpu + AT_MXCSR_MASK, NATIVE_MXCSR_MASK);
    for (unsigned i = 0; i < 16; i++) {
        static const uint8_t zero[16];
        memcpy(v->vector[i], present & COMPONENT_SSE ? from + AT_XMM + 16 * i : zero, 16);
        memcpy(v->vector[i] + 16, present & COMPONENT_AVX ? from + AT_AVX + 16 * i : zero, 16);
    }
    return true;
}
