/*
 * debian_recipe.h: what the Debian image consists of, apart from how it is made (debian.h).
 *
 * mmdebstrap installs debian_packages(); between the essential packages and the others it unpacks
 * our files (debian_write_files()), so that the kernel's initrd is made as they say; at the end it
 * runs debian_finish_script, which makes the disk.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Bytes of the disk as a guest sees it; what is not used takes no room. */
#define DEBIAN_DISK_SIZE "10G"
/* Of a guest, when nobody says. */
#define DEBIAN_MEMORY ((uint64_t)1 << 30)

/* Names with commas between; malloc'd, or NULL. */
char *debian_packages(void);
/* The kernel command line; malloc'd, or NULL. */
char *debian_append(void);

/* Shell scripts, run with the new root as $1. What stands before them sets variables to numbers of
 * descriptors: LODGE_FILES a tar, the others to be filled: LODGE_KERNEL, LODGE_INITRD,
 * LODGE_PACKAGES, LODGE_DISK. */
extern const char debian_files_script[];
extern const char debian_finish_script[];

/* A tar of our own files, with `agent` among them, into `fd`. */
int debian_write_files(const uint8_t *agent, size_t agent_size, int fd, struct err *err);
