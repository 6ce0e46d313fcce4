/*
 * machine.h: one lodge-vmm process, as its starter sees it.
 *
 * machine_start() hands over the definition and all descriptors; after it the VMM opens nothing. It
 * leads a session of its own, so Ctrl-C at our terminal is for us to interpret, and it ends with us
 * whatever happens: the control socket closes, and the kernel kills it when we die.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"
#include "wire/control.h"

#include <stdbool.h>
#include <sys/types.h>

struct machine {
    pid_t pid;   /* -1 when none runs */
    int control; /* SEQPACKET */
    int serial;  /* the guest's serial port, both ways, non-blocking */
    int agent;   /* the exec channel, non-blocking */
    int vsock;   /* the link of wire/vsock.h; -1 without a socket device */
};

/* `conf` holds paths already opened (kernel_fd, initrd_fd, kvm_fd, disks, shares); its serial,
 * control and console fields are filled here and are not valid after. The agent's port is always
 * there: a guest without agent does not look. */
int machine_start(struct machine *machine, const char *program, struct guest_conf *conf,
                  struct err *err);

/* In a child, between fork and exec: becomes `program` in a session of its own, with `keep` open
 * and nothing on standard input and output; dies with `parent`. */
void machine_execute(const char *program, char *const *argv, const int *keep, size_t keep_count,
                     pid_t parent) __attribute__((noreturn));

/* One message, if there is one: 1, or 0 for none now, or -EPIPE when the VMM closed its end. */
int machine_event(struct machine *machine, struct control_message *ret_message, struct err *err);

/* Sends one request. -EAGAIN where it does not take more for now. */
int machine_request(struct machine *machine, const struct control_message *request,
                    struct err *err);

/* Ends it, at once, and waits until it is gone. Returns what waitpid() said, or 0. */
int machine_end(struct machine *machine);

/* The path of one of our programs: the environment variable, else beside the one that runs, else
 * where `make install` puts it. -ENOENT with the way out. */
int machine_find_program(const char *name, const char *variable, char *ret_path, size_t size,
                         struct err *err);
