/*
 * package.h: Debian packages as a source of files.
 *
 * apt-get finds, downloads and verifies them from wherever the machine's apt is configured to;
 * dpkg-deb opens them. Nothing is installed and root is not needed. Where the machine has no
 * package lists, apt-get update fills private ones under the cache directory.
 *
 * Errors: -ENOENT where the package is unknown or a program is missing, else as process.h.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where downloads are kept, and which lists apt uses. */
struct package_source {
    const char *cache; /* an existing directory of ours */
    bool private_lists;
};

struct package {
    char *name;    /* "busybox-static" */
    char *version; /* "1:1.35.0-4" */
    char *file;    /* name of the .deb inside the cache */
    char *digest;  /* as apt gives it, "SHA256:..." */
    uint64_t size; /* bytes to download */
};

void package_free(struct package *package);

/* Decides which lists to use, and fetches them where there are none. `note` may be NULL and hears
 * what takes time. */
int package_source_open(struct package_source *source, const char *probe,
                        void (*note)(void *opaque, const char *text), void *opaque,
                        struct err *err);

/* The first package that `name` depends on whose own name begins with `prefix`; malloc'd. */
int package_dependency(const struct package_source *source, const char *name, const char *prefix,
                       char **ret_name, struct err *err);

/* What would be downloaded for `name`. No network. */
int package_find(const struct package_source *source, const char *name, struct package *ret_package,
                 struct err *err);

bool package_cached(const struct package_source *source, const struct package *package);
int package_download(const struct package_source *source, const struct package *package,
                     struct err *err);

/* Calls `visit` for each regular file that `wants` (path without a leading "./") accepts. The bytes
 * are those of the call. A negative answer ends the walk and is returned. */
int package_walk(const struct package_source *source, const struct package *package,
                 bool (*wants)(const char *path),
                 int (*visit)(void *opaque, const char *path, const uint8_t *bytes, size_t size),
                 void *opaque, struct err *err);

/* Undoes .xz, .zst or .gz of one file in memory; what is not compressed is copied. */
int package_decompress(const uint8_t *bytes, size_t size, uint8_t **ret_bytes, size_t *ret_size);
