/* PID 1 of bench/disk: loads the modules of the default image, times transfers of /dev/vda past the
 * guest's cache, and powers off. One line a row: "ROW name value unit". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH_MAX = 32, PIECE_MAX = 1 << 20, SECONDS = 2 };

struct row {
    const char *name;
    int write, random;
    uint32_t size, depth;
};

static const struct row rows[] = {
    {"read 4 KiB, random, 1 at a time", 0, 1, 4096, 1},
    {"read 4 KiB, random, 32 at a time", 0, 1, 4096, 32},
    {"write 4 KiB, random, 1 at a time", 1, 1, 4096, 1},
    {"write 4 KiB, random, 32 at a time", 1, 1, 4096, 32},
    {"read 1 MiB, in order, 1 at a time", 0, 0, PIECE_MAX, 1},
    {"read 1 MiB, in order, 4 at a time", 0, 0, PIECE_MAX, 4},
    {"write 1 MiB, in order, 4 at a time", 1, 0, PIECE_MAX, 4},
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static uint64_t next_offset(const struct row *row, uint64_t disk, uint64_t *at)
{
    static uint32_t state = 1;
    if (row->random) {
        state = state * 1664525 + 1013904223;
        return (state >> 4) % (disk / row->size) * row->size;
    }
    uint64_t offset = *at + row->size <= disk ? *at : 0;
    *at = offset + row->size;
    return offset;
}

static void die(const char *what)
{
    perror(what);
    reboot(RB_POWER_OFF);
}

static void measure(const struct row *row, int fd, uint64_t disk, char *buffer)
{
    aio_context_t context = 0;
    struct iocb blocks[DEPTH_MAX], *batch[DEPTH_MAX];
    struct io_event events[DEPTH_MAX];
    uint64_t at = 0, done = 0;
    if (syscall(SYS_io_setup, DEPTH_MAX, &context) < 0)
        die("io_setup");
    long count = row->depth;
    for (long i = 0; i < count; i++) {
        blocks[i] = (struct iocb){.aio_fildes = (uint32_t)fd,
                                  .aio_lio_opcode = row->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
                                  .aio_buf = (uintptr_t)(buffer + i * PIECE_MAX),
                                  .aio_nbytes = row->size,
                                  .aio_offset = (int64_t)next_offset(row, disk, &at)};
        batch[i] = &blocks[i];
    }
    double begin = now(), end = begin;
    while (end - begin < SECONDS) {
        if (syscall(SYS_io_submit, context, count, batch) != count)
            die("io_submit");
        count = syscall(SYS_io_getevents, context, 1, DEPTH_MAX, events, NULL);
        for (long i = 0; i < count; i++) {
            if (events[i].res != row->size)
                die("transfer");
            batch[i] = (struct iocb *)(uintptr_t)events[i].obj;
            batch[i]->aio_offset = (int64_t)next_offset(row, disk, &at);
        }
        done += (uint64_t)count;
        end = now();
    }
    syscall(SYS_io_destroy, context); /* waits for what is under way */
    double rate = (double)done / (end - begin);
    printf("ROW %s; %.1f %s\n", row->name, row->random ? rate : rate * row->size / PIECE_MAX,
           row->random ? "a second" : "MiB/s");
}

static void load_modules(void)
{
    char line[128], path[160];
    FILE *list = fopen("/lib/modules/lodge.list", "r");
    while (list && fgets(line, sizeof line, list)) {
        line[strcspn(line, " \n")] = '\0';
        snprintf(path, sizeof path, "/lib/modules/%s", line);
        int fd = *line ? open(path, O_RDONLY) : -1;
        if (fd >= 0 && syscall(SYS_finit_module, fd, "", 0) < 0)
            perror(path);
    }
}

int main(void)
{
    int fd = -1;
    setvbuf(stdout, NULL, _IONBF, 0);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    load_modules();
    for (int i = 0; i < 100 && fd < 0; i++, usleep(20000))
        fd = open("/dev/vda", O_RDWR | O_DIRECT);
    char *buffer = aligned_alloc(4096, (size_t)DEPTH_MAX * PIECE_MAX);
    if (fd < 0 || !buffer)
        die("/dev/vda");
    memset(buffer, 1, (size_t)DEPTH_MAX * PIECE_MAX);
    uint64_t disk = (uint64_t)lseek(fd, 0, SEEK_END);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        measure(&rows[i], fd, disk, buffer);
    printf("DONE\n");
    reboot(RB_POWER_OFF);
    return 1;
}
