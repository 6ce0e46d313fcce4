/*
 * load_elf.h: ELF images for x86, 32 and 64 bits (System V ABI, chapters 4 and 5), as kernels use
 * them: segments go to their physical addresses; sections are not looked at.
 *
 * load_elf_parse() checks everything that load_elf_place() will rely on, so that nothing is written
 * to guest memory for an image that turns out to be damaged. Pure; any thread.
 */
#pragma once

#include "base/err.h"
#include "board/load_source.h"
#include "mem/mem.h"

#include <stdbool.h>
#include <stdint.h>

enum { LOAD_ELF_SEGMENTS_MAX = 32 };

struct load_elf_segment {
    uint64_t offset, file_size; /* in the file */
    uint64_t start, size;       /* in guest-physical memory; size >= file_size */
    uint64_t virtual;           /* where the kernel itself believes it to be */
};

struct load_elf {
    bool is_64;
    bool is_linux; /* carries a note that only Linux writes */
    bool has_pvh;
    uint32_t pvh_entry; /* physical */
    uint64_t entry;     /* as written: physical for Linux, virtual for some others */
    uint64_t low, high; /* all segments lie in [low, high) */
    unsigned count;
    struct load_elf_segment segments[LOAD_ELF_SEGMENTS_MAX];
};

bool load_elf_probe(const uint8_t *start, uint64_t size);
int load_elf_parse(const struct load_source *file, struct load_elf *ret_elf, struct err *err);

/* Reads the file-backed part of each segment to its place; the rest is zero already. */
int load_elf_place(const struct load_source *file, const struct load_elf *elf, struct mem *mem,
                   struct err *err);

/* Whether some segment holds physical address `at`. */
bool load_elf_holds(const struct load_elf *elf, uint64_t at);
