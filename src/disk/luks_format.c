#include "disk/luks.h"
#include "disk/luks2.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/openssl.h"
#include "base/own.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include <jansson.h>

/*
 * A new container, laid out as cryptsetup does it, so that there is room for its other slots and
 * for encrypting it anew:
 *
 *     0         header, 16 KiB
 *     16 KiB    its copy
 *     32 KiB    key slot 0, then room for more
 *     16 MiB    payload
 *
 * How much work a slot asks for is measured here: about as long as the caller says, on this
 * machine.
 */
enum {
    HEADER_SIZE = 16 << 10,
    AREA = 2 * HEADER_SIZE,
    PAYLOAD = 16 << 20,
    KEY_SIZE = 64,
    STRIPES_SIZE = KEY_SIZE * LUKS_STRIPES,
    AREA_SIZE = 258048, /* STRIPES_SIZE in whole blocks of 4 KiB */
    SALT_SIZE = 32,
    DIGEST_SIZE = 32,
    MS_USUAL = 1000,
    ITERATIONS_MIN = 1000, /* as cryptsetup has it; RFC 8018, 4.2 */
    PASSES = 4,
    LANES_MAX = 4,
    PROBE_KIB = 64 << 10,
    KIB_MIN = 1 << 10,
    KIB_MOST = 1 << 20,
};

static_assert(AREA_SIZE >= STRIPES_SIZE && AREA_SIZE % 4096 == 0, "the area holds its stripes");

/* --- how much work --- */

/* How long it takes, at least 1 ms. */
static int measure(const struct luks_derive *derive, uint64_t *ret_ms)
{
    static const uint8_t passphrase[16] = "how fast is this";
    uint8_t key[KEY_SIZE];
    uint64_t begun = clock_ms();
    int r = luks_derive_key(derive, passphrase, sizeof passphrase, key, sizeof key);
    *ret_ms = max(clock_ms() - begun, UINT64_C(1));
    return r;
}

static int measure_pbkdf2(struct luks_derive *derive, unsigned ms)
{
    uint64_t took = 0;
    int r = 0;
    derive->kdf = LUKS_PBKDF2;
    strcpy(derive->hash, "sha256");
    derive->iterations = ITERATIONS_MIN;
    for (;;) {
        r = measure(derive, &took);
        if (r < 0 || took >= 50 || derive->iterations >= INT32_MAX / 2)
            break;
        derive->iterations *= 2;
    }
    uint64_t wanted = derive->iterations * (uint64_t)ms / took;
    /* What we would not open we do not make. */
    derive->iterations = (uint32_t)min(max(wanted, (uint64_t)ITERATIONS_MIN), LUKS_BUDGET / 4);
    return r;
}

static int measure_argon2(struct luks_derive *derive, unsigned ms)
{
    struct sysinfo info;
    uint64_t took, most = KIB_MOST;
    if (sysinfo(&info) == 0)
        most = min(most, (uint64_t)info.totalram * info.mem_unit / 2 / 1024);
    derive->kdf = LUKS_ARGON2ID;
    derive->lanes = (uint32_t)min(max(get_nprocs(), 1), (int)LANES_MAX);
    derive->iterations = PASSES;
    derive->kib = (uint32_t)min(most, (uint64_t)PROBE_KIB);
    int r = measure(derive, &took);
    if (r < 0)
        return r;
    uint64_t kib = derive->kib * (uint64_t)ms / took;
    derive->kib = (uint32_t)max(min(kib, most), (uint64_t)KIB_MIN);
    if (kib > most) /* no more memory: more passes over it */
        derive->iterations = (uint32_t)min(PASSES * kib / most, UINT64_C(64));
    return 0;
}

static int choose_work(const struct disk_create *create, struct luks_derive *slot,
                       struct luks_derive *digest)
{
    unsigned ms = create->unlock_ms ? create->unlock_ms : MS_USUAL;
    int r = create->kdf == DISK_KDF_PBKDF2 ? measure_pbkdf2(slot, ms) : measure_argon2(slot, ms);
    if (r >= 0)
        r = measure_pbkdf2(digest, ms / 8);
    return r;
}

/* --- the JSON text --- */

static json_t *base64(const uint8_t *bytes, size_t length)
{
    uint8_t text[4 * ((LUKS_SALT_MAX + 2) / 3) + 1];
    sym_EVP_EncodeBlock(text, bytes, (int)length);
    return json_string((const char *)text);
}

static json_t *number(uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    return json_string(text);
}

static json_t *kdf_json(const struct luks_derive *derive)
{
    json_t *salt = base64(derive->salt, derive->salt_length);
    if (derive->kdf == LUKS_PBKDF2)
        return json_pack("{s:s, s:s, s:i, s:o}", "type", "pbkdf2", "hash", derive->hash,
                         "iterations", (int)derive->iterations, "salt", salt);
    return json_pack("{s:s, s:i, s:i, s:i, s:o}", "type", "argon2id", "time",
                     (int)derive->iterations, "memory", (int)derive->kib, "cpus",
                     (int)derive->lanes, "salt", salt);
}

static json_t *slot_json(const struct luks_slot *slot)
{
    return json_pack("{s:s, s:i, s:o, s:{s:s, s:o, s:o, s:s, s:i}, s:{s:s, s:i, s:s}}", "type",
                     "luks2", "key_size", KEY_SIZE, "kdf", kdf_json(&slot->derive), "area", "type",
                     "raw", "offset", number(slot->area), "size", number(AREA_SIZE), "encryption",
                     "aes-xts-plain64", "key_size", KEY_SIZE, "af", "type", "luks1", "stripes",
                     LUKS_STRIPES, "hash", slot->hash);
}

static json_t *digest_json(const struct luks_digest *digest)
{
    json_t *object = kdf_json(&digest->derive);
    json_object_set_new(object, "keyslots", json_pack("[s]", "0"));
    json_object_set_new(object, "segments", json_pack("[s]", "0"));
    json_object_set_new(object, "digest", base64(digest->bytes, digest->length));
    return object;
}

static char *header_json(const struct luks *luks)
{
    json_t *root = json_pack(
        "{s:{s:o}, s:{}, s:{s:{s:s, s:o, s:s, s:s, s:s, s:i}}, s:{s:o}, s:{s:o, s:o}}", "keyslots",
        "0", slot_json(&luks->slots[0]), "tokens", "segments", "0", "type", "crypt", "offset",
        number(luks->payload.offset), "size", "dynamic", "iv_tweak", "0", "encryption",
        "aes-xts-plain64", "sector_size", (int)luks->payload.sector_size, "digests", "0",
        digest_json(&luks->digests[0]), "config", "json_size",
        number(HEADER_SIZE - LUKS2_BINARY_BYTES), "keyslots_size", number(PAYLOAD - AREA));
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

/* --- writing --- */

static int write_header(struct file *file, uint64_t offset, const char *uuid, const char *text)
{
    _cleanup_free_ uint8_t *header = calloc(1, HEADER_SIZE);
    if (!header)
        return -ENOMEM;
    memcpy(header, offset ? "SKUL\xba\xbe" : "LUKS\xba\xbe", 6);
    header[7] = 2;
    const uint64_t numbers[][2] = {
        {LUKS2_AT_SIZE, HEADER_SIZE}, {LUKS2_AT_SEQUENCE, 1}, {LUKS2_AT_OFFSET, offset}};
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        be64_write(header + numbers[i][0], numbers[i][1]);
    strcpy((char *)header + LUKS2_AT_ALGORITHM, "sha256");
    strcpy((char *)header + LUKS2_AT_UUID, uuid);
    strcpy((char *)header + LUKS2_BINARY_BYTES, text);
    if (sym_RAND_bytes(header + LUKS2_AT_SALT, LUKS2_SALT_BYTES) != 1)
        return -EIO;
    int r = luks2_checksum("sha256", header, HEADER_SIZE, header + LUKS2_AT_SUM);
    return r < 0 ? r : file_write_bytes(file, offset, header, HEADER_SIZE);
}

static int make_uuid(char ret_text[40])
{
    uint8_t b[16];
    if (sym_RAND_bytes(b, sizeof b) != 1)
        return -EIO;
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40); /* RFC 4122, 4.4 */
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(ret_text, 40, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
             b[14], b[15]);
    return 0;
}

struct work {
    uint8_t area_key[KEY_SIZE];
    uint8_t stripes[STRIPES_SIZE];
};

static int write_slot(struct file *file, const struct luks_slot *slot, const uint8_t *volume_key,
                      const struct disk_key *key, struct work *work)
{
    struct cipher *cipher;
    int r = luks_derive_key(&slot->derive, key->bytes, key->length, work->area_key, KEY_SIZE);
    if (r >= 0)
        r = luks_split(slot->hash, volume_key, KEY_SIZE, work->stripes);
    if (r >= 0)
        r = cipher_new(work->area_key, KEY_SIZE, &cipher);
    if (r < 0)
        return r;
    r = cipher_run(cipher, true, 0, CRYPT_UNIT, work->stripes, STRIPES_SIZE);
    cipher_free(cipher);
    return r < 0 ? r : file_write_bytes(file, slot->area, work->stripes, STRIPES_SIZE);
}

static int fill(struct luks *luks, const struct disk_create *create, struct crypt *crypt)
{
    struct luks_slot *slot = &luks->slots[0];
    struct luks_digest *digest = &luks->digests[0];
    slot->area = AREA;
    strcpy(slot->hash, "sha256");
    slot->derive.salt_length = digest->derive.salt_length = SALT_SIZE;
    digest->length = DIGEST_SIZE;
    if (sym_RAND_priv_bytes(crypt->key, KEY_SIZE) != 1 ||
        sym_RAND_bytes(slot->derive.salt, SALT_SIZE) != 1 ||
        sym_RAND_bytes(digest->derive.salt, SALT_SIZE) != 1)
        return -EIO;
    int r = choose_work(create, &slot->derive, &digest->derive);
    return r < 0
               ? r
               : luks_derive_key(&digest->derive, crypt->key, KEY_SIZE, digest->bytes, DIGEST_SIZE);
}

/* The headers come last: without one there is no container. */
static int write_all(struct file *file, const struct luks *luks, const struct crypt *crypt,
                     const struct disk_key *key)
{
    char uuid[40];
    struct work *work = secret_new(sizeof *work);
    if (!work)
        return -ENOMEM;
    int r = write_slot(file, &luks->slots[0], crypt->key, key, work);
    secret_free(work, sizeof *work);
    _cleanup_free_ char *text = r < 0 ? NULL : header_json(luks);
    if (r >= 0 && (!text || strlen(text) >= HEADER_SIZE - LUKS2_BINARY_BYTES))
        r = -ENOMEM;
    if (r >= 0)
        r = file_truncate(file, PAYLOAD);
    if (r >= 0)
        r = file_flush(file);
    if (r >= 0)
        r = make_uuid(uuid);
    if (r >= 0)
        r = write_header(file, HEADER_SIZE, uuid, text);
    if (r >= 0)
        r = write_header(file, 0, uuid, text);
    return r < 0 ? r : file_flush(file);
}

int luks_format(struct file *file, const struct disk_create *create, struct crypt *ret_crypt,
                struct err *err)
{
    _cleanup_free_ struct luks *luks = calloc(1, sizeof *luks);
    if (!luks)
        return err_set(err, -ENOMEM, "no memory");
    *ret_crypt = luks->payload = (struct crypt){
        .offset = PAYLOAD,
        .sector_size = create->crypt_sector ? create->crypt_sector : CRYPT_UNIT,
        .key_size = KEY_SIZE,
    };
    int r = crypto_load(err);
    if (r < 0)
        return r;
    r = fill(luks, create, ret_crypt);
    if (r >= 0)
        r = write_all(file, luks, ret_crypt, create->key);
    return r < 0 ? err_errno(err, -r, "cannot make a LUKS header") : 0;
}
