/*
 * luks.h: LUKS containers, version 1 and 2, as cryptsetup makes and opens them.
 *
 *     LUKS1   header | key slots' areas | payload                     (LUKS1 On-Disk Format 1.2.3)
 *     LUKS2   header | its copy | key slots' areas | payload          (LUKS2 On-Disk Format 1.1.2)
 *
 * A header says where the payload lies, and has slots: each holds the volume key, split into 4000
 * stripes so that no part of it survives half an erasure, and encrypted under what its key
 * derivation makes of a passphrase. A digest says whether a volume key is the right one.
 *
 * A header is hostile: each offset and size is checked against the file, and a slot that asks for
 * more work than a budget allows is passed over (and named, if no other one opens).
 *
 * Errors: -EINVAL for what is no LUKS, or none that is known here; -EACCES where no slot opens with
 * this passphrase.
 */
#pragma once

#include "disk/crypt.h"
#include "disk/private.h"

enum {
    LUKS_SLOTS_MAX = 32,
    LUKS_DIGESTS_MAX = 32,
    LUKS_STRIPES = 4000,
    LUKS_SALT_MAX = 64,
    LUKS_HASH_MAX = 64,
    LUKS_NAME_MAX = 32,
    LUKS_ARGON2_KIB_MAX = 4 << 20, /* 4 GiB, the most that cryptsetup asks for */
    LUKS_ARGON2_LANES_MAX = 16,
};

enum luks_kdf { LUKS_PBKDF2, LUKS_ARGON2I, LUKS_ARGON2ID, LUKS_KDF_MAX };

/* A passphrase becomes a key like this. */
struct luks_derive {
    enum luks_kdf kdf;
    char hash[LUKS_NAME_MAX]; /* of PBKDF2 */
    uint32_t iterations;      /* or passes over the memory */
    uint32_t kib, lanes;      /* of Argon2 */
    uint8_t salt[LUKS_SALT_MAX];
    uint32_t salt_length;
};

struct luks_slot {
    unsigned number;
    struct luks_derive derive;
    char hash[LUKS_NAME_MAX]; /* of the stripes */
    uint64_t area;            /* offset in the file; the stripes fit into the file from there */
    uint32_t area_key_size;
    unsigned digest;
};

struct luks_digest {
    struct luks_derive derive; /* always PBKDF2 */
    uint8_t bytes[LUKS_HASH_MAX];
    uint32_t length;
};

struct luks {
    unsigned version;
    uint64_t header_end;  /* what lies from here on may be a slot's area */
    struct crypt payload; /* but for its key */
    struct luks_slot slots[LUKS_SLOTS_MAX];
    unsigned slot_count;
    struct luks_digest digests[LUKS_DIGESTS_MAX];
    unsigned digest_count;
};

/* Units of work: an iteration of PBKDF2 each, an iteration on a KiB of Argon2 four. */
#define LUKS_BUDGET UINT64_C(400000000) /* under two minutes on any machine of the field */

bool luks_magic(const uint8_t bytes[8]);
int luks_read(struct file *file, struct luks *ret_luks, struct err *err);
int luks_unlock(struct file *file, const struct luks *luks, const struct disk_key *key,
                uint64_t budget, struct crypt *ret_crypt, struct err *err);

/* A layer of plaintext above `file`, which it owns once this returned 0. */
int luks_open(struct file *file, const struct disk_key *key, struct file **ret_file,
              struct err *err);

/* A header for an empty file, LUKS2. */
int luks_format(struct file *file, const struct disk_create *create, struct crypt *ret_crypt,
                struct err *err);

/* What a container is, for people, or "" where it is none. */
void luks_describe(struct file *file, char *ret_text, size_t size);

/* --- its parts --- */

int luks1_parse(struct file *file, struct luks *luks, struct err *err);
int luks2_parse(struct file *file, struct luks *luks, struct err *err);
/* The JSON text of a header alone; `length` without the zeros behind it. */
int luks2_parse_json(const char *text, size_t length, uint64_t file_length, struct luks *luks,
                     struct err *err);

/* "aes-xts-plain64" with a key of 32 or 64 bytes, or -EINVAL. */
int luks_check_cipher(const char *cipher, uint32_t key_size, struct err *err);
/* -EINVAL for a hash that is unknown; otherwise its size in bytes. */
int luks_hash_size(const char *hash);
int luks_check_slot(const struct luks *luks, const struct luks_slot *slot, uint64_t file_length,
                    struct err *err);
uint64_t luks_work(const struct luks_derive *derive, size_t length);
int luks_derive_key(const struct luks_derive *derive, const uint8_t *passphrase, size_t length,
                    uint8_t *ret_key, size_t key_size);
/* The volume key into its stripes and back. */
int luks_split(const char *hash, const uint8_t *key, size_t key_size, uint8_t *ret_stripes);
int luks_merge(const char *hash, const uint8_t *stripes, size_t key_size, uint8_t *ret_key);

/* Memory for keys: not swapped where the host allows that, in no core dump, wiped when freed. */
void *secret_new(size_t size);
void secret_free(void *secret, size_t size);

struct disk_key {
    bool unlocked;
    size_t length, room;
    _Alignas(struct crypt) uint8_t bytes[]; /* a passphrase, or a struct crypt */
};
