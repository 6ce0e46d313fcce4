#include "nic/nic.h"

#include <assert.h>

int nic_fd(struct nic *nic, unsigned queue)
{
    assert(queue < nic->queues);
    return nic->ops->fd(nic, queue);
}

int nic_send(struct nic *nic, unsigned queue, const struct nic_offload *offload,
             const struct iovec *iov, unsigned count, size_t length)
{
    assert(queue < nic->queues && length <= NIC_FRAME_MAX);
    return nic->ops->send(nic, queue, offload, iov, count, length);
}

int nic_flush(struct nic *nic, unsigned queue)
{
    return nic->ops->flush ? nic->ops->flush(nic, queue) : 0;
}

int nic_receive(struct nic *nic, unsigned queue, struct nic_frame *ret_frame)
{
    assert(queue < nic->queues);
    return nic->ops->receive(nic, queue, ret_frame);
}

void nic_accept(struct nic *nic, unsigned features)
{
    if (nic->ops->accept)
        nic->ops->accept(nic, features & nic->gives);
}

int nic_enable(struct nic *nic, unsigned queue, bool on)
{
    assert(queue > 0 && queue < nic->queues);
    return nic->ops->enable ? nic->ops->enable(nic, queue, on) : 0;
}

void nic_free(struct nic *nic)
{
    if (nic)
        nic->ops->free(nic);
}
