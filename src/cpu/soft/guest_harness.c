#include "cpu/soft/guest_harness.h"

#include "cpu/soft/block.h"
#include "cpu/soft/native.h"

/* ---- callbacks ---- */

static void note(struct guest *guest, bool write, uint64_t address, unsigned size, uint64_t value)
{
    if (guest->access_count < ARRAY_LEN(guest->accesses))
        guest->accesses[guest->access_count++] = (struct guest_access){write, address, size, value};
}

static uint32_t port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    note(opaque, false, port, size, 0);
    return 0xa0a1a2a3;
}

static void port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint32_t value)
{
    struct guest *guest = opaque;
    if (port == GUEST_STOP_PORT) {
        engine_soft.vcpu_kick(guest->vcpu);
        return;
    }
    note(opaque, true, port, size, value);
}

static uint64_t mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    note(opaque, false, gpa, size, 0);
    return UINT64_C(0xc0c1c2c3c4c5c6c7);
}

static void mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    note(opaque, true, gpa, size, value);
}

static int apic_poll(void *opaque, unsigned vcpu)
{
    return ((struct guest_apic *)opaque)->pending;
}

static int apic_accept(void *opaque, unsigned vcpu)
{
    struct guest_apic *apic = opaque;
    apic->accepted++;
    return atomic_exchange(&apic->pending, -1);
}

static uint64_t cr8_read(void *opaque, unsigned vcpu)
{
    return ((struct guest_apic *)opaque)->tpr;
}

static void cr8_write(void *opaque, unsigned vcpu, uint64_t value)
{
    ((struct guest_apic *)opaque)->tpr = value;
}

static uint64_t *apic_register(struct guest_apic *apic, uint32_t index)
{
    switch (index) {
    case 0x1b: return &apic->base;
    case 0x6e0: return &apic->deadline;
    case 0x830: return &apic->icr;
    default: return NULL;
    }
}

static bool apic_msr_read(void *opaque, unsigned vcpu, uint32_t index, uint64_t *ret_value)
{
    uint64_t *at = apic_register(opaque, index);
    if (at)
        *ret_value = *at;
    return at;
}

static bool apic_msr_write(void *opaque, unsigned vcpu, uint32_t index, uint64_t value)
{
    uint64_t *at = apic_register(opaque, index);
    if (at)
        *at = value;
    return at;
}

static void apic_save(void *opaque, unsigned vcpu, uint8_t *ret_page)
{
    memcpy(ret_page, ((struct guest_apic *)opaque)->page, CPU_APIC_SIZE);
}

static bool apic_load(void *opaque, unsigned vcpu, const uint8_t *page)
{
    memcpy(((struct guest_apic *)opaque)->page, page, CPU_APIC_SIZE);
    return true;
}

static void apic_init(void *opaque, unsigned vcpu)
{
    ((struct guest_apic *)opaque)->pending = -1;
}

/* ---- machines ---- */

/* AMD's own leaf, as far as these tests need it. */
static void set_auto_ibrs(struct cpuid *cpuid, bool there)
{
    struct cpuid_leaf *found = NULL;
    for (unsigned i = 0; i < cpuid->count; i++) {
        if (cpuid->leaves[i].leaf == 0x80000021)
            found = &cpuid->leaves[i];
        if (cpuid->leaves[i].leaf == 0x80000000)
            cpuid->leaves[i].eax = there ? 0x80000021 : 0x80000008;
    }
    if (!found) {
        assert_true(cpuid->count < CPUID_LEAVES_MAX);
        found = &cpuid->leaves[cpuid->count++];
        *found = (struct cpuid_leaf){.leaf = 0x80000021};
    }
    found->eax = there ? 1 << 8 : 0;
}

void guest_cpuid(struct cpuid *ret_cpuid, bool amd)
{
    cpuid_model(ret_cpuid, CPUID_SOFT, NULL, 1, 2000000);
    for (unsigned i = 0; i < ret_cpuid->count; i++) {
        struct cpuid_leaf *leaf = &ret_cpuid->leaves[i];
        if (leaf->leaf == 0 || leaf->leaf == 0x80000000) {
            leaf->ebx = amd ? 0x68747541 : 0x756e6547;
            leaf->edx = amd ? 0x69746e65 : 0x49656e69;
            leaf->ecx = amd ? 0x444d4163 : 0x6c65746e;
        }
        if (leaf->leaf == 7 && leaf->subleaf == 0 && !amd)
            leaf->edx |= 1u << 26 | 1u << 29;
        if (leaf->leaf == 0x80000008) /* the same physical width on every host */
            leaf->eax = 48 << 8 | 40;
        if (leaf->leaf == 7 && leaf->subleaf == 0 && amd)
            leaf->edx &= ~(1u << 26 | 1u << 29);
    }
    set_auto_ibrs(ret_cpuid, amd);
}

enum engine_translate guest_translate(void)
{
    const char *name = getenv("LODGE_TRANSLATE");
    return !name || strcmp(name, "hot") == 0 ? ENGINE_TRANSLATE_HOT
           : strcmp(name, "always") == 0     ? ENGINE_TRANSLATE_ALWAYS
                                             : ENGINE_TRANSLATE_NEVER;
}

static void begin(struct guest *guest, const struct cpuid *cpuid, bool with_apic)
{
    memset(guest, 0, sizeof *guest);
    struct cpuid model;
    if (!cpuid)
        guest_cpuid(&model, false);
    guest->mem = mem_new();
    assert_non_null(guest->mem);
    assert_int_equal(mem_add(guest->mem, 0, GUEST_MEMORY, false, NULL), 0);
    guest->ram = mem_at(guest->mem, 0, GUEST_MEMORY, true);
    guest->io = (struct engine_io){.opaque = guest,
                                   .port_read = port_read,
                                   .port_write = port_write,
                                   .mmio_read = mmio_read,
                                   .mmio_write = mmio_write};
    guest->apic.pending = -1;
    guest->apic.base = 0xfee00900;
    static const struct engine_apic row = {.poll = apic_poll,
                                           .accept = apic_accept,
                                           .cr8_read = cr8_read,
                                           .cr8_write = cr8_write,
                                           .msr_read = apic_msr_read,
                                           .msr_write = apic_msr_write,
                                           .save = apic_save,
                                           .load = apic_load,
                                           .init = apic_init};
    struct engine_apic apic = row;
    apic.opaque = &guest->apic;
    struct engine_config config = {
        .mem = guest->mem,
        .vcpus = 1,
        .irqchip = with_apic ? ENGINE_IRQCHIP_BOARD : ENGINE_IRQCHIP_NONE,
        .check_tlb = true,
        .io = &guest->io,
        .apic = with_apic ? &apic : NULL,
        .cpuid = cpuid ? cpuid : &model,
        .count = true,
        .kvm_fd = -1,
        .translate = guest_translate(),
    };
    struct err err = {0};
    if (engine_soft.vm_new(&config, &guest->vm, &err) < 0 ||
        engine_soft.vcpu_new(guest->vm, 0, &guest->vcpu, &err) < 0)
        fail_msg("%s", err.text);
    guest->v = (struct soft_vcpu *)guest->vcpu;
}

void guest_begin(struct guest *guest, const struct cpuid *cpuid)
{
    begin(guest, cpuid, false);
}

void guest_begin_with_apic(struct guest *guest)
{
    begin(guest, NULL, true);
}

void guest_end(struct guest *guest)
{
    engine_soft.vcpu_free(guest->vcpu);
    engine_soft.vm_free(guest->vm);
    mem_free(guest->mem);
}

uint64_t *guest_quad(struct guest *guest, uint64_t gpa)
{
    assert_true(range_fits(gpa, 8, GUEST_MEMORY));
    return (uint64_t *)(guest->ram + gpa);
}

/* ---- tables ---- */

static void put_descriptor(struct guest *guest, unsigned selector, uint32_t base, uint32_t limit,
                           uint32_t attributes)
{
    struct descriptor_words words = guest_descriptor(base, limit, attributes);
    memcpy(guest->ram + GUEST_GDT + (selector & ~7u), &words, sizeof words);
}

static void write_gdt(struct guest *guest, bool wide)
{
    put_descriptor(guest, SEL_CODE64, 0, 0xfffff, wide ? 0xa09b : 0xc09b);
    put_descriptor(guest, SEL_DATA, 0, 0xfffff, 0xc093);
    put_descriptor(guest, SEL_USER32, 0, 0xfffff, 0xc0fb);
    put_descriptor(guest, SEL_USER_DATA, 0, 0xfffff, 0xc0f3);
    put_descriptor(guest, SEL_USER64, 0, 0xfffff, wide ? 0xa0fb : 0xc0fb);
    put_descriptor(guest, SEL_TSS, GUEST_TSS, 0x2067, 0x008b);
    put_descriptor(guest, SEL_CODE32, 0, 0xfffff, 0xc09b);
    put_descriptor(guest, SEL_CONFORMING, 0, 0xfffff, wide ? 0xa09f : 0xc09f);
    put_descriptor(guest, SEL_ABSENT, 0, 0xfffff, 0xc013);
    put_descriptor(guest, SEL_READ_ONLY, 0, 0xfffff, 0xc091);
    put_descriptor(guest, SEL_SMALL, 0, 0xfff, 0x4092);
    put_descriptor(guest, SEL_DOWN, 0, 0xfff, 0x4096);
    put_descriptor(guest, SEL_LDT, GUEST_GDT, GUEST_GDT_SIZE - 1, 0x0082);
    put_descriptor(guest, SEL_CODE16, 0, 0xffff, 0x009b);
    put_descriptor(guest, SEL_DATA16, 0, 0xffff, 0x0093);
    struct descriptor_words gate = {
        SEL_CODE64 << 16 | (GUEST_HANDLERS + 256 * 16),
        0xec00}; /* present, DPL 3, call gate to a HLT after the vectors' */
    memcpy(guest->ram + GUEST_GDT + (SEL_GATE & ~7u), &gate, sizeof gate);
}

void guest_set_gate(struct guest *guest, unsigned vector, unsigned type, unsigned dpl, unsigned ist,
                    uint16_t selector)
{
    bool wide = guest->state.efer & EFER_LMA;
    uint32_t handler = GUEST_HANDLERS + vector * 16;
    uint32_t words[4] = {(uint32_t)selector << 16 | (handler & 0xffff),
                         (handler & 0xffff0000) | 0x8000 | dpl << 13 | type << 8 | ist, 0, 0};
    memcpy(guest->ram + GUEST_IDT + vector * (wide ? 16 : 8), words, wide ? 16 : 8);
}

static void write_handlers(struct guest *guest)
{
    static const uint8_t stop[] = {0xe6, GUEST_STOP_PORT, 0xf4}; /* GUEST_STOP */
    for (unsigned vector = 0; vector <= 256; vector++)
        memcpy(guest->ram + GUEST_HANDLERS + vector * 16, stop, sizeof stop);
}

static void write_tables(struct guest *guest, bool wide)
{
    memset(guest->ram, 0, 0x10000);
    write_gdt(guest, wide);
    for (unsigned vector = 0; vector < 256; vector++)
        guest_set_gate(guest, vector, SYSTEM_INT, vector == 0x80 || vector == 3 ? 3 : 0, 0,
                       SEL_CODE64);
    write_handlers(guest);
    if (wide) {
        le64_write(guest->ram + GUEST_TSS + 4, GUEST_RSP0);
        le64_write(guest->ram + GUEST_TSS + 36, GUEST_IST1);
    } else {
        le32_write(guest->ram + GUEST_TSS + 4, GUEST_RSP0);
        le16_write(guest->ram + GUEST_TSS + 8, SEL_DATA);
    }
    le16_write(guest->ram + GUEST_TSS + 102, 104);
}

/* 1 GiB in 2M pages for everyone; GUEST_WINDOW through a page table; the rest of RAM as well. */
static void write_paging(struct guest *guest)
{
    *guest_quad(guest, GUEST_PML4) = GUEST_PDPT | 7;
    *guest_quad(guest, GUEST_PML4 + 511 * 8) = GUEST_PDPT | 7;
    *guest_quad(guest, GUEST_PDPT) = GUEST_PD | 7;
    for (unsigned i = 0; i < 512; i++)
        *guest_quad(guest, GUEST_PD + i * 8) = i * MIB(2) | 0x87;
    *guest_quad(guest, GUEST_PD + GUEST_WINDOW / MIB(2) * 8) = GUEST_PT | 7;
    for (unsigned i = 0; i < 512; i++)
        guest_page(guest, i, (GUEST_WINDOW + i * 4096u) | 7);
}

void guest_page(struct guest *guest, unsigned page, uint64_t entry)
{
    *guest_quad(guest, GUEST_PT + page * 8) = entry;
}

/* ---- registers ---- */

static struct cpu_segment segment_of(struct guest *guest, uint16_t selector)
{
    uint32_t words[2];
    memcpy(words, guest->ram + GUEST_GDT + (selector & ~7u), sizeof words);
    struct descriptor d = {.low = words[0], .high = words[1]};
    return descriptor_segment(&d, selector);
}

static void start_state(struct guest *guest, bool wide)
{
    struct cpu_state *state = &guest->state;
    cpu_state_reset(state, 0);
    state->has_apic = guest->v->vm->has_apic;
    if (wide)
        state->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    write_tables(guest, wide);
    state->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_MP;
    state->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR;
    state->gdt = (struct cpu_table){.base = GUEST_GDT, .limit = GUEST_GDT_SIZE - 1};
    state->idt = (struct cpu_table){.base = GUEST_IDT, .limit = wide ? 4095 : 2047};
    state->task = segment_of(guest, SEL_TSS);
    state->ldt = (struct cpu_segment){.attributes = CPU_SEG_UNUSABLE};
    state->rip = GUEST_CODE_AT;
    state->msr[CPU_MSR_STAR] = UINT64_C(0x18) << 48 | (uint64_t)SEL_CODE64 << 32;
    state->msr[CPU_MSR_LSTAR] = GUEST_HANDLERS + 256 * 16;
    state->msr[CPU_MSR_CSTAR] = GUEST_HANDLERS + 256 * 16;
    state->msr[CPU_MSR_SYSCALL_MASK] = RFLAG_IF | RFLAG_TF | RFLAG_DF | RFLAG_AC;
    state->rflags = 2;
}

static void set_segments(struct guest *guest, unsigned cpl, uint16_t code)
{
    struct cpu_state *state = &guest->state;
    uint16_t data = cpl == 3 ? SEL_USER_DATA : SEL_DATA;
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        state->segment[i] = segment_of(guest, i == CPU_CS ? code : data);
    state->gpr[CPU_RSP] = cpl == 3 ? GUEST_USER_STACK : GUEST_STACK;
}

void guest_long(struct guest *guest, unsigned cpl)
{
    start_state(guest, true);
    write_paging(guest);
    guest->state.cr0 |= CR0_PG;
    guest->state.cr3 = GUEST_PML4;
    set_segments(guest, cpl, cpl == 3 ? SEL_USER64 : SEL_CODE64);
}

void guest_compat(struct guest *guest, unsigned cpl)
{
    guest_long(guest, cpl);
    set_segments(guest, cpl, cpl == 3 ? SEL_USER32 : SEL_CODE32);
}

void guest_legacy(struct guest *guest, unsigned cpl, bool paging)
{
    start_state(guest, false);
    guest->state.cr4 = 0;
    if (paging) {
        guest->state.cr0 |= CR0_PG;
        guest->state.cr4 = CR4_PSE;
        guest->state.cr3 = GUEST_PML4;
        for (uint32_t i = 0; i < 1024; i++)
            le32_write(guest->ram + GUEST_PML4 + i * 4, i << 22 | 0x87);
    }
    set_segments(guest, cpl, cpl == 3 ? SEL_USER32 : SEL_CODE32);
}

void guest_real(struct guest *guest)
{
    struct cpu_state *state = &guest->state;
    start_state(guest, false);
    memset(guest->ram, 0, 0x10000);
    write_handlers(guest);
    for (unsigned vector = 0; vector < 256; vector++)
        le32_write(guest->ram + vector * 4, GUEST_HANDLERS + vector * 16);
    write_gdt(guest, false);
    state->cr0 = CR0_ET;
    state->cr4 = 0;
    state->idt = (struct cpu_table){.limit = 1023};
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        state->segment[i] =
            (struct cpu_segment){.limit = 0xffff,
                                 .attributes = CPU_SEG_P | CPU_SEG_S | CPU_SEG_WRITE |
                                               CPU_SEG_ACCESSED | (i == CPU_CS ? CPU_SEG_CODE : 0)};
    state->segment[CPU_CS].selector = GUEST_CODE_AT >> 4;
    state->segment[CPU_CS].base = GUEST_CODE_AT;
    state->rip = 0;
    state->gpr[CPU_RSP] = 0x8000;
}

/* ---- running ---- */

void guest_load(struct guest *guest, const uint8_t *code, const uint8_t *end)
{
    assert_int_equal(mem_write(guest->mem, GUEST_CODE_AT, code, (uint64_t)(end - code)), 0);
}

enum engine_exit_reason guest_go(struct guest *guest)
{
    struct err err = {0};
    if (engine_soft.vcpu_set_state(guest->vcpu, &guest->state, &err) < 0)
        fail_msg("%s", err.text);
    native_install(); /* cmocka has a handler of its own around each test */
    assert_int_equal(engine_soft.vcpu_run(guest->vcpu, &guest->exit, &err), 0);
    assert_int_equal(engine_soft.vcpu_get_state(guest->vcpu, &guest->state, &err), 0);
    return guest->exit.reason;
}

enum engine_exit_reason guest_run_bytes(struct guest *guest, const uint8_t *code,
                                        const uint8_t *end)
{
    guest_load(guest, code, end);
    guest->access_count = 0;
    return guest_go(guest);
}

bool guest_in_handler(const struct guest *guest)
{
    return guest->state.rip >= GUEST_HANDLERS && guest->state.rip < GUEST_HANDLERS + 257 * 16;
}

unsigned guest_vector(struct guest *guest)
{
    if (!guest_in_handler(guest))
        fail_msg("not in a handler but at %llx", (unsigned long long)guest->state.rip);
    return (unsigned)(guest->state.rip - GUEST_HANDLERS) / 16;
}

uint64_t guest_stack(struct guest *guest, unsigned n)
{
    return *guest_quad(guest, guest->state.gpr[CPU_RSP] + n * 8);
}
