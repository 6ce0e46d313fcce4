/*
 * Loops of ring 3 in 32-bit and 16-bit code segments, for compat_guest.c. Each runs EDI rounds and
 * ends in int $0x81 with what it found wrong in EAX, unless said otherwise.
 */
    .set USER_CODE32, 0x3b
    .set USER_DATA, 0x43
    .set USER_CODE64, 0x4b
    .set BASE_ONE, 0x63
    .set BASE_TWO, 0x6b

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
    .code64
/* void compat_enter(rip, cs, ss, rsp, flags): registers from compat_registers. */
FUNCTION compat_enter
    push %rdx
    push %rcx
    push %r8
    push %rsi
    push %rdi
    mov $USER_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov compat_registers, %eax
    mov compat_registers + 4, %ecx
    mov compat_registers + 8, %edx
    mov compat_registers + 12, %ebx
    mov compat_registers + 16, %ebp
    mov compat_registers + 20, %esi
    mov compat_registers + 24, %edi
    iretq

    .balign 4096
    .code32
/* Addresses that wrap at 4 GiB: EBX + 4 * ESI + 0x6000 is low. Stores, then loads. */
FUNCTION compat_wrap
    xor %eax, %eax
1:  lea 0x4000(%edi), %esi
    mov $0xffff0000, %ebx
    mov %edi, 0x6000(%ebx, %esi, 4)
    lea 0x6000(%ebx, %esi, 4), %edx
    cmp %edi, (%edx)
    je 2f
    inc %eax
2:  lea (, %edi, 4), %ecx
    addl $3, 0x6000(%ecx)
    mov $-0x10000, %ecx
    mov 0x6000 + 0x10000(%ecx, %edi, 4), %edx
    sub $3, %edx
    cmp %edi, %edx
    je 3f
    inc %eax
3:  dec %edi
    jnz 1b
    int $0x81

/* REP MOVSB from the end of 4 GiB into its beginning: ESI wraps. 16 bytes to EBX. */
FUNCTION compat_wrap_string
    mov %edi, %ebp
    xor %eax, %eax
1:  mov $0xfffffff8, %esi
    mov %ebp, (%esi)
    mov %ebp, 4
    mov %ebx, %edi
    mov $16, %ecx
    rep movsb
    cmp $8, %esi
    jne 2f
    cmp %ebp, (%ebx)
    jne 2f
    cmp %ebp, 12(%ebx)
    je 3f
2:  inc %eax
3:  dec %ebp
    jnz 1b
    int $0x81

/* What only 32-bit code has; a sum of it all in EAX. Stack at ESP, data at EBX. */
FUNCTION compat_old
    xor %ebp, %ebp
    mov %esp, %esi
1:  mov %edi, %eax
    inc %eax
    dec %ecx
    inc %ecx
    add $0x35, %al
    daa
    movzbl %al, %edx
    add %edx, %ebp
    sub $0x19, %al
    das
    movzbl %al, %edx
    add %edx, %ebp
    mov %edi, %eax
    and $0xff, %eax
    aam
    rol $5, %ebp
    add %eax, %ebp
    aad $7
    movzbl %al, %eax
    xor %eax, %ebp
    mov $0x0305, %eax
    add $9, %al
    aaa
    add %eax, %ebp
    sub $7, %al
    aas
    add %eax, %ebp
    pushal
    movl $0, %ecx
    xor %edx, %edx
    popal
    pusha
    addl $5, 28(%esp)
    popa
    add %eax, %ebp
    mov %edi, %ecx
    .byte 0x3d
    .long 0x80000000    /* CMP imm32, EAX */
    .byte 0xd6          /* SALC */
    add %al, %cl
    push %ds
    pop %es
    push %cs
    pop %edx
    movzwl %dx, %edx        /* some processors push 16 bits of it */
    add %edx, %ebp
    mov %ebp, (%ebx)
    movw $BASE_ONE, 4(%ebx)
    les (%ebx), %edx
    add %edx, %ebp
    mov %es, %edx
    add %edx, %ebp
    push %ds
    pop %es
    mov $0x40, %edx
    mov $3, %ecx
    arpl %cx, %dx
    jnz 9f
    add %edx, %ebp
    movl $-5, (%ebx)
    movl $5, 4(%ebx)
    mov $-5, %edx
    bound %edx, (%ebx)
    cmp %eax, %eax
    into
    enter $16, $1
    mov -4(%ebp), %edx      /* the frame pointer itself */
    leave
    sub %esp, %edx
    add %edx, %ebp
    mov $2, %ecx
2:  add $3, %ebp
    loop 2b
    mov $0x10000, %ecx
    jcxz 3f
    jmp 9f
3:  jecxz 9f
    sub %esp, %esi          /* where it was at the beginning */
    add %esi, %ebp
    mov %esp, %esi
    dec %edi
    jnz 1b
    mov %ebp, %eax
    int $0x81
9:  xor %eax, %eax
    int $0x81

/* FS, GS and ES whose bases change every round. EBX is what lies at offset 0 of BASE_ONE, EDX that
 * of BASE_TWO. */
FUNCTION compat_bases
    xor %eax, %eax
1:  mov $BASE_ONE, %ecx
    mov %ecx, %fs
    mov %fs:0, %esi
    cmp %esi, %ebx
    jne 8f
    mov $BASE_TWO, %ebp
    push %ebp
    pop %gs
    cmp %gs:0, %edx
    jne 8f
    mov %ebp, %fs
    cmp %fs:0, %edx
    jne 8f
    mov %ecx, %es
    xor %ecx, %ecx
    cmp %es:(%ecx), %ebx
    jne 8f
    mov %edi, %es:8(%ecx)
    mov %es, %ecx
    mov %ecx, %ds           /* all of it */
    cmp %edi, 8
    jne 8f
    push %ss
    pop %ds
    mov %edi, %gs:12
    xor %ecx, %ecx
    mov %ecx, %fs           /* null, and not used */
    push %fs
    pop %ecx
    movzwl %cx, %ecx
    add %ecx, %eax
    jmp 9f
8:  push %ss
    pop %ds
    inc %eax
9:  push %ds
    pop %es
    dec %edi
    jnz 1b
    int $0x81

/* Offsets 0, 256, 512, ... of the segment EBP, modulo two pages. #GP where its limit says no; the
 * handler goes on at the next label. Counts loads in EAX and stores in EDX. */
FUNCTION compat_limits
    mov %ebp, %gs
    xor %edx, %edx
    xor %eax, %eax
1:  mov %edi, %ecx
    and $31, %ecx
    shl $8, %ecx
AT compat_limit_load
    mov %gs:(%ecx), %ebx
    inc %eax
AT compat_limit_store
    mov %edi, %gs:(%ecx)
    inc %edx
AT compat_limit_end
    dec %edi
    jnz 1b
    int $0x81

/* A system call in every round: EAX = EBX + 1, and EDX adds them up. */
FUNCTION compat_int80
    xor %edx, %edx
1:  mov %edi, %ebx
    int $0x80
    add %eax, %edx
    dec %edi
    jnz 1b
    mov %edx, %eax
    int $0x81

/* The same by SYSCALL (AMD) and SYSENTER (Intel), which comes back to EDX with ESP from ECX. */
FUNCTION compat_syscall
    xor %edx, %edx
1:  mov %edi, %ebx
    syscall
    add %eax, %edx
    dec %edi
    jnz 1b
    mov %edx, %eax
    int $0x81
FUNCTION compat_sysenter
    xor %esi, %esi
1:  mov %edi, %ebx
    mov %esp, %ecx
    mov $2f, %edx
    sysenter
2:  add %eax, %esi
    dec %edi
    jnz 1b
    mov %esi, %eax
    int $0x81

/* 64-bit code that calls 32-bit code that calls 64-bit code. */
    .code64
FUNCTION compat_far
    xor %eax, %eax
1:  mov %edi, %ebx
    lcall *2f(%rip)
    lea 3(%rdi, %rdi), %ecx
    cmp %ecx, %ebx
    je 3f
    inc %eax
3:  bts $40, %rdi           /* 64 bits again */
    btr $40, %rdi
    jnc 4f
    dec %edi
    jnz 1b
4:  int $0x81
2:  .long compat_far32
    .word USER_CODE32
    .code32
compat_far32:
    inc %ebx                /* 43 is a REX prefix in 64-bit code */
    lcall $USER_CODE64, $compat_far64
    inc %ebx
    lret
    .code64
compat_far64:
    lea (%rbx, %rdi), %rbx
    inc %ebx
    lretl
    .code32

/* A 16-bit stack whose pointer wraps every round; the upper half of ESP is nobody's. */
FUNCTION compat_stack16
    xor %ebp, %ebp
1:  mov $0xabcd0002, %esp
    push %di                /* at 0 */
    push %edi               /* at 0xfffc */
    pop %ecx
    cmp %edi, %ecx
    jne 8f
    pop %cx
    cmp %di, %cx
    jne 8f
    cmp $0xabcd0002, %esp
    jne 8f
    mov $0xabcd0000, %esp
    push %edi               /* 0xfffc */
    mov %ss:0xfffc, %ecx
    cmp %edi, %ecx
    jne 8f
    call 3f
    cmp $0xabcdfffc, %esp
    jne 8f
    pushal
    popal
    mov %esp, %ecx
    and $0xffff, %ecx
    addl $1, %ss:(%ecx)
    pop %ecx
    dec %ecx
    cmp %edi, %ecx
    je 9f
8:  inc %ebp
9:  dec %edi
    jnz 1b
    mov %ebp, %eax
    int $0x81
3:  cmp $0xabcdfff8, %esp
    je 4f
    inc %ebp
4:  ret

/* A code segment with a base: its offsets are from compat_based on. */
    .balign 4096
FUNCTION compat_based
    xor %eax, %eax
1:  call 3f
2:  mov %cs:(4f - compat_based), %ecx
    cmp $0x13572468, %ecx
    jne 8f
    mov $5f - compat_based, %ecx
    jmp *%ecx
    .balign 16
5:  cmp $2b - compat_based, %edx
    je 9f
8:  inc %eax
9:  dec %edi
    jnz 1b
    int $0x81
3:  mov (%esp), %edx
    ret
4:  .long 0x13572468

/* 16-bit code in a segment with a base: addresses and stack of 16 bits. DS is BASE_ONE. */
    .balign 4096
    .code16
FUNCTION compat_code16
    mov $BASE_ONE, %ax
    mov %ax, %ds
    xor %bp, %bp
1:  mov $0xfff0, %bx
    mov $0x0110, %si
    mov %di, (%bx, %si)     /* 0x100 */
    mov $0xff00, %bx
    cmp %di, 0x200(%bx)
    jne 8f
    mov $0xffff, %cx
    inc %cx
    jnz 8f
    jcxz 2f
    jmp 8f
2:  call 3f
    cmp $0x1234, %dx
    jne 8f
    movl (%bx, %si), %ecx   /* 0x0010 */
    cmp $0x11223344, %ecx
    je 9f
8:  inc %bp
9:  dec %di
    jnz 1b
    movzwl %bp, %eax
    int $0x81
3:  mov $0x1234, %dx
    ret

    .balign 4096
/* The same bytes as 64-bit code, and as 32-bit and 16-bit code, where 48 is an instruction of its
 * own. */
FUNCTION compat_both
1:  .byte 0x48, 0x01, 0xd8  /* ADD RBX, RAX; or DEC EAX; ADD EBX, EAX */
    .byte 0x48, 0x89, 0xca  /* MOV RCX, RDX; or DEC EAX; MOV ECX, EDX */
    .byte 0x83, 0xc1, 0x07  /* ADD 7, ECX */
    .byte 0x83, 0xef, 0x01  /* SUB 1, EDI */
    .byte 0x75, 0xf2        /* JNZ 1b */
    .byte 0xcd, 0x81        /* INT 0x81 */

/* Ring 3, 64 bits: (RBX) is not aligned; AC is set in every other round. Counts rounds in EAX. */
    .code64
FUNCTION compat_alignment
    xor %eax, %eax
1:  mov %edi, %ecx
    and $1, %ecx
    shl $18, %ecx
    or $2, %ecx
    push %rcx
    popfq
AT compat_unaligned
    mov (%rbx), %edx
AT compat_unaligned_after
    push $2
    popfq
    add %edx, %eax
    dec %edi
    jnz 1b
    int $0x81

/* What AMD's SYSCALL and Intel's SYSENTER come to. */
FUNCTION compat_syscall_entry
    lea 1(%rbx), %eax
    sysretl
FUNCTION compat_sysenter_entry
    lea 1(%rbx), %eax
    sysexitl
    .balign 4096

    .bss
    .balign 16
    .globl compat_registers
compat_registers:
    .skip 32
    .section .note.GNU-stack, "", @progbits
