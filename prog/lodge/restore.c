/*
 * lodge restore: lets a guest go on from a snapshot (docs/snapshot.md). Its definition is the one
 * it was saved with; options say what may be otherwise.
 */
#include "restore.h"
#include "base/own.h"
#include "firmware.h"
#include "folder.h"
#include "overlays.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* A kernel is needed for a reset only; where it has gone since, that is when it is missed. */
static void open_if_there(const char *path, int *ret_fd)
{
    *ret_fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
}

/* Ports that are given replace those that were saved: the first guest may still have them. */
static int set_forwards(struct plan *plan, struct err *err)
{
    const char *first = arguments_value(plan->arguments, "publish");
    if (!first)
        return 0;
    for (unsigned i = 0; i < plan->conf.nic_count; i++)
        plan->conf.nics[i].forward_count = 0;
    if (!strcmp(first, "none"))
        return 0;
    return plan->conf.nic_count > 0
               ? plan_set_forwards(plan, err)
               : err_set(err, -EINVAL, "the guest has no network; leave --publish out");
}

int restore_set_vsock(struct guest_conf *conf, const char *text, struct err *err)
{
    uint32_t cid = conf->vsock.cid;
    if (!text)
        return 0;
    if (!conf->vsock.path)
        return err_set(err, -EINVAL, "the guest has no vsock; leave --vsock out");
    int r = guest_conf_set_vsock(conf, text, err);
    return r < 0 || conf->vsock.cid == cid
               ? r
               : err_set(err, -EINVAL, "the guest's CID is %u, and stays so", cid);
}

/* Options may change how a device is joined to this host, not which devices there are. */
static int set_options(struct plan *plan, struct err *err)
{
    plan->conf.on_reset = GUEST_ON_RESET_EXIT; /* unless --on-reset says otherwise */
    int r = plan_set_options(plan, (const char *const[]){"vsock", NULL}, err);
    if (r >= 0)
        r = restore_set_vsock(&plan->conf, arguments_value(plan->arguments, "vsock"), err);
    return r < 0 ? r : set_forwards(plan, err);
}

int restore_make(struct plan *plan, const char *folder,
                 int (*adapt)(struct plan *plan, struct err *err), struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    struct snapshot_about about;
    int r = folder_read(folder, &about, err);
    if (r < 0)
        return r;
    r = guest_conf_read_json(conf, about.definition, strlen(about.definition), folder, err);
    if (r >= 0)
        r = plan_refuse_descriptors(conf, folder, err);
    if (r >= 0)
        r = folder_find_disks(folder, conf, err);
    plan->agent = about.agent;
    plan->relay.restored = true;
    conf->restore.same_host = about.same_host;
    conf->restore.verify =
        arguments_flag(plan->arguments, "verify") ? GUEST_VERIFY_BEFORE : GUEST_VERIFY_BESIDE;
    snapshot_about_free(&about);
    free(take_ptr(conf->name)); /* the first one may still run under it */
    if (r >= 0)
        r = adapt(plan, err);
    if (r >= 0)
        r = folder_open_chain(folder, &conf->restore, err);
    if (r >= 0)
        r = guest_conf_check(conf, err);
    if (r >= 0)
        r = plan_choose_relay(plan, err);
    if (r >= 0)
        r = overlays_make(conf, &plan->scratch, err);
    if (r >= 0 && conf->firmware)
        r = firmware_open(conf, true, &plan->firmware, &plan->nvram, err);
    open_if_there(conf->kernel, &plan->kernel);
    open_if_there(conf->initrd, &plan->initrd);
    plan->relay.kernel = folder;
    return r < 0 ? r : plan_open(plan, err);
}

static int make(struct plan *plan, struct err *err)
{
    if (plan->arguments->word_count != 1)
        return err_set(err, -EINVAL, "restore takes the folder of a snapshot");
    return restore_make(plan, plan->arguments->words[0], set_options, err);
}

static int run(const struct arguments *arguments)
{
    return plan_run(arguments, make, NULL);
}

static const struct option_row options[] = {
    {"name", 'n', "NAME", "a name for the restored guest, by which it is found"},
    {"engine", 0, "ENGINE", "auto, kvm or soft"},
    {"translate", 0, "WHAT", "what the software engine translates: hot, never or always"},
    {"code-cache", 0, "SIZE", "its room for translated code, 1M to 512M"},
    {"vsock", 0, "PATH", "where its sockets lie, if it has some; else where they were"},
    {"publish", 'p', "[ADDRESS:]HOST:GUEST[/udp]",
     "ports of this machine that lead to the guest, or none; else those that\n"
     "                               led there before; may be repeated"},
    {"control", 0, "PATH", "a Unix socket for programs that steer the guest (docs/cli.md)"},
    {"verify", 0, NULL,
     "hold all memory against its checksums before the guest runs; else that is\n"
     "                               done while it does"},
    {"on-reset", 0, "WHAT", "when the guest resets its machine: exit or reboot (exit)"},
    {"env", 'e', "NAME=VALUE", "environment of the command; may be repeated"},
    {"workdir", 'w', "FOLDER", "the folder the command starts in"},
    {"tty", 't', NULL, "give the command a terminal even where ours is none"},
    {"no-tty", 'T', NULL, "give it none even where ours is one"},
    {"agent-timeout", 0, "SECONDS",
     "how long a command waits for the guest's agent (300; 0: ever)"},
    {"verbose", 'v', NULL, "show the engine, and the guest's kernel messages on standard error"},
    {0},
};

const struct verb verb_restore = {
    .name = "restore",
    .summary = "Let a guest go on from a snapshot",
    .usage = "FOLDER [-- COMMAND ARG...]",
    .details =
        "The guest goes on where it was written down, as often as you like, several at once\n"
        "too. It writes to overlays of its disks, which go with it. Standard input and\n"
        "output, COMMAND and the exit status are as with lodge run.",
    .example = "lodge restore web.snapshot -- uptime",
    .options = options,
    .words_max = 1,
    .takes_command = true,
    .mistake_status = RELAY_FAILED,
    .run = run,
};
