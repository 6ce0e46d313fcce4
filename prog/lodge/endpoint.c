#include "endpoint.h"

#include "base/bytes.h"
#include "base/own.h"
#include "base/packet.h"
#include "image/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { TEXT_MAX = 1 << 20 };

static int folder_path(char **ret_path)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    int r;
    if (runtime && *runtime == '/')
        r = asprintf(ret_path, "%s/lodge", runtime);
    else if (geteuid() == 0)
        r = asprintf(ret_path, "/run/lodge");
    else
        r = asprintf(ret_path, "/tmp/lodge-%u", (unsigned)geteuid());
    return r < 0 ? -ENOMEM : 0;
}

/* The folder, made if need be. In /tmp anybody could have made one of that name. */
static int open_folder(bool make, struct err *err)
{
    _cleanup_free_ char *path = NULL;
    struct stat about;
    if (folder_path(&path) < 0)
        return err_set(err, -ENOMEM, "no memory");
    if (make && mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_errno(err, errno, "folder '%s'", path);
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about) < 0)
        return err_errno(err, errno, "folder '%s'", path);
    if (about.st_uid != geteuid() || about.st_mode & 022)
        return err_set(err, -EPERM,
                       "folder '%s' belongs to somebody else, or others may write to it", path);
    return take_fd(&fd);
}

/* A socket's address goes by the folder's descriptor: paths may be longer than addresses. */
static int address_of(int folder, const char *name, struct sockaddr_un *ret_address)
{
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(ret_address->sun_path, sizeof ret_address->sun_path,
                     "/proc/self/fd/%d/%s.sock", folder, name);
    return n < (int)sizeof ret_address->sun_path ? 0 : -ENAMETOOLONG;
}

static int check_name(const char *name, struct err *err)
{
    if (image_name_valid(name))
        return 0;
    return err_set(err, -EINVAL,
                   "'%.64s' is no name for a guest; use letters, digits, '.', '_' and '-'", name);
}

static int listen_there(const struct endpoint *endpoint, struct err *err)
{
    struct sockaddr_un address;
    char file[300];
    snprintf(file, sizeof file, "%s.sock", endpoint->name);
    unlinkat(endpoint->folder, file, 0); /* of one that was killed: we have the lock */
    int r = address_of(endpoint->folder, endpoint->name, &address);
    if (r < 0)
        return err_errno(err, -r, "name '%s'", endpoint->name);
    _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 16) < 0)
        return err_errno(err, errno, "socket of guest '%s'", endpoint->name);
    return take_fd(&fd);
}

static int write_definition(const struct endpoint *endpoint, const char *text, struct err *err)
{
    char file[300];
    snprintf(file, sizeof file, "%s.json", endpoint->name);
    _cleanup_fd_ int fd =
        openat(endpoint->folder, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t length = strlen(text);
    if (fd < 0 || write(fd, text, length) != (ssize_t)length)
        return err_errno(err, errno ? errno : EIO, "definition of guest '%s'", endpoint->name);
    return 0;
}

int endpoint_open(struct endpoint *endpoint, const char *name, const char *definition, int *ret_fd,
                  struct err *err)
{
    char file[300];
    *endpoint = (struct endpoint){.folder = -1, .lock = -1};
    int r = check_name(name, err);
    if (r < 0)
        return r;
    endpoint->name = strdup(name);
    endpoint->folder = endpoint->name ? open_folder(true, err) : err_set(err, -ENOMEM, "no memory");
    if (endpoint->folder < 0)
        return endpoint->folder;
    snprintf(file, sizeof file, "%s.lock", name);
    _cleanup_fd_ int lock = openat(endpoint->folder, file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0)
        return err_errno(err, errno, "lock of guest '%s'", name);
    if (flock(lock, LOCK_EX | LOCK_NB) < 0)
        return err_set(err, -EEXIST, "a guest named '%s' runs already", name);
    struct stat about;
    if (fstat(lock, &about) < 0 || about.st_nlink == 0) /* it was taken away before we had it */
        return err_set(err, -EEXIST, "a guest named '%s' is just ending; try again", name);
    endpoint->lock = take_fd(&lock);
    r = write_definition(endpoint, definition, err);
    if (r >= 0)
        r = listen_there(endpoint, err);
    if (r < 0)
        return r;
    *ret_fd = r;
    return 0;
}

void endpoint_close(struct endpoint *endpoint)
{
    static const char *const endings[] = {"sock", "json", "lock"};
    if (!endpoint->name)
        return;
    for (size_t i = 0; i < ARRAY_LEN(endings) && endpoint->lock >= 0; i++) {
        char file[300];
        snprintf(file, sizeof file, "%s.%s", endpoint->name, endings[i]);
        unlinkat(endpoint->folder, file, 0);
    }
    own_close(&endpoint->lock);
    own_close(&endpoint->folder);
    free(take_ptr(endpoint->name));
}

int endpoint_check(struct err *err)
{
    _cleanup_free_ char *path = NULL;
    if (folder_path(&path) < 0)
        return err_set(err, -ENOMEM, "no memory");
    if (access(path, F_OK) < 0 && errno == ENOENT) { /* it would be made */
        *strrchr(path, '/') = '\0';
        return access(path, W_OK) == 0 ? 0 : err_errno(err, errno, "folder '%s'", path);
    }
    _cleanup_fd_ int fd = open_folder(false, err);
    return fd < 0 ? fd : 0;
}

void endpoint_each(void (*each)(void *opaque, const char *name), void *opaque)
{
    _cleanup_fd_ int fd = open_folder(false, NULL);
    DIR *folder = fd >= 0 ? fdopendir(fd) : NULL;
    if (!folder)
        return;
    take_fd(&fd);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        char name[NAME_MAX + 1];
        size_t length = strlen(entry->d_name);
        if (length <= 5 || strcmp(entry->d_name + length - 5, ".sock") != 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(length - 5), entry->d_name);
        each(opaque, name);
    }
    closedir(folder);
}

int endpoint_connect(const char *name, struct err *err)
{
    struct sockaddr_un address;
    struct err none;
    int r = check_name(name, err);
    if (r < 0)
        return r;
    _cleanup_fd_ int folder = open_folder(false, &none);
    _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_errno(err, errno, "socket");
    if (folder < 0 || address_of(folder, name, &address) < 0 ||
        connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return err_set(err, -ENOENT,
                       "no guest named '%s' runs; lodge run --name %s starts one that is found",
                       name, name);
    return take_fd(&fd);
}

int endpoint_definition(const char *name, char **ret_text, struct err *err)
{
    char file[300];
    _cleanup_fd_ int folder = open_folder(false, err);
    if (folder < 0)
        return folder;
    snprintf(file, sizeof file, "%s.json", name);
    _cleanup_fd_ int fd = openat(folder, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct stat about;
    if (fd < 0 || fstat(fd, &about) < 0)
        return err_errno(err, errno, "definition of guest '%s'", name);
    size_t size = (size_t)min(about.st_size, (off_t)TEXT_MAX);
    _cleanup_free_ char *text = calloc(1, size + 1);
    if (!text || read(fd, text, size) != (ssize_t)size)
        return err_set(err, -EIO, "definition of guest '%s' cannot be read", name);
    *ret_text = take_ptr(text);
    return 0;
}

static int ask(int fd, const struct control_message *request, const int *fds, unsigned fd_count,
               struct control_message *ret_reply, int *ret_fd, struct err *err)
{
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    _cleanup_fd_ int given = -1; /* where nobody wants it, it is closed */
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    int r = packet_send(fd, bytes, control_encode(request, bytes), fds, fd_count, 0);
    if (r < 0)
        return err_errno(err, -r, "the guest's VMM");
    if (poll(&wait, 1, -1) < 0)
        return err_set(err, -EINTR, "interrupted");
    ssize_t n = packet_receive(fd, bytes, sizeof bytes, &given, 1, 0);
    if (n <= 0)
        return err_set(err, -EIO, "the guest has ended");
    r = control_decode(bytes, (size_t)n, ret_reply, err);
    if (r < 0)
        return r;
    if (r != n)
        return err_set(err, -EBADMSG, "half an answer");
    if (ret_reply->type == CONTROL_FAILED)
        return err_set(err, -EIO, "%s", ret_reply->text);
    if (ret_fd)
        *ret_fd = take_fd(&given);
    return 0;
}

int endpoint_ask(int fd, const struct control_message *request, const int *fds, unsigned fd_count,
                 struct control_message *ret_reply, struct err *err)
{
    return ask(fd, request, fds, fd_count, ret_reply, NULL, err);
}

int endpoint_ask_fd(int fd, const struct control_message *request, struct err *err)
{
    struct control_message reply;
    int given = -1;
    int r = ask(fd, request, NULL, 0, &reply, &given, err);
    if (r < 0)
        return r;
    return given >= 0 ? given : err_set(err, -EBADMSG, "no descriptor came with the answer");
}
