#include "identity.h"

#include "base/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char root[] = "/tmp/lodge-identity-XXXXXX";

static const char *const folders[] = {"etc", "var", "var/lib", "var/lib/dbus"};

static void path_of(const char *name, char ret_path[128])
{
    snprintf(ret_path, 128, "%s/%s", root, name);
}

static void put(const char *name, const char *text, mode_t mode)
{
    char path[128];
    path_of(name, path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    assert_int_equal(chmod(path, mode), 0);
}

static void is(const char *name, const char *text)
{
    char path[128], got[512] = "";
    path_of(name, path);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    got[fread(got, 1, sizeof got - 1, file)] = '\0';
    fclose(file);
    assert_string_equal(got, text);
}

static bool there(const char *name)
{
    char path[128];
    struct stat status;
    path_of(name, path);
    return lstat(path, &status) == 0;
}

static int setup(void **state)
{
    char path[128];
    strcpy(root + sizeof root - 7, "XXXXXX");
    if (!mkdtemp(root))
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
        path_of(folders[i], path);
        if (mkdir(path, 0755) < 0)
            return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    char command[160];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

static void names_go_where_names_were(void **state)
{
    struct err err = {0};
    put("etc/hostname", "web\n", 0640);
    put("etc/hosts",
        "127.0.0.1 localhost web\n127.0.1.1\tweb.example web  web2 # web\n::1 web\n127.0.1.11 web",
        0644);
    assert_int_equal(identity_hostname_files(root, "web", "web-7", &err), 0);
    is("etc/hostname", "web-7\n");
    /* Lines of that address only, and whole words, also before a domain. */
    is("etc/hosts", "127.0.0.1 localhost web\n127.0.1.1\tweb-7.example web-7  web2 # web-7\n::1 "
                    "web\n127.0.1.11 web");
    struct stat status;
    char path[128];
    path_of("etc/hostname", path);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0640);
    assert_false(there("etc/hostname.lodge"));
}

static void what_is_not_there_is_not_made(void **state)
{
    struct err err = {0};
    assert_int_equal(identity_hostname_files(root, "web", "new", &err), 0);
    assert_int_equal(identity_machine_id(root, &err), 0);
    assert_false(there("etc/hostname") || there("etc/hosts") || there("etc/machine-id") ||
                 there("var/lib/dbus/machine-id"));
    /* Empty: systemd will make one at the first boot. */
    put("etc/machine-id", "", 0444);
    assert_int_equal(identity_machine_id(root, &err), 0);
    is("etc/machine-id", "");
}

static void a_machine_id_is_new_and_valid(void **state)
{
    static const char old[] = "0123456789abcdef0123456789abcdef\n";
    struct err err = {0};
    char path[128], text[3][64];
    put("etc/machine-id", old, 0444);
    put("var/lib/dbus/machine-id", old, 0644);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(identity_machine_id(root, &err), 0);
        path_of("etc/machine-id", path);
        FILE *file = fopen(path, "r");
        assert_non_null(fgets(text[i], sizeof text[i], file));
        fclose(file);
        assert_int_equal(strspn(text[i], "0123456789abcdef"), 32);
        assert_int_equal(strlen(text[i]), 33);
        assert_int_equal(text[i][12], '4'); /* RFC 4122: a random one */
        assert_non_null(strchr("89ab", text[i][16]));
        is("var/lib/dbus/machine-id", text[i]);
    }
    assert_true(strcmp(text[0], old) && strcmp(text[0], text[1]) && strcmp(text[1], text[2]));
}

static void links_stay_links(void **state)
{
    struct err err = {0};
    char path[128];
    put("etc/machine-id", "0123456789abcdef0123456789abcdef\n", 0444);
    path_of("var/lib/dbus/machine-id", path);
    assert_int_equal(symlink("../../../etc/machine-id", path), 0);
    assert_int_equal(identity_machine_id(root, &err), 0);
    struct stat status;
    assert_int_equal(lstat(path, &status), 0);
    assert_true(S_ISLNK(status.st_mode));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(names_go_where_names_were, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_not_there_is_not_made, setup, teardown),
        cmocka_unit_test_setup_teardown(a_machine_id_is_new_and_valid, setup, teardown),
        cmocka_unit_test_setup_teardown(links_stay_links, setup, teardown),
    };
    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}
