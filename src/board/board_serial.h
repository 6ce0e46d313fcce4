/*
 * board_serial.h: the host's two byte streams behind COM1, and the thread that moves bytes.
 *
 * Out: the UART hands over bytes with board_serial_output() and must not wait, so they go to a ring
 * here. When it is half full board_serial_crowded() turns true, and the vCPU that wrote waits, with
 * no lock held, until the host has taken some: a slow reader holds the guest back and loses
 * nothing. When the reader is gone, output is discarded.
 *
 * In: bytes are read only when the UART has taken all earlier ones. End of input ends only that.
 *
 * Descriptors are borrowed; -1 is nobody. They are not set non-blocking, for others may share them:
 * each read or write follows a poll() and is small.
 *
 * Threads: any, but for new, start and free. Errors: -ENOMEM, or why there is no thread.
 */
#pragma once

#include "base/err.h"
#include "chip/serial.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct board_serial;

int board_serial_new(int in_fd, int out_fd, struct board_serial **ret_streams, struct err *err);
/* `serial` must live until board_serial_stop(), and may call board_serial_output() after it. */
int board_serial_start(struct board_serial *streams, struct serial *serial, struct err *err);
/* Joins the thread: nothing goes in or out any more. */
void board_serial_stop(struct board_serial *streams);
void board_serial_free(struct board_serial *streams);

/* For struct serial_config, with the streams as opaque. */
void board_serial_output(void *streams, const uint8_t *bytes, size_t count);
void board_serial_room(void *streams);

bool board_serial_crowded(const struct board_serial *streams);
/* Waits until it is not crowded any more, 10 ms at most. */
void board_serial_wait(struct board_serial *streams);

/* Waits until all is written or nobody reads, at most `timeout_ms`. True when so. */
bool board_serial_drain(struct board_serial *streams, int timeout_ms);
