/*
 * seed.h: what cloud-init in a guest shall do at its first boot, as a NoCloud seed: an ISO 9660
 * image labelled "cidata" with the files `meta-data` and `user-data` (cloud-init's documentation,
 * "NoCloud").
 *
 *     struct seed seed = {.user_data = text, .user_data_size = size};
 *     seed_add_keys(&seed, "id_ed25519.pub", text, size, err);
 *     int fd = seed_write(&seed, err);
 *     seed_free(&seed);
 *
 * The ID of the instance is a new one each time, so that a disk that is booted with another seed
 * does what that says. Keys go to the image's default user (on Debian: `debian`, who may use sudo)
 * whatever the user data are.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>

enum { SEED_KEYS_MAX = 64, SEED_FILE_MAX = 1 << 20 };

struct seed {
    const char *user_data; /* borrowed; NULL = nothing to do */
    size_t user_data_size;
    const char *hostname; /* borrowed, or NULL */
    char *keys[SEED_KEYS_MAX];
    unsigned key_count;
};

/* The public keys in the text of a file like id_ed25519.pub or authorized_keys, called `name` in
 * messages. -EINVAL for what is none, above all for a private key. */
int seed_add_keys(struct seed *seed, const char *name, const char *text, size_t size,
                  struct err *err);

/* User data must be something that cloud-init knows by its first line: -EINVAL else. */
int seed_check_user_data(const char *name, const char *text, size_t size, struct err *err);

/* A memory file with the image; the caller's. */
int seed_write(const struct seed *seed, struct err *err);

void seed_free(struct seed *seed);
