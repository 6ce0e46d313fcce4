#include "nic/passt.h"

#include "base/bytes.h"
#include "nic/checksum.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PREFIX = 4,
    BUFFER = 256 * 1024, /* each way; room for a few frames of the largest kind */
};

/* Bytes [start, end) are there. */
struct bytes {
    uint8_t *at;
    size_t start, end;
};

struct passt {
    struct nic nic;
    int fd;
    bool gone; /* the other end has closed, or spoke nonsense */
    struct bytes in, out;
};

static struct passt *of(struct nic *nic)
{
    return (struct passt *)nic;
}

static void bytes_compact(struct bytes *bytes)
{
    if (bytes->start == 0)
        return;
    memmove(bytes->at, bytes->at + bytes->start, bytes->end - bytes->start);
    bytes->end -= bytes->start;
    bytes->start = 0;
}

static int passt_fd(struct nic *nic, unsigned queue)
{
    return of(nic)->fd;
}

static int passt_flush(struct nic *nic, unsigned queue)
{
    struct passt *passt = of(nic);
    struct bytes *out = &passt->out;
    while (!passt->gone && out->start < out->end) {
        ssize_t n = send(passt->fd, out->at + out->start, out->end - out->start,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return -EAGAIN;
        /* What had come is still to be read: only receiving ends the link. */
        if (n < 0)
            break;
        out->start += (size_t)n;
    }
    out->start = out->end = 0;
    return 0;
}

static bool room_for(struct passt *passt, size_t size)
{
    struct bytes *out = &passt->out;
    if (BUFFER - out->end >= size)
        return true;
    passt_flush(&passt->nic, 0);
    if (BUFFER - out->end < size)
        bytes_compact(out);
    return BUFFER - out->end >= size;
}

static int passt_send(struct nic *nic, unsigned queue, const struct nic_offload *offload,
                      const struct iovec *iov, unsigned count, size_t length)
{
    struct passt *passt = of(nic);
    if (passt->gone)
        return -EPIPE;
    if (!room_for(passt, PREFIX + length))
        return -EAGAIN;
    uint8_t *frame = passt->out.at + passt->out.end + PREFIX;
    size_t done = 0;
    for (unsigned i = 0; i < count && done < length; i++) {
        size_t part = min(iov[i].iov_len, length - done);
        memcpy(frame + done, iov[i].iov_base, part);
        done += part;
    }
    if (done < length)
        return -EINVAL;
    if (offload->flags & NIC_CSUM_NEEDED)
        checksum_finish(frame, length, offload->csum_start, offload->csum_offset);
    be32_write(frame - PREFIX, (uint32_t)length);
    passt->out.end += PREFIX + length;
    return 0;
}

/* A whole frame in the buffer: 1 and its place, 0, or -EPROTO. */
static int next_frame(struct passt *passt, struct nic_frame *ret_frame)
{
    struct bytes *in = &passt->in;
    size_t have = in->end - in->start;
    if (have < PREFIX)
        return 0;
    uint32_t length = be32_read(in->at + in->start);
    if (length < NIC_ETHERNET_SIZE || length > NIC_FRAME_MAX)
        return -EPROTO;
    if (have < PREFIX + length)
        return 0;
    *ret_frame = (struct nic_frame){
        .bytes = in->at + in->start + PREFIX, .length = length, .offload.flags = NIC_CSUM_VALID};
    in->start += PREFIX + length;
    return 1;
}

/* More bytes: 1, 0 where none are there, or -errno. */
static int fill(struct passt *passt)
{
    struct bytes *in = &passt->in;
    bytes_compact(in);
    for (;;) {
        ssize_t n = recv(passt->fd, in->at + in->end, BUFFER - in->end, MSG_DONTWAIT);
        if (n > 0) {
            in->end += (size_t)n;
            return 1;
        }
        if (n == 0)
            return -EPIPE;
        if (errno == EAGAIN)
            return 0;
        if (errno != EINTR)
            return -errno;
    }
}

static int passt_receive(struct nic *nic, unsigned queue, struct nic_frame *ret_frame)
{
    struct passt *passt = of(nic);
    int r = passt->gone ? -EPIPE : 1;
    while (r > 0) {
        r = next_frame(passt, ret_frame);
        if (r != 0)
            break;
        r = fill(passt);
    }
    if (r < 0)
        passt->gone = true;
    return r;
}

static void passt_free(struct nic *nic)
{
    struct passt *passt = of(nic);
    if (passt->fd >= 0)
        close(passt->fd);
    free(passt->in.at);
    free(passt->out.at);
    free(passt);
}

static const struct nic_ops passt_ops = {
    .name = "passt",
    .fd = passt_fd,
    .send = passt_send,
    .flush = passt_flush,
    .receive = passt_receive,
    .free = passt_free,
};

int nic_passt_new(int fd, struct nic **ret_nic, struct err *err)
{
    int type = 0;
    socklen_t size = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        return err_errno(err, errno, "user-mode network, descriptor %d", fd);
    if (type != SOCK_STREAM)
        return err_set(err, -EINVAL, "user-mode network, descriptor %d: no stream socket", fd);
    struct passt *passt = calloc(1, sizeof *passt);
    if (!passt)
        return err_set(err, -ENOMEM, "no memory");
    *passt = (struct passt){
        .nic = {.ops = &passt_ops,
                .queues = 1,
                .takes = NIC_F_CSUM,
                .gives = NIC_F_CSUM,
                .mtu = PASST_MTU},
        .fd = -1,
        .in.at = malloc(BUFFER),
        .out.at = malloc(BUFFER),
    };
    if (!passt->in.at || !passt->out.at) {
        passt_free(&passt->nic);
        return err_set(err, -ENOMEM, "no memory");
    }
    passt->fd = fd;
    *ret_nic = &passt->nic;
    return 0;
}
