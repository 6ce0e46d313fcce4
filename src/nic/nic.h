/*
 * nic.h: the host's end of a guest's network card.
 *
 * A `struct nic` carries Ethernet frames, without their FCS, between a network card's device and
 * something on the host: a tap interface (tap.h) or a user-mode network (passt.h). It never sees
 * guest memory's map: what is sent comes as iovecs, what is received lies in a buffer of the nic's
 * until the device asks for the next frame.
 *
 * Offloads. A frame may be unfinished: without its checksum, or larger than what goes over a wire
 * and to be cut into TCP segments (struct nic_offload, the meaning of virtio 1.2, 5.1.6). `takes`
 * says what the other end accepts from us, `gives` what it could give; nic_accept() tells it which
 * of these the guest wants. Where the far side cannot do the work, the nic does it or does not
 * offer it: see tap.h and passt.h.
 *
 * Queues. A nic has 1 to NIC_QUEUES_MAX, each with a descriptor to wait on; frames of one
 * connection stay in one queue.
 *
 * Threads: each queue one thread at a time, several queues at once. nic_accept() with no other call
 * under way.
 *
 *     while ((r = nic_receive(nic, queue, &frame)) == 1)
 *         take(frame.bytes, frame.length);
 *     if (r < 0)
 *         link_is_gone();
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    NIC_QUEUES_MAX = 8,
    NIC_MAC_SIZE = 6,
    NIC_ETHERNET_SIZE = 14,         /* the header: to, from, type */
    NIC_FRAME_MAX = 65535 + 14 + 4, /* the largest IP packet in a frame with a VLAN tag */
};

enum nic_offload_flag {
    NIC_CSUM_NEEDED = 1, /* the sum from csum_start on belongs at csum_start + csum_offset */
    NIC_CSUM_VALID = 2,  /* received: the checksums were looked at and are right */
};

enum nic_segmentation {
    NIC_GSO_NONE = 0,
    NIC_GSO_TCP4 = 1,
    NIC_GSO_TCP6 = 4,
    NIC_GSO_ECN = 0x80, /* with one of the TCPs */
};

enum nic_feature {
    NIC_F_CSUM = 1 << 0, /* all others need this */
    NIC_F_TSO4 = 1 << 1,
    NIC_F_TSO6 = 1 << 2,
    NIC_F_ECN = 1 << 3,
};

struct nic_offload {
    uint8_t flags;          /* enum nic_offload_flag */
    uint8_t segmentation;   /* enum nic_segmentation */
    uint16_t header_length; /* of all headers, a hint */
    uint16_t segment_size;  /* TCP bytes a segment */
    uint16_t csum_start, csum_offset;
};

struct nic_frame {
    const uint8_t *bytes; /* until the next nic_receive() of this queue */
    size_t length;
    struct nic_offload offload;
};

struct nic;

struct nic_ops {
    const char *name;
    int (*fd)(struct nic *nic, unsigned queue);
    int (*send)(struct nic *nic, unsigned queue, const struct nic_offload *offload,
                const struct iovec *iov, unsigned count, size_t length);
    int (*flush)(struct nic *nic, unsigned queue); /* or NULL */
    int (*receive)(struct nic *nic, unsigned queue, struct nic_frame *ret_frame);
    void (*accept)(struct nic *nic, unsigned features);      /* or NULL */
    int (*enable)(struct nic *nic, unsigned queue, bool on); /* or NULL */
    void (*free)(struct nic *nic);
};

struct nic {
    const struct nic_ops *ops;
    unsigned queues;
    unsigned takes, gives; /* enum nic_feature */
    unsigned mtu;          /* what the guest had best use; 0 = no opinion */
};

/* Readable where frames wait or the other end is gone; writable where nic_send() or nic_flush() has
 * said -EAGAIN and may now go on. */
int nic_fd(struct nic *nic, unsigned queue);

/* Sends one frame of `length` bytes, at most NIC_FRAME_MAX; its checksum lies inside it. 0;
 * -EAGAIN: nothing was taken, wait and try again; anything else: the frame is lost. */
int nic_send(struct nic *nic, unsigned queue, const struct nic_offload *offload,
             const struct iovec *iov, unsigned count, size_t length);

/* What nic_send() has taken goes out, at the end of a row of frames. 0, or -EAGAIN where more is
 * left; an end that is gone takes all. */
int nic_flush(struct nic *nic, unsigned queue);

/* 1 and a frame, 0 where none waits, or -errno: no frame will ever come again. */
int nic_receive(struct nic *nic, unsigned queue, struct nic_frame *ret_frame);

/* Which of `gives` received frames may need from now on. */
void nic_accept(struct nic *nic, unsigned features);

/* Frames are spread over those queues that are on. Queue 0 always is; all are at first. */
int nic_enable(struct nic *nic, unsigned queue, bool on);

void nic_free(struct nic *nic); /* closes its descriptors; NULL is fine */
