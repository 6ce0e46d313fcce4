#include "listener.h"

#include "base/own.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 64 };

static int address_of(const char *path, struct sockaddr_un *ret_address)
{
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof ret_address->sun_path)
        return length ? -ENAMETOOLONG : -EINVAL;
    memcpy(ret_address->sun_path, path, length);
    return 0;
}

int listener_dial(const char *path)
{
    struct sockaddr_un address;
    int r = address_of(path, &address);
    if (r < 0)
        return r;
    _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    return take_fd(&fd);
}

static bool remove_stale(const char *path)
{
    struct stat status;
    if (lstat(path, &status) < 0 || !S_ISSOCK(status.st_mode))
        return false;
    int fd = listener_dial(path);
    if (fd >= 0)
        close(fd);
    return fd == -ECONNREFUSED && unlink(path) == 0;
}

static int listen_at(int fd, const char *path)
{
    struct sockaddr_un address;
    int r = address_of(path, &address);
    if (r < 0)
        return r;
    /* Before it has a name, so that there is no moment at which others may connect. */
    if (fchmod(fd, 0600) < 0)
        return -errno;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        r = -errno;
        if (r != -EADDRINUSE || !remove_stale(path))
            return r;
        if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
            return -errno;
    }
    if (listen(fd, BACKLOG) == 0)
        return 0;
    r = -errno;
    unlink(path);
    return r;
}

int listener_open(struct listener *listener, const char *what, const char *path, struct err *err)
{
    struct stat made;
    *listener = (struct listener){.fd = -1};
    _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    _cleanup_free_ char *copy = strdup(path);
    if (fd < 0 || !copy)
        return err_errno(err, fd < 0 ? errno : ENOMEM, "%s '%s'", what, path);
    int r = listen_at(fd, path);
    if (r == -EADDRINUSE)
        return err_set(err, r, "%s '%s' is in use: another guest has it, or a file is there", what,
                       path);
    if (r == -ENAMETOOLONG || r == -EINVAL)
        return err_set(err, r, "%s '%.200s': a path has 1 to %zu bytes", what, path,
                       sizeof(struct sockaddr_un){0}.sun_path - 1);
    if (r < 0)
        return err_errno(err, -r, "%s '%s'", what, path);
    if (lstat(path, &made) < 0)
        return err_errno(err, errno, "%s '%s'", what, path);
    *listener = (struct listener){
        .fd = take_fd(&fd), .path = take_ptr(copy), .device = made.st_dev, .inode = made.st_ino};
    return 0;
}

void listener_close(struct listener *listener)
{
    struct stat now;
    if (!listener->path)
        return;
    if (lstat(listener->path, &now) == 0 && now.st_ino == listener->inode &&
        now.st_dev == listener->device)
        unlink(listener->path);
    own_close(&listener->fd);
    free(take_ptr(listener->path));
}
