/*
 * private.h: what the readers of src/conf share with each other and with nobody else.
 */
#pragma once

#include "conf/guest.h"

/* A deep copy; `to` is empty after -ENOMEM. */
int guest_conf_copy(struct guest_conf *to, const struct guest_conf *from);

/* disk.c */
int guest_disk_set_cache(struct guest_disk *disk, const char *text, struct err *err);
int guest_disk_set_serial(struct guest_disk *disk, const char *text, struct err *err);
void guest_disks_free(struct guest_conf *conf); /* none are left */

int guest_check_memory(uint64_t bytes, struct err *err);
int guest_check_cpus(uint64_t cpus, struct err *err);
int guest_check_code_cache(uint64_t bytes, struct err *err);
int guest_conf_check_nics(const struct guest_conf *conf, struct err *err);

void guest_disk_free(struct guest_disk *disk); /* what it holds; it is empty after */
int guest_disk_copy(struct guest_disk *to, const struct guest_disk *from);
/* One property by its name, as in guest_conf_add_disk(). */
int guest_disk_set(struct guest_disk *disk, const char *name, const char *value, struct err *err);
/* What no single property can answer. */
int guest_disk_check(const struct guest_disk *disk, struct err *err);

/* share.c */
void guest_share_free(struct guest_share *share); /* what it holds; it is empty after */
int guest_share_copy(struct guest_share *to, const struct guest_share *from);
/* One property by its name: path, tag or at. */
int guest_share_set(struct guest_share *share, const char *name, const char *value,
                    struct err *err);
/* One more, with what it does not say filled in; what it holds is taken over in any case. */
int guest_conf_take_share(struct guest_conf *conf, struct guest_share *share, struct err *err);

/* Where in a text: both count from 1, columns in bytes. */
struct text_place {
    unsigned line, column;
};

/* -EINVAL with "origin:line:column: phrase", the form that editors and compilers know. */
int guest_text_error(struct err *err, const char *origin, struct text_place place,
                     const char *format, ...) __attribute__((format(printf, 4, 5)));

/* 0 where a reader may look at the text at all: not too long, no NUL byte. */
int guest_text_check(const char *text, size_t length, const char *origin, struct err *err);

/* Cuts the next word off: up to a single comma. Pairs of commas become one, in place. `*rest` is
 * NULL behind the last. */
char *guest_text_word(char **rest);

/* vsock.c */
int guest_vsock_set_cid(struct guest_vsock *vsock, const char *text, struct err *err);
int guest_vsock_set_path(struct guest_vsock *vsock, const char *text, struct err *err);
int guest_check_cid(int64_t cid, struct err *err);
