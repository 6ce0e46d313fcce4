/* The translator where it is easy to get wrong: guests that the interpreter runs the same way, in
 * the three modes of LODGE_TRANSLATE. In HOT mode a block has to be entered often to be translated,
 * hence the loops. */
#include "cpu/soft/guest_fixture.h"
#include "cpu/soft/jit_unit.h"
#include "cpu/soft/native_stub.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

/* A handler that goes on somewhere in the guest's code; RAX is lost. */
static void handler_jumps(unsigned vector, uint32_t to)
{
    uint8_t code[] = {0xb8, 0, 0, 0, 0, 0xff, 0xe0}; /* mov $to, %eax; jmp *%rax */
    le32_write(code + 1, to);
    memcpy(guest.ram + GUEST_HANDLERS + vector * 16, code, sizeof code);
}

/* ---- units that change ---- */

/* Both `first` and its successor are changed. While `first` is disconnected, its link is undone,
 * which lies among the bytes that the entry's jump covers. */
GUEST_CODE(relinked, 64,
           "mov $60, %ebx; 1: lea first(%rip), %rax; call *%rax; dec %ebx; jnz 1b;"
           "movb $third - first - 2, first + 1(%rip); movb $2, second + 1(%rip);"
           "call second; mov %ecx, %edx; lea first(%rip), %rax; call *%rax; hlt;"
           ".balign 64; first: jmp second; .byte 0;"
           "second: mov $1, %ecx; ret; third: mov $3, %ecx; ret");

static void a_disconnected_unit_stays_so_when_its_successor_goes(void **state)
{
    (void)state;
    RUN(relinked);
    assert_int_equal(reg(CPU_RDX), 2);
    assert_int_equal(reg(CPU_RCX), 3);
}

/* The same with a conditional branch, entered with the flags in the host's. */
GUEST_CODE(relinked_jcc, 64,
           "mov $60, %ebx; 1: call 2f; dec %ebx; jnz 1b;"
           "movb $2, 4f + 1(%rip); call 4f; mov %ecx, %edx; call 2f; hlt;"
           ".balign 64; 2: test %ebx, %ebx; jmp 3f; nop; 3: jns 4f; mov $5, %ecx; ret;"
           "4: mov $1, %ecx; ret");

static void a_branch_under_a_patch_is_undone_with_care(void **state)
{
    (void)state;
    RUN(relinked_jcc);
    assert_int_equal(reg(CPU_RDX), 2);
    assert_int_equal(reg(CPU_RCX), 2);
}

/* ADD makes a JZ of the instruction behind it, which wants its ZF and not that of XOR. */
GUEST_CODE(next_rewritten, 64,
           "mov $60, %ebx; 1: movb $0x31, 2f(%rip); xor %eax, %eax; addb $0x43, 2f(%rip);"
           "2: .byte 0x31, 2; inc %ecx; dec %ebx; jnz 1b; hlt");

static void a_store_leaves_its_flags_to_what_it_made(void **state)
{
    (void)state;
    RUN(next_rewritten);
    assert_int_equal(reg(CPU_RCX), 60);
}

/* The store changes LEA's displacement in a block that follows by a link, without a poll between
 * the two. */
GUEST_CODE(successor_rewritten, 64,
           "mov $200, %ebx; 1: mov %bl, 3f + 2(%rip); jmp 2f; nop; 2: xor %eax, %eax;"
           "3: .byte 0x8d, 0x72, 0; cmp %bl, %sil; jne 4f; inc %ecx; 4: dec %ebx; jnz 1b; hlt");

static void a_store_into_the_next_block_holds_at_once(void **state)
{
    (void)state;
    guest.state.gpr[CPU_RDX] = 0;
    RUN(successor_rewritten);
    assert_int_equal(reg(CPU_RCX), 200);
}

/* ---- branches ---- */

GUEST_CODE(call_own_slot, 64,
           "mov $60, %ebx; lea 2f(%rip), %rax;"
           "1: mov %rax, -8(%rsp); call *-8(%rsp); 3: inc %ecx; dec %ebx; jnz 1b; hlt;"
           "2: add $0x100, %ecx; ret");

static void a_call_reads_its_target_before_it_pushes(void **state)
{
    (void)state;
    RUN(call_own_slot);
    assert_int_equal(reg(CPU_RCX), 60 * 0x101);
    assert_int_equal(reg(CPU_RSP), GUEST_STACK);
}

/* Targets that differ from sane ones in the bits that tell epochs apart. */
GUEST_CODE(wild_targets, 64,
           "mov $0x20000, %esp; inc %r8d; cmp $200, %r8d; je 1f;"
           "mov %r8d, %eax; and $63, %eax; inc %eax; shl $48, %rax; add %r9, %rax; inc %ecx;"
           "jmp *%rax; 1: hlt");
GUEST_CODE(wild_returns, 64,
           "mov $0x20000, %esp; inc %r8d; cmp $200, %r8d; je 1f;"
           "mov %r8d, %eax; and $63, %eax; inc %eax; shl $48, %rax; add %r9, %rax; inc %ecx;"
           "push %rax; ret; 1: hlt");

static void targets_that_are_not_canonical_never_hit(void **state)
{
    (void)state;
    handler_jumps(VECTOR_GP, GUEST_CODE_AT);
    for (unsigned i = 0; i < 4; i++) {
        guest_long(&guest, 0);
        handler_jumps(VECTOR_GP, GUEST_CODE_AT);
        guest.state.gpr[CPU_R9] = i & 1 ? GUEST_CODE_AT : 0;
        if (i & 2)
            RUN(wild_returns);
        else
            RUN(wild_targets);
        assert_int_equal(reg(CPU_RCX), 199);
        assert_int_equal(reg(CPU_R8), 200);
    }
}

GUEST_CODE(last_byte, 64,
           "mov $60, %ebx; lea 2f(%rip), %rax; lea 2f(%rip), %rdx;"
           "1: jmp *%rax; 2: dec %ebx; jg 1b; mov $-1, %rax; jz 1b; hlt");

static void an_empty_entry_of_the_jump_cache_never_hits(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 6; i++) {
        guest_long(&guest, 0);
        if (i && guest.v->jit)
            guest.v->jit->epochs = 0xfff9 + i; /* 0x10000 is near */
        RUN(last_byte);
        assert_int_equal(guest_vector(&guest), VECTOR_PF);
        assert_int_equal(guest.state.cr2, UINT64_MAX);
    }
}

/* The last page of the lower half. Code there may branch out of it. */
static void map_last_page(void)
{
    enum { PDPT = 0x70000, PD = 0x71000, PT = 0x72000, PAGE = 0x73000 };
    *guest_quad(&guest, GUEST_PML4 + 255 * 8) = PDPT | 7;
    *guest_quad(&guest, PDPT + 511 * 8) = PD | 7;
    *guest_quad(&guest, PD + 511 * 8) = PT | 7;
    *guest_quad(&guest, PT + 511 * 8) = PAGE | 7;
    guest.state.rip = 0x7ffffffffff0;
}

static void a_direct_branch_out_of_the_address_space_faults_there(void **state)
{
    static const struct {
        uint8_t code[16];
        uint64_t rip;
    } cases[] = {{{0xe9, 0, 1, 0, 0}, 0x7ffffffffff0},
                 {{0xe8, 0, 1, 0, 0}, 0x7ffffffffff0},
                 {{0x0f, 0x85, 0, 1, 0, 0}, 0x7ffffffffff0},
                 /* To what follows, which is outside. */
                 {{[0 ... 10] = 0x90, 0xe9, 0, 0, 0, 0}, 0x7ffffffffffb},
                 {{[0 ... 10] = 0x90, 0xe8, 0, 0, 0, 0}, 0x7ffffffffffb},
                 /* Nothing but INC ECX at the end: it is done once. */
                 {{[0 ... 13] = 0x90, 0xff, 0xc1}, 0x800000000000}};
    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++)
        for (unsigned n = 0; n < 40; n++) {
            guest_long(&guest, 0);
            map_last_page();
            mem_write(guest.mem, 0x73ff0, cases[i].code, sizeof cases[i].code);
            assert_int_equal(guest_go(&guest), ENGINE_EXIT_KICK);
            assert_int_equal(guest_vector(&guest), VECTOR_GP);
            assert_int_equal(guest_stack(&guest, 1), cases[i].rip);
            assert_int_equal(guest_stack(&guest, 4), GUEST_STACK);
            assert_int_equal(reg(CPU_RCX), cases[i].rip >> 47);
        }
}

/* ---- loops ---- */

/* Two ways out in the middle, EDX and ESI say when; the sums say how often each part was done. */
GUEST_CODE(ways_out, 64,
           "xor %ebx, %ebx; xor %r8d, %r8d; xor %r9d, %r9d; xor %r10d, %r10d;"
           "1: inc %ebx; cmp %edx, %ebx; je 2f; inc %r8d; cmp %esi, %r8d; jae 3f; inc %r9d;"
           "cmp $100, %ebx; jne 1b; mov $4, %r10d; jmp 4f;"
           "2: setc %r10b; lea 2(%r10), %r10; jmp 4f; 3: mov $3, %r10d; 4: hlt");

static void a_loop_may_be_left_in_its_middle(void **state)
{
    static const struct {
        uint32_t edx, esi, ebx, r8, r9, way;
    } cases[] = {{1, 1000, 1, 0, 0, 2},       {50, 1000, 50, 49, 49, 2},
                 {100, 1000, 100, 99, 99, 2}, {1000, 1, 1, 1, 0, 3},
                 {1000, 60, 60, 60, 59, 3},   {1000, 100, 100, 100, 99, 3},
                 {0, 1000, 100, 100, 100, 4}};
    (void)state;
    for (unsigned n = 0; n < 4; n++)
        for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
            guest_long(&guest, 0);
            guest.state.gpr[CPU_RDX] = cases[i].edx;
            guest.state.gpr[CPU_RSI] = cases[i].esi;
            RUN(ways_out);
            assert_int_equal(reg(CPU_RBX), cases[i].ebx);
            assert_int_equal(reg(CPU_R8), cases[i].r8);
            assert_int_equal(reg(CPU_R9), cases[i].r9);
            assert_int_equal(reg(CPU_R10), cases[i].way);
        }
}

/* The load faults at the end of the window, with the flags of CMP, which RDI no longer tells. */
GUEST_CODE(faulting_loop, 64,
           "mov $0x400000, %edi; 1: add $8, %rdi; cmp $0x400008, %rdi; jb 2f;"
           "mov -8(%rdi), %rax; mov %edi, %ecx; cmp %rdx, %rdi; jne 1b; 2: hlt");

static void a_fault_in_a_loop_has_the_flags_of_its_turn(void **state)
{
    (void)state;
    guest_page(&guest, 0, GUEST_DATA | 7);
    guest_page(&guest, 1, 0);
    guest.state.gpr[CPU_RDX] = 0;
    RUN(faulting_loop);
    assert_int_equal(guest_vector(&guest), VECTOR_PF);
    assert_int_equal(guest.state.cr2, GUEST_WINDOW + MEM_PAGE_SIZE);
    assert_int_equal(reg(CPU_RDI), GUEST_WINDOW + MEM_PAGE_SIZE + 8);
    assert_int_equal(reg(CPU_RCX), GUEST_WINDOW + MEM_PAGE_SIZE);
    /* 0x401008 - 0x400008: even parity, nothing else. */
    assert_int_equal(guest_stack(&guest, 3) & 0x8d5, 4);
}

/* The first half changes the second, which has been run often. */
GUEST_CODE(changing_loop, 64,
           "xor %ecx, %ecx; xor %esi, %esi; mov $200, %ebx;"
           "1: cmp $100, %ebx; jne 2f; movb $2, 3f + 2(%rip); 2: cmp $300, %ebx; je 4f;"
           "3: add $1, %ecx; dec %ebx; jnz 1b; 4: hlt");

static void a_loop_may_change_itself(void **state)
{
    (void)state;
    RUN(changing_loop);
    assert_int_equal(reg(CPU_RCX), 100 + 2 * 100);
}

/* What follows the hot JNE has never been decoded, and the stubs that it needs have no room. */
GUEST_CODE(unseen_half, 64,
           "mov $60, %ebx; 1: cmp $1, %ebx; jne 2f; pshufd $0x5a, %xmm1, %xmm2; dec %ebx; jnz 1b;"
           "hlt; 2: dec %ebx; mov %ebx, 0x8000000; jmp 1b");

static void fill_stubs(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    if (value == 50)
        guest.v->native->used = (4 << 20) - 16;
}

static void a_loop_is_not_made_where_stubs_have_no_room(void **state)
{
    (void)state;
    guest.v->vm->io.mmio_write = fill_stubs;
    RUN(unseen_half);
    assert_int_equal(reg(CPU_RBX), 0);
}

/* An exception of the host in a turn whose flags are nowhere but in registers. */
GUEST_CODE(dividing_loop, 64,
           "mov $60, %ebx; 1: mov %rbx, %rax; xor %edx, %edx; mov (%rsi), %r8d; mov %ebx, %ecx;"
           "cmp $20, %ebx; mov 8(%rsi), %r9; div %rcx; mov $1, %eax; cmp %r9d, %ebx;"
           "lea -1(%rbx), %rbx; jns 1b; hlt");

static void a_host_exception_in_a_loop_finds_the_flags(void **state)
{
    (void)state;
    *guest_quad(&guest, GUEST_DATA + 8) = (uint64_t)-100;
    guest.state.gpr[CPU_RSI] = GUEST_DATA;
    RUN(dividing_loop);
    assert_int_equal(guest_vector(&guest), VECTOR_DE);
    assert_int_equal(reg(CPU_RBX), 0);
    assert_int_equal(guest_stack(&guest, 2) & 0x8d5, 0x91); /* 0 - 20: CF, AF, SF */
}

/* ---- the address space ---- */

GUEST_CODE(remapped, 64,
           "mov $60, %ebx; 1: call *%rdx; dec %ebx; jnz 1b; mov %ecx, %esi; int $0x80;"
           "call *%rdx; hlt; .skip 64 - (. - remapped);"
           "movq $0x401007, 0x4000; invlpg (%rdx); iretq");

static void a_user_page_of_the_upper_half_is_forgotten_by_invlpg(void **state)
{
    static const uint8_t one[] = {0xb9, 1, 0, 0, 0, 0xc3}, two[] = {0xb9, 2, 0, 0, 0, 0xc3};
    (void)state;
    guest_long(&guest, 3);
    guest_set_gate(&guest, 0x80, 14, 3, 0, SEL_CODE64);
    handler_jumps(0x80, GUEST_CODE_AT + 64);
    memcpy(guest.ram + GUEST_WINDOW, one, sizeof one);
    memcpy(guest.ram + GUEST_WINDOW + MEM_PAGE_SIZE, two, sizeof two);
    guest.state.gpr[CPU_RDX] = UINT64_C(0xffffff8000000000) + GUEST_WINDOW;
    RUN(remapped);
    assert_int_equal(guest_vector(&guest), VECTOR_GP); /* of HLT */
    assert_int_equal(reg(CPU_RSI), 1);
    assert_int_equal(reg(CPU_RCX), 2);
}

/* One page of code at two addresses: where it is, and what it calls two pages on, are not the same.
 */
GUEST_CODE(at_two_places, 64,
           "mov $200, %ebx; 1: call *%r8; xor $2, %esi; or %esi, %ecx; add %rdi, %rdx;"
           "call *%r9; xor $3, %esi; or %esi, %ecx; add %rdi, %rdx; dec %ebx; jnz 1b; hlt");

static void a_page_may_be_at_two_addresses(void **state)
{
    static const uint8_t shared[] = {0xe8, 0xfb, 0x1f, 0, 0,       /* call 0x2000 */
                                     0x48, 0x8d, 0x3d, 0, 0, 0, 0, /* lea (%rip), %rdi */
                                     0xc3};
    static const uint8_t two[] = {0xbe, 2, 0, 0, 0, 0xc3}, three[] = {0xbe, 3, 0, 0, 0, 0xc3};
    (void)state;
    for (unsigned page = 0; page < 4; page++)
        guest_page(&guest, page, (GUEST_WINDOW + (page < 2 ? 0 : page * MEM_PAGE_SIZE)) | 7);
    memcpy(guest.ram + GUEST_WINDOW, shared, sizeof shared);
    memcpy(guest.ram + GUEST_WINDOW + 2 * MEM_PAGE_SIZE, two, sizeof two);
    memcpy(guest.ram + GUEST_WINDOW + 3 * MEM_PAGE_SIZE, three, sizeof three);
    guest.state.gpr[CPU_RDX] = 0;
    guest.state.gpr[CPU_R8] = GUEST_WINDOW;
    guest.state.gpr[CPU_R9] = GUEST_WINDOW + MEM_PAGE_SIZE;
    RUN(at_two_places);
    assert_int_equal(reg(CPU_RCX), 0);
    assert_int_equal(reg(CPU_RDX), 200 * (2 * GUEST_WINDOW + MEM_PAGE_SIZE + 2 * 12));
}

GUEST_CODE(to_device, 64, "mov $0x400000, %eax; jmp *%rax");

static void code_in_a_device_runs_on(void **state)
{
    (void)state;
    guest_page(&guest, 0, GUEST_MMIO | 7);
    guest_page(&guest, 1, 0);
    RUN(to_device); /* MOV after MOV, up to the end of the page */
    assert_int_equal(guest_vector(&guest), VECTOR_PF);
    assert_int_equal(guest.state.cr2, GUEST_WINDOW + MEM_PAGE_SIZE);
    assert_int_equal(reg(CPU_RDI), 0xc7c7c7c7);
}

/* ---- events ---- */

GUEST_CODE(popf_window, 64,
           "mov $1000, %ecx; 1: push $0x202; popf; nop; cli; dec %ecx; jnz 1b;" GUEST_STOP);

static void an_interrupt_gets_in_behind_popf(void **state)
{
    (void)state;
    guest_end(&guest);
    guest_begin_with_apic(&guest);
    guest_long(&guest, 0);
    guest.apic.pending = 0x40;
    engine_soft.vcpu_notify(guest.vcpu);
    RUN(popf_window);
    assert_int_equal(guest_vector(&guest), 0x40);
}

/* ---- memory ---- */

GUEST_CODE(moving_base, 64,
           "mov $60, %r8d; mov $0x60000, %ebx; xor %ecx, %ecx;"
           "1: mov (%rbx,%rcx), %rax; add $8, %rbx; mov (%rbx,%rcx), %rdx; sub $8, %rbx;"
           "mov 16(%rbx,%rcx), %rsi; mov %rsi, 32(%rbx,%rcx); dec %r8d; jnz 1b; hlt");

static void a_base_with_an_index_may_move_between_accesses(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 8; i++)
        *guest_quad(&guest, GUEST_DATA + i * 8) = 0x11 * (i + 1);
    RUN(moving_base);
    assert_int_equal(reg(CPU_RAX), 0x11);
    assert_int_equal(reg(CPU_RDX), 0x22);
    assert_int_equal(reg(CPU_RSI), 0x33);
    assert_int_equal(*guest_quad(&guest, GUEST_DATA + 32), 0x33);
    assert_int_equal(*guest_quad(&guest, GUEST_DATA + 40), 0x66);
}

/* The device corrupts the TLB: an entry's tags say that its page is elsewhere. */
static uint64_t wrong_by;

static void corrupt_tags(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    for (unsigned kind = 0; kind < TLB_NEVER; kind++) {
        struct soft_tlb_entry *entry =
            &guest.v->tlbs[kind][(GUEST_DATA >> MEM_PAGE_SHIFT) % SOFT_TLB_SIZE];
        if (entry->read == GUEST_DATA)
            entry->read = entry->write = GUEST_DATA + wrong_by;
    }
}

GUEST_CODE(wrong_page, 64,
           "mov $60, %ebx; mov $0x60000, %edi; xor %esi, %esi;"
           "1: mov (%rdi, %rsi), %rax; mov %rax, 8(%rdi, %rsi); sub $1, %ebx; jnz 1b;"
           "test %rsi, %rsi; jnz 2f; movl $0, 0x8000000; mov %rdx, %rsi; mov $60, %ebx; jmp 1b;"
           "2: hlt");

/* Returns how the process ended. */
static int run_corrupted(uint64_t by)
{
    pid_t child = fork();
    if (child == 0) {
        (void)!freopen("/dev/null", "w", stderr); /* sanitizers have something to say */
        signal(SIGABRT, SIG_DFL);
        guest.state.gpr[CPU_RDX] = wrong_by = by;
        guest_run_bytes(&guest, wrong_page, wrong_page_end);
        _exit(guest_vector(&guest));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void a_hit_that_leads_out_of_memory_ends_the_process(void **state)
{
    /* As far away as entries share a slot; up, down, across the hole, and not at all. */
    static const uint64_t by[] = {(uint64_t)SOFT_TLB_SIZE << MEM_PAGE_SHIFT,
                                  -((uint64_t)SOFT_TLB_SIZE << MEM_PAGE_SHIFT), UINT64_C(1) << 40,
                                  UINT64_C(0xffff800000000000)};
    (void)state;
    if (!guest.v->jit)
        skip();
    guest.v->vm->io.mmio_write = corrupt_tags;
    for (unsigned i = 0; i < ARRAY_LEN(by); i++) {
        int status = run_corrupted(by[i]);
        assert_int_equal(status & 0x7f, SIGABRT);
    }
}

/* ---- encodings ---- */

GUEST_CODE(many_prefixes, 64,
           "mov $60, %ebx; mov $0x12345678, %ecx; mov $-1, %rax; mov $-1, %rdx;"
           "1: .byte 0x66, 0x66, 0x66, 0x66, 0xf3, 0x0f, 0xb8, 0xc1;" /* popcnt %cx, %ax */
           ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0xf3, 0x0f, 0xb8, 0xd1;"
           "dec %ebx; jnz 1b; hlt");

static void prefixes_may_be_repeated(void **state)
{
    (void)state;
    RUN(many_prefixes);
    assert_int_equal(reg(CPU_RAX), 0xffffffffffff0008);
    assert_int_equal(reg(CPU_RDX), 0xffffffffffff0008);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_disconnected_unit_stays_so_when_its_successor_goes),
        TEST(a_branch_under_a_patch_is_undone_with_care),
        TEST(a_store_leaves_its_flags_to_what_it_made),
        TEST(a_store_into_the_next_block_holds_at_once),
        TEST(a_call_reads_its_target_before_it_pushes),
        TEST(targets_that_are_not_canonical_never_hit),
        TEST(an_empty_entry_of_the_jump_cache_never_hits),
        TEST(a_direct_branch_out_of_the_address_space_faults_there),
        TEST(a_loop_may_be_left_in_its_middle),
        TEST(a_fault_in_a_loop_has_the_flags_of_its_turn),
        TEST(a_loop_may_change_itself),
        TEST(a_loop_is_not_made_where_stubs_have_no_room),
        TEST(a_host_exception_in_a_loop_finds_the_flags),
        TEST(a_user_page_of_the_upper_half_is_forgotten_by_invlpg),
        TEST(a_page_may_be_at_two_addresses),
        TEST(code_in_a_device_runs_on),
        TEST(an_interrupt_gets_in_behind_popf),
        TEST(a_base_with_an_index_may_move_between_accesses),
        TEST(a_hit_that_leads_out_of_memory_ends_the_process),
        TEST(prefixes_may_be_repeated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
