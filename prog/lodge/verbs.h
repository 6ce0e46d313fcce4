/*
 * verbs.h: the table of verbs; each is a row in a file of its own.
 */
#pragma once

#include "arguments.h"

enum { STATUS_FAILED = 1, STATUS_MISTAKE = 2 };

extern const struct verb verb_root; /* "lodge" itself */
extern const struct verb verb_run, verb_host, verb_image, verb_disk, verb_help, verb_version,
    verb_pause, verb_resume, verb_snapshot, verb_restore, verb_clone, verb_link, verb_completion,
    verb_doctor, verb_convert_definition;
