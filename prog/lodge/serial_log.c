#include "serial_log.h"

#include "base/bytes.h"
#include "base/own.h"

#include <stdlib.h>
#include <string.h>

void serial_log_put(struct serial_log *log, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        log->bytes[log->length++ % SERIAL_LOG_SIZE] = (char)bytes[i];
}

/* What is kept, oldest first, as a string: control characters but line ends become spaces. */
static char *text_of(const struct serial_log *log)
{
    size_t kept = min(log->length, (size_t)SERIAL_LOG_SIZE);
    char *text = malloc(kept + 1);
    if (!text)
        return NULL;
    for (size_t i = 0; i < kept; i++) {
        char c = log->bytes[(log->length - kept + i) % SERIAL_LOG_SIZE];
        text[i] = (c >= ' ' && c != 127) || c == '\n' ? c : ' ';
    }
    text[kept] = '\0';
    return text;
}

bool serial_log_panic(const struct serial_log *log, char *ret_reason, size_t size)
{
    static const char words[] = "Kernel panic - not syncing: ";
    _cleanup_free_ char *text = text_of(log);
    const char *found = text ? strstr(text, words) : NULL;
    if (!found)
        return false;
    found += strlen(words);
    snprintf(ret_reason, size, "%.*s", (int)strcspn(found, "\n"), found);
    for (size_t end = strlen(ret_reason); end > 0 && ret_reason[end - 1] == ' '; end--)
        ret_reason[end - 1] = '\0';
    return true;
}

void serial_log_print(const struct serial_log *log, unsigned lines, const char *prefix, FILE *to)
{
    _cleanup_free_ char *text = text_of(log);
    if (!text)
        return;
    size_t end = strlen(text);
    while (end > 0 && (text[end - 1] == '\n' || text[end - 1] == ' '))
        end--;
    text[end] = '\0';
    size_t start = end;
    for (unsigned found = 0; start > 0; start--)
        if (text[start - 1] == '\n' && ++found == lines)
            break;
    char *rest = NULL;
    for (char *line = strtok_r(text + start, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        fprintf(to, "%s%s\n", prefix, line);
}
