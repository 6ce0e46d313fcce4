/*
 * isa.h: a wide access to an 8-bit chip.
 *
 * The ISA bus splits a word or dword access to an 8-bit card into byte accesses at ascending ports;
 * the chips of this folder that have byte registers only are written against single bytes and let
 * these two do the splitting. Pure functions; the callee takes its own lock per byte, as the cycles
 * on the real bus are separate too.
 */
#pragma once

#include <stdint.h>

static inline uint64_t isa_read(uint8_t (*read)(void *opaque, unsigned offset), void *opaque,
                                uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size && i < 8; i++)
        value |= (uint64_t)read(opaque, (unsigned)offset + i) << (8 * i);
    return value;
}

static inline void isa_write(void (*write)(void *opaque, unsigned offset, uint8_t value),
                             void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size && i < 8; i++)
        write(opaque, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
}
