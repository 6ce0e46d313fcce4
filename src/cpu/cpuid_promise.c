/*
 * What a table promises to a guest: what of it must be there for a guest to go on elsewhere, and
 * which promises can be kept under both engines.
 *
 * The software engine *shows* less than it *can* do. It shows a processor that needs no mitigations
 * (soft_speculation() in cpuid.c), for each of them would cost its guests dearly; but a guest that
 * was told of SPEC_CTRL, IBPB and the like by KVM may go on using them: they do nothing here.
 *
 * A portable table holds what both engines can do on this host. Under KVM that is KVM's table cut
 * down to what the software engine can. Under the software engine it is what that can, cut down to
 * what the host's processor has, and without the promise that nothing needs to be mitigated.
 */
#include "cpu/cpuid_private.h"

#include "base/bytes.h"
#include "base/record.h"

#include <inttypes.h>
#include <stdio.h>

void cpuid_record(struct cpuid *cpuid, struct record *record)
{
    uint32_t count = cpuid->count;
    record_u32_below(record, &count, CPUID_LEAVES_MAX + 1);
    cpuid->count = count;
    for (unsigned i = 0; i < count; i++) {
        struct cpuid_leaf *leaf = &cpuid->leaves[i];
        record_u32(record, &leaf->leaf);
        record_u32(record, &leaf->subleaf);
        record_bool(record, &leaf->by_subleaf);
        record_u32(record, &leaf->eax);
        record_u32(record, &leaf->ebx);
        record_u32(record, &leaf->ecx);
        record_u32(record, &leaf->edx);
    }
}

/* Registers whose bits promise something, less those that say how the vCPU is set. `names` are the
 * bits' from 0 on, as Linux has them; "-" has none. */
static const struct promise {
    uint32_t leaf, subleaf;
    enum cpuid_register where;
    uint32_t ignored;
    const char *name, *names;
} promises[] = {
    {LEAF_FEATURES, 0, ECX, ECX1_OSXSAVE, "1.ecx",
     "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - "
     "pcid "
     "dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand "
     "hypervisor"},
    {LEAF_FEATURES, 0, EDX, EDX1_HTT, "1.edx",
     "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds "
     "acpi "
     "mmx fxsr sse sse2 ss - tm ia64 pbe"},
    {LEAF_EXTENDED, 0, EBX, 0, "7.0.ebx",
     "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm "
     "zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb "
     "intel_pt "
     "avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"},
    {LEAF_EXTENDED, 0, ECX, ECX7_OSPKE, "7.0.ecx",
     "- avx512vbmi umip pku - waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni "
     "avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - "
     "movdiri "
     "movdir64b enqcmd sgx_lc pks"},
    {LEAF_EXTENDED, 0, EDX, 0, "7.0.edx",
     "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect srbds_ctrl md_clear "
     "rtm_always_abort - - serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 "
     "amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities ssbd"},
    {LEAF_EXTENDED, 1, EAX, 0, "7.1.eax",
     "- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - wrmsrns - - amx_fp16 "
     "hreset avx_ifma - - lam"},
    {LEAF_EXTENDED, 1, EDX, 0, "7.1.edx",
     "- - - - avx_vnni_int8 avx_ne_convert - - - - avx_vnni_int16 - - - prefetchi"},
    {LEAF_XSAVE, 0, EAX, 0, "d.0.eax",
     "x87 sse avx mpx mpx avx512 avx512 avx512 pt pku - cet cet - - - - amx amx"},
    {LEAF_XSAVE, 1, EAX, 0, "d.1.eax", "xsaveopt xsavec xgetbv1 xsaves xfd"},
    {LEAF_KVM_BITS, 0, EAX, 0, "40000001.eax",
     "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time "
     "kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi "
     "kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id "
     "kvm_hc_map_gpa_range "
     "kvm_migration_control - - - - - - kvm_clocksource_stable"},
    {LEAF_AMD, 0, ECX, 0, "80000001.ecx",
     "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop "
     "skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc "
     "perfctr_llc mwaitx"},
    {LEAF_AMD, 0, EDX, 0, "80000001.edx",
     "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - "
     "mmxext "
     "mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"},
    {LEAF_TSC_FLAGS, 0, EDX, 0, "80000007.edx", "- - - - - - - - invariant_tsc"},
    {LEAF_WIDTHS, 0, EBX, 0, "80000008.ebx",
     "clzero irperf xsaveerptr invlpgb rdpru - - - - wbnoinvd - - ibpb - ibrs stibp ibrs_always_on "
     "stibp_always_on ibrs_preferred ibrs_same_mode - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no "
     "cppc "
     "psfd btc_no ibpb_ret"},
    {LEAF_AMD_MORE, 0, EAX, 0, "80000021.eax",
     "no_nested_data_bp fsgs_non_serializing lfence_rdtsc smm_page_cfg_lock - verw_clear "
     "null_sel_clr_base - auto_ibrs no_smm_ctl_msr - - - prefetch_ctl - - - cpuid_user_dis - - - - "
     "- "
     "- - - - sbpb ibpb_brtype srso_no srso_user_kernel_no"},
    {LEAF_AMD_MORE, 0, ECX, 0, "80000021.ecx", "- tsa_sq_no tsa_l1_no"},
};

static uint32_t promised(const struct cpuid *cpuid, const struct promise *promise)
{
    struct cpuid_leaf leaf = cpuid_find(cpuid, promise->leaf, promise->subleaf);
    /* A leaf that is not there is answered with another one's contents. */
    uint32_t last = cpuid_find(cpuid, promise->leaf & 0xffff0000, 0).eax;
    return promise->leaf <= last ? *cpuid_register(&leaf, promise->where) & ~promise->ignored : 0;
}

/* ---- do the promises of one table hold in another? ---- */

/* "avx2", or nothing. */
static void name_of(const struct promise *promise, unsigned bit, char *ret_name, size_t size)
{
    const char *at = promise->names;
    for (; bit > 0 && at; bit--)
        if ((at = strchr(at, ' ')))
            at++;
    size_t length = at ? strcspn(at, " ") : 0;
    snprintf(ret_name, size, "%.*s", at && *at != '-' ? (int)length : 0, at ? at : "");
}

static void say_missing(const struct promise *promise, uint32_t missing, char *ret_what)
{
    char names[64] = "";
    for (uint32_t rest = missing; rest; rest &= rest - 1) {
        char name[32];
        size_t used = strlen(names);
        name_of(promise, (unsigned)__builtin_ctz(rest), name, sizeof name);
        if (*name && used + strlen(name) + 2 < sizeof names)
            snprintf(names + used, sizeof names - used, "%s ", name);
    }
    snprintf(ret_what, CPUID_WHAT_MAX, "the CPU features %s(CPUID %s, bits %#" PRIx32 ")", names,
             promise->name, missing);
}

/* Where a state component lies in the XSAVE image differs between processors. */
static bool same_layout(const struct cpuid *have, const struct cpuid *wanted, char *ret_what)
{
    const struct promise components = {.leaf = LEAF_XSAVE, .where = EAX};
    uint32_t there = promised(wanted, &components);
    for (uint32_t i = 2; i < 32; i++) {
        struct cpuid_leaf a = cpuid_find(have, LEAF_XSAVE, i);
        struct cpuid_leaf b = cpuid_find(wanted, LEAF_XSAVE, i);
        if (!(there >> i & 1) || (a.eax == b.eax && a.ebx == b.ebx))
            continue;
        snprintf(ret_what, CPUID_WHAT_MAX,
                 "XSAVE component %" PRIu32 " at %" PRIu32 " (it is at %" PRIu32 ")", i, b.ebx,
                 a.ebx);
        return false;
    }
    return true;
}

bool cpuid_covers(const struct cpuid *have, const struct cpuid *wanted,
                  char ret_what[CPUID_WHAT_MAX])
{
    for (size_t i = 0; i < ARRAY_LEN(promises); i++) {
        uint32_t missing = promised(wanted, &promises[i]) & ~promised(have, &promises[i]);
        if (!missing)
            continue;
        say_missing(&promises[i], missing, ret_what);
        return false;
    }
    unsigned width = cpuid_find(wanted, LEAF_WIDTHS, 0).eax & 0xff;
    unsigned wide = cpuid_find(have, LEAF_WIDTHS, 0).eax & 0xff;
    if (width > wide) {
        snprintf(ret_what, CPUID_WHAT_MAX, "physical addresses of %u bits (%u are there)", width,
                 wide);
        return false;
    }
    return same_layout(have, wanted, ret_what);
}

bool cpuid_same_vendor(const struct cpuid *one, const struct cpuid *other)
{
    struct cpuid_leaf a = cpuid_find(one, 0, 0), b = cpuid_find(other, 0, 0);
    return a.ebx == b.ebx && a.ecx == b.ecx && a.edx == b.edx;
}

uint64_t cpuid_tsc_khz(const struct cpuid *cpuid)
{
    return cpuid_find(cpuid, LEAF_KVM_CLOCKS, 0).eax;
}

/* ---- portable ---- */

/* What the software engine keeps its word on, but does not say of itself. The speculation controls
 * are registers to it that hold what is written to them; VERW is what it always was. */
static const struct more {
    uint32_t leaf;
    enum cpuid_register where;
    uint32_t bits;
} soft_more[] = {
    /* md_clear spec_ctrl intel_stibp arch_capabilities ssbd */
    {LEAF_EXTENDED, EDX, BIT(10) | BIT(26) | BIT(27) | BIT(29) | BIT(31)},
    /* ibpb ibrs stibp stibp_always_on ibrs_preferred ibrs_same_mode ssbd ssb_no psfd btc_no
     * ibpb_ret */
    {LEAF_WIDTHS, EBX,
     BIT(12) | BIT(14) | BIT(15) | BIT(17) | BIT(18) | BIT(19) | BIT(24) | BIT(26) | BIT(28) |
         BIT(29) | BIT(30)},
    /* lfence_rdtsc verw_clear null_sel_clr_base auto_ibrs sbpb ibpb_brtype srso_no
     * srso_user_kernel_no */
    {LEAF_AMD_MORE, EAX, BIT(2) | BIT(5) | BIT(6) | BIT(8) | BIT(27) | BIT(28) | BIT(29) | BIT(30)},
    {LEAF_AMD_MORE, ECX, BIT(1) | BIT(2)}, /* tsa_sq_no tsa_l1_no */
};

/* Features that KVM has whatever the processor is. */
static const struct more kvm_always[] = {
    {LEAF_FEATURES, ECX, BIT(21) | BIT(24) | ECX1_HYPERVISOR}, /* x2apic tsc_deadline hypervisor */
    {LEAF_FEATURES, EDX, BIT(9)},                              /* apic */
    {LEAF_EXTENDED, EBX, BIT(1)},                              /* tsc_adjust */
    {LEAF_KVM_BITS, EAX, UINT32_MAX},
};

void cpuid_able(struct cpuid *ret_cpuid, enum cpuid_engine engine, const struct cpuid *supported,
                unsigned vcpus, uint64_t tsc_khz)
{
    cpuid_model(ret_cpuid, engine, supported, vcpus, tsc_khz);
    for (size_t i = 0; engine == CPUID_SOFT && i < ARRAY_LEN(soft_more); i++) {
        const struct more *row = &soft_more[i];
        *cpuid_register(cpuid_entry(ret_cpuid, row->leaf, 0), row->where) |= row->bits;
    }
    struct cpuid_leaf *high = cpuid_entry(ret_cpuid, LEAF_HIGH, 0);
    if (engine == CPUID_SOFT)
        high->eax = max(high->eax, LEAF_AMD_MORE);
}

static uint32_t of_host(const struct promise *promise)
{
    struct cpuid_leaf leaf = cpuid_host_leaf(promise->leaf, promise->subleaf);
    uint32_t bits = *cpuid_register(&leaf, promise->where);
    for (size_t i = 0; i < ARRAY_LEN(kvm_always); i++)
        if (kvm_always[i].leaf == promise->leaf && kvm_always[i].where == promise->where &&
            promise->subleaf == 0)
            bits |= kvm_always[i].bits;
    return bits;
}

/* Keeps of each promise what is in `bound` too, and of its other bits all. */
static void narrow(struct cpuid *cpuid, const struct cpuid *bound)
{
    for (size_t i = 0; i < ARRAY_LEN(promises); i++) {
        const struct promise *promise = &promises[i];
        struct cpuid_leaf leaf = cpuid_find(cpuid, promise->leaf, promise->subleaf);
        if (leaf.leaf != promise->leaf || !*cpuid_register(&leaf, promise->where))
            continue;
        uint32_t kept = bound ? promised(bound, promise) : of_host(promise);
        *cpuid_register(cpuid_entry(cpuid, promise->leaf, promise->subleaf), promise->where) &=
            kept | promise->ignored;
    }
    cpuid_xsave_sizes(cpuid);
}

enum { PHYSICAL_MAX = 46 }; /* of the software engine */

void cpuid_portable(struct cpuid *ret_cpuid, enum cpuid_engine engine,
                    const struct cpuid *supported, unsigned vcpus, uint64_t tsc_khz)
{
    struct cpuid able, cpuid;
    cpuid_able(&able, CPUID_SOFT, NULL, vcpus, tsc_khz);
    if (engine == CPUID_KVM) {
        cpuid_model(&cpuid, CPUID_KVM, supported, vcpus, tsc_khz);
        narrow(&cpuid, &able);
        struct cpuid_leaf *widths = cpuid_entry(&cpuid, LEAF_WIDTHS, 0);
        widths->eax = (widths->eax & ~UINT32_C(0xff)) | min(widths->eax & 0xff, PHYSICAL_MAX + 0u);
    } else {
        cpuid = able;
        narrow(&cpuid, NULL);
        /* Whose contents only KVM could tell. */
        cpuid_entry(&cpuid, LEAF_EXTENDED, 0)->edx &= ~BIT(29);
    }
    *ret_cpuid = cpuid;
}
