/*
 * control.h: the messages between lodge-vmm and whoever owns it (lodge).
 *
 * One connected Unix socket, SEQPACKET or STREAM. A message is a header of eight bytes (payload
 * length, 32 bits; type, 16 bits; zero, 16 bits; all little-endian) and at most CONTROL_PAYLOAD_MAX
 * bytes of payload. On a SEQPACKET socket one packet carries one message.
 *
 * Events, from the VMM:
 *   READY           the first vCPU is about to execute the guest's first instruction, or its next
 *                   where it was restored; which engine runs it, why, when that was, and when the
 *                   process began (CLOCK_MONOTONIC)
 *   CONSOLE_OPENED  the guest opened or closed a console port: 0 is the hvc console, the named
 *                   ports of the definition count from 1 in its order
 *   RESET           the guest reset the machine; with on_reset = reboot it starts anew, and READY
 *                   is not sent again
 *   PANICKED        the guest's kernel said so through the panic port
 *   CRASH_LOADED    the same, but it has a second kernel that will look into it
 *   WATCHDOG        the guest's watchdog expired; RESET or POWER_OFF may follow
 *   FULL            requests of the guest's wait for space for a disk, and it stands until there is
 *                   some; or none of that disk's wait any more (code 0). It goes on by itself
 *   STATS           the answer to STATS_ASK
 *   BALLOON         the answer to BALLOON_TARGET and to BALLOON_ASK: one for each
 *   NICS            the answer to NICS_ASK
 *   DONE, FAILED    the answer to every other request of a client, and to SAVE of anybody
 * Events after which the process ends, with this exit status:
 *   RESET           0 with on_reset = exit, CONTROL_EXIT_PANIC if PANICKED came before
 *   POWER_OFF       0, CONTROL_EXIT_PANIC if PANICKED came before
 *   DEBUG_EXIT      the code that the guest wrote to the isa-debug-exit port, as QEMU counts it:
 *                   (value << 1 | 1) & 0xff
 *   TRIPLE_FAULT    CONTROL_EXIT_FAILED; the text holds the registers
 *   ERROR           CONTROL_EXIT_FAILED; the text is one phrase, and registers on further lines
 *                   where a vCPU cannot go on
 *
 * Requests, to the VMM. When the socket is closed the owner is gone: the VMM ends at once.
 *   POWER_BUTTON    ACPI
 *   RESET_NOW       the machine starts anew
 *   PAUSE, RESUME   RESUME looks for space at once, where the guest waits for that
 *   QUIT            ends at once, status 0
 *   CONSOLE_SIZE    of the terminal behind a console port
 *   STATS_ASK       answered with STATS
 *   BALLOON_TARGET  how much memory the guest shall give back
 *   BALLOON_ASK     its answer waits up to CONTROL_BALLOON_WAIT_MS for the guest's fresh statistics
 *   NEW_GENERATION  the machine is not the one any more that it was: a new VM generation ID
 *   LINK            the cable of a network card is in, or out
 *   NICS_ASK        answered with NICS
 *   SAVE            writes the machine to two descriptors that come with the message (SCM_RIGHTS):
 *                   its state, its memory (board/board.h). It stands meanwhile, and after it does
 *                   what it did before. DONE then says how many pages that were
 * DONE says after PAUSE whether the machine stood already.
 *
 * HOLD and what follows it is for clients. The machine stands, its devices too, and its disks are
 * flushed, until that client says RELEASE or goes: meanwhile it may SAVE, and do to the disks'
 * files what it likes. Others are told FAILED.
 *   DISK            DONE comes with the descriptor of that disk's first image
 *   STACK           comes with the descriptor of a new qcow2 that stands on that disk: the guest is
 *                   to go on in it. RELEASE makes it so; where the client goes without, it never
 *                   was
 *
 * Clients. Where the VMM was given a listening socket (SEQPACKET, so that descriptors and messages
 * stay together), anybody whom its file lets in may connect and send requests, but for BALLOON_*.
 * Each is answered; a client hears of no events, and its leaving means nothing.
 *
 * Encoding and decoding are pure; any thread. Errors: -EBADMSG for bytes that break these rules.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CONTROL_HEADER_SIZE = 8,
    CONTROL_PAYLOAD_MAX = 8184,
    CONTROL_MESSAGE_MAX = CONTROL_HEADER_SIZE + CONTROL_PAYLOAD_MAX,
    CONTROL_TEXT_MAX = 4096, /* bytes of text, without a final NUL */
    CONTROL_NAME_MAX = 16,
    CONTROL_ID_SIZE = 16,
    CONTROL_FDS_MAX = 2, /* that come with one message */

    CONTROL_NICS_MAX = 8,
    CONTROL_BALLOON_STATS = 16,
    CONTROL_BALLOON_WAIT_MS = 1000,
    CONTROL_EXIT_PANIC = 124,
    CONTROL_EXIT_FAILED = 125,
};

enum control_type {
    CONTROL_READY = 1,
    CONTROL_CONSOLE_OPENED,
    CONTROL_RESET,
    CONTROL_POWER_OFF,
    CONTROL_TRIPLE_FAULT,
    CONTROL_DEBUG_EXIT,
    CONTROL_PANICKED,
    CONTROL_ERROR,
    CONTROL_STATS,
    CONTROL_DONE,
    CONTROL_FAILED,
    CONTROL_CRASH_LOADED,
    CONTROL_WATCHDOG,
    CONTROL_BALLOON,
    CONTROL_FULL,
    CONTROL_NICS,

    CONTROL_POWER_BUTTON = 64,
    CONTROL_RESET_NOW,
    CONTROL_PAUSE,
    CONTROL_RESUME,
    CONTROL_QUIT,
    CONTROL_CONSOLE_SIZE,
    CONTROL_STATS_ASK,
    CONTROL_SAVE,
    CONTROL_BALLOON_TARGET,
    CONTROL_BALLOON_ASK,
    CONTROL_NEW_GENERATION,
    CONTROL_LINK,
    CONTROL_HOLD,
    CONTROL_RELEASE,
    CONTROL_DISK,
    CONTROL_STACK,
    CONTROL_NICS_ASK,
};

enum control_state {
    CONTROL_STATE_RUNS,
    CONTROL_STATE_PAUSED, /* somebody asked for it */
    CONTROL_STATE_FULL,   /* it waits for space, and nobody asked for it to stand */
    CONTROL_STATE_MAX
};

/* What is known of the balloon and, by it, of the guest's memory. */
struct control_balloon {
    bool present, driver; /* the device; a driver in the guest */
    uint64_t target;      /* bytes that the host wants back */
    uint64_t actual;      /* bytes that the guest says it has given */
    uint64_t reported;    /* bytes of free blocks given back besides, since the guest's start */
    uint32_t age_ms;      /* of the statistics */
    uint32_t known;       /* a bit for each tag of virtio 1.2, 5.5.6.4, that has a value */
    uint64_t stats[CONTROL_BALLOON_STATS];
};

/* A network card, and what has passed it: to the guest, and from it. */
struct control_nic {
    bool up;
    uint64_t in_frames, in_bytes, in_dropped, out_frames, out_bytes, out_dropped;
};

struct control_message {
    enum control_type type;
    uint64_t time_ns;              /* READY: CLOCK_MONOTONIC of the first instruction */
    uint64_t began_ns;             /* READY: of the process's main() */
    char engine[CONTROL_NAME_MAX]; /* READY: "kvm", "soft" */
    /* CONSOLE_OPENED, CONSOLE_SIZE: the port; FULL, DISK, STACK: the disk, LINK: the network card,
     * from 0 on. */
    uint32_t port;
    bool open;                   /* CONSOLE_OPENED; LINK: the cable is in */
    uint16_t cols, rows;         /* CONSOLE_SIZE */
    uint32_t code;               /* DEBUG_EXIT: the exit status; FULL: ENOSPC, EDQUOT or 0 */
    uint64_t instructions;       /* STATS: executed by all vCPUs, 0 where the engine cannot tell */
    uint64_t resident;           /* STATS: bytes of the process, guest memory included */
    uint64_t guest_resident;     /* STATS: bytes of guest memory that are resident */
    enum control_state state;    /* STATS */
    uint8_t id[CONTROL_ID_SIZE]; /* SAVE: of the new snapshot */
    uint8_t parent[CONTROL_ID_SIZE]; /* SAVE with `changes`: of what it is to stand on */
    bool changes;                    /* SAVE: only those since the parent, the last one */
    bool was_paused;                 /* DONE, after PAUSE */
    uint64_t pages;                  /* DONE, after SAVE */
    uint64_t bytes;                  /* BALLOON_TARGET */
    struct control_balloon balloon;
    unsigned nic_count; /* NICS */
    struct control_nic nics[CONTROL_NICS_MAX];
    /* READY: why this engine; TRIPLE_FAULT, ERROR, FAILED; STATS: the disk that is full; STACK: the
     * image's name in messages. */
    char text[CONTROL_TEXT_MAX + 1];
};

/* Writes the whole message and returns its size. A text that is too long is cut. */
size_t control_encode(const struct control_message *message,
                      uint8_t ret_bytes[CONTROL_MESSAGE_MAX]);

/* Takes one message from the start of `bytes`: returns how many bytes it had, 0 while it is not
 * whole yet, or -EBADMSG. */
int control_decode(const uint8_t *bytes, size_t size, struct control_message *ret_message,
                   struct err *err);
