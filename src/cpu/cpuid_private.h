/*
 * cpuid_private.h: CPUID from inside; users see cpuid.h. cpuid.c makes models, cpuid_promise.c
 * compares them and makes them portable.
 */
#pragma once

#include "cpu/cpuid.h"

enum cpuid_register { EAX, EBX, ECX, EDX };

#define BIT(n) (UINT32_C(1) << (n))

enum {
    LEAF_FEATURES = 1,
    LEAF_DESCRIPTORS = 2,
    LEAF_CACHES = 4,
    LEAF_POWER = 6,
    LEAF_EXTENDED = 7,
    LEAF_TOPOLOGY = 0xb,
    LEAF_XSAVE = 0xd,
    LEAF_TSC = 0x15,
    LEAF_CLOCKS = 0x16,
};
#define LEAF_KVM        UINT32_C(0x40000000)
#define LEAF_KVM_BITS   UINT32_C(0x40000001)
#define LEAF_KVM_CLOCKS UINT32_C(0x40000010)
#define LEAF_HIGH       UINT32_C(0x80000000)
#define LEAF_AMD        UINT32_C(0x80000001)
#define LEAF_BRAND      UINT32_C(0x80000002)
#define LEAF_AMD_L1     UINT32_C(0x80000005)
#define LEAF_AMD_L2     UINT32_C(0x80000006)
#define LEAF_TSC_FLAGS  UINT32_C(0x80000007)
#define LEAF_WIDTHS     UINT32_C(0x80000008)
#define LEAF_AMD_CACHES UINT32_C(0x8000001d)
#define LEAF_AMD_TOPO   UINT32_C(0x8000001e)
#define LEAF_AMD_MORE   UINT32_C(0x80000021)

#define ECX1_XSAVE      BIT(26)
#define ECX1_OSXSAVE    BIT(27)
#define ECX1_AVX        BIT(28)
#define ECX1_HYPERVISOR BIT(31)
#define EDX1_HTT        BIT(28)
#define ECX7_OSPKE      BIT(4)
#define ECX_CMP_LEGACY  BIT(1)

/* What this process is told. */
struct cpuid_leaf cpuid_host_leaf(uint32_t leaf, uint32_t subleaf);
uint32_t *cpuid_register(struct cpuid_leaf *leaf, enum cpuid_register where);
/* The entry to change, made empty where there is none. */
struct cpuid_leaf *cpuid_entry(struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf);
/* Works out what follows from the state components of leaf 0xD. */
void cpuid_xsave_sizes(struct cpuid *cpuid);
