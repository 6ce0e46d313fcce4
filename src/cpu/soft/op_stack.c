/* PUSH, POP, PUSHA, POPA, ENTER, LEAVE. PUSHF and POPF, and POP of segment registers, are the
 * system's. Memory comes before registers everywhere: a fault leaves RSP as it was. */
#include "cpu/soft/op_stack.h"
#include "cpu/soft/op.h"
#include "cpu/soft/system.h"

/* ---- 64-bit mode, 64-bit operands ---- */

MEMORY_HANDLER(push_r_64)
{
    uint64_t sp = v->gpr[CPU_RSP] - 8;
    STORE_SEG(64, sp, CPU_SS, REG64(v, insn->a)); /* PUSH RSP: its value before */
    v->gpr[CPU_RSP] = sp;
    NEXT(v, insn);
}

MEMORY_HANDLER(push_i_64)
{
    uint64_t sp = v->gpr[CPU_RSP] - 8;
    STORE_SEG(64, sp, CPU_SS, insn->imm);
    v->gpr[CPU_RSP] = sp;
    NEXT(v, insn);
}

MEMORY_HANDLER(push_m_64)
{
    uint64_t value = LOAD(64, LINEAR(ADDRESS_ANY, 8, false));
    uint64_t sp = v->gpr[CPU_RSP] - 8;
    STORE_SEG(64, sp, CPU_SS, value);
    v->gpr[CPU_RSP] = sp;
    NEXT(v, insn);
}

MEMORY_HANDLER(pop_r_64)
{
    uint64_t sp = v->gpr[CPU_RSP];
    uint64_t value = LOAD_SEG(64, sp, CPU_SS);
    v->gpr[CPU_RSP] = sp + 8;
    REG64(v, insn->a) = value; /* last: POP RSP */
    NEXT(v, insn);
}

MEMORY_HANDLER(leave_64)
{
    uint64_t sp = v->gpr[CPU_RBP];
    uint64_t value = LOAD_SEG(64, sp, CPU_SS);
    v->gpr[CPU_RSP] = sp + 8;
    v->gpr[CPU_RBP] = value;
    NEXT(v, insn);
}

/* ---- any mode, any size ---- */

static void push_value(struct soft_vcpu *v, const struct insn *insn, uint64_t value)
{
    uint64_t sp = v->gpr[CPU_RSP] - insn->size;
    stack_store(v, insn, sp, insn->size, value);
    stack_pointer_set(v, sp);
}

static uint64_t sized_register(struct soft_vcpu *v, unsigned offset, unsigned size)
{
    return size == 2 ? REG16(v, offset) : size == 4 ? REG32(v, offset) : REG64(v, offset);
}

static void sized_register_set(struct soft_vcpu *v, unsigned offset, unsigned size, uint64_t value)
{
    if (size == 2)
        REG16(v, offset) = (uint16_t)value;
    else if (size == 4)
        reg32_write(v, offset, (uint32_t)value);
    else
        REG64(v, offset) = value;
}

HANDLER(push_r_any)
{
    push_value(v, insn, sized_register(v, insn->a, insn->size));
    NEXT(v, insn);
}

HANDLER(push_i_any)
{
    push_value(v, insn, insn->imm);
    NEXT(v, insn);
}

/* With 32- and 64-bit operands the upper bytes of the slot become 0. SDM: recent processors write
 * only the selector's 16 bits of a 32-bit slot; ours writes the slot whole, as AMD's do. */
HANDLER(push_segment)
{
    push_value(v, insn, v->segment[insn->aux].selector);
    NEXT(v, insn);
}

static uint64_t load_sized(struct soft_vcpu *v, const struct insn *insn, uint64_t linear)
{
    switch (insn->size) {
    case 2: return load_16(v, insn, linear, insn->seg);
    case 4: return load_32(v, insn, linear, insn->seg);
    default: return load_64(v, insn, linear, insn->seg);
    }
}

HANDLER(push_m_any)
{
    push_value(v, insn, load_sized(v, insn, insn_linear(v, insn, insn->size, false)));
    NEXT(v, insn);
}

HANDLER(pop_r_any)
{
    uint64_t sp = v->gpr[CPU_RSP];
    uint64_t value = stack_load(v, insn, sp, insn->size);
    stack_pointer_set(v, sp + insn->size);
    sized_register_set(v, insn->a, insn->size, value);
    NEXT(v, insn);
}

/* The destination's address uses RSP as it is after the pop; a fault there restores it. */
HANDLER(pop_m_any)
{
    uint64_t sp = v->gpr[CPU_RSP];
    uint64_t value = stack_load(v, insn, sp, insn->size);
    uint64_t base = REG64(v, insn->base);
    if (insn->base == CPU_RSP * 8)
        base = (base & ~stack_mask(v)) | ((base + insn->size) & stack_mask(v));
    uint64_t offset =
        (base + (REG64(v, insn->index) << insn->scale) + (uint64_t)insn->disp) & insn->amask;
    uint64_t linear = offset + v->ea_base[insn->seg];
    if (insn->flags & INSN_SEGCHECK) {
        soft_segment_check(v, insn, insn->seg, offset, insn->size, true);
        linear = (uint32_t)linear;
    }
    switch (insn->size) {
    case 2: store_16(v, insn, linear, insn->seg, (uint16_t)value); break;
    case 4: store_32(v, insn, linear, insn->seg, (uint32_t)value); break;
    default: store_64(v, insn, linear, insn->seg, value); break;
    }
    stack_pointer_set(v, sp + insn->size);
    NEXT(v, insn);
}

HANDLER(leave_any)
{
    uint64_t sp = v->gpr[CPU_RBP];
    uint64_t value = stack_load(v, insn, sp, insn->size);
    stack_pointer_set(v, (sp & stack_mask(v)) + insn->size);
    sized_register_set(v, CPU_RBP * 8, insn->size, value);
    NEXT(v, insn);
}

/* ENTER: aux = nesting level, imm = bytes. SDM vol. 2: the last push is followed by a probe of the
 * new top of the stack. */
HANDLER(enter)
{
    unsigned size = insn->size, level = insn->aux;
    uint64_t mask = stack_mask(v), sp = v->gpr[CPU_RSP] - size, bp = v->gpr[CPU_RBP];
    stack_store(v, insn, sp, size, sized_register(v, CPU_RBP * 8, size));
    uint64_t frame = sp;
    for (unsigned i = 1; i < level; i++) {
        bp -= size;
        uint64_t value = stack_load(v, insn, bp, size);
        sp -= size;
        stack_store(v, insn, sp, size, value);
    }
    if (level > 0) {
        sp -= size;
        stack_store(v, insn, sp, size, frame);
    }
    sp -= insn->imm;
    soft_probe_write(v, insn, stack_linear(v, insn, sp, size, true), size, CPU_SS);
    stack_pointer_set(v, sp);
    if (size == 8)
        v->gpr[CPU_RBP] = frame & mask;
    else if (size == 4)
        reg32_write(v, CPU_RBP * 8, (uint32_t)(frame & mask));
    else
        REG16(v, CPU_RBP * 8) = (uint16_t)frame;
    NEXT(v, insn);
}

HANDLER(pusha)
{
    unsigned size = insn->size;
    uint64_t sp = v->gpr[CPU_RSP];
    for (unsigned i = 1; i <= 8; i++)
        soft_probe_write(v, insn, stack_linear(v, insn, sp - i * size, size, true), size, CPU_SS);
    for (unsigned i = 0; i < 8; i++)
        stack_store(v, insn, sp - (i + 1) * size, size, sized_register(v, i * 8, size));
    stack_pointer_set(v, sp - 8 * size);
    NEXT(v, insn);
}

HANDLER(popa)
{
    unsigned size = insn->size;
    uint64_t sp = v->gpr[CPU_RSP], values[8];
    for (unsigned i = 0; i < 8; i++)
        values[i] = stack_load(v, insn, sp + (7 - i) * size, size);
    stack_pointer_set(v, sp + 8 * size);
    for (unsigned i = 0; i < 8; i++)
        if (i != CPU_RSP)
            sized_register_set(v, i * 8, size, values[i]);
    NEXT(v, insn);
}

/* ---- bind ---- */

static void bind_push(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    bool hot = insn->size == 8;
    if (op_is_segment(decoder, 0)) {
        insn->aux = (uint32_t)(op_at(decoder, 0)->reg.value - ZYDIS_REGISTER_ES);
        insn->run = push_segment;
    } else if (op_is_immediate(decoder, 0)) {
        insn->imm = op_immediate(decoder, 0);
        insn->run = hot ? push_i_64 : push_i_any;
    } else if (op_is_memory(decoder, 0)) {
        insn->run = hot ? push_m_64 : push_m_any;
    } else {
        insn->a = op_register(decoder, 0);
        insn->run = hot ? push_r_64 : push_r_any;
    }
}

static void bind_pop(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (op_is_segment(decoder, 0)) {
        op_segment_bind(decoder);
    } else if (op_is_memory(decoder, 0)) {
        insn->run = pop_m_any;
    } else {
        insn->a = op_register(decoder, 0);
        insn->run = insn->size == 8 ? pop_r_64 : pop_r_any;
    }
}

static void bind_leave(struct decoder *decoder)
{
    decoder->insn->run = decoder->insn->size == 8 ? leave_64 : leave_any;
}

static void bind_enter(struct decoder *decoder)
{
    decoder->insn->imm = op_immediate(decoder, 0) & UINT16_MAX;
    decoder->insn->aux = op_immediate(decoder, 1) & 31;
    decoder->insn->run = enter;
}

static void bind_all(struct decoder *decoder)
{
    decoder->insn->size = decoder->arg & 15;
    decoder->insn->run = decoder->arg >> 4 ? popa : pusha;
}

const struct op_row op_stack_rows[] = {
    {ZYDIS_MNEMONIC_PUSH, bind_push, 0},
    {ZYDIS_MNEMONIC_POP, bind_pop, 0},
    {ZYDIS_MNEMONIC_LEAVE, bind_leave, 0},
    {ZYDIS_MNEMONIC_ENTER, bind_enter, 0},
    {ZYDIS_MNEMONIC_PUSHA, bind_all, 2},
    {ZYDIS_MNEMONIC_PUSHAD, bind_all, 4},
    {ZYDIS_MNEMONIC_POPA, bind_all, 16 | 2},
    {ZYDIS_MNEMONIC_POPAD, bind_all, 16 | 4},
    {0},
};
_Static_assert(ZYDIS_REGISTER_CS - ZYDIS_REGISTER_ES == CPU_CS &&
                   ZYDIS_REGISTER_GS - ZYDIS_REGISTER_ES == CPU_GS,
               "segment registers in the order of their encoding");
