#include "disk/luks.h"

#include "base/bytes.h"
#include "base/openssl.h"

#include <argon2.h>
#include <errno.h>
#include <string.h>

#define SYMBOLS(X) X(argon2i_hash_raw) X(argon2id_hash_raw)
SYMBOLS(LIBRARY_STATIC)
static const struct library_symbol symbols[] = {SYMBOLS(LIBRARY_ROW)};
static struct library argon2_library = {.file = "libargon2.so.1",
                                        .symbols = symbols,
                                        .count = ARRAY_LEN(symbols),
                                        .lock = PTHREAD_MUTEX_INITIALIZER};

/* What cryptsetup writes, and OpenSSL has without its legacy provider. */
static const struct hash {
    const char *name;
    const EVP_MD *(**get)(void);
    int size;
} hashes[] = {
    {"sha256", &sym_EVP_sha256, 32}, {"sha512", &sym_EVP_sha512, 64}, {"sha1", &sym_EVP_sha1, 20},
    {"sha224", &sym_EVP_sha224, 28}, {"sha384", &sym_EVP_sha384, 48},
};

static const struct hash *find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(hashes); i++)
        if (!strcmp(hashes[i].name, name))
            return &hashes[i];
    return NULL;
}

int luks_hash_size(const char *hash)
{
    const struct hash *found = find(hash);
    return found ? found->size : -EINVAL;
}

uint64_t luks_work(const struct luks_derive *derive, size_t length)
{
    if (derive->kdf != LUKS_PBKDF2)
        return (uint64_t)derive->iterations * derive->kib * 4;
    int size = luks_hash_size(derive->hash);
    return size < 0 ? UINT64_MAX
                    : derive->iterations * ((length + (size_t)size - 1) / (size_t)size);
}

int luks_derive_key(const struct luks_derive *derive, const uint8_t *passphrase, size_t length,
                    uint8_t *ret_key, size_t key_size)
{
    const struct hash *hash = find(derive->hash);
    int r = derive->kdf == LUKS_PBKDF2 ? crypto_load(NULL) : library_load(&argon2_library, NULL);
    if (r < 0)
        return r;
    switch (derive->kdf) {
    case LUKS_PBKDF2:
        if (!hash || derive->iterations > INT32_MAX || !derive->iterations)
            return -EINVAL;
        return sym_PKCS5_PBKDF2_HMAC((const char *)passphrase, (int)length, derive->salt,
                                     (int)derive->salt_length, (int)derive->iterations,
                                     (*hash->get)(), (int)key_size, ret_key) == 1
                   ? 0
                   : -ENOMEM;
    case LUKS_ARGON2I:
        r = sym_argon2i_hash_raw(derive->iterations, derive->kib, derive->lanes, passphrase, length,
                                 derive->salt, derive->salt_length, ret_key, key_size);
        break;
    default:
        r = sym_argon2id_hash_raw(derive->iterations, derive->kib, derive->lanes, passphrase,
                                  length, derive->salt, derive->salt_length, ret_key, key_size);
        break;
    }
    return r == ARGON2_OK                        ? 0
           : r == ARGON2_MEMORY_ALLOCATION_ERROR ? -ENOMEM
           : r == ARGON2_THREAD_FAIL             ? -EAGAIN
                                                 : -EINVAL;
}

/* Spreads each bit of a block over all of it (LUKS1 On-Disk Format, 2.4): pieces as long as the
 * hash, each becomes the hash of its number and itself. */
static int diffuse(const struct hash *hash, uint8_t *block, size_t size)
{
    uint8_t digest[EVP_MAX_MD_SIZE], input[4 + EVP_MAX_MD_SIZE];
    uint32_t number = 0;
    for (size_t at = 0; at < size; at += (size_t)hash->size) {
        size_t part = min(size - at, (size_t)hash->size);
        be32_write(input, number++);
        memcpy(input + 4, block + at, part);
        if (sym_EVP_Digest(input, 4 + part, digest, NULL, (*hash->get)(), NULL) != 1)
            return -ENOMEM;
        memcpy(block + at, digest, part);
    }
    explicit_bzero(digest, sizeof digest);
    explicit_bzero(input, sizeof input);
    return 0;
}

/* All stripes but the last, folded. */
static int fold(const struct hash *hash, const uint8_t *stripes, size_t key_size, uint8_t *block)
{
    int r = 0;
    memset(block, 0, key_size);
    for (unsigned i = 0; r >= 0 && i < LUKS_STRIPES - 1; i++) {
        for (size_t at = 0; at < key_size; at++)
            block[at] ^= stripes[i * key_size + at];
        r = diffuse(hash, block, key_size);
    }
    return r;
}

int luks_merge(const char *name, const uint8_t *stripes, size_t key_size, uint8_t *ret_key)
{
    const struct hash *hash = find(name);
    int r = hash ? crypto_load(NULL) : -EINVAL;
    if (r >= 0)
        r = fold(hash, stripes, key_size, ret_key);
    for (size_t at = 0; r >= 0 && at < key_size; at++)
        ret_key[at] ^= stripes[(LUKS_STRIPES - 1) * key_size + at];
    return r;
}

int luks_split(const char *name, const uint8_t *key, size_t key_size, uint8_t *ret_stripes)
{
    const struct hash *hash = find(name);
    uint8_t *last = ret_stripes + (LUKS_STRIPES - 1) * key_size;
    int r = hash ? crypto_load(NULL) : -EINVAL;
    if (r < 0)
        return r;
    if (sym_RAND_priv_bytes(ret_stripes, (int)((LUKS_STRIPES - 1) * key_size)) != 1)
        return -EIO;
    r = fold(hash, ret_stripes, key_size, last);
    for (size_t at = 0; r >= 0 && at < key_size; at++)
        last[at] ^= key[at];
    return r;
}
