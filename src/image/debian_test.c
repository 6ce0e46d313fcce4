#include "base/bytes.h"
#include "base/own.h"
#include "image/debian.h"
#include "image/debian_recipe.h"
#include "image/seed.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <archive.h>
#include <archive_entry.h>
#include <cmocka.h>
#include <jansson.h>

static void sources_become_those_of_the_suite(void **state)
{
    static const struct {
        const char *repository, *suite, *line; /* NULL: none */
    } rows[] = {
        {"http://mirror/debian bookworm main", "bookworm",
         "deb http://mirror/debian bookworm main"},
        {"http://mirror/debian bookworm main", "trixie", "deb http://mirror/debian trixie main"},
        {"http://m/debian stable-updates main", "trixie",
         "deb http://m/debian trixie-updates main"},
        {"http://m/s bookworm-security main", "trixie", "deb http://m/s trixie-security main"},
        {"http://mirror/debian bookworm main", "sid", "deb http://mirror/debian sid main"},
        {"http://m/s bookworm-security main", "sid", NULL},
        {"http://m/debian bookworm-updates main", "unstable", NULL},
        {"http://m/debian bookworm-backports main", "bookworm", NULL},
        {"http://m/debian bookworm non-free", "bookworm", NULL},
        {"http://m/debian", "bookworm", NULL},
        {"", "bookworm", NULL},
    };
    char line[512];
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        int r = image_debian_source(rows[i].repository, rows[i].suite, line, sizeof line);
        assert_int_equal(r, rows[i].line ? 0 : -ENOENT);
        if (rows[i].line)
            assert_string_equal(line, rows[i].line);
    }
    assert_int_equal(image_debian_source(rows[0].repository, "bookworm", line, 10), -ENOENT);
}

static void suites_are_words_of_apts(void **state)
{
    static const char *const good[] = {"bookworm", "sid", "bookworm-backports", "etch4"};
    static const char *const bad[] = {"",    "Bookworm", "-x",
                                      "a/b", "..",       "a b",
                                      "4",   "a:b",      "averyverylongnamethatnosuitewouldhave"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_true(image_debian_suite_valid(good[i]));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(image_debian_suite_valid(bad[i]));
}

static void names_may_have_a_tag(void **state)
{
    static const char *const good[] = {"default", "debian:bookworm", "a:b.c-d_e"};
    static const char *const bad[] = {":",      "a:",     ":b",    "a:b:c",
                                      "a:../b", "../a:b", "a:b/c", "a:.b"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_true(image_reference_valid(good[i]));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(image_reference_valid(bad[i]));
    static const char *const names[][2] = {
        {"debian", "debian:" IMAGE_DEBIAN_SUITE}, {"debian:sid", "debian:sid"}, {"own", "own"}};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        _cleanup_free_ char *full = image_full_name(names[i][0]);
        assert_string_equal(full, names[i][1]);
    }
}

static void the_recipe_brings_its_files(void **state)
{
    struct err err = {0};
    _cleanup_fd_ int fd = memfd_create("tar", MFD_CLOEXEC);
    assert_int_equal(debian_write_files((const uint8_t *)"agent", 5, fd, &err), 0);
    struct archive *archive = archive_read_new();
    struct archive_entry *entry;
    unsigned found = 0;
    archive_read_support_format_tar(archive);
    lseek(fd, 0, SEEK_SET);
    assert_int_equal(archive_read_open_fd(archive, fd, 10240), ARCHIVE_OK);
    while (archive_read_next_header(archive, &entry) == ARCHIVE_OK) {
        const char *path = archive_entry_pathname(entry);
        char bytes[8] = "";
        assert_int_equal(archive_entry_uid(entry), 0);
        if (!strcmp(path, "usr/lib/lodge/lodge-agent")) {
            assert_int_equal(archive_entry_perm(entry), 0755);
            assert_int_equal(archive_read_data(archive, bytes, sizeof bytes), 5);
            assert_memory_equal(bytes, "agent", 5);
            found++;
        }
        found += !strcmp(path, "etc/systemd/system/lodge-agent.service");
        /* A merged /usr has links there, which a folder of ours would replace. */
        assert_true(strncmp(path, "lib", 3) != 0 && strncmp(path, "bin", 3) != 0);
    }
    archive_read_free(archive);
    assert_int_equal(found, 2);
    _cleanup_free_ char *packages = debian_packages();
    assert_non_null(strstr(packages, "linux-image-cloud-amd64,"));
    assert_non_null(strstr(packages, ",cloud-init,"));
    assert_null(strchr(packages, ' '));
    _cleanup_free_ char *append = debian_append();
    assert_non_null(strstr(append, " root=/dev/vda "));
}

/* --- seeds --- */

static const char key[] = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFake somebody@\"somewhere\"";

/* What a reader of ISO 9660 finds, in memory. */
static char *read_back(int fd, const char *name)
{
    struct archive *archive = archive_read_new();
    struct archive_entry *entry;
    char *text = NULL;
    archive_read_support_format_iso9660(archive);
    lseek(fd, 0, SEEK_SET);
    assert_int_equal(archive_read_open_fd(archive, fd, 10240), ARCHIVE_OK);
    while (archive_read_next_header(archive, &entry) == ARCHIVE_OK)
        if (!strcmp(archive_entry_pathname(entry), name)) {
            size_t size = (size_t)archive_entry_size(entry);
            text = calloc(1, size + 1);
            assert_int_equal(archive_read_data(archive, text, size), size);
        }
    archive_read_free(archive);
    assert_non_null(text);
    return text;
}

static json_t *meta_of(int fd)
{
    _cleanup_free_ char *text = read_back(fd, "meta-data");
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    return json;
}

static void a_seed_is_an_image_that_cloud_init_finds(void **state)
{
    static const char user[] = "#!/bin/sh\necho hello\n";
    struct err err = {0};
    char label[33] = "";
    struct seed seed = {.user_data = user, .user_data_size = strlen(user), .hostname = "web"};
    assert_int_equal(seed_add_keys(&seed, "k", key, strlen(key), &err), 0);
    _cleanup_fd_ int fd = seed_write(&seed, &err);
    assert_true(fd >= 0);
    /* ECMA-119, 8.4: the primary volume descriptor is sector 16, its label 32 bytes at 40. */
    assert_int_equal(pread(fd, label, 5, 16 * 2048 + 1), 5);
    assert_string_equal(label, "CD001");
    assert_int_equal(pread(fd, label, 32, 16 * 2048 + 40), 32);
    label[strcspn(label, " ")] = '\0';
    assert_int_equal(strcasecmp(label, "cidata"), 0);
    _cleanup_free_ char *text = read_back(fd, "user-data");
    assert_string_equal(text, user);
    json_t *meta = meta_of(fd);
    json_t *keys = json_object_get(meta, "public-keys");
    assert_string_equal(json_string_value(json_object_get(meta, "local-hostname")), "web");
    assert_int_equal(json_array_size(keys), 1);
    assert_string_equal(json_string_value(json_array_get(keys, 0)), key);
    /* Each seed is another instance. */
    _cleanup_fd_ int again = seed_write(&seed, &err);
    json_t *other = meta_of(again);
    assert_string_not_equal(json_string_value(json_object_get(meta, "instance-id")),
                            json_string_value(json_object_get(other, "instance-id")));
    json_decref(other);
    json_decref(meta);
    seed_free(&seed);
}

static void a_seed_may_be_empty(void **state)
{
    struct err err = {0};
    struct seed seed = {0};
    _cleanup_fd_ int fd = seed_write(&seed, &err);
    _cleanup_free_ char *text = read_back(fd, "user-data");
    assert_string_equal(text, "#cloud-config\n");
    json_t *meta = meta_of(fd);
    assert_null(json_object_get(meta, "public-keys"));
    assert_null(json_object_get(meta, "local-hostname"));
    assert_int_equal(strncmp(json_string_value(json_object_get(meta, "instance-id")), "i-", 2), 0);
    json_decref(meta);
}

static void only_public_keys_are_keys(void **state)
{
    static const struct {
        const char *text;
        int result;
        unsigned keys;
    } rows[] = {
        {"ssh-ed25519 AAAAC3Nz me\n", 0, 1},
        {"# comment\n\n  ecdsa-sha2-nistp256 AAAAE2Vj\r\nsk-ssh-ed25519@openssh.com AAAAGnNr x", 0,
         2},
        {"no-pty,command=\"ls\" ssh-rsa AAAAB3Nz x\n", 0, 1},
        {"", -EINVAL, 0},
        {"# nothing\n", -EINVAL, 0},
        {"hello\n", -EINVAL, 0},
        {"ssh-ed25519\n", -EINVAL, 0},
        {"ssh-ed25519 AAAAC3\x01\n", -EINVAL, 0},
        {"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n", -EINVAL, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct seed seed = {0};
        struct err err = {0};
        assert_int_equal(seed_add_keys(&seed, "k", rows[i].text, strlen(rows[i].text), &err),
                         rows[i].result);
        assert_int_equal(seed.key_count, rows[i].keys);
        seed_free(&seed);
    }
    struct seed seed = {0};
    struct err err = {0};
    assert_int_equal(seed_add_keys(&seed, "k", "ssh-rsa AAAA\0x", 14, &err), -EINVAL);
    int r = 0;
    unsigned count = 0;
    for (; r >= 0 && count <= SEED_KEYS_MAX; count++)
        r = seed_add_keys(&seed, "k", key, strlen(key), &err);
    assert_int_equal(r, -E2BIG);
    assert_int_equal(count, SEED_KEYS_MAX + 1);
    seed_free(&seed);
}

static void user_data_begin_as_cloud_init_wants_it(void **state)
{
    static const char *const good[] = {"#cloud-config\n", "#!/bin/sh\n", "MIME-Version: 1.0\n",
                                       "\x1f\x8b..."};
    static const char *const bad[] = {"", "users: []\n", "#cloud", " #cloud-config\n"};
    struct err err = {0};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_int_equal(seed_check_user_data("u", good[i], strlen(good[i]), &err), 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(seed_check_user_data("u", bad[i], strlen(bad[i]), &err), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sources_become_those_of_the_suite),
        cmocka_unit_test(suites_are_words_of_apts),
        cmocka_unit_test(names_may_have_a_tag),
        cmocka_unit_test(the_recipe_brings_its_files),
        cmocka_unit_test(a_seed_is_an_image_that_cloud_init_finds),
        cmocka_unit_test(a_seed_may_be_empty),
        cmocka_unit_test(only_public_keys_are_keys),
        cmocka_unit_test(user_data_begin_as_cloud_init_wants_it),
    };
    return cmocka_run_group_tests_name("debian", tests, NULL, NULL);
}
