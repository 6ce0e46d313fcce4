// needs: base mem cpu cpu/soft
// flags: -len_control=0 -detect_leaks=0
/*
 * The software engine: decoder, interpreter, translator, paging and event delivery on bytes and
 * states of an attacker's choice. Whatever the guest does must end in an exit; the sanitizers watch
 * the rest.
 *
 * Input: a header that picks mode, registers and the way to run, then memory from address 0 on,
 * code included. The machine has 256 KiB, so that most wild addresses are outside; a thread kicks
 * it every millisecond, since endless loops are a guest's good right.
 *
 * One way to run is both: interpreter and translator, each in a machine of its own, where nothing
 * depends on the host (no random numbers, no wall clock, a TSC that stands still). Then registers,
 * memory, devices' accesses and the count of instructions must be the same at the end, unless the
 * interpreter does not come to one.
 */
#include "base/bytes.h"
#include "cpu/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    MEMORY = 256 * 1024,
    HEADER = 64,
    RUNS_MAX = 4,
    KICKS_MAX = 4,   /* of a case that is only watched */
    PATIENCE = 3000, /* kicks, and so milliseconds, for the second of two */
};

const char *__asan_default_options(void);

/* A vCPU is mapped, not allocated, and what it alone points to looks like a leak, also at the end.
 */
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

/* engine_all[] and engine_kvm are not linked here. */
struct fuzzer {
    struct mem *mem;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu;
    struct engine_io io;
    struct cpu_state reset;
    uint64_t accesses; /* a hash of those to ports and MMIO */
};

/* Where a case ended. */
struct ending {
    int refused; /* vcpu_set_state() */
    enum engine_exit_reason reason;
    unsigned runs;
    uint64_t instructions, accesses;
    struct cpu_state state;
};

enum way { INTERPRETER, TRANSLATOR, PAIR_INTERPRETER, PAIR_TRANSLATOR, WAYS };

static void *kicker(void *opaque)
{
    struct fuzzer **fuzzers = opaque;
    for (;;) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        for (unsigned i = 0; i < WAYS; i++)
            engine_soft.vcpu_kick(fuzzers[i]->vcpu);
    }
    return NULL;
}

static void note(struct fuzzer *fuzzer, uint64_t kind, uint64_t at, unsigned size, uint64_t value)
{
    fuzzer->accesses =
        (fuzzer->accesses ^ kind ^ at << 8 ^ size << 4 ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    fuzzer->accesses ^= fuzzer->accesses >> 29;
}

static uint32_t port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    (void)vcpu;
    note(opaque, 1, port, size, 0);
    return port * 0x01010101u;
}

static void port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint32_t value)
{
    (void)vcpu;
    note(opaque, 2, port, size, value);
}

static uint64_t mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    (void)vcpu;
    note(opaque, 3, gpa, size, 0);
    return gpa ^ UINT64_C(0x5555555555555555);
}

static void mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    (void)vcpu;
    note(opaque, 4, gpa, size, value);
}

static uint64_t tsc_stands_still(void *opaque)
{
    (void)opaque;
    return UINT64_C(1) << 40;
}

/* RDRAND, RDSEED, and KVM's clocks with its wall clock: the guest's CPU has none of them. */
static void hide_the_host(struct cpuid *cpuid)
{
    for (unsigned i = 0; i < cpuid->count; i++) {
        struct cpuid_leaf *leaf = &cpuid->leaves[i];
        if (leaf->leaf == 1)
            leaf->ecx &= ~(UINT32_C(1) << 30);
        if (leaf->leaf == 7 && leaf->subleaf == 0)
            leaf->ebx &= ~(UINT32_C(1) << 18);
        if (leaf->leaf == 0x40000001)
            leaf->eax &= ~(UINT32_C(1) << 0 | UINT32_C(1) << 3);
    }
}

static struct fuzzer *fuzzer_new(enum way way)
{
    bool pair = way == PAIR_INTERPRETER || way == PAIR_TRANSLATOR;
    bool translates = way == TRANSLATOR || way == PAIR_TRANSLATOR;
    struct fuzzer *fuzzer = calloc(1, sizeof *fuzzer);
    struct cpuid cpuid;
    struct err err;
    fuzzer->mem = mem_new();
    if (mem_add(fuzzer->mem, 0, MEMORY, false, &err) < 0)
        abort();
    fuzzer->io = (struct engine_io){.opaque = fuzzer,
                                    .port_read = port_read,
                                    .port_write = port_write,
                                    .mmio_read = mmio_read,
                                    .mmio_write = mmio_write};
    cpuid_model(&cpuid, CPUID_SOFT, NULL, 1, cpuid_host_tsc_khz());
    hide_the_host(&cpuid);
    struct engine_config config = {.mem = fuzzer->mem,
                                   .vcpus = 1,
                                   .irqchip = ENGINE_IRQCHIP_NONE,
                                   .io = &fuzzer->io,
                                   .cpuid = pair ? &cpuid : NULL,
                                   .tsc = pair ? tsc_stands_still : NULL,
                                   .translate = translates ? ENGINE_TRANSLATE_ALWAYS
                                                           : ENGINE_TRANSLATE_NEVER,
                                   .code_cache = MIB(1),
                                   .kvm_fd = -1};
    if (engine_soft.vm_new(&config, &fuzzer->vm, &err) < 0 ||
        engine_soft.vcpu_new(fuzzer->vm, 0, &fuzzer->vcpu, &err) < 0)
        abort();
    cpu_state_reset(&fuzzer->reset, 0);
    return fuzzer;
}

/* The header's first byte: 0 real, 1 protected flat, 2 compatibility, 3 long, 4 long in ring 3. */
static void shape(struct cpu_state *state, const uint8_t *header)
{
    unsigned mode = header[0] % 5;
    const uint32_t data = CPU_SEG_P | CPU_SEG_S | CPU_SEG_G | CPU_SEG_DB | 3;
    const uint32_t code = CPU_SEG_P | CPU_SEG_S | CPU_SEG_G | CPU_SEG_CODE | 3;
    unsigned ring = mode == 4 ? 3 : 0;
    state->segment[CPU_CS].base = 0; /* from the reset vector to where the code is */
    if (mode > 0) {
        for (unsigned i = 0; i < CPU_SEG_MAX; i++)
            state->segment[i] = (struct cpu_segment){
                .limit = 0xffffffff,
                .selector = (uint16_t)(16 | ring),
                .attributes = (i == CPU_CS ? code | (mode < 3 ? CPU_SEG_DB : CPU_SEG_L) : data) |
                              ring << CPU_SEG_DPL_SHIFT};
        state->cr0 = 0x33 | (header[1] & 1 ? 1u << 16 : 0);
        state->gdt = (struct cpu_table){.base = 0x800, .limit = 0x7f};
        state->idt = (struct cpu_table){.base = 0x1000, .limit = 0xfff};
        state->task = (struct cpu_segment){
            .base = 0x900, .limit = 0x67, .selector = 24, .attributes = CPU_SEG_P | 11};
    }
    state->cr4 = 0x600 | (header[1] & 2 ? 1u << 18 : 0);
    state->xcr0 = header[1] & 4 ? 7 : 1;
    if (mode >= 2) {
        state->cr0 |= 1u << 31;
        state->cr4 |= 1u << 5 | (header[1] & 8 ? 1u << 20 | 1u << 21 : 0);
        state->efer = 0xd01;
        state->cr3 = 0x2000;
    }
    state->rflags = 2 | (le32_read(header + 4) & 0x240fd5);
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        state->gpr[i] = (uint64_t)(int64_t)(int16_t)le16_read(header + 8 + i * 2)
                        << (header[2] >> (i % 4 * 2) & 3) * 8;
    state->rip = 0x8000 + le16_read(header + 40) % 0x4000;
}

/* Page tables for the long modes: the first 2 MiB one to one, user pages, then what the input says.
 */
static void map(uint8_t *ram)
{
    le64_write(ram + 0x2000, 0x3007);
    le64_write(ram + 0x3000, 0x4007);
    le64_write(ram + 0x4000, 0x87);
}

/* The first bytes are code; what is longer starts over at 0x800: tables, gates, pages. Around the
 * code are HLTs, and some where the empty vectors of real mode lead, so that many cases end. */
static void fill(uint8_t *memory, const uint8_t *data, size_t size)
{
    memset(memory, 0xf4, RUNS_MAX);
    memset(memory + 0x7800, 0xf4, MEMORY - 0x7800);
    map(memory);
    size_t left = min(size - HEADER, (size_t)MEMORY);
    size_t code = min(left, (size_t)256);
    memcpy(memory + 0x8000, data + HEADER, code);
    memcpy(memory + 0x9ff0, data + HEADER, min(code, (size_t)64)); /* across a page */
    if (left > code)
        memcpy(memory + 0x800, data + HEADER + code, min(left - code, (size_t)0x7000));
}

/* Some HLTs, and no more than `kicks` kicks. */
static void run(struct fuzzer *fuzzer, unsigned kicks, struct ending *ending)
{
    struct engine_exit exit_info;
    struct err err;
    while (ending->runs < RUNS_MAX) {
        if (engine_soft.vcpu_run(fuzzer->vcpu, &exit_info, &err) < 0)
            abort();
        ending->reason = exit_info.reason;
        if (exit_info.reason == ENGINE_EXIT_KICK && kicks-- == 0)
            break;
        if (exit_info.reason == ENGINE_EXIT_SHUTDOWN || exit_info.reason == ENGINE_EXIT_FAULT)
            break;
        ending->runs += exit_info.reason != ENGINE_EXIT_KICK;
    }
}

/* What came out goes in again: the state contract holds for every state a guest can reach. */
static void state_goes_round(struct fuzzer *fuzzer, struct cpu_state *state)
{
    struct cpu_state again;
    struct err err;
    if (engine_soft.vcpu_get_state(fuzzer->vcpu, state, &err) < 0 ||
        engine_soft.vcpu_set_state(fuzzer->vcpu, state, &err) < 0 ||
        engine_soft.vcpu_get_state(fuzzer->vcpu, &again, &err) < 0)
        abort();
    state->msr[CPU_MSR_TSC] = again.msr[CPU_MSR_TSC];
    if (memcmp(state, &again, sizeof *state) != 0)
        abort();
}

static void run_case(struct fuzzer *fuzzer, const uint8_t *memory, const uint8_t *header,
                     unsigned kicks, struct ending *ending)
{
    struct err err;
    mem_write(fuzzer->mem, 0, memory, MEMORY);
    memset(ending, 0, sizeof *ending);
    ending->state = fuzzer->reset;
    shape(&ending->state, header);
    ending->refused = engine_soft.vcpu_set_state(fuzzer->vcpu, &ending->state, &err);
    if (ending->refused < 0)
        return;
    fuzzer->accesses = 0;
    uint64_t before = engine_soft.vcpu_instructions(fuzzer->vcpu);
    run(fuzzer, kicks, ending);
    ending->instructions = engine_soft.vcpu_instructions(fuzzer->vcpu) - before;
    ending->accesses = fuzzer->accesses;
    state_goes_round(fuzzer, &ending->state);
}

static void print(const char *name, const struct ending *ending)
{
    static char text[16384];
    cpu_state_print(&ending->state, text, sizeof text);
    fprintf(stderr, "%s: exit %d after %u, %llu instructions, accesses %llx\n%s\n", name,
            ending->reason, ending->runs, (unsigned long long)ending->instructions,
            (unsigned long long)ending->accesses, text);
}

static void differ(const char *what, const struct ending *interpreter,
                   const struct ending *translator)
{
    fprintf(stderr, "interpreter and translator differ: %s\n", what);
    print("interpreter", interpreter);
    print("translator", translator);
    abort();
}

static void compare(struct fuzzer *const *fuzzers, const struct ending *interpreter,
                    const struct ending *translator)
{
    if (interpreter->refused != translator->refused)
        differ("whether the state is one", interpreter, translator);
    if (interpreter->reason == ENGINE_EXIT_KICK) /* no end: kicked here and there */
        return;
    if (interpreter->reason != translator->reason || interpreter->runs != translator->runs)
        differ("exits", interpreter, translator);
    if (memcmp(&interpreter->state, &translator->state, sizeof interpreter->state) != 0)
        differ("states", interpreter, translator);
    if (interpreter->accesses != translator->accesses)
        differ("accesses to devices", interpreter, translator);
    if (interpreter->instructions != translator->instructions)
        differ("counts of instructions", interpreter, translator);
    const uint8_t *a = mem_at(fuzzers[PAIR_INTERPRETER]->mem, 0, MEMORY, false);
    const uint8_t *b = mem_at(fuzzers[PAIR_TRANSLATOR]->mem, 0, MEMORY, false);
    for (unsigned i = 0; memcmp(a, b, MEMORY) != 0 && i < MEMORY; i++)
        if (a[i] != b[i]) {
            fprintf(stderr, "memory at %#x: %02x, %02x\n", i, a[i], b[i]);
            differ("memory", interpreter, translator);
        }
}

static void fuzzers_make(struct fuzzer **fuzzers)
{
    pthread_t thread;
    for (enum way way = 0; way < WAYS; way++)
        fuzzers[way] = fuzzer_new(way);
    if (pthread_create(&thread, NULL, kicker, fuzzers) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fuzzer *fuzzers[WAYS];
    static struct ending endings[WAYS];
    if (!fuzzers[0])
        fuzzers_make(fuzzers);
    if (size < HEADER)
        return 0;
    uint8_t *memory = calloc(1, MEMORY);
    fill(memory, data, size);
    /* The header's fourth byte: 0 interpreter, 1 translator, else both. */
    unsigned way = min(data[3] % 4u, (unsigned)PAIR_INTERPRETER);
    run_case(fuzzers[way], memory, data, KICKS_MAX, &endings[way]);
    if (way == PAIR_INTERPRETER) {
        bool ended = endings[way].reason != ENGINE_EXIT_KICK;
        run_case(fuzzers[PAIR_TRANSLATOR], memory, data, ended ? PATIENCE : KICKS_MAX,
                 &endings[PAIR_TRANSLATOR]);
        compare(fuzzers, &endings[PAIR_INTERPRETER], &endings[PAIR_TRANSLATOR]);
    }
    free(memory);
    return 0;
}
