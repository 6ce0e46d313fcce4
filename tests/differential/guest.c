/*
 * The engine's side: a machine of 1 MiB with no devices. The test runs in ring 3 at the same linear
 * addresses as on the host; every interrupt gate leads to a HLT of its own, which is an exit, so
 * the address of the HLT says which exception came and the ring 0 stack holds its frame.
 *
 * A fresh state has an empty TLB, so the first access of a test to a page would never be a fast
 * one. A warm test therefore begins in a few instructions of ours, which touch the window's pages
 * and then jump to it.
 */
#include "differential.h"

#include <pthread.h>
#include <stdatomic.h>
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
    WARM3 = 0x10000,
    WARM2 = 0x11000,
    WARM1 = 0x12000,
    WARM_CODE = 0x13000,
    WARM_DATA = 0x14000,
    CODE = 0x20000,
    WINDOW = 0x30000,
    STRIDE = 0x2000, /* between pages of code, and of the window */
    MEMORY = 0x100000,
    PAGE = 4096,
    USER_CODE = 0x33,
    USER_DATA = 0x2b,
};

/* The system sees guest-physical memory from here on, so that nothing but the test's own pages is
 * mapped where the host has nothing either. */
#define SYSTEM UINT64_C(0xffff800000000000)
/* What warms a test up: a page of code, one of data. Ring 3 may see them. */
#define WARM UINT64_C(0xffff808000000000)

enum { STUCK_SECONDS = 10 };

struct guest {
    const struct engine_ops *engine;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu;
    struct mem *mem;
    uint8_t *ram;
    struct cpu_state base;
    uint64_t loaded_at;
    unsigned loaded_length;

    /* A thread that kicks the vCPU out of a test that does not end. */
    pthread_t watchdog;
    pthread_mutex_t lock;
    pthread_cond_t leave;
    bool leaving;
    _Atomic unsigned turn, stopped; /* this run of vcpu_run(); the one that was kicked */
    _Atomic bool running;
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
    for (unsigned i = 0; i < CODE_SIZE / PAGE; i++) {
        put64(guest, LEVEL1 + ((CODE_AT >> 12 & 511) + i) * 8, (CODE + i * STRIDE) | 5);
        memset(guest->ram + CODE + i * STRIDE, 0xcc, PAGE);
    }
    for (unsigned i = 0; i < WINDOW_SIZE / PAGE; i++)
        put64(guest, LEVEL1 + (window + i) * 8,
              (WINDOW + i * STRIDE) | (i < WINDOW_WRITABLE / PAGE ? 7 : 5) | UINT64_C(1) << 63);
    window_fill(1, guest->ram + WINDOW + 2 * STRIDE, WINDOW_SIZE - WINDOW_WRITABLE);

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

/* The code of a warm start: reads and writes each page of the window, loads RAX and jumps, both
 * from the data. Nothing else changes, flags included. */
static void lay_out_warm(struct guest *guest)
{
    put64(guest, LEVEL4 + 257 * 8, WARM3 | 7);
    put64(guest, WARM3, WARM2 | 7);
    put64(guest, WARM2, WARM1 | 7);
    put64(guest, WARM1, WARM_CODE | 5);
    put64(guest, WARM1 + 8, WARM_DATA | 5);
    uint8_t *at = guest->ram + WARM_CODE;
    for (uint64_t page = WINDOW_AT; page < WINDOW_AT + WINDOW_SIZE; page += PAGE) {
        *at++ = 0xa0; /* mov al, [page] */
        memcpy(at, &page, sizeof page);
        at += sizeof page;
        if (page >= WINDOW_AT + WINDOW_WRITABLE)
            continue;
        *at++ = 0xa2; /* mov [page], al */
        memcpy(at, &page, sizeof page);
        at += sizeof page;
    }
    const uint8_t load[] = {0x48, 0x8b, 0x05}, jump[] = {0xff, 0x25};
    uint8_t *data = guest->ram + WARM_CODE + PAGE; /* the next page, as the guest sees it */
    int32_t distance = (int32_t)(data - at) - 7;
    memcpy(at, load, sizeof load); /* mov rax, [rip + distance] */
    memcpy(at + 3, &distance, sizeof distance);
    at += 7;
    distance = (int32_t)(data + 8 - at) - 6;
    memcpy(at, jump, sizeof jump); /* jmp [rip + distance] */
    memcpy(at + 2, &distance, sizeof distance);
}

static struct cpu_segment segment(uint16_t selector, uint32_t attributes)
{
    return (struct cpu_segment){
        .selector = selector, .limit = 0xffffffff, .attributes = attributes};
}

static void *watchdog(void *opaque)
{
    struct guest *guest = opaque;
    unsigned turn = 0, seconds = 0;
    pthread_mutex_lock(&guest->lock);
    while (!guest->leaving) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        pthread_cond_clockwait(&guest->leave, &guest->lock, CLOCK_MONOTONIC, &until);
        seconds = guest->running && guest->turn == turn ? seconds + 1 : 0;
        turn = guest->turn;
        if (seconds < STUCK_SECONDS)
            continue;
        guest->stopped = turn;
        guest->engine->vcpu_kick(guest->vcpu);
    }
    pthread_mutex_unlock(&guest->lock);
    return NULL;
}

struct guest *guest_new(const struct engine_ops *engine, enum engine_translate translate,
                        uint64_t code_cache)
{
    struct guest *guest = calloc(1, sizeof *guest);
    struct err err = {0};
    guest->engine = engine;
    guest->mem = mem_new();
    if (mem_add(guest->mem, 0, MEMORY, false, &err) < 0)
        die("memory", &err);
    guest->ram = mem_at(guest->mem, 0, MEMORY, true);
    struct engine_config config = {.mem = guest->mem,
                                   .vcpus = 1,
                                   .irqchip = ENGINE_IRQCHIP_NONE,
                                   .translate = translate,
                                   .code_cache = code_cache,
                                   .kvm_fd = -1};
    if (guest->engine->vm_new(&config, &guest->vm, &err) < 0 ||
        guest->engine->vcpu_new(guest->vm, 0, &guest->vcpu, &err) < 0)
        die(engine->name, &err);
    lay_out(guest);
    lay_out_warm(guest);

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

    pthread_mutex_init(&guest->lock, NULL);
    pthread_cond_init(&guest->leave, NULL);
    guest->stopped = UINT32_MAX;
    if (pthread_create(&guest->watchdog, NULL, watchdog, guest) != 0) {
        perror("watchdog");
        exit(2);
    }
    return guest;
}

void guest_free(struct guest *guest)
{
    pthread_mutex_lock(&guest->lock);
    guest->leaving = true;
    pthread_cond_signal(&guest->leave);
    pthread_mutex_unlock(&guest->lock);
    pthread_join(guest->watchdog, NULL);
    pthread_cond_destroy(&guest->leave);
    pthread_mutex_destroy(&guest->lock);
    guest->engine->vcpu_free(guest->vcpu);
    guest->engine->vm_free(guest->vm);
    mem_free(guest->mem);
    free(guest);
}

static void code_write(struct guest *guest, uint64_t at, const uint8_t *bytes, unsigned count)
{
    for (unsigned i = 0; i < count && at + i < CODE_AT + CODE_SIZE;) {
        uint64_t offset = at + i - CODE_AT;
        unsigned n =
            PAGE - offset % PAGE < count - i ? (unsigned)(PAGE - offset % PAGE) : count - i;
        if (mem_write(guest->mem, CODE + offset / PAGE * STRIDE + offset % PAGE, bytes + i, n) < 0)
            abort();
        i += n;
    }
}

void guest_load(struct guest *guest, const struct test *test)
{
    uint8_t filler[TEST_CODE_MAX];
    memset(filler, 0xcc, sizeof filler);
    code_write(guest, guest->loaded_at, filler, guest->loaded_length);
    code_write(guest, test->in.rip, test->code, test->length);
    guest->loaded_at = test->in.rip;
    guest->loaded_length = test->length;
}

static void window_write(struct guest *guest, const struct test *test)
{
    uint8_t window[WINDOW_WRITABLE];
    window_fill(test->memory_seed, window, sizeof window);
    for (unsigned i = 0; i < WINDOW_WRITABLE / PAGE; i++)
        if (mem_write(guest->mem, WINDOW + i * STRIDE, window + i * PAGE, PAGE) < 0)
            abort();
    memset(guest->ram + STACK_TOP - 64, 0, 64);
}

static void state_load(struct guest *guest, const struct test *test)
{
    struct cpu_state state = guest->base;
    struct err err = {0};
    memcpy(state.gpr, test->in.gpr, sizeof state.gpr);
    state.rip = test->in.rip;
    state.rflags = test->in.rflags | 0x202;
    memcpy(state.xsave, test->in.legacy, 416);
    uint64_t present = 7;
    memcpy(state.xsave + 512, &present, sizeof present);
    memcpy(state.xsave + 576, test->in.upper, sizeof test->in.upper);
    if (test->warm) {
        put64(guest, WARM_DATA, state.gpr[0]);
        put64(guest, WARM_DATA + 8, state.rip);
        state.rip = WARM;
    }
    if (guest->engine->vcpu_set_state(guest->vcpu, &state, &err) < 0)
        die("set state", &err);
}

/* What the ring 0 stack and the registers say about the end in a HLT. */
static void outcome_read(struct guest *guest, const struct cpu_state *state,
                         struct outcome *outcome)
{
    outcome->vector = (uint32_t)(state->rip - 1 - SYSTEM - HALTS) / 2;
    bool has_error = outcome->vector == 8 || (outcome->vector >= 10 && outcome->vector <= 14) ||
                     outcome->vector == 17;
    uint64_t frame[6], present; /* error rip cs rflags rsp ss */
    memcpy(frame + !has_error, guest->ram + STACK_TOP - 40 - 8 * has_error, 40 + 8 * has_error);
    outcome->error = has_error ? (uint32_t)frame[0] : 0;
    outcome->cr2 = state->cr2;
    memcpy(outcome->out.gpr, state->gpr, sizeof state->gpr);
    outcome->out.gpr[4] = frame[4];
    outcome->out.rip = frame[1];
    outcome->out.rflags = frame[3];
    memcpy(outcome->out.legacy, state->xsave, 416);
    memcpy(&present, state->xsave + 512, sizeof present);
    if (!(present & 2))
        memset(outcome->out.legacy + 160, 0, 256);
    if (present & 4)
        memcpy(outcome->out.upper, state->xsave + 576, sizeof outcome->out.upper);
}

void guest_run(struct guest *guest, const struct test *test, struct outcome *outcome)
{
    struct err err = {0};
    struct cpu_state state;
    struct engine_exit exit_info;
    window_write(guest, test);
    state_load(guest, test);
    uint64_t before = guest->engine->vcpu_instructions(guest->vcpu);
    unsigned turn = ++guest->turn;
    guest->running = true;
    do { /* a kick that is meant for the test before may come late */
        exit_info = (struct engine_exit){.reason = ENGINE_EXIT_MAX};
        if (guest->engine->vcpu_run(guest->vcpu, &exit_info, &err) < 0)
            die("run", &err);
    } while (exit_info.reason == ENGINE_EXIT_KICK && guest->stopped != turn);
    guest->running = false;
    if (guest->engine->vcpu_get_state(guest->vcpu, &state, &err) < 0)
        die("get state", &err);
    memset(outcome, 0, offsetof(struct outcome, memory));
    for (unsigned i = 0; i < WINDOW_WRITABLE / PAGE; i++)
        memcpy(outcome->memory + i * PAGE, guest->ram + WINDOW + i * STRIDE, PAGE);
    outcome->instructions = guest->engine->vcpu_instructions(guest->vcpu) - before;
    if (exit_info.reason == ENGINE_EXIT_HALT && state.rip >= SYSTEM + HALTS &&
        state.rip <= SYSTEM + HALTS + 512) {
        outcome_read(guest, &state, outcome);
    } else {
        outcome->vector = VECTOR_NONE;
        outcome->error = exit_info.reason;
        outcome->out.rip = state.rip;
    }
}
