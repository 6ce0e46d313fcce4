/*
 * Ports: SDM vol. 1, 18.5 and 18.6. The permission bitmap of the TSS decides where CPL exceeds
 * IOPL; a vCPU has left (exclusive_leave) while a device works. REP forms look at
 * `attention` after each item and go on later from where they were.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/system.h"

enum { TSS_BITMAP = 102 };

static void check_port(struct soft_vcpu *v, const struct insn *insn, uint16_t port, unsigned size)
{
    unsigned iopl = (unsigned)(v->rflags >> 12) & 3;
    if (!(v->mode & MODE_PROTECTED) || (vcpu_cpl(v) <= iopl && !(v->mode & MODE_VM86)))
        return;
    bool wide = (v->task.attributes & CPU_SEG_TYPE) >= SYSTEM_TSS;
    if (!wide || v->task.limit < TSS_BITMAP + 1)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    uint32_t at = (uint32_t)soft_system_load(v, insn, v->task.base + TSS_BITMAP, 2) + port / 8;
    if (at + 1 > v->task.limit)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    uint32_t bits = (uint32_t)soft_system_load(v, insn, v->task.base + at, 2) >> port % 8;
    if (bits & ((1u << size) - 1))
        soft_raise_error(v, insn, VECTOR_GP, 0);
}

uint32_t io_port_read(struct soft_vcpu *v, uint16_t port, unsigned size)
{
    uint32_t value = UINT32_MAX;
    if (v->vm->io.port_read) {
        exclusive_leave(v);
        value = v->vm->io.port_read(v->vm->io.opaque, v->index, port, size);
        exclusive_enter(v);
    }
    if (unlikely(v->system.break_io))
        debug_io_access(v, port, size);
    return size == 4 ? value : value & ((1u << size * 8) - 1);
}

void io_port_write(struct soft_vcpu *v, uint16_t port, unsigned size, uint32_t value)
{
    if (v->vm->io.port_write) {
        exclusive_leave(v);
        v->vm->io.port_write(v->vm->io.opaque, v->index, port, size,
                             size == 4 ? value : value & ((1u << size * 8) - 1));
        exclusive_enter(v);
    }
    if (unlikely(v->system.break_io))
        debug_io_access(v, port, size);
}

/* insn->imm is the port, or all ones for DX. */
static uint16_t port_of(struct soft_vcpu *v, const struct insn *insn)
{
    return insn->imm == UINT64_MAX ? REG16(v, CPU_RDX * 8) : (uint16_t)insn->imm;
}

static void op_in(struct soft_vcpu *v, const struct insn *insn)
{
    uint16_t port = port_of(v, insn);
    check_port(v, insn, port, insn->size);
    register_write(v, CPU_RAX * 8, insn->size, io_port_read(v, port, insn->size));
    NEXT(v, insn);
}

static void op_out(struct soft_vcpu *v, const struct insn *insn)
{
    uint16_t port = port_of(v, insn);
    check_port(v, insn, port, insn->size);
    io_port_write(v, port, insn->size, REG32(v, CPU_RAX * 8));
    NEXT(v, insn);
}

/* Adds to a register of the address size. */
static void advance(struct soft_vcpu *v, const struct insn *insn, unsigned gpr, uint64_t by)
{
    uint64_t value = (v->gpr[gpr] + by) & insn->amask;
    if (insn->amask == UINT16_MAX)
        REG16(v, gpr * 8) = (uint16_t)value;
    else
        v->gpr[gpr] = value;
}

static void one_ins(struct soft_vcpu *v, const struct insn *insn, uint16_t port)
{
    uint64_t linear = insn_linear(v, insn, insn->size, true);
    soft_probe_write(v, insn, linear, insn->size, CPU_ES);
    uint32_t value = io_port_read(v, port, insn->size);
    soft_store_bytes(v, insn, linear, &value, insn->size, CPU_ES);
}

static void one_outs(struct soft_vcpu *v, const struct insn *insn, uint16_t port)
{
    uint32_t value = 0;
    uint64_t linear = insn_linear(v, insn, insn->size, false);
    soft_load_bytes(v, insn, linear, &value, insn->size, insn->seg);
    io_port_write(v, port, insn->size, value);
}

static void op_string_io(struct soft_vcpu *v, const struct insn *insn)
{
    bool in = insn->aux, repeat = insn->flags & (INSN_REP | INSN_REPNE);
    uint16_t port = REG16(v, CPU_RDX * 8);
    uint64_t step = v->rflags & RFLAG_DF ? -(uint64_t)insn->size : insn->size;
    check_port(v, insn, port, insn->size);
    while (!repeat || v->gpr[CPU_RCX] & insn->amask) {
        if (in)
            one_ins(v, insn, port);
        else
            one_outs(v, insn, port);
        advance(v, insn, in ? CPU_RDI : CPU_RSI, step);
        if (!repeat)
            break;
        advance(v, insn, CPU_RCX, UINT64_MAX);
        if (block_attention(v) && v->gpr[CPU_RCX] & insn->amask) {
            v->gpr[SOFT_RIP] = insn_address(v, insn); /* again, for the rest */
            LEAVE;
        }
    }
    NEXT(v, insn);
}

static void port_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    bool in = decoder->arg;
    const ZydisDecodedOperand *port = &decoder->operands[in ? 1 : 0];
    if (insn->flags & INSN_LOCK)
        return;
    insn->size = (uint8_t)(decoder->operands[in ? 0 : 1].size / 8);
    insn->imm = port->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? port->imm.value.u & 0xff : UINT64_MAX;
    insn->run = in ? op_in : op_out;
}

enum { STRING_IN = 1 << 8 };

static void string_io_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK)
        return;
    insn->size = (uint8_t)(decoder->arg & 0xff);
    insn->aux = decoder->arg & STRING_IN ? 1 : 0;
    insn->run = op_string_io;
    decoder->alone = true;
}

const struct op_row op_io_rows[] = {
    {ZYDIS_MNEMONIC_IN, port_bind, 1},
    {ZYDIS_MNEMONIC_OUT, port_bind, 0},
    {ZYDIS_MNEMONIC_INSB, string_io_bind, 1 | STRING_IN},
    {ZYDIS_MNEMONIC_INSW, string_io_bind, 2 | STRING_IN},
    {ZYDIS_MNEMONIC_INSD, string_io_bind, 4 | STRING_IN},
    {ZYDIS_MNEMONIC_OUTSB, string_io_bind, 1},
    {ZYDIS_MNEMONIC_OUTSW, string_io_bind, 2},
    {ZYDIS_MNEMONIC_OUTSD, string_io_bind, 4},
    {0},
};
