#include "base/descriptors.h"

#include "base/own.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

bool descriptor_parse(const char *text, int *ret_fd)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value > INT_MAX)
        return false;
    *ret_fd = (int)value;
    return true;
}

static int compare(const void *a, const void *b)
{
    int left = *(const int *)a, right = *(const int *)b;
    return (left > right) - (left < right);
}

int descriptors_close_others(const int *keep, size_t count)
{
    _cleanup_free_ int *sorted = malloc((count + 1) * sizeof *sorted);
    unsigned next = 3;
    if (!sorted)
        return -ENOMEM;
    if (count)
        memcpy(sorted, keep, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare);
    for (size_t i = 0; i < count; i++) {
        if (sorted[i] < (int)next)
            continue;
        if (sorted[i] > (int)next && close_range(next, (unsigned)sorted[i] - 1, 0) < 0)
            return -errno;
        next = (unsigned)sorted[i] + 1;
    }
    return close_range(next, ~0u, 0) < 0 ? -errno : 0;
}
