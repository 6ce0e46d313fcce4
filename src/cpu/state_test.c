#include "base/bytes.h"
#include "cpu/msr.h"
#include "cpu/state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void reset_is_the_power_on_state(void **test)
{
    (void)test;
    struct cpu_state state;
    memset(&state, 0xa5, sizeof state);
    cpu_state_reset(&state, 0);
    assert_int_equal(state.segment[CPU_CS].base + state.rip, 0xfffffff0);
    assert_int_equal(state.segment[CPU_CS].attributes, 0x9b);
    assert_int_equal(state.segment[CPU_SS].attributes, 0x93);
    assert_int_equal(state.task.attributes, 0x8b);
    assert_int_equal(state.cr0, 0x60000010);
    assert_int_equal(state.rflags, 2);
    assert_int_equal(state.efer | state.cr3 | state.cr4, 0);
    assert_int_equal(state.msr[CPU_MSR_APIC_BASE], 0xfee00900);
    assert_int_equal(state.msr[CPU_MSR_PAT], 0x0007040600070406);
    assert_int_equal(state.run_state, CPU_RUNNING);
    assert_int_equal(state.pending.exception, -1);
    assert_int_equal(state.pending.interrupt, -1);
    assert_int_equal(le16_read(state.xsave), 0x37f);
    assert_int_equal(le32_read(state.xsave + 24), 0x1f80);
}

static void other_processors_wait_for_sipi(void **test)
{
    (void)test;
    struct cpu_state state;
    cpu_state_reset(&state, 3);
    assert_int_equal(state.run_state, CPU_WAIT_FOR_SIPI);
    assert_int_equal(state.msr[CPU_MSR_APIC_BASE], 0xfee00800);
    assert_int_equal(le32_read(state.apic + 0x20), 3 << 24);
    assert_int_equal(le32_read(state.apic + 0x320), 0x10000);
    assert_int_equal(le32_read(state.apic + 0x370), 0x10000);
}

static void every_msr_has_a_number_of_its_own(void **test)
{
    (void)test;
    for (int i = 0; i < CPU_MSR_MAX; i++) {
        assert_int_not_equal(cpu_msr_index[i], 0);
        assert_int_equal(cpu_msr_slot(cpu_msr_index[i]), i);
    }
    assert_int_equal(cpu_msr_slot(0x11), CPU_MSR_KVM_WALL_CLOCK);
    assert_int_equal(cpu_msr_slot(0x12), CPU_MSR_KVM_SYSTEM_TIME);
    assert_int_equal(cpu_msr_slot(0xdead), -1);
    assert_int_equal(cpu_msr_index[CPU_MSR_MTRR_PHYS_MASK7], 0x20f);
    assert_int_equal(cpu_msr_index[CPU_MSR_MTRR_FIX4K_F8000], 0x26f);
}

static void print_stays_in_its_bounds(void **test)
{
    (void)test;
    struct cpu_state state;
    cpu_state_reset(&state, 0);
    state.gpr[CPU_R15] = 0xfeedfacecafebeef;
    char whole[4096];
    int length = cpu_state_print(&state, whole, sizeof whole);
    assert_int_equal(length, strlen(whole));
    assert_non_null(strstr(whole, "r15 feedfacecafebeef"));
    assert_non_null(strstr(whole, "cs  f000 base 00000000ffff0000"));
    assert_int_equal(cpu_state_print(&state, NULL, 0), length);
    for (unsigned size = 1; size < sizeof whole; size += 97) {
        char cut[sizeof whole + 1];
        memset(cut, 0x5a, sizeof cut);
        assert_int_equal(cpu_state_print(&state, cut, size), length);
        assert_int_equal(cut[size], 0x5a);
        unsigned kept = min(size - 1, (unsigned)length);
        assert_int_equal(strlen(cut), kept);
        assert_memory_equal(cut, whole, kept);
    }
    state.run_state = 77; /* a damaged snapshot is printed too */
    assert_true(cpu_state_print(&state, whole, sizeof whole) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reset_is_the_power_on_state),
        cmocka_unit_test(other_processors_wait_for_sipi),
        cmocka_unit_test(every_msr_has_a_number_of_its_own),
        cmocka_unit_test(print_stays_in_its_bounds),
    };
    return cmocka_run_group_tests_name("cpu state", tests, NULL, NULL);
}
