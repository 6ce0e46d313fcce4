/*
 * From a multiboot 1 loader (32-bit protected mode, paging off) to guest_main() in 64-bit mode, and
 * the stubs of the interrupt table. Page tables, GDT and IDT stubs are data, not code: under a KVM
 * that emulates ring 0, every instruction costs microseconds.
 */
    .set MULTIBOOT_MAGIC, 0x1badb002
    .set MULTIBOOT_FLAGS, 3 /* modules on pages, memory map wanted */

    .section .multiboot, "a"
    .balign 4
    .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

    .section .text
    .code32
    .globl start
start:
    cli
    mov $stack_top, %esp
    mov %eax, multiboot_magic
    mov %ebx, multiboot_info
    call enter_long_mode
    ljmp $0x08, $start64

/* PAE, long mode, paging; CR4.OSFXSR is left to the tests. Clobbers EAX, ECX, EDX. */
    .globl enter_long_mode
enter_long_mode:
    mov $0x20, %eax
    mov %eax, %cr4
    mov $page_level4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax /* SCE, LME, NXE */
    wrmsr
    mov $0x80010033, %eax /* PG WP NE ET MP PE */
    mov %eax, %cr0
    lgdt gdt_pointer
    ret

    .code64
start64:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $stack_top, %rsp
    mov multiboot_info, %edi
    call guest_start
1:  hlt
    jmp 1b

/* Application processors begin here in real mode; guest_start_cpus() copies this below 1 MiB to
 * page 8 and fills `ap_stack`. */
    .code16
    .globl ap_begin, ap_end
ap_begin:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl 0x8000 + ap_gdt - ap_begin
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x18, $ap32
    .balign 8
ap_gdt:
    .word gdt_end - gdt - 1
    .long gdt
ap_end:

    .code32
ap32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %ss
    mov ap_stack, %esp
    call enter_long_mode
    ljmp $0x08, $ap64
    .code64
ap64:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov ap_stack, %esp
    call guest_cpu_main
1:  hlt
    jmp 1b

/* Interrupt stubs, 16 bytes each: a uniform frame of error code and vector. */
    .globl interrupt_stubs
    .balign 16
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
    .else
    push $0
    .endif
    push $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    cld
    call guest_interrupt
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

/* int guest_save(struct guest_place *): 0, or 1 when guest_return() comes back to it. */
    .globl guest_save, guest_return
guest_save:
    mov (%rsp), %rax
    mov %rax, (%rdi)
    lea 8(%rsp), %rax
    mov %rax, 8(%rdi)
    mov %rbx, 16(%rdi)
    mov %rbp, 24(%rdi)
    mov %r12, 32(%rdi)
    mov %r13, 40(%rdi)
    mov %r14, 48(%rdi)
    mov %r15, 56(%rdi)
    xor %eax, %eax
    ret
guest_return:
    mov 8(%rdi), %rsp
    mov 16(%rdi), %rbx
    mov 24(%rdi), %rbp
    mov 32(%rdi), %r12
    mov 40(%rdi), %r13
    mov 48(%rdi), %r14
    mov 56(%rdi), %r15
    mov $1, %eax
    jmp *(%rdi)

    .section .data
    .balign 4096
    .globl page_level4, page_level3, page_level2
page_level4:
    .quad page_level3 + 3
    .fill 511, 8, 0
page_level3:
    .quad page_level2 + 3, page_level2 + 0x1003, page_level2 + 0x2003, page_level2 + 0x3003
    .fill 508, 8, 0
page_level2: /* the first 4 GiB, one to one, in pages of 2 MiB */
    .set frame, 0
    .rept 2048
    .quad frame * 0x200000 + 0x83
    .set frame, frame + 1
    .endr

    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* 08 code, 64-bit */
    .quad 0x00cf93000000ffff /* 10 data */
    .quad 0x00cf9b000000ffff /* 18 code, 32-bit */
    .quad 0x00009b000000ffff /* 20 code, 16-bit */
    .quad 0                  /* 28 task, filled by guest_start() */
    .quad 0
    .quad 0x00cffb000000ffff /* 38 user code, 32-bit */
    .quad 0x00cff3000000ffff /* 40 user data */
    .quad 0x00affb000000ffff /* 48 user code, 64-bit */
    .quad 0x00cf13000000ffff /* 50 data, not present */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .globl multiboot_magic, ap_stack
multiboot_magic:
    .long 0
multiboot_info:
    .long 0
ap_stack:
    .long 0

    .section .bss
    .balign 4096
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
