/*
 * lodge pause, resume, snapshot: what is done to a guest that runs under a name.
 */
#include "base/bytes.h"
#include "base/own.h"
#include "endpoint.h"
#include "folder.h"
#include "keep.h"
#include "verbs.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static int fail(const struct err *err)
{
    fprintf(stderr, "lodge: %s\n", err->text);
    return STATUS_FAILED;
}

/* ---- pause, resume ---- */

enum { SPACE_TRIES = 8, SPACE_MS = 50 };

/* Where there is no space for it still, a guest that was told to go on stands. */
static int check_goes_on(int fd, const char *name, struct err *err)
{
    struct control_message reply;
    const struct control_message ask = {.type = CONTROL_STATS_ASK};
    for (int tries = 0; tries < SPACE_TRIES; tries++) {
        int r = endpoint_ask(fd, &ask, NULL, 0, &reply, err);
        if (r < 0)
            return r;
        if (reply.type != CONTROL_STATS || reply.state != CONTROL_STATE_FULL)
            return 0;
        nanosleep(&(struct timespec){.tv_nsec = SPACE_MS * 1000000}, NULL);
    }
    return err_set(err, -ENOSPC,
                   "guest '%s' waits for space for its disk '%s'; it goes on by itself when there "
                   "is some",
                   name, reply.text);
}

static int ask_simple(const struct arguments *arguments, enum control_type type)
{
    struct err err = {0};
    struct control_message reply;
    if (arguments->word_count != 1) {
        fprintf(stderr, "lodge: %s takes the name of a guest\n", arguments->verb->name);
        return STATUS_MISTAKE;
    }
    _cleanup_fd_ int fd = endpoint_connect(arguments->words[0], &err);
    if (fd < 0 ||
        endpoint_ask(fd, &(struct control_message){.type = type}, NULL, 0, &reply, &err) < 0 ||
        (type == CONTROL_RESUME && check_goes_on(fd, arguments->words[0], &err) < 0))
        return fail(&err);
    return 0;
}

static int pause_guest(const struct arguments *arguments)
{
    return ask_simple(arguments, CONTROL_PAUSE);
}

static int resume_guest(const struct arguments *arguments)
{
    return ask_simple(arguments, CONTROL_RESUME);
}

const struct verb verb_pause = {
    .name = "pause",
    .summary = "Stop a guest where it is",
    .usage = "GUEST",
    .details =
        "The guest's processors and clocks stand still until lodge resume; it does not notice.",
    .example = "lodge pause web",
    .words_max = 1,
    .mistake_status = STATUS_MISTAKE,
    .run = pause_guest,
};

const struct verb verb_resume = {
    .name = "resume",
    .summary = "Let a paused guest go on",
    .usage = "GUEST",
    .example = "lodge resume web",
    .words_max = 1,
    .mistake_status = STATUS_MISTAKE,
    .run = resume_guest,
};

/* ---- snapshot ---- */

struct taking {
    const char *name, *path, *base;
    bool stop;
    int guest, folder; /* descriptors */
    int files[CONTROL_FDS_MAX];
    struct snapshot_about about;
};

static volatile sig_atomic_t interrupted; /* the signal */

static void note(int number)
{
    interrupted = number;
}

/* They end what waits; a VMM that we leave lets the guest go on as if we had never come. */
static void watch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        struct sigaction before;
        sigaction(numbers[i], NULL, &before);
        if (before.sa_handler != SIG_IGN)
            sigaction(numbers[i], &(struct sigaction){.sa_handler = note}, NULL);
    }
}

/* The folder of the base as seen from the new one, so that both may move together. */
static int link_base(struct taking *taking, uint8_t ret_id[CONTROL_ID_SIZE], struct err *err)
{
    struct snapshot_about base;
    char here[PATH_MAX], there[PATH_MAX];
    int r = folder_read(taking->base, &base, err);
    if (r < 0)
        return r;
    memcpy(ret_id, base.id, sizeof base.id);
    snapshot_about_free(&base);
    if (!realpath(taking->path, here) || !realpath(taking->base, there))
        return err_errno(err, errno, "'%s'", taking->base);
    char *slash = strrchr(here, '/'), *other = strrchr(there, '/');
    bool beside = (size_t)(slash - here) == (size_t)(other - there) &&
                  !strncmp(here, there, (size_t)(slash - here));
    r = beside ? asprintf(&taking->about.parent, "../%s", other + 1)
               : asprintf(&taking->about.parent, "%s", there);
    return r < 0 ? err_set(err, -ENOMEM, "no memory") : 0;
}

static int write_machine(struct taking *taking, struct err *err)
{
    struct control_message reply, request = {.type = CONTROL_SAVE, .changes = taking->base != NULL};
    if (getrandom(request.id, sizeof request.id, 0) != sizeof request.id)
        return err_errno(err, errno, "random bytes");
    int r = taking->base ? link_base(taking, request.parent, err) : 0;
    if (r < 0)
        return r;
    memcpy(taking->about.id, request.id, sizeof request.id);
    return endpoint_ask(taking->guest, &request, taking->files, CONTROL_FDS_MAX, &reply, err);
}

/* There is no way back behind it: an answer is waited for, whatever comes. */
static int release(struct taking *taking, struct keep *keep, struct err *err)
{
    const struct control_message request = {.type = CONTROL_RELEASE};
    struct control_message reply = {0};
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    int r = endpoint_ask(taking->guest, &request, NULL, 0, &reply, err);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (reply.type == CONTROL_FAILED) /* the guest was reset, and went on as it was */
        keep_undo(keep);
    return r;
}

static int write_held(struct taking *taking, struct keep *keep, struct err *err)
{
    const struct control_message quit = {.type = CONTROL_QUIT};
    struct control_message reply;
    int r = keep_disks(keep, err);
    if (r < 0)
        return r;
    r = write_machine(taking, err);
    if (r < 0) {
        keep_undo(keep);
        return r;
    }
    if (!taking->stop)
        r = release(taking, keep, err);
    if (r >= 0)
        r = keep_done(keep, err);
    if (r >= 0)
        r = folder_finish(taking->path, taking->folder, taking->files, &taking->about, err);
    if (r >= 0 && taking->stop)
        endpoint_ask(taking->guest, &quit, NULL, 0, &reply, NULL);
    return r;
}

/* It stands until we have let it go, or are gone. */
static int save(struct taking *taking, struct err *err)
{
    const struct control_message hold = {.type = CONTROL_HOLD};
    struct control_message reply;
    struct keep keep = {.path = taking->path,
                        .folder = taking->folder,
                        .guest = taking->guest,
                        .stop = taking->stop,
                        .interrupted = &interrupted,
                        .about = &taking->about};
    int r = endpoint_ask(taking->guest, &hold, NULL, 0, &reply, err);
    if (r >= 0) {
        r = write_held(taking, &keep, err);
        keep_free(&keep);
    }
    return r < 0 ? err_prefix(err, r, "guest '%s'", taking->name) : 0;
}

static int read_guest(struct taking *taking, struct err *err)
{
    _cleanup_free_ char *text = NULL;
    int r = endpoint_definition(taking->name, &text, err);
    return r < 0 ? r : folder_described(text, &taking->about, err);
}

static int take(struct taking *taking, struct err *err)
{
    taking->guest = endpoint_connect(taking->name, err);
    int r = taking->guest < 0 ? taking->guest : read_guest(taking, err);
    if (r >= 0)
        r = folder_make(taking->path, &taking->folder, taking->files, err);
    if (r < 0)
        return r;
    r = save(taking, err);
    if (r < 0)
        folder_remove(taking->path, taking->folder);
    return r;
}

static int snapshot(const struct arguments *arguments)
{
    struct err err = {0};
    struct taking taking = {.guest = -1, .folder = -1, .files = {-1, -1}};
    if (arguments->word_count != 2) {
        fputs("lodge: snapshot takes the name of a guest and a folder to make\n", stderr);
        return STATUS_MISTAKE;
    }
    taking.name = arguments->words[0];
    taking.path = arguments->words[1];
    taking.base = arguments_value(arguments, "base");
    taking.stop = arguments_flag(arguments, "stop");
    watch_signals();
    int r = take(&taking, &err);
    snapshot_about_free(&taking.about);
    own_close(&taking.guest);
    own_close(&taking.folder);
    for (unsigned i = 0; i < CONTROL_FDS_MAX; i++)
        own_close(&taking.files[i]);
    if (r == -EINTR && interrupted)
        return 128 + interrupted;
    return r < 0 ? fail(&err) : 0;
}

static const struct option_row snapshot_options[] = {
    {"base", 'b', "FOLDER",
     "write only what has changed since that snapshot, which must be the\n"
     "                               last one of this guest, or the one it came from"},
    {"stop", 's', NULL,
     "end the guest with it; disks that outlive it are named only, and whoever\n"
     "                               writes to them later spoils the snapshot"},
    {0},
};

const struct verb verb_snapshot = {
    .name = "snapshot",
    .summary = "Write a running guest to a folder",
    .usage = "GUEST FOLDER",
    .details =
        "The guest stands while it is written, and goes on. lodge restore brings it back as\n"
        "often as you like. Its disks are kept as they are now, and it goes on in the files that\n"
        "it was started with: they are cloned where the file system can, a qcow2 becomes an\n"
        "overlay of what it was, anything else is copied. See docs/snapshot.md.",
    .example = "lodge snapshot web web.snapshot",
    .options = snapshot_options,
    .words_max = 2,
    .mistake_status = STATUS_MISTAKE,
    .run = snapshot,
};
