/* diskmix DEVICE ROUNDS: four processes, each with a quarter of the device, read and write pieces
 * of all sizes past the cache and check what they read. Says OK. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PROCESSES = 4, SECTOR = 512, PIECE_MAX = 300 * 1024 };

static uint32_t state;

static uint32_t roll(uint32_t below)
{
    state = state * 1664525 + 1013904223;
    return (state >> 7) % (below ? below : 1);
}

static int fail(const char *what, long round)
{
    fprintf(stderr, "%s in round %ld\n", what, round);
    return 1;
}

static int play(const char *path, uint64_t start, uint64_t size, long rounds)
{
    int fd = open(path, O_RDWR | O_DIRECT);
    uint8_t *model = malloc(size),
            *piece = aligned_alloc(4096, PIECE_MAX + 4096 + (-PIECE_MAX & 4095));
    if (fd < 0 || !model || !piece)
        return fail("open", 0);
    for (uint64_t at = 0; at < size; at += 65536) {
        if (pread(fd, piece, 65536, (off_t)(start + at)) != 65536)
            return fail("first read", 0);
        memcpy(model + at, piece, 65536);
    }
    for (long round = 0; round < rounds; round++) {
        uint64_t length = (1 + roll(roll(2) ? 16 : PIECE_MAX / SECTOR)) * SECTOR;
        uint64_t at = roll((uint32_t)((size - length) / SECTOR + 1)) * SECTOR;
        uint8_t *bytes = piece + roll(8) * SECTOR;
        if (roll(2)) {
            for (uint64_t i = 0; i < length; i++)
                bytes[i] = (uint8_t)(i * 31 + (uint64_t)round);
            memcpy(model + at, bytes, length);
            if (pwrite(fd, bytes, length, (off_t)(start + at)) != (ssize_t)length)
                return fail("write", round);
        } else {
            if (pread(fd, bytes, length, (off_t)(start + at)) != (ssize_t)length)
                return fail("read", round);
            if (memcmp(bytes, model + at, length) != 0)
                return fail("difference", round);
        }
        if (roll(20) == 0 && fdatasync(fd) < 0)
            return fail("flush", round);
    }
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t size = 0;
    int fd = argc == 3 ? open(argv[1], O_RDONLY) : -1, bad = 0, status;
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0)
        return fail("size", 0);
    for (unsigned i = 0; i < PROCESSES; i++)
        if (fork() == 0) {
            state = i + 1;
            _exit(play(argv[1], i * (size / PROCESSES), size / PROCESSES, atol(argv[2])));
        }
    while (wait(&status) > 0)
        bad |= status;
    puts(bad ? "BAD" : "OK");
    return bad != 0;
}
