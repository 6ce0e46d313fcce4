#include "cpu/cpuid.h"

#include "base/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include <cpuid.h>

#define BIT(n) (UINT32_C(1) << (n))

enum { TSC_KHZ = 2500000 };

struct words {
    uint32_t eax, ebx, ecx, edx;
};

static struct words host(uint32_t leaf, uint32_t subleaf)
{
    struct words words;
    __cpuid_count(leaf, subleaf, words.eax, words.ebx, words.ecx, words.edx);
    return words;
}

static bool host_is_amd(void)
{
    return host(0, 0).ecx == signature_AMD_ecx || host(0, 0).ecx == 0x656e6975;
}

static void add(struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf, bool by_subleaf,
                struct words words)
{
    cpuid->leaves[cpuid->count++] =
        (struct cpuid_leaf){leaf, subleaf, by_subleaf, words.eax, words.ebx, words.ecx, words.edx};
}

/* What a KVM that claims everything would say. */
static void all_supported(struct cpuid *cpuid)
{
    const struct words ones = {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX};
    static const uint32_t plain[] = {1,          6,          0xa,        0x12,
                                     0x14,       0x40000001, 0x80000001, 0x80000007,
                                     0x80000008, 0x8000000a, 0x80000021, 0x80000022};
    cpuid->count = 0;
    for (unsigned i = 0; i < ARRAY_LEN(plain); i++)
        add(cpuid, plain[i], 0, false, ones);
    add(cpuid, 7, 0, true, ones);
    add(cpuid, 7, 1, true, ones);
    add(cpuid, 0xd, 0, true, ones);
    add(cpuid, 0xd, 1, true, ones);
    add(cpuid, 0xd, 2, true, (struct words){256, 576, 0, 0});
    add(cpuid, 0xd, 5, true, (struct words){64, 832, 0, 0});
    add(cpuid, 0xd, 6, true, (struct words){512, 896, 0, 0});
    add(cpuid, 0xd, 7, true, (struct words){1024, 1408, 0, 0});
    add(cpuid, 0xd, 9, true, (struct words){8, 2432, 0, 0});
    add(cpuid, 0xd, 17, true, (struct words){64, 2816, 2, 0});
    add(cpuid, 0xd, 18, true, (struct words){8192, 2880, 6, 0});
}

static void each_model(struct cpuid models[2])
{
    struct cpuid supported;
    all_supported(&supported);
    cpuid_model(&models[0], CPUID_SOFT, NULL, 2, TSC_KHZ);
    cpuid_model(&models[1], CPUID_KVM, &supported, 2, TSC_KHZ);
}

static void the_identity_is_the_hosts(void **test)
{
    (void)test;
    struct cpuid models[2];
    each_model(models);
    struct words vendor = host(0, 0);
    for (int i = 0; i < 2; i++) {
        struct cpuid_leaf leaf = cpuid_find(&models[i], 0, 0);
        assert_int_equal(leaf.ebx, vendor.ebx);
        assert_int_equal(leaf.ecx, vendor.ecx);
        assert_int_equal(leaf.edx, vendor.edx);
        assert_true(leaf.eax >= 0xd);
        for (uint32_t brand = 0x80000002; brand <= 0x80000004; brand++)
            assert_int_equal(cpuid_find(&models[i], brand, 0).ecx, host(brand, 0).ecx);
    }
    uint32_t signature = cpuid_find(&models[0], 1, 0).eax;
    assert_int_equal(signature, host(1, 0).eax & 0x0fff3fff);
}

/* Bits that no guest may see, whatever the host has. */
static void what_is_hidden_stays_hidden(void **test)
{
    (void)test;
    struct cpuid models[2];
    each_model(models);
    for (int i = 0; i < 2; i++) {
        const struct cpuid *model = &models[i];
        assert_int_equal(cpuid_find(model, 1, 0).ecx & (BIT(3) | BIT(5)), 0); /* MWAIT, VMX */
        assert_int_equal(cpuid_find(model, 0xa, 0).eax, 0);                   /* PMU */
        struct cpuid_leaf seven = cpuid_find(model, 7, 0);
        assert_int_equal(seven.ebx & (BIT(4) | BIT(11)), 0);                    /* TSX */
        assert_int_equal(seven.ecx & (BIT(7) | BIT(16)), 0);                    /* CET, LA57 */
        assert_int_equal(seven.edx & BIT(20), 0);                               /* CET IBT */
        assert_int_equal(cpuid_find(model, 0xd, 1).eax & (BIT(3) | BIT(4)), 0); /* XSAVES, XFD */
        assert_int_equal(cpuid_find(model, 0x80000001, 0).ecx & BIT(2), 0);     /* SVM */
        struct cpuid_leaf svm = cpuid_find(model, 0x8000000a, 0);
        assert_true(!host_is_amd() || (svm.eax | svm.ebx | svm.ecx | svm.edx) == 0);
    }
    struct cpuid_leaf soft = cpuid_find(&models[0], 7, 0);
    assert_int_equal(soft.ebx & BIT(16), 0);           /* AVX-512 */
    assert_int_equal(soft.ecx & (BIT(3) | BIT(4)), 0); /* PKU */
    assert_int_equal(cpuid_find(&models[0], 0xd, 1).eax & ~BIT(0), 0);
    assert_int_equal(cpuid_find(&models[1], 0x40000001, 0).eax & BIT(4), 0); /* async PF */
}

static void native_features_are_the_hosts(void **test)
{
    (void)test;
    struct cpuid soft;
    cpuid_model(&soft, CPUID_SOFT, NULL, 1, TSC_KHZ);
    uint32_t emulated = BIT(17) | BIT(21) | BIT(24) | BIT(31);
    uint32_t ecx = cpuid_find(&soft, 1, 0).ecx;
    assert_int_equal(ecx & ~emulated & ~host(1, 0).ecx, 0);
    assert_int_equal(ecx & emulated, emulated);
    uint32_t native7 = BIT(3) | BIT(5) | BIT(8) | BIT(18) | BIT(19) | BIT(29);
    assert_int_equal(cpuid_find(&soft, 7, 0).ebx & native7, host(7, 0).ebx & native7);
    /* every x86-64 processor has these, and a kernel will not start without them */
    uint32_t least = BIT(0) | BIT(4) | BIT(5) | BIT(6) | BIT(8) | BIT(9) | BIT(13) | BIT(15) |
                     BIT(24) | BIT(25) | BIT(26);
    assert_int_equal(cpuid_find(&soft, 1, 0).edx & least, least);
    uint32_t wide = BIT(11) | BIT(20) | BIT(29);
    assert_int_equal(cpuid_find(&soft, 0x80000001, 0).edx & wide, wide);
}

static void linux_needs_no_retpolines(void **test)
{
    (void)test;
    struct cpuid soft;
    cpuid_model(&soft, CPUID_SOFT, NULL, 1, TSC_KHZ);
    if (host_is_amd()) {
        assert_true(cpuid_find(&soft, 0x80000021, 0).eax & BIT(8));  /* automatic IBRS */
        assert_true(cpuid_find(&soft, 0x80000008, 0).ebx & BIT(26)); /* SSB_NO */
        assert_int_equal(cpuid_find(&soft, 7, 0).edx & BIT(26), 0);  /* no SPEC_CTRL to emulate */
    } else {
        uint32_t both = BIT(26) | BIT(29); /* SPEC_CTRL, ARCH_CAPABILITIES */
        assert_int_equal(cpuid_find(&soft, 7, 0).edx & both, both);
    }
    assert_int_equal(CPUID_ARCH_CAPABILITIES & 0x3, 3); /* RDCL_NO (no PTI), IBRS_ALL */
}

/* Under either engine made, under both it can be kept. */
static void a_portable_model_is_for_both(void **test)
{
    (void)test;
    struct cpuid supported, able[2], portable[2];
    char what[CPUID_WHAT_MAX];
    all_supported(&supported);
    for (int i = 0; i < 2; i++) {
        enum cpuid_engine engine = i ? CPUID_KVM : CPUID_SOFT;
        cpuid_able(&able[i], engine, &supported, 2, TSC_KHZ);
        cpuid_portable(&portable[i], engine, &supported, 2, TSC_KHZ);
    }
    for (int i = 0; i < 4; i++)
        if (!cpuid_covers(&able[i / 2], &portable[i % 2], what))
            fail_msg("%s cannot keep %s's word: %s", i / 2 ? "KVM" : "soft", i % 2 ? "KVM" : "soft",
                     what);
    for (int i = 0; i < 2; i++) {
        assert_true(cpuid_same_vendor(&portable[i], &able[1 - i]));
        assert_int_equal(cpuid_tsc_khz(&portable[i]), TSC_KHZ);
        assert_int_equal(cpuid_find(&portable[i], 7, 0).ebx & BIT(16), 0); /* AVX-512 */
        assert_int_equal(cpuid_find(&portable[i], 0xd, 0).eax & ~7u, 0);
        assert_int_equal(cpuid_find(&portable[i], 0xd, 1).eax & ~BIT(0), 0);
        assert_true(cpuid_find(&portable[i], 0x80000008, 0).eax % 256 <= 46);
        uint32_t needed = BIT(21) | BIT(24) | BIT(31); /* x2apic, deadline, hypervisor */
        assert_int_equal(cpuid_find(&portable[i], 1, 0).ecx & needed, needed);
    }
    /* What only the software engine is, it does not claim of the host's processor. */
    uint32_t immune = host_is_amd() ? BIT(8) | BIT(29) : 0; /* auto_ibrs srso_no */
    uint32_t host_has = host(0x80000000, 0).eax >= 0x80000021 ? host(0x80000021, 0).eax : 0;
    assert_int_equal(cpuid_find(&portable[0], 0x80000021, 0).eax & immune & ~host_has, 0);
    assert_int_equal(cpuid_find(&portable[0], 7, 0).edx & BIT(29), 0);
    /* And the other models are not. */
    cpuid_model(&portable[1], CPUID_KVM, &supported, 2, TSC_KHZ);
    assert_false(cpuid_covers(&able[0], &portable[1], what));
}

static void what_is_missing_has_a_name(void **test)
{
    (void)test;
    static const struct {
        uint32_t leaf, bit;
        int where;
        const char *name;
    } cases[] = {
        {1, 0, 2, "sse3"},
        {1, 31, 2, "hypervisor"},
        {7, 5, 1, "avx2"},
        {7, 30, 1, "avx512bw"},
        {7, 3, 2, "pku"},
        {7, 22, 2, "rdpid"},
        {7, 4, 3, "fsrm"},
        {7, 26, 3, "spec_ctrl"},
        {7, 31, 3, "ssbd"},
        {0x40000001, 5, 0, "kvm_steal_time"},
        {0x80000001, 22, 2, "topoext"},
        {0x80000007, 8, 3, "invariant_tsc"},
        {0x80000008, 12, 1, "ibpb"},
        {0x80000008, 26, 1, "amd_ssb_no"},
        {0x80000021, 8, 0, "auto_ibrs"},
        {0x80000021, 29, 0, "srso_no"},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct cpuid have = {0}, wanted = {0};
        char what[CPUID_WHAT_MAX], expected[64];
        uint32_t words[4] = {0};
        words[cases[i].where] = BIT(cases[i].bit);
        add(&wanted, 0, 0, false, (struct words){0x1f, 0, 0, 0});
        add(&wanted, 0x40000000, 0, false, (struct words){0x40000010, 0, 0, 0});
        add(&wanted, 0x80000000, 0, false, (struct words){0x80000021, 0, 0, 0});
        add(&wanted, cases[i].leaf, 0, cases[i].leaf == 7,
            (struct words){words[0], words[1], words[2], words[3]});
        assert_false(cpuid_covers(&have, &wanted, what));
        snprintf(expected, sizeof expected, " %s (CPUID ", cases[i].name);
        if (!strstr(what, expected))
            fail_msg("'%s' does not name '%s'", what, cases[i].name);
    }
}

static void an_xsave_image_is_not_taken_apart(void **test)
{
    (void)test;
    struct cpuid have = {0}, wanted;
    char what[CPUID_WHAT_MAX];
    add(&have, 0, 0, false, (struct words){0xd, 0, 0, 0});
    add(&have, 0xd, 0, true, (struct words){0x207, 0, 0, 0});
    add(&have, 0xd, 2, true, (struct words){256, 576, 0, 0});
    add(&have, 0xd, 9, true, (struct words){8, 2432, 0, 0});
    wanted = have;
    assert_true(cpuid_covers(&have, &wanted, what));
    wanted.leaves[3].ebx = 2688; /* as Intel has it */
    assert_false(cpuid_covers(&have, &wanted, what));
    assert_string_equal(what, "XSAVE component 9 at 2688 (it is at 2432)");
    wanted.leaves[1].eax = 7; /* it is not used */
    assert_true(cpuid_covers(&have, &wanted, what));
}

static void kvm_is_bounded_by_what_is_supported(void **test)
{
    (void)test;
    struct cpuid supported = {0}, model;
    add(&supported, 1, 0, false, (struct words){0, 0, BIT(0), BIT(0)});
    cpuid_model(&model, CPUID_KVM, &supported, 1, TSC_KHZ);
    assert_int_equal(cpuid_find(&model, 1, 0).ecx, BIT(0) | BIT(31)); /* and "hypervisor" */
    assert_int_equal(cpuid_find(&model, 1, 0).edx, BIT(0));
    const struct cpuid_leaf *leaf = NULL;
    for (unsigned i = 0; i < model.count; i++) {
        leaf = &model.leaves[i];
        assert_false(leaf->leaf == 7 && (leaf->ebx | leaf->ecx | leaf->edx));
        assert_false(leaf->leaf == 0xd);
        assert_false(leaf->leaf == 0x40000001 && leaf->eax);
    }
}

static void no_leaf_is_told_twice(void **test)
{
    (void)test;
    struct cpuid models[2];
    each_model(models);
    for (int m = 0; m < 2; m++)
        for (unsigned i = 0; i < models[m].count; i++)
            for (unsigned j = 0; j < i; j++) {
                const struct cpuid_leaf *a = &models[m].leaves[i], *b = &models[m].leaves[j];
                assert_false(a->leaf == b->leaf && a->subleaf == b->subleaf);
                assert_false(a->leaf == b->leaf && a->by_subleaf != b->by_subleaf);
            }
}

static void every_vcpu_has_its_place(void **test)
{
    (void)test;
    static const struct {
        unsigned vcpus, shift;
    } sizes[] = {{1, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {64, 6}};
    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        unsigned vcpus = sizes[i].vcpus;
        struct cpuid model, mine;
        cpuid_model(&model, CPUID_SOFT, NULL, vcpus, TSC_KHZ);
        for (unsigned index = 0; index < vcpus; index++) {
            cpuid_for_vcpu(&model, index, vcpus, 0, 1, &mine);
            struct cpuid_leaf one = cpuid_find(&mine, 1, 0);
            assert_int_equal(one.ebx >> 24, index);
            assert_int_equal(one.ebx >> 16 & 0xff, vcpus);
            assert_int_equal(one.ebx >> 8 & 0xff, 8); /* 64-byte lines */
            assert_int_equal(one.edx >> 28 & 1, vcpus > 1);
            struct cpuid_leaf cores = cpuid_find(&mine, 0xb, 1);
            assert_int_equal(cores.eax, sizes[i].shift);
            assert_int_equal(cores.ebx, vcpus);
            assert_int_equal(cores.edx, index);
            assert_int_equal(cpuid_find(&mine, 0xb, 0).edx, index);
            struct cpuid_leaf past = cpuid_find(&mine, 0xb, 9);
            assert_int_equal(past.ebx, 0);
            assert_int_equal(past.ecx, 9);
            assert_int_equal(past.edx, index);
            if (host_is_amd())
                assert_int_equal(cpuid_find(&mine, 0x8000001e, 0).eax, index);
        }
    }
}

static void caches_are_shared_as_the_topology_says(void **test)
{
    (void)test;
    struct cpuid model;
    cpuid_model(&model, CPUID_SOFT, NULL, 4, TSC_KHZ);
    uint32_t leaf = host_is_amd() ? 0x8000001d : 4;
    unsigned levels = 0;
    for (uint32_t i = 0; i < 8; i++) {
        struct cpuid_leaf cache = cpuid_find(&model, leaf, i);
        if (!(cache.eax & 0x1f))
            break;
        uint32_t level = cache.eax >> 5 & 7;
        levels = max(levels, level);
        assert_int_equal(cache.eax >> 14 & 0xfff, level >= 3 ? 3 : 0);
        assert_true(((cache.ebx >> 22) + 1) * ((cache.ebx & 0xfff) + 1) >= 64);
        if (!host_is_amd())
            assert_int_equal(cache.eax >> 26, 3);
    }
    assert_true(levels >= 2);
}

static void the_xsave_area_follows_xcr0(void **test)
{
    (void)test;
    struct cpuid models[2], mine;
    each_model(models);
    struct cpuid_leaf area = cpuid_find(&models[0], 0xd, 0);
    if (area.eax == 7) {
        assert_int_equal(area.ecx, 832);
        assert_int_equal(cpuid_find(&models[0], 0xd, 2).ebx, 576);
        cpuid_for_vcpu(&models[0], 0, 2, 0, 7, &mine);
        assert_int_equal(cpuid_find(&mine, 0xd, 0).ebx, 832);
    }
    cpuid_for_vcpu(&models[0], 0, 2, 0, 3, &mine);
    assert_int_equal(cpuid_find(&mine, 0xd, 0).ebx, 576);
    /* AVX-512 and PKRU of a KVM host fit into the state's 4 KiB; AMX is cut off. */
    area = cpuid_find(&models[1], 0xd, 0);
    assert_int_equal(area.eax, 0x2e7);
    assert_int_equal(area.ecx, 2440);
    assert_int_equal(cpuid_find(&models[1], 0xd, 18).eax, 0);
    cpuid_for_vcpu(&models[1], 0, 2, 0, 0xe7, &mine);
    assert_int_equal(cpuid_find(&mine, 0xd, 0).ebx, 2432);
    assert_int_equal(cpuid_find(&mine, 0xd, 1).ebx, 576 + 256 + 64 + 512 + 1024); /* compacted */
}

static void osxsave_follows_cr4(void **test)
{
    (void)test;
    struct cpuid models[2], mine;
    each_model(models);
    for (int i = 0; i < 2; i++) {
        cpuid_for_vcpu(&models[i], 0, 2, 0, 1, &mine);
        assert_int_equal(cpuid_find(&mine, 1, 0).ecx & BIT(27), 0);
        cpuid_for_vcpu(&models[i], 0, 2, 1 << 18, 1, &mine);
        uint32_t ecx = cpuid_find(&mine, 1, 0).ecx;
        assert_int_equal(ecx >> 27 & 1, ecx >> 26 & 1);
    }
}

static void kvm_is_announced(void **test)
{
    (void)test;
    struct cpuid models[2];
    each_model(models);
    for (int i = 0; i < 2; i++) {
        struct cpuid_leaf name = cpuid_find(&models[i], 0x40000000, 0);
        char signature[13] = "";
        le32_write(signature, name.ebx);
        le32_write(signature + 4, name.ecx);
        le32_write(signature + 8, name.edx);
        assert_memory_equal(signature, "KVMKVMKVM\0\0\0", 12);
        assert_true(name.eax >= 0x40000010);
        assert_int_equal(cpuid_find(&models[i], 0x40000010, 0).eax, TSC_KHZ);
        assert_int_equal(cpuid_find(&models[i], 0x40000010, 0).ebx, CPUID_APIC_BUS_KHZ);
        assert_true(cpuid_find(&models[i], 1, 0).ecx & BIT(31));
        assert_true(cpuid_find(&models[i], 0x80000007, 0).edx & BIT(8));
    }
    uint32_t promised = BIT(0) | BIT(3) | BIT(7) | BIT(11) | BIT(24);
    assert_int_equal(cpuid_find(&models[0], 0x40000001, 0).eax & promised, promised);
}

static void unknown_leaves_answer_by_vendor(void **test)
{
    (void)test;
    for (int amd = 0; amd < 2; amd++) {
        struct cpuid table = {0};
        struct words vendor =
            amd ? (struct words){0xd, signature_AMD_ebx, signature_AMD_ecx, signature_AMD_edx}
                : (struct words){0xd, signature_INTEL_ebx, signature_INTEL_ecx,
                                 signature_INTEL_edx};
        add(&table, 0, 0, false, vendor);
        vendor.eax = 0x80000001;
        add(&table, 0x80000000, 0, false, vendor);
        add(&table, 1, 0, false, (struct words){1, 2, 3, 4});
        add(&table, 0xd, 0, true, (struct words){7, 8, 9, 10});
        add(&table, 0xd, 1, true, (struct words){11, 12, 13, 14});
        assert_int_equal(cpuid_find(&table, 1, 77).ebx, 2); /* no sub-leaves: ECX ignored */
        assert_int_equal(cpuid_find(&table, 5, 0).eax, 0);  /* in range: zeroes */
        assert_int_equal(cpuid_find(&table, 0xd, 5).eax, 0);
        assert_int_equal(cpuid_find(&table, 0xe, 1).eax, amd ? 0 : 11);
        assert_int_equal(cpuid_find(&table, 0x80000002, 0).ebx, amd ? 0 : 8);
        assert_int_equal(cpuid_find(&table, 0x80000001, 0).ebx, 0);
        assert_int_equal(cpuid_find(&table, 0x50000000, 0).eax, amd ? 0 : 7);
        assert_int_equal(cpuid_find(&table, UINT32_MAX, 0).eax, amd ? 0 : 7);
    }
    struct cpuid nothing = {0};
    assert_int_equal(cpuid_find(&nothing, 1, 0).eax, 0);
}

static void the_tsc_frequency_is_right(void **test)
{
    (void)test;
    uint64_t khz = cpuid_host_tsc_khz();
    assert_int_equal(cpuid_host_tsc_khz(), khz);
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    uint64_t first = __builtin_ia32_rdtsc();
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    uint64_t ticks = __builtin_ia32_rdtsc() - first;
    clock_gettime(CLOCK_MONOTONIC, &end);
    uint64_t ns = (uint64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (uint64_t)end.tv_nsec -
                  (uint64_t)start.tv_nsec;
    uint64_t measured = ticks * 1000000 / ns;
    assert_in_range(khz, measured - measured / 50, measured + measured / 50);
}

static void physical_addresses_can_be_narrower(void **test)
{
    (void)test;
    struct cpuid models[2];
    each_model(models);
    for (int i = 0; i < 2; i++) {
        struct cpuid_leaf before = cpuid_find(&models[i], 0x80000008, 0);
        cpuid_limit_physical(&models[i], 0);
        assert_int_equal(cpuid_find(&models[i], 0x80000008, 0).eax, before.eax);
        cpuid_limit_physical(&models[i], 36);
        struct cpuid_leaf after = cpuid_find(&models[i], 0x80000008, 0);
        assert_int_equal(after.eax, (before.eax & ~0xffu) | 36);
        cpuid_limit_physical(&models[i], 40); /* never wider */
        assert_int_equal(cpuid_find(&models[i], 0x80000008, 0).eax & 0xff, 36);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_identity_is_the_hosts),
        cmocka_unit_test(what_is_hidden_stays_hidden),
        cmocka_unit_test(native_features_are_the_hosts),
        cmocka_unit_test(linux_needs_no_retpolines),
        cmocka_unit_test(a_portable_model_is_for_both),
        cmocka_unit_test(what_is_missing_has_a_name),
        cmocka_unit_test(an_xsave_image_is_not_taken_apart),
        cmocka_unit_test(kvm_is_bounded_by_what_is_supported),
        cmocka_unit_test(no_leaf_is_told_twice),
        cmocka_unit_test(every_vcpu_has_its_place),
        cmocka_unit_test(caches_are_shared_as_the_topology_says),
        cmocka_unit_test(the_xsave_area_follows_xcr0),
        cmocka_unit_test(osxsave_follows_cr4),
        cmocka_unit_test(kvm_is_announced),
        cmocka_unit_test(unknown_leaves_answer_by_vendor),
        cmocka_unit_test(the_tsc_frequency_is_right),
        cmocka_unit_test(physical_addresses_can_be_narrower),
    };
    return cmocka_run_group_tests_name("cpuid", tests, NULL, NULL);
}
