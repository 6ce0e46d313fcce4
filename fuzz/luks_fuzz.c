// needs: disk base
// flags: -max_len=16384 -dict=../../fuzz/luks.dict
// -seed_inputs=../../fuzz/seeds/luks/luks1,../../fuzz/seeds/luks/pbkdf2,../../fuzz/seeds/luks/argon2id
/*
 * A container of an attacker's choice. The first byte says what the rest is: the text of a LUKS2
 * header, which is put into one with a checksum that is right, or the file as it is. What opens, is
 * read and written to.
 */
#include "base/bytes.h"
#include "disk/luks.h"
#include "disk/luks2.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER = 16 << 10, LENGTH = 1 << 20, BUDGET = 5000 };

static int open_it(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", *(int *)opaque);
    int fd = open(name, O_RDWR);
    return fd < 0 ? -errno : fd;
}

static void put_header(int fd, const uint8_t *text, size_t length)
{
    static uint8_t header[HEADER];
    memset(header, 0, sizeof header);
    memcpy(header, "LUKS\xba\xbe\0\2", 8);
    header[LUKS2_AT_SIZE + 6] = HEADER >> 8;
    memcpy(header + LUKS2_AT_ALGORITHM, "sha256", 6);
    memcpy(header + LUKS2_BINARY_BYTES, text, min(length, (size_t)HEADER - LUKS2_BINARY_BYTES));
    int r = luks2_checksum("sha256", header, HEADER, header + LUKS2_AT_SUM);
    assert(r == 32);
    ssize_t n = pwrite(fd, header, HEADER, 0);
    assert(n == HEADER);
}

/* Whatever a header says of it: a payload lies within what a disk may have, and takes bytes. */
static void use(struct file *file)
{
    static uint8_t bytes[9000];
    uint64_t length, part;
    bool hole;
    if (file_length(file, &length) < 0)
        return;
    (void)file_read_bytes(file, 0, bytes, sizeof bytes);
    (void)file_status(file, 700, max(length, UINT64_C(1000)), &hole, &part);
    if (length < 8 * sizeof bytes)
        return;
    memset(bytes, 0x5a, sizeof bytes);
    if (file_write_bytes(file, 300, bytes, sizeof bytes) < 0)
        return;
    memset(bytes, 0, sizeof bytes);
    int r = file_read_bytes(file, 300, bytes, sizeof bytes);
    assert(r == 0 && bytes[0] == 0x5a && bytes[sizeof bytes - 1] == 0x5a);
    (void)file_discard(file, 1000, 5000);
    (void)file_zero(file, 100, 3000, true);
}

/* Owns the file. */
static void try_container(struct file *file, const struct disk_key *key)
{
    static struct luks luks;
    struct err err = {0};
    struct crypt crypt;
    struct file *inside;
    char text[256];
    luks_describe(file, text, sizeof text);
    int r = luks_read(file, &luks, &err);
    assert(r == 0 || *err.text);
    if (r < 0) {
        file_free(file);
        return;
    }
    assert(luks.slot_count <= LUKS_SLOTS_MAX && luks.digest_count <= LUKS_DIGESTS_MAX);
    r = luks_unlock(file, &luks, key, BUDGET, &crypt, &err);
    if (r < 0) {
        /* The layer is of interest even where no slot opens: with a key that we make up. */
        crypt = luks.payload;
        for (unsigned i = 0; i < sizeof crypt.key; i++)
            crypt.key[i] = (uint8_t)i;
    }
    if (crypt_open(file, &crypt, &inside, &err) < 0) {
        file_free(file);
        return;
    }
    use(inside);
    file_free(inside);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t passphrase[] = "fuzz";
    if (size < 2)
        return 0;
    int fd = memfd_create("container", MFD_CLOEXEC);
    assert(fd >= 0);
    if (ftruncate(fd, LENGTH) < 0)
        return 0;
    if (data[0] & 1) {
        put_header(fd, data + 1, size - 1);
    } else {
        ssize_t n = pwrite(fd, data + 1, size - 1, 0);
        assert(n == (ssize_t)size - 1);
    }
    struct disk_key *key = calloc(1, sizeof *key + sizeof passphrase);
    key->length = sizeof passphrase - 1;
    memcpy(key->bytes, passphrase, sizeof passphrase);
    struct disk_opener opener = {open_it, &fd};
    struct disk_options options = {.cache = DISK_CACHE_UNSAFE, .opener = &opener};
    struct file *file;
    int r = file_open("container", NULL, true, &options, &file, NULL);
    assert(r == 0);
    try_container(file, key);
    free(key);
    close(fd);
    return 0;
}
