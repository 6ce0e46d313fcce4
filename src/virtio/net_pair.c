/*
 * One pair of queues and its worker. The worker sleeps in ppoll() on its eventfd, which the guest's
 * notifications write, and on the nic's descriptor; it makes passes over both queues under the
 * pair's mutex, bounded so that a reset need not wait long.
 *
 * Notifications are on only while the worker has nothing to do with a queue: for transmission when
 * the queue is empty, for reception when a frame waits for buffers.
 */
#include "virtio/net_device.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "nic/offload.h"

#include <errno.h>
#include <poll.h>
#include <time.h>

enum { BATCH = 64 };

static struct queue *receive_queue(const struct net_pair *pair)
{
    return &pair->net->device.queues[2 * pair->index];
}

static struct queue *transmit_queue(const struct net_pair *pair)
{
    return &pair->net->device.queues[2 * pair->index + 1];
}

static unsigned feature_of(unsigned segmentation)
{
    unsigned feature = segmentation & NIC_GSO_ECN ? NIC_F_ECN : 0;
    switch (segmentation & ~(unsigned)NIC_GSO_ECN) {
    case NIC_GSO_TCP4: return feature | NIC_F_TSO4;
    case NIC_GSO_TCP6: return feature | NIC_F_TSO6;
    default: return UINT32_MAX; /* nobody has negotiated this one */
    }
}

/* Whether a frame of `length` bytes asks for what was negotiated (`features`) and makes sense: the
 * sum lies inside it, and what is to be cut has a size to be cut to (5.1.6.2). */
static bool offload_is_fine(const struct nic_offload *offload, unsigned features, size_t length)
{
    bool needed = offload->flags & NIC_CSUM_NEEDED;
    if (needed && (!(features & NIC_F_CSUM) ||
                   (size_t)offload->csum_start + offload->csum_offset + 2 > length))
        return false;
    if (offload->segmentation == NIC_GSO_NONE)
        return true;
    return needed && !(feature_of(offload->segmentation) & ~features) &&
           offload->segment_size > 0 && offload->header_length <= length;
}

/* Transmission. */

/* What is to be seen in the first bytes of a frame of the guest's. */
static bool may_leave(const struct net_pair *pair, const struct nic_offload *offload,
                      const uint8_t *ethernet, uint64_t length)
{
    const struct virtio_net *net = pair->net;
    return net->link_up && length <= NIC_FRAME_MAX && !pair->gone &&
           offload_is_fine(offload, net->takes, length) &&
           (!net->config.anti_spoof ||
            !memcmp(ethernet + NIC_MAC_SIZE, net->config.mac, NIC_MAC_SIZE));
}

/* 1: sent or dropped; 0: not now. */
static int send_frame(struct net_pair *pair)
{
    struct virtio_net *net = pair->net;
    const struct queue_chain *chain = &pair->transmit;
    uint8_t first[OFFLOAD_BYTES + NIC_ETHERNET_SIZE], *ethernet = first + OFFLOAD_BYTES;
    if (queue_chain_read(chain, 0, first, sizeof first) < sizeof first) {
        pair->stats.out_dropped++;
        return 1;
    }
    struct nic_offload offload = offload_read(first);
    offload.flags &= NIC_CSUM_NEEDED;
    uint64_t length = chain->readable_bytes - OFFLOAD_BYTES;
    int r = -EINVAL;
    if (may_leave(pair, &offload, ethernet, length)) {
        pair->iov[0] = (struct iovec){ethernet, NIC_ETHERNET_SIZE};
        unsigned count =
            1 + queue_chain_readable(chain, sizeof first, pair->iov + 1, QUEUE_CHAIN_MAX);
        r = nic_send(net->nic, pair->index, &offload, pair->iov, count, length);
    }
    if (r == -EAGAIN)
        return 0;
    if (r < 0) {
        pair->stats.out_dropped++;
        return 1;
    }
    if (net->out.rate)
        bucket_spend(&net->out, clock_ns(), length);
    pair->stats.out_frames++;
    pair->stats.out_bytes += length;
    return 1;
}

/* The next chain, or 0: then the guest will notify. */
static int pop_transmit(struct net_pair *pair)
{
    struct queue *queue = transmit_queue(pair);
    unsigned number = 2 * pair->index + 1;
    queue_notifications_stop(queue);
    return virtio_pop_or_await(&pair->net->device, number, &pair->transmit);
}

/* A row of frames; true where more wait. */
static bool transmit(struct net_pair *pair)
{
    struct virtio_net *net = pair->net;
    struct queue *queue = transmit_queue(pair);
    unsigned done = 0;
    if (pair->output_full || pair->out_at)
        return false;
    while (done < BATCH) {
        uint64_t now = net->out.rate ? clock_ns() : 0, wait = bucket_wait(&net->out, now);
        if (wait)
            pair->out_at = now + wait;
        if (wait || !pop_transmit(pair))
            break;
        if (!send_frame(pair)) {
            queue_unpop(queue);
            pair->output_full = true;
            break;
        }
        queue_fill(queue, &pair->transmit, 0);
        done++;
    }
    if (nic_flush(net->nic, pair->index) == -EAGAIN)
        pair->output_full = true;
    if (done) {
        queue_publish(queue);
        virtio_notify(&net->device, 2 * pair->index + 1);
    }
    return done == BATCH && !pair->output_full;
}

/* Reception. */

/* Takes the chains of an unfinished frame back. */
static void undo(struct queue *queue, unsigned chains)
{
    queue_unfill(queue, chains);
    while (chains-- > 0)
        queue_unpop(queue);
}

/* Part of the header and frame, from `done` on, into a chain. */
static size_t copy_in(struct net_pair *pair, const struct queue_chain *chain, size_t done)
{
    uint8_t header[OFFLOAD_BYTES];
    if (done > 0)
        return queue_chain_write(chain, 0, pair->frame.bytes + done - OFFLOAD_BYTES,
                                 pair->frame.length + OFFLOAD_BYTES - done);
    offload_write(&pair->frame.offload, header);
    le16_write(header + OFFLOAD_BUFFERS, 1);
    done = queue_chain_write(chain, 0, header, sizeof header);
    return done + queue_chain_write(chain, done, pair->frame.bytes, pair->frame.length);
}

/* A frame that took several chains: their number goes into the first, before any is seen. */
static void set_buffers(struct net_pair *pair, unsigned chains)
{
    uint8_t bytes[2];
    le16_write(bytes, (uint16_t)chains);
    queue_chain_write(&pair->receive[0], OFFLOAD_BUFFERS, bytes, sizeof bytes);
    queue_chain_touched(receive_queue(pair), &pair->receive[0], OFFLOAD_BYTES);
}

/* Whether a frame of `total` bytes can begin in this chain. 0 and more: it can; -EMSGSIZE: not this
 * frame; -EPROTO: nothing could (5.1.6.3.1). */
static int check_first(const struct net_pair *pair, const struct queue_chain *chain, size_t total)
{
    if (chain->writable_bytes < OFFLOAD_BYTES)
        return -EPROTO;
    return pair->net->mergeable || chain->writable_bytes >= total ? 0 : -EMSGSIZE;
}

/* Fills chains with the held frame: 1; 0 where there are too few; -EMSGSIZE where it never fits. */
static int place(struct net_pair *pair)
{
    struct queue *queue = receive_queue(pair);
    size_t total = OFFLOAD_BYTES + pair->frame.length, done = 0;
    unsigned chains = 0;
    int r = 0;
    while (r == 0 && done < total) {
        struct queue_chain *chain = &pair->receive[chains > 0];
        if (chains == queue->size) { /* all that it could ever give us */
            r = -EMSGSIZE;
            break;
        }
        if (!virtio_pop(&pair->net->device, 2 * pair->index, chain)) {
            undo(queue, chains);
            return 0;
        }
        r = chains == 0 ? check_first(pair, chain, total) : chain->writable_bytes ? 0 : -EPROTO;
        if (r < 0) {
            queue_unpop(queue);
            break;
        }
        size_t part = copy_in(pair, chain, done);
        queue_fill(queue, chain, part);
        done += part;
        chains++;
    }
    if (r < 0) {
        undo(queue, chains);
        return r;
    }
    if (chains > 1)
        set_buffers(pair, chains);
    return 1;
}

/* The held frame goes to the guest, or is dropped: true. False: it has to wait. */
static bool deliver(struct net_pair *pair)
{
    struct queue *queue = receive_queue(pair);
    int r = place(pair);
    if (r == 0 && queue_notifications_start(queue))
        r = place(pair);
    if (r == 0)
        return false;
    queue_notifications_stop(queue);
    if (r == -EPROTO)
        virtio_fail(&pair->net->device);
    if (r < 0) {
        pair->stats.in_dropped++;
        return true;
    }
    if (pair->net->in.rate)
        bucket_spend(&pair->net->in, clock_ns(), pair->frame.length);
    pair->stats.in_frames++;
    pair->stats.in_bytes += pair->frame.length;
    return true;
}

/* Whether the guest is to see what has come. A guest that has not asked for checksums to be looked
 * at for it must find no flag (5.1.6.4.1). */
static bool admit(struct net_pair *pair)
{
    const struct virtio_net *net = pair->net;
    struct nic_frame *frame = &pair->frame;
    if (!(net->gives & NIC_F_CSUM))
        frame->offload.flags &= (uint8_t)~NIC_CSUM_VALID;
    if (!net->link_up || !net_filter_wants(&net->filter, frame->bytes))
        return false;
    if (offload_is_fine(&frame->offload, net->gives, frame->length))
        return true;
    pair->stats.in_dropped++; /* on its way since before the nic was told what the guest takes */
    return false;
}

/* The nic's next frame: 1, held if the guest is to see it; 0 where none waits. */
static int fetch(struct net_pair *pair)
{
    int r = nic_receive(pair->net->nic, pair->index, &pair->frame);
    if (r > 0)
        pair->held = admit(pair);
    if (r >= 0) {
        pair->readable = r > 0;
        return r;
    }
    pair->gone = true;
    pair->output_full = false; /* nobody polls it any more: what the guest sends is dropped */
    net_status_change(pair->net, 0, NET_S_LINK_UP);
    return 0;
}

/* The held frame, if the bucket has something for it. */
static bool deliver_in_turn(struct net_pair *pair)
{
    struct bucket *bucket = &pair->net->in;
    uint64_t now = bucket->rate ? clock_ns() : 0, wait = bucket_wait(bucket, now);
    if (wait)
        pair->in_at = now + wait;
    return !wait && deliver(pair);
}

/* A row of frames; true where more may wait. */
static bool receive(struct net_pair *pair)
{
    bool more = !pair->in_at && !pair->gone;
    bool placed = false;
    for (unsigned seen = 0; more && seen < BATCH; seen++) {
        if (!pair->held)
            more = pair->readable && fetch(pair) > 0;
        if (pair->held) {
            more = deliver_in_turn(pair);
            pair->held = !more;
            placed |= more;
        }
    }
    struct queue *queue = receive_queue(pair);
    if (placed && queue->ready) {
        queue_publish(queue);
        virtio_notify(&pair->net->device, 2 * pair->index);
    }
    return more;
}

/* The worker. */

void net_pair_start(struct net_pair *pair)
{
    pair->live = true;
    pair->held = pair->output_full = false;
    pair->readable = true; /* until it says otherwise */
    pair->in_at = pair->out_at = 0;
    queue_notifications_stop(receive_queue(pair));
}

void net_pair_stop(struct net_pair *pair)
{
    pair->live = pair->held = false;
}

static bool serve(struct net_pair *pair)
{
    /* While it is held the rings are being saved: nothing may be written there. */
    if (!pair->live || pair->net->device.held)
        return false;
    bool more = transmit(pair);
    return receive(pair) || more;
}

/* How long to sleep, under the mutex; NULL = until something happens. */
static struct timespec *sleep_time(const struct net_pair *pair, bool more,
                                   struct timespec *ret_time)
{
    uint64_t at = UINT64_MAX, now = clock_ns();
    *ret_time = (struct timespec){0};
    if (more)
        return ret_time;
    if (pair->in_at)
        at = pair->in_at;
    if (pair->out_at)
        at = min(at, pair->out_at);
    if (!pair->live || at == UINT64_MAX)
        return NULL;
    uint64_t wait = at > now ? at - now : 0;
    ret_time->tv_sec = (time_t)(wait / NSEC_PER_SEC);
    ret_time->tv_nsec = (long)(wait % NSEC_PER_SEC);
    return ret_time;
}

static void fill_poll(const struct net_pair *pair, struct pollfd *fds)
{
    int events = (pair->held ? 0 : POLLIN) | (pair->output_full ? POLLOUT : 0);
    bool asks = pair->live && !pair->gone && events && !pair->net->device.held;
    fds[0] = (struct pollfd){.fd = pair->worker.wake_fd, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = asks ? nic_fd(pair->net->nic, pair->index) : -1,
                             .events = (short)events};
}

/* Limits that are over, and what poll() said of the nic. */
static void look(struct net_pair *pair, const struct pollfd *fds)
{
    uint64_t now = pair->in_at || pair->out_at ? clock_ns() : 0;
    if (pair->in_at <= now)
        pair->in_at = 0;
    if (pair->out_at <= now)
        pair->out_at = 0;
    if (fds[1].revents & (POLLOUT | POLLERR | POLLHUP))
        pair->output_full = false;
    if (fds[1].revents & (POLLIN | POLLERR | POLLHUP))
        pair->readable = true;
}

void net_pair_run(void *opaque)
{
    struct net_pair *pair = opaque;
    struct pollfd fds[2];
    struct timespec time;
    bool more = false;
    while (!worker_stopping(&pair->worker)) {
        pthread_mutex_lock(&pair->mutex);
        fill_poll(pair, fds);
        struct timespec *limit = sleep_time(pair, more, &time);
        pthread_mutex_unlock(&pair->mutex);
        if (ppoll(fds, 2, limit, NULL) < 0)
            continue; /* EINTR: nothing else can fail here */
        if (fds[0].revents) {
            worker_drained(&pair->worker);
            /* Without MQ the control queue has the number of this pair's first. */
            if (pair->index == 1)
                net_control_serve(pair->net);
        }
        pthread_mutex_lock(&pair->mutex);
        look(pair, fds);
        more = serve(pair);
        pthread_mutex_unlock(&pair->mutex);
    }
}
