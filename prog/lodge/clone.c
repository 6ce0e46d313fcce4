/*
 * lodge clone: many guests from one snapshot, each with a name, addresses and random numbers of its
 * own (docs/clone.md).
 *
 * Each is a lodge of its own (crowd.h) that restores the snapshot and, before it does anything else
 * for us, tells the guest's agent who it is now. A card of a network that it shares with others has
 * its cable out until then: no frame with the first guest's address leaves it.
 */
#include "base/bytes.h"
#include "base/own.h"
#include "crowd.h"
#include "folder.h"
#include "machine.h"
#include "restore.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { GUARD_NICE = 19, GUARD_WAIT_MS = 1000 };

struct clones;

struct clone {
    const struct clones *all;
    unsigned number; /* from 1 */
    char *name;
    int report;
    struct agent_message identity;
};

struct clones {
    const struct arguments *arguments;
    const char *folder;
    bool keep_identity;
    struct clone *one;
    struct crowd_member *members;
    unsigned count;
    const struct crowd *crowd;
};

/* ---- what each has of its own ---- */

/* {name} and {n} are the clone's; malloc'd. */
static int expand(const struct clone *clone, const char *template, char **ret_text, struct err *err)
{
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    if (!to)
        return err_set(err, -ENOMEM, "no memory");
    for (const char *at = template; *at;) {
        if (!strncmp(at, "{name}", 6)) {
            fputs(clone->name, to);
            at += 6;
        } else if (!strncmp(at, "{n}", 3)) {
            fprintf(to, "%u", clone->number);
            at += 3;
        } else {
            fputc(*at++, to);
        }
    }
    if (fclose(to) != 0) {
        free(text);
        return err_set(err, -ENOMEM, "no memory");
    }
    *ret_text = text;
    return 0;
}

/* The option's value for this clone, or NULL without the option. */
static int own_value(const struct clone *clone, const char *option, char **ret_text,
                     struct err *err)
{
    const char *template = arguments_value(clone->all->arguments, option);
    *ret_text = NULL;
    if (!template)
        return 0;
    if (clone->all->count > 1 && !strstr(template, "{n}") && !strstr(template, "{name}"))
        return err_set(err, -EINVAL,
                       "--%s '%.200s' would be the same for all %u clones; put {name} or {n} into "
                       "it",
                       option, template, clone->all->count);
    return expand(clone, template, ret_text, err);
}

/* Its sockets lie where it is told, or beside those of the first one. */
static int set_vsock(struct guest_conf *conf, const struct clone *clone, struct err *err)
{
    _cleanup_free_ char *text = NULL, *path = NULL;
    int r = own_value(clone, "vsock", &text, err);
    if (r < 0 || text || !conf->vsock.path)
        return r < 0 ? r : restore_set_vsock(conf, text, err);
    if (asprintf(&path, "%s.%s", conf->vsock.path, clone->name) < 0)
        return err_set(err, -ENOMEM, "no memory");
    if (strlen(path) > GUEST_VSOCK_PATH_MAX)
        return err_set(err, -EINVAL,
                       "vsock path '%.128s' is longer than %d bytes, which is all that a socket's "
                       "address has room for; give a shorter one: --vsock '/tmp/{name}.vsock'",
                       path, GUEST_VSOCK_PATH_MAX);
    return plan_replace(&conf->vsock.path, path, err);
}

static int set_tap(struct guest_nic *nic, const struct clone *clone, unsigned which,
                   struct err *err)
{
    const struct arguments *arguments = clone->all->arguments;
    _cleanup_free_ char *name = NULL;
    const char *template = NULL;
    for (unsigned i = 0, seen = 0; i < arguments->given_count; i++)
        if (!strcmp(arguments->given[i].row->name, "tap") && seen++ == which)
            template = arguments->given[i].value;
    if (!template)
        return err_set(err, -EINVAL,
                       "a card of the guest is on tap '%s', which one guest can have; say where "
                       "each clone's is: --tap 'tap{n}'",
                       nic->tap);
    int r = expand(clone, template, &name, err);
    if (r < 0)
        return r;
    if (clone->all->count > 1 && !strcmp(name, template))
        return err_set(err, -EINVAL,
                       "--tap '%.64s' would be the same for all %u clones; put {name} or {n} into "
                       "it",
                       template, clone->all->count);
    return guest_nic_set_tap(nic, name, err);
}

/* "8080-8099:80": the first clone gets the first port. */
static int own_forward(const struct clone *clone, const char *text, char **ret_text,
                       struct err *err)
{
    const char *colon = strrchr(text, ':');
    const char *dash = colon ? memchr(text, '-', (size_t)(colon - text)) : NULL;
    unsigned first, last;
    int used = 0;
    if (!dash) {
        if (clone->all->count > 1)
            return err_set(err, -EINVAL,
                           "port '%.64s' can lead to one clone only; give a port for each, as in "
                           "8080-%u:80",
                           text, 8079 + clone->all->count);
        *ret_text = strdup(text);
        return *ret_text ? 0 : err_set(err, -ENOMEM, "no memory");
    }
    const char *start = dash;
    while (start > text && start[-1] >= '0' && start[-1] <= '9')
        start--;
    if (sscanf(start, "%5u-%5u%n", &first, &last, &used) != 2 || start + used != colon ||
        first > last || last > 65535)
        return err_set(err, -EINVAL, "'%.64s' is no range of ports, as in 8080-8099:80", text);
    if (last - first + 1 < clone->all->count)
        return err_set(err, -EINVAL, "'%.64s' are %u ports, for %u clones", text, last - first + 1,
                       clone->all->count);
    if (asprintf(ret_text, "%.*s%u%s", (int)(start - text), text, first + clone->number - 1,
                 colon) < 0)
        return err_set(err, -ENOMEM, "no memory");
    return 0;
}

/* Those of the first one are its own. */
static int set_forwards(struct guest_conf *conf, const struct clone *clone, struct err *err)
{
    const struct arguments *arguments = clone->all->arguments;
    int r = 0;
    for (unsigned i = 0; i < conf->nic_count; i++)
        conf->nics[i].forward_count = 0;
    for (unsigned i = 0; r >= 0 && i < arguments->given_count; i++) {
        _cleanup_free_ char *text = NULL;
        if (strcmp(arguments->given[i].row->name, "publish") != 0)
            continue;
        if (conf->nic_count == 0)
            return err_set(err, -EINVAL, "the guest has no network; leave --publish out");
        r = own_forward(clone, arguments->given[i].value, &text, err);
        if (r >= 0)
            r = guest_conf_add_forward(conf, text, err);
    }
    return r;
}

static unsigned taps_given(const struct arguments *arguments)
{
    unsigned count = 0;
    for (unsigned i = 0; i < arguments->given_count; i++)
        count += !strcmp(arguments->given[i].row->name, "tap");
    return count;
}

static int set_cards(struct plan *plan, const struct clone *clone, struct err *err)
{
    struct guest_conf *conf = &plan->conf;
    unsigned taps = 0;
    int r = set_forwards(conf, clone, err);
    for (unsigned i = 0; r >= 0 && i < conf->nic_count; i++) {
        struct guest_nic *nic = &conf->nics[i];
        bool shared = nic->net == GUEST_NET_TAP;
        if (shared)
            r = set_tap(nic, clone, taps++, err);
        if (clone->all->keep_identity)
            continue;
        nic->unplugged = shared;
        plan->relay.plug |= shared ? 1u << i : 0;
    }
    if (r >= 0 && taps_given(clone->all->arguments) > taps)
        r = err_set(err, -EINVAL, "the guest has %u cards on taps; leave the other --tap out",
                    taps);
    return r;
}

/* ---- who it is ---- */

/* The time is put in when it is said. */
static int make_identity(struct plan *plan, struct clone *clone, struct err *err)
{
    _Static_assert((int)AGENT_CARDS_MAX == (int)GUEST_NICS_MAX, "all cards have a place");
    struct guest_conf *conf = &plan->conf;
    bool ssh = !arguments_flag(clone->all->arguments, "keep-ssh-keys");
    if (!plan->agent)
        return err_set(err, -EINVAL,
                       "the guest has no agent that could give it an identity of its own; with "
                       "--keep-identity it stays what it was");
    clone->identity = (struct agent_message){
        .type = AGENT_IDENTITY,
        .identity = {.flags = AGENT_IDENTITY_MACHINE_ID | (ssh ? AGENT_IDENTITY_SSH_KEYS : 0),
                     .time = 1,
                     .card_count = conf->nic_count,
                     .hostname = clone->name}};
    if (getrandom(clone->identity.identity.seed, AGENT_SEED_SIZE, 0) != AGENT_SEED_SIZE)
        return err_errno(err, errno, "random bytes");
    for (unsigned i = 0; i < conf->nic_count; i++) {
        struct agent_card *card = &clone->identity.identity.cards[i];
        memcpy(card->from, conf->nics[i].mac, sizeof card->from);
        guest_nic_mac(clone->name, i, conf->nics[i].mac);
        memcpy(card->to, conf->nics[i].mac, sizeof card->to);
        card->renew = conf->nics[i].net == GUEST_NET_TAP;
    }
    plan->relay.identity = &clone->identity;
    return 0;
}

static int adapt(struct plan *plan, struct err *err)
{
    struct clone *clone = plan->context;
    plan->conf.on_reset = GUEST_ON_RESET_EXIT; /* unless --on-reset says otherwise */
    int r = plan_set_options(plan, (const char *const[]){"name", "vsock", NULL}, err);
    if (r >= 0)
        r = plan_replace(&plan->conf.name, clone->name, err);
    if (r >= 0)
        r = set_vsock(&plan->conf, clone, err);
    if (r >= 0)
        r = own_value(clone, "control", &plan->control, err);
    if (r >= 0)
        r = set_cards(plan, clone, err);
    if (r >= 0 && !clone->all->keep_identity)
        r = make_identity(plan, clone, err);
    return r;
}

static int make(struct plan *plan, struct err *err)
{
    struct clone *clone = plan->context;
    plan->relay.report = clone->report;
    plan->relay.deaf = true;
    int r = restore_make(plan, clone->all->folder, adapt, err);
    plan->conf.restore.verify = GUEST_VERIFY_NEVER; /* the guard does */
    return r;
}

/* ---- the guard: holds the snapshot against its checksums, once for all ---- */

static int wait_for_verdict(struct machine *machine, struct err *err)
{
    struct control_message event;
    int r = 0;
    while (r == 0) {
        poll(&(struct pollfd){.fd = machine->control, .events = POLLIN}, 1, -1);
        r = machine_event(machine, &event, err);
    }
    if (r == 1)
        r = event.type == CONTROL_ERROR ? err_set(err, -EBADMSG, "%s", event.text)
                                        : err_set(err, -EPROTO, "lodge-vmm said something else");
    int status = machine_end(machine);
    if (r == -EPIPE && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
        return err_set(err, -EIO, "lodge-vmm ended");
    return r == -EPIPE ? 0 : r;
}

static int read_shape(const char *folder, struct guest_conf *ret_conf, struct err *err)
{
    struct snapshot_about about;
    struct guest_conf whole;
    guest_conf_init(&whole);
    int r = folder_read(folder, &about, err);
    if (r < 0)
        return r;
    r = guest_conf_read_json(&whole, about.definition, strlen(about.definition), folder, err);
    ret_conf->memory = whole.memory;
    ret_conf->cpus = whole.cpus;
    ret_conf->engine = GUEST_ENGINE_SOFT; /* nothing will run */
    snapshot_about_free(&about);
    guest_conf_free(&whole);
    return r;
}

static int verify(const char *folder, struct err *err)
{
    struct guest_conf conf;
    struct machine machine;
    char program[4096];
    guest_conf_init(&conf);
    conf.restore.verify = GUEST_VERIFY_ONLY;
    int r = read_shape(folder, &conf, err);
    if (r >= 0)
        r = folder_open_chain(folder, &conf.restore, err);
    if (r >= 0)
        r = machine_find_program("lodge-vmm", "LODGE_VMM", program, sizeof program, err);
    if (r >= 0)
        r = machine_start(&machine, program, &conf, err);
    if (r >= 0)
        r = wait_for_verdict(&machine, err);
    guest_conf_free(&conf);
    return r < 0 ? err_prefix(err, r, "snapshot '%s'", folder) : 0;
}

static int run_guard(const struct clones *clones, int others_ready)
{
    struct err err = {0};
    if (others_ready >= 0) {
        struct pollfd wait = {.fd = others_ready, .events = POLLIN};
        poll(&wait, 1, GUARD_WAIT_MS);
        setpriority(PRIO_PROCESS, 0, GUARD_NICE);
    }
    if (verify(clones->folder, &err) >= 0)
        return 0;
    fprintf(stderr, "lodge: %s\n", err.text);
    return RELAY_FAILED;
}

static int run_one(struct crowd_member *member, int report, void *opaque)
{
    struct clones *clones = opaque;
    if (member == &clones->members[clones->count])
        return run_guard(clones, clones->crowd->others_ready);
    struct clone *clone = &clones->one[member - clones->members];
    clone->report = report;
    return plan_run(clones->arguments, make, clone);
}

/* ---- which there are ---- */

static int parse_count(const char *text, unsigned *ret_count, struct err *err)
{
    char *end;
    unsigned long count = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || count < 1 || count >= CROWD_MAX)
        return err_set(err, -EINVAL, "--count is 1 to %d, not '%.64s'", CROWD_MAX - 1, text);
    *ret_count = (unsigned)count;
    return 0;
}

/* "web-" of "snapshots/web.monday/": what is counted is called after the folder. */
static int default_prefix(const char *folder, char **ret_prefix, struct err *err)
{
    size_t end = strlen(folder);
    while (end > 0 && folder[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && folder[start - 1] != '/')
        start--;
    size_t length = strcspn(folder + start, "./");
    if (asprintf(ret_prefix, "%.*s-", (int)min(length, end - start), folder + start) < 0)
        return err_set(err, -ENOMEM, "no memory");
    return 0;
}

static int name_all(struct clones *clones, struct err *err)
{
    const struct arguments *arguments = clones->arguments;
    const char *given = arguments_value(arguments, "name");
    _cleanup_free_ char *prefix = given ? strdup(given) : NULL;
    int r = given ? 0 : default_prefix(clones->folder, &prefix, err);
    if (r >= 0 && !prefix)
        r = err_set(err, -ENOMEM, "no memory");
    for (unsigned i = 0; r >= 0 && i < clones->count; i++) {
        struct clone *clone = &clones->one[i];
        *clone = (struct clone){.all = clones, .number = i + 1};
        int n = arguments->word_count > 1 ? asprintf(&clone->name, "%s", arguments->words[1 + i])
                                          : asprintf(&clone->name, "%s%u", prefix, clone->number);
        if (n < 0)
            clone->name = NULL;
        clones->members[i].name = clone->name;
        if (!clone->name)
            r = err_set(err, -ENOMEM, "no memory");
        else if (!image_name_valid(clone->name) || strlen(clone->name) > AGENT_HOSTNAME_MAX)
            r = err_set(err, -EINVAL,
                        "'%.80s' is no name for a guest; use letters, digits, '.', '_' and '-', at "
                        "most %d",
                        clone->name, AGENT_HOSTNAME_MAX);
        for (unsigned k = 0; r >= 0 && k < i; k++)
            if (!strcmp(clones->one[k].name, clone->name))
                r = err_set(err, -EINVAL, "two clones cannot both be called '%s'", clone->name);
    }
    return r;
}

static int count_all(struct clones *clones, struct err *err)
{
    const struct arguments *arguments = clones->arguments;
    const char *count = arguments_value(arguments, "count");
    if (arguments->word_count < 1)
        return err_set(err, -EINVAL, "clone takes the folder of a snapshot, and names");
    clones->folder = arguments->words[0];
    if (arguments->word_count > 1 && (count || arguments_value(arguments, "name")))
        return err_set(err, -EINVAL, "names are given, or counted with --count and --name");
    clones->count = arguments->word_count > 1 ? arguments->word_count - 1 : 1;
    int r = count ? parse_count(count, &clones->count, err) : 0;
    if (r < 0)
        return r;
    clones->one = calloc(clones->count, sizeof *clones->one);
    clones->members = calloc(clones->count + 1, sizeof *clones->members);
    return clones->one && clones->members ? 0 : err_set(err, -ENOMEM, "no memory");
}

static int parse_format(const char *format, bool *ret_json, struct err *err)
{
    *ret_json = format && !strcmp(format, "json");
    return !format || *ret_json || !strcmp(format, "text")
               ? 0
               : err_set(err, -EINVAL, "--format is text or json, not '%.64s'", format);
}

/* What one of them would be refused for, all would: it is said once, and before any runs. */
static int try_one(struct clones *clones, struct err *err)
{
    struct snapshot_about about;
    struct plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return err_set(err, -ENOMEM, "no memory");
    plan->arguments = clones->arguments;
    plan->context = &clones->one[0];
    guest_conf_init(&plan->conf);
    int r = folder_read(clones->folder, &about, err);
    if (r >= 0) {
        r = guest_conf_read_json(&plan->conf, about.definition, strlen(about.definition),
                                 clones->folder, err);
        plan->agent = about.agent;
        snapshot_about_free(&about);
    }
    if (r >= 0)
        r = adapt(plan, err);
    guest_conf_free(&plan->conf);
    free(plan->control);
    free(plan);
    return r;
}

static int clone_run(const struct arguments *arguments)
{
    struct err err = {0};
    struct clones clones = {.arguments = arguments,
                            .keep_identity = arguments_flag(arguments, "keep-identity")};
    struct crowd crowd = {.run = run_one,
                          .opaque = &clones,
                          .says = !arguments->command,
                          .mute = !arguments->command};
    int status = RELAY_FAILED;
    int r = parse_format(arguments_value(arguments, "format"), &crowd.json, &err);
    if (r >= 0)
        r = count_all(&clones, &err);
    if (r >= 0)
        r = name_all(&clones, &err);
    if (r >= 0)
        r = try_one(&clones, &err);
    if (r >= 0) {
        crowd.says |= crowd.json;
        crowd.mute &= !arguments_flag(arguments, "verbose");
        clones.members[clones.count].name = "verify";
        clones.crowd = &crowd;
        crowd.members = clones.members;
        crowd.count = clones.count + 1;
        crowd.guarded = true;
        crowd.guard_first = arguments_flag(arguments, "verify");
        status = crowd_run(&crowd);
    } else {
        fprintf(stderr, "lodge: %s\n", err.text);
    }
    for (unsigned i = 0; clones.one && i < clones.count; i++)
        free(clones.one[i].name);
    free(clones.one);
    free(clones.members);
    return status;
}

static const struct option_row options[] = {
    {"count", 'n', "N", "how many, where they are not named: 1 to 256 (1)"},
    {"name", 0, "PREFIX",
     "what those are called, with a number behind it (the folder's name and '-')"},
    {"format", 0, "FORMAT", "what is printed: text, or json, an object a line (text)"},
    {"vsock", 0, "PATH", "where each one's sockets lie (those of the snapshot, with .NAME behind)"},
    {"tap", 0, "NAME", "the tap of each one's first card on a tap; again for the next card"},
    {"publish", 'p', "[ADDRESS:]FIRST-LAST:GUEST[/udp]",
     "ports of this machine, one for each in their order; may be repeated"},
    {"control", 0, "PATH", "Unix sockets for programs that steer them (docs/cli.md)"},
    {"keep-ssh-keys", 0, NULL, "the host keys of sshd stay those of the first guest"},
    {"keep-identity", 0, NULL,
     "all is as it was: for guests without an agent, and for experiments"},
    {"engine", 0, "ENGINE", "auto, kvm or soft"},
    {"translate", 0, "WHAT", "what the software engine translates: hot, never or always"},
    {"code-cache", 0, "SIZE", "its room for translated code, 1M to 512M"},
    {"verify", 0, NULL,
     "hold all memory against its checksums before a guest runs; else that is done\n"
     "                               meanwhile, once for all"},
    {"on-reset", 0, "WHAT", "when a guest resets its machine: exit or reboot (exit)"},
    {"env", 'e', "NAME=VALUE", "environment of the command; may be repeated"},
    {"workdir", 'w', "FOLDER", "the folder the command starts in"},
    {"agent-timeout", 0, "SECONDS", "how long the guest's agent may take to answer (300; 0: ever)"},
    {"verbose", 'v', NULL, "show the engine, and the guests' consoles"},
    {0},
};

const struct verb verb_clone = {
    .name = "clone",
    .summary = "Start many guests from one snapshot, each its own",
    .usage = "FOLDER [NAME...] [-- COMMAND ARG...]",
    .details =
        "The guests share the snapshot's memory as far as they do not write to it. Each gets a\n"
        "host name, MACs, a machine ID, ssh host keys and random numbers of its own before it\n"
        "is ready, and is found by its name (lodge pause, snapshot). They run until they end,\n"
        "or until this does.\n\n"
        "COMMAND runs in each, its lines come with the guest's name before them. PATH and NAME\n"
        "of options may have {name} and {n}, the clone's name and number. Exit status: the\n"
        "worst of all; 125 when a guest failed.",
    .example = "lodge clone web.snapshot --count 20 --name web- -- hostname",
    .options = options,
    .words_max = CROWD_MAX,
    .takes_command = true,
    .mistake_status = RELAY_FAILED,
    .run = clone_run,
};
