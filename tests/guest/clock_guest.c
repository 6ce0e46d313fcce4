/* Paravirtual leaves, kvmclock, TSC. */
#include "guest.h"

struct clock_page {
    uint32_t version, pad;
    uint64_t tsc, system_time;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, pad2[2];
} __attribute__((packed));

static volatile struct clock_page page __attribute__((aligned(64)));

static uint64_t now(void)
{
    uint64_t delta = rdtsc() - page.tsc;
    delta = page.shift >= 0 ? delta << page.shift : delta >> -page.shift;
    return page.system_time + (uint64_t)((unsigned __int128)delta * page.multiplier >> 32);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    check("hypervisor bit", leaf[2] >> 31);
    cpuid(0x40000000, 0, leaf);
    check("KVM signature", leaf[1] == 0x4b4d564b && leaf[2] == 0x564b4d56 && leaf[3] == 0x4d);
    cpuid(0x40000001, 0, leaf);
    check("kvmclock is offered", leaf[0] & 8);
    wrmsr(0x4b564d01, (uint64_t)&page | 1);
    check("the clock page is filled", page.version && !(page.version & 1) && page.multiplier);
    uint64_t before = now();
    outb(0x43, 0xb0); /* PIT channel 2, mode 0 */
    outb(0x61, (uint8_t)((inb(0x61) & ~2) | 1));
    outb(0x42, 0x9c);
    outb(0x42, 0x2e); /* 11932 ticks: 10 ms */
    while (!(inb(0x61) & 0x20))
        ;
    uint64_t passed = now() - before;
    check("10 ms of the PIT are 10 ms of kvmclock", passed > 9500000 && passed < 60000000);
    uint64_t last = rdtsc(), good = 1;
    for (int i = 0; i < 100; i++) {
        uint64_t next = rdtsc();
        good &= next > last;
        last = next;
    }
    check("the TSC goes up", good);
    wrmsr(0x4b564d01, 0);
}
