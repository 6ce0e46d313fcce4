/* Interrupts: PIC, PIT, I/O APIC, local APIC timers, priorities, self IPIs, NMI, shadows. */
#include "guest.h"

static volatile uint32_t *const apic = (volatile uint32_t *)0xfee00000;
static volatile uint32_t *const ioapic = (volatile uint32_t *)0xfec00000;

enum {
    EOI = 0xb0 / 4,
    SVR = 0xf0 / 4,
    ICR = 0x300 / 4,
    TIMER = 0x320 / 4,
    LINT0 = 0x350 / 4,
    COUNT = 0x380 / 4,
    CURRENT = 0x390 / 4,
    DIVIDE = 0x3e0 / 4
};

static volatile unsigned count[256], order[8], ordered;

static void on_interrupt(struct frame *frame)
{
    count[frame->vector]++;
    if (ordered < 8)
        order[ordered++] = (unsigned)frame->vector;
    apic[EOI] = 0;
}

static void on_pic(struct frame *frame)
{
    count[frame->vector]++;
    outb(0x20, 0x20);
}

/* Sleeps until `vector` has come `times`; every wake-up is an interrupt, so this ends. */
static void wait_for(unsigned vector, unsigned times)
{
    while (count[vector] < times)
        __asm__ volatile("sti; hlt; cli" ::: "memory");
}

static void pit_start(unsigned ticks)
{
    outb(0x43, 0x30); /* channel 0, both bytes, mode 0: one interrupt at the end */
    outb(0x40, (uint8_t)ticks);
    outb(0x40, (uint8_t)(ticks >> 8));
}

static void pic_and_pit(void)
{
    guest_handle(0x20, on_pic);
    outb(0x20, 0x11);
    outb(0x21, 0x20);
    outb(0x21, 0x04);
    outb(0x21, 0x01);
    outb(0xa0, 0x11);
    outb(0xa1, 0x28);
    outb(0xa1, 0x02);
    outb(0xa1, 0x01);
    outb(0xa1, 0xff);
    outb(0x21, 0xff);
    check_equal("PIC mask reads back", inb(0x21), 0xff);
    apic[LINT0] = 0x700; /* ExtINT */
    outb(0x21, 0xfe);
    pit_start(2000);
    wait_for(0x20, 1);
    check_equal("PIT through the PIC", count[0x20], 1);
    outb(0x21, 0xff);
    apic[LINT0] = 0x10000;
}

static void io_apic(void)
{
    guest_handle(0x41, on_interrupt);
    ioapic[0] = 1;
    check("I/O APIC has 24 pins", (ioapic[4] >> 16 & 0xff) == 23);
    ioapic[0] = 0x10 + 2 * 2 + 1;
    ioapic[4] = 0; /* to APIC 0 */
    ioapic[0] = 0x10 + 2 * 2;
    ioapic[4] = 0x41; /* edge, fixed, unmasked */
    pit_start(2000);
    wait_for(0x41, 1);
    check_equal("PIT through the I/O APIC, pin 2", count[0x41], 1);
    ioapic[4] = 0x10041;
}

static void timers(void)
{
    uint32_t features[4];
    guest_handle(0x42, on_interrupt);
    apic[DIVIDE] = 3; /* by 16 */
    apic[TIMER] = 0x42;
    apic[COUNT] = 100000;
    check("the timer counts down", apic[CURRENT] <= 100000);
    wait_for(0x42, 1);
    check_equal("one shot stops at 0", apic[CURRENT], 0);
    apic[TIMER] = 0x20042; /* periodic */
    apic[COUNT] = 400000;
    wait_for(0x42, 3);
    check("periodic goes on", count[0x42] >= 3);
    apic[COUNT] = 0;
    apic[TIMER] = 0x10000;

    cpuid(1, 0, features);
    if (!(features[2] & 1 << 24)) {
        print("SKIP TSC deadline\n");
        return;
    }
    guest_handle(0x43, on_interrupt);
    apic[TIMER] = 0x40043;
    uint64_t deadline = rdtsc() + 3000000;
    wrmsr(0x6e0, deadline);
    check_equal("TSC deadline reads back", rdmsr(0x6e0), deadline);
    wait_for(0x43, 1);
    check("TSC deadline is not early", rdtsc() >= deadline);
    check_equal("and is then 0", rdmsr(0x6e0), 0);
    wrmsr(0x6e0, 1); /* long past */
    wait_for(0x43, 2);
    check_equal("a past deadline fires at once", count[0x43], 2);
    apic[TIMER] = 0x10000;
}

static void priorities(void)
{
    guest_handle(0x51, on_interrupt);
    guest_handle(0x71, on_interrupt);
    guest_handle(0x61, on_interrupt);
    ordered = 0;
    apic[ICR] = 0x44000 | 0x51; /* to itself */
    apic[ICR] = 0x44000 | 0x71;
    apic[ICR] = 0x44000 | 0x61;
    check_equal("IRR shows 0x51", apic[0x220 / 4] >> 17 & 1, 1);
    interrupts_window();
    check_equal("highest first", order[0] << 16 | order[1] << 8 | order[2], 0x716151);

    cr8_write(6);
    check_equal("CR8 is the TPR", apic[0x80 / 4], 0x60);
    apic[ICR] = 0x44000 | 0x61;
    unsigned before = count[0x61];
    interrupts_window();
    check_equal("the TPR holds it off", count[0x61], before);
    cr8_write(0);
    interrupts_window();
    check_equal("and lets it through", count[0x61], before + 1);
}

static volatile uint64_t shadow_rip;

static void on_shadow(struct frame *frame)
{
    shadow_rip = frame->rip;
    apic[EOI] = 0;
}

static volatile unsigned nmis;

static void on_nmi(struct frame *frame)
{
    (void)frame;
    nmis++;
}

extern const char shadow_end[];

static void shadow_and_nmi(void)
{
    guest_handle(0x52, on_shadow);
    if (!guest_emulated("the shadow of STI")) {
        apic[ICR] = 0x44000 | 0x52;
        __asm__ volatile("sti; nop; shadow_end: nop; cli" ::: "memory");
        check_equal("STI holds for one instruction", shadow_rip, (uint64_t)shadow_end);
    }
    shadow_rip = 0;
    apic[ICR] = 0x44000 | 0x52;
    __asm__ volatile("sti; cli" ::: "memory");
    check_equal("STI CLI lets nothing in", shadow_rip, 0);
    interrupts_window();

    guest_handle(2, on_nmi);
    apic[0x310 / 4] = 0;
    apic[ICR] = 0x4400; /* NMI to APIC 0 */
    for (unsigned i = 0; i < 1000 && !nmis; i++)
        __asm__ volatile("pause");
    check_equal("NMI comes with interrupts off", nmis, 1);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    apic[SVR] = 0x1ff;
    check("APIC is on", rdmsr(0x1b) & 0x800);
    check("boot processor", rdmsr(0x1b) & 0x100);
    pic_and_pit();
    io_apic();
    timers();
    priorities();
    shadow_and_nmi();
}
