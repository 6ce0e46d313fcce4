#include "virtio/vsock_state.h"

/* Rows are states, absent arrows are VSOCK_NOWHERE. */
static const enum vsock_state arrows[VSOCK_STATE_MAX][VSOCK_EVENT_MAX] = {
    [VSOCK_CLOSED] =
        {
            [VSOCK_REQUESTED] = VSOCK_DIALING,
            [VSOCK_CALLED] = VSOCK_CALLING,
        },
    [VSOCK_DIALING] =
        {
            [VSOCK_HOST_ACCEPTS] = VSOCK_OPEN,
            [VSOCK_GUEST_LEAVES] = VSOCK_CLOSED,
            [VSOCK_FAILS] = VSOCK_CLOSED,
        },
    [VSOCK_CALLING] =
        {
            [VSOCK_GUEST_ACCEPTS] = VSOCK_OPEN,
            [VSOCK_GUEST_LEAVES] = VSOCK_CLOSED,
            [VSOCK_FAILS] = VSOCK_CLOSED,
        },
    [VSOCK_OPEN] =
        {
            [VSOCK_TO_GUEST_ENDS] = VSOCK_TO_HOST,
            [VSOCK_TO_HOST_ENDS] = VSOCK_TO_GUEST,
            [VSOCK_GUEST_LEAVES] = VSOCK_DRAINING,
            [VSOCK_FAILS] = VSOCK_CLOSED,
        },
    [VSOCK_TO_HOST] =
        {
            [VSOCK_TO_GUEST_ENDS] = VSOCK_TO_HOST,
            [VSOCK_TO_HOST_ENDS] = VSOCK_CLOSING,
            [VSOCK_GUEST_LEAVES] = VSOCK_DRAINING,
            [VSOCK_FAILS] = VSOCK_CLOSED,
        },
    [VSOCK_TO_GUEST] =
        {
            [VSOCK_TO_GUEST_ENDS] = VSOCK_CLOSING,
            [VSOCK_TO_HOST_ENDS] = VSOCK_TO_GUEST,
            [VSOCK_GUEST_LEAVES] = VSOCK_DRAINING,
            [VSOCK_FAILS] = VSOCK_CLOSED,
        },
    [VSOCK_CLOSING] =
        {
            [VSOCK_TO_GUEST_ENDS] = VSOCK_CLOSING,
            [VSOCK_TO_HOST_ENDS] = VSOCK_CLOSING,
            [VSOCK_GUEST_LEAVES] = VSOCK_DRAINING,
            [VSOCK_FINISHED] = VSOCK_CLOSED,
            [VSOCK_FAILS] = VSOCK_CLOSED,
        },
    [VSOCK_DRAINING] =
        {
            [VSOCK_FINISHED] = VSOCK_CLOSED,
            [VSOCK_FAILS] = VSOCK_CLOSED,
        },
};

enum vsock_state vsock_state_next(enum vsock_state state, enum vsock_event event)
{
    return arrows[state][event];
}
