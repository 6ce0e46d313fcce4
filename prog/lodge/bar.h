/*
 * bar.h: the progress of long work, as a line on the terminal, if there is one: from half a second
 * on, ten times a second.
 *
 *     struct bar bar = {.what = "copying"};
 *     bar_draw(&bar, done, all);
 *     bar_clear(&bar);
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct bar {
    const char *what;
    uint64_t begun, drawn; /* ns */
    bool there;
};

/* `bar` is a struct bar, as a callback's opaque pointer. */
void bar_draw(void *bar, uint64_t done, uint64_t all);
void bar_clear(const struct bar *bar);
