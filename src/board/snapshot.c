#include "board/snapshot.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint8_t magic[8] = "LodgeSnp";

enum {
    AT_MAGIC = 0,
    AT_FORMAT = 8,
    AT_SECTIONS = 12,
    AT_SIZE = 16,  /* of the whole file */
    AT_BODY = 24,  /* crc32c of all behind the header */
    AT_CHECK = 28, /* crc32c of the header before this field */
    HEADER_SIZE = 32,

    SECTION_VERSION = 24, /* behind the name */
    SECTION_ZERO = 28,
    SECTION_SIZE = 32,
    SECTION_HEADER = 40, /* contents follow, and zeros up to a multiple of 8 */
};

/* ---- writing ---- */

void snapshot_writer_init(struct snapshot_writer *writer)
{
    *writer = (struct snapshot_writer){0};
    record_save(&writer->bytes, 1);
}

void snapshot_writer_free(struct snapshot_writer *writer)
{
    record_free(&writer->bytes);
    record_free(&writer->section);
}

struct record *snapshot_begin(struct snapshot_writer *writer, const char *name, unsigned version)
{
    snprintf(writer->name, sizeof writer->name, "%s", name);
    record_save(&writer->section, version);
    return &writer->section;
}

void snapshot_end(struct snapshot_writer *writer)
{
    struct record *section = &writer->section;
    uint8_t header[SECTION_HEADER] = {0}, zeros[8] = {0};
    memcpy(header, writer->name, strlen(writer->name));
    le32_write(header + SECTION_VERSION, section->version);
    le64_write(header + SECTION_SIZE, section->size);
    record_bytes(&writer->bytes, header, sizeof header);
    record_bytes(&writer->bytes, section->bytes, section->size);
    record_bytes(&writer->bytes, zeros, align_up(section->size, 8) - section->size);
    writer->sections++;
    writer->failed |= section->failed;
    record_free(section);
}

static int write_all(int fd, const uint8_t *bytes, size_t size, off_t at)
{
    while (size > 0) {
        ssize_t put = pwrite(fd, bytes, size, at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        bytes += put;
        size -= (size_t)put;
        at += put;
    }
    return 0;
}

int snapshot_write(struct snapshot_writer *writer, int fd, struct err *err)
{
    uint8_t header[HEADER_SIZE];
    const struct record *body = &writer->bytes;
    if (writer->failed || body->failed)
        return err_set(err, -ENOMEM, "no memory for the state of the machine");
    memcpy(header, magic, sizeof magic);
    le32_write(header + AT_FORMAT, SNAPSHOT_FORMAT);
    le32_write(header + AT_SECTIONS, writer->sections);
    le64_write(header + AT_SIZE, HEADER_SIZE + body->size);
    le32_write(header + AT_BODY, crc32c(0, body->bytes, body->size));
    le32_write(header + AT_CHECK, crc32c(0, header, AT_CHECK));
    int r = write_all(fd, header, sizeof header, 0);
    if (r >= 0)
        r = write_all(fd, body->bytes, body->size, HEADER_SIZE);
    return r < 0 ? err_errno(err, -r, "cannot write the state of the machine") : 0;
}

/* ---- reading ---- */

static int bad(struct err *err, const char *why)
{
    return err_set(err, -EBADMSG, "the snapshot's state %s", why);
}

static int check_header(const uint8_t *bytes, uint64_t size, struct err *err)
{
    if (size < HEADER_SIZE || memcmp(bytes, magic, sizeof magic) != 0)
        return bad(err, "is no such file");
    if (crc32c(0, bytes, AT_CHECK) != le32_read(bytes + AT_CHECK))
        return bad(err, "is damaged: its header does not match its checksum");
    if (le32_read(bytes + AT_FORMAT) > SNAPSHOT_FORMAT)
        return err_set(err, -ENOTSUP,
                       "the snapshot was made by a newer version: its format is %" PRIu32
                       ", this one reads %d",
                       le32_read(bytes + AT_FORMAT), SNAPSHOT_FORMAT);
    uint64_t whole = le64_read(bytes + AT_SIZE);
    if (whole != size)
        return err_set(err, -EBADMSG,
                       "the snapshot's state is cut off: %" PRIu64 " of %" PRIu64
                       " bytes are there",
                       size, whole);
    if (crc32c(0, bytes + HEADER_SIZE, size - HEADER_SIZE) != le32_read(bytes + AT_BODY))
        return bad(err, "is damaged: its contents do not match their checksum");
    if (le32_read(bytes + AT_SECTIONS) > SNAPSHOT_SECTIONS_MAX)
        return bad(err, "has too many sections");
    return 0;
}

/* The section at `at`; returns where the next one begins, or 0. */
static uint64_t read_section(const uint8_t *bytes, uint64_t size, uint64_t at,
                             struct snapshot_section *section)
{
    if (!range_fits(at, SECTION_HEADER, size) || bytes[at + SNAPSHOT_NAME_MAX] != 0)
        return 0;
    memcpy(section->name, bytes + at, sizeof section->name);
    section->version = le32_read(bytes + at + SECTION_VERSION);
    section->size = le64_read(bytes + at + SECTION_SIZE);
    section->bytes = bytes + at + SECTION_HEADER;
    at += SECTION_HEADER;
    if (section->version == 0 || !range_fits(at, section->size, size))
        return 0;
    return at + align_up(section->size, 8);
}

int snapshot_parse(uint8_t *bytes, uint64_t size, struct snapshot_reader *ret_reader,
                   struct err *err)
{
    struct snapshot_reader reader = {.bytes = bytes, .size = size};
    int r = check_header(bytes, size, err);
    if (r >= 0) {
        reader.count = le32_read(bytes + AT_SECTIONS);
        reader.sections = calloc(reader.count + 1, sizeof *reader.sections);
        r = reader.sections ? 0 : err_set(err, -ENOMEM, "no memory for a snapshot");
    }
    uint64_t at = HEADER_SIZE;
    for (uint32_t i = 0; r >= 0 && i < reader.count; i++) {
        at = read_section(bytes, size, at, &reader.sections[i]);
        if (at == 0)
            r = bad(err, "has a section that cannot be");
    }
    if (r >= 0 && at != size)
        r = bad(err, "goes on behind its end");
    if (r < 0)
        snapshot_reader_free(&reader);
    else
        *ret_reader = reader;
    return r;
}

int snapshot_read(int fd, struct snapshot_reader *ret_reader, struct err *err)
{
    struct stat about;
    if (fstat(fd, &about) < 0)
        return err_errno(err, errno, "the snapshot's state");
    if (about.st_size > SNAPSHOT_SIZE_MAX)
        return bad(err, "is larger than any");
    size_t size = (size_t)about.st_size, have = 0;
    _cleanup_free_ uint8_t *bytes = malloc(size + 1);
    if (!bytes)
        return err_set(err, -ENOMEM, "no memory for a snapshot");
    while (have < size) {
        ssize_t got = pread(fd, bytes + have, size - have, (off_t)have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_errno(err, errno, "the snapshot's state");
        if (got == 0)
            break; /* somebody has cut it; the header knows */
        have += (size_t)got;
    }
    return snapshot_parse(take_ptr(bytes), have, ret_reader, err);
}

void snapshot_reader_free(struct snapshot_reader *reader)
{
    free(reader->bytes);
    free(reader->sections);
    *reader = (struct snapshot_reader){0};
}

int snapshot_find(struct snapshot_reader *reader, const char *name, unsigned version,
                  struct record *ret_record, struct err *err)
{
    struct snapshot_section *found = NULL;
    for (uint32_t i = 0; i < reader->count && !found; i++)
        if (!strcmp(reader->sections[i].name, name) && !reader->sections[i].used)
            found = &reader->sections[i];
    if (!found)
        return err_set(err, -EBADMSG, "the snapshot is of another machine: it has no '%s'", name);
    if (found->version > version)
        return err_set(err, -ENOTSUP,
                       "the snapshot was made by a newer version: its '%s' has version %" PRIu32
                       ", this one knows %u",
                       name, found->version, version);
    found->used = true;
    record_load(ret_record, found->bytes, found->size, found->version);
    return 0;
}

int snapshot_loaded(const char *name, struct record *record, struct err *err)
{
    if (record_ended(record))
        return 0;
    return err_set(err, -EBADMSG, "the snapshot's '%s' %s", name,
                   record->why ? record->why : "cannot be read");
}

int snapshot_all_used(const struct snapshot_reader *reader, struct err *err)
{
    for (uint32_t i = 0; i < reader->count; i++)
        if (!reader->sections[i].used)
            return err_set(err, -EBADMSG,
                           "the snapshot is of another machine: this one has no '%s'",
                           reader->sections[i].name);
    return 0;
}
