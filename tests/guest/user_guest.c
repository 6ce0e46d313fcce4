/* Ring 3: syscall and sysret, gates and privilege, iret checks, FS and GS, I/O permission, TSD. */
#include "guest.h"

static uint8_t user_stack[4096] __attribute__((aligned(4096)));
static struct guest_place back;
static volatile uint64_t seen_rip, seen_rflags, seen_cs, seen_value;

extern const char user_syscall[], user_after_syscall[], user_gate[], user_cli[], user_port[],
    user_kernel[], user_gs[], user_hlt[], user32[], syscall_entry[];

/* User code: each piece ends in an exception or a gate that brings us back. */
__asm__(".balign 4096\n"
        "user_syscall: mov $0x1234, %edx; syscall; user_after_syscall: mov %rax, %rdi; int $0x81\n"
        "user_gate: mov $0x77, %edi; int $0x81\n"
        "user_cli: cli\n"
        "user_port: mov $0x80, %edx; out %al, %dx\n"
        "user_kernel: mov page_level4, %rax\n"
        "user_gs: mov %gs:8, %rdi; int $0x81\n"
        "user_hlt: hlt\n"
        ".code32\n"
        "user32: mov $0x11112222, %edi; push %edi; mov (%esp), %esi; xor %edi, %edi;"
        "  dec %edi; inc %edi; jnz user32; mov %esi, %edi; int $0x81\n"
        ".code64\n"
        ".balign 4096\n"
        "syscall_entry: mov %rsp, %r8; mov %rcx, seen_rip; mov %r11, seen_rflags;"
        "  lea 0x4321(%rdx), %rax; sysretq\n");

static void on_gate(struct frame *frame)
{
    seen_value = frame->rdi;
    seen_cs = frame->cs;
    guest_return(&back);
}

static void to_user(const char *rip, uint64_t cs, uint64_t rflags)
{
    __asm__ volatile(
        "push %0; push %1; push %2; push %3; push %4; iretq" ::"r"((uint64_t)SELECTOR_USER_DATA),
        "r"((uint64_t)user_stack + sizeof user_stack - 16), "r"(rflags), "r"(cs), "r"((uint64_t)rip)
        : "memory");
}

struct piece {
    const char *rip;
    uint64_t cs;
};

static void run(void *argument)
{
    struct piece *piece = argument;
    to_user(piece->rip, piece->cs, 2);
}

static struct fault user(const char *rip, uint64_t cs)
{
    struct piece piece = {rip, cs};
    struct fault fault = {-1, 0, 0, 0, 0};
    if (guest_save(&back) == 0)
        fault = guest_try(run, &piece);
    return fault;
}

static void bad_iret(void *argument)
{
    to_user(user_gate, (uint64_t)argument, 2);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    page_level4[0] |= 4;
    page_level3[0] |= 4;
    uint64_t page = (uint64_t)user_syscall & ~UINT64_C(0xfff);
    *guest_page(page) |= 4;
    *guest_page((uint64_t)user_stack) |= 4;
    cr3_write(cr3_read());
    guest_handle(0x81, on_gate);
    guest_gate(0x81, 0, 3, false);

    check_equal("cli in ring 3", (uint64_t)user(user_cli, SELECTOR_USER_CODE).vector, 13);
    check_equal("hlt in ring 3", (uint64_t)user(user_hlt, SELECTOR_USER_CODE).vector, 13);
    check_equal("a port in ring 3", (uint64_t)user(user_port, SELECTOR_USER_CODE).vector, 13);
    struct fault fault = user(user_kernel, SELECTOR_USER_CODE);
    check_equal("supervisor page in ring 3", (uint64_t)fault.vector << 32 | fault.error,
                UINT64_C(14) << 32 | 5);
    if (guest_emulated("software interrupts from ring 3"))
        return;
    user(user_gate, SELECTOR_USER_CODE);
    check_equal("a gate of DPL 3", seen_value, 0x77);
    check_equal("comes from ring 3", seen_cs, SELECTOR_USER_CODE);

    wrmsr(0xc0000081, UINT64_C(0x3b0008) << 32); /* STAR: kernel 08, user 38+16 | 3 */
    wrmsr(0xc0000082, (uint64_t)syscall_entry);
    wrmsr(0xc0000084, 0x400); /* SFMASK: DF */
    user(user_syscall, SELECTOR_USER_CODE);
    check_equal("syscall and back", seen_value, 0x1234 + 0x4321);
    check_equal("RCX was the return address", seen_rip, (uint64_t)user_after_syscall);
    check_equal("R11 was RFLAGS", seen_rflags & 0x202, 2);
    check_equal("sysret loaded user CS", seen_cs, SELECTOR_USER_CODE);

    fault = user(user32, SELECTOR_USER_CODE32);
    check_equal("32-bit code runs through", (uint64_t)fault.vector, (uint64_t)-1);
    check_equal("32-bit code in ring 3", seen_value, 0x11112222);
    check_equal("with its own CS", seen_cs, SELECTOR_USER_CODE32);

    static uint64_t area[2] __attribute__((aligned(4096))) = {1, 0xabcdef};
    *guest_page((uint64_t)area) |= 4;
    invlpg((uint64_t)area);
    wrmsr(0xc0000101, (uint64_t)area);
    user(user_gs, SELECTOR_USER_CODE);
    check_equal("GS base in ring 3", seen_value, 0xabcdef);
    wrmsr(0xc0000102, 0x5555);
    __asm__ volatile("swapgs");
    check_equal("swapgs", rdmsr(0xc0000101), 0x5555);
    check_equal("swapgs, the other way", rdmsr(0xc0000102), (uint64_t)area);

    fault = guest_try(bad_iret, (void *)(uint64_t)SELECTOR_CODE);
    check_equal("iret to ring 0 code with a ring 3 stack", (uint64_t)fault.vector, 13);
    fault = guest_try(bad_iret, (void *)UINT64_C(0));
    check_equal("iret to a null CS", (uint64_t)fault.vector << 32 | fault.error,
                UINT64_C(13) << 32);
    __asm__ volatile("mov %0, %%ds; mov %0, %%es" ::"r"(SELECTOR_DATA));
}
