#include "base/record.h"

#include "base/bytes.h"

#include <stdlib.h>

void record_save(struct record *record, unsigned version)
{
    *record = (struct record){.version = version};
}

void record_free(struct record *record)
{
    free(record->bytes);
    *record = (struct record){0};
}

void record_load(struct record *record, const void *bytes, size_t size, unsigned version)
{
    *record = (struct record){.bytes = (uint8_t *)(uintptr_t)bytes, /* never written to */
                              .size = size,
                              .version = version,
                              .loading = true};
}

void record_fail(struct record *record, const char *why)
{
    if (!record->failed)
        record->why = why;
    record->failed = true;
}

bool record_ended(struct record *record)
{
    if (record->loading && !record->failed && record->at != record->size)
        record_fail(record, "is longer than it should be");
    return !record->failed;
}

static bool grow(struct record *record, size_t more)
{
    if (record->size + more <= record->room)
        return true;
    size_t room = max(2 * record->room, record->size + more + 256);
    uint8_t *bytes = realloc(record->bytes, room);
    if (!bytes) {
        record_fail(record, NULL);
        return false;
    }
    record->bytes = bytes;
    record->room = room;
    return true;
}

void record_bytes(struct record *record, void *bytes, size_t size)
{
    if (size == 0)
        return;
    if (!record->loading) {
        if (!record->failed && grow(record, size)) {
            memcpy(record->bytes + record->size, bytes, size);
            record->size += size;
        }
        return;
    }
    if (!record->failed && !range_fits(record->at, size, record->size))
        record_fail(record, "is too short");
    if (record->failed) {
        memset(bytes, 0, size);
        return;
    }
    memcpy(bytes, record->bytes + record->at, size);
    record->at += size;
}

void record_u8(struct record *record, uint8_t *value)
{
    record_bytes(record, value, 1);
}

void record_u16(struct record *record, uint16_t *value)
{
    uint8_t bytes[2];
    le16_write(bytes, *value);
    record_bytes(record, bytes, sizeof bytes);
    if (record->loading)
        *value = le16_read(bytes);
}

void record_u32(struct record *record, uint32_t *value)
{
    uint8_t bytes[4];
    le32_write(bytes, *value);
    record_bytes(record, bytes, sizeof bytes);
    if (record->loading)
        *value = le32_read(bytes);
}

void record_u64(struct record *record, uint64_t *value)
{
    uint8_t bytes[8];
    le64_write(bytes, *value);
    record_bytes(record, bytes, sizeof bytes);
    if (record->loading)
        *value = le64_read(bytes);
}

void record_i64(struct record *record, int64_t *value)
{
    uint64_t bits = (uint64_t)*value;
    record_u64(record, &bits);
    if (record->loading)
        *value = (int64_t)bits;
}

void record_bool(struct record *record, bool *value)
{
    uint8_t byte = !record->loading && *value;
    record_u8_below(record, &byte, 2);
    if (record->loading)
        *value = byte;
}

/* ---- bounded ---- */

static const char *const out_of_bounds = "has a value that cannot be";

void record_u8_below(struct record *record, uint8_t *value, uint8_t limit)
{
    record_u8(record, value);
    if (record->loading && *value >= limit) {
        *value = 0;
        record_fail(record, out_of_bounds);
    }
}

void record_u16_below(struct record *record, uint16_t *value, uint16_t limit)
{
    record_u16(record, value);
    if (record->loading && *value >= limit) {
        *value = 0;
        record_fail(record, out_of_bounds);
    }
}

void record_u32_below(struct record *record, uint32_t *value, uint32_t limit)
{
    record_u32(record, value);
    if (record->loading && *value >= limit) {
        *value = 0;
        record_fail(record, out_of_bounds);
    }
}

void record_same(struct record *record, uint32_t value, const char *what)
{
    uint32_t there = value;
    record_u32(record, &there);
    if (record->loading && there != value)
        record_fail(record, what);
}
