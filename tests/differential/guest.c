/*
 * The engine's side: a machine of 1 MiB with no devices. The test runs in ring 3 at the same linear
 * addresses as on the host; every interrupt gate leads to a HLT of its own, which is an exit, so
 * the address of the HLT says which exception came and the ring 0 stack holds its frame.
 */
#include "differential.h"

#include "cpu/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    /* Guest-physical layout, one page each unless said otherwise. */
    LEVEL4 = 0x1000,
    LEVEL3 = 0x2000,
    LEVEL2 = 0x3000,
    LEVEL1 = 0x4000,
    SYSTEM1 = 0x5000, /* level 1 of the system's own 2 MiB */
    GDT = 0x6000,
    IDT = 0x7000,
    TASK = 0x8000,
    HALTS = 0x9000,
    SYSTEM3 = 0xc000,
    SYSTEM2 = 0xd000,
    STACK_TOP = 0xb000,
    CODE = 0x10000,
    WINDOW = 0x20000,
    MEMORY = 0x100000,
    USER_CODE = 0x33,
    USER_DATA = 0x2b,
};

/* The system sees guest-physical memory from here on, so that nothing but the test's own pages is
 * mapped where the host has nothing either. */
#define SYSTEM UINT64_C(0xffff800000000000)

struct guest {
    const struct engine_ops *engine;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu;
    struct mem *mem;
    uint8_t *ram;
    struct cpu_state base;
};

static void die(const char *what, const struct err *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    exit(2);
}

static void put64(struct guest *guest, unsigned at, uint64_t value)
{
    memcpy(guest->ram + at, &value, sizeof value);
}

static void lay_out(struct guest *guest)
{
    put64(guest, LEVEL4, LEVEL3 | 7);
    put64(guest, LEVEL3, LEVEL2 | 7);
    put64(guest, LEVEL4 + 256 * 8, SYSTEM3 | 3);
    put64(guest, SYSTEM3, SYSTEM2 | 3);
    put64(guest, SYSTEM2, SYSTEM1 | 3);
    put64(guest, LEVEL2 + (CODE_AT >> 21) * 8, LEVEL1 | 7);
    for (unsigned i = 0; i < MEMORY / 4096 && i < 512; i++)
        put64(guest, SYSTEM1 + i * 8, i * 4096 | 3); /* supervisor only */
    unsigned window = WINDOW_AT >> 12 & 511;
    put64(guest, LEVEL1 + (CODE_AT >> 12 & 511) * 8, CODE | 5);
    put64(guest, LEVEL1 + window * 8, WINDOW | 7 | UINT64_C(1) << 63);
    put64(guest, LEVEL1 + (window + 1) * 8, (WINDOW + 4096) | 7 | UINT64_C(1) << 63);
    put64(guest, LEVEL1 + (window + 2) * 8, (WINDOW + 8192) | 5 | UINT64_C(1) << 63);
    window_fill(1, guest->ram + WINDOW + WINDOW_WRITABLE, WINDOW_SIZE - WINDOW_WRITABLE);

    put64(guest, GDT + 8, UINT64_C(0x00af9b000000ffff));
    put64(guest, GDT + 16, UINT64_C(0x00cf93000000ffff));
    put64(guest, GDT + 24, UINT64_C(0x0000890080000067)); /* task at SYSTEM + TASK */
    put64(guest, GDT + 32, SYSTEM >> 32);
    put64(guest, GDT + 40, UINT64_C(0x00cff3000000ffff));
    put64(guest, GDT + 48, UINT64_C(0x00affb000000ffff));
    put64(guest, TASK + 4, SYSTEM + STACK_TOP);
    for (unsigned vector = 0; vector < 256; vector++) {
        put64(guest, IDT + vector * 16,
              (HALTS + vector * 2) | UINT64_C(8) << 16 | UINT64_C(0xee00) << 32);
        put64(guest, IDT + vector * 16 + 8, SYSTEM >> 32);
        guest->ram[HALTS + vector * 2] = 0xf4;
    }
}

static struct cpu_segment segment(uint16_t selector, uint32_t attributes)
{
    return (struct cpu_segment){
        .selector = selector, .limit = 0xffffffff, .attributes = attributes};
}

struct guest *guest_new(const char *engine)
{
    struct guest *guest = calloc(1, sizeof *guest);
    struct err err = {0};
    for (unsigned i = 0; engine_all[i]; i++)
        if (strcmp(engine_all[i]->name, engine) == 0)
            guest->engine = engine_all[i];
    if (!guest->engine) {
        fprintf(stderr, "there is no engine '%s'\n", engine);
        exit(2);
    }
    guest->mem = mem_new();
    if (mem_add(guest->mem, 0, MEMORY, false, &err) < 0)
        die("memory", &err);
    guest->ram = mem_at(guest->mem, 0, MEMORY, true);
    struct engine_config config = {
        .mem = guest->mem, .vcpus = 1, .irqchip = ENGINE_IRQCHIP_NONE, .kvm_fd = -1};
    if (guest->engine->vm_new(&config, &guest->vm, &err) < 0 ||
        guest->engine->vcpu_new(guest->vm, 0, &guest->vcpu, &err) < 0)
        die(engine, &err);
    lay_out(guest);

    struct cpu_state *base = &guest->base;
    if (guest->engine->vcpu_get_state(guest->vcpu, base, &err) < 0)
        die("get state", &err);
    const uint32_t user = CPU_SEG_P | CPU_SEG_S | 3 << CPU_SEG_DPL_SHIFT | CPU_SEG_G;
    base->segment[CPU_CS] = segment(USER_CODE, user | CPU_SEG_CODE | 3 | CPU_SEG_L);
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        if (i != CPU_CS)
            base->segment[i] = segment(USER_DATA, user | 3 | CPU_SEG_DB);
    base->task = (struct cpu_segment){
        .base = SYSTEM + TASK, .limit = 0x67, .attributes = CPU_SEG_P | 11, .selector = 24};
    base->gdt = (struct cpu_table){.base = SYSTEM + GDT, .limit = 55};
    base->idt = (struct cpu_table){.base = SYSTEM + IDT, .limit = 4095};
    base->cr0 = 0x80050033; /* PG AM WP NE ET MP PE, as Linux has it */
    base->cr3 = LEVEL4;
    base->cr4 = 0x406a0 & ~0x80u; /* PAE MCE OSFXSR OSXMMEXCPT OSXSAVE */
    base->cr4 |= 1 << 16;         /* FSGSBASE */
    base->efer = 0xd01;
    base->xcr0 = 7;
    base->run_state = CPU_RUNNING;
    return guest;
}

void guest_free(struct guest *guest)
{
    guest->engine->vcpu_free(guest->vcpu);
    guest->engine->vm_free(guest->vm);
    mem_free(guest->mem);
    free(guest);
}

void guest_run(struct guest *guest, const struct test *test, struct outcome *outcome)
{
    struct err err = {0};
    struct cpu_state state = guest->base;
    uint8_t code[4096];
    memset(code, 0xcc, sizeof code);
    memcpy(code + (test->in.rip - CODE_AT), test->code, test->length);
    if (mem_write(guest->mem, CODE, code, sizeof code) < 0)
        die("code", &err);
    uint8_t window[WINDOW_WRITABLE];
    window_fill(test->memory_seed, window, sizeof window);
    if (mem_write(guest->mem, WINDOW, window, sizeof window) < 0)
        die("window", &err);
    memset(guest->ram + STACK_TOP - 64, 0, 64);

    memcpy(state.gpr, test->in.gpr, sizeof state.gpr);
    state.rip = test->in.rip;
    state.rflags = test->in.rflags | 0x202;
    memcpy(state.xsave, test->in.legacy, 416);
    uint64_t present = 7;
    memcpy(state.xsave + 512, &present, sizeof present);
    memcpy(state.xsave + 576, test->in.upper, sizeof test->in.upper);
    if (guest->engine->vcpu_set_state(guest->vcpu, &state, &err) < 0)
        die("set state", &err);

    struct engine_exit exit_info = {0};
    if (guest->engine->vcpu_run(guest->vcpu, &exit_info, &err) < 0 ||
        guest->engine->vcpu_get_state(guest->vcpu, &state, &err) < 0)
        die("run", &err);
    memset(outcome, 0, offsetof(struct outcome, memory));
    outcome->vector = VECTOR_NONE;
    memcpy(outcome->memory, guest->ram + WINDOW, WINDOW_WRITABLE);
    if (exit_info.reason != ENGINE_EXIT_HALT || state.rip < SYSTEM + HALTS ||
        state.rip > SYSTEM + HALTS + 512) {
        outcome->error = exit_info.reason;
        return;
    }
    outcome->vector = (uint32_t)(state.rip - 1 - SYSTEM - HALTS) / 2;
    bool has_error = outcome->vector == 8 || (outcome->vector >= 10 && outcome->vector <= 14) ||
                     outcome->vector == 17;
    uint64_t frame[6]; /* error rip cs rflags rsp ss */
    memcpy(frame + !has_error, guest->ram + STACK_TOP - 40 - 8 * has_error, 40 + 8 * has_error);
    outcome->error = has_error ? (uint32_t)frame[0] : 0;
    outcome->cr2 = state.cr2;
    memcpy(outcome->out.gpr, state.gpr, sizeof state.gpr);
    outcome->out.gpr[4] = frame[4];
    outcome->out.rip = frame[1];
    outcome->out.rflags = frame[3];
    memcpy(outcome->out.legacy, state.xsave, 416);
    memcpy(&present, state.xsave + 512, sizeof present);
    if (!(present & 2))
        memset(outcome->out.legacy + 160, 0, 256);
    if (present & 4)
        memcpy(outcome->out.upper, state.xsave + 576, sizeof outcome->out.upper);
}
