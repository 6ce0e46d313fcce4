/*
 * store_fixture.h: a store in a folder of its own, for tests.
 */
#pragma once

#include "host/store.h"

#include "base/own.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

struct fixture {
    char folder[64], path[96], backup[96];
    struct store *store;
};

static int make_folder(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    /* Who is merely killed loses nothing in memory either, and a sync there costs nothing. */
    snprintf(fixture->folder, sizeof fixture->folder, "%s/store-XXXXXX",
             access("/dev/shm", W_OK | X_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(fixture->folder))
        return -1;
    snprintf(fixture->path, sizeof fixture->path, "%s/lodge.db", fixture->folder);
    snprintf(fixture->backup, sizeof fixture->backup, "%s/lodge.db.backup", fixture->folder);
    *state = fixture;
    return 0;
}

static int remove_folder(void **state)
{
    struct fixture *fixture = *state;
    char command[128];
    store_close(fixture->store);
    snprintf(command, sizeof command, "rm -rf '%s'", fixture->folder);
    int r = system(command);
    free(fixture);
    return r;
}

static inline struct store *must_open(const char *path)
{
    struct store *store = NULL;
    struct err err = {0};
    if (store_open(path, &store, &err) < 0)
        fail_msg("%s", err.text);
    return store;
}

static inline void reopen(struct fixture *fixture)
{
    store_close(fixture->store);
    fixture->store = must_open(fixture->path);
}

/* Refused with `code`, and all the words of a list that ends with NULL. */
static inline void must_not_open(const char *path, int code, const char *const *words)
{
    struct store *store = NULL;
    struct err err = {0};
    int r = store_open(path, &store, &err);
    if (r != code)
        fail_msg("%d, not %d: %s", r, code, err.text);
    assert_null(store);
    for (; *words; words++)
        if (!strstr(err.text, *words))
            fail_msg("no '%s' in: %s", *words, err.text);
}
#define MUST_NOT_OPEN(path, code, ...)                                                             \
    must_not_open(path, code, (const char *const[]){__VA_ARGS__, NULL})

/* A guest whose UUID ends with `number`. */
static inline int add_guest(struct store *store, const char *name, unsigned number,
                            const char *definition, struct err *err)
{
    char uuid[STORE_UUID_LENGTH + 1];
    snprintf(uuid, sizeof uuid, "00000000-0000-4000-8000-%012x", number);
    return store_guest_add(
        store,
        &(struct store_guest){.name = name, .uuid = uuid, .kind = "vm", .definition = definition},
        err);
}

/* Past the store: somebody else's hand on a database that nobody has open. */
static inline void run_sql(const char *path, const char *sql)
{
    sqlite3 *database;
    char *error = NULL;
    assert_int_equal(sqlite3_open(path, &database), SQLITE_OK);
    if (sqlite3_exec(database, sql, NULL, NULL, &error) != SQLITE_OK)
        fail_msg("%s: %s", sql, error);
    sqlite3_close(database);
}
