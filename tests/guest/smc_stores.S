/*
 * Every kind of store, aimed at code. smc_stores[] is a table of {name, function}; each function is
 * called with RDI = an instruction `movabs $imm64, %rax; ret`, 32 modulo 64, and RSI = 32 bytes,
 * aligned, that are the same instruction with another immediate. It stores some or all of it, or
 * changes some of the immediate in a way of its own.
 */
.macro STORE name
    .pushsection .rodata
8:  .asciz "\name"
    .popsection
    .pushsection .rodata.smc_stores, "a"
    .quad 8b, 9f
    .popsection
    .balign 16
9:
.endm

/* As STORE, with RSP elsewhere: it comes back from RDX. */
.macro STACK_STORE name
    STORE \name
    mov %rsp, %rdx
.endm
.macro STACK_RETURN
    mov %rdx, %rsp
    ret
.endm

    .section .rodata.smc_stores, "a"
    .balign 16
    .globl smc_stores
smc_stores:
    .text

STORE mov8
    mov 2(%rsi), %al
    mov %al, 2(%rdi)
    ret
STORE mov8_high
    mov 5(%rsi), %ah
    mov %ah, 5(%rdi)
    ret
STORE mov16
    mov 3(%rsi), %ax
    mov %ax, 3(%rdi)
    ret
STORE mov32
    mov 2(%rsi), %eax
    mov %eax, 2(%rdi)
    ret
STORE mov64
    mov 2(%rsi), %rax
    mov %rax, 2(%rdi)
    ret
STORE mov64_whole
    mov (%rsi), %rax
    mov %rax, (%rdi)
    ret
STORE mov_index
    mov 2(%rsi), %rax
    mov $-3, %rcx
    mov %rax, 2 + 12(%rdi, %rcx, 4)
    ret
STORE movnti
    mov 2(%rsi), %rax
    movnti %rax, 2(%rdi)
    ret
STORE movbe
    mov 2(%rsi), %rax
    movbe %rax, 2(%rdi)
    ret
STORE add
    mov 2(%rsi), %al
    or $1, %al
    add %al, 2(%rdi)
    ret
STORE adc
    stc
    adcl $2, 3(%rdi)
    ret
STORE xor
    mov 2(%rsi), %rax
    btc $0, %rax
    bts $1, %rax
    xor %rax, 2(%rdi)
    ret
STORE or_and
    mov 2(%rsi), %rax
    andq $0, 2(%rdi)
    or %rax, 2(%rdi)
    ret
STORE lock_add
    lock addw $0x103, 6(%rdi)
    ret
STORE inc
    incq 2(%rdi)
    ret
STORE lock_dec
    lock decb 9(%rdi)
    ret
STORE not
    notl 4(%rdi)
    ret
STORE neg
    orb $1, 2(%rdi)
    negq 2(%rdi)
    ret
STORE rol
    mov 2(%rsi), %rax
    mov %rax, 2(%rdi)
    mov $3, %ecx
    rolq %cl, 2(%rdi)
    ret
STORE shld
    mov 2(%rsi), %rax
    not %rax
    shld $8, %rax, 2(%rdi)
    incb 9(%rdi)
    ret
STORE btc
    mov $19, %ecx
    btc %ecx, 2(%rdi)
    ret
STORE lock_btc_away
    mov $64 * 8 + 21, %ecx
    lock btc %rcx, -62(%rdi)
    ret
STORE setcc
    testb $1, 2(%rdi)
    setz 2(%rdi)
    ret
STORE xchg
    mov 2(%rsi), %rax
    xchg %rax, 2(%rdi)
    ret
STORE xadd
    mov $0x0101, %eax
    xadd %eax, 2(%rdi)
    ret
STORE lock_xadd
    mov $1, %eax
    lock xadd %al, 8(%rdi)
    ret
STORE cmpxchg
    mov 2(%rdi), %rax
    mov 2(%rsi), %rcx
    lock cmpxchg %rcx, 2(%rdi)
    ret
STORE cmpxchg8b
    push %rbx
    mov 2(%rdi), %eax
    mov 6(%rdi), %edx
    mov 2(%rsi), %ebx
    mov 6(%rsi), %ecx
    lock cmpxchg8b 2(%rdi)
    pop %rbx
    ret
STORE cmpxchg16b
    push %rbx
    mov (%rdi), %rax
    mov 8(%rdi), %rdx
    mov (%rsi), %rbx
    mov 8(%rsi), %rcx
    lock cmpxchg16b (%rdi)
    pop %rbx
    ret
STORE stosb
    mov 2(%rsi), %al
    add $2, %rdi
    stosb
    ret
STORE stosq_down
    mov 2(%rsi), %rax
    add $2, %rdi
    std
    stosq
    cld
    ret
STORE rep_stosd
    mov 2(%rsi), %eax
    add $2, %rdi
    mov $2, %ecx
    rep stosl
    ret
STORE movsw
    add $2, %rsi
    add $2, %rdi
    movsw
    ret
STORE rep_movsb
    mov $11, %ecx
    rep movsb
    ret
STORE rep_movsb_down
    mov $11, %ecx
    add $10, %rsi
    add $10, %rdi
    std
    rep movsb
    cld
    ret
STORE rep_movsq
    mov $4, %ecx
    rep movsq
    ret
STACK_STORE push
    mov 2(%rsi), %rax
    lea 10(%rdi), %rsp
    push %rax
    STACK_RETURN
STACK_STORE push_memory
    lea 10(%rdi), %rsp
    pushq 2(%rsi)
    STACK_RETURN
STACK_STORE push16
    mov 2(%rsi), %ax
    lea 4(%rdi), %rsp
    push %ax
    STACK_RETURN
STACK_STORE pop_memory
    lea 2(%rsi), %rsp
    popq 2(%rdi)
    STACK_RETURN
STACK_STORE call
    lea 10(%rdi), %rsp
    testb $1, 2(%rdi)
    jz 1f
    call 2f             /* two return addresses in turn, one of them odd */
2:  STACK_RETURN
    .balign 2
1:  call 2f
    .skip 8
2:  STACK_RETURN
STACK_STORE call_indirect
    lea 10(%rdi), %rsp
    lea 2f(%rip), %rax
    testb $1, 2(%rdi)
    jz 1f
    call *%rax
2:  STACK_RETURN
    .balign 2
    nop
1:  call *%rax
STORE enter
    push %rbp
    mov %rsp, %rdx
    mov 2(%rsi), %rbp
    lea 10(%rdi), %rsp
    enter $0, $0
    mov %rdx, %rsp
    pop %rbp
    ret
STACK_STORE pushf
    testb $1, 2(%rdi)
    lea 10(%rdi), %rsp
    jnz 1f
    stc
1:  pushfq
    STACK_RETURN

/* From here on they need SSE, x87 and AVX: see smc_vector_stores. */
    .pushsection .rodata.smc_stores, "a"
    .globl smc_vector_stores
smc_vector_stores:
    .popsection
STORE movaps
    movaps (%rsi), %xmm0
    movaps %xmm0, (%rdi)
    ret
STORE movups
    movups 1(%rsi), %xmm0
    movups %xmm0, 1(%rdi)
    ret
STORE movdqa
    movdqa (%rsi), %xmm8
    movdqa %xmm8, (%rdi)
    ret
STORE movntps
    movaps (%rsi), %xmm0
    movntps %xmm0, (%rdi)
    ret
STORE movq_movhps
    movups 2(%rsi), %xmm1
    movlhps %xmm1, %xmm2
    movq %xmm1, 2(%rdi)
    movhps %xmm2, 2(%rdi)
    ret
STORE movss_movsd
    movsd 2(%rsi), %xmm1
    movss %xmm1, 2(%rdi)
    movsd %xmm1, 2(%rdi)
    ret
STORE pextrb
    movdqa (%rsi), %xmm1
    pextrb $4, %xmm1, 4(%rdi)
    ret
STORE pextrq
    movups 2(%rsi), %xmm1
    pextrq $0, %xmm1, 2(%rdi)
    ret
STORE maskmovdqu
    movdqa (%rsi), %xmm0
    pcmpeqd %xmm1, %xmm1
    maskmovdqu %xmm1, %xmm0
    ret
STORE mmx_movq
    movq 2(%rsi), %mm0
    movq %mm0, 2(%rdi)
    emms
    ret
STORE fistp
    fildll 2(%rsi)
    fistpll 2(%rdi)
    ret
STORE fstp
    fldl 2(%rsi)
    fstpl 2(%rdi)
    ret
STORE fstp10
    fldt 2(%rsi)
    fstpt 2(%rdi)
    ret
STORE fxsave
    movdqa (%rsi), %xmm0
    fxsave -160(%rdi)
    ret
    .pushsection .rodata.smc_stores, "a"
    .globl smc_avx_stores
smc_avx_stores:
    .popsection
STORE vmovups
    vmovups 1(%rsi), %ymm0
    vmovups %ymm0, 1(%rdi)
    vzeroupper
    ret
STORE vmovdqa
    vmovdqa (%rsi), %ymm15
    vmovdqa %ymm15, (%rdi)
    vzeroupper
    ret
STORE vmaskmov
    vmovdqa (%rsi), %ymm0
    vpcmpeqd %ymm1, %ymm1, %ymm1
    vpmaskmovd %ymm0, %ymm1, (%rdi)
    vzeroupper
    ret
STORE vextracti128
    vmovdqa (%rsi), %ymm1
    vextracti128 $0, %ymm1, (%rdi)
    vzeroupper
    ret
STORE xsave
    movdqa (%rsi), %xmm0
    mov $7, %eax
    xor %edx, %edx
    xsave -160(%rdi)
    ret

    .section .rodata.smc_stores, "a"
    .globl smc_stores_end
smc_stores_end:
    .section .note.GNU-stack, "", @progbits
