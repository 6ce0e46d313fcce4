/* The software engine as engine.h wants it: VMs and vCPUs are made, signalled and freed here. */
#include "cpu/engine.h"

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
#include <x86intrin.h>

static struct soft_vm *vm_of(struct engine_vm *vm)
{
    return (struct soft_vm *)vm;
}

static struct soft_vcpu *vcpu_of(struct engine_vcpu *vcpu)
{
    return (struct soft_vcpu *)vcpu;
}

/* ---- VM ---- */

static void soft_vm_free(struct engine_vm *handle)
{
    struct soft_vm *vm = vm_of(handle);
    if (!vm)
        return;
    block_vm_fini(vm);
    populate_vm_fini(vm);
    pthread_cond_destroy(&vm->exclusive_changed);
    pthread_mutex_destroy(&vm->exclusive_lock);
    free(vm);
}

static int soft_vm_new(const struct engine_config *config, struct engine_vm **ret_vm,
                       struct err *err)
{
    if (config->vcpus < 1 || config->vcpus > ENGINE_VCPUS_MAX)
        return err_set(err, -EINVAL, "%u CPUs; the software engine has 1 to %d", config->vcpus,
                       ENGINE_VCPUS_MAX);
    if (config->irqchip == ENGINE_IRQCHIP_ENGINE)
        return err_set(err, -ENOTSUP, "the software engine has no interrupt controllers");
    if (config->irqchip == ENGINE_IRQCHIP_BOARD && !config->apic)
        return err_set(err, -EINVAL, "the board's interrupt controllers are missing");
    struct soft_vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return err_set(err, -ENOMEM, "no memory for a virtual machine");
    vm->config = *config;
    vm->mem = config->mem;
    if (config->io)
        vm->io = *config->io;
    if (config->apic) {
        vm->apic = *config->apic;
        vm->has_apic = true;
    }
    vm->tsc_khz = config->tsc_khz ? config->tsc_khz : cpuid_host_tsc_khz();
    vm->tsc_start = __rdtsc();
    if (config->cpuid)
        vm->cpuid = *config->cpuid;
    else if (config->portable)
        cpuid_portable(&vm->cpuid, CPUID_SOFT, NULL, config->vcpus, vm->tsc_khz);
    else
        cpuid_model(&vm->cpuid, CPUID_SOFT, NULL, config->vcpus, vm->tsc_khz);
    cpuid_limit_physical(&vm->cpuid, config->physical_bits);
    pthread_mutex_init(&vm->exclusive_lock, NULL);
    pthread_cond_init(&vm->exclusive_changed, NULL);
    int r = block_vm_init(vm, err);
    if (r == 0)
        r = populate_vm_init(vm, err);
    if (r < 0) {
        soft_vm_free((struct engine_vm *)vm);
        return r;
    }
    *ret_vm = (struct engine_vm *)vm;
    return 0;
}

/* ---- vCPU ---- */

static void soft_vcpu_free(struct engine_vcpu *handle)
{
    struct soft_vcpu *v = vcpu_of(handle);
    if (!v)
        return;
    if (v->vm->vcpus[v->index] == v)
        __atomic_store_n(&v->vm->vcpus[v->index], NULL, __ATOMIC_RELEASE);
    block_cache_free(v);
    jit_free(v);
    native_free(v);
    pthread_cond_destroy(&v->sleep_wake);
    pthread_mutex_destroy(&v->sleep_lock);
#ifdef __SANITIZE_ADDRESS__
    __lsan_unregister_root_region(v, align_up(sizeof *v, MEM_PAGE_SIZE));
#endif
    munmap(v, align_up(sizeof *v, MEM_PAGE_SIZE));
}

/* Below 2 GiB, where translated code can name its fields; anywhere, if there is no room. */
static struct soft_vcpu *vcpu_alloc(void)
{
    size_t size = align_up(sizeof(struct soft_vcpu), MEM_PAGE_SIZE);
    void *at =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (at == MAP_FAILED)
        at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
#ifdef __SANITIZE_ADDRESS__
    __lsan_register_root_region(at, size); /* what it points to is no leak */
#endif
    return at;
}

static int vcpu_prepare(struct soft_vcpu *v, struct err *err)
{
    cpuid_for_vcpu(&v->vm->cpuid, v->index, v->vm->config.vcpus, 0, 1, &v->cpuid);
    int r = native_new(v, err);
    if (r < 0)
        return r;
    r = jit_new(v, err);
    if (r < 0)
        return r;
    r = block_cache_new(v, err);
    if (r < 0)
        return r;
    struct cpu_state *state = calloc(1, sizeof *state);
    if (!state)
        return err_set(err, -ENOMEM, "no memory for a virtual CPU");
    cpu_state_reset(state, v->index);
    r = soft_set_state(v, state, err);
    free(state);
    return r;
}

static int soft_vcpu_new(struct engine_vm *handle, unsigned index, struct engine_vcpu **ret_vcpu,
                         struct err *err)
{
    struct soft_vm *vm = vm_of(handle);
    if (index >= vm->config.vcpus || vm->vcpus[index])
        return err_set(err, -EINVAL, "CPU %u does not exist or is there already", index);
    struct soft_vcpu *v = vcpu_alloc();
    if (!v)
        return err_set(err, -ENOMEM, "no memory for virtual CPU %u", index);
    v->vm = vm;
    v->index = index;
    v->stop_at = UINT64_MAX;
    pthread_mutex_init(&v->sleep_lock, NULL);
    pthread_cond_init(&v->sleep_wake, NULL);
    int r = vcpu_prepare(v, err);
    if (r < 0) {
        soft_vcpu_free((struct engine_vcpu *)v);
        return err_prefix(err, r, "CPU %u", index);
    }
    __atomic_store_n(&vm->vcpus[index], v, __ATOMIC_RELEASE);
    *ret_vcpu = (struct engine_vcpu *)v;
    return 0;
}

static int soft_vcpu_get_state(struct engine_vcpu *vcpu, struct cpu_state *ret_state,
                               struct err *err)
{
    soft_get_state(vcpu_of(vcpu), ret_state);
    return 0;
}

static int soft_vcpu_set_state(struct engine_vcpu *vcpu, const struct cpu_state *state,
                               struct err *err)
{
    return soft_set_state(vcpu_of(vcpu), state, err);
}

static int soft_vcpu_run(struct engine_vcpu *vcpu, struct engine_exit *ret_exit, struct err *err)
{
    return soft_run(vcpu_of(vcpu), ret_exit);
}

/* ---- from other threads ---- */

static void soft_vcpu_kick(struct engine_vcpu *vcpu)
{
    soft_attend(vcpu_of(vcpu), ATTENTION_KICK);
}

static void soft_vcpu_notify(struct engine_vcpu *vcpu)
{
    soft_attend(vcpu_of(vcpu), ATTENTION_INTERRUPT);
}

static void soft_vcpu_signal(struct engine_vcpu *vcpu, enum engine_signal signal, uint8_t vector)
{
    struct soft_vcpu *v = vcpu_of(vcpu);
    uint32_t before = atomic_load(&v->signals), after;
    do {
        after = before | 1u << signal;
        if (signal == ENGINE_SIGNAL_SIPI)
            after = (after & 0xff) | (uint32_t)vector << 8;
    } while (!atomic_compare_exchange_weak(&v->signals, &before, after));
    soft_attend(v, ATTENTION_SIGNAL);
}
_Static_assert(ENGINE_SIGNAL_NMI == 0 && ENGINE_SIGNAL_INIT == 1 && ENGINE_SIGNAL_SIPI == 2,
               "bits of soft_vcpu.signals");

static const struct cpuid *soft_vm_cpuid(struct engine_vm *vm)
{
    return &vm_of(vm)->cpuid;
}

static int soft_cpuid_able(const struct engine_config *config, struct cpuid *ret_cpuid,
                           struct err *err)
{
    cpuid_able(ret_cpuid, CPUID_SOFT, NULL, config->vcpus,
               config->tsc_khz ? config->tsc_khz : cpuid_host_tsc_khz());
    return 0;
}

static uint64_t soft_kvmclock(struct engine_vm *vm)
{
    return kvmclock_now(vm_of(vm));
}

static void soft_kvmclock_set(struct engine_vm *vm, uint64_t ns)
{
    kvmclock_set(vm_of(vm), ns);
}

/* Translated code counts only where it is asked to: that costs a loop dear. */
static uint64_t soft_vcpu_instructions(struct engine_vcpu *vcpu)
{
    const struct soft_vcpu *v = vcpu_of(vcpu);
    if (v->jit && v->vm->config.translate == ENGINE_TRANSLATE_HOT && !v->vm->config.count)
        return 0;
    return __atomic_load_n(&vcpu_of(vcpu)->instructions, __ATOMIC_RELAXED);
}

static void soft_vcpu_stop_at(struct engine_vcpu *vcpu, uint64_t instructions, bool attempt)
{
    vcpu_of(vcpu)->stop_at = instructions;
    vcpu_of(vcpu)->stop_attempt = attempt;
}

/* ---- dirty log ---- */

/* Without write tags every first store to a page comes by the slow path, which marks it. A page
 * that was written since its mark was cleared has its mark or had it when the tags went: so take
 * the marks, call dirty_sync(), then copy the pages. */
static void forget_write_tags(struct soft_vm *vm)
{
    exclusive_begin_outside(vm);
    for (unsigned i = 0; i < vm->config.vcpus; i++) {
        struct soft_vcpu *v = vm->vcpus[i];
        for (unsigned kind = 0; v && kind < TLB_MAX; kind++)
            for (unsigned slot = 0; slot < SOFT_TLB_SIZE; slot++)
                v->tlbs[kind][slot].write = TLB_NONE;
    }
    exclusive_end_outside(vm);
}

static int soft_dirty_start(struct engine_vm *vm, struct err *err)
{
    vm_of(vm)->mem->dirty_log = true;
    forget_write_tags(vm_of(vm));
    return 0;
}

static int soft_dirty_sync(struct engine_vm *vm, struct err *err)
{
    forget_write_tags(vm_of(vm));
    return 0;
}

static int soft_dirty_stop(struct engine_vm *vm, struct err *err)
{
    vm_of(vm)->mem->dirty_log = false;
    return 0;
}

const struct engine_ops engine_soft = {
    .name = "soft",
    .irqchip = ENGINE_IRQCHIP_BOARD,
    .vm_new = soft_vm_new,
    .vm_free = soft_vm_free,
    .vm_cpuid = soft_vm_cpuid,
    .vcpu_new = soft_vcpu_new,
    .vcpu_free = soft_vcpu_free,
    .vcpu_get_state = soft_vcpu_get_state,
    .vcpu_set_state = soft_vcpu_set_state,
    .vcpu_run = soft_vcpu_run,
    .vcpu_kick = soft_vcpu_kick,
    .vcpu_notify = soft_vcpu_notify,
    .vcpu_signal = soft_vcpu_signal,
    .cpuid_able = soft_cpuid_able,
    .kvmclock = soft_kvmclock,
    .kvmclock_set = soft_kvmclock_set,
    .dirty_start = soft_dirty_start,
    .dirty_sync = soft_dirty_sync,
    .dirty_stop = soft_dirty_stop,
    .vcpu_instructions = soft_vcpu_instructions,
    .vcpu_stop_at = soft_vcpu_stop_at,
};
