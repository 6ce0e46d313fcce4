/*
 * The JSON text of a LUKS2 header (LUKS2 On-Disk Format 1.1.2, 3): key slots, segments, digests.
 * Numbers of 64 bits are strings in it; bytes are base64.
 */
#include "disk/luks.h"

#include "base/bytes.h"
#include "base/openssl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

static void own_json(json_t **json)
{
    json_decref(*json);
}

static const char *text_at(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static bool is_text(const json_t *object, const char *name, const char *text)
{
    return !strcmp(text_at(object, name), text);
}

static int name_at(const json_t *object, const char *name, char ret_name[LUKS_NAME_MAX])
{
    const char *text = text_at(object, name);
    size_t length = strlen(text);
    if (length == 0 || length >= LUKS_NAME_MAX)
        return -EINVAL;
    memcpy(ret_name, text, length + 1);
    return 0;
}

static int digits(const char *text, uint64_t *ret_value)
{
    size_t length = strlen(text);
    if (length == 0 || length > 19 || strspn(text, "0123456789") != length)
        return -EINVAL;
    *ret_value = strtoull(text, NULL, 10);
    return 0;
}

static int u64_at(const json_t *object, const char *name, uint64_t *ret_value)
{
    return digits(text_at(object, name), ret_value);
}

static int u32_at(const json_t *object, const char *name, uint32_t *ret_value)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > INT32_MAX)
        return -EINVAL;
    *ret_value = (uint32_t)json_integer_value(value);
    return 0;
}

/* At most 64 bytes. */
static int bytes_at(const json_t *object, const char *name, uint8_t ret_bytes[LUKS_SALT_MAX],
                    uint32_t *ret_length)
{
    const char *text = text_at(object, name);
    size_t length = strlen(text), pad = 0;
    uint8_t bytes[96];
    if (length == 0 || length % 4 || length > 4 * 22)
        return -EINVAL;
    while (pad < 2 && text[length - 1 - pad] == '=')
        pad++;
    if (crypto_load(NULL) < 0)
        return -EINVAL;
    int n = sym_EVP_DecodeBlock(bytes, (const uint8_t *)text, (int)length);
    if (n != (int)(length / 4 * 3) || n - (int)pad > LUKS_SALT_MAX)
        return -EINVAL;
    *ret_length = (uint32_t)n - (uint32_t)pad;
    memcpy(ret_bytes, bytes, *ret_length);
    return 0;
}

/* --- key slots --- */

static int parse_argon2(const json_t *kdf, struct luks_derive *derive)
{
    if (u32_at(kdf, "time", &derive->iterations) < 0 || u32_at(kdf, "memory", &derive->kib) < 0 ||
        u32_at(kdf, "cpus", &derive->lanes) < 0)
        return -EINVAL;
    /* RFC 9106, 3.1: 8 KiB a lane at least, a salt of 8 bytes. */
    return derive->iterations && derive->lanes && derive->lanes <= LUKS_ARGON2_LANES_MAX &&
                   derive->kib >= 8 * derive->lanes && derive->kib <= LUKS_ARGON2_KIB_MAX &&
                   derive->salt_length >= 8
               ? 0
               : -EINVAL;
}

static int parse_pbkdf2(const json_t *kdf, struct luks_derive *derive)
{
    derive->kdf = LUKS_PBKDF2;
    return name_at(kdf, "hash", derive->hash) < 0 || luks_hash_size(derive->hash) < 0 ||
                   u32_at(kdf, "iterations", &derive->iterations) < 0 || !derive->iterations
               ? -EINVAL
               : 0;
}

static int parse_derive(const json_t *kdf, struct luks_derive *derive)
{
    *derive = (struct luks_derive){0};
    int r = bytes_at(kdf, "salt", derive->salt, &derive->salt_length);
    if (r < 0)
        return r;
    if (is_text(kdf, "type", "pbkdf2"))
        return parse_pbkdf2(kdf, derive);
    if (!is_text(kdf, "type", "argon2i") && !is_text(kdf, "type", "argon2id"))
        return -EINVAL;
    derive->kdf = is_text(kdf, "type", "argon2i") ? LUKS_ARGON2I : LUKS_ARGON2ID;
    return parse_argon2(kdf, derive);
}

static int parse_slot(const json_t *value, unsigned number, uint64_t file_length, struct luks *luks,
                      struct err *err)
{
    const json_t *area = json_object_get(value, "area"), *af = json_object_get(value, "af");
    struct luks_slot *slot = &luks->slots[luks->slot_count];
    uint32_t key_size, stripes;
    uint64_t size;
    *slot = (struct luks_slot){.number = number, .digest = LUKS_DIGESTS_MAX};
    if (!is_text(value, "type", "luks2") || !is_text(area, "type", "raw") ||
        !is_text(af, "type", "luks1") || u32_at(value, "key_size", &key_size) < 0 ||
        u32_at(area, "key_size", &slot->area_key_size) < 0 ||
        u64_at(area, "offset", &slot->area) < 0 || u64_at(area, "size", &size) < 0 ||
        u32_at(af, "stripes", &stripes) < 0 || stripes != LUKS_STRIPES ||
        name_at(af, "hash", slot->hash) < 0 || luks_hash_size(slot->hash) < 0 ||
        parse_derive(json_object_get(value, "kdf"), &slot->derive) < 0)
        return err_set(err, -EINVAL, "LUKS key slot %u makes no sense", number);
    if (size < (uint64_t)key_size * LUKS_STRIPES)
        return err_set(err, -EINVAL, "LUKS key slot %u is too small for its key", number);
    if (luks->payload.key_size && luks->payload.key_size != key_size)
        return err_set(err, -EINVAL, "LUKS key slots of different key sizes are not known here");
    luks->payload.key_size = key_size;
    int r = luks_check_cipher(text_at(area, "encryption"), slot->area_key_size, err);
    if (r >= 0)
        r = luks_check_slot(luks, slot, file_length, err);
    luks->slot_count++;
    return r;
}

static int parse_slots(const json_t *slots, uint64_t file_length, struct luks *luks,
                       struct err *err)
{
    const char *name;
    json_t *value;
    uint64_t number;
    int r = 0;
    if (!json_is_object(slots) || json_object_size(slots) > LUKS_SLOTS_MAX)
        return err_set(err, -EINVAL, "LUKS header: its key slots make no sense");
    json_object_foreach((json_t *)slots, name, value)
    {
        if (digits(name, &number) < 0 || number >= LUKS_SLOTS_MAX)
            return err_set(err, -EINVAL, "LUKS header: there is no key slot '%.32s'", name);
        r = parse_slot(value, (unsigned)number, file_length, luks, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* --- digests --- */

static bool lists(const json_t *object, const char *name, unsigned number)
{
    const json_t *array = json_object_get(object, name);
    char text[16];
    snprintf(text, sizeof text, "%u", number);
    for (size_t i = 0; i < json_array_size(array); i++) {
        const char *entry = json_string_value(json_array_get(array, i));
        if (entry && !strcmp(entry, text))
            return true;
    }
    return false;
}

/* Those of the payload's segment, and which slots they are about. */
static int parse_digest(const json_t *value, struct luks *luks, struct err *err)
{
    struct luks_digest *digest = &luks->digests[luks->digest_count];
    if (!lists(value, "segments", 0))
        return 0;
    if (!is_text(value, "type", "pbkdf2") || parse_derive(value, &digest->derive) < 0 ||
        bytes_at(value, "digest", digest->bytes, &digest->length) < 0 ||
        digest->length > (uint32_t)luks_hash_size(digest->derive.hash) || digest->length < 16)
        return err_set(err, -EINVAL, "LUKS header: a digest makes no sense");
    for (unsigned i = 0; i < luks->slot_count; i++)
        if (lists(value, "keyslots", luks->slots[i].number))
            luks->slots[i].digest = luks->digest_count;
    luks->digest_count++;
    return 0;
}

static int parse_digests(const json_t *digests, struct luks *luks, struct err *err)
{
    const char *name;
    json_t *value;
    int r = 0;
    if (!json_is_object(digests) || json_object_size(digests) > LUKS_DIGESTS_MAX)
        return err_set(err, -EINVAL, "LUKS header: its digests make no sense");
    json_object_foreach((json_t *)digests, name, value)
    {
        r = parse_digest(value, luks, err);
        if (r < 0)
            return r;
    }
    /* A slot that no digest speaks of holds no key of this payload. */
    unsigned count = 0;
    for (unsigned i = 0; i < luks->slot_count; i++)
        if (luks->slots[i].digest < luks->digest_count)
            luks->slots[count++] = luks->slots[i];
    luks->slot_count = count;
    return 0;
}

/* --- the payload --- */

static int parse_segment(const json_t *segments, struct luks *luks, struct err *err)
{
    const json_t *segment = json_object_get(segments, "0");
    struct crypt *payload = &luks->payload;
    if (json_object_size(segments) != 1 || !is_text(segment, "type", "crypt"))
        return err_set(err, -EINVAL,
                       "LUKS: there must be one encrypted segment and nothing else; is it being "
                       "encrypted anew?");
    if (json_object_get(segment, "integrity"))
        return err_set(err, -EINVAL, "LUKS with integrity is not known here");
    if (u64_at(segment, "offset", &payload->offset) < 0 ||
        u64_at(segment, "iv_tweak", &payload->tweak) < 0 ||
        u32_at(segment, "sector_size", &payload->sector_size) < 0 ||
        (!is_text(segment, "size", "dynamic") &&
         (u64_at(segment, "size", &payload->size) < 0 || !payload->size)))
        return err_set(err, -EINVAL, "LUKS header: its segment makes no sense");
    if (payload->offset < luks->header_end || payload->offset % CRYPT_UNIT ||
        payload->sector_size < CRYPT_UNIT || payload->sector_size > CRYPT_SECTOR_MAX ||
        (payload->sector_size & (payload->sector_size - 1)) ||
        payload->size % payload->sector_size ||
        !range_fits(payload->offset, payload->size, INT64_MAX))
        return err_set(err, -EINVAL, "LUKS header: its segment lies where it cannot");
    return 0;
}

/* What one must know to read it at all, by name. */
static int check_requirements(const json_t *config, struct err *err)
{
    const json_t *names = json_object_get(json_object_get(config, "requirements"), "mandatory");
    const char *name = json_string_value(json_array_get(names, 0));
    if (!names || (json_is_array(names) && json_array_size(names) == 0))
        return 0;
    return err_set(err, -EINVAL, "LUKS: it needs '%.64s', which is not known here",
                   name ? name : "something");
}

int luks2_parse_json(const char *text, size_t length, uint64_t file_length, struct luks *luks,
                     struct err *err)
{
    json_error_t error;
    __attribute__((cleanup(own_json))) json_t *root =
        json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return err_set(err, -EINVAL, "LUKS header: %.160s", error.text);
    const json_t *segments = json_object_get(root, "segments");
    int r = check_requirements(json_object_get(root, "config"), err);
    if (r >= 0)
        r = parse_segment(segments, luks, err);
    if (r >= 0)
        r = parse_slots(json_object_get(root, "keyslots"), file_length, luks, err);
    if (r >= 0)
        r = parse_digests(json_object_get(root, "digests"), luks, err);
    if (r >= 0)
        r = luks->slot_count
                ? luks_check_cipher(text_at(json_object_get(segments, "0"), "encryption"),
                                    luks->payload.key_size, err)
                : 0;
    return r;
}
