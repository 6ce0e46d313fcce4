/*
 * The tables, and how each version of them came from the one before. A step that was released is
 * never changed; a new version is a new step. The version is PRAGMA user_version; PRAGMA
 * application_id says that the file is ours.
 */
#include "host/store_private.h"

#include "base/bytes.h"

#include <errno.h>
#include <stdio.h>

#define APPLICATION_ID "1281320039" /* "L_dg" */

/* History and audit are appended to. The triggers are against our own mistakes; against others
 * there is the chain of audit.h. */
static const char *const steps[] = {
    /* 1: guests, their history, settings */
    "CREATE TABLE guest ("
    "  id INTEGER PRIMARY KEY,"
    "  name TEXT NOT NULL UNIQUE,"
    "  uuid TEXT NOT NULL UNIQUE,"
    "  kind TEXT NOT NULL,"
    "  definition TEXT NOT NULL,"
    "  revision INTEGER NOT NULL CHECK (revision > 0),"
    "  restart TEXT NOT NULL,"
    "  autostart INTEGER NOT NULL,"
    "  protect INTEGER NOT NULL,"
    "  start_order INTEGER NOT NULL,"
    "  state TEXT NOT NULL,"
    "  wanted INTEGER NOT NULL,"
    "  restart_tries INTEGER NOT NULL,"
    "  pid INTEGER NOT NULL,"
    "  pid_start INTEGER NOT NULL,"
    "  pid_boot TEXT NOT NULL,"
    "  created INTEGER NOT NULL,"
    "  since INTEGER NOT NULL"
    ") STRICT;"
    "CREATE TABLE history ("
    "  id INTEGER PRIMARY KEY AUTOINCREMENT,"
    "  at INTEGER NOT NULL,"
    "  uuid TEXT NOT NULL,"
    "  name TEXT NOT NULL,"
    "  state_from TEXT NOT NULL,"
    "  state_to TEXT NOT NULL,"
    "  why TEXT NOT NULL"
    ") STRICT;"
    "CREATE INDEX history_of ON history (uuid, id);"
    "CREATE TRIGGER history_stays BEFORE UPDATE ON history "
    "BEGIN SELECT RAISE(ABORT, 'history is appended to'); END;"
    "CREATE TABLE setting ("
    "  name TEXT PRIMARY KEY,"
    "  value TEXT NOT NULL"
    ") STRICT, WITHOUT ROWID;"
    "PRAGMA application_id = " APPLICATION_ID ";",

    /* 2: the audit log; audit_head is its last row's */
    "CREATE TABLE audit ("
    "  sequence INTEGER PRIMARY KEY,"
    "  at INTEGER NOT NULL,"
    "  who TEXT NOT NULL,"
    "  verb TEXT NOT NULL,"
    "  what TEXT NOT NULL,"
    "  outcome TEXT NOT NULL,"
    "  detail TEXT NOT NULL,"
    "  hash BLOB NOT NULL CHECK (length(hash) = 32)"
    ") STRICT;"
    "CREATE TABLE audit_head ("
    "  one INTEGER PRIMARY KEY CHECK (one = 1),"
    "  sequence INTEGER NOT NULL,"
    "  hash BLOB NOT NULL CHECK (length(hash) = 32)"
    ") STRICT;"
    "INSERT INTO audit_head VALUES (1, 0, zeroblob(32));"
    "CREATE TRIGGER audit_stays BEFORE UPDATE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is appended to'); END;"
    "CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is appended to'); END;"
    "CREATE TRIGGER audit_head_is_kept BEFORE DELETE ON audit_head "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is appended to'); END;",
};

int store_schema_version(void)
{
    return ARRAY_LEN(steps);
}

int store_schema_check(struct store *store, int *ret_version, struct err *err)
{
    int version = 0, application = 0, tables = 0;
    int r = store_number(store, "PRAGMA user_version", &version, err);
    if (r >= 0)
        r = store_number(store, "PRAGMA application_id", &application, err);
    if (r >= 0)
        r = store_number(store, "SELECT count(*) FROM sqlite_schema", &tables, err);
    if (r < 0)
        return r;
    bool empty = version == 0 && application == 0 && tables == 0;
    char ours[16];
    snprintf(ours, sizeof ours, "%d", application);
    if (!empty && strcmp(ours, APPLICATION_ID) != 0)
        return err_set(err, -EBADMSG,
                       "'%s' is a database, but not one of Lodge's: name another file",
                       store->path);
    if (version > store_schema_version())
        return err_set(
            err, -EPROTONOSUPPORT,
            "'%s' is of version %d, which a newer Lodge wrote; this one knows versions up "
            "to %d: install the newer one again",
            store->path, version, store_schema_version());
    if (!empty && version < 1)
        return err_set(err, -EBADMSG, "'%s' is damaged: its version is %d", store->path, version);
    *ret_version = version;
    return 0;
}

static int upgrade_once(struct store *store, int version, struct err *err)
{
    char mark[64];
    snprintf(mark, sizeof mark, "PRAGMA user_version = %d", version + 1);
    if (sqlite3_exec(store->database, steps[version], NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_exec(store->database, mark, NULL, NULL, NULL) != SQLITE_OK)
        return store_fault(store, err);
    return 0;
}

int store_schema_upgrade(struct store *store, int version, struct err *err)
{
    for (; version < store_schema_version(); version++) {
        int r = store_begin(store, err);
        if (r >= 0)
            r = store_end(store, upgrade_once(store, version, err), err);
        if (r < 0)
            return version
                       ? err_prefix(err, r, "upgrade from version %d to %d", version, version + 1)
                       : r;
    }
    return 0;
}
