/*
 * listener.h: the port of the guest's socket device at which the host finds the agent.
 *
 * Only the host is listened to: in a guest that can connect to itself, whoever reached the agent
 * from inside would be root by it.
 */
#pragma once

/* Non-blocking, or a negative errno: -ENODEV while the guest has no such device. */
int listener_open(unsigned port);

/* The next connection of the host's, non-blocking; -EAGAIN when there is none. */
int listener_accept(int listener);
