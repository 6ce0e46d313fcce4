// needs: base mem cpu
/*
 * CPUID tables from anywhere: what a KVM claims to support bounds the model, and what a snapshot
 * brings as a table is only ever read within itself. The bytes are rows of a table, then a query.
 */
#include "base/bytes.h"
#include "cpu/cpuid.h"

#include <assert.h>
#include <stdlib.h>

enum { ROW_SIZE = 4 + 1 + 1 + 4 * 4 };

static const uint32_t interesting[] = {
    0,          1,          2,          4,          6,          7,          0xa,        0xb,
    0xd,        0x12,       0x14,       0x15,       0x16,       0x40000000, 0x40000001, 0x40000010,
    0x80000000, 0x80000001, 0x80000005, 0x80000007, 0x80000008, 0x8000001d, 0x8000001e, 0x80000021,
};

static void read_table(struct cpuid *table, const uint8_t *data, size_t size)
{
    table->count = 0;
    for (; size >= ROW_SIZE && table->count < CPUID_LEAVES_MAX;
         data += ROW_SIZE, size -= ROW_SIZE) {
        uint32_t leaf = le32_read(data);
        table->leaves[table->count++] = (struct cpuid_leaf){
            .leaf = leaf % 3 ? interesting[leaf % ARRAY_LEN(interesting)] : leaf,
            .subleaf = data[4],
            .by_subleaf = data[5] & 1,
            .eax = le32_read(data + 6),
            .ebx = le32_read(data + 10),
            .ecx = le32_read(data + 14),
            .edx = le32_read(data + 18),
        };
    }
}

static void check_bounds(const struct cpuid *model, const struct cpuid *supported)
{
    uint32_t ecx = 0, edx = 0;
    for (unsigned i = 0; i < supported->count; i++)
        if (supported->leaves[i].leaf == 1) {
            ecx |= supported->leaves[i].ecx;
            edx |= supported->leaves[i].edx;
        }
    struct cpuid_leaf one = cpuid_find(model, 1, 0);
    assert(!(one.ecx & ~ecx & ~(UINT32_C(1) << 31)));            /* "hypervisor" is ours */
    assert(!(one.edx & ~edx & ~(UINT32_C(1) << 28)));            /* so is "several processors" */
    assert(!(one.ecx & (UINT32_C(1) << 5 | 1 << 3)));            /* VMX, MWAIT */
    assert(!(cpuid_find(model, 7, 0).ebx & (1 << 4 | 1 << 11))); /* TSX */
    assert(!(cpuid_find(model, 0xd, 0).eax & ~UINT32_C(0x2e7)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cpuid table, model, mine;
    if (size < 20)
        return 0;
    unsigned vcpus = 1 + data[0] % 64, index = data[1] % vcpus;
    uint32_t leaf = le32_read(data + 2), subleaf = data[6];
    uint64_t cr4 = le32_read(data + 7), xcr0 = le64_read(data + 11);
    read_table(&table, data + 19, size - 19);

    cpuid_model(&model, CPUID_KVM, &table, vcpus, cr4);
    check_bounds(&model, &table);
    cpuid_for_vcpu(&model, index, vcpus, cr4, xcr0, &mine);
    assert(cpuid_find(&mine, 1, 0).ebx >> 24 == index);
    cpuid_find(&mine, leaf, subleaf);

    struct cpuid able, portable;
    char what[CPUID_WHAT_MAX];
    cpuid_portable(&portable, CPUID_KVM, &table, vcpus, cr4);
    cpuid_able(&able, CPUID_SOFT, NULL, vcpus, cr4);
    check_bounds(&portable, &table);
    assert(cpuid_covers(&model, &portable, what));
    /* Covered but for where the components of XSAVE are said to lie. */
    cpuid_covers(&able, &portable, what);
    cpuid_covers(&able, &table, what);
    cpuid_covers(&table, &able, what);

    cpuid_for_vcpu(&table, index, vcpus, cr4, xcr0, &mine); /* a table as it was given */
    cpuid_find(&mine, leaf, subleaf);
    for (unsigned i = 0; i < ARRAY_LEN(interesting); i++)
        cpuid_find(&mine, interesting[i], subleaf);
    return 0;
}
