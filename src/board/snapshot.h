/*
 * snapshot.h: the file that holds a machine's state, but for its memory. docs/snapshot.md has the
 * format byte by byte.
 *
 * A file is a header, then sections, each with a name and a version of its own. Names are looked
 * up, so their order means nothing, and a section that nobody asks for is an error of its own: a
 * device that is not here.
 *
 * Reading takes the whole file in, holds it against its checksum and against what it says of its
 * own lengths, and believes nothing else: a section's contents are for its reader to bound
 * (base/record.h). Errors: -EBADMSG with the reason; -ENOTSUP where a newer version wrote it.
 *
 *     snapshot_writer_init(&writer);
 *     struct record *record = snapshot_begin(&writer, "rtc", 1);
 *     ...
 *     snapshot_end(&writer);
 *     r = snapshot_write(&writer, fd, err);
 */
#pragma once

#include "base/err.h"
#include "base/record.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SNAPSHOT_FORMAT = 1,
    SNAPSHOT_NAME_MAX = 23,
    SNAPSHOT_SECTIONS_MAX = 512,
    SNAPSHOT_SIZE_MAX = 256 << 20, /* of the file: a guest of a terabyte has a large page map */
    SNAPSHOT_ID_SIZE = 16,
};

struct snapshot_writer {
    struct record bytes, section;
    char name[SNAPSHOT_NAME_MAX + 1];
    uint32_t sections;
    bool failed; /* no memory */
};

void snapshot_writer_init(struct snapshot_writer *writer);
void snapshot_writer_free(struct snapshot_writer *writer);
struct record *snapshot_begin(struct snapshot_writer *writer, const char *name, unsigned version);
void snapshot_end(struct snapshot_writer *writer);
/* Writes all of it to the start of the file. */
int snapshot_write(struct snapshot_writer *writer, int fd, struct err *err);

struct snapshot_section {
    char name[SNAPSHOT_NAME_MAX + 1];
    uint32_t version;
    const uint8_t *bytes;
    uint64_t size;
    bool used;
};

struct snapshot_reader {
    uint8_t *bytes;
    uint64_t size;
    uint32_t count;
    struct snapshot_section *sections;
};

int snapshot_read(int fd, struct snapshot_reader *ret_reader, struct err *err);
/* The same of bytes, which the reader owns from then on, also after an error. */
int snapshot_parse(uint8_t *bytes, uint64_t size, struct snapshot_reader *ret_reader,
                   struct err *err);
void snapshot_reader_free(struct snapshot_reader *reader);
/* Prepares loading of a section. -EBADMSG where there is none, -ENOTSUP where its version is above
 * `version`. */
int snapshot_find(struct snapshot_reader *reader, const char *name, unsigned version,
                  struct record *ret_record, struct err *err);
/* What became of it: 0, or -EBADMSG with the section's name and the record's reason. */
int snapshot_loaded(const char *name, struct record *record, struct err *err);
/* -EBADMSG with the name of the first section that nobody has found. */
int snapshot_all_used(const struct snapshot_reader *reader, struct err *err);
