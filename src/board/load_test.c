/*
 * Kernels are made here, byte by byte, and loaded into a small guest. Every small image is also
 * loaded cut short at each offset: it must be refused in words, never read past its end (the
 * sanitizers look on) and never bring the loader down.
 */
#include "board/load.h"

#include "base/bytes.h"
#include "base/own.h"
#include "board/load_source.h"
#include "board/load_unpack.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <lzma.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

#include <cmocka.h>

enum {
    KERNEL_AT = 0x1000000,
    TEXT = 3000,
    ELF_SIZE = 4096 + TEXT,
    NOTES_AT = 512,
};

static int file_of(const void *bytes, size_t size)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    return fd;
}

struct guest {
    struct mem *mem;
    struct load_range ranges[3];
    struct load_request request;
    struct load_entry entry;
    struct err err;
};

static void guest_make(struct guest *guest, uint64_t memory)
{
    *guest = (struct guest){.mem = mem_new()};
    assert_int_equal(mem_add(guest->mem, 0, memory, false, NULL), 0);
    guest->ranges[0] = (struct load_range){0, 0x9fc00, LOAD_RANGE_RAM};
    guest->ranges[1] = (struct load_range){0xe0000, 0x20000, LOAD_RANGE_RESERVED};
    guest->ranges[2] = (struct load_range){MIB(1), memory - MIB(1), LOAD_RANGE_RAM};
    guest->request = (struct load_request){.mem = guest->mem,
                                           .kernel_fd = -1,
                                           .initrd_fd = -1,
                                           .command_line = "console=ttyS0",
                                           .ranges = guest->ranges,
                                           .range_count = 3,
                                           .rsdp = 0xe0000};
}

static int guest_load(struct guest *guest, const void *kernel, size_t size)
{
    _cleanup_fd_ int fd = file_of(kernel, size);
    guest->request.kernel_fd = fd;
    guest->err.text[0] = 0;
    return load_kernel(&guest->request, &guest->entry, &guest->err);
}

static void refuse(struct guest *guest, const void *kernel, size_t size, int code,
                   const char *words)
{
    assert_int_equal(guest_load(guest, kernel, size), code);
    if (!strstr(guest->err.text, words))
        fail_msg("'%s' does not say '%s'", guest->err.text, words);
}

static const uint8_t *at(struct guest *guest, uint64_t gpa, uint64_t size)
{
    const uint8_t *bytes = mem_at(guest->mem, gpa, size, false);
    assert_non_null(bytes);
    return bytes;
}

/* ---- images ---- */

static uint8_t text_byte(size_t i)
{
    return (uint8_t)(i * 7 + i / 256);
}

/* A 64-bit image of one segment at KERNEL_AT, with a BSS, and room for a note. */
static void elf_make(uint8_t image[ELF_SIZE])
{
    memset(image, 0, ELF_SIZE);
    Elf64_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_X86_64,
        .e_version = EV_CURRENT,
        .e_entry = KERNEL_AT + 16,
        .e_phoff = sizeof header,
        .e_ehsize = sizeof header,
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = 2};
    Elf64_Phdr segments[2] = {{.p_type = PT_LOAD,
                               .p_offset = 4096,
                               .p_vaddr = 0xffffffff81000000,
                               .p_paddr = KERNEL_AT,
                               .p_filesz = TEXT,
                               .p_memsz = TEXT + 10000},
                              {.p_type = PT_NOTE, .p_offset = NOTES_AT, .p_align = 4}};
    memcpy(image, &header, sizeof header);
    memcpy(image + sizeof header, segments, sizeof segments);
    for (size_t i = 0; i < TEXT; i++)
        image[4096 + i] = text_byte(i);
}

static Elf64_Ehdr *elf_header(uint8_t *image)
{
    return (Elf64_Ehdr *)image;
}

static Elf64_Phdr *elf_segment(uint8_t *image, unsigned i)
{
    return (Elf64_Phdr *)(image + sizeof(Elf64_Ehdr)) + i;
}

static void elf_note(uint8_t *image, const char *name, uint32_t type, const void *desc,
                     uint32_t size)
{
    uint8_t *note = image + NOTES_AT + elf_segment(image, 1)->p_filesz;
    uint32_t name_size = (uint32_t)strlen(name) + 1;
    le32_write(note, name_size);
    le32_write(note + 4, size);
    le32_write(note + 8, type);
    memcpy(note + 12, name, name_size);
    memcpy(note + 12 + align_up(name_size, 4), desc, size);
    elf_segment(image, 1)->p_filesz += 12 + align_up(name_size, 4) + align_up(size, 4);
}

static void elf_note_pvh(uint8_t *image)
{
    uint8_t entry[4];
    le32_write(entry, KERNEL_AT + 0x20);
    elf_note(image, "Xen", 18, entry, sizeof entry);
}

enum packing { GZIP, XZ, LZMA, LZ4, ZSTD, PLAIN, PACKING_MAX };

static size_t pack_gzip(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    z_stream stream = {
        .next_in = (Bytef *)from, .avail_in = (uInt)size, .next_out = to, .avail_out = (uInt)room};
    deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    deflateEnd(&stream);
    return stream.total_out;
}

static size_t pack_lzma(bool xz, const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    lzma_stream stream = LZMA_STREAM_INIT;
    lzma_options_lzma options;
    lzma_lzma_preset(&options, 6);
    assert_int_equal(xz ? lzma_easy_encoder(&stream, 6, LZMA_CHECK_CRC32)
                        : lzma_alone_encoder(&stream, &options),
                     LZMA_OK);
    stream.next_in = from;
    stream.avail_in = size;
    stream.next_out = to;
    stream.avail_out = room;
    assert_int_equal(lzma_code(&stream, LZMA_FINISH), LZMA_STREAM_END);
    size_t out = stream.total_out;
    lzma_end(&stream);
    return out;
}

/* Two blocks, so that the walk from one to the next is walked. */
static size_t pack_lz4(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    size_t out = 4, half = size / 2;
    le32_write(to, 0x184c2102);
    for (size_t i = 0; i < 2; i++) {
        size_t piece = i ? size - half : half;
        int n = LZ4_compress_default((const char *)from + i * half, (char *)to + out + 4,
                                     (int)piece, (int)(room - out - 4));
        assert_true(n > 0);
        le32_write(to + out, (uint32_t)n);
        out += 4 + (size_t)n;
    }
    return out;
}

/* Returns the size with the trailer. */
static size_t pack(enum packing packing, const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    size_t out = size;
    switch (packing) {
    case GZIP: return pack_gzip(from, size, to, room);
    case XZ: out = pack_lzma(true, from, size, to, room); break;
    case LZMA: out = pack_lzma(false, from, size, to, room); break;
    case LZ4: out = pack_lz4(from, size, to, room); break;
    case ZSTD: out = ZSTD_compress(to, room, from, size, 3); break;
    default: memcpy(to, from, size); break;
    }
    le32_write(to + out, (uint32_t)size);
    return out + 4;
}

enum { SETUP_SECTS = 2, PAYLOAD_OFFSET = 64, BZIMAGE_MAX = 16384 };

static size_t bzimage_make(uint8_t image[BZIMAGE_MAX], enum packing packing, const uint8_t *elf)
{
    enum { START = (SETUP_SECTS + 1) * 512 + PAYLOAD_OFFSET };
    memset(image, 0, BZIMAGE_MAX);
    size_t length = pack(packing, elf, ELF_SIZE, image + START, BZIMAGE_MAX - START - 4);
    image[0x1f1] = SETUP_SECTS;
    le16_write(image + 0x1fe, 0xaa55);
    image[0x200] = 0xeb;
    image[0x201] = 0x6a;
    memcpy(image + 0x202, "HdrS", 4);
    le16_write(image + 0x206, 0x20f);
    image[0x211] = 1;
    le32_write(image + 0x22c, 0x7fffffff);
    le32_write(image + 0x238, 255);
    le32_write(image + 0x248, PAYLOAD_OFFSET);
    le32_write(image + 0x24c, (uint32_t)length);
    le32_write(image + 0x260, 0x12345678); /* init_size, to see the header arrive */
    return START + length;
}

/* ---- tests ---- */

static void check_text(struct guest *guest)
{
    const uint8_t *text = at(guest, KERNEL_AT, TEXT + 10000);
    for (size_t i = 0; i < TEXT; i++)
        assert_int_equal(text[i], text_byte(i));
    for (size_t i = TEXT; i < TEXT + 10000; i++)
        assert_int_equal(text[i], 0);
}

static void check_boot_params(struct guest *guest)
{
    const uint8_t *params = at(guest, guest->entry.info, 4096);
    assert_int_equal(guest->entry.protocol, LOAD_PROTOCOL_LINUX64);
    assert_int_equal(guest->entry.rip, KERNEL_AT + 16);
    assert_int_equal(le16_read(params + 0x1fe), 0xaa55);
    assert_memory_equal(params + 0x202, "HdrS", 4);
    assert_int_equal(params[0x210], 0xff);
    assert_int_equal(le64_read(params + 0x70), 0xe0000);
    assert_string_equal((const char *)at(guest, le32_read(params + 0x228), 14), "console=ttyS0");
    assert_int_equal(params[0x1e8], 3);
    assert_int_equal(le64_read(params + 0x2d0 + 20), 0xe0000);
    assert_int_equal(le64_read(params + 0x2d0 + 28), 0x20000);
    assert_int_equal(le32_read(params + 0x2d0 + 36), 2);
}

static void bare_vmlinux_is_entered_by_the_64_bit_protocol(void **state)
{
    (void)state;
    uint8_t image[ELF_SIZE];
    elf_make(image);
    struct guest guest;
    guest_make(&guest, MIB(32));
    assert_int_equal(guest_load(&guest, image, sizeof image), 0);
    check_text(&guest);
    check_boot_params(&guest);

    struct cpu_state cpu;
    cpu_state_reset(&cpu, 0);
    load_entry_state(&guest.entry, &cpu);
    assert_int_equal(cpu.rip, KERNEL_AT + 16);
    assert_int_equal(cpu.gpr[CPU_RSI], guest.entry.info);
    assert_int_equal(cpu.segment[CPU_CS].selector, 0x10);
    assert_int_equal(cpu.segment[CPU_DS].selector, 0x18);
    assert_true(cpu.efer & 1 << 10);
    assert_false(cpu.rflags & 1 << 9);
    /* The page tables map the first 4 GiB to themselves. */
    uint64_t pml4 = le64_read(at(&guest, cpu.cr3, 8));
    uint64_t pdpt = le64_read(at(&guest, (pml4 & ~UINT64_C(0xfff)) + 3 * 8, 8));
    uint64_t directory = le64_read(at(&guest, (pdpt & ~UINT64_C(0xfff)) + 511 * 8, 8));
    assert_int_equal(directory, 0xffe00000 | 1 | 2 | 1 << 7);
    /* Descriptors are what the selectors claim. */
    assert_int_equal(le64_read(at(&guest, cpu.gdt.base + 0x10, 8)), 0x00af9b000000ffff);
    assert_int_equal(le64_read(at(&guest, cpu.gdt.base + 0x18, 8)), 0x00cf93000000ffff);
    mem_free(guest.mem);
}

static void bzimage_of_every_packing_is_unpacked(void **state)
{
    (void)state;
    uint8_t elf[ELF_SIZE], image[BZIMAGE_MAX];
    elf_make(elf);
    for (enum packing packing = 0; packing < PACKING_MAX; packing++) {
        size_t size = bzimage_make(image, packing, elf);
        struct guest guest;
        guest_make(&guest, MIB(32));
        if (guest_load(&guest, image, size) != 0)
            fail_msg("packing %d: %s", packing, guest.err.text);
        check_text(&guest);
        check_boot_params(&guest);
        assert_int_equal(le32_read(at(&guest, guest.entry.info + 0x260, 4)), 0x12345678);
        mem_free(guest.mem);
    }
}

static void cut_anywhere(const uint8_t *image, size_t size)
{
    struct guest guest;
    guest_make(&guest, MIB(32));
    for (size_t cut = 1; cut < size; cut++) {
        if (guest_load(&guest, image, cut) != -ENOEXEC)
            fail_msg("cut at %zu of %zu: '%s'", cut, size, guest.err.text);
        assert_string_not_equal(guest.err.text, "");
    }
    mem_free(guest.mem);
}

static void image_cut_anywhere_is_refused(void **state)
{
    (void)state;
    uint8_t elf[ELF_SIZE], image[BZIMAGE_MAX];
    elf_make(elf);
    cut_anywhere(elf, sizeof elf);
    for (enum packing packing = 0; packing < PACKING_MAX; packing++)
        cut_anywhere(image, bzimage_make(image, packing, elf));
}

/* Also when the header says that the cut is the whole: then the stream itself must tell. */
static void payload_cut_anywhere_is_refused(void **state)
{
    (void)state;
    uint8_t elf[ELF_SIZE], packed[BZIMAGE_MAX];
    elf_make(elf);
    for (enum packing packing = 0; packing < PACKING_MAX; packing++) {
        size_t size = pack(packing, elf, ELF_SIZE, packed, sizeof packed - 4);
        for (size_t cut = 0; cut + 4 < size; cut++) {
            uint8_t *copy = malloc(cut + 4);
            memcpy(copy, packed, cut);
            le32_write(copy + cut, ELF_SIZE);
            struct load_source out;
            struct err err = {0};
            assert_true(load_unpack(copy, cut + 4, MIB(1), &out, &err) < 0);
            assert_string_not_equal(err.text, "");
            free(copy);
        }
    }
}

static void stream_longer_than_it_claims_is_refused(void **state)
{
    (void)state;
    uint8_t elf[ELF_SIZE], packed[BZIMAGE_MAX];
    elf_make(elf);
    for (enum packing packing = 0; packing < PACKING_MAX; packing++) {
        size_t size = pack(packing, elf, ELF_SIZE, packed, sizeof packed - 4);
        struct load_source out;
        for (int less = 1; less < ELF_SIZE; less += 977) {
            le32_write(packed + size - 4, ELF_SIZE - (uint32_t)less);
            assert_int_equal(load_unpack(packed, size, MIB(1), &out, NULL), -ENOEXEC);
        }
        le32_write(packed + size - 4, ELF_SIZE + 1);
        assert_int_equal(load_unpack(packed, size, MIB(1), &out, NULL), -ENOEXEC);
        le32_write(packed + size - 4, 0);
        assert_int_equal(load_unpack(packed, size, MIB(1), &out, NULL), -ENOEXEC);
        le32_write(packed + size - 4, UINT32_MAX);
        assert_int_equal(load_unpack(packed, size, MIB(1), &out, NULL), -ENOMEM);
    }
}

static void packings_that_are_not_taken_are_named(void **state)
{
    (void)state;
    struct load_source out;
    struct err err = {0};
    assert_int_equal(load_unpack((const uint8_t *)"BZh91AY&SY....", 14, MIB(1), &out, &err),
                     -ENOEXEC);
    assert_non_null(strstr(err.text, "bzip2"));
    assert_int_equal(load_unpack((const uint8_t *)"\x89LZO\0\r\n\x1a\n...", 12, MIB(1), &out, &err),
                     -ENOEXEC);
    assert_non_null(strstr(err.text, "lzo"));
    assert_int_equal(load_unpack((const uint8_t *)"what is this", 12, MIB(1), &out, &err),
                     -ENOEXEC);
}

static void pvh_is_used_where_there_is_nothing_else(void **state)
{
    (void)state;
    uint8_t image[ELF_SIZE];
    elf_make(image);
    elf_header(image)->e_entry = 0xffffffff81000010;
    elf_note_pvh(image);
    struct guest guest;
    guest_make(&guest, MIB(32));
    uint8_t initrd[5000] = {1, 2, 3};
    guest.request.initrd_fd = file_of(initrd, sizeof initrd);
    assert_int_equal(guest_load(&guest, image, sizeof image), 0);
    assert_int_equal(guest.entry.protocol, LOAD_PROTOCOL_PVH);
    assert_int_equal(guest.entry.rip, KERNEL_AT + 0x20);
    const uint8_t *info = at(&guest, guest.entry.info, 56);
    assert_int_equal(le32_read(info), 0x336ec578);
    assert_int_equal(le32_read(info + 12), 1);
    uint64_t module = le64_read(info + 16);
    assert_memory_equal(at(&guest, le64_read(at(&guest, module, 8)), sizeof initrd), initrd,
                        sizeof initrd);
    assert_int_equal(le64_read(at(&guest, module + 8, 8)), sizeof initrd);
    assert_string_equal((const char *)at(&guest, le64_read(info + 24), 14), "console=ttyS0");
    assert_int_equal(le64_read(info + 32), 0xe0000);
    assert_int_equal(le32_read(info + 48), 3);
    assert_int_equal(le64_read(at(&guest, le64_read(info + 40) + 2 * 24, 8)), MIB(1));

    struct cpu_state cpu;
    cpu_state_reset(&cpu, 0);
    load_entry_state(&guest.entry, &cpu);
    assert_int_equal(cpu.gpr[CPU_RBX], guest.entry.info);
    assert_int_equal(cpu.cr0 & (1u << 31 | 1), 1);
    assert_int_equal(le64_read(at(&guest, cpu.gdt.base + 0x10, 8)), 0x00cf9b000000ffff);
    close(guest.request.initrd_fd);
    mem_free(guest.mem);
}

static void linux_with_a_pvh_note_is_still_entered_in_64_bits(void **state)
{
    (void)state;
    uint8_t image[ELF_SIZE];
    elf_make(image);
    elf_note_pvh(image);
    elf_note(image, "Linux", 0x101, "\0\0\0\0", 4);
    struct guest guest;
    guest_make(&guest, MIB(32));
    assert_int_equal(guest_load(&guest, image, sizeof image), 0);
    assert_int_equal(guest.entry.protocol, LOAD_PROTOCOL_LINUX64);
    mem_free(guest.mem);
}

static void multiboot_header_write(uint8_t *to, uint32_t flags)
{
    le32_write(to, 0x1badb002);
    le32_write(to + 4, flags);
    le32_write(to + 8, -(0x1badb002 + flags));
}

static void multiboot_elf_gets_its_information(void **state)
{
    (void)state;
    uint8_t image[ELF_SIZE], initrd[4097] = {9};
    elf_make(image);
    multiboot_header_write(image + 4096 + 64, 3);
    struct guest guest;
    guest_make(&guest, MIB(32));
    guest.request.initrd_fd = file_of(initrd, sizeof initrd);
    assert_int_equal(guest_load(&guest, image, sizeof image), 0);
    assert_int_equal(guest.entry.protocol, LOAD_PROTOCOL_MULTIBOOT);
    assert_int_equal(guest.entry.rip, KERNEL_AT + 16);
    const uint8_t *info = at(&guest, guest.entry.info, 128);
    assert_int_equal(le32_read(info) & 0x4d, 0x4d);
    assert_int_equal(le32_read(info + 8), (MIB(32) - MIB(1)) / 1024);
    assert_string_equal((const char *)at(&guest, le32_read(info + 16), 14), "console=ttyS0");
    assert_int_equal(le32_read(info + 20), 1);
    const uint8_t *module = at(&guest, le32_read(info + 24), 16);
    uint32_t start = le32_read(module);
    assert_int_equal(start % 4096, 0);
    assert_int_equal(le32_read(module + 4) - start, sizeof initrd);
    assert_memory_equal(at(&guest, start, sizeof initrd), initrd, sizeof initrd);
    assert_int_equal(le32_read(info + 44), 3 * 24);
    assert_int_equal(le32_read(at(&guest, le32_read(info + 48), 4)), 20);

    struct cpu_state cpu;
    cpu_state_reset(&cpu, 0);
    load_entry_state(&guest.entry, &cpu);
    assert_int_equal(cpu.gpr[CPU_RAX], 0x2badb002);
    assert_int_equal(cpu.gpr[CPU_RBX], guest.entry.info);
    close(guest.request.initrd_fd);
    mem_free(guest.mem);
}

/* Linked for the higher half, as many such kernels are: the entry is virtual. */
static void multiboot_entry_may_be_virtual(void **state)
{
    (void)state;
    uint8_t image[ELF_SIZE];
    elf_make(image);
    elf_header(image)->e_entry = 0xffffffff81000040;
    multiboot_header_write(image + 4096, 0);
    struct guest guest;
    guest_make(&guest, MIB(32));
    assert_int_equal(guest_load(&guest, image, sizeof image), 0);
    assert_int_equal(guest.entry.rip, KERNEL_AT + 0x40);
    mem_free(guest.mem);
}

static void multiboot_addresses_need_no_elf(void **state)
{
    (void)state;
    uint8_t image[2000];
    for (size_t i = 0; i < sizeof image; i++)
        image[i] = text_byte(i);
    multiboot_header_write(image + 100, 1 << 16);
    le32_write(image + 112, 0x200000 + 50); /* header_addr: 50 bytes into the loaded part */
    le32_write(image + 116, 0x200000);
    le32_write(image + 120, 0x200000 + 1000);
    le32_write(image + 124, 0x200000 + 9000);
    le32_write(image + 128, 0x200000 + 8);
    struct guest guest;
    guest_make(&guest, MIB(4));
    assert_int_equal(guest_load(&guest, image, sizeof image), 0);
    assert_int_equal(guest.entry.rip, 0x200008);
    assert_memory_equal(at(&guest, 0x200000, 1000), image + 50, 1000);
    assert_int_equal(at(&guest, 0x200000 + 1000, 1)[0], 0);

    le32_write(image + 120, 0x200000 + 1951);
    refuse(&guest, image, sizeof image, -ENOEXEC, "truncated");
    le32_write(image + 120, 0);
    le32_write(image + 124, 0x200000 + 10);
    refuse(&guest, image, sizeof image, -ENOEXEC, "BSS");
    le32_write(image + 124, 0);
    le32_write(image + 128, 0x300000);
    refuse(&guest, image, sizeof image, -ENOEXEC, "entry");
    le32_write(image + 116, 0x100000); /* the header would lie before the file */
    refuse(&guest, image, sizeof image, -ENOEXEC, "load address");
    multiboot_header_write(image + 100, 1 << 16 | 4);
    refuse(&guest, image, sizeof image, -ENOEXEC, "features");
    mem_free(guest.mem);
}

static void what_is_no_kernel_is_said_so(void **state)
{
    (void)state;
    struct guest guest;
    guest_make(&guest, MIB(32));
    uint8_t zeros[10000] = {0}, image[ELF_SIZE];
    refuse(&guest, zeros, sizeof zeros, -ENOEXEC, "no kernel");
    refuse(&guest, "#!/bin/sh\n", 10, -ENOEXEC, "no kernel");
    refuse(&guest, "", 0, -ENOEXEC, "empty");
    guest.request.kernel_fd = -1;
    assert_int_equal(load_kernel(&guest.request, &guest.entry, &guest.err), -ENOEXEC);
    assert_non_null(strstr(guest.err.text, "--kernel"));
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    guest.request.kernel_fd = ends[0];
    assert_int_equal(load_kernel(&guest.request, &guest.entry, &guest.err), -EINVAL);
    close(ends[0]);
    close(ends[1]);

    elf_make(image);
    elf_header(image)->e_machine = EM_AARCH64;
    refuse(&guest, image, sizeof image, -ENOEXEC, "machine");
    elf_make(image);
    elf_header(image)->e_type = ET_REL;
    refuse(&guest, image, sizeof image, -ENOEXEC, "executable");
    elf_make(image);
    elf_header(image)->e_phnum = 0;
    refuse(&guest, image, sizeof image, -ENOEXEC, "nothing to load");
    elf_make(image);
    elf_header(image)->e_entry = 0xffffffff81000010;
    refuse(&guest, image, sizeof image, -ENOEXEC, "neither Linux nor PVH nor multiboot");
    mem_free(guest.mem);
}

static void what_does_not_fit_is_said_so(void **state)
{
    (void)state;
    uint8_t image[ELF_SIZE];
    elf_make(image);
    struct guest guest;
    guest_make(&guest, MIB(16));
    refuse(&guest, image, sizeof image, -ENOMEM, "--memory");
    mem_free(guest.mem);

    guest_make(&guest, MIB(32));
    char *line = malloc(5000);
    memset(line, 'x', 5000);
    line[2048] = 0;
    guest.request.command_line = line;
    refuse(&guest, image, sizeof image, -E2BIG, "--append");
    line[2047] = 0;
    assert_int_equal(guest_load(&guest, image, sizeof image), 0);
    guest.request.command_line = "";
    free(line);

    _cleanup_free_ uint8_t *initrd = calloc(1, MIB(16));
    guest.request.initrd_fd = file_of(initrd, MIB(16));
    refuse(&guest, image, sizeof image, -ENOMEM, "initrd of 16 MiB");
    /* With the memory that the message names, it does fit. */
    uint64_t enough = strtoull(strstr(guest.err.text, "at least ") + 9, NULL, 10);
    int fd = guest.request.initrd_fd;
    mem_free(guest.mem);
    guest_make(&guest, MIB(enough));
    guest.request.initrd_fd = fd;
    assert_int_equal(guest_load(&guest, image, sizeof image), 0);
    const uint8_t *params = at(&guest, guest.entry.info, 4096);
    uint64_t start = le32_read(params + 0x218), size = le32_read(params + 0x21c);
    assert_int_equal(size, MIB(16));
    assert_true(start >= KERNEL_AT + TEXT + 10000 && start + size <= MIB(enough));
    check_text(&guest);
    close(fd);
    mem_free(guest.mem);
}

static void segments_may_lie_only_where_ram_is(void **state)
{
    (void)state;
    uint8_t image[ELF_SIZE];
    struct guest guest;
    guest_make(&guest, MIB(32));
    static const uint64_t places[] = {0,
                                      0x8000,
                                      0x9f000,
                                      MIB(1) - 4096,
                                      MIB(32),
                                      MIB(32) - 4096,
                                      UINT64_MAX - 8,
                                      GIB(4),
                                      GIB(4) - 1,
                                      UINT64_MAX / 2 + 1};
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        elf_make(image);
        elf_segment(image, 0)->p_paddr = places[i];
        elf_header(image)->e_entry = places[i];
        assert_true(guest_load(&guest, image, sizeof image) < 0);
        assert_string_not_equal(guest.err.text, "");
    }
    elf_make(image);
    elf_segment(image, 0)->p_filesz = UINT64_MAX;
    elf_segment(image, 0)->p_memsz = UINT64_MAX;
    refuse(&guest, image, sizeof image, -ENOEXEC, "damaged");
    elf_make(image);
    elf_segment(image, 0)->p_offset = UINT64_MAX - 100;
    refuse(&guest, image, sizeof image, -ENOEXEC, "truncated");
    elf_make(image);
    elf_segment(image, 0)->p_filesz = TEXT + 20000;
    refuse(&guest, image, sizeof image, -ENOEXEC, "contradict");
    mem_free(guest.mem);
}

static void unpack_writes_the_elf_image(void **state)
{
    (void)state;
    uint8_t elf[ELF_SIZE], image[BZIMAGE_MAX], back[ELF_SIZE + 1];
    elf_make(elf);
    _cleanup_fd_ int in = file_of(image, bzimage_make(image, ZSTD, elf));
    _cleanup_fd_ int out = file_of("", 0);
    assert_int_equal(load_unpack_kernel(in, out, MIB(1), NULL), 0);
    assert_int_equal(pread(out, back, sizeof back, 0), ELF_SIZE);
    assert_memory_equal(back, elf, ELF_SIZE);
    struct err err = {0};
    assert_int_equal(load_unpack_kernel(in, out, 1000, &err), -ENOMEM);

    _cleanup_fd_ int plain = file_of(elf, sizeof elf);
    _cleanup_fd_ int copy = file_of("", 0);
    assert_int_equal(load_unpack_kernel(plain, copy, MIB(1), NULL), 0);
    assert_int_equal(pread(copy, back, sizeof back, 0), ELF_SIZE);
    assert_memory_equal(back, elf, ELF_SIZE);
}

/* A file that nobody may write to is mapped: the guest sees the file's bytes at any offset, its own
 * writes stay its own, and what was not asked for is not there. */
static void a_read_only_file_is_mapped(void **state)
{
    (void)state;
    enum { SIZE = 400000, AT = 3000, LENGTH = 300000 };
    _cleanup_free_ uint8_t *bytes = malloc(SIZE);
    for (unsigned i = 0; i < SIZE; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 4096);
    _cleanup_fd_ int fd = file_of(bytes, SIZE);
    struct mem *mem = mem_new();
    assert_int_equal(mem_add(mem, 0, MIB(1), false, NULL), 0);
    uint8_t *ram = mem_at(mem, 0, MIB(1), true);
    for (unsigned mode = 0; mode < 3; mode++) {
        fchmod(fd, mode == 0 ? 0600 : 0400);
        /* Congruent to the file's offset, where a mapping is possible, and not. */
        uint8_t *to = ram + 8192 + (mode == 2 ? 100 : AT);
        struct load_source source;
        assert_int_equal(load_source_open(&source, "kernel", fd, NULL), 0);
        assert_int_equal(load_source_place(&source, AT, to, LENGTH, NULL), 0);
        assert_memory_equal(to, bytes + AT, LENGTH);
        assert_int_equal(to[LENGTH], 0);
        assert_int_equal(to[-1], 0);
        memset(to, 0xee, LENGTH);
        _cleanup_free_ uint8_t *back = malloc(SIZE);
        assert_int_equal(pread(fd, back, SIZE, 0), SIZE);
        assert_memory_equal(back, bytes, SIZE);
        memset(ram, 0, MIB(1));
        struct err err = {0};
        assert_int_equal(load_source_place(&source, SIZE - 10, to, LENGTH, &err), -ENOEXEC);
        load_source_free(&source);
    }
    mem_free(mem);
}

/* Zeros in the middle and at the end: the file gets holes and loads to the same bytes. */
static void holes_are_written_and_skipped(void **state)
{
    (void)state;
    enum { DATA = 3 * 65536, SIZE = 4096 + DATA };
    _cleanup_free_ uint8_t *image = calloc(1, SIZE);
    _cleanup_free_ uint8_t *back = malloc(SIZE);
    elf_make(image);
    elf_segment(image, 0)->p_filesz = DATA;
    elf_segment(image, 0)->p_memsz = DATA;
    memset(image + 4096, 0x11, 65536);
    memset(image + 4096 + 65536, 0, 65536);
    memset(image + 4096 + 131072, 0x33, 5000);
    _cleanup_fd_ int in = file_of(image, SIZE);
    _cleanup_fd_ int out = file_of("", 0);
    assert_int_equal(load_unpack_kernel(in, out, MIB(1), NULL), 0);
    assert_int_equal(pread(out, back, SIZE, 0), SIZE);
    assert_memory_equal(back, image, SIZE);
    assert_true(lseek(out, 0, SEEK_HOLE) < SIZE);

    struct guest guest;
    guest_make(&guest, MIB(32));
    guest.request.kernel_fd = out;
    assert_int_equal(load_kernel(&guest.request, &guest.entry, NULL), 0);
    assert_memory_equal(at(&guest, KERNEL_AT, DATA), image + 4096, DATA);
    mem_free(guest.mem);

    /* Into what has no holes, a pipe, the bytes are written out. */
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(fcntl(ends[1], F_SETPIPE_SZ, 1 << 20), 1 << 20);
    assert_int_equal(load_unpack_kernel(in, ends[1], MIB(1), NULL), 0);
    close(ends[1]);
    size_t size = 0;
    for (ssize_t n; (n = read(ends[0], back + size, SIZE - size)) > 0;)
        size += (size_t)n;
    close(ends[0]);
    assert_int_equal(size, SIZE);
    assert_memory_equal(back, image, SIZE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bare_vmlinux_is_entered_by_the_64_bit_protocol),
        cmocka_unit_test(bzimage_of_every_packing_is_unpacked),
        cmocka_unit_test(image_cut_anywhere_is_refused),
        cmocka_unit_test(payload_cut_anywhere_is_refused),
        cmocka_unit_test(stream_longer_than_it_claims_is_refused),
        cmocka_unit_test(packings_that_are_not_taken_are_named),
        cmocka_unit_test(pvh_is_used_where_there_is_nothing_else),
        cmocka_unit_test(linux_with_a_pvh_note_is_still_entered_in_64_bits),
        cmocka_unit_test(multiboot_elf_gets_its_information),
        cmocka_unit_test(multiboot_entry_may_be_virtual),
        cmocka_unit_test(multiboot_addresses_need_no_elf),
        cmocka_unit_test(what_is_no_kernel_is_said_so),
        cmocka_unit_test(what_does_not_fit_is_said_so),
        cmocka_unit_test(segments_may_lie_only_where_ram_is),
        cmocka_unit_test(unpack_writes_the_elf_image),
        cmocka_unit_test(a_read_only_file_is_mapped),
        cmocka_unit_test(holes_are_written_and_skipped),
    };
    return cmocka_run_group_tests_name("load", tests, NULL, NULL);
}
