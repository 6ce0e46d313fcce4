#include "bar.h"

#include "base/clock.h"

#include <stdio.h>
#include <unistd.h>

void bar_draw(void *opaque, uint64_t done, uint64_t all)
{
    enum { WIDTH = 40, WAIT = 500000000, EVERY = 100000000 };
    struct bar *bar = opaque;
    uint64_t time = clock_ns();
    if (!bar->begun) {
        bar->begun = time;
        bar->there = isatty(STDERR_FILENO);
    }
    if (!bar->there || !all || time - bar->begun < WAIT || time - bar->drawn < EVERY)
        return;
    bar->drawn = time;
    double part = (double)done / (double)all;
    int full = (int)(part * WIDTH);
    fprintf(stderr, "\r%s [%.*s%*s] %3.0f%%", bar->what, full,
            "########################################", WIDTH - full, "", part * 100);
}

void bar_clear(const struct bar *bar)
{
    if (bar->drawn)
        fputs("\r\033[K", stderr);
}
