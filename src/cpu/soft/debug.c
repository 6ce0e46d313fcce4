/*
 * Hardware breakpoints: SDM vol. 3, 17.2 and 17.3.
 *
 * Instruction breakpoints are looked at before each instruction (event.c goes step by step while
 * any breakpoint is enabled). Pages with data breakpoints are kept out of the TLB, so each access
 * to them passes debug_data_access(), which remembers a trap for the end of the instruction.
 */
#include "cpu/soft/system.h"

enum { BREAKPOINTS = 4, RW_EXECUTE = 0, RW_WRITE = 1, RW_IO = 2, RW_ACCESS = 3 };

static unsigned length_of(const struct soft_vcpu *v, unsigned i)
{
    static const uint8_t length[4] = {1, 2, 8, 4};
    return length[v->dr7 >> (18 + i * 4) & 3];
}

static uint64_t first_byte(const struct soft_vcpu *v, unsigned i)
{
    return v->dr[i] & ~(uint64_t)(length_of(v, i) - 1);
}

void debug_update(struct soft_vcpu *v)
{
    struct soft_system *s = &v->system;
    bool watched = s->break_write | s->break_access;
    s->break_execute = s->break_write = s->break_access = s->break_io = 0;
    for (unsigned i = 0; i < BREAKPOINTS; i++) {
        if (!(v->dr7 >> i * 2 & 3))
            continue;
        uint8_t bit = (uint8_t)(1u << i);
        switch (v->dr7 >> (16 + i * 4) & 3) {
        case RW_EXECUTE: s->break_execute |= bit; break;
        case RW_WRITE: s->break_write |= bit; break;
        case RW_IO: s->break_io |= v->cr4 & CR4_DE ? bit : 0; break;
        case RW_ACCESS: s->break_access |= bit; break;
        }
    }
    if (watched || s->break_write || s->break_access)
        soft_tlb_flush(v, true);
    if (debug_armed(v))
        atomic_fetch_or(&v->attention, ATTENTION_STEP);
}

bool debug_watches_page(const struct soft_vcpu *v, uint64_t linear)
{
    unsigned watch = v->system.break_write | v->system.break_access;
    if (likely(!watch))
        return false;
    for (unsigned i = 0; i < BREAKPOINTS; i++)
        if (watch >> i & 1 && (v->dr[i] & ~(uint64_t)SOFT_PAGE_MASK) == linear)
            return true;
    return false;
}

void debug_data_access(struct soft_vcpu *v, uint64_t linear, unsigned size, bool write)
{
    unsigned watch = v->system.break_access | (write ? v->system.break_write : 0);
    for (unsigned i = 0; i < BREAKPOINTS; i++) {
        uint64_t start = first_byte(v, i);
        if (watch >> i & 1 && linear < start + length_of(v, i) && start < linear + size)
            v->system.debug_traps |= UINT64_C(1) << i;
    }
    if (v->system.debug_traps)
        atomic_fetch_or(&v->attention, ATTENTION_STEP);
}

void debug_io_access(struct soft_vcpu *v, uint16_t port, unsigned size)
{
    for (unsigned i = 0; i < BREAKPOINTS; i++) {
        uint64_t start = first_byte(v, i);
        if (v->system.break_io >> i & 1 && port < start + length_of(v, i) &&
            start < (uint64_t)port + size)
            v->system.debug_traps |= UINT64_C(1) << i;
    }
    if (v->system.debug_traps)
        atomic_fetch_or(&v->attention, ATTENTION_STEP);
}

uint64_t debug_execute(const struct soft_vcpu *v, uint64_t linear)
{
    uint64_t hits = 0;
    for (unsigned i = 0; i < BREAKPOINTS; i++)
        if (v->system.break_execute >> i & 1 && v->dr[i] == linear)
            hits |= UINT64_C(1) << i;
    return hits;
}
