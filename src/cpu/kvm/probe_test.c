#include "cpu/kvm/probe.h"

#include "base/clock.h"
#include "cpu/kvm/guest_test.h"

static void an_absent_device_is_explained(void **test)
{
    (void)test;
    struct kvm_probe probe;
    kvm_probe("/dev/no-such-kvm", -1, &probe);
    assert_false(probe.opens || probe.works || probe.fast);
    assert_non_null(strstr(probe.why, "/dev/no-such-kvm"));
    assert_non_null(strstr(probe.why, "modprobe"));
}

static void a_device_that_is_not_kvm_does_not_work(void **test)
{
    (void)test;
    struct kvm_probe probe;
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    kvm_probe(NULL, fd, &probe);
    assert_true(probe.opens);
    assert_false(probe.works || probe.fast);
    assert_true(probe.why[0]);
    assert_true(fcntl(fd, F_GETFD) >= 0);
    close(fd);
}

static void the_cost_of_an_instruction_is_measured(void **test)
{
    (void)test;
    need_kvm();
    struct kvm_probe probe;
    uint64_t least = UINT64_MAX;
    unsigned measured = 0;
    for (int i = 0; i < 5; i++) { /* the least of five: other processes may run meanwhile */
        uint64_t start = clock_ms();
        kvm_probe(NULL, -1, &probe);
        least = min(least, clock_ms() - start);
        assert_true(probe.opens);
        if (!probe.works) {
            assert_non_null(strstr(probe.why, "too busy"));
            continue;
        }
        measured++;
        assert_int_equal(probe.fast, probe.ns <= KVM_PROBE_SLOW_NS);
        assert_true(probe.ns < 1000000);
    }
    print_message("%s; probe took %d ms\n", probe.why, (int)least);
    assert_true(measured > 0);
    /* Patience ends after a second of everybody's time; making a VM and leaving it take some more
     * where all this is a guest's, too. */
    assert_true(least <= 3000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_absent_device_is_explained),
        cmocka_unit_test(a_device_that_is_not_kvm_does_not_work),
        cmocka_unit_test(the_cost_of_an_instruction_is_measured),
    };
    return cmocka_run_group_tests_name("kvm probe", tests, NULL, NULL);
}
