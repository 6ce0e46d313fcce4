#include "answer.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool digits(const char **at, uint64_t *ret_value)
{
    *ret_value = 0;
    const char *begin = *at;
    for (; **at >= '0' && **at <= '9'; (*at)++)
        if (__builtin_mul_overflow(*ret_value, 10, ret_value) ||
            __builtin_add_overflow(*ret_value, (uint64_t)(**at - '0'), ret_value))
            return false;
    return *at > begin;
}

/* "bytes 0-499/1234" */
static bool parse_range(const char *text, struct answer *answer)
{
    if (strncasecmp(text, "bytes ", 6) != 0)
        return false;
    const char *at = text + 6;
    return digits(&at, &answer->first) && *at++ == '-' && digits(&at, &answer->last) &&
           *at++ == '/' && digits(&at, &answer->size) && *at == '\0' &&
           answer->first <= answer->last && answer->last < answer->size &&
           answer->size <= INT64_MAX;
}

void answer_line(struct answer *answer, const char *line, size_t length)
{
    char text[ANSWER_TEXT_MAX + 32];
    if (length >= 5 && !memcmp(line, "HTTP/", 5))
        *answer = (struct answer){0};
    while (length && (unsigned char)line[length - 1] <= ' ')
        length--;
    if (length >= sizeof text)
        return;
    memcpy(text, line, length);
    text[length] = '\0';
    char *colon = strchr(text, ':');
    if (!colon || strlen(text) != length)
        return;
    *colon = '\0';
    const char *value = colon + 1 + strspn(colon + 1, " \t");
    bool fits = strlen(value) < ANSWER_TEXT_MAX;
    if (!strcasecmp(text, "content-range"))
        answer->ranged = parse_range(value, answer);
    else if (!strcasecmp(text, "etag") && fits)
        strcpy(answer->etag, value);
    else if (!strcasecmp(text, "last-modified") && fits)
        strcpy(answer->modified, value);
    else if (!strcasecmp(text, "content-encoding"))
        answer->encoded = strcasecmp(value, "identity") != 0;
}

bool answer_same(const struct answer *one, const struct answer *other)
{
    return one->size == other->size && !strcmp(one->etag, other->etag) &&
           !strcmp(one->modified, other->modified);
}
