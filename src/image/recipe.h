/*
 * recipe.h: what the default image consists of, apart from how it is made (build.h).
 */
#pragma once

#include "base/err.h"
#include "image/module.h"

#include <stddef.h>
#include <stdint.h>

/* Part of the hash: raise it when the same packages must give another image. */
enum { RECIPE_VERSION = 3 };

/* The kernel command line; recipe.c says why for each word. malloc'd, or NULL. */
char *recipe_append(void);

struct recipe_files {
    const uint8_t *busybox, *agent;
    size_t busybox_size, agent_size;
    const char *applets;        /* lines like "usr/bin/awk", as busybox --list-full prints them */
    struct module_set *modules; /* all of the kernel package */
};

/* The modules that are loaded at boot, and the rest of the file system, written to `fd`. */
int recipe_write_initramfs(const struct recipe_files *files, int fd, struct err *err);
