/*
 * lodge-vmm: one process, one virtual machine.
 *
 *     lodge-vmm [--definition-fd N]           N is 3 unless said otherwise
 *     lodge-vmm --unpack-kernel IN_FD OUT_FD
 *
 * The first form reads a guest's definition (conf/guest.h) as JSON from its descriptor, gives up
 * every privilege, makes the machine and runs it. All files it will ever use are open when it
 * starts. Its owner hears of it and steers it through the definition's control_fd; wire/control.h
 * says how, and what the exit status means.
 *
 * The second form writes the uncompressed ELF image of a Linux kernel, so that a machine started
 * with it need not unpack anything. It runs in the same confinement, for a kernel file is bytes
 * from a stranger. Exit status 0, or 125 with one line on standard error.
 */
#include "base/bytes.h"
#include "base/clock.h"
#include "base/descriptors.h"
#include "base/own.h"
#include "board/board.h"
#include "board/load.h"
#include "conf/guest.h"
#include "disks.h"
#include "engine.h"
#include "privileges.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEFINITION_FD = 3 };

/* More than any kernel of the field unpacks to. */
#define UNPACK_LIMIT GIB(1)

static int fail(const struct err *err)
{
    fprintf(stderr, "lodge-vmm: %s\n", err->text);
    return CONTROL_EXIT_FAILED;
}

static int usage(void)
{
    fprintf(stderr, "usage: lodge-vmm [--definition-fd N]\n"
                    "       lodge-vmm --unpack-kernel IN_FD OUT_FD\n"
                    "lodge-vmm is started by lodge; see lodge(1).\n");
    return CONTROL_EXIT_FAILED;
}

static int definition_read(int fd, struct guest_conf *conf, struct err *err)
{
    _cleanup_free_ char *text = malloc(GUEST_TEXT_MAX + 1);
    if (!text)
        return err_set(err, -ENOMEM, "no memory for the definition");
    size_t size = 0;
    for (;;) {
        ssize_t n = read(fd, text + size, GUEST_TEXT_MAX + 1 - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "cannot read the definition from descriptor %d", fd);
        if (n == 0)
            break;
        size += (size_t)n;
        if (size > GUEST_TEXT_MAX)
            return err_set(err, -EINVAL, "the definition is longer than %d bytes", GUEST_TEXT_MAX);
    }
    int r = guest_conf_read_json(conf, text, size, "definition", err);
    return r < 0 ? r : guest_conf_check(conf, err);
}

static int unpack(int in_fd, int out_fd)
{
    struct err err = {0};
    const int keep[] = {in_fd, out_fd};
    if (privileges_close_others(keep, ARRAY_LEN(keep), &err) < 0 || privileges_drop(&err) < 0 ||
        load_unpack_kernel(in_fd, out_fd, UNPACK_LIMIT, &err) < 0)
        return fail(&err);
    return 0;
}

static int others_close(const struct guest_conf *conf, const struct session *session,
                        struct err *err)
{
    int keep[GUEST_FDS_MAX + 2];
    unsigned count = guest_conf_fds(conf, keep);
    keep[count++] = session->statm_fd;
    keep[count++] = session->pagemap_fd;
    return privileges_close_others(keep, count, err);
}

static const enum engine_translate translate_of[GUEST_TRANSLATE_MAX] = {
    [GUEST_TRANSLATE_HOT] = ENGINE_TRANSLATE_HOT,
    [GUEST_TRANSLATE_NEVER] = ENGINE_TRANSLATE_NEVER,
    [GUEST_TRANSLATE_ALWAYS] = ENGINE_TRANSLATE_ALWAYS,
};

static const enum board_lockstep_role lockstep_role_of[GUEST_LOCKSTEP_MAX] = {
    [GUEST_LOCKSTEP_NONE] = BOARD_LOCKSTEP_NONE,
    [GUEST_LOCKSTEP_LEAD] = BOARD_LOCKSTEP_LEAD,
    [GUEST_LOCKSTEP_FOLLOW] = BOARD_LOCKSTEP_FOLLOW,
};

static const enum board_verify verify_of[GUEST_VERIFY_MAX] = {
    [GUEST_VERIFY_BESIDE] = BOARD_VERIFY_BESIDE,
    [GUEST_VERIFY_BEFORE] = BOARD_VERIFY_BEFORE,
    [GUEST_VERIFY_NEVER] = BOARD_VERIFY_NEVER,
    [GUEST_VERIFY_ONLY] = BOARD_VERIFY_ONLY,
};

static void restore_of(const struct guest_conf *conf, struct board_restore *restore)
{
    _Static_assert((int)GUEST_LAYERS_MAX == (int)BOARD_LAYERS_MAX, "a chain fits");
    restore->count = conf->restore.count;
    restore->same_host = conf->restore.same_host;
    restore->verify = verify_of[conf->restore.verify];
    for (unsigned i = 0; i < restore->count; i++)
        restore->layers[i] = (struct board_layer){.state_fd = conf->restore.layers[i].state_fd,
                                                  .memory_fd = conf->restore.layers[i].memory_fd};
}
static const enum board_watchdog watchdog_of[GUEST_WATCHDOG_MAX] = {
    [GUEST_WATCHDOG_OFF] = BOARD_WATCHDOG_OFF,
    [GUEST_WATCHDOG_EVENT] = BOARD_WATCHDOG_EVENT,
    [GUEST_WATCHDOG_RESET] = BOARD_WATCHDOG_RESET,
    [GUEST_WATCHDOG_POWER_OFF] = BOARD_WATCHDOG_POWER_OFF,
};

static const enum board_nic_kind nic_kind_of[GUEST_NET_MAX] = {
    [GUEST_NET_USER] = BOARD_NIC_USER,
    [GUEST_NET_TAP] = BOARD_NIC_TAP,
};

static void nics_make(const struct guest_conf *conf, struct board_nic nics[GUEST_NICS_MAX])
{
    static const uint8_t none[6];
    for (unsigned i = 0; i < conf->nic_count; i++) {
        const struct guest_nic *nic = &conf->nics[i];
        nics[i] = (struct board_nic){.kind = nic_kind_of[nic->net],
                                     .fds = nic->fds,
                                     .fd_count = nic->fd_count,
                                     .mtu = nic->mtu,
                                     .anti_spoof = nic->anti_spoof,
                                     .unplugged = nic->unplugged,
                                     .rate_in = nic->rate_in,
                                     .rate_out = nic->rate_out};
        if (memcmp(nic->mac, none, sizeof none) != 0)
            memcpy(nics[i].mac, nic->mac, sizeof none);
        else
            guest_nic_mac(conf->name ? conf->name : "", i, nics[i].mac);
    }
}

/* Where it may be any, one that the snapshot's guest can go on under. */
static int engine_for(const struct guest_conf *conf, const struct board_restore *restore,
                      const struct engine_ops **ret_engine, char why[ENGINE_WHY_MAX],
                      struct err *err)
{
    struct err lacks = {0};
    int r = engine_choose(conf->engine, conf->kvm_fd, ret_engine, why, err);
    if (r < 0 || !restore || conf->engine != GUEST_ENGINE_AUTO || *ret_engine != &engine_kvm)
        return r;
    if (board_restore_suits(restore, &engine_kvm, conf->kvm_fd, &lacks) == -ENOTSUP) {
        *ret_engine = &engine_soft;
        snprintf(why, ENGINE_WHY_MAX, "%.*s", ENGINE_WHY_MAX - 1, lacks.text);
    }
    return 0;
}

/* On a vCPU's thread. One line for each new kind of trouble, as with disks. */
static void nvram_failed(void *opaque, int number)
{
    struct session *session = opaque;
    if (atomic_exchange(&session->nvram_number, number) == number)
        return;
    fprintf(stderr, "lodge-vmm: a write to the firmware's variable store failed: %s\n",
            strerror(number));
}

static int machine_make(const struct guest_conf *conf, struct disks *disks, struct session *session,
                        char why[ENGINE_WHY_MAX], struct err *err)
{
    struct board_console consoles[GUEST_CONSOLES_MAX];
    for (unsigned i = 0; i < conf->console_count; i++)
        consoles[i] =
            (struct board_console){.name = conf->consoles[i].name, .fd = conf->consoles[i].fd};
    struct board_nic nics[GUEST_NICS_MAX];
    nics_make(conf, nics);
    struct board_share shares[GUEST_SHARES_MAX];
    for (unsigned i = 0; i < conf->share_count; i++)
        shares[i] = (struct board_share){.tag = conf->shares[i].tag, .fd = conf->shares[i].fd};
    struct board_config config = {.kvm_fd = conf->kvm_fd,
                                  .memory = conf->memory,
                                  .cpus = conf->cpus,
                                  .translate = translate_of[conf->translate],
                                  .code_cache = conf->code_cache,
                                  .kernel_fd = conf->kernel_fd,
                                  .initrd_fd = conf->initrd_fd,
                                  .command_line = conf->append,
                                  .serial_in_fd = conf->serial_in_fd,
                                  .serial_out_fd = conf->serial_out_fd,
                                  .consoles = consoles,
                                  .console_count = conf->console_count,
                                  .disks = disks->board,
                                  .disk_count = disks->count,
                                  .balloon = conf->balloon,
                                  .watchdog = watchdog_of[conf->watchdog],
                                  .nics = nics,
                                  .nic_count = conf->nic_count,
                                  .vsock_fd = conf->vsock.fd,
                                  .vsock_cid = conf->vsock.fd >= 0 ? conf->vsock.cid : 0,
                                  .shares = shares,
                                  .share_count = conf->share_count,
                                  .lockstep = {.role = lockstep_role_of[conf->lockstep.role],
                                               .fd = conf->lockstep.fd,
                                               .instructions = conf->lockstep.instructions,
                                               .tlb_entries = conf->lockstep.tlb_entries}};
    const struct board_firmware firmware = {.fd = conf->firmware_fd,
                                            .nvram_fd = conf->nvram_fd,
                                            .on_error = nvram_failed,
                                            .opaque = session};
    config.firmware = conf->firmware_fd >= 0 ? &firmware : NULL;
    struct board_restore restore = {0};
    restore_of(conf, &restore);
    config.restore = restore.count ? &restore : NULL;
    int r = disks_open(disks, err);
    if (r >= 0)
        r = engine_for(conf, config.restore, &config.engine, why, err);
    config.portable = conf->cpu == GUEST_CPU_PORTABLE ||
                      (conf->cpu == GUEST_CPU_AUTO && config.engine == &engine_kvm);
    if (r >= 0)
        r = board_new(&config, &session->board, err);
    if (r >= 0 && conf->restore.verify != GUEST_VERIFY_ONLY)
        r = board_start(session->board, err);
    if (r < 0)
        return r;
    session->engine = config.engine->name;
    session->why = why;
    return 0;
}

/* A terminal's signals go to the whole foreground group, but the guest's end is its owner's
 * business, who tells us. Without an owner they end us as they end any program. */
static void signals_set(bool owned)
{
    signal(SIGPIPE, SIG_IGN);
    if (!owned)
        return;
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
}

/* A machine is made of large tables of zeros. Memory fresh from the kernel is zero, and calloc()
 * knows that of what it asks for at once, not of what it has in stock: without a stock it leaves
 * their pages untouched. What comes and goes while the machine runs is better off with one. */
static void heap_for_making(void)
{
    mallopt(M_TOP_PAD, 0);
}

static void heap_for_running(void)
{
    mallopt(M_TOP_PAD, KIB(128));
}

static int run(int definition_fd)
{
    uint64_t began = clock_ns();
    heap_for_making();
    struct err err = {0};
    struct guest_conf conf;
    guest_conf_init(&conf);
    int r = definition_read(definition_fd, &conf, &err);
    if (r < 0)
        return session_error(conf.control_fd, err.text);
    signals_set(conf.control_fd >= 0);

    struct session session = {.control_fd = conf.control_fd,
                              .listen_fd = conf.listen_fd,
                              .disks = conf.disks,
                              .statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC),
                              .pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
                              .began_ns = began,
                              .exit_on_reset = conf.on_reset == GUEST_ON_RESET_EXIT};
    struct disks disks = {0};
    r = others_close(&conf, &session, &err);
    disks_rings(&disks, &conf);
    if (r >= 0)
        r = disks_keys(&disks, &err);
    if (r < 0 || privileges_drop(&err) < 0)
        return session_error(conf.control_fd, err.text);

    char why[ENGINE_WHY_MAX];
    if (machine_make(&conf, &disks, &session, why, &err) < 0)
        return session_error(conf.control_fd, err.text);
    heap_for_running();
    session.hold = (struct hold){.board = session.board, .disks = &disks, .client = -1};
    int status = conf.restore.verify == GUEST_VERIFY_ONLY ? 0 : session_run(&session);
    /* The one part of the machine that is taken apart: an image must be whole when we are gone. */
    board_release_disks(session.board);
    disks_close(&disks);
    return status;
}

int main(int argc, char **argv)
{
    int definition_fd = DEFINITION_FD, in_fd, out_fd, status;
    if (argc == 4 && strcmp(argv[1], "--unpack-kernel") == 0 && descriptor_parse(argv[2], &in_fd) &&
        descriptor_parse(argv[3], &out_fd))
        status = unpack(in_fd, out_fd);
    else if (argc == 1 || (argc == 3 && strcmp(argv[1], "--definition-fd") == 0 &&
                           descriptor_parse(argv[2], &definition_fd)))
        status = run(definition_fd);
    else
        status = usage();
    /* Not exit(): the machine's threads still run, and nothing here waits to be written. */
    _exit(status);
}
