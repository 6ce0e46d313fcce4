/* Resets by three roads, and comes back each time: the battery-backed CMOS remembers which. */
#include "guest.h"

enum { REMEMBERED = 0x60 };

static uint8_t cmos_read(uint8_t at)
{
    outb(0x70, at);
    return inb(0x71);
}

static void cmos_write(uint8_t at, uint8_t value)
{
    outb(0x70, at);
    outb(0x71, value);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    uint8_t round = cmos_read(REMEMBERED);
    check("memory is clean", *(volatile uint32_t *)0x400000 == 0);
    *(volatile uint32_t *)0x400000 = 0x12345678;
    cmos_write(REMEMBERED, (uint8_t)(round + 1));
    if (round == 0) {
        print("PASS first boot\n");
        outb(0x64, 0xfe); /* the keyboard controller's pulse */
    } else if (round == 1) {
        print("PASS back after the keyboard controller\n");
        outb(0xcf9, 0x06); /* the reset register */
    } else if (round == 2) {
        print("PASS back after the reset register\n");
        outb(0x92, 0x01); /* fast reset */
    } else {
        print("PASS back after port 0x92\n");
        return;
    }
    for (;;) /* the pulse may take a moment */
        __asm__ volatile("cli; hlt");
}
