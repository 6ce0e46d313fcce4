#include "wire/control.h"

#include "base/bytes.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static const struct control_message samples[] = {
    {.type = CONTROL_READY,
     .time_ns = 0x1122334455667788,
     .began_ns = 9,
     .engine = "soft",
     .text = "no /dev/kvm"},
    {.type = CONTROL_READY, .engine = "kvm"},
    {.type = CONTROL_CONSOLE_OPENED, .port = 3, .open = true},
    {.type = CONTROL_CONSOLE_OPENED, .port = 0, .open = false},
    {.type = CONTROL_RESET},
    {.type = CONTROL_POWER_OFF},
    {.type = CONTROL_TRIPLE_FAULT, .text = "rip 0000\nrsp 0001"},
    {.type = CONTROL_DEBUG_EXIT, .code = 255},
    {.type = CONTROL_PANICKED},
    {.type = CONTROL_ERROR, .text = ""},
    {.type = CONTROL_STATS, .instructions = UINT64_MAX, .resident = 5, .guest_resident = 4},
    {.type = CONTROL_POWER_BUTTON},
    {.type = CONTROL_RESET_NOW},
    {.type = CONTROL_PAUSE},
    {.type = CONTROL_RESUME},
    {.type = CONTROL_QUIT},
    {.type = CONTROL_CONSOLE_SIZE, .port = 1, .cols = 80, .rows = 25},
    {.type = CONTROL_STATS_ASK},
    {.type = CONTROL_CRASH_LOADED},
    {.type = CONTROL_WATCHDOG},
    {.type = CONTROL_BALLOON,
     .balloon = {.present = true,
                 .target = UINT64_MAX,
                 .actual = 4096,
                 .age_ms = 7,
                 .known = 0x8001,
                 .stats = {[0] = 1, [15] = UINT64_MAX}}},
    {.type = CONTROL_BALLOON_TARGET, .bytes = UINT64_MAX - 1},
    {.type = CONTROL_BALLOON_ASK},
    {.type = CONTROL_NEW_GENERATION},
    {.type = CONTROL_LINK, .port = 7, .open = true},
    {.type = CONTROL_HOLD},
    {.type = CONTROL_RELEASE},
    {.type = CONTROL_DISK, .port = 7},
    {.type = CONTROL_STACK, .port = 0xfffffffe, .text = "/disks/web.1.qcow2"},
    {.type = CONTROL_DONE},
    {.type = CONTROL_DONE, .pages = 0x0102030405060708, .was_paused = true},
    {.type = CONTROL_FAILED, .text = "a machine is saved while it is paused"},
    {.type = CONTROL_FAILED},
    {.type = CONTROL_SAVE, .id = {1, 2, 3, [15] = 16}},
    {.type = CONTROL_SAVE, .id = {0xff}, .parent = {[15] = 0xfe}, .changes = true},
    {.type = CONTROL_STATS, .state = CONTROL_STATE_FULL, .text = "/srv/web.qcow2"},
    {.type = CONTROL_FULL, .port = 7, .code = 28},
    {.type = CONTROL_FULL},
    {.type = CONTROL_LINK, .port = 1},
    {.type = CONTROL_NICS_ASK},
    {.type = CONTROL_NICS},
    {.type = CONTROL_NICS,
     .nic_count = CONTROL_NICS_MAX,
     .nics = {{true, 1, 2, 3, 4, 5, UINT64_MAX}, [7] = {.out_dropped = 6}}},
};

static void every_message_comes_back_as_it_was(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(samples); i++) {
        uint8_t bytes[CONTROL_MESSAGE_MAX];
        size_t size = control_encode(&samples[i], bytes);
        struct control_message back;
        assert_int_equal(control_decode(bytes, size, &back, NULL), size);
        uint8_t again[CONTROL_MESSAGE_MAX];
        assert_int_equal(control_encode(&back, again), size);
        assert_memory_equal(again, bytes, size);
        assert_string_equal(back.text, samples[i].text);
    }
}

static void a_part_of_a_message_waits_for_the_rest(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(samples); i++) {
        uint8_t bytes[CONTROL_MESSAGE_MAX];
        size_t size = control_encode(&samples[i], bytes);
        for (size_t part = 0; part < size; part++) {
            /* A heap copy of just that length: a read past it is a finding of ASan. */
            uint8_t *copy = malloc(part ? part : 1);
            memcpy(copy, bytes, part);
            struct control_message back = {.port = 77};
            assert_int_equal(control_decode(copy, part, &back, NULL), 0);
            assert_int_equal(back.port, 77);
            free(copy);
        }
    }
}

static void two_messages_in_a_row_are_taken_apart(void **state)
{
    (void)state;
    uint8_t bytes[2 * CONTROL_MESSAGE_MAX];
    size_t first = control_encode(&samples[0], bytes);
    size_t second = control_encode(&samples[2], bytes + first);
    struct control_message back;
    assert_int_equal(control_decode(bytes, first + second, &back, NULL), first);
    assert_int_equal(back.type, CONTROL_READY);
    assert_int_equal(control_decode(bytes + first, second, &back, NULL), second);
    assert_int_equal(back.type, CONTROL_CONSOLE_OPENED);
}

static void text_that_is_too_long_is_cut(void **state)
{
    (void)state;
    struct control_message message = {.type = CONTROL_ERROR};
    memset(message.text, 'x', sizeof message.text);
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    size_t size = control_encode(&message, bytes);
    struct control_message back;
    assert_int_equal(control_decode(bytes, size, &back, NULL), size);
    assert_int_equal(strlen(back.text), CONTROL_TEXT_MAX);
}

static void refuse(const uint8_t *bytes, size_t size)
{
    struct control_message back;
    struct err err = {0};
    assert_int_equal(control_decode(bytes, size, &back, &err), -EBADMSG);
    assert_string_not_equal(err.text, "");
}

static void malformed_messages_are_refused(void **state)
{
    (void)state;
    uint8_t bytes[CONTROL_MESSAGE_MAX] = {0};
    refuse(bytes, sizeof bytes); /* type 0 */

    control_encode(&samples[2], bytes);
    bytes[12] = 2; /* a truth value */
    refuse(bytes, 13);
    bytes[12] = 1;
    bytes[6] = 1; /* must be zero */
    refuse(bytes, 13);

    control_encode(&samples[4], bytes);
    le32_write(bytes, 1); /* RESET carries nothing */
    refuse(bytes, 9);
    le32_write(bytes, UINT32_MAX); /* and the length is refused before it is waited for */
    refuse(bytes, 9);

    control_encode(&samples[16], bytes);
    le32_write(bytes, 7);
    refuse(bytes, 15);

    size_t size = control_encode(&samples[6], bytes);
    bytes[10] = 0; /* NUL in a text */
    refuse(bytes, size);

    size = control_encode(&samples[1], bytes);
    memset(bytes + 16, 'k', CONTROL_NAME_MAX); /* a name without an end */
    refuse(bytes, size);

    size = control_encode(&samples[20], bytes);
    bytes[8] = 4; /* a flag that is none */
    refuse(bytes, size);
    control_encode(&samples[20], bytes);
    bytes[8 + 32 + 2] = 1; /* a value that has no place */
    refuse(bytes, size);

    control_encode(&samples[7], bytes);
    le32_write(bytes + 8, 256); /* no exit status */
    refuse(bytes, 12);

    size = control_encode(&(struct control_message){.type = CONTROL_NICS}, bytes);
    bytes[8] = CONTROL_NICS_MAX + 1;
    refuse(bytes, size);
    bytes[8] = 1;
    bytes[8 + 4] = 2; /* neither up nor down */
    refuse(bytes, size);

    size = control_encode(&samples[10], bytes);
    bytes[8 + 24] = CONTROL_STATE_MAX;
    refuse(bytes, size);
}

/* As control.h has them: whoever speaks this over a socket may not be this program. */
static void saving_has_these_bytes(void **state)
{
    (void)state;
    const uint8_t save[] = {33, 0, 0, 0, 71, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                            0,  0, 9, 4, 5,  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 1};
    const uint8_t done[] = {9, 0, 0, 0, 10, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 1};
    const uint8_t failed[] = {2, 0, 0, 0, 11, 0, 0, 0, 'n', 'o'};
    struct control_message message = {.type = CONTROL_SAVE,
                                      .id = {1, 2, 3, [15] = 9},
                                      .parent = {4, 5, [15] = 6},
                                      .changes = true};
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    assert_int_equal(control_encode(&message, bytes), sizeof save);
    assert_memory_equal(bytes, save, sizeof save);
    message.type = CONTROL_DONE;
    message.pages = 0x0102030405060708;
    message.was_paused = true;
    assert_int_equal(control_encode(&message, bytes), sizeof done);
    assert_memory_equal(bytes, done, sizeof done);
    message = (struct control_message){.type = CONTROL_FAILED, .text = "no"};
    assert_int_equal(control_encode(&message, bytes), sizeof failed);
    assert_memory_equal(bytes, failed, sizeof failed);

    assert_int_equal(control_decode(save, sizeof save, &message, NULL), sizeof save);
    assert_true(message.changes);
    assert_memory_equal(message.id, save + 8, CONTROL_ID_SIZE);
    assert_memory_equal(message.parent, save + 24, CONTROL_ID_SIZE);
    assert_int_equal(control_decode(done, sizeof done, &message, NULL), sizeof done);
    assert_int_equal(message.pages, 0x0102030405060708);
    assert_true(message.was_paused);
}

static void malformed_saves_are_refused(void **state)
{
    (void)state;
    struct control_message message = {.type = CONTROL_SAVE};
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    size_t size = control_encode(&message, bytes);
    for (unsigned wrong = 2; wrong < 256; wrong++) { /* a truth value */
        bytes[size - 1] = (uint8_t)wrong;
        refuse(bytes, size);
    }
    bytes[size - 1] = 1;
    le32_write(bytes, 2 * CONTROL_ID_SIZE); /* too short, too long */
    refuse(bytes, size - 1);
    le32_write(bytes, 2 * CONTROL_ID_SIZE + 2);
    refuse(bytes, size + 1);
    message.type = CONTROL_DONE;
    size = control_encode(&message, bytes);
    le32_write(bytes, 8);
    refuse(bytes, size - 1);
    le32_write(bytes, 9);
    bytes[size - 1] = 2;
    refuse(bytes, size);
    message = (struct control_message){.type = CONTROL_FAILED, .text = "why"};
    size = control_encode(&message, bytes);
    bytes[size - 2] = 0; /* NUL in a text */
    refuse(bytes, size);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_comes_back_as_it_was),
        cmocka_unit_test(a_part_of_a_message_waits_for_the_rest),
        cmocka_unit_test(two_messages_in_a_row_are_taken_apart),
        cmocka_unit_test(text_that_is_too_long_is_cut),
        cmocka_unit_test(malformed_messages_are_refused),
        cmocka_unit_test(saving_has_these_bytes),
        cmocka_unit_test(malformed_saves_are_refused),
    };
    return cmocka_run_group_tests_name("control", tests, NULL, NULL);
}
