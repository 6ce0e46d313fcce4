/*
 * record.h: state as bytes, for snapshots and migration.
 *
 * A `struct record` is a stretch of bytes that is being written or read. Whoever has state
 * describes it once, in one function that is called for both ways: each record_*() call appends the
 * value of the variable when saving and sets it when loading, so that the two cannot disagree.
 *
 *     static void channel_state(struct record *record, struct channel *channel)
 *     {
 *         record_u8_below(record, &channel->mode, 6);   // an index or a count: bounded
 *         record_u32(record, &channel->count);
 *         record_bool(record, &channel->gate);
 *     }
 *
 * Integers are little-endian and not padded; a bool is a byte, 0 or 1.
 *
 * What is loaded comes from a file that anybody may have written: what is used as an index, a count
 * or an enum goes through a call with a bound. The first value that is out of bounds, and the first
 * read behind the end, mark the record as failed; from then on loading sets nothing but zeros, so
 * that a caller need look once, at the end.
 *
 * `version` is that of the layout, 1 or more: the one that is being saved, or the one that the
 * bytes were saved with. A layout grows at its end only, with `if (record->version >= 2)`.
 *
 * Threads: one at a time. Saving needs memory: where there is none the record has failed, too.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct record {
    uint8_t *bytes;
    size_t size; /* saving: so many are there; loading: of all */
    size_t at;   /* loading: the next one */
    size_t room; /* saving */
    unsigned version;
    bool loading, failed;
    const char *why; /* what was wrong with it, NULL = nothing or no room */
};

void record_save(struct record *record, unsigned version);
void record_free(struct record *record); /* of record_save() */
/* Borrows the bytes. */
void record_load(struct record *record, const void *bytes, size_t size, unsigned version);
/* True where everything was loaded that was there, and nothing failed. */
bool record_ended(struct record *record);
/* Something that a caller has noticed. */
void record_fail(struct record *record, const char *why);

void record_u8(struct record *record, uint8_t *value);
void record_u16(struct record *record, uint16_t *value);
void record_u32(struct record *record, uint32_t *value);
void record_u64(struct record *record, uint64_t *value);
void record_i64(struct record *record, int64_t *value);
void record_bool(struct record *record, bool *value);
void record_bytes(struct record *record, void *bytes, size_t size);

/* A value below `limit`. */
void record_u8_below(struct record *record, uint8_t *value, uint8_t limit);
void record_u16_below(struct record *record, uint16_t *value, uint16_t limit);
void record_u32_below(struct record *record, uint32_t *value, uint32_t limit);
/* A value that must be what it is here, such as how many of something there are. */
void record_same(struct record *record, uint32_t value, const char *what);

/* The Castagnoli polynomial (RFC 3720, appendix B.4), as many begin with: crc 0 for the first part,
 * then what the part before gave. */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t size);
