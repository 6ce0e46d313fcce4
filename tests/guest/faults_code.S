/*
 * Two functions for each kind of instruction that reaches memory: they load all registers from
 * faults_in, set the flags, one with CMP R14, R15, the other with the ADD of R14 that makes R15
 * what it shall be, execute the instruction, and store all registers to faults_out. faults_cases[]
 * is a table of them, in the layout of `struct kind` in faults_guest.c.
 * Operands are (register, displacement, size, access); R14 and R15 are left alone.
 */
    .set RAX, 0
    .set RCX, 1
    .set RDX, 2
    .set RBX, 3
    .set RSP, 4
    .set RBP, 5
    .set RSI, 6
    .set RDI, 7
    .set R8, 8
    .set R13, 13

    .set READ, 1
    .set WRITE, 2       /* stores, and whatever reads and writes */
    .set ALIGNED, 4     /* cannot lie in two pages; #GP where it is not aligned */
    .set PARTIAL, 8     /* may have written some of it when it faults */
    .set SIXTEEN, 16    /* in two pages, but at multiples of sixteen */
    .set LOOSE, 32      /* several accesses: the fault may be anywhere in its page */
    .set BEHIND, 64     /* only what lies in its second page can be missing */

    .set NOTHING, 0     /* what memory or registers must hold: see prepare() */
    .set AFTER, 1
    .set DIVISOR, 2
    .set MATCH, 3
    .set BITS, 4
    .set FLAGS, 5
    .set IRET, 6
    .set MXCSR, 7
    .set SELECTOR, 8
    .set INDEX, 9
    .set HIGH, 10
    .set TABLE, 11
    .set FRAMES, 12
    .set STATE, 13
    .set TARGET, 14

.macro ROW name, prepare, vector, r0, d0, s0, a0, r1, d1, s1, a1
    .pushsection .rodata
8:  .asciz "\name"
    .popsection
    .pushsection .rodata.faults, "a"
    .quad 8b
    .quad cmp_\name, cmp_at_\name, cmp_after_\name
    .quad add_\name, add_at_\name, add_after_\name
    .long \prepare, \vector
    .long \r0, \d0, \s0, \a0, \r1, \d1, \s1, \a1
    .popsection
.endm

.macro BODY setter, name, text, vector, before
    .balign 32
\setter\()_\name:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, saved_rsp
    .if \vector
    mov $7, %eax
    xor %edx, %edx
    xrstor faults_vectors_in
    .endif
    \before
    .set number, 0
    .irp reg, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    mov faults_in + number * 8, %\reg
    .set number, number + 1
    .endr
    .ifc \setter, add
    mov faults_in + 128, %r15
    .endif
    \setter %r14, %r15
\setter\()_at_\name:
    \text
3:
\setter\()_after_\name:
    .set number, 0
    .irp reg, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    mov %\reg, faults_out + number * 8
    .set number, number + 1
    .endr
    mov saved_rsp, %rsp
    pushfq
    popq faults_out + 128
    cld
    .if \vector
    mov $7, %eax
    xor %edx, %edx
    xsave faults_vectors_out
    .endif
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
.endm

.macro CASE name, prepare, text, r0, d0, s0, a0, r1=0, d1=0, s1=0, a1=0, vector=0, before="cld"
    ROW \name, \prepare, \vector, \r0, \d0, \s0, \a0, \r1, \d1, \s1, \a1
    BODY cmp, \name, "\text", \vector, "\before"
    BODY add, \name, "\text", \vector, "\before"
.endm

.macro VCASE name, prepare, text, r0, d0, s0, a0
    CASE \name, \prepare, "\text", \r0, \d0, \s0, \a0, vector=1
.endm

    .section .rodata.faults, "a"
    .balign 8
    .globl faults_cases
faults_cases:
    .text

/* Loads and stores. */
CASE mov8_load, NOTHING, "mov (%rdi), %al", RDI, 0, 1, READ
CASE mov8_load_high, NOTHING, "mov 7(%rsi), %ch", RSI, 7, 1, READ
CASE mov16_load, NOTHING, "mov (%rdi), %ax", RDI, 0, 2, READ
CASE mov32_load, NOTHING, "mov -5(%rdi), %eax", RDI, -5, 4, READ
CASE mov64_load, NOTHING, "mov (%rdi), %rax", RDI, 0, 8, READ
CASE mov64_load_itself, NOTHING, "mov (%rdi), %rdi", RDI, 0, 8, READ
CASE mov64_load_index, INDEX, "mov 24(%rdi, %rcx, 8), %rcx", RDI, 48, 8, READ
CASE mov64_load_r13, NOTHING, "mov (%r13), %r12", R13, 0, 8, READ
CASE mov64_load_gs, NOTHING, "mov %gs:(%rdi), %rax", RDI, 0x1000, 8, READ
CASE mov64_load_high, HIGH, "mov 1(%edi), %rax", RDI, 1, 8, READ
CASE movzx8, NOTHING, "movzbl (%rdi), %eax", RDI, 0, 1, READ
CASE movsx16, NOTHING, "movswq (%rdi), %rax", RDI, 0, 2, READ
CASE movsxd, NOTHING, "movslq (%rdi), %rdi", RDI, 0, 4, READ
CASE movbe_load, NOTHING, "movbe (%rdi), %rbx", RDI, 0, 8, READ
CASE mov8_store, NOTHING, "mov %dl, (%rdi)", RDI, 0, 1, WRITE
CASE mov8_store_high, NOTHING, "mov %bh, (%rdi)", RDI, 0, 1, WRITE
CASE mov16_store, NOTHING, "mov %dx, (%rdi)", RDI, 0, 2, WRITE
CASE mov32_store, NOTHING, "mov %edx, 40(%rdi)", RDI, 40, 4, WRITE
CASE mov64_store, NOTHING, "mov %rdx, (%rdi)", RDI, 0, 8, WRITE
CASE mov64_store_imm, NOTHING, "movq $-12345678, (%rdi)", RDI, 0, 8, WRITE
CASE mov64_store_index, INDEX, "mov %rsp, (%rdi, %rcx, 4)", RDI, 12, 8, WRITE
CASE mov64_store_gs, NOTHING, "mov %r12, %gs:8(%rdi)", RDI, 0x1008, 8, WRITE
CASE mov64_store_high, HIGH, "mov %rax, (%edi)", RDI, 0, 8, WRITE
CASE movnti, NOTHING, "movnti %r12, (%rdi)", RDI, 0, 8, WRITE
CASE movbe_store, NOTHING, "movbe %edx, (%rdi)", RDI, 0, 4, WRITE
CASE mov_selector, SELECTOR, "mov (%rdi), %es", RDI, 0, 2, READ
CASE mov_selector_store, NOTHING, "mov %ds, (%rdi)", RDI, 0, 2, WRITE
CASE xlat, TABLE, "xlat", RBX, 0, 1, READ

/* Arithmetic on registers and memory. */
CASE add_load, NOTHING, "add (%rdi), %rax", RDI, 0, 8, READ
CASE adc_load, NOTHING, "adc (%rdi), %eax", RDI, 0, 4, READ
CASE sub_load, NOTHING, "sub (%rdi), %rdi", RDI, 0, 8, READ
CASE sbb_load, NOTHING, "sbb (%rdi), %ax", RDI, 0, 2, READ
CASE and_load, NOTHING, "and (%rdi), %rax", RDI, 0, 8, READ
CASE or_load8, NOTHING, "or (%rdi), %bh", RDI, 0, 1, READ
CASE xor_load, NOTHING, "xor (%rdi), %r8", RDI, 0, 8, READ
CASE cmp_load, NOTHING, "cmp (%rdi), %rax", RDI, 0, 8, READ
CASE cmp_memory, NOTHING, "cmp %rax, (%rdi)", RDI, 0, 8, READ
CASE cmp_memory_imm, NOTHING, "cmpl $77, (%rdi)", RDI, 0, 4, READ
CASE test_memory, NOTHING, "test %rax, (%rdi)", RDI, 0, 8, READ
CASE imul_load, NOTHING, "imul (%rdi), %rax", RDI, 0, 8, READ
CASE imul_load_imm, NOTHING, "imul $-77, (%rdi), %edx", RDI, 0, 4, READ
CASE add_memory, NOTHING, "add %rax, (%rdi)", RDI, 0, 8, WRITE
CASE add_memory8, NOTHING, "add %ah, (%rdi)", RDI, 0, 1, WRITE
CASE adc_memory, NOTHING, "adc %rax, (%rdi)", RDI, 0, 8, WRITE
CASE adc_memory_imm, NOTHING, "adcw $0x1234, (%rdi)", RDI, 0, 2, WRITE
CASE sub_memory, NOTHING, "sub %eax, (%rdi)", RDI, 0, 4, WRITE
CASE sbb_memory, NOTHING, "sbb %rax, (%rdi)", RDI, 0, 8, WRITE
CASE and_memory, NOTHING, "and %ax, (%rdi)", RDI, 0, 2, WRITE
CASE or_memory, NOTHING, "orq $-16, (%rdi)", RDI, 0, 8, WRITE
CASE xor_memory, NOTHING, "xor %rax, (%rdi)", RDI, 0, 8, WRITE
CASE inc_memory, NOTHING, "incq (%rdi)", RDI, 0, 8, WRITE
CASE dec_memory, NOTHING, "decl (%rdi)", RDI, 0, 4, WRITE
CASE neg_memory, NOTHING, "negq (%rdi)", RDI, 0, 8, WRITE
CASE not_memory, NOTHING, "notw (%rdi)", RDI, 0, 2, WRITE
CASE shl_memory, NOTHING, "shlq (%rdi)", RDI, 0, 8, WRITE
CASE shl_memory_cl, NOTHING, "shll %cl, (%rdi)", RDI, 0, 4, WRITE
CASE sar_memory_imm, NOTHING, "sarq $9, (%rdi)", RDI, 0, 8, WRITE
CASE rol_memory, NOTHING, "rolq %cl, (%rdi)", RDI, 0, 8, WRITE
CASE rcr_memory, NOTHING, "rcrw $1, (%rdi)", RDI, 0, 2, WRITE
CASE shld_memory, NOTHING, "shld %cl, %rax, (%rdi)", RDI, 0, 8, WRITE
CASE shrd_memory, NOTHING, "shrd $5, %eax, (%rdi)", RDI, 0, 4, WRITE
CASE mul_memory, NOTHING, "mulq (%rdi)", RDI, 0, 8, READ
CASE imul_memory, NOTHING, "imull (%rdi)", RDI, 0, 4, READ
CASE div_memory, DIVISOR, "divq (%rdi)", RDI, 0, 8, READ
CASE idiv_memory, DIVISOR, "idivl (%rdi)", RDI, 0, 4, READ
CASE sete_memory, NOTHING, "sete (%rdi)", RDI, 0, 1, WRITE
CASE setb_memory, NOTHING, "setb (%rdi)", RDI, 0, 1, WRITE
CASE cmovl, NOTHING, "cmovl (%rdi), %rax", RDI, 0, 8, READ
CASE cmove, NOTHING, "cmove (%rdi), %eax", RDI, 0, 4, READ /* false: it reads all the same */
CASE bsf, NOTHING, "bsf (%rdi), %rax", RDI, 0, 8, READ
CASE popcnt, NOTHING, "popcnt (%rdi), %rax", RDI, 0, 8, READ
CASE tzcnt, NOTHING, "tzcnt (%rdi), %ecx", RDI, 0, 4, READ
CASE andn, NOTHING, "andn (%rdi), %rax, %rcx", RDI, 0, 8, READ
CASE mulx, NOTHING, "mulx (%rdi), %rax, %rcx", RDI, 0, 8, READ
CASE pdep, NOTHING, "pdep (%rdi), %rax, %rcx", RDI, 0, 8, READ
CASE sarx, NOTHING, "sarx %rax, (%rdi), %rcx", RDI, 0, 8, READ
CASE crc32, NOTHING, "crc32q (%rdi), %rax", RDI, 0, 8, READ
CASE bt_memory, BITS, "bt %rcx, (%rdi)", RDI, 24, 8, READ
CASE bt_memory_imm, NOTHING, "btl $9, (%rdi)", RDI, 0, 4, READ
CASE bts_memory, BITS, "bts %rcx, (%rdi)", RDI, 24, 8, WRITE
CASE btr_memory, BITS, "lock btr %rcx, (%rdi)", RDI, 24, 8, WRITE
CASE btc_memory_imm, NOTHING, "btcq $40, (%rdi)", RDI, 0, 8, WRITE

/* Exchanges. */
CASE xchg64, NOTHING, "xchg %rax, (%rdi)", RDI, 0, 8, WRITE
CASE xchg8, NOTHING, "xchg %ah, (%rdi)", RDI, 0, 1, WRITE
CASE xadd, NOTHING, "xadd %rax, (%rdi)", RDI, 0, 8, WRITE
CASE lock_xadd, NOTHING, "lock xadd %eax, (%rdi)", RDI, 0, 4, WRITE
CASE lock_add, NOTHING, "lock addq $5, (%rdi)", RDI, 0, 8, WRITE
CASE lock_inc, NOTHING, "lock incw (%rdi)", RDI, 0, 2, WRITE
CASE lock_not, NOTHING, "lock notq (%rdi)", RDI, 0, 8, WRITE
CASE cmpxchg, MATCH, "cmpxchg %rbx, (%rdi)", RDI, 0, 8, WRITE
CASE lock_cmpxchg, MATCH, "lock cmpxchg %ebx, (%rdi)", RDI, 0, 4, WRITE
CASE cmpxchg8b, MATCH, "cmpxchg8b (%rdi)", RDI, 0, 8, WRITE
CASE lock_cmpxchg8b, MATCH, "lock cmpxchg8b (%rdi)", RDI, 0, 8, WRITE
CASE cmpxchg16b, MATCH, "cmpxchg16b (%rdi)", RDI, 0, 16, WRITE | ALIGNED
CASE lock_cmpxchg16b, MATCH, "lock cmpxchg16b (%rdi)", RDI, 0, 16, WRITE | ALIGNED

/* The stack, and branches through memory. */
CASE push, NOTHING, "push %rax", RSP, -8, 8, WRITE
CASE push_rsp, NOTHING, "push %rsp", RSP, -8, 8, WRITE
CASE push_imm, NOTHING, "push $-1234567", RSP, -8, 8, WRITE
CASE push16, NOTHING, "push %ax", RSP, -2, 2, WRITE
CASE push_memory, NOTHING, "pushq (%rdi)", RSP, -8, 8, WRITE, RDI, 0, 8, READ
CASE pop, NOTHING, "pop %rax", RSP, 0, 8, READ
CASE pop_rsp, NOTHING, "pop %rsp", RSP, 0, 8, READ
CASE pop_memory, NOTHING, "popq (%rdi)", RSP, 0, 8, READ, RDI, 0, 8, WRITE
CASE pop_memory_rsp, NOTHING, "popq 64(%rsp)", RSP, 72, 8, WRITE | BEHIND
CASE pushf, NOTHING, "pushfq", RSP, -8, 8, WRITE
CASE popf, FLAGS, "popfq", RSP, 0, 8, READ
CASE call, NOTHING, "call 3f", RSP, -8, 8, WRITE
CASE call_register, TARGET, "call *%rax", RSP, -8, 8, WRITE
CASE call_memory, AFTER, "call *(%rdi)", RDI, 0, 8, READ, RSP, -8, 8, WRITE
CASE jmp_memory, AFTER, "jmp *(%rdi)", RDI, 0, 8, READ
CASE ret, AFTER, "ret", RSP, 0, 8, READ
CASE ret_imm, AFTER, "ret $24", RSP, 0, 8, READ
CASE lret, IRET, "lretq", RSP, 0, 16, READ | LOOSE
CASE iret, IRET, "iretq", RSP, 0, 40, READ | LOOSE
CASE enter, NOTHING, "enter $16, $0", RSP, -8, 8, WRITE
CASE enter_nested, FRAMES, "enter $8, $2", RSP, -24, 24, WRITE | PARTIAL | LOOSE, RBP, -8, 8, READ
CASE leave, NOTHING, "leave", RBP, 0, 8, READ

/* String instructions, once. */
CASE movsb, NOTHING, "movsb", RSI, 0, 1, READ, RDI, 0, 1, WRITE
CASE movsq, NOTHING, "movsq", RSI, 0, 8, READ, RDI, 0, 8, WRITE
CASE movsd_down, NOTHING, "movsl", RSI, 0, 4, READ, RDI, 0, 4, WRITE, before="std"
CASE stosw, NOTHING, "stosw", RDI, 0, 2, WRITE
CASE stosq, NOTHING, "stosq", RDI, 0, 8, WRITE
CASE lodsb, NOTHING, "lodsb", RSI, 0, 1, READ
CASE lodsq_down, NOTHING, "lodsq", RSI, 0, 8, READ, before="std"
CASE cmpsd, NOTHING, "cmpsl", RSI, 0, 4, READ, RDI, 0, 4, READ
CASE cmpsq_down, NOTHING, "cmpsq", RSI, 0, 8, READ, RDI, 0, 8, READ, before="std"
CASE scasb, NOTHING, "scasb", RDI, 0, 1, READ
CASE scasq, NOTHING, "scasq", RDI, 0, 8, READ

    .section .rodata.faults, "a"
    .globl faults_vector_cases
faults_vector_cases:
    .text

/* Vectors and x87. */
VCASE movups_load, NOTHING, "movups (%rdi), %xmm3", RDI, 0, 16, READ
VCASE movups_store, NOTHING, "movups %xmm3, (%rdi)", RDI, 0, 16, WRITE
VCASE movaps_load, NOTHING, "movaps (%rdi), %xmm3", RDI, 0, 16, READ | ALIGNED
VCASE movaps_store, NOTHING, "movaps %xmm9, (%rdi)", RDI, 0, 16, WRITE | ALIGNED
VCASE movdqa_store, NOTHING, "movdqa %xmm3, 16(%rdi)", RDI, 16, 16, WRITE | ALIGNED
VCASE movss_load, NOTHING, "movss (%rdi), %xmm3", RDI, 0, 4, READ
VCASE movsd_store, NOTHING, "movsd %xmm3, (%rdi)", RDI, 0, 8, WRITE
VCASE movhps_load, NOTHING, "movhps (%rdi), %xmm3", RDI, 0, 8, READ
VCASE movlps_store, NOTHING, "movlps %xmm3, (%rdi)", RDI, 0, 8, WRITE
VCASE movd_store, NOTHING, "movd %xmm3, (%rdi)", RDI, 0, 4, WRITE
VCASE movq_load, NOTHING, "movq (%rdi), %xmm3", RDI, 0, 8, READ
VCASE mmx_load, NOTHING, "movq (%rdi), %mm3", RDI, 0, 8, READ
VCASE mmx_store, NOTHING, "movq %mm3, (%rdi)", RDI, 0, 8, WRITE
VCASE paddd, NOTHING, "paddd (%rdi), %xmm3", RDI, 0, 16, READ | ALIGNED
VCASE addsd, NOTHING, "addsd (%rdi), %xmm3", RDI, 0, 8, READ
VCASE ucomisd, NOTHING, "ucomisd (%rdi), %xmm3", RDI, 0, 8, READ
VCASE ptest, NOTHING, "ptest (%rdi), %xmm3", RDI, 0, 16, READ | ALIGNED
VCASE cvtsi2sd, NOTHING, "cvtsi2sdq (%rdi), %xmm3", RDI, 0, 8, READ
VCASE cvttss2si, NOTHING, "cvttss2si (%rdi), %rax", RDI, 0, 4, READ
VCASE pshufb, NOTHING, "pshufb (%rdi), %xmm3", RDI, 0, 16, READ | ALIGNED
VCASE pinsrq, NOTHING, "pinsrq $1, (%rdi), %xmm3", RDI, 0, 8, READ
VCASE pextrb, NOTHING, "pextrb $3, %xmm3, (%rdi)", RDI, 0, 1, WRITE
VCASE pextrq, NOTHING, "pextrq $1, %xmm3, (%rdi)", RDI, 0, 8, WRITE
VCASE movntdq, NOTHING, "movntdq %xmm3, (%rdi)", RDI, 0, 16, WRITE | ALIGNED
VCASE ldmxcsr, MXCSR, "ldmxcsr (%rdi)", RDI, 0, 4, READ
VCASE stmxcsr, NOTHING, "stmxcsr (%rdi)", RDI, 0, 4, WRITE
VCASE aesenc, NOTHING, "aesenc (%rdi), %xmm3", RDI, 0, 16, READ | ALIGNED
VCASE vmovups_load, NOTHING, "vmovups (%rdi), %ymm3", RDI, 0, 32, READ
VCASE vmovups_store, NOTHING, "vmovups %ymm3, (%rdi)", RDI, 0, 32, WRITE
VCASE vmovaps_store, NOTHING, "vmovaps %ymm3, (%rdi)", RDI, 0, 32, WRITE | ALIGNED
VCASE vmovups_load128, NOTHING, "vmovups (%rdi), %xmm3", RDI, 0, 16, READ
VCASE vaddps, NOTHING, "vaddps (%rdi), %ymm3, %ymm4", RDI, 0, 32, READ
VCASE vpaddq, NOTHING, "vpaddq (%rdi), %ymm3, %ymm3", RDI, 0, 32, READ
VCASE vbroadcastss, NOTHING, "vbroadcastss (%rdi), %ymm3", RDI, 0, 4, READ
VCASE vextracti128, NOTHING, "vextracti128 $1, %ymm3, (%rdi)", RDI, 0, 16, WRITE
VCASE fld32, NOTHING, "flds (%rdi)", RDI, 0, 4, READ
VCASE fld64, NOTHING, "fldl (%rdi)", RDI, 0, 8, READ
VCASE fld80, NOTHING, "fldt (%rdi)", RDI, 0, 10, READ
VCASE fild64, NOTHING, "fildll (%rdi)", RDI, 0, 8, READ
VCASE fstp32, NOTHING, "fstps (%rdi)", RDI, 0, 4, WRITE
VCASE fst64, NOTHING, "fstl (%rdi)", RDI, 0, 8, WRITE
VCASE fstp80, NOTHING, "fstpt (%rdi)", RDI, 0, 10, WRITE
VCASE fistp64, NOTHING, "fistpll (%rdi)", RDI, 0, 8, WRITE
VCASE fisttp32, NOTHING, "fisttpl (%rdi)", RDI, 0, 4, WRITE
VCASE fadd64, NOTHING, "faddl (%rdi)", RDI, 0, 8, READ
VCASE fcom32, NOTHING, "fcomps (%rdi)", RDI, 0, 4, READ
VCASE fnstcw, NOTHING, "fnstcw (%rdi)", RDI, 0, 2, WRITE
VCASE fnstsw, NOTHING, "fnstsw (%rdi)", RDI, 0, 2, WRITE
VCASE fxsave, NOTHING, "fxsave (%rdi)", RDI, 0, 512, WRITE | PARTIAL | SIXTEEN | LOOSE
VCASE fxrstor, STATE, "fxrstor (%rdi)", RDI, 0, 512, READ | SIXTEEN | LOOSE

    .section .rodata.faults, "a"
    .globl faults_cases_end
faults_cases_end:

    .bss
    .balign 64
    .globl faults_vectors_in, faults_vectors_out, faults_in, faults_out
faults_vectors_in:
    .skip 1024
faults_vectors_out:
    .skip 1024
faults_in:
    .skip 17 * 8
faults_out:
    .skip 17 * 8
saved_rsp:
    .skip 8
    .section .note.GNU-stack, "", @progbits
