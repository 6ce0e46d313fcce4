/*
 * A program for tests/test_disk.py: works on an image as a guest would, and knows what must be
 * there.
 *
 *     disk_harness random IMAGE FORMAT SEED OPS THREADS CACHE MODEL
 *         random calls from several threads, each read compared with a model in memory, which is
 *         written to the file MODEL at the end
 *     disk_harness crash IMAGE FORMAT LOG SEED THREADS CACHE
 *         writes for ever; LOG, which is shared memory, says for each sector what was begun and
 *         what was flushed
 *     disk_harness verify IMAGE FORMAT LOG
 *         compares the image with LOG
 *     disk_harness speed IMAGE FORMAT SECONDS THREADS CACHE
 *         random reads, then random writes of 4 KiB; prints how many a second
 *
 * The disk is divided into zones of ZONE bytes with one thread as owner, and segments of 8 KiB
 * within every fourth zone are dealt out among all threads: so they meet in the same clusters, and
 * never in the same sector.
 */
#include "disk/disk.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { ZONE = 512 << 10, SEGMENT = 8 << 10, THREADS_MAX = 16 };

#define FATAL(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))

struct harness {
    struct disk *disk;
    uint64_t size, ops;
    unsigned threads;
    uint8_t *model;          /* random */
    _Atomic uint32_t *begun; /* crash: a version for each sector */
    _Atomic uint32_t *done;
    _Atomic uint32_t *flushed;
    _Atomic uint64_t count;
    atomic_bool stop;
};

struct worker {
    struct harness *harness;
    unsigned number;
    uint64_t seed;
    pthread_t thread;
};

static uint64_t next(struct worker *worker)
{
    worker->seed ^= worker->seed << 13;
    worker->seed ^= worker->seed >> 7;
    worker->seed ^= worker->seed << 17;
    return worker->seed;
}

static void check(int r, const char *what)
{
    if (r < 0)
        FATAL("%s: %s", what, strerror(-r));
}

/* A range that is this thread's alone: part of a segment, or `zones` and up to a whole zone. */
static void choose(struct worker *worker, bool *ret_whole, uint64_t *ret_offset,
                   uint64_t *ret_length)
{
    struct harness *harness = worker->harness;
    uint64_t zones = harness->size / ZONE;
    for (;;) {
        uint64_t zone = next(worker) % zones, from = zone * ZONE, room = ZONE;
        *ret_whole = zone % 4 != 0;
        if (*ret_whole && zone / 4 % harness->threads != worker->number)
            continue;
        if (!*ret_whole) {
            uint64_t segment = next(worker) % (ZONE / SEGMENT);
            if (segment % harness->threads != worker->number)
                continue;
            from += segment * SEGMENT;
            room = SEGMENT;
        }
        uint64_t begin = next(worker) % (room / 512), most = room / 512 - begin;
        uint64_t length =
            next(worker) % 8 ? next(worker) % min(most, UINT64_C(32)) + 1 : next(worker) % most + 1;
        *ret_offset = from + begin * 512;
        *ret_length = length * 512;
        return;
    }
}

static bool is_zero(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i])
            return false;
    return true;
}

/* As a device would: itself where that can be, else by the calls. */
static void transfer(struct worker *worker, uint64_t offset, uint8_t *bytes, uint64_t length,
                     bool write)
{
    struct disk *disk = worker->harness->disk;
    struct disk_extent extent;
    while (length) {
        uint64_t part = length;
        if (next(worker) % 2 && disk_direct(disk, offset, length, write, &extent)) {
            part = extent.length;
            if (part > length || extent.file_offset % extent.alignment)
                FATAL("an extent is not what was asked for");
            if ((uintptr_t)bytes % extent.alignment || part % extent.alignment) {
                disk_direct_end(disk, &extent);
                part = length;
                check(write ? disk_write(disk, offset, bytes, part)
                            : disk_read(disk, offset, bytes, part),
                      "unaligned");
            } else {
                ssize_t n = write ? pwrite(extent.fd, bytes, part, (off_t)extent.file_offset)
                                  : pread(extent.fd, bytes, part, (off_t)extent.file_offset);
                if (n != (ssize_t)part)
                    FATAL("a direct transfer of %zu bytes gave %zd", (size_t)part, n);
                disk_direct_end(disk, &extent);
            }
        } else {
            struct iovec iov[2] = {{bytes, length / 3}, {bytes + length / 3, length - length / 3}};
            check(write ? disk_writev(disk, offset, iov, 2) : disk_readv(disk, offset, iov, 2),
                  "transfer");
        }
        offset += part;
        bytes += part;
        length -= part;
    }
}

/* --- random --- */

static void expect(struct worker *worker, uint64_t offset, uint64_t length, uint8_t *buffer)
{
    const uint8_t *model = worker->harness->model + offset;
    transfer(worker, offset, buffer, length, false);
    for (uint64_t i = 0; i < length; i++)
        if (buffer[i] != model[i])
            FATAL("offset %#llx is %#x and should be %#x", (unsigned long long)(offset + i),
                  buffer[i], model[i]);
}

/* What was discarded is as before or zero, sector by sector, and stays what it is. */
static void discard(struct worker *worker, uint64_t offset, uint64_t length, uint8_t *buffer)
{
    uint8_t *model = worker->harness->model + offset;
    check(disk_discard(worker->harness->disk, offset, length), "discard");
    check(disk_read(worker->harness->disk, offset, buffer, length), "read");
    for (uint64_t i = 0; i < length; i += 512) {
        if (is_zero(buffer + i, 512))
            memset(model + i, 0, 512);
        else if (memcmp(model + i, buffer + i, 512) != 0)
            FATAL("offset %#llx after a discard is neither old nor zero",
                  (unsigned long long)(offset + i));
    }
}

static void act(struct worker *worker, uint8_t *buffer)
{
    struct harness *harness = worker->harness;
    uint64_t offset, length;
    bool whole;
    choose(worker, &whole, &offset, &length);
    if (next(worker) % 2) { /* any bytes, not only sectors */
        uint64_t cut = next(worker) % 512;
        offset += cut;
        length -= cut;
        length -= length > 512 ? next(worker) % 512 : 0;
    }
    switch (next(worker) % 16) {
    case 0: check(disk_flush(harness->disk), "flush"); break;
    case 1:
    case 2:
        offset &= ~UINT64_C(511);
        length = align_down(length, 512);
        if (length)
            discard(worker, offset, length, buffer);
        break;
    case 3:
    case 4:
        check(disk_write_zeroes(harness->disk, offset, length, next(worker) % 2), "zeroes");
        memset(harness->model + offset, 0, length);
        break;
    case 5:
    case 6:
    case 7:
    case 8:
    case 9:
        for (uint64_t i = 0; i < length; i++)
            buffer[i] = (uint8_t)(next(worker) >> 24);
        memcpy(harness->model + offset, buffer, length);
        transfer(worker, offset, buffer, length, true);
        break;
    default: expect(worker, offset, length, buffer);
    }
}

static void *run_random(void *opaque)
{
    struct worker *worker = opaque;
    uint8_t *buffer = aligned_alloc(4096, ZONE);
    for (uint64_t i = 0; i < worker->harness->ops; i++)
        act(worker, buffer);
    free(buffer);
    return NULL;
}

/* --- crash --- */

enum { VERSION_ZEROES = 3, VERSION_DISCARD = 7 };

static void stamp(uint8_t *sector, uint64_t number, uint32_t version)
{
    for (size_t i = 0; i < 512; i += 16) {
        le64_write(sector + i, number);
        le64_write(sector + i + 8, version);
    }
}

static void change(struct worker *worker, uint8_t *buffer)
{
    struct harness *harness = worker->harness;
    uint64_t offset, length;
    bool whole;
    choose(worker, &whole, &offset, &length);
    if (whole && next(worker) % 8 == 0) { /* whole clusters go */
        offset = align_down(offset, 65536);
        length = 65536 * (1 + next(worker) % 2);
        length = min(length, ZONE - offset % ZONE);
    }
    uint64_t first = offset / 512, count = length / 512;
    /* One kind for all of its sectors: the next version of that kind for each. */
    static const uint8_t kinds[8] = {
        0, 0, 0, 0, 0, VERSION_ZEROES, VERSION_ZEROES, VERSION_DISCARD};
    unsigned kind = kinds[next(worker) % 8];
    for (uint64_t i = 0; i < count; i++) {
        uint32_t version = harness->begun[first + i] + 1;
        while (kind ? version % 8 != kind
                    : version % 8 == VERSION_ZEROES || version % 8 == VERSION_DISCARD)
            version++;
        harness->begun[first + i] = version;
        stamp(buffer + i * 512, first + i, version);
    }
    if (kind == VERSION_ZEROES)
        check(disk_write_zeroes(harness->disk, offset, length, next(worker) % 2), "zeroes");
    else if (kind == VERSION_DISCARD)
        check(disk_discard(harness->disk, offset, length), "discard");
    else
        transfer(worker, offset, buffer, length, true);
    for (uint64_t i = 0; i < count; i++)
        harness->done[first + i] = harness->begun[first + i];
    harness->count++;
}

static void *run_crash(void *opaque)
{
    struct worker *worker = opaque;
    uint8_t *buffer = aligned_alloc(4096, ZONE);
    while (!worker->harness->stop)
        change(worker, buffer);
    free(buffer);
    return NULL;
}

static void flush_noted(struct harness *harness)
{
    uint64_t sectors = harness->size / 512;
    uint32_t *done = malloc(sectors * sizeof *done);
    for (uint64_t i = 0; i < sectors; i++)
        done[i] = harness->done[i];
    check(disk_flush(harness->disk), "flush");
    for (uint64_t i = 0; i < sectors; i++)
        harness->flushed[i] = done[i];
    free(done);
}

static void map_log(struct harness *harness, const char *path)
{
    uint64_t sectors = harness->size / 512, bytes = 3 * sectors * 4;
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        FATAL("%s: %s", path, strerror(errno));
    harness->begun = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (harness->begun == MAP_FAILED)
        FATAL("%s: %s", path, strerror(errno));
    harness->done = harness->begun + sectors;
    harness->flushed = harness->done + sectors;
    close(fd);
}

/* Any version from the flushed one on, or, when that was a discard, the one before. */
static bool allowed(const struct harness *harness, uint64_t sector, const uint8_t *bytes)
{
    uint8_t wanted[512];
    uint32_t from = harness->flushed[sector], to = harness->begun[sector];
    if (is_zero(bytes, 512)) {
        for (uint32_t version = from; version <= to; version++)
            if (version == 0 || version % 8 == VERSION_ZEROES || version % 8 == VERSION_DISCARD)
                return true;
        return false;
    }
    uint64_t version = le64_read(bytes + 8);
    stamp(wanted, sector, (uint32_t)version);
    if (memcmp(wanted, bytes, 512) != 0 || version > to)
        return false;
    /* Versions skip some numbers, and before a discard there may have been another. */
    return version >= from || (from % 8 == VERSION_DISCARD && version + 24 >= from);
}

static void verify(struct harness *harness)
{
    uint8_t sector[512];
    uint64_t flushed = 0;
    for (uint64_t i = 0; i < harness->size / 512; i++) {
        check(disk_read(harness->disk, i * 512, sector, 512), "read");
        flushed += harness->flushed[i] != 0;
        if (!allowed(harness, i, sector))
            FATAL("sector %llu: flushed %u, begun %u, found %llu of sector %llu%s",
                  (unsigned long long)i, harness->flushed[i], harness->begun[i],
                  (unsigned long long)le64_read(sector + 8), (unsigned long long)le64_read(sector),
                  is_zero(sector, 512) ? " (zeros)" : "");
    }
    printf("%llu flushed sectors\n", (unsigned long long)flushed);
    /* The next round begins from what is there now. */
    for (uint64_t i = 0; i < harness->size / 512; i++) {
        check(disk_read(harness->disk, i * 512, sector, 512), "read");
        if (!is_zero(sector, 512)) {
            harness->begun[i] = (uint32_t)le64_read(sector + 8);
            harness->flushed[i] = harness->done[i] = harness->begun[i];
            continue;
        }
        uint32_t version = harness->begun[i];
        while (version && version % 8 != VERSION_ZEROES)
            version--;
        harness->begun[i] = harness->flushed[i] = harness->done[i] = version;
    }
}

/* --- speed --- */

static bool speed_writes;

static void *run_speed(void *opaque)
{
    struct worker *worker = opaque;
    struct harness *harness = worker->harness;
    uint8_t *buffer = aligned_alloc(4096, 4096);
    memset(buffer, 0x5a, 4096);
    while (!harness->stop) {
        uint64_t offset = next(worker) % (harness->size / 4096) * 4096;
        check(speed_writes ? disk_write(harness->disk, offset, buffer, 4096)
                           : disk_read(harness->disk, offset, buffer, 4096),
              "speed");
        harness->count++;
    }
    free(buffer);
    return NULL;
}

/* --- all --- */

static void start(struct harness *harness, struct worker *workers, uint64_t seed,
                  void *(*run)(void *))
{
    for (unsigned i = 0; i < harness->threads; i++) {
        workers[i] = (struct worker){harness, i, seed * 1000003 + i * 7919 + 88172645463325252, 0};
        pthread_create(&workers[i].thread, NULL, run, &workers[i]);
    }
}

static void join(struct harness *harness, struct worker *workers)
{
    for (unsigned i = 0; i < harness->threads; i++)
        pthread_join(workers[i].thread, NULL);
}

static void open_disk(struct harness *harness, char **argv, const char *cache, bool read_only)
{
    struct err err = {0};
    struct disk_options options = {
        .format = !strcmp(argv[3], "raw") ? DISK_FORMAT_RAW : DISK_FORMAT_QCOW2,
        .read_only = read_only,
        .cache = !strcmp(cache, "none")     ? DISK_CACHE_NONE
                 : !strcmp(cache, "unsafe") ? DISK_CACHE_UNSAFE
                                            : DISK_CACHE_WRITEBACK,
    };
    const char *key_path = getenv("LODGE_DISK_KEY");
    struct disk_key *key = NULL;
    if (key_path && disk_key_read(key_path, &key, &err) < 0)
        FATAL("%s", err.text);
    options.key = key;
    if (disk_open(argv[2], &options, &harness->disk, &err) < 0)
        FATAL("%s", err.text);
    disk_key_free(key);
    harness->size = disk_size(harness->disk);
}

static void write_model(const struct harness *harness, const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    for (uint64_t at = 0; at < harness->size;) {
        ssize_t put = write(fd, harness->model + at, harness->size - at);
        if (put <= 0)
            FATAL("%s: %s", path, strerror(errno));
        at += (uint64_t)put;
    }
    close(fd);
}

static void command_random(char **argv)
{
    struct harness harness = {.ops = strtoull(argv[5], NULL, 0),
                              .threads = (unsigned)atoi(argv[6])};
    struct worker workers[THREADS_MAX];
    open_disk(&harness, argv, argv[7], false);
    harness.model = malloc(harness.size);
    check(disk_read(harness.disk, 0, harness.model, harness.size), "read");
    start(&harness, workers, strtoull(argv[4], NULL, 0), run_random);
    join(&harness, workers);
    workers[0].seed |= 1;
    uint8_t *buffer = aligned_alloc(4096, align_up(harness.size, 4096));
    expect(&workers[0], 0, harness.size, buffer);
    check(disk_close(harness.disk), "close");
    open_disk(&harness, argv, argv[7], true);
    expect(&workers[0], 0, harness.size, buffer);
    check(disk_close(harness.disk), "close");
    write_model(&harness, argv[8]);
    free(buffer);
    free(harness.model);
}

static void command_crash(char **argv)
{
    struct harness harness = {.threads = (unsigned)atoi(argv[6])};
    struct worker workers[THREADS_MAX];
    open_disk(&harness, argv, argv[7], false);
    map_log(&harness, argv[4]);
    start(&harness, workers, strtoull(argv[5], NULL, 0), run_crash);
    struct worker pace = {.seed = strtoull(argv[5], NULL, 0) * 31 + 7};
    puts("writing");
    fflush(stdout);
    for (;;) {
        usleep((useconds_t)(next(&pace) % 3000));
        flush_noted(&harness);
    }
}

static void command_verify(char **argv)
{
    struct harness harness = {0};
    open_disk(&harness, argv, "writeback", true);
    map_log(&harness, argv[4]);
    verify(&harness);
    check(disk_close(harness.disk), "close");
}

static void command_speed(char **argv)
{
    struct harness harness = {.threads = (unsigned)atoi(argv[5])};
    struct worker workers[THREADS_MAX];
    unsigned seconds = (unsigned)atoi(argv[4]);
    open_disk(&harness, argv, argv[6], false);
    for (int writes = 0; writes < 2; writes++) {
        speed_writes = writes;
        harness.count = 0;
        harness.stop = false;
        start(&harness, workers, 1, run_speed);
        sleep(seconds);
        harness.stop = true;
        join(&harness, workers);
        printf("%s %llu\n", writes ? "writes" : "reads",
               (unsigned long long)(harness.count / seconds));
    }
    check(disk_close(harness.disk), "close");
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int words;
        void (*run)(char **argv);
    } commands[] = {
        {"random", 9, command_random},
        {"crash", 8, command_crash},
        {"verify", 5, command_verify},
        {"speed", 7, command_speed},
    };
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (argc == commands[i].words && !strcmp(argv[1], commands[i].name)) {
            commands[i].run(argv);
            return 0;
        }
    FATAL("see the head of disk_harness.c");
}
