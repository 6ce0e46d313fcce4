/* Mode changes: 64-bit to compatibility, to 32-bit protected, to 16-bit, to real mode, and back. */
#include "guest.h"

extern void modes_compat(void), modes_legacy(void), modes_real(void);
uint32_t modes_value;
uint16_t modes_real_value, modes_real_wrap;

__asm__(
    /* Compatibility mode: 32-bit code below long mode. 64-bit addresses wrap, INC is one byte. */
    ".globl modes_compat\n"
    "modes_compat: push %rbx; push %rbp\n"
    "  ljmp *1f(%rip)\n"
    "1: .long 2f; .word 0x18\n"
    ".code32\n"
    "2: mov $0xfffffff0, %ebx; mov $0x41, %ecx; inc %ecx; mov %ecx, modes_value\n"
    "  ljmp $0x08, $3f\n"
    ".code64\n"
    "3: pop %rbp; pop %rbx; ret\n"

    /* Legacy protected mode without paging: leave long mode altogether and come back. */
    ".globl modes_legacy\n"
    "modes_legacy: push %rbx; push %rbp\n"
    "  ljmp *1f(%rip)\n"
    "1: .long 2f; .word 0x18\n"
    ".code32\n"
    "2: mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0\n"
    "  mov $0xc0000080, %ecx; rdmsr; mov %eax, modes_value; and $~0x100, %eax; wrmsr\n"
    "  or $0x100, %eax; wrmsr\n"
    "  mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0\n"
    "  ljmp $0x08, $3f\n"
    ".code64\n"
    "3: pop %rbp; pop %rbx; ret\n"

    /* Real mode: copied to 0x7000. 16-bit addresses wrap; segments are selector * 16. */
    ".globl modes_real\n"
    "modes_real: push %rbx; push %rbp\n"
    "  mov $real_begin, %esi; mov $0x7000, %edi; mov $real_end - real_begin, %ecx; rep movsb\n"
    "  mov %rsp, real_rsp\n"
    "  ljmp *1f(%rip)\n"
    "1: .long 2f; .word 0x18\n"
    ".code32\n"
    "2: mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0\n"
    "  mov $0xc0000080, %ecx; rdmsr; and $~0x100, %eax; wrmsr\n"
    "  ljmp $0x20, $0x7000\n"
    ".code16\n"
    "real_begin:\n"
    "  mov %cr0, %eax; and $~1, %al; mov %eax, %cr0\n"
    "  ljmp $0, $0x7000 + 1f - real_begin\n"
    "1: mov $0x700, %ax; mov %ax, %ds; mov %ax, %ss; mov $0x800, %sp\n"
    "  push $0x1234; pop %ax; mov %ax, (real_data - real_begin)\n"
    "  mov $0xffff, %bx; mov $0x5678, %cx; mov %cx, %dx\n"
    "  mov (2 + real_data - real_begin), %ax; lea 3(%bx), %bx; mov %bx, (4 + real_data - "
    "real_begin)\n"
    "  mov %cr0, %eax; or $1, %al; mov %eax, %cr0\n"
    "  ljmpl $0x18, $real_back\n"
    ".balign 4\n"
    "real_data: .word 0, 0, 0, 0\n"
    "real_end:\n"
    ".code32\n"
    "real_back: mov $0x10, %eax; mov %eax, %ds; mov %eax, %ss; mov %eax, %es\n"
    "  mov real_rsp, %esp\n"
    "  mov 0x7000 + real_data - real_begin, %ax; mov %ax, modes_real_value\n"
    "  mov 0x7004 + real_data - real_begin, %ax; mov %ax, modes_real_wrap\n"
    "  mov $0xc0000080, %ecx; rdmsr; or $0x100, %eax; wrmsr\n"
    "  mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0\n"
    "  ljmp $0x08, $1f\n"
    ".code64\n"
    "1: pop %rbp; pop %rbx; ret\n"
    ".data\n real_rsp: .quad 0\n .text\n");

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    modes_compat();
    check_equal("compatibility mode", modes_value, 0x42);
    modes_legacy();
    check_equal("LMA follows paging", modes_value & 0x500, 0x100);
    check_equal("LMA is back", rdmsr(0xc0000080) & 0x500, 0x500);
    modes_real();
    check_equal("real mode and its stack", modes_real_value, 0x1234);
    check_equal("16-bit addresses wrap", modes_real_wrap, 2);
    check_equal("64-bit mode again", rdmsr(0xc0000080) & 0x500, 0x500);
}
