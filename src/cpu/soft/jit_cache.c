/*
 * The code cache of one vCPU: units, the links between them, what makes them invalid.
 *
 *      translated            a write to its page            entered, same bytes
 *   ----------------> connected -----------------> disconnected -----------------> connected
 *                         |                             |
 *                         |      other bytes, or the block was spoiled
 *                         +----------------> dropped <--+
 *
 * A disconnected unit has a jump over the first bytes of its entries, so that whoever comes, by a
 * link, by the jump cache or through an entry of its own, gets to the loop of the vCPU; nobody is
 * inside it then, for polls have led out. A dropped one stays disconnected for ever and its
 * incoming links are undone. Space comes back all at once, when the cache is full: what is hot is
 * soon there again.
 */
#include "cpu/soft/jit_unit.h"
#include "cpu/soft/native_stub.h"
#include "cpu/soft/populate.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

enum {
    CACHE_MIN = 1 << 20,
    CACHE_STRETCH = 256 << 10,
};

const uint8_t jit_host_of[16] = {JIT_R11, JIT_RCX, JIT_RDX,  JIT_RBX, JIT_R15, JIT_RBP,
                                 JIT_RSI, JIT_RDI, JIT_R8,   JIT_R9,  JIT_R10, JIT_NONE,
                                 JIT_R12, JIT_R13, JIT_NONE, JIT_NONE};

/* ---- made and freed ---- */

static bool cache_map(struct soft_jit *cache)
{
    int fd = memfd_create("translated code", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create("translated code", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    if (ftruncate(fd, (off_t)cache->size) == 0) {
        void *to = mmap(NULL, cache->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        cache->write_alias = to == MAP_FAILED ? NULL : to;
        to = mmap(NULL, cache->size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_32BIT, fd, 0);
        cache->execute_alias = to == MAP_FAILED ? NULL : to;
    }
    close(fd);
    return cache->write_alias && cache->execute_alias;
}

static bool host_has_bmi2(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && ebx & bit_BMI2;
}

static void jumps_clear(struct soft_vcpu *v, unsigned half)
{
    uint64_t *keys = v->jit_state.jump_keys[half];
    memset(keys, 0, sizeof v->jit_state.jump_keys[half]);
    keys[0] = jit_jump_empty(0);
}

int jit_new(struct soft_vcpu *v, struct err *err)
{
    const struct engine_config *config = &v->vm->config;
    if (config->translate == ENGINE_TRANSLATE_NEVER || (uintptr_t)v > UINT32_MAX / 2)
        return 0;
    struct soft_jit *cache = calloc(1, sizeof *cache);
    if (!cache)
        return err_set(err, -ENOMEM, "no memory for translated code");
    v->jit = cache;
    uint64_t bytes = config->code_cache ? config->code_cache : ENGINE_CODE_CACHE;
    cache->size = align_up(max(bytes / config->vcpus, (uint64_t)CACHE_MIN), MEM_PAGE_SIZE);
    cache->counting = config->count || config->translate == ENGINE_TRANSLATE_ALWAYS;
    /* With fewer, pages that belong into the others are never hit here. */
    cache->tlb_entries =
        config->tlb_entries ? min(config->tlb_entries, (unsigned)SOFT_TLB_SIZE) : SOFT_TLB_SIZE;
    cache->has_avx = v->native->has_avx;
    cache->has_bmi2 = cache->has_avx && host_has_bmi2();
    cache->unit_max = cache->link_max = 1024;
    cache->units = calloc(cache->unit_max, sizeof *cache->units);
    cache->links = calloc(cache->link_max, sizeof *cache->links);
    if (!cache->units || !cache->links) {
        jit_free(v);
        return err_set(err, -ENOMEM, "no memory for translated code");
    }
    if (!cache_map(cache)) {
        jit_free(v);
        return 0;
    }
    cache->delta =
        (uint64_t)(uintptr_t)cache->execute_alias - (uint64_t)(uintptr_t)cache->write_alias;
    v->jit_state.jump_keys[0][0] = v->jit_state.jump_keys[1][0] = jit_jump_empty(0);
    jit_make_prelude(v, cache);
    cache->used = cache->prelude;
    cache->unit_count = cache->link_count = 1;
    jit_epoch_flush(v, true);
    return 0;
}

void jit_free(struct soft_vcpu *v)
{
    struct soft_jit *cache = v->jit;
    if (!cache)
        return;
    if (cache->write_alias)
        munmap(cache->write_alias, cache->size);
    if (cache->execute_alias)
        munmap(cache->execute_alias, cache->size);
    free(cache->units);
    free(cache->links);
    free(cache);
    v->jit = NULL;
}

void jit_reset(struct soft_vcpu *v)
{
    struct soft_jit *cache = v->jit;
    if (!cache)
        return;
    cache->used = cache->prelude;
    cache->unit_count = cache->link_count = 1;
    cache->want = 0;
    cache->resets++;
    cache->places_left = 0;
    memset(cache->pages, 0, sizeof cache->pages);
    jit_epoch_flush(v, true);
}

/* Room for `more` elements behind `count`. */
static bool table_grow(void **table, uint32_t count, uint32_t more, uint32_t *max, size_t size)
{
    if (count + more <= *max)
        return true;
    void *bigger = realloc(*table, 2 * (size_t)*max * size);
    if (!bigger)
        return false;
    *table = bigger;
    *max *= 2;
    return true;
}

bool jit_make_room(struct soft_jit *cache)
{
    if (cache->used + JIT_UNIT_ROOM > cache->size ||
        !table_grow((void **)&cache->units, cache->unit_count, 1, &cache->unit_max,
                    sizeof *cache->units) ||
        !table_grow((void **)&cache->links, cache->link_count, JIT_LINKS_MAX, &cache->link_max,
                    sizeof *cache->links))
        return false;
    if (cache->used + JIT_UNIT_ROOM > cache->populated) {
        size_t size = min((size_t)CACHE_STRETCH, cache->size - cache->populated);
        populate_own(cache->write_alias + cache->populated, size, true);
        populate_own(cache->execute_alias + cache->populated, size, false);
        cache->populated += size;
    }
    return true;
}

/* ---- code is patched through the write alias ---- */

static uint8_t *writable(const struct soft_jit *cache, uint32_t at)
{
    return (uint8_t *)(uintptr_t)((uint64_t)at - cache->delta);
}

static void point(const struct soft_jit *cache, uint32_t displacement, uint32_t to)
{
    uint32_t value = to - (displacement + 4);
    memcpy(writable(cache, displacement), &value, sizeof value);
}

static void put_jump(const struct soft_jit *cache, uint32_t at, uint32_t to)
{
    uint8_t jump[JIT_PATCH] = {0xe9};
    uint32_t value = to - (at + JIT_PATCH);
    memcpy(jump + 1, &value, sizeof value);
    memcpy(writable(cache, at), jump, sizeof jump);
}

/* ---- units ---- */

static unsigned page_slot(uint64_t gpa)
{
    return (unsigned)(gpa >> MEM_PAGE_SHIFT) % JIT_PAGES;
}

void jit_unit_add(struct soft_jit *cache, uint32_t number)
{
    struct jit_unit *unit = &cache->units[number];
    uint32_t *page = &cache->pages[page_slot(unit->block->gpa)];
    unit->next = *page;
    *page = number;
    unit->connected = true;
    unit->block->unit = number;
    cache->unit_count++;
    cache->translated++;
}

static void disconnect(struct soft_jit *cache, struct jit_unit *unit)
{
    if (!unit->connected)
        return;
    unit->connected = false;
    memcpy(unit->was_host, writable(cache, unit->entry_host), JIT_PATCH);
    put_jump(cache, unit->entry_host, unit->stale_host);
    memcpy(unit->was_saved, writable(cache, unit->entry_saved), JIT_PATCH);
    put_jump(cache, unit->entry_saved, unit->stale_saved);
}

static void connect(struct soft_jit *cache, struct jit_unit *unit)
{
    if (unit->connected)
        return;
    unit->connected = true;
    memcpy(writable(cache, unit->entry_host), unit->was_host, JIT_PATCH);
    memcpy(writable(cache, unit->entry_saved), unit->was_saved, JIT_PATCH);
}

/* The jump of a short unit may lie under the patches of its entries. */
static void unlink_code(struct soft_jit *cache, struct jit_link *link)
{
    struct jit_unit *unit = &cache->units[link->unit];
    bool connected = unit->connected;
    connect(cache, unit);
    point(cache, link->displacement, link->stub);
    if (!connected)
        disconnect(cache, unit);
    link->linked = false;
}

static void unlink_incoming(struct soft_jit *cache, struct jit_unit *unit)
{
    for (uint32_t number = unit->incoming; number;) {
        struct jit_link *link = &cache->links[number];
        unlink_code(cache, link);
        number = link->next;
        link->next = 0;
    }
    unit->incoming = 0;
}

void jit_drop(struct soft_vcpu *v, struct soft_block *block)
{
    struct soft_jit *cache = v->jit;
    if (!cache || !block->unit)
        return;
    struct jit_unit *unit = &cache->units[block->unit];
    disconnect(cache, unit);
    unlink_incoming(cache, unit);
    /* A chain holds live units only, so that a guest which rewrites its code all the time does not
     * make it longer and longer. */
    uint32_t *at = &cache->pages[page_slot(block->gpa)];
    while (*at != block->unit)
        at = &cache->units[*at].next;
    *at = unit->next;
    unit->block = NULL;
    block->unit = 0;
    block->heat = 0;
}

void jit_reconnect(struct soft_vcpu *v, struct soft_block *block)
{
    if (v->jit && block->unit)
        connect(v->jit, &v->jit->units[block->unit]);
}

void jit_moved(struct soft_vcpu *v, struct soft_block *block)
{
    v->jit->units[block->unit].block = block;
}

uint64_t jit_bound(const struct soft_vcpu *v)
{
    return v->jit->size;
}

/* ---- links ---- */

static unsigned half_of_mode(const struct soft_vcpu *v)
{
    return (v->mode & MODE_CPL) != 0;
}

static const struct jit_place *place_at(uint32_t address)
{
    return (const struct jit_place *)(uintptr_t)address;
}

struct jit_link *jit_link_new(struct jit *jit, int64_t target, enum jit_way way,
                              uint32_t *ret_number)
{
    struct soft_jit *cache = jit->cache;
    assert(cache->link_count < cache->link_max);
    *ret_number = cache->link_count++;
    struct jit_link *link = &cache->links[*ret_number];
    *link = (struct jit_link){.unit = jit->unit, .target = target, .way = way};
    return link;
}

static uint64_t page_of(uint64_t linear)
{
    return linear & ~(uint64_t)SOFT_PAGE_MASK;
}

static void unlink_one(struct soft_jit *cache, uint32_t number)
{
    struct jit_link *link = &cache->links[number];
    uint32_t *at = &cache->units[link->to].incoming;
    while (*at != number)
        at = &cache->links[*at].next;
    *at = link->next;
    unlink_code(cache, link);
}

void jit_make_link(struct soft_vcpu *v, uint32_t number, struct soft_block *block)
{
    struct soft_jit *cache = v->jit;
    struct jit_link *link = &cache->links[number];
    struct jit_unit *to = &cache->units[block->unit];
    const struct soft_block *from = cache->units[link->unit].block;
    if (!to->connected || (link->linked && !link->guard))
        return;
    /* The page tables may have changed since the branch was made. */
    if (!link->guard && (!from || (from->gpa ^ block->gpa) >> MEM_PAGE_SHIFT))
        return;
    if (link->guard) {
        uint64_t epoch = v->jit_state.epoch[half_of_mode(v)];
        const struct jit_place *place = place_at(cache->units[link->unit].place);
        /* Does the branch's own page still lie where it was? */
        if (place->epoch != epoch || place->base + (uint64_t)link->target != v->gpr[SOFT_RIP])
            return;
        /* It may have been made in another address space: the newest counts. */
        if (link->linked && link->to != block->unit)
            unlink_one(cache, number);
        memcpy(writable(cache, link->guard), &epoch, sizeof epoch);
        if (link->linked)
            return;
    }
    point(cache, link->displacement, link->saved ? to->entry_saved : to->entry_host);
    link->linked = true;
    link->to = block->unit;
    link->next = to->incoming;
    to->incoming = number;
}

/* ---- code that changes ---- */

void jit_code_event(struct soft_vm *vm, uint64_t gpa)
{
    gpa = page_of(gpa);
    vm->code_events[vm->code_event_count++ % JIT_EVENTS] = gpa;
    for (unsigned i = 0; i < vm->config.vcpus; i++) {
        struct soft_vcpu *v = __atomic_load_n(&vm->vcpus[i], __ATOMIC_ACQUIRE);
        if (v && v->jit)
            atomic_fetch_or(&v->attention, ATTENTION_CODE);
    }
}

static void disconnect_page(struct soft_jit *cache, uint64_t gpa)
{
    uint32_t number = cache->pages[page_slot(gpa)];
    for (; number; number = cache->units[number].next) {
        struct jit_unit *unit = &cache->units[number];
        if (unit->block && page_of(unit->block->gpa) == gpa && !block_valid(unit->block))
            disconnect(cache, unit);
    }
}

void jit_code_events(struct soft_vcpu *v)
{
    struct soft_vm *vm = v->vm;
    struct soft_jit *cache = v->jit;
    atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_CODE);
    if (!cache)
        return;
    uint64_t events[JIT_EVENTS];
    pthread_mutex_lock(&vm->code_lock);
    uint64_t from = cache->events_done, to = vm->code_event_count;
    cache->events_done = to;
    for (uint64_t i = from; to - from <= JIT_EVENTS && i < to; i++)
        events[i - from] = vm->code_events[i % JIT_EVENTS];
    pthread_mutex_unlock(&vm->code_lock);
    if (to - from <= JIT_EVENTS) {
        for (uint64_t i = 0; i < to - from; i++)
            disconnect_page(cache, events[i]);
        return;
    }
    for (uint32_t number = 1; number < cache->unit_count; number++)
        if (cache->units[number].block && !block_valid(cache->units[number].block))
            disconnect(cache, &cache->units[number]);
}

/* ---- epochs ---- */

static void epoch_next(struct soft_vcpu *v, unsigned half)
{
    struct soft_jit *cache = v->jit;
    struct jit_state *state = &v->jit_state;
    state->epoch[half] = ++cache->epochs;
    if (cache->jumps_count[half] > JIT_JUMPS_USED)
        jumps_clear(v, half);
    else
        for (unsigned i = 0; i < cache->jumps_count[half]; i++) {
            unsigned slot = cache->jumps_used[half][i];
            state->jump_keys[half][slot] = jit_jump_empty(slot);
        }
    cache->jumps_count[half] = 0;
}

static unsigned half_of(uint64_t linear)
{
    return linear >> 63 ? 0 : 1;
}

static uint64_t *seen_word(struct soft_jit *cache, uint64_t linear, uint64_t *ret_bit)
{
    uint64_t hash = (linear >> MEM_PAGE_SHIFT) * UINT64_C(0x9e3779b97f4a7c15) >> 50;
    *ret_bit = UINT64_C(1) << hash % 64;
    return &cache->seen[half_of(linear)][hash / 64];
}
_Static_assert(JIT_SEEN == 1 << (64 - 50), "seen_word");

void jit_note_page(struct soft_vcpu *v, uint64_t linear)
{
    uint64_t bit;
    *seen_word(v->jit, linear, &bit) |= bit;
    if (v->mode & MODE_CPL) {
        v->jit->seen_high |= half_of(linear) == 0;
        return;
    }
    v->jit->seen_local |= !jit_page_is_global(v, linear);
    v->jit->seen_low |= half_of(linear) == 1;
}

/* Everything of this half of the address space has to be looked up again. The supervisor may run
 * code of the user's half (early, on an identity map), the user of the supervisor's (where there is
 * no such custom), and each has but one epoch. */
static void half_ends(struct soft_vcpu *v, unsigned half)
{
    struct soft_jit *cache = v->jit;
    epoch_next(v, half);
    memset(cache->seen[half], 0, sizeof cache->seen[half]);
    if (half == 0)
        cache->seen_local = false;
    if (half == 0 ? cache->seen_high : cache->seen_low)
        epoch_next(v, !half);
}

void jit_epoch_flush(struct soft_vcpu *v, bool global_too)
{
    struct soft_jit *cache = v->jit;
    if (!cache)
        return;
    if (global_too)
        cache->seen_low = cache->seen_high = false;
    half_ends(v, 1);
    if (global_too || cache->seen_local)
        half_ends(v, 0);
}

void jit_epoch_page(struct soft_vcpu *v, uint64_t linear, uint64_t size)
{
    struct soft_jit *cache = v->jit;
    if (!cache)
        return;
    uint64_t bit;
    if (size > MEM_PAGE_SIZE || *seen_word(cache, linear, &bit) & bit)
        half_ends(v, half_of(linear));
}

/* ---- places ---- */

static void place_put(const struct soft_jit *cache, uint32_t at, const struct jit_place *place)
{
    memcpy(writable(cache, at), place, sizeof *place);
}

uint32_t jit_place_of(struct soft_jit *cache, const struct soft_block *block)
{
    const struct jit_unit *unit;
    for (uint32_t n = cache->pages[page_slot(block->gpa)]; n; n = unit->next) {
        unit = &cache->units[n];
        if ((unit->block->gpa ^ block->gpa) >> MEM_PAGE_SHIFT == 0 &&
            !((unit->block->mode ^ block->mode) & MODE_CPL))
            return unit->place;
    }
    if (cache->places_left == 0) {
        /* Away from code, which writes nearby make slow. */
        enum { LINE = JIT_PLACES * sizeof(struct jit_place) };
        size_t at = align_up(cache->used, (size_t)LINE);
        cache->places = (uint32_t)((uintptr_t)cache->execute_alias + at);
        cache->places_left = JIT_PLACES;
        cache->used = at + LINE;
    }
    uint32_t place = cache->places;
    place_put(cache, place, &(struct jit_place){0}); /* no epoch is 0 */
    cache->places += (uint32_t)sizeof(struct jit_place);
    cache->places_left--;
    return place;
}

void jit_place_set(struct soft_vcpu *v, const struct jit_unit *unit)
{
    unsigned half = half_of_mode(v);
    uint64_t base = v->gpr[SOFT_RIP] & ~(uint64_t)SOFT_PAGE_MASK;
    const struct jit_place *place = place_at(unit->place);
    if (place->epoch == v->jit_state.epoch[half] && place->base == base)
        return;
    /* The page is mapped twice, and executed at both places: nothing that leads to the other one
     * may hold any more. */
    if (place->epoch == v->jit_state.epoch[half])
        epoch_next(v, half);
    place_put(v->jit, unit->place, &(struct jit_place){base, v->jit_state.epoch[half]});
}
