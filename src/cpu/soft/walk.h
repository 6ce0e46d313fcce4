/*
 * walk.h: page tables, SDM vol. 3, chapter 4; APM vol. 2, chapter 5.
 *
 * A walk reads the guest's tables from memory, decides whether an access is permitted and sets the
 * accessed and dirty bits with a compare-exchange, as other vCPUs may change an entry at the same
 * time. It knows no TLB and raises nothing: mmu.c does both. Nothing is set when the access is
 * refused. The vCPU's own thread, between exclusive_enter() and _leave().
 */
#pragma once

#include "cpu/soft/system.h"

enum page_fault { /* error code of #PF */
                  PF_PRESENT = 1 << 0,
                  PF_WRITE = 1 << 1,
                  PF_USER = 1 << 2,
                  PF_RESERVED = 1 << 3,
                  PF_FETCH = 1 << 4,
};

/* True: *ret_page holds the translation. False: *ret_error holds the error code for #PF. `kind`
 * gives the privilege: user, supervisor, or supervisor with SMAP suspended. */
bool mmu_walk(struct soft_vcpu *v, uint64_t linear, enum mmu_access access, enum soft_tlb_kind kind,
              struct mmu_page *ret_page, uint32_t *ret_error);

/* May `page` be used so? Pure: the permission half of the walk. */
bool mmu_permitted(const struct soft_vcpu *v, const struct mmu_page *page, enum mmu_access access,
                   enum soft_tlb_kind kind);
