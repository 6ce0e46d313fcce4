/*
 * initramfs.h: an initial root file system, written as the kernel reads it (cpio "newc").
 *
 * Entries are collected in any order and written sorted by path, with owner 0, time 0 and numbers
 * of our own, so that equal contents make equal bytes. Not compressed: the kernel then only copies
 * it. Directories above an entry are added by themselves.
 *
 * A set owns copies of what was added. Errors: -EEXIST for a path added twice, -ENOMEM, and what
 * writing gives.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct initramfs;

struct initramfs *initramfs_new(void);
void initramfs_free(struct initramfs *initramfs);

/* `path` without a leading slash; `mode` holds the permissions only. */
int initramfs_add_file(struct initramfs *initramfs, const char *path, mode_t mode,
                       const void *bytes, size_t size, struct err *err);
int initramfs_add_directory(struct initramfs *initramfs, const char *path, mode_t mode,
                            struct err *err);
int initramfs_add_link(struct initramfs *initramfs, const char *path, const char *target,
                       struct err *err);

int initramfs_write(struct initramfs *initramfs, int fd, struct err *err);
/* The same as a tar, for file systems that are unpacked and not booted. */
int initramfs_write_tar(struct initramfs *initramfs, int fd, struct err *err);
