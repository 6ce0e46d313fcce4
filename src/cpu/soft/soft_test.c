/* The interpreter on guests of a few instructions: integer and string instructions where C and
 * assembly are easy to get wrong, and encodings that are no instruction here. */
#include "cpu/soft/block.h"
#include "cpu/soft/guest_fixture.h"

/* ---- integer ---- */

GUEST_CODE(sum_loop, 64,
           "mov $1000, %ecx; xor %eax, %eax; 1: add %rcx, %rax; dec %ecx; jnz 1b; hlt");

static void a_loop_sums_and_is_counted(void **state)
{
    (void)state;
    uint64_t before = engine_soft.vcpu_instructions(guest.vcpu);
    RUN(sum_loop);
    assert_int_equal(reg(CPU_RAX), 500500);
    if (guest_translate() != ENGINE_TRANSLATE_HOT) /* which does not count */
        assert_int_equal(engine_soft.vcpu_instructions(guest.vcpu) - before, 2 + 3 * 1000 + 1);
}

GUEST_CODE(count_and_fault, 64, "xor %eax, %eax; 1: inc %eax; cmp $5, %eax; jnz 1b; ud2");

/* At every count, however the blocks are cut. What faults is not counted: it is attempted. */
static void it_stops_where_it_is_told(void **state)
{
    (void)state;
    const uint64_t all = 1 + 3 * 5;
    for (uint64_t stop = 0; stop <= all; stop++) {
        uint64_t before = engine_soft.vcpu_instructions(guest.vcpu);
        guest_long(&guest, 0);
        engine_soft.vcpu_stop_at(guest.vcpu, before + stop, false);
        assert_int_equal(guest_run(&guest, count_and_fault), ENGINE_EXIT_KICK);
        assert_int_equal(engine_soft.vcpu_instructions(guest.vcpu) - before, stop);
        assert_false(guest_in_handler(&guest));
        if (stop)
            assert_int_equal(reg(CPU_RAX), (stop + 1) / 3);
    }
    uint64_t end = engine_soft.vcpu_instructions(guest.vcpu);
    engine_soft.vcpu_stop_at(guest.vcpu, end, true);
    assert_int_equal(guest_go(&guest), ENGINE_EXIT_KICK);
    assert_int_equal(engine_soft.vcpu_instructions(guest.vcpu), end);
    assert_int_equal(guest.state.rip, GUEST_HANDLERS + VECTOR_UD * 16);
    engine_soft.vcpu_stop_at(guest.vcpu, UINT64_MAX, false);
}

GUEST_CODE(partial_flags, 64,
           "stc; mov $0x7f, %al; inc %al; pushf; pop %r8;" /* CF stays, OF */
           "mov $0x80, %al; clc; dec %al; pushf; pop %r9;"
           "mov $0xff, %al; cmp $0xff, %al; mov $32, %cl; mov $1, %ebx; stc; shl %cl, %ebx;"
           "pushf; pop %r10;" /* count 0: ZF of CMP and CF of STC stay */
           "xor %eax, %eax; stc; mov $1, %bl; rol $1, %bl; pushf; pop %r11;"
           "mov $-1, %rax; add $1, %eax; mov %rax, %r12; hlt");

static void partial_flags_stay(void **state)
{
    (void)state;
    const uint64_t all = RFLAG_ARITHMETIC;
    RUN(partial_flags);
    assert_int_equal(reg(CPU_R8) & all, RFLAG_CF | RFLAG_OF | RFLAG_SF | RFLAG_AF);
    assert_int_equal(reg(CPU_R9) & all, RFLAG_OF | RFLAG_AF);
    assert_int_equal(reg(CPU_R10) & all, RFLAG_CF | RFLAG_ZF | RFLAG_PF);
    assert_int_equal(reg(CPU_R11) & all, RFLAG_ZF | RFLAG_PF);
    assert_int_equal(reg(CPU_R12), 0);
}

GUEST_CODE(high_bytes, 64,
           "mov $0x1122334455667788, %rax; mov %ah, %bl; mov $0x99, %ah; xchg %al, %ah;"
           "movzbl %ah, %ecx; add %ah, %al; hlt");

static void high_byte_registers_are_bytes_one(void **state)
{
    (void)state;
    RUN(high_bytes);
    assert_int_equal(reg(CPU_RBX) & 0xff, 0x77);
    assert_int_equal(reg(CPU_RCX), 0x88);
    assert_int_equal(reg(CPU_RAX), 0x1122334455668821);
}

GUEST_CODE(cmov_false, 64,
           "mov $-1, %rax; cmp %eax, %eax; cmovne %ebx, %eax; mov $-1, %rdx;"
           "cmovne %bx, %dx; hlt");
GUEST_CODE(cmov_faults, 64, "xor %eax, %eax; mov $0x7ffffffff000, %rbx; cmovne (%rbx), %eax; hlt");

static void a_false_cmov_still_clears_and_reads(void **state)
{
    (void)state;
    RUN(cmov_false);
    assert_int_equal(reg(CPU_RAX), 0xffffffff);
    assert_int_equal(reg(CPU_RDX), UINT64_MAX);
    guest_long(&guest, 0);
    RUN(cmov_faults);
    assert_int_equal(guest_vector(&guest), VECTOR_PF);
}

GUEST_CODE(bit_strings, 64,
           "mov $0x60000, %ebx; mov $-1, %rcx; bts %rcx, (%rbx);" /* bit 63 of the quad before */
           "mov $200, %ecx; btc %ecx, (%rbx); bt %ecx, (%rbx); setc %al;"
           "mov $0x28, %ecx; lock btr %ecx, (%rbx); setc %dl;"
           "mov $0x105, %ecx; mov $0x20, %esi; bt %ecx, %esi; setc %dil; hlt");

static void register_bit_offsets_reach_memory(void **state)
{
    (void)state;
    *guest_quad(&guest, 0x5fff8) = 0;
    *guest_quad(&guest, 0x60000) = 1ull << 0x28 | 1;
    *guest_quad(&guest, 0x60018) = 0;
    RUN(bit_strings);
    assert_int_equal(*guest_quad(&guest, 0x5fff8), 1ull << 63);
    assert_int_equal(*guest_quad(&guest, 0x60018), 1ull << 8);
    assert_int_equal(*guest_quad(&guest, 0x60000), 1);
    assert_int_equal(reg(CPU_RAX) & 0xff, 1);
    assert_int_equal(reg(CPU_RDX) & 0xff, 1);
    assert_int_equal(reg(CPU_RDI) & 0xff, 1);
}

GUEST_CODE(divide_by_zero, 64, "mov $7, %eax; xor %edx, %edx; xor %ecx, %ecx; div %ecx; hlt");
GUEST_CODE(divide_overflow, 64,
           "mov $0x8000000000000000, %rax; cqo; mov $-1, %rcx; idiv %rcx; hlt");
GUEST_CODE(divide_fits, 64,
           "mov $-7, %rax; cqo; mov $2, %ecx; idiv %rcx; mov %rax, %r8; mov %rdx, %r9;"
           "mov $0x8000000000000000, %rax; cqo; mov $1, %ecx; idiv %rcx; mov %rax, %r10;"
           "mov $5, %edx; mov $9, %eax; mov $6, %ecx; div %rcx; mov %rax, %r11; mov %rdx, %r12;"
           "mov $0x8000, %eax; mov $0xffff, %edx; mov $1, %cx; idiv %cx; mov %rax, %r13; hlt");

static void division_checks_before_it_divides(void **state)
{
    (void)state;
    RUN(divide_by_zero);
    assert_int_equal(guest_vector(&guest), VECTOR_DE);
    guest_long(&guest, 0);
    RUN(divide_overflow);
    assert_int_equal(guest_vector(&guest), VECTOR_DE);
    guest_long(&guest, 0);
    RUN(divide_fits);
    assert_int_equal(reg(CPU_R8), (uint64_t)-3);
    assert_int_equal(reg(CPU_R9), (uint64_t)-1);
    assert_int_equal(reg(CPU_R10), UINT64_C(1) << 63);
    unsigned __int128 dividend = (unsigned __int128)5 << 64 | 9;
    assert_int_equal(reg(CPU_R11), (uint64_t)(dividend / 6));
    assert_int_equal(reg(CPU_R12), (uint64_t)(dividend % 6));
    assert_int_equal(reg(CPU_R13), 0x8000);
}

/* PUSH RSP pushes the old value; POP (RSP) computes its address with the new one. */
GUEST_CODE(stack_order, 64,
           "mov %rsp, %r15; push %rsp; pop %rax; sub %r15, %rax;"
           "push $0x1234; push $0x5678; popq (%rsp); pop %rbx;"
           "push $0x77; mov %rsp, %rcx; pop %rsp; mov %rsp, %rdx; mov %r15, %rsp;"
           "push %rbp; mov $0x1f000, %ebp; mov %rbp, %rsp; pushq $0; mov %rsp, %rbp; enter $32, $2;"
           "mov %rbp, %r8; mov %rsp, %r9; leave; mov %rsp, %r10; hlt");

static void stack_instructions_commit_in_order(void **state)
{
    (void)state;
    RUN(stack_order);
    assert_int_equal(reg(CPU_RAX), 0);
    assert_int_equal(reg(CPU_RBX), 0x5678);
    assert_int_equal(reg(CPU_RDX), 0x77);
    assert_int_equal(reg(CPU_R8), 0x1eff0);
    assert_int_equal(reg(CPU_R9), 0x1eff0 - 16 - 32);
    assert_int_equal(reg(CPU_R10), 0x1eff8);
    assert_int_equal(*guest_quad(&guest, 0x1eff0 - 16), 0x1eff0);
}

GUEST_CODE(push_faults, 64, "mov $0x401000, %esp; push %rax; hlt");

static void a_push_that_faults_leaves_the_stack_pointer(void **state)
{
    (void)state;
    guest_set_gate(&guest, VECTOR_PF, SYSTEM_INT, 0, 1, SEL_CODE64);
    guest_set_gate(&guest, VECTOR_DF, SYSTEM_INT, 0, 1, SEL_CODE64);
    guest_page(&guest, 0, 0);
    RUN(push_faults);
    assert_int_equal(guest_vector(&guest), VECTOR_PF);
    assert_int_equal(guest_stack(&guest, 4), 0x401000); /* RSP as it was */
    assert_int_equal(guest_stack(&guest, 1), GUEST_CODE_AT + 5);
    assert_int_equal(guest.state.cr2, 0x400ff8);
}

/* ---- what is no instruction here ---- */

static void assert_vector(const uint8_t *code, size_t size, unsigned vector)
{
    guest_long(&guest, 0);
    run(code, code + size);
    assert_int_equal(guest_vector(&guest), vector);
    assert_int_equal(guest_stack(&guest, vector == VECTOR_GP), GUEST_CODE_AT);
}

static void hidden_and_illegal_encodings_fault(void **state)
{
    (void)state;
    static const uint8_t lock_register[] = {0xf0, 0x01, 0xc0};
    static const uint8_t lock_load[] = {0xf0, 0x8b, 0x00};
    static const uint8_t evex[] = {0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0}; /* vaddps zmm */
    static const uint8_t push_es[] = {0x06};
    static const uint8_t ud2[] = {0x0f, 0x0b};
    static const uint8_t femms[] = {0x0f, 0x0e};
    static const uint8_t xbegin[] = {0xc7, 0xf8, 0, 0, 0, 0};
    assert_vector(lock_register, sizeof lock_register, VECTOR_UD);
    assert_vector(lock_load, sizeof lock_load, VECTOR_UD);
    assert_vector(evex, sizeof evex, VECTOR_UD);
    assert_vector(push_es, sizeof push_es, VECTOR_UD);
    assert_vector(ud2, sizeof ud2, VECTOR_UD);
    assert_vector(femms, sizeof femms, VECTOR_UD);
    assert_vector(xbegin, sizeof xbegin, VECTOR_UD);
    uint8_t longest[16];
    memset(longest, 0x66, sizeof longest);
    longest[15] = 0x90;
    assert_vector(longest, sizeof longest, VECTOR_GP);
    uint8_t fifteen[16];
    memset(fifteen, 0x66, 14);
    fifteen[14] = 0x90;
    fifteen[15] = 0xf4;
    guest_long(&guest, 0);
    run(fifteen, fifteen + 16);
    assert_int_equal(guest.state.rip, GUEST_CODE_AT + 16);
}

static const uint8_t endbr64[] = {0xf3, 0x0f, 0x1e, 0xfa, 0xf4};

static void landing_pads_do_nothing(void **state)
{
    (void)state;
    run(endbr64, endbr64 + sizeof endbr64);
    assert_int_equal(guest.state.rip, GUEST_CODE_AT + 5);
}

GUEST_CODE(jump_away, 64, "mov $0x8000000000000000, %rax; push $1; call *%rax; hlt");

static void a_target_that_is_not_canonical_faults_at_the_branch(void **state)
{
    (void)state;
    RUN(jump_away);
    assert_int_equal(guest_vector(&guest), VECTOR_GP);
    assert_int_equal(guest_stack(&guest, 1), GUEST_CODE_AT + 12);
    assert_int_equal(guest_stack(&guest, 4), GUEST_STACK - 8);
}

/* Flags of an instruction count, even when what follows would write them but does not exist. */
GUEST_CODE(before_undefined, 64, "mov $0x80, %al; add %al, %al; rsm; hlt");

static void flags_are_exact_before_an_instruction_that_is_none(void **state)
{
    (void)state;
    RUN(before_undefined);
    assert_int_equal(guest_vector(&guest), VECTOR_UD);
    assert_int_equal(guest_stack(&guest, 2) & RFLAG_ARITHMETIC,
                     RFLAG_CF | RFLAG_OF | RFLAG_ZF | RFLAG_PF);
}

GUEST_CODE(prefixed, 64,
           "mov $0x11, %eax; mov $0x22, %r8d; .byte 0xf3, 0x49, 0x90;"         /* XCHG R8, RAX */
           "mov $3, %ecx; cmp %eax, %eax; 1: inc %ebx; .byte 0xf3; loopne 1b;" /* LOOPE */
           "mov $3, %ecx; cmp %eax, %eax; 2: inc %r9d; cmp %eax, %eax; .byte 0xf2; loope 2b; hlt");

static void prefixes_choose_the_instruction(void **state)
{
    (void)state;
    RUN(prefixed);
    assert_int_equal(reg(CPU_RAX), 0x22);
    assert_int_equal(reg(CPU_R8), 0x11);
    assert_int_equal(reg(CPU_RBX), 1); /* INC cleared ZF */
    assert_int_equal(reg(CPU_R9), 1);
}

GUEST_CODE(code_segment_write, 32,
           "mov $0x60000, %ebx; mov %cs:(%ebx), %eax; mov %eax, %cs:(%ebx)");

static void a_flat_code_segment_is_not_written_through(void **state)
{
    (void)state;
    guest_legacy(&guest, 0, false);
    RUN(code_segment_write);
    assert_int_equal(guest_vector(&guest), VECTOR_GP);
    assert_int_equal(le32_read(guest.ram + guest.state.gpr[CPU_RSP] + 4), GUEST_CODE_AT + 8);
}

/* ---- string instructions ---- */

enum { A = GUEST_WINDOW, B = GUEST_WINDOW + 0x10000 };

static void fill_pattern(uint64_t at, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        guest.ram[at + i] = (uint8_t)(i * 7 + (i >> 8) + 1);
}

static void start_string(uint64_t from, uint64_t to, uint64_t count)
{
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RSI] = from;
    guest.state.gpr[CPU_RDI] = to;
    guest.state.gpr[CPU_RCX] = count;
}

GUEST_CODE(rep_movsb, 64, "cld; rep movsb; hlt");
GUEST_CODE(rep_movsq_down, 64, "std; rep movsq; cld; hlt");

static void rep_movs_copies_over_pages_in_both_directions(void **state)
{
    (void)state;
    fill_pattern(A, 0x5000);
    start_string(A + 3, B + 0xff1, 0x3001);
    RUN(rep_movsb);
    assert_memory_equal(guest.ram + B + 0xff1, guest.ram + A + 3, 0x3001);
    assert_int_equal(guest.ram[B + 0xff1 + 0x3001], 0);
    assert_int_equal(reg(CPU_RSI), A + 3 + 0x3001);
    assert_int_equal(reg(CPU_RDI), B + 0xff1 + 0x3001);
    assert_int_equal(reg(CPU_RCX), 0);

    memset(guest.ram + B, 0, 0x8000);
    start_string(A + 0x3ffc, B + 0x4004, 0x700); /* crosses pages inside elements */
    RUN(rep_movsq_down);
    assert_memory_equal(guest.ram + B + 0x4004 + 8 - 0x3800, guest.ram + A + 0x3ffc + 8 - 0x3800,
                        0x3800);
    assert_int_equal(guest.ram[B + 0x4004 + 8], 0);
    assert_int_equal(guest.ram[B + 0x4004 + 8 - 0x3801], 0);
    assert_int_equal(reg(CPU_RDI), B + 0x4004 - 0x3800);
}

static void overlapping_movs_repeats_the_pattern(void **state)
{
    (void)state;
    memcpy(guest.ram + A + 0xffe, "ab", 2);
    start_string(A + 0xffe, A + 0x1000, 4000);
    RUN(rep_movsb);
    for (unsigned i = 0; i < 4000; i++)
        assert_int_equal(guest.ram[A + 0x1000 + i], "ab"[i % 2]);
}

static void a_fault_in_the_middle_leaves_exact_registers(void **state)
{
    (void)state;
    fill_pattern(A, 0x4000);
    start_string(A + 0x10, B + 0x20, 0x2500);
    guest_page(&guest, 0x12, (B + 0x2000) | 5); /* the third page of B is read-only */
    RUN(rep_movsb);
    assert_int_equal(guest_vector(&guest), VECTOR_PF);
    assert_int_equal(guest.state.cr2, B + 0x2000);
    assert_int_equal(guest_stack(&guest, 0), 3); /* present, write */
    assert_int_equal(guest_stack(&guest, 1), GUEST_CODE_AT + 1);
    assert_int_equal(reg(CPU_RCX), 0x2500 - 0x1fe0);
    assert_int_equal(reg(CPU_RSI), A + 0x10 + 0x1fe0);
    assert_int_equal(reg(CPU_RDI), B + 0x2000);
    assert_memory_equal(guest.ram + B + 0x20, guest.ram + A + 0x10, 0x1fe0);
    /* And goes on where it stopped. */
    uint64_t gpr[CPU_GPR_MAX];
    memcpy(gpr, guest.state.gpr, sizeof gpr);
    guest_long(&guest, 0);
    memcpy(guest.state.gpr, gpr, sizeof gpr);
    RUN(rep_movsb);
    assert_memory_equal(guest.ram + B + 0x20, guest.ram + A + 0x10, 0x2500);
}

GUEST_CODE(rep_stosd, 64, "mov $0xdeadbeef, %eax; rep stosl; hlt");
GUEST_CODE(rep_stosb_32, 64, "mov $0x5a, %eax; addr32 rep stosb; hlt");

static void rep_stos_fills(void **state)
{
    (void)state;
    start_string(0, A + 0xff2, 0x900);
    RUN(rep_stosd);
    for (unsigned i = 0; i < 0x900; i++)
        assert_int_equal(le32_read(guest.ram + A + 0xff2 + i * 4), 0xdeadbeef);
    assert_int_equal(guest.ram[A + 0xff1], 0);
    assert_int_equal(guest.ram[A + 0xff2 + 0x2400], 0);

    start_string(0, 0xffffffff00000000 | A, 0xffffffff00000000 | 0x1001);
    RUN(rep_stosb_32); /* 32-bit addresses: upper halves do not count, and are cleared */
    assert_int_equal(guest.ram[A + 0x1000], 0x5a);
    assert_int_equal(reg(CPU_RDI), A + 0x1001);
    assert_int_equal(reg(CPU_RCX), 0);
}

GUEST_CODE(rep_lodsw, 64, "mov $-1, %rax; rep lodsw; hlt");
GUEST_CODE(repne_scasb, 64, "mov $0x77, %al; repne scasb; pushf; pop %rdx; hlt");
GUEST_CODE(repe_cmpsd, 64, "repe cmpsl; pushf; pop %rdx; hlt");
GUEST_CODE(repe_cmps_none, 64, "xor %eax, %eax; stc; repe cmpsb; pushf; pop %rdx; hlt");

static void loads_scans_and_compares_stop_where_they_should(void **state)
{
    (void)state;
    fill_pattern(A, 0x3000);
    start_string(A + 1, 0, 0x1000);
    RUN(rep_lodsw);
    assert_int_equal(reg(CPU_RAX), 0xffffffffffff0000 | le16_read(guest.ram + A + 1 + 0x1ffe));
    assert_int_equal(reg(CPU_RSI), A + 1 + 0x2000);

    memset(guest.ram + A, 0, 0x3000);
    guest.ram[A + 0x1234] = 0x77;
    start_string(0, A, 0x3000);
    RUN(repne_scasb);
    assert_int_equal(reg(CPU_RDI), A + 0x1235);
    assert_int_equal(reg(CPU_RCX), 0x3000 - 0x1235);
    assert_true(reg(CPU_RDX) & RFLAG_ZF);

    fill_pattern(A, 0x3000);
    memcpy(guest.ram + B + 2, guest.ram + A, 0x2800);
    guest.ram[B + 2 + 0x2003] = 0xff; /* highest byte of element 0x800 */
    start_string(A, B + 2, 0xa00);
    RUN(repe_cmpsd);
    assert_int_equal(reg(CPU_RCX), 0xa00 - 0x801);
    assert_int_equal(reg(CPU_RSI), A + 0x801 * 4);
    assert_int_equal(reg(CPU_RDX) & (RFLAG_ZF | RFLAG_CF), RFLAG_CF);

    start_string(A, B, 0);
    RUN(repe_cmps_none); /* nothing done: the flags of STC and XOR stay */
    assert_int_equal(reg(CPU_RDX) & RFLAG_ARITHMETIC, RFLAG_CF | RFLAG_ZF | RFLAG_PF);
    assert_int_equal(reg(CPU_RSI), A);
}

GUEST_CODE(rep_io, 64, "rep movsl; hlt");

static void rep_movs_talks_to_devices_element_by_element(void **state)
{
    (void)state;
    start_string(GUEST_MMIO + 0xff8, A, 3);
    RUN(rep_io);
    assert_int_equal(guest.access_count, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(guest.accesses[i].address, GUEST_MMIO + 0xff8 + i * 4);
        assert_int_equal(guest.accesses[i].size, 4);
    }
    assert_int_equal(le32_read(guest.ram + A + 8), 0xc4c5c6c7);
}

/* ---- 16 and 32 bits ---- */

GUEST_CODE(real_stack, 16,
           "mov $2, %sp; mov $0x1111, %ax; push %ax; push $0x2222; mov %sp, %bx;"
           "mov $0x100, %sp; mov $7, %cx; mov $9, %dx; pusha; xor %cx, %cx; xor %dx, %dx; popa;"
           "mov %sp, %si; call 1f; 2: hlt; 1: mov %sp, %bp; mov (%bp), %di; ret");

static void a_16_bit_stack_wraps(void **state)
{
    (void)state;
    guest_real(&guest);
    RUN(real_stack);
    assert_int_equal(le16_read(guest.ram), 0x1111);
    assert_int_equal(le16_read(guest.ram + 0xfffe), 0x2222);
    assert_int_equal(reg(CPU_RBX) & 0xffff, 0xfffe);
    assert_int_equal(reg(CPU_RCX) & 0xffff, 7);
    assert_int_equal(reg(CPU_RDX) & 0xffff, 9);
    assert_int_equal(reg(CPU_RSI) & 0xffff, 0x100);
    assert_int_equal(reg(CPU_RDI) & 0xffff, guest.state.rip - 1);
}

GUEST_CODE(decimal, 32,
           "mov $0x79, %al; add $0x35, %al; daa; setc %bl; mov %al, %bh;"
           "mov $0x0207, %ax; aad; mov %al, %cl; aam; mov %ax, %dx;"
           "mov $0x10, %al; sub $0x01, %al; das; mov %al, %ch; hlt");

static void decimal_instructions_adjust(void **state)
{
    (void)state;
    guest_legacy(&guest, 0, false);
    RUN(decimal);
    assert_int_equal(reg(CPU_RBX) & 0xffff, 0x1401);
    assert_int_equal(reg(CPU_RCX) & 0xffff, 0x091b);
    assert_int_equal(reg(CPU_RDX) & 0xffff, 0x0207);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_loop_sums_and_is_counted),
        TEST(it_stops_where_it_is_told),
        TEST(partial_flags_stay),
        TEST(high_byte_registers_are_bytes_one),
        TEST(a_false_cmov_still_clears_and_reads),
        TEST(register_bit_offsets_reach_memory),
        TEST(division_checks_before_it_divides),
        TEST(stack_instructions_commit_in_order),
        TEST(a_push_that_faults_leaves_the_stack_pointer),
        TEST(hidden_and_illegal_encodings_fault),
        TEST(landing_pads_do_nothing),
        TEST(a_target_that_is_not_canonical_faults_at_the_branch),
        TEST(flags_are_exact_before_an_instruction_that_is_none),
        TEST(prefixes_choose_the_instruction),
        TEST(a_flat_code_segment_is_not_written_through),
        TEST(rep_movs_copies_over_pages_in_both_directions),
        TEST(overlapping_movs_repeats_the_pattern),
        TEST(a_fault_in_the_middle_leaves_exact_registers),
        TEST(rep_stos_fills),
        TEST(loads_scans_and_compares_stop_where_they_should),
        TEST(rep_movs_talks_to_devices_element_by_element),
        TEST(a_16_bit_stack_wraps),
        TEST(decimal_instructions_adjust),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
