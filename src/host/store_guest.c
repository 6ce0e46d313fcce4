#include "host/store_private.h"

#include "base/bytes.h"
#include "base/own.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

int store_name_check(const char *name, struct err *err)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strnlen(name, STORE_NAME_MAX + 1);
    if (length < 1 || length > STORE_NAME_MAX || strspn(name, letters) != length ||
        name[0] == '.' || name[0] == '-')
        return err_set(
            err, -EINVAL,
            "'%.80s' is no name: 1 to %d letters, digits, '.', '_' and '-', not first one of "
            "'.' and '-'",
            name, STORE_NAME_MAX);
    return 0;
}

static bool uuid_is_canonical(const char *uuid)
{
    if (strnlen(uuid, STORE_UUID_LENGTH + 1) != STORE_UUID_LENGTH)
        return false;
    for (unsigned i = 0; i < STORE_UUID_LENGTH; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? uuid[i] != '-' : !strchr("0123456789abcdef", uuid[i]))
            return false;
    }
    return true;
}

static int definition_check(const char *definition, struct err *err)
{
    return strnlen(definition, STORE_DEFINITION_MAX + 1) > STORE_DEFINITION_MAX
               ? err_set(err, -E2BIG, "a definition is at most %d bytes", STORE_DEFINITION_MAX)
               : 0;
}

static int policy_check(const struct store_policy *policy, struct err *err)
{
    return (unsigned)policy->restart.mode >= RESTART_MODE_MAX ||
                   policy->restart.tries > RESTART_TRIES_MAX
               ? err_set(err, -EINVAL, "there is no such restart policy")
               : 0;
}

static int guest_check(const struct store_guest *guest, struct err *err)
{
    int r = store_name_check(guest->name, err);
    if (r < 0)
        return r;
    if (!uuid_is_canonical(guest->uuid))
        return err_set(err, -EINVAL, "'%.80s' is no UUID: 36 characters, lower case", guest->uuid);
    size_t kind = strnlen(guest->kind, STORE_KIND_MAX + 1);
    if (kind < 1 || kind > STORE_KIND_MAX)
        return err_set(err, -EINVAL, "'%.80s' is no kind of guest", guest->kind);
    r = definition_check(guest->definition, err);
    return r < 0 ? r : policy_check(&guest->policy, err);
}

static void bind_policy(sqlite3_stmt *statement, int first, const struct store_policy *policy,
                        const char *restart)
{
    store_bind_text(statement, first, restart);
    sqlite3_bind_int(statement, first + 1, policy->autostart);
    sqlite3_bind_int(statement, first + 2, policy->protect);
    sqlite3_bind_int(statement, first + 3, policy->order);
}

/* Borrows the row's texts. A value that no version of ours writes is damage, or the work of others.
 */
static int read_row(struct store *store, sqlite3_stmt *row, struct store_guest *ret_guest,
                    struct err *err)
{
    struct store_guest guest = {
        .name = store_column_text(row, 0),
        .uuid = store_column_text(row, 1),
        .kind = store_column_text(row, 2),
        .definition = store_column_text(row, 3),
        .revision = (uint64_t)sqlite3_column_int64(row, 4),
        .policy = {.autostart = sqlite3_column_int(row, 6) != 0,
                   .protect = sqlite3_column_int(row, 7) != 0,
                   .order = sqlite3_column_int(row, 8)},
        .wanted = sqlite3_column_int(row, 10) != 0,
        .restart_tries = (unsigned)sqlite3_column_int(row, 11),
        .process = {.pid = sqlite3_column_int64(row, 12),
                    .start = (uint64_t)sqlite3_column_int64(row, 13)},
        .created = sqlite3_column_int64(row, 15),
        .since = sqlite3_column_int64(row, 16),
    };
    snprintf(guest.process.boot, sizeof guest.process.boot, "%s", store_column_text(row, 14));
    int r = store_name_check(guest.name, err);
    if (r >= 0)
        r = restart_policy_parse(store_column_text(row, 5), &guest.policy.restart, err);
    if (r < 0)
        return err_prefix(err, -EBADMSG, "'%s' is damaged: guest '%.80s'", store->path, guest.name);
    if (!lifecycle_state_parse(store_column_text(row, 9), &guest.state))
        return err_set(err, -EBADMSG, "'%s' is damaged: guest '%s' is '%.80s'", store->path,
                       guest.name, store_column_text(row, 9));
    *ret_guest = guest;
    return 0;
}

/* The row stays the statement's until store_release(). */
static int find(struct store *store, const char *name, sqlite3_stmt **ret_statement,
                struct store_guest *ret_guest, struct err *err)
{
    sqlite3_stmt *statement;
    int r = store_prepare(store, STORE_GUEST_FIND, &statement, err);
    if (r < 0)
        return r;
    store_bind_text(statement, 1, name);
    r = store_step(store, statement, err);
    if (r == 0)
        r = err_set(err, -ENOENT, "there is no guest '%.80s'", name);
    if (r > 0)
        r = read_row(store, statement, ret_guest, err);
    if (r < 0) {
        store_release(&statement);
        return r;
    }
    *ret_statement = statement;
    return 0;
}

static const char *put(char **at, const char *text)
{
    const char *copy = *at;
    *at = stpcpy(*at, text) + 1;
    return copy;
}

/* One block: the struct, then its texts. */
static struct store_guest *copy_guest(const struct store_guest *guest)
{
    size_t texts = strlen(guest->name) + strlen(guest->uuid) + strlen(guest->kind) +
                   strlen(guest->definition) + 4;
    struct store_guest *copy = malloc(sizeof *copy + texts);
    if (!copy)
        return NULL;
    *copy = *guest;
    char *at = (char *)(copy + 1);
    copy->name = put(&at, guest->name);
    copy->uuid = put(&at, guest->uuid);
    copy->kind = put(&at, guest->kind);
    copy->definition = put(&at, guest->definition);
    return copy;
}

int store_guest_find(struct store *store, const char *name, struct store_guest **ret_guest,
                     struct err *err)
{
    _cleanup_(store_release)
    sqlite3_stmt *statement = NULL;
    struct store_guest guest;
    int r = find(store, name, &statement, &guest, err);
    if (r < 0)
        return r;
    struct store_guest *copy = copy_guest(&guest);
    if (!copy)
        return err_errno(err, ENOMEM, "guest '%s'", name);
    *ret_guest = copy;
    return 0;
}

void store_guest_free(struct store_guest *guest)
{
    free(guest);
}

int store_guest_each(struct store *store,
                     int (*each)(void *opaque, const struct store_guest *guest), void *opaque,
                     struct err *err)
{
    sqlite3_stmt *found;
    int r = store_prepare(store, STORE_GUEST_EACH, &found, err);
    if (r < 0)
        return r;
    _cleanup_(store_release)
    sqlite3_stmt *statement = found;
    while ((r = store_step(store, statement, err)) > 0) {
        struct store_guest guest;
        r = read_row(store, statement, &guest, err);
        if (r >= 0)
            r = each(opaque, &guest);
        if (r < 0)
            return r;
    }
    return r;
}

static int add_history(struct store *store, const struct store_guest *guest, const char *from,
                       const char *to, const char *why, struct err *err)
{
    sqlite3_stmt *statement;
    int r = store_prepare(store, STORE_HISTORY_ADD, &statement, err);
    if (r < 0)
        return r;
    char reason[STORE_WHY_MAX + 1];
    sqlite3_bind_int64(statement, 1, store_now());
    store_bind_text(statement, 2, guest->uuid);
    store_bind_text(statement, 3, guest->name);
    store_bind_text(statement, 4, from);
    store_bind_text(statement, 5, to);
    store_bind_text(statement, 6, store_bounded(why, reason, STORE_WHY_MAX));
    r = store_run(store, statement, err);
    if (r >= 0)
        r = store_prepare(store, STORE_HISTORY_TRIM_GUEST, &statement, err);
    if (r < 0)
        return r;
    store_bind_text(statement, 1, guest->uuid);
    sqlite3_bind_int(statement, 2, STORE_HISTORY_PER_GUEST);
    r = store_run(store, statement, err);
    if (r >= 0)
        r = store_prepare(store, STORE_HISTORY_TRIM_ALL, &statement, err);
    if (r < 0)
        return r;
    sqlite3_bind_int(statement, 1, STORE_HISTORY_MAX);
    return store_run(store, statement, err);
}

static int add(struct store *store, const struct store_guest *guest, struct err *err)
{
    sqlite3_stmt *statement;
    int r = store_prepare(store, STORE_GUEST_ADD, &statement, err);
    if (r < 0)
        return r;
    char restart[RESTART_TEXT_SIZE];
    restart_policy_format(&guest->policy.restart, restart);
    store_bind_text(statement, 1, guest->name);
    store_bind_text(statement, 2, guest->uuid);
    store_bind_text(statement, 3, guest->kind);
    store_bind_text(statement, 4, guest->definition);
    bind_policy(statement, 5, &guest->policy, restart);
    sqlite3_bind_int64(statement, 9, store_now());
    r = store_run(store, statement, err);
    if (r < 0 && sqlite3_extended_errcode(store->database) == SQLITE_CONSTRAINT_UNIQUE)
        return err_set(err, -EEXIST, "there is a guest '%s', or one with UUID %s, already",
                       guest->name, guest->uuid);
    if (r < 0)
        return r;
    return add_history(store, guest, "", lifecycle_state_name(LIFECYCLE_DEFINED), NULL, err);
}

int store_guest_add(struct store *store, const struct store_guest *guest, struct err *err)
{
    int r = guest_check(guest, err);
    if (r >= 0)
        r = store_begin(store, err);
    if (r < 0)
        return r;
    return store_end(store, add(store, guest, err), err);
}

static int change(struct store *store, const char *name, uint64_t expected, const char *definition,
                  const struct store_policy *policy, uint64_t *ret_revision, struct err *err)
{
    _cleanup_(store_release)
    sqlite3_stmt *found = NULL;
    struct store_guest guest;
    sqlite3_stmt *statement;
    int r = find(store, name, &found, &guest, err);
    if (r >= 0)
        r = store_prepare(store, STORE_GUEST_CHANGE, &statement, err);
    if (r < 0)
        return r;
    if (expected != STORE_ANY_REVISION && expected != guest.revision)
        return err_set(
            err, -ESTALE,
            "guest '%s' is at revision %llu, not %llu: another change came first; look at it "
            "again",
            name, (unsigned long long)guest.revision, (unsigned long long)expected);
    char restart[RESTART_TEXT_SIZE];
    policy = policy ? policy : &guest.policy;
    restart_policy_format(&policy->restart, restart);
    store_bind_text(statement, 1, name);
    store_bind_text(statement, 2, definition ? definition : guest.definition);
    bind_policy(statement, 3, policy, restart);
    sqlite3_bind_int64(statement, 7, (sqlite3_int64)guest.revision + 1);
    r = store_run(store, statement, err);
    if (r >= 0)
        *ret_revision = guest.revision + 1;
    return r;
}

int store_guest_change(struct store *store, const char *name, uint64_t expected,
                       const char *definition, const struct store_policy *policy,
                       uint64_t *ret_revision, struct err *err)
{
    uint64_t revision = 0;
    int r = definition ? definition_check(definition, err) : 0;
    if (r >= 0 && policy)
        r = policy_check(policy, err);
    if (r >= 0)
        r = store_begin(store, err);
    if (r < 0)
        return r;
    r = store_end(store, change(store, name, expected, definition, policy, &revision, err), err);
    if (r >= 0 && ret_revision)
        *ret_revision = revision;
    return r;
}

static int move(struct store *store, const char *name, const struct store_move *move,
                enum lifecycle_state *ret_state, struct err *err)
{
    _cleanup_(store_release)
    sqlite3_stmt *found = NULL;
    static const struct store_process nobody = {0};
    struct store_guest guest;
    enum lifecycle_state to;
    sqlite3_stmt *statement;
    int r = find(store, name, &found, &guest, err);
    if (r < 0)
        return r;
    r = lifecycle_next(guest.state, move->event, &to, err);
    if (r < 0)
        return err_prefix(err, r, "guest '%s'", name);
    r = store_prepare(store, STORE_GUEST_MOVE, &statement, err);
    if (r < 0)
        return r;
    const struct store_process *process = move->process ? move->process : &guest.process;
    if (!lifecycle_is_live(to))
        process = &nobody;
    bool wanted = move->event == LIFECYCLE_START || (guest.wanted && move->event != LIFECYCLE_STOP);
    store_bind_text(statement, 1, name);
    store_bind_text(statement, 2, lifecycle_state_name(to));
    sqlite3_bind_int(statement, 3, wanted);
    sqlite3_bind_int64(statement, 4, process->pid);
    sqlite3_bind_int64(statement, 5, (sqlite3_int64)process->start);
    sqlite3_bind_text(statement, 6, process->boot,
                      (int)strnlen(process->boot, sizeof process->boot), SQLITE_STATIC);
    sqlite3_bind_int64(statement, 7, to == guest.state ? guest.since : store_now());
    r = store_run(store, statement, err);
    if (r >= 0 && to != guest.state)
        r = add_history(store, &guest, lifecycle_state_name(guest.state), lifecycle_state_name(to),
                        move->why, err);
    if (r >= 0)
        *ret_state = to;
    return r;
}

int store_guest_move(struct store *store, const char *name, const struct store_move *wish,
                     enum lifecycle_state *ret_state, struct err *err)
{
    enum lifecycle_state to = LIFECYCLE_STATE_MAX;
    int r = store_begin(store, err);
    if (r < 0)
        return r;
    r = store_end(store, move(store, name, wish, &to, err), err);
    if (r >= 0 && ret_state)
        *ret_state = to;
    return r;
}

static int want(struct store *store, const char *name, bool wanted, unsigned restart_tries,
                struct err *err)
{
    sqlite3_stmt *statement;
    int r = store_prepare(store, STORE_GUEST_WANT, &statement, err);
    if (r < 0)
        return r;
    store_bind_text(statement, 1, name);
    sqlite3_bind_int(statement, 2, wanted);
    sqlite3_bind_int64(statement, 3, min(restart_tries, (unsigned)INT32_MAX));
    r = store_run(store, statement, err);
    if (r >= 0 && sqlite3_changes(store->database) == 0)
        return err_set(err, -ENOENT, "there is no guest '%.80s'", name);
    return r;
}

int store_guest_want(struct store *store, const char *name, bool wanted, unsigned restart_tries,
                     struct err *err)
{
    int r = store_begin(store, err);
    return r < 0 ? r : store_end(store, want(store, name, wanted, restart_tries, err), err);
}

static int remove_guest(struct store *store, const char *name, struct err *err)
{
    _cleanup_(store_release)
    sqlite3_stmt *found = NULL;
    struct store_guest guest;
    sqlite3_stmt *statement;
    int r = find(store, name, &found, &guest, err);
    if (r < 0)
        return r;
    r = lifecycle_may_remove(guest.state, guest.policy.protect, err);
    if (r < 0)
        return err_prefix(err, r, "guest '%s'", name);
    r = add_history(store, &guest, lifecycle_state_name(guest.state), "", NULL, err);
    if (r >= 0)
        r = store_prepare(store, STORE_GUEST_REMOVE, &statement, err);
    if (r < 0)
        return r;
    store_bind_text(statement, 1, name);
    return store_run(store, statement, err);
}

int store_guest_remove(struct store *store, const char *name, struct err *err)
{
    int r = store_begin(store, err);
    return r < 0 ? r : store_end(store, remove_guest(store, name, err), err);
}
