/* Ring 3 in 32-bit and 16-bit code segments under a 64-bit kernel: addresses that wrap, segments
 * with bases and limits, old instructions, ways into the kernel and between the modes, 16-bit
 * stacks; all in hot loops. The loops are in compat_code.S. */
#include "guest.h"

enum { ROUNDS = 960, TOP = 0xfffff000, TOP_FRAME = 0x800000, U = 4 };
enum {
    BASE_ONE = 0x63,
    BASE_TWO = 0x6b,
    STACK16 = 0x73,
    SMALL = 0x7b,
    CODE16 = 0x83,
    DOWN = 0x8b,
    CODE_BASED = 0x93,
    CODE16_BOTH = 0xc3,
    SYSENTER = 0xa0, /* four in a row: the kernel's and the user's code and data */
};
enum { EAX, ECX, EDX, EBX, EBP, ESI, EDI };

extern void compat_enter(const char *rip, uint64_t cs, uint64_t ss, uint64_t rsp, uint64_t flags);
extern uint32_t compat_registers[7];
extern const char compat_wrap[], compat_wrap_string[], compat_old[], compat_bases[],
    compat_limits[], compat_limit_load[], compat_limit_store[], compat_limit_end[], compat_int80[],
    compat_syscall[], compat_sysenter[], compat_far[], compat_stack16[], compat_based[],
    compat_code16[], compat_both[], compat_alignment[], compat_unaligned[],
    compat_unaligned_after[], compat_syscall_entry[], compat_sysenter_entry[];

static uint8_t stack[8192] __attribute__((aligned(4096)));
static uint8_t stack16[65536] __attribute__((aligned(4096)));
static uint8_t area_one[8192] __attribute__((aligned(4096)));
static uint8_t area_two[8192] __attribute__((aligned(4096)));
static uint64_t descriptors[32];
static struct guest_place back;
static struct frame end; /* the registers at int $0x81 */
static volatile uint64_t calls, wrong_calls, faults, wrong_faults;

static uint32_t low(const void *pointer)
{
    return (uint32_t)(uint64_t)pointer;
}

static uint64_t descriptor(uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 |
           (uint64_t)(base >> 24) << 56;
}

static void make_descriptors(void)
{
    for (unsigned i = 0; i < sizeof gdt / 8; i++)
        descriptors[i] = gdt[i];
    descriptors[BASE_ONE / 8] = descriptor(low(area_one), 0xfffff, 0xf3, 0xc);
    descriptors[BASE_TWO / 8] = descriptor(low(area_two), 0xfffff, 0xf3, 0xc);
    descriptors[STACK16 / 8] = descriptor(low(stack16), 0xffff, 0xf3, 0);
    descriptors[SMALL / 8] = descriptor(low(area_one), 0xfff, 0xf3, 0x4);
    descriptors[CODE16 / 8] = descriptor(low(compat_code16), 0xffff, 0xfb, 0);
    descriptors[CODE16_BOTH / 8] = descriptor(low(compat_both), 0xffff, 0xfb, 0);
    descriptors[DOWN / 8] = descriptor(low(area_one), 0xfff, 0xf7, 0x4);
    descriptors[CODE_BASED / 8] = descriptor(low(compat_based), 0xfffff, 0xfb, 0xc);
    descriptors[SYSENTER / 8] = gdt[SELECTOR_CODE / 8];
    descriptors[SYSENTER / 8 + 1] = gdt[SELECTOR_DATA / 8];
    descriptors[SYSENTER / 8 + 2] = gdt[SELECTOR_USER_CODE32 / 8];
    descriptors[SYSENTER / 8 + 3] = gdt[SELECTOR_USER_DATA / 8];
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof descriptors - 1, (uint64_t)descriptors};
    __asm__ volatile("lgdt %0" ::"m"(pointer));
}

/* ---- running ---- */

static void on_end(struct frame *frame)
{
    end = *frame;
    guest_return(&back);
}

static void run_in(const char *rip, uint64_t cs, uint64_t ss, uint32_t rsp)
{
    if (guest_save(&back) == 0)
        compat_enter(rip, cs, ss, rsp, 2);
}

/* 32-bit code with flat segments; EAX at its end. */
static uint32_t run(const char *code, uint32_t ebx, uint32_t edx)
{
    compat_registers[EBX] = ebx;
    compat_registers[EDX] = edx;
    compat_registers[EDI] = ROUNDS;
    run_in(code, SELECTOR_USER_CODE32, SELECTOR_USER_DATA, low(stack + sizeof stack));
    return (uint32_t)end.rax;
}

/* ---- addresses, instructions, segments ---- */

static void addresses(void)
{
    check_equal("addresses wrap at 4 GiB", run(compat_wrap, 0, 0), 0);
    check_equal("string instructions wrap too", run(compat_wrap_string, low(area_two), 0), 0);
    check_equal("and copied", *(volatile uint32_t *)(area_two + 12), 1);
}

static void segments(void)
{
    *(uint32_t *)area_one = 0x1111;
    *(uint32_t *)area_two = 0x2222;
    check_equal("bases that change every round", run(compat_bases, 0x1111, 0x2222), 0);
    check_equal("the last store through GS", *(volatile uint32_t *)(area_two + 12), 1);
    run_in(compat_based - (uint64_t)compat_based, CODE_BASED, SELECTOR_USER_DATA,
           low(stack + sizeof stack));
    check_equal("a code segment with a base", end.rax, 0);
    check_equal("it ends in itself", end.cs, CODE_BASED);
}

static void on_protection(struct frame *frame)
{
    faults++;
    wrong_faults += frame->error != 0;
    if (frame->rip == (uint64_t)compat_limit_load)
        frame->rip = (uint64_t)compat_limit_store;
    else if (frame->rip == (uint64_t)compat_limit_store)
        frame->rip = (uint64_t)compat_limit_end;
    else
        guest_return(&back);
}

static void limits(const char *name, uint32_t selector)
{
    faults = wrong_faults = 0;
    compat_registers[EBP] = selector;
    run(compat_limits, 0, 0);
    check_equal(name, end.rax << 32 | end.rdx, (uint64_t)ROUNDS / 2 << 32 | ROUNDS / 2);
    check_equal("faults of loads and stores", faults, ROUNDS);
    check_equal("with an error code of 0", wrong_faults, 0);
}

static void stacks(void)
{
    run_in(compat_stack16, SELECTOR_USER_CODE32, STACK16, 0x1000);
    check_equal("a 16-bit stack wraps", end.rax, 0);
    check_equal("only SP has moved", end.rsp, 0xabcd0000);
    *(uint32_t *)(area_one + 0x10) = 0x11223344;
    compat_registers[EDI] = ROUNDS;
    run_in(NULL, CODE16, STACK16, 0x1000);
    check_equal("16-bit code", end.rax, 0);
}

/* ---- into the kernel and between modes ---- */

static void on_int80(struct frame *frame)
{
    calls++;
    wrong_calls += frame->cs != SELECTOR_USER_CODE32 || frame->ss != SELECTOR_USER_DATA;
    wrong_calls += frame->rsp != low(stack + sizeof stack) || frame->rbx >> 32;
    frame->rax = (uint32_t)frame->rbx + 1;
}

static void into_the_kernel(void)
{
    uint32_t vendor[4], sum = ROUNDS * (ROUNDS + 1) / 2 + ROUNDS;
    check_equal("int 0x80", run(compat_int80, 0, 0), sum);
    check_equal("each of them", calls, ROUNDS);
    check_equal("with the right frame", wrong_calls, 0);
    cpuid(0, 0, vendor);
    if (vendor[2] == 0x444d4163) { /* "cAMD" */
        wrmsr(0xc0000081, UINT64_C(0x3b0008) << 32);
        wrmsr(0xc0000083, (uint64_t)compat_syscall_entry);
        wrmsr(0xc0000084, 0x700);
        check_equal("syscall from 32 bits", run(compat_syscall, 0, 0), sum);
    } else {
        wrmsr(0x174, SYSENTER);
        wrmsr(0x175, (uint64_t)guest_task.rsp[0]);
        wrmsr(0x176, (uint64_t)compat_sysenter_entry);
        check_equal("sysenter", run(compat_sysenter, 0, 0), sum);
    }
}

static void between_modes(void)
{
    compat_registers[EDI] = ROUNDS;
    run_in(compat_far, SELECTOR_USER_CODE, SELECTOR_USER_DATA, low(stack + sizeof stack));
    check_equal("far calls between 64 and 32 bits", end.rax, 0);

    uint64_t wrong = 0;
    for (unsigned i = 0; i < 120; i++) {
        uint64_t rounds = 30 + i, ebx = (uint32_t)(0xfffffff0 + i);
        uint64_t rax = i + rounds * ebx, rcx = 5 + 7 * rounds, rdx = rcx - 7;
        compat_registers[EAX] = i;
        compat_registers[ECX] = 5;
        compat_registers[EDX] = 0;
        compat_registers[EBX] = (uint32_t)ebx;
        compat_registers[EDI] = (uint32_t)rounds;
        switch (i % 3) {
        case 0:
            run_in(compat_both, SELECTOR_USER_CODE, SELECTOR_USER_DATA, low(stack + sizeof stack));
            break;
        case 1:
            run_in(compat_both, SELECTOR_USER_CODE32, SELECTOR_USER_DATA,
                   low(stack + sizeof stack));
            rax = (uint32_t)(rax - 2 * rounds);
            break;
        default:
            run_in(NULL, CODE16_BOTH, SELECTOR_USER_DATA, low(stack + sizeof stack));
            rax = (uint16_t)(rax - 2 * rounds);
        }
        wrong += end.rax != rax || end.rcx != rcx || end.rdx != rdx;
    }
    check_equal("the same bytes in three modes", wrong, 0);
}

static void on_alignment(struct frame *frame)
{
    faults++;
    wrong_faults += frame->error != 0 || frame->rip != (uint64_t)compat_unaligned;
    frame->rflags &= ~(UINT64_C(1) << 18);
}

static void alignment(void)
{
    faults = wrong_faults = 0;
    guest_handle(17, on_alignment);
    cr0_write(cr0_read() | 1 << 18); /* AM */
    *(uint32_t *)(area_one + 2) = 3;
    compat_registers[EBX] = low(area_one + 2);
    compat_registers[EDI] = ROUNDS;
    run_in(compat_alignment, SELECTOR_USER_CODE, SELECTOR_USER_DATA, low(stack + sizeof stack));
    check_equal("an operand that is not aligned", end.rax, 3 * ROUNDS);
    check_equal("faults where AC is set", faults, ROUNDS / 2);
    check_equal("at the load", wrong_faults, 0);
    cr0_write(cr0_read() & ~(UINT64_C(1) << 18));
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    if (guest_emulated("software interrupts from ring 3")) {
        check("there is nothing to test", true);
        return;
    }
    page_level4[0] |= U;
    page_level3[0] |= U;
    page_level3[3] |= U;
    page_level2[0] |= U;
    guest_map(TOP, TOP_FRAME | 7);
    cr3_write(cr3_read());
    make_descriptors();
    guest_handle(0x80, on_int80);
    guest_handle(0x81, on_end);
    guest_handle(13, on_protection);
    guest_gate(0x80, 0, 3, false);
    guest_gate(0x81, 0, 3, false);
    addresses();
    compat_registers[ECX] = 77;
    check_equal("instructions of 32-bit code only", run(compat_old, low(area_one), 0), 0x7a2bd0a2);
    segments();
    limits("a limit", SMALL);
    limits("a segment that expands down", DOWN);
    stacks();
    into_the_kernel();
    between_modes();
    alignment();
    __asm__ volatile("mov %0, %%ds; mov %0, %%es" ::"r"(SELECTOR_DATA));
}
