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

enum {
    CPUID_LEAVES_MAX = 128,
    CPUID_APIC_BUS_KHZ = 1000000, /* the local APIC timer counts nanoseconds, as KVM's does */
};

/*
 * What the soft engine promises. The model of CPUID_SOFT makes a guest rely on:
 *   MSR 0x11/0x12 and 0x4b564d00/01   kvmclock: wall clock and per-vCPU system time page (old and
 *                                     new numbers), PVCLOCK_TSC_STABLE_BIT set in its flags
 *   VMCALL and VMMCALL                KVM_HC_KICK_CPU (5) for PV_UNHALT, KVM_HC_SEND_IPI (10);
 *                                     others return -KVM_ENOSYS (-1000) in RAX
 *   MSR 0x10, 0x3b, 0x6e0             TSC, TSC_ADJUST, TSC deadline; the TSC never stops and all
 *                                     vCPUs see the same
 *   MTRRcap, MTRRs, PAT, MCG_CAP      8 variable and the fixed ranges (0xfe = 0x508), no MCE banks
 * and, so that Linux needs neither retpolines nor PTI nor return thunks:
 *   Intel: MSR 0x10a reads CPUID_ARCH_CAPABILITIES; SPEC_CTRL (0x48) keeps IBRS, bit 0; PRED_CMD
 *          (0x49) takes IBPB, bit 0, and does nothing.
 *   AMD:   EFER.AIBRSE (bit 21) is accepted and kept; loading a null selector clears the segment's
 *          base; LFENCE waits for earlier instructions. No SPEC_CTRL. Linux also reads HWCR
 *          (0xc0010015, must read with bit 24, TscFreqSel, set or it complains), DE_CFG
 *          (0xc0011029, bit 1 set), SYSCFG (0xc0010010), TOP_MEM2 and the patch level (0x8b): zero.
 */
/* RDCL_NO IBRS_ALL SKIP_L1DFL_VMENTRY SSB_NO MDS_NO PSCHANGE_MC_NO TAA_NO SBDR_SSDP_NO FBSDP_NO
 * PSDP_NO BHI_NO PBRSB_NO GDS_NO RFDS_NO ITS_NO (SDM vol. 4, IA32_ARCH_CAPABILITIES) */
#define CPUID_ARCH_CAPABILITIES                                                                    \
    (UINT64_C(1) << 0 | UINT64_C(1) << 1 | UINT64_C(1) << 3 | UINT64_C(1) << 4 |                   \
     UINT64_C(1) << 5 | UINT64_C(1) << 6 | UINT64_C(1) << 8 | UINT64_C(1) << 13 |                  \
     UINT64_C(1) << 14 | UINT64_C(1) << 15 | UINT64_C(1) << 20 | UINT64_C(1) << 24 |               \
     UINT64_C(1) << 26 | UINT64_C(1) << 27 | UINT64_C(1) << 62)

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

/* Physical addresses of at most `bits` bits, 0 = as they are. Firmware that maps all that could be
 * there spends its time on what is not. */
void cpuid_limit_physical(struct cpuid *cpuid, unsigned bits);

/* `cpuid` as vCPU `index` of `vcpus` sees it. CR4 and XCR0 decide OSXSAVE and leaf 0xD sizes. */
void cpuid_for_vcpu(const struct cpuid *cpuid, unsigned index, unsigned vcpus, uint64_t cr4,
                    uint64_t xcr0, struct cpuid *ret_cpuid);

/* The answer to CPUID with EAX = leaf, ECX = subleaf; out of range gives what Intel gives (the
 * highest basic leaf) or AMD gives (zeroes), by vendor. */
struct cpuid_leaf cpuid_find(const struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf);

/* Saves or loads the table (base/record.h). */
struct record;
void cpuid_record(struct cpuid *cpuid, struct record *record);

/* True where everything that a guest may rely on by `wanted` is in `have`: feature bits, state
 * components and where they lie, widths. Else ret_what says what is missing, in one phrase. */
enum { CPUID_WHAT_MAX = 160 };
bool cpuid_covers(const struct cpuid *have, const struct cpuid *wanted,
                  char ret_what[CPUID_WHAT_MAX]);
bool cpuid_same_vendor(const struct cpuid *one, const struct cpuid *other);

/* The frequency of the TSC that a guest is told, 0 = none. */
uint64_t cpuid_tsc_khz(const struct cpuid *cpuid);

/* What a guest of this engine may have been told of to go on under it: cpuid_model()'s promises,
 * and those that the engine keeps without showing them. */
void cpuid_able(struct cpuid *ret_cpuid, enum cpuid_engine engine, const struct cpuid *supported,
                unsigned vcpus, uint64_t tsc_khz);
/* A model that both engines can keep the promises of, on this host. */
void cpuid_portable(struct cpuid *ret_cpuid, enum cpuid_engine engine,
                    const struct cpuid *supported, unsigned vcpus, uint64_t tsc_khz);

/* Says what the host's frequency is, before anybody has asked: for one who has measured it. */
void cpuid_assume_host_tsc_khz(uint64_t khz);

/* Ticks of the host's TSC in a millisecond: from CPUID 0x15/0x16/0x40000010 where given, else
 * measured against CLOCK_MONOTONIC over some milliseconds (once a process). */
uint64_t cpuid_host_tsc_khz(void);
