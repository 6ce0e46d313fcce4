/*
 * Code that changes code, for smc_guest.c. Each smc_ function runs `rounds` (RDI) times through a
 * loop that stores to instructions and executes them, compares after every round, and returns how
 * many rounds were wrong. Stores go through the address at which the code runs unless said
 * otherwise, so the architecture wants no serializing instruction.
 */

/* Adds one to RAX where the two differ. Clobbers R11 and flags. */
.macro COUNT_WRONG got, wanted
    cmp \wanted, \got
    setne %r11b
    movzbl %r11b, %r11d
    add %r11, %rax
.endm

.macro FUNCTION name
    .balign 64
    .globl \name
\name:
.endm

    .text
    .balign 4096

/* The immediate of the very next instruction. */
FUNCTION smc_next
    xor %eax, %eax
1:  mov %edi, 2f + 1(%rip)
2:  mov $0, %ecx
    COUNT_WRONG %ecx, %edi
    dec %edi
    jnz 1b
    ret

/* The opcode of an instruction a little further on: ADD becomes SUB and back. */
FUNCTION smc_later
    xor %eax, %eax
    movb $0x01, 2f(%rip)
    mov $-7, %r10d
1:  xorb $0x28, 2f(%rip)
    neg %r10d
    mov %edi, %ecx
    mov $-7, %edx
    lea (%rdi, %r10), %r9d
    lea (%rdi, %rdi, 2), %r8d
    mov %r8d, %esi
2:  add %edx, %ecx
    COUNT_WRONG %ecx, %r9d
    dec %edi
    jnz 1b
    ret

/* An instruction that already ran in this round; the next round must see it. */
FUNCTION smc_behind
    xor %eax, %eax
    mov %edi, %r10d
    mov %edi, 1f + 1(%rip)
1:  mov $0, %ecx
    COUNT_WRONG %ecx, %r10d
    dec %r10d
    mov %r10d, 1b + 1(%rip)
    jnz 1b
    ret

/* One byte at a time, the four bytes of an immediate, and only the lowest that changed. */
FUNCTION smc_bytes
    xor %eax, %eax
    movl $0, 2f + 1(%rip)
    xor %r10d, %r10d
1:  mov %edi, %ecx
    and $3, %ecx
    lea 2f + 1(%rip), %rdx
    addb $3, (%rdx, %rcx)
    mov $3, %r9d
    shl $3, %ecx
    shl %cl, %r9d
    mov $0xff, %r8d
    shl %cl, %r8d       /* r10 += 3 in that byte, without a carry into the next */
    add %r10d, %r9d
    and %r8d, %r9d
    not %r8d
    and %r8d, %r10d
    or %r9d, %r10d
2:  mov $0, %ecx
    COUNT_WRONG %ecx, %r10d
    dec %edi
    jnz 1b
    ret

/* Code of another block of the page, before and after this one, reached by jumps and calls. */
FUNCTION smc_other_block
    xor %eax, %eax
    jmp 1f
8:  mov $0, %ecx
    jmp 3f
1:  mov %edi, 8b + 1(%rip)
    lea (%rdi, %rdi), %edx
    mov %edx, 9f + 1(%rip)
    jmp 8b
3:  COUNT_WRONG %ecx, %edi
    call 9f
    COUNT_WRONG %ecx, %edx
    dec %edi
    jnz 1b
    ret
9:  mov $0, %ecx
    ret

/* The displacement of a JMP: four targets in turn. */
FUNCTION smc_jump
    xor %eax, %eax
1:  mov %edi, %edx
    and $3, %edx
    lea (, %rdx, 8), %ecx
    mov %cl, 2f + 1(%rip)
2:  .byte 0xeb, 0       /* JMP */
    .irp number, 0, 1, 2, 3
    mov $\number, %ecx
    jmp 3f
    nop
    .endr
3:  COUNT_WRONG %ecx, %edx
    dec %edi
    jnz 1b
    ret

/* JZ becomes JNZ and back, on the same flags. */
FUNCTION smc_condition
    xor %eax, %eax
    movb $0x74, 2f(%rip)
    xor %edx, %edx
1:  xorb $1, 2f(%rip)
    xor $1, %edx
    mov %edx, %ecx
    cmp %edi, %edi
2:  jz 3f
    xor $1, %ecx        /* not taken: JNZ */
3:  COUNT_WRONG %ecx, $0
    dec %edi
    jnz 1b
    ret

/* The target of a CALL, as static calls and ftrace do: two functions of another page. */
FUNCTION smc_call
    xor %eax, %eax
    lea 3f(%rip), %rdx
    lea smc_far_one(%rip), %r8
    lea smc_far_two(%rip), %r9
    mov $1, %r10d
1:  xchg %r8, %r9
    xor $3, %r10d
    mov %r8, %rcx
    sub %rdx, %rcx
    mov %ecx, 2f + 1(%rip)
2:  call smc_far_one
3:  COUNT_WRONG %ecx, %r10d
    dec %edi
    jnz 1b
    ret

/* Five bytes of NOP become a JMP and back, as static keys do. */
FUNCTION smc_static_key
    push %rbx
    xor %eax, %eax
    mov 2f(%rip), %rdx  /* the NOP and three bytes that follow */
    mov 5f(%rip), %r8   /* the JMP, then junk */
    mov $0xffffffffff, %r9
    and %r9, %r8
    not %r9
    and %rdx, %r9
    or %r9, %r8         /* the JMP and what follows the NOP */
    xor %r10d, %r10d
1:  xchg %rdx, %r8
    xor $1, %r10d
    mov %rdx, 2f(%rip)
    xor %ecx, %ecx
2:  .byte 0x0f, 0x1f, 0x44, 0, 0
    jmp 3f
    nop
4:  mov $1, %ecx
3:  COUNT_WRONG %ecx, %r10d
    dec %edi
    jnz 1b
    and $1, %r10d       /* leave the NOP */
    jz 6f
    mov %r8, 2b(%rip)
6:  pop %rbx
    ret
5:  .byte 0xe9          /* the JMP as it must look at 2 */
    .long 4b - 2b - 5
    .byte 0, 0, 0

/* Functions of two lengths copied over one another with REP MOVSB, and called. */
FUNCTION smc_copy
    xor %eax, %eax
    mov %edi, %edx
1:  lea 5f(%rip), %rsi
    lea 6f(%rip), %r8
    mov $1, %r9d
    test $1, %dl
    cmovnz %r8, %rsi
    cmovnz %edx, %r9d
    lea 7f(%rip), %rdi
    mov $16, %ecx
    rep movsb
    call 7f
    COUNT_WRONG %ecx, %r9d
    dec %edx
    jnz 1b
    ret
5:  xor %ecx, %ecx
    inc %ecx
    ret
    .skip 16
6:  nop
    lea (%rdx), %rcx
    jmp 8f
8:  nop
    ret
    .skip 16
7:  .skip 32, 0xcc

/* REP STOSB and REP MOVSB over the instructions that come right after them. */
FUNCTION smc_copy_ahead
    xor %eax, %eax
    mov %edi, %edx
1:  test $1, %dl
    jz 3f
    lea 2f + 1(%rip), %rdi
    mov $4, %ecx
    push %rax
    mov %edx, %eax
    rep stosb
2:  mov $0, %ecx
    pop %rax
    movzbl %dl, %r9d
    imul $0x01010101, %r9d, %r9d
    jmp 5f
3:  lea smc_word(%rip), %rsi
    mov %edx, (%rsi)
    lea 4f + 1(%rip), %rdi
    mov $4, %ecx
    rep movsb
4:  mov $0, %ecx
    mov %edx, %r9d
5:  COUNT_WRONG %ecx, %r9d
    dec %edx
    jnz 1b
    ret

/* The changed code is in the next page, reached by a call, a jump and a branch. */
FUNCTION smc_other_page
    xor %eax, %eax
1:  mov %edi, smc_far_called + 1(%rip)
    call smc_far_called
    COUNT_WRONG %ecx, %edi
    lea 1(%rdi), %edx
    mov %edx, smc_far_jumped + 1(%rip)
    jmp smc_far_jumped
    .globl smc_far_back
smc_far_back:
    COUNT_WRONG %ecx, %edx
    lea 2(%rdi), %edx
    mov %edx, smc_far_branched + 1(%rip)
    test %edi, %edi
    jnz smc_far_branched
    .globl smc_far_back2
smc_far_back2:
    COUNT_WRONG %ecx, %edx
    dec %edi
    jnz 1b
    ret

    .balign 4096
FUNCTION smc_far_one
    mov $1, %ecx
    ret
FUNCTION smc_far_two
    mov $2, %ecx
    ret
FUNCTION smc_far_called
    mov $0, %ecx
    ret
FUNCTION smc_far_jumped
    mov $0, %ecx
    jmp smc_far_back
FUNCTION smc_far_branched
    mov $0, %ecx
    jmp smc_far_back2

/* Code of another page that the callee itself changes before it returns: the return goes to code
 * that is no longer what was called from. */
FUNCTION smc_return
    xor %eax, %eax
1:  call smc_changes_caller
2:  mov $0, %ecx
    COUNT_WRONG %ecx, %edi
    dec %edi
    jnz 1b
    ret
    .balign 4096
smc_changes_caller:
    mov %edi, 2b + 1(%rip)
    ret

/* An instruction that lies in two pages: stores to its first half, its second, and both. */
    .balign 4096
    .skip 4096 - 3
smc_straddling:
    mov $0, %ecx        /* opcode and two bytes here, two bytes there */
    ret
FUNCTION smc_straddle
    xor %eax, %eax
    mov smc_straddling + 1(%rip), %r10d
1:  mov %edi, %edx
    and $3, %edx
    jz 4f
    cmp $2, %edx
    jb 2f
    je 3f
    mov %edi, smc_straddling + 1(%rip)
    mov %edi, %r10d
    jmp 4f
2:  mov %di, smc_straddling + 1(%rip)
    mov %di, %r10w
    jmp 4f
3:  mov %di, smc_straddling + 3(%rip)
    rol $16, %r10d
    mov %di, %r10w
    rol $16, %r10d
4:  call smc_straddling
    COUNT_WRONG %ecx, %r10d
    dec %edi
    jnz 1b
    ret

/* Every instruction stores to the one after it. */
FUNCTION smc_every
    xor %eax, %eax
1:  xor %r10d, %r10d
    .rept 12
    mov %edi, 2f + 3(%rip)
2:  .byte 0x49, 0x81, 0xc2 /* ADD imm32, R10 */
    .long 0
    .endr
    imul $12, %edi, %r9d
    COUNT_WRONG %r10d, %r9d
    dec %edi
    jnz 1b
    ret

/* One hot call site each, in a page of its own, for code that changes. */
    .balign 4096
FUNCTION smc_call_patched
    call smc_patched
    ret
FUNCTION smc_call_lone
    call smc_lone
    ret
FUNCTION smc_call_poked
    call smc_poked
    ret

/* What the stores of smc_stores.S aim at; what lies around it may be overwritten as well. */
    .balign 4096
    .skip 1024 + 32
    .globl smc_patched
smc_patched:
    movabs $0, %rax
    ret

/* Alone in its page, so the page can become data. */
    .balign 4096
FUNCTION smc_lone
    mov $1, %eax
    ret
    .balign 4096

    .globl smc_poked, smc_poked_after
    .skip 61
smc_poked:              /* crosses a line of 64 bytes */
    mov $1, %eax
smc_poked_after:
    add $0x1000, %eax
    ret
    .balign 4096

    .data
    .globl smc_word
smc_word:
    .quad 0
    .section .note.GNU-stack, "", @progbits
