/*
 * store.h: the images that are on this machine.
 *
 *     $XDG_DATA_HOME/lodge/images/       (~/.local/share/lodge/images)
 *         default/
 *             current -> 3f1c...         the one that a name alone means
 *             3f1c.../                   named by the digest of everything it was made from
 *                 image.json  vmlinux  initrd.img
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
    uint64_t size;         /* bytes of its files */
    bool agent;            /* lodge-agent runs inside */
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

int image_find(const char *store, const char *name, struct image *ret_image, struct err *err);
int image_list(const char *store, struct image_list *ret_list, struct err *err);
void image_free(struct image *image);
void image_list_free(struct image_list *list);

/* As mkdir -p. */
int image_make_directories(const char *path, struct err *err);
