/*
 * guest.h: one guest's definition, checked and plain.
 *
 * Whatever a person wrote (options, vm.conf, JSON, libvirt's XML), the rest of the house sees this
 * struct and nothing else. The readers check every value here, once: nothing downstream re-parses
 * text.
 *
 * Ownership: strings belong to the struct; guest_conf_free() releases them and accepts a
 * half-filled or zeroed one. Pure functions, any thread.
 *
 * Errors: -EINVAL with a message that names the file, line and column; -ENOENT and the like from
 * reading a file.
 */
#pragma once

#include "base/bytes.h"
#include "base/err.h"
#include "conf/guest_nic.h"
#include "conf/guest_notes.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum guest_engine { GUEST_ENGINE_AUTO, GUEST_ENGINE_KVM, GUEST_ENGINE_SOFT, GUEST_ENGINE_MAX };

/* What the guest is told that its processor can: what every engine can keep its word on here, so
 * that a snapshot of it goes on under any of them, or all that this one can. `auto`: the former
 * under KVM, the latter under the software engine (docs/snapshot.md). */
enum guest_cpu { GUEST_CPU_AUTO, GUEST_CPU_PORTABLE, GUEST_CPU_HOST, GUEST_CPU_MAX };

/* What lodge-vmm does when the guest resets its machine (reboot, or panic with panic=-1): start it
 * anew, or end. JSON: "on_reset": "reboot" or "exit". */
enum guest_on_reset { GUEST_ON_RESET_REBOOT, GUEST_ON_RESET_EXIT, GUEST_ON_RESET_MAX };

/* Which code of the guest the software engine translates: what is executed often, nothing, or
 * everything. The last two are for tests. */
enum guest_translate {
    GUEST_TRANSLATE_HOT,
    GUEST_TRANSLATE_NEVER,
    GUEST_TRANSLATE_ALWAYS,
    GUEST_TRANSLATE_MAX
};

/* What happens when the guest's watchdog expires; "off": it has none. An event tells of it in any
 * case. JSON: "watchdog": "reset". */
enum guest_watchdog {
    GUEST_WATCHDOG_OFF,
    GUEST_WATCHDOG_EVENT,
    GUEST_WATCHDOG_RESET,
    GUEST_WATCHDOG_POWER_OFF,
    GUEST_WATCHDOG_MAX
};

enum {
    GUEST_CPUS_MAX = 64,
    GUEST_CONSOLES_MAX = 8,
    GUEST_DISKS_MAX = 8,
    GUEST_IMAGES_MAX = 65, /* of one disk: itself, and the 64 that may stand behind it */
    GUEST_SERIAL_MAX = 20,
    GUEST_LAYERS_MAX = 16,     /* of a chain of snapshots */
    GUEST_CID_MIN = 3,         /* the default; below stand the host and its kernel */
    GUEST_VSOCK_PATH_MAX = 96, /* with _PORT behind it, it still fits a socket's address */
    GUEST_SHARES_MAX = 8,
    GUEST_TAG_MAX = 36, /* bytes of a share's tag, virtio 1.2, 5.11.4 */
    GUEST_AT_MAX = 128,
    GUEST_TEXT_MAX = 1 << 20, /* bytes of vm.conf, JSON or XML that a reader accepts */
};

#define GUEST_CID_MAX UINT32_C(0xfffffffe)

/* What `firmware` is called that every host with Debian's ovmf has. */
#define GUEST_FIRMWARE_UEFI "uefi"
/* OVMF is not up to less. */
#define GUEST_FIRMWARE_MEMORY_MIN MIB(128)

/* Less than this no kernel of the field gets to user space with; more than a terabyte is a typing
 * error on every machine that this release supports. */
#define GUEST_MEMORY_MIN MIB(16)
#define GUEST_MEMORY_MAX GIB(1024)

/* Less would be full before anything is gained; more is a typing error. */
#define GUEST_CODE_CACHE_MIN MIB(1)
#define GUEST_CODE_CACHE_MAX MIB(512) /* all of it has to lie below 2 GiB */

/* A virtio-console port: a byte stream between guest and a descriptor of the VMM's. */
struct guest_console {
    char *name; /* as the guest sees it (virtio-ports/NAME); NULL = the hvc console of port 0 */
    int fd;     /* stream socket; -1 in a definition written by people */
};

enum guest_disk_format {
    GUEST_DISK_PROBE, /* by the image's magic */
    GUEST_DISK_RAW,
    GUEST_DISK_QCOW2,
    GUEST_DISK_FORMAT_MAX
};

enum guest_disk_cache {
    GUEST_DISK_WRITEBACK, /* the host's page cache; a guest's flush reaches the disk */
    GUEST_DISK_NONE,      /* O_DIRECT; so does it */
    GUEST_DISK_UNSAFE,    /* flushes do nothing */
    GUEST_DISK_CACHE_MAX
};

enum guest_disk_on_full {
    GUEST_DISK_PAUSE, /* the guest stands until the host's disk has space */
    GUEST_DISK_ERROR, /* it is told of an I/O error */
    GUEST_DISK_ON_FULL_MAX
};

/* An open file of a disk, as the image that stands on it calls it; the disk's own is called as its
 * path. */
struct guest_image {
    char *name;
    int fd;
};

struct guest_disk {
    char *path;
    enum guest_disk_format format;
    enum guest_disk_cache cache;
    enum guest_disk_on_full on_full;
    bool read_only;
    char *serial;                   /* at most GUEST_SERIAL_MAX bytes, NULL = none */
    uint64_t iops, bps;             /* requests and bytes a second; 0 = no limit */
    uint64_t iops_burst, bps_burst; /* so many at once; 0 = a tenth of a second's worth */
    char *key_file;                 /* of an encrypted disk; or NULL */
    char *cacert;                   /* certificates for https; NULL: the system's */
    struct guest_image *images;     /* filled by `lodge run`, the top first */
    unsigned image_count;
    bool unlocked; /* by `lodge run`: key_fd has what opens it */
    int key_fd;
    bool temporary; /* it goes with this run; no part of a definition */
};

/* A virtio socket device. `lodge run` listens at `path` for clients that want to connect to the
 * guest, and connects what the guest wants to the sockets at `path`_PORT (docs/vsock.md). JSON:
 * "vsock": {"path": "web.vsock", "cid": 3}. There is one where there is a path or a descriptor. */
struct guest_vsock {
    char *path;
    uint32_t cid; /* the guest's address, GUEST_CID_MIN..GUEST_CID_MAX */
    int fd;       /* the link of wire/vsock.h, filled by `lodge run` */
};

/* A folder of the host's, by virtio-fs. JSON: "shares": [{"path": "src", "tag": "share", "at":
 * "/mnt/share", "read_only": true}]. */
struct guest_share {
    char *path;
    char *tag; /* what the guest mounts it by */
    char *at;  /* where the agent of the default image mounts it */
    bool read_only;
    int fd; /* the server's stream (virtio/fs.h), filled by `lodge run`; -1 in a definition written
               by people */
};

/* JSON: "lockstep": {"role": "lead", "fd": 7, "instructions": 100000000}; `follow` needs no count.
 */
enum guest_lockstep_role {
    GUEST_LOCKSTEP_NONE,
    GUEST_LOCKSTEP_LEAD,
    GUEST_LOCKSTEP_FOLLOW,
    GUEST_LOCKSTEP_MAX
};

struct guest_lockstep {
    enum guest_lockstep_role role;
    int fd;
    uint64_t instructions; /* 0 = without a limit */
    unsigned tlb_entries;  /* "tlb_entries": 4, for translated code, a power of two; 0 = all */
};

/* When its memory is held against its checksums. */
enum guest_verify {
    GUEST_VERIFY_BESIDE, /* while the guest runs: a wrong page ends it */
    GUEST_VERIFY_BEFORE, /* first */
    GUEST_VERIFY_NEVER,  /* somebody else does */
    GUEST_VERIFY_ONLY,   /* and that is all: the process ends, with status 0 or an ERROR */
    GUEST_VERIFY_MAX
};

/* Where the guest goes on that was saved (board/board.h): the snapshot first, then what it stands
 * on.
 */
struct guest_restore {
    struct {
        int state_fd, memory_fd;
    } layers[GUEST_LAYERS_MAX];
    unsigned count; /* 0 = it boots */
    bool same_host;
    enum guest_verify verify;
};

struct guest_conf {
    char *name; /* NULL = unnamed */
    enum guest_engine engine;
    enum guest_cpu cpu;
    uint64_t
        memory;    /* bytes, a multiple of 4 KiB, >= 16 MiB... checked against the host by lodge */
    unsigned cpus; /* 1..GUEST_CPUS_MAX */

    /* The software engine's; without a meaning for KVM. */
    enum guest_translate translate;
    uint64_t code_cache; /* bytes for translated code, a multiple of 4 KiB; 0 = the engine's own */

    enum guest_on_reset on_reset;
    enum guest_watchdog watchdog;
    bool balloon; /* JSON: true or false; vm.conf: "on" or "off" */

    char *kernel, *initrd; /* paths, as written by people; NULL where a descriptor is given */
    char *append;          /* kernel command line, "root=" already joined; never NULL */

    /* Firmware instead of a kernel: GUEST_FIRMWARE_UEFI or the path of an image that ends at 4 GiB;
     * and its variable store, NULL for one that goes with this run. */
    char *firmware, *nvram;

    /* Filled by `lodge run` for lodge-vmm, which opens nothing itself. -1 = absent. */
    int kernel_fd, initrd_fd;
    int firmware_fd, nvram_fd;
    int kvm_fd;
    int serial_in_fd, serial_out_fd;
    int control_fd; /* events to lodge, requests from it: wire/control.h */
    int listen_fd;  /* a listening socket, where others may send requests */
    struct guest_restore restore;
    /* For tests of the software engine: board/board_lockstep.h. */
    struct guest_lockstep lockstep;
    struct guest_console consoles[GUEST_CONSOLES_MAX];
    unsigned console_count;

    struct guest_disk disks[GUEST_DISKS_MAX];
    unsigned disk_count;
    struct guest_nic nics[GUEST_NICS_MAX]; /* none unless asked for */
    unsigned nic_count;
    struct guest_vsock vsock;
    struct guest_share shares[GUEST_SHARES_MAX];
    unsigned share_count;
};

/* The most descriptors that a definition has: those with a name, and the lists. */
enum {
    GUEST_FDS_MAX = 16 + GUEST_CONSOLES_MAX + GUEST_DISKS_MAX * (GUEST_IMAGES_MAX + 1) +
                    2 * GUEST_LAYERS_MAX + GUEST_NICS_MAX * GUEST_NIC_QUEUES_MAX + GUEST_SHARES_MAX
};

void guest_conf_init(
    struct guest_conf *conf); /* defaults: auto, 512 MiB, 1 CPU, a balloon, all fds -1 */
void guest_conf_free(struct guest_conf *conf);

/* Both readers change only what the text names, so that defaults and an earlier file stand under
 * it; after an error `conf` is as it was. `origin` is what messages call the text ("vm.conf"). */
int guest_conf_read_vmconf(struct guest_conf *conf, const char *text, size_t length,
                           const char *origin, struct err *err);
int guest_conf_read_json(struct guest_conf *conf, const char *text, size_t length,
                         const char *origin, struct err *err);
/* Domain XML (docs/libvirt-xml.md). Each part of it that is not taken as it stands leaves a note,
 * after an error too; one that is refused is an error, and the reading goes on to find the others.
 * What it does not say is as libvirt has it: a guest that resets its machine is restarted, and one
 * without a kernel begins with firmware. */
int guest_conf_read_libvirt(struct guest_conf *conf, const char *text, size_t length,
                            const char *origin, struct guest_notes *notes, struct err *err);
/* Domain XML that libvirt's schema accepts and that guest_conf_read_libvirt() reads back to the
 * same struct, but for what the notes name; *ret_text is malloc'd. -EINVAL: it has a character that
 * XML cannot hold. */
int guest_conf_write_libvirt(const struct guest_conf *conf, char **ret_text,
                             struct guest_notes *notes, struct err *err);
/* Compact JSON that guest_conf_read_json() reads back to the same struct; malloc'd, or NULL. */
char *guest_conf_write_json(const struct guest_conf *conf);

/* Every descriptor that the definition names, without those that are absent: what lodge hands to
 * lodge-vmm, and what lodge-vmm keeps open. Returns how many. */
unsigned guest_conf_fds(const struct guest_conf *conf, int ret_fds[GUEST_FDS_MAX]);

/* The checks that no single value can answer: numbers in range, a kernel present (path or
 * descriptor), or firmware. The message names the value and the way out. */
int guest_conf_check(const struct guest_conf *conf, struct err *err);

/* Each replaces one field, with the check that the readers make too. `memory` as guest_parse_size()
 * takes it, `cpus` a decimal number, `engine` one of auto, kvm, soft, `cpu` one of auto, portable,
 * host; `code_cache` is a size again, `translate` one of hot, never, always. */
int guest_conf_set_memory(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_set_cpus(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_set_engine(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_set_cpu(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_set_code_cache(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_set_translate(struct guest_conf *conf, const char *text, struct err *err);
/* One of off, event, reset, poweroff; on or off. */
int guest_conf_set_watchdog(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_set_balloon(struct guest_conf *conf, const char *text, struct err *err);
/* One more disk:
 * "PATH,ro,format=raw,cache=none,serial=X,iops=N,bps=SIZE,key_file=FILE,cacert=FILE", of which all
 * but the path may be missing. */
int guest_conf_add_disk(struct guest_conf *conf, const char *text, struct err *err);
void guest_disk_forget_descriptors(struct guest_disk *disk); /* closes nothing */
/* -E2BIG, -ENOMEM. */
int guest_disk_add_image(struct guest_disk *disk, const char *name, int fd);

/* Network cards, as guest_nic.h says they are written. "none" adds none; a forwarded port goes to
 * the first user network, which is made where there is no card at all. The second and the last take
 * any number of words with blanks between them; guest_conf_set_nets() replaces what was there. */
int guest_conf_add_net(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_set_nets(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_add_forward(struct guest_conf *conf, const char *text, struct err *err);
int guest_conf_add_forwards(struct guest_conf *conf, const char *text, struct err *err);
/* "PATH[,cid=N]", instead of what there was; a comma of the path is written twice. */
int guest_conf_set_vsock(struct guest_conf *conf, const char *text, struct err *err);
/* One more shared folder: "PATH,tag=TAG,at=FOLDER,ro", of which all but the path may be missing:
 * tags are then share, share2 and so on, and it is mounted at /mnt/TAG. */
int guest_conf_add_share(struct guest_conf *conf, const char *text, struct err *err);

/* Puts " words" behind the kernel command line. -ENOMEM. */
int guest_conf_append(struct guest_conf *conf, const char *words);

const char *guest_engine_name(enum guest_engine engine);
const char *guest_cpu_name(enum guest_cpu cpu);
const char *guest_translate_name(enum guest_translate translate);
const char *guest_disk_format_name(enum guest_disk_format format);
const char *guest_disk_cache_name(enum guest_disk_cache cache);
const char *guest_disk_on_full_name(enum guest_disk_on_full on_full);
const char *guest_watchdog_name(enum guest_watchdog watchdog);

/* "512M", "1G", "1.5G", "268435456": bytes. Suffixes K M G T (powers of 1024), with or without B or
 * iB. -EINVAL for anything else, for 0, and for overflow. */
int guest_parse_size(const char *text, uint64_t *ret_bytes, struct err *err);
