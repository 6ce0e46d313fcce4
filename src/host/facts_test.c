#include "base/bytes.h"
#include "base/own.h"
#include "host/facts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

static void put(const char *root, const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0755);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int make_root(void **state)
{
    static char root[64];
    strcpy(root, "/tmp/facts-XXXXXX");
    *state = mkdtemp(root);
    return *state ? 0 : -1;
}

static int remove_root(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", (char *)*state);
    return system(command);
}

static void a_machine_is_read(void **state)
{
    const char *root = *state;
    struct host_facts facts;
    put(root, "/proc/cpuinfo",
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC 1 @ 2 GHz\n"
        "flags\t\t: fpu svm_lock svm\n\nprocessor\t: 1\nmodel name\t: other\nflags\t\t: vmx\n");
    put(root, "/proc/meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n");
    put(root, "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n");
    put(root, "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n");
    put(root, "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n");
    put(root, "/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    put(root, "/sys/kernel/mm/ksm/run", "1\n");
    put(root, "/sys/kernel/mm/ksm/pages_sharing", "77\n");
    put(root, "/sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
    host_facts_read(root, &facts);
    assert_string_equal(facts.cpu_model, "EPYC 1 @ 2 GHz");
    assert_string_equal(facts.cpu_vendor, "AuthenticAMD");
    assert_int_equal(facts.cpus, 2);
    assert_true(facts.svm);
    assert_false(facts.vmx); /* svm_lock is another word; the second processor is not asked */
    assert_false(facts.hypervisor);
    assert_int_equal(facts.memory, MIB(2));
    assert_int_equal(facts.memory_available, MIB(1));
    assert_int_equal(facts.huge_count, 2);
    assert_int_equal(facts.huge[0].page, MIB(2));
    assert_int_equal(facts.huge[0].total, 8);
    assert_int_equal(facts.huge[0].free, 3);
    assert_int_equal(facts.huge[1].page, GIB(1));
    assert_string_equal(facts.transparent_huge, "madvise");
    assert_true(facts.ksm && facts.ksm_running);
    assert_int_equal(facts.ksm_pages_sharing, 77);
    assert_int_equal(facts.cgroup, 2);
}

static void what_is_hidden_is_empty(void **state)
{
    const char *root = *state;
    struct host_facts facts;
    host_facts_read(root, &facts);
    assert_string_equal(facts.cpu_model, "");
    assert_int_equal(facts.cpus, 0);
    assert_int_equal(facts.memory, 0);
    assert_int_equal(facts.huge_count, 0);
    assert_false(facts.ksm);
    assert_int_equal(facts.cgroup, 0);
    put(root, "/proc/self/mounts",
        "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n");
    host_facts_read(root, &facts);
    assert_int_equal(facts.cgroup, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_machine_is_read, make_root, remove_root),
        cmocka_unit_test_setup_teardown(what_is_hidden_is_empty, make_root, remove_root),
    };
    return cmocka_run_group_tests_name("host facts", tests, NULL, NULL);
}
