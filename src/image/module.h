/*
 * module.h: Linux kernel modules as files: what each depends on, and in which order to load them.
 *
 * A Debian kernel package has no modules.dep (its installation makes that), but each module says in
 * its .modinfo section what it needs, which is where depmod reads it too. Names are compared as the
 * kernel does: '-' and '_' are the same letter.
 *
 * A set owns copies of what was added. Pure but for memory.
 *
 * Errors: -ENOENT for a module that is not in the set, -EBADMSG for a file that is no 64-bit ELF
 * object, -ELOOP for modules that need each other, -ENOMEM.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct module {
    char *name; /* as in the kernel: file name without .ko, with '_' */
    uint8_t *bytes;
    size_t size;
    int mark;
};

struct module_set {
    struct module *modules;
    size_t count, capacity;
};

/* `path` ends in .ko; the bytes are not compressed. */
int module_add(struct module_set *set, const char *path, const void *bytes, size_t size);
void module_set_free(struct module_set *set);

/* The value of a .modinfo line such as "depends", malloc'd; "" when the module has none. */
int module_info(const uint8_t *bytes, size_t size, const char *key, char **ret_value);

/* Pointers into the set: `wanted` and all they need, each after what it needs, each once. The array
 * is malloc'd. */
int module_order(struct module_set *set, const char *const *wanted, size_t wanted_count,
                 struct module ***ret_order, size_t *ret_count, struct err *err);
