/*
 * store.h: the images that are on this machine.
 *
 *     $XDG_DATA_HOME/lodge/images/       (~/.local/share/lodge/images)
 *         default/
 *             current -> 3f1c...         the one that a name alone means
 *             3f1c.../                   named by the digest of everything it was made from
 *                 image.json  vmlinux  initrd.img
 *         debian:bookworm/               a name may have a tag
 *             current -> 77a0...
 *             77a0.../                   image.json  vmlinux  initrd.img  disk.qcow2
 *
 * A folder that is there is complete: it was written under another name, then renamed. `current` is
 * replaced by rename too, so a reader sees the old image or the new one.
 *
 * Errors: -ENOENT for an image that does not exist (the message lists those that do), -EINVAL for a
 * name that is none, -EBADMSG for a damaged image.json.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct image {
    char *name;            /* "default" */
    char *hash;            /* of its inputs */
    char *created;         /* RFC 3339, UTC */
    char *release;         /* of the kernel, "6.1.0-56-cloud-amd64" */
    char *kernel, *initrd; /* absolute paths */
    char *append;          /* kernel command line that suits it */
    char *disk;            /* its root file system, a qcow2 that is never written to; or NULL */
    uint64_t size;         /* bytes of its files */
    uint64_t memory;       /* what a guest of it gets when nobody says; 0: as any */
    bool agent;            /* lodge-agent runs inside */
    bool login;            /* its console asks who is there, and is no shell of ours */
    bool seed;             /* it reads a cloud-init seed (seed.h) */
};

struct image_list {
    struct image *images; /* sorted by name */
    size_t count;
};

/* .../lodge/images and .../lodge (the cache), from the XDG variables; malloc'd. -ENOENT with
 * neither those nor HOME. */
int image_store_path(char **ret_path, struct err *err);
int image_cache_path(char **ret_path, struct err *err);

/* Letters, digits, '.', '_', '-'; begins with a letter or digit; at most 64. */
bool image_name_valid(const char *name);

/* The tag that `debian` alone means. */
#define IMAGE_DEBIAN_SUITE "bookworm"
/* A name, or NAME:TAG of the same letters each. */
bool image_reference_valid(const char *reference);
/* "debian" is debian:bookworm, all others are what they are. malloc'd. */
char *image_full_name(const char *reference);

/* `name` may be a reference. */
int image_find(const char *store, const char *name, struct image *ret_image, struct err *err);
int image_list(const char *store, struct image_list *ret_list, struct err *err);
void image_free(struct image *image);
void image_list_free(struct image_list *list);

/* All its files are there. */
bool image_usable(const struct image *image);

/* As mkdir -p. */
int image_make_directories(const char *path, struct err *err);
