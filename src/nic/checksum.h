/*
 * checksum.h: the Internet checksum (RFC 1071). Pure functions, any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The ones' complement sum of `length` bytes as 16-bit words, an odd last byte padded with zero. In
 * the byte order of memory: what checksum_finish() puts back needs no swap. */
uint16_t checksum_sum(const uint8_t *bytes, size_t length);

/* Finishes a frame whose sum from `start` on is missing: the two bytes at start + offset hold the
 * pseudo header's sum before and the checksum after. They must lie inside `length`. */
void checksum_finish(uint8_t *frame, size_t length, size_t start, size_t offset);
