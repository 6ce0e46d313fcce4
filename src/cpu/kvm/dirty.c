/* Memory slots, one a region, and their dirty log. */
#include "cpu/kvm/kvm.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

int kvm_slots_set(struct engine_vm *vm, bool logging, struct err *err)
{
    for (unsigned i = 0; i < vm->mem->count; i++) {
        const struct mem_region *region = &vm->mem->regions[i];
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .guest_phys_addr = region->start,
            .memory_size = region->size,
            .userspace_addr = (uintptr_t)region->host,
        };
        if (region->read_only)
            slot.flags |= KVM_MEM_READONLY; /* nobody writes: nothing to log */
        else if (logging)
            slot.flags |= KVM_MEM_LOG_DIRTY_PAGES;
        int r = kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot);
        if (r < 0)
            return err_errno(err, -r,
                             "KVM_SET_USER_MEMORY_REGION at 0x%" PRIx64 " of %" PRIu64 " KiB",
                             region->start, region->size >> 10);
    }
    return 0;
}

static void fold(const struct mem_region *region, const uint64_t *bitmap)
{
    uint64_t pages = region->size >> MEM_PAGE_SHIFT;
    for (uint64_t first = 0; first < pages; first += 64) {
        uint64_t word = bitmap[first / 64];
        while (word) {
            uint64_t page = first + (uint64_t)__builtin_ctzll(word);
            word &= word - 1;
            if (page < pages)
                __atomic_fetch_or(&region->marks[page], MEM_PAGE_DIRTY, __ATOMIC_RELAXED);
        }
    }
}

/* Takes KVM's bitmaps, which are empty then, and sets the marks by them, or does not. */
static int read_log(struct engine_vm *vm, bool folds, struct err *err)
{
    for (unsigned i = 0; i < vm->mem->count; i++) {
        const struct mem_region *region = &vm->mem->regions[i];
        if (region->read_only)
            continue;
        uint64_t pages = region->size >> MEM_PAGE_SHIFT;
        _cleanup_free_ uint64_t *bitmap = calloc((pages + 63) / 64, sizeof *bitmap);
        if (!bitmap)
            return err_set(err, -ENOMEM, "no memory for a dirty log");
        struct kvm_dirty_log log = {.slot = i, .dirty_bitmap = bitmap};
        int r = kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
        if (r < 0)
            return err_errno(err, -r, "KVM_GET_DIRTY_LOG at 0x%" PRIx64, region->start);
        if (folds)
            fold(region, bitmap);
    }
    return 0;
}

int kvm_dirty_start(struct engine_vm *vm, struct err *err)
{
    pthread_mutex_lock(&vm->lock);
    vm->mem->dirty_log = true; /* the devices' writes, which KVM does not see */
    /* Of a log that runs already, what is in it was before this start. */
    int r = vm->logging ? read_log(vm, false, err) : kvm_slots_set(vm, true, err);
    vm->logging = r >= 0;
    if (r < 0) {
        vm->mem->dirty_log = false;
        kvm_slots_set(vm, false, NULL);
    }
    pthread_mutex_unlock(&vm->lock);
    return r;
}

int kvm_dirty_sync(struct engine_vm *vm, struct err *err)
{
    pthread_mutex_lock(&vm->lock);
    int r = vm->logging ? read_log(vm, true, err) : err_set(err, -EINVAL, "the dirty log is off");
    pthread_mutex_unlock(&vm->lock);
    return r;
}

int kvm_dirty_stop(struct engine_vm *vm, struct err *err)
{
    pthread_mutex_lock(&vm->lock);
    vm->logging = false;
    vm->mem->dirty_log = false;
    int r = kvm_slots_set(vm, false, err);
    pthread_mutex_unlock(&vm->lock);
    return r;
}
