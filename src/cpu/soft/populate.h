/*
 * populate.h: host memory under the guest's, a little ahead of its first writes.
 *
 * A host page fault in the middle of guest code costs as much as a hundred TLB misses, and a guest
 * that starts touches thousands of new pages. The first access to a stretch of 64 KiB therefore
 * gets all of it at once (MADV_POPULATE_WRITE, Linux 5.14; older hosts fault page by page). Where
 * a file's pages are among them, the first write: they are shared while nobody writes. Huge pages
 * come later, when a quarter of a region is in use: from the start they would cost small guests a
 * multiple of what they need.
 *
 * Threads: any vCPU's. Errors: none; it is advice.
 */
#pragma once

#include "cpu/soft/vcpu.h"

/* Pages of our own that are about to be used, `start` page aligned. */
void populate_own(void *start, size_t size, bool writing);

int populate_vm_init(struct soft_vm *vm, struct err *err);
void populate_vm_fini(struct soft_vm *vm);
/* The guest is about to touch `offset` of region `index` for the first time in a while. */
void populate(struct soft_vm *vm, unsigned index, uint64_t offset, bool writing);
