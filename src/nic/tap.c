#include "nic/tap.h"

#include "base/bytes.h"
#include "nic/offload.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct tap {
    struct nic nic;
    int fds[NIC_QUEUES_MAX];
    uint8_t *buffers[NIC_QUEUES_MAX]; /* one received frame with its header each */
    bool off[NIC_QUEUES_MAX];
};

static struct tap *of(struct nic *nic)
{
    return (struct tap *)nic;
}

static int tap_fd(struct nic *nic, unsigned queue)
{
    return of(nic)->fds[queue];
}

static int tap_send(struct nic *nic, unsigned queue, const struct nic_offload *offload,
                    const struct iovec *iov, unsigned count, size_t length)
{
    uint8_t header[OFFLOAD_BYTES];
    struct iovec parts[IOV_MAX];
    if (count + 1 > ARRAY_LEN(parts))
        return -EINVAL;
    offload_write(offload, header);
    parts[0] = (struct iovec){header, sizeof header};
    memcpy(parts + 1, iov, count * sizeof *iov);
    ssize_t n;
    do
        n = writev(of(nic)->fds[queue], parts, (int)count + 1);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

static int tap_receive(struct nic *nic, unsigned queue, struct nic_frame *ret_frame)
{
    struct tap *tap = of(nic);
    const uint8_t *at = tap->buffers[queue];
    for (;;) {
        ssize_t n = read(tap->fds[queue], tap->buffers[queue], OFFLOAD_BYTES + NIC_FRAME_MAX);
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n < OFFLOAD_BYTES + NIC_ETHERNET_SIZE)
            continue;
        *ret_frame = (struct nic_frame){.bytes = at + OFFLOAD_BYTES,
                                        .length = (size_t)n - OFFLOAD_BYTES,
                                        .offload = offload_read(at)};
        return 1;
    }
}

static void tap_accept(struct nic *nic, unsigned features)
{
    unsigned long flags = 0;
    if (features & NIC_F_CSUM)
        flags |= TUN_F_CSUM;
    if (features & NIC_F_TSO4)
        flags |= TUN_F_TSO4;
    if (features & NIC_F_TSO6)
        flags |= TUN_F_TSO6;
    if (features & NIC_F_ECN)
        flags |= TUN_F_TSO_ECN;
    /* Fails only where the interface is gone, which reading finds out. */
    ioctl(of(nic)->fds[0], TUNSETOFFLOAD, flags);
}

static int tap_enable(struct nic *nic, unsigned queue, bool on)
{
    struct tap *tap = of(nic);
    struct ifreq request = {.ifr_flags = on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};
    if (tap->off[queue] == !on)
        return 0;
    if (ioctl(tap->fds[queue], TUNSETQUEUE, &request) < 0)
        return -errno;
    tap->off[queue] = !on;
    return 0;
}

static void tap_free(struct nic *nic)
{
    struct tap *tap = of(nic);
    for (unsigned i = 0; i < NIC_QUEUES_MAX; i++) {
        if (tap->fds[i] >= 0)
            close(tap->fds[i]);
        free(tap->buffers[i]);
    }
    free(tap);
}

static const struct nic_ops tap_ops = {
    .name = "tap",
    .fd = tap_fd,
    .send = tap_send,
    .receive = tap_receive,
    .accept = tap_accept,
    .enable = tap_enable,
    .free = tap_free,
};

int nic_tap_new(const int *fds, unsigned count, struct nic **ret_nic, struct err *err)
{
    const unsigned all = NIC_F_CSUM | NIC_F_TSO4 | NIC_F_TSO6 | NIC_F_ECN;
    if (count < 1 || count > NIC_QUEUES_MAX)
        return err_set(err, -EINVAL, "a tap has 1 to %d queues, not %u", NIC_QUEUES_MAX, count);
    struct tap *tap = calloc(1, sizeof *tap);
    if (!tap)
        return err_set(err, -ENOMEM, "no memory");
    tap->nic = (struct nic){.ops = &tap_ops, .queues = count, .takes = all, .gives = all};
    bool whole = true;
    for (unsigned i = 0; i < NIC_QUEUES_MAX; i++) {
        tap->fds[i] = -1;
        tap->buffers[i] = i < count ? malloc(OFFLOAD_BYTES + NIC_FRAME_MAX) : NULL;
        whole &= i >= count || tap->buffers[i];
    }
    if (!whole) {
        tap_free(&tap->nic);
        return err_set(err, -ENOMEM, "no memory");
    }
    memcpy(tap->fds, fds, count * sizeof *fds);
    *ret_nic = &tap->nic;
    return 0;
}

static int attach(int fd, const char *name, int flags)
{
    int size = OFFLOAD_BYTES;
    struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags)};
    memcpy(request.ifr_name, name, strlen(name) + 1);
    if (ioctl(fd, TUNSETIFF, &request) < 0 || ioctl(fd, TUNSETVNETHDRSZ, &size) < 0)
        return -errno;
    return 0;
}

/* One queue fits either kind of interface, but the kernel wants to hear which it is. */
static int attach_any(int fd, const char *name, unsigned count)
{
    int r = attach(fd, name, count > 1 ? IFF_MULTI_QUEUE : 0);
    return r == -EINVAL && count == 1 ? attach(fd, name, IFF_MULTI_QUEUE) : r;
}

static int tap_error(const char *name, int r, unsigned count, struct err *err)
{
    if (r == -EPERM)
        return err_set(err, r,
                       "tap '%s' belongs to somebody else; make it with: ip tuntap add %s mode tap "
                       "user %u",
                       name, name, getuid());
    if (r == -EINVAL && count > 1)
        return err_set(err, r,
                       "tap '%s' has one queue or is no tap; for %u make it with: ip tuntap add %s "
                       "mode tap multi_queue",
                       name, count, name);
    if (r == -EINVAL)
        return err_set(err, r, "'%s' is no tap interface", name);
    return err_errno(err, -r, "tap '%s'", name);
}

int tap_open(const char *name, unsigned count, int *ret_fds, struct err *err)
{
    unsigned opened = 0;
    int r = 0;
    /* TUNSETIFF would make one, that nothing is joined to. */
    if (strlen(name) >= IFNAMSIZ || !if_nametoindex(name))
        return err_set(err, -ENODEV,
                       "there is no interface '%s'; make it with: ip tuntap add %.15s mode tap "
                       "user %u",
                       name, name, getuid());
    while (r >= 0 && opened < count) {
        int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0) {
            r = err_errno(err, errno, "/dev/net/tun");
            break;
        }
        ret_fds[opened++] = fd;
        r = attach_any(fd, name, count);
        if (r < 0)
            tap_error(name, r, count, err);
    }
    while (r < 0 && opened > 0)
        close(ret_fds[--opened]);
    return r;
}
