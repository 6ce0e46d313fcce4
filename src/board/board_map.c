#include "board/board_map.h"

#include "board/acpi.h"

int map_add_ram(struct mem *mem, uint64_t memory, struct err *err)
{
    uint64_t low = min(memory, MAP_LOW_RAM_END);
    int r = mem_add(mem, 0, MAP_VGA, false, err);
    if (r >= 0)
        r = mem_add(mem, MAP_VGA_END, low - MAP_VGA_END, false, err);
    if (r >= 0 && memory > low)
        r = mem_add(mem, MAP_HIGH_RAM, memory - low, false, err);
    return r;
}

uint64_t map_low_memory(const struct mem *mem)
{
    uint64_t end = 0;
    for (unsigned i = 0; i < mem->count; i++)
        if (mem->regions[i].start < MAP_HIGH_RAM && !mem->regions[i].read_only)
            end = mem->regions[i].start + mem->regions[i].size;
    return end;
}

uint64_t map_high_memory(const struct mem *mem)
{
    const struct mem_region *high = mem_find(mem, MAP_HIGH_RAM);
    return high ? high->size : 0;
}

static void range_add(struct load_range *ranges, unsigned *count, uint64_t start, uint64_t end,
                      enum load_range_type type)
{
    ranges[(*count)++] = (struct load_range){.start = start, .size = end - start, .type = type};
}

unsigned map_ranges(const struct mem *mem, struct load_range ret_ranges[LOAD_RANGES_MAX])
{
    unsigned count = 0;
    range_add(ret_ranges, &count, 0, MAP_EBDA, LOAD_RANGE_RAM);
    range_add(ret_ranges, &count, MAP_EBDA, MAP_VGA, LOAD_RANGE_RESERVED);
    range_add(ret_ranges, &count, ACPI_AREA_START, MIB(1), LOAD_RANGE_RESERVED);
    for (unsigned i = 0; i < mem->count; i++) {
        const struct mem_region *region = &mem->regions[i];
        uint64_t start = max(region->start, MIB(1));
        if (region->start + region->size <= start || region->read_only)
            continue;
        if (region->start >= MAP_HIGH_RAM)
            range_add(ret_ranges, &count, MAP_ECAM, MAP_ECAM + MAP_ECAM_SIZE, LOAD_RANGE_RESERVED);
        range_add(ret_ranges, &count, start, region->start + region->size, LOAD_RANGE_RAM);
    }
    if (!mem_find(mem, MAP_HIGH_RAM))
        range_add(ret_ranges, &count, MAP_ECAM, MAP_ECAM + MAP_ECAM_SIZE, LOAD_RANGE_RESERVED);
    return count;
}

uint64_t map_window64(const struct mem *mem)
{
    const struct mem_region *last = &mem->regions[mem->count - 1];
    return align_up(max(last->start + last->size, MAP_HIGH_RAM), MAP_WINDOW64_SIZE);
}
