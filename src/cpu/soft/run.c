/*
 * The loop of one vCPU.
 *
 *            +--> attention or asleep? --> soft_deliver_pending() --> exit, sleep, or go on --+
 *            |                                                                              |
 *            +-- what is at RIP? a unit (jit.h), or a block: hash, or decode <---------------+
 *            |        |           |
 *            |        |           +--> its unit, and the units that it leads to --------------+
 *            |        +--> its handlers, then the blocks they lead to, as long as links hold  |
 *            |                 |       (hot ones get a unit)                                  |
 *            +-----------------+      soft_raise() and soft_unwind() come back through setjmp()
 *
 * Handlers leave v->link behind when they found no link to their successor; the look-up makes it.
 * Anything else that changes RIP in between forgets it.
 */
#include "base/clock.h"
#include "cpu/soft/block.h"
#include "cpu/soft/jit.h"
#include "cpu/soft/native.h"
#include "cpu/soft/system.h"

#include <immintrin.h>

enum { RAISED_NOTHING = 0xff }; /* in raised.vector, as soft_unwind() leaves it */

/* Where handlers do not call the next block, they name it. */
static void run_named(struct soft_vcpu *v)
{
#ifndef SOFT_TAIL_CALLS
    struct soft_cache *cache = v->cache;
    for (struct soft_block *block; (block = cache->next);) {
        cache->next = NULL;
        block->insns[0].run(v, block->insns);
    }
#else
    (void)v;
#endif
}

static void enter_block(struct soft_vcpu *v, struct soft_block *block)
{
    block_start(v, block);
    run_named(v);
}

/* A unit and what it leads to; then the instruction that it left to its handler. */
static void enter_unit(struct soft_vcpu *v, uint32_t entry)
{
    const struct insn *insn = jit_run(v, entry);
    if (!insn)
        return;
    v->cache->next = NULL; /* a slow path may have named a block on its way out */
    insn->run(v, insn);
    run_named(v);
}

/* True: the block has a unit. Hot ones get theirs here; `*ret_again`: look the block up again. */
static bool is_translated(struct soft_vcpu *v, struct soft_block *block, bool *ret_again)
{
    *ret_again = false;
    if (!jit_wanted(v)) {
        if (block->heat >= v->cache->heat_limit)
            block->heat = INT32_MIN; /* handlers need not come here for it */
        return false;
    }
    if (block->unit)
        return true;
    if (block == v->cache->single) /* decoded anew each time: no heat stays */
        return false;
    if (block->heat < v->cache->heat_limit && ++block->heat < v->cache->heat_limit)
        return false;
    *ret_again = true;
    jit_translate(v, block);
    return false;
}

/* Instructions of the block that were counted at its entry and not executed. */
static void uncount(struct soft_vcpu *v, const struct insn *insn)
{
    const struct soft_block *block = v->block;
    if (block && insn >= block->insns && insn < block->insns + block->count)
        v->instructions -= (uint64_t)(block->insns + block->count - insn);
}

/* After longjmp(): what a handler may have left half done. */
static void recover(struct soft_vcpu *v, int how)
{
    v->link = NULL;
    v->cache->next = NULL;
    jit_recover(v);
    if (v->vm->exclusive_owner == v) /* only we set it to ourselves, so no lock is needed */
        exclusive_end(v);
    if (how != SOFT_UNWOUND_RAISED)
        return;
    if (v->raised.insn)
        uncount(v, v->raised.insn);
    soft_deliver_raised(v);
}

static bool look_for(const struct soft_vcpu *v, uint64_t ns)
{
    uint64_t until = clock_ns() + ns;
    while (clock_ns() < until) {
        for (unsigned i = 0; i < 16; i++) {
            if (atomic_load_explicit(&v->attention, memory_order_acquire))
                return true;
            _mm_pause();
        }
    }
    return false;
}

/* To sleep and to be woken takes longer than a disk's answer from the host's cache. So a vCPU whose
 * last pause was short stays awake for a while, as KVM's do (halt polling): the while grows with
 * short pauses, and after a long one it is nothing. */
static void sleep_until_attention(struct soft_vcpu *v)
{
    enum { AWAKE_MIN_NS = 10000, AWAKE_MAX_NS = 100000 };
    exclusive_leave(v);
    uint64_t began = clock_ns();
    if (v->awake_ns == 0 || !look_for(v, v->awake_ns)) {
        pthread_mutex_lock(&v->sleep_lock);
        while (atomic_load(&v->attention) == 0)
            pthread_cond_wait(&v->sleep_wake, &v->sleep_lock);
        pthread_mutex_unlock(&v->sleep_lock);
        bool was_short = clock_ns() - began < AWAKE_MAX_NS;
        unsigned grown = max(2 * v->awake_ns, (unsigned)AWAKE_MIN_NS);
        v->awake_ns = was_short ? min(grown, (unsigned)AWAKE_MAX_NS) : 0;
    }
    exclusive_enter(v);
}

static void exit_with(struct soft_vcpu *v, enum engine_exit_reason reason)
{
    v->exit.reason = reason;
    v->exit.detail[0] = 0;
    v->exit_reason = reason + 1;
}

/* HLT, or waiting for SIPI, and nothing to wake it. */
static void rest(struct soft_vcpu *v)
{
    if (v->run_state == CPU_HALTED && v->vm->config.irqchip == ENGINE_IRQCHIP_NONE) {
        v->run_state = CPU_RUNNING;
        exit_with(v, ENGINE_EXIT_HALT);
        return;
    }
    sleep_until_attention(v);
}

/* With ATTENTION_STOP. True: nothing else is to be handled. */
static bool before_stop(struct soft_vcpu *v)
{
    bool attempt = v->stop_attempt;
    v->stop_attempt = false;
    if ((attempt || v->instructions < v->stop_at) && v->run_state == CPU_RUNNING)
        return atomic_load(&v->attention) == ATTENTION_STOP;
    atomic_fetch_or(&v->attention, ATTENTION_KICK);
    return false;
}

/* Handles whatever is to be handled between two instructions. True: run one now. */
static bool between(struct soft_vcpu *v)
{
    if (likely(!block_attention(v) && v->run_state == CPU_RUNNING))
        return true;
    v->link = NULL;
    jit_forget_want(v);
    if (unlikely(v->stop_at != UINT64_MAX) && before_stop(v))
        return true;
    if (atomic_load_explicit(&v->attention, memory_order_relaxed) & ATTENTION_CODE)
        jit_code_events(v);
    if (soft_deliver_pending(v))
        return false;
    if (v->run_state == CPU_RUNNING)
        return true;
    rest(v);
    return false;
}

static void loop(struct soft_vcpu *v)
{
    int how = setjmp(v->unwind);
    if (how)
        recover(v, how);
    while (!v->exit_reason) {
        if (!between(v))
            continue;
        bool step = atomic_load_explicit(&v->attention, memory_order_relaxed) & ATTENTION_STEP;
        uint32_t entry = !step && v->stop_at == UINT64_MAX && jit_wanted(v) ? jit_remembered(v) : 0;
        if (entry) {
            v->link = NULL;
            enter_unit(v, entry);
            continue;
        }
        struct soft_block *block = block_lookup(v, step);
        v->link = NULL;
        if (unlikely(v->stop_at != UINT64_MAX)) {
            if (block->count > v->stop_at - v->instructions)
                block = block_lookup(v, true);
            step = true; /* interpreted */
        }
        bool again;
        if (!step && is_translated(v, block, &again)) {
            enter_unit(v, jit_entry(v, block));
        } else if (step || !again) {
            jit_forget_want(v);
            enter_block(v, block);
        }
    }
}

int soft_run(struct soft_vcpu *v, struct engine_exit *ret_exit)
{
    v->exit_reason = 0;
    v->link = NULL;
    v->block = NULL;
    if (v->stop_at != UINT64_MAX)
        atomic_fetch_or(&v->attention, ATTENTION_STOP);
    else
        atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_STOP);
    exclusive_enter(v);
    native_enter(v);
    loop(v);
    native_leave(v);
    exclusive_leave(v);
    *ret_exit = v->exit;
    return 0;
}

static int step(struct soft_vcpu *v)
{
    if (setjmp(v->unwind) == 0) {
        struct soft_block *block = block_single(v);
        enter_block(v, block);
        return -1;
    }
    uint8_t vector = v->raised.vector;
    v->cache->next = NULL;
    if (v->vm->exclusive_owner == v)
        exclusive_end(v);
    if (v->raised.insn) {
        uncount(v, v->raised.insn);
        v->gpr[SOFT_RIP] = insn_address(v, v->raised.insn);
        v->raised.insn = NULL;
        return vector;
    }
    return vector == RAISED_NOTHING ? -1 : vector;
}

int soft_step(struct soft_vcpu *v)
{
    v->exit_reason = 0;
    v->link = NULL;
    v->block = NULL;
    v->raised.insn = NULL;
    v->raised.vector = RAISED_NOTHING;
    exclusive_enter(v);
    native_enter(v);
    uint32_t before = atomic_fetch_or(&v->attention, ATTENTION_STEP);
    int vector = step(v);
    if (!(before & ATTENTION_STEP))
        atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_STEP);
    native_leave(v);
    exclusive_leave(v);
    return vector;
}

void soft_attend(struct soft_vcpu *v, uint32_t bits)
{
    atomic_fetch_or(&v->attention, bits);
    /* With the lock, since the sleeper may be between its look and its sleep. */
    pthread_mutex_lock(&v->sleep_lock);
    pthread_cond_broadcast(&v->sleep_wake);
    pthread_mutex_unlock(&v->sleep_lock);
}
