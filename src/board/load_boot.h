/*
 * load_boot.h: the three ways a kernel is entered.
 *
 * Each function places the kernel, its command line and initrd, writes the structure that the
 * protocol hands over, and says where to start. load.c chooses; load_entry.c holds what all three
 * share, the descriptor table and the registers. Errors as in load.h.
 */
#pragma once

#include "base/err.h"
#include "board/load.h"
#include "board/load_bzimage.h"
#include "board/load_elf.h"
#include "board/load_source.h"

#include <stdbool.h>

/* 64-bit boot protocol (boot.rst, "64-bit Boot Protocol"). `bzimage` is the header the kernel came
 * with, or NULL for a bare vmlinux. */
int load_linux64(const struct load_request *request, const struct load_source *file,
                 const struct load_elf *elf, const struct load_bzimage *bzimage,
                 struct load_entry *ret_entry, struct err *err);

/* PVH (xen/include/public/arch-x86/hvm/start_info.h). */
int load_pvh(const struct load_request *request, const struct load_source *file,
             const struct load_elf *elf, const struct load_bzimage *bzimage,
             struct load_entry *ret_entry, struct err *err);

/* Multiboot 1. The header, where there is one, begins in the first 8 KiB at a multiple of 4. */
struct load_multiboot {
    uint32_t at; /* offset in the file */
    uint32_t flags;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

bool load_multiboot_probe(const struct load_source *file, struct load_multiboot *ret_header);
int load_multiboot(const struct load_request *request, const struct load_source *file,
                   const struct load_multiboot *header, struct load_entry *ret_entry,
                   struct err *err);

/* The flat descriptor table at LOAD_AT_GDT that load_entry_state()'s selectors point into. */
int load_gdt_write(struct mem *mem, const struct load_entry *entry, struct err *err);
