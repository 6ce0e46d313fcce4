/*
 * cpuid.h: what a guest is told about its processor.
 *
 * A `struct cpuid` is a table of leaves, answered by cpuid_find() with the architecture's own rules
 * for unknown leaves. cpuid_model() makes the one that a machine gets: the host's identity (vendor,
 * family, model, brand), the features that the engine can honour, and the paravirtual leaves at
 * 0x40000000 (KVM's signature and features, with the TSC and bus frequency leaf 0x40000010).
 * Per-vCPU fields (APIC IDs, topology, OSXSAVE, XSAVE sizes) are filled by cpuid_for_vcpu().
 *
 * Pure functions; any thread. No errors: a table that is full drops the leaf and asserts in tests.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { CPUID_LEAVES_MAX = 128 };

struct cpuid_leaf {
    uint32_t leaf, subleaf;
    bool by_subleaf; /* the answer depends on ECX */
    uint32_t eax, ebx, ecx, edx;
};

struct cpuid {
    unsigned count;
    struct cpuid_leaf leaves[CPUID_LEAVES_MAX];
};

enum cpuid_engine { CPUID_SOFT, CPUID_KVM };

/* For CPUID_SOFT: features are our own list (up to AVX2, BMI, FMA, MOVBE, XSAVE, ... see
 * cpuid.c), cut down to what the host has where instructions run natively. For CPUID_KVM:
 * `supported` is KVM_GET_SUPPORTED_CPUID's answer, which bounds every feature bit. */
void cpuid_model(struct cpuid *ret_cpuid, enum cpuid_engine engine, const struct cpuid *supported,
                 unsigned vcpus, uint64_t tsc_khz);

/* `cpuid` as vCPU `index` of `vcpus` sees it. CR4 and XCR0 decide OSXSAVE and leaf 0xD sizes. */
void cpuid_for_vcpu(const struct cpuid *cpuid, unsigned index, unsigned vcpus, uint64_t cr4,
                    uint64_t xcr0, struct cpuid *ret_cpuid);

/* The answer to CPUID with EAX = leaf, ECX = subleaf; out of range gives what Intel gives (the
 * highest basic leaf) or AMD gives (zeroes), by vendor. */
struct cpuid_leaf cpuid_find(const struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf);

/* Ticks of the host's TSC in a millisecond: from CPUID 0x15/0x16/0x40000010 where given, else
 * measured against CLOCK_MONOTONIC over some milliseconds (once a process). */
uint64_t cpuid_host_tsc_khz(void);
