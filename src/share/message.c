#include "share/private.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>

int request_take(struct request *request, void *to, size_t size)
{
    if (request->left < size)
        return -EINVAL;
    memcpy(to, request->body, size);
    request->body += size;
    request->left -= size;
    return 0;
}

int request_text(struct request *request, const char **ret_text)
{
    const char *text = (const char *)request->body;
    size_t length = strnlen(text, request->left);
    if (length == 0 || length == request->left)
        return -EINVAL;
    request->body += length + 1;
    request->left -= length + 1;
    *ret_text = text;
    return 0;
}

int request_name(struct request *request, const char **ret_name)
{
    const char *name;
    int r = request_text(request, &name);
    if (r < 0)
        return r;
    if (strlen(name) > NAME_MAX)
        return -ENAMETOOLONG;
    if (strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
        return -EINVAL;
    *ret_name = name;
    return 0;
}

int request_take_named(struct request *request, void *to, size_t size, const char **ret_name)
{
    int r = request_take(request, to, size);
    return r < 0 ? r : request_name(request, ret_name);
}

void request_give(struct request *request, const void *from, size_t size)
{
    assert(request->room - request->length >= size);
    memcpy(request->reply + request->length, from, size);
    request->length += size;
}
