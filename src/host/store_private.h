/*
 * store_private.h: what the files of the store (store*.c, audit.c) share. store.h is the interface.
 *
 * A public function that writes is
 *
 *     r = store_begin(store, err);
 *     if (r < 0)
 *         return r;
 *     return store_end(store, do_it(store, ..., err), err);
 *
 * and store_end() commits what went well and takes back what did not.
 */
#pragma once

#include "host/store.h"

#include <sqlite3.h>

/* Compiled at their first use and kept. */
enum store_statement {
    STORE_BEGIN,
    STORE_COMMIT,
    STORE_ROLLBACK,
    STORE_GUEST_ADD,
    STORE_GUEST_FIND,
    STORE_GUEST_EACH,
    STORE_GUEST_CHANGE,
    STORE_GUEST_MOVE,
    STORE_GUEST_WANT,
    STORE_GUEST_REMOVE,
    STORE_HISTORY_ADD,
    STORE_HISTORY_TRIM_GUEST,
    STORE_HISTORY_TRIM_ALL,
    STORE_HISTORY_EACH,
    STORE_HISTORY_OF,
    STORE_SETTING_SET,
    STORE_SETTING_REMOVE,
    STORE_SETTING_GET,
    STORE_AUDIT_HEAD,
    STORE_AUDIT_HEAD_SET,
    STORE_AUDIT_ADD,
    STORE_AUDIT_EACH,
    STORE_STATEMENT_MAX,
};

struct store {
    sqlite3 *database;
    int lock; /* a descriptor of the database */
    char *path, *backup;
    sqlite3_stmt *statements[STORE_STATEMENT_MAX];
};

/* SQLite's codes as ours, with its words and the database's name. */
int store_fault(struct store *store, struct err *err);

int store_begin(struct store *store, struct err *err);
int store_end(struct store *store, int result, struct err *err);

/* -EBUSY for one that is in use: a callback calls what called it. */
int store_prepare(struct store *store, enum store_statement which, sqlite3_stmt **ret_statement,
                  struct err *err);
/* 1: a row is there; 0: done; -errno. */
int store_step(struct store *store, sqlite3_stmt *statement, struct err *err);
/* One that brings no rows, then store_release(). */
int store_run(struct store *store, sqlite3_stmt *statement, struct err *err);
/* What was bound and read is gone. NULL is legal. */
void store_release(sqlite3_stmt **statement);

/* What a query that is made once answers. */
int store_number(struct store *store, const char *text, int *ret_number, struct err *err);
/* A text that lives until store_release(). */
void store_bind_text(sqlite3_stmt *statement, int index, const char *text);
/* "" for NULL. */
const char *store_column_text(sqlite3_stmt *statement, int column);

/* A text of at most `most` bytes: what is longer is cut at a whole UTF-8 character, in `buffer` of
 * most + 1 bytes, and ends with "...". "" for NULL. */
const char *store_bounded(const char *text, char *buffer, size_t most);

int64_t store_now(void); /* ms after 1970 */

/* store_schema.c: brings a new or older database to this version; -EPROTONOSUPPORT, -EBADMSG. */
int store_schema_check(struct store *store, int *ret_version, struct err *err);
int store_schema_upgrade(struct store *store, int version, struct err *err);
int store_schema_version(void);
