#include "board/acpi_aml.h"

#include "base/bytes.h"

#include <assert.h>
#include <string.h>

enum {
    OP_ZERO = 0x00,
    OP_ONE = 0x01,
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_WORD = 0x0b,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_QWORD = 0x0e,
    OP_SCOPE = 0x10,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_METHOD = 0x14,
    OP_EXTENDED = 0x5b,
    OP_EXTENDED_DEVICE = 0x82,
    OP_ARGUMENT_0 = 0x68,
    OP_NOTIFY = 0x86,
    OP_RETURN = 0xa4,
    ROOT = '\\',
    DUAL_NAME = 0x2e,

    LENGTH_SIZE = 3, /* PkgLength in its three-byte form, up to 1 MiB */
};

static void bytes(struct aml *aml, const void *from, size_t size)
{
    assert(size <= sizeof aml->bytes - aml->size);
    memcpy(aml->bytes + aml->size, from, size);
    aml->size += size;
}

static void byte(struct aml *aml, unsigned value)
{
    uint8_t one = (uint8_t)value;
    bytes(aml, &one, 1);
}

static void le16(struct aml *aml, uint16_t value)
{
    uint8_t two[2];
    le16_write(two, value);
    bytes(aml, two, sizeof two);
}

static void le32(struct aml *aml, uint32_t value)
{
    uint8_t four[4];
    le32_write(four, value);
    bytes(aml, four, sizeof four);
}

static void le64(struct aml *aml, uint64_t value)
{
    uint8_t eight[8];
    le64_write(eight, value);
    bytes(aml, eight, sizeof eight);
}

static void segment(struct aml *aml, const char *name)
{
    assert(strlen(name) == 4);
    bytes(aml, name, 4);
}

static size_t open_length(struct aml *aml)
{
    size_t open = aml->size;
    bytes(aml, (uint8_t[LENGTH_SIZE]){0}, LENGTH_SIZE);
    return open;
}

/* 20.2.4: the two high bits of the first byte count the bytes that follow; its low four are the
 * low ones of the length, which includes these bytes themselves. */
void aml_close(struct aml *aml, size_t open)
{
    size_t length = aml->size - open;
    assert(length < 1 << 20);
    aml->bytes[open] = (uint8_t)((LENGTH_SIZE - 1) << 6 | (length & 0xf));
    aml->bytes[open + 1] = (uint8_t)(length >> 4);
    aml->bytes[open + 2] = (uint8_t)(length >> 12);
}

void aml_integer(struct aml *aml, uint64_t value)
{
    if (value <= 1) {
        byte(aml, value ? OP_ONE : OP_ZERO);
    } else if (value <= UINT8_MAX) {
        byte(aml, OP_BYTE);
        byte(aml, (unsigned)value);
    } else if (value <= UINT16_MAX) {
        byte(aml, OP_WORD);
        le16(aml, (uint16_t)value);
    } else if (value <= UINT32_MAX) {
        byte(aml, OP_DWORD);
        le32(aml, (uint32_t)value);
    } else {
        byte(aml, OP_QWORD);
        le64(aml, value);
    }
}

void aml_string(struct aml *aml, const char *text)
{
    byte(aml, OP_STRING);
    bytes(aml, text, strlen(text) + 1);
}

void aml_name(struct aml *aml, const char *name)
{
    byte(aml, OP_NAME);
    segment(aml, name);
}

void aml_name_integer(struct aml *aml, const char *name, uint64_t value)
{
    aml_name(aml, name);
    aml_integer(aml, value);
}

void aml_name_string(struct aml *aml, const char *name, const char *text)
{
    aml_name(aml, name);
    aml_string(aml, text);
}

static unsigned hex_digit(char digit)
{
    return digit <= '9' ? (unsigned)(digit - '0') : (unsigned)(digit - 'A' + 10);
}

/* 19.3.4: three letters of five bits, four hexadecimal digits, big-endian. */
void aml_name_eisa(struct aml *aml, const char *name, const char *id)
{
    assert(strlen(id) == 7);
    uint32_t value = 0;
    for (unsigned i = 0; i < 3; i++)
        value = value << 5 | ((unsigned)id[i] & 0x1f);
    for (unsigned i = 3; i < 7; i++)
        value = value << 4 | hex_digit(id[i]);
    aml_name(aml, name);
    byte(aml, OP_DWORD);
    le32(aml, __builtin_bswap32(value));
}

size_t aml_open_scope(struct aml *aml, const char *name)
{
    byte(aml, OP_SCOPE);
    size_t open = open_length(aml);
    byte(aml, ROOT);
    segment(aml, name);
    return open;
}

size_t aml_open_device(struct aml *aml, const char *name)
{
    byte(aml, OP_EXTENDED);
    byte(aml, OP_EXTENDED_DEVICE);
    size_t open = open_length(aml);
    segment(aml, name);
    return open;
}

size_t aml_open_method(struct aml *aml, const char *name, unsigned arguments)
{
    assert(arguments <= 7);
    byte(aml, OP_METHOD);
    size_t open = open_length(aml);
    segment(aml, name);
    byte(aml, arguments);
    return open;
}

size_t aml_open_package(struct aml *aml, unsigned elements)
{
    assert(elements <= UINT8_MAX);
    byte(aml, OP_PACKAGE);
    size_t open = open_length(aml);
    byte(aml, elements);
    return open;
}

void aml_notify(struct aml *aml, const char *scope, const char *device, unsigned value)
{
    byte(aml, OP_NOTIFY);
    byte(aml, ROOT);
    byte(aml, DUAL_NAME);
    segment(aml, scope);
    segment(aml, device);
    aml_integer(aml, value);
}

void aml_return_argument(struct aml *aml, unsigned argument)
{
    assert(argument < 7);
    byte(aml, OP_RETURN);
    byte(aml, OP_ARGUMENT_0 + argument);
}

struct aml_resources aml_open_resources(struct aml *aml)
{
    byte(aml, OP_BUFFER);
    struct aml_resources resources = {.open = open_length(aml)};
    byte(aml, OP_WORD);
    resources.length_at = aml->size;
    le16(aml, 0);
    return resources;
}

void aml_close_resources(struct aml *aml, struct aml_resources resources)
{
    byte(aml, 0x79); /* end tag; a checksum of 0 counts as right */
    byte(aml, 0);
    le16_write(aml->bytes + resources.length_at, (uint16_t)(aml->size - resources.length_at - 2));
    aml_close(aml, resources.open);
}

void aml_io(struct aml *aml, uint16_t start, uint8_t size)
{
    byte(aml, 0x47);
    byte(aml, 1); /* decodes 16 bits */
    le16(aml, start);
    le16(aml, start);
    byte(aml, 1); /* alignment */
    byte(aml, size);
}

void aml_irq(struct aml *aml, unsigned irq)
{
    assert(irq < 16);
    byte(aml, 0x22);
    le16(aml, (uint16_t)(1u << irq));
}

void aml_memory_fixed(struct aml *aml, uint32_t start, uint32_t size)
{
    byte(aml, 0x86);
    le16(aml, 9);
    byte(aml, 1); /* may be written */
    le32(aml, start);
    le32(aml, size);
}

/* 6.4.3.5: address space descriptors. `flags` of the type are below. */
enum { SPACE_MEMORY, SPACE_IO, SPACE_BUS };
enum {
    GENERAL_FIXED = 0x0c,   /* minimum and maximum are fixed; the bridge decodes positively */
    MEMORY_WRITABLE = 0x01, /* and not cacheable */
    IO_ENTIRE_RANGE = 0x03,
};

static void word_window(struct aml *aml, unsigned space, unsigned flags, uint16_t first,
                        uint16_t last, uint16_t count)
{
    byte(aml, 0x88);
    le16(aml, 13);
    byte(aml, space);
    byte(aml, GENERAL_FIXED);
    byte(aml, flags);
    le16(aml, 0); /* granularity */
    le16(aml, first);
    le16(aml, last);
    le16(aml, 0); /* translation */
    le16(aml, count);
}

void aml_bus_window(struct aml *aml, uint16_t first, uint16_t count)
{
    word_window(aml, SPACE_BUS, 0, first, (uint16_t)(first + count - 1), count);
}

void aml_io_window(struct aml *aml, uint16_t start, uint32_t size)
{
    assert(size > 0 && size <= UINT16_MAX);
    word_window(aml, SPACE_IO, IO_ENTIRE_RANGE, start, (uint16_t)(start + size - 1),
                (uint16_t)size);
}

void aml_memory32_window(struct aml *aml, uint32_t start, uint32_t size)
{
    byte(aml, 0x87);
    le16(aml, 23);
    byte(aml, SPACE_MEMORY);
    byte(aml, GENERAL_FIXED);
    byte(aml, MEMORY_WRITABLE);
    le32(aml, 0);
    le32(aml, start);
    le32(aml, start + size - 1);
    le32(aml, 0);
    le32(aml, size);
}

void aml_memory64_window(struct aml *aml, uint64_t start, uint64_t size)
{
    byte(aml, 0x8a);
    le16(aml, 43);
    byte(aml, SPACE_MEMORY);
    byte(aml, GENERAL_FIXED);
    byte(aml, MEMORY_WRITABLE);
    le64(aml, 0);
    le64(aml, start);
    le64(aml, start + size - 1);
    le64(aml, 0);
    le64(aml, size);
}
