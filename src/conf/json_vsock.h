/*
 * json_vsock.h: "vsock" of a JSON definition. Private to json.c.
 */
#pragma once

#include "conf/guest.h"

#include <jansson.h>

/* Replaces it. -EINVAL with a phrase; what was read so far is then in `vsock`. */
int json_get_vsock(const json_t *value, struct guest_vsock *vsock, struct err *why);
/* -1 without memory, or where the path is no UTF-8. Nothing is written where there is no device. */
int json_put_vsock(json_t *root, const struct guest_vsock *vsock);
