/*
 * restore.h: a guest's plan out of the folder of a snapshot, for lodge restore and lodge clone.
 */
#pragma once

#include "plan.h"

/* Fills `plan` in. `adapt` may then say what is otherwise: the definition is as it was saved, but
 * without a name. */
int restore_make(struct plan *plan, const char *folder,
                 int (*adapt)(struct plan *plan, struct err *err), struct err *err);
