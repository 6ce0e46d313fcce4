/* The file that holds a machine's state: what is written is read, and nothing else is. */
#include "board/snapshot.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <cmocka.h>

/* As docs/snapshot.md has it; here by hand, so that a change of the format is seen. */
enum {
    AT_FORMAT = 8,
    AT_SECTIONS = 12,
    AT_SIZE = 16,
    AT_BODY = 24,
    AT_CHECK = 28,
    HEADER = 32,
    SECTION_VERSION = 24,
    SECTION_SIZE = 32,
    SECTION_HEADER = 40,
};

struct file {
    uint8_t *bytes;
    size_t size;
};

static void add(struct snapshot_writer *writer, const char *name, unsigned version,
                const void *bytes, size_t size)
{
    struct record *record = snapshot_begin(writer, name, version);
    record_bytes(record, (void *)(uintptr_t)bytes, size);
    snapshot_end(writer);
}

/* What is written goes through a file and comes back. */
static struct file finish(struct snapshot_writer *writer)
{
    struct file file = {.size = HEADER + writer->bytes.size};
    _cleanup_fd_ int fd = memfd_create("state", MFD_CLOEXEC);
    struct err err = {0};
    assert_true(fd >= 0);
    assert_int_equal(snapshot_write(writer, fd, &err), 0);
    assert_int_equal(lseek(fd, 0, SEEK_END), file.size);
    file.bytes = malloc(file.size);
    assert_int_equal(pread(fd, file.bytes, file.size, 0), file.size);
    snapshot_writer_free(writer);
    return file;
}

/* A file of two sections, one of which is padded. */
static struct file small_file(void)
{
    struct snapshot_writer writer;
    snapshot_writer_init(&writer);
    add(&writer, "rtc", 3, "hello", 5);
    add(&writer, "virtio-blk.1", 1, "01234567", 8);
    return finish(&writer);
}

static int parse_as(const uint8_t *bytes, size_t size, struct snapshot_reader *ret_reader,
                    struct err *err)
{
    uint8_t *copy = malloc(max(size, (size_t)1));
    memcpy(copy, bytes, size);
    copy = realloc(copy, max(size, (size_t)1)); /* exactly as long, for the sanitizers */
    return snapshot_parse(copy, size, ret_reader, err);
}

static int parse(const struct file *file, struct snapshot_reader *ret_reader, struct err *err)
{
    return parse_as(file->bytes, file->size, ret_reader, err);
}

/* The checksums are right again, whatever was done to the rest. */
static void seal(struct file *file)
{
    le64_write(file->bytes + AT_SIZE, file->size);
    le32_write(file->bytes + AT_BODY, crc32c(0, file->bytes + HEADER, file->size - HEADER));
    le32_write(file->bytes + AT_CHECK, crc32c(0, file->bytes, AT_CHECK));
}

static void check_refused(const struct file *file, int number, const char *why)
{
    struct snapshot_reader reader = {0};
    struct err err = {0};
    assert_int_equal(parse(file, &reader, &err), number);
    if (!strstr(err.text, why))
        fail_msg("'%s' does not say '%s'", err.text, why);
    assert_null(reader.bytes);
    assert_null(reader.sections);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    struct file file = small_file();
    struct snapshot_reader reader;
    struct record record;
    struct err err = {0};
    char text[9] = {0};
    assert_int_equal(parse(&file, &reader, &err), 0);
    assert_int_equal(reader.count, 2);
    /* Names are looked up: the order means nothing. */
    assert_int_equal(snapshot_find(&reader, "virtio-blk.1", 1, &record, &err), 0);
    assert_int_equal(record.version, 1);
    record_bytes(&record, text, 8);
    assert_string_equal(text, "01234567");
    assert_int_equal(snapshot_loaded("virtio-blk.1", &record, &err), 0);
    assert_int_equal(snapshot_all_used(&reader, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "'rtc'"));
    /* A reader may know more than the writer did. */
    assert_int_equal(snapshot_find(&reader, "rtc", 7, &record, &err), 0);
    assert_int_equal(record.version, 3);
    assert_int_equal(record.size, 5);
    assert_memory_equal(record.bytes, "hello", 5);
    assert_int_equal(snapshot_all_used(&reader, &err), 0);
    snapshot_reader_free(&reader);
    free(file.bytes);
}

static void the_layout_is_the_documented_one(void **state)
{
    (void)state;
    struct file file = small_file();
    const uint8_t *bytes = file.bytes, *section = bytes + HEADER;
    assert_int_equal(file.size, HEADER + SECTION_HEADER + 8 + SECTION_HEADER + 8);
    assert_memory_equal(bytes, "LodgeSnp", 8);
    assert_int_equal(le32_read(bytes + AT_FORMAT), SNAPSHOT_FORMAT);
    assert_int_equal(le32_read(bytes + AT_SECTIONS), 2);
    assert_int_equal(le64_read(bytes + AT_SIZE), file.size);
    assert_int_equal(le32_read(bytes + AT_BODY), crc32c(0, section, file.size - HEADER));
    assert_int_equal(le32_read(bytes + AT_CHECK), crc32c(0, bytes, AT_CHECK));
    assert_memory_equal(section, "rtc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
    assert_int_equal(le32_read(section + SECTION_VERSION), 3);
    assert_int_equal(le32_read(section + SECTION_VERSION + 4), 0);
    assert_int_equal(le64_read(section + SECTION_SIZE), 5);
    assert_memory_equal(section + SECTION_HEADER, "hello\0\0\0", 8);
    assert_string_equal((const char *)section + SECTION_HEADER + 8, "virtio-blk.1");
    free(file.bytes);
}

static void a_file_of_nothing_can_be(void **state)
{
    (void)state;
    struct snapshot_writer writer;
    struct snapshot_reader reader;
    struct record record;
    struct err err = {0};
    snapshot_writer_init(&writer);
    struct file file = finish(&writer);
    assert_int_equal(file.size, HEADER);
    assert_int_equal(parse(&file, &reader, &err), 0);
    assert_int_equal(reader.count, 0);
    assert_int_equal(snapshot_all_used(&reader, &err), 0);
    assert_int_equal(snapshot_find(&reader, "rtc", 1, &record, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "has no 'rtc'"));
    snapshot_reader_free(&reader);
    free(file.bytes);
}

static void an_empty_section_can_be(void **state)
{
    (void)state;
    struct snapshot_writer writer;
    struct snapshot_reader reader;
    struct record record;
    struct err err = {0};
    snapshot_writer_init(&writer);
    add(&writer, "nothing", 1, "", 0);
    add(&writer, "a-name-of-23-characters", 2, "x", 1);
    struct file file = finish(&writer);
    assert_int_equal(parse(&file, &reader, &err), 0);
    assert_int_equal(snapshot_find(&reader, "nothing", 1, &record, &err), 0);
    assert_int_equal(snapshot_loaded("nothing", &record, &err), 0);
    assert_int_equal(snapshot_find(&reader, "a-name-of-23-characters", 2, &record, &err), 0);
    snapshot_reader_free(&reader);
    free(file.bytes);
}

/* A checksum of 32 bits finds every change of so few bits, wherever it is. */
static void every_single_bit_counts(void **state)
{
    (void)state;
    struct file file = small_file();
    for (size_t bit = 0; bit < file.size * 8; bit++) {
        struct snapshot_reader reader = {0};
        struct err err = {0};
        file.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(parse(&file, &reader, &err), -EBADMSG);
        assert_true(err.text[0] != 0);
        file.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    free(file.bytes);
}

static void every_cut_is_noticed(void **state)
{
    (void)state;
    struct file file = small_file();
    for (size_t size = 0; size < file.size; size++)
        check_refused(&(struct file){file.bytes, size}, -EBADMSG,
                      size < HEADER ? "no such file" : "cut off");
    free(file.bytes);
}

/* The same where whoever cut it has made all else right. */
static void every_cut_of_a_sealed_file_is_noticed(void **state)
{
    (void)state;
    struct file whole = small_file();
    for (size_t size = HEADER; size < whole.size; size++) {
        struct file file = {malloc(size), size};
        memcpy(file.bytes, whole.bytes, size);
        seal(&file);
        check_refused(&file, -EBADMSG, size % 8 ? "the snapshot's state" : "cannot be");
        free(file.bytes);
    }
    free(whole.bytes);
}

static void a_tail_is_noticed(void **state)
{
    (void)state;
    struct file file = small_file();
    file.bytes = realloc(file.bytes, file.size + 8);
    memset(file.bytes + file.size, 0, 8);
    file.size += 8;
    check_refused(&file, -EBADMSG, "cut off");
    seal(&file);
    check_refused(&file, -EBADMSG, "behind its end");
    free(file.bytes);
}

static void a_newer_format_is_told_from_damage(void **state)
{
    (void)state;
    struct file file = small_file();
    le32_write(file.bytes + AT_FORMAT, SNAPSHOT_FORMAT + 1);
    check_refused(&file, -EBADMSG, "damaged");
    seal(&file);
    check_refused(&file, -ENOTSUP, "newer version");
    /* What it has behind the header is not ours to judge. */
    memset(file.bytes + HEADER, 0xff, file.size - HEADER);
    check_refused(&file, -ENOTSUP, "newer version");
    free(file.bytes);
}

static void a_newer_section_is_refused_by_name(void **state)
{
    (void)state;
    struct file file = small_file();
    struct snapshot_reader reader;
    struct record record;
    struct err err = {0};
    assert_int_equal(parse(&file, &reader, &err), 0);
    assert_int_equal(snapshot_find(&reader, "rtc", 2, &record, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "'rtc' has version 3, this one knows 2"));
    snapshot_reader_free(&reader);
    free(file.bytes);
}

static void a_section_that_cannot_be_is_refused(void **state)
{
    (void)state;
    const uint64_t sizes[] = {6 + 8 + SECTION_HEADER + 8 + 8, UINT64_MAX, UINT64_MAX - 6,
                              UINT64_MAX - 39, 1u << 31};
    struct file file = small_file();
    uint8_t *section = file.bytes + HEADER;
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        le64_write(section + SECTION_SIZE, sizes[i]);
        seal(&file);
        check_refused(&file, -EBADMSG, "cannot be");
    }
    le64_write(section + SECTION_SIZE, 5);
    le32_write(section + SECTION_VERSION, 0);
    seal(&file);
    check_refused(&file, -EBADMSG, "cannot be");
    le32_write(section + SECTION_VERSION, 3);
    memset(section, 'x', SNAPSHOT_NAME_MAX + 1); /* a name without an end */
    seal(&file);
    check_refused(&file, -EBADMSG, "cannot be");
    free(file.bytes);
}

static void the_number_of_sections_is_bounded(void **state)
{
    (void)state;
    struct file file = small_file();
    const uint32_t counts[] = {SNAPSHOT_SECTIONS_MAX + 1, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        le32_write(file.bytes + AT_SECTIONS, counts[i]);
        seal(&file);
        check_refused(&file, -EBADMSG, "too many sections");
    }
    le32_write(file.bytes + AT_SECTIONS, 3);
    seal(&file);
    check_refused(&file, -EBADMSG, "cannot be");
    le32_write(file.bytes + AT_SECTIONS, 1);
    seal(&file);
    check_refused(&file, -EBADMSG, "behind its end");
    free(file.bytes);
}

/* Two sections of one name: whoever asks gets the first, and the second is one too many. */
static void a_section_that_is_there_twice_is_noticed(void **state)
{
    (void)state;
    struct snapshot_writer writer;
    struct snapshot_reader reader;
    struct record record;
    struct err err = {0};
    snapshot_writer_init(&writer);
    add(&writer, "rtc", 1, "first", 5);
    add(&writer, "rtc", 1, "second", 6);
    struct file file = finish(&writer);
    assert_int_equal(parse(&file, &reader, &err), 0);
    assert_int_equal(snapshot_find(&reader, "rtc", 1, &record, &err), 0);
    assert_int_equal(record.size, 5);
    assert_int_equal(snapshot_all_used(&reader, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "'rtc'"));
    snapshot_reader_free(&reader);
    free(file.bytes);
}

static void what_a_section_lacks_is_said_with_its_name(void **state)
{
    (void)state;
    struct file file = small_file();
    struct snapshot_reader reader;
    struct record record;
    struct err err = {0};
    uint64_t value;
    uint32_t half;
    assert_int_equal(parse(&file, &reader, &err), 0);
    assert_int_equal(snapshot_find(&reader, "rtc", 3, &record, &err), 0);
    record_u64(&record, &value);
    assert_int_equal(snapshot_loaded("rtc", &record, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "'rtc' is too short"));
    assert_int_equal(snapshot_find(&reader, "virtio-blk.1", 3, &record, &err), 0);
    record_u32(&record, &half);
    assert_int_equal(snapshot_loaded("virtio-blk.1", &record, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "'virtio-blk.1' is longer than it should be"));
    snapshot_reader_free(&reader);
    free(file.bytes);
}

static void files_are_read_as_bytes_are(void **state)
{
    (void)state;
    struct file file = small_file();
    struct snapshot_reader reader = {0};
    struct err err = {0};
    _cleanup_fd_ int fd = memfd_create("state", MFD_CLOEXEC);
    assert_int_equal(pwrite(fd, file.bytes, file.size, 0), file.size);
    assert_int_equal(lseek(fd, 7, SEEK_SET), 7); /* where it stands does not matter */
    assert_int_equal(snapshot_read(fd, &reader, &err), 0);
    assert_int_equal(reader.count, 2);
    snapshot_reader_free(&reader);
    assert_int_equal(ftruncate(fd, (off_t)file.size - 1), 0);
    assert_int_equal(snapshot_read(fd, &reader, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "cut off"));
    assert_int_equal(ftruncate(fd, (off_t)SNAPSHOT_SIZE_MAX + 1), 0);
    assert_int_equal(snapshot_read(fd, &reader, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "larger than any"));
    assert_int_equal(snapshot_read(-1, &reader, &err), -EBADF);
    int pipes[2];
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_true(snapshot_read(pipes[0], &reader, &err) < 0);
    close(pipes[0]);
    close(pipes[1]);
    free(file.bytes);
}

static void a_file_that_takes_nothing_is_an_error(void **state)
{
    (void)state;
    struct snapshot_writer writer;
    struct err err = {0};
    _cleanup_fd_ int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(full >= 0);
    snapshot_writer_init(&writer);
    add(&writer, "rtc", 1, "x", 1);
    assert_int_equal(snapshot_write(&writer, full, &err), -ENOSPC);
    assert_non_null(strstr(err.text, "No space left"));
    snapshot_writer_free(&writer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(the_layout_is_the_documented_one),
        cmocka_unit_test(a_file_of_nothing_can_be),
        cmocka_unit_test(an_empty_section_can_be),
        cmocka_unit_test(every_single_bit_counts),
        cmocka_unit_test(every_cut_is_noticed),
        cmocka_unit_test(every_cut_of_a_sealed_file_is_noticed),
        cmocka_unit_test(a_tail_is_noticed),
        cmocka_unit_test(a_newer_format_is_told_from_damage),
        cmocka_unit_test(a_newer_section_is_refused_by_name),
        cmocka_unit_test(a_section_that_cannot_be_is_refused),
        cmocka_unit_test(the_number_of_sections_is_bounded),
        cmocka_unit_test(a_section_that_is_there_twice_is_noticed),
        cmocka_unit_test(what_a_section_lacks_is_said_with_its_name),
        cmocka_unit_test(files_are_read_as_bytes_are),
        cmocka_unit_test(a_file_that_takes_nothing_is_an_error),
    };
    return cmocka_run_group_tests_name("snapshot", tests, NULL, NULL);
}
