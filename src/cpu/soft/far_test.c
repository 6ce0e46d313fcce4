/* Far transfers, segments, SYSCALL and its kin, task switches, changes of mode. */
#include "cpu/soft/guest_harness.h"

static struct guest guest;

static int setup(void **state)
{
    guest_begin(&guest, NULL);
    return 0;
}

static int setup_amd(void **state)
{
    struct cpuid cpuid;
    guest_cpuid(&cpuid, true);
    guest_begin(&guest, &cpuid);
    return 0;
}

static int teardown(void **state)
{
    guest_end(&guest);
    return 0;
}

enum { IN_CODE = 0x1000, LSTAR_HANDLER = 256 };

static unsigned run(const uint8_t *code, const uint8_t *end)
{
    assert_int_equal(guest_run_bytes(&guest, code, end), ENGINE_EXIT_KICK);
    return guest_in_handler(&guest) ? guest_vector(&guest) : IN_CODE;
}
#define RUN(code) run(code, code##_end)

static unsigned cpl(void)
{
    return guest.state.segment[CPU_SS].attributes >> CPU_SEG_DPL_SHIFT & 3;
}

#define OFFSET(code, name)                                                                         \
    ({                                                                                             \
        extern const uint8_t name[];                                                               \
        (uint64_t)(name - code);                                                                   \
    })

/* ---- SYSCALL, SYSRET ---- */

GUEST_CODE(code_syscall, 64, "nop; syscall; nop");

static void syscall_enters_with_fixed_segments(void **state)
{
    guest_long(&guest, 3);
    guest.state.rflags |= RFLAG_IF | RFLAG_DF | RFLAG_CF;
    assert_int_equal(RUN(code_syscall), LSTAR_HANDLER);
    assert_int_equal(guest.state.gpr[CPU_RCX], GUEST_CODE_AT + 3);
    assert_int_equal(guest.state.gpr[CPU_R11], RFLAG_ONE | RFLAG_IF | RFLAG_DF | RFLAG_CF);
    assert_int_equal(guest.state.rflags, RFLAG_ONE | RFLAG_CF);
    assert_int_equal(guest.state.segment[CPU_CS].selector, SEL_CODE64);
    assert_int_equal(guest.state.segment[CPU_CS].attributes, 0xa09b);
    assert_int_equal(guest.state.segment[CPU_SS].selector, SEL_DATA);
    assert_int_equal(guest.state.segment[CPU_SS].attributes, 0xc093);
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_USER_STACK); /* untouched */
    guest_long(&guest, 3);
    guest.state.efer &= ~(uint64_t)EFER_SCE;
    assert_int_equal(RUN(code_syscall), VECTOR_UD);
}

GUEST_CODE(code_sysret, 64, "sysretq; sysret_user: int $0x80");
GUEST_CODE(code_sysret32, 64, "sysretl; sysret32_user: .code32; inc %eax; int $0x80; .code64");

static void sysret_returns_to_64_and_32_bits(void **state)
{
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RCX] = GUEST_CODE_AT + OFFSET(code_sysret, sysret_user);
    guest.state.gpr[CPU_R11] = RFLAG_CF | RFLAG_VM | RFLAG_RF | RFLAG_ID;
    assert_int_equal(RUN(code_sysret), 0x80);
    assert_int_equal(guest_stack(&guest, 1), SEL_USER64);
    assert_int_equal(guest_stack(&guest, 2), RFLAG_ONE | RFLAG_CF | RFLAG_ID);
    assert_int_equal(guest_stack(&guest, 4), SEL_USER_DATA);
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RCX] =
        UINT64_C(0xff00000000) | (GUEST_CODE_AT + OFFSET(code_sysret32, sysret32_user));
    assert_int_equal(RUN(code_sysret32), 0x80);
    assert_int_equal(guest_stack(&guest, 1), SEL_USER32);
    assert_int_equal(guest.state.gpr[CPU_RAX], 1); /* 40 is INC EAX there, REX here */
}

static void a_non_canonical_return_address(bool amd)
{
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RCX] = UINT64_C(1) << 47;
    guest.state.gpr[CPU_R11] = RFLAG_ONE;
    assert_int_equal(RUN(code_sysret), VECTOR_GP);
    assert_int_equal(guest_stack(&guest, 0), 0);
    assert_int_equal(guest_stack(&guest, 1), amd ? UINT64_C(1) << 47 : GUEST_CODE_AT);
    assert_int_equal(guest_stack(&guest, 2), amd ? SEL_USER64 : SEL_CODE64);
}

static void intel_sysret_faults_in_the_kernel(void **state)
{
    a_non_canonical_return_address(false);
}

static void amd_sysret_faults_in_user_mode(void **state)
{
    a_non_canonical_return_address(true);
}

GUEST_CODE(code_syscall32, 32, "syscall; nop");
GUEST_CODE(code_sysenter, 32, "sysenter; nop");

static void compat_syscall_is_for_amd_only(void **state)
{
    guest_compat(&guest, 3);
    assert_int_equal(RUN(code_syscall32), VECTOR_UD);
    guest_compat(&guest, 3);
    guest.state.rflags |= RFLAG_IF;
    guest.state.msr[CPU_MSR_SYSENTER_CS] = SEL_CODE64;
    guest.state.msr[CPU_MSR_SYSENTER_ESP] = GUEST_STACK;
    guest.state.msr[CPU_MSR_SYSENTER_EIP] = GUEST_HANDLERS + LSTAR_HANDLER * 16;
    assert_int_equal(RUN(code_sysenter), LSTAR_HANDLER);
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_STACK);
    assert_int_equal(guest.state.segment[CPU_CS].attributes, 0xa09b); /* 64-bit */
    assert_int_equal(guest.state.rflags & RFLAG_IF, 0);
    guest_compat(&guest, 3);
    guest.state.msr[CPU_MSR_SYSENTER_CS] = 0;
    assert_int_equal(RUN(code_sysenter), VECTOR_GP);
}

static void amd_compat_has_syscall_but_no_sysenter(void **state)
{
    guest_compat(&guest, 3);
    assert_int_equal(RUN(code_syscall32), LSTAR_HANDLER); /* CSTAR */
    assert_int_equal(guest.state.gpr[CPU_RCX], GUEST_CODE_AT + 2);
    guest_compat(&guest, 3);
    guest.state.msr[CPU_MSR_SYSENTER_CS] = SEL_CODE64;
    assert_int_equal(RUN(code_sysenter), VECTOR_UD);
}

GUEST_CODE(code_sysexit, 64, "rex.w sysexit; sysexit_to: int $0x80");

static void sysexit_needs_canonical_targets(void **state)
{
    guest_long(&guest, 0);
    guest.state.msr[CPU_MSR_SYSENTER_CS] = SEL_CODE64; /* user 64: +32 = 0x28 */
    guest.state.gpr[CPU_RDX] = GUEST_CODE_AT + OFFSET(code_sysexit, sysexit_to);
    guest.state.gpr[CPU_RCX] = GUEST_USER_STACK - 8;
    assert_int_equal(RUN(code_sysexit), 0x80);
    assert_int_equal(guest_stack(&guest, 1), SEL_USER64);
    assert_int_equal(guest_stack(&guest, 3), GUEST_USER_STACK - 8);
    guest_long(&guest, 0);
    guest.state.msr[CPU_MSR_SYSENTER_CS] = SEL_CODE64;
    guest.state.gpr[CPU_RCX] = UINT64_C(1) << 63;
    assert_int_equal(RUN(code_sysexit), VECTOR_GP);
}

static void int_80_from_compat_pushes_quadwords(void **state)
{
    GUEST_CODE(code_int80, 32, "stc; int $0x80");
    guest_compat(&guest, 3);
    assert_int_equal(RUN(code_int80), 0x80);
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_RSP0 - 40);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 3);
    assert_int_equal(guest_stack(&guest, 1), SEL_USER32);
}

/* ---- IRET ---- */

GUEST_CODE(code_iretq, 64, "iretq; iretq_user: int $0x80");

static void push_frame(uint64_t rip, uint64_t cs, uint64_t rflags, uint64_t rsp, uint64_t ss)
{
    uint64_t at = GUEST_STACK - 40;
    const uint64_t frame[] = {rip, cs, rflags, rsp, ss};
    memcpy(guest.ram + at, frame, sizeof frame);
    guest.state.gpr[CPU_RSP] = at;
}

static void iretq_to_user_mode_drops_kernel_segments(void **state)
{
    guest_long(&guest, 0);
    guest.state.segment[CPU_FS] = guest.state.segment[CPU_DS];
    guest.state.segment[CPU_GS] =
        (struct cpu_segment){.selector = 3, .base = 0x123456000, .attributes = CPU_SEG_UNUSABLE};
    push_frame(GUEST_CODE_AT + 2, SEL_USER64, RFLAG_ONE | RFLAG_IOPL | RFLAG_IF, GUEST_USER_STACK,
               SEL_USER_DATA);
    assert_int_equal(RUN(code_iretq), 0x80);
    assert_int_equal(guest_stack(&guest, 1), SEL_USER64);
    assert_int_equal(guest_stack(&guest, 2), RFLAG_ONE | RFLAG_IOPL | RFLAG_IF);
    assert_int_equal(guest_stack(&guest, 3), GUEST_USER_STACK);
    assert_int_equal(guest.state.segment[CPU_DS].selector, 0);
    assert_true(guest.state.segment[CPU_FS].attributes & CPU_SEG_UNUSABLE);
    assert_int_equal(guest.state.segment[CPU_GS].selector, 0); /* its RPL goes, its base stays */
    assert_int_equal(guest.state.segment[CPU_GS].base, 0x123456000);
}

GUEST_CODE(code_iretq_stop, 64, "iretq; nop;" GUEST_STOP);

static void iretq_within_the_kernel_takes_ss_from_the_frame(void **state)
{
    guest_long(&guest, 0);
    push_frame(GUEST_CODE_AT + 2, SEL_CODE64, RFLAG_ONE, 0x21238, 0); /* null SS at CPL 0 */
    assert_int_equal(RUN(code_iretq_stop), IN_CODE);
    assert_int_equal(guest.state.gpr[CPU_RSP], 0x21238);
    assert_int_equal(guest.state.segment[CPU_SS].selector, 0);
    assert_int_equal(cpl(), 0);
}

static void iretq_refuses_what_it_must(void **state)
{
    static const struct {
        uint64_t rip, cs, ss;
        unsigned vector;
        uint32_t error;
    } cases[] = {
        {GUEST_CODE_AT, SEL_USER64, 0, VECTOR_GP, 0},               /* null SS at CPL 3 */
        {GUEST_CODE_AT, 0, SEL_DATA, VECTOR_GP, 0},                 /* null CS */
        {GUEST_CODE_AT, SEL_DATA, SEL_DATA, VECTOR_GP, SEL_DATA},   /* no code */
        {GUEST_CODE_AT, 0x1000, SEL_DATA, VECTOR_GP, 0x1000},       /* outside the GDT */
        {UINT64_C(1) << 47, SEL_CODE64, SEL_DATA, VECTOR_GP, 0},    /* not canonical */
        {GUEST_CODE_AT, SEL_USER64, SEL_DATA, VECTOR_GP, SEL_DATA}, /* RPL and DPL of SS */
        {GUEST_CODE_AT, SEL_CODE64, SEL_ABSENT, VECTOR_SS, SEL_ABSENT},
        {GUEST_CODE_AT, SEL_CODE64, SEL_READ_ONLY, VECTOR_GP, SEL_READ_ONLY},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        guest_long(&guest, 0);
        if (cases[i].ss == SEL_ABSENT) /* data, writable, but not present */
            guest.ram[GUEST_GDT + SEL_ABSENT + 5] = 0x13;
        push_frame(cases[i].rip, cases[i].cs, RFLAG_ONE, GUEST_STACK, cases[i].ss);
        uint64_t rsp = guest.state.gpr[CPU_RSP];
        unsigned vector = RUN(code_iretq);
        if (vector != cases[i].vector || guest_stack(&guest, 0) != cases[i].error)
            fail_msg("case %u: vector %u error %llx", i, vector,
                     (unsigned long long)guest_stack(&guest, 0));
        assert_int_equal(guest_stack(&guest, 1), GUEST_CODE_AT);
        assert_int_equal(guest_stack(&guest, 4), rsp); /* nothing was popped */
    }
    guest_long(&guest, 0);
    push_frame(GUEST_CODE_AT, SEL_CODE64, RFLAG_ONE, GUEST_STACK, SEL_DATA);
    guest.state.rflags |= RFLAG_NT;
    assert_int_equal(RUN(code_iretq), VECTOR_GP);
}

static void iret_in_user_mode_cannot_change_iopl_or_if(void **state)
{
    guest_long(&guest, 3);
    uint64_t at = GUEST_USER_STACK - 40;
    GUEST_CODE(code_iret3, 64, "iretq; iret3_to: int $0x80");
    const uint64_t frame[] = {GUEST_CODE_AT + OFFSET(code_iret3, iret3_to), SEL_USER64,
                              RFLAG_ONE | RFLAG_IOPL | RFLAG_NT, GUEST_USER_STACK, SEL_USER_DATA};
    memcpy(guest.ram + at, frame, sizeof frame);
    guest.state.gpr[CPU_RSP] = at;
    guest.state.rflags |= RFLAG_IF;
    assert_int_equal(RUN(code_iret3), 0x80);
    assert_int_equal(guest_stack(&guest, 2), RFLAG_ONE | RFLAG_IF | RFLAG_NT);
}

/* ---- gates, far calls and returns ---- */

GUEST_CODE(code_gate, 64, "lcall *gate_pointer(%rip); nop; gate_pointer: .long 0; .word 0x4b");

static void a_call_gate_enters_the_kernel_on_rsp0(void **state)
{
    guest_long(&guest, 3);
    assert_int_equal(RUN(code_gate), LSTAR_HANDLER);
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_RSP0 - 32);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 6);
    assert_int_equal(guest_stack(&guest, 1), SEL_USER64);
    assert_int_equal(guest_stack(&guest, 2), GUEST_USER_STACK);
    assert_int_equal(guest_stack(&guest, 3), SEL_USER_DATA);
    assert_int_equal(cpl(), 0);
    guest_long(&guest, 3);
    guest.ram[GUEST_GDT + 0x48 + 5] = 0x8c; /* DPL 0 */
    assert_int_equal(RUN(code_gate), VECTOR_GP);
    assert_int_equal(guest_stack(&guest, 0), 0x48);
    guest_long(&guest, 3);
    guest.ram[GUEST_GDT + 0x48 + 5] = 0x6c; /* not present */
    assert_int_equal(RUN(code_gate), VECTOR_NP);
}

GUEST_CODE(code_lret, 64, "lretq; lret_user: int $0x80");

static void a_far_return_leaves_to_user_mode(void **state)
{
    guest_long(&guest, 0);
    const uint64_t frame[] = {GUEST_CODE_AT + OFFSET(code_lret, lret_user), SEL_USER64,
                              GUEST_USER_STACK, SEL_USER_DATA};
    memcpy(guest.ram + GUEST_STACK - 32, frame, sizeof frame);
    guest.state.gpr[CPU_RSP] = GUEST_STACK - 32;
    assert_int_equal(RUN(code_lret), 0x80);
    assert_int_equal(guest_stack(&guest, 1), SEL_USER64);
    assert_int_equal(guest_stack(&guest, 3), GUEST_USER_STACK);
}

GUEST_CODE(code_conforming, 64,
           "lcall *conforming_pointer(%rip); conforming_to: int $0x80;"
           "conforming_pointer: .long 0x10006; .word 0x58");

static void conforming_code_keeps_the_privilege(void **state)
{
    guest_long(&guest, 3);
    assert_int_equal(RUN(code_conforming), 0x80);
    assert_int_equal(guest_stack(&guest, 1), SEL_CONFORMING | 3);
    assert_int_equal(le32_read(guest.ram + GUEST_USER_STACK - 8), GUEST_CODE_AT + 6);
    assert_int_equal(le32_read(guest.ram + GUEST_USER_STACK - 4), SEL_USER64);
}

/* ---- segment registers ---- */

GUEST_CODE(code_load_ds, 64, "mov %eax, %ds;" GUEST_STOP);
GUEST_CODE(code_load_ss, 64, "mov %eax, %ss;" GUEST_STOP);

static void segment_loads_check_and_mark(void **state)
{
    static const struct {
        bool ss;
        uint16_t selector;
        unsigned vector;
        uint32_t error;
    } cases[] = {
        {false, 0, IN_CODE, 0},
        {false, 3, IN_CODE, 0},
        {false, SEL_USER_DATA, IN_CODE, 0},
        {false, SEL_READ_ONLY, IN_CODE, 0},
        {false, SEL_CODE64, IN_CODE, 0},
        {false, SEL_DATA | 3, VECTOR_GP, SEL_DATA},
        {false, SEL_TSS, VECTOR_GP, SEL_TSS},
        {false, SEL_ABSENT, VECTOR_NP, SEL_ABSENT},
        {false, 0x1000, VECTOR_GP, 0x1000},
        {false, 0xc, VECTOR_GP, 0xc}, /* no LDT */
        {true, 0, IN_CODE, 0},
        {true, 3, VECTOR_GP, 0},
        {true, SEL_USER_DATA, VECTOR_GP, SEL_USER_DATA & 0xfffc},
        {true, SEL_READ_ONLY, VECTOR_GP, SEL_READ_ONLY},
        {true, SEL_CODE64, VECTOR_GP, SEL_CODE64},
        {true, SEL_ABSENT, VECTOR_SS, SEL_ABSENT},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        guest_long(&guest, 0);
        guest.state.gpr[CPU_RAX] = cases[i].selector;
        unsigned vector = cases[i].ss ? RUN(code_load_ss) : RUN(code_load_ds);
        if (vector != cases[i].vector)
            fail_msg("case %u: vector %u", i, vector);
        if (vector != IN_CODE)
            assert_int_equal(guest_stack(&guest, 0), cases[i].error);
        else
            assert_int_equal(guest.state.segment[cases[i].ss ? CPU_SS : CPU_DS].selector,
                             cases[i].selector);
    }
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RAX] = SEL_SMALL; /* 0x92: accessed is clear */
    assert_int_equal(RUN(code_load_ds), IN_CODE);
    assert_int_equal(guest.ram[GUEST_GDT + SEL_SMALL + 5], 0x93);
}

GUEST_CODE(code_fs, 64,
           "mov %eax, %fs; mov %fs:0, %rbx; wrgsbase %rcx; swapgs; rdgsbase %rdx; swapgs; rdgsbase "
           "%rsi;" GUEST_STOP);

static void bases_follow_selectors_and_their_instructions(void **state)
{
    guest_long(&guest, 0);
    guest.state.cr4 |= CR4_FSGSBASE;
    guest.state.segment[CPU_FS].base = 0xffff800000000000;
    guest.state.msr[CPU_MSR_KERNEL_GS_BASE] = 0x777;
    guest.state.gpr[CPU_RAX] = 0;
    guest.state.gpr[CPU_RCX] = 0xffff880000000000;
    *guest_quad(&guest, 0) = 0x5a5a;
    assert_int_equal(RUN(code_fs), IN_CODE);
    assert_int_equal(guest.state.gpr[CPU_RBX], 0x5a5a); /* a null selector clears the base */
    assert_int_equal(guest.state.gpr[CPU_RDX], 0x777);
    assert_int_equal(guest.state.gpr[CPU_RSI], 0xffff880000000000);
    guest_long(&guest, 0);
    guest.state.rip += 2 + 9; /* WRGSBASE without CR4.FSGSBASE */
    assert_int_equal(RUN(code_fs), VECTOR_UD);
    guest_long(&guest, 0);
    guest.state.cr4 |= CR4_FSGSBASE;
    guest.state.rip += 2 + 9;
    guest.state.gpr[CPU_RCX] = UINT64_C(1) << 62;
    assert_int_equal(RUN(code_fs), VECTOR_GP);
}

GUEST_CODE(code_limit, 32, "mov %eax, %ds; mov %ebx, %ds:(%ecx); mov (%ecx), %edx;" GUEST_STOP);

static void limits_hold_outside_64_bit_mode(void **state)
{
    static const struct {
        uint16_t selector;
        uint32_t offset;
        bool faults;
    } cases[] = {
        {SEL_SMALL, 0xffc, false},
        {SEL_SMALL, 0xffd, true},
        {SEL_SMALL, 0xffffffff, true},
        {SEL_DOWN, 0xffc, true},
        {SEL_DOWN, 0xfff, true},
        {SEL_DOWN, 0x1000, false},
        {SEL_DOWN, 0x60000, false},
        {SEL_READ_ONLY, 0x60000, true},
        {SEL_CODE32, 0x60000, true},
        {SEL_DATA, 0x60000, false},
        {0, 0x60000, true},
        {SEL_DOWN, 0xfffffffe, true},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        guest_compat(&guest, 0);
        guest.state.gpr[CPU_RAX] = cases[i].selector;
        guest.state.gpr[CPU_RCX] = cases[i].offset;
        guest.state.gpr[CPU_RBX] = 0x11223344;
        unsigned vector = RUN(code_limit);
        if (vector != (cases[i].faults ? VECTOR_GP : (unsigned)IN_CODE))
            fail_msg("case %u: vector %u", i, vector);
        if (!cases[i].faults)
            assert_int_equal(guest.state.gpr[CPU_RDX], 0x11223344);
        else
            assert_int_equal(guest_stack(&guest, 0), 0);
    }
}

/* Flat segments end at 4 GiB: an access across that end is outside of them. */
static void flat_segments_end_at_4_gib(void **state)
{
    GUEST_CODE(code_read, 32, "mov (%ecx), %ebx;" GUEST_STOP);
    GUEST_CODE(code_write, 32, "mov %ebx, (%ecx);" GUEST_STOP);
    GUEST_CODE(code_push, 32, "mov %ecx, %esp; pop %ebx;" GUEST_STOP);
    guest_compat(&guest, 0);
    guest.state.gpr[CPU_RCX] = 0xfffffffe;
    assert_int_equal(RUN(code_read), VECTOR_GP);
    guest_compat(&guest, 0);
    guest.state.gpr[CPU_RCX] = 0xfffffffd;
    assert_int_equal(RUN(code_write), VECTOR_GP);
    guest_compat(&guest, 3);
    guest.state.gpr[CPU_RCX] = 0xfffffffe;
    assert_int_equal(RUN(code_push), VECTOR_SS);
    guest_compat(&guest, 0);
    guest.state.gpr[CPU_RCX] = 0xfffffffc; /* the last four bytes: inside, and not mapped */
    assert_int_equal(RUN(code_read), VECTOR_PF);
    assert_int_equal(guest.state.cr2, 0xfffffffc);
}

GUEST_CODE(
    code_verify, 64,
    "lar %eax, %ebx; setz %cl; lsl %eax, %edx; setz %ch; verr %ax; setz %sil; verw %ax; setz "
    "%dil;" GUEST_STOP);

static void lar_lsl_verr_verw_tell_without_faults(void **state)
{
    static const struct {
        uint16_t selector;
        bool lar, lsl, verr, verw;
        uint32_t rights, limit;
    } cases[] = {
        {SEL_DATA, true, true, true, true, 0xc09300, 0xffffffff},
        {SEL_SMALL, true, true, true, true, 0x409200, 0xfff},
        {SEL_READ_ONLY, true, true, true, false, 0xc09100, 0xffffffff},
        {SEL_CODE64, true, true, true, false, 0xa09b00, 0xffffffff},
        {SEL_TSS, true, true, false, false, 0x008b00, 0x2067},
        {SEL_GATE & 0xfffc, true, false, false, false, 0x00ec00, 0},
        {0, false, false, false, false, 0, 0},
        {0x1000, false, false, false, false, 0, 0},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        guest_long(&guest, 0);
        guest.state.gpr[CPU_RAX] = cases[i].selector;
        assert_int_equal(RUN(code_verify), IN_CODE);
        const uint64_t *gpr = guest.state.gpr;
        if ((gpr[CPU_RCX] & 1) != cases[i].lar || (gpr[CPU_RCX] >> 8 & 1) != cases[i].lsl ||
            (gpr[CPU_RSI] & 1) != cases[i].verr || (gpr[CPU_RDI] & 1) != cases[i].verw)
            fail_msg("selector %x: lar %d lsl %d verr %d verw %d", cases[i].selector,
                     (int)(gpr[CPU_RCX] & 1), (int)(gpr[CPU_RCX] >> 8 & 1), (int)(gpr[CPU_RSI] & 1),
                     (int)(gpr[CPU_RDI] & 1));
        if (cases[i].lar)
            assert_int_equal(gpr[CPU_RBX] & 0xf0ff00, cases[i].rights);
        if (cases[i].lsl)
            assert_int_equal(gpr[CPU_RDX], cases[i].limit);
    }
}

/* ---- changes of mode ---- */

GUEST_CODE(code_to_protected, 16,
           "lgdtl %cs:real_gdt - code_to_protected; mov %cr0, %eax; or $1, %al; mov %eax, %cr0;"
           "ljmpl $0x40, $0x10000 + real_32 - code_to_protected;"
           "real_gdt: .word 0xaf; .long 0x6000;"
           "real_32: .code32; mov $0x10, %eax; mov %eax, %ds; mov %eax, %ss; mov $0x20000, %esp;"
           "mov $0x1000, %eax; mov %eax, %cr3; mov %cr4, %eax; or $0x20, %eax; mov %eax, %cr4;"
           "mov $0xc0000080, %ecx; rdmsr; or $0x100, %eax; wrmsr;"
           "mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; inc %ebx;"
           "ljmpl $0x08, $0x10000 + real_64 - code_to_protected;"
           "real_64: .code64; mov $0x1122334455667788, %rdx; mov %cr0, %rsi;" GUEST_STOP);

static void a_guest_climbs_from_real_to_long_mode(void **state)
{
    guest_long(&guest, 0); /* for its tables */
    static uint8_t tables[0x5000 + GUEST_GDT_SIZE];
    memcpy(tables, guest.ram + 0x1000, sizeof tables);
    guest_real(&guest);
    memcpy(guest.ram + 0x1000, tables, sizeof tables);
    assert_int_equal(RUN(code_to_protected), IN_CODE);
    assert_int_equal(guest.state.gpr[CPU_RDX], 0x1122334455667788);
    assert_int_equal(guest.state.gpr[CPU_RBX], 1);
    assert_true(guest.state.efer & EFER_LMA);
    assert_int_equal(guest.state.segment[CPU_CS].selector, SEL_CODE64);
    assert_true(guest.state.gpr[CPU_RSI] & CR0_PG);
}

GUEST_CODE(code_unreal, 16, "mov $0x12345678, %ebx; mov %ebx, %ds:(%eax);" GUEST_STOP);

static void unreal_mode_keeps_the_big_limit(void **state)
{
    guest_real(&guest);
    guest.state.gpr[CPU_RAX] = 0x200000;
    guest.state.segment[CPU_DS].limit = UINT32_MAX;
    assert_int_equal(RUN(code_unreal), IN_CODE);
    assert_int_equal(le32_read(guest.ram + 0x200000), 0x12345678);
    guest_real(&guest);
    guest.state.gpr[CPU_RAX] = 0xfffe; /* four bytes past the limit */
    assert_int_equal(RUN(code_unreal), VECTOR_GP);
}

/* ---- tasks and virtual-8086 ---- */

GUEST_CODE(code_task, 32,
           "mov $7, %ebx; lcall $0xa0, $0; task_back: mov %ecx, %edx;" GUEST_STOP
           "task_new: inc %ecx; iret; inc %ecx;");

static void a_task_call_switches_and_iret_comes_back(void **state)
{
    guest_legacy(&guest, 0, true);
    enum { TASK_AT = 0x70000 };
    struct descriptor_words words = guest_descriptor(TASK_AT, 0x67, 0x0089);
    memcpy(guest.ram + GUEST_GDT + SEL_TASK, &words, sizeof words);
    memset(guest.ram + TASK_AT, 0, 104);
    le32_write(guest.ram + TASK_AT + 28, GUEST_PML4);
    le32_write(guest.ram + TASK_AT + 32, GUEST_CODE_AT + (uint32_t)OFFSET(code_task, task_new));
    le32_write(guest.ram + TASK_AT + 36, 2);
    le32_write(guest.ram + TASK_AT + 44, 100); /* ECX */
    le32_write(guest.ram + TASK_AT + 56, 0x28000);
    static const uint16_t selectors[] = {SEL_DATA, SEL_CODE32, SEL_DATA, SEL_DATA, 0, 0};
    for (unsigned i = 0; i < 6; i++)
        le32_write(guest.ram + TASK_AT + 72 + i * 4, selectors[i]);
    le32_write(guest.ram + GUEST_TSS + 28, GUEST_PML4); /* static field: software's */
    assert_int_equal(RUN(code_task), IN_CODE);
    assert_int_equal(guest.state.gpr[CPU_RBX], 7); /* of the old task again */
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_STACK);
    assert_int_equal(guest.state.task.selector, SEL_TSS);
    assert_int_equal(le32_read(guest.ram + TASK_AT + 44), 101);  /* saved by IRET */
    assert_int_equal(le16_read(guest.ram + TASK_AT), SEL_TSS);   /* back link */
    assert_int_equal(guest.ram[GUEST_GDT + SEL_TASK + 5], 0x89); /* no longer busy */
    assert_true(guest.state.cr0 & CR0_TS);
    assert_int_equal(guest.state.rflags & RFLAG_NT, 0);
}

GUEST_CODE(code_vm86, 32,
           "iret; vm86_code: .code16; mov %cs, %ax; mov %ax, %bx; int $0x80; .code32");

static void iret_enters_vm86_and_an_interrupt_leaves_it(void **state)
{
    guest_legacy(&guest, 0, true);
    guest_set_gate(&guest, 0x80, SYSTEM_INT, 3, 0, SEL_CODE32);
    uint32_t offset = (uint32_t)OFFSET(code_vm86, vm86_code);
    const uint32_t frame[] = {offset,
                              GUEST_CODE_AT >> 4,
                              RFLAG_ONE | RFLAG_VM | RFLAG_IOPL,
                              0x1000,
                              0x3000,
                              0x4444,
                              0x5555,
                              0x6666,
                              0x7777};
    memcpy(guest.ram + GUEST_STACK - sizeof frame, frame, sizeof frame);
    guest.state.gpr[CPU_RSP] = GUEST_STACK - sizeof frame;
    assert_int_equal(RUN(code_vm86), 0x80);
    assert_int_equal(guest.state.gpr[CPU_RBX] & 0xffff, GUEST_CODE_AT >> 4);
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_RSP0 - 36);
    const uint8_t *at = guest.ram + GUEST_RSP0 - 36;
    assert_int_equal(le32_read(at), offset + 6);
    assert_int_equal(le32_read(at + 4), GUEST_CODE_AT >> 4);
    assert_int_equal(le32_read(at + 8), RFLAG_ONE | RFLAG_VM | RFLAG_IOPL);
    static const uint32_t rest[] = {0x1000, 0x3000, 0x4444, 0x5555, 0x6666, 0x7777};
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(le32_read(at + 12 + i * 4), rest[i]);
    assert_int_equal(guest.state.rflags & RFLAG_VM, 0);
    assert_true(guest.state.segment[CPU_DS].attributes & CPU_SEG_UNUSABLE);
    /* Without IOPL 3, INT n is the monitor's. */
    guest_legacy(&guest, 0, true);
    memcpy(guest.ram + GUEST_STACK - sizeof frame, frame, sizeof frame);
    le32_write(guest.ram + GUEST_STACK - sizeof frame + 8, RFLAG_ONE | RFLAG_VM);
    guest.state.gpr[CPU_RSP] = GUEST_STACK - sizeof frame;
    assert_int_equal(RUN(code_vm86), VECTOR_GP);
}

GUEST_CODE(code_gate32, 32, "pushl $0x1234; pushl $0x5678; lcall $0x4b, $0; nop");

static void a_legacy_call_gate_copies_parameters(void **state)
{
    guest_legacy(&guest, 3, true);
    guest.ram[GUEST_GDT + 0x48 + 4] = 2;
    memcpy(guest.ram + GUEST_GDT + 0x48 + 2, &(uint16_t){SEL_CODE32}, 2);
    assert_int_equal(RUN(code_gate32), LSTAR_HANDLER);
    static const uint32_t frame[] = {GUEST_CODE_AT + 17,   SEL_USER32,   0x5678, 0x1234,
                                     GUEST_USER_STACK - 8, SEL_USER_DATA};
    assert_int_equal(guest.state.gpr[CPU_RSP], GUEST_RSP0 - sizeof frame);
    assert_memory_equal(guest.ram + guest.state.gpr[CPU_RSP], frame, sizeof frame);
}

int main(void)
{
#define FAR_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define AMD_TEST(name) cmocka_unit_test_setup_teardown(name, setup_amd, teardown)
    const struct CMUnitTest tests[] = {
        FAR_TEST(syscall_enters_with_fixed_segments),
        FAR_TEST(sysret_returns_to_64_and_32_bits),
        FAR_TEST(intel_sysret_faults_in_the_kernel),
        AMD_TEST(amd_sysret_faults_in_user_mode),
        FAR_TEST(compat_syscall_is_for_amd_only),
        AMD_TEST(amd_compat_has_syscall_but_no_sysenter),
        FAR_TEST(sysexit_needs_canonical_targets),
        FAR_TEST(int_80_from_compat_pushes_quadwords),
        FAR_TEST(iretq_to_user_mode_drops_kernel_segments),
        FAR_TEST(iretq_within_the_kernel_takes_ss_from_the_frame),
        FAR_TEST(iretq_refuses_what_it_must),
        FAR_TEST(iret_in_user_mode_cannot_change_iopl_or_if),
        FAR_TEST(a_call_gate_enters_the_kernel_on_rsp0),
        FAR_TEST(a_far_return_leaves_to_user_mode),
        FAR_TEST(conforming_code_keeps_the_privilege),
        FAR_TEST(segment_loads_check_and_mark),
        FAR_TEST(bases_follow_selectors_and_their_instructions),
        FAR_TEST(limits_hold_outside_64_bit_mode),
        FAR_TEST(flat_segments_end_at_4_gib),
        FAR_TEST(lar_lsl_verr_verw_tell_without_faults),
        FAR_TEST(a_guest_climbs_from_real_to_long_mode),
        FAR_TEST(unreal_mode_keeps_the_big_limit),
        FAR_TEST(a_task_call_switches_and_iret_comes_back),
        FAR_TEST(iret_enters_vm86_and_an_interrupt_leaves_it),
        FAR_TEST(a_legacy_call_gate_copies_parameters),
    };
    return cmocka_run_group_tests_name("soft far", tests, NULL, NULL);
}
