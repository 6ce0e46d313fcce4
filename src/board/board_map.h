/*
 * board_map.h: the machine's physical addresses, ports and interrupt numbers.
 *
 *     0                 RAM, 640 KiB
 *     0xa0000           nothing (a PC's VGA memory)
 *     0xc0000           RAM; the last 128 KiB before 1 MiB hold the ACPI tables
 *     0x100000          RAM up to MAP_LOW_RAM_END at most
 *     MAP_ECAM          PCI configuration space
 *     MAP_WINDOW32      PCI BARs
 *     0xfec00000        I/O APIC, local APIC; KVM's own pages at 0xfeffc000
 *     MAP_FIRMWARE_END  below it: firmware and its flash, where the machine has them
 *     4 GiB             the rest of RAM
 *     above, aligned    PCI BARs of 64 bits
 *
 * Pure; any thread.
 */
#pragma once

#include "base/bytes.h"
#include "board/load.h"
#include "mem/mem.h"

#include <stdint.h>

/* ECAM covers one bus, for there is one: where MCFG tells Linux of 256 it reads the identity of
 * each slot of each, and 16 thousand port accesses are a good part of a boot. */
#define MAP_LOW_RAM_END   UINT64_C(0xb0000000)
#define MAP_ECAM          UINT64_C(0xb0000000)
#define MAP_ECAM_SIZE     MIB(1)
#define MAP_WINDOW32      UINT64_C(0xc0000000)
#define MAP_WINDOW32_SIZE (UINT64_C(0xfec00000) - MAP_WINDOW32)
#define MAP_HIGH_RAM      GIB(4)
#define MAP_FIRMWARE_END  GIB(4) /* its image ends there, the flash before it begins */
#define MAP_FIRMWARE_MAX  MIB(8)
#define MAP_WINDOW64_SIZE GIB(16)

enum {
    MAP_VGA = 0xa0000,
    MAP_VGA_END = 0xc0000,
    MAP_EBDA = 0x9fc00, /* the last KiB of the first 640 is firmware's on a PC */

    MAP_COM1_PORT = 0x3f8,
    MAP_PANIC_PORT = 0x505,
    MAP_POWER_PORT = 0x600,
    MAP_WATCHDOG_PORT = 0x620,
    MAP_RESET_PORT = 0xcf9,
    MAP_RESET_VALUE = 0x06,
    MAP_PCI_IO_WINDOW = 0xc000,
    MAP_PCI_IO_WINDOW_SIZE = 0x4000,

    MAP_IRQ_TIMER = 0,
    MAP_IRQ_KEYBOARD = 1,
    MAP_IRQ_COM1 = 4,
    MAP_IRQ_RTC = 8,
    MAP_IRQ_SCI = 9,
    MAP_GSI_PCI = 16, /* four lines from here on */
};

/* Adds RAM of `memory` bytes. */
int map_add_ram(struct mem *mem, uint64_t memory, struct err *err);

/* RAM up to its end below 4 GiB, the hole below 1 MiB included; and so much from 4 GiB on. */
uint64_t map_low_memory(const struct mem *mem);
uint64_t map_high_memory(const struct mem *mem);

/* The E820 map of it; returns how many ranges. */
unsigned map_ranges(const struct mem *mem, struct load_range ret_ranges[LOAD_RANGES_MAX]);

/* Where BARs of 64 bits begin. */
uint64_t map_window64(const struct mem *mem);
