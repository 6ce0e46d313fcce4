/*
 * crypt.h: AES-XTS over a file, sector by sector, as dm-crypt lays it out ("aes-xts-plain64").
 *
 * The plaintext begins at `offset` of the file below. Each sector is a unit of its own; its tweak
 * is its number, counted in 512 bytes from the start of the plaintext, plus `tweak`, little-endian
 * (LUKS2 On-Disk Format 1.1.2, 3.3; IEEE 1619).
 *
 * A sector whose ciphertext is nothing but zeros reads as zeros: it is a hole, for no plaintext
 * encrypts to that but by a chance of 2^-4096. dm-crypt would show noise there; what was written
 * reads the same under both. So zeros that a caller asks for are written as such, while discarded
 * sectors become holes.
 *
 * Threads: every call at any time. Errors: -errno.
 */
#pragma once

#include "disk/file.h"

enum { CRYPT_KEY_MAX = 64, CRYPT_SECTOR_MAX = 4096, CRYPT_UNIT = 512 };

struct crypt {
    uint64_t offset; /* multiple of 512 */
    uint64_t size;   /* 0: up to the end of the file */
    uint64_t tweak;
    uint32_t sector_size; /* 512, 1024, 2048 or 4096 */
    uint32_t key_size;    /* 32 (AES-128) or 64 (AES-256): two keys one behind the other */
    uint8_t key[CRYPT_KEY_MAX];
};

/* A layer above `below`, which it owns once this returned 0. -EINVAL: not a key that XTS takes. */
int crypt_open(struct file *below, const struct crypt *crypt, struct file **ret_file,
               struct err *err);

/* What a layer was opened with, for disk_key_unlocked(); NULL: it is not one of these. */
const struct crypt *crypt_of(const struct file *file);

/* A keyed AES-XTS, both ways. */
struct cipher;
int cipher_new(const uint8_t *key, size_t key_size, struct cipher **ret_cipher);
void cipher_free(struct cipher *cipher);
/* Whole sectors in place; `tweak` is that of the first. */
int cipher_run(struct cipher *cipher, bool encrypt, uint64_t tweak, uint32_t sector_size,
               uint8_t *bytes, size_t length);
