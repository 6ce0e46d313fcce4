#include "plan.h"

#include "base/bytes.h"
#include "base/own.h"
#include "chain.h"
#include "folder.h"
#include "machine.h"
#include "share.h"
#include "steer.h"
#include "vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* ---- options and definitions ---- */

int plan_replace(char **field, const char *value, struct err *err)
{
    char *copy = strdup(value);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    free(*field);
    *field = copy;
    return 0;
}

static int set_kernel(struct guest_conf *conf, const char *text, struct err *err)
{
    return plan_replace(&conf->kernel, text, err);
}

static int set_initrd(struct guest_conf *conf, const char *text, struct err *err)
{
    return plan_replace(&conf->initrd, text, err);
}

static int set_name(struct guest_conf *conf, const char *text, struct err *err)
{
    return plan_replace(&conf->name, text, err);
}

static int set_firmware(struct guest_conf *conf, const char *text, struct err *err)
{
    return plan_replace(&conf->firmware, text ? text : GUEST_FIRMWARE_UEFI, err);
}

static int set_nvram(struct guest_conf *conf, const char *text, struct err *err)
{
    return plan_replace(&conf->nvram, text, err);
}

static int append(struct guest_conf *conf, const char *text, struct err *err)
{
    return guest_conf_append(conf, text) < 0 ? err_set(err, -ENOMEM, "no memory") : 0;
}

static int set_on_reset(struct guest_conf *conf, const char *text, struct err *err)
{
    if (strcmp(text, "exit") != 0 && strcmp(text, "reboot") != 0)
        return err_set(err, -EINVAL, "--on-reset is exit or reboot, not '%.64s'", text);
    conf->on_reset = !strcmp(text, "reboot") ? GUEST_ON_RESET_REBOOT : GUEST_ON_RESET_EXIT;
    return 0;
}

static const struct {
    const char *option;
    int (*set)(struct guest_conf *conf, const char *text, struct err *err);
} setters[] = {
    {"engine", guest_conf_set_engine},
    {"cpu", guest_conf_set_cpu},
    {"translate", guest_conf_set_translate},
    {"code-cache", guest_conf_set_code_cache},
    {"memory", guest_conf_set_memory},
    {"cpus", guest_conf_set_cpus},
    {"kernel", set_kernel},
    {"initrd", set_initrd},
    {"firmware", set_firmware},
    {"nvram", set_nvram},
    {"append", append},
    {"disk", guest_conf_add_disk},
    {"net", guest_conf_add_net},
    {"vsock", guest_conf_set_vsock},
    {"share", guest_conf_add_share},
    {"balloon", guest_conf_set_balloon},
    {"watchdog", guest_conf_set_watchdog},
    {"name", set_name},
    {"on-reset", set_on_reset},
};

static bool is_among(const char *option, const char *const *options)
{
    while (options && *options && strcmp(*options, option) != 0)
        options++;
    return options && *options;
}

int plan_set_options(struct plan *plan, const char *const *but, struct err *err)
{
    const struct arguments *arguments = plan->arguments;
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < arguments->given_count; i++)
        for (size_t k = 0; r >= 0 && k < ARRAY_LEN(setters); k++)
            if (!strcmp(arguments->given[i].row->name, setters[k].option) &&
                !is_among(setters[k].option, but))
                r = setters[k].set(&plan->conf, arguments->given[i].value, err);
    return r;
}

static bool has_images(const struct guest_conf *conf)
{
    bool any = false;
    for (unsigned i = 0; i < conf->disk_count; i++)
        any |= conf->disks[i].image_count > 0 || conf->disks[i].unlocked;
    for (unsigned i = 0; i < conf->share_count; i++)
        any |= conf->shares[i].fd >= 0;
    return any;
}

int plan_refuse_descriptors(const struct guest_conf *conf, const char *path, struct err *err)
{
    if (conf->kernel_fd >= 0 || conf->initrd_fd >= 0 || conf->kvm_fd >= 0 ||
        conf->firmware_fd >= 0 || conf->nvram_fd >= 0 || conf->serial_in_fd >= 0 ||
        conf->serial_out_fd >= 0 || conf->control_fd >= 0 || conf->listen_fd >= 0 ||
        conf->restore.count > 0 || conf->lockstep.fd >= 0 || conf->console_count > 0 ||
        conf->vsock.fd >= 0 || has_images(conf) || net_has_descriptors(conf))
        return err_set(err, -EINVAL, "%s: descriptors and consoles are for lodge to fill in", path);
    return 0;
}

int plan_set_forwards(struct plan *plan, struct err *err)
{
    const struct arguments *arguments = plan->arguments;
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < arguments->given_count; i++)
        if (!strcmp(arguments->given[i].row->name, "publish"))
            r = guest_conf_add_forward(&plan->conf, arguments->given[i].value, err);
    return r;
}

/* ---- how the guest is joined to us ---- */

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

int plan_choose_relay(struct plan *plan, struct err *err)
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
    if (r >= 0 && relay->command && !relay->restored && !plan->conf.firmware &&
        guest_conf_append(&plan->conf, "lodge.console=off") < 0)
        r = err_set(err, -ENOMEM, "no memory");
    if (r >= 0 && relay->command)
        plan->conf.on_reset = GUEST_ON_RESET_EXIT;
    relay->reboots = plan->conf.on_reset == GUEST_ON_RESET_REBOOT;
    relay->watchdog_ends = plan->conf.watchdog == GUEST_WATCHDOG_POWER_OFF ||
                           (plan->conf.watchdog == GUEST_WATCHDOG_RESET && !relay->reboots);
    return r;
}

/* ---- descriptors ---- */

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

int plan_open(struct plan *plan, struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < conf->disk_count; i++)
        r = chain_open(&conf->disks[i], err);
    scratch_forget(&plan->scratch);
    if (r >= 0 && conf->vsock.path)
        r = vsock_host_new(conf->vsock.path, &plan->relay.vsock, err);
    if (r >= 0)
        r = open_kvm(plan, err);
    plan->relay.disks = conf->disks;
    plan->relay.disk_count = conf->disk_count;
    conf->kernel_fd = plan->kernel;
    conf->initrd_fd = plan->initrd;
    conf->firmware_fd = plan->firmware;
    conf->nvram_fd = plan->nvram;
    conf->kvm_fd = plan->kvm;
    return r;
}

/* ---- its name ---- */

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
    bool fine =
        make_absolute(&conf->kernel) && make_absolute(&conf->initrd) && make_absolute(&conf->nvram);
    if (fine && conf->firmware && strcmp(conf->firmware, GUEST_FIRMWARE_UEFI) != 0)
        fine = make_absolute(&conf->firmware);
    for (unsigned i = 0; fine && i < conf->disk_count; i++)
        fine = make_absolute(&conf->disks[i].path) && make_absolute(&conf->disks[i].key_file) &&
               make_absolute(&conf->disks[i].cacert);
    for (unsigned i = 0; fine && i < conf->share_count; i++)
        fine = make_absolute(&conf->shares[i].path);
    char *vsock = conf->vsock.path ? realpath(conf->vsock.path, NULL) : NULL;
    if (vsock && strlen(vsock) <= GUEST_VSOCK_PATH_MAX) { /* else it could not be one's address */
        free(conf->vsock.path);
        conf->vsock.path = take_ptr(vsock);
    }
    free(vsock);
    return fine;
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
    plain.kernel_fd = plain.initrd_fd = plain.kvm_fd = plain.firmware_fd = plain.nvram_fd = -1;
    plain.restore.count = 0;
    for (unsigned i = 0; i < plain.disk_count; i++)
        guest_disk_forget_descriptors(&plain.disks[i]);
    /* Addresses come from the name, and a restored guest may have another one. */
    static const uint8_t none[sizeof plain.nics[0].mac];
    for (unsigned i = 0; i < plain.nic_count; i++) {
        plain.nics[i].unplugged = false; /* it is a clone's, until it has an identity */
        if (!memcmp(plain.nics[i].mac, none, sizeof none))
            guest_nic_mac(conf->name, i, plain.nics[i].mac);
    }
    _cleanup_free_ char *text =
        make_paths_absolute(&plain) ? folder_describe(&plain, conf, plan->agent) : NULL;
    guest_conf_free(&plain);
    if (!text)
        return err_errno(err, errno, "the paths of guest '%s'", conf->name);
    return endpoint_open(&plan->endpoint, conf->name, text, &conf->listen_fd, err);
}

/* ---- its life ---- */

static int open_control(struct plan *plan, struct err *err)
{
    const char *given = arguments_value(plan->arguments, "control");
    const char *path = plan->control ? plan->control : given;
    int r = path ? steer_new(path, &plan->relay.steer, err) : 0;
    steer_know(plan->relay.steer, plan->relay.reboots, plan->conf.nic_count);
    return r;
}

static int start(struct plan *plan, struct machine *machine, struct err *err)
{
    char program[4096];
    int r = open_control(plan, err);
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

int plan_run(const struct arguments *arguments, int (*make)(struct plan *plan, struct err *err),
             void *context)
{
    struct err err = {0};
    struct machine machine;
    struct plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return RELAY_FAILED;
    plan->arguments = arguments;
    plan->context = context;
    plan->relay.report = -1;
    plan->kernel = plan->initrd = plan->kvm = plan->seed = -1;
    plan->firmware = plan->nvram = -1;
    guest_conf_init(&plan->conf);
    int status = RELAY_FAILED;
    if (make(plan, &err) >= 0 && start(plan, &machine, &err) >= 0)
        status = relay_run(&plan->relay, &machine);
    else
        fprintf(stderr, "lodge: %s\n", err.text);
    steer_free(plan->relay.steer);
    for (unsigned i = 0; i < plan->conf.disk_count; i++)
        chain_close(&plan->conf.disks[i]);
    vsock_host_free(plan->relay.vsock);
    scratch_forget(&plan->scratch);
    for (unsigned i = 0; i < plan->conf.share_count; i++)
        share_end(&plan->conf.shares[i], plan->servers[i]);
    own_close(&plan->kernel);
    own_close(&plan->initrd);
    own_close(&plan->kvm);
    own_close(&plan->seed);
    own_close(&plan->firmware);
    own_close(&plan->nvram);
    own_close(&plan->conf.listen_fd);
    for (unsigned i = 0; i < plan->conf.restore.count; i++) {
        own_close(&plan->conf.restore.layers[i].state_fd);
        own_close(&plan->conf.restore.layers[i].memory_fd);
    }
    endpoint_close(&plan->endpoint);
    free(plan->control);
    guest_conf_free(&plan->conf);
    image_free(&plan->image);
    free(plan);
    return status;
}
