/*
 * build.h: what a build needs from its caller, and the default image, made from Debian's own
 * packages. (The Debian image is debian.h's.)
 *
 * A kernel (the one linux-image-cloud-amd64 depends on), BusyBox and lodge-agent become an
 * uncompressed vmlinux and an initramfs whose /init is the agent. What it is made from decides its
 * hash: same packages, same agent, same recipe, same image, byte for byte. A build whose hash is
 * there already does nothing.
 *
 *     image_build() --> inputs and hash --> [up to date] --> 0
 *                            |
 *                       download (cached, verified) --> .new-XXXXXX/ --> rename to HASH
 *                                                                  --> current -> HASH, older go
 *
 * One build at a time: others wait at a lock. What an interrupted one left is removed by the next,
 * and by itself where a signal handler sets `*stop`.
 *
 * Errors: -EINTR, -ENOENT (a program or package is missing), what files give.
 */
#pragma once

#include "base/err.h"
#include "image/store.h"

#include <signal.h>
#include <stdbool.h>

struct image_build {
    const char *store; /* image_store_path() */
    const char *cache; /* image_cache_path() */
    const char *agent; /* path of lodge-agent */
    const char *vmm;   /* path of lodge-vmm, whose sandbox unpacks the kernel */
    void (*note)(void *opaque, const char *text); /* what happens now; may be NULL */
    /* Copies a raw disk into a new qcow2, whole and on the host's disk when it returns. */
    int (*make_disk)(void *opaque, const char *raw, const char *qcow2, struct err *err);
    void *opaque;
    const volatile sig_atomic_t *stop; /* may be NULL */
};

/* 1 when it was made, 0 when it was up to date. `ret_image` as image_find() gives it. */
int image_build_default(const struct image_build *build, struct image *ret_image, struct err *err);
