/*
 * board_private.h: the board from inside. Rooms:
 *
 *   board.c          life: new, reset, free
 *   board_devices.c  the table of devices
 *   board_lines.c    interrupts, for both arrangements of engine.h
 *   board_vcpu.c     vCPU threads: run, park, stop
 *   board_firmware.c what firmware wants to find
 *   board_event.c    what the owner is told
 *   board_serial.c   the host's streams behind COM1
 *   board_vsock.c    the socket device and its owner
 *   board_lockstep.c a history that can be repeated, for tests
 *   board_hold.c     standing still altogether
 *   board_snapshot.c saving, restoring
 *   board_chips.c    ... of interrupt controllers that are the engine's
 *
 * Locks, from the outside in: a device's own; `lock` below; nothing under it but the kicking of
 * vCPUs. Interrupt lines take no lock of the board.
 */
#pragma once

#include "base/own.h"
#include "base/timer.h"
#include "board/acpi.h"
#include "board/board.h"
#include "board/board_lockstep.h"
#include "board/board_map.h"
#include "board/board_serial.h"
#include "board/board_vsock.h"
#include "board/snapshot.h"
#include "bus/bus.h"
#include "bus/pci.h"
#include "chip/apic.h"
#include "chip/flash.h"
#include "chip/ioapic.h"
#include "chip/pic.h"
#include "chip/pit.h"
#include "chip/power.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/console.h"
#include "virtio/net.h"

#include <pthread.h>
#include <stdatomic.h>

enum { BOARD_DEVICES_MAX = 48 };

_Static_assert((int)BOARD_BALLOON_STATS == (int)BALLOON_STATS, "all of them are told");
_Static_assert((int)BOARD_GENERATION_SIZE == (int)ACPI_GENERATION_SIZE, "one identity");

enum board_run {
    BOARD_STOPPED, /* vCPUs are parked or on their way */
    BOARD_RUNNING,
    BOARD_LEAVING, /* vCPU threads end */
};

struct board_vcpu {
    struct board *board;
    unsigned index;
    struct engine_vcpu *vcpu;
    pthread_t thread;
    bool has_thread;
    bool made; /* under the board's lock: the thread has tried to make `vcpu` */
    int r;     /* and what came of it */
    struct err err;
};

struct board_device {
    const char *name; /* its section of a snapshot; several may have one */
    const struct device_ops *ops;
    void *device;
};

struct board {
    const struct engine_ops *engine;
    struct engine_vm *vm;
    struct engine_io io;
    struct engine_apic apic_row;
    enum engine_translate translate;
    uint64_t code_cache;
    bool portable;
    bool immune; /* the guest takes no measures against flaws of processors: it was told that its
                    own, which is the software engine's, has none (cpuid.h) */
    unsigned cpus;
    struct board_vcpu vcpus[ENGINE_VCPUS_MAX];

    struct mem *mem;
    struct bus *bus;
    struct timers *timers;
    struct lockstep *lockstep;                      /* NULL but in tests of the engine */
    struct board_device devices[BOARD_DEVICES_MAX]; /* in the order of making; freed backwards */
    unsigned device_count;

    /* Borrowed from the list above. ENGINE_IRQCHIP_BOARD only: */
    struct apic *apic;
    struct ioapic *ioapic;
    struct pic *pic;
    /* Always: */
    struct pci_host *pci;
    struct power *power;
    struct virtio_console *console;                  /* NULL without ports */
    struct virtio_device *virtio[BOARD_DEVICES_MAX]; /* all that are on the PCI bus */
    unsigned virtio_count;
    struct board_vsock vsock; /* its device is NULL where there is none */
    struct virtio_blk *disks[BOARD_DISKS_MAX];
    unsigned disk_slots[BOARD_DISKS_MAX]; /* on the PCI bus */
    unsigned disk_count;
    struct virtio_net *nics[BOARD_NICS_MAX];
    unsigned nic_count;
    struct virtio_balloon *balloon; /* or NULL */
    struct flash *flash;            /* these two only with firmware; and the first may be NULL */
    struct fw_cfg *fw_cfg;
    uint16_t acpi_item; /* of fw_cfg */
    struct serial *com1;
    struct board_serial *serial; /* owned: the streams behind COM1 */

    /* What a reset loads again. */
    int kvm_fd, kernel_fd, initrd_fd;
    bool has_firmware; /* then no kernel */
    int firmware_fd;
    uint64_t firmware_size, nvram_size;
    struct board_firmware firmware; /* whom to tell of errors */
    unsigned tlb_entries;           /* for tests of the engine */
    char *command_line;
    uint8_t generation[BOARD_GENERATION_SIZE];
    enum board_watchdog watchdog;

    struct board_history *history; /* owned; NULL until it is saved or was restored */

    /* Guest TSC = host's minus tsc_base while running; tsc_frozen while not. A machine that came
     * from a host with another frequency keeps it: then tsc_scale is not 0, and the TSC is what it
     * was when the clock began to run plus the host's ticks since, scaled. */
    uint64_t tsc_khz; /* 0 = the host's */
    uint64_t tsc_scale;
    _Atomic uint64_t tsc_began;
    _Atomic uint64_t tsc_base;
    _Atomic uint64_t tsc_frozen;
    _Atomic bool tsc_runs;

    pthread_mutex_t lock;
    pthread_cond_t parked, go;
    enum board_run run;
    unsigned parked_count;
    bool started; /* there are vCPU threads */
    bool ended;   /* a final event happened: resume() does nothing until reset() */
    bool held;    /* board_hold(); the owner's thread only */

    /* Events, under `lock`; the descriptor counts up when something is added. */
    int event_fd;
    bool ready_told, ready_due;
    /* Events without a value: a bit for each kind; `once_told` are told once between two resets. */
    uint32_t plain_due, once_told;
    uint64_t ready_ns;
    uint32_t console_due, console_open; /* a bit per port */
    bool full_due;                      /* a disk may differ from what was told of it: */
    int full_told[BOARD_DISKS_MAX];
    struct board_event *final; /* kind NONE = no final event due */
};

/* board.c */
void board_acpi_config(const struct board *board, struct acpi_config *ret_config);
/* SLP_TYP of soft-off. Firmware that turns the machine off by itself knows an ICH9's only. */
uint8_t board_s5_type(const struct board *board);

/* board_devices.c */
/* `irqchip`: those that the engine's VM is made with, if they are ours; else all the others. */
int board_devices_make(struct board *board, const struct board_config *config, bool irqchip,
                       struct err *err);
/* Once the vCPUs run: the devices' threads, which take long to start, and what was held. */
int board_devices_begin(struct board *board, struct err *err);
/* Puts the device on the list; -ENOMEM where its constructor gave NULL. */
int board_device_add(struct board *board, const struct device_ops *ops, void *device,
                     struct err *err);
/* Where the PCI devices answer, as firmware would set it. */
int board_pci_assign(struct board *board, struct err *err);
void board_devices_reset(struct board *board);
void board_devices_free(struct board *board);

/* board_lines.c */
struct apic *board_apic_new(struct board *board); /* and fills apic_row */
struct irq_line board_line(struct board *board, unsigned gsi);
struct msi_target board_msi(struct board *board);
uint64_t board_tsc(void *board);
uint64_t board_tsc_khz(const struct board *board);
/* The clocks: the devices', the TSC, and what counts inside the engine. */
int board_clock_stop(struct board *board, struct err *err);
int board_clock_run(struct board *board, struct err *err);
void board_clock_zero(struct board *board); /* while stopped: the TSC as after power-on */
/* While stopped: TSC and device clock (ns) of a saved machine, whose TSC had this frequency. */
void board_clock_set(struct board *board, uint64_t tsc, uint64_t tsc_khz, uint64_t now);

/* board_snapshot.c */
/* Instead of loading a kernel: reads the state, which says what the engine must be made with; then,
 * beside the vCPUs' making, maps the memory. */
int board_restore_begin(struct board *board, const struct board_restore *restore, struct err *err);
int board_restore_map(struct board *board, struct err *err);
const struct cpuid *board_restore_cpuid(const struct board *board); /* NULL: the engine's own */
/* Once devices and vCPUs are there. */
int board_restore_end(struct board *board, struct err *err);
void board_verify_start(struct board *board); /* in the background, if that is still to be done */
/* The memory is another one's from here on; joins what reads it. */
void board_history_free(struct board *board);

/* board_chips.c: those that are the engine's; where they are devices nothing is done. */
int board_chips_save(struct board *board, struct snapshot_writer *writer, struct err *err);
int board_chips_load(struct board *board, struct snapshot_reader *reader, struct err *err);

/* board_vcpu.c */
void board_io_init(struct board *board);
void *board_vcpu_main(void *vcpu);
/* Until all have made theirs: the first error of one. */
int board_vcpus_wait(struct board *board, struct err *err);
/* Asks all vCPUs to park; any thread, with `lock` held. */
void board_stop_locked(struct board *board);

/* board_event.c: any thread, `lock` not held. */
void board_tell_ready(struct board *board, uint64_t now);
void board_tell_console(void *board, unsigned port, bool open);
void board_tell_balloon(void *board);
void board_tell_full(void *board);
/* An event without a value; `once` between two resets. */
void board_tell_plain(struct board *board, enum board_event_kind kind, bool once);
/* Stops the machine. The first final event counts, later ones are dropped. */
void board_tell_final(struct board *board, enum board_event_kind kind, uint64_t value,
                      const char *text);

/* board_net.c. Its descriptors are the device's after success. */
int board_net_new(struct mem *mem, const struct board_nic *config, struct virtio_net **ret_net,
                  struct err *err);
