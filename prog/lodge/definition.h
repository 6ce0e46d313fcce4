/*
 * definition.h: a guest's definition from a file of any form: vm.conf, JSON or libvirt's domain
 * XML, which its first character tells apart.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"

/* Changes only what the file names. The notes are there after an error, too. */
int definition_read(struct guest_conf *conf, const char *path, struct guest_notes *notes,
                    struct err *err);

/* On standard error, one line each: "FILE:LINE: /domain/devices/sound: ignored: there is no sound".
 */
void definition_print_notes(const char *path, const struct guest_notes *notes);
