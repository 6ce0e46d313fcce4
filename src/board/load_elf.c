#include "board/load_elf.h"

#include "base/bytes.h"
#include "base/own.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum {
    HEADERS_MAX = 64,      /* program headers; vmlinux has five */
    NOTES_MAX = 64 << 10,  /* bytes of one note segment that are looked at */
    XEN_NOTE_GUEST_OS = 6, /* xen/include/public/elfnote.h */
    XEN_NOTE_PHYS32_ENTRY = 18,
};

/* One program header with both classes' fields at one width. */
struct header {
    uint32_t type;
    uint64_t offset, virtual, physical, file_size, size, align;
};

bool load_elf_probe(const uint8_t *start, uint64_t size)
{
    return size >= SELFMAG && memcmp(start, ELFMAG, SELFMAG) == 0;
}

static struct header header_read(const uint8_t *at, bool is_64)
{
    if (is_64)
        return (struct header){
            .type = le32_read(at + offsetof(Elf64_Phdr, p_type)),
            .offset = le64_read(at + offsetof(Elf64_Phdr, p_offset)),
            .virtual = le64_read(at + offsetof(Elf64_Phdr, p_vaddr)),
            .physical = le64_read(at + offsetof(Elf64_Phdr, p_paddr)),
            .file_size = le64_read(at + offsetof(Elf64_Phdr, p_filesz)),
            .size = le64_read(at + offsetof(Elf64_Phdr, p_memsz)),
            .align = le64_read(at + offsetof(Elf64_Phdr, p_align)),
        };
    return (struct header){
        .type = le32_read(at + offsetof(Elf32_Phdr, p_type)),
        .offset = le32_read(at + offsetof(Elf32_Phdr, p_offset)),
        .virtual = le32_read(at + offsetof(Elf32_Phdr, p_vaddr)),
        .physical = le32_read(at + offsetof(Elf32_Phdr, p_paddr)),
        .file_size = le32_read(at + offsetof(Elf32_Phdr, p_filesz)),
        .size = le32_read(at + offsetof(Elf32_Phdr, p_memsz)),
        .align = le32_read(at + offsetof(Elf32_Phdr, p_align)),
    };
}

static void note_take(struct load_elf *elf, const char *name, uint32_t type, const uint8_t *desc,
                      uint32_t desc_size)
{
    if (strcmp(name, "Linux") == 0) {
        elf->is_linux = true;
    } else if (strcmp(name, "Xen") == 0 && type == XEN_NOTE_GUEST_OS) {
        elf->is_linux |= desc_size >= 5 && memcmp(desc, "linux", 5) == 0;
    } else if (strcmp(name, "Xen") == 0 && type == XEN_NOTE_PHYS32_ENTRY && desc_size >= 4) {
        elf->has_pvh = true;
        elf->pvh_entry = le32_read(desc);
    }
}

/* Notes are hints: a malformed one ends the list, it does not refuse the image. */
static void notes_walk(struct load_elf *elf, const uint8_t *notes, uint64_t size, uint64_t align)
{
    uint64_t at = 0;
    while (range_fits(at, sizeof(Elf64_Nhdr), size)) {
        uint32_t name_size = le32_read(notes + at);
        uint32_t desc_size = le32_read(notes + at + 4);
        uint32_t type = le32_read(notes + at + 8);
        uint64_t name_at = at + sizeof(Elf64_Nhdr);
        uint64_t desc_at = align_up(name_at + name_size, align);
        if (!range_fits(name_at, name_size, size) || !range_fits(desc_at, desc_size, size))
            return;
        char name[8] = {0};
        if (name_size > 0 && name_size < sizeof name) {
            memcpy(name, notes + name_at, name_size);
            note_take(elf, name, type, notes + desc_at, desc_size);
        }
        at = align_up(desc_at + desc_size, align);
    }
}

static int notes_read(const struct load_source *file, const struct header *header,
                      struct load_elf *elf, struct err *err)
{
    uint64_t size = min(header->file_size, (uint64_t)NOTES_MAX);
    if (size == 0)
        return 0;
    _cleanup_free_ uint8_t *notes = malloc(size);
    if (!notes)
        return err_set(err, -ENOMEM, "no memory for the kernel's notes");
    int r = load_source_read(file, header->offset, notes, size, err);
    if (r < 0)
        return r;
    notes_walk(elf, notes, size, header->align == 8 ? 8 : 4);
    return 0;
}

static int segment_take(const struct load_source *file, const struct header *header,
                        struct load_elf *elf, struct err *err)
{
    if (header->size == 0)
        return 0;
    if (header->file_size > header->size || header->physical + header->size < header->physical)
        return err_set(err, -ENOEXEC, "the kernel is damaged: a segment's sizes contradict");
    if (!range_fits(header->offset, header->file_size, file->size))
        return err_set(err, -ENOEXEC,
                       "the kernel is truncated: it has %" PRIu64
                       " bytes and a segment goes on past them; fetch or build the file again",
                       file->size);
    if (elf->count == LOAD_ELF_SEGMENTS_MAX)
        return err_set(err, -ENOEXEC, "the kernel has more than %d segments",
                       LOAD_ELF_SEGMENTS_MAX);
    elf->segments[elf->count++] = (struct load_elf_segment){.offset = header->offset,
                                                            .file_size = header->file_size,
                                                            .start = header->physical,
                                                            .size = header->size,
                                                            .virtual = header->virtual};
    elf->low = min(elf->low, header->physical);
    elf->high = max(elf->high, header->physical + header->size);
    return 0;
}

static int ident_check(const uint8_t *start, struct err *err)
{
    if (start[EI_DATA] != ELFDATA2LSB || start[EI_VERSION] != EV_CURRENT ||
        (start[EI_CLASS] != ELFCLASS32 && start[EI_CLASS] != ELFCLASS64))
        return err_set(err, -ENOEXEC, "the kernel is an ELF file for another kind of machine");
    unsigned machine = le16_read(start + offsetof(Elf64_Ehdr, e_machine));
    if (machine != EM_X86_64 && machine != EM_386)
        return err_set(err, -ENOEXEC,
                       "the kernel is an ELF file for machine type %u; an x86 one is needed",
                       machine);
    unsigned type = le16_read(start + offsetof(Elf64_Ehdr, e_type));
    if (type != ET_EXEC && type != ET_DYN)
        return err_set(err, -ENOEXEC,
                       "the kernel is an ELF file but not an executable one (object or core file)");
    return 0;
}

int load_elf_parse(const struct load_source *file, struct load_elf *ret_elf, struct err *err)
{
    uint8_t start[sizeof(Elf64_Ehdr)] = {0};
    int r = load_source_read(file, 0, start, sizeof(Elf32_Ehdr), err);
    if (r < 0)
        return r;
    r = ident_check(start, err);
    if (r < 0)
        return r;
    struct load_elf elf = {.is_64 = start[EI_CLASS] == ELFCLASS64, .low = UINT64_MAX};
    if (elf.is_64) {
        r = load_source_read(file, 0, start, sizeof start, err);
        if (r < 0)
            return r;
    }
    elf.entry = elf.is_64 ? le64_read(start + offsetof(Elf64_Ehdr, e_entry))
                          : le32_read(start + offsetof(Elf32_Ehdr, e_entry));
    uint64_t table = elf.is_64 ? le64_read(start + offsetof(Elf64_Ehdr, e_phoff))
                               : le32_read(start + offsetof(Elf32_Ehdr, e_phoff));
    unsigned each = le16_read(start + (elf.is_64 ? offsetof(Elf64_Ehdr, e_phentsize)
                                                 : offsetof(Elf32_Ehdr, e_phentsize)));
    unsigned count = le16_read(
        start + (elf.is_64 ? offsetof(Elf64_Ehdr, e_phnum) : offsetof(Elf32_Ehdr, e_phnum)));
    if (each != (elf.is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) || count > HEADERS_MAX)
        return err_set(err, -ENOEXEC, "the kernel is damaged: %u program headers of %u bytes",
                       count, each);

    uint8_t headers[HEADERS_MAX * sizeof(Elf64_Phdr)];
    r = load_source_read(file, table, headers, (uint64_t)each * count, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < count && r >= 0; i++) {
        struct header header = header_read(headers + i * each, elf.is_64);
        if (header.type == PT_LOAD)
            r = segment_take(file, &header, &elf, err);
        else if (header.type == PT_NOTE)
            r = notes_read(file, &header, &elf, err);
    }
    if (r < 0)
        return r;
    if (elf.count == 0)
        return err_set(err, -ENOEXEC, "the kernel is an ELF file with nothing to load in it");
    *ret_elf = elf;
    return 0;
}

int load_elf_place(const struct load_source *file, const struct load_elf *elf, struct mem *mem,
                   struct err *err)
{
    for (unsigned i = 0; i < elf->count; i++) {
        const struct load_elf_segment *segment = &elf->segments[i];
        uint8_t *to = mem_at(mem, segment->start, segment->size, true);
        if (!to)
            return err_set(err, -ENOMEM,
                           "the kernel needs memory at 0x%" PRIx64 "..0x%" PRIx64
                           ", where the guest has none: give it more (--memory)",
                           segment->start, segment->start + segment->size);
        int r = load_source_place(file, segment->offset, to, segment->file_size, err);
        if (r < 0)
            return r;
        mem_written(mem, segment->start, segment->file_size);
        mem_note_file(mem, segment->start, segment->file_size);
    }
    return 0;
}

bool load_elf_holds(const struct load_elf *elf, uint64_t at)
{
    for (unsigned i = 0; i < elf->count; i++)
        if (at - elf->segments[i].start < elf->segments[i].size)
            return true;
    return false;
}
