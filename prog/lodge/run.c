/*
 * lodge run: boots one guest, joins it to standard input and output, and ends with it.
 */
#include "base/bytes.h"
#include "base/own.h"
#include "chain.h"
#include "conf/guest.h"
#include "endpoint.h"
#include "folder.h"
#include "image/store.h"
#include "input.h"
#include "machine.h"
#include "net.h"
#include "overlays.h"
#include "relay.h"
#include "root.h"
#include "seeding.h"
#include "share.h"
#include "steer.h"
#include "terminal.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

static const struct option_row options[] = {
    {"engine", 0, "ENGINE", "auto, kvm or soft (auto: see lodge host)"},
    {"translate", 0, "WHAT", "what the software engine translates: hot, never or always (hot)"},
    {"code-cache", 0, "SIZE", "its room for translated code, 1M to 512M (64M)"},
    {"memory", 'm', "SIZE", "memory of the guest, like 512M or 1.5G (512M; debian: 1G)"},
    {"cpus", 'c', "N", "virtual CPUs, 1 to 64 (1)"},
    {"kernel", 'k', "FILE", "a Linux or multiboot kernel, instead of an image's"},
    {"initrd", 'i', "FILE", "an initial RAM disk, instead of an image's"},
    {"vsock", 0, "PATH[,cid=N]",
     "sockets between guest and host, at PATH and PATH_PORT (see docs/vsock.md)"},
    {"append", 'a', "WORDS", "more words for the kernel's command line"},
    {"disk", 'd', "PATH[,...]",
     "a disk: PATH,ro,format=raw|qcow2,cache=writeback|none|unsafe,\n"
     "                               serial=X,iops=N,bps=SIZE,key_file=FILE,cacert=FILE;\n"
     "                               PATH may be an http or https URL; may be repeated"},
    {"share", 's', "PATH[,...]",
     "a folder that the guest sees: PATH,tag=TAG,at=FOLDER,ro (share, /mnt/TAG);\n"
     "                               may be repeated"},
    {"file", 'f', "FILE", "a guest's definition, vm.conf or JSON; options override it"},
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

/* One run, from words to descriptors. */
struct plan {
    const struct arguments *arguments;
    struct guest_conf conf;
    struct image image;
    bool has_image, agent;
    struct root root;
    struct relay_plan relay;
    const char *argv[AGENT_STRINGS_MAX + 1];
    const char *env[ARGUMENTS_GIVEN_MAX + 1];
    char term[128];
    int kernel, initrd, kvm; /* descriptors */
    struct endpoint endpoint;
    struct overlays *overlays; /* of a restored guest */
    struct net net;
    pid_t servers[GUEST_SHARES_MAX]; /* of the shares, 0 = not started */
};

static bool has_images(const struct guest_conf *conf)
{
    bool any = false;
    for (unsigned i = 0; i < conf->disk_count; i++)
        any |= conf->disks[i].image_count > 0 || conf->disks[i].unlocked;
    for (unsigned i = 0; i < conf->share_count; i++)
        any |= conf->shares[i].fd >= 0;
    return any;
}

/* Descriptors in a file would be numbers of nothing. */
static int refuse_descriptors(const struct guest_conf *conf, const char *path, struct err *err)
{
    if (conf->kernel_fd >= 0 || conf->initrd_fd >= 0 || conf->kvm_fd >= 0 ||
        conf->serial_in_fd >= 0 || conf->serial_out_fd >= 0 || conf->control_fd >= 0 ||
        conf->lockstep.fd >= 0 || conf->console_count > 0 || conf->vsock.fd >= 0 ||
        has_images(conf) || net_has_descriptors(conf))
        return err_set(err, -EINVAL, "%s: descriptors and consoles are for lodge to fill in", path);
    return 0;
}

static int read_definition(struct plan *plan, const char *path, struct err *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length = 0;
    int r = input_read("definition", path, GUEST_TEXT_MAX, &text, &length, err);
    if (r < 0)
        return r;
    size_t blanks = 0;
    while (blanks < length && strchr(" \t\r\n", text[blanks]))
        blanks++;
    bool json = blanks < length && (text[blanks] == '{' || text[blanks] == '[');
    r = json ? guest_conf_read_json(&plan->conf, text, length, path, err)
             : guest_conf_read_vmconf(&plan->conf, text, length, path, err);
    return r < 0 ? r : refuse_descriptors(&plan->conf, path, err);
}

static int replace(char **field, const char *value, struct err *err)
{
    char *copy = strdup(value);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    free(*field);
    *field = copy;
    return 0;
}

static int set_on_reset(struct guest_conf *conf, const char *text, struct err *err)
{
    if (text && strcmp(text, "exit") != 0 && strcmp(text, "reboot") != 0)
        return err_set(err, -EINVAL, "--on-reset is exit or reboot, not '%.64s'", text);
    conf->on_reset = text && !strcmp(text, "reboot") ? GUEST_ON_RESET_REBOOT : GUEST_ON_RESET_EXIT;
    return 0;
}

static int set_option(struct plan *plan, const char *name, const char *value, struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    if (!strcmp(name, "engine"))
        return guest_conf_set_engine(conf, value, err);
    if (!strcmp(name, "translate"))
        return guest_conf_set_translate(conf, value, err);
    if (!strcmp(name, "code-cache"))
        return guest_conf_set_code_cache(conf, value, err);
    if (!strcmp(name, "memory"))
        return guest_conf_set_memory(conf, value, err);
    if (!strcmp(name, "cpus"))
        return guest_conf_set_cpus(conf, value, err);
    if (!strcmp(name, "kernel"))
        return replace(&conf->kernel, value, err);
    if (!strcmp(name, "initrd"))
        return replace(&conf->initrd, value, err);
    if (!strcmp(name, "disk"))
        return guest_conf_add_disk(conf, value, err);
    if (!strcmp(name, "watchdog"))
        return guest_conf_set_watchdog(conf, value, err);
    if (!strcmp(name, "balloon"))
        return guest_conf_set_balloon(conf, value, err);
    if (!strcmp(name, "vsock"))
        return guest_conf_set_vsock(conf, value, err);
    if (!strcmp(name, "share"))
        return guest_conf_add_share(conf, value, err);
    if (!strcmp(name, "name"))
        return replace(&conf->name, value, err);
    if (!strcmp(name, "net"))
        return guest_conf_add_net(conf, value, err);
    if (!strcmp(name, "append") && guest_conf_append(conf, value) < 0)
        return err_set(err, -ENOMEM, "no memory");
    return 0;
}

/* Cards on the command line replace the file's. Ports come last: they go to a card that is there.
 */
static int read_networks(struct plan *plan, struct err *err)
{
    const struct arguments *arguments = plan->arguments;
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < arguments->given_count; i++)
        if (!strcmp(arguments->given[i].row->name, "publish"))
            r = guest_conf_add_forward(&plan->conf, arguments->given[i].value, err);
    return r;
}

static int read_options(struct plan *plan, struct err *err)
{
    const struct arguments *arguments = plan->arguments;
    const char *file = arguments_value(arguments, "file");
    int r = file ? read_definition(plan, file, err) : 0;
    if (r >= 0)
        r = set_on_reset(&plan->conf, arguments_value(arguments, "on-reset"), err);
    if (arguments_value(arguments, "net"))
        plan->conf.nic_count = 0;
    for (unsigned i = 0; r >= 0 && i < arguments->given_count; i++)
        if (arguments->given[i].value)
            r = set_option(plan, arguments->given[i].row->name, arguments->given[i].value, err);
    return r < 0 ? r : read_networks(plan, err);
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
        r = replace(&conf->kernel, plan->image.kernel, err);
    if (r >= 0 && !conf->initrd)
        r = replace(&conf->initrd, plan->image.initrd, err);
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

static int open_kvm(struct plan *plan, struct err *err)
{
    if (plan->conf.engine == GUEST_ENGINE_SOFT)
        return 0;
    plan->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (plan->kvm >= 0 || plan->conf.engine == GUEST_ENGINE_AUTO)
        return 0;
    if (errno == EACCES)
        return err_set(err, -EACCES,
                       "engine kvm: /dev/kvm may not be opened; join the group kvm (adduser NAME "
                       "kvm), or use --engine soft");
    return err_errno(err, errno,
                     "engine kvm: no usable /dev/kvm; enable virtualization in the firmware and "
                     "load kvm_intel or kvm_amd, or use --engine soft");
}

static int open_all(struct plan *plan, struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    int r = input_open("kernel", conf->kernel, &plan->kernel, err);
    if (r >= 0 && conf->initrd)
        r = input_open("initrd", conf->initrd, &plan->initrd, err);
    for (unsigned i = 0; r >= 0 && i < conf->disk_count; i++)
        r = chain_open(&conf->disks[i], err);
    if (r >= 0 && conf->vsock.path)
        r = vsock_host_new(conf->vsock.path, &plan->relay.vsock, err);
    for (unsigned i = 0; r >= 0 && i < conf->share_count; i++)
        r = share_start(&conf->shares[i], &plan->servers[i], err);
    if (r >= 0)
        r = open_kvm(plan, err);
    root_forget(&plan->root);
    plan->relay.kernel = conf->kernel;
    conf->kernel_fd = plan->kernel;
    conf->initrd_fd = plan->initrd;
    conf->kvm_fd = plan->kvm;
    return r;
}

static int parse_timeout(const char *text, unsigned *ret_seconds, struct err *err)
{
    size_t length = text ? strlen(text) : 0;
    *ret_seconds = 300;
    if (!text)
        return 0;
    if (length == 0 || length > 6 || strspn(text, "0123456789") != length)
        return err_set(err, -EINVAL, "--agent-timeout takes seconds, not '%.64s'", text);
    *ret_seconds = (unsigned)strtoul(text, NULL, 10);
    return 0;
}

static int collect_env(struct plan *plan, struct err *err)
{
    const struct arguments *arguments = plan->arguments;
    unsigned count = 0;
    for (unsigned i = 0; i < arguments->given_count; i++) {
        const char *value = arguments->given[i].value;
        if (strcmp(arguments->given[i].row->name, "env") != 0)
            continue;
        if (*value == '=' || !strchr(value, '='))
            return err_set(err, -EINVAL, "--env takes NAME=VALUE, not '%.64s'", value);
        plan->env[count++] = value;
    }
    const char *term = getenv("TERM");
    if (plan->relay.what.tty && term && strlen(term) < 64) {
        snprintf(plan->term, sizeof plan->term, "TERM=%s", term);
        plan->env[count++] = plan->term;
    }
    plan->relay.what.env = plan->env;
    plan->relay.what.env_count = count;
    return 0;
}

static int collect_command(struct plan *plan, struct err *err)
{
    char *const *command = plan->arguments->command;
    unsigned count = 0;
    if (!command) {
        plan->argv[count++] = "/bin/sh";
        plan->argv[count++] = "-l";
    }
    for (; command && command[count]; count++) {
        if (count == AGENT_STRINGS_MAX)
            return err_set(err, -E2BIG, "a command has at most %d arguments", AGENT_STRINGS_MAX);
        plan->argv[count] = command[count];
    }
    plan->relay.what.argv = plan->argv;
    return 0;
}

/* How this run is joined to the guest (relay.h). */
static int choose_relay(struct plan *plan, struct err *err)
{
    const struct arguments *arguments = plan->arguments;
    struct relay_plan *relay = &plan->relay;
    bool terminals = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    bool agent = plan->agent;
    const char *workdir = arguments_value(arguments, "workdir");
    /* A console that asks for a name is what a person gets who wants no command. */
    bool shell = agent && !plan->image.login;
    relay->shell =
        !arguments->command && shell && terminals && !arguments_flag(arguments, "no-tty");
    relay->command = arguments->command || relay->shell;
    relay->agent = relay->command ? agent : shell;
    relay->verbose = arguments_flag(arguments, "verbose");
    relay->what.cwd = workdir ? workdir : "";
    relay->what.tty = relay->command && !arguments_flag(arguments, "no-tty") &&
                      (terminals || arguments_flag(arguments, "tty"));
    relay->raw = isatty(STDIN_FILENO) && (relay->command ? relay->what.tty : terminals);
    int r = parse_timeout(arguments_value(arguments, "agent-timeout"), &relay->agent_timeout, err);
    if (r >= 0)
        r = collect_env(plan, err);
    if (r >= 0)
        r = collect_command(plan, err);
    /* The agent then starts no shell on a console that nobody looks at. */
    if (r >= 0 && relay->command && !relay->restored &&
        guest_conf_append(&plan->conf, "lodge.console=off") < 0)
        r = err_set(err, -ENOMEM, "no memory");
    if (r >= 0 && relay->command)
        plan->conf.on_reset = GUEST_ON_RESET_EXIT;
    relay->reboots = plan->conf.on_reset == GUEST_ON_RESET_REBOOT;
    relay->watchdog_ends = plan->conf.watchdog == GUEST_WATCHDOG_POWER_OFF ||
                           (plan->conf.watchdog == GUEST_WATCHDOG_RESET && !relay->reboots);
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
    int fd = seeding_open(plan->arguments, hostname_of(plan), err);
    return fd < 0 ? fd : root_add_seed(&plan->root, &plan->conf, fd, err);
}

/* For those that read the definition from another folder. */
static bool make_absolute(char **path)
{
    char *whole = *path ? realpath(*path, NULL) : NULL;
    if (*path && !whole) /* a disk that goes with its guest has no name any more */
        return errno == ENOENT;
    free(*path);
    *path = whole;
    return true;
}

static bool make_paths_absolute(struct guest_conf *conf)
{
    bool fine = make_absolute(&conf->kernel) && make_absolute(&conf->initrd);
    for (unsigned i = 0; i < conf->disk_count; i++)
        fine = fine && make_absolute(&conf->disks[i].path);
    return fine;
}

/* ---- a guest that goes on from a snapshot ---- */

/* Options that a restored guest may have otherwise than the one that was saved. */
static int restore_options(struct plan *plan, struct err *err)
{
    const struct arguments *arguments = plan->arguments;
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < arguments->given_count; i++)
        if (arguments->given[i].value)
            r = set_option(plan, arguments->given[i].row->name, arguments->given[i].value, err);
    if (r >= 0)
        r = set_on_reset(&plan->conf, arguments_value(arguments, "on-reset"), err);
    return r;
}

/* A kernel is needed for a reset only; where it has gone since, that is when it is missed. */
static void open_if_there(const char *path, int *ret_fd)
{
    *ret_fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
}

static int restore_plan(struct plan *plan, struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    struct snapshot_about about;
    if (plan->arguments->word_count != 1)
        return err_set(err, -EINVAL, "restore takes the folder of a snapshot");
    const char *folder = plan->arguments->words[0];
    int r = folder_read(folder, &about, err);
    if (r < 0)
        return r;
    r = guest_conf_read_json(conf, about.definition, strlen(about.definition), folder, err);
    if (r >= 0)
        r = refuse_descriptors(conf, folder, err);
    plan->agent = about.agent;
    plan->relay.restored = true;
    conf->restore.same_host = about.same_host;
    conf->restore.verify = arguments_flag(plan->arguments, "verify");
    snapshot_about_free(&about);
    free(take_ptr(conf->name)); /* the first one may still run under it */
    if (r >= 0)
        r = restore_options(plan, err);
    if (r >= 0)
        r = folder_open_chain(folder, &conf->restore, err);
    if (r >= 0)
        r = guest_conf_check(conf, err);
    if (r >= 0)
        r = choose_relay(plan, err);
    if (r >= 0)
        r = overlays_make(conf, &plan->overlays, err);
    for (unsigned i = 0; r >= 0 && i < conf->disk_count; i++)
        r = chain_open(&conf->disks[i], err);
    if (r >= 0 && conf->vsock.path)
        r = vsock_host_new(conf->vsock.path, &plan->relay.vsock, err);
    if (r >= 0)
        r = open_kvm(plan, err);
    open_if_there(conf->kernel, &plan->kernel);
    open_if_there(conf->initrd, &plan->initrd);
    plan->relay.kernel = conf->kernel ? conf->kernel : folder;
    conf->kernel_fd = plan->kernel;
    conf->initrd_fd = plan->initrd;
    conf->kvm_fd = plan->kvm;
    return r;
}

/* The agent then sets up the network: see boot_network() in lodge-agent. */
static int append_net(struct plan *plan, struct err *err)
{
    const struct guest_conf *conf = &plan->conf;
    if (conf->nic_count == 0 || !plan->relay.agent)
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

static int make_plan(struct plan *plan, struct err *err)
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
        r = choose_relay(plan, err);
    if (r >= 0)
        r = append_hostname(plan, err);
    if (r >= 0)
        r = append_net(plan, err);
    if (r >= 0)
        r = append_shares(plan, err);
    if (r >= 0)
        r = add_seed(plan, err);
    if (r >= 0 && plan->has_image && plan->image.disk)
        r = root_add_overlay(&plan->root, &plan->conf, plan->image.disk, err);
    if (r >= 0)
        r = open_all(plan, err);
    const char *control = arguments_value(plan->arguments, "control");
    if (r >= 0 && control)
        r = steer_new(control, &plan->relay.steer, err);
    steer_allow_reset(plan->relay.steer, plan->relay.reboots);
    return r;
}

/* The guest is found by its name, if it has one. */
static int open_endpoint(struct plan *plan, struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    if (!conf->name)
        return 0;
    struct guest_conf plain;
    _cleanup_free_ char *whole = guest_conf_write_json(conf);
    guest_conf_init(&plain);
    int r = whole ? guest_conf_read_json(&plain, whole, strlen(whole), "definition", err)
                  : err_set(err, -EINVAL, "the definition holds a string that is no UTF-8");
    if (r < 0)
        return r;
    plain.kernel_fd = plain.initrd_fd = plain.kvm_fd = -1;
    plain.restore.count = 0;
    for (unsigned i = 0; i < plain.disk_count; i++)
        guest_disk_forget_images(&plain.disks[i]);
    /* Addresses come from the name, and a restored guest may have another one. */
    static const uint8_t none[sizeof plain.nics[0].mac];
    for (unsigned i = 0; i < plain.nic_count; i++)
        if (!memcmp(plain.nics[i].mac, none, sizeof none))
            guest_nic_mac(conf->name, i, plain.nics[i].mac);
    _cleanup_free_ char *text = make_paths_absolute(&plain)
                                    ? folder_describe(&plain, plan->agent, plan->overlays != NULL)
                                    : NULL;
    guest_conf_free(&plain);
    if (!text)
        return err_errno(err, errno, "the paths of guest '%s'", conf->name);
    return endpoint_open(&plan->endpoint, conf->name, text, &conf->listen_fd, err);
}

static int start(struct plan *plan, struct machine *machine, struct err *err)
{
    char program[4096];
    int r = plan->arguments->verb == &verb_restore ? restore_plan(plan, err) : make_plan(plan, err);
    if (r >= 0)
        r = open_endpoint(plan, err);
    if (r >= 0)
        r = machine_find_program("lodge-vmm", "LODGE_VMM", program, sizeof program, err);
    if (r >= 0)
        r = net_open(&plan->net, &plan->conf, err);
    if (r < 0)
        return r;
    r = machine_start(machine, program, &plan->conf, err);
    net_close(&plan->net, &plan->conf);
    if (r < 0)
        return r;
    r = net_wait(&plan->net, err);
    if (r < 0)
        machine_end(machine);
    return r;
}

static int run(const struct arguments *arguments)
{
    struct err err = {0};
    struct machine machine;
    struct plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return RELAY_FAILED;
    plan->arguments = arguments;
    plan->kernel = plan->initrd = plan->kvm = plan->root.seed = -1;
    guest_conf_init(&plan->conf);
    int status = RELAY_FAILED;
    if (start(plan, &machine, &err) >= 0)
        status = relay_run(&plan->relay, &machine);
    else
        fprintf(stderr, "lodge: %s\n", err.text);
    steer_free(plan->relay.steer);
    for (unsigned i = 0; i < plan->conf.disk_count; i++)
        chain_close(&plan->conf.disks[i]);
    vsock_host_free(plan->relay.vsock);
    root_forget(&plan->root);
    for (unsigned i = 0; i < plan->conf.share_count; i++)
        share_end(&plan->conf.shares[i], plan->servers[i]);
    own_close(&plan->kernel);
    own_close(&plan->initrd);
    own_close(&plan->kvm);
    own_close(&plan->conf.listen_fd);
    for (unsigned i = 0; i < plan->conf.restore.count; i++) {
        own_close(&plan->conf.restore.layers[i].state_fd);
        own_close(&plan->conf.restore.layers[i].memory_fd);
    }
    endpoint_close(&plan->endpoint);
    overlays_free(plan->overlays);
    guest_conf_free(&plan->conf);
    image_free(&plan->image);
    free(plan);
    return status;
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
        "given.\n\n"
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

static const struct option_row restore_options_rows[] = {
    {"name", 'n', "NAME", "a name for the restored guest, by which it is found"},
    {"engine", 0, "ENGINE", "auto, kvm or soft"},
    {"translate", 0, "WHAT", "what the software engine translates: hot, never or always"},
    {"code-cache", 0, "SIZE", "its room for translated code, 1M to 512M"},
    {"vsock", 0, "PATH[,cid=N]", "where its sockets lie, if it has some; else where they were"},
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
    .options = restore_options_rows,
    .words_max = 1,
    .takes_command = true,
    .mistake_status = RELAY_FAILED,
    .run = run,
};
