#include "input.h"

#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

int input_read(const char *what, const char *path, size_t max_size, char **ret_text,
               size_t *ret_length, struct err *err)
{
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "%s '%s'", what, path);
    _cleanup_free_ char *text = malloc(max_size + 2);
    size_t length = 0;
    ssize_t n = text ? 1 : 0;
    while (n > 0 && length <= max_size) {
        n = read(fd, text + length, max_size + 1 - length);
        if (n < 0)
            return err_errno(err, errno, "%s '%s'", what, path);
        length += (size_t)n;
    }
    if (!text)
        return err_set(err, -ENOMEM, "no memory");
    if (length > max_size)
        return err_set(err, -EFBIG, "%s '%s' has more than %zu bytes", what, path, max_size);
    text[length] = '\0';
    *ret_text = take_ptr(text);
    *ret_length = length;
    return 0;
}

int input_open(const char *what, const char *path, int *ret_fd, struct err *err)
{
    struct stat status;
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return err_errno(err, errno, "%s '%s'", what, path);
    if (!S_ISREG(status.st_mode))
        return err_set(err, -EINVAL, "%s '%s' is no regular file", what, path);
    if (status.st_size == 0)
        return err_set(err, -EINVAL, "%s '%s' is empty", what, path);
    *ret_fd = take_fd(&fd);
    return 0;
}
