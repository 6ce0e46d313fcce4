/*
 * probe.h: is this machine's KVM worth using?
 *
 * /dev/kvm can be absent, closed to us, or there and useless: where no hardware stands behind it,
 * code of the guest's kernel is emulated at microseconds per instruction. The probe opens it, runs
 * a few hundred instructions in 64-bit ring 0 and says what one costs. `--engine auto` takes the
 * software engine past KVM_PROBE_SLOW_NS; `lodge host` prints the figures.
 *
 * Pure of side effects on the machine, except that it uses the engine's kick signal. Any thread.
 * Takes a few milliseconds where KVM is hardware and at most about KVM_PROBE_MS of processor time
 * where it is not; on a busy machine hardly longer than a second.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    KVM_PROBE_SLOW_NS = 200,
    KVM_PROBE_MS = 40,
};

struct kvm_probe {
    bool opens;    /* /dev/kvm could be opened */
    bool works;    /* a VM could be made and its instructions executed */
    bool fast;     /* ... at no more than KVM_PROBE_SLOW_NS each */
    uint64_t ns;   /* per privileged instruction, where it works (at least this, if cut short) */
    char why[256]; /* one phrase for people: what is wrong and the way out, or the measurement */
};

/* `path` NULL is /dev/kvm; `kvm_fd` an open one, or -1. */
void kvm_probe(const char *path, int kvm_fd, struct kvm_probe *ret_probe);
