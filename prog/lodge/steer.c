#include "steer.h"

#include "base/bytes.h"
#include "base/own.h"
#include "listener.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <jansson.h>

enum { LINE_MAX_BYTES = 4096 };

struct client {
    int fd;                  /* -1 = nobody */
    const struct row *asked; /* whose answer has to come from the VMM; a client that left meanwhile
                                keeps its place in the line */
    uint64_t turn;           /* where asked: the lower, the earlier */
    bool skips;              /* what is left of a line that is too long */
    size_t length;
    char line[LINE_MAX_BYTES];
};

struct steer {
    struct listener listener;
    bool can_reset;
    unsigned nic_count;
    uint64_t turns;
    struct client clients[STEER_CLIENTS_MAX];
};

static void own_json(json_t **json)
{
    json_decref(*json);
}
#define _cleanup_json_ _cleanup_(own_json)

/* --- the verbs --- */

static int read_true(const struct steer *steer, const json_t *argument,
                     struct control_message *request, struct err *err)
{
    return json_is_true(argument) ? 0 : err_set(err, -EINVAL, "takes true");
}

static int read_reset(const struct steer *steer, const json_t *argument,
                      struct control_message *request, struct err *err)
{
    if (!steer->can_reset)
        return err_set(err, -EPERM, "only with --on-reset reboot and without a command");
    return read_true(steer, argument, request, err);
}

static int read_size(const struct steer *steer, const json_t *argument,
                     struct control_message *request, struct err *err)
{
    if (json_is_integer(argument) && json_integer_value(argument) >= 0) {
        request->bytes = (uint64_t)json_integer_value(argument);
        return 0;
    }
    if (json_is_string(argument))
        return guest_parse_size(json_string_value(argument), &request->bytes, err);
    return err_set(err, -EINVAL, "takes bytes, or a size like \"256M\"");
}

static int read_link(const struct steer *steer, const json_t *argument,
                     struct control_message *request, struct err *err)
{
    const json_t *nic = json_object_get(argument, "nic"), *up = json_object_get(argument, "up");
    if (json_object_size(argument) != 2 || !json_is_integer(nic) || !json_is_boolean(up))
        return err_set(err, -EINVAL, "takes {\"nic\": N, \"up\": true or false}");
    if (json_integer_value(nic) < 0 || json_integer_value(nic) >= steer->nic_count)
        return err_set(err, -ENODEV, "the guest has %u network cards, from 0 on", steer->nic_count);
    request->port = (uint32_t)json_integer_value(nic);
    request->open = json_is_true(up);
    return 0;
}

/* virtio 1.2, 5.5.6.4 */
static const char *const stat_names[] = {
    "swapped_in", "swapped_out", "major_faults", "minor_faults",     "free",
    "total",      "available",   "caches",       "huge_allocations", "huge_failures",
};

static json_t *write_balloon(const struct control_message *event)
{
    const struct control_balloon *balloon = &event->balloon;
    if (!balloon->present)
        return NULL;
    json_t *guest = json_object();
    for (unsigned i = 0; i < ARRAY_LEN(stat_names); i++)
        if (balloon->known >> i & 1)
            json_object_set_new(guest, stat_names[i], json_integer((json_int_t)balloon->stats[i]));
    return json_pack("{s:b, s:I, s:I, s:I, s:I, s:o}", "driver", balloon->driver, "target",
                     (json_int_t)balloon->target, "actual", (json_int_t)balloon->actual, "reported",
                     (json_int_t)balloon->reported, "age_ms", (json_int_t)balloon->age_ms, "guest",
                     guest);
}

static json_t *write_stats(const struct control_message *event)
{
    static const char *const states[CONTROL_STATE_MAX] = {
        [CONTROL_STATE_RUNS] = "runs",
        [CONTROL_STATE_PAUSED] = "paused",
        [CONTROL_STATE_FULL] = "waits for space",
    };
    json_t *stats =
        json_pack("{s:I, s:I, s:I, s:s}", "instructions", (json_int_t)event->instructions,
                  "resident", (json_int_t)event->resident, "guest_resident",
                  (json_int_t)event->guest_resident, "state", states[event->state]);
    if (*event->text)
        json_object_set_new(stats, "full_disk", json_string(event->text));
    return stats;
}

static json_t *write_nics(const struct control_message *event)
{
    json_t *nics = json_array();
    for (unsigned i = 0; i < event->nic_count; i++) {
        const struct control_nic *nic = &event->nics[i];
        json_array_append_new(
            nics, json_pack("{s:b, s:I, s:I, s:I, s:I, s:I, s:I}", "up", nic->up, "in_frames",
                            (json_int_t)nic->in_frames, "in_bytes", (json_int_t)nic->in_bytes,
                            "in_dropped", (json_int_t)nic->in_dropped, "out_frames",
                            (json_int_t)nic->out_frames, "out_bytes", (json_int_t)nic->out_bytes,
                            "out_dropped", (json_int_t)nic->out_dropped));
    }
    return nics;
}

static const struct row {
    const char *name;
    enum control_type request;
    int (*read)(const struct steer *steer, const json_t *argument, struct control_message *request,
                struct err *err);
    enum control_type answer; /* where `write` is there; else the answer is true, at once */
    json_t *(*write)(const struct control_message *event); /* NULL: the guest has no balloon */
} rows[] = {
    {"balloon", CONTROL_BALLOON_TARGET, read_size, CONTROL_BALLOON, write_balloon},
    {"memory", CONTROL_BALLOON_ASK, read_true, CONTROL_BALLOON, write_balloon},
    {"stats", CONTROL_STATS_ASK, read_true, CONTROL_STATS, write_stats},
    {"power_button", CONTROL_POWER_BUTTON, read_true, 0, NULL},
    {"reset", CONTROL_RESET_NOW, read_reset, 0, NULL},
    {"pause", CONTROL_PAUSE, read_true, 0, NULL},
    {"resume", CONTROL_RESUME, read_true, 0, NULL},
    {"new_generation", CONTROL_NEW_GENERATION, read_true, 0, NULL},
    {"nics", CONTROL_NICS_ASK, read_true, CONTROL_NICS, write_nics},
    {"link", CONTROL_LINK, read_link, 0, NULL},
};

/* --- clients --- */

static void drop(struct client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    client->length = 0;
    client->skips = false;
}

/* Takes `answer` over. */
static void say(struct client *client, json_t *answer)
{
    _cleanup_json_ json_t *mine = answer;
    _cleanup_free_ char *text = mine ? json_dumps(mine, JSON_COMPACT) : NULL;
    if (client->fd < 0)
        return;
    char end = '\n';
    struct iovec parts[] = {{text, text ? strlen(text) : 0}, {&end, 1}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = ARRAY_LEN(parts)};
    ssize_t size = (ssize_t)(parts[0].iov_len + 1);
    if (!text || sendmsg(client->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) != size)
        drop(client);
}

static void say_error(struct client *client, const char *text)
{
    say(client, json_pack("{s:s}", "error", text));
}

static const struct row *find(const char *name, struct err *err)
{
    char names[256] = "";
    for (size_t i = 0, at = 0; i < ARRAY_LEN(rows) && at < sizeof names; i++) {
        if (!strcmp(rows[i].name, name))
            return &rows[i];
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", i ? ", " : "", rows[i].name);
    }
    err_set(err, -EINVAL, "'%.64s' is no verb; there are %s", name, names);
    return NULL;
}

static int ask(struct steer *steer, struct client *client, json_t *object, struct machine *machine,
               struct err *err)
{
    void *only = json_is_object(object) ? json_object_iter(object) : NULL;
    if (!only || json_object_size(object) != 1)
        return err_set(err, -EINVAL, "a request is an object with one verb, {\"memory\": true}");
    const struct row *row = find(json_object_iter_key(only), err);
    if (!row)
        return -EINVAL;
    struct control_message request = {.type = row->request};
    int r = row->read(steer, json_object_iter_value(only), &request, err);
    if (r < 0)
        return err_prefix(err, r, "%s", row->name);
    r = machine_request(machine, &request, err);
    if (r < 0)
        return r;
    if (row->write) {
        client->asked = row;
        client->turn = steer->turns++;
    } else {
        say(client, json_pack("{s:b}", row->name, 1));
    }
    return 0;
}

static void take_line(struct steer *steer, struct client *client, const char *line, size_t length,
                      struct machine *machine)
{
    struct err err = {0};
    json_error_t where;
    _cleanup_json_ json_t *object = json_loadb(line, length, JSON_REJECT_DUPLICATES, &where);
    int r = object ? ask(steer, client, object, machine, &err)
                   : err_set(&err, -EINVAL, "this is no JSON: %s", where.text);
    if (r < 0)
        say_error(client, err.text);
}

static bool blank(const char *line, size_t length)
{
    while (length > 0 && strchr(" \t\r", line[length - 1]) && line[length - 1])
        length--;
    return length == 0;
}

static bool next_line(struct client *client, char line[LINE_MAX_BYTES], size_t *ret_length)
{
    char *end = memchr(client->line, '\n', client->length);
    if (!end)
        return false;
    *ret_length = (size_t)(end - client->line);
    memcpy(line, client->line, *ret_length);
    client->length -= *ret_length + 1;
    memmove(client->line, end + 1, client->length);
    return true;
}

/* All lines that are whole, one answer at a time. */
static void take_lines(struct steer *steer, struct client *client, struct machine *machine)
{
    char line[LINE_MAX_BYTES];
    size_t length;
    while (client->fd >= 0 && !client->asked && next_line(client, line, &length)) {
        if (!client->skips && !blank(line, length))
            take_line(steer, client, line, length, machine);
        client->skips = false;
    }
    if (client->fd < 0 || client->length < sizeof client->line || client->asked)
        return;
    if (!client->skips)
        say_error(client, "this line is too long");
    client->skips = true;
    client->length = 0;
}

static void take_bytes(struct steer *steer, struct client *client, struct machine *machine)
{
    ssize_t n = recv(client->fd, client->line + client->length,
                     sizeof client->line - client->length, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(client);
        return;
    }
    client->length += (size_t)n;
    take_lines(steer, client, machine);
}

static void take_client(struct steer *steer)
{
    int fd = accept4(steer->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    for (unsigned i = 0; fd >= 0 && i < STEER_CLIENTS_MAX; i++) {
        struct client *client = &steer->clients[i];
        if (client->fd >= 0 || client->asked)
            continue;
        client->fd = fd;
        return;
    }
    if (fd >= 0)
        close(fd);
}

void steer_poll(const struct steer *steer, struct pollfd *fds)
{
    for (unsigned i = 0; i < STEER_POLL_MAX; i++)
        fds[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    if (!steer)
        return;
    fds[0].fd = steer->listener.fd;
    for (unsigned i = 0; i < STEER_CLIENTS_MAX; i++)
        if (!steer->clients[i].asked)
            fds[1 + i].fd = steer->clients[i].fd;
}

void steer_step(struct steer *steer, const struct pollfd *fds, struct machine *machine)
{
    if (!steer)
        return;
    for (unsigned i = 0; i < STEER_CLIENTS_MAX; i++)
        if (fds[1 + i].revents && fds[1 + i].fd == steer->clients[i].fd)
            take_bytes(steer, &steer->clients[i], machine);
    if (fds[0].revents)
        take_client(steer);
}

void steer_event(struct steer *steer, const struct control_message *event, struct machine *machine)
{
    struct client *first = NULL;
    for (unsigned i = 0; steer && i < STEER_CLIENTS_MAX; i++) {
        struct client *client = &steer->clients[i];
        if (client->asked && client->asked->answer == event->type &&
            (!first || client->turn < first->turn))
            first = client;
    }
    if (!first)
        return;
    const struct row *row = first->asked;
    first->asked = NULL;
    json_t *answer = row->write(event);
    if (answer)
        say(first, json_pack("{s:o}", row->name, answer));
    else
        say_error(first, "the guest has no balloon");
    take_lines(steer, first, machine);
}

void steer_know(struct steer *steer, bool can_reset, unsigned nic_count)
{
    if (!steer)
        return;
    steer->can_reset = can_reset;
    steer->nic_count = nic_count;
}

/* --- the socket --- */

int steer_new(const char *path, struct steer **ret_steer, struct err *err)
{
    struct steer *steer = calloc(1, sizeof *steer);
    if (!steer)
        return err_set(err, -ENOMEM, "no memory");
    int r = listener_open(&steer->listener, "control socket", path, err);
    if (r < 0) {
        free(steer);
        return r;
    }
    for (unsigned i = 0; i < STEER_CLIENTS_MAX; i++)
        steer->clients[i].fd = -1;
    *ret_steer = steer;
    return 0;
}

void steer_free(struct steer *steer)
{
    if (!steer)
        return;
    for (unsigned i = 0; i < STEER_CLIENTS_MAX; i++)
        drop(&steer->clients[i]);
    listener_close(&steer->listener);
    free(steer);
}
