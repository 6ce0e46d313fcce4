/*
 * err.h: how a function says what went wrong.
 *
 * A function that can fail returns >= 0 on success and a negative errno value on failure, and takes
 * a `struct err *` as its last argument. The one that notices the fault writes one phrase with
 * err_set(); each caller on the way up may put one phrase in front with err_prefix(), so that the
 * person reads "cannot start guest 'web': disk '/x.qcow2': backing file is missing".
 *
 * Any thread may use these; a `struct err` belongs to one thread at a time. A NULL err is legal
 * everywhere and means "the caller only wants the number".
 *
 *     _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
 *     if (fd < 0)
 *         return err_errno(err, errno, "kernel '%s'", path);   // "kernel '/x': No such file ..."
 */
#pragma once

#include <stdarg.h>

enum { ERR_TEXT_MAX = 768 };

struct err {
    char text[ERR_TEXT_MAX]; /* one line, no newline at its end; empty when nothing was said */
};

/* Writes the phrase and returns `code`, which must be a negative errno value. */
int err_set(struct err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As err_set(), with ": " and the system's words for `number` (a positive errno) appended.
 * Returns -number. */
int err_errno(struct err *err, int number, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "phrase: " in front of what is there already and returns `code` unchanged. */
int err_prefix(struct err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
