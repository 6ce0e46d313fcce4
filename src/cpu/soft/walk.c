#include "cpu/soft/walk.h"

enum {
    PTE_P = 1 << 0,
    PTE_W = 1 << 1,
    PTE_U = 1 << 2,
    PTE_A = 1 << 5,
    PTE_D = 1 << 6,
    PTE_PS = 1 << 7,
    PTE_G = 1 << 8,
    WALK_LEVELS = 4,
    WALK_TRIES = 1000,
};
#define PTE_NX      (UINT64_C(1) << 63)
#define PTE_ADDRESS UINT64_C(0x000ffffffffff000)

/* Bits low..high, both included. */
#define BITS(high, low) ((UINT64_C(2) << (high)) - (UINT64_C(1) << (low)))

struct entry {
    uint64_t gpa;
    void *host; /* NULL: cannot be changed (read-only memory) */
    uint64_t value;
};

struct walk {
    bool pae, long_mode;
    unsigned count;
    struct entry entries[WALK_LEVELS];
};

enum walk_end { WALK_FOUND, WALK_ABSENT, WALK_RESERVED };

static uint64_t read_entry(struct soft_vcpu *v, const struct walk *walk, struct entry *entry)
{
    unsigned size = walk->pae ? 8 : 4;
    const struct mem_region *region = mem_find(v->vm->mem, entry->gpa);
    entry->host = NULL;
    if (!region)
        return UINT64_MAX; /* nobody answers: all ones, so reserved bits are set */
    void *host = region->host + (entry->gpa - region->start);
    if (!region->read_only)
        entry->host = host;
    return size == 8 ? __atomic_load_n((uint64_t *)host, __ATOMIC_RELAXED)
                     : __atomic_load_n((uint32_t *)host, __ATOMIC_RELAXED);
}

/* Bits that must be zero in an entry that is present. SDM vol. 3, tables 4-4 to 4-20. */
static uint64_t reserved_bits(const struct soft_vcpu *v, const struct walk *walk, unsigned level,
                              bool leaf)
{
    if (!walk->pae) {
        if (level == 1 || !leaf)
            return 0;
        unsigned width = 64 - (unsigned)__builtin_clzll(v->system.physical_mask | 1);
        return BITS(21, 21) | (width < 40 ? BITS(20, width - 19) : 0); /* PSE-36 */
    }
    uint64_t reserved = BITS(51, 12) & ~v->system.physical_mask;
    if (!walk->long_mode)
        reserved |= BITS(62, 52);
    if (!(v->efer & EFER_NXE))
        reserved |= PTE_NX;
    if (level == 4)
        return reserved | PTE_PS;
    if (level == 3 && !v->system.has_1g_pages)
        return reserved | PTE_PS;
    if (leaf && level == 3)
        return reserved | BITS(29, 13);
    if (leaf && level == 2)
        return reserved | BITS(20, 13);
    return reserved;
}

static void found(struct mmu_page *page, const struct walk *walk, uint64_t linear, uint64_t value,
                  unsigned shift)
{
    uint64_t size = UINT64_C(1) << shift;
    uint64_t start = value & PTE_ADDRESS & ~(size - 1);
    if (!walk->pae) {
        start &= UINT32_MAX;
        if (shift == 22)
            start |= (value & BITS(20, 13)) << 19; /* PSE-36: address bits 39..32 */
    }
    page->gpa = start | (linear & (size - 1));
    page->page_size = size;
    page->dirty = value & PTE_D;
    page->global = value & PTE_G;
}

static enum walk_end read_tables(struct soft_vcpu *v, uint64_t linear, struct walk *walk,
                                 struct mmu_page *page)
{
    walk->long_mode = v->efer & EFER_LMA;
    walk->pae = walk->long_mode || v->cr4 & CR4_PAE;
    walk->count = 0;
    page->user = page->write = page->execute = true;
    unsigned level = walk->long_mode ? 4 : 2;
    unsigned bits = walk->pae ? 9 : 10;
    uint64_t table = v->cr3 & (walk->long_mode ? PTE_ADDRESS : UINT64_C(0xfffff000));
    if (walk->pae && !walk->long_mode) {
        uint64_t pointer = v->system.pdpte[linear >> 30 & 3];
        if (!(pointer & PTE_P))
            return WALK_ABSENT;
        table = pointer & PTE_ADDRESS;
    }
    for (;; level--) {
        unsigned shift = 12 + (level - 1) * bits;
        struct entry *entry = &walk->entries[walk->count++];
        entry->gpa = table + (linear >> shift & ((1u << bits) - 1)) * (walk->pae ? 8 : 4);
        uint64_t value = entry->value = read_entry(v, walk, entry);
        if (!(value & PTE_P))
            return WALK_ABSENT;
        bool leaf = level == 1 || (level < 4 && value & PTE_PS && (walk->pae || v->cr4 & CR4_PSE));
        if (value & reserved_bits(v, walk, level, leaf))
            return WALK_RESERVED;
        page->user &= (value & PTE_U) != 0;
        page->write &= (value & PTE_W) != 0;
        page->execute &= !(walk->pae && value & PTE_NX);
        if (leaf) {
            found(page, walk, linear, value, shift);
            return WALK_FOUND;
        }
        table = value & (walk->pae ? PTE_ADDRESS : UINT64_C(0xfffff000));
    }
}

bool mmu_permitted(const struct soft_vcpu *v, const struct mmu_page *page, enum mmu_access access,
                   enum soft_tlb_kind kind)
{
    if (!(v->cr0 & CR0_PG))
        return true;
    if (access == MMU_FETCH && !page->execute)
        return false;
    if (kind == TLB_USER)
        return page->user && (access != MMU_WRITE || page->write);
    if (access == MMU_FETCH)
        return !(page->user && v->cr4 & CR4_SMEP);
    if (page->user && v->cr4 & CR4_SMAP && kind != TLB_SUPERVISOR_AC)
        return false;
    return access != MMU_WRITE || page->write || !(v->cr0 & CR0_WP);
}

/* False: an entry has changed since it was read. */
static bool mark_used(struct soft_vcpu *v, struct walk *walk, enum mmu_access access,
                      struct mmu_page *page)
{
    for (unsigned i = 0; i < walk->count; i++) {
        struct entry *entry = &walk->entries[i];
        bool leaf = i == walk->count - 1;
        uint64_t marked = entry->value | PTE_A | (leaf && access == MMU_WRITE ? PTE_D : 0);
        if (marked == entry->value || !entry->host)
            continue;
        bool same;
        if (walk->pae) {
            uint64_t expected = entry->value;
            same = __atomic_compare_exchange_n((uint64_t *)entry->host, &expected, marked, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
        } else {
            uint32_t expected = (uint32_t)entry->value;
            same = __atomic_compare_exchange_n((uint32_t *)entry->host, &expected, (uint32_t)marked,
                                               false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
        }
        if (!same)
            return false;
        mem_written(v->vm->mem, entry->gpa, walk->pae ? 8 : 4);
    }
    if (access == MMU_WRITE)
        page->dirty = true;
    return true;
}

bool mmu_walk(struct soft_vcpu *v, uint64_t linear, enum mmu_access access, enum soft_tlb_kind kind,
              struct mmu_page *ret_page, uint32_t *ret_error)
{
    struct mmu_page page = {0};
    if (!(v->cr0 & CR0_PG)) {
        *ret_page = (struct mmu_page){.gpa = linear,
                                      .page_size = MEM_PAGE_SIZE,
                                      .user = true,
                                      .write = true,
                                      .execute = true,
                                      .dirty = true};
        return true;
    }
    uint32_t error = (access == MMU_WRITE ? PF_WRITE : 0) | (kind == TLB_USER ? PF_USER : 0);
    if (access == MMU_FETCH && ((v->cr4 & CR4_PAE && v->efer & EFER_NXE) || v->cr4 & CR4_SMEP))
        error |= PF_FETCH;
    *ret_error = error;
    /* Another vCPU that changes the entry each time in between can only make itself and this one
     * slow: after so many tries this is a page fault, which the guest takes as spurious. */
    for (unsigned tries = 0; tries < WALK_TRIES; tries++) {
        struct walk walk;
        enum walk_end end = read_tables(v, linear, &walk, &page);
        if (end == WALK_ABSENT)
            return false;
        if (end == WALK_RESERVED) {
            *ret_error = error | PF_PRESENT | PF_RESERVED;
            return false;
        }
        if (!mmu_permitted(v, &page, access, kind)) {
            *ret_error = error | PF_PRESENT;
            return false;
        }
        if (mark_used(v, &walk, access, &page)) {
            *ret_page = page;
            return true;
        }
    }
    return false;
}

bool mmu_load_pdptes(struct soft_vcpu *v, uint64_t cr3)
{
    uint64_t reserved = BITS(63, 12) & ~v->system.physical_mask;
    uint64_t pdpte[4];
    for (unsigned i = 0; i < 4; i++) {
        uint8_t bytes[8];
        if (mem_read(v->vm->mem, (cr3 & UINT64_C(0xffffffe0)) + i * 8, bytes, sizeof bytes) < 0)
            return false;
        pdpte[i] = le64_read(bytes);
        if (pdpte[i] & PTE_P && pdpte[i] & (reserved | BITS(8, 5) | BITS(2, 1)))
            return false;
    }
    memcpy(v->system.pdpte, pdpte, sizeof pdpte);
    return true;
}

void mmu_configure(struct soft_vcpu *v)
{
    struct cpuid_leaf widths = cpuid_find(&v->cpuid, 0x80000008, 0);
    unsigned width = widths.leaf == 0x80000008 ? widths.eax & 0xff : 0;
    width = width < 32 ? 36 : min(width, 52u);
    v->system.physical_mask = (UINT64_C(1) << width) - 1;
    struct cpuid_leaf extended = cpuid_find(&v->cpuid, 0x80000001, 0);
    v->system.has_1g_pages = extended.leaf == 0x80000001 && extended.edx & 1u << 26;
}
