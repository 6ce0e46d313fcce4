/*
 * audit.h: who asked what of this host, and what came of it: rows that are only ever appended, each
 * bound to the one before by a hash.
 *
 *     hash(n) = SHA-256("lodge audit 1" 00 || hash(n-1) || n || at || who || verb || what ||
 * outcome
 *                       || detail)
 *
 * hash(0) is 32 zero bytes; numbers are 8 bytes, big-endian; a text is its length in 4 such bytes,
 * then its bytes. So no two different rows, nor two different cuts of one row into fields, are the
 * same bytes. The number and hash of the last row are kept beside, so that rows missing at the end
 * are seen.
 *
 * What this shows: that a row was changed, taken out, put in or moved by somebody who did not
 * compute all later hashes anew. Who can write the database can do that too; against them the head
 * that audit_verify() returns is to be kept elsewhere, and compared.
 *
 * The rows are in the database of store.h, whose rules for threads and errors hold. A call is one
 * transaction. libcrypto is needed: -ENOENT where it is not there.
 *
 *     r = audit_write(store, &(struct audit_row){.who = "uid 0", .verb = "start", .what = "guest
 * web", .outcome = "ok"}, err);
 */
#pragma once

#include "host/store.h"

enum {
    AUDIT_WHO_MAX = 255,
    AUDIT_VERB_MAX = 63,
    AUDIT_WHAT_MAX = 255,
    AUDIT_OUTCOME_MAX = 63,
    AUDIT_DETAIL_MAX = 4095,
    AUDIT_HASH_SIZE = 32,
};

/* Texts may be NULL, which is "". What is longer than its bound is cut, and ends with "..." then: a
 * line must not be missing because a client's name was long. */
struct audit_row {
    const char *who, *verb, *what, *outcome, *detail;
    /* Of rows that are read. */
    uint64_t sequence; /* from 1 */
    int64_t at;        /* ms after 1970 */
};

int audit_write(struct store *store, const struct audit_row *row, struct err *err);

/* From row `first` on. The rules for `each` are those of store_guest_each(). */
int audit_each(struct store *store, uint64_t first,
               int (*each)(void *opaque, const struct audit_row *row), void *opaque,
               struct err *err);

struct audit_head {
    uint64_t sequence; /* of the last row; 0: there is none */
    uint8_t hash[AUDIT_HASH_SIZE];
};

/* Reads all rows. -EBADMSG with the first one that is wrong, and how. */
int audit_verify(struct store *store, struct audit_head *ret_head, struct err *err);
