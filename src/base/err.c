#include "base/err.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* Texts go to terminals, and names in them may be anybody's. Lines are ours. */
static void clean(char *text)
{
    for (; *text; text++)
        if (((unsigned char)*text < ' ' && *text != '\n') || *text == 127)
            *text = '?';
}

int err_set(struct err *err, int code, const char *format, ...)
{
    assert(code < 0);
    if (!err)
        return code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    clean(err->text);
    return code;
}

int err_errno(struct err *err, int number, const char *format, ...)
{
    assert(number > 0);
    if (!err)
        return -number;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof err->text)
        snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", strerror(number));
    clean(err->text);
    return -number;
}

int err_prefix(struct err *err, int code, const char *format, ...)
{
    if (!err)
        return code;
    char before[ERR_TEXT_MAX];
    memcpy(before, err->text, sizeof before);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof err->text)
        snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", before);
    clean(err->text);
    return code;
}
