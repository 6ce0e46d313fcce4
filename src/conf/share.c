/*
 * A shared folder as people write it, in one value:
 *
 *     PATH [",tag=" TAG] [",at=" FOLDER] [",ro"]
 *
 * A comma in PATH is written twice. Tag and folder travel on the guest's kernel command line, so
 * both are of few characters.
 */
#include "base/own.h"
#include "conf/guest.h"
#include "conf/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORD "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

void guest_share_free(struct guest_share *share)
{
    free(share->path);
    free(share->tag);
    free(share->at);
    *share = (struct guest_share){.fd = -1};
}

static int copy_string(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return from && !*to ? -ENOMEM : 0;
}

int guest_share_copy(struct guest_share *to, const struct guest_share *from)
{
    *to = (struct guest_share){.read_only = from->read_only, .fd = from->fd};
    int r = copy_string(&to->path, from->path);
    if (r >= 0)
        r = copy_string(&to->tag, from->tag);
    if (r >= 0)
        r = copy_string(&to->at, from->at);
    if (r < 0)
        guest_share_free(to);
    return r;
}

static int replace(char **field, const char *value, struct err *err)
{
    char *copy = strdup(value);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    free(*field);
    *field = copy;
    return 0;
}

int guest_share_set(struct guest_share *share, const char *name, const char *value, struct err *err)
{
    size_t length = strlen(value);
    if (!strcmp(name, "path")) {
        if (!*value)
            return err_set(err, -EINVAL, "a share wants a path, as in folder,ro");
        return replace(&share->path, value, err);
    }
    if (!strcmp(name, "tag")) {
        if (length == 0 || length > GUEST_TAG_MAX || strspn(value, WORD) != length)
            return err_set(err, -EINVAL,
                           "a share's tag has 1 to %d letters, digits, '.', '_' and '-', unlike "
                           "'%.64s'",
                           GUEST_TAG_MAX, value);
        return replace(&share->tag, value, err);
    }
    if (!strcmp(name, "at")) {
        if (*value != '/' || length > GUEST_AT_MAX || strspn(value, WORD "/") != length)
            return err_set(err, -EINVAL,
                           "where a share is mounted is a path from / of at most %d letters, "
                           "digits, '.', '_', '-' and '/', unlike '%.64s'",
                           GUEST_AT_MAX, value);
        return replace(&share->at, value, err);
    }
    return err_set(err, -EINVAL, "'%.64s' says nothing of a share; there are tag=, at= and ro",
                   name);
}

static bool tag_is_used(const struct guest_conf *conf, const char *tag)
{
    bool used = false;
    for (unsigned i = 0; i < conf->share_count; i++)
        used |= !strcmp(conf->shares[i].tag, tag);
    return used;
}

/* share, share2, share3, ..., mounted at /mnt/share and so on. */
static int fill(const struct guest_conf *conf, struct guest_share *share, struct err *err)
{
    char tag[GUEST_TAG_MAX + 1] = "share", at[GUEST_AT_MAX + 1];
    for (unsigned i = 2; !share->tag && tag_is_used(conf, tag); i++)
        snprintf(tag, sizeof tag, "share%u", i);
    int r = share->tag ? 0 : replace(&share->tag, tag, err);
    if (r < 0)
        return r;
    if (tag_is_used(conf, share->tag))
        return err_set(err, -EINVAL, "two shares have the tag '%s'", share->tag);
    snprintf(at, sizeof at, "/mnt/%s", share->tag);
    return share->at ? 0 : replace(&share->at, at, err);
}

int guest_conf_take_share(struct guest_conf *conf, struct guest_share *share, struct err *err)
{
    int r = 0;
    if (conf->share_count == GUEST_SHARES_MAX)
        r = err_set(err, -E2BIG, "a guest has at most %d shares", GUEST_SHARES_MAX);
    if (r >= 0 && !share->path)
        r = err_set(err, -EINVAL, "a share wants a path, as in folder,ro");
    if (r >= 0)
        r = fill(conf, share, err);
    if (r < 0)
        guest_share_free(share);
    else
        conf->shares[conf->share_count++] = *share;
    return r;
}

int guest_conf_add_share(struct guest_conf *conf, const char *text, struct err *err)
{
    struct guest_share share = {.fd = -1};
    _cleanup_free_ char *copy = strdup(text);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    char *rest = copy;
    int r = guest_share_set(&share, "path", guest_text_word(&rest), err);
    while (r >= 0 && rest) {
        char *word = guest_text_word(&rest), *equals = strchr(word, '=');
        if (equals)
            *equals = '\0';
        if (!equals && !strcmp(word, "ro"))
            share.read_only = true;
        else if (!strcmp(word, "path"))
            r = err_set(err, -EINVAL, "the path of a share is its first word");
        else
            r = guest_share_set(&share, word, equals ? equals + 1 : "", err);
    }
    if (r < 0) {
        guest_share_free(&share);
        return r;
    }
    return guest_conf_take_share(conf, &share, err);
}
