/*
 * Repeated string instructions, for faultstrings_guest.c: RDX elements, on RDI and RSI. They leave
 * what is not done in RAX. Flags before are those of equality.
 */
.macro STRING name, text, flag
    .balign 64
    .globl string_\name, string_\name\()_at
string_\name:
    \flag
    mov %rdx, %rcx
    mov $0x5a5a5a5a5a5a5a5a, %rax
    cmp %rcx, %rcx
string_\name\()_at:
    \text
    cld
    mov %rcx, %rax
    ret
.endm

    .text
    STRING movsb, "rep movsb", cld
    STRING movsw, "rep movsw", cld
    STRING movsd, "rep movsl", cld
    STRING movsq, "rep movsq", cld
    STRING movsb_down, "rep movsb", std
    STRING movsq_down, "rep movsq", std
    STRING stosb, "rep stosb", cld
    STRING stosw, "rep stosw", cld
    STRING stosd, "rep stosl", cld
    STRING stosq, "rep stosq", cld
    STRING stosd_down, "rep stosl", std
    STRING lodsb, "rep lodsb", cld
    STRING lodsq, "rep lodsq", cld
    STRING cmpsb, "repe cmpsb", cld
    STRING cmpsw, "repe cmpsw", cld
    STRING cmpsd, "repe cmpsl", cld
    STRING cmpsq_down, "repe cmpsq", std
    STRING scasb, "repne scasb", cld
    STRING scasw, "repe scasw", cld
    STRING scasq, "repne scasq", cld
    .section .note.GNU-stack, "", @progbits
