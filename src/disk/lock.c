/*
 * Locks on images, in the form that QEMU has made the custom of the field (its file-posix.c), so
 * that qemu-img and a virtual machine of QEMU's notice us, and we them. What somebody does to an
 * image is a number of permissions, by bits:
 *
 *   0 consistent read   1 write   2 write what is there already   3 resize
 *
 * Whoever holds permission i has a shared lock on byte 100 + i; whoever does not suffer that others
 * hold it has one on byte 200 + i. First all of one's own are set, then the opposite bytes are
 * looked at: of two who come at the same moment, one or both see the other.
 *
 * The locks belong to the open file description: a process that inherits the descriptor has them
 * too, and they end with the last of them.
 */
#include "disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { HELD = 100, REFUSED = 200, BITS = 4 };
enum { READ = 1 << 0, WRITE = 1 << 1, RESIZE = 1 << 3 };

static int set(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* -EBUSY: somebody else has a lock there. */
static int look(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type == F_UNLCK ? 0 : -EBUSY;
}

static int for_bits(int fd, unsigned bits, off_t first, int (*call)(int fd, off_t byte))
{
    int r = 0;
    for (int i = 0; r >= 0 && i < BITS; i++)
        if (bits >> i & 1)
            r = call(fd, first + i);
    return r;
}

void disk_lock_share(int fd)
{
    for (int i = 0; i < BITS; i++) {
        struct flock lock = {
            .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = HELD + i, .l_len = 1};
        if ((WRITE | RESIZE) >> i & 1)
            (void)fcntl(fd, F_OFD_SETLK, &lock);
    }
}

int disk_lock(int fd, bool write)
{
    unsigned held = write ? READ | WRITE | RESIZE : READ;
    unsigned refused = WRITE | RESIZE;
    int r = for_bits(fd, held, HELD, set);
    if (r >= 0)
        r = for_bits(fd, refused, REFUSED, set);
    if (r >= 0)
        r = for_bits(fd, held, REFUSED, look);
    if (r >= 0)
        r = for_bits(fd, refused, HELD, look);
    if (r == -EAGAIN || r == -EACCES) /* an exclusive lock, such as nobody of the custom sets */
        return -EBUSY;
    /* File systems without locks are none of our business. */
    return r == -ENOLCK || r == -EOPNOTSUPP || r == -EINVAL ? 0 : r;
}
