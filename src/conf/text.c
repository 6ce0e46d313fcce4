#include "conf/private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int guest_text_error(struct err *err, const char *origin, struct text_place place,
                     const char *format, ...)
{
    char phrase[ERR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(phrase, sizeof phrase, format, arguments);
    va_end(arguments);
    return err_set(err, -EINVAL, "%s:%u:%u: %s", origin, place.line, place.column, phrase);
}

int guest_text_check(const char *text, size_t length, const char *origin, struct err *err)
{
    if (length > GUEST_TEXT_MAX)
        return err_set(err, -EINVAL, "%s: longer than a definition can be (%d bytes)", origin,
                       GUEST_TEXT_MAX);
    struct text_place place = {1, 1};
    for (size_t i = 0; i < length; i++) {
        if (!text[i])
            return guest_text_error(err, origin, place, "a NUL byte; this is no text file");
        place.column++;
        if (text[i] == '\n')
            place = (struct text_place){place.line + 1, 1};
    }
    return 0;
}

char *guest_text_word(char **rest)
{
    char *word = *rest, *to = word, *at = word;
    for (; *at; at++) {
        if (*at == ',' && at[1] != ',')
            break;
        if (*at == ',')
            at++;
        *to++ = *at;
    }
    *rest = *at ? at + 1 : NULL;
    *to = '\0';
    return word;
}
