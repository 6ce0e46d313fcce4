/*
 * Code that another processor changes, and a hot loop round each piece of it: xmc_guest.c.
 *
 * void xmc_run_...(void): a few dozen rounds. In each, `reached` is read, the piece runs and leaves
 * its value in EAX, `begun` is read, and the value must be that of a change between the two: the
 * number itself, or what every other number gives. Wrong ones are counted in xmc_wrong. The loop
 * ends early when a handshake is wanted and interrupts are off.
 */
    .set ROUNDS, 50

.macro FUNCTION name
    .globl \name
\name:
.endm

.macro BEGIN name
    .balign 64
    FUNCTION \name
    push %rbx
    mov $ROUNDS, %ebx
1:  mov xmc_reached, %esi
.endm

/* EAX must lie in [ESI, xmc_begun]. */
.macro END
    mov xmc_begun, %edi
    mov %edi, %ecx
    sub %esi, %eax      /* how far above the least */
    sub %esi, %ecx
    cmp %ecx, %eax
    jbe 2f
    incq xmc_wrong
2:  incq xmc_rounds
    mov xmc_request, %eax
    cmp xmc_answered, %eax
    jne 3f
    dec %ebx
    jnz 1b
3:  pop %rbx
    ret
.endm

/* EAX must be odd as a number in [ESI, xmc_begun] is. */
.macro END_PARITY
    mov xmc_begun, %edi
    cmp %edi, %esi
    jne 2f              /* a change is going on: either is right */
    xor %esi, %eax
    test $1, %al
    jz 2f
    incq xmc_wrong
2:  incq xmc_rounds
    mov xmc_request, %eax
    cmp xmc_answered, %eax
    jne 3f
    dec %ebx
    jnz 1b
3:  pop %rbx
    ret
.endm

    .text
    .balign 4096
/* An instruction of the loop itself; its immediate is aligned. */
BEGIN xmc_run_inline
    jmp 4f
    .balign 64
    .skip 3
4:
FUNCTION xmc_inline
    mov $0, %eax
    END

/* A function of the same page. */
BEGIN xmc_run_value
    call xmc_value
    END
    .balign 64
    .skip 3
FUNCTION xmc_value
    mov $0, %eax
    ret

/* One that changes under an INT3, and crosses a line. */
BEGIN xmc_run_poked
    call xmc_poked
    END
    .balign 64
    .skip 62
FUNCTION xmc_poked
    mov $0, %eax
FUNCTION xmc_poked_after
    ret

/* A NOP of the loop, or a JMP over the next instruction. */
BEGIN xmc_run_key
    mov $1, %eax
    jmp xmc_key
    .balign 64
FUNCTION xmc_key
    .byte 0x0f, 0x1f, 0x44, 0, 0
    xor %eax, %eax
6:  END_PARITY
    .globl xmc_key_jump
    .balign 8
xmc_key_jump:
    .byte 0xe9
    .long 6b - xmc_key - 5
    .byte 0, 0, 0

/* CALL xmc_even or xmc_odd, in another page. */
BEGIN xmc_run_target
FUNCTION xmc_target
    call xmc_even
    END_PARITY

/* A function that is alone in its page, of which there is a copy that says 1. */
BEGIN xmc_run_page
    call xmc_page
    END_PARITY

    .balign 4096
FUNCTION xmc_even
    mov $0, %eax
    ret
FUNCTION xmc_odd
    mov $1, %eax
    ret
    .balign 4096
FUNCTION xmc_page
    mov $0, %eax
    ret
    .balign 4096

    .bss
    .balign 64
    .globl xmc_reached, xmc_begun, xmc_wrong, xmc_rounds, xmc_request, xmc_answered
xmc_reached:
    .skip 4
xmc_begun:
    .skip 4
xmc_request:
    .skip 4
xmc_answered:
    .skip 4
xmc_wrong:
    .skip 8
xmc_rounds:
    .skip 8
    .section .note.GNU-stack, "", @progbits
