/* Hot code that step_guest.c steps through, and watches. The labels are known there. */
.macro FUNCTION name
    .balign 64
    .globl \name
\name:
.endm
.macro AT label
    .globl \label
\label:
.endm

    .text
    .balign 4096
/* uint32_t step_hot(uint32_t n): the C of it is model() in step_guest.c. */
FUNCTION step_hot
AT step_0
    xor %eax, %eax
AT step_1
    mov %edi, %ecx
AT step_2
    add %ecx, %eax
AT step_3
    test $1, %cl
AT step_4
    jz step_6
AT step_5
    add $100, %eax
AT step_6
    call step_callee
AT step_7
    dec %ecx
AT step_8
    jnz step_2
AT step_9
    ret

    .balign 4096
FUNCTION step_callee
AT step_10
    push %rax
AT step_11
    xorl $5, (%rsp)
AT step_12
    add step_word, %rax
AT step_13
    pop %rax
AT step_14
    ret

/* Calls step_hot(RDI) with TF set; what comes after the call is the last step recorded. */
FUNCTION step_by_step
    pushfq
    orq $0x100, (%rsp)
    popfq
    call step_hot
AT step_returned
    pushfq
    andq $~0x100, (%rsp)
AT step_popf
    popfq
AT step_popped
    nop
    ret

/* REP MOVSB of RDX bytes, stepped. */
FUNCTION step_rep
    mov %rdx, %rcx
    pushfq
    orq $0x100, (%rsp)
    pushfq
    popq %r8
    popfq
AT step_rep_at
    rep movsb
AT step_rep_after
    push %r8
AT step_rep_pushed
    popfq
AT step_rep_end
    nop
    ret

/* MOV SS and POP SS hold the trap of the next instruction off too. */
FUNCTION step_shadow
    mov %ss, %eax
    push %rax
    pushfq
    pop %r8
    pushfq
    orq $0x100, (%rsp)
    popfq
    nop
AT step_shadow_1
    mov %eax, %ss
    lea 1(%rax), %ecx
AT step_shadow_2
    lea 1(%rcx), %ecx
AT step_shadow_3
    mov %eax, %ss
    inc %ecx
AT step_shadow_4
    push %r8
AT step_shadow_5
    popfq
AT step_shadow_6
    pop %rax
    ret

/* Stores RSI down to 1 into an array at RDI, by 8 bytes. */
FUNCTION watch_fill
1:  mov %rsi, (%rdi, %rsi, 8)
AT watch_filled
    dec %rsi
    jnz 1b
    ret

/* Adds the RSI elements of an array at RDI. */
FUNCTION watch_sum
    xor %eax, %eax
1:  add -8(%rdi, %rsi, 8), %rax
AT watch_summed
    dec %rsi
    jnz 1b
    ret

/* RSI rounds in which DR7 is RDX or RDX ^ RCX in turn, and (RDI) is stored to each time. */
FUNCTION watch_toggle
    xor %eax, %eax
1:  xor %rcx, %rdx
    mov %rdx, %dr7
    mov %rsi, (%rdi)
AT watch_toggled
    inc %eax
    dec %rsi
    jnz 1b
    mov $0x400, %edx
    mov %rdx, %dr7
    ret

/* Each of these touches the quadword at RDI in a way of its own: read, written, or beside it. */
FUNCTION watch_kinds
    mov (%rdi), %rax        /* read 1 */
    mov 7(%rdi), %eax       /* read 2 */
    mov -8(%rdi), %rax
    mov 8(%rdi), %rax
    mov %rax, -8(%rdi)
    mov %rax, 8(%rdi)
    movb $1, -1(%rdi)
    movb $1, (%rdi)         /* write 1 */
    movb $1, 7(%rdi)        /* write 2 */
    movb $1, 8(%rdi)
    movl $5, -3(%rdi)       /* write 3 */
    incq (%rdi)             /* write 4 */
    cmpq $0, (%rdi)         /* read 3 */
    lock addl $3, 4(%rdi)   /* write 5 */
    xchg %rax, 6(%rdi)      /* write 6 */
    mov %rsp, %rdx
    lea 8(%rdi), %rsp
    push %rax               /* write 7 */
    pop %rax                /* read 4 */
    mov %rdx, %rsp
    mov $0, %ecx
    rep stosb
    stosb                   /* write 8 */
    dec %rdi
    movq $0, (%rdi)         /* write 9 */
    ret

/* OUT to port 0x80, RDI times. */
FUNCTION watch_port
1:  out %al, $0x80
AT watch_port_after
    out %al, $0x81
    dec %edi
    jnz 1b
    ret

    .data
    .balign 4096
    .globl step_word
step_word:
    .quad 0x123456789
    .balign 4096
    .section .note.GNU-stack, "", @progbits
