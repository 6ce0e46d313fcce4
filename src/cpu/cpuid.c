/*
 * How a guest's CPUID table comes about.
 *
 * The software engine's table is written down here: identity from the host, features from
 * `soft_features`, each either `native` (runs on the host CPU operand by operand, so the host must
 * have it) or `emulated` (the engine does it whatever the host is). The KVM engine's table is
 * KVM_GET_SUPPORTED_CPUID's answer less `kvm_hidden`: what carries state that struct cpu_state does
 * not hold (virtualization in the guest, performance counters, processor trace, supervisor XSAVE
 * states, AMX, CET, asynchronous page faults) and what a guest could use to stall a host (MWAIT).
 * Both end in the same place: one socket, one core per vCPU, one thread per core, APIC ID = index.
 */
#include "cpu/cpuid_private.h"

#include "base/bytes.h"
#include "base/clock.h"

#include <assert.h>
#include <cpuid.h>

enum vendor { VENDOR_INTEL, VENDOR_AMD };

/* Bits that code below names; the tables carry theirs as numbers beside their names. */
#define EBX7_AVX2        BIT(5)
#define CR4_PKE          BIT(22)
#define CR4_OSXSAVE      BIT(18)
#define ECX_TOPOEXT      BIT(22)
#define XSAVE_HEADER_END 576

struct soft_feature {
    uint32_t leaf;
    enum cpuid_register where;
    uint32_t native, emulated;
};

static const struct soft_feature soft_features[] = {
    {LEAF_FEATURES, EDX,
     /* cx8 cmov clflush mmx fxsr sse sse2 */
     BIT(8) | BIT(15) | BIT(19) | BIT(23) | BIT(24) | BIT(25) | BIT(26),
     /* fpu de pse tsc msr pae mce apic sep mtrr pge mca pat pse36 */
     BIT(0) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(9) | BIT(11) | BIT(12) |
         BIT(13) | BIT(14) | BIT(16) | BIT(17)},
    {LEAF_FEATURES, ECX,
     /* sse3 pclmulqdq ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave avx f16c rdrand */
     BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(19) | BIT(20) | BIT(22) | BIT(23) |
         BIT(25) | ECX1_XSAVE | ECX1_AVX | BIT(29) | BIT(30),
     /* pcid x2apic tsc_deadline hypervisor */
     BIT(17) | BIT(21) | BIT(24) | ECX1_HYPERVISOR},
    {LEAF_EXTENDED, EBX,
     /* bmi1 avx2 fdp_excptn_only bmi2 zero_fcs_fds rdseed adx sha_ni */
     BIT(3) | EBX7_AVX2 | BIT(6) | BIT(8) | BIT(13) | BIT(18) | BIT(19) | BIT(29),
     /* fsgsbase tsc_adjust smep erms invpcid smap clflushopt clwb */
     BIT(0) | BIT(1) | BIT(7) | BIT(9) | BIT(10) | BIT(20) | BIT(23) | BIT(24)},
    {LEAF_EXTENDED, ECX, 0, BIT(2) | BIT(22)}, /* umip rdpid */
    {LEAF_EXTENDED, EDX, 0, BIT(4)},           /* fsrm */
    {LEAF_AMD, ECX, BIT(5), BIT(0)},           /* abm; lahf_lm */
    /* syscall nx pdpe1gb rdtscp lm */
    {LEAF_AMD, EDX, 0, BIT(11) | BIT(20) | BIT(26) | BIT(27) | BIT(29)},
    {LEAF_TSC_FLAGS, EDX, 0, BIT(8)}, /* constant and nonstop TSC */
};

/* Needs the operating system's leave for YMM state (XCR0); the host's may have withheld it. */
#define ECX1_NEEDS_YMM (BIT(12) | ECX1_AVX | BIT(29)) /* fma avx f16c */

struct kvm_mask {
    uint32_t leaf, subleaf;
    enum cpuid_register where;
    uint32_t bits;
};

static const struct kvm_mask kvm_hidden[] = {
    /* dtes64 monitor ds_cpl vmx smx est tm2 sdbg pdcm dca osxsave */
    {LEAF_FEATURES, 0, ECX,
     BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(11) | BIT(15) | BIT(18) |
         ECX1_OSXSAVE},
    {LEAF_FEATURES, 0, EDX, BIT(21) | BIT(22) | BIT(29) | BIT(31)}, /* ds acpi tm pbe */
    {LEAF_POWER, 0, EAX, ~BIT(2)},                                  /* all but arat */
    {LEAF_POWER, 0, EBX, UINT32_MAX},
    {LEAF_POWER, 0, ECX, UINT32_MAX},
    {LEAF_POWER, 0, EDX, UINT32_MAX},
    /* sgx hle rtm pqm mpx pqe pt */
    {LEAF_EXTENDED, 0, EBX, BIT(2) | BIT(4) | BIT(11) | BIT(12) | BIT(14) | BIT(15) | BIT(25)},
    /* ospke waitpkg shstk tme la57 key locker enqcmd sgx_lc pks */
    {LEAF_EXTENDED, 0, ECX,
     ECX7_OSPKE | BIT(5) | BIT(7) | BIT(13) | BIT(16) | BIT(23) | BIT(29) | BIT(30) | BIT(31)},
    /* sgx_keys uintr srbds_ctrl rtm_always_abort tsx_force_abort pconfig arch_lbr ibt amx_bf16
     * amx_tile amx_int8 core_capabilities */
    {LEAF_EXTENDED, 0, EDX,
     BIT(1) | BIT(5) | BIT(9) | BIT(11) | BIT(13) | BIT(18) | BIT(19) | BIT(20) | BIT(22) |
         BIT(24) | BIT(25) | BIT(30)},
    /* arch_perfmon_ext fred amx_fp16 hreset lam msrlist */
    {LEAF_EXTENDED, 1, EAX, BIT(8) | BIT(17) | BIT(21) | BIT(22) | BIT(26) | BIT(27)},
    {LEAF_EXTENDED, 1, EBX, UINT32_MAX},
    {LEAF_EXTENDED, 1, ECX, UINT32_MAX},
    /* all but avx_vnni_int8 avx_ne_convert avx_vnni_int16 prefetchi */
    {LEAF_EXTENDED, 1, EDX, ~(BIT(4) | BIT(5) | BIT(10) | BIT(14))},
    {LEAF_XSAVE, 0, EAX, ~UINT32_C(0x2e7)}, /* x87 SSE AVX AVX-512 PKRU: fit CPU_XSAVE_SIZE */
    {LEAF_XSAVE, 0, EDX, UINT32_MAX},
    {LEAF_XSAVE, 1, EAX, ~(BIT(0) | BIT(1) | BIT(2))}, /* no XSAVES, no XFD */
    {LEAF_XSAVE, 1, ECX, UINT32_MAX},
    {LEAF_XSAVE, 1, EDX, UINT32_MAX},
    /* svm extapic osvw ibs skinit wdt lwp nodeid_msr perfctr_core perfctr_nb bpext ptsc
     * perfctr_llc mwaitx */
    {LEAF_AMD, 0, ECX,
     BIT(2) | BIT(3) | BIT(9) | BIT(10) | BIT(12) | BIT(13) | BIT(15) | BIT(19) | BIT(23) |
         BIT(24) | BIT(26) | BIT(27) | BIT(28) | BIT(29)},
    {LEAF_TSC_FLAGS, 0, EAX, UINT32_MAX},
    {LEAF_TSC_FLAGS, 0, EBX, UINT32_MAX},
    {LEAF_TSC_FLAGS, 0, ECX, UINT32_MAX},
    {LEAF_TSC_FLAGS, 0, EDX, ~BIT(8)},
    {LEAF_WIDTHS, 0, EBX, BIT(3) | BIT(4) | BIT(25) | BIT(27)}, /* invlpgb rdpru virt_ssbd cppc */
    {LEAF_WIDTHS, 0, EDX, UINT32_MAX},
    {LEAF_AMD_MORE, 0, EBX, UINT32_MAX},
    /* mmu_op async_pf async_pf_vmexit async_pf_int msi_ext_dest_id hc_map_gpa_range
     * migration_control */
    {LEAF_KVM_BITS, 0, EAX, BIT(2) | BIT(4) | BIT(10) | BIT(14) | BIT(15) | BIT(16) | BIT(17)},
    {LEAF_KVM_BITS, 0, EDX, UINT32_MAX},
};

/* The leaves of KVM's answer that a guest sees; topology, brand and clocks are written anew. */
static const uint32_t kvm_shown[] = {
    LEAF_FEATURES, LEAF_DESCRIPTORS, LEAF_POWER,  LEAF_EXTENDED, LEAF_XSAVE,
    LEAF_KVM_BITS, LEAF_AMD,         LEAF_AMD_L1, LEAF_AMD_L2,   LEAF_TSC_FLAGS,
    LEAF_WIDTHS,   0x80000019,       0x8000001a,  LEAF_AMD_MORE,
};

struct cpuid_leaf cpuid_host_leaf(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_leaf found = {.leaf = leaf, .subleaf = subleaf};
    uint32_t highest = __get_cpuid_max(leaf & 0xc0000000, NULL);
    if ((leaf & 0xc0000000) == LEAF_KVM) { /* answers only where a hypervisor says that it is one */
        uint32_t a, b, c, d;
        __cpuid(LEAF_FEATURES, a, b, c, d);
        if (c & ECX1_HYPERVISOR)
            __cpuid(LEAF_KVM, highest, b, c, d);
        else
            highest = 0;
    }
    if (leaf <= highest)
        __cpuid_count(leaf, subleaf, found.eax, found.ebx, found.ecx, found.edx);
    return found;
}

static struct cpuid_leaf *look_up(struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < cpuid->count; i++) {
        struct cpuid_leaf *at = &cpuid->leaves[i];
        if (at->leaf == leaf && (!at->by_subleaf || at->subleaf == subleaf))
            return at;
    }
    return NULL;
}

static void put(struct cpuid *cpuid, struct cpuid_leaf leaf)
{
    struct cpuid_leaf *at = look_up(cpuid, leaf.leaf, leaf.subleaf);
    if (!at) {
        assert(cpuid->count < CPUID_LEAVES_MAX);
        if (cpuid->count == CPUID_LEAVES_MAX)
            return;
        at = &cpuid->leaves[cpuid->count++];
    }
    *at = leaf;
}

static void drop(struct cpuid *cpuid, uint32_t leaf)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < cpuid->count; i++)
        if (cpuid->leaves[i].leaf != leaf)
            cpuid->leaves[kept++] = cpuid->leaves[i];
    cpuid->count = kept;
}

struct cpuid_leaf *cpuid_entry(struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf)
{
    if (!look_up(cpuid, leaf, subleaf))
        put(cpuid, (struct cpuid_leaf){.leaf = leaf,
                                       .subleaf = subleaf,
                                       .by_subleaf = leaf == LEAF_EXTENDED || leaf == LEAF_XSAVE});
    return look_up(cpuid, leaf, subleaf);
}

uint32_t *cpuid_register(struct cpuid_leaf *leaf, enum cpuid_register where)
{
    switch (where) {
    case EAX: return &leaf->eax;
    case EBX: return &leaf->ebx;
    case ECX: return &leaf->ecx;
    case EDX: break;
    }
    return &leaf->edx;
}

static enum vendor vendor_of(const struct cpuid_leaf *leaf)
{
    bool amd = leaf->ebx == signature_AMD_ebx && leaf->ecx == signature_AMD_ecx;
    bool hygon = leaf->ebx == 0x6f677948 && leaf->ecx == 0x656e6975; /* "HygonGenuine" */
    return amd || hygon ? VENDOR_AMD : VENDOR_INTEL;
}

static unsigned log2_up(unsigned value)
{
    unsigned bits = 0;
    while (1u << bits < value)
        bits++;
    return bits;
}

static bool host_has_ymm(void)
{
    struct cpuid_leaf features = cpuid_host_leaf(LEAF_FEATURES, 0);
    if (!(features.ecx & ECX1_OSXSAVE))
        return false;
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & 6) == 6;
}

/* Speculation: nothing that a guest kernel could mitigate reaches the host through the software
 * engine's own lookups, and each retpoline or CR3 switch would cost it dearly. So the model says
 * what makes Linux choose enhanced or automatic IBRS (one MSR write per boot), and that the rest
 * does not concern this processor. See the promises in cpuid.h for the MSRs. */
static void soft_speculation(struct cpuid *cpuid, enum vendor vendor)
{
    if (vendor == VENDOR_AMD) {
        /* null_sel_clr_base lfence_rdtsc auto_ibrs srso_no; tsa_sq_no tsa_l1_no */
        struct cpuid_leaf *more = cpuid_entry(cpuid, LEAF_AMD_MORE, 0);
        more->eax |= BIT(2) | BIT(6) | BIT(8) | BIT(29);
        more->ecx |= BIT(1) | BIT(2);
        /* xsaveerptr, where the host's x87 keeps its pointers; ssb_no btc_no */
        cpuid_entry(cpuid, LEAF_WIDTHS, 0)->ebx |=
            (cpuid_host_leaf(LEAF_WIDTHS, 0).ebx & BIT(2)) | BIT(26) | BIT(29);
    } else {
        cpuid_entry(cpuid, LEAF_EXTENDED, 0)->edx |=
            BIT(26) | BIT(29); /* spec_ctrl arch_capabilities */
    }
}

static void soft_table(struct cpuid *cpuid, enum vendor vendor)
{
    struct cpuid_leaf features = cpuid_host_leaf(LEAF_FEATURES, 0);
    cpuid_entry(cpuid, LEAF_FEATURES, 0)->eax =
        features.eax & 0x0fff3fff; /* family, model, stepping */
    for (unsigned i = 0; i < ARRAY_LEN(soft_features); i++) {
        const struct soft_feature *row = &soft_features[i];
        struct cpuid_leaf host = cpuid_host_leaf(row->leaf, 0);
        *cpuid_register(cpuid_entry(cpuid, row->leaf, 0), row->where) |=
            (*cpuid_register(&host, row->where) & row->native) | row->emulated;
    }
    struct cpuid_leaf *first = cpuid_entry(cpuid, LEAF_FEATURES, 0);
    if (!host_has_ymm() || !(first->ecx & ECX1_XSAVE) || !(first->ecx & ECX1_AVX)) {
        first->ecx &= ~ECX1_NEEDS_YMM;
        cpuid_entry(cpuid, LEAF_EXTENDED, 0)->ebx &= ~EBX7_AVX2;
    }
    bool ymm = first->ecx & ECX1_AVX;
    if (first->ecx & ECX1_XSAVE) {
        put(cpuid, (struct cpuid_leaf){LEAF_XSAVE, 0, true, ymm ? 7 : 3, 0, 0, 0});
        put(cpuid, (struct cpuid_leaf){LEAF_XSAVE, 1, true, 1, 0, 0, 0}); /* XSAVEOPT */
        if (ymm)
            put(cpuid, (struct cpuid_leaf){LEAF_XSAVE, 2, true, 256, XSAVE_HEADER_END, 0, 0});
    }
    cpuid_entry(cpuid, LEAF_POWER, 0)->eax = BIT(2); /* arat: the APIC timer never stops */
    if (vendor == VENDOR_AMD) {
        /* AMD repeats most of leaf 1 here; MMXEXT is part of SSE. */
        cpuid_entry(cpuid, LEAF_AMD, 0)->edx |=
            (cpuid_entry(cpuid, LEAF_FEATURES, 0)->edx & 0x0183f3ff) | BIT(22);
        struct cpuid_leaf first_level = cpuid_host_leaf(LEAF_AMD_L1, 0);
        struct cpuid_leaf second_level = cpuid_host_leaf(LEAF_AMD_L2, 0);
        put(cpuid, first_level);
        put(cpuid, second_level);
    } else {
        /* "see leaf 4" and a TLB that every such processor has */
        put(cpuid, (struct cpuid_leaf){.leaf = LEAF_DESCRIPTORS, .eax = 0x00feff01});
        put(cpuid,
            (struct cpuid_leaf){.leaf = LEAF_AMD_L2, .ecx = cpuid_host_leaf(LEAF_AMD_L2, 0).ecx});
    }
    uint32_t physical = cpuid_host_leaf(LEAF_WIDTHS, 0).eax & 0xff;
    physical = physical < 36 ? 36 : min(physical, UINT32_C(46));
    cpuid_entry(cpuid, LEAF_WIDTHS, 0)->eax = 48 << 8 | physical;
    soft_speculation(cpuid, vendor);
    /* clocksource nop_io_delay clocksource2 pv_unhalt pv_send_ipi clocksource_stable */
    put(cpuid, (struct cpuid_leaf){.leaf = LEAF_KVM_BITS,
                                   .eax = BIT(0) | BIT(1) | BIT(3) | BIT(7) | BIT(11) | BIT(24)});
}

static void kvm_table(struct cpuid *cpuid, const struct cpuid *supported)
{
    for (unsigned i = 0; i < supported->count; i++) {
        struct cpuid_leaf leaf = supported->leaves[i];
        unsigned subleaves = leaf.leaf == LEAF_XSAVE ? 63 : leaf.leaf == LEAF_EXTENDED ? 2 : 1;
        leaf.by_subleaf = subleaves > 1;
        if (!leaf.by_subleaf)
            leaf.subleaf = 0;
        for (unsigned j = 0; j < ARRAY_LEN(kvm_shown); j++)
            if (leaf.leaf == kvm_shown[j] && leaf.subleaf < subleaves)
                put(cpuid, leaf);
    }
    for (unsigned i = 0; i < ARRAY_LEN(kvm_hidden); i++) {
        struct cpuid_leaf *leaf = look_up(cpuid, kvm_hidden[i].leaf, kvm_hidden[i].subleaf);
        if (leaf)
            *cpuid_register(leaf, kvm_hidden[i].where) &= ~kvm_hidden[i].bits;
    }
    cpuid_entry(cpuid, LEAF_FEATURES, 0)->ecx |= ECX1_HYPERVISOR;
    struct cpuid_leaf *widths = cpuid_entry(cpuid, LEAF_WIDTHS, 0);
    widths->eax = 48 << 8 | (widths->eax & 0xff ? widths->eax & 0xff : 36);
    if (!(cpuid_entry(cpuid, LEAF_FEATURES, 0)->ecx & ECX1_XSAVE))
        drop(cpuid, LEAF_XSAVE);
}

/* Clock leaves of a KVM host stay only where they say the same as the TSC does. */
static void kvm_clocks(struct cpuid *cpuid, const struct cpuid *supported, uint64_t tsc_khz)
{
    struct cpuid_leaf tsc = cpuid_find(supported, LEAF_TSC, 0);
    if (tsc.leaf != LEAF_TSC || !tsc.eax || !tsc.ebx || !tsc.ecx)
        return;
    uint64_t khz = (uint64_t)tsc.ecx * tsc.ebx / tsc.eax / 1000;
    uint64_t apart = khz > tsc_khz ? khz - tsc_khz : tsc_khz - khz;
    if (apart > tsc_khz / 1000)
        return;
    put(cpuid, tsc);
    struct cpuid_leaf clocks = cpuid_find(supported, LEAF_CLOCKS, 0);
    if (clocks.leaf == LEAF_CLOCKS && clocks.eax)
        put(cpuid, clocks);
}

/* Sizes of the XSAVE area: all that may be enabled, and what `xcr0` enables now. */
static uint32_t xsave_size(struct cpuid *cpuid, uint64_t xcr0)
{
    uint32_t size = XSAVE_HEADER_END;
    for (uint32_t component = 2; component < 63; component++) {
        struct cpuid_leaf *at = look_up(cpuid, LEAF_XSAVE, component);
        if (at && xcr0 >> component & 1)
            size = max(size, at->ebx + at->eax);
    }
    return size;
}

static uint32_t xsave_compacted_size(struct cpuid *cpuid, uint64_t xcr0)
{
    uint32_t size = XSAVE_HEADER_END;
    for (uint32_t component = 2; component < 63; component++) {
        struct cpuid_leaf *at = look_up(cpuid, LEAF_XSAVE, component);
        if (at && xcr0 >> component & 1)
            size = (at->ecx & 2 ? (uint32_t)align_up(size, 64) : size) + at->eax;
    }
    return size;
}

void cpuid_xsave_sizes(struct cpuid *cpuid)
{
    struct cpuid_leaf *area = look_up(cpuid, LEAF_XSAVE, 0);
    if (!area)
        return;
    uint32_t components = area->eax;
    area->ecx = xsave_size(cpuid, components);
    area->ebx = xsave_size(cpuid, 1);
    unsigned kept = 0; /* sub-leaves of components that are hidden go too */
    for (unsigned i = 0; i < cpuid->count; i++) {
        const struct cpuid_leaf *at = &cpuid->leaves[i];
        if (at->leaf == LEAF_XSAVE && at->subleaf >= 2 &&
            !(at->subleaf < 32 && components >> at->subleaf & 1))
            continue;
        cpuid->leaves[kept++] = *at;
    }
    cpuid->count = kept;
}

/* One row per cache where the host says nothing: data, instructions, second, third level. */
static const struct cpuid_leaf plain_caches[] = {
    {.eax = 0x021 | BIT(8), .ebx = 7 << 22 | 63, .ecx = 63},
    {.eax = 0x022 | BIT(8), .ebx = 7 << 22 | 63, .ecx = 63},
    {.eax = 0x043 | BIT(8), .ebx = 15 << 22 | 63, .ecx = 1023},
    {.eax = 0x063 | BIT(8), .ebx = 15 << 22 | 63, .ecx = 16383},
};

/* SDM vol. 2, CPUID leaf 4; APM vol. 3, Fn8000_001D: the same layout, but AMD leaves bits 26..31
 * of EAX reserved. Two levels to each core, the third shared by all. */
static void caches(struct cpuid *cpuid, enum vendor vendor, unsigned vcpus)
{
    uint32_t leaf = vendor == VENDOR_AMD ? LEAF_AMD_CACHES : LEAF_CACHES;
    uint32_t others = (1u << log2_up(vcpus)) - 1;
    bool plain = !(cpuid_host_leaf(leaf, 0).eax & 0x1f);
    uint32_t index = 0;
    for (; index < 8; index++) {
        struct cpuid_leaf cache = {0};
        if (!plain)
            cache = cpuid_host_leaf(leaf, index);
        else if (index < ARRAY_LEN(plain_caches))
            cache = plain_caches[index];
        if (!(cache.eax & 0x1f))
            break;
        uint32_t level = cache.eax >> 5 & 7;
        cache.eax &= 0x3fff;
        cache.eax |= level >= 3 ? others << 14 : 0;
        if (vendor == VENDOR_INTEL)
            cache.eax |= others << 26;
        cache.leaf = leaf;
        cache.subleaf = index;
        cache.by_subleaf = true;
        put(cpuid, cache);
    }
    put(cpuid, (struct cpuid_leaf){.leaf = leaf, .subleaf = index, .by_subleaf = true});
}

static void topology(struct cpuid *cpuid, enum vendor vendor, unsigned vcpus)
{
    unsigned shift = log2_up(vcpus);
    struct cpuid_leaf *features = cpuid_entry(cpuid, LEAF_FEATURES, 0);
    features->ebx = vcpus << 16 | 8 << 8; /* logical processors, CLFLUSH line in 8-byte units */
    features->edx &= ~EDX1_HTT;
    if (vcpus > 1)
        features->edx |= EDX1_HTT;
    put(cpuid, (struct cpuid_leaf){LEAF_TOPOLOGY, 0, true, 0, 1, 0x100, 0});
    put(cpuid, (struct cpuid_leaf){LEAF_TOPOLOGY, 1, true, shift, vcpus, 0x201, 0});
    put(cpuid, (struct cpuid_leaf){LEAF_TOPOLOGY, 2, true, 0, 0, 2, 0});
    caches(cpuid, vendor, vcpus);
    if (vendor != VENDOR_AMD)
        return;
    struct cpuid_leaf *amd = cpuid_entry(cpuid, LEAF_AMD, 0);
    amd->ecx |= ECX_TOPOEXT;
    amd->ecx &= ~ECX_CMP_LEGACY;
    if (vcpus > 1)
        amd->ecx |= ECX_CMP_LEGACY;
    cpuid_entry(cpuid, LEAF_WIDTHS, 0)->ecx = shift << 12 | (vcpus - 1);
    put(cpuid, (struct cpuid_leaf){.leaf = LEAF_AMD_TOPO});
}

static void identity(struct cpuid *cpuid, const struct cpuid_leaf *vendor)
{
    for (uint32_t i = 0; i < 3; i++)
        put(cpuid, cpuid_host_leaf(LEAF_BRAND + i, 0));
    uint32_t low = 0, high = LEAF_HIGH;
    for (unsigned i = 0; i < cpuid->count; i++) {
        uint32_t leaf = cpuid->leaves[i].leaf;
        if (leaf < LEAF_KVM)
            low = max(low, leaf);
        else if (leaf >= LEAF_HIGH)
            high = max(high, leaf);
    }
    put(cpuid, (struct cpuid_leaf){0, 0, false, low, vendor->ebx, vendor->ecx, vendor->edx});
    put(cpuid,
        (struct cpuid_leaf){LEAF_HIGH, 0, false, high, vendor->ebx, vendor->ecx, vendor->edx});
}

void cpuid_limit_physical(struct cpuid *cpuid, unsigned bits)
{
    for (unsigned i = 0; bits && i < cpuid->count; i++) {
        struct cpuid_leaf *leaf = &cpuid->leaves[i];
        if (leaf->leaf == LEAF_WIDTHS && (leaf->eax & 0xff) > bits)
            leaf->eax = (leaf->eax & ~UINT32_C(0xff)) | bits;
    }
}

void cpuid_model(struct cpuid *ret_cpuid, enum cpuid_engine engine, const struct cpuid *supported,
                 unsigned vcpus, uint64_t tsc_khz)
{
    assert(vcpus >= 1);
    assert(engine == CPUID_SOFT || supported);
    struct cpuid cpuid = {0};
    struct cpuid_leaf name = cpuid_host_leaf(0, 0);
    enum vendor vendor = vendor_of(&name);
    if (engine == CPUID_KVM) {
        kvm_table(&cpuid, supported);
        kvm_clocks(&cpuid, supported, tsc_khz);
    } else {
        soft_table(&cpuid, vendor);
    }
    cpuid_xsave_sizes(&cpuid);
    topology(&cpuid, vendor, vcpus);
    /* "KVMKVMKVM": what makes Linux look for the paravirtual features. */
    put(&cpuid,
        (struct cpuid_leaf){LEAF_KVM, 0, false, LEAF_KVM_CLOCKS, 0x4b4d564b, 0x564b4d56, 0x4d});
    put(&cpuid, (struct cpuid_leaf){.leaf = LEAF_KVM_CLOCKS,
                                    .eax = (uint32_t)min(tsc_khz, (uint64_t)UINT32_MAX),
                                    .ebx = CPUID_APIC_BUS_KHZ});
    identity(&cpuid, &name);
    *ret_cpuid = cpuid;
}

void cpuid_for_vcpu(const struct cpuid *cpuid, unsigned index, unsigned vcpus, uint64_t cr4,
                    uint64_t xcr0, struct cpuid *ret_cpuid)
{
    assert(index < vcpus);
    *ret_cpuid = *cpuid;
    for (unsigned i = 0; i < ret_cpuid->count; i++) {
        struct cpuid_leaf *at = &ret_cpuid->leaves[i];
        switch (at->leaf) {
        case LEAF_FEATURES:
            at->ebx = (at->ebx & 0x00ffffff) | index << 24;
            at->ecx &= ~ECX1_OSXSAVE;
            if (cr4 & CR4_OSXSAVE && at->ecx & ECX1_XSAVE)
                at->ecx |= ECX1_OSXSAVE;
            break;
        case LEAF_EXTENDED:
            if (at->subleaf == 0) {
                at->ecx &= ~ECX7_OSPKE;
                if (cr4 & CR4_PKE && at->ecx & BIT(3))
                    at->ecx |= ECX7_OSPKE;
            }
            break;
        case LEAF_TOPOLOGY: at->edx = index; break;
        case LEAF_XSAVE:
            if (at->subleaf == 0)
                at->ebx = xsave_size(ret_cpuid, xcr0);
            else if (at->subleaf == 1 && at->eax & BIT(1))
                at->ebx = xsave_compacted_size(ret_cpuid, xcr0);
            break;
        case LEAF_AMD_TOPO:
            at->eax = index;
            at->ebx = index & 0xff; /* core ID; one thread per core */
            break;
        default: break;
        }
    }
}

struct cpuid_leaf cpuid_find(const struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf)
{
    /* The look-ups do not write. */
    struct cpuid *table = (struct cpuid *)cpuid;
    const struct cpuid_leaf *found = look_up(table, leaf, subleaf);
    const struct cpuid_leaf nothing = {.leaf = leaf, .subleaf = subleaf};
    if (found)
        return *found;

    /* APM vol. 3, appendix E.1: unknown leaves are zeroes. SDM vol. 2, CPUID: past the highest
     * leaf of its range, the answer is that of the highest basic leaf; in the range, zeroes. */
    const struct cpuid_leaf *basic = look_up(table, 0, 0);
    if (!basic)
        return nothing;
    if (vendor_of(basic) == VENDOR_INTEL) {
        const struct cpuid_leaf *range = look_up(table, leaf & 0xc0000000, 0);
        if (!range || leaf > range->eax) {
            found = look_up(table, basic->eax, subleaf);
            return found ? *found : nothing;
        }
    }
    if (leaf == LEAF_TOPOLOGY) { /* past the last level: the sub-leaf's number and the APIC ID */
        const struct cpuid_leaf *any = look_up(table, leaf, 0);
        if (any)
            return (struct cpuid_leaf){leaf, subleaf, true, 0, 0, subleaf & 0xff, any->edx};
    }
    return nothing;
}

/* TSC against CLOCK_MONOTONIC over `ns`: each end is the tightest of some bracketed readings. */
struct instant {
    uint64_t tsc, ns;
};

static struct instant now_both(void)
{
    struct instant best = {0};
    uint64_t tightest = UINT64_MAX;
    for (int i = 0; i < 20; i++) {
        uint64_t before = __builtin_ia32_rdtsc();
        uint64_t ns = clock_ns();
        uint64_t after = __builtin_ia32_rdtsc();
        if (after - before < tightest) {
            tightest = after - before;
            best = (struct instant){before + (after - before) / 2, ns};
        }
    }
    return best;
}

enum { TSC_KHZ_MIN = 100000, TSC_KHZ_MAX = 20000000 }; /* 0.1 to 20 GHz */

static uint64_t measured_tsc_khz(void)
{
    enum { MEASURE_NS = 10000000 };
    struct instant start = now_both();
    while (clock_ns() - start.ns < MEASURE_NS)
        continue;
    struct instant end = now_both();
    return (end.tsc - start.tsc) * 1000000 / (end.ns - start.ns);
}

/* A constant of the process: computed at most once per thread that asks first, with the same
 * answer.
 */
static _Atomic uint64_t *known_tsc_khz(void)
{
    static _Atomic uint64_t known;
    return &known;
}

void cpuid_assume_host_tsc_khz(uint64_t khz)
{
    if (khz >= TSC_KHZ_MIN && khz <= TSC_KHZ_MAX)
        *known_tsc_khz() = khz;
}

uint64_t cpuid_host_tsc_khz(void)
{
    _Atomic uint64_t *known = known_tsc_khz();
    if (*known)
        return *known;
    uint64_t khz = 0;
    struct cpuid_leaf tsc = cpuid_host_leaf(LEAF_TSC, 0);
    struct cpuid_leaf hypervisor = cpuid_host_leaf(LEAF_KVM_CLOCKS, 0);
    if (hypervisor.eax)
        khz = hypervisor.eax;
    else if (tsc.eax && tsc.ebx && tsc.ecx)
        khz = (uint64_t)tsc.ecx * tsc.ebx / tsc.eax / 1000;
    if (khz < TSC_KHZ_MIN || khz > TSC_KHZ_MAX) /* else the leaf means something else */
        khz = measured_tsc_khz();
    *known = khz;
    return khz;
}
