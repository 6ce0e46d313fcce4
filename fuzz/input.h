/*
 * input.h: a fuzzer's input, taken bit by bit. Behind its end there are zeros.
 */
#pragma once

#include "mem/mem.h"

#include <stddef.h>
#include <stdint.h>

struct input {
    const uint8_t *at;
    size_t left;
};

/* A number of so many bytes, little-endian. */
static inline uint64_t input_next(struct input *input, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && input->left > 0; i++, input->left--)
        value |= (uint64_t)*input->at++ << 8 * i;
    return value;
}

/* A few bytes over guest memory at `address`, whatever is there. */
static inline void input_scribble(struct input *input, struct mem *mem, uint64_t address)
{
    uint8_t bytes[16];
    unsigned length = (unsigned)input_next(input, 1) % sizeof bytes;
    for (unsigned i = 0; i < length; i++)
        bytes[i] = (uint8_t)input_next(input, 1);
    mem_write(mem, address, bytes, length);
}
