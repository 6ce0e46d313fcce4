/* History as it is read, and settings. Rows of the history are written where a guest changes. */
#include "host/store_private.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>

int store_history_each(struct store *store, const char *uuid, unsigned limit,
                       int (*each)(void *opaque, const struct store_history *history), void *opaque,
                       struct err *err)
{
    sqlite3_stmt *found;
    int r = store_prepare(store, uuid ? STORE_HISTORY_OF : STORE_HISTORY_EACH, &found, err);
    if (r < 0)
        return r;
    _cleanup_(store_release)
    sqlite3_stmt *statement = found;
    if (uuid)
        store_bind_text(statement, 1, uuid);
    sqlite3_bind_int64(statement, 2, limit);
    while ((r = store_step(store, statement, err)) > 0) {
        r = each(opaque, &(struct store_history){.at = sqlite3_column_int64(statement, 0),
                                                 .name = store_column_text(statement, 1),
                                                 .uuid = store_column_text(statement, 2),
                                                 .from = store_column_text(statement, 3),
                                                 .to = store_column_text(statement, 4),
                                                 .why = store_column_text(statement, 5)});
        if (r < 0)
            return r;
    }
    return r;
}

static int set(struct store *store, const char *name, const char *value, struct err *err)
{
    sqlite3_stmt *statement;
    int r = store_prepare(store, value ? STORE_SETTING_SET : STORE_SETTING_REMOVE, &statement, err);
    if (r < 0)
        return r;
    store_bind_text(statement, 1, name);
    if (value)
        store_bind_text(statement, 2, value);
    return store_run(store, statement, err);
}

int store_setting_set(struct store *store, const char *name, const char *value, struct err *err)
{
    int r = store_name_check(name, err);
    if (r < 0)
        return err_prefix(err, r, "setting");
    if (value && strnlen(value, STORE_SETTING_MAX + 1) > STORE_SETTING_MAX)
        return err_set(err, -E2BIG, "setting '%s' is at most %d bytes", name, STORE_SETTING_MAX);
    r = store_begin(store, err);
    return r < 0 ? r : store_end(store, set(store, name, value, err), err);
}

int store_setting_get(struct store *store, const char *name, char **ret_value, struct err *err)
{
    sqlite3_stmt *found;
    int r = store_prepare(store, STORE_SETTING_GET, &found, err);
    if (r < 0)
        return r;
    _cleanup_(store_release)
    sqlite3_stmt *statement = found;
    store_bind_text(statement, 1, name);
    r = store_step(store, statement, err);
    if (r <= 0)
        return r < 0 ? r : err_set(err, -ENOENT, "there is no setting '%.80s'", name);
    char *value = strdup(store_column_text(statement, 0));
    if (!value)
        return err_errno(err, ENOMEM, "setting '%s'", name);
    *ret_value = value;
    return 0;
}
