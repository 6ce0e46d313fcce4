#include "disk/luks.h"

#include "base/bytes.h"
#include "base/openssl.h"
#include "base/own.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool luks_magic(const uint8_t bytes[8])
{
    return !memcmp(bytes, "LUKS\xba\xbe", 6) && bytes[6] == 0 && (bytes[7] == 1 || bytes[7] == 2);
}

int luks_check_cipher(const char *cipher, uint32_t key_size, struct err *err)
{
    if (strcmp(cipher, "aes-xts-plain64") != 0)
        return err_set(err, -EINVAL, "LUKS cipher '%.64s' is unknown; there is aes-xts-plain64",
                       cipher);
    if (key_size != 32 && key_size != 64)
        return err_set(err, -EINVAL, "LUKS: aes-xts-plain64 has keys of 32 or 64 bytes, not %u",
                       key_size);
    return 0;
}

int luks_check_slot(const struct luks *luks, const struct luks_slot *slot, uint64_t file_length,
                    struct err *err)
{
    uint64_t length = (uint64_t)luks->payload.key_size * LUKS_STRIPES;
    if (slot->area % CRYPT_UNIT || slot->area < luks->header_end ||
        !range_fits(slot->area, length, file_length))
        return err_set(err, -EINVAL, "LUKS key slot %u lies where it cannot", slot->number);
    /* From a payload the guest would choose what the key is. */
    if (slot->area < luks->payload.offset && slot->area + length > luks->payload.offset)
        return err_set(err, -EINVAL, "LUKS key slot %u runs into the payload", slot->number);
    if (slot->area >= luks->payload.offset)
        return err_set(err, -EINVAL, "LUKS key slot %u lies in the payload", slot->number);
    return 0;
}

int luks_read(struct file *file, struct luks *ret_luks, struct err *err)
{
    uint8_t magic[8];
    memset(ret_luks, 0, sizeof *ret_luks);
    int r = file_read_bytes(file, 0, magic, sizeof magic);
    if (r < 0)
        return err_errno(err, -r, "LUKS header");
    return luks_magic(magic) && magic[7] == 1 ? luks1_parse(file, ret_luks, err)
                                              : luks2_parse(file, ret_luks, err);
}

/* --- unlocking --- */

/* What a slot needs while it is tried; a secret. */
struct trial {
    uint8_t area_key[CRYPT_KEY_MAX];
    uint8_t volume_key[CRYPT_KEY_MAX];
    uint8_t digest[LUKS_HASH_MAX];
    uint8_t stripes[CRYPT_KEY_MAX * LUKS_STRIPES];
};

static int read_stripes(struct file *file, const struct luks_slot *slot, size_t length,
                        struct trial *trial)
{
    struct cipher *cipher;
    int r = file_read_bytes(file, slot->area, trial->stripes, length);
    if (r >= 0)
        r = cipher_new(trial->area_key, slot->area_key_size, &cipher);
    if (r < 0)
        return r;
    r = cipher_run(cipher, false, 0, CRYPT_UNIT, trial->stripes, length);
    cipher_free(cipher);
    return r;
}

static bool within(uint64_t *budget, uint64_t work)
{
    if (work > *budget)
        return false;
    *budget -= work;
    return true;
}

/* 1: this is the key; 0: it is not; -E2BIG: to find out is too much work. */
static int try_slot(struct file *file, const struct luks *luks, const struct luks_slot *slot,
                    const struct disk_key *key, uint64_t *budget, struct trial *trial)
{
    const struct luks_digest *digest = &luks->digests[slot->digest];
    size_t key_size = luks->payload.key_size;
    if (!within(budget, luks_work(&slot->derive, slot->area_key_size)) ||
        !within(budget, luks_work(&digest->derive, digest->length)))
        return -E2BIG;
    int r = luks_derive_key(&slot->derive, key->bytes, key->length, trial->area_key,
                            slot->area_key_size);
    if (r >= 0)
        r = read_stripes(file, slot, key_size * LUKS_STRIPES, trial);
    if (r >= 0)
        r = luks_merge(slot->hash, trial->stripes, key_size, trial->volume_key);
    if (r >= 0)
        r = luks_derive_key(&digest->derive, trial->volume_key, key_size, trial->digest,
                            digest->length);
    return r < 0 ? r : !sym_CRYPTO_memcmp(trial->digest, digest->bytes, digest->length);
}

static int try_slots(struct file *file, const struct luks *luks, const struct disk_key *key,
                     uint64_t budget, struct trial *trial, struct err *err)
{
    int failed = 0;
    unsigned which = 0;
    for (unsigned i = 0; i < luks->slot_count; i++) {
        int r = try_slot(file, luks, &luks->slots[i], key, &budget, trial);
        if (r > 0)
            return 0;
        if (r < 0 && !failed) {
            failed = r;
            which = luks->slots[i].number;
        }
    }
    if (!failed)
        return err_set(err, -EACCES, "no key slot opens with this key");
    if (failed == -E2BIG)
        return err_set(err, -EACCES,
                       "no key slot opens with this key, but slot %u was not tried: it asks for "
                       "more work than is sane",
                       which);
    return err_errno(err, -failed, "key slot %u cannot be tried", which);
}

int luks_unlock(struct file *file, const struct luks *luks, const struct disk_key *key,
                uint64_t budget, struct crypt *ret_crypt, struct err *err)
{
    if (!luks->slot_count)
        return err_set(err, -EACCES, "it has no key slot at all");
    struct trial *trial = secret_new(sizeof *trial);
    if (!trial)
        return err_set(err, -ENOMEM, "no memory");
    int r = try_slots(file, luks, key, budget, trial, err);
    if (r >= 0) {
        *ret_crypt = luks->payload;
        memcpy(ret_crypt->key, trial->volume_key, luks->payload.key_size);
    }
    secret_free(trial, sizeof *trial);
    return r;
}

static int unlock_file(struct file *file, const struct disk_key *key, struct crypt *crypt,
                       struct err *err)
{
    _cleanup_free_ struct luks *luks = malloc(sizeof *luks);
    if (!luks)
        return err_set(err, -ENOMEM, "no memory");
    int r = luks_read(file, luks, err);
    return r < 0 ? r : luks_unlock(file, luks, key, LUKS_BUDGET, crypt, err);
}

int luks_open(struct file *file, const struct disk_key *key, struct file **ret_file,
              struct err *err)
{
    /* Nothing is looked at here: whoever unlocked it has done that. */
    if (key->unlocked)
        return crypt_open(file, (const struct crypt *)(const void *)key->bytes, ret_file, err);
    int r = crypto_load(err);
    if (r < 0)
        return r;
    struct crypt *crypt = secret_new(sizeof *crypt);
    if (!crypt)
        return err_set(err, -ENOMEM, "no memory");
    r = unlock_file(file, key, crypt, err);
    if (r >= 0)
        r = crypt_open(file, crypt, ret_file, err);
    secret_free(crypt, sizeof *crypt);
    return r;
}

void luks_describe(struct file *file, char *ret_text, size_t size)
{
    static const char *const kdfs[LUKS_KDF_MAX] = {"pbkdf2", "argon2i", "argon2id"};
    uint8_t magic[8];
    *ret_text = '\0';
    if (file_read_bytes(file, 0, magic, sizeof magic) < 0 || !luks_magic(magic))
        return;
    _cleanup_free_ struct luks *luks = malloc(sizeof *luks);
    struct err err = {0};
    if (!luks || luks_read(file, luks, &err) < 0) {
        snprintf(ret_text, size, "LUKS%u, not to be opened here: %s", magic[7], err.text);
        return;
    }
    int n =
        snprintf(ret_text, size, "LUKS%u, aes-xts-plain64, key of %u bits, sectors of %u, slots",
                 luks->version, luks->payload.key_size * 8, luks->payload.sector_size);
    for (unsigned i = 0; i < luks->slot_count && n > 0 && (size_t)n < size; i++)
        n += snprintf(ret_text + n, size - (size_t)n, " %u (%s)", luks->slots[i].number,
                      kdfs[luks->slots[i].derive.kdf]);
}
