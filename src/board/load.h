/*
 * load.h: from a kernel file to a vCPU that stands at its first instruction.
 *
 * load_kernel() recognises what it is given and fills guest memory the way a boot loader would:
 *
 *   bzImage    Linux boot protocol >= 2.08 (Documentation/arch/x86/boot.rst). The payload is
 *              unpacked here, on the host's side, so that the guest never runs the decompressor;
 *              what comes out is the ELF image below, entered by the 64-bit boot protocol.
 *   ELF        vmlinux by the 64-bit boot protocol; any image that carries a PVH entry
 *              (XEN_ELFNOTE_PHYS32_ENTRY) and no sign of being Linux by that entry.
 *   multiboot  version 1 (GNU multiboot specification 0.6.96): ELF32, ELF64 or the address fields
 *              of its own header; the initrd becomes the one module.
 *
 * Memory must be zero where nothing is loaded (fresh, or dropped by a reset): the loader writes
 * file-backed bytes only and leaves every BSS alone. Below 1 MiB it uses LOAD_* places of this
 * header; kernels that want to lie there are refused.
 *
 * Everything read is hostile. Each file is read through its descriptor with pread(), so the offset
 * does not matter and the same descriptors serve every reboot. No state; any thread.
 *
 * Errors: -ENOEXEC for a file that is no kernel, is damaged, truncated or of a kind we do not take,
 * -ENOMEM where it does not fit the guest, -E2BIG for a command line that is too long, and what
 * reading gave. Each says in one phrase what is wrong and what to do.
 */
#pragma once

#include "base/err.h"
#include "cpu/state.h"
#include "mem/mem.h"

#include <stdint.h>

/* Address range types of the E820 map (ACPI 6.5, table 15.4). */
enum load_range_type { LOAD_RANGE_RAM = 1, LOAD_RANGE_RESERVED = 2 };

struct load_range {
    uint64_t start, size;
    enum load_range_type type;
};

enum {
    LOAD_RANGES_MAX = 16,

    /* What the loader itself puts below 1 MiB, all in the first 192 KiB of RAM. */
    LOAD_AT_GDT = 0x1000,
    LOAD_AT_INFO = 0x2000, /* hvm_start_info or multiboot information, with their lists */
    LOAD_AT_BOOT_PARAMS = 0x7000,
    LOAD_AT_PAGE_TABLES = 0x9000, /* PML4, PDPT, four page directories: 4 GiB, identity */
    LOAD_AT_COMMAND_LINE = 0x20000,
    LOAD_COMMAND_LINE_MAX = 0x10000, /* with the final NUL */
    LOAD_KERNEL_LOWEST = 0x100000,
};

struct load_request {
    struct mem *mem;
    int kernel_fd;
    int initrd_fd;                   /* -1 = none */
    const char *command_line;        /* may be "" */
    const struct load_range *ranges; /* the memory map to hand over: sorted, disjoint */
    unsigned range_count;            /* <= LOAD_RANGES_MAX */
    uint64_t rsdp;                   /* where the ACPI root pointer lies; 0 = none */
};

enum load_protocol { LOAD_PROTOCOL_LINUX64, LOAD_PROTOCOL_PVH, LOAD_PROTOCOL_MULTIBOOT };

/* Where the first instruction is and what its registers must hold. */
struct load_entry {
    enum load_protocol protocol;
    uint64_t rip;
    uint64_t info; /* boot_params, hvm_start_info or multiboot information */
};

int load_kernel(const struct load_request *request, struct load_entry *ret_entry, struct err *err);

/* Turns the power-on state of vCPU 0 (cpu_state_reset()) into the state at the entry. */
void load_entry_state(const struct load_entry *entry, struct cpu_state *state);

/* Writes the uncompressed ELF image of the kernel in `in_fd` to `out_fd`, from its current offset
 * on, and makes it end there. A bzImage is unpacked, an ELF image copied; pages of zeros become
 * holes. `limit` bounds the output in bytes. */
int load_unpack_kernel(int in_fd, int out_fd, uint64_t limit, struct err *err);
