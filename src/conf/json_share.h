/*
 * json_share.h: "shares" of a JSON definition. Private to json.c.
 */
#pragma once

#include "conf/guest.h"

#include <jansson.h>

/* Replaces the shares of `conf`. -EINVAL with a phrase; what was read so far is then in `conf`. */
int json_get_shares(const json_t *value, struct guest_conf *conf, struct err *why);
/* -1 without memory, or where a string is no UTF-8. */
int json_put_shares(json_t *root, const struct guest_conf *conf);
