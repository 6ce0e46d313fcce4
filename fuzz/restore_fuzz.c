// needs: base wire mem cpu cpu/kvm cpu/soft bus chip chip/state disk nic virtio board
// flags: -len_control=0 -max_len=256
/*
 * A snapshot from a stranger, up to a machine that runs. One with two processors and
 * all devices is saved for real; the input then changes its state: bytes and words inside of
 * sections, sections cut, grown, left out, twice, renamed, of another version. Checksums are made
 * right again, so that what lies behind them is reached. Where board_new() takes it, the machine
 * runs for a moment, may be saved once more, and is taken apart.
 *
 * What must hold: no access outside of memory, every wait ends, nothing is left behind, and what
 * was taken can be saved and restored again. (The file alone is snapshot_fuzz.c's.)
 */
#include "base/bytes.h"
#include "base/own.h"
#include "board/board.h"
#include "board/board_private.h"
#include "board/snapshot.h"
#include "board/snapshot_guest.h"
#include "disk/disk.h"
#include "input.h"
#include "virtio/test_driver.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    CPUS = 2,
    DISK_BYTES = 1 << 20,
    SECTIONS_MAX = 64,
    STEPS_MAX = 64,
    RUN_NS = 300000,
    MACHINE_PARENT = 52, /* in section "machine" */
    MACHINE_HAS_PARENT = 68,
};

/* ---- input ---- */

/* ---- machines ---- */

/* Socket pairs of one machine. */
enum { CONSOLE, AGENT, NETWORK, VSOCK, PAIRS };

struct host {
    int kernel_fd, disk_fd;
    int theirs[PAIRS], ours[PAIRS];
    ino_t inodes[PAIRS]; /* of `theirs` */
    struct disk *disk;
};

static int open_memory(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    struct host *host = opaque;
    return fcntl(host->disk_fd, F_DUPFD_CLOEXEC, 0);
}

static void host_init(struct host *host)
{
    const struct disk_opener opener = {open_memory, host};
    const struct disk_options options = {
        .format = DISK_FORMAT_RAW, .cache = DISK_CACHE_UNSAFE, .opener = &opener};
    host->kernel_fd = guest_kernel(CPUS, false);
    host->disk_fd = memfd_create("disk", MFD_CLOEXEC);
    int r = ftruncate(host->disk_fd, DISK_BYTES);
    for (unsigned i = 0; r >= 0 && i < PAIRS; i++) {
        struct stat about;
        int pair[2];
        r = socketpair(AF_UNIX, (i == VSOCK ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC, 0,
                       pair);
        host->theirs[i] = pair[0];
        host->ours[i] = pair[1];
        if (r >= 0)
            r = fstat(pair[0], &about);
        host->inodes[i] = about.st_ino;
    }
    if (r >= 0)
        r = disk_open("disk", &options, &host->disk, NULL);
    assert(r >= 0);
}

/* A board that could not be made may have closed its sockets, or not. */
static void host_fini(struct host *host)
{
    for (unsigned i = 0; i < PAIRS; i++) {
        struct stat about;
        if (fstat(host->theirs[i], &about) == 0 && about.st_ino == host->inodes[i])
            close(host->theirs[i]);
        close(host->ours[i]);
    }
    disk_close(host->disk);
    close(host->disk_fd);
    close(host->kernel_fd);
}

static int make(struct host *host, const struct board_restore *restore, struct board **ret_board,
                struct err *err)
{
    const struct board_console consoles[] = {{.fd = host->theirs[CONSOLE]},
                                             {.name = "agent", .fd = host->theirs[AGENT]}};
    const struct board_disk disk = {.disk = host->disk};
    const struct board_nic nic = {.kind = BOARD_NIC_USER,
                                  .fds = &host->theirs[NETWORK],
                                  .fd_count = 1,
                                  .mac = {2, 0, 0, 0, 0, 1},
                                  .mtu = 1500};
    const struct board_config config = {.engine = &engine_soft,
                                        .kvm_fd = -1,
                                        .memory = MIB(8),
                                        .cpus = CPUS,
                                        .code_cache = MIB(4),
                                        .kernel_fd = host->kernel_fd,
                                        .initrd_fd = -1,
                                        .command_line = "",
                                        .serial_in_fd = -1,
                                        .serial_out_fd = -1,
                                        .consoles = consoles,
                                        .console_count = 2,
                                        .disks = &disk,
                                        .disk_count = 1,
                                        .balloon = true,
                                        .watchdog = BOARD_WATCHDOG_EVENT,
                                        .nics = &nic,
                                        .nic_count = 1,
                                        .vsock_cid = 3,
                                        .vsock_fd = host->theirs[VSOCK],
                                        .restore = restore};
    return board_new(&config, ret_board, err);
}

static void run_for(long ns)
{
    nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

/* ---- the snapshot that all inputs begin with ---- */

struct seed {
    int state_fd, memory_fd;
    struct snapshot_reader reader;
};

static int save(struct board *board, struct board_layer to, uint8_t id, struct err *err)
{
    struct board_save what = {.to = to, .pagemap_fd = -1};
    struct board_saved saved;
    memset(what.id, id, sizeof what.id);
    return board_save(board, &what, &saved, err);
}

/* Chains of the kinds that the device wants. */
static void offer(struct driver *driver, unsigned queue)
{
    enum { BUFFERS = 0x700000, NETWORK_ID = 0x1041, DISK_ID = 0x1042 };
    struct driver_ring *ring = &driver->rings[queue];
    uint32_t at = BUFFERS + driver->slot * 0x8000 + queue * 4096;
    unsigned id = driver_config(driver, PCI_DEVICE_ID, 2);
    const struct driver_buffer read = {at, 64, false}, write = {at + 64, 2048, true};
    const struct driver_buffer request[] = {
        {at, 16, false}, {at + 64, 512, true}, {at + 1024, 1, true}};
    bool receives = id == NETWORK_ID && queue == 0;
    if (id == NETWORK_ID && queue > 1) /* the control queue */
        return;
    if (id != DISK_ID && !receives)
        driver_ring_add(ring, &read, 1);
    if (id != DISK_ID && (id != NETWORK_ID || receives))
        driver_ring_add(ring, &write, 1);
    if (id != NETWORK_ID)
        driver_ring_add(ring, request, 3);
    driver_kick(driver, queue);
}

/* The guest's drivers, for it has none: each virtio device is live, and has a few chains to serve
 * and some that it keeps. */
static void drive(struct board *board)
{
    enum { RINGS = 0x600000, RING = 8, COMMON_QUEUES = 18 };
    struct driver_machine machine = {.mem = board->mem, .bus = board->bus, .host = board->pci};
    struct driver *driver = calloc(1, sizeof *driver);
    uint64_t base = RINGS;
    _Static_assert((int)DRIVER_ECAM == (int)MAP_ECAM, "both find configuration space there");
    for (unsigned slot = 1; slot < PCI_SLOTS; slot++) {
        *driver = (struct driver){.machine = &machine, .slot = slot};
        if (driver_config(driver, PCI_VENDOR_ID, 2) != 0x1af4)
            continue;
        driver_init(driver, &machine, slot);
        if (!driver_negotiate(driver, driver_offered(driver)))
            continue;
        driver->next_base = base;
        unsigned queues = (unsigned)driver_read(driver, driver->common + COMMON_QUEUES, 2);
        driver_msix_on(driver, queues + 1);
        for (unsigned queue = 0; queue < queues; queue++)
            driver_queue(driver, queue, RING, true);
        base = driver->next_base;
        driver_live(driver);
        for (unsigned queue = 0; queue < queues; queue++)
            offer(driver, queue);
        assert(!(driver_status(driver) & VIRTIO_STATUS_NEEDS_RESET));
    }
    free(driver);
}

static struct board_layer files_new(void)
{
    struct board_layer layer = {memfd_create("state", MFD_CLOEXEC),
                                memfd_create("memory", MFD_CLOEXEC)};
    assert(layer.state_fd >= 0 && layer.memory_fd >= 0);
    return layer;
}

static void files_free(struct board_layer layer)
{
    close(layer.state_fd);
    close(layer.memory_fd);
}

static struct seed seed_make(void)
{
    struct host host;
    struct board *board;
    struct err err = {0};
    struct board_layer layer = files_new();
    struct seed seed = {layer.state_fd, layer.memory_fd, {0}};
    host_init(&host);
    int r = make(&host, NULL, &board, &err);
    assert(r >= 0);
    drive(board);
    r = board_start(board, &err);
    assert(r >= 0);
    run_for(60000000);
    board_pause(board);
    r = save(board, layer, 1, &err);
    assert(r >= 0);
    board_free(board);
    host_fini(&host);
    r = snapshot_read(seed.state_fd, &seed.reader, &err);
    assert(r >= 0 && seed.reader.count < SECTIONS_MAX / 2);
    (void)r;
    return seed;
}

/* ---- what the input does to it ---- */

struct part {
    char name[SNAPSHOT_NAME_MAX + 1];
    uint32_t version;
    uint8_t *bytes;
    size_t size;
};

struct parts {
    struct part part[SECTIONS_MAX];
    unsigned count;
};

static void parts_of(const struct snapshot_reader *reader, struct parts *parts)
{
    for (unsigned i = 0; i < reader->count; i++) {
        struct part *part = &parts->part[parts->count++];
        memcpy(part->name, reader->sections[i].name, sizeof part->name);
        part->version = reader->sections[i].version;
        part->size = reader->sections[i].size;
        part->bytes = malloc(part->size + 1);
        memcpy(part->bytes, reader->sections[i].bytes, part->size);
    }
}

static void part_resize(struct part *part, size_t size)
{
    part->bytes = realloc(part->bytes, size + 1);
    if (size > part->size)
        memset(part->bytes + part->size, 0, size - part->size);
    part->size = size;
}

static void part_double(struct parts *parts, const struct part *from)
{
    struct part *to = &parts->part[parts->count];
    if (parts->count == SECTIONS_MAX)
        return;
    *to = *from;
    to->bytes = malloc(to->size + 1);
    memcpy(to->bytes, from->bytes, to->size);
    parts->count++;
}

/* A value that something may stumble over. */
static uint64_t odd_value(struct input *input)
{
    static const uint64_t values[] = {
        0,       1,          2,          0x7f,       0x80,     0xff,       0x7fff,    0xffff,
        0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 0x800000, 0xfee00000, INT64_MAX, UINT64_MAX};
    uint8_t which = (uint8_t)input_next(input, 1);
    return which < ARRAY_LEN(values) ? values[which] : input_next(input, 8);
}

static void step(struct input *input, struct parts *parts)
{
    uint8_t what = (uint8_t)input_next(input, 1);
    struct part *part = &parts->part[input_next(input, 1) % parts->count];
    size_t at = part->size ? input_next(input, 2) % part->size : 0, left = part->size - at;
    uint8_t word[8];
    switch (what % 24) {
    default: /* a word, of any width */
        le64_write(word, odd_value(input));
        memcpy(part->bytes + at, word, min(left, (size_t)1 << what % 4));
        return;
    case 12:
    case 13:
    case 14:
    case 15: /* a bit */
        if (left)
            part->bytes[at] ^= (uint8_t)(1 << what % 8);
        return;
    case 16: memset(part->bytes + at, (int)input_next(input, 1), min(left, (size_t)16)); return;
    case 17: /* bytes from elsewhere */
        memmove(part->bytes + at, part->bytes, min(left, (size_t)input_next(input, 1)));
        return;
    case 18: part_resize(part, at); return;
    case 19: part_resize(part, part->size + input_next(input, 1)); return;
    case 20: part_double(parts, part); return;
    case 21: part->name[0] ^= 1; return;
    case 22: part->version = (uint32_t)input_next(input, 1); return;
    case 23: /* away with it */
        if (parts->count > 1) {
            free(part->bytes);
            *part = parts->part[--parts->count];
        }
        return;
    }
}

/* With right lengths and checksums, whatever is in it. */
static int parts_write(struct parts *parts)
{
    struct snapshot_writer writer;
    int fd = memfd_create("state", MFD_CLOEXEC);
    snapshot_writer_init(&writer);
    for (unsigned i = 0; i < parts->count; i++) {
        struct part *part = &parts->part[i];
        record_bytes(snapshot_begin(&writer, part->name, part->version), part->bytes, part->size);
        snapshot_end(&writer);
        free(part->bytes);
    }
    int r = snapshot_write(&writer, fd, NULL);
    assert(fd >= 0 && r >= 0);
    (void)r;
    snapshot_writer_free(&writer);
    return fd;
}

/* ---- what becomes of it ---- */

static void go_on(struct host *host, const struct board_restore *restore, bool again)
{
    struct board *board;
    struct err err = {0};
    int r = make(host, restore, &board, &err);
    if (r < 0) {
        assert(err.text[0]);
        host_fini(host);
        return;
    }
    struct board_layer files = files_new();
    if (board_start(board, &err) >= 0)
        run_for(RUN_NS);
    board_pause(board);
    r = again ? save(board, files, 2, &err) : -1;
    board_free(board);
    host_fini(host);
    if (r >= 0) { /* what this machine has become goes on as well */
        struct host other;
        const struct board_restore saved = {.layers = {files}, .count = 1, .same_host = true};
        host_init(&other);
        r = make(&other, &saved, &board, &err);
        assert(r >= 0);
        board_free(board);
        host_fini(&other);
    }
    files_free(files);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct seed seed;
    struct input input = {data, size};
    struct parts parts = {.count = 0};
    struct host host;
    if (!seed.reader.bytes)
        seed = seed_make();
    unsigned how = (unsigned)input_next(&input, 1);
    parts_of(&seed.reader, &parts);
    bool chain = how & 8;
    if (chain) { /* it stands on the snapshot that all begin with */
        memset(parts.part[0].bytes + MACHINE_PARENT, 1, BOARD_ID_SIZE);
        parts.part[0].bytes[MACHINE_HAS_PARENT] = 1;
    }
    for (unsigned i = 0; i < STEPS_MAX && input.left > 0; i++)
        step(&input, &parts);
    struct board_restore restore = {
        .layers = {{.memory_fd = seed.memory_fd}, {seed.state_fd, seed.memory_fd}},
        .count = chain ? 2 : 1,
        .same_host = how & 16,
        .verify = how & 32};
    restore.layers[0].state_fd = parts_write(&parts);
    host_init(&host);
    go_on(&host, &restore, how & 64);
    close(restore.layers[0].state_fd);
    return 0;
}
