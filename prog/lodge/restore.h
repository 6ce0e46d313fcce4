/*
 * restore.h: a guest's plan out of the folder of a snapshot, for lodge restore and lodge clone.
 */
#pragma once

#include "plan.h"

/* Where the guest's sockets lie, as --vsock says it; NULL: where they did. Not for a guest that has
 * none, and the CID is the guest's. */
int restore_set_vsock(struct guest_conf *conf, const char *text, struct err *err);

/* Fills `plan` in. `adapt` may then say what is otherwise: the definition is as it was saved, but
 * without a name. */
int restore_make(struct plan *plan, const char *folder,
                 int (*adapt)(struct plan *plan, struct err *err), struct err *err);
