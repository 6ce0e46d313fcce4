/*
 * Stopping the world for a moment.
 *
 * `exclusive_running` counts vCPU threads between enter and leave. Who wants to be alone leaves,
 * becomes the owner, asks the others through ATTENTION_EXCLUSIVE and waits until the count is 0;
 * entering waits for the owner. Two that want it at once go one after the other, and whoever waits
 * is not counted, so they cannot wait for each other. The owner's own leave and enter (a device
 * access inside the section) do nothing.
 */
#include "cpu/soft/block.h"

static void wait_for_owner(struct soft_vm *vm)
{
    while (vm->exclusive_owner)
        pthread_cond_wait(&vm->exclusive_changed, &vm->exclusive_lock);
}

static void count_in(struct soft_vcpu *v)
{
    assert(!v->running);
    v->running = true;
    v->vm->exclusive_running++;
}

static void count_out(struct soft_vcpu *v)
{
    assert(v->running);
    v->running = false;
    v->vm->exclusive_running--;
}

/* With the lock held. */
static void own(struct soft_vm *vm, struct soft_vcpu *owner)
{
    wait_for_owner(vm);
    vm->exclusive_owner = owner;
    for (unsigned i = 0; i < vm->config.vcpus; i++) {
        struct soft_vcpu *other = __atomic_load_n(&vm->vcpus[i], __ATOMIC_ACQUIRE);
        if (other && other->running)
            atomic_fetch_or(&other->attention, ATTENTION_EXCLUSIVE);
    }
    while (vm->exclusive_running > 0)
        pthread_cond_wait(&vm->exclusive_changed, &vm->exclusive_lock);
}

static void disown(struct soft_vm *vm)
{
    vm->exclusive_owner = NULL;
    pthread_cond_broadcast(&vm->exclusive_changed);
}

void exclusive_enter(struct soft_vcpu *v)
{
    struct soft_vm *vm = v->vm;
    pthread_mutex_lock(&vm->exclusive_lock);
    if (vm->exclusive_owner != v) {
        wait_for_owner(vm);
        count_in(v);
    }
    pthread_mutex_unlock(&vm->exclusive_lock);
}

void exclusive_leave(struct soft_vcpu *v)
{
    struct soft_vm *vm = v->vm;
    pthread_mutex_lock(&vm->exclusive_lock);
    if (vm->exclusive_owner != v) {
        count_out(v);
        atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_EXCLUSIVE);
        if (vm->exclusive_owner)
            pthread_cond_broadcast(&vm->exclusive_changed);
    }
    pthread_mutex_unlock(&vm->exclusive_lock);
}

void exclusive_begin(struct soft_vcpu *v)
{
    struct soft_vm *vm = v->vm;
    pthread_mutex_lock(&vm->exclusive_lock);
    assert(vm->exclusive_owner != v);
    count_out(v);
    if (vm->exclusive_owner)
        pthread_cond_broadcast(&vm->exclusive_changed);
    own(vm, v);
    pthread_mutex_unlock(&vm->exclusive_lock);
}

void exclusive_end(struct soft_vcpu *v)
{
    struct soft_vm *vm = v->vm;
    pthread_mutex_lock(&vm->exclusive_lock);
    assert(vm->exclusive_owner == v);
    disown(vm);
    atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_EXCLUSIVE);
    count_in(v);
    pthread_mutex_unlock(&vm->exclusive_lock);
}

/* A thread that is no vCPU owns the section under a name that no vCPU has. */
static struct soft_vcpu *outsider(struct soft_vm *vm)
{
    return (struct soft_vcpu *)vm;
}

void exclusive_begin_outside(struct soft_vm *vm)
{
    pthread_mutex_lock(&vm->exclusive_lock);
    own(vm, outsider(vm));
    pthread_mutex_unlock(&vm->exclusive_lock);
}

void exclusive_end_outside(struct soft_vm *vm)
{
    pthread_mutex_lock(&vm->exclusive_lock);
    assert(vm->exclusive_owner == outsider(vm));
    disown(vm);
    pthread_mutex_unlock(&vm->exclusive_lock);
}
