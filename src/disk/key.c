#include "disk/luks.h"

#include "base/bytes.h"
#include "base/openssl.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PASSPHRASE_MAX = 64 << 10 };

void *secret_new(size_t size)
{
    void *secret = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (secret == MAP_FAILED)
        return NULL;
    (void)mlock(secret, size); /* RLIMIT_MEMLOCK may be 0 */
    (void)madvise(secret, size, MADV_DONTDUMP);
    return secret;
}

void secret_free(void *secret, size_t size)
{
    if (!secret)
        return;
    explicit_bzero(secret, size);
    munmap(secret, size);
}

static struct disk_key *key_new(size_t room)
{
    struct disk_key *key = secret_new(sizeof *key + room);
    if (key)
        key->room = room;
    return key;
}

/* All there is to read, at most `max` bytes; more is none. */
static ssize_t read_all(int fd, uint8_t *to, size_t max)
{
    size_t length = 0;
    uint8_t more;
    for (;;) {
        ssize_t n = length < max ? read(fd, to + length, max - length) : read(fd, &more, 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return (ssize_t)length;
        if (length == max)
            return -EFBIG;
        length += (size_t)n;
    }
}

int disk_key_read(const char *path, struct disk_key **ret_key, struct err *err)
{
    bool standard = !strcmp(path, "-");
    _cleanup_fd_ int fd =
        standard ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3) : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "key file '%s'", path);
    struct disk_key *key = key_new(PASSPHRASE_MAX);
    if (!key)
        return err_set(err, -ENOMEM, "key file '%s': no memory", path);
    ssize_t n = read_all(fd, key->bytes, PASSPHRASE_MAX);
    key->length = n > 0 ? (size_t)n : 0;
    if (n > 0) {
        *ret_key = key;
        return 0;
    }
    disk_key_free(key);
    if (n == -EFBIG)
        return err_set(err, -EFBIG, "key file '%s' has more than %d bytes", path, PASSPHRASE_MAX);
    return n < 0 ? err_errno(err, (int)-n, "key file '%s'", path)
                 : err_set(err, -EINVAL, "key file '%s' is empty", path);
}

void disk_key_free(struct disk_key *key)
{
    if (key)
        secret_free(key, sizeof *key + key->room);
}

int disk_key_unlocked(const struct disk *disk)
{
    const struct crypt *crypt = crypt_of(disk->file);
    if (!crypt)
        return -ENOENT;
    _cleanup_fd_ int fd = memfd_create("disk key", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = pwrite(fd, crypt, sizeof *crypt, 0);
    return n == sizeof *crypt ? take_fd(&fd) : n < 0 ? -errno : -EIO;
}

int disk_key_receive(int fd, struct disk_key **ret_key, struct err *err)
{
    /* Later, in a confinement, it may be too late. */
    int r = crypto_load(err);
    if (r < 0)
        return r;
    struct disk_key *key = key_new(sizeof(struct crypt));
    if (!key)
        return err_set(err, -ENOMEM, "no memory for a disk's key");
    key->unlocked = true;
    key->length = sizeof(struct crypt);
    ssize_t n = pread(fd, key->bytes, key->length, 0);
    if (n == (ssize_t)key->length) {
        *ret_key = key;
        return 0;
    }
    disk_key_free(key);
    return n < 0 ? err_errno(err, errno, "key of a disk")
                 : err_set(err, -EINVAL, "key of a disk: descriptor %d has none", fd);
}
