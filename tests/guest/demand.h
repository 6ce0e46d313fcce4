/*
 * demand.h: memory that is paged on demand, a few pages at a time, for loops that must survive a
 * fault anywhere. Two areas of SIZE bytes are mapped nowhere at first; a fault in them calls
 * `demand_check`, then maps its page, read-only at times, and takes the oldest one away.
 *
 * A loop is called as loop(target, source, count); demand_run() passes what demand_choose() said.
 */
#pragma once

#include "guest.h"

enum {
    SOURCE = 0x10000000,
    TARGET = 0x10040000,
    SIZE = 0x20000, /* of each, with pages that are never there on both sides */
    FRAMES = 0x800000,
    PASSES = 3,
};

extern uint64_t demand_wrong;
extern uint64_t demand_from, demand_to, demand_total;
/* Is the state at this fault what it should be? */
extern bool (*demand_check)(struct frame *frame, uint64_t address);

#define WRONG(condition) (demand_wrong += (condition) ? 1 : 0)

typedef uint64_t demand_loop(uint64_t target, uint64_t source, uint64_t count);

void demand_begin(void);
void demand_choose(uint64_t source_offset, uint64_t target_offset, uint64_t count);
uint64_t demand_run(demand_loop *loop);
/* PASSES times, and one check() of demand_wrong. */
void demand_often(const char *name, void (*body)(unsigned pass));

uint64_t demand_random(void);
void demand_fill(uint64_t begin); /* one of the areas, at random */

/* Is it this access that faulted? */
bool demand_at(struct frame *frame, const char *label, uint64_t start, unsigned size, bool write);

/* Memory as it is, without the mapping. */
static inline void *at(uint64_t linear)
{
    return (void *)(linear - SOURCE + FRAMES);
}
static inline uint64_t quad(uint64_t linear)
{
    return *(volatile uint64_t *)at(linear);
}
