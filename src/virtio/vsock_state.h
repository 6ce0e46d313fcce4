/*
 * vsock_state.h: the states of one stream of a virtio socket device. Pure; private to the device.
 *
 *   REQUESTED (guest)  +---------+ HOST_ACCEPTS
 *  +------------------>| DIALING |---------------+
 *  |                   +---------+               v  TO_GUEST_ENDS  +---------+
 * CLOSED                                      +------+------------>| TO_HOST |----+ TO_HOST_ENDS
 *  |                   +---------+            | OPEN |             +---------+    v
 *  +------------------>| CALLING |----------->+------+                        +---------+
 *   CALLED (host)      +---------+ GUEST_        |  TO_HOST_ENDS +----------+ | CLOSING |
 *                                  ACCEPTS       +-------------->| TO_GUEST |->---------+
 *                                                                +----------+
 *                                                                  TO_GUEST_ENDS
 *
 *   FAILS        from everywhere to CLOSED: a rule was broken or the other side refused
 *   GUEST_LEAVES (RST) from DIALING and CALLING to CLOSED, from what has been open to DRAINING
 *   FINISHED     from CLOSING (both have said all, the host has all) and DRAINING to CLOSED
 *
 * TO_HOST and TO_GUEST are half-closed: bytes go only that way. In DRAINING the guest is out of it
 * and its last bytes wait for the host to take them; the pair of ports is free for another stream.
 * That a direction which has ended ends again changes nothing.
 */
#pragma once

#include <stdbool.h>

enum vsock_state {
    VSOCK_NOWHERE, /* no arrow of the diagram */
    VSOCK_CLOSED,
    VSOCK_DIALING,
    VSOCK_CALLING,
    VSOCK_OPEN,
    VSOCK_TO_HOST,
    VSOCK_TO_GUEST,
    VSOCK_CLOSING,
    VSOCK_DRAINING,
    VSOCK_STATE_MAX
};

enum vsock_event {
    VSOCK_REQUESTED,
    VSOCK_CALLED,
    VSOCK_HOST_ACCEPTS,
    VSOCK_GUEST_ACCEPTS,
    VSOCK_TO_GUEST_ENDS,
    VSOCK_TO_HOST_ENDS,
    VSOCK_GUEST_LEAVES,
    VSOCK_FINISHED,
    VSOCK_FAILS,
    VSOCK_EVENT_MAX
};

/* VSOCK_NOWHERE where the event has no place in that state: the guest broke a rule. */
enum vsock_state vsock_state_next(enum vsock_state state, enum vsock_event event);

/* May bytes still come from the host's socket for the guest, or from the guest for the socket? */
static inline bool vsock_state_to_guest(enum vsock_state state)
{
    return state == VSOCK_OPEN || state == VSOCK_TO_GUEST;
}

static inline bool vsock_state_to_host(enum vsock_state state)
{
    return state == VSOCK_OPEN || state == VSOCK_TO_HOST;
}

/* Has the guest a socket for it, as far as we know? */
static inline bool vsock_state_connected(enum vsock_state state)
{
    return state >= VSOCK_OPEN && state <= VSOCK_CLOSING;
}
