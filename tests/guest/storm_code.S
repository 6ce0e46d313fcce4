/*
 * Work that must come to the same result however often it is interrupted. storm_state holds fifteen
 * general registers, going in and coming out, then the flags; storm_vectors an XSAVE area.
 */
.macro FUNCTION name
    .balign 64
    .globl \name
\name:
.endm

.macro LOAD
    .set number, 0
    .irp reg, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    mov storm_state + number * 8, %\reg
    .set number, number + 1
    .endr
.endm

.macro STORE
    .set number, 0
    .irp reg, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    mov %\reg, storm_state + number * 8
    .set number, number + 1
    .endr
.endm

.macro VECTORS instruction
    mov $7, %eax
    xor %edx, %edx
    \instruction storm_vectors
.endm

    .text
/* storm_rounds rounds; ring 0 calls it, ring 3 comes to storm_user. */
FUNCTION storm_mix
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    VECTORS xrstor
    LOAD
    clc
1:  adc %rbx, %rax      /* the carry goes round and round */
    adc %rcx, %rbx
    adc %rdx, %rcx
    adc %rbp, %rdx
    adc %rsi, %rbp
    adc %rdi, %rsi
    adc %r8, %rdi
    adc %r9, %r8
    paddq %xmm1, %xmm0
    adc %r10, %r9
    adc %r11, %r10
    paddd %xmm2, %xmm1
    adc %r12, %r11
    adc %r13, %r12
    pxor %xmm3, %xmm2
    adc %r14, %r13
    adc %r15, %r14
    adc %rax, %r15
    rcl $1, %rax
    vpaddq %ymm4, %ymm3, %ymm3
    rcr $1, %r15
    vpxor %ymm5, %ymm4, %ymm4
    vpaddd %ymm6, %ymm5, %ymm5
    vpshufd $0x39, %ymm7, %ymm6
    vpaddq %ymm8, %ymm7, %ymm7
    vpaddb %ymm9, %ymm8, %ymm8
    vpaddw %ymm10, %ymm9, %ymm9
    vpxor %ymm11, %ymm10, %ymm10
    vpaddq %ymm12, %ymm11, %ymm11
    vpaddq %ymm13, %ymm12, %ymm12
    vpaddq %ymm14, %ymm13, %ymm13
    vpaddq %ymm15, %ymm14, %ymm14
    vpaddq %ymm0, %ymm15, %ymm15
    movq %xmm15, storm_word
    bswap %rbx
    lea 3(%rcx, %rdx, 2), %rcx
    fxch %st(5)
    fadds storm_one
    fxch %st(3)
    fadd %st(5), %st
    fxch %st(7)
    fmuls storm_half
    fincstp
    jc 2f
    lea (%r8, %r9), %r8
    not %r10
    jmp 3f
2:  lea 1(%r11, %r11), %r11
    xchg %r12, %r13
3:  decq storm_rounds   /* keeps the carry */
    jnz 1b
    STORE
    pushfq
    popq storm_state + 15 * 8
    VECTORS xsave
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* String instructions that take long: RDI a buffer of 3 * 8192 bytes; RSI rounds. A sum in RAX. */
FUNCTION storm_strings
    mov %rdi, %r8
    mov %rsi, %r9
    xor %r10d, %r10d
1:  lea (%r9, %r9, 4), %rax
    mov %r8, %rdi
    mov $1024, %ecx
    rep stosq
    mov %r9d, 4096(%r8)
    mov %r8, %rsi
    lea 8192 + 3(%r8), %rdi
    mov $8000, %ecx
    rep movsb
    mov %r8, %rsi
    lea 8192 + 3(%r8), %rdi
    mov $8000, %ecx
    repe cmpsb
    jne 2f
    add %rsi, %r10
    sub %r8, %r10
    lea 7 + 8192(%r8), %rdi
    mov %r9d, %eax
    add $0x1000000, %eax
    mov $1500, %ecx
    repne scasl
    add %rcx, %r10
    mov %r8, %rsi
    mov $1000, %ecx
    rep lodsq
    add %rax, %r10
    dec %r9
    jnz 1b
    mov %r10, %rax
    ret
2:  xor %eax, %eax
    ret

/* Ring 3: what R15 says, then back through a gate. */
FUNCTION storm_user
    call *%r15
    int $0x81

/* Leaves nothing in any register that a handler may use. */
FUNCTION storm_clobber
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov $7, %eax
    xor %edx, %edx
    xsave storm_saved
    fninit
    fldpi
    fldpi
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vpcmpeqd %ymm\number, %ymm\number, %ymm\number
    .endr
    .irp reg, rcx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    mov $0x5a5a5a5a5a5a5a5a, %\reg
    .endr
    stc
    std
    cld
    mov $7, %eax
    xor %edx, %edx
    xrstor storm_saved
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* Loops that end when storm_ticks is no longer RDI: each must let the timer in. */
FUNCTION storm_wait_jump
1:  cmp %rdi, storm_ticks
    je 1b
    ret
FUNCTION storm_wait_register
    mov storm_ticks, %rax
1:  cmp %rdi, %rax
    jne 2f
    mov storm_ticks, %rax
    jmp 1b
2:  ret
FUNCTION storm_wait_call
1:  call 3f
    cmp %rdi, %rax
    je 1b
    ret
    .balign 4096
3:  mov storm_ticks, %rax
    ret
FUNCTION storm_wait_indirect
    lea 1f(%rip), %rdx
1:  cmp %rdi, storm_ticks
    jne 2f
    jmp *%rdx
2:  ret
FUNCTION storm_wait_return
    lea 1f(%rip), %rdx
1:  cmp %rdi, storm_ticks
    jne 2f
    push %rdx
    ret
2:  ret
FUNCTION storm_wait_loop
1:  mov $1000, %ecx
2:  loop 2b
    cmp %rdi, storm_ticks
    je 1b
    ret
FUNCTION storm_wait_rep
    push %rdi
    mov %rdi, %rdx
1:  mov $storm_area, %edi
    mov $0x8000, %ecx
    rep stosb
    cmp %rdx, storm_ticks
    je 1b
    pop %rdi
    ret
FUNCTION storm_wait_pages       /* two pages, each of them goes on to the other */
1:  cmp %rdi, storm_ticks
    jne 3f
    jmp 2f
    .balign 4096
2:  jmp 1b
3:  ret

    .data
    .balign 8
storm_one:
    .float 1.0
storm_half:
    .float 0.5
    .bss
    .balign 64
    .globl storm_vectors, storm_state, storm_rounds, storm_ticks, storm_area
storm_vectors:
    .skip 1024
storm_saved:
    .skip 1024
storm_state:
    .skip 16 * 8
storm_rounds:
    .skip 8
storm_ticks:
    .skip 8
storm_word:
    .skip 8
    .balign 4096
storm_area:
    .skip 0x8000
    .section .note.GNU-stack, "", @progbits
