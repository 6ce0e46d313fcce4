/*
 * json_nic.h: the field "nics" of a definition, for json.c.
 */
#pragma once

#include "conf/guest.h"

#include <jansson.h>

/* Replaces all cards. -EINVAL with a phrase. */
int json_nics_get(const json_t *value, struct guest_conf *conf, struct err *why);
/* A new array, or NULL. */
json_t *json_nics_put(const struct guest_conf *conf);
