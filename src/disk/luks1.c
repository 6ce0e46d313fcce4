#include "disk/luks.h"

#include "base/bytes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* LUKS1 On-Disk Format 1.2.3, 3: big-endian, in sectors of 512 bytes. */
enum {
    HEADER_BYTES = 592,
    AT_CIPHER = 8,
    AT_MODE = 40,
    AT_HASH = 72,
    AT_PAYLOAD = 104,
    AT_KEY_SIZE = 108,
    AT_DIGEST = 112,
    AT_DIGEST_SALT = 132,
    AT_DIGEST_ITERATIONS = 164,
    AT_SLOTS = 208,
    SLOT_BYTES = 48,
    SLOTS = 8,
    SALT_BYTES = 32,
    DIGEST_BYTES = 20,
    FIELD_BYTES = 32,
    SLOT_ENABLED = 0x00ac71f3,
};

static int text_at(const uint8_t *at, char *ret_text)
{
    memcpy(ret_text, at, FIELD_BYTES);
    return memchr(ret_text, 0, FIELD_BYTES) ? 0 : -EINVAL;
}

static void derive_at(struct luks_derive *derive, const char *hash, const uint8_t *salt,
                      uint32_t iterations)
{
    *derive = (struct luks_derive){.kdf = LUKS_PBKDF2, .iterations = iterations};
    memcpy(derive->hash, hash, FIELD_BYTES);
    memcpy(derive->salt, salt, SALT_BYTES);
    derive->salt_length = SALT_BYTES;
}

static int parse_slots(const uint8_t *header, const char *hash, uint64_t file_length,
                       struct luks *luks, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < SLOTS; i++) {
        const uint8_t *at = header + AT_SLOTS + i * SLOT_BYTES;
        struct luks_slot *slot = &luks->slots[luks->slot_count];
        if (be32_read(at) != SLOT_ENABLED)
            continue;
        *slot = (struct luks_slot){
            .number = i,
            .area = (uint64_t)be32_read(at + 40) * CRYPT_UNIT,
            .area_key_size = luks->payload.key_size,
        };
        derive_at(&slot->derive, hash, at + 8, be32_read(at + 4));
        memcpy(slot->hash, hash, FIELD_BYTES);
        if (be32_read(at + 44) != LUKS_STRIPES)
            return err_set(err, -EINVAL, "key slot %u has %u stripes, not %d", i,
                           be32_read(at + 44), LUKS_STRIPES);
        r = luks_check_slot(luks, slot, file_length, err);
        luks->slot_count++;
    }
    return r;
}

int luks1_parse(struct file *file, struct luks *luks, struct err *err)
{
    uint8_t header[HEADER_BYTES];
    char cipher[FIELD_BYTES], mode[FIELD_BYTES], hash[FIELD_BYTES], whole[2 * FIELD_BYTES];
    uint64_t length;
    int r = file_length(file, &length);
    if (r >= 0)
        r = file_read_bytes(file, 0, header, sizeof header);
    if (r < 0)
        return err_errno(err, -r, "LUKS header");
    if (text_at(header + AT_CIPHER, cipher) < 0 || text_at(header + AT_MODE, mode) < 0 ||
        text_at(header + AT_HASH, hash) < 0)
        return err_set(err, -EINVAL, "LUKS header: a name has no end");
    luks->version = 1;
    luks->header_end = 1024; /* the first area comes on a boundary behind it */
    luks->payload = (struct crypt){
        .offset = (uint64_t)be32_read(header + AT_PAYLOAD) * CRYPT_UNIT,
        .sector_size = CRYPT_UNIT,
        .key_size = be32_read(header + AT_KEY_SIZE),
    };
    snprintf(whole, sizeof whole, "%s-%s", cipher, mode);
    r = luks_check_cipher(whole, luks->payload.key_size, err);
    if (r >= 0 && luks_hash_size(hash) < 0)
        r = err_set(err, -EINVAL, "LUKS hash '%.32s' is unknown here", hash);
    if (r >= 0 && luks->payload.offset < luks->header_end)
        r = err_set(err, -EINVAL, "LUKS header: the payload lies in the header");
    if (r < 0)
        return r;
    struct luks_digest *digest = &luks->digests[luks->digest_count++];
    derive_at(&digest->derive, hash, header + AT_DIGEST_SALT,
              be32_read(header + AT_DIGEST_ITERATIONS));
    memcpy(digest->bytes, header + AT_DIGEST, DIGEST_BYTES);
    digest->length = DIGEST_BYTES;
    return parse_slots(header, hash, length, luks, err);
}
