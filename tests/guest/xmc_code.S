/* Code that another processor changes, and one hot call site for each piece: xmc_guest.c. */
.macro FUNCTION name
    .globl \name
\name:
.endm

.macro CALLER name, target
    .balign 64
    FUNCTION \name
    call \target
    ret
.endm

    .text
    .balign 4096
CALLER xmc_call_value, xmc_value
CALLER xmc_call_poked, xmc_poked
CALLER xmc_call_key, xmc_key
CALLER xmc_call_target, xmc_target
CALLER xmc_call_page, xmc_page

    .balign 4096
    .skip 3
FUNCTION xmc_value      /* its immediate is aligned */
    mov $0, %eax
    ret

    .balign 64
    .skip 62            /* crosses a line */
FUNCTION xmc_poked
    mov $0, %eax
FUNCTION xmc_poked_after
    ret

    .balign 64
FUNCTION xmc_key        /* a NOP, or a JMP to 1 */
    .byte 0x0f, 0x1f, 0x44, 0, 0
    xor %eax, %eax
    ret
1:  mov $1, %eax
    ret
    .globl xmc_key_jump
    .balign 8
xmc_key_jump:
    .byte 0xe9
    .long 1b - xmc_key - 5
    .byte 0, 0, 0

    .balign 64
FUNCTION xmc_target     /* CALL xmc_one or xmc_two */
    call xmc_one
    ret

    .balign 4096
FUNCTION xmc_one
    mov $1, %eax
    ret
FUNCTION xmc_two
    mov $2, %eax
    ret

    .balign 4096
FUNCTION xmc_page       /* alone in its page, of which there is a copy that says 2 */
    mov $1, %eax
    ret
    .balign 4096
    .section .note.GNU-stack, "", @progbits
