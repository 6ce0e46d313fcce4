/* State as bytes, and their checksum. */
#include "base/record.h"

#include "base/bytes.h"
#include "base/crc32c.c" /* both of its implementations, whatever this CPU has */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum { VERSION = 3 };

/* One of each. */
struct sample {
    uint8_t small, bounded;
    uint16_t half, half_bounded;
    uint32_t word, word_bounded;
    uint64_t wide;
    int64_t negative;
    bool yes, no;
    uint8_t bytes[5];
};

static const struct sample filled = {.small = 0xa1,
                                     .bounded = 6,
                                     .half = 0xb2b1,
                                     .half_bounded = 299,
                                     .word = 0xc4c3c2c1,
                                     .word_bounded = 69999,
                                     .wide = 0xd8d7d6d5d4d3d2d1,
                                     .negative = -2,
                                     .yes = true,
                                     .bytes = {1, 2, 3, 4, 5}};

static const uint8_t filled_bytes[] = {
    0xa1, 0x06, 0xb1, 0xb2, 0x2b, 0x01, 0xc1, 0xc2, 0xc3, 0xc4, 0x6f, 0x11, 0x01, 0x00,
    0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0x01, 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x09, 0x00, 0x00, 0x00};

static void sample_state(struct sample *sample, struct record *record)
{
    record_u8(record, &sample->small);
    record_u8_below(record, &sample->bounded, 7);
    record_u16(record, &sample->half);
    record_u16_below(record, &sample->half_bounded, 300);
    record_u32(record, &sample->word);
    record_u32_below(record, &sample->word_bounded, 70000);
    record_u64(record, &sample->wide);
    record_i64(record, &sample->negative);
    record_bool(record, &sample->yes);
    record_bool(record, &sample->no);
    record_bytes(record, sample->bytes, sizeof sample->bytes);
    record_same(record, 9, "has another number of legs");
}

static void what_is_saved_is_laid_out_as_documented(void **state)
{
    struct sample sample = filled;
    struct record record;
    record_save(&record, VERSION);
    sample_state(&sample, &record);
    assert_true(record_ended(&record));
    assert_int_equal(record.version, VERSION);
    assert_int_equal(record.size, sizeof filled_bytes);
    assert_memory_equal(record.bytes, filled_bytes, sizeof filled_bytes);
    assert_memory_equal(&sample, &filled, sizeof sample);
    record_free(&record);
    assert_null(record.bytes);
    record_free(&record);
}

static void what_is_loaded_is_what_was_saved(void **state)
{
    struct sample sample;
    struct record record;
    memset(&sample, 0, sizeof sample);
    record_load(&record, filled_bytes, sizeof filled_bytes, VERSION);
    sample_state(&sample, &record);
    assert_true(record_ended(&record));
    assert_int_equal(sample.small, filled.small);
    assert_int_equal(sample.bounded, filled.bounded);
    assert_int_equal(sample.half, filled.half);
    assert_int_equal(sample.half_bounded, filled.half_bounded);
    assert_int_equal(sample.word, filled.word);
    assert_int_equal(sample.word_bounded, filled.word_bounded);
    assert_int_equal(sample.wide, filled.wide);
    assert_int_equal(sample.negative, filled.negative);
    assert_true(sample.yes);
    assert_false(sample.no);
    assert_memory_equal(sample.bytes, filled.bytes, sizeof sample.bytes);
}

static void what_is_cut_off_reads_as_zeros(void **state)
{
    for (size_t size = 0; size < sizeof filled_bytes; size++) {
        uint8_t *cut = malloc(size + 1); /* exactly as long: a sanitizer sees what goes beyond */
        struct sample sample = filled;
        struct record record;
        memcpy(cut, filled_bytes, size);
        cut = realloc(cut, max(size, (size_t)1));
        record_load(&record, cut, size, VERSION);
        sample_state(&sample, &record);
        assert_false(record_ended(&record));
        assert_string_equal(record.why, "is too short");
        assert_false(size < 1 && sample.small);
        assert_false(size < 22 && sample.wide != 0);
        assert_int_equal(sample.bytes[4], size < 37 ? 0 : 5); /* all of a field or nothing */
        free(cut);
    }
}

static void what_is_left_over_is_an_error(void **state)
{
    uint8_t longer[sizeof filled_bytes + 1] = {0};
    struct sample sample;
    struct record record;
    memcpy(longer, filled_bytes, sizeof filled_bytes);
    record_load(&record, longer, sizeof longer, VERSION);
    sample_state(&sample, &record);
    assert_false(record.failed);
    assert_false(record_ended(&record));
    assert_string_equal(record.why, "is longer than it should be");
}

/* The byte at `at` becomes `value`: is that noticed, and does everything behind read as zero? */
static void check_bad(size_t at, uint8_t value, const char *why)
{
    uint8_t bytes[sizeof filled_bytes];
    struct sample sample = filled;
    struct record record;
    memcpy(bytes, filled_bytes, sizeof bytes);
    bytes[at] = value;
    record_load(&record, bytes, sizeof bytes, VERSION);
    sample_state(&sample, &record);
    assert_false(record_ended(&record));
    assert_string_equal(record.why, why);
    assert_int_equal(sample.bytes[4], at < 32 ? 0 : 5);
}

static void bounds_are_kept(void **state)
{
    static const char why[] = "has a value that cannot be";
    check_bad(1, 7, why);
    check_bad(4, 0x2c, why);  /* 300 */
    check_bad(10, 0x70, why); /* 70000 */
    check_bad(30, 2, why);
    check_bad(31, 0xff, why);
    check_bad(37, 8, "has another number of legs");
    check_bad(40, 1, "has another number of legs");
}

static void a_value_out_of_bounds_is_not_handed_on(void **state)
{
    const uint8_t bytes[] = {200, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    struct record record;
    uint8_t byte = 1;
    uint16_t half = 1;
    uint32_t word = 1;
    record_load(&record, bytes, 1, 1);
    record_u8_below(&record, &byte, 200);
    assert_true(record.failed);
    assert_int_equal(byte, 0);
    record_load(&record, bytes + 1, 2, 1);
    record_u16_below(&record, &half, UINT16_MAX);
    assert_true(record.failed);
    assert_int_equal(half, 0);
    record_load(&record, bytes + 1, 4, 1);
    record_u32_below(&record, &word, UINT32_MAX);
    assert_true(record.failed);
    assert_int_equal(word, 0);
}

static void the_first_reason_is_kept(void **state)
{
    const uint8_t byte = 5;
    uint8_t value;
    uint64_t more = 7;
    struct record record;
    record_load(&record, &byte, 1, 1);
    record_u8_below(&record, &value, 5);
    record_u64(&record, &more);
    record_fail(&record, "is late");
    assert_int_equal(more, 0);
    assert_false(record_ended(&record));
    assert_string_equal(record.why, "has a value that cannot be");
}

static void a_record_grows_as_it_must(void **state)
{
    struct record record;
    record_save(&record, 1);
    for (uint32_t i = 0; i < 100000; i++)
        record_u32(&record, &i);
    assert_true(record_ended(&record));
    assert_int_equal(record.size, 400000);
    for (uint32_t i = 0; i < 100000; i++)
        assert_int_equal(le32_read(record.bytes + 4 * i), i);
    record_free(&record);
}

/* A layout that has grown: version 1 had one field, version 2 has two. */
static void grown_state(uint32_t *first, uint32_t *second, struct record *record)
{
    record_u32(record, first);
    if (record->version >= 2)
        record_u32(record, second);
}

static void an_older_version_leaves_what_it_lacks(void **state)
{
    const uint8_t old[] = {1, 0, 0, 0};
    uint32_t first = 0, second = 77;
    struct record record;
    record_load(&record, old, sizeof old, 1);
    grown_state(&first, &second, &record);
    assert_true(record_ended(&record));
    assert_int_equal(first, 1);
    assert_int_equal(second, 77);
    record_load(&record, old, sizeof old, 2);
    grown_state(&first, &second, &record);
    assert_false(record_ended(&record));
}

/* ---- checksums ---- */

/* RFC 3720, appendix B.4; there the CRC's bytes stand in the order of the wire. */
static const struct vector {
    uint8_t bytes[48];
    size_t size;
    uint32_t crc;
} vectors[] = {
    {{0}, 32, 0x8a9136aa},
    {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
      0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
      0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
     32,
     0x62a8ab43},
    {{0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31},
     32,
     0x46dd794e},
    {{31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16,
      15, 14, 13, 12, 11, 10, 9,  8,  7,  6,  5,  4,  3,  2,  1,  0},
     32,
     0x113fdb5c},
    {{0x01, 0xc0, [16] = 0x14, [22] = 0x04, [27] = 0x14, [31] = 0x18, 0x28, [40] = 0x02},
     48,
     0xd9963a56}, /* an iSCSI READ (10) command PDU */
};

static void checksums_are_those_of_the_rfc(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(vectors); i++) {
        const struct vector *vector = &vectors[i];
        assert_int_equal(crc32c(0, vector->bytes, vector->size), vector->crc);
        assert_int_equal(~by_bits(UINT32_MAX, vector->bytes, vector->size), vector->crc);
        if (__builtin_cpu_supports("sse4.2"))
            assert_int_equal(~by_instruction(UINT32_MAX, vector->bytes, vector->size), vector->crc);
    }
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(crc32c(0, NULL, 0), 0);
}

static void both_ways_agree_on_all_lengths_and_places(void **state)
{
    uint8_t bytes[256 + 8];
    uint32_t noise = 1;
    if (!__builtin_cpu_supports("sse4.2"))
        skip();
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)((noise = noise * 1664525 + 1013904223) >> 24);
    for (size_t size = 0; size <= 256; size++)
        for (size_t at = 0; at < 8; at++)
            assert_int_equal(by_bits(noise, bytes + at, size),
                             by_instruction(noise, bytes + at, size));
}

static void a_checksum_may_be_made_in_parts(void **state)
{
    const struct vector *vector = &vectors[4];
    for (size_t cut = 0; cut <= vector->size; cut++) {
        uint32_t crc = crc32c(0, vector->bytes, cut);
        assert_int_equal(crc32c(crc, vector->bytes + cut, vector->size - cut), vector->crc);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_saved_is_laid_out_as_documented),
        cmocka_unit_test(what_is_loaded_is_what_was_saved),
        cmocka_unit_test(what_is_cut_off_reads_as_zeros),
        cmocka_unit_test(what_is_left_over_is_an_error),
        cmocka_unit_test(bounds_are_kept),
        cmocka_unit_test(a_value_out_of_bounds_is_not_handed_on),
        cmocka_unit_test(the_first_reason_is_kept),
        cmocka_unit_test(a_record_grows_as_it_must),
        cmocka_unit_test(an_older_version_leaves_what_it_lacks),
        cmocka_unit_test(checksums_are_those_of_the_rfc),
        cmocka_unit_test(both_ways_agree_on_all_lengths_and_places),
        cmocka_unit_test(a_checksum_may_be_made_in_parts),
    };
    return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
