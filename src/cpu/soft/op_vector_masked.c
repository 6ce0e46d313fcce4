/*
 * op_vector_masked.c: accesses whose elements are chosen by a mask. An element that is masked out
 * cannot fault, so the host cannot run these on a pointer: they go element by element.
 *
 * VMASKMOV, VPMASKMOV, MASKMOVQ and MASKMOVDQU store nothing when any element would fault. A
 * gather that faults keeps what it has done: finished elements are in the destination and their
 * mask bits are clear, and running it again goes on from there (SDM vol. 2, VGATHERDPS).
 */
#include "cpu/soft/native_stub.h"

/* insn->b is the data register, insn->c the mask or index register; the rest is in imm. */
struct masked {
    uint8_t size;  /* bytes of an element in memory */
    uint8_t count; /* elements */
    uint8_t index; /* gathers: bytes of an index */
    uint8_t mask;  /* gathers: the mask register */
};
_Static_assert(sizeof(struct masked) <= 8, "fits insn->imm");

static struct masked masked_of(const struct insn *insn)
{
    struct masked masked;
    memcpy(&masked, &insn->imm, sizeof masked);
    return masked;
}

static bool is_chosen(const uint8_t *mask, unsigned element, unsigned size)
{
    return mask[(element + 1) * size - 1] & 0x80;
}

static void load_element(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                         unsigned size, uint8_t *to)
{
    uint64_t value =
        size == 4 ? load_32(v, insn, linear, insn->seg) : load_64(v, insn, linear, insn->seg);
    memcpy(to, &value, size);
}

static void store_element(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                          unsigned size, const uint8_t *from)
{
    uint64_t value = 0;
    memcpy(&value, from, size);
    if (size == 1)
        store_8(v, insn, linear, insn->seg, (uint8_t)value);
    else if (size == 4)
        store_32(v, insn, linear, insn->seg, (uint32_t)value);
    else
        store_64(v, insn, linear, insn->seg, value);
}

/* ---- VMASKMOV, VPMASKMOV ---- */

/* Where element `offset` of the operand is. Each has its own segment check: a masked-out element
 * beyond the limit is no fault. */
static uint64_t element_linear(struct soft_vcpu *v, const struct insn *insn, uint64_t offset,
                               unsigned size, bool write)
{
    offset &= insn->amask;
    if (unlikely(insn->flags & INSN_SEGCHECK)) {
        soft_segment_check(v, insn, insn->seg, offset, size, write);
        return (uint32_t)(offset + v->ea_base[insn->seg]);
    }
    return offset + v->ea_base[insn->seg];
}

static void masked_load(struct soft_vcpu *v, const struct insn *insn)
{
    struct masked masked = masked_of(insn);
    uint64_t offset = insn_offset(v, insn);
    uint8_t value[32] = {0};
    for (unsigned i = 0; i < masked.count; i++) {
        if (is_chosen(v->vector[insn->c], i, masked.size)) {
            uint64_t linear = element_linear(v, insn, offset + i * masked.size, masked.size, false);
            load_element(v, insn, linear, masked.size, value + i * masked.size);
        }
    }
    memcpy(v->vector[insn->b], value, sizeof value);
    NEXT(v, insn);
}

/* Twice over the elements: the first time only probes. */
static void masked_store_elements(struct soft_vcpu *v, const struct insn *insn, uint64_t offset,
                                  const uint8_t *data, const uint8_t *mask)
{
    struct masked masked = masked_of(insn);
    for (unsigned store = 0; store < 2; store++) {
        for (unsigned i = 0; i < masked.count; i++) {
            if (!is_chosen(mask, i, masked.size))
                continue;
            uint64_t linear = element_linear(v, insn, offset + i * masked.size, masked.size, true);
            if (store)
                store_element(v, insn, linear, masked.size, data + i * masked.size);
            else if (!native_direct(v, linear, masked.size, true))
                soft_probe_write(v, insn, linear, masked.size, insn->seg);
        }
    }
}

static void masked_store(struct soft_vcpu *v, const struct insn *insn)
{
    masked_store_elements(v, insn, insn_offset(v, insn), v->vector[insn->b], v->vector[insn->c]);
    NEXT(v, insn);
}

static uint8_t vector_number(const ZydisDecodedOperand *operand)
{
    return (uint8_t)ZydisRegisterGetId(operand->reg.value);
}

static void masked_set(struct insn *insn, struct masked masked)
{
    insn->imm = 0;
    memcpy(&insn->imm, &masked, sizeof masked);
}

void vector_masked_bind(struct decoder *decoder)
{
    const ZydisDecodedOperand *operands = decoder->operands;
    struct insn *insn = decoder->insn;
    if (!native_allowed(decoder))
        return;
    ZydisMnemonic mnemonic = decoder->zydis->mnemonic;
    uint8_t size =
        mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD ? 4 : 8;
    bool store = operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    insn->b = vector_number(&operands[store ? 2 : 0]);
    insn->c = vector_number(&operands[1]);
    uint8_t total = decoder->zydis->raw.vex.L ? 32 : 16;
    masked_set(insn, (struct masked){.size = size, .count = (uint8_t)(total / size)});
    insn->run = store ? masked_store : masked_load;
}

/* ---- MASKMOVQ, MASKMOVDQU: bytes to DS:[rDI] ---- */

static void maskmov_vector(struct soft_vcpu *v, const struct insn *insn)
{
    masked_store_elements(v, insn, insn_offset(v, insn), v->vector[insn->b], v->vector[insn->c]);
    NEXT(v, insn);
}

static void maskmov_mmx(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t image[512] __attribute__((aligned(16)));
    uint16_t status;
    uint64_t scratch;
    asm volatile("fnstsw %0" : "=a"(status));
    if (status & 0x80)
        soft_raise(v, insn, VECTOR_MF);
    /* Any MMX instruction makes ST(0) of the image be MM0. */
    asm volatile("movq %%mm0, %0; fxsave64 %1" : "=m"(scratch), "=m"(image));
    masked_store_elements(v, insn, insn_offset(v, insn), image + 32 + insn->b * 16,
                          image + 32 + insn->c * 16);
    NEXT(v, insn);
}

void vector_maskmov_bind(struct decoder *decoder)
{
    const ZydisDecodedOperand *operands = decoder->operands;
    const ZydisDecodedOperand *memory = native_memory_operand(decoder);
    struct insn *insn = decoder->insn;
    if (!native_allowed(decoder) || !memory)
        return;
    /* The address is implied: there is no ModRM operand for it. */
    insn->base = CPU_RDI * 8;
    insn->index = SOFT_ZERO * 8;
    insn->scale = 0;
    insn->disp = 0;
    insn->seg = (uint8_t)ZydisRegisterGetId(memory->mem.segment);
    unsigned width = decoder->zydis->address_width;
    insn->amask = width == 64 ? UINT64_MAX : (UINT64_C(1) << width) - 1;

    const ZydisDecodedOperand *data = NULL, *mask = NULL;
    for (unsigned i = 0; i < decoder->zydis->operand_count; i++) {
        if (operands[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
            data = &operands[i];
        if (operands[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
            mask = &operands[i];
    }
    bool mmx = decoder->zydis->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ;
    insn->b = vector_number(data);
    insn->c = vector_number(mask);
    masked_set(insn, (struct masked){.size = 1, .count = mmx ? 8 : 16});
    insn->run = mmx ? maskmov_mmx : maskmov_vector;
}

/* ---- gathers ---- */

/* What is left of the mask says where to go on, so it is brought up to date with each access. Of
 * the elements that a fault leaves over only the top bit means anything: Intel fills them with it,
 * AMD leaves them as they are, and so do we. */
static void gather(struct soft_vcpu *v, const struct insn *insn)
{
    struct masked masked = masked_of(insn);
    uint8_t *mask = v->vector[masked.mask], *to = v->vector[insn->b];
    for (unsigned i = 0; i < masked.count; i++) {
        if (!is_chosen(mask, i, masked.size))
            continue;
        int64_t index;
        memcpy(&index, v->vector[insn->c] + i * masked.index, masked.index);
        if (masked.index == 4)
            index = (int32_t)index;
        uint64_t offset =
            REG64(v, insn->base) + ((uint64_t)index << insn->scale) + (uint64_t)insn->disp;
        uint64_t linear = element_linear(v, insn, offset, masked.size, false);
        load_element(v, insn, linear, masked.size, to + i * masked.size);
        memset(mask + i * masked.size, 0, masked.size);
    }
    memset(mask, 0, 32);
    unsigned used = (unsigned)masked.count * masked.size;
    memset(to + used, 0, 32 - used);
    NEXT(v, insn);
}

/* arg: bytes of an index | bytes of an element << 4 */
void vector_gather_bind(struct decoder *decoder)
{
    const ZydisDecodedOperand *operands = decoder->operands;
    struct insn *insn = decoder->insn;
    if (!native_allowed(decoder))
        return;
    insn->b = vector_number(&operands[0]);
    insn->c = (uint8_t)ZydisRegisterGetId(operands[1].mem.index);
    uint8_t mask = vector_number(&operands[2]);
    if (insn->b == insn->c || insn->b == mask || insn->c == mask) {
        insn->run = op_undefined;
        return;
    }
    uint8_t index = decoder->arg & 15, size = (uint8_t)(decoder->arg >> 4);
    unsigned total = decoder->zydis->raw.vex.L ? 32 : 16;
    masked_set(insn, (struct masked){.size = size,
                                     .count = (uint8_t)(total / max(index, size)),
                                     .index = index,
                                     .mask = mask});
    insn->run = gather;
}
