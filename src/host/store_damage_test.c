/* Files that are not what they should be, and disks that do not take them. */
#include "base/bytes.h"
#include "host/audit.h"
#include "host/store_fixture.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

/* A store of some size, closed, whose backup is as it is. */
static void fill(struct fixture *fixture)
{
    char definition[1200], name[16];
    memset(definition, 'd', sizeof definition);
    definition[sizeof definition - 1] = '\0';
    fixture->store = must_open(fixture->path);
    for (unsigned i = 0; i < 30; i++) {
        snprintf(name, sizeof name, "guest%u", i);
        assert_int_equal(add_guest(fixture->store, name, i, definition, NULL), 0);
    }
    assert_int_equal(store_backup(fixture->store, NULL), 0);
    store_close(take_ptr(fixture->store));
}

static int count_guest(void *opaque, const struct store_guest *guest)
{
    ++*(unsigned *)opaque;
    return 0;
}

static unsigned guests_in(const char *path)
{
    _cleanup_(store_closep)
    struct store *store = must_open(path);
    unsigned count = 0;
    assert_int_equal(store_guest_each(store, count_guest, &count, NULL), 0);
    return count;
}

static void copy_file(const char *from, const char *to)
{
    char command[300];
    snprintf(command, sizeof command, "cp '%s' '%s'", from, to);
    assert_int_equal(system(command), 0);
}

static void put_bytes(const char *path, off_t offset, const void *bytes, size_t size)
{
    _cleanup_fd_ int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, offset), size);
}

static off_t size_of(const char *path)
{
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    return status.st_size;
}

static void files_are_for_their_owner(void **state)
{
    struct fixture *fixture = *state;
    struct stat status;
    char wal[128];
    mode_t mask = umask(0);
    fill(fixture);
    fixture->store = must_open(fixture->path);
    assert_int_equal(add_guest(fixture->store, "another", 77, "{}", NULL), 0);
    umask(mask);
    snprintf(wal, sizeof wal, "%s-wal", fixture->path);
    const char *const paths[] = {fixture->path, fixture->backup, wal};
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        assert_int_equal(stat(paths[i], &status), 0);
        assert_int_equal(status.st_mode & 0777, 0600);
    }
    store_close(take_ptr(fixture->store));
    /* What somebody has opened to all is closed again. */
    assert_int_equal(chmod(fixture->path, 0666), 0);
    fixture->store = must_open(fixture->path);
    assert_int_equal(stat(fixture->path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
}

static void garbage_is_said_so(void **state)
{
    struct fixture *fixture = *state;
    FILE *file = fopen(fixture->path, "w");
    for (int i = 0; i < 10000; i++)
        fputs("this is no database\n", file);
    fclose(file);
    MUST_NOT_OPEN(fixture->path, -EBADMSG, fixture->path, "damaged", "no backup");
    /* And where there is a backup, it is named, and it serves. */
    unlink(fixture->path);
    fill(fixture);
    put_bytes(fixture->path, 0, "garbage garbage garbage", 20);
    MUST_NOT_OPEN(fixture->path, -EBADMSG, "damaged", fixture->backup, " UTC");
    copy_file(fixture->backup, fixture->path);
    assert_int_equal(guests_in(fixture->path), 30);
}

/* Each page in turn is overwritten: it is said so when it is opened, and the backup stays as it is.
 */
static void damage_is_found_wherever_it_is(void **state)
{
    enum { PAGE = 4096 };
    struct fixture *fixture = *state;
    char whole[128], garbage[PAGE];
    fill(fixture);
    snprintf(whole, sizeof whole, "%s/whole", fixture->folder);
    copy_file(fixture->path, whole);
    memset(garbage, 0xa5, sizeof garbage);
    off_t size = size_of(whole);
    assert_true(size >= 12 * PAGE);
    for (off_t offset = 0; offset < size; offset += PAGE) {
        copy_file(whole, fixture->path);
        put_bytes(fixture->path, offset, garbage, sizeof garbage);
        MUST_NOT_OPEN(fixture->path, -EBADMSG, "damaged", fixture->backup);
    }
    assert_int_equal(guests_in(fixture->backup), 30);
}

static void what_was_cut_off_is_missed(void **state)
{
    static const int parts[] = {0, 1, 5, 50, 90, 99}; /* of a hundred */
    struct fixture *fixture = *state;
    char whole[128];
    fill(fixture);
    snprintf(whole, sizeof whole, "%s/whole", fixture->folder);
    copy_file(fixture->path, whole);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        copy_file(whole, fixture->path);
        assert_int_equal(truncate(fixture->path, size_of(whole) * parts[i] / 100), 0);
        MUST_NOT_OPEN(fixture->path, -EBADMSG, "damaged", fixture->backup);
    }
    unlink(fixture->path);
    MUST_NOT_OPEN(fixture->path, -EBADMSG, "it is gone", fixture->backup);
    assert_int_equal(access(fixture->path, F_OK), -1);
}

static void values_of_no_version_are_damage(void **state)
{
    struct fixture *fixture = *state;
    struct err err = {0};
    unsigned count = 0;
    fill(fixture);
    run_sql(fixture->path, "UPDATE guest SET state = 'flying' WHERE name = 'guest7'");
    fixture->store = must_open(fixture->path);
    assert_int_equal(store_guest_each(fixture->store, count_guest, &count, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "guest 'guest7' is 'flying'"));
    store_close(take_ptr(fixture->store));
    run_sql(fixture->path,
            "UPDATE guest SET state = 'stopped', name = '../x' WHERE name = 'guest7'");
    fixture->store = must_open(fixture->path);
    assert_int_equal(store_guest_each(fixture->store, count_guest, &count, NULL), -EBADMSG);
    store_close(take_ptr(fixture->store));
    /* What can be copied without a complaint, but is wrong. */
    run_sql(fixture->path, "PRAGMA ignore_check_constraints = ON;"
                           "UPDATE guest SET name = 'x', revision = 0 WHERE name = '../x'");
    MUST_NOT_OPEN(fixture->path, -EBADMSG, "damaged", "guest", fixture->backup);
}

static void newer_versions_are_left_alone(void **state)
{
    struct fixture *fixture = *state;
    fill(fixture);
    run_sql(fixture->path, "PRAGMA user_version = 99");
    char whole[128], command[300];
    snprintf(whole, sizeof whole, "%s/whole", fixture->folder);
    copy_file(fixture->path, whole);
    MUST_NOT_OPEN(fixture->path, -EPROTONOSUPPORT, "version 99", "up to 2", "newer");
    snprintf(command, sizeof command, "cmp '%s' '%s'", fixture->path, whole);
    assert_int_equal(system(command), 0);
    run_sql(fixture->path, "PRAGMA user_version = -1");
    MUST_NOT_OPEN(fixture->path, -EBADMSG, "version is -1");
    run_sql(fixture->path, "PRAGMA user_version = 2; PRAGMA application_id = 1");
    MUST_NOT_OPEN(fixture->path, -EBADMSG, "not one of Lodge's");
}

static void other_databases_are_left_alone(void **state)
{
    struct fixture *fixture = *state;
    run_sql(fixture->path, "CREATE TABLE bookmarks (url TEXT)");
    MUST_NOT_OPEN(fixture->path, -EBADMSG, "not one of Lodge's");
    run_sql(fixture->path, "SELECT url FROM bookmarks");
}

/* Version 1 had no audit log. */
static void older_versions_are_upgraded(void **state)
{
    struct fixture *fixture = *state;
    struct audit_head head;
    fill(fixture);
    run_sql(fixture->path, "DROP TABLE audit; DROP TABLE audit_head; PRAGMA user_version = 1");
    fixture->store = must_open(fixture->path);
    assert_int_equal(audit_write(fixture->store, &(struct audit_row){.who = "me"}, NULL), 0);
    assert_int_equal(audit_verify(fixture->store, &head, NULL), 0);
    store_close(take_ptr(fixture->store));
    assert_int_equal(guests_in(fixture->path), 30);
    /* A step that fails is taken back, and the version stays. */
    unlink(fixture->backup);
    run_sql(fixture->path, "DROP TABLE audit_head; PRAGMA user_version = 1");
    MUST_NOT_OPEN(fixture->path, -EIO, "upgrade from version 1 to 2", "audit");
    MUST_NOT_OPEN(fixture->path, -EIO, "upgrade from version 1 to 2", "audit");
    /* The backup is of before the upgrade. */
    run_sql(fixture->backup, "SELECT * FROM guest");
}

static void paths_that_are_none(void **state)
{
    struct fixture *fixture = *state;
    char path[128];
    snprintf(path, sizeof path, "%s/none/lodge.db", fixture->folder);
    MUST_NOT_OPEN(path, -ENOENT, path);
    MUST_NOT_OPEN(fixture->folder, -EINVAL, "not a file");
    assert_int_equal(symlink("elsewhere", fixture->path), 0);
    MUST_NOT_OPEN(fixture->path, -EINVAL, "not a file");
}

/* Fills a disk until it takes no more; what was acknowledged stays, and all goes on when there is
 * room. */
static int fill_the_disk(const char *path, const char *ballast)
{
    char definition[20000], name[32];
    unsigned added = 0, count = 0;
    struct err err = {0};
    memset(definition, 'd', sizeof definition);
    definition[sizeof definition - 1] = '\0';
    struct store *store = must_open(path);
    assert_int_equal(add_guest(store, "first", 100000, "{}", NULL), 0);
    assert_int_equal(truncate(ballast, 0), 0);
    int r;
    do {
        snprintf(name, sizeof name, "guest%u", added);
        r = add_guest(store, name, added, definition, &err);
        added += r == 0;
    } while (r == 0 && added < 1000);
    assert_int_equal(r, -ENOSPC);
    assert_non_null(strstr(err.text, path));
    assert_true(added > 10);
    assert_int_equal(store_guest_each(store, count_guest, &count, NULL), 0);
    assert_int_equal(count, added + 1);
    assert_int_equal(store_backup(store, &err), -ENOSPC);
    store_close(store);
    /* A start on the full disk is one. */
    assert_int_equal(guests_in(path), added + 1);
    assert_int_equal(unlink(ballast), 0);
    store = must_open(path);
    assert_int_equal(add_guest(store, name, added, "{}", &err), 0);
    store_close(store);
    assert_int_equal(guests_in(path), added + 2);
    return 0;
}

enum { NO_NAMESPACE = 77 };

static bool write_text(const char *path, const char *text)
{
    _cleanup_fd_ int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

/* Mounts are for root alone: who is not root is so in a user namespace (user_namespaces(7)). */
static bool enter_namespace(void)
{
    char users[32], groups[32];
    uid_t user = geteuid();
    snprintf(users, sizeof users, "0 %u 1", user);
    snprintf(groups, sizeof groups, "0 %u 1", getegid());
    if (unshare(CLONE_NEWNS | (user ? CLONE_NEWUSER : 0)) < 0)
        return false;
    return user == 0 ||
           (write_text("/proc/self/setgroups", "deny") && write_text("/proc/self/uid_map", users) &&
            write_text("/proc/self/gid_map", groups));
}

/* In a mount namespace of its own, as a child process. */
static int with_disk(const char *folder, const char *options,
                     void (*use)(const char *folder, const char *path))
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char path[128];
        if (!enter_namespace() || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("tmpfs", folder, "tmpfs", 0, options) < 0)
            _exit(NO_NAMESPACE);
        snprintf(path, sizeof path, "%s/lodge.db", folder);
        use(folder, path);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void use_small_disk(const char *folder, const char *path)
{
    char ballast[128], zeros[100000] = {0};
    snprintf(ballast, sizeof ballast, "%s/ballast", folder);
    FILE *file = fopen(ballast, "w");
    if (!file || fwrite(zeros, sizeof zeros, 1, file) != 1 || fclose(file) != 0)
        _exit(1);
    fill_the_disk(path, ballast);
}

static void use_read_only_disk(const char *folder, const char *path)
{
    static const char *const words[] = {"Read-only file system", NULL};
    store_close(must_open(path));
    if (mount(NULL, folder, NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
        _exit(1);
    must_not_open(path, -EROFS, words);
    char other[128];
    snprintf(other, sizeof other, "%s/other.db", folder);
    must_not_open(other, -EROFS, words);
}

static void a_full_disk_loses_nothing(void **state)
{
    int r = with_disk(((struct fixture *)*state)->folder, "size=1M", use_small_disk);
    if (r == NO_NAMESPACE) {
        print_message("no mount namespace is to be had here\n");
        skip();
    }
    assert_int_equal(r, 0);
}

static void a_read_only_disk_is_said_so(void **state)
{
    int r = with_disk(((struct fixture *)*state)->folder, "size=4M", use_read_only_disk);
    if (r == NO_NAMESPACE) {
        print_message("no mount namespace is to be had here\n");
        skip();
    }
    assert_int_equal(r, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(files_are_for_their_owner),
        TEST(garbage_is_said_so),
        TEST(damage_is_found_wherever_it_is),
        TEST(what_was_cut_off_is_missed),
        TEST(values_of_no_version_are_damage),
        TEST(newer_versions_are_left_alone),
        TEST(other_databases_are_left_alone),
        TEST(older_versions_are_upgraded),
        TEST(paths_that_are_none),
        TEST(a_full_disk_loses_nothing),
        TEST(a_read_only_disk_is_said_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
