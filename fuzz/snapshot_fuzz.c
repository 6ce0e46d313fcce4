// needs: base board mem
// flags: -max_len=8192
/*
 * A snapshot's file of state, from anybody. The first byte says what the rest is: a file as it is;
 * one whose checksums are put right, so that what is behind them is reached; or the contents of a
 * page map. Whatever is taken must be sane: sections lie within the file, one after the other, each
 * is found by its name, and the page map is one for the memory that there is. The map is then held
 * against a file of pages, and mapped.
 */
#include "base/bytes.h"
#include "board/snapshot.h"
#include "board/snapshot_memory.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    MEMORY = 1 << 20,
    HEADER_SIZE = 32,
    AT_SECTIONS = 12,
    AT_SIZE = 16,
    AT_BODY = 24,
    AT_CHECK = 28
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* All but what an attacker would want to get wrong. */
static void mend(uint8_t *bytes, size_t size)
{
    memcpy(bytes, "LodgeSnp\1\0\0\0", 12);
    le64_write(bytes + AT_SIZE, size);
    le32_write(bytes + AT_BODY, crc32c(0, bytes + HEADER_SIZE, size - HEADER_SIZE));
    le32_write(bytes + AT_CHECK, crc32c(0, bytes, AT_CHECK));
}

static int read_map(const uint8_t *bytes, size_t size, struct snapshot_reader *reader,
                    struct err *err)
{
    struct snapshot_writer writer;
    int fd = memfd_create("state", MFD_CLOEXEC);
    assert(fd >= 0);
    snapshot_writer_init(&writer);
    struct record *record = snapshot_begin(&writer, "memory", 1);
    uint64_t pages = MEMORY / 4096;
    record_u64(record, &pages);
    for (size_t i = 0; i < size; i++)
        record_bytes(record, (void *)(uintptr_t)(bytes + i), 1);
    snapshot_end(&writer);
    assert(snapshot_write(&writer, fd, err) >= 0);
    snapshot_writer_free(&writer);
    int r = snapshot_read(fd, reader, err);
    close(fd);
    return r;
}

static int pages_file(void)
{
    int fd = memfd_create("pages", MFD_CLOEXEC);
    uint8_t page[4096];
    memset(page, 0x5a, sizeof page);
    assert(fd >= 0 && ftruncate(fd, MEMORY) == 0);
    ssize_t n = pwrite(fd, page, sizeof page, 3 * 4096);
    assert(n == sizeof page);
    return fd;
}

static void use_map(struct mem *mem, struct record *record)
{
    struct page_map map;
    struct err err = {0};
    if (page_map_init(&map, mem, &err) < 0)
        return;
    page_map_state(&map, record);
    if (record_ended(record)) {
        int fd = pages_file();
        assert(page_map_count(&map) <= map.pages);
        (void)pages_verify(fd, &map, NULL, &err);
        if (pages_map(mem, fd, &map, true, &err) >= 0)
            for (uint64_t page = 0; page < map.pages; page++) {
                const uint8_t *bytes = mem->regions[0].host + page * 4096;
                assert(bytes[0] == (page == 3 && page_map_has(&map, 3) ? 0x5a : 0));
            }
        close(fd);
    }
    page_map_free(&map);
}

static void look(struct snapshot_reader *reader)
{
    struct err err = {0};
    uint64_t at = HEADER_SIZE;
    for (uint32_t i = 0; i < reader->count; i++) {
        const struct snapshot_section *section = &reader->sections[i];
        assert(section->bytes >= reader->bytes + at);
        at = (uint64_t)(section->bytes - reader->bytes) + section->size;
        assert(at <= reader->size);
        assert(strlen(section->name) <= SNAPSHOT_NAME_MAX && *section->name);
        struct record record;
        int r = snapshot_find(reader, section->name, UINT32_MAX, &record, &err);
        assert(r == 0 || r == -EBADMSG);
    }
    struct record record;
    if (snapshot_find(reader, "memory", 1, &record, &err) < 0)
        return;
    struct mem *mem = mem_new();
    assert(mem && mem_add(mem, 0, MEMORY, false, &err) >= 0);
    use_map(mem, &record);
    mem_free(mem);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct snapshot_reader reader;
    struct err err = {0};
    if (size < 1 + HEADER_SIZE)
        return 0;
    int r;
    if (data[0] % 3 < 2) {
        uint8_t *bytes = malloc(size - 1);
        assert(bytes);
        memcpy(bytes, data + 1, size - 1);
        if (data[0] % 3)
            mend(bytes, size - 1);
        r = snapshot_parse(bytes, size - 1, &reader, &err);
    } else {
        r = read_map(data + 1, size - 1, &reader, &err);
    }
    assert(r == 0 || r == -EBADMSG || r == -ENOTSUP || r == -ENOMEM);
    if (r < 0)
        return 0;
    look(&reader);
    snapshot_reader_free(&reader);
    return 0;
}
