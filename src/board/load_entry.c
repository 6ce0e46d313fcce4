/*
 * Registers and descriptor table at the entry. 64-bit: boot.rst, "64-bit Boot Protocol". PVH:
 * xen/docs/misc/pvh.pandoc. Multiboot: specification 0.6.96, 3.2 "Machine state".
 */
#include "base/bytes.h"
#include "board/load_boot.h"

#include <errno.h>

enum {
    CR0_PE = 1 << 0,
    CR0_ET = 1 << 4,
    CR4_PAE = 1 << 5,
    EFER_LME = 1 << 8,
    EFER_LMA = 1 << 10,
    RFLAGS_FIXED = 1 << 1,
    MULTIBOOT_MAGIC = 0x2badb002,

    /* GDT slots, the same for every protocol: Linux's __BOOT_CS and __BOOT_DS, flat. */
    SELECTOR_CODE = 0x10,
    SELECTOR_DATA = 0x18,
    SELECTOR_TASK = 0x20,
    GDT_ENTRIES = 5,
    GDT_SIZE = GDT_ENTRIES * 8,

    ATTRIBUTES_COMMON = CPU_SEG_P | CPU_SEG_S | CPU_SEG_G | CPU_SEG_ACCESSED | CPU_SEG_WRITE,
    ATTRIBUTES_DATA = ATTRIBUTES_COMMON | CPU_SEG_DB,
    ATTRIBUTES_CODE_32 = ATTRIBUTES_COMMON | CPU_SEG_CODE | CPU_SEG_DB,
    ATTRIBUTES_CODE_64 = ATTRIBUTES_COMMON | CPU_SEG_CODE | CPU_SEG_L,
    ATTRIBUTES_TASK = CPU_SEG_P | 0xb, /* busy TSS, 32 or 64 bits */
    TASK_LIMIT = 0x67,
};

static const uint64_t CR0_PG = UINT64_C(1) << 31;

static uint32_t code_attributes(const struct load_entry *entry)
{
    return entry->protocol == LOAD_PROTOCOL_LINUX64 ? ATTRIBUTES_CODE_64 : ATTRIBUTES_CODE_32;
}

/* SDM vol. 3, figure 3-8; the base is 0. */
static uint64_t descriptor(uint32_t attributes, uint32_t limit)
{
    uint64_t field = attributes & CPU_SEG_G ? limit >> 12 : limit;
    return (uint64_t)attributes << 40 | (field >> 16) << 48 | (field & 0xffff);
}

int load_gdt_write(struct mem *mem, const struct load_entry *entry, struct err *err)
{
    uint8_t gdt[GDT_SIZE] = {0};
    le64_write(gdt + SELECTOR_CODE, descriptor(code_attributes(entry), UINT32_MAX));
    le64_write(gdt + SELECTOR_DATA, descriptor(ATTRIBUTES_DATA, UINT32_MAX));
    le64_write(gdt + SELECTOR_TASK, descriptor(ATTRIBUTES_TASK, TASK_LIMIT));
    if (mem_write(mem, LOAD_AT_GDT, gdt, sizeof gdt) < 0)
        return err_set(err, -ENOMEM, "the guest has no memory at its start");
    return 0;
}

void load_entry_state(const struct load_entry *entry, struct cpu_state *state)
{
    const struct cpu_segment code = {
        .limit = UINT32_MAX, .attributes = code_attributes(entry), .selector = SELECTOR_CODE};
    const struct cpu_segment data = {
        .limit = UINT32_MAX, .attributes = ATTRIBUTES_DATA, .selector = SELECTOR_DATA};
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        state->segment[i] = i == CPU_CS ? code : data;
    state->task = (struct cpu_segment){
        .limit = TASK_LIMIT, .attributes = ATTRIBUTES_TASK, .selector = SELECTOR_TASK};
    state->gdt = (struct cpu_table){.base = LOAD_AT_GDT, .limit = GDT_SIZE - 1};
    state->idt = (struct cpu_table){0};
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        state->gpr[i] = 0;
    state->rflags = RFLAGS_FIXED;
    state->rip = entry->rip;
    state->cr0 = CR0_PE | CR0_ET;

    switch (entry->protocol) {
    case LOAD_PROTOCOL_LINUX64:
        state->cr0 |= CR0_PG;
        state->cr3 = LOAD_AT_PAGE_TABLES;
        state->cr4 = CR4_PAE;
        state->efer = EFER_LME | EFER_LMA;
        state->gpr[CPU_RSI] = entry->info;
        break;
    case LOAD_PROTOCOL_PVH: state->gpr[CPU_RBX] = entry->info; break;
    case LOAD_PROTOCOL_MULTIBOOT:
        state->gpr[CPU_RAX] = MULTIBOOT_MAGIC;
        state->gpr[CPU_RBX] = entry->info;
        break;
    }
}
