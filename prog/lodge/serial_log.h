/*
 * serial_log.h: the last of what a guest said on its serial port, kept to explain a failure.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { SERIAL_LOG_SIZE = 64 * 1024 };

struct serial_log {
    size_t length; /* bytes ever put; the last SERIAL_LOG_SIZE are kept */
    char bytes[SERIAL_LOG_SIZE];
};

void serial_log_put(struct serial_log *log, const uint8_t *bytes, size_t length);

/* The reason of a kernel panic, "Attempted to kill init!", in `ret_reason`; false without panic. */
bool serial_log_panic(const struct serial_log *log, char *ret_reason, size_t size);

/* The last `lines` lines, each behind `prefix`, without control characters: a guest must not
 * command the terminal through our error messages. */
void serial_log_print(const struct serial_log *log, unsigned lines, const char *prefix, FILE *to);
