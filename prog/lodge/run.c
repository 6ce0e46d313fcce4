/*
 * lodge run: boots one guest, joins it to standard input and output, and ends with it.
 */
#include "base/bytes.h"
#include "base/own.h"
#include "definition.h"
#include "firmware.h"
#include "input.h"
#include "plan.h"
#include "root.h"
#include "seeding.h"
#include "share.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

static const struct option_row options[] = {
    {"engine", 0, "ENGINE", "auto, kvm or soft (auto: see lodge host)"},
    {"cpu", 0, "MODEL",
     "the processor that the guest sees: portable (snapshots of it go on under any\n"
     "                               engine), host (all that this engine has), auto (the one under "
     "KVM,\n"
     "                               the other under the software engine)"},
    {"translate", 0, "WHAT", "what the software engine translates: hot, never or always (hot)"},
    {"code-cache", 0, "SIZE", "its room for translated code, 1M to 512M (64M)"},
    {"memory", 'm', "SIZE", "memory of the guest, like 512M or 1.5G (512M; debian: 1G)"},
    {"cpus", 'c', "N", "virtual CPUs, 1 to 64 (1)"},
    {"kernel", 'k', "FILE", "a Linux or multiboot kernel, instead of an image's"},
    {"initrd", 'i', "FILE", "an initial RAM disk, instead of an image's"},
    {"firmware", 0, "[=FILE]",
     "begin with UEFI firmware (OVMF, or an image of one's own), which boots\n"
     "                               from the disks (docs/firmware.md)"},
    {"nvram", 0, "FILE",
     "where the firmware keeps its variables; OVMF's is made if it is not there"},
    {"vsock", 0, "PATH[,cid=N]",
     "sockets between guest and host, at PATH and PATH_PORT (see docs/vsock.md)"},
    {"append", 'a', "WORDS", "more words for the kernel's command line"},
    {"disk", 'd', "PATH[,...]",
     "a disk: PATH,ro,format=raw|qcow2,cache=writeback|none|unsafe,\n"
     "                               serial=X,iops=N,bps=SIZE,iops_burst=N,bps_burst=SIZE,\n"
     "                               on_full=pause|error,key_file=FILE,cacert=FILE;\n"
     "                               PATH may be an http or https URL; may be repeated"},
    {"share", 's', "PATH[,...]",
     "a folder that the guest sees: PATH,tag=TAG,at=FOLDER,ro (share, /mnt/TAG);\n"
     "                               may be repeated"},
    {"file", 'f', "FILE",
     "a guest's definition: vm.conf, JSON or libvirt's XML; options override it"},
    {"name", 'n', "NAME", "the guest's name, its host name too"},
    {"hostname", 0, "NAME", "its host name, where that is another"},
    {"ssh-key", 0, "FILE",
     "a public key for the image's user (Debian: debian, with sudo);\n"
     "                               may be repeated"},
    {"user-data", 0, "FILE", "what the guest's cloud-init shall do, by a NoCloud seed"},
    {"on-reset", 0, "WHAT", "when the guest resets its machine: exit or reboot (exit)"},
    {"watchdog", 0, "WHAT",
     "when its watchdog expires: off (none), event, reset or poweroff (off)"},
    {"balloon", 0, "WHAT", "a device by which it gives memory back: on or off (on)"},
    {"control", 0, "PATH", "a Unix socket for programs that steer the guest (docs/cli.md)"},
    {"net", 0, "NET", "a network card: user, tap=NAME or none; see below (none)"},
    {"publish", 'p', "[ADDRESS:]HOST:GUEST[/udp]",
     "forward a port of this machine to the guest; implies --net user"},
    {"env", 'e', "NAME=VALUE", "environment of the command; may be repeated"},
    {"workdir", 'w', "FOLDER", "the folder the command starts in"},
    {"tty", 't', NULL, "give the command a terminal even where ours is none"},
    {"no-tty", 'T', NULL, "give it none even where ours is one"},
    {"agent-timeout", 0, "SECONDS",
     "how long a command waits for the guest's agent (300; 0: ever)"},
    {"verbose", 'v', NULL, "show the engine, and the guest's kernel messages on standard error"},
    {0},
};

/* What a definition only assumes gives way to a kernel that somebody named. */
static void forget_assumed_firmware(struct plan *plan)
{
    if (!plan->has_image && !arguments_value(plan->arguments, "kernel"))
        return;
    free(plan->conf.firmware);
    plan->conf.firmware = NULL;
}

static int read_definition(struct plan *plan, const char *path, struct err *err)
{
    struct guest_notes notes = {0};
    int r = definition_read(&plan->conf, path, &notes, err);
    definition_print_notes(path, &notes);
    if (r >= 0 && notes.firmware_assumed)
        forget_assumed_firmware(plan);
    guest_notes_free(&notes);
    return r < 0 ? r : plan_refuse_descriptors(&plan->conf, path, err);
}

/* The file's, and over it the command line's, whose network cards replace the file's. */
static int read_options(struct plan *plan, struct err *err)
{
    const char *file = arguments_value(plan->arguments, "file");
    plan->conf.on_reset = GUEST_ON_RESET_EXIT; /* unless something says otherwise */
    int r = file ? read_definition(plan, file, err) : 0;
    if (arguments_value(plan->arguments, "net"))
        plan->conf.nic_count = 0;
    if (r >= 0)
        r = plan_set_options(plan, NULL, err);
    return r < 0 ? r : plan_set_forwards(plan, err);
}

static int find_image(struct plan *plan, const char *name, struct err *err)
{
    _cleanup_free_ char *store = NULL;
    int r = image_store_path(&store, err);
    if (r >= 0)
        r = image_find(store, name, &plan->image, err);
    plan->has_image = r >= 0;
    return r;
}

/* One that is named is found before all else, for its memory is only a proposal. */
static int find_named_image(struct plan *plan, struct err *err)
{
    if (!plan->arguments->word_count)
        return 0;
    int r = find_image(plan, plan->arguments->words[0], err);
    if (r >= 0 && plan->image.memory)
        plan->conf.memory = plan->image.memory;
    return r;
}

/* The image gives what was not given: kernel, initrd, and the words its kernel likes. */
static int apply_image(struct plan *plan, struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    if (conf->firmware && plan->has_image)
        return err_set(
            err, -EINVAL,
            "image '%s' brings its own kernel and no boot loader; leave it or --firmware "
            "out",
            plan->image.name);
    if (conf->firmware)
        return 0;
    if (!plan->has_image && conf->kernel)
        return *conf->append || guest_conf_append(conf, "console=ttyS0") >= 0
                   ? 0
                   : err_set(err, -ENOMEM, "no memory");
    int r = plan->has_image ? 0 : find_image(plan, "default", err);
    if (r < 0)
        return r;
    plan->agent = plan->image.agent;
    _cleanup_free_ char *given = take_ptr(conf->append);
    conf->append = strdup(plan->image.append);
    if (!conf->append || (given && guest_conf_append(conf, given) < 0))
        return err_set(err, -ENOMEM, "no memory");
    if (!conf->kernel)
        r = plan_replace(&conf->kernel, plan->image.kernel, err);
    if (r >= 0 && !conf->initrd)
        r = plan_replace(&conf->initrd, plan->image.initrd, err);
    return r;
}

static int check_memory(const struct guest_conf *conf, struct err *err)
{
    struct sysinfo info;
    if (sysinfo(&info) < 0)
        return err_errno(err, errno, "memory of this machine");
    uint64_t total = (uint64_t)info.totalram * info.mem_unit;
    if (conf->memory <= total)
        return 0;
    return err_set(err, -ENOMEM, "memory of %.1f GiB is more than this machine has (%.1f GiB)",
                   (double)conf->memory / (double)GIB(1), (double)total / (double)GIB(1));
}

static int open_all(struct plan *plan, struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    int r = conf->firmware ? firmware_open(conf, false, &plan->firmware, &plan->nvram, err)
                           : input_open("kernel", conf->kernel, &plan->kernel, err);
    if (r >= 0 && conf->initrd)
        r = input_open("initrd", conf->initrd, &plan->initrd, err);
    if (r >= 0)
        r = plan_open(plan, err);
    for (unsigned i = 0; r >= 0 && i < conf->share_count; i++)
        r = share_start(&conf->shares[i], &plan->servers[i], err);
    plan->relay.firmware = conf->firmware;
    plan->relay.kernel = conf->firmware ? conf->firmware : conf->kernel;
    return r;
}

static const char *hostname_of(const struct plan *plan)
{
    const char *given = arguments_value(plan->arguments, "hostname");
    return given ? given : plan->conf.name;
}

/* For lodge-agent as PID 1, and for systemd. The words after the name are init's; a name with a
 * blank would be two. */
static int append_hostname(struct plan *plan, struct err *err)
{
    _cleanup_free_ char *words = NULL;
    const char *name = hostname_of(plan);
    if (!name)
        return 0;
    if (!image_name_valid(name))
        return err_set(err, -EINVAL,
                       "'%.64s' is no name for a guest; use letters, digits, '.', '_' and '-'",
                       name);
    if (plan->conf.firmware) /* a seed can tell it */
        return !arguments_value(plan->arguments, "hostname") || seeding_wanted(plan->arguments)
                   ? 0
                   : err_set(err, -EINVAL,
                             "--hostname reaches a guest with firmware by cloud-init only; add "
                             "--user-data or --ssh-key");
    if (asprintf(&words, "lodge.hostname=%s systemd.hostname=%s", name, name) < 0)
        words = NULL;
    return words && guest_conf_append(&plan->conf, words) >= 0 ? 0
                                                               : err_set(err, -ENOMEM, "no memory");
}

/* A guest of one's own may have cloud-init as well. */
static int add_seed(struct plan *plan, struct err *err)
{
    if (!seeding_wanted(plan->arguments))
        return 0;
    if (plan->has_image && !plan->image.seed)
        return err_set(err, -EINVAL,
                       "image '%s' has no cloud-init for --user-data and --ssh-key; debian has",
                       plan->image.name);
    plan->seed = seeding_open(plan->arguments, hostname_of(plan), err);
    return plan->seed < 0 ? plan->seed : root_add_seed(&plan->conf, plan->seed, err);
}

/* The agent then sets up the network: see boot_network() in lodge-agent. */
static int append_net(struct plan *plan, struct err *err)
{
    const struct guest_conf *conf = &plan->conf;
    if (conf->nic_count == 0 || !plan->relay.agent || conf->firmware)
        return 0;
    const char *word = conf->nics[0].net == GUEST_NET_USER ? "lodge.net=user" : "lodge.net=tap";
    return guest_conf_append(&plan->conf, word) >= 0 ? 0 : err_set(err, -ENOMEM, "no memory");
}

/* The agent of an image mounts them before it does anything for us. */
static int append_shares(struct plan *plan, struct err *err)
{
    const struct guest_conf *conf = &plan->conf;
    int r = 0;
    for (unsigned i = 0; r >= 0 && plan->relay.agent && i < conf->share_count; i++) {
        _cleanup_free_ char *word = NULL;
        const struct guest_share *share = &conf->shares[i];
        if (asprintf(&word, "lodge.share=%s:%s%s", share->tag, share->at,
                     share->read_only ? ":ro" : "") < 0)
            word = NULL;
        r = word ? guest_conf_append(&plan->conf, word) : -ENOMEM;
    }
    return r < 0 ? err_set(err, -ENOMEM, "no memory") : 0;
}

static int make(struct plan *plan, struct err *err)
{
    int r = find_named_image(plan, err);
    if (r >= 0)
        r = read_options(plan, err);
    if (r >= 0)
        r = apply_image(plan, err);
    if (r >= 0)
        r = guest_conf_check(&plan->conf, err);
    if (r >= 0)
        r = check_memory(&plan->conf, err);
    if (r >= 0)
        r = plan_choose_relay(plan, err);
    if (r >= 0)
        r = append_hostname(plan, err);
    if (r >= 0)
        r = append_net(plan, err);
    if (r >= 0)
        r = append_shares(plan, err);
    if (r >= 0)
        r = add_seed(plan, err);
    if (r >= 0 && plan->has_image && plan->image.disk)
        r = root_add_overlay(&plan->scratch, &plan->conf, plan->image.disk, err);
    if (r >= 0)
        r = open_all(plan, err);
    return r;
}

static int run(const struct arguments *arguments)
{
    return plan_run(arguments, make, NULL);
}

const struct verb verb_run = {
    .name = "run",
    .summary = "Boot a guest, and run a command in it",
    .usage = "[IMAGE] [-- COMMAND ARG...]",
    .details =
        "With a command, lodge runs it in the guest as soon as user space is up, joins it to\n"
        "standard input, output and error, and exits with its status. Without one, a terminal "
        "gets\n"
        "a shell in the guest (Ctrl-] then q leaves); elsewhere the serial console goes to "
        "standard\n"
        "output until the guest powers off. IMAGE is 'default' where neither it nor a kernel is\n"
        "given. With --firmware there is neither: the guest boots what its disks bring.\n\n"
        "A network card is user (passt carries the guest's connections; DHCP is there) or "
        "tap=NAME,\n"
        "with more behind commas: mac=MAC, mtu=N, anti-spoof, rate-in=SIZE and rate-out=SIZE (a\n"
        "second), for user host-loopback (the gateway's address leads to this machine), for tap\n"
        "queues=N. Without --net and -p there is none.\n\n"
        "Exit status: the command's own; 125 when lodge or the guest failed; 126 when the command\n"
        "could not be executed, 127 when it was not found; 128 + n after signal n.",
    .example = "lodge run --memory 1G -- uname -a",
    .options = options,
    .words_max = 1,
    .takes_command = true,
    .mistake_status = RELAY_FAILED,
    .run = run,
};
