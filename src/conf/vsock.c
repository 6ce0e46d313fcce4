/* A guest's socket device as a line of words: "PATH[,cid=N]". */
#include "base/own.h"
#include "conf/guest.h"
#include "conf/private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int guest_check_cid(int64_t cid, struct err *err)
{
    if (cid >= GUEST_CID_MIN && cid <= GUEST_CID_MAX)
        return 0;
    return err_set(err, -EINVAL, "a guest's CID is %d to %" PRIu32 ", not %" PRId64, GUEST_CID_MIN,
                   GUEST_CID_MAX, cid);
}

int guest_vsock_set_cid(struct guest_vsock *vsock, const char *text, struct err *err)
{
    size_t length = strlen(text);
    if (length == 0 || length > 10 || strspn(text, "0123456789") != length)
        return err_set(err, -EINVAL, "'%.64s' is no CID, which is a number from %d on", text,
                       GUEST_CID_MIN);
    int64_t cid = strtoll(text, NULL, 10);
    int r = guest_check_cid(cid, err);
    if (r >= 0)
        vsock->cid = (uint32_t)cid;
    return r;
}

int guest_vsock_set_path(struct guest_vsock *vsock, const char *text, struct err *err)
{
    if (!*text)
        return err_set(err, -EINVAL, "vsock wants a path, as in web.vsock,cid=3");
    if (strlen(text) > GUEST_VSOCK_PATH_MAX)
        return err_set(err, -EINVAL,
                       "vsock path '%.128s' is longer than %d bytes, which is all that a socket's "
                       "address has room for",
                       text, GUEST_VSOCK_PATH_MAX);
    char *copy = strdup(text);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    free(vsock->path);
    vsock->path = copy;
    return 0;
}

int guest_conf_set_vsock(struct guest_conf *conf, const char *text, struct err *err)
{
    struct guest_vsock vsock = {.cid = conf->vsock.cid, .fd = -1};
    _cleanup_free_ char *copy = strdup(text);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    char *rest = copy;
    int r = guest_vsock_set_path(&vsock, guest_text_word(&rest), err);
    while (r >= 0 && rest) {
        char *word = guest_text_word(&rest);
        r = !strncmp(word, "cid=", 4)
                ? guest_vsock_set_cid(&vsock, word + 4, err)
                : err_set(err, -EINVAL, "'%.64s' says nothing of a vsock; there is cid=N", word);
    }
    if (r < 0) {
        free(vsock.path);
        return r;
    }
    free(conf->vsock.path);
    conf->vsock = vsock;
    return 0;
}
