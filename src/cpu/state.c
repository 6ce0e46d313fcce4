#include "cpu/state.h"

#include "base/bytes.h"
#include "base/record.h"
#include "cpu/msr.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

/* Local APIC registers, as offsets into the page (SDM vol. 3, table 11-1). */
enum {
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_DFR = 0xe0,
    APIC_SVR = 0xf0,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_ERROR = 0x370,
};

static void reset_apic(uint8_t *page, unsigned index)
{
    memset(page, 0, CPU_APIC_SIZE);
    le32_write(page + APIC_ID, index << 24);
    le32_write(page + APIC_VERSION, 0x50014); /* integrated, six LVT entries */
    le32_write(page + APIC_DFR, UINT32_MAX);
    le32_write(page + APIC_SVR, 0xff);
    for (unsigned lvt = APIC_LVT_TIMER; lvt <= APIC_LVT_ERROR; lvt += 0x10)
        le32_write(page + lvt, 1 << 16); /* masked */
}

void cpu_state_reset(struct cpu_state *state, unsigned index)
{
    memset(state, 0, sizeof *state);
    state->gpr[CPU_RDX] = 0x600; /* family in bits 8..11, what firmware may look at */
    state->rip = 0xfff0;
    state->rflags = 2;
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        state->segment[i] = (struct cpu_segment){.limit = 0xffff,
                                                 .attributes = CPU_SEG_P | CPU_SEG_S |
                                                               CPU_SEG_WRITE | CPU_SEG_ACCESSED};
    state->segment[CPU_CS].attributes |= CPU_SEG_CODE;
    state->segment[CPU_CS].selector = 0xf000;
    state->segment[CPU_CS].base = 0xffff0000;
    state->ldt = (struct cpu_segment){.limit = 0xffff, .attributes = CPU_SEG_P | 0x2};
    state->task = (struct cpu_segment){.limit = 0xffff, .attributes = CPU_SEG_P | 0xb};
    state->gdt.limit = 0xffff;
    state->idt.limit = 0xffff;
    state->cr0 = 0x60000010;
    state->xcr0 = 1;
    state->dr6 = 0xffff0ff0;
    state->dr7 = 0x400;
    state->msr[CPU_MSR_APIC_BASE] = 0xfee00000 | 1 << 11 | (index == 0 ? 1 << 8 : 0);
    state->msr[CPU_MSR_PAT] = 0x0007040600070406;
    state->msr[CPU_MSR_MISC_ENABLE] = 1;      /* fast strings */
    state->msr[CPU_MSR_KVM_POLL_CONTROL] = 1; /* the host may poll for us until we object */
    state->pending.exception = -1;
    state->pending.interrupt = -1;
    state->run_state = index == 0 ? CPU_RUNNING : CPU_WAIT_FOR_SIPI;
    state->has_apic = 1;
    reset_apic(state->apic, index);
    /* SDM vol. 1, 13.6: FCW, MXCSR and its mask, and x87 + SSE named as present, so that an engine
     * that takes the image literally and one that honours XSTATE_BV agree. */
    le16_write(state->xsave, 0x37f);
    le32_write(state->xsave + 24, 0x1f80);
    le32_write(state->xsave + 28, 0xffff);
    le64_write(state->xsave + 512, 3);
}

struct text {
    char *to;
    unsigned size;
    int length;
};

__attribute__((format(printf, 2, 3))) static void put(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    unsigned used = min((unsigned)text->length, text->size);
    int wrote =
        vsnprintf(text->size ? text->to + used : NULL, text->size - used, format, arguments);
    va_end(arguments);
    if (wrote > 0)
        text->length += wrote;
}

static void put_segment(struct text *text, const char *name, const struct cpu_segment *segment)
{
    put(text, "%s %04x base %016" PRIx64 " limit %08" PRIx32 " attributes %05" PRIx32 "\n", name,
        segment->selector, segment->base, segment->limit, segment->attributes);
}

int cpu_state_print(const struct cpu_state *state, char *to, unsigned size)
{
    static const char *const gpr[CPU_GPR_MAX] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                                 "rsi", "rdi", "r8 ", "r9 ", "r10", "r11",
                                                 "r12", "r13", "r14", "r15"};
    static const char *const segment[CPU_SEG_MAX] = {"es ", "cs ", "ss ", "ds ", "fs ", "gs "};
    static const char *const run[CPU_RUN_STATE_MAX] = {"running", "halted", "waits for SIPI"};
    struct text text = {to, size, 0};

    put(&text, "rip %016" PRIx64 "  rflags %08" PRIx64 "  %s\n", state->rip, state->rflags,
        state->run_state < CPU_RUN_STATE_MAX ? run[state->run_state] : "?");
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        put(&text, "%s %016" PRIx64 "%s", gpr[i], state->gpr[i], i % 4 == 3 ? "\n" : "  ");
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        put_segment(&text, segment[i], &state->segment[i]);
    put_segment(&text, "ldt", &state->ldt);
    put_segment(&text, "tr ", &state->task);
    put(&text, "gdt base %016" PRIx64 " limit %04x  idt base %016" PRIx64 " limit %04x\n",
        state->gdt.base, state->gdt.limit, state->idt.base, state->idt.limit);
    put(&text,
        "cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64 "  cr8 %" PRIx64
        "  efer %" PRIx64 "\n",
        state->cr0, state->cr2, state->cr3, state->cr4, state->cr8, state->efer);
    put(&text,
        "dr0 %016" PRIx64 "  dr1 %016" PRIx64 "  dr2 %016" PRIx64 "  dr3 %016" PRIx64
        "  dr6 %08" PRIx64 "  dr7 %08" PRIx64 "\n",
        state->dr[0], state->dr[1], state->dr[2], state->dr[3], state->dr6, state->dr7);
    put(&text, "pending exception %d interrupt %d nmi %u blocked %u shadow %u\n",
        state->pending.exception, state->pending.interrupt, state->pending.nmi_pending,
        state->pending.nmi_blocked, state->pending.interrupt_shadow);
    return text.length;
}

static void segment_record(struct cpu_segment *segment, struct record *record)
{
    record_u64(record, &segment->base);
    record_u32(record, &segment->limit);
    record_u32(record, &segment->attributes);
    record_u16(record, &segment->selector);
}

static void table_record(struct cpu_table *table, struct record *record)
{
    record_u64(record, &table->base);
    record_u16(record, &table->limit);
}

static void i16_record(int16_t *value, struct record *record)
{
    uint16_t bits = (uint16_t)*value;
    record_u16(record, &bits);
    *value = (int16_t)bits;
}

static void pending_record(struct cpu_pending *pending, struct record *record)
{
    i16_record(&pending->exception, record);
    i16_record(&pending->interrupt, record);
    record_u32(record, &pending->exception_error);
    record_u64(record, &pending->exception_payload);
    record_u8_below(record, &pending->exception_has_error, 2);
    record_u8_below(record, &pending->exception_has_payload, 2);
    record_u8_below(record, &pending->nmi_pending, 2);
    record_u8_below(record, &pending->nmi_blocked, 2);
    record_u8_below(record, &pending->interrupt_shadow, 3);
    record_u8_below(record, &pending->interrupt_soft, 2);
}

/* The list of registers grows at its end: those that an older version did not know are 0. */
static void msrs_record(struct cpu_state *state, struct record *record)
{
    uint32_t count = CPU_MSR_MAX;
    record_u32(record, &count);
    if (count > CPU_MSR_MAX) {
        record_fail(record, "has registers of a newer version");
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        record_u64(record, &state->msr[i]);
}

void cpu_state_record(struct cpu_state *state, struct record *record)
{
    uint64_t *const words[] = {&state->rip,   &state->rflags, &state->cr0,   &state->cr2,
                               &state->cr3,   &state->cr4,    &state->cr8,   &state->efer,
                               &state->xcr0,  &state->dr[0],  &state->dr[1], &state->dr[2],
                               &state->dr[3], &state->dr6,    &state->dr7};
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        record_u64(record, &state->gpr[i]);
    for (unsigned i = 0; i < ARRAY_LEN(words); i++)
        record_u64(record, words[i]);
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        segment_record(&state->segment[i], record);
    segment_record(&state->ldt, record);
    segment_record(&state->task, record);
    table_record(&state->gdt, record);
    table_record(&state->idt, record);
    msrs_record(state, record);
    pending_record(&state->pending, record);
    record_u32_below(record, &state->run_state, CPU_RUN_STATE_MAX);
    record_u32_below(record, &state->has_apic, 2);
    record_bytes(record, state->apic, sizeof state->apic);
    record_bytes(record, state->xsave, sizeof state->xsave);
}
