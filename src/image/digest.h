/*
 * digest.h: SHA-256 as text, the name by which image contents are known. Pure but for reading.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>

enum { DIGEST_TEXT_SIZE = 64 + 1 };

/* Lower-case hexadecimal. -EIO when the library refuses. */
int digest_bytes(const void *bytes, size_t size, char ret_text[DIGEST_TEXT_SIZE]);
int digest_file(const char *path, char ret_text[DIGEST_TEXT_SIZE], struct err *err);
