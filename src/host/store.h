/*
 * store.h: what `lodged` remembers: guests, the history of their states, settings, and the audit
 * log (audit.h), in one SQLite database.
 *
 *     .../lodge.db           WAL mode, full sync: what a call has returned from outlives power loss
 *     .../lodge.db-wal       belongs to it; never move one without the other
 *     .../lodge.db.backup    as it was at the last start, or at store_backup()
 *
 * All are for their owner alone. Each public call is one transaction: it happened, or nothing did.
 * One process has the database at a time, for as long as it runs; the next one is told -EBUSY.
 *
 * At store_open() the database is checked (PRAGMA quick_check), then copied to the backup, then,
 * where an older Lodge wrote it, upgraded step by step. What quick_check cannot see is a changed
 * byte inside of a value; for the audit log audit_verify() does.
 *
 * Owner: who called store_open(). Threads: one at a time. A store does not outlive fork(): the
 * child must not use it.
 *
 * Errors, each with a phrase that names the file or the guest:
 *   -EBADMSG   damaged, or no database of ours; the message names the backup
 *   -EPROTONOSUPPORT  a newer Lodge wrote it; both versions are named
 *   -EBUSY     another process has it
 *   -EROFS, -EACCES   it cannot be written to      -ENOSPC, -EDQUOT   no room: nothing was changed
 *   -ENOENT    no such guest         -EEXIST    the name or the UUID is taken
 *   -ESTALE    another change of the guest came first
 *   -EINVAL    a value that cannot be stored       -E2BIG    one that is too long
 *
 *     _cleanup_(store_closep) struct store *store = NULL;
 *     r = store_open("/var/lib/lodge/lodge.db", &store, err);
 *     ...
 *     r = store_guest_change(store, "web", 4, text, NULL, &revision, err);   // -ESTALE: not 4
 */
#pragma once

#include "base/err.h"
#include "host/lifecycle.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct store;

enum {
    STORE_NAME_MAX = 63,
    STORE_UUID_LENGTH = 36,
    STORE_KIND_MAX = 31,
    STORE_DEFINITION_MAX = 1 << 20, /* bytes */
    STORE_WHY_MAX = 1000,           /* longer reasons are cut, and end with "..." */
    STORE_SETTING_NAME_MAX = 63,
    STORE_SETTING_MAX = 1 << 16,
    STORE_HISTORY_PER_GUEST = 1000, /* rows that are kept, the newest */
    STORE_HISTORY_MAX = 100000,     /* of all guests, those that are gone included */
};

/* `path` is absolute, in a folder that exists. Where neither the database nor a backup of it is
 * there, it is made. */
int store_open(const char *path, struct store **ret_store, struct err *err);
void store_close(struct store *store);
static inline void store_closep(struct store **store)
{
    store_close(*store);
}

/* Replaces the backup by what is in the database now: written beside, synced, then renamed. */
int store_backup(struct store *store, struct err *err);
const char *store_backup_path(const struct store *store);

/* 1 to 63 of [a-zA-Z0-9._-], neither '.' nor '-' first. -EINVAL with the rule. */
int store_name_check(const char *name, struct err *err);

/*
 * Guests
 */

/* Which process runs a guest, so that another one that got its number is not taken for it
 * (identity.h). */
struct store_process {
    int64_t pid;                      /* 0: none */
    uint64_t start;                   /* ticks after boot: field 22 of /proc/PID/stat (proc(5)) */
    char boot[STORE_UUID_LENGTH + 1]; /* /proc/sys/kernel/random/boot_id of that boot */
};

struct store_policy {
    struct restart_policy restart;
    bool autostart; /* with the host */
    bool protect;   /* from removal */
    int order;      /* of starts, struct lifecycle_place */
};

struct store_guest {
    const char *name;
    const char *uuid;       /* 36 characters, lower case */
    const char *kind;       /* "vm" */
    const char *definition; /* JSON text; not looked into here */
    struct store_policy policy;

    /* Kept by the store; store_guest_add() ignores them. */
    uint64_t revision; /* of definition and policy, from 1; an ETag */
    enum lifecycle_state state;
    struct store_process process;
    bool wanted;            /* it should run: what a new `lodged` brings back */
    unsigned restart_tries; /* struct restart_end */
    int64_t created, since; /* ms after 1970: of the guest, of its state */
};

/* State "defined", revision 1. */
int store_guest_add(struct store *store, const struct store_guest *guest, struct err *err);

/* A copy, of the caller's; store_guest_free() it. */
int store_guest_find(struct store *store, const char *name, struct store_guest **ret_guest,
                     struct err *err);
void store_guest_free(struct store_guest *guest);
static inline void store_guest_freep(struct store_guest **guest)
{
    store_guest_free(*guest);
}

/* By name. `each` borrows the guest for the call and changes nothing in the store; what it returns
 * below 0 ends the walk and is returned. */
int store_guest_each(struct store *store,
                     int (*each)(void *opaque, const struct store_guest *guest), void *opaque,
                     struct err *err);

enum { STORE_ANY_REVISION = 0 };

/* A new definition, a new policy, or both; NULL leaves what is there. -ESTALE unless `expected` is
 * the guest's revision, or STORE_ANY_REVISION. ret_revision may be NULL. */
int store_guest_change(struct store *store, const char *name, uint64_t expected,
                       const char *definition, const struct store_policy *policy,
                       uint64_t *ret_revision, struct err *err);

struct store_move {
    enum lifecycle_event event;
    const struct store_process *process; /* that runs it from now on; NULL: as it was */
    const char *why;                     /* for the history, may be NULL */
};

/* lifecycle_next() of the stored state, with a row in the history where the state changes. "start"
 * makes the guest wanted, "stop" unwanted; at rest no process is kept. ret_state may be NULL. */
int store_guest_move(struct store *store, const char *name, const struct store_move *move,
                     enum lifecycle_state *ret_state, struct err *err);

/* What restart_decide() has decided. */
int store_guest_want(struct store *store, const char *name, bool wanted, unsigned restart_tries,
                     struct err *err);

/* As lifecycle_may_remove() says; its history stays. */
int store_guest_remove(struct store *store, const char *name, struct err *err);

/*
 * History
 */

struct store_history {
    int64_t at; /* ms after 1970 */
    const char *name, *uuid;
    const char *from, *to; /* names of states; from "" at its definition, to "" at its removal */
    const char *why;       /* "" where nobody said */
};

/* The newest first, at most `limit`; of one guest's UUID, or of all where that is NULL. The rules
 * for `each` are those of store_guest_each(). */
int store_history_each(struct store *store, const char *uuid, unsigned limit,
                       int (*each)(void *opaque, const struct store_history *history), void *opaque,
                       struct err *err);

/*
 * Settings
 */

/* Names as those of guests. A NULL value takes the setting away. */
int store_setting_set(struct store *store, const char *name, const char *value, struct err *err);
/* malloc'd; -ENOENT where it is not set. */
int store_setting_get(struct store *store, const char *name, char **ret_value, struct err *err);
