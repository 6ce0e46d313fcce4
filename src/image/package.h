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

/* Fills private lists; from then on `source` uses them. */
int package_update(struct package_source *source, struct err *err);

/* The repositories of Debian's own that the machine's apt uses: a line "SITE SUITE COMPONENT" for
 * each, "" where it has lists of none. malloc'd. */
int package_repositories(const struct package_source *source, char **ret_text, struct err *err);

/* The first package that `name` depends on whose own name begins with `prefix`; malloc'd. */
int package_dependency(const struct package_source *source, const char *name, const char *prefix,
                       char **ret_name, struct err *err);

/* What would be downloaded for each of `names`, in their order. No network. On error nothing is
 * left to free. */
int package_find(const struct package_source *source, const char *const *names, size_t count,
                 struct package *ret_packages, struct err *err);

/* A text that changes when the package lists do: while it is the same, so are all answers of
 * package_find(). */
int package_lists_stamp(const struct package_source *source, char *ret_text, size_t size);

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
