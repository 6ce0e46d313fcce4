#include "base/bytes.h"
#include "base/openssl.h"
#include "host/audit.h"
#include "host/store_fixture.h"

enum { ROWS = 8 };

static int make_log(void **state)
{
    if (make_folder(state) < 0)
        return -1;
    struct fixture *fixture = *state;
    fixture->store = must_open(fixture->path);
    for (int i = 0; i < ROWS; i++) {
        char what[32];
        snprintf(what, sizeof what, "guest g%d", i);
        if (audit_write(
                fixture->store,
                &(struct audit_row){.who = "uid 0", .verb = "start", .what = what, .outcome = "ok"},
                NULL) < 0)
            return -1;
    }
    return 0;
}

#define FREE_HANDS                                                                                 \
    "DROP TRIGGER IF EXISTS audit_stays; DROP TRIGGER IF EXISTS audit_is_kept;"                    \
    "DROP TRIGGER IF EXISTS audit_head_is_kept;"

/* Somebody changes the database; what does verification say? */
static void tampered(void **state, const char *sql, const char *finding)
{
    struct fixture *fixture = *state;
    char text[1000];
    struct audit_head head;
    struct err err = {0};
    store_close(take_ptr(fixture->store));
    snprintf(text, sizeof text, FREE_HANDS "%s", sql);
    run_sql(fixture->path, text);
    fixture->store = must_open(fixture->path);
    assert_int_equal(audit_verify(fixture->store, &head, &err), -EBADMSG);
    if (!strstr(err.text, finding))
        fail_msg("no '%s' in: %s", finding, err.text);
}

static void the_chain_holds(void **state)
{
    struct fixture *fixture = *state;
    struct audit_head head, again;
    assert_int_equal(audit_verify(fixture->store, &head, NULL), 0);
    assert_int_equal(head.sequence, ROWS);
    reopen(fixture);
    assert_int_equal(audit_verify(fixture->store, &again, NULL), 0);
    assert_memory_equal(&head, &again, sizeof head);
    assert_int_equal(audit_write(fixture->store, &(struct audit_row){.who = "x"}, NULL), 0);
    assert_int_equal(audit_verify(fixture->store, &again, NULL), 0);
    assert_int_equal(again.sequence, ROWS + 1);
    assert_true(memcmp(head.hash, again.hash, sizeof head.hash) != 0);
}

static void an_empty_log_is_whole(void **state)
{
    static const uint8_t zeros[AUDIT_HASH_SIZE];
    struct fixture *fixture = *state;
    struct audit_head head;
    fixture->store = must_open(fixture->path);
    assert_int_equal(audit_verify(fixture->store, &head, NULL), 0);
    assert_int_equal(head.sequence, 0);
    assert_memory_equal(head.hash, zeros, sizeof zeros);
}

static void changed_rows_are_found(void **state)
{
    tampered(state, "UPDATE audit SET who = 'uid 1' WHERE sequence = 5", "row 5 is not what");
}

static void moved_times_are_found(void **state)
{
    tampered(state, "UPDATE audit SET at = at - 1 WHERE sequence = 1", "row 1 is not what");
}

/* The same bytes, cut into fields at another place. */
static void shifted_fields_are_found(void **state)
{
    tampered(state, "UPDATE audit SET who = 'uid 0s', verb = 'tart' WHERE sequence = 3",
             "row 3 is not what");
}

static void hidden_bytes_are_found(void **state)
{
    tampered(state, "UPDATE audit SET detail = char(0) || 'more' WHERE sequence = 4",
             "row 4 is not what");
}

static void deleted_rows_are_found(void **state)
{
    tampered(state, "DELETE FROM audit WHERE sequence = 4", "row 4 is gone");
}

static void the_first_row_is_missed(void **state)
{
    tampered(state, "DELETE FROM audit WHERE sequence = 1", "row 1 is gone");
}

static void the_last_rows_are_missed(void **state)
{
    tampered(state, "DELETE FROM audit WHERE sequence > 6", "row 7 is gone");
}

static void an_emptied_log_is_found(void **state)
{
    tampered(state, "DELETE FROM audit", "row 1 is gone");
}

static void closed_gaps_are_found(void **state)
{
    tampered(
        state,
        "DELETE FROM audit WHERE sequence = 4; UPDATE audit SET sequence = 4 WHERE sequence = 5;"
        "UPDATE audit SET sequence = 5 WHERE sequence = 6;"
        "UPDATE audit SET sequence = 6 WHERE sequence = 7;"
        "UPDATE audit SET sequence = 7 WHERE sequence = 8;"
        "UPDATE audit_head SET sequence = 7",
        "row 4 is not what");
}

static void swapped_rows_are_found(void **state)
{
    tampered(state,
             "UPDATE audit SET sequence = 100 WHERE sequence = 3;"
             "UPDATE audit SET sequence = 3 WHERE sequence = 6;"
             "UPDATE audit SET sequence = 6 WHERE sequence = 100",
             "row 3 is not what");
}

static void rows_put_in_are_found(void **state)
{
    tampered(state,
             "INSERT INTO audit SELECT 9, at, who, verb, what, outcome, detail, hash FROM audit "
             "WHERE sequence = 8",
             "row 9 was put in");
}

static void rows_put_before_are_found(void **state)
{
    tampered(state,
             "INSERT INTO audit SELECT -1, at, who, verb, what, outcome, detail, hash FROM audit "
             "WHERE sequence = 1",
             "was put in before");
}

static void a_head_put_back_is_found(void **state)
{
    tampered(state,
             "DELETE FROM audit WHERE sequence > 6;"
             "UPDATE audit_head SET sequence = 6",
             "row 6 is not the one that was written last");
    tampered(state, "DELETE FROM audit_head", "is gone");
}

/* Our own statements cannot either. */
static void rows_are_only_appended(void **state)
{
    struct fixture *fixture = *state;
    sqlite3 *database;
    store_close(take_ptr(fixture->store));
    assert_int_equal(sqlite3_open(fixture->path, &database), SQLITE_OK);
    static const char *const tries[] = {"UPDATE audit SET who = ''", "DELETE FROM audit",
                                        "DELETE FROM audit_head", "UPDATE history SET why = 'x'",
                                        "INSERT INTO audit_head VALUES (2, 1, zeroblob(32))"};
    sqlite3_exec(database, "INSERT INTO history VALUES (1, 1, '', '', '', '', '')", NULL, NULL,
                 NULL);
    for (size_t i = 0; i < ARRAY_LEN(tries); i++)
        assert_int_equal(sqlite3_exec(database, tries[i], NULL, NULL, NULL), SQLITE_CONSTRAINT);
    sqlite3_close(database);
}

static int keep_row(void *opaque, const struct audit_row *row)
{
    char *text = opaque;
    sprintf(text, "%s|%s|%s|%s|%s", row->who, row->verb, row->what, row->outcome, row->detail);
    return 0;
}

static void long_texts_are_cut(void **state)
{
    struct fixture *fixture = *state;
    struct audit_head head;
    char big[5000], text[8000];
    memset(big, 'w', sizeof big);
    big[sizeof big - 1] = '\0';
    /* The cut would be inside of a character. */
    memcpy(big + AUDIT_VERB_MAX - 4, "\xe2\x82\xac", 3);
    assert_int_equal(audit_write(fixture->store,
                                 &(struct audit_row){.who = big, .verb = big, .detail = big}, NULL),
                     0);
    assert_int_equal(audit_each(fixture->store, ROWS + 1, keep_row, text, NULL), 0);
    char *bar = strchr(text, '|');
    assert_int_equal(bar - text, AUDIT_WHO_MAX);
    assert_memory_equal(bar - 3, "...", 3);
    char *verb_end = strchr(bar + 1, '|');
    assert_int_equal(verb_end - bar - 1, AUDIT_VERB_MAX - 1);
    assert_memory_equal(verb_end - 4, "w...", 4);
    assert_int_equal(strlen(strrchr(text, '|') + 1), AUDIT_DETAIL_MAX);
    assert_int_equal(audit_verify(fixture->store, &head, NULL), 0);
}

/* The bytes that audit.h says, hashed here by hand: a log can be checked by others. */
static void the_hash_is_as_documented(void **state)
{
    struct fixture *fixture = *state;
    struct audit_head head;
    uint8_t bytes[256], hash[32], *at = bytes;
    sqlite3 *database;
    sqlite3_stmt *statement;
    fixture->store = must_open(fixture->path);
    struct audit_row row = {.who = "a", .verb = "bc", .what = "", .outcome = "d", .detail = "e"};
    assert_int_equal(audit_write(fixture->store, &row, NULL), 0);
    assert_int_equal(audit_verify(fixture->store, &head, NULL), 0);
    store_close(take_ptr(fixture->store));
    assert_int_equal(sqlite3_open(fixture->path, &database), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(database, "SELECT at FROM audit", -1, &statement, NULL), 0);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    at = mempcpy(at, "lodge audit 1", 14);
    at = (uint8_t *)memset(at, 0, 32) + 32;
    at = mempcpy(at, "\0\0\0\0\0\0\0\1", 8);
    be64_write(at, (uint64_t)sqlite3_column_int64(statement, 0));
    at = mempcpy(at + 8, "\0\0\0\1a\0\0\0\2bc\0\0\0\0\0\0\0\1d\0\0\0\1e", 25);
    sqlite3_finalize(statement);
    sqlite3_close(database);
    unsigned length;
    assert_int_equal(
        sym_EVP_Digest(bytes, (size_t)(at - bytes), hash, &length, sym_EVP_sha256(), NULL), 1);
    assert_memory_equal(head.hash, hash, sizeof hash);
}

int main(void)
{
#define TEST(name)  cmocka_unit_test_setup_teardown(name, make_log, remove_folder)
#define EMPTY(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(the_chain_holds),          EMPTY(an_empty_log_is_whole),
        TEST(changed_rows_are_found),   TEST(moved_times_are_found),
        TEST(shifted_fields_are_found), TEST(hidden_bytes_are_found),
        TEST(deleted_rows_are_found),   TEST(the_first_row_is_missed),
        TEST(the_last_rows_are_missed), TEST(an_emptied_log_is_found),
        TEST(closed_gaps_are_found),    TEST(swapped_rows_are_found),
        TEST(rows_put_in_are_found),    TEST(rows_put_before_are_found),
        TEST(a_head_put_back_is_found), TEST(rows_are_only_appended),
        TEST(long_texts_are_cut),       EMPTY(the_hash_is_as_documented),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
