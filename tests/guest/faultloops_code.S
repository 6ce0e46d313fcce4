/*
 * Loops over memory that is paged on demand: faultloops_guest.c has what must hold at a fault at
 * each of the labels. RSI and RDI are places in memory, RCX and RDX counts; the result is in RAX
 * unless said otherwise. Names end in the register or place that the check wants to know about.
 */
.macro LOOP name
    .balign 64
    .globl \name
\name:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
.endm

.macro END
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
.endm

.macro AT label
    .globl \label
\label:
.endm

    .text
/* Adds RDX quadwords at RSI. */
LOOP loop_sum
    xor %eax, %eax
    xor %ecx, %ecx
AT at_sum
1:  add (%rsi, %rcx, 8), %rax
    inc %rcx
    cmp %rdx, %rcx
    jb 1b
    END

/* The same with the carry added in again, from end to end. */
LOOP loop_carry
    xor %eax, %eax
    mov %rdx, %rcx
    clc
AT at_carry
1:  adc (%rsi), %rax
    lea 8(%rsi), %rsi
    dec %rcx
    jnz 1b
    adc $0, %rax
    END

/* Stores a sequence, downwards: RDX quadwords that end at RDI. */
LOOP loop_fill
    mov %rdx, %rcx
    mov $1, %eax
    mov $0x5851f42d4c957f2d, %r8
AT at_fill
1:  mov %rax, -8(%rdi)
    sub $8, %rdi
    imul %r8, %rax
    inc %rax
    dec %rcx
    jnz 1b
    END

/* Copies RDX pieces of 24 bytes. */
LOOP loop_copy
    xor %ecx, %ecx
AT at_copy_load
1:  mov (%rsi, %rcx, 8), %r8
AT at_copy_load2
    mov 8(%rsi, %rcx, 8), %r9
AT at_copy_store
    mov %r8, (%rdi, %rcx, 8)
AT at_copy_load3
    mov 16(%rsi, %rcx, 8), %r10
AT at_copy_store2
    mov %r9, 8(%rdi, %rcx, 8)
AT at_copy_store3
    mov %r10, 16(%rdi, %rcx, 8)
    add $3, %rcx
    cmp %rdx, %rcx
    jb 1b
    END

/* Changes each of RDX places at RDI, 20 bytes apart, exactly once in four ways. */
LOOP loop_change
    mov $3, %eax
    mov %rdx, %rcx
AT at_change_add
1:  add %rax, (%rdi)
AT at_change_lock
    lock addl $5, 8(%rdi)
    mov $7, %r8d
AT at_change_xadd
    xadd %r8d, 12(%rdi)
AT at_change_inc
    incw 16(%rdi)
    add $20, %rdi
    dec %rcx
    jnz 1b
    END

/* Four loads of one base; each adds to RAX afterwards. R8 to R11 keep what they had until their
 * load is done. RDX rounds, 40 bytes apart. */
LOOP loop_loads
    xor %eax, %eax
    mov %rdx, %rcx
    xor %r8d, %r8d
    xor %r9d, %r9d
    xor %r10d, %r10d
    xor %r11d, %r11d
AT at_load0
1:  mov (%rsi), %r8
AT at_load1
    mov 8(%rsi), %r9
AT at_load2
    mov 16(%rsi), %r10
AT at_load3
    mov 24(%rsi), %r11
    add %r8, %rax
    add %r9, %rax
    add %r10, %rax
    add %r11, %rax
    add $40, %rsi
    dec %rcx
    jnz 1b
    END

/* Four stores of one base, 40 bytes apart: RCX, and RCX plus 1 to 3. */
LOOP loop_stores
    mov %rdx, %rcx
1:  lea 1(%rcx), %r9
    lea 2(%rcx), %r10
    lea 3(%rcx), %r11
AT at_store0
    mov %rcx, (%rdi)
AT at_store1
    mov %r9, 8(%rdi)
AT at_store2
    mov %r10, 16(%rdi)
AT at_store3
    mov %r11, 24(%rdi)
    add $40, %rdi
    dec %rcx
    jnz 1b
    END

/* Vectors of 16 bytes: each is added to a sum in XMM1 and stored, changed. */
LOOP loop_vectors
    pxor %xmm1, %xmm1
    pcmpeqd %xmm2, %xmm2
    mov %rdx, %rcx
AT at_vector_load
1:  movups (%rsi), %xmm0
    paddq %xmm0, %xmm1
    psubd %xmm2, %xmm0
AT at_vector_store
    movups %xmm0, (%rdi)
    add $16, %rsi
    add $16, %rdi
    dec %rcx
    jnz 1b
    movhlps %xmm1, %xmm0
    paddq %xmm0, %xmm1
    movq %xmm1, %rax
    END

/* Follows a list from RSI to its end; how many links there were. */
LOOP loop_chase
    xor %eax, %eax
AT at_chase
1:  mov (%rsi), %rsi
    inc %rax
    test %rsi, %rsi
    jnz 1b
    END

/* How far from RSI is the byte 0? */
LOOP loop_scan
    mov %rsi, %rax
AT at_scan
1:  cmpb $0, (%rax)
    je 2f
    inc %rax
    jmp 1b
2:  sub %rsi, %rax
    END

/* Pushes RDX numbers on a stack at RDI, then pops and adds them. */
LOOP loop_push
    mov %rsp, %rbp
    mov %rdi, %rsp
    mov %rdx, %rcx
    xor %eax, %eax
AT at_push
1:  push %rcx
    dec %rcx
    jnz 1b
    mov %rdx, %rcx
AT at_pop
2:  pop %r8
    lea (%rax, %r8), %rax
    dec %rcx
    jnz 2b
    mov %rbp, %rsp
    END

/* Calls itself RDX deep on a stack at RDI; each level adds what it kept in its frame. */
LOOP loop_recurse
    mov %rsp, %r15
    mov %rdi, %rsp
    xor %eax, %eax
    mov %rdx, %rcx
AT at_recurse_call
    call 1f
    mov %r15, %rsp
    END
AT at_recurse_push
1:  push %rbp
    mov %rsp, %rbp
AT at_recurse_push2
    push %rcx
    sub $32, %rsp
    dec %rcx
    jz 2f
AT at_recurse_call2
    call 1b
2:
AT at_recurse_add
    add -8(%rbp), %rax
AT at_recurse_leave
    leave
AT at_recurse_ret
    ret
    .section .note.GNU-stack, "", @progbits
