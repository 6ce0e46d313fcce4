/*
 * plan.h: one guest of lodge run or lodge restore, from words to descriptors: what both do alike.
 *
 * The verb's own part fills the plan in (`make` of plan_run()); it is started, joined to standard
 * input and output, and taken apart here.
 */
#pragma once

#include "conf/guest.h"
#include "endpoint.h"
#include "image/store.h"
#include "net.h"
#include "relay.h"
#include "scratch.h"
#include "verbs.h"

#include <sys/types.h>

struct plan {
    const struct arguments *arguments;
    void *context; /* of the verb's own part */
    struct guest_conf conf;
    struct image image;
    bool has_image, agent;
    struct relay_plan relay;
    const char *argv[AGENT_STRINGS_MAX + 1];
    const char *env[ARGUMENTS_GIVEN_MAX + 1];
    char term[128];
    int kernel, initrd, kvm, seed, firmware, nvram; /* descriptors */
    struct endpoint endpoint;
    char *control;          /* where a steering socket is to be; NULL = where --control says */
    struct scratch scratch; /* images that go with this run; until they are open */
    struct net net;
    pid_t servers[GUEST_SHARES_MAX]; /* of the shares, 0 = not started */
};

/* The verb, whole; its exit status. */
int plan_run(const struct arguments *arguments, int (*make)(struct plan *plan, struct err *err),
             void *context);

/* Sets the options that were given and are a guest's property. Not --publish: a port wants a
 * network card that is there. */
int plan_set_options(struct plan *plan, const char *const *but, struct err *err);

/* --publish. */
int plan_set_forwards(struct plan *plan, struct err *err);

/* A string of the definition. */
int plan_replace(char **field, const char *value, struct err *err);

/* Descriptors in a file would be numbers of nothing. */
int plan_refuse_descriptors(const struct guest_conf *conf, const char *path, struct err *err);

/* How the guest is joined to us (relay.h). The image is known. */
int plan_choose_relay(struct plan *plan, struct err *err);

/* Opens disks, vsock and KVM, and gives the definition all descriptors of the plan. */
int plan_open(struct plan *plan, struct err *err);
