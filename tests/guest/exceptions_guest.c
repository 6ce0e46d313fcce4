/* Exceptions: vectors, error codes, return addresses, IST, #DF, single step, shadows. */
#include "guest.h"

extern const char divide_at[], undefined_at[], breakpoint_after[];

static void divide(void *argument)
{
    (void)argument;
    __asm__ volatile("xor %%ecx, %%ecx; divide_at: div %%ecx" ::: "eax", "ecx", "edx");
}

static void divide_overflow(void *argument)
{
    (void)argument;
    __asm__ volatile("mov $5, %%edx; mov $5, %%ecx; div %%ecx" ::: "eax", "ecx", "edx");
}

static void undefined(void *argument)
{
    (void)argument;
    __asm__ volatile("undefined_at: ud2");
}

static void breakpoint(void *argument)
{
    (void)argument;
    __asm__ volatile("int3; breakpoint_after:");
}

static void read_at(void *argument)
{
    (void)*(volatile uint64_t *)argument;
}

static void load_ds(void *argument)
{
    __asm__ volatile("mov %0, %%ds" ::"r"(argument));
}

static void bad_msr(void *argument)
{
    (void)argument;
    rdmsr(0x12345678);
}

static void bad_cr0(void *argument)
{
    (void)argument;
    cr0_write((cr0_read() | UINT64_C(1) << 29) & ~(UINT64_C(1) << 30)); /* NW without CD */
}

static void bad_cr4(void *argument)
{
    (void)argument;
    cr4_write(cr4_read() | UINT64_C(1) << 31);
}

static void raise_int(void *argument)
{
    (void)argument;
    __asm__ volatile("int $80");
}

static void sse_without_osfxsr(void *argument)
{
    (void)argument;
    __asm__ volatile("xorps %xmm0, %xmm0");
}

static void x87_with_ts(void *argument)
{
    (void)argument;
    cr0_write(cr0_read() | 8);
    __asm__ volatile("fninit");
}

static void push_through(void *argument)
{
    __asm__ volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push %%rax; mov %%rbx, %%rsp" ::"r"(argument)
                     : "rbx", "memory");
}

static volatile uint64_t steps, step_after, double_fault_stack, double_fault_error;
static struct guest_place after_double_fault;

static void on_step(struct frame *frame)
{
    steps++;
    step_after = frame->rip;
    if (steps >= 3)
        frame->rflags &= ~UINT64_C(0x100);
}

static void on_double_fault(struct frame *frame)
{
    double_fault_error = frame->error;
    double_fault_stack = (uint64_t)frame;
    guest_return(&after_double_fault);
}

extern const char step_end[];

static void single_step(void)
{
    guest_handle(1, on_step);
    __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; nop; nop; nop; step_end:" ::: "memory");
    guest_handle(1, NULL);
    check_equal("three single steps", steps, 3);
    check_equal("step returns after the third", step_after, (uint64_t)step_end);

    /* MOV SS holds #DB off for one instruction: the trap comes after the one that follows. */
    steps = 2;
    guest_handle(1, on_step);
    __asm__ volatile("mov %%ss, %%eax; pushfq; orq $0x100, (%%rsp); popfq; mov %%eax, %%ss;"
                     "nop; 1: lea 1b(%%rip), %%rcx; mov %%rcx, %0"
                     : "=m"(double_fault_error)::"rax", "rcx", "memory");
    guest_handle(1, NULL);
    check_equal("step after mov ss", step_after, double_fault_error);
}

static void double_fault(void)
{
    /* A #PF whose delivery raises #PF: the gate for 14 is in a page that is not there. */
    guest_gate(8, 1, 0, false);
    guest_handle(8, on_double_fault);
    uint64_t saved = guest_idt[14 * 2];
    guest_idt[14 * 2] &= ~(UINT64_C(0x80) << 40); /* #PF's gate not present: #NP in delivery */
    if (guest_save(&after_double_fault) == 0) {
        read_at((void *)UINT64_C(0x200000000));
        check("a fault in delivery makes #DF", false);
    }
    guest_idt[14 * 2] = saved;
    check_equal("#DF error code", double_fault_error, 0);
    check("#DF runs on its own stack",
          double_fault_stack <= guest_task.ist[0] && double_fault_stack > guest_task.ist[0] - 4096);
    guest_handle(8, NULL);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    check_equal("multiboot magic", multiboot_magic, 0x2badb002);

    struct fault fault = guest_try(divide, NULL);
    check_equal("#DE", (uint64_t)fault.vector, 0);
    check_equal("#DE is a fault", fault.rip, (uint64_t)divide_at);
    check_equal("#DE on overflow", (uint64_t)guest_try(divide_overflow, NULL).vector, 0);
    fault = guest_try(undefined, NULL);
    check_equal("#UD", (uint64_t)fault.vector, 6);
    check_equal("#UD is a fault", fault.rip, (uint64_t)undefined_at);
    if (!guest_emulated("INT3 in ring 0")) {
        fault = guest_try(breakpoint, NULL);
        check_equal("#BP", (uint64_t)fault.vector, 3);
        check_equal("#BP is a trap", fault.rip, (uint64_t)breakpoint_after);
    }

    fault = guest_try(read_at, (void *)UINT64_C(0x200000008));
    check_equal("#PF", (uint64_t)fault.vector, 14);
    check_equal("#PF error: read, not present", fault.error, 0);
    check_equal("#PF CR2", fault.cr2, UINT64_C(0x200000008));
    fault = guest_try(read_at, (void *)UINT64_C(0x8000000000000000));
    check_equal("non-canonical is #GP", (uint64_t)fault.vector, 13);
    check_equal("non-canonical #GP error", fault.error, 0);
    guest_gate(12, 1, 0, false); /* on a stack of its own: the current one is the fault */
    guest_gate(13, 1, 0, false);
    fault = guest_try(push_through, (void *)UINT64_C(0x9000000000000000));
    check_equal("non-canonical stack is #SS", (uint64_t)fault.vector, 12);

    fault = guest_try(load_ds, (void *)UINT64_C(0x7f8));
    check_equal("selector past the GDT", (uint64_t)fault.vector << 32 | fault.error,
                UINT64_C(13) << 32 | 0x7f8);
    fault = guest_try(load_ds, (void *)(uint64_t)SELECTOR_ABSENT);
    check_equal("segment not present", (uint64_t)fault.vector << 32 | fault.error,
                UINT64_C(11) << 32 | SELECTOR_ABSENT);
    fault = guest_try(load_ds, (void *)(uint64_t)SELECTOR_CODE);
    check_equal("readable code in DS is fine", (uint64_t)fault.vector, (uint64_t)-1);
    guest_try(load_ds, (void *)(uint64_t)SELECTOR_DATA);
    guest_idt[80 * 2] = 0;
    if (!guest_emulated("INT n in ring 0")) {
        fault = guest_try(raise_int, NULL);
        check_equal("INT through an empty gate", (uint64_t)fault.vector << 32 | fault.error,
                    UINT64_C(13) << 32 | (80 * 8 + 2));
    }
    if (!guest_emulated("SSE, x87 and single step in ring 0")) {
        check_equal("SSE without OSFXSR", (uint64_t)guest_try(sse_without_osfxsr, NULL).vector, 6);
        check_equal("x87 with TS", (uint64_t)guest_try(x87_with_ts, NULL).vector, 7);
        __asm__ volatile("clts");
        single_step();
    }
    double_fault();
    check_equal("unknown MSR", (uint64_t)guest_try(bad_msr, NULL).vector, 13);
    check_equal("CR0.NW without CD", (uint64_t)guest_try(bad_cr0, NULL).vector, 13);
    check_equal("reserved CR4 bit", (uint64_t)guest_try(bad_cr4, NULL).vector, 13);
}
