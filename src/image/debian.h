/*
 * debian.h: the Debian image: a whole system with systemd, sshd and cloud-init on a disk of its
 * own.
 *
 * mmdebstrap makes the root file system (debian_recipe.h says of what) and, still inside, an ext4
 * of it, without a mount of that. Kernel and initrd are taken out for a direct boot, and are on the
 * disk too.
 *
 *     image_build_debian() --> stamp as the last time? --> 0
 *           |
 *      mmdebstrap --> kernel, initrd, list of packages, raw disk (descriptors without a name)
 *           |
 *      vmlinux, initrd.img, disk.qcow2 --> debian:SUITE/HASH, as draft.h says
 *
 * As root mmdebstrap runs as that; others need the user namespaces that its unshare mode makes
 * (subordinate IDs in /etc/subuid, newuidmap). The packages come from where the machine's apt gets
 * its Debian, or from mmdebstrap's own default where that has none.
 *
 * Errors: -EINTR, -ENOENT (mmdebstrap or a package is missing), -EIO with what mmdebstrap said.
 */
#pragma once

#include "image/build.h"

/* A suite's name as apt knows it: small letters, digits and '-'. */
bool image_debian_suite_valid(const char *suite);

/* 1 when it was made, 0 when it was up to date. Needs make_disk. */
int image_build_debian(const struct image_build *build, const char *suite, struct image *ret_image,
                       struct err *err);

/* The line of a sources list for `suite` that stands for a repository ("SITE RELEASE COMPONENT") of
 * the machine's own suite; 0, or -ENOENT when there is none. Pure. */
int image_debian_source(const char *repository, const char *suite, char *ret_line, size_t size);
