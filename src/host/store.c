/*
 * Opening, checking, backing up, and what every statement needs. The database is locked for as long
 * as it is open (locking_mode=EXCLUSIVE), which also keeps SQLite's shared memory file away.
 *
 * SQLite's locks are those of fcntl(2): they are the process's, and are lost when it closes any
 * descriptor of the file. So the one that is open here is closed last.
 */
#include "host/store_private.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

enum {
    BUSY_WAIT = 1000,        /* ms: the process before is on its way out */
    BUSY_STEP = 20,          /* ms */
    WAL_SIZE_KEPT = 4 << 20, /* bytes that a WAL is cut back to */
    VALUE_MAX = 2 << 20,     /* beyond all that store.h lets in */
    CHECK_FINDINGS = 1,      /* the first says enough */
};

#define GUEST_COLUMNS                                                                              \
    "name, uuid, kind, definition, revision, restart, autostart, protect, start_order, state, "    \
    "wanted, restart_tries, pid, pid_start, pid_boot, created, since"

#define HISTORY_COLUMNS "at, name, uuid, state_from, state_to, why"

static const char *const sql[STORE_STATEMENT_MAX] = {
    [STORE_BEGIN] = "BEGIN IMMEDIATE",
    [STORE_COMMIT] = "COMMIT",
    [STORE_ROLLBACK] = "ROLLBACK",
    [STORE_GUEST_ADD] =
        "INSERT INTO guest (" GUEST_COLUMNS ") VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6, ?7, "
        "?8, 'defined', 0, 0, 0, 0, '', ?9, ?9)",
    [STORE_GUEST_FIND] = "SELECT " GUEST_COLUMNS " FROM guest WHERE name = ?1",
    [STORE_GUEST_EACH] = "SELECT " GUEST_COLUMNS " FROM guest ORDER BY name",
    [STORE_GUEST_CHANGE] =
        "UPDATE guest SET definition = ?2, restart = ?3, autostart = ?4, protect = ?5, "
        "start_order = ?6, revision = ?7 WHERE name = ?1",
    [STORE_GUEST_MOVE] = "UPDATE guest SET state = ?2, wanted = ?3, pid = ?4, pid_start = ?5, "
                         "pid_boot = ?6, since = ?7 WHERE name = ?1",
    [STORE_GUEST_WANT] = "UPDATE guest SET wanted = ?2, restart_tries = ?3 WHERE name = ?1",
    [STORE_GUEST_REMOVE] = "DELETE FROM guest WHERE name = ?1",
    [STORE_HISTORY_ADD] = "INSERT INTO history (at, uuid, name, state_from, state_to, why) "
                          "VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    [STORE_HISTORY_TRIM_GUEST] =
        "DELETE FROM history WHERE uuid = ?1 AND id <= (SELECT id FROM history "
        "WHERE uuid = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    [STORE_HISTORY_TRIM_ALL] = "DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?1",
    [STORE_HISTORY_EACH] = "SELECT " HISTORY_COLUMNS " FROM history ORDER BY id DESC LIMIT ?2",
    [STORE_HISTORY_OF] =
        "SELECT " HISTORY_COLUMNS " FROM history WHERE uuid = ?1 ORDER BY id DESC LIMIT ?2",
    [STORE_SETTING_SET] = "INSERT INTO setting (name, value) VALUES (?1, ?2) "
                          "ON CONFLICT (name) DO UPDATE SET value = ?2",
    [STORE_SETTING_REMOVE] = "DELETE FROM setting WHERE name = ?1",
    [STORE_SETTING_GET] = "SELECT value FROM setting WHERE name = ?1",
    [STORE_AUDIT_HEAD] = "SELECT sequence, hash FROM audit_head",
    [STORE_AUDIT_HEAD_SET] = "UPDATE audit_head SET sequence = ?1, hash = ?2",
    [STORE_AUDIT_ADD] = "INSERT INTO audit (sequence, at, who, verb, what, outcome, detail, hash) "
                        "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    [STORE_AUDIT_EACH] = "SELECT sequence, at, who, verb, what, outcome, detail, hash FROM audit "
                         "WHERE sequence >= ?1 ORDER BY sequence",
};

static int damaged(struct store *store, const char *how, struct err *err)
{
    struct stat status;
    struct tm when;
    char made[32];
    if (lstat(store->backup, &status) < 0 || !gmtime_r(&status.st_mtime, &when) ||
        !strftime(made, sizeof made, "%Y-%m-%d %H:%M:%S UTC", &when))
        return err_set(err, -EBADMSG, "'%s' is damaged (%s), and there is no backup of it",
                       store->path, how);
    return err_set(
        err, -EBADMSG,
        "'%s' is damaged (%s); its last backup is '%s' of %s: move the database and its -wal "
        "file away, then copy the backup to its place",
        store->path, how, store->backup, made);
}

/* The system's own error where it is one of room or permission. */
static int system_fault(struct store *store, int fallback)
{
    int number = sqlite3_system_errno(store->database);
    return number == ENOSPC || number == EDQUOT || number == EROFS || number == EACCES ||
                   number == EPERM || number == ENOENT || number == EMFILE || number == ENFILE
               ? number
               : fallback;
}

static int in_use(struct store *store, struct err *err)
{
    return err_set(err, -EBUSY, "'%s' is in use: another lodged has it", store->path);
}

int store_fault(struct store *store, struct err *err)
{
    switch (sqlite3_errcode(store->database) & 0xff) {
    case SQLITE_FULL: return err_errno(err, ENOSPC, "'%s'", store->path);
    case SQLITE_IOERR: return err_errno(err, system_fault(store, EIO), "'%s'", store->path);
    case SQLITE_CANTOPEN: return err_errno(err, system_fault(store, EACCES), "'%s'", store->path);
    case SQLITE_READONLY: return err_errno(err, EROFS, "'%s'", store->path);
    case SQLITE_PERM: return err_errno(err, EACCES, "'%s'", store->path);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return damaged(store, sqlite3_errmsg(store->database), err);
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return in_use(store, err);
    case SQLITE_NOMEM: return err_errno(err, ENOMEM, "'%s'", store->path);
    case SQLITE_TOOBIG: return err_errno(err, E2BIG, "'%s'", store->path);
    default: return err_set(err, -EIO, "'%s': %s", store->path, sqlite3_errmsg(store->database));
    }
}

int store_prepare(struct store *store, enum store_statement which, sqlite3_stmt **ret_statement,
                  struct err *err)
{
    sqlite3_stmt **kept = &store->statements[which];
    if (!*kept && sqlite3_prepare_v3(store->database, sql[which], -1, SQLITE_PREPARE_PERSISTENT,
                                     kept, NULL) != SQLITE_OK)
        return store_fault(store, err);
    if (sqlite3_stmt_busy(*kept))
        return err_set(err, -EBUSY, "'%s' is being read", store->path);
    *ret_statement = *kept;
    return 0;
}

int store_step(struct store *store, sqlite3_stmt *statement, struct err *err)
{
    switch (sqlite3_step(statement)) {
    case SQLITE_ROW: return 1;
    case SQLITE_DONE: return 0;
    default: return store_fault(store, err);
    }
}

void store_release(sqlite3_stmt **statement)
{
    if (*statement) {
        sqlite3_reset(*statement);
        sqlite3_clear_bindings(*statement);
    }
}

int store_run(struct store *store, sqlite3_stmt *statement, struct err *err)
{
    int r = store_step(store, statement, err);
    store_release(&statement);
    return r < 0 ? r : 0;
}

static int simple(struct store *store, enum store_statement which, struct err *err)
{
    sqlite3_stmt *statement;
    int r = store_prepare(store, which, &statement, err);
    return r < 0 ? r : store_run(store, statement, err);
}

/* Inside of a walk's callback: the walk would hold a transaction open. */
static int no_walk(struct store *store, struct err *err)
{
    for (sqlite3_stmt *at = NULL; (at = sqlite3_next_stmt(store->database, at));)
        if (sqlite3_stmt_busy(at))
            return err_set(err, -EBUSY, "'%s' is being read", store->path);
    return 0;
}

int store_begin(struct store *store, struct err *err)
{
    int r = no_walk(store, err);
    return r < 0 ? r : simple(store, STORE_BEGIN, err);
}

int store_end(struct store *store, int result, struct err *err)
{
    if (result >= 0)
        result = simple(store, STORE_COMMIT, err);
    /* After some faults, of a full disk for one, SQLite has rolled back by itself. */
    if (result < 0 && !sqlite3_get_autocommit(store->database))
        simple(store, STORE_ROLLBACK, NULL);
    return result < 0 ? result : 0;
}

void store_bind_text(sqlite3_stmt *statement, int index, const char *text)
{
    sqlite3_bind_text(statement, index, text, -1, SQLITE_STATIC);
}

const char *store_column_text(sqlite3_stmt *statement, int column)
{
    const char *text = (const char *)sqlite3_column_text(statement, column);
    return text ? text : "";
}

const char *store_bounded(const char *text, char *buffer, size_t most)
{
    static const char more[] = "...";
    if (!text)
        return "";
    if (strnlen(text, most + 1) <= most)
        return text;
    size_t length = most - strlen(more);
    while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80)
        length--;
    memcpy(buffer, text, length);
    memcpy(buffer + length, more, sizeof more);
    return buffer;
}

int64_t store_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int store_number(struct store *store, const char *text, int *ret_number, struct err *err)
{
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(store->database, text, -1, &statement, NULL) != SQLITE_OK)
        return store_fault(store, err);
    int r = store_step(store, statement, err);
    if (r > 0)
        *ret_number = sqlite3_column_int(statement, 0);
    sqlite3_finalize(statement);
    return r < 0 ? r : 0;
}

static int sync_folder(const char *path, struct err *err)
{
    _cleanup_free_ char *copy = strdup(path);
    if (!copy)
        return err_errno(err, ENOMEM, "'%s'", path);
    const char *folder = dirname(copy);
    _cleanup_fd_ int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return err_errno(err, errno, "'%s'", folder);
    return 0;
}

/* flock(2) is another lock than SQLite's, and comes before them: of two processes that make the
 * database, each would wait for the other's. */
static int lock_file(struct store *store, struct err *err)
{
    struct timespec pause = {.tv_nsec = BUSY_STEP * 1000000};
    for (int waited = 0; flock(store->lock, LOCK_EX | LOCK_NB) < 0; waited += BUSY_STEP) {
        if (errno != EWOULDBLOCK)
            return err_errno(err, errno, "'%s'", store->path);
        if (waited >= BUSY_WAIT)
            return in_use(store, err);
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* The file as SQLite shall find it: ours, for us alone, writable, and not missing where it should
 * be. */
static int take_file(struct store *store, struct err *err)
{
    struct stat status;
    bool there = lstat(store->path, &status) == 0;
    if (!there && errno != ENOENT)
        return err_errno(err, errno, "'%s'", store->path);
    if (!there && access(store->backup, F_OK) == 0)
        return damaged(store, "it is gone", err);
    if (there && !S_ISREG(status.st_mode))
        return err_set(err, -EINVAL, "'%s' is not a file", store->path);
    store->lock = open(store->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (store->lock < 0 || fstat(store->lock, &status) < 0)
        return err_errno(err, errno, "'%s'", store->path);
    if (status.st_uid != geteuid())
        return err_set(err, -EPERM, "'%s' belongs to user %u: run as that one", store->path,
                       status.st_uid);
    if ((status.st_mode & 077) && fchmod(store->lock, 0600) < 0)
        return err_errno(err, errno, "'%s'", store->path);
    int r = lock_file(store, err);
    if (r < 0)
        return r;
    /* Whoever had it until now may have filled it. */
    if (fstat(store->lock, &status) < 0)
        return err_errno(err, errno, "'%s'", store->path);
    if (there && status.st_size == 0 && access(store->backup, F_OK) == 0)
        return damaged(store, "it is empty", err);
    return there ? 0 : sync_folder(store->path, err);
}

static int run(struct store *store, const char *text, struct err *err)
{
    return sqlite3_exec(store->database, text, NULL, NULL, NULL) == SQLITE_OK
               ? 0
               : store_fault(store, err);
}

static int check(struct store *store, struct err *err)
{
    sqlite3_stmt *statement = NULL;
    char text[64];
    snprintf(text, sizeof text, "PRAGMA quick_check(%d)", CHECK_FINDINGS);
    if (sqlite3_prepare_v2(store->database, text, -1, &statement, NULL) != SQLITE_OK)
        return store_fault(store, err);
    int r = store_step(store, statement, err);
    if (r > 0) {
        const char *found = store_column_text(statement, 0);
        r = strcmp(found, "ok") != 0 ? damaged(store, found, err) : 0;
    }
    sqlite3_finalize(statement);
    return r;
}

/* SQLite takes what is missing of the last page for zeros. A crash may leave such a page only where
 * the WAL holds the whole of it, and after a checkpoint it is whole. */
static int check_end(struct store *store, struct err *err)
{
    struct stat status;
    int page = 0;
    if (sqlite3_wal_checkpoint_v2(store->database, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) !=
        SQLITE_OK)
        return 0; /* a full disk: the WAL is still needed, and still there */
    int r = store_number(store, "PRAGMA page_size", &page, err);
    if (r < 0)
        return r;
    if (lstat(store->path, &status) < 0)
        return err_errno(err, errno, "'%s'", store->path);
    return page > 0 && status.st_size % page != 0 ? damaged(store, "its end is cut off", err) : 0;
}

static int write_ahead(struct store *store, struct err *err)
{
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(store->database, "PRAGMA journal_mode = WAL", -1, &statement, NULL) !=
        SQLITE_OK)
        return store_fault(store, err);
    int r = store_step(store, statement, err);
    if (r > 0)
        r = strcmp(store_column_text(statement, 0), "wal") != 0
                ? err_set(err, -EIO, "'%s' cannot be written ahead (WAL)", store->path)
                : 0;
    sqlite3_finalize(statement);
    return r;
}

static int open_database(struct store *store, struct err *err)
{
    int r =
        sqlite3_open_v2(store->path, &store->database,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    if (!store->database)
        return err_errno(err, ENOMEM, "'%s'", store->path);
    if (r != SQLITE_OK)
        return store_fault(store, err);
    sqlite3_busy_timeout(store->database, BUSY_WAIT);
    sqlite3_limit(store->database, SQLITE_LIMIT_LENGTH, VALUE_MAX);
    /* A file that somebody else wrote runs no code of theirs. */
    sqlite3_db_config(store->database, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(store->database, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    char text[256];
    snprintf(
        text, sizeof text,
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; "
        "PRAGMA cell_size_check = ON; PRAGMA journal_size_limit = %d;",
        WAL_SIZE_KEPT);
    return run(store, text, err);
}

static int open_checked(struct store *store, struct err *err)
{
    int version = 0;
    int r = take_file(store, err);
    if (r >= 0)
        r = open_database(store, err);
    /* Before anything is written: a newer Lodge's is left as it is. */
    if (r >= 0)
        r = store_schema_check(store, &version, err);
    if (r >= 0)
        r = write_ahead(store, err);
    if (r >= 0)
        r = check(store, err);
    if (r >= 0)
        r = check_end(store, err);
    if (r >= 0 && version > 0) {
        r = store_backup(store, err);
        /* A full disk is no reason to leave the guests alone; the backup before is there still. */
        if (r == -ENOSPC || r == -EDQUOT)
            r = 0;
    }
    return r < 0 ? r : store_schema_upgrade(store, version, err);
}

static char *beside(const char *path, const char *suffix)
{
    char *name;
    return asprintf(&name, "%s%s", path, suffix) < 0 ? NULL : name;
}

int store_open(const char *path, struct store **ret_store, struct err *err)
{
    _cleanup_(store_closep)
    struct store *store = calloc(1, sizeof *store);
    if (!store)
        return err_errno(err, ENOMEM, "'%s'", path);
    store->lock = -1;
    if (!(store->path = strdup(path)) || !(store->backup = beside(path, ".backup")))
        return err_errno(err, ENOMEM, "'%s'", path);
    int r = open_checked(store, err);
    if (r < 0)
        return r;
    *ret_store = take_ptr(store);
    return 0;
}

void store_close(struct store *store)
{
    if (!store)
        return;
    for (unsigned i = 0; i < STORE_STATEMENT_MAX; i++)
        sqlite3_finalize(store->statements[i]);
    sqlite3_close(store->database);
    own_close(&store->lock);
    free(store->backup);
    free(store->path);
    free(store);
}

const char *store_backup_path(const struct store *store)
{
    return store->backup;
}

/* VACUUM INTO writes into an empty file, so that the mode is ours, and syncs nothing. */
static int write_backup(struct store *store, const char *fresh, struct err *err)
{
    _cleanup_fd_ int fd = open(fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "'%s'", fresh);
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(store->database, "VACUUM INTO ?1", -1, &statement, NULL) != SQLITE_OK)
        return store_fault(store, err);
    store_bind_text(statement, 1, fresh);
    int r = store_step(store, statement, err);
    sqlite3_finalize(statement);
    if (r < 0)
        return err_prefix(err, r, "backup '%s'", fresh);
    if (fsync(fd) < 0 || rename(fresh, store->backup) < 0)
        return err_errno(err, errno, "'%s'", store->backup);
    return sync_folder(store->backup, err);
}

int store_backup(struct store *store, struct err *err)
{
    _cleanup_free_ char *fresh = beside(store->backup, ".new");
    if (!fresh)
        return err_errno(err, ENOMEM, "'%s'", store->backup);
    int r = no_walk(store, err);
    if (r < 0)
        return r;
    unlink(fresh); /* left by who was killed */
    r = write_backup(store, fresh, err);
    if (r < 0)
        unlink(fresh);
    return r;
}
