/* What a snapshot holds of a CPU: its state, and what it promised the guest. */
#include "base/bytes.h"
#include "base/record.h"
#include "cpu/cpuid.h"
#include "cpu/state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { TSC_KHZ = 2500000 };

static uint32_t noise(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

/* ---- a vCPU's state ---- */

/* Any values at all, but for those fields that have bounds. */
static void state_random(struct cpu_state *state, uint64_t seed)
{
    uint8_t *bytes = (uint8_t *)state;
    for (size_t i = 0; i < sizeof *state; i++)
        bytes[i] = (uint8_t)noise(&seed);
    state->pending.exception_has_error &= 1;
    state->pending.exception_has_payload &= 1;
    state->pending.nmi_pending &= 1;
    state->pending.nmi_blocked &= 1;
    state->pending.interrupt_shadow %= 3;
    state->pending.interrupt_soft &= 1;
    state->run_state %= CPU_RUN_STATE_MAX;
    state->has_apic &= 1;
    /* Carry no meaning, and are not saved. */
    memset(state->pending.reserved, 0, sizeof state->pending.reserved);
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        memset(state->segment[i].reserved, 0, sizeof state->segment[i].reserved);
    memset(state->ldt.reserved, 0, sizeof state->ldt.reserved);
    memset(state->task.reserved, 0, sizeof state->task.reserved);
    memset(state->gdt.reserved, 0, sizeof state->gdt.reserved);
    memset(state->idt.reserved, 0, sizeof state->idt.reserved);
}

static struct record saved_state(struct cpu_state *state)
{
    struct record record;
    record_save(&record, CPU_STATE_VERSION);
    cpu_state_record(state, &record);
    assert_true(record_ended(&record));
    return record;
}

static bool load_state(struct cpu_state *state, const void *bytes, size_t size)
{
    struct record record;
    memset(state, 0, sizeof *state);
    record_load(&record, bytes, size, CPU_STATE_VERSION);
    cpu_state_record(state, &record);
    return record_ended(&record);
}

static void any_state_comes_back(void **test)
{
    (void)test;
    struct cpu_state *one = malloc(sizeof *one), *two = malloc(sizeof *two);
    for (uint64_t seed = 1; seed <= 50; seed++) {
        state_random(one, seed);
        struct record record = saved_state(one);
        assert_true(load_state(two, record.bytes, record.size));
        assert_memory_equal(one, two, sizeof *one);
        struct record again = saved_state(two);
        assert_int_equal(again.size, record.size);
        assert_memory_equal(again.bytes, record.bytes, record.size);
        record_free(&record);
        record_free(&again);
    }
    cpu_state_reset(one, 1);
    struct record record = saved_state(one);
    assert_true(load_state(two, record.bytes, record.size));
    assert_memory_equal(one, two, sizeof *one);
    record_free(&record);
    free(one);
    free(two);
}

static void a_state_that_is_cut_or_grown_is_refused(void **test)
{
    (void)test;
    struct cpu_state *state = malloc(sizeof *state);
    state_random(state, 7);
    struct record record = saved_state(state);
    for (size_t size = 0; size < record.size; size += size < 1100 ? 1 : 41) {
        uint8_t *cut = malloc(max(size, (size_t)1));
        memcpy(cut, record.bytes, size);
        assert_false(load_state(state, cut, size));
        free(cut);
    }
    uint8_t *longer = calloc(1, record.size + 1);
    memcpy(longer, record.bytes, record.size);
    assert_false(load_state(state, longer, record.size + 1));
    free(longer);
    record_free(&record);
    free(state);
}

/* Where the fields lie that have bounds, from the end: apic, xsave, run_state, has_apic. */
static void fields_with_bounds_are_held_to_them(void **test)
{
    (void)test;
    struct cpu_state *state = malloc(sizeof *state);
    cpu_state_reset(state, 0);
    struct record record = saved_state(state);
    size_t tail = record.size - CPU_XSAVE_SIZE - CPU_APIC_SIZE;
    const struct {
        size_t at;
        uint8_t wrong;
    } fields[] = {
        {tail - 4, 2},    {tail - 1, 1},     {tail - 8, CPU_RUN_STATE_MAX},
        {tail - 5, 0x80}, {tail - 8 - 1, 2}, {tail - 10, 3},
        {tail - 11, 2},   {tail - 12, 2},    {tail - 8 - 5, 2},
        {tail - 14, 2},
    };
    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        uint8_t before = record.bytes[fields[i].at];
        record.bytes[fields[i].at] = fields[i].wrong;
        assert_false(load_state(state, record.bytes, record.size));
        record.bytes[fields[i].at] = before;
        assert_true(load_state(state, record.bytes, record.size));
    }
    record_free(&record);
    free(state);
}

/* The list of MSRs grows at its end: one that is shorter is an older version's. */
static void an_older_list_of_registers_is_read(void **test)
{
    (void)test;
    struct cpu_state *one = malloc(sizeof *one), *two = malloc(sizeof *two);
    state_random(one, 3);
    struct record record = saved_state(one);
    /* 16 general, 15 others, 8 segments of 18 bytes, 2 tables of 10. */
    size_t list = (16 + 15) * 8 + 8 * 18 + 2 * 10;
    assert_int_equal(le32_read(record.bytes + list), CPU_MSR_MAX);
    assert_memory_equal(record.bytes + list + 4, &one->msr[0], 8);
    le32_write(record.bytes + list, CPU_MSR_MAX - 2);
    size_t hole = list + 4 + (CPU_MSR_MAX - 2) * 8;
    memmove(record.bytes + hole, record.bytes + hole + 16, record.size - hole - 16);
    assert_true(load_state(two, record.bytes, record.size - 16));
    one->msr[CPU_MSR_MAX - 1] = one->msr[CPU_MSR_MAX - 2] = 0;
    assert_memory_equal(one, two, sizeof *one);
    const uint32_t counts[] = {CPU_MSR_MAX + 1, UINT32_MAX, 0x80000000};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        le32_write(record.bytes + list, counts[i]);
        assert_false(load_state(two, record.bytes, record.size));
    }
    record_free(&record);
    free(one);
    free(two);
}

/* ---- CPUID ---- */

static struct cpuid model(void)
{
    struct cpuid cpuid;
    cpuid_model(&cpuid, CPUID_SOFT, NULL, 2, TSC_KHZ);
    return cpuid;
}

static bool load_cpuid(struct cpuid *cpuid, const void *bytes, size_t size)
{
    struct record record;
    memset(cpuid, 0, sizeof *cpuid);
    record_load(&record, bytes, size, 1);
    cpuid_record(cpuid, &record);
    return record_ended(&record);
}

static void a_table_comes_back(void **test)
{
    (void)test;
    struct cpuid one = model(), two;
    struct record record;
    record_save(&record, 1);
    cpuid_record(&one, &record);
    assert_true(record_ended(&record));
    assert_int_equal(record.size, 4 + one.count * 25);
    assert_true(load_cpuid(&two, record.bytes, record.size));
    assert_int_equal(one.count, two.count);
    for (unsigned i = 0; i < one.count; i++) {
        assert_int_equal(one.leaves[i].leaf, two.leaves[i].leaf);
        assert_int_equal(one.leaves[i].subleaf, two.leaves[i].subleaf);
        assert_int_equal(one.leaves[i].by_subleaf, two.leaves[i].by_subleaf);
        assert_int_equal(one.leaves[i].eax, two.leaves[i].eax);
        assert_int_equal(one.leaves[i].ebx, two.leaves[i].ebx);
        assert_int_equal(one.leaves[i].ecx, two.leaves[i].ecx);
        assert_int_equal(one.leaves[i].edx, two.leaves[i].edx);
    }
    for (size_t size = 0; size < record.size; size++)
        assert_false(load_cpuid(&two, record.bytes, size));
    le32_write(record.bytes, CPUID_LEAVES_MAX + 1);
    assert_false(load_cpuid(&two, record.bytes, record.size));
    assert_int_equal(two.count, 0);
    le32_write(record.bytes, UINT32_MAX);
    assert_false(load_cpuid(&two, record.bytes, record.size));
    record_free(&record);
}

/* The leaf of a table, or a new one with all bits clear. */
static struct cpuid_leaf *leaf_of(struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < cpuid->count; i++)
        if (cpuid->leaves[i].leaf == leaf &&
            (!cpuid->leaves[i].by_subleaf || cpuid->leaves[i].subleaf == subleaf))
            return &cpuid->leaves[i];
    assert_true(cpuid->count < CPUID_LEAVES_MAX);
    cpuid->leaves[cpuid->count] =
        (struct cpuid_leaf){leaf, subleaf, leaf == 7 || leaf == 0xd, 0, 0, 0, 0};
    return &cpuid->leaves[cpuid->count++];
}

static uint32_t *register_of(struct cpuid_leaf *leaf, char where)
{
    uint32_t *const registers[] = {&leaf->eax, &leaf->ebx, &leaf->ecx, &leaf->edx};
    return registers[where - 'a'];
}

/* A table that has all leaves which promise something. */
static struct cpuid ample(void)
{
    struct cpuid cpuid = model();
    leaf_of(&cpuid, 0, 0)->eax = 0x1f;
    leaf_of(&cpuid, 0x80000000, 0)->eax = 0x80000021;
    leaf_of(&cpuid, 7, 0)->eax = 1;
    return cpuid;
}

static const struct promise {
    uint32_t leaf, subleaf;
    char where;
    uint32_t not ; /* bits that say how the vCPU is set */
    const char *name;
} promises[] = {
    {1, 0, 'c', 1u << 27, "1.ecx"},
    {1, 0, 'd', 1u << 28, "1.edx"},
    {7, 0, 'b', 0, "7.0.ebx"},
    {7, 0, 'c', 1u << 4, "7.0.ecx"},
    {7, 0, 'd', 0, "7.0.edx"},
    {7, 1, 'a', 0, "7.1.eax"},
    {7, 1, 'd', 0, "7.1.edx"},
    {0xd, 0, 'a', 0, "d.0.eax"},
    {0xd, 1, 'a', 0, "d.1.eax"},
    {0x40000001, 0, 'a', 0, "40000001.eax"},
    {0x80000001, 0, 'c', 0, "80000001.ecx"},
    {0x80000001, 0, 'd', 0, "80000001.edx"},
    {0x80000007, 0, 'd', 0, "80000007.edx"},
    {0x80000008, 0, 'b', 0, "80000008.ebx"},
    {0x80000021, 0, 'a', 0, "80000021.eax"},
};

static void every_promise_is_asked_for(void **test)
{
    (void)test;
    char what[CPUID_WHAT_MAX];
    for (size_t i = 0; i < ARRAY_LEN(promises); i++)
        for (unsigned bit = 0; bit < 32; bit++) {
            const struct promise *promise = &promises[i];
            struct cpuid have = ample(), wanted = ample();
            uint32_t mask = 1u << bit;
            *register_of(leaf_of(&have, promise->leaf, promise->subleaf), promise->where) &= ~mask;
            *register_of(leaf_of(&wanted, promise->leaf, promise->subleaf), promise->where) |= mask;
            bool counts = !(promise->not &mask);
            if (cpuid_covers(&have, &wanted, what) == counts)
                fail_msg("%s, bit %u", promise->name, bit);
            if (counts) {
                char expected[CPUID_WHAT_MAX];
                snprintf(expected, sizeof expected, "CPUID %s, bits %#x", promise->name, mask);
                assert_non_null(strstr(what, expected));
            }
            assert_true(cpuid_covers(&wanted, &have, what)); /* more than promised is fine */
        }
}

static void a_table_covers_itself(void **test)
{
    (void)test;
    char what[CPUID_WHAT_MAX];
    struct cpuid cpuid = model(), all = ample();
    assert_true(cpuid_covers(&cpuid, &cpuid, what));
    assert_true(cpuid_covers(&all, &all, what));
}

static void addresses_may_not_become_narrower(void **test)
{
    (void)test;
    char what[CPUID_WHAT_MAX];
    struct cpuid have = ample(), wanted = ample();
    uint32_t *width = &leaf_of(&have, 0x80000008, 0)->eax;
    leaf_of(&wanted, 0x80000008, 0)->eax = 48 << 8 | 46;
    *width = 48 << 8 | 45;
    assert_false(cpuid_covers(&have, &wanted, what));
    assert_non_null(strstr(what, "46 bits (45 are there)"));
    *width = 48 << 8 | 46;
    assert_true(cpuid_covers(&have, &wanted, what));
    *width = 48 << 8 | 52;
    assert_true(cpuid_covers(&have, &wanted, what));
}

/* Behind the last leaf other leaves' contents are read: they promise nothing. */
static void a_leaf_that_is_not_there_promises_nothing(void **test)
{
    (void)test;
    char what[CPUID_WHAT_MAX];
    struct cpuid have = ample(), wanted = ample();
    leaf_of(&have, 7, 0)->ebx = 0;
    leaf_of(&wanted, 7, 0)->ebx = UINT32_MAX;
    assert_false(cpuid_covers(&have, &wanted, what));
    leaf_of(&wanted, 0, 0)->eax = 6;
    leaf_of(&wanted, 6, 0)->ebx = UINT32_MAX; /* what leaf 7 is answered with on Intel */
    leaf_of(&wanted, 0xd, 0)->eax = 0;
    assert_true(cpuid_covers(&have, &wanted, what));
    /* The other way round: what is only behind the end is not there. */
    wanted = ample();
    have = ample();
    leaf_of(&have, 0, 0)->eax = 6;
    leaf_of(&wanted, 7, 0)->ebx = 1;
    leaf_of(&have, 6, 0)->ebx = UINT32_MAX;
    assert_false(cpuid_covers(&have, &wanted, what));
}

/* Whatever a file says, it is compared and no more. */
static void any_table_does_no_harm(void **test)
{
    (void)test;
    char what[CPUID_WHAT_MAX];
    struct cpuid mine = model(), cpuid;
    struct record record;
    record_save(&record, 1);
    cpuid_record(&mine, &record);
    for (uint64_t seed = 1; seed < 3000; seed++) {
        uint64_t state = seed;
        uint8_t *bytes = malloc(record.size);
        memcpy(bytes, record.bytes, record.size);
        for (unsigned i = 0; i < 1 + seed % 20; i++)
            bytes[noise(&state) % record.size] = (uint8_t)noise(&state);
        if (load_cpuid(&cpuid, bytes, record.size) && !cpuid_covers(&mine, &cpuid, what))
            assert_true(strlen(what) < CPUID_WHAT_MAX);
        free(bytes);
    }
    record_free(&record);
}

static void a_frequency_that_cannot_be_is_not_assumed(void **test)
{
    (void)test;
    uint64_t measured = cpuid_host_tsc_khz();
    cpuid_assume_host_tsc_khz(0);
    cpuid_assume_host_tsc_khz(99999);
    cpuid_assume_host_tsc_khz(UINT64_MAX);
    assert_int_equal(cpuid_host_tsc_khz(), measured);
    cpuid_assume_host_tsc_khz(3000001);
    assert_int_equal(cpuid_host_tsc_khz(), 3000001);
    cpuid_assume_host_tsc_khz(measured);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_state_comes_back),
        cmocka_unit_test(a_state_that_is_cut_or_grown_is_refused),
        cmocka_unit_test(fields_with_bounds_are_held_to_them),
        cmocka_unit_test(an_older_list_of_registers_is_read),
        cmocka_unit_test(a_table_comes_back),
        cmocka_unit_test(every_promise_is_asked_for),
        cmocka_unit_test(a_table_covers_itself),
        cmocka_unit_test(addresses_may_not_become_narrower),
        cmocka_unit_test(a_leaf_that_is_not_there_promises_nothing),
        cmocka_unit_test(any_table_does_no_harm),
        cmocka_unit_test(a_frequency_that_cannot_be_is_not_assumed),
    };
    return cmocka_run_group_tests_name("cpu record", tests, NULL, NULL);
}
