/*
 * board.h: one machine.
 *
 * A board joins an engine to guest memory and devices, loads the kernel, and runs each vCPU on a
 * thread of its own. What it looks like to the guest is the table in board_devices.c and the map
 * in board_map.h.
 *
 * Threads: the functions here belong to one thread, the owner's (main of lodge-vmm), except
 * board_event_fd()'s descriptor, which anybody may poll. Inside run: "vcpu0".. (one a vCPU),
 * "timers" (devices' timers), "serial" (the streams behind COM1), and the virtio devices' own.
 *
 *                 board_start()            board_pause(), or a final event
 *     new ------------------------> running --------------------------------> stopped
 *                                      ^                                        |
 *                                      +----- board_resume(), board_reset() ----+
 *
 * When something happens that the owner must decide on (the guest resets, powers off, faults), the
 * board stops by itself, all vCPUs parked, and tells with an event. board_reset() then brings the
 * machine back to its first instruction: devices reset, memory dropped, kernel loaded again from
 * the same descriptors. It works any number of times.
 *
 * board_save() writes a paused machine down; a machine made with `restore` goes on where that one
 * was, at its first board_start(), with the same configuration but for descriptors. What is not the
 * guest's is not in it: streams of consoles, contents of disks.
 *
 * Who owns what: descriptors stay the caller's, except console ports', which the board closes in
 * board_free(); after a failed board_new() they may be closed. board_free() stops everything and
 * may be called at any time.
 *
 * Errors: board_new() and board_reset() say what could not be had, or what is wrong with the kernel
 * (load.h).
 *
 *     r = board_new(&config, &board, err);
 *     board_start(board);
 *     for (;;) {
 *         poll on board_event_fd(board), then
 *         while (board_event_next(board, &event)) ...
 *     }
 */
#pragma once

#include "base/err.h"
#include "cpu/engine.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    BOARD_CONSOLES_MAX = 8,
    BOARD_DISKS_MAX = 8,
    BOARD_DISK_QUEUES_MAX = 4,
    BOARD_TEXT_MAX = 4096,
    BOARD_NICS_MAX = 8,
};

struct board;

struct board_console {
    const char *name; /* NULL = the hvc console, at most one */
    int fd;           /* connected stream socket */
};

struct blk_ring;
struct disk;
struct virtio_net_stats;

/* A virtio-blk device; disk and rings are borrowed and outlive the board. */
struct board_disk {
    struct disk *disk;
    const char *serial;                            /* or NULL */
    struct blk_ring *rings[BOARD_DISK_QUEUES_MAX]; /* virtio/blk_ring.h; NULL = plain calls */
    uint64_t iops, bps, iops_burst, bps_burst;     /* 0 = no limit, and what blk.h says */
    void (*on_error)(void *opaque, bool write, int number); /* virtio/blk.h; or NULL */
    void *opaque;
    bool waits; /* where it finds no space: BOARD_EVENT_FULL; else that is an error to the guest */
};

enum board_nic_kind { BOARD_NIC_USER, BOARD_NIC_TAP };

/* A network card; what virtio/net.h says of a field holds here. */
struct board_nic {
    enum board_nic_kind kind;
    const int *fds;    /* user: a stream socket to passt; tap: its queues */
    unsigned fd_count; /* the machine owns them after board_new() */
    uint8_t mac[6];
    unsigned mtu;
    bool anti_spoof;
    bool unplugged; /* its cable is out until board_set_link() */
    uint64_t rate_in, rate_out;
};

/* A virtio-fs device; the board takes the descriptor over. */
struct board_share {
    const char *tag; /* virtio/fs.h */
    int fd;          /* connected stream socket, with a server of files behind it */
};

/* A run whose history can be repeated: board_lockstep.h. */
enum board_lockstep_role { BOARD_LOCKSTEP_NONE, BOARD_LOCKSTEP_LEAD, BOARD_LOCKSTEP_FOLLOW };

struct board_lockstep {
    enum board_lockstep_role role;
    int fd;                /* the trace: the leader writes it, the follower reads it */
    uint64_t instructions; /* the leader powers off after about so many; 0 = when the guest does */
    unsigned tlb_entries;  /* engine.h */
};

/* What happens when the guest's watchdog expires; an event tells of it in each case. */
enum board_watchdog {
    BOARD_WATCHDOG_OFF, /* there is none */
    BOARD_WATCHDOG_EVENT,
    BOARD_WATCHDOG_RESET,
    BOARD_WATCHDOG_POWER_OFF,
};

enum { BOARD_GENERATION_SIZE = 16, BOARD_BALLOON_STATS = 16 };

/* Firmware that looks for a boot loader on the disks. */
struct board_firmware {
    int fd;       /* an image that ends at 4 GiB, such as OVMF's code; only read */
    int nvram_fd; /* its variable store, which is written to; -1 = none */
    void (*on_error)(void *opaque, int number); /* a write to the store failed; or NULL */
    void *opaque;
};

struct board_config {
    const struct engine_ops *engine;
    int kvm_fd;      /* for the KVM engine; else ignored */
    uint64_t memory; /* bytes, a multiple of 4 KiB, at least BOARD_MEMORY_MIN */
    unsigned cpus;   /* 1..ENGINE_VCPUS_MAX */

    enum engine_translate translate; /* both for the software engine; else ignored */
    uint64_t code_cache;             /* bytes, 0 = the engine's own */
    bool portable;                   /* the CPU model: engine.h */

    int kernel_fd;
    int initrd_fd; /* -1 = none */
    const char *command_line;

    const struct board_firmware *firmware; /* begins instead of a kernel; or NULL */

    int serial_in_fd, serial_out_fd; /* COM1; -1 = nobody there */
    const struct board_console *consoles;
    unsigned console_count; /* <= BOARD_CONSOLES_MAX */
    const struct board_disk *disks;
    unsigned disk_count; /* <= BOARD_DISKS_MAX */
    bool balloon;
    enum board_watchdog watchdog;
    const struct board_nic *nics;
    unsigned nic_count; /* <= BOARD_NICS_MAX */
    uint32_t vsock_cid; /* the guest's; 0 = no socket device */
    int vsock_fd;       /* the link of wire/vsock.h */
    const struct board_share *shares;
    unsigned share_count;

    struct board_lockstep lockstep; /* for tests of the engine */

    const struct board_restore *restore; /* NULL: the machine boots its kernel */
};

enum { BOARD_MEMORY_MIN = 2 << 20 };

/* ---- snapshots (docs/snapshot.md) ---- */

enum { BOARD_ID_SIZE = 16, BOARD_LAYERS_MAX = 16 };

/* One snapshot: the machine's state (board/snapshot.h) and pages of its memory
 * (board/snapshot_memory.h). Borrowed. */
struct board_layer {
    int state_fd, memory_fd;
};

/* When all of its memory is held against its checksums. ONLY: that is all that board_new() does,
 * and what it makes is for board_free(). */
enum board_verify {
    BOARD_VERIFY_BESIDE, /* from board_start() on: a wrong page ends the machine */
    BOARD_VERIFY_BEFORE,
    BOARD_VERIFY_NEVER, /* somebody else does */
    BOARD_VERIFY_ONLY,
};

/* Where a machine goes on that was saved. The first layer is the snapshot itself, each further one
 * what the one before it says it stands on. */
struct board_restore {
    struct board_layer layers[BOARD_LAYERS_MAX];
    unsigned count;
    bool same_host; /* the one that it was saved on, not rebooted since: the TSC runs as it did */
    enum board_verify verify;
};

struct board_save {
    struct board_layer to;     /* empty files, opened for reading and writing */
    int pagemap_fd;            /* /proc/self/pagemap, or -1: slower */
    uint8_t id[BOARD_ID_SIZE]; /* random: the snapshot's name for those that stand on it */
    /* Only what has changed since `parent`: the last snapshot, or the one it came from. */
    bool changes;
    uint8_t parent[BOARD_ID_SIZE];
};

struct board_saved {
    uint64_t pages; /* written or noted */
};

enum board_event_kind {
    BOARD_EVENT_NONE,
    BOARD_EVENT_READY,    /* value: CLOCK_MONOTONIC ns of the first guest instruction */
    BOARD_EVENT_CONSOLE,  /* port, value: 1 = the guest opened it, 0 = closed */
    BOARD_EVENT_PANICKED, /* the guest's kernel wrote to the panic port, for the first time since
                             the last reset; it goes on */
    BOARD_EVENT_CRASH_LOADED, /* as PANICKED, but a second kernel is about to look at the panic */
    BOARD_EVENT_WATCHDOG,     /* it expired; a final event may follow */
    BOARD_EVENT_BALLOON,      /* the statistics of board_balloon_ask() are there */
    BOARD_EVENT_FULL, /* port: a disk; value: ENOSPC or EDQUOT, requests of the guest's wait for
                         space, which is tried again and again; 0: none does any more. The machine
                         runs on until it is paused */
    /* The machine has stopped. */
    BOARD_EVENT_RESET, /* the guest asked for a reset */
    BOARD_EVENT_POWER_OFF,
    BOARD_EVENT_DEBUG_EXIT,   /* value: what was written to the exit port */
    BOARD_EVENT_TRIPLE_FAULT, /* text: which vCPU, its registers */
    BOARD_EVENT_ERROR,        /* text: the engine cannot go on */
};

struct board_event {
    enum board_event_kind kind;
    unsigned port;
    uint64_t value;
    char text[BOARD_TEXT_MAX];
};

/* Makes the machine and loads the kernel; nothing runs yet. */
int board_new(const struct board_config *config, struct board **ret_board, struct err *err);
void board_free(struct board *board);

/* Lets the vCPUs go. -EAGAIN and the like where a thread is not to be had. */
int board_start(struct board *board, struct err *err);

/* Stops all vCPUs and the guest's clock; returns when they stand. Pausing twice is one pause. */
void board_pause(struct board *board);
/* Goes on, unless a final event stopped the machine. */
void board_resume(struct board *board);

/* Back to the first instruction and running. */
int board_reset(struct board *board, struct err *err);

/* May the machine go on under that engine, on this host's processor? 0, or -ENOTSUP and what it
 * lacks. */
int board_restore_suits(const struct board_restore *restore, const struct engine_ops *engine,
                        int kvm_fd, struct err *err);

/* Saves the machine, which is paused and stays so. -ENOTSUP with an engine that cannot, -EINVAL
 * where it runs, or where `changes` have nothing to stand on, -EBUSY where it has just ended, or
 * where requests wait for space on a full disk. After an error the files are worth
 * nothing, and the machine is as before. */
int board_save(struct board *board, const struct board_save *save, struct board_saved *ret_saved,
               struct err *err);

/* Holds a paused machine still, its devices too, and what they have written to the disks is in the
 * host's files: nothing changes until board_let_go(). board_save() may come meanwhile. -EINVAL
 * where it runs, -EBUSY where it has ended, or what the flush of a disk said. */
int board_hold(struct board *board, struct err *err);
void board_let_go(struct board *board);
/* While it is held: another disk in place of one, as large and as writable; borrowed, too. */
void board_exchange_disk(struct board *board, unsigned index, struct disk *disk);

/* Readable while there are events. */
int board_event_fd(struct board *board);
/* True and the next event, or false. Bounded: what the guest does again and again is one event
 * until it is fetched. */
bool board_event_next(struct board *board, struct board_event *ret_event);

/* ACPI power button. False when the guest does not listen to it. */
bool board_power_button(struct board *board);
/* The terminal behind a console port has this size. Port 0 is the hvc console; named ports count
 * from 1 in the order of the configuration, here and in events. */
void board_console_size(struct board *board, unsigned port, uint16_t cols, uint16_t rows);

/* With the machine stopped: waits until what the guest has written to COM1, or to its consoles, is
 * out, for at most `timeout_ms`. True when it is, or when nobody is there to take it. */
bool board_drain_serial(struct board *board, int timeout_ms);
bool board_drain_consoles(struct board *board, int timeout_ms);

/* How many queues a disk has: one for each vCPU, up to a point. */
unsigned board_disk_queues(unsigned cpus);

/* A network card's cable, by the card's place in the configuration. -ENODEV: there is no such card.
 * It stays so over a reset. */
int board_set_link(struct board *board, unsigned nic, bool up);

/* Its link, and what has passed it. -ENODEV: there is no such card. */
int board_nic_stats(struct board *board, unsigned nic, struct virtio_net_stats *ret_stats);

/* What waits for space on a full disk is tried now. */
void board_retry_disks(struct board *board);

/* Takes the disks from the machine, which gets no answers from them any more, and waits until
 * nothing of it touches them: they may be closed then, before board_free(). What the firmware's
 * variable store holds is in its file then, too. */
void board_release_disks(struct board *board);

/* Another identity: what is the same in two machines, such as the state of a random number
 * generator, is to be thrown away by the guest (VM generation ID). NULL: a random one. */
void board_new_generation(struct board *board, const uint8_t *generation);

struct board_balloon {
    bool present, driver; /* the device; a driver in the guest */
    uint64_t target, actual, reported, stats_at;
    uint32_t known; /* a bit for each tag of virtio 1.2, 5.5.6.4, that has a value */
    uint64_t stats[BOARD_BALLOON_STATS];
};
/* How much memory the guest shall give back, in whole pages, at most all it has. -ENODEV without a
 * balloon. It stays so over a reset. */
int board_balloon_target(struct board *board, uint64_t bytes);
/* True: BOARD_EVENT_BALLOON will come, unless the guest is slow for ever. False: nobody to ask. */
bool board_balloon_ask(struct board *board);
void board_balloon(struct board *board, struct board_balloon *ret_balloon);

struct board_stats {
    uint64_t instructions;   /* by all vCPUs, 0 where the engine cannot tell */
    uint64_t guest_resident; /* bytes of guest memory that the host holds in RAM */
};
void board_stats(struct board *board, struct board_stats *ret_stats);
