/* Exceptions, interrupts, shadows, steps and breakpoints, seen from guests of a few instructions.
 */
#include "cpu/soft/guest_harness.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static struct guest guest;

static int setup(void **state)
{
    guest_begin_with_apic(&guest);
    return 0;
}

static int teardown(void **state)
{
    guest_end(&guest);
    return 0;
}

enum { IN_CODE = 0x1000 };

/* The vector of the handler where it stopped, or IN_CODE. */
static unsigned run_to_handler(const uint8_t *code, const uint8_t *end)
{
    assert_int_equal(guest_run_bytes(&guest, code, end), ENGINE_EXIT_KICK);
    return guest_in_handler(&guest) ? guest_vector(&guest) : IN_CODE;
}
#define RUN(code) run_to_handler(code, code##_end)

#define SYMBOL(code, name)                                                                         \
    (GUEST_CODE_AT + ({                                                                            \
         extern const uint8_t name[];                                                              \
         (uint64_t)(name - code);                                                                  \
     }))

/* ---- frames and stacks ---- */

GUEST_CODE(code_ud, 64, "stc; code_ud_at: ud2");

static void an_exception_pushes_the_whole_frame(void **state)
{
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RSP] = GUEST_STACK - 4; /* will be aligned */
    guest.state.rflags |= RFLAG_IF;
    assert_int_equal(RUN(code_ud), VECTOR_UD);
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_STACK - 16 - 40);
    assert_int_equal(guest_stack(&guest, 0), SYMBOL(code_ud, code_ud_at));
    assert_int_equal(guest_stack(&guest, 1), SEL_CODE64);
    assert_int_equal(guest_stack(&guest, 2), RFLAG_ONE | RFLAG_IF | RFLAG_CF | RFLAG_RF);
    assert_int_equal(guest_stack(&guest, 3), GUEST_STACK - 4);
    assert_int_equal(guest_stack(&guest, 4), SEL_DATA);
    assert_int_equal(guest.state.rflags & (RFLAG_IF | RFLAG_RF), 0);
    assert_int_equal(guest.state.segment[CPU_SS].selector, SEL_DATA); /* same level: kept */
}

static void from_user_mode_the_stack_is_rsp0_and_ss_null(void **state)
{
    guest_long(&guest, 3);
    assert_int_equal(RUN(code_ud), VECTOR_UD);
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_RSP0 - 40);
    assert_int_equal(guest_stack(&guest, 1), SEL_USER64);
    assert_int_equal(guest_stack(&guest, 3), GUEST_USER_STACK);
    assert_int_equal(guest_stack(&guest, 4), SEL_USER_DATA);
    assert_int_equal(guest.state.segment[CPU_SS].selector, 0);
    assert_true(guest.state.segment[CPU_SS].attributes & CPU_SEG_UNUSABLE);
    assert_int_equal(guest.state.segment[CPU_CS].selector, SEL_CODE64);
    assert_int_equal(guest.state.segment[CPU_SS].attributes >> CPU_SEG_DPL_SHIFT & 3, 0);
}

static void an_ist_switches_the_stack_at_the_same_level(void **state)
{
    guest_long(&guest, 0);
    guest_set_gate(&guest, VECTOR_UD, SYSTEM_TRAP, 0, 1, SEL_CODE64);
    guest.state.rflags |= RFLAG_IF;
    assert_int_equal(RUN(code_ud), VECTOR_UD);
    assert_int_equal(guest.state.gpr[CPU_RSP], 0x40000 - 40); /* IST1 aligned down to 16 */
    assert_int_equal(guest_stack(&guest, 3), GUEST_STACK);
    assert_true(guest.state.rflags & RFLAG_IF); /* a trap gate */
}

GUEST_CODE(code_gp, 64, "mov $0x60, %eax; mov %eax, %ds");

static void error_codes_name_the_selector(void **state)
{
    guest_long(&guest, 0);
    assert_int_equal(RUN(code_gp), VECTOR_NP);
    assert_int_equal(guest_stack(&guest, 0), SEL_ABSENT);
}

GUEST_CODE(code_pf, 64, "mov $0x7000000, %eax; movl $1, (%rax)");

static void a_page_fault_sets_cr2_and_is_restarted(void **state)
{
    guest_long(&guest, 3);
    *guest_quad(&guest, GUEST_PD + 56 * 8) = 0;
    assert_int_equal(RUN(code_pf), VECTOR_PF);
    assert_int_equal(guest.state.cr2, 0x7000000);
    assert_int_equal(guest_stack(&guest, 0), 6);
    uint64_t fault = guest_stack(&guest, 1);
    assert_int_equal(fault, GUEST_CODE_AT + 5);
}

/* ---- faults on the way ---- */

static void a_fault_while_delivering_a_fault_doubles(void **state)
{
    guest_long(&guest, 0);
    guest_set_gate(&guest, VECTOR_NP, SYSTEM_INT, 0, 0, SEL_DATA); /* #GP: no code segment */
    assert_int_equal(RUN(code_gp), VECTOR_DF);
    assert_int_equal(guest_stack(&guest, 0), 0);
    assert_int_equal(guest_stack(&guest, 1), GUEST_CODE_AT + 5);
}

static void a_fault_while_delivering_a_benign_one_comes_alone(void **state)
{
    guest_long(&guest, 0);
    guest_set_gate(&guest, VECTOR_UD, SYSTEM_INT, 0, 0, SEL_ABSENT); /* not code: #GP */
    assert_int_equal(RUN(code_ud), VECTOR_GP);
    assert_int_equal(guest_stack(&guest, 0), SEL_ABSENT | 1); /* EXT */
    assert_int_equal(guest_stack(&guest, 1), SYMBOL(code_ud, code_ud_at));
}

static void page_fault_in_contributory_is_serial_and_the_reverse_doubles(void **state)
{
    /* #NP, whose IST stack is not there: #PF, alone. */
    guest_long(&guest, 0);
    *guest_quad(&guest, GUEST_PD + 56 * 8) = 0;
    le64_write(guest.ram + GUEST_TSS + 36, 0x7001000);
    guest_set_gate(&guest, VECTOR_NP, SYSTEM_INT, 0, 1, SEL_CODE64);
    assert_int_equal(RUN(code_gp), VECTOR_PF);
    assert_int_equal(guest.state.cr2, 0x7001000 - 8);
    assert_int_equal(guest_stack(&guest, 0), 2);
    /* #PF, whose gate is broken: #DF. */
    guest_long(&guest, 0);
    *guest_quad(&guest, GUEST_PD + 56 * 8) = 0;
    guest_set_gate(&guest, VECTOR_PF, SYSTEM_INT, 0, 0, SEL_DATA);
    assert_int_equal(RUN(code_pf), VECTOR_DF);
}

static void a_triple_fault_keeps_the_state_before_the_first(void **state)
{
    guest_long(&guest, 0);
    guest.state.idt.limit = 0;
    guest.state.cr2 = 0x1234;
    guest.state.gpr[CPU_RBX] = 77;
    *guest_quad(&guest, GUEST_PD + 56 * 8) = 0;
    guest_load(&guest, code_pf, code_pf_end);
    assert_int_equal(guest_go(&guest), ENGINE_EXIT_SHUTDOWN);
    assert_int_equal(guest.state.rip, GUEST_CODE_AT + 5);
    assert_int_equal(guest.state.cr2, 0x1234);
    assert_int_equal(guest.state.gpr[CPU_RBX], 77);
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_STACK);
}

GUEST_CODE(code_int_80, 64, "int $0x80");
GUEST_CODE(code_int_81, 64, "int $0x81");
GUEST_CODE(code_int3, 64, "int3");
GUEST_CODE(code_int1, 64, ".byte 0xf1");

static void software_interrupts_need_a_gate_for_their_level(void **state)
{
    guest_long(&guest, 3);
    assert_int_equal(RUN(code_int_80), 0x80);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 2);
    guest_long(&guest, 3);
    assert_int_equal(RUN(code_int_81), VECTOR_GP);
    assert_int_equal(guest_stack(&guest, 0), 0x81 * 8 + 2); /* IDT, no EXT */
    assert_int_equal(guest_stack(&guest, 1), GUEST_CODE_AT);
    guest_long(&guest, 3);
    assert_int_equal(RUN(code_int3), VECTOR_BP);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 1);
    guest_long(&guest, 3); /* INT1 does not look at DPL */
    assert_int_equal(RUN(code_int1), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 1);
}

/* ---- interrupts ---- */

GUEST_CODE(code_sti, 64, "sti; inc %ebx; sti_after: inc %ebx; inc %ebx;" GUEST_STOP);

static void sti_holds_interrupts_for_one_instruction(void **state)
{
    guest_long(&guest, 0);
    guest.apic.pending = 0x55;
    engine_soft.vcpu_notify(guest.vcpu);
    assert_int_equal(RUN(code_sti), 0x55);
    assert_true(guest.state.gpr[CPU_RBX] >= 1);
    assert_true(guest_stack(&guest, 0) >= SYMBOL(code_sti, sti_after));
    assert_int_equal(guest.apic.accepted, 1);
}

static void a_restored_shadow_counts(void **state)
{
    guest_long(&guest, 0);
    guest.apic.pending = 0x55;
    guest.state.rflags |= RFLAG_IF;
    guest.state.pending.interrupt_shadow = 1;
    guest.state.rip += 1; /* past STI */
    assert_int_equal(RUN(code_sti), 0x55);
    assert_int_equal(guest_stack(&guest, 0), SYMBOL(code_sti, sti_after));
}

GUEST_CODE(code_hlt, 64, "sti; hlt; inc %ebx;" GUEST_STOP);

static void sti_hlt_cannot_sleep_through_an_interrupt(void **state)
{
    guest_long(&guest, 0);
    guest.apic.pending = 0x56;
    engine_soft.vcpu_notify(guest.vcpu);
    assert_int_equal(RUN(code_hlt), 0x56);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 2); /* after HLT */
}

static void *notify_later(void *opaque)
{
    usleep(20000);
    guest.apic.pending = 0x57;
    engine_soft.vcpu_notify(guest.vcpu);
    return NULL;
}

static void hlt_sleeps_until_it_is_notified(void **state)
{
    guest_long(&guest, 0);
    guest_load(&guest, code_hlt, code_hlt_end);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, notify_later, NULL), 0);
    assert_int_equal(guest_go(&guest), ENGINE_EXIT_KICK);
    pthread_join(thread, NULL);
    assert_int_equal(guest_vector(&guest), 0x57);
    assert_int_equal(guest.state.run_state, CPU_HALTED);
}

GUEST_CODE(code_mov_ss, 64,
           "mov $0x10, %eax; mov %eax, %ss; inc %ebx; mov_ss_after: inc %ebx;" GUEST_STOP);

static void mov_ss_holds_interrupts_and_steps_back(void **state)
{
    guest_long(&guest, 0);
    guest.state.rflags |= RFLAG_TF;
    /* Step 1: the MOV to EAX. */
    assert_int_equal(RUN(code_mov_ss), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 5);
    assert_true(guest.state.dr6 & DR6_BS);
    /* Step 2, from MOV SS: the trap comes only after the instruction that follows. */
    guest_long(&guest, 0);
    guest.state.rip = GUEST_CODE_AT + 5;
    guest.state.gpr[CPU_RAX] = SEL_DATA;
    guest.state.rflags |= RFLAG_TF;
    assert_int_equal(RUN(code_mov_ss), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), SYMBOL(code_mov_ss, mov_ss_after));
    assert_int_equal(guest.state.gpr[CPU_RBX], 1);
}

static void interrupts_wait_for_if(void **state)
{
    guest_long(&guest, 0);
    guest.apic.pending = 0x58;
    engine_soft.vcpu_notify(guest.vcpu);
    assert_int_equal(RUN(code_ud), VECTOR_UD); /* never taken with IF clear */
    assert_int_equal(guest.apic.accepted, 0);
}

GUEST_CODE(code_popf, 64, "push $0x202; popf; inc %ebx; 1: jmp 1b");

static void popf_that_sets_if_lets_them_in(void **state)
{
    guest_long(&guest, 0);
    guest.apic.pending = 0x59;
    engine_soft.vcpu_notify(guest.vcpu);
    assert_int_equal(RUN(code_popf), 0x59);
    assert_true(guest_stack(&guest, 2) & RFLAG_IF);
}

/* ---- NMI ---- */

GUEST_CODE(code_nmi, 64, "1: jmp 1b;");
GUEST_CODE(code_iretq, 64, "iretq");

static void nmis_are_blocked_until_iret(void **state)
{
    guest_long(&guest, 0);
    guest_load(&guest, code_nmi, code_nmi_end);
    guest.state.pending.nmi_pending = 1;
    assert_int_equal(RUN(code_nmi), VECTOR_NMI);
    assert_int_equal(guest.state.pending.nmi_blocked, 1);
    uint64_t frame = guest.state.gpr[CPU_RSP];
    /* Another one, in the handler: it waits. */
    guest.state.pending.nmi_pending = 1;
    guest.state.run_state = CPU_RUNNING;
    guest.state.rip = GUEST_HANDLERS + 0x90 * 16;
    assert_int_equal(RUN(code_nmi), 0x90);
    assert_int_equal(guest.state.pending.nmi_pending, 1);
    /* IRET lets it in, before the instruction returned to. */
    memcpy(guest.ram + 0x11000, code_iretq, (size_t)(code_iretq_end - code_iretq));
    guest.state.run_state = CPU_RUNNING;
    guest.state.rip = 0x11000;
    assert_int_equal(guest.state.gpr[CPU_RSP], frame);
    assert_int_equal(RUN(code_nmi), VECTOR_NMI);
    assert_int_equal(guest.state.pending.nmi_pending, 0);
    assert_int_equal(guest.state.gpr[CPU_RSP], frame);
}

/* ---- single steps ---- */

GUEST_CODE(code_popf_tf, 64,
           "push $0x102; popf; popf_tf_next: inc %ebx; popf_tf_after: inc %ebx;" GUEST_STOP);

static void popf_that_sets_tf_traps_after_the_next_instruction(void **state)
{
    guest_long(&guest, 0);
    assert_int_equal(RUN(code_popf_tf), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), SYMBOL(code_popf_tf, popf_tf_after));
    assert_int_equal(guest.state.gpr[CPU_RBX], 1);
    assert_true(guest_stack(&guest, 2) & RFLAG_TF);
    assert_int_equal(guest.state.rflags & RFLAG_TF, 0);
    assert_int_equal(guest.state.dr6 & (DR6_BS | 15), DR6_BS);
}

GUEST_CODE(
    code_iret_tf, 64,
    "push $0x10; push $0x20000; push $0x102; push $8; push $0x10000+iret_tf_next-code_iret_tf;"
    "iretq; iret_tf_next: inc %ebx; iret_tf_after: inc %ebx;" GUEST_STOP);

static void iret_that_sets_tf_traps_after_the_next_instruction(void **state)
{
    guest_long(&guest, 0);
    assert_int_equal(RUN(code_iret_tf), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), SYMBOL(code_iret_tf, iret_tf_after));
    assert_int_equal(guest.state.gpr[CPU_RBX], 1);
}

GUEST_CODE(code_syscall, 64, "syscall; syscall_after: hlt");

static void syscall_with_masked_tf_does_not_trap(void **state)
{
    guest_long(&guest, 3);
    guest.state.rflags |= RFLAG_TF;
    assert_int_equal(RUN(code_syscall), 256); /* LSTAR */
    assert_true(guest.state.gpr[CPU_R11] & RFLAG_TF);
}

GUEST_CODE(code_rep, 64, "mov $3, %ecx; rep stosb; rep_after:" GUEST_STOP);

static void a_step_through_rep_traps_each_time(void **state)
{
    guest_long(&guest, 0);
    guest.state.rip += 5;
    guest.state.gpr[CPU_RCX] = 3;
    guest.state.gpr[CPU_RDI] = GUEST_DATA;
    guest.state.rflags |= RFLAG_TF;
    assert_int_equal(RUN(code_rep), VECTOR_DB);
    assert_int_equal(guest.state.gpr[CPU_RCX], 2);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 5);
}

GUEST_CODE(code_branch, 64,
           "inc %ebx; inc %ebx; clc; jc 1f; inc %ebx; 1: jmp branch_to; nop; branch_to: inc "
           "%ebx;" GUEST_STOP);

static void branch_steps_trap_at_taken_branches_only(void **state)
{
    guest_long(&guest, 0);
    guest.state.rflags |= RFLAG_TF;
    guest.state.msr[CPU_MSR_DEBUGCTL] = 2;
    assert_int_equal(RUN(code_branch), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), SYMBOL(code_branch, branch_to));
    assert_int_equal(guest.state.gpr[CPU_RBX], 3);
    assert_int_equal(guest.state.msr[CPU_MSR_DEBUGCTL], 0);
}

/* ---- breakpoints ---- */

GUEST_CODE(code_break, 64,
           "inc %ebx; break_at: inc %ebx; movl $1, 0x60004; break_after:" GUEST_STOP);

static void an_instruction_breakpoint_faults_and_rf_passes_it(void **state)
{
    guest_long(&guest, 0);
    guest.state.dr[1] = SYMBOL(code_break, break_at);
    guest.state.dr7 = 0x400 | 1 << 2;
    assert_int_equal(RUN(code_break), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), SYMBOL(code_break, break_at));
    assert_int_equal(guest.state.gpr[CPU_RBX], 1);
    assert_int_equal(guest.state.dr6 & 15, 2);
    /* With RF it goes on, and RF is gone afterwards. */
    guest_long(&guest, 0);
    guest.state.dr[1] = SYMBOL(code_break, break_at);
    guest.state.dr7 = 0x400 | 1 << 2;
    guest.state.rip = SYMBOL(code_break, break_at);
    guest.state.rflags |= RFLAG_RF;
    assert_int_equal(RUN(code_break), IN_CODE);
    assert_true(guest.state.rip > SYMBOL(code_break, break_after));
    assert_int_equal(guest.state.rflags & RFLAG_RF, 0);
}

static void a_data_breakpoint_traps_after_the_store(void **state)
{
    guest_long(&guest, 0);
    guest.state.dr[2] = 0x60006; /* 2 bytes: 60006, 60007 */
    guest.state.dr7 = 0x400 | 1 << 4 | UINT32_C(1) << 24 | UINT32_C(1) << 26;
    assert_int_equal(RUN(code_break), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), SYMBOL(code_break, break_after));
    assert_int_equal(guest.state.dr6 & 15, 4);
    assert_int_equal(le32_read(guest.ram + 0x60004), 1);
    /* One byte further it is not hit. */
    guest_long(&guest, 0);
    guest.state.dr[2] = 0x60008;
    guest.state.dr7 = 0x400 | 1 << 4 | UINT32_C(1) << 24 | UINT32_C(1) << 26;
    assert_int_equal(RUN(code_break), IN_CODE);
}

GUEST_CODE(code_dr, 64, "mov %dr7, %rax");

static void general_detect_faults_and_is_cleared(void **state)
{
    guest_long(&guest, 0);
    guest.state.dr7 = 0x400 | DR7_GD;
    assert_int_equal(RUN(code_dr), VECTOR_DB);
    assert_true(guest.state.dr6 & DR6_BD);
    assert_int_equal(guest.state.dr7 & DR7_GD, 0);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT);
}

/* ---- INIT and SIPI ---- */

static void init_resets_and_the_boot_cpu_starts_at_the_top(void **state)
{
    guest_long(&guest, 0);
    guest.state.cr0 |= CR0_CD;
    guest.state.msr[CPU_MSR_LSTAR] = 0x1234;
    engine_soft.vcpu_kick(guest.vcpu);
    guest_load(&guest, code_nmi, code_nmi_end);
    assert_int_equal(guest_go(&guest), ENGINE_EXIT_KICK);
    engine_soft.vcpu_signal(guest.vcpu, ENGINE_SIGNAL_INIT, 0);
    struct cpu_state after;
    assert_int_equal(engine_soft.vcpu_get_state(guest.vcpu, &after, NULL), 0);
    assert_int_equal(after.rip, 0xfff0);
    assert_int_equal(after.segment[CPU_CS].base, 0xffff0000);
    assert_int_equal(after.cr0, CR0_ET | CR0_CD);
    assert_int_equal(after.efer | after.cr3 | after.cr4, 0);
    assert_int_equal(after.msr[CPU_MSR_LSTAR], 0x1234);
    assert_int_equal(after.run_state, CPU_RUNNING);
}

GUEST_CODE(code_sipi, 16, "mov %cs, %ax; mov %ax, %bx;" GUEST_STOP);

static void sipi_starts_a_waiting_cpu_in_its_page(void **state)
{
    guest_real(&guest);
    memcpy(guest.ram + 0x12000, code_sipi, (size_t)(code_sipi_end - code_sipi));
    guest.state.run_state = CPU_WAIT_FOR_SIPI;
    assert_int_equal(engine_soft.vcpu_set_state(guest.vcpu, &guest.state, NULL), 0);
    engine_soft.vcpu_signal(guest.vcpu, ENGINE_SIGNAL_SIPI, 0x12);
    struct engine_exit out;
    assert_int_equal(engine_soft.vcpu_run(guest.vcpu, &out, NULL), 0);
    assert_int_equal(out.reason, ENGINE_EXIT_KICK);
    assert_int_equal(engine_soft.vcpu_get_state(guest.vcpu, &guest.state, NULL), 0);
    assert_int_equal(guest.state.run_state, CPU_HALTED);
    assert_int_equal(guest.state.gpr[CPU_RBX] & 0xffff, 0x1200);
    assert_int_equal(guest.state.segment[CPU_CS].base, 0x12000);
    /* A running vCPU drops another. */
    engine_soft.vcpu_signal(guest.vcpu, ENGINE_SIGNAL_SIPI, 0x13);
    assert_int_equal(engine_soft.vcpu_get_state(guest.vcpu, &guest.state, NULL), 0);
    assert_int_equal(guest.state.segment[CPU_CS].base, 0x12000);
}

/* ---- real mode ---- */

GUEST_CODE(code_real, 16, "stc; int $0x21");

static void real_mode_goes_through_the_vector_table(void **state)
{
    guest_real(&guest);
    guest.state.rflags |= RFLAG_IF;
    assert_int_equal(RUN(code_real), 0x21);
    assert_int_equal(guest.state.gpr[CPU_RSP], 0x8000 - 6);
    assert_int_equal(le16_read(guest.ram + 0x7ffa), 3);
    assert_int_equal(le16_read(guest.ram + 0x7ffc), GUEST_CODE_AT >> 4);
    assert_int_equal(le16_read(guest.ram + 0x7ffe), RFLAG_ONE | RFLAG_IF | RFLAG_CF);
    assert_int_equal(guest.state.rflags & RFLAG_IF, 0);
}

static void a_restored_event_is_delivered_first(void **state)
{
    guest_long(&guest, 0);
    guest.state.pending.exception = VECTOR_PF;
    guest.state.pending.exception_has_error = 1;
    guest.state.pending.exception_error = 5;
    guest.state.pending.exception_has_payload = 1;
    guest.state.pending.exception_payload = 0xabcdef;
    assert_int_equal(RUN(code_ud), VECTOR_PF);
    assert_int_equal(guest.state.cr2, 0xabcdef);
    assert_int_equal(guest_stack(&guest, 0), 5);
    assert_int_equal(guest_stack(&guest, 1), GUEST_CODE_AT);
    guest_long(&guest, 0);
    guest.state.pending.interrupt = 0x77;
    assert_int_equal(RUN(code_ud), 0x77);
}

int main(void)
{
#define EVENT_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        EVENT_TEST(an_exception_pushes_the_whole_frame),
        EVENT_TEST(from_user_mode_the_stack_is_rsp0_and_ss_null),
        EVENT_TEST(an_ist_switches_the_stack_at_the_same_level),
        EVENT_TEST(error_codes_name_the_selector),
        EVENT_TEST(a_page_fault_sets_cr2_and_is_restarted),
        EVENT_TEST(a_fault_while_delivering_a_fault_doubles),
        EVENT_TEST(a_fault_while_delivering_a_benign_one_comes_alone),
        EVENT_TEST(page_fault_in_contributory_is_serial_and_the_reverse_doubles),
        EVENT_TEST(a_triple_fault_keeps_the_state_before_the_first),
        EVENT_TEST(software_interrupts_need_a_gate_for_their_level),
        EVENT_TEST(sti_holds_interrupts_for_one_instruction),
        EVENT_TEST(a_restored_shadow_counts),
        EVENT_TEST(sti_hlt_cannot_sleep_through_an_interrupt),
        EVENT_TEST(hlt_sleeps_until_it_is_notified),
        EVENT_TEST(mov_ss_holds_interrupts_and_steps_back),
        EVENT_TEST(interrupts_wait_for_if),
        EVENT_TEST(popf_that_sets_if_lets_them_in),
        EVENT_TEST(nmis_are_blocked_until_iret),
        EVENT_TEST(popf_that_sets_tf_traps_after_the_next_instruction),
        EVENT_TEST(iret_that_sets_tf_traps_after_the_next_instruction),
        EVENT_TEST(syscall_with_masked_tf_does_not_trap),
        EVENT_TEST(a_step_through_rep_traps_each_time),
        EVENT_TEST(branch_steps_trap_at_taken_branches_only),
        EVENT_TEST(an_instruction_breakpoint_faults_and_rf_passes_it),
        EVENT_TEST(a_data_breakpoint_traps_after_the_store),
        EVENT_TEST(general_detect_faults_and_is_cleared),
        EVENT_TEST(init_resets_and_the_boot_cpu_starts_at_the_top),
        EVENT_TEST(sipi_starts_a_waiting_cpu_in_its_page),
        EVENT_TEST(real_mode_goes_through_the_vector_table),
        EVENT_TEST(a_restored_event_is_delivered_first),
    };
    return cmocka_run_group_tests_name("soft event", tests, NULL, NULL);
}
