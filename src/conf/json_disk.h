/*
 * json_disk.h: "disks" and "restore" of a JSON definition. Private to json.c.
 */
#pragma once

#include "conf/guest.h"

#include <jansson.h>

/* Replaces the disks of `conf`. -EINVAL with a phrase; what was read so far is then in `conf`. */
int json_get_disks(const json_t *value, struct guest_conf *conf, struct err *why);
/* -1 without memory, or where a string is no UTF-8. */
int json_put_disks(json_t *root, const struct guest_conf *conf);

int json_get_restore(const json_t *value, struct guest_conf *conf, struct err *why);
int json_put_restore(json_t *root, const struct guest_conf *conf);
