#include "cpu/soft/block.h"
#include "cpu/soft/jit.h"
#include "cpu/soft/native.h"
#include "cpu/soft/populate.h"
#include "cpu/soft/system.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

/* ---- code pages of the VM ---- */

/* Bits of the 64-byte granules that [offset, offset + size) of a page touches. */
static uint64_t granules_of(uint64_t offset, uint64_t size)
{
    unsigned first = (unsigned)(offset >> 6);
    unsigned last = (unsigned)((offset + size - 1) >> 6);
    return UINT64_MAX << first & UINT64_MAX >> (63 - last);
}

static void *zeroed_lazily(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void code_observer(void *opaque, uint64_t gpa, uint64_t size)
{
    soft_code_written(opaque, NULL, NULL, gpa, size);
}

int block_vm_init(struct soft_vm *vm, struct err *err)
{
    pthread_mutex_init(&vm->code_lock, NULL);
    for (unsigned i = 0; i < vm->mem->count; i++) {
        size_t pages = vm->mem->regions[i].size >> MEM_PAGE_SHIFT;
        vm->code_generation[i] = zeroed_lazily(pages * sizeof *vm->code_generation[i]);
        vm->code_granules[i] = zeroed_lazily(pages * sizeof *vm->code_granules[i]);
        if (!vm->code_generation[i] || !vm->code_granules[i])
            return err_set(err, -ENOMEM, "no memory to note %zu code pages", pages);
    }
    mem_observe_code(vm->mem, code_observer, vm);
    return 0;
}

void block_vm_fini(struct soft_vm *vm)
{
    mem_observe_code(vm->mem, NULL, NULL);
    for (unsigned i = 0; i < vm->mem->count; i++) {
        size_t pages = vm->mem->regions[i].size >> MEM_PAGE_SHIFT;
        if (vm->code_generation[i])
            munmap(vm->code_generation[i], pages * sizeof *vm->code_generation[i]);
        if (vm->code_granules[i])
            munmap(vm->code_granules[i], pages * sizeof *vm->code_granules[i]);
        /* A mark means "somebody holds decoded code": nobody does now. */
        for (size_t page = 0; page < pages; page++)
            if (vm->mem->regions[i].marks[page] & MEM_PAGE_CODE)
                __atomic_fetch_and(&vm->mem->regions[i].marks[page], (uint8_t)~MEM_PAGE_CODE,
                                   __ATOMIC_RELAXED);
    }
    pthread_mutex_destroy(&vm->code_lock);
}

/* The page of a guest-physical address as the code notes see it. */
struct code_page {
    uint8_t *mark;
    uint32_t *generation;
    uint64_t *granules;
};

static bool code_page_of(struct soft_vm *vm, uint64_t gpa, struct code_page *ret_page)
{
    const struct mem_region *region = mem_find(vm->mem, gpa);
    if (!region)
        return false;
    size_t index = (size_t)(region - vm->mem->regions);
    size_t page = (gpa - region->start) >> MEM_PAGE_SHIFT;
    *ret_page = (struct code_page){.mark = &region->marks[page],
                                   .generation = &vm->code_generation[index][page],
                                   .granules = &vm->code_granules[index][page]};
    return true;
}

/* Makes [gpa, gpa + size), inside one page, known as code, and returns the page's generation from
 * the same moment: whoever reads the bytes after this sees them change through the generation. */
static uint32_t code_claim(struct soft_vcpu *v, const struct code_page *page, uint64_t gpa,
                           uint64_t size)
{
    struct soft_vm *vm = v->vm;
    pthread_mutex_lock(&vm->code_lock);
    bool exclusive = !(__atomic_load_n(page->mark, __ATOMIC_RELAXED) & MEM_PAGE_CODE);
    if (exclusive) {
        pthread_mutex_unlock(&vm->code_lock);
        exclusive_begin(v);
        pthread_mutex_lock(&vm->code_lock);
        __atomic_fetch_or(page->mark, (uint8_t)MEM_PAGE_CODE, __ATOMIC_SEQ_CST);
        for (unsigned i = 0; i < ENGINE_VCPUS_MAX; i++) {
            struct soft_vcpu *other = __atomic_load_n(&vm->vcpus[i], __ATOMIC_ACQUIRE);
            if (other)
                soft_tlb_protect(other, align_down(gpa, MEM_PAGE_SIZE));
        }
    }
    uint64_t bits = granules_of(gpa & SOFT_PAGE_MASK, size);
    __atomic_fetch_or(page->granules, bits, __ATOMIC_SEQ_CST);
    uint32_t generation = __atomic_load_n(page->generation, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&vm->code_lock);
    if (exclusive)
        exclusive_end(v);
    return generation;
}

void block_restart(struct soft_vcpu *v, const struct insn *insn)
{
    v->gpr[SOFT_RIP] = insn_address(v, insn);
    v->instructions -= (uint64_t)(v->block->insns + v->block->count - insn);
}

/* Runs in place of the instruction after the one that changed the block. */
static void op_changed(struct soft_vcpu *v, const struct insn *insn)
{
    block_restart(v, insn);
    LEAVE;
}

static bool ranges_meet(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

static void spoil_running(struct soft_vcpu *v, const struct insn *insn, uint64_t gpa, uint64_t size)
{
    struct soft_block *block = v->block;
    if (!block || insn < block->insns || insn >= block->insns + block->count)
        return;
    bool hit = ranges_meet(block->gpa, block->size, gpa, size);
    if (block->flags & BLOCK_STRADDLES)
        hit |= ranges_meet(block->gpa2, block->size2, gpa, size);
    if (!hit)
        return;
    block->flags |= BLOCK_SPOILED;
    block->insns[insn - block->insns + 1].run = op_changed;
}

void soft_code_written(struct soft_vm *vm, struct soft_vcpu *v, const struct insn *insn,
                       uint64_t gpa, uint64_t size)
{
    /* The bytes must be seen before we look whether somebody decoded them (code_claim). */
    atomic_thread_fence(memory_order_seq_cst);
    if (v && insn)
        spoil_running(v, insn, gpa, size);
    uint64_t end = gpa + size;
    while (gpa < end) {
        uint64_t part = min(end - gpa, MEM_PAGE_SIZE - (gpa & SOFT_PAGE_MASK));
        uint64_t bits = granules_of(gpa & SOFT_PAGE_MASK, part);
        struct code_page page;
        if (code_page_of(vm, gpa, &page) &&
            (__atomic_load_n(page.granules, __ATOMIC_RELAXED) & bits)) {
            pthread_mutex_lock(&vm->code_lock);
            if (__atomic_fetch_and(page.granules, ~bits, __ATOMIC_SEQ_CST) & bits) {
                __atomic_fetch_add(page.generation, 1, __ATOMIC_SEQ_CST);
                jit_code_event(vm, gpa);
            }
            if (*page.granules == 0)
                __atomic_fetch_and(page.mark, (uint8_t)~MEM_PAGE_CODE, __ATOMIC_SEQ_CST);
            pthread_mutex_unlock(&vm->code_lock);
        }
        gpa += part;
    }
}

/* ---- the cache of one vCPU ---- */

int block_cache_new(struct soft_vcpu *v, struct err *err)
{
    struct soft_cache *cache = zeroed_lazily(sizeof *cache); /* a short run uses little of it */
    if (!cache)
        return err_set(err, -ENOMEM, "no memory for decoded code");
#ifdef __SANITIZE_ADDRESS__
    __lsan_register_root_region(cache, sizeof *cache); /* what it points to is no leak */
#endif
    v->cache = cache;
    cache->nowhere.generation_at = &cache->never;
    cache->nowhere.generation = 1;
    cache->tables = decode_tables_new(v);
    cache->chunk_limit = v->vm->config.vcpus == 1 ? BLOCK_CHUNKS_MAX : BLOCK_CHUNKS_SHARED;
    const struct engine_config *config = &v->vm->config;
    cache->heat_limit = !v->jit                                        ? INT32_MAX
                        : config->translate == ENGINE_TRANSLATE_ALWAYS ? 1
                        : config->check_tlb                            ? JIT_HEAT
                                                                       : JIT_HEAT_FIRST;
    cache->single =
        calloc(1, sizeof *cache->single + 2 * sizeof(struct insn) + ZYDIS_MAX_INSTRUCTION_LENGTH);
    if (!cache->tables || !cache->single)
        return err_set(err, -ENOMEM, "no memory for the decoder's tables");
    return 0;
}

void block_cache_free(struct soft_vcpu *v)
{
    struct soft_cache *cache = v->cache;
    if (!cache)
        return;
    for (unsigned i = 0; i < ARRAY_LEN(cache->chunks); i++)
        free(cache->chunks[i]);
    decode_tables_free(cache->tables);
    free(cache->single);
#ifdef __SANITIZE_ADDRESS__
    __lsan_unregister_root_region(cache, sizeof *cache);
#endif
    munmap(cache, sizeof *cache);
    v->cache = NULL;
}

void block_forget_all(struct soft_vcpu *v)
{
    struct soft_cache *cache = v->cache;
    memset(cache->hash, 0, sizeof cache->hash);
    memset(cache->jumps, 0, sizeof cache->jumps);
    cache->chunk = 0;
    cache->used = 0;
    cache->forgotten++;
    v->link = NULL;
    v->block = NULL;
    jit_reset(v);
    native_reset(v);
}

/* Space in the arena, or NULL when it is full (or the host has no more). */
static void *arena_take(struct soft_cache *cache, size_t size)
{
    size = align_up(size, 16);
    if (cache->used + size > BLOCK_CHUNK) {
        if (cache->chunk + 1 == cache->chunk_limit)
            return NULL;
        cache->filled[cache->chunk] = (uint32_t)cache->used;
        cache->chunk++;
        cache->used = 0;
    }
    if (!cache->chunks[cache->chunk]) {
        cache->chunks[cache->chunk] = aligned_alloc(MEM_PAGE_SIZE, BLOCK_CHUNK);
        if (!cache->chunks[cache->chunk])
            return NULL;
        populate_own(cache->chunks[cache->chunk], BLOCK_CHUNK, true);
    }
    void *at = cache->chunks[cache->chunk] + cache->used;
    cache->used += size;
    return at;
}

static struct soft_block **hash_chain(struct soft_cache *cache, uint64_t gpa, uint32_t mode)
{
    uint64_t mixed = (gpa ^ (uint64_t)mode << 32) * UINT64_C(0x9e3779b97f4a7c15);
    return &cache->hash[mixed >> 49];
}
_Static_assert(BLOCK_HASH == 1 << (64 - 49), "hash_chain");

/* ---- forgetting what is cold ---- */

/* A block moves down in the arena, with what points into itself. Its links are undone, for their
 * targets may be gone. */
static void block_move(struct soft_vcpu *v, struct soft_block *to, struct soft_block *from)
{
    struct soft_cache *cache = v->cache;
    size_t room = from->room;
    memmove(to, from, room);
    to->bytes = (const uint8_t *)(to->insns + to->count + 1);
    /* Only the last instruction and the terminator have links. */
    for (unsigned i = to->count - 1u; i <= to->count; i++)
        if (to->insns[i].flags & INSN_LINK)
            to->insns[i].data = &cache->nowhere;
    jit_moved(v, to);
}

void block_forget_cold(struct soft_vcpu *v)
{
    struct soft_cache *cache = v->cache;
    unsigned chunks = cache->chunk + 1;
    size_t used_last = cache->used;
    size_t kept = 0;
    if (!v->jit) {
        block_forget_all(v);
        return;
    }
    memset(cache->hash, 0, sizeof cache->hash);
    memset(cache->jumps, 0, sizeof cache->jumps);
    v->link = NULL;
    v->block = NULL;
    cache->forgotten++;
    cache->chunk = 0;
    cache->used = 0;
    /* In the order in which they lie, so that no block moves up. */
    for (unsigned chunk = 0; chunk < chunks; chunk++) {
        size_t end = chunk + 1 == chunks ? used_last : cache->filled[chunk];
        for (size_t at = 0; at < end;) {
            struct soft_block *block = (struct soft_block *)(cache->chunks[chunk] + at);
            size_t room = block->room;
            at += room;
            if (!block->unit)
                continue;
            struct soft_block *to = arena_take(cache, room);
            assert(to && (cache->chunk < chunk || to <= block));
            block_move(v, to, block);
            kept += room;
            struct soft_block **chain = hash_chain(cache, to->gpa, to->mode);
            to->next = *chain;
            *chain = to;
        }
    }
    unsigned most = (unsigned)min(jit_bound(v) / BLOCK_CHUNK, (uint64_t)BLOCK_CHUNKS_JIT);
    if (kept > (size_t)cache->chunk_limit * BLOCK_CHUNK / 2) {
        if (cache->chunk_limit + BLOCK_CHUNKS_STEP <= most)
            cache->chunk_limit += BLOCK_CHUNKS_STEP;
        else
            block_forget_all(v);
    }
}

/* ---- fetching ---- */

struct fetched {
    uint64_t linear;
    uint64_t gpa, gpa2;
    const uint8_t *host, *host2; /* NULL: not memory */
    unsigned first;              /* bytes in the first page */
    bool second;                 /* gpa2 and host2 are known */
};

static uint64_t next_page(const struct soft_vcpu *v, uint64_t linear)
{
    linear = align_down(linear, MEM_PAGE_SIZE) + MEM_PAGE_SIZE;
    return v->mode & MODE_64 ? linear : (uint32_t)linear;
}

static void fetch_start(struct soft_vcpu *v, struct fetched *fetched)
{
    if (!(v->mode & MODE_64)) {
        v->gpr[SOFT_RIP] &= UINT32_MAX;
        if (v->gpr[SOFT_RIP] > v->segment[CPU_CS].limit)
            soft_raise_error(v, NULL, VECTOR_GP, 0);
    }
    uint64_t linear = v->gpr[SOFT_RIP] + v->ea_base[CPU_CS];
    if (!(v->mode & MODE_64))
        linear &= UINT32_MAX;
    fetched->linear = linear;
    fetched->first = MEM_PAGE_SIZE - (unsigned)(linear & SOFT_PAGE_MASK);
    fetched->second = false;
    fetched->gpa = soft_fetch_translate(v, linear, &fetched->host);
}

static void fetch_second(struct soft_vcpu *v, struct fetched *fetched)
{
    fetched->gpa2 = soft_fetch_translate(v, next_page(v, fetched->linear), &fetched->host2);
    fetched->second = true;
}

/* Code in a device: read byte by byte, as hardware would fetch it, or all ones. */
static void fetch_device(struct soft_vcpu *v, uint64_t gpa, uint8_t *to, unsigned size)
{
    const struct engine_io *io = &v->vm->io;
    memset(to, 0xff, size);
    if (!io->mmio_read)
        return;
    exclusive_leave(v);
    for (unsigned i = 0; i < size; i++)
        to[i] = (uint8_t)io->mmio_read(io->opaque, v->index, gpa + i, 1);
    exclusive_enter(v);
}

static void fetch_bytes(struct soft_vcpu *v, const uint8_t *host, uint64_t gpa, uint8_t *to,
                        unsigned size)
{
    if (host)
        memcpy(to, host, size);
    else
        fetch_device(v, gpa, to, size);
}

/* Decodes at most `max` instructions at `fetched`; asks for the second page when the first
 * instruction reaches into it. */
static struct decode_result decode_fetched(struct soft_vcpu *v, struct fetched *fetched,
                                           unsigned max)
{
    struct soft_cache *cache = v->cache;
    fetched->second = false; /* a block that no longer fits may have asked for it */
    unsigned limit = max == 1 || !fetched->host ? ZYDIS_MAX_INSTRUCTION_LENGTH : BLOCK_TEXT;
    unsigned size = min(fetched->first, limit);
    fetch_bytes(v, fetched->host, fetched->gpa, cache->text, size);
    struct decode_result result = decode_text(v, size, max);
    if (result.count > 0)
        return result;
    fetch_second(v, fetched);
    fetch_bytes(v, fetched->host2, fetched->gpa2, cache->text + size,
                ZYDIS_MAX_INSTRUCTION_LENGTH - size);
    return decode_text(v, ZYDIS_MAX_INSTRUCTION_LENGTH, 1);
}

/* CS ends inside an instruction: #GP, as the fetch of its last byte would. */
static void check_limit(struct soft_vcpu *v, unsigned size)
{
    if (!(v->mode & MODE_64) && v->gpr[SOFT_RIP] + size - 1 > v->segment[CPU_CS].limit)
        soft_raise_error(v, NULL, VECTOR_GP, 0);
}

/* ---- building ---- */

static void block_fill(struct soft_block *block, const struct soft_cache *cache,
                       const struct decode_result *result, const struct fetched *fetched,
                       uint32_t mode)
{
    uint8_t *bytes = (uint8_t *)(block->insns + result->count + 1);
    *block = (struct soft_block){
        .generation_at = &cache->never,
        .count = (uint16_t)result->count,
        .size = (uint8_t)min(result->size, fetched->first),
        .flags = result->alone ? BLOCK_ALONE : 0,
        .mode = mode,
        .generation2_at = &cache->never,
        .gpa = fetched->gpa,
        .bytes = bytes,
    };
    if (fetched->second) {
        block->flags |= BLOCK_STRADDLES;
        block->gpa2 = fetched->gpa2;
        block->size2 = (uint8_t)(result->size - fetched->first);
    }
    memcpy(block->insns, cache->insns, (result->count + 1) * sizeof(struct insn));
    memcpy(bytes, cache->text, result->size);
}

/* Claims the block's pages and compares its bytes with memory. True: it is valid from here on. */
static bool block_validate(struct soft_vcpu *v, struct soft_block *block,
                           const struct fetched *fetched)
{
    struct code_page page;
    if (block->flags & BLOCK_SPOILED || !code_page_of(v->vm, block->gpa, &page))
        return false;
    uint32_t generation = code_claim(v, &page, block->gpa, block->size);
    if (memcmp(fetched->host, block->bytes, block->size) != 0)
        return false;
    if (block->flags & BLOCK_STRADDLES) {
        struct code_page second;
        if (!code_page_of(v->vm, block->gpa2, &second))
            return false;
        block->generation2 = code_claim(v, &second, block->gpa2, block->size2);
        block->generation2_at = second.generation;
        if (memcmp(fetched->host2, block->bytes + block->size, block->size2) != 0)
            return false;
    }
    block->generation_at = page.generation;
    block->generation = generation;
    jit_reconnect(v, block);
    return true;
}

struct soft_block *block_single(struct soft_vcpu *v)
{
    struct soft_cache *cache = v->cache;
    struct fetched fetched;
    if (native_full(v))
        block_forget_all(v);
    fetch_start(v, &fetched);
    struct decode_result result = decode_fetched(v, &fetched, 1);
    check_limit(v, result.size);
    block_fill(cache->single, cache, &result, &fetched, v->mode);
    return cache->single;
}

static struct soft_block *block_build(struct soft_vcpu *v, struct fetched *fetched, uint32_t mode)
{
    struct soft_cache *cache = v->cache;
    if (native_full(v))
        block_forget_all(v);
    unsigned max = mode & BLOCK_MODE_STEP ? 1 : INSN_BLOCK_MAX;
    struct decode_result result = decode_fetched(v, fetched, max);
    if (fetched->second && !fetched->host2)
        return block_single(v);
    size_t size =
        sizeof(struct soft_block) + (result.count + 1) * sizeof(struct insn) + result.size;
    struct soft_block *block = arena_take(cache, size);
    if (!block) {
        /* Stubs may be forgotten too, so what has just been bound is bound again. */
        block_forget_cold(v);
        result = decode_fetched(v, fetched, max);
        block = arena_take(cache, size);
        if (!block)
            return block_single(v);
    }
    block_fill(block, cache, &result, fetched, mode);
    block->room = (uint32_t)align_up(size, 16);
    if (!block_validate(v, block, fetched))
        return block_single(v); /* somebody writes to it right now */
    struct soft_block **chain = hash_chain(cache, block->gpa, mode);
    block->next = *chain;
    *chain = block;
    cache->blocks++;
    return block;
}

/* Does a branch behind the block, not far, lead to its start? Or bytes that look like one. */
static bool may_loop(const struct soft_block *block, const uint8_t *text, unsigned size)
{
    for (unsigned at = block->size; at + 6 <= size; at++) {
        const uint8_t *byte = text + at;
        if ((byte[0] & 0xf0) == 0x70 && (int)at + 2 + (int8_t)byte[1] == 0)
            return true;
        if (byte[0] == 0x0f && (byte[1] & 0xf0) == 0x80 && at + 6 + le32_read(byte + 2) == 0)
            return true;
    }
    return false;
}

/* The translator has no room for more edges across pages than a block without such Jcc has. */
static bool stays_in_page(const struct soft_cache *cache, const struct decode_result *result,
                          const struct fetched *fetched)
{
    int64_t start = fetched->gpa & SOFT_PAGE_MASK;
    for (unsigned i = 0; i + 1 < result->count; i++) {
        const struct insn *insn = &cache->insns[i];
        int64_t target = start + (int64_t)insn->imm;
        if (insn->flags & INSN_JCC && (target < 0 || target >= MEM_PAGE_SIZE))
            return false;
    }
    return true;
}

struct soft_block *block_extend(struct soft_vcpu *v, struct soft_block *block)
{
    enum { LOOK = 96 /* bytes behind the block */ };
    struct soft_cache *cache = v->cache;
    struct fetched fetched;
    const struct insn *last = &block->insns[block->count - 1];
    if (!(last->flags & INSN_JCC) || block->count >= BLOCK_LOOP_MAX || last->imm == 0 ||
        block->flags & (BLOCK_STRADDLES | BLOCK_SPOILED) || block->mode != v->mode ||
        native_full(v)) /* the next block that is built makes room */
        return block;
    fetch_start(v, &fetched);
    if (!fetched.host || fetched.gpa != block->gpa ||
        !may_loop(block, fetched.host, min(fetched.first, (unsigned)block->size + LOOK)))
        return block;
    cache->through = true;
    struct decode_result result = decode_fetched(v, &fetched, BLOCK_LOOP_MAX);
    cache->through = false;
    if (result.count <= block->count || fetched.second || !stays_in_page(cache, &result, &fetched))
        return block;
    size_t size =
        sizeof(struct soft_block) + (result.count + 1) * sizeof(struct insn) + result.size;
    struct soft_block *whole = arena_take(cache, size);
    if (!whole)
        return block;
    block_fill(whole, cache, &result, &fetched, block->mode);
    whole->room = (uint32_t)align_up(size, 16);
    if (!block_validate(v, whole, &fetched))
        return block;
    /* Those who remember the shorter one find it invalid. */
    struct soft_block **at = hash_chain(cache, block->gpa, block->mode);
    while (*at != block)
        at = &(*at)->next;
    whole->next = block->next;
    *at = whole;
    block->flags |= BLOCK_SPOILED;
    block->generation_at = &cache->never;
    block->generation = 1;
    jit_drop(v, block);
    return whole;
}

/* A block of the hash is good when its bytes are; a straddling one also when its second page is
 * still where it was. Others leave the chain. */
static bool block_still_good(struct soft_vcpu *v, struct soft_block *block, struct fetched *fetched)
{
    if (block->flags & BLOCK_STRADDLES) {
        /* Other bytes may need no second page, which then must not even fault. */
        if (!block_valid(block) && memcmp(fetched->host, block->bytes, block->size) != 0)
            return false;
        if (!fetched->second)
            fetch_second(v, fetched);
        if (fetched->gpa2 != block->gpa2)
            return false;
        if (block->generation2 != __atomic_load_n(block->generation2_at, __ATOMIC_RELAXED))
            return block_validate(v, block, fetched);
    }
    if (block_valid(block))
        return true;
    v->cache->revalidated++;
    return block_validate(v, block, fetched);
}

static struct soft_block *block_find(struct soft_vcpu *v, struct fetched *fetched, uint32_t mode)
{
    struct soft_block **at = hash_chain(v->cache, fetched->gpa, mode);
    while (*at) {
        struct soft_block *block = *at;
        if (block->gpa == fetched->gpa && block->mode == mode) {
            if (block_still_good(v, block, fetched))
                return block;
            *at = block->next;
            jit_drop(v, block);
        } else {
            at = &block->next;
        }
    }
    return NULL;
}

/* Two neighbours in one page, and neither reaches out of it: what maps one maps the other. */
static bool may_link(const struct soft_block *from, const struct soft_block *to, uint64_t linear,
                     uint64_t to_linear)
{
    return ((from->gpa ^ to->gpa) | (linear ^ to_linear)) >> MEM_PAGE_SHIFT == 0 &&
           !((from->flags | to->flags) & BLOCK_STRADDLES) && from->mode == to->mode &&
           !(to->mode & (BLOCK_MODE_STEP | MODE_SEGCHECK));
}

static void block_link(struct soft_vcpu *v, struct insn *insn, struct soft_block *to)
{
    uint64_t here = v->gpr[SOFT_RIP];
    if (may_link(v->block, to, here - insn->imm, here))
        insn->data = to;
}

void block_unlinked(struct soft_vcpu *v, const struct insn *insn)
{
    if (v->mode & MODE_64 && unlikely(!canonical(v->gpr[SOFT_RIP]))) {
        v->gpr[SOFT_RIP] -= insn->imm; /* back at the branch, whose fault it is */
        soft_raise_error(v, insn, VECTOR_GP, 0);
    }
    if (block_attention(v))
        LEAVE;
    uint64_t linear = v->gpr[SOFT_RIP] + v->ea_base[CPU_CS];
    struct soft_jump *jump = block_jump_slot(v->cache, linear);
    if (jump->linear == linear && jump->stamp == block_stamp(v) && block_usable(jump->block)) {
        block_link(v, (struct insn *)insn, jump->block);
        return block_enter(v, jump->block);
    }
    v->link = (struct insn *)insn;
    LEAVE;
}

struct soft_block *block_lookup(struct soft_vcpu *v, bool step)
{
    struct fetched fetched;
    uint32_t mode = v->mode | (step ? BLOCK_MODE_STEP : 0);
    fetch_start(v, &fetched);
    if (!fetched.host)
        return block_single(v);
    struct soft_block *block = block_find(v, &fetched, mode);
    if (!block)
        block = block_build(v, &fetched, mode);
    if (block == v->cache->single)
        return block;
    if (!(v->mode & MODE_64) &&
        v->gpr[SOFT_RIP] + block->size + block->size2 - 1 > v->segment[CPU_CS].limit)
        return block_single(v);
    if (v->link)
        block_link(v, v->link, block);
    if (!(mode & (BLOCK_MODE_STEP | MODE_SEGCHECK)))
        *block_jump_slot(v->cache, fetched.linear) =
            (struct soft_jump){.linear = fetched.linear, .stamp = block_stamp(v), .block = block};
    return block;
}
