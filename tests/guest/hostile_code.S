/* Loops that are hard on whoever translates them, for hostile_guest.c. */
.macro FUNCTION name
    .balign 64
    .globl \name
\name:
.endm

    .text
    .balign 4096
/* uint64_t hostile_every(rounds): every other instruction stores to the one after it. */
FUNCTION hostile_every
    xor %eax, %eax
    xor %r10d, %r10d
1:  .rept 12
    mov %edi, 2f + 3(%rip)
2:  .byte 0x49, 0x81, 0xc2 /* ADD imm32, R10 */
    .long 0
    .endr
    lea (%rdi, %rdi, 2), %r9d
    shl $2, %r9d
    sub %r9d, %r10d
    add %r10, %rax          /* nothing, if all twelve saw RDI */
    xor %r10d, %r10d
    dec %rdi
    jnz 1b
    ret

/* uint64_t hostile_beside(rounds): data in the line of the loop's own code. */
FUNCTION hostile_beside
    xor %eax, %eax
    movq $0, 2f(%rip)
1:  add %rdi, 2f(%rip)
    add $1, %rax
    dec %rdi
    jnz 1b
    mov 2f(%rip), %rax
    ret
    .balign 8
2:  .quad 0

    .balign 4096
/* uint64_t hostile_victim(rounds): the other processor writes to it, the bytes that are there. */
FUNCTION hostile_victim
    xor %eax, %eax
1:  add $3, %rax
    call 2f
    dec %rdi
    jnz 1b
    ret
2:  add $4, %rax
    ret
    .globl hostile_victim_end
hostile_victim_end:
    .balign 4096

/* uint64_t hostile_call(function, value): EAX = value, through one call site. */
FUNCTION hostile_call
    mov %esi, %eax
    call *%rdi
    ret

/* uint64_t hostile_sled(entry, from): LODSB after LODSB up to a RET; returns RSI. */
FUNCTION hostile_sled
    call *%rdi
    mov %rsi, %rax
    ret

/* Wild accesses: each faults at its first instruction, and RAX says that it did not. */
FUNCTION hostile_load
    mov (%rdi), %rdx
    ret
FUNCTION hostile_store
    mov %rdi, (%rdi)
    ret
FUNCTION hostile_add
    lock addq $1, (%rdi)
    ret
FUNCTION hostile_vector
    movups (%rdi), %xmm0
    ret
FUNCTION hostile_copy
    mov %rdi, %rsi
    mov $64, %ecx
    rep movsb
    ret
FUNCTION hostile_push
    mov %rsp, %rdx
    mov %rdi, %rsp
    push %rdx
    ret
FUNCTION hostile_jump
    jmp *%rdi
FUNCTION hostile_undefined
    ud2
    ret
    .balign 4096
    .section .note.GNU-stack, "", @progbits
