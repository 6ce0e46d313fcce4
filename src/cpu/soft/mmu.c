/*
 * Translations kept (the TLB and the instruction pages) and every access that the inline fast
 * paths of vcpu.h could not finish.
 *
 * An entry is filled only for memory, never for MMIO or a page with a watchpoint. Its write tag is
 * set only while a plain host store is all that a guest store needs: the page table entry is dirty
 * already, the region may be written, the page holds no decoded code, and the dirty log has noted
 * the page. Bit sets of the filled slots make a flush cost what it clears. Large pages become 4 KiB
 * fragments; two small hashed sets remember the 2M and 1G stretches that have some, so that INVLPG
 * knows when one slot is not enough.
 */
#include "cpu/soft/jit_unit.h"
#include "cpu/soft/populate.h"
#include "cpu/soft/walk.h"

enum { PIECE_MAX = 8 };

/* Where one access that stays in its page goes. */
struct place {
    uint64_t gpa;
    uint8_t *host; /* NULL: MMIO, or a write to read-only memory */
    const uint8_t *mark;
};

/* ---- tables ---- */

/* Zero tags say "the page at address 0". Who is asked for that one is slot 0, and the last slot (of
 * those in use) by an access that wraps round from the end of the address space: the rest of the
 * tables, half a MiB, may stay the untouched memory that it is. */
static void tables_prepare(struct soft_vcpu *v)
{
    unsigned used = min(v->vm->config.tlb_entries, (unsigned)SOFT_TLB_SIZE);
    const unsigned slots[] = {0, SOFT_TLB_SIZE - 1, used ? used - 1 : 0};
    for (unsigned kind = 0; kind < TLB_MAX; kind++)
        for (unsigned i = 0; i < ARRAY_LEN(slots); i++) {
            struct soft_tlb_entry *entry = &v->tlbs[kind][slots[i]];
            entry->read = entry->write = TLB_NONE;
        }
    for (unsigned i = 0; i < SOFT_FETCH_SIZE; i++)
        v->system.fetch[i].tag = UINT64_MAX;
    v->system.tables_ready = true;
}

static void flush_table(struct soft_vcpu *v, unsigned kind, bool global_too)
{
    struct soft_system *s = &v->system;
    for (unsigned word = 0; word < SOFT_TLB_WORDS; word++) {
        uint64_t clear = s->used[kind][word] & (global_too ? UINT64_MAX : ~s->global[kind][word]);
        s->used[kind][word] &= ~clear;
        s->global[kind][word] &= ~clear;
        for (; clear; clear &= clear - 1) {
            struct soft_tlb_entry *entry =
                &v->tlbs[kind][word * 64 + (unsigned)__builtin_ctzll(clear)];
            entry->read = entry->write = TLB_NONE;
        }
    }
}

void soft_tlb_flush(struct soft_vcpu *v, bool global_too)
{
    struct soft_system *s = &v->system;
    v->tlb_flushes++;
    jit_epoch_flush(v, global_too);
    if (!s->tables_ready)
        tables_prepare(v);
    for (unsigned kind = 0; kind < TLB_NEVER; kind++)
        flush_table(v, kind, global_too);
    for (unsigned word = 0; word < SOFT_FETCH_WORDS; word++) {
        uint64_t clear = s->fetch_used[word] & (global_too ? UINT64_MAX : ~s->fetch_global[word]);
        s->fetch_used[word] &= ~clear;
        s->fetch_global[word] &= ~clear;
        for (; clear; clear &= clear - 1)
            s->fetch[word * 64 + (unsigned)__builtin_ctzll(clear)].tag = UINT64_MAX;
    }
    if (global_too)
        s->large_2m = s->large_1g = 0;
}

static uint64_t large_bit(uint64_t linear, unsigned shift)
{
    return UINT64_C(1) << ((linear >> shift) * UINT64_C(0x9e3779b97f4a7c15) >> 58);
}

/* Drops everything in [start, start + size). */
static void flush_range(struct soft_vcpu *v, uint64_t start, uint64_t size)
{
    struct soft_system *s = &v->system;
    for (unsigned kind = 0; kind < TLB_NEVER; kind++) {
        for (unsigned word = 0; word < SOFT_TLB_WORDS; word++) {
            for (uint64_t left = s->used[kind][word]; left; left &= left - 1) {
                struct soft_tlb_entry *entry =
                    &v->tlbs[kind][word * 64 + (unsigned)__builtin_ctzll(left)];
                if (entry->read - start < size)
                    entry->read = entry->write = TLB_NONE;
            }
        }
    }
    for (unsigned i = 0; i < SOFT_FETCH_SIZE; i++)
        if ((s->fetch[i].tag & ~UINT64_C(1)) - start < size)
            s->fetch[i].tag = UINT64_MAX;
}

void soft_tlb_flush_page(struct soft_vcpu *v, uint64_t linear)
{
    struct soft_system *s = &v->system;
    v->tlb_flushes++;
    if (!s->tables_ready)
        tables_prepare(v);
    uint64_t page = linear & ~(uint64_t)SOFT_PAGE_MASK;
    for (unsigned kind = 0; kind < TLB_NEVER; kind++) {
        struct soft_tlb_entry *entry = &v->tlbs[kind][(page >> MEM_PAGE_SHIFT) % SOFT_TLB_SIZE];
        if (entry->read == page)
            entry->read = entry->write = TLB_NONE;
    }
    struct soft_fetch_entry *fetch = &s->fetch[(page >> MEM_PAGE_SHIFT) % SOFT_FETCH_SIZE];
    if ((fetch->tag & ~UINT64_C(1)) == page)
        fetch->tag = UINT64_MAX;
    uint64_t size = s->large_1g & large_bit(linear, 30)   ? GIB(1)
                    : s->large_2m & large_bit(linear, 21) ? MIB(2)
                                                          : MEM_PAGE_SIZE;
    jit_epoch_page(v, page, size);
    if (size > MEM_PAGE_SIZE)
        flush_range(v, align_down(linear, size), size);
}

void soft_tlb_protect(struct soft_vcpu *v, uint64_t gpa)
{
    uint64_t page = gpa & ~(uint64_t)SOFT_PAGE_MASK;
    for (unsigned kind = 0; kind < TLB_NEVER; kind++) {
        for (unsigned word = 0; word < SOFT_TLB_WORDS; word++) {
            for (uint64_t left = v->system.used[kind][word]; left; left &= left - 1) {
                struct soft_tlb_entry *entry =
                    &v->tlbs[kind][word * 64 + (unsigned)__builtin_ctzll(left)];
                if ((entry->page & ~(uint64_t)SOFT_PAGE_MASK) == page)
                    entry->write = TLB_NONE;
            }
        }
    }
}

/* ---- fills ---- */

static void remember_large(struct soft_vcpu *v, uint64_t linear, const struct mmu_page *page)
{
    if (page->page_size == MIB(2))
        v->system.large_2m |= large_bit(linear, 21);
    else if (page->page_size > MIB(2)) /* 4M is two stretches of 2M: counted among the 1G ones */
        v->system.large_1g |= large_bit(linear, 30);
}

/* May stores to this page go straight to host memory from now on? */
static bool plain_store(struct soft_vcpu *v, const struct mmu_page *page,
                        const struct mem_region *region, uint8_t *mark, enum soft_tlb_kind kind,
                        bool writing)
{
    if (!page->dirty || region->read_only || !mmu_permitted(v, page, MMU_WRITE, kind))
        return false;
    bool log = v->vm->mem->dirty_log;
    if (log && writing)
        __atomic_fetch_or(mark, MEM_PAGE_DIRTY, __ATOMIC_RELAXED);
    uint8_t marks = __atomic_load_n(mark, __ATOMIC_RELAXED);
    return !(marks & MEM_PAGE_CODE) && (!log || marks & MEM_PAGE_DIRTY);
}

static struct place fill(struct soft_vcpu *v, uint64_t linear, const struct mmu_page *page,
                         enum soft_tlb_kind kind, bool writing)
{
    struct place place = {.gpa = page->gpa};
    const struct mem_region *region = mem_find(v->vm->mem, page->gpa);
    if (!region)
        return place;
    uint64_t offset = page->gpa - region->start;
    uint8_t *mark = &region->marks[offset >> MEM_PAGE_SHIFT];
    place.mark = mark;
    place.host = region->host + offset;
    if (!region->read_only)
        populate(v->vm, (unsigned)(region - v->vm->mem->regions), offset, writing);
    bool store = plain_store(v, page, region, mark, kind, writing);
    if (writing && region->read_only)
        place.host = NULL; /* as with KVM, it is somebody's on the bus, or nobody's */
    uint64_t tag = linear & ~(uint64_t)SOFT_PAGE_MASK;
    if (unlikely(debug_watches_page(v, tag)))
        return place;
    unsigned slot = (unsigned)(tag >> MEM_PAGE_SHIFT) % SOFT_TLB_SIZE;
    bool global = page->global && v->cr4 & CR4_PGE;
    v->tlbs[kind][slot] = (struct soft_tlb_entry){
        .read = tag,
        .write = store ? tag : TLB_NONE,
        .addend = (uint64_t)(uintptr_t)(region->host + offset) - linear,
        .page = (page->gpa & ~(uint64_t)SOFT_PAGE_MASK) | global,
    };
    uint64_t bit = UINT64_C(1) << slot % 64;
    v->system.used[kind][slot / 64] |= bit;
    if (global)
        v->system.global[kind][slot / 64] |= bit;
    else
        v->system.global[kind][slot / 64] &= ~bit;
    remember_large(v, linear, page);
    return place;
}

static enum soft_tlb_kind current_kind(const struct soft_vcpu *v)
{
    if (vcpu_cpl(v) == 3)
        return TLB_USER;
    return v->rflags & RFLAG_AC ? TLB_SUPERVISOR_AC : TLB_SUPERVISOR;
}

/* Translates one address; raises #PF. */
static struct place resolve(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                            bool write, enum soft_tlb_kind kind)
{
    const struct soft_tlb_entry *entry = &v->tlbs[kind][(linear >> MEM_PAGE_SHIFT) % SOFT_TLB_SIZE];
    if ((write ? entry->write : entry->read) == (linear & ~(uint64_t)SOFT_PAGE_MASK))
        return (struct place){.gpa = (entry->page & ~(uint64_t)SOFT_PAGE_MASK) |
                                     (linear & SOFT_PAGE_MASK),
                              .host = (uint8_t *)(uintptr_t)(linear + entry->addend)};
    if (unlikely(!v->system.tables_ready))
        tables_prepare(v);
    struct mmu_page page;
    uint32_t error;
    if (!mmu_walk(v, linear, write ? MMU_WRITE : MMU_READ, kind, &page, &error))
        soft_raise_payload(v, insn, VECTOR_PF, error, linear);
    return fill(v, linear, &page, kind, write);
}

/* ---- single accesses inside one page ---- */

static uint64_t host_load(const void *host, unsigned size)
{
    switch (size) {
    case 1: return *(const volatile uint8_t *)host;
    case 2: return *(const volatile uint16_t *)host;
    case 4: return *(const volatile uint32_t *)host;
    default: return *(const volatile uint64_t *)host;
    }
}

static void host_store(void *host, unsigned size, uint64_t value)
{
    switch (size) {
    case 1: *(volatile uint8_t *)host = (uint8_t)value; break;
    case 2: *(volatile uint16_t *)host = (uint16_t)value; break;
    case 4: *(volatile uint32_t *)host = (uint32_t)value; break;
    default: *(volatile uint64_t *)host = value; break;
    }
}

static uint64_t mmio_read(struct soft_vcpu *v, uint64_t gpa, unsigned size)
{
    uint64_t value = UINT64_MAX;
    if (v->vm->io.mmio_read) {
        exclusive_leave(v); /* the device may block */
        value = v->vm->io.mmio_read(v->vm->io.opaque, v->index, gpa, size);
        exclusive_enter(v);
    }
    return size == 8 ? value : value & ((UINT64_C(1) << size * 8) - 1);
}

static void mmio_write(struct soft_vcpu *v, uint64_t gpa, unsigned size, uint64_t value)
{
    if (!v->vm->io.mmio_write)
        return;
    exclusive_leave(v);
    v->vm->io.mmio_write(v->vm->io.opaque, v->index, gpa, size,
                         size == 8 ? value : value & ((UINT64_C(1) << size * 8) - 1));
    exclusive_enter(v);
}

/* Bytes of an MMIO access that one callback takes: the largest power of two that fits. */
static unsigned piece_size(uint64_t gpa, unsigned size)
{
    unsigned piece = PIECE_MAX;
    while (piece > size || gpa & (piece - 1))
        piece /= 2;
    return piece;
}

static void place_load(struct soft_vcpu *v, const struct place *place, void *to, unsigned size)
{
    if (place->host) {
        memcpy(to, place->host, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned piece = piece_size(place->gpa + done, size - done);
        uint64_t value = mmio_read(v, place->gpa + done, piece);
        memcpy((uint8_t *)to + done, &value, piece);
        done += piece;
    }
}

static void place_stored(struct soft_vcpu *v, const struct insn *insn, const struct place *place,
                         unsigned size)
{
    if (place->mark && __atomic_load_n(place->mark, __ATOMIC_RELAXED) & MEM_PAGE_CODE)
        soft_code_written(v->vm, v, insn, place->gpa, size);
}

static void place_store(struct soft_vcpu *v, const struct insn *insn, const struct place *place,
                        const void *from, unsigned size)
{
    if (place->host) {
        memcpy(place->host, from, size);
        place_stored(v, insn, place, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned piece = piece_size(place->gpa + done, size - done);
        uint64_t value = 0;
        memcpy(&value, (const uint8_t *)from + done, piece);
        mmio_write(v, place->gpa + done, piece, value);
        done += piece;
    }
}

/* ---- the slow paths of vcpu.h ---- */

/* Bytes of [linear, linear + size) that lie in the first page. */
static unsigned first_part(uint64_t linear, unsigned size)
{
    return min(size, (unsigned)(MEM_PAGE_SIZE - (linear & SOFT_PAGE_MASK)));
}

static uint64_t second_page(const struct soft_vcpu *v, uint64_t linear)
{
    uint64_t next = (linear | SOFT_PAGE_MASK) + 1;
    return v->mode & MODE_64 || linear > UINT32_MAX ? next : (uint32_t)next;
}

static void check_address(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                          unsigned size, unsigned seg)
{
    if (v->mode & MODE_64 && (!canonical(linear) || !canonical(linear + size - 1)))
        soft_raise_error(v, insn, seg == CPU_SS ? VECTOR_SS : VECTOR_GP, 0);
    /* Flat segments end at 4 GiB. Outside 64-bit mode nobody has checked their limit so far; that
     * of FS and GS was checked, and they may wrap. */
    if (!(v->mode & (MODE_64 | MODE_SEGCHECK)) && seg != CPU_FS && seg != CPU_GS &&
        linear <= UINT32_MAX && linear + size - 1 > UINT32_MAX)
        soft_raise_error(v, insn, seg == CPU_SS ? VECTOR_SS : VECTOR_GP, 0);
    /* SDM vol. 3, table 6-7: what is wider than 8 bytes is checked by its own rules. */
    if (v->mode & MODE_AC && size <= 8 && linear & (size - 1) && !(size & (size - 1)))
        soft_raise_error(v, insn, VECTOR_AC, 0);
}

static void check_watched(struct soft_vcpu *v, uint64_t linear, unsigned size, bool write)
{
    if (unlikely(v->system.break_write | v->system.break_access))
        debug_data_access(v, linear, size, write);
}

static void load_split(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, void *to,
                       unsigned size, enum soft_tlb_kind kind)
{
    unsigned head = first_part(linear, size);
    struct place low = resolve(v, insn, linear, false, kind);
    if (head == size) {
        place_load(v, &low, to, size);
        return;
    }
    struct place high = resolve(v, insn, second_page(v, linear), false, kind);
    place_load(v, &low, to, head);
    place_load(v, &high, (uint8_t *)to + head, size - head);
}

static void store_split(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                        const void *from, unsigned size, enum soft_tlb_kind kind)
{
    unsigned head = first_part(linear, size);
    struct place low = resolve(v, insn, linear, true, kind);
    if (head == size) {
        place_store(v, insn, &low, from, size);
        return;
    }
    struct place high = resolve(v, insn, second_page(v, linear), true, kind);
    place_store(v, insn, &low, from, head);
    place_store(v, insn, &high, (const uint8_t *)from + head, size - head);
}

static uint64_t load_number(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                            unsigned size, enum soft_tlb_kind kind)
{
    uint64_t value = 0;
    if (first_part(linear, size) == size) {
        struct place place = resolve(v, insn, linear, false, kind);
        if (likely(place.host != NULL))
            return host_load(place.host, size);
        place_load(v, &place, &value, size);
    } else {
        load_split(v, insn, linear, &value, size, kind);
    }
    return value;
}

static void store_number(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                         unsigned size, uint64_t value, enum soft_tlb_kind kind)
{
    if (first_part(linear, size) == size) {
        struct place place = resolve(v, insn, linear, true, kind);
        if (likely(place.host != NULL)) {
            host_store(place.host, size, value);
            place_stored(v, insn, &place, size);
        } else {
            place_store(v, insn, &place, &value, size);
        }
    } else {
        store_split(v, insn, linear, &value, size, kind);
    }
}

uint64_t soft_load_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                        unsigned size, unsigned seg)
{
    check_address(v, insn, linear, size, seg);
    uint64_t value = load_number(v, insn, linear, size, current_kind(v));
    check_watched(v, linear, size, false);
    return value;
}

void soft_store_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                     unsigned seg, uint64_t value)
{
    check_address(v, insn, linear, size, seg);
    store_number(v, insn, linear, size, value, current_kind(v));
    check_watched(v, linear, size, true);
}

void soft_load_bytes(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, void *to,
                     unsigned size, unsigned seg)
{
    check_address(v, insn, linear, size, seg);
    load_split(v, insn, linear, to, size, current_kind(v));
    check_watched(v, linear, size, false);
}

void soft_store_bytes(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                      const void *from, unsigned size, unsigned seg)
{
    check_address(v, insn, linear, size, seg);
    store_split(v, insn, linear, from, size, current_kind(v));
    check_watched(v, linear, size, true);
}

void soft_probe_write(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                      unsigned seg)
{
    check_address(v, insn, linear, size, seg);
    resolve(v, insn, linear, true, current_kind(v));
    if (first_part(linear, size) != size)
        resolve(v, insn, second_page(v, linear), true, current_kind(v));
}

void soft_probe_read(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned seg)
{
    check_address(v, insn, linear, 1, seg);
    resolve(v, insn, linear, false, current_kind(v));
}

void *soft_rmw_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                    unsigned seg)
{
    check_address(v, insn, linear, size, seg);
    struct place place = resolve(v, insn, linear, true, current_kind(v));
    if (first_part(linear, size) != size) {
        resolve(v, insn, second_page(v, linear), true, current_kind(v));
        return NULL;
    }
    if (!place.host ||
        (place.mark && __atomic_load_n(place.mark, __ATOMIC_RELAXED) & MEM_PAGE_CODE))
        return NULL;
    check_watched(v, linear, size, true);
    return place.host;
}

/* ---- the system's own accesses ---- */

static uint64_t system_address(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                               unsigned size)
{
    if (!(v->efer & EFER_LMA))
        return (uint32_t)linear;
    if (!canonical(linear) || !canonical(linear + size - 1))
        soft_raise_error(v, insn, VECTOR_GP, v->system.external);
    return linear;
}

uint64_t soft_system_load(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                          unsigned size)
{
    return load_number(v, insn, system_address(v, insn, linear, size), size, TLB_SUPERVISOR);
}

void soft_system_store(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                       uint64_t value)
{
    store_number(v, insn, system_address(v, insn, linear, size), size, value, TLB_SUPERVISOR);
}

void soft_system_probe_write(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                             unsigned size)
{
    linear = system_address(v, insn, linear, size);
    resolve(v, insn, linear, true, TLB_SUPERVISOR);
    if (first_part(linear, size) != size)
        resolve(v, insn, second_page(v, linear), true, TLB_SUPERVISOR);
}

void soft_system_or8(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, uint8_t bits)
{
    linear = system_address(v, insn, linear, 1);
    struct place place = resolve(v, insn, linear, true, TLB_SUPERVISOR);
    if (place.host) {
        __atomic_fetch_or(place.host, bits, __ATOMIC_SEQ_CST);
        place_stored(v, insn, &place, 1);
        return;
    }
    uint8_t value;
    place_load(v, &place, &value, 1);
    value |= bits;
    place_store(v, insn, &place, &value, 1);
}

/* ---- instruction fetch ---- */

bool jit_page_is_global(struct soft_vcpu *v, uint64_t linear)
{
    const struct soft_system *s = &v->system;
    unsigned slot = (unsigned)(linear >> MEM_PAGE_SHIFT) % SOFT_FETCH_SIZE;
    return (s->fetch[slot].tag & ~UINT64_C(1)) == (linear & ~(uint64_t)SOFT_PAGE_MASK) &&
           s->fetch_global[slot / 64] >> slot % 64 & 1;
}

uint64_t soft_fetch_translate(struct soft_vcpu *v, uint64_t linear, const uint8_t **ret_host)
{
    struct soft_system *s = &v->system;
    if (v->mode & MODE_64 && unlikely(!canonical(linear)))
        soft_raise_error(v, NULL, VECTOR_GP, 0);
    if (unlikely(!s->tables_ready))
        tables_prepare(v);
    enum soft_tlb_kind kind = vcpu_cpl(v) == 3 ? TLB_USER : TLB_SUPERVISOR;
    uint64_t page_start = linear & ~(uint64_t)SOFT_PAGE_MASK;
    uint64_t offset = linear & SOFT_PAGE_MASK;
    uint64_t tag = page_start | (kind == TLB_USER);
    unsigned slot = (unsigned)(linear >> MEM_PAGE_SHIFT) % SOFT_FETCH_SIZE;
    struct soft_fetch_entry *entry = &s->fetch[slot];
    if (unlikely(entry->tag != tag)) {
        struct mmu_page page;
        uint32_t error;
        if (!mmu_walk(v, linear, MMU_FETCH, kind, &page, &error))
            soft_raise_payload(v, NULL, VECTOR_PF, error, linear);
        uint64_t gpa = page.gpa & ~(uint64_t)SOFT_PAGE_MASK;
        const struct mem_region *region = mem_find(v->vm->mem, gpa);
        *entry = (struct soft_fetch_entry){
            .tag = tag, .gpa = gpa, .host = region ? region->host + (gpa - region->start) : NULL};
        uint64_t bit = UINT64_C(1) << slot % 64;
        s->fetch_used[slot / 64] |= bit;
        if (page.global && v->cr4 & CR4_PGE)
            s->fetch_global[slot / 64] |= bit;
        else
            s->fetch_global[slot / 64] &= ~bit;
        remember_large(v, linear, &page);
    }
    *ret_host = entry->host ? entry->host + offset : NULL;
    return entry->gpa + offset;
}
