#include "cpu/soft/populate.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif

enum { STRETCH_SHIFT = 16, STRETCH = 1 << STRETCH_SHIFT };

static uint64_t stretches(const struct mem_region *region)
{
    return align_up(region->size, STRETCH) >> STRETCH_SHIFT;
}

void populate_own(void *start, size_t size, bool writing)
{
    madvise(start, size, writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
}

/* What went back whole to the host is as untouched as ever; a stretch that did in part is not: the
 * rest of it would bring all of it back. */
static void discarded(void *opaque, uint64_t gpa, uint64_t size)
{
    struct soft_vm *vm = opaque;
    const struct mem_region *region = mem_find(vm->mem, gpa);
    unsigned index = (unsigned)(region - vm->mem->regions);
    uint64_t end = (gpa - region->start + size) >> STRETCH_SHIFT;
    for (uint64_t i = align_up(gpa - region->start, STRETCH) >> STRETCH_SHIFT; i < end; i++) {
        uint64_t bit = UINT64_C(1) << i % 64;
        if (__atomic_fetch_and(&vm->populated[index][i / 64], ~bit, __ATOMIC_RELAXED) & bit)
            __atomic_sub_fetch(&vm->populated_count[index], 1, __ATOMIC_RELAXED);
    }
}

int populate_vm_init(struct soft_vm *vm, struct err *err)
{
    for (unsigned i = 0; i < vm->mem->count; i++) {
        const struct mem_region *region = &vm->mem->regions[i];
        vm->populated[i] = calloc(stretches(region) / 64 + 1, sizeof *vm->populated[i]);
        if (!vm->populated[i])
            return err_set(err, -ENOMEM, "no memory to note what the guest has touched");
        mem_offer_huge(vm->mem, i, false);
    }
    mem_observe_discard(vm->mem, discarded, vm);
    return 0;
}

void populate_vm_fini(struct soft_vm *vm)
{
    mem_observe_discard(vm->mem, NULL, NULL);
    for (unsigned i = 0; i < MEM_REGIONS_MAX; i++)
        free(vm->populated[i]);
}

void populate(struct soft_vm *vm, unsigned index, uint64_t offset, bool writing)
{
    const struct mem_region *region = &vm->mem->regions[index];
    uint64_t stretch = offset >> STRETCH_SHIFT;
    uint64_t bit = UINT64_C(1) << stretch % 64;
    uint64_t *word = &vm->populated[index][stretch / 64];
    if (__atomic_load_n(word, __ATOMIC_RELAXED) & bit)
        return;
    uint64_t start = stretch << STRETCH_SHIFT;
    uint64_t size = min((uint64_t)STRETCH, region->size - start);
    /* Of a snapshot's page the guest's own copy is made when it writes to that one, not to a
     * neighbour: most of them it never does. */
    if (mem_holds_file(region, start, size))
        return;
    if (__atomic_fetch_or(word, bit, __ATOMIC_RELAXED) & bit)
        return;
    madvise(region->host + start, size, MADV_POPULATE_WRITE);
    if (__atomic_add_fetch(&vm->populated_count[index], 1, __ATOMIC_RELAXED) ==
        stretches(region) / 4 + 1)
        mem_offer_huge(vm->mem, index, true);
}
