/* The host ends: sums, passt's stream from the other side of a socket pair, and a tap's bytes over
 * one of packets, which reads and writes as a tap does. */
#include "nic/checksum.h"
#include "nic/passt.h"
#include "nic/tap.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static const struct nic_offload plain;

/* Word by word, as RFC 1071 has it. */
static uint16_t slow_sum(const uint8_t *bytes, size_t length)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htobe16((uint16_t)sum);
}

static void sums_are_those_of_the_rfc(void **state)
{
    static uint8_t bytes[70000];
    uint32_t random = 1;
    for (size_t i = 0; i < sizeof bytes; i++) {
        random = random * 1664525 + 1013904223;
        bytes[i] = (uint8_t)(random >> 24);
    }
    for (size_t start = 0; start < 9; start++)
        for (size_t length = 0; length < 200; length++)
            assert_int_equal(checksum_sum(bytes + start, length), slow_sum(bytes + start, length));
    assert_int_equal(checksum_sum(bytes, 65535), slow_sum(bytes, 65535));
    memset(bytes, 0xff, sizeof bytes);
    assert_int_equal(checksum_sum(bytes, 65536), slow_sum(bytes, 65536));
}

static void a_finished_sum_checks(void **state)
{
    uint8_t frame[101];
    for (size_t i = 0; i < sizeof frame; i++)
        frame[i] = (uint8_t)(i * 7);
    checksum_finish(frame, sizeof frame, 34, 6);
    /* The pseudo header's sum was part of it: without, the whole is the complement of that. */
    uint16_t rest = checksum_sum(frame + 34, sizeof frame - 34);
    uint8_t before[2] = {40 * 7 & 0xff, 41 * 7 & 0xff};
    uint16_t pseudo;
    memcpy(&pseudo, before, 2);
    assert_int_equal((uint16_t)~pseudo, rest);
    /* A sum of 0 would say that there is none. */
    uint8_t zeros[8] = {0xff, 0xff};
    checksum_finish(zeros, sizeof zeros, 0, 4);
    assert_int_equal(zeros[4], 0xff);
    assert_int_equal(zeros[5], 0xff);
}

struct ends {
    struct nic *nic;
    int other;
};

static int passt_setup(void **state)
{
    struct ends *ends = calloc(1, sizeof *ends);
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 ||
        nic_passt_new(pair[0], &ends->nic, NULL) < 0)
        return -1;
    ends->other = pair[1];
    *state = ends;
    return 0;
}

static int teardown(void **state)
{
    struct ends *ends = *state;
    nic_free(ends->nic);
    if (ends->other >= 0)
        close(ends->other);
    free(ends);
    return 0;
}

static void passt_wants_a_stream(void **state)
{
    struct nic *nic;
    struct err err = {0};
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    assert_int_equal(nic_passt_new(pair[0], &nic, &err), -EINVAL);
    assert_non_null(strstr(err.text, "stream"));
    close(pair[0]);
    close(pair[1]);
}

static void frames_go_out_behind_their_length(void **state)
{
    struct ends *ends = *state;
    uint8_t a[20], b[60], got[200];
    memset(a, 'a', sizeof a);
    memset(b, 'b', sizeof b);
    const struct iovec first[] = {{a, 5}, {a + 5, 15}}, second[] = {{b, sizeof b}};
    assert_int_equal(nic_send(ends->nic, 0, &plain, first, 2, 20), 0);
    assert_int_equal(nic_send(ends->nic, 0, &plain, second, 1, 60), 0);
    /* Together, when the row ends. */
    assert_int_equal(recv(ends->other, got, sizeof got, MSG_DONTWAIT), -1);
    assert_int_equal(nic_flush(ends->nic, 0), 0);
    assert_int_equal(recv(ends->other, got, sizeof got, MSG_DONTWAIT), 4 + 20 + 4 + 60);
    assert_memory_equal(got,
                        "\0\0\0\x14"
                        "aaaaaaaaaaaaaaaaaaaa"
                        "\0\0\0\x3c"
                        "bb",
                        30);
}

static void a_missing_sum_is_computed(void **state)
{
    struct ends *ends = *state;
    uint8_t frame[60] = {0}, got[64];
    for (size_t i = 14; i < sizeof frame; i++)
        frame[i] = (uint8_t)i;
    const struct iovec iov = {frame, sizeof frame};
    const struct nic_offload sum = {.flags = NIC_CSUM_NEEDED, .csum_start = 34, .csum_offset = 16};
    assert_int_equal(nic_send(ends->nic, 0, &sum, &iov, 1, sizeof frame), 0);
    nic_flush(ends->nic, 0);
    assert_int_equal(recv(ends->other, got, sizeof got, 0), 64);
    uint8_t before = frame[50];
    checksum_finish(frame, sizeof frame, 34, 16);
    assert_memory_equal(got + 4, frame, sizeof frame);
    assert_int_not_equal(before, frame[50]);
}

static void a_full_socket_takes_nothing_and_loses_nothing(void **state)
{
    struct ends *ends = *state;
    static uint8_t frame[NIC_FRAME_MAX], got[1 << 20];
    unsigned sent = 0;
    int r;
    const struct iovec iov = {frame, 30000};
    do {
        frame[20] = (uint8_t)sent;
        r = nic_send(ends->nic, 0, &plain, &iov, 1, 30000);
        sent += r == 0;
    } while (r == 0 && sent < 1000);
    assert_int_equal(r, -EAGAIN);
    size_t have = 0, want = (size_t)sent * 30004;
    uint8_t *all = malloc(want);
    while (have < want) {
        nic_flush(ends->nic, 0);
        ssize_t n = recv(ends->other, got, sizeof got, MSG_DONTWAIT);
        assert_true(n > 0);
        memcpy(all + have, got, (size_t)n);
        have += (size_t)n;
    }
    for (unsigned i = 0; i < sent; i++)
        assert_int_equal(all[i * 30004 + 24], (uint8_t)i);
    free(all);
}

static void frames_come_in_however_they_are_cut(void **state)
{
    struct ends *ends = *state;
    struct nic_frame frame;
    static uint8_t stream[3 * 70000];
    size_t lengths[] = {14, 1500, NIC_FRAME_MAX, 60}, end = 0;
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        uint32_t prefix = htobe32((uint32_t)lengths[i]);
        memcpy(stream + end, &prefix, 4);
        memset(stream + end + 4, (int)i + 1, lengths[i]);
        end += 4 + lengths[i];
    }
    size_t came = 0;
    for (size_t at = 0; at < end;) {
        size_t part = min(end - at, at < 40 ? (size_t)1 : (size_t)7919);
        assert_int_equal(send(ends->other, stream + at, part, 0), part);
        at += part;
        while (nic_receive(ends->nic, 0, &frame) == 1) {
            assert_int_equal(frame.length, lengths[came]);
            assert_int_equal(frame.offload.flags, NIC_CSUM_VALID);
            for (size_t i = 0; i < frame.length; i++)
                assert_int_equal(frame.bytes[i], came + 1);
            came++;
        }
    }
    assert_int_equal(came, ARRAY_LEN(lengths));
}

static void nonsense_and_ends_end_the_link(void **state)
{
    static const char *const streams[] = {"\0\0\0\x0d", "\0\x01\0\x12", "\xff\xff\xff\xff", ""};
    struct nic_frame frame;
    for (size_t i = 0; i < ARRAY_LEN(streams); i++) {
        void *own;
        assert_int_equal(passt_setup(&own), 0);
        struct ends *ends = own;
        if (i == 3) {
            close(ends->other);
            ends->other = -1;
        } else {
            assert_int_equal(send(ends->other, streams[i], 4, 0), 4);
        }
        assert_int_equal(nic_receive(ends->nic, 0, &frame), i == 3 ? -EPIPE : -EPROTO);
        assert_int_equal(nic_receive(ends->nic, 0, &frame), -EPIPE);
        const struct iovec iov = {own, 20};
        assert_int_equal(nic_send(ends->nic, 0, &plain, &iov, 1, 20), -EPIPE);
        assert_int_equal(nic_flush(ends->nic, 0), 0);
        teardown(&own);
    }
}

static void a_tap_carries_the_header_before_the_frame(void **state)
{
    struct ends ends;
    int pair[2];
    uint8_t frame[40] = {1, 2, 3}, got[100];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(nic_tap_new(pair, 1, &ends.nic, NULL), 0);
    const struct nic_offload offload = {NIC_CSUM_NEEDED, NIC_GSO_TCP4, 54, 1448, 34, 16};
    const struct iovec iov[] = {{frame, 14}, {frame + 14, 26}};
    assert_int_equal(nic_send(ends.nic, 0, &offload, iov, 2, 40), 0);
    assert_int_equal(recv(pair[1], got, sizeof got, 0), 52);
    assert_memory_equal(got, "\x01\x01\x36\0\xa8\x05\x22\0\x10\0\0\0\x01\x02\x03", 15);

    struct nic_frame in;
    assert_int_equal(nic_receive(ends.nic, 0, &in), 0);
    assert_int_equal(send(pair[1], got, 20, 0), 20); /* less than an Ethernet header: skipped */
    assert_int_equal(send(pair[1], got, 52, 0), 52);
    assert_int_equal(nic_receive(ends.nic, 0, &in), 1);
    assert_int_equal(in.length, 40);
    assert_memory_equal(&in.offload, &offload, sizeof offload);
    assert_memory_equal(in.bytes, frame, 40);
    nic_free(ends.nic);
    close(pair[1]);
}

static void there_must_be_such_a_tap(void **state)
{
    struct err err = {0};
    int fd;
    assert_int_equal(tap_open("no-such-tap", 1, &fd, &err), -ENODEV);
    assert_non_null(strstr(err.text, "ip tuntap add no-such-tap"));
    assert_int_equal(tap_open("a-name-that-is-far-too-long", 1, &fd, &err), -ENODEV);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_those_of_the_rfc),
        cmocka_unit_test(a_finished_sum_checks),
        cmocka_unit_test(passt_wants_a_stream),
        cmocka_unit_test_setup_teardown(frames_go_out_behind_their_length, passt_setup, teardown),
        cmocka_unit_test_setup_teardown(a_missing_sum_is_computed, passt_setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_socket_takes_nothing_and_loses_nothing, passt_setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(frames_come_in_however_they_are_cut, passt_setup, teardown),
        cmocka_unit_test(nonsense_and_ends_end_the_link),
        cmocka_unit_test(a_tap_carries_the_header_before_the_frame),
        cmocka_unit_test(there_must_be_such_a_tap),
    };
    return cmocka_run_group_tests_name("nic", tests, NULL, NULL);
}
