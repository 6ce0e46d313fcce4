/*
 * Segments: descriptors, loads, limits, and the mode that follows from them.
 *
 * SDM vol. 3, chapters 3 and 5. CPL is SS.DPL (the canonical state's rule as well); in 64-bit mode
 * a null SS keeps the privilege in its DPL field. A null selector makes a segment with
 * CPU_SEG_UNUSABLE and base 0, on both vendors (CPUID says null_sel_clr_base on AMD).
 */
#include "cpu/soft/system.h"

/* ---- descriptors ---- */

uint64_t descriptor_base(const struct descriptor *d)
{
    return (uint64_t)d->base_high << 32 | (d->high & 0xff000000) | (d->high & 0xff) << 16 |
           d->low >> 16;
}

uint32_t descriptor_limit(const struct descriptor *d)
{
    uint32_t limit = (d->high & 0xf0000) | (d->low & 0xffff);
    return d->high & DESC_G ? limit << 12 | 0xfff : limit;
}

struct cpu_segment descriptor_segment(const struct descriptor *d, uint16_t selector)
{
    return (struct cpu_segment){.base = descriptor_base(d),
                                .limit = descriptor_limit(d),
                                .attributes = (d->high >> 8) & 0xf0ff,
                                .selector = selector};
}

bool descriptor_locate(struct soft_vcpu *v, uint16_t selector, unsigned size, uint64_t *ret_linear)
{
    uint32_t offset = selector & 0xfff8u;
    if (selector & 4) {
        if (v->ldt.attributes & CPU_SEG_UNUSABLE || offset + size - 1 > v->ldt.limit)
            return false;
        *ret_linear = v->ldt.base + offset;
        return true;
    }
    if (offset + size - 1 > v->gdt.limit)
        return false;
    *ret_linear = v->gdt.base + offset;
    return true;
}

void descriptor_fetch(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                      enum vector vector, unsigned ext, struct descriptor *ret_descriptor)
{
    uint64_t linear;
    if (!descriptor_locate(v, selector, 8, &linear))
        soft_raise_error(v, insn, vector, (selector & 0xfffcu) | ext);
    uint64_t value = soft_system_load(v, insn, linear, 8);
    *ret_descriptor = (struct descriptor){.selector = selector,
                                          .address = linear,
                                          .low = (uint32_t)value,
                                          .high = (uint32_t)(value >> 32)};
}

void descriptor_fetch_high(struct soft_vcpu *v, const struct insn *insn, enum vector vector,
                           unsigned ext, struct descriptor *descriptor)
{
    uint64_t linear;
    if (!descriptor_locate(v, descriptor->selector, 16, &linear))
        soft_raise_error(v, insn, vector, (descriptor->selector & 0xfffcu) | ext);
    uint64_t value = soft_system_load(v, insn, linear + 8, 8);
    if (value >> 40 & 0x1f) /* the type field of the upper half must be 0 */
        soft_raise_error(v, insn, vector, (descriptor->selector & 0xfffcu) | ext);
    descriptor->base_high = (uint32_t)value;
}

void descriptor_touch(struct soft_vcpu *v, const struct insn *insn, struct descriptor *descriptor)
{
    if (descriptor->high & DESC_ACCESSED)
        return;
    soft_system_or8(v, insn, descriptor->address + 5, 1);
    descriptor->high |= DESC_ACCESSED;
}

/* ---- limits ---- */

bool segment_inside(const struct cpu_segment *segment, uint64_t offset, unsigned size)
{
    if (segment->attributes & CPU_SEG_UNUSABLE)
        return false;
    uint64_t last = offset + size - 1;
    bool down = (segment->attributes & (CPU_SEG_S | CPU_SEG_CODE | CPU_SEG_DOWN)) ==
                (CPU_SEG_S | CPU_SEG_DOWN);
    if (down)
        return offset > segment->limit &&
               last <= (segment->attributes & CPU_SEG_DB ? UINT32_MAX : UINT16_MAX);
    return last <= segment->limit || segment->limit == UINT32_MAX;
}

void soft_segment_check(struct soft_vcpu *v, const struct insn *insn, unsigned seg, uint64_t offset,
                        unsigned size, bool write)
{
    const struct cpu_segment *segment = &v->segment[seg];
    bool fits = segment_inside(segment, offset, size);
    if (fits && v->mode & MODE_PROTECTED && !(v->mode & MODE_VM86)) {
        bool code = segment->attributes & CPU_SEG_CODE;
        bool allowed = segment->attributes & CPU_SEG_WRITE; /* code: readable */
        if (write ? code || !allowed : code && !allowed)
            soft_raise_error(v, insn, VECTOR_GP, 0);
    }
    if (!fits)
        soft_raise_error(v, insn, seg == CPU_SS ? VECTOR_SS : VECTOR_GP, 0);
}

void segment_check_target(struct soft_vcpu *v, const struct insn *insn, const struct descriptor *d,
                          uint64_t rip, unsigned ext)
{
    bool fits =
        v->efer & EFER_LMA && d->high & DESC_L ? canonical(rip) : rip <= descriptor_limit(d);
    if (!fits)
        soft_raise_error(v, insn, VECTOR_GP, ext);
}

/* ---- loads ---- */

void segment_load_real(struct soft_vcpu *v, unsigned seg, uint16_t selector)
{
    struct cpu_segment *segment = &v->segment[seg];
    uint32_t plain = CPU_SEG_P | CPU_SEG_S | CPU_SEG_WRITE | CPU_SEG_ACCESSED;
    if (v->rflags & RFLAG_VM) {
        segment->attributes = plain | 3 << CPU_SEG_DPL_SHIFT;
        segment->limit = 0xffff;
    } else {
        /* The limit that protected mode left stays ("unreal mode"). */
        if (segment->attributes & CPU_SEG_UNUSABLE)
            segment->limit = 0xffff;
        segment->attributes = plain | (segment->attributes & (CPU_SEG_DB | CPU_SEG_G)) |
                              (seg == CPU_CS ? CPU_SEG_CODE : 0);
    }
    segment->selector = selector;
    segment->base = (uint64_t)selector << 4;
}

static void set_null(struct soft_vcpu *v, unsigned seg, uint16_t selector)
{
    unsigned cpl = vcpu_cpl(v);
    v->segment[seg] = (struct cpu_segment){
        .selector = selector,
        .attributes = CPU_SEG_UNUSABLE | (seg == CPU_SS ? cpl << CPU_SEG_DPL_SHIFT : 0),
    };
}

void segment_check_stack(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                         unsigned cpl, enum vector vector, unsigned ext,
                         struct descriptor *ret_descriptor)
{
    uint32_t error = (selector & 0xfffcu) | ext;
    if (!(selector & 0xfffc))
        soft_raise_error(v, insn, vector, ext);
    descriptor_fetch(v, insn, selector, vector, ext, ret_descriptor);
    if ((selector & 3u) != cpl || descriptor_dpl(ret_descriptor) != cpl ||
        (ret_descriptor->high & (DESC_S | DESC_CODE | DESC_WRITE)) != (DESC_S | DESC_WRITE))
        soft_raise_error(v, insn, vector, error);
    if (!(ret_descriptor->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_SS, error);
}

static void check_data(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                       struct descriptor *d)
{
    uint32_t error = selector & 0xfffcu;
    descriptor_fetch(v, insn, selector, VECTOR_GP, 0, d);
    bool code = d->high & DESC_CODE;
    if (!(d->high & DESC_S) || (code && !(d->high & DESC_WRITE)))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!(code && d->high & DESC_DOWN) &&
        ((selector & 3u) > descriptor_dpl(d) || vcpu_cpl(v) > descriptor_dpl(d)))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!(d->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_NP, error);
}

void segment_load(struct soft_vcpu *v, const struct insn *insn, unsigned seg, uint16_t selector)
{
    if (!(v->mode & MODE_PROTECTED) || v->mode & MODE_VM86) {
        segment_load_real(v, seg, selector);
        soft_mode_update(v);
        return;
    }
    struct descriptor d;
    if (!(selector & 0xfffc)) {
        if (seg == CPU_SS &&
            (!(v->mode & MODE_64) || vcpu_cpl(v) == 3 || (selector & 3u) != vcpu_cpl(v)))
            soft_raise_error(v, insn, VECTOR_GP, 0);
        set_null(v, seg, selector);
        soft_mode_update(v);
        return;
    }
    if (seg == CPU_SS)
        segment_check_stack(v, insn, selector, vcpu_cpl(v), VECTOR_GP, 0, &d);
    else
        check_data(v, insn, selector, &d);
    descriptor_touch(v, insn, &d);
    v->segment[seg] = descriptor_segment(&d, selector);
    soft_mode_update(v);
}

void segment_return_code(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                         struct descriptor *ret_code)
{
    if (!(selector & 0xfffc))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    uint32_t error = selector & 0xfffcu;
    unsigned rpl = selector & 3u;
    descriptor_fetch(v, insn, selector, VECTOR_GP, 0, ret_code);
    unsigned dpl = descriptor_dpl(ret_code);
    bool conforming = ret_code->high & DESC_DOWN;
    if (rpl < vcpu_cpl(v) || !descriptor_is_code(ret_code) ||
        (conforming ? dpl > rpl : dpl != rpl) ||
        (v->efer & EFER_LMA && (ret_code->high & (DESC_L | DESC_DB)) == (DESC_L | DESC_DB)))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!(ret_code->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_NP, error);
}

void segment_return_stack(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                          const struct descriptor *code, unsigned cpl, struct cpu_segment *ret_ss)
{
    if (!(selector & 0xfffc)) {
        /* A null SS is for 64-bit code above CPL 3. */
        if (!(v->efer & EFER_LMA) || !(code->high & DESC_L) || cpl == 3 || (selector & 3u) != cpl)
            soft_raise_error(v, insn, VECTOR_GP, 0);
        *ret_ss = (struct cpu_segment){.selector = selector,
                                       .attributes = CPU_SEG_UNUSABLE | cpl << CPU_SEG_DPL_SHIFT};
        return;
    }
    struct descriptor ss;
    segment_check_stack(v, insn, selector, cpl, VECTOR_GP, 0, &ss);
    descriptor_touch(v, insn, &ss);
    *ret_ss = descriptor_segment(&ss, selector);
}

void segment_drop_inner(struct soft_vcpu *v, unsigned cpl)
{
    static const uint8_t data[] = {CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    for (unsigned i = 0; i < sizeof data; i++) {
        struct cpu_segment *segment = &v->segment[data[i]];
        if (segment->attributes & CPU_SEG_UNUSABLE) {
            segment->selector = 0; /* a null selector loses its RPL; FS and GS keep their base */
            continue;
        }
        bool conforming =
            (segment->attributes & (CPU_SEG_CODE | CPU_SEG_DOWN)) == (CPU_SEG_CODE | CPU_SEG_DOWN);
        if (!conforming && ((segment->attributes >> CPU_SEG_DPL_SHIFT) & 3) < cpl)
            set_null(v, data[i], 0);
    }
}

void segment_set_code(struct soft_vcpu *v, const struct descriptor *d, unsigned cpl)
{
    v->segment[CPU_CS] = descriptor_segment(d, (uint16_t)((d->selector & 0xfffc) | cpl));
}

void segment_set_flat(struct soft_vcpu *v, unsigned seg, uint16_t selector, unsigned cpl,
                      bool long_code)
{
    uint32_t attributes = CPU_SEG_P | CPU_SEG_S | CPU_SEG_WRITE | CPU_SEG_ACCESSED | CPU_SEG_G |
                          cpl << CPU_SEG_DPL_SHIFT;
    if (seg == CPU_CS)
        attributes |= CPU_SEG_CODE | (long_code ? CPU_SEG_L : CPU_SEG_DB);
    else
        attributes |= CPU_SEG_DB;
    v->segment[seg] =
        (struct cpu_segment){.limit = UINT32_MAX, .attributes = attributes, .selector = selector};
}

/* ---- the mode ---- */

static bool flat(const struct cpu_segment *segment)
{
    uint32_t kind = segment->attributes &
                    (CPU_SEG_UNUSABLE | CPU_SEG_S | CPU_SEG_CODE | CPU_SEG_DOWN | CPU_SEG_WRITE);
    return segment->base == 0 && segment->limit == UINT32_MAX &&
           kind == (CPU_SEG_S | CPU_SEG_WRITE);
}

static bool flat_code(const struct cpu_segment *segment)
{
    return segment->base == 0 && segment->limit == UINT32_MAX &&
           (segment->attributes & (CPU_SEG_UNUSABLE | CPU_SEG_WRITE)) == CPU_SEG_WRITE;
}

static uint32_t privilege_bits(const struct soft_vcpu *v)
{
    if (!(v->cr0 & CR0_PE))
        return 0;
    if (v->rflags & RFLAG_VM)
        return MODE_PROTECTED | MODE_VM86 | 3;
    return MODE_PROTECTED | ((v->segment[CPU_SS].attributes >> CPU_SEG_DPL_SHIFT) & 3);
}

static uint32_t control_bits(const struct soft_vcpu *v)
{
    uint32_t mode = 0;
    mode |= v->cr0 & CR0_TS ? MODE_TS : 0;
    mode |= v->cr0 & CR0_EM ? MODE_EM : 0;
    mode |= v->cr0 & CR0_MP ? MODE_MP : 0;
    mode |= v->cr4 & CR4_OSFXSR ? MODE_SSE : 0;
    mode |= v->cr4 & CR4_OSXSAVE && (v->xcr0 & 6) == 6 ? MODE_AVX : 0;
    mode |= v->cr4 & CR4_UMIP ? MODE_UMIP : 0;
    return mode;
}

void soft_mode_update(struct soft_vcpu *v)
{
    uint32_t mode = privilege_bits(v) | control_bits(v);
    if ((mode & MODE_CPL) == 3 && v->cr0 & CR0_AM && v->rflags & RFLAG_AC)
        mode |= MODE_AC;
    if (v->efer & EFER_LMA) {
        mode |= MODE_LONG;
        if (v->segment[CPU_CS].attributes & CPU_SEG_L)
            mode |= MODE_64;
    }
    if (mode & MODE_64) {
        v->ea_base[CPU_ES] = v->ea_base[CPU_CS] = v->ea_base[CPU_SS] = v->ea_base[CPU_DS] = 0;
        v->ea_base[CPU_FS] = v->segment[CPU_FS].base;
        v->ea_base[CPU_GS] = v->segment[CPU_GS].base;
    } else {
        for (unsigned seg = 0; seg < CPU_SEG_MAX; seg++)
            v->ea_base[seg] = (uint32_t)v->segment[seg].base;
        mode |= v->segment[CPU_CS].attributes & CPU_SEG_DB ? MODE_CODE32 : 0;
        mode |= v->segment[CPU_SS].attributes & CPU_SEG_DB ? MODE_STACK32 : 0;
        if (!flat_code(&v->segment[CPU_CS]) || !flat(&v->segment[CPU_SS]) ||
            !flat(&v->segment[CPU_DS]) || !flat(&v->segment[CPU_ES]))
            mode |= MODE_SEGCHECK;
    }
    v->mode = mode;
    soft_tlb_select(v);
}
