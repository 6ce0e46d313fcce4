// needs: base mem cpu cpu/soft
/*
 * The software engine: decoder, interpreter, paging and event delivery on bytes and states of an
 * attacker's choice. Whatever the guest does must end in an exit; the sanitizers watch the rest.
 *
 * Input: a header that picks mode and registers, then memory from address 0 on, code included. The
 * machine has 256 KiB, so that most wild addresses are outside; a thread kicks it every
 * millisecond, since endless loops are a guest's good right.
 */
#include "base/bytes.h"
#include "cpu/engine.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MEMORY = 256 * 1024, HEADER = 64, RUNS_MAX = 4 };

/* engine_all[] and engine_kvm are not linked here. */
struct fuzzer {
    struct mem *mem;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu;
    struct cpu_state reset;
};

static void *kicker(void *opaque)
{
    struct fuzzer *fuzzer = opaque;
    for (;;) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        engine_soft.vcpu_kick(fuzzer->vcpu);
    }
    return NULL;
}

static uint32_t port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    (void)opaque, (void)vcpu, (void)size;
    return port * 0x01010101u;
}

static void port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint32_t value)
{
    (void)opaque, (void)vcpu, (void)port, (void)size, (void)value;
}

static uint64_t mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    (void)opaque, (void)vcpu, (void)size;
    return gpa ^ UINT64_C(0x5555555555555555);
}

static void mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    (void)opaque, (void)vcpu, (void)gpa, (void)size, (void)value;
}

static const struct engine_io io = {.port_read = port_read,
                                    .port_write = port_write,
                                    .mmio_read = mmio_read,
                                    .mmio_write = mmio_write};

static struct fuzzer *fuzzer_new(void)
{
    struct fuzzer *fuzzer = calloc(1, sizeof *fuzzer);
    struct err err;
    fuzzer->mem = mem_new();
    if (mem_add(fuzzer->mem, 0, MEMORY, false, &err) < 0)
        abort();
    struct engine_config config = {
        .mem = fuzzer->mem, .vcpus = 1, .irqchip = ENGINE_IRQCHIP_NONE, .io = &io, .kvm_fd = -1};
    if (engine_soft.vm_new(&config, &fuzzer->vm, &err) < 0 ||
        engine_soft.vcpu_new(fuzzer->vm, 0, &fuzzer->vcpu, &err) < 0)
        abort();
    cpu_state_reset(&fuzzer->reset, 0);
    pthread_t thread;
    if (pthread_create(&thread, NULL, kicker, fuzzer) != 0)
        abort();
    return fuzzer;
}

/* The header's first byte: 0 real, 1 protected flat, 2 compatibility, 3 long, 4 long in ring 3. */
static void shape(struct cpu_state *state, const uint8_t *header)
{
    unsigned mode = header[0] % 5;
    const uint32_t data = CPU_SEG_P | CPU_SEG_S | CPU_SEG_G | CPU_SEG_DB | 3;
    const uint32_t code = CPU_SEG_P | CPU_SEG_S | CPU_SEG_G | CPU_SEG_CODE | 3;
    unsigned ring = mode == 4 ? 3 : 0;
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fuzzer *fuzzer;
    if (!fuzzer)
        fuzzer = fuzzer_new();
    if (size < HEADER)
        return 0;
    uint8_t *memory = calloc(1, MEMORY);
    map(memory);
    size_t left = min(size - HEADER, (size_t)MEMORY);
    /* The first bytes are code; what is longer starts over at 0x800: tables, gates, pages. */
    size_t code = min(left, (size_t)256);
    memcpy(memory + 0x8000, data + HEADER, code);
    memcpy(memory + 0x9ff0, data + HEADER, min(code, (size_t)64)); /* across a page */
    if (left > code)
        memcpy(memory + 0x800, data + HEADER + code, min(left - code, (size_t)0x7000));
    mem_write(fuzzer->mem, 0, memory, MEMORY);
    free(memory);

    struct cpu_state state = fuzzer->reset;
    struct err err;
    shape(&state, data);
    if (engine_soft.vcpu_set_state(fuzzer->vcpu, &state, &err) < 0)
        return 0;
    struct engine_exit exit_info = {.reason = ENGINE_EXIT_KICK};
    for (unsigned runs = 0; runs < RUNS_MAX; runs++) {
        if (engine_soft.vcpu_run(fuzzer->vcpu, &exit_info, &err) < 0 ||
            exit_info.reason == ENGINE_EXIT_SHUTDOWN || exit_info.reason == ENGINE_EXIT_FAULT)
            break;
    }
    /* What came out goes in again: the state contract holds for every state a guest can reach. */
    struct cpu_state again;
    if (engine_soft.vcpu_get_state(fuzzer->vcpu, &state, &err) < 0 ||
        engine_soft.vcpu_set_state(fuzzer->vcpu, &state, &err) < 0 ||
        engine_soft.vcpu_get_state(fuzzer->vcpu, &again, &err) < 0)
        abort();
    state.msr[CPU_MSR_TSC] = again.msr[CPU_MSR_TSC];
    if (memcmp(&state, &again, sizeof state) != 0)
        abort();
    return 0;
}
