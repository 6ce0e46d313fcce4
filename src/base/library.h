/*
 * library.h: shared libraries that are loaded when something needs them, and not before.
 *
 * What a process is linked with it pays for at every start, in time and in memory of its own:
 * libcrypto alone has a hundred pages to relocate, and a virtual machine without an encrypted disk
 * calls none of it. A library's functions are listed once, in a header of their own
 * (disk/openssl.h), and called through pointers of their types, sym_NAME.
 *
 * Threads: any.
 */
#pragma once

#include "base/err.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

struct library_symbol {
    const char *name;
    void **at; /* the pointer that is to hold its address */
};

struct library {
    const char *file; /* with the version of its interface: "libcrypto.so.3" */
    const struct library_symbol *symbols;
    size_t count;
    pthread_mutex_t lock;
    _Atomic bool loaded;
};

#define LIBRARY_EXTERN(name) extern __typeof__(name) *sym_##name;
#define LIBRARY_DEFINE(name) __typeof__(name) *sym_##name;
#define LIBRARY_STATIC(name) static __typeof__(name) *sym_##name;
#define LIBRARY_ROW(name)    {#name, (void **)&sym_##name},

/* Loads it, with all its symbols, unless that has been done. -ENOENT: there is no such library, or
 * one without a symbol of ours; that may be because no file can be opened any more. */
int library_load(struct library *library, struct err *err);
