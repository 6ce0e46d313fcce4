/*
 * Hot loops whose code moves: every (R9 + 1)th round the page of the target becomes another
 * physical page, in which the same instruction has another immediate. R8 says which one must be
 * seen.
 *
 *   uint64_t loop(rounds, entry, now, difference, value, mask)   number of wrong rounds
 *
 * For the loops by page table entry (remap_pte_...), `now` and `now ^ difference` are two entries,
 * written to `entry` and followed by INVLPG; for those by CR3 (remap_cr3_...) two values of CR3.
 * The value is 1 or 2, and changes with each switch. remap_loops[] is a table of them.
 */

.macro FUNCTION name
    .balign 64
    .globl \name
\name:
.endm

.macro COUNT_WRONG
    cmp %r8d, %r10d
    setne %r11b
    movzbl %r11b, %r11d
    add %r11, %rax
.endm

.macro SWITCH how, target
    test %r9d, %edi
    jnz 7f
    xor %rcx, %rdx
    xor $3, %r8d
    .ifc \how, cr3
    mov %rdx, %cr3
    .else
    mov %rdx, (%rsi)
    invlpg \target(%rip)
    .endif
7:
.endm

/* A row {name, loop, page that is exchanged, its immediate, RIP of a fault there}. */
.macro ROW how, name, text, value, rip
    .pushsection .rodata
8:  .asciz "\text"
    .popsection
    .pushsection .data.remap_\how, "aw"
    .balign 8
    .quad 8b, remap_\how\()_\name, \how\()_\name\()_target, \value, \rip
    .popsection
.endm

.macro BEGIN how, name, text
    .balign 4096
    FUNCTION remap_\how\()_\name
    ROW \how, \name, "\text", \how\()_\name\()_value + 2, \how\()_\name\()_target
    xor %eax, %eax
.endm

.macro VALUE how, name
\how\()_\name\()_value:
    mov $1, %r10d
.endm

.macro END
    COUNT_WRONG
    dec %edi
    jnz 1b
    ret
    .balign 4096
.endm

.macro LOOPS how
    BEGIN \how, call, "a direct call"
1:  SWITCH \how, \how\()_call_target
    call \how\()_call_target
    END
\how\()_call_target:
    VALUE \how, call
    ret

    BEGIN \how, jump, "a direct jump"
1:  SWITCH \how, \how\()_jump_target
    jmp \how\()_jump_target
2:  END
\how\()_jump_target:
    VALUE \how, jump
    jmp 2b

    BEGIN \how, branch, "a conditional branch"
1:  SWITCH \how, \how\()_branch_target
    mov $3, %r10d
    test %edi, %edi
    jnz \how\()_branch_target
2:  END
\how\()_branch_target:
    VALUE \how, branch
    jmp 2b

    BEGIN \how, indirect, "an indirect call"
    lea \how\()_indirect_target(%rip), %r11
    push %rbx
    mov %r11, %rbx
1:  SWITCH \how, \how\()_indirect_target
    call *%rbx
    COUNT_WRONG
    dec %edi
    jnz 1b
    pop %rbx
    ret
    .balign 4096
\how\()_indirect_target:
    VALUE \how, indirect
    ret

    BEGIN \how, ret, "a return to where no call was"
1:  SWITCH \how, \how\()_ret_target
    lea 2f(%rip), %r11
    push %r11
    lea \how\()_ret_target(%rip), %r11
    push %r11
    ret
2:  END
\how\()_ret_target:
    VALUE \how, ret
    ret

    BEGIN \how, fall, "falling over the end of a page"
1:  SWITCH \how, \how\()_fall_target
    jmp 3f
2:  COUNT_WRONG
    dec %edi
    jnz 1b
    ret
    .balign 2048
    .skip 2048 - 7
3:  mov $3, %r10d
    nop
\how\()_fall_target:
    VALUE \how, fall
    jmp 2b

    .balign 4096
    FUNCTION remap_\how\()_straddle
    ROW \how, straddle, "an instruction in two pages", \how\()_straddle_target, 3f
    xor %eax, %eax
1:  SWITCH \how, \how\()_straddle_target
    jmp 3f
2:  COUNT_WRONG
    dec %edi
    jnz 1b
    ret
    .balign 2048
    .skip 2048 - 3
    nop
3:  .byte 0x41, 0xba    /* MOV imm32, R10D */
\how\()_straddle_target:
    .long 1
    jmp 2b

    BEGIN \how, caller, "a return into a page that moved"
1:  call \how\()_caller_target
    END
\how\()_caller_callee:
    SWITCH \how, \how\()_caller_target
    ret
    .balign 4096
\how\()_caller_target:
    call \how\()_caller_callee
    VALUE \how, caller
    ret

    BEGIN \how, self, "a page that moves itself"
1:  call \how\()_self_target
    END
\how\()_self_target:
    mov $3, %r10d
    SWITCH \how, \how\()_self_target
    VALUE \how, self
    ret

    BEGIN \how, loop, "a loop whose own page moves"
    call \how\()_loop_target
    ret
    .balign 4096
\how\()_loop_target:
1:  mov $3, %r10d
    SWITCH \how, \how\()_loop_target
    VALUE \how, loop
    END
.endm

    .section .data.remap_pte, "aw"
    .balign 8
    .globl remap_pte
remap_pte:
    .section .data.remap_cr3, "aw"
    .balign 8
    .globl remap_cr3
remap_cr3:

    .text
    LOOPS pte
    .balign 4096
    LOOPS cr3
    .balign 4096

    .section .data.remap_pte, "aw"
    .quad 0, 0, 0, 0, 0
    .section .data.remap_cr3, "aw"
    .quad 0, 0, 0, 0, 0
    .section .note.GNU-stack, "", @progbits
