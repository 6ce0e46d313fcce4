/*
 * snapshot_guest.h: a guest that is easily told from one that was restored wrongly. For tests and
 * the fuzzer; not part of any program.
 *
 * It counts in a loop, and writes the count into one of 256 pages, the next one each time. 100
 * times a second the PIT interrupts it through the PIC, and its local APIC's timer. Bytes at COM1
 * interrupt it through the I/O APIC. The second processor, where there is one, counts for itself.
 * It is 32-bit machine code behind a multiboot header.
 */
#pragma once

#include "base/bytes.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    GUEST_AT = 0x200000, /* the image */
    GUEST_GDT = GUEST_AT + 0x800,
    GUEST_GDT_POINTER = GUEST_AT + 0x820,
    GUEST_IDT_POINTER = GUEST_AT + 0x830,
    GUEST_IDT = GUEST_AT + 0x900,
    GUEST_IMAGE_SIZE = 0xb00,
    GUEST_STACK = GUEST_AT + 0x1f00,

    GUEST_COUNT = GUEST_AT + 0x2000, /* of the loop */
    GUEST_PIT_TICKS = GUEST_COUNT + 4,
    GUEST_APIC_TICKS = GUEST_COUNT + 8,
    GUEST_BYTES = GUEST_COUNT + 12, /* from COM1 */
    GUEST_SECOND = 0x9000,          /* the second processor's loop */

    GUEST_PAGES = 0x400000, /* page n holds the last count that is n modulo 256 */
    GUEST_PAGE_COUNT = 256,
    GUEST_TRAMPOLINE = 0x8000,

    GUEST_TICK_NS = 10000000,
};

struct guest_image {
    uint8_t bytes[GUEST_IMAGE_SIZE];
    size_t at;
};

static inline void guest_emit(struct guest_image *image, const char *bytes, size_t size)
{
    assert(image->at + size <= GUEST_GDT - GUEST_AT);
    memcpy(image->bytes + image->at, bytes, size);
    image->at += size;
}
#define GUEST_EMIT(image, literal) guest_emit(image, literal, sizeof(literal) - 1)

static inline void guest_emit32(struct guest_image *image, uint32_t value)
{
    uint8_t bytes[4];
    le32_write(bytes, value);
    guest_emit(image, (const char *)bytes, sizeof bytes);
}

static inline void guest_store(struct guest_image *image, uint32_t address, uint32_t value)
{
    GUEST_EMIT(image, "\xc7\x05"); /* mov dword [address], value */
    guest_emit32(image, address);
    guest_emit32(image, value);
}

static inline void guest_increment(struct guest_image *image, uint32_t address)
{
    GUEST_EMIT(image, "\xff\x05"); /* inc dword [address] */
    guest_emit32(image, address);
}

static inline void guest_out(struct guest_image *image, unsigned port, unsigned value)
{
    const char bytes[] = {'\x66', '\xba',      (char)port, (char)(port >> 8), /* mov dx, port */
                          '\xb0', (char)value, '\xee'}; /* mov al; out dx, al */
    guest_emit(image, bytes, sizeof bytes);
}

static inline void guest_gate(struct guest_image *image, unsigned vector)
{
    uint8_t *gate = image->bytes + (GUEST_IDT - GUEST_AT) + vector * 8;
    uint32_t handler = GUEST_AT + (uint32_t)image->at;
    le16_write(gate, (uint16_t)handler);
    le16_write(gate + 2, 8);
    le16_write(gate + 4, 0x8e00); /* present, 32-bit interrupt gate */
    le16_write(gate + 6, (uint16_t)(handler >> 16));
}

enum {
    GUEST_APIC = (int)0xfee00000,
    GUEST_IOAPIC = (int)0xfec00000,
    GUEST_VECTOR_PIT = 0x20,
    GUEST_VECTOR_APIC = 0x31,
    GUEST_VECTOR_SERIAL = 0x34,
};

static inline void guest_handlers(struct guest_image *image)
{
    guest_gate(image, GUEST_VECTOR_PIT);
    GUEST_EMIT(image, "\x50"); /* push eax */
    guest_increment(image, GUEST_PIT_TICKS);
    GUEST_EMIT(image, "\xb0\x20\xe6\x20\x58\xcf"); /* EOI to the PIC; pop eax; iret */
    guest_gate(image, GUEST_VECTOR_APIC);
    guest_increment(image, GUEST_APIC_TICKS);
    guest_store(image, (uint32_t)GUEST_APIC + 0xb0, 0);
    GUEST_EMIT(image, "\xcf");
    guest_gate(image, GUEST_VECTOR_SERIAL);
    GUEST_EMIT(image, "\x50\x52"                       /* push eax; push edx */
                      "\x66\xba\xfd\x03\xec\xa8\x01"   /* while data ready: mov dx, 0x3fd; in */
                      "\x74\x0d"                       /* test al, 1; jz done */
                      "\x66\xba\xf8\x03\xec\xff\x05"); /* mov dx, 0x3f8; in al, dx; inc */
    guest_emit32(image, GUEST_BYTES);
    GUEST_EMIT(image, "\xeb\xea"); /* jmp while */
    guest_store(image, (uint32_t)GUEST_APIC + 0xb0, 0);
    GUEST_EMIT(image, "\x5a\x58\xcf"); /* pop edx; pop eax; iret */
}

static inline void guest_set_up_chips(struct guest_image *image)
{
    guest_out(image, 0x20, 0x11); /* PIC: vectors from 0x20 on; only IRQ 0 */
    guest_out(image, 0x21, 0x20);
    guest_out(image, 0x21, 4);
    guest_out(image, 0x21, 1);
    guest_out(image, 0x21, 0xfe);
    guest_out(image, 0xa1, 0xff);
    guest_out(image, 0x43, 0x34); /* PIT: mode 2, 11932 ticks of 838 ns */
    guest_out(image, 0x40, 0x9c);
    guest_out(image, 0x40, 0x2e);
    guest_store(image, (uint32_t)GUEST_APIC + 0xf0, 0x1ff);
    guest_store(image, (uint32_t)GUEST_APIC + 0x3e0, 0xb); /* divide by one */
    guest_store(image, (uint32_t)GUEST_APIC + 0x320, 1 << 17 | GUEST_VECTOR_APIC);
    guest_store(image, (uint32_t)GUEST_APIC + 0x380, GUEST_TICK_NS);
    guest_store(image, (uint32_t)GUEST_IOAPIC, 0x19); /* pin 4, COM1, to processor 0 */
    guest_store(image, (uint32_t)GUEST_IOAPIC + 0x10, 0);
    guest_store(image, (uint32_t)GUEST_IOAPIC, 0x18);
    guest_store(image, (uint32_t)GUEST_IOAPIC + 0x10, GUEST_VECTOR_SERIAL);
    guest_out(image, 0x3f9, 1); /* interrupts for data */
    guest_out(image, 0x3fc, 0xb);
}

/* In real mode, on the page that SIPI names: ds = 0, then it counts for ever. */
static inline void guest_start_second(struct guest_image *image)
{
    const uint8_t code[] = {0x31, 0xc0, 0x8e, 0xd8,                    /* ds = 0 */
                            0x66, 0xff, 0x06, 0x00, GUEST_SECOND >> 8, /* inc dword */
                            0xeb, 0xf9, 0x90};                         /* jmp */
    for (unsigned i = 0; i + 4 <= sizeof code; i += 4)
        guest_store(image, GUEST_TRAMPOLINE + i, le32_read(code + i));
    guest_store(image, (uint32_t)GUEST_APIC + 0x310, 1 << 24);
    guest_store(image, (uint32_t)GUEST_APIC + 0x300, 0x4500); /* INIT */
    guest_store(image, (uint32_t)GUEST_APIC + 0x310, 1 << 24);
    guest_store(image, (uint32_t)GUEST_APIC + 0x300, 0x4600 | GUEST_TRAMPOLINE >> 12); /* SIPI */
}

static inline void guest_descriptors(struct guest_image *image)
{
    uint8_t *gdt = image->bytes + (GUEST_GDT - GUEST_AT);
    le64_write(gdt + 8, UINT64_C(0x00cf9a000000ffff));
    le64_write(gdt + 16, UINT64_C(0x00cf92000000ffff));
    le16_write(gdt + (GUEST_GDT_POINTER - GUEST_GDT), 23);
    le32_write(gdt + (GUEST_GDT_POINTER - GUEST_GDT) + 2, GUEST_GDT);
    le16_write(gdt + (GUEST_IDT_POINTER - GUEST_GDT), 0x35 * 8 - 1);
    le32_write(gdt + (GUEST_IDT_POINTER - GUEST_GDT) + 2, GUEST_IDT);
}

/* A descriptor of the image, to be closed by the caller. `sleeps`: it halts in its loop. */
static inline int guest_kernel(unsigned cpus, bool sleeps)
{
    struct guest_image image = {.at = 0x20};
    const uint32_t header[] = {0x1badb002, 1 << 16, -(0x1badb002u + (1 << 16)), GUEST_AT,
                               GUEST_AT,   0,       GUEST_AT + 0x3000,          GUEST_AT + 0x400};
    for (unsigned i = 0; i < ARRAY_LEN(header); i++)
        le32_write(image.bytes + i * 4, header[i]);
    guest_descriptors(&image);
    guest_handlers(&image);
    image.at = 0x400;
    GUEST_EMIT(&image, "\xbc"); /* mov esp, stack */
    guest_emit32(&image, GUEST_STACK);
    GUEST_EMIT(&image, "\x0f\x01\x15"); /* lgdt */
    guest_emit32(&image, GUEST_GDT_POINTER);
    GUEST_EMIT(&image, "\xea"); /* jmp 8:next */
    guest_emit32(&image, GUEST_AT + (uint32_t)image.at + 6);
    GUEST_EMIT(&image, "\x08\x00"
                       "\x66\xb8\x10\x00\x8e\xd8\x8e\xc0\x8e\xd0" /* ds, es, ss = 16 */
                       "\x0f\x01\x1d");                           /* lidt */
    guest_emit32(&image, GUEST_IDT_POINTER);
    guest_set_up_chips(&image);
    if (cpus > 1)
        guest_start_second(&image);
    GUEST_EMIT(&image, "\xfb"); /* sti */
    size_t again = image.at;
    guest_increment(&image, GUEST_COUNT);
    GUEST_EMIT(&image, "\xa1"); /* mov eax, [count] */
    guest_emit32(&image, GUEST_COUNT);
    GUEST_EMIT(&image, "\x0f\xb6\xd8\xc1\xe3\x0c\x89\x83"); /* movzx ebx, al; shl ebx, 12; mov */
    guest_emit32(&image, GUEST_PAGES);
    if (sleeps)
        GUEST_EMIT(&image, "\xf4"); /* hlt */
    char back[] = {'\xeb', (char)((int)again - (int)image.at - 2)};
    guest_emit(&image, back, sizeof back);

    int fd = memfd_create("kernel", MFD_CLOEXEC);
    ssize_t wrote = fd >= 0 ? write(fd, image.bytes, sizeof image.bytes) : 0;
    assert(wrote == (ssize_t)sizeof image.bytes);
    (void)wrote;
    return fd;
}
