#include "cpu/kvm/probe.h"

#include "base/bytes.h"
#include "base/own.h"
#include "cpu/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

/*
 * The guest: 64-bit, flat, ring 0, no interrupts; four pages of memory.
 *     page 0  code          page 1  PML4 -> page 2 PDPT -> page 3 directory -> one 2 MiB page
 * `loop` counts RCX down; with the first HLT it is entered once for nothing, to know what entering
 * and leaving cost.
 */
enum {
    CODE = 0x0,
    PML4 = 0x1000,
    PDPT = 0x2000,
    DIRECTORY = 0x3000,
    MEMORY = 0x4000,
    ENTRY_EMPTY = 0x0,
    ENTRY_LOOP = 0x10,
    ROUNDS = 64,
    PER_ROUND = 4,
    SAMPLES = 5,
    ATTEMPTS = 3,
    ATTEMPT_MS = 12,    /* of processor time; 4 of KVM_PROBE_MS are left for making the VM */
    PATIENCE_MS = 1000, /* of everybody's time, where others use the processor */
};

static const uint8_t guest_code[] = {
    [ENTRY_EMPTY] = 0xf4, /* hlt */
    [ENTRY_LOOP] = 0x48,
    0x01,
    0xd8, /* add rax, rbx */
    0x48,
    0x31,
    0xc3, /* xor rbx, rax */
    0xff,
    0xc9, /* dec ecx */
    0x75,
    0xf6, /* jnz -10 */
    0xf4, /* hlt */
};

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Guest time counts as the thread's own; what other processes take in between does not. */
static uint64_t spent_ns(void)
{
    return now_ns(CLOCK_THREAD_CPUTIME_ID);
}

static struct mem *guest_memory(struct err *err)
{
    struct mem *mem = mem_new();
    if (!mem || mem_add(mem, 0, MEMORY, false, err) < 0) {
        mem_free(mem);
        return NULL;
    }
    uint8_t *at = mem_at_load(mem, 0, MEMORY);
    memcpy(at + CODE, guest_code, sizeof guest_code);
    le64_write(at + PML4, PDPT | 3);
    le64_write(at + PDPT, DIRECTORY | 3);
    le64_write(at + DIRECTORY, 0x83); /* 2 MiB page at 0, writable */
    return mem;
}

static void guest_state(struct cpu_state *state, uint64_t entry)
{
    cpu_state_reset(state, 0);
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        state->segment[i] = (struct cpu_segment){
            .selector = 0x10, .limit = UINT32_MAX, .attributes = 0xc093}; /* flat data */
    state->segment[CPU_CS].selector = 8;
    state->segment[CPU_CS].attributes = 0xa09b; /* flat 64-bit code */
    state->cr3 = PML4;
    state->cr4 = 1 << 5;               /* PAE */
    state->efer = 1 << 8 | 1 << 10;    /* LME, LMA */
    state->cr0 = UINT64_C(0x80000011); /* PG, ET, PE */
    state->rip = entry;
    state->gpr[CPU_RCX] = ROUNDS;
}

/* Kicks the vCPU when the time is up, so that no KVM can keep us. */
struct watch {
    struct engine_vcpu *vcpu;
    clockid_t spent;      /* processor time of the thread that measures */
    atomic_ullong budget; /* kicked when `spent` is past this */
    sem_t done;
};

static void *watch_main(void *opaque)
{
    struct watch *watch = opaque;
    uint64_t start = now_ns(CLOCK_MONOTONIC);
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 2000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (sem_timedwait(&watch->done, &until) == 0)
            return NULL;
        if (now_ns(watch->spent) > watch->budget ||
            now_ns(CLOCK_MONOTONIC) - start > PATIENCE_MS * UINT64_C(1000000))
            engine_kvm.vcpu_kick(watch->vcpu);
    }
}

/* Nanoseconds of one run from `entry`. 1: it was cut short; 0: it reached HLT; -errno. */
static int run_once(struct engine_vcpu *vcpu, uint64_t entry, uint64_t *ret_ns, struct err *err)
{
    struct cpu_state state;
    struct engine_exit exit;
    guest_state(&state, entry);
    int r = engine_kvm.vcpu_set_state(vcpu, &state, err);
    if (r < 0)
        return r;
    uint64_t start = spent_ns();
    r = engine_kvm.vcpu_run(vcpu, &exit, err);
    *ret_ns = spent_ns() - start;
    if (r < 0)
        return r;
    if (exit.reason == ENGINE_EXIT_HALT || exit.reason == ENGINE_EXIT_KICK)
        return exit.reason == ENGINE_EXIT_KICK;
    return err_set(err, -EIO, "a test program ends with %s",
                   exit.reason == ENGINE_EXIT_SHUTDOWN ? "a shutdown" : exit.detail);
}

/* What was measured so far, in nanoseconds. Whatever else the machine does only ever adds to a
 * sample, so the least of several counts. */
struct samples {
    uint64_t empty, loop; /* the least; UINT64_MAX = none yet */
    uint64_t cut;         /* the longest loop that was cut short */
    unsigned count;       /* complete loops */
};

static uint64_t cost_of(const struct samples *samples)
{
    uint64_t empty = samples->empty == UINT64_MAX ? 0 : samples->empty;
    uint64_t taken = samples->count ? samples->loop : samples->cut;
    return taken > empty ? (taken - empty) / (ROUNDS * PER_ROUND) : 0;
}

/* As many runs as the budget allows. 1: it was cut short; 0; -errno. */
static int take_samples(struct engine_vcpu *vcpu, struct samples *samples, struct err *err)
{
    uint64_t begin = spent_ns(), ns = 0;
    for (unsigned i = 0; i < SAMPLES; i++) {
        /* a sample that would surely be cut short is not begun */
        if (i && spent_ns() - begin + ns > ATTEMPT_MS * UINT64_C(1000000))
            return 1;
        int r = run_once(vcpu, ENTRY_EMPTY, &ns, err);
        if (r != 0)
            return r;
        samples->empty = min(samples->empty, ns);
        r = run_once(vcpu, ENTRY_LOOP, &ns, err);
        if (r > 0)
            samples->cut = max(samples->cut, ns);
        if (r != 0)
            return r;
        samples->loop = min(samples->loop, ns);
        samples->count++;
    }
    return 0;
}

/* A fast sample proves that KVM is fast. That it is slow takes several, for one may have been
 * disturbed; or attempts that are cut short again and again, where it is slow beyond measure. */
static int measure(struct engine_vcpu *vcpu, struct watch *watch, uint64_t *ret_ns, struct err *err)
{
    struct samples samples = {.empty = UINT64_MAX, .loop = UINT64_MAX};
    uint64_t warm;
    int r = run_once(vcpu, ENTRY_EMPTY, &warm, err); /* KVM finds its pages */
    for (unsigned i = 0; r >= 0 && i < ATTEMPTS; i++) {
        watch->budget = spent_ns() + ATTEMPT_MS * UINT64_C(1000000);
        r = take_samples(vcpu, &samples, err);
        if (samples.count >= SAMPLES || (samples.count && cost_of(&samples) <= KVM_PROBE_SLOW_NS))
            break;
    }
    if (r < 0)
        return r;
    if (!samples.count && samples.cut < ATTEMPT_MS * UINT64_C(1000000) / 2)
        return err_set(err, -ETIMEDOUT, "the machine is too busy to measure it");
    *ret_ns = cost_of(&samples);
    return 0;
}

static int watched(struct engine_vcpu *vcpu, uint64_t *ret_ns, struct err *err)
{
    struct watch watch = {.vcpu = vcpu, .budget = UINT64_MAX};
    pthread_t thread;
    sem_init(&watch.done, 0, 0);
    int r = pthread_getcpuclockid(pthread_self(), &watch.spent);
    if (r == 0)
        r = pthread_create(&thread, NULL, watch_main, &watch);
    if (r) {
        sem_destroy(&watch.done);
        return err_errno(err, r, "cannot start a thread");
    }
    r = measure(vcpu, &watch, ret_ns, err);
    sem_post(&watch.done);
    pthread_join(thread, NULL);
    sem_destroy(&watch.done);
    return r;
}

static int try_guest(int kvm, uint64_t *ret_ns, struct err *err)
{
    struct engine_vm *vm = NULL;
    struct engine_vcpu *vcpu = NULL;
    struct mem *mem = guest_memory(err);
    if (!mem)
        return -ENOMEM;
    struct engine_config config = {
        .mem = mem, .vcpus = 1, .irqchip = ENGINE_IRQCHIP_NONE, .kvm_fd = kvm};
    int r = engine_kvm.vm_new(&config, &vm, err);
    if (r >= 0)
        r = engine_kvm.vcpu_new(vm, 0, &vcpu, err);
    if (r >= 0)
        r = watched(vcpu, ret_ns, err);
    engine_kvm.vcpu_free(vcpu);
    engine_kvm.vm_free(vm);
    mem_free(mem);
    return r;
}

/* What keeps /dev/kvm from opening, and what to do about it. */
static void explain(const char *path, int number, char *why, size_t size)
{
    switch (number) {
    case ENOENT:
        snprintf(why, size,
                 "no %s: load kvm_intel or kvm_amd (modprobe), or enable VT-x or AMD-V in the "
                 "firmware or, in a virtual machine, nested virtualization",
                 path);
        break;
    case EACCES:
    case EPERM:
        snprintf(why, size, "%s may not be opened: join the group that owns it (usermod -aG kvm)",
                 path);
        break;
    case ENODEV:
    case ENXIO:
        snprintf(why, size,
                 "%s has no driver behind it: load kvm_intel or kvm_amd; VT-x or AMD-V may be "
                 "disabled in the firmware",
                 path);
        break;
    case EBUSY:
        snprintf(why, size, "%s is busy: another hypervisor holds the processor's VT-x or AMD-V",
                 path);
        break;
    default: snprintf(why, size, "%s does not open: %s", path, strerrordesc_np(number)); break;
    }
}

void kvm_probe(const char *path, int kvm_fd, struct kvm_probe *ret_probe)
{
    *ret_probe = (struct kvm_probe){0};
    path = path ? path : "/dev/kvm";
    _cleanup_fd_ int opened = -1;
    if (kvm_fd < 0) {
        kvm_fd = opened = open(path, O_RDWR | O_CLOEXEC);
        if (opened < 0) {
            explain(path, errno, ret_probe->why, sizeof ret_probe->why);
            return;
        }
    }
    ret_probe->opens = true;
    struct err err = {0};
    if (try_guest(kvm_fd, &ret_probe->ns, &err) < 0) {
        snprintf(ret_probe->why, sizeof ret_probe->why, "%s opens, but %.200s", path, err.text);
        return;
    }
    ret_probe->works = true;
    ret_probe->fast = ret_probe->ns <= KVM_PROBE_SLOW_NS;
    if (ret_probe->ns)
        snprintf(ret_probe->why, sizeof ret_probe->why,
                 "a privileged guest instruction takes %" PRIu64 " ns%s", ret_probe->ns,
                 ret_probe->fast ? "" : ": there is no hardware behind this KVM");
    else
        snprintf(ret_probe->why, sizeof ret_probe->why,
                 "a privileged guest instruction takes less time than can be measured");
}
