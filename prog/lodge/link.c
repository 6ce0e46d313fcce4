/*
 * lodge link: the cable of a running guest's network card.
 */
#include "base/own.h"
#include "conf/guest_nic.h"
#include "endpoint.h"
#include "verbs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse(const struct arguments *arguments, struct control_message *request,
                 struct err *err)
{
    if (arguments->word_count != 3)
        return err_set(err, -EINVAL, "link takes a guest's name, a card's number, and up or down");
    char *end;
    const char *number = arguments->words[1], *state = arguments->words[2];
    unsigned long nic = strtoul(number, &end, 10);
    if (*number < '0' || *number > '9' || *end || nic >= GUEST_NICS_MAX)
        return err_set(err, -EINVAL, "'%.64s' is no number of a network card; the first is 0",
                       number);
    if (strcmp(state, "up") != 0 && strcmp(state, "down") != 0)
        return err_set(err, -EINVAL, "a link is up or down, not '%.64s'", state);
    *request = (struct control_message){
        .type = CONTROL_LINK, .port = (uint32_t)nic, .open = !strcmp(state, "up")};
    return 0;
}

static int set_link(const struct arguments *arguments)
{
    struct err err = {0};
    struct control_message request, reply;
    int status = STATUS_MISTAKE;
    int r = parse(arguments, &request, &err);
    if (r >= 0) {
        status = STATUS_FAILED;
        _cleanup_fd_ int fd = endpoint_connect(arguments->words[0], &err);
        r = fd < 0 ? fd : endpoint_ask(fd, &request, NULL, 0, &reply, &err);
        if (fd >= 0 && r < 0)
            err_prefix(&err, r, "guest '%s'", arguments->words[0]);
    }
    if (r >= 0)
        return 0;
    fprintf(stderr, "lodge: %s\n", err.text);
    return status;
}

const struct verb verb_link = {
    .name = "link",
    .summary = "Pull or plug a guest's network cable",
    .usage = "GUEST NIC up|down",
    .details = "The guest's network cards are counted from 0, in the order of --net. While a link\n"
               "is down the guest sees no carrier, and nothing passes.",
    .example = "lodge link web 0 down",
    .words_max = 3,
    .mistake_status = STATUS_MISTAKE,
    .run = set_link,
};
