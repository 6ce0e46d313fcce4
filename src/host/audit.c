#include "host/audit.h"

#include "base/bytes.h"
#include "base/openssl.h"
#include "base/own.h"
#include "host/store_private.h"

#include <errno.h>
#include <stdio.h>

enum { FIELDS = 5 };

static void own_context(EVP_MD_CTX **context)
{
    if (*context)
        sym_EVP_MD_CTX_free(*context);
}

static bool add_number(EVP_MD_CTX *context, uint64_t number)
{
    uint8_t bytes[8];
    be64_write(bytes, number);
    return sym_EVP_DigestUpdate(context, bytes, sizeof bytes) == 1;
}

static bool add_text(EVP_MD_CTX *context, const char *text)
{
    uint8_t length[4];
    be32_write(length, (uint32_t)strlen(text));
    return sym_EVP_DigestUpdate(context, length, sizeof length) == 1 &&
           sym_EVP_DigestUpdate(context, text, strlen(text)) == 1;
}

/* No text of the row is NULL. */
static int hash_row(const uint8_t before[AUDIT_HASH_SIZE], const struct audit_row *row,
                    uint8_t ret_hash[AUDIT_HASH_SIZE], struct err *err)
{
    static const char prefix[] = "lodge audit 1"; /* with its end */
    const char *const fields[FIELDS] = {row->who, row->verb, row->what, row->outcome, row->detail};
    _cleanup_(own_context)
    EVP_MD_CTX *context = sym_EVP_MD_CTX_new();
    unsigned length = 0;
    bool good = context && sym_EVP_DigestInit_ex(context, sym_EVP_sha256(), NULL) == 1 &&
                sym_EVP_DigestUpdate(context, prefix, sizeof prefix) == 1 &&
                sym_EVP_DigestUpdate(context, before, AUDIT_HASH_SIZE) == 1 &&
                add_number(context, row->sequence) && add_number(context, (uint64_t)row->at);
    for (unsigned i = 0; good && i < FIELDS; i++)
        good = add_text(context, fields[i]);
    if (!good || sym_EVP_DigestFinal_ex(context, ret_hash, &length) != 1 ||
        length != AUDIT_HASH_SIZE)
        return err_set(err, -EIO, "OpenSSL offers no SHA-256");
    return 0;
}

static int read_head(struct store *store, struct audit_head *ret_head, struct err *err)
{
    sqlite3_stmt *found;
    int r = store_prepare(store, STORE_AUDIT_HEAD, &found, err);
    if (r < 0)
        return r;
    _cleanup_(store_release)
    sqlite3_stmt *statement = found;
    r = store_step(store, statement, err);
    if (r < 0)
        return r;
    if (r == 0 || sqlite3_column_bytes(statement, 1) != AUDIT_HASH_SIZE)
        return err_set(err, -EBADMSG, "audit log of '%s': the record of its last row is gone",
                       store->path);
    ret_head->sequence = (uint64_t)sqlite3_column_int64(statement, 0);
    memcpy(ret_head->hash, sqlite3_column_blob(statement, 1), AUDIT_HASH_SIZE);
    return 0;
}

static int write_head(struct store *store, const struct audit_head *head, struct err *err)
{
    sqlite3_stmt *statement;
    int r = store_prepare(store, STORE_AUDIT_HEAD_SET, &statement, err);
    if (r < 0)
        return r;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)head->sequence);
    sqlite3_bind_blob(statement, 2, head->hash, AUDIT_HASH_SIZE, SQLITE_STATIC);
    return store_run(store, statement, err);
}

static int append(struct store *store, struct audit_row *row, struct err *err)
{
    struct audit_head head;
    sqlite3_stmt *statement;
    int r = read_head(store, &head, err);
    if (r < 0)
        return r;
    row->sequence = ++head.sequence;
    r = hash_row(head.hash, row, head.hash, err);
    if (r >= 0)
        r = store_prepare(store, STORE_AUDIT_ADD, &statement, err);
    if (r < 0)
        return r;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)row->sequence);
    sqlite3_bind_int64(statement, 2, row->at);
    store_bind_text(statement, 3, row->who);
    store_bind_text(statement, 4, row->verb);
    store_bind_text(statement, 5, row->what);
    store_bind_text(statement, 6, row->outcome);
    store_bind_text(statement, 7, row->detail);
    sqlite3_bind_blob(statement, 8, head.hash, AUDIT_HASH_SIZE, SQLITE_STATIC);
    r = store_run(store, statement, err);
    return r < 0 ? r : write_head(store, &head, err);
}

int audit_write(struct store *store, const struct audit_row *row, struct err *err)
{
    char who[AUDIT_WHO_MAX + 1], verb[AUDIT_VERB_MAX + 1], what[AUDIT_WHAT_MAX + 1],
        outcome[AUDIT_OUTCOME_MAX + 1], detail[AUDIT_DETAIL_MAX + 1];
    struct audit_row written = {.who = store_bounded(row->who, who, AUDIT_WHO_MAX),
                                .verb = store_bounded(row->verb, verb, AUDIT_VERB_MAX),
                                .what = store_bounded(row->what, what, AUDIT_WHAT_MAX),
                                .outcome = store_bounded(row->outcome, outcome, AUDIT_OUTCOME_MAX),
                                .detail = store_bounded(row->detail, detail, AUDIT_DETAIL_MAX),
                                .at = store_now()};
    int r = crypto_load(err);
    if (r >= 0)
        r = store_begin(store, err);
    if (r < 0)
        return r;
    return store_end(store, append(store, &written, err), err);
}

static struct audit_row row_of(sqlite3_stmt *statement)
{
    return (struct audit_row){.sequence = (uint64_t)sqlite3_column_int64(statement, 0),
                              .at = sqlite3_column_int64(statement, 1),
                              .who = store_column_text(statement, 2),
                              .verb = store_column_text(statement, 3),
                              .what = store_column_text(statement, 4),
                              .outcome = store_column_text(statement, 5),
                              .detail = store_column_text(statement, 6)};
}

int audit_each(struct store *store, uint64_t first,
               int (*each)(void *opaque, const struct audit_row *row), void *opaque,
               struct err *err)
{
    sqlite3_stmt *found;
    int r = store_prepare(store, STORE_AUDIT_EACH, &found, err);
    if (r < 0)
        return r;
    _cleanup_(store_release)
    sqlite3_stmt *statement = found;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)min(first, (uint64_t)INT64_MAX));
    while ((r = store_step(store, statement, err)) > 0) {
        struct audit_row row = row_of(statement);
        r = each(opaque, &row);
        if (r < 0)
            return r;
    }
    return r;
}

static int wrong(struct store *store, uint64_t sequence, const char *how, struct err *err)
{
    return err_set(err, -EBADMSG, "audit log of '%s': row %lld %s", store->path,
                   (long long)sequence, how);
}

/* `at` is the row before; it becomes this one. */
static int verify_row(struct store *store, sqlite3_stmt *statement, struct audit_head *at,
                      const struct audit_head *head, struct err *err)
{
    static const char not_written[] = "is not what was written there";
    struct audit_row row = row_of(statement);
    uint8_t hash[AUDIT_HASH_SIZE];
    if ((int64_t)row.sequence < 1)
        return wrong(store, row.sequence, "was put in before the first one", err);
    if (row.sequence > head->sequence)
        return wrong(store, row.sequence, "was put in behind the last one", err);
    if (row.sequence != at->sequence + 1)
        return wrong(store, at->sequence + 1, "is gone", err);
    /* A text ends where SQLite says that it does, or something hides behind its end. */
    const char *const fields[FIELDS] = {row.who, row.verb, row.what, row.outcome, row.detail};
    for (int i = 0; i < FIELDS; i++)
        if (sqlite3_column_bytes(statement, 2 + i) != (int)strlen(fields[i]))
            return wrong(store, row.sequence, not_written, err);
    int r = hash_row(at->hash, &row, hash, err);
    if (r < 0)
        return r;
    if (sqlite3_column_bytes(statement, 7) != AUDIT_HASH_SIZE ||
        memcmp(sqlite3_column_blob(statement, 7), hash, AUDIT_HASH_SIZE) != 0)
        return wrong(store, row.sequence, not_written, err);
    at->sequence = row.sequence;
    memcpy(at->hash, hash, AUDIT_HASH_SIZE);
    return 0;
}

int audit_verify(struct store *store, struct audit_head *ret_head, struct err *err)
{
    struct audit_head head, at = {0};
    sqlite3_stmt *found;
    int r = crypto_load(err);
    if (r >= 0)
        r = read_head(store, &head, err);
    if (r >= 0)
        r = store_prepare(store, STORE_AUDIT_EACH, &found, err);
    if (r < 0)
        return r;
    _cleanup_(store_release)
    sqlite3_stmt *statement = found;
    sqlite3_bind_int64(statement, 1, INT64_MIN);
    while ((r = store_step(store, statement, err)) > 0) {
        r = verify_row(store, statement, &at, &head, err);
        if (r < 0)
            return r;
    }
    if (r < 0)
        return r;
    if (at.sequence != head.sequence)
        return wrong(store, at.sequence + 1, "is gone, and what came after it", err);
    if (memcmp(at.hash, head.hash, AUDIT_HASH_SIZE) != 0)
        return wrong(store, at.sequence, "is not the one that was written last", err);
    *ret_head = head;
    return 0;
}
