#include "board/board_lockstep.h"

#include "board/board_private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CLOCK_STEP = 20, /* ns that a look at the clock takes */
    LINE_MAX_BYTES = 1024,
    BUFFER_SIZE = 64 << 10,
    KICK_MIN_NS = 30000, /* the leader's ticks come so often, */
    KICK_MAX_NS = 400000,
    ATTEMPTS_MAX = 16,
    INSN_MAX = 15,
    CR0_PG_BIT = 31,
    EFER_LMA = 1 << 10,
    PTE_PRESENT = 1 << 0,
    PTE_LARGE = 1 << 7,
};

/* 2026-01-01 00:00 UTC */
#define EPOCH_NS (INT64_C(1767225600) * NSEC_PER_SEC)

struct lockstep {
    struct board *board;
    enum board_lockstep_role role;
    int fd;
    uint64_t limit; /* instructions, 0 = none */

    uint64_t now;     /* ns */
    uint64_t skipped; /* ns that the guest slept through */
    bool interrupt;   /* the APIC has something for the engine */
    uint64_t ticks;
    bool over;

    /* Follower: the next line, and the place that it names. An exception changes RIP and not the
     * count, so there may be several places with one count: then it goes on by attempts. */
    char expected[LINE_MAX_BYTES];
    bool has_expected;
    uint64_t target, target_rip;
    unsigned attempts;
    bool attempt;

    /* Leader: who kicks. */
    pthread_t kicker;
    bool has_kicker;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool leaving;

    struct cpu_state state;
    char text[BOARD_TEXT_MAX]; /* what went wrong */
    size_t used, end;          /* of the buffer: the follower's bytes are [used, end) */
    char buffer[BUFFER_SIZE];
};

/* ---- time ---- */

uint64_t lockstep_clock(void *opaque)
{
    struct lockstep *lockstep = opaque;
    lockstep->now += CLOCK_STEP;
    return lockstep->now;
}

int64_t lockstep_realtime(void *opaque)
{
    return EPOCH_NS + (int64_t)lockstep_clock(opaque);
}

/* ---- the trace ---- */

static bool flush(struct lockstep *lockstep)
{
    for (size_t done = 0; done < lockstep->used;) {
        ssize_t n = write(lockstep->fd, lockstep->buffer + done, lockstep->used - done);
        if (n < 0 && errno != EINTR)
            return false;
        done += n > 0 ? (size_t)n : 0;
    }
    lockstep->used = 0;
    return true;
}

/* The next line of the trace into `expected`; false at its end. */
static bool fetch(struct lockstep *lockstep)
{
    size_t length = 0;
    for (;;) {
        if (lockstep->used == lockstep->end) {
            ssize_t n = read(lockstep->fd, lockstep->buffer, sizeof lockstep->buffer);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return false;
            lockstep->used = 0;
            lockstep->end = (size_t)n;
        }
        char c = lockstep->buffer[lockstep->used++];
        if (c == '\n')
            break;
        if (length == sizeof lockstep->expected - 1)
            return false;
        lockstep->expected[length++] = c;
    }
    lockstep->expected[length] = '\0';
    lockstep->has_expected = true;
    return true;
}

static void fail(struct lockstep *lockstep, const char *what, const char *line)
{
    lockstep->over = true;
    snprintf(lockstep->text, sizeof lockstep->text,
             "lockstep: %s, at tick %" PRIu64 "\nleader: %.1000s\nhere:   %.1000s", what,
             lockstep->ticks, lockstep->has_expected ? lockstep->expected : "(nothing)", line);
}

/* Writes the line, or compares it with the leader's. False after an error, which is in `text`. */
static bool put(struct lockstep *lockstep, const char *line)
{
    if (lockstep->role == BOARD_LOCKSTEP_LEAD) {
        size_t length = strlen(line);
        if (lockstep->used + length + 1 > sizeof lockstep->buffer && !flush(lockstep)) {
            fail(lockstep, "the trace cannot be written", line);
            return false;
        }
        memcpy(lockstep->buffer + lockstep->used, line, length);
        lockstep->buffer[lockstep->used + length] = '\n';
        lockstep->used += length + 1;
        return true;
    }
    if (!lockstep->has_expected && !fetch(lockstep)) {
        fail(lockstep, "the trace ends too early", line);
        return false;
    }
    if (strcmp(lockstep->expected, line) != 0) {
        fail(lockstep, "this run differs from the leader's", line);
        return false;
    }
    lockstep->has_expected = false;
    return true;
}

/* ---- what a line says ---- */

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    for (; size >= 8; at += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 32;
    }
    return hash;
}

static uint64_t hash_memory(const struct mem *mem)
{
    uint64_t hash = 1;
    for (unsigned i = 0; i < mem->count; i++)
        hash = hash_bytes(hash, mem->regions[i].host, mem->regions[i].size);
    return hash;
}

static void tick_line(const struct lockstep *lockstep, uint64_t count, char line[LINE_MAX_BYTES])
{
    static const char *const names[CPU_GPR_MAX] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                                   "rsi", "rdi", "r8",  "r9",  "r10", "r11",
                                                   "r12", "r13", "r14", "r15"};
    const struct cpu_state *state = &lockstep->state;
    int n =
        snprintf(line, LINE_MAX_BYTES,
                 "tick %" PRIu64 " halted=%d time=%" PRIx64 " rip=%" PRIx64 " rflags=%" PRIx64,
                 count, state->run_state == CPU_HALTED, lockstep->now, state->rip, state->rflags);
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        n += snprintf(line + n, (size_t)(LINE_MAX_BYTES - n), " %s=%" PRIx64, names[i],
                      state->gpr[i]);
    /* The rest as hashes, in a few parts, for whoever must find out what differs. */
    const struct {
        const char *name;
        size_t from, to;
    } parts[] = {
        {"segments", offsetof(struct cpu_state, segment), offsetof(struct cpu_state, cr0)},
        {"control", offsetof(struct cpu_state, cr0), offsetof(struct cpu_state, msr)},
        {"msrs", offsetof(struct cpu_state, msr), offsetof(struct cpu_state, pending)},
        {"events", offsetof(struct cpu_state, pending), offsetof(struct cpu_state, apic)},
        {"apic", offsetof(struct cpu_state, apic), offsetof(struct cpu_state, xsave)},
        {"xsave", offsetof(struct cpu_state, xsave), sizeof(struct cpu_state)},
    };
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        n += snprintf(
            line + n, (size_t)(LINE_MAX_BYTES - n), " %s=%" PRIx64, parts[i].name,
            hash_bytes(1, (const uint8_t *)state + parts[i].from, parts[i].to - parts[i].from));
}

/* ---- where no tick may be ---- */

/* The guest-physical address of a linear one, in a machine without paging or with four levels. */
static bool translate(const struct board *board, const struct cpu_state *state, uint64_t linear,
                      uint64_t *ret_gpa)
{
    const uint64_t address = UINT64_C(0x000ffffffffff000);
    if (!(state->cr0 >> CR0_PG_BIT & 1)) {
        *ret_gpa = linear;
        return true;
    }
    if (!(state->efer & EFER_LMA))
        return false;
    uint64_t entry = state->cr3;
    for (unsigned shift = 39; shift >= MEM_PAGE_SHIFT; shift -= 9) {
        uint64_t gpa = (entry & address) + (linear >> shift & 511) * 8;
        uint8_t bytes[8];
        if (mem_read(board->mem, gpa, bytes, sizeof bytes) < 0)
            return false;
        entry = le64_read(bytes);
        if (!(entry & PTE_PRESENT))
            return false;
        uint64_t inside = (UINT64_C(1) << shift) - 1;
        if (shift == MEM_PAGE_SHIFT || (shift < 39 && entry & PTE_LARGE)) {
            *ret_gpa = (entry & address & ~inside) | (linear & inside);
            return true;
        }
    }
    return false;
}

static bool prefix(uint8_t byte, bool mode64)
{
    switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0: return true;
    default: return mode64 && (byte & 0xf0) == 0x40;
    }
}

/* Whether the next instruction may be a repeated string instruction, perhaps half done. */
static bool may_be_in_a_string(const struct board *board, const struct cpu_state *state)
{
    bool mode64 = state->efer & EFER_LMA && state->segment[CPU_CS].attributes & CPU_SEG_L;
    bool repeated = false;
    for (unsigned i = 0; i < INSN_MAX; i++) {
        uint64_t linear = state->rip + i, gpa;
        uint8_t byte;
        if (!mode64)
            linear = (uint32_t)(linear + state->segment[CPU_CS].base);
        if (!translate(board, state, linear, &gpa) || mem_read(board->mem, gpa, &byte, 1) < 0)
            return true; /* a fault to come, or a kind of paging that is rare */
        if (byte == 0xf2 || byte == 0xf3)
            repeated = true;
        else if (!prefix(byte, mode64))
            return repeated && ((byte >= 0x6c && byte <= 0x6f) || (byte >= 0xa4 && byte <= 0xa7) ||
                                (byte >= 0xaa && byte <= 0xaf));
    }
    return true;
}

/* ---- ticks ---- */

static uint64_t instructions(const struct lockstep *lockstep)
{
    struct board *board = lockstep->board;
    return board->engine->vcpu_instructions(board->vcpus[0].vcpu);
}

static void tell_error(struct lockstep *lockstep)
{
    board_tell_final(lockstep->board, BOARD_EVENT_ERROR, 0, lockstep->text);
}

/* Time goes on, and what is due happens. */
static void time_passes(struct lockstep *lockstep, uint64_t count)
{
    struct board *board = lockstep->board;
    uint64_t next = timers_next(board->timers);
    lockstep->now = max(lockstep->now, count + lockstep->skipped);
    if (lockstep->state.run_state == CPU_HALTED && !lockstep->interrupt && next != UINT64_MAX &&
        next > lockstep->now) {
        lockstep->skipped += next - lockstep->now;
        lockstep->now = next;
    }
    timers_fire(board->timers, lockstep->now);
    if (lockstep->interrupt)
        board->engine->vcpu_notify(board->vcpus[0].vcpu);
    lockstep->interrupt = false;
}

static bool say_memory(struct lockstep *lockstep)
{
    char line[LINE_MAX_BYTES];
    snprintf(line, sizeof line, "memory %016" PRIx64, hash_memory(lockstep->board->mem));
    return put(lockstep, line);
}

static bool tick(struct lockstep *lockstep, uint64_t count)
{
    char line[LINE_MAX_BYTES];
    tick_line(lockstep, count, line);
    bool last =
        lockstep->role == BOARD_LOCKSTEP_LEAD && lockstep->limit && count >= lockstep->limit;
    if (!put(lockstep, line))
        return false;
    lockstep->ticks++;
    lockstep->attempts = 0;
    if ((lockstep->ticks % LOCKSTEP_MEMORY_TICKS == 0 || last) && !say_memory(lockstep))
        return false;
    if (last) {
        lockstep->over = true;
        if (put(lockstep, "limit") && !flush(lockstep))
            fail(lockstep, "the trace cannot be written", "limit");
        board_tell_final(lockstep->board,
                         *lockstep->text ? BOARD_EVENT_ERROR : BOARD_EVENT_POWER_OFF, 0,
                         lockstep->text);
        return true;
    }
    time_passes(lockstep, count);
    return true;
}

/* The state reads the clock, here and in kicks that become no tick; nobody must notice. */
static bool get_state(struct lockstep *lockstep)
{
    struct board *board = lockstep->board;
    uint64_t now = lockstep->now;
    bool good = board->engine->vcpu_get_state(board->vcpus[0].vcpu, &lockstep->state, NULL) >= 0;
    lockstep->now = now;
    return good;
}

/* Whether the follower is where its next tick is; a kick may have come for another reason. */
static bool arrived(struct lockstep *lockstep, uint64_t count)
{
    const struct cpu_state *state = &lockstep->state;
    if (!lockstep->has_expected || (count < lockstep->target && state->run_state == CPU_RUNNING))
        return false;
    lockstep->attempt = count == lockstep->target && state->rip != lockstep->target_rip &&
                        state->run_state == CPU_RUNNING && lockstep->attempts < ATTEMPTS_MAX;
    lockstep->attempts += lockstep->attempt;
    return !lockstep->attempt;
}

void lockstep_tick(struct lockstep *lockstep)
{
    struct board *board = lockstep->board;
    if (lockstep->over)
        return;
    uint64_t count = instructions(lockstep);
    bool follows = lockstep->role == BOARD_LOCKSTEP_FOLLOW;
    if (!get_state(lockstep))
        return;
    if (follows && !arrived(lockstep, count))
        return;
    if (!follows && lockstep->state.run_state == CPU_RUNNING &&
        may_be_in_a_string(board, &lockstep->state))
        return;
    if (!tick(lockstep, count))
        tell_error(lockstep);
}

/* The follower's next tick. A line that is none is dealt with at once. */
static bool next_target(struct lockstep *lockstep)
{
    if (!lockstep->has_expected && !fetch(lockstep)) {
        fail(lockstep, "the trace ends too early", "");
        tell_error(lockstep);
        return false;
    }
    if (sscanf(lockstep->expected, "tick %" SCNu64 " halted=%*d time=%*x rip=%" SCNx64,
               &lockstep->target, &lockstep->target_rip) == 2)
        return true;
    if (strncmp(lockstep->expected, "memory ", 7) == 0 && say_memory(lockstep))
        return next_target(lockstep);
    if (strcmp(lockstep->expected, "limit") == 0) {
        lockstep->over = true;
        board_tell_final(lockstep->board, BOARD_EVENT_POWER_OFF, 0, "");
        return false;
    }
    if (strncmp(lockstep->expected, "end ", 4) == 0) {
        lockstep->target = UINT64_MAX;
        return true;
    }
    if (!lockstep->over)
        fail(lockstep, "the trace makes no sense", "");
    tell_error(lockstep);
    return false;
}

bool lockstep_prepare(struct lockstep *lockstep)
{
    struct board *board = lockstep->board;
    if (lockstep->over)
        return false;
    if (lockstep->role == BOARD_LOCKSTEP_LEAD)
        return true;
    if (!next_target(lockstep))
        return false;
    board->engine->vcpu_stop_at(board->vcpus[0].vcpu, lockstep->target, lockstep->attempt);
    lockstep->attempt = false;
    return true;
}

void lockstep_notify(struct lockstep *lockstep)
{
    lockstep->interrupt = true;
}

const char *lockstep_end(struct lockstep *lockstep, enum board_event_kind kind)
{
    char line[LINE_MAX_BYTES];
    if (lockstep->over)
        return NULL;
    lockstep->over = true;
    snprintf(line, sizeof line, "end %d", kind);
    if (!put(lockstep, line))
        return lockstep->text;
    if (lockstep->role == BOARD_LOCKSTEP_LEAD && !flush(lockstep)) {
        fail(lockstep, "the trace cannot be written", line);
        return lockstep->text;
    }
    return NULL;
}

/* ---- the leader's kicks ---- */

/* At random distances, so that no two runs have the same history. */
static void *kick_again_and_again(void *opaque)
{
    struct lockstep *lockstep = opaque;
    struct board *board = lockstep->board;
    pthread_setname_np(pthread_self(), "lockstep");
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t random = (uint64_t)until.tv_nsec;
    pthread_mutex_lock(&lockstep->lock);
    while (!lockstep->leaving) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint64_t wait = KICK_MIN_NS + (random >> 33) % (KICK_MAX_NS - KICK_MIN_NS);
        clock_gettime(CLOCK_MONOTONIC, &until);
        uint64_t ns = (uint64_t)until.tv_nsec + wait;
        until.tv_sec += (time_t)(ns / NSEC_PER_SEC);
        until.tv_nsec = (long)(ns % NSEC_PER_SEC);
        pthread_cond_clockwait(&lockstep->changed, &lockstep->lock, CLOCK_MONOTONIC, &until);
        if (board->vcpus[0].vcpu)
            board->engine->vcpu_kick(board->vcpus[0].vcpu);
    }
    pthread_mutex_unlock(&lockstep->lock);
    return NULL;
}

/* ---- life ---- */

void lockstep_cpuid(struct cpuid *cpuid)
{
    for (unsigned i = 0; i < cpuid->count; i++) {
        struct cpuid_leaf *leaf = &cpuid->leaves[i];
        if (leaf->leaf == 1)
            leaf->ecx &= ~(UINT32_C(1) << 30); /* RDRAND */
        if (leaf->leaf == 7 && leaf->subleaf == 0)
            leaf->ebx &= ~(UINT32_C(1) << 18); /* RDSEED */
        if (leaf->leaf == 0x40000001)          /* KVM_FEATURE_CLOCKSOURCE, old, new and stable */
            leaf->eax &= ~(UINT32_C(1) << 0 | UINT32_C(1) << 3 | UINT32_C(1) << 24);
    }
}

static int check(const struct board *board, const struct board_config *config, struct err *err)
{
    bool follows = config->lockstep.role == BOARD_LOCKSTEP_FOLLOW;
    if (board->engine->irqchip != ENGINE_IRQCHIP_BOARD || !board->engine->vcpu_stop_at)
        return err_set(err, -EINVAL, "lockstep: engine %s has a time of its own; use soft",
                       board->engine->name);
    if (config->cpus != 1 || config->serial_in_fd >= 0 || config->console_count ||
        config->nic_count)
        return err_set(err, -EINVAL,
                       "lockstep: one CPU, no serial input and no consoles, which cannot be "
                       "repeated");
    if (follows && config->translate != ENGINE_TRANSLATE_NEVER)
        return err_set(err, -EINVAL, "lockstep: only the interpreter can follow (translate never)");
    return 0;
}

int lockstep_new(struct board *board, const struct board_config *config,
                 struct lockstep **ret_lockstep, struct err *err)
{
    int r = check(board, config, err);
    if (r < 0)
        return r;
    struct lockstep *lockstep = calloc(1, sizeof *lockstep);
    if (!lockstep)
        return err_set(err, -ENOMEM, "no memory for lockstep");
    lockstep->board = board;
    lockstep->role = config->lockstep.role;
    lockstep->fd = config->lockstep.fd;
    lockstep->limit = config->lockstep.instructions;
    pthread_mutex_init(&lockstep->lock, NULL);
    pthread_cond_init(&lockstep->changed, NULL);
    *ret_lockstep = lockstep;
    return 0;
}

int lockstep_start(struct lockstep *lockstep, struct err *err)
{
    if (lockstep->role != BOARD_LOCKSTEP_LEAD)
        return 0;
    int number = pthread_create(&lockstep->kicker, NULL, kick_again_and_again, lockstep);
    if (number)
        return err_errno(err, number, "cannot start the thread of lockstep");
    lockstep->has_kicker = true;
    return 0;
}

void lockstep_stop(struct lockstep *lockstep)
{
    if (!lockstep || !lockstep->has_kicker)
        return;
    pthread_mutex_lock(&lockstep->lock);
    lockstep->leaving = true;
    pthread_cond_signal(&lockstep->changed);
    pthread_mutex_unlock(&lockstep->lock);
    pthread_join(lockstep->kicker, NULL);
    lockstep->has_kicker = false;
}

void lockstep_free(struct lockstep *lockstep)
{
    if (!lockstep)
        return;
    lockstep_stop(lockstep);
    pthread_cond_destroy(&lockstep->changed);
    pthread_mutex_destroy(&lockstep->lock);
    free(lockstep);
}
