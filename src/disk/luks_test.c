/* LUKS containers and AES-XTS; tests/test_disk_luks.py asks cryptsetup and QEMU what they think. */
#include "disk/luks.h"
#include "disk/luks2.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { SIZE = 256 << 10, HEADER = 16 << 10, PAYLOAD = 16 << 20 };

struct fixture {
    char folder[64], path[128], key_path[128];
    struct disk_key *key;
    struct err err;
};

static void put(const char *path, const void *bytes, size_t length, off_t at)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, length, at), length);
    close(fd);
}

static void get(const char *path, void *bytes, size_t length, off_t at)
{
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, bytes, length, at), length);
    close(fd);
}

static struct disk_key *key_of(struct fixture *fixture, const char *text)
{
    struct disk_key *key = NULL;
    unlink(fixture->key_path);
    put(fixture->key_path, text, strlen(text), 0);
    assert_int_equal(disk_key_read(fixture->key_path, &key, &fixture->err), 0);
    return key;
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    strcpy(fixture->folder, "/var/tmp/luks-XXXXXX");
    assert_non_null(mkdtemp(fixture->folder));
    snprintf(fixture->path, sizeof fixture->path, "%s/disk", fixture->folder);
    snprintf(fixture->key_path, sizeof fixture->key_path, "%s/key", fixture->folder);
    fixture->key = key_of(fixture, "open sesame\n");
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    disk_key_free(fixture->key);
    unlink(fixture->path);
    unlink(fixture->key_path);
    assert_int_equal(rmdir(fixture->folder), 0);
    free(fixture);
    return 0;
}

static void create(struct fixture *fixture, struct disk_create create)
{
    create.key = fixture->key;
    create.kdf = DISK_KDF_PBKDF2;
    create.unlock_ms = 1;
    assert_int_equal(disk_create(fixture->path, &create, &fixture->err), 0);
}

static int try_open(struct fixture *fixture, const struct disk_key *key, struct disk **ret_disk)
{
    struct disk_options options = {.key = key, .format = DISK_FORMAT_RAW};
    return disk_open(fixture->path, &options, ret_disk, &fixture->err);
}

static struct disk *open_it(struct fixture *fixture)
{
    struct disk *disk = NULL;
    if (try_open(fixture, fixture->key, &disk) < 0)
        fail_msg("%s", fixture->err.text);
    return disk;
}

static void refused(struct fixture *fixture, int error, const char *why)
{
    struct disk *disk;
    assert_int_equal(try_open(fixture, fixture->key, &disk), error);
    if (!strstr(fixture->err.text, why))
        fail_msg("'%s' is not in '%s'", why, fixture->err.text);
}

static void fill(uint8_t *bytes, size_t length, unsigned seed)
{
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(seed + i * 7 + (i >> 8));
}

/* IEEE 1619-2007, Annex B, vector 10: AES-256, data unit 0xff. */
static void xts_is_that_of_the_standard(void **state)
{
    static const char key_text[] =
        "2718281828459045235360287471352662497757247093699959574966967627"
        "3141592653589793238462643383279502884197169399375105820974944592";
    static const uint8_t first[] = {0x1c, 0x3b, 0x3a, 0x10, 0x2f, 0x77, 0x03, 0x86,
                                    0xe4, 0x83, 0x6c, 0x99, 0xe3, 0x70, 0xcf, 0x9b};
    uint8_t key[64], bytes[512];
    struct cipher *cipher;
    for (size_t i = 0; i < sizeof key; i++)
        sscanf(key_text + 2 * i, "%2hhx", &key[i]);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)i;
    assert_int_equal(cipher_new(key, sizeof key, &cipher), 0);
    assert_int_equal(cipher_run(cipher, true, 0xff, 512, bytes, sizeof bytes), 0);
    assert_memory_equal(bytes, first, sizeof first);
    assert_int_equal(cipher_run(cipher, false, 0xff, 512, bytes, sizeof bytes), 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], (uint8_t)i);
    cipher_free(cipher);
    memset(key, 7, sizeof key);
    assert_int_equal(cipher_new(key, sizeof key, &cipher), -EINVAL); /* two equal halves */
    assert_int_equal(cipher_new(key, 48, &cipher), -EINVAL);
}

static void stripes_come_together_again(void **state)
{
    static uint8_t stripes[64 * LUKS_STRIPES];
    uint8_t key[64], back[64];
    static const char *const hashes[] = {"sha1", "sha256", "sha512"};
    fill(key, sizeof key, 3);
    for (size_t i = 0; i < ARRAY_LEN(hashes); i++) {
        assert_int_equal(luks_split(hashes[i], key, sizeof key, stripes), 0);
        assert_int_equal(luks_merge(hashes[i], stripes, sizeof key, back), 0);
        assert_memory_equal(key, back, sizeof key);
        stripes[12345] ^= 1; /* any bit is enough to lose it */
        assert_int_equal(luks_merge(hashes[i], stripes, sizeof key, back), 0);
        assert_memory_not_equal(key, back, sizeof key);
    }
    assert_int_equal(luks_merge("md5", stripes, sizeof key, back), -EINVAL);
}

static void any_place_of(void **state, unsigned sector, enum disk_cache cache)
{
    static uint8_t model[SIZE], bytes[SIZE];
    struct fixture *fixture = *state;
    create(fixture,
           (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE, .crypt_sector = sector});
    struct disk_options options = {.key = fixture->key, .format = DISK_FORMAT_RAW, .cache = cache};
    struct disk *disk;
    assert_int_equal(disk_open(fixture->path, &options, &disk, &fixture->err), 0);
    assert_int_equal(disk_size(disk), SIZE);
    memset(model, 0, sizeof model);
    unsigned seed = 1;
    for (int i = 0; i < 300; i++) {
        seed = seed * 1103515245 + 12345;
        size_t offset = (seed >> 8) % SIZE;
        size_t length = (seed >> 3) % 90000 % (SIZE - offset + 1);
        if (i % 5 == 4) {
            memset(model + offset, 0, length);
            assert_int_equal(disk_write_zeroes(disk, offset, length, i & 1), 0);
        } else {
            fill(model + offset, length, seed);
            struct iovec iov[] = {{model + offset, length / 3},
                                  {bytes, 0},
                                  {model + offset + length / 3, length - length / 3}};
            assert_int_equal(disk_writev(disk, offset, iov, 3), 0);
        }
        offset = (seed >> 5) % SIZE;
        assert_int_equal(disk_read(disk, offset, bytes, SIZE - offset), 0);
        assert_memory_equal(bytes, model + offset, SIZE - offset);
    }
    assert_int_equal(disk_flush(disk), 0);
    assert_int_equal(disk_close(disk), 0);
    disk = open_it(fixture);
    assert_int_equal(disk_read(disk, 0, bytes, SIZE), 0);
    assert_memory_equal(bytes, model, SIZE);
    assert_int_equal(disk_close(disk), 0);
}

static void any_place_can_be_written(void **state)
{
    any_place_of(state, 0, DISK_CACHE_WRITEBACK);
}

static void any_place_of_large_sectors(void **state)
{
    any_place_of(state, 4096, DISK_CACHE_WRITEBACK);
}

static void any_place_without_cache(void **state)
{
    any_place_of(state, 512, DISK_CACHE_NONE);
}

/* --- threads within one sector --- */

struct writer {
    struct disk *disk;
    unsigned number;
};

static void *write_own_part(void *opaque)
{
    struct writer *writer = opaque;
    uint8_t bytes[DISK_SECTOR];
    for (unsigned i = 0; i < 300; i++) {
        memset(bytes, (int)(writer->number * 31 + i), sizeof bytes);
        if (disk_write(writer->disk, writer->number * DISK_SECTOR, bytes, sizeof bytes) < 0)
            return NULL;
    }
    return writer;
}

static void neighbours_in_a_sector_lose_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct writer writers[8];
    pthread_t threads[8];
    uint8_t bytes[4096];
    create(fixture,
           (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE, .crypt_sector = 4096});
    struct disk *disk = open_it(fixture);
    for (unsigned i = 0; i < 8; i++) {
        writers[i] = (struct writer){disk, i};
        assert_int_equal(pthread_create(&threads[i], NULL, write_own_part, &writers[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        void *done;
        pthread_join(threads[i], &done);
        assert_non_null(done);
    }
    assert_int_equal(disk_read(disk, 0, bytes, sizeof bytes), 0);
    for (unsigned i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], (uint8_t)(i / DISK_SECTOR * 31 + 299));
    assert_int_equal(disk_close(disk), 0);
}

/* --- what a container is --- */

static void nothing_is_there_in_the_clear(void **state)
{
    struct fixture *fixture = *state;
    static uint8_t text[4096], raw[4096];
    memset(text, 'A', sizeof text);
    create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
    struct disk *disk = open_it(fixture);
    struct disk_extent extent;
    assert_int_equal(disk_write(disk, 8192, text, sizeof text), 0);
    assert_false(disk_direct(disk, 8192, sizeof text, false, &extent));
    assert_false(disk_direct(disk, 8192, sizeof text, true, &extent));
    assert_int_equal(disk_close(disk), 0);
    get(fixture->path, raw, sizeof raw, PAYLOAD + 8192);
    for (size_t at = 0; at + 16 <= sizeof raw; at += 16)
        assert_memory_not_equal(raw + at, text, 16);
    assert_memory_not_equal(raw, raw + 512, 512); /* equal sectors do not look alike */
}

static void what_is_discarded_is_zero_and_gone(void **state)
{
    struct fixture *fixture = *state;
    static uint8_t bytes[SIZE];
    enum disk_extent_kind kind;
    uint64_t length;
    create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
    struct disk *disk = open_it(fixture);
    assert_int_equal(disk_status(disk, 0, SIZE, &kind, &length), 0);
    assert_int_equal(kind, DISK_EXTENT_HOLE);
    assert_int_equal(length, SIZE);
    fill(bytes, SIZE, 5);
    assert_int_equal(disk_write(disk, 0, bytes, SIZE), 0);
    assert_int_equal(disk_discard(disk, 4096, SIZE - 8192), 0);
    assert_int_equal(disk_status(disk, 0, SIZE, &kind, &length), 0);
    assert_int_equal(kind, DISK_EXTENT_DATA);
    assert_int_equal(length, 4096);
    assert_int_equal(disk_status(disk, 4096, SIZE - 4096, &kind, &length), 0);
    assert_int_equal(kind, DISK_EXTENT_HOLE);
    assert_int_equal(length, SIZE - 8192);
    assert_int_equal(disk_read(disk, 4096, bytes, 4096), 0);
    for (unsigned i = 0; i < 4096; i++)
        assert_int_equal(bytes[i], 0);
    assert_int_equal(disk_close(disk), 0);
}

static void it_can_grow_and_shrink(void **state)
{
    struct fixture *fixture = *state;
    static uint8_t bytes[8192];
    create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
    struct disk *disk = open_it(fixture);
    memset(bytes, 9, sizeof bytes);
    assert_int_equal(disk_write(disk, SIZE - sizeof bytes, bytes, sizeof bytes), 0);
    assert_int_equal(disk_resize(disk, SIZE - 4096, NULL), 0);
    assert_int_equal(disk_resize(disk, 2 * SIZE, NULL), 0);
    assert_int_equal(disk_read(disk, SIZE - sizeof bytes, bytes, sizeof bytes), 0);
    for (unsigned i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], i < 4096 ? 9 : 0);
    assert_int_equal(disk_close(disk), 0);
    disk = open_it(fixture);
    assert_int_equal(disk_size(disk), 2 * SIZE);
    assert_int_equal(disk_close(disk), 0);
}

static void the_wrong_key_opens_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct disk *disk;
    create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
    /* A final newline counts. */
    struct disk_key *wrong = key_of(fixture, "open sesame");
    assert_int_equal(try_open(fixture, wrong, &disk), -EACCES);
    disk_key_free(wrong);
}

static void a_key_for_what_is_not_encrypted_is_an_error(void **state)
{
    struct fixture *fixture = *state;
    struct disk_create plain = {.format = DISK_FORMAT_RAW, .size = SIZE};
    assert_int_equal(disk_create(fixture->path, &plain, &fixture->err), 0);
    refused(fixture, -EINVAL, "no LUKS container");
}

static void an_unlocked_disk_opens_without_its_passphrase(void **state)
{
    struct fixture *fixture = *state;
    struct disk_key *key;
    struct disk *again;
    uint8_t bytes[512], back[512];
    create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
    struct disk *disk = open_it(fixture);
    fill(bytes, sizeof bytes, 1);
    assert_int_equal(disk_write(disk, 512, bytes, sizeof bytes), 0);
    int fd = disk_key_unlocked(disk);
    assert_true(fd >= 0);
    assert_int_equal(disk_key_receive(fd, &key, &fixture->err), 0);
    close(fd);
    assert_int_equal(try_open(fixture, key, &again), -EBUSY); /* the first one has locked it */
    const struct disk_options options = {.key = key, .format = DISK_FORMAT_RAW, .unlocked = true};
    assert_int_equal(disk_open(fixture->path, &options, &again, &fixture->err), 0);
    disk_key_free(key);
    assert_int_equal(disk_read(again, 512, back, sizeof back), 0);
    assert_memory_equal(bytes, back, sizeof bytes);
    assert_int_equal(disk_close(again), 0);
    assert_int_equal(disk_close(disk), 0);
    const struct disk_options ciphered = {.format = DISK_FORMAT_RAW};
    assert_int_equal(disk_open(fixture->path, &ciphered, &disk, &fixture->err), 0);
    assert_int_equal(disk_key_unlocked(disk), -ENOENT);
    assert_int_equal(disk_close(disk), 0);
}

static void qcow2_lives_inside(void **state)
{
    struct fixture *fixture = *state;
    static uint8_t bytes[100000], back[100000];
    struct disk_check found;
    create(fixture, (struct disk_create){.format = DISK_FORMAT_QCOW2, .size = GIB(4)});
    struct disk_options options = {.key = fixture->key};
    struct disk *disk;
    assert_int_equal(disk_open(fixture->path, &options, &disk, &fixture->err), 0);
    assert_string_equal(disk_format_name(disk), "qcow2");
    assert_int_equal(disk_size(disk), GIB(4));
    fill(bytes, sizeof bytes, 8);
    assert_int_equal(disk_write(disk, GIB(3) + 77, bytes, sizeof bytes), 0);
    assert_int_equal(disk_read(disk, GIB(3) + 77, back, sizeof back), 0);
    assert_memory_equal(bytes, back, sizeof bytes);
    assert_int_equal(disk_close(disk), 0);
    struct disk_checker checker = {.key = fixture->key};
    assert_int_equal(disk_check(fixture->path, DISK_FORMAT_PROBE, &checker, &found, &fixture->err),
                     0);
    assert_int_equal(found.errors + found.leaks, 0);
}

/* --- damaged and hostile headers --- */

static void either_header_is_enough(void **state)
{
    struct fixture *fixture = *state;
    static const uint8_t noise[512] = {1, 2, 3};
    create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
    put(fixture->path, noise, sizeof noise, 0);
    assert_int_equal(disk_close(open_it(fixture)), 0);
    put(fixture->path, noise, sizeof noise, HEADER + 5000); /* in the text of the other */
    refused(fixture, -EINVAL, "both of its headers are damaged");
}

/* A header with another text, sealed anew. */
static void forge(struct fixture *fixture, uint64_t at, uint64_t sequence, const char *from,
                  const char *to)
{
    static uint8_t header[HEADER];
    get(fixture->path, header, HEADER, (off_t)at);
    char *text = (char *)header + LUKS2_BINARY_BYTES, *place = strstr(text, from);
    assert_non_null(place);
    size_t behind = strlen(place + strlen(from)) + 1;
    memmove(place + strlen(to), place + strlen(from), behind);
    memcpy(place, to, strlen(to));
    uint64_t big = htobe64(sequence);
    memcpy(header + LUKS2_AT_SEQUENCE, &big, sizeof big);
    memset(header + LUKS2_AT_SUM, 0, LUKS2_SUM_BYTES);
    assert_int_equal(luks2_checksum("sha256", header, HEADER, header + LUKS2_AT_SUM), 32);
    put(fixture->path, header, HEADER, (off_t)at);
}

static void the_newer_header_counts(void **state)
{
    struct fixture *fixture = *state;
    create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
    forge(fixture, HEADER, 2, "\"type\":\"crypt\"", "\"type\":\"linear\"");
    refused(fixture, -EINVAL, "one encrypted segment");
    forge(fixture, 0, 3, "\"type\":\"crypt\"", "\"type\":\"crypt\"");
    assert_int_equal(disk_close(open_it(fixture)), 0);
}

static void what_a_header_may_not_say(void **state)
{
    static const struct {
        const char *from, *to, *why;
        int error;
    } rows[] = {
        {"\"offset\":\"16777216\"", "\"offset\":\"0\"", "segment lies where it cannot", -EINVAL},
        {"\"offset\":\"16777216\"", "\"offset\":\"9223372036854775295\"", "", -EINVAL},
        {"\"offset\":\"16777216\"", "\"offset\":\"16777217\"", "lies where it cannot", -EINVAL},
        {"\"offset\":\"32768\"", "\"offset\":\"16384\"", "slot 0 lies where it cannot", -EINVAL},
        {"\"offset\":\"32768\"", "\"offset\":\"16776704\"", "runs into the payload", -EINVAL},
        {"\"offset\":\"32768\"", "\"offset\":\"16777216\"", "in the payload", -EINVAL},
        {"\"offset\":\"32768\"", "\"offset\":\"9223372036854774784\"", "where it cannot", -EINVAL},
        {"\"sector_size\":512", "\"sector_size\":513", "lies where it cannot", -EINVAL},
        {"\"sector_size\":512", "\"sector_size\":0", "lies where it cannot", -EINVAL},
        {"\"sector_size\":512", "\"sector_size\":8192", "lies where it cannot", -EINVAL},
        {"\"stripes\":4000", "\"stripes\":1", "slot 0 makes no sense", -EINVAL},
        {"\"size\":\"258048\"", "\"size\":\"4096\"", "too small for its key", -EINVAL},
        {"\"key_size\":64", "\"key_size\":4096", "", -EINVAL},
        {"\"iterations\":", "\"iterations\":2000000000,\"x\":", "more work than is sane", -EACCES},
        {"\"iterations\":", "\"iterations\":-1,\"x\":", "slot 0 makes no sense", -EINVAL},
        {"\"segments\":{\"0\":{\"type\":\"crypt\"", "\"segments\":{\"0\":{\"type\":\"linear\"",
         "one encrypted segment", -EINVAL},
        {"\"encryption\":\"aes-xts-plain64\",\"sector", "\"encryption\":\"serpent\",\"sector",
         "cipher 'serpent' is unknown", -EINVAL},
        {"\"config\":{", "\"config\":{\"requirements\":{\"mandatory\":[\"online-reencrypt\"]},",
         "needs 'online-reencrypt'", -EINVAL},
        {"\"tokens\":{}", "\"tokens\":{},\"tokens\":{}", "duplicate", -EINVAL},
        {"\"keyslots\":[\"0\"]", "\"keyslots\":[]", "no key slot at all", -EACCES},
    };
    struct fixture *fixture = *state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        unlink(fixture->path);
        create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
        forge(fixture, 0, 3, rows[i].from, rows[i].to);
        struct disk *disk;
        int r = try_open(fixture, fixture->key, &disk);
        if (r != rows[i].error || !strstr(fixture->err.text, rows[i].why))
            fail_msg("%s: %d, %s", rows[i].to, r, fixture->err.text);
    }
}

/* Argon2 with more memory than there is, many passes, or none. */
static void argon2_is_bounded(void **state)
{
    static const char *const kdfs[] = {
        "\"kdf\":{\"type\":\"argon2id\",\"time\":4,\"memory\":1000000000,\"cpus\":4,\"x\":\"",
        "\"kdf\":{\"type\":\"argon2id\",\"time\":1000000,\"memory\":1048576,\"cpus\":4,\"x\":\"",
        "\"kdf\":{\"type\":\"argon2id\",\"time\":4,\"memory\":65536,\"cpus\":4000,\"x\":\"",
        "\"kdf\":{\"type\":\"argon2id\",\"time\":0,\"memory\":65536,\"cpus\":4,\"x\":\"",
        "\"kdf\":{\"type\":\"argon2id\",\"time\":4,\"memory\":0,\"cpus\":4,\"x\":\"",
    };
    struct fixture *fixture = *state;
    for (size_t i = 0; i < ARRAY_LEN(kdfs); i++) {
        struct disk *disk;
        unlink(fixture->path);
        create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
        forge(fixture, 0, 3, "\"kdf\":{\"type\":\"", kdfs[i]);
        int r = try_open(fixture, fixture->key, &disk);
        if (r != -EINVAL && r != -EACCES)
            fail_msg("%s: %d", kdfs[i], r);
    }
}

static void a_container_cut_short_is_refused(void **state)
{
    struct fixture *fixture = *state;
    static const off_t lengths[] = {0, 7, 4000, 4096, 20000, 40000, 200000};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        struct disk *disk;
        unlink(fixture->path);
        create(fixture, (struct disk_create){.format = DISK_FORMAT_RAW, .size = SIZE});
        assert_int_equal(truncate(fixture->path, lengths[i]), 0);
        assert_int_equal(try_open(fixture, fixture->key, &disk), -EINVAL);
    }
}

static void key_files_are_checked(void **state)
{
    struct fixture *fixture = *state;
    struct disk_key *key;
    unlink(fixture->key_path);
    put(fixture->key_path, "", 0, 0);
    assert_int_equal(disk_key_read(fixture->key_path, &key, &fixture->err), -EINVAL);
    assert_int_equal(truncate(fixture->key_path, (64 << 10) + 1), 0);
    assert_int_equal(disk_key_read(fixture->key_path, &key, &fixture->err), -EFBIG);
    assert_int_equal(truncate(fixture->key_path, 64 << 10), 0);
    assert_int_equal(disk_key_read(fixture->key_path, &key, &fixture->err), 0);
    disk_key_free(key);
    assert_int_equal(disk_key_read("/is/not/there", &key, &fixture->err), -ENOENT);
}

int main(void)
{
#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(xts_is_that_of_the_standard),
        cmocka_unit_test(stripes_come_together_again),
        WITH(any_place_can_be_written),
        WITH(any_place_of_large_sectors),
        WITH(any_place_without_cache),
        WITH(neighbours_in_a_sector_lose_nothing),
        WITH(nothing_is_there_in_the_clear),
        WITH(what_is_discarded_is_zero_and_gone),
        WITH(it_can_grow_and_shrink),
        WITH(the_wrong_key_opens_nothing),
        WITH(a_key_for_what_is_not_encrypted_is_an_error),
        WITH(an_unlocked_disk_opens_without_its_passphrase),
        WITH(qcow2_lives_inside),
        WITH(either_header_is_enough),
        WITH(the_newer_header_counts),
        WITH(what_a_header_may_not_say),
        WITH(argon2_is_bounded),
        WITH(a_container_cut_short_is_refused),
        WITH(key_files_are_checked),
    };
    return cmocka_run_group_tests_name("luks", tests, NULL, NULL);
}
