/* Two processors: INIT and SIPI, IPIs both ways, locked operations, TLB shoot-down, code changed
 * by the other one. */
#include "guest.h"

static volatile uint32_t *const apic = (volatile uint32_t *)0xfee00000;
static volatile uint64_t shared __attribute__((aligned(64)));
static volatile uint32_t stage, other_id, ipis, answered, sum;
static volatile uint8_t split_area[128] __attribute__((aligned(64)));

enum { ROUNDS = 400, PAGE = 0x400000 };

static void on_ipi(struct frame *frame)
{
    (void)frame;
    ipis++;
    apic[0xb0 / 4] = 0;
}

static void on_shootdown(struct frame *frame)
{
    (void)frame;
    invlpg(PAGE);
    answered++;
    apic[0xb0 / 4] = 0;
}

static void reach(uint32_t wanted)
{
    while (stage < wanted)
        __asm__ volatile("pause");
}

static void add(void)
{
    volatile uint64_t *split = (volatile uint64_t *)(split_area + 60); /* crosses a cache line */
    for (unsigned i = 0; i < ROUNDS; i++) {
        __asm__ volatile("lock incq %0" : "+m"(shared)::"memory");
        __asm__ volatile("lock addq $3, %0" : "+m"(*split)::"memory");
    }
}

static void other(void)
{
    apic[0xf0 / 4] = 0x1ff;
    other_id = apic[0x20 / 4] >> 24;
    stage = 1;
    reach(2);
    add();
    stage = 3;
    while (!ipis)
        __asm__ volatile("sti; hlt; cli" ::: "memory");
    stage = 4;
    sum = *(volatile uint32_t *)PAGE; /* caches the translation */
    stage = 5;
    while (!answered)
        __asm__ volatile("sti; hlt; cli" ::: "memory");
    sum = *(volatile uint32_t *)PAGE;
    stage = 6;
    reach(7);
    uint32_t cpu[4];
    cpuid(0, 0, cpu); /* serialize, as the architecture asks of whoever runs changed code */
    sum = ((uint32_t(*)(void))(uint64_t)(PAGE + 8192))();
    stage = 8;
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    apic[0xf0 / 4] = 0x1ff;
    guest_handle(0x60, on_ipi);
    guest_handle(0x61, on_shootdown);
    guest_start_cpu(1, other);
    reach(1);
    check_equal("the other processor runs", other_id, 1);
    stage = 2;
    add();
    reach(3);
    check_equal("locked increments", shared, 2 * ROUNDS);
    check_equal("locked and split", *(volatile uint64_t *)(split_area + 60), 2 * ROUNDS * 3);

    apic[0x310 / 4] = 1 << 24;
    apic[0x300 / 4] = 0x60;
    reach(4);
    check_equal("an IPI wakes HLT", ipis, 1);

    uint64_t *entry = guest_page(PAGE);
    reach(5);
    *(volatile uint32_t *)PAGE = 111;
    *(volatile uint32_t *)(PAGE + 4096) = 222;
    *entry = (PAGE + 4096) | 3;
    apic[0x300 / 4] = 0x61;
    reach(6);
    check_equal("shoot-down: the other one sees the new page", sum, 222);

    volatile uint8_t *code = (volatile uint8_t *)(PAGE + 8192);
    code[0] = 0xb8; /* mov $5, %eax; ret */
    *(volatile uint32_t *)(code + 1) = 5;
    code[5] = 0xc3;
    check_equal("new code here", ((uint32_t(*)(void))(uint64_t)code)(), 5);
    *(volatile uint32_t *)(code + 1) = 6;
    stage = 7;
    reach(8);
    check_equal("changed code there", sum, 6);
    check_equal("changed code here", ((uint32_t(*)(void))(uint64_t)code)(), 6);
}
