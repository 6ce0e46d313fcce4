#include "disk/luks2.h"
#include "disk/luks.h"

#include "base/bytes.h"
#include "base/openssl.h"
#include "base/own.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* LUKS2 On-Disk Format 1.1.2, 2.2: where a header's copy may begin, which is how long one is. */
static const uint64_t sizes[] = {KIB(16),  KIB(32), KIB(64), KIB(128), KIB(256),
                                 KIB(512), MIB(1),  MIB(2),  MIB(4)};

static bool known_size(uint64_t size)
{
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        if (sizes[i] == size)
            return true;
    return false;
}

int luks2_checksum(const char *algorithm, const uint8_t *header, size_t length,
                   uint8_t ret_sum[LUKS2_SUM_BYTES])
{
    static const uint8_t none[LUKS2_SUM_BYTES];
    int r = crypto_load(NULL);
    if (r < 0)
        return r;
    const EVP_MD *hash = !strcmp(algorithm, "sha256")   ? sym_EVP_sha256()
                         : !strcmp(algorithm, "sha512") ? sym_EVP_sha512()
                         : !strcmp(algorithm, "sha1")   ? sym_EVP_sha1()
                                                        : NULL;
    if (!hash)
        return -EINVAL;
    EVP_MD_CTX *context = sym_EVP_MD_CTX_new();
    const size_t behind = LUKS2_AT_SUM + LUKS2_SUM_BYTES;
    bool done = context && sym_EVP_DigestInit_ex(context, hash, NULL) == 1 &&
                sym_EVP_DigestUpdate(context, header, LUKS2_AT_SUM) == 1 &&
                sym_EVP_DigestUpdate(context, none, sizeof none) == 1 &&
                sym_EVP_DigestUpdate(context, header + behind, length - behind) == 1 &&
                sym_EVP_DigestFinal_ex(context, ret_sum, NULL) == 1;
    sym_EVP_MD_CTX_free(context);
    return done ? sym_EVP_MD_get_size(hash) : -ENOMEM;
}

/* One of the two headers: *ret_header is NULL if it is none that can be believed. */
static int read_copy(struct file *file, uint64_t offset, const char *magic, uint8_t **ret_header,
                     uint64_t *ret_size)
{
    uint8_t first[LUKS2_BINARY_BYTES], sum[LUKS2_SUM_BYTES];
    char algorithm[LUKS_NAME_MAX];
    *ret_header = NULL;
    int r = file_read_bytes(file, offset, first, sizeof first);
    if (r < 0)
        return r;
    uint64_t size = be64_read(first + LUKS2_AT_SIZE);
    memcpy(algorithm, first + LUKS2_AT_ALGORITHM, sizeof algorithm);
    if (memcmp(first, magic, 6) != 0 || first[6] != 0 || first[7] != 2 || !known_size(size) ||
        be64_read(first + LUKS2_AT_OFFSET) != offset || !memchr(algorithm, 0, sizeof algorithm))
        return 0;
    _cleanup_free_ uint8_t *header = malloc(size);
    if (!header)
        return -ENOMEM;
    r = file_read_bytes(file, offset, header, size);
    int length = r < 0 ? r : luks2_checksum(algorithm, header, size, sum);
    if (r < 0 || length == -ENOMEM)
        return r < 0 ? r : length;
    if (length < 0 || memcmp(sum, header + LUKS2_AT_SUM, (size_t)length) != 0)
        return 0;
    *ret_header = take_ptr(header);
    *ret_size = size;
    return 0;
}

/* The newer one of those that are whole. */
static int read_newest(struct file *file, uint8_t **ret_header, uint64_t *ret_size)
{
    _cleanup_free_ uint8_t *first = NULL;
    _cleanup_free_ uint8_t *second = NULL;
    uint64_t size = 0, second_size = 0;
    int r = read_copy(file, 0, "LUKS\xba\xbe", &first, &size);
    if (r >= 0 && first)
        r = read_copy(file, size, "SKUL\xba\xbe", &second, &second_size);
    for (size_t i = 0; r >= 0 && !first && !second && i < ARRAY_LEN(sizes); i++)
        r = read_copy(file, sizes[i], "SKUL\xba\xbe", &second, &second_size);
    if (r < 0)
        return r;
    bool newer = second && (!first || be64_read(second + LUKS2_AT_SEQUENCE) >
                                          be64_read(first + LUKS2_AT_SEQUENCE));
    *ret_header = newer ? take_ptr(second) : take_ptr(first);
    *ret_size = newer ? second_size : size;
    return 0;
}

int luks2_parse(struct file *file, struct luks *luks, struct err *err)
{
    _cleanup_free_ uint8_t *header = NULL;
    uint64_t size, length;
    int r = file_length(file, &length);
    if (r >= 0)
        r = read_newest(file, &header, &size);
    if (r < 0)
        return err_errno(err, -r, "LUKS header");
    if (!header)
        return err_set(err, -EINVAL, "it is no LUKS container, or both of its headers are damaged");
    luks->version = 2;
    luks->header_end = 2 * size;
    const char *text = (const char *)header + LUKS2_BINARY_BYTES;
    return luks2_parse_json(text, strnlen(text, size - LUKS2_BINARY_BYTES), length, luks, err);
}
