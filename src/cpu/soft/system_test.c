/* Control registers, flags, ports, MSRs, the paravirtual clock, the canonical state. */
#include "cpu/soft/guest_harness.h"

#include <stdlib.h>
#include <time.h>

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

static int setup_apic(void **state)
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

static unsigned run(const uint8_t *code, const uint8_t *end)
{
    assert_int_equal(guest_run_bytes(&guest, code, end), ENGINE_EXIT_KICK);
    return guest_in_handler(&guest) ? guest_vector(&guest) : IN_CODE;
}
#define RUN(code) run(code, code##_end)

/* ---- privilege ---- */

static void privileged_instructions_fault_outside_cpl_0(void **state)
{
    static const struct {
        const char *name, *bytes;
        unsigned size;
        unsigned vector;
    } cases[] = {
        {"hlt", "\xf4", 1, VECTOR_GP},
        {"cli", "\xfa", 1, VECTOR_GP},
        {"sti", "\xfb", 1, VECTOR_GP},
        {"mov cr0", "\x0f\x20\xc0", 3, VECTOR_GP},
        {"mov to cr3", "\x0f\x22\xd8", 3, VECTOR_GP},
        {"mov dr7", "\x0f\x21\xf8", 3, VECTOR_GP},
        {"clts", "\x0f\x06", 2, VECTOR_GP},
        {"lmsw", "\x0f\x01\xf0", 3, VECTOR_GP},
        {"lgdt", "\x0f\x01\x10", 3, VECTOR_GP},
        {"ltr", "\x0f\x00\xd8", 3, VECTOR_GP},
        {"invlpg", "\x0f\x01\x38", 3, VECTOR_GP},
        {"invd", "\x0f\x08", 2, VECTOR_GP},
        {"wbinvd", "\x0f\x09", 2, VECTOR_GP},
        {"rdmsr", "\x0f\x32", 2, VECTOR_GP},
        {"wrmsr", "\x0f\x30", 2, VECTOR_GP},
        {"rdpmc", "\x0f\x33", 2, VECTOR_GP},
        {"swapgs", "\x0f\x01\xf8", 3, VECTOR_GP},
        {"in", "\xe4\x10", 2, VECTOR_GP},
        {"out", "\xee", 1, VECTOR_GP},
        {"insb", "\x6c", 1, VECTOR_GP},
        {"stac", "\x0f\x01\xcb", 3, VECTOR_UD},
        {"sysret", "\x48\x0f\x07", 3, VECTOR_GP},
        {"sysexit", "\x48\x0f\x35", 3, VECTOR_GP},
        {"monitor", "\x0f\x01\xc8", 3, VECTOR_UD},
        {"vmxon", "\xf3\x0f\xc7\x30", 4, VECTOR_UD},
        {"vmrun", "\x0f\x01\xd8", 3, VECTOR_UD},
        {"rsm", "\x0f\xaa", 2, VECTOR_UD},
        {"getsec", "\x0f\x37", 2, VECTOR_UD},
        {"ud2", "\x0f\x0b", 2, VECTOR_UD},
        {"mov cr1", "\x0f\x20\xc8", 3, VECTOR_UD},
        {"xgetbv", "\x0f\x01\xd0", 3, VECTOR_UD}, /* no OSXSAVE */
        {"mov to cs", "\x8e\xc8", 2, VECTOR_UD},
        {"sidt", "\x0f\x01\x08", 3, IN_CODE},
        {"smsw", "\x0f\x01\xe0", 3, IN_CODE},
        {"rdtsc", "\x0f\x31", 2, IN_CODE},
        {"clflush", "\x0f\xae\x38", 3, IN_CODE},
        {"pause", "\xf3\x90", 2, IN_CODE},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        guest_long(&guest, 3);
        guest.state.gpr[CPU_RAX] = GUEST_DATA;
        guest.state.task.limit = 103; /* no I/O bitmap */
        uint8_t code[16];
        memcpy(code, cases[i].bytes, cases[i].size);
        memcpy(code + cases[i].size, "\xcd\x80", 2);
        unsigned vector = run(code, code + cases[i].size + 2);
        unsigned wanted = cases[i].vector == IN_CODE ? 0x80 : cases[i].vector;
        if (vector != wanted)
            fail_msg("%s: vector %u", cases[i].name, vector);
        if (wanted != 0x80)
            assert_int_equal(guest_stack(&guest, wanted == VECTOR_GP), GUEST_CODE_AT);
    }
}

static void umip_and_tsd_hide_from_user_mode(void **state)
{
    static const struct {
        const char *bytes;
        unsigned size;
        uint64_t cr4;
    } cases[] = {
        {"\x0f\x01\x08", 3, CR4_UMIP}, {"\x0f\x01\x00", 3, CR4_UMIP}, {"\x0f\x00\xc0", 3, CR4_UMIP},
        {"\x0f\x00\xc8", 3, CR4_UMIP}, {"\x0f\x01\xe0", 3, CR4_UMIP}, {"\x0f\x31", 2, CR4_TSD},
        {"\x0f\x01\xf9", 3, CR4_TSD},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        uint8_t code[8];
        memcpy(code, cases[i].bytes, cases[i].size);
        memcpy(code + cases[i].size, "\xcd\x80", 2);
        for (unsigned on = 0; on < 2; on++) {
            guest_long(&guest, 3);
            guest.state.gpr[CPU_RAX] = GUEST_DATA;
            guest.state.cr4 |= on ? cases[i].cr4 : 0;
            assert_int_equal(run(code, code + cases[i].size + 2), on ? VECTOR_GP : 0x80);
        }
    }
}

/* ---- flags ---- */

GUEST_CODE(code_popf3, 64, "popfq; pushfq; pop %rbx; int $0x80");

static void popf_obeys_iopl_and_cpl(void **state)
{
    static const struct {
        unsigned cpl, iopl;
        uint64_t popped, kept; /* of IF, IOPL */
    } cases[] = {
        {3, 0, RFLAG_IF | RFLAG_IOPL, 0},
        {3, 3, RFLAG_IF | 0, RFLAG_IF | RFLAG_IOPL},
        {3, 3, 0, RFLAG_IOPL},
        {0, 0, RFLAG_IF | RFLAG_IOPL, RFLAG_IF | RFLAG_IOPL},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        guest_long(&guest, cases[i].cpl);
        guest.state.rflags |= cases[i].iopl << 12;
        uint64_t rsp = guest.state.gpr[CPU_RSP] -= 8;
        uint64_t others = RFLAG_NT | RFLAG_AC | RFLAG_ID | RFLAG_CF | RFLAG_OF | RFLAG_VM |
                          RFLAG_RF | RFLAG_VIF | RFLAG_VIP;
        *guest_quad(&guest, rsp) = cases[i].popped | others;
        assert_int_equal(RUN(code_popf3), 0x80);
        assert_int_equal(guest.state.gpr[CPU_RBX], cases[i].kept | RFLAG_ONE | RFLAG_NT | RFLAG_AC |
                                                       RFLAG_ID | RFLAG_CF | RFLAG_OF);
    }
}

/* ---- ports ---- */

static void set_bitmap(uint16_t port, bool denied)
{
    guest.ram[GUEST_TSS + 104 + port / 8] &= (uint8_t) ~(1 << port % 8);
    guest.ram[GUEST_TSS + 104 + port / 8] |= (uint8_t)(denied << port % 8);
}

GUEST_CODE(code_in, 64, "in %dx, %eax; int $0x80");

static void the_io_bitmap_decides_where_iopl_does_not(void **state)
{
    static const struct {
        unsigned iopl;
        int denied; /* port */
        uint32_t limit;
        unsigned vector;
    } cases[] = {
        {0, -1, 0x2067, 0x80},        {0, 0x7e, 0x2067, VECTOR_GP}, {0, 0x81, 0x2067, VECTOR_GP},
        {0, 0x7d, 0x2067, 0x80},      {0, 0x82, 0x2067, 0x80},      {0, -1, 103, VECTOR_GP},
        {0, -1, 104 + 15, VECTOR_GP}, {0, -1, 104 + 16, 0x80},      {3, 0x7e, 103, 0x80},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        guest_long(&guest, 3);
        memset(guest.ram + GUEST_TSS + 104, 0, 64);
        if (cases[i].denied >= 0)
            set_bitmap((uint16_t)cases[i].denied, true);
        guest.state.task.limit = cases[i].limit;
        guest.state.rflags |= cases[i].iopl << 12;
        guest.state.gpr[CPU_RDX] = 0x7e; /* 4 bytes: 7e..81, over a byte of the bitmap */
        unsigned vector = RUN(code_in);
        if (vector != cases[i].vector)
            fail_msg("case %u: vector %u", i, vector);
        if (vector == 0x80) {
            assert_int_equal(guest.state.gpr[CPU_RAX], 0xa0a1a2a3);
            assert_int_equal(guest.accesses[0].size, 4);
        } else {
            assert_int_equal(guest.access_count, 0);
        }
    }
}

GUEST_CODE(code_ins, 64, "rep insw;" GUEST_STOP);
GUEST_CODE(code_outs, 64, "std; rep outsb;" GUEST_STOP);

static void string_io_moves_and_counts(void **state)
{
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RCX] = 5;
    guest.state.gpr[CPU_RDI] = GUEST_DATA;
    guest.state.gpr[CPU_RDX] = 0x1f0;
    assert_int_equal(RUN(code_ins), IN_CODE);
    assert_int_equal(guest.access_count, 5);
    assert_int_equal(guest.state.gpr[CPU_RCX], 0);
    assert_int_equal(guest.state.gpr[CPU_RDI], GUEST_DATA + 10);
    assert_int_equal(le64_read(guest.ram + GUEST_DATA), 0xa2a3a2a3a2a3a2a3);
    guest_long(&guest, 0);
    memcpy(guest.ram + GUEST_DATA, "abc", 3);
    guest.state.gpr[CPU_RCX] = 3;
    guest.state.gpr[CPU_RSI] = GUEST_DATA + 2;
    guest.state.gpr[CPU_RDX] = 0x3f8;
    assert_int_equal(RUN(code_outs), IN_CODE);
    assert_int_equal(guest.access_count, 3);
    assert_int_equal(guest.accesses[0].value, 'c');
    assert_int_equal(guest.accesses[2].value, 'a');
    assert_int_equal(guest.state.gpr[CPU_RSI], GUEST_DATA - 1);
    /* A store that faults happens before the device is read; what was done stays done. */
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RCX] = 5;
    guest.state.gpr[CPU_RDI] = GUEST_WINDOW + 0x1000 - 4;
    guest_page(&guest, 1, 0);
    assert_int_equal(RUN(code_ins), VECTOR_PF);
    assert_int_equal(guest.access_count, 2);
    assert_int_equal(guest.state.gpr[CPU_RCX], 3);
    assert_int_equal(guest.state.cr2, GUEST_WINDOW + 0x1000);
}

/* ---- control registers ---- */

static void control_registers_refuse_what_they_must(void **state)
{
    guest_long(&guest, 0);
    assert_int_equal(engine_soft.vcpu_set_state(guest.vcpu, &guest.state, NULL), 0);
    struct soft_vcpu *v = guest.v;
    uint64_t cr0 = v->cr0, cr4 = v->cr4;
    static const struct {
        unsigned number;
        uint64_t set, clear;
    } bad[] = {
        {0, UINT64_C(1) << 32, 0},
        {0, 0, CR0_PE},
        {0, CR0_NW, 0},
        {0, 0, CR0_PG},
        {4, 0, CR4_PAE},
        {4, CR4_VME, 0},
        {4, 1 << 12, 0},
        {4, 1 << 13, 0},
        {4, 1 << 14, 0},
        {4, 1 << 22, 0},
        {4, UINT64_C(1) << 40, 0},
        {8, 16, 0},
    };
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        uint64_t before = bad[i].number == 0 ? cr0 : bad[i].number == 4 ? cr4 : 0;
        if (control_write(v, bad[i].number, (before | bad[i].set) & ~bad[i].clear))
            fail_msg("case %u was taken", i);
        assert_int_equal(v->cr0, cr0);
        assert_int_equal(v->cr4, cr4);
    }
    assert_true(control_write(v, 8, 15));
    assert_true(control_write(v, 4, cr4 | CR4_SMEP | CR4_SMAP | CR4_UMIP | CR4_FSGSBASE));
    assert_true(control_write(v, 0, cr0 & ~(uint64_t)CR0_ET)); /* ET stays */
    assert_int_equal(v->cr0, cr0);
    /* EFER: LME cannot change under paging, unknown bits fault, LMA is not writable. */
    assert_false(soft_msr_write(v, 0xc0000080, v->efer & ~(uint64_t)EFER_LME));
    assert_false(soft_msr_write(v, 0xc0000080, v->efer | 1 << 12));
    assert_false(soft_msr_write(v, 0xc0000080, v->efer | EFER_AIBRSE)); /* Intel */
    assert_true(soft_msr_write(v, 0xc0000080, v->efer & ~(uint64_t)(EFER_LMA | EFER_SCE)));
    assert_true(v->efer & EFER_LMA);
}

GUEST_CODE(code_lmsw, 64, "xor %eax, %eax; lmsw %ax; smsw %rbx; mov %cr0, %rcx;" GUEST_STOP);

static void lmsw_cannot_clear_pe(void **state)
{
    guest_long(&guest, 0);
    guest.state.cr0 |= CR0_TS;
    assert_int_equal(RUN(code_lmsw), IN_CODE);
    assert_int_equal(guest.state.cr0 & 15, CR0_PE);
    assert_int_equal(guest.state.gpr[CPU_RBX], guest.state.gpr[CPU_RCX]);
}

GUEST_CODE(code_xcr, 64,
           "mov %cr4, %rax; bts $18, %rax; mov %rax, %cr4; mov $1, %eax; cpuid; mov %ecx, %esi;"
           "xor %ecx, %ecx; xor %edx, %edx; mov $3, %eax; xsetbv; xgetbv; mov %eax, %edi;"
           "mov $0xd, %eax; xor %ecx, %ecx; cpuid;" GUEST_STOP);
GUEST_CODE(code_xcr_bad, 64, "xsetbv;" GUEST_STOP);

static void xcr0_is_checked_and_cpuid_follows(void **state)
{
    guest_long(&guest, 0);
    assert_int_equal(RUN(code_xcr), IN_CODE);
    assert_true(guest.state.gpr[CPU_RSI] >> 27 & 1); /* OSXSAVE */
    assert_int_equal(guest.state.gpr[CPU_RDI], 3);
    assert_int_equal(guest.state.gpr[CPU_RBX], 576);
    assert_int_equal(guest.state.xcr0, 3);
    static const struct {
        uint64_t rax, rcx, rdx;
    } bad[] = {{0, 0, 0}, {2, 0, 0}, {5, 0, 0}, {1 << 5 | 1, 0, 0}, {1, 1, 0}, {1, 0, 1}};
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        guest_long(&guest, 0);
        guest.state.cr4 |= CR4_OSXSAVE;
        guest.state.gpr[CPU_RAX] = bad[i].rax;
        guest.state.gpr[CPU_RCX] = bad[i].rcx;
        guest.state.gpr[CPU_RDX] = bad[i].rdx;
        assert_int_equal(RUN(code_xcr_bad), VECTOR_GP);
    }
}

GUEST_CODE(code_invpcid, 64, "invpcid 0x60000, %rax;" GUEST_STOP);

static void invpcid_checks_its_descriptor(void **state)
{
    static const struct {
        uint64_t type, pcid, address;
        unsigned vector;
    } cases[] = {
        {0, 0, 0x1000, IN_CODE}, {0, 0, UINT64_C(1) << 47, VECTOR_GP},
        {1, 1, 0, VECTOR_GP},    /* no PCIDE */ {1, 0, 0, IN_CODE},
        {2, 0, 0, IN_CODE},      {3, 0, 0, IN_CODE},
        {4, 0, 0, VECTOR_GP},    {2, 1 << 12, 0, VECTOR_GP},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        guest_long(&guest, 0);
        *guest_quad(&guest, GUEST_DATA) = cases[i].pcid;
        *guest_quad(&guest, GUEST_DATA + 8) = cases[i].address;
        guest.state.gpr[CPU_RAX] = cases[i].type;
        if (RUN(code_invpcid) != cases[i].vector)
            fail_msg("case %u", i);
    }
}

/* ---- MSRs ---- */

static void refuse(uint32_t index, uint64_t value)
{
    if (soft_msr_write(guest.v, index, value))
        fail_msg("MSR %x took %llx", index, (unsigned long long)value);
}

static void keep(uint32_t index, uint64_t value)
{
    uint64_t back = ~value;
    if (!soft_msr_write(guest.v, index, value) || !soft_msr_read(guest.v, index, &back) ||
        back != value)
        fail_msg("MSR %x: wrote %llx, read %llx", index, (unsigned long long)value,
                 (unsigned long long)back);
}

static void pat_and_mtrrs_take_valid_types_only(void **state)
{
    keep(0x277, 0x0007040600070406);
    keep(0x277, 0x0000000000000501);
    refuse(0x277, 2);
    refuse(0x277, 3);
    refuse(0x277, 8);
    refuse(0x277, UINT64_C(0x70) << 56);
    keep(0x2ff, 0xc06);
    keep(0x2ff, 0);
    refuse(0x2ff, 2);
    refuse(0x2ff, 7);
    refuse(0x2ff, 0x106);
    refuse(0x2ff, 0x1006);
    keep(0x250, 0x0606060606060606);
    refuse(0x250, 7);
    keep(0x26f, 0x0505050505050501);
    refuse(0x268, 0x20000000000);
    keep(0x200, 0xc0000000);
    refuse(0x200, 0xc0000002);
    refuse(0x200, 0xc0000100);
    refuse(0x200, UINT64_C(1) << 40);
    keep(0x201, 0xff80000800);
    refuse(0x201, 0x80000400);
    keep(0x20f, 0);
    uint64_t value;
    assert_false(soft_msr_read(guest.v, 0x210, &value));
    assert_true(soft_msr_read(guest.v, 0xfe, &value));
    assert_int_equal(value, 0x508);
    refuse(0xfe, 0x508);
}

static void addresses_in_msrs_are_canonical(void **state)
{
    static const uint32_t indexes[] = {0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101,
                                       0xc0000102, 0x175,      0x176};
    for (unsigned i = 0; i < ARRAY_LEN(indexes); i++) {
        keep(indexes[i], 0xffff800000000000);
        keep(indexes[i], 0x00007fffffffffff);
        refuse(indexes[i], UINT64_C(1) << 47);
        refuse(indexes[i], UINT64_C(1) << 63);
    }
    keep(0xc0000103, 0xffffffff);
    refuse(0xc0000103, UINT64_C(1) << 32);
}

static void intel_and_amd_have_their_own(void **state)
{
    bool amd = guest.v->system.amd;
    static const struct {
        uint32_t index;
        bool intel, amd;
        uint64_t value;
    } cases[] = {
        {0x10a, true, false, CPUID_ARCH_CAPABILITIES},
        {0x48, true, false, 0},
        {0x1a0, true, false, 1},
        {0x3a, true, false, 1},
        {0xce, true, false, 0},
        {0x179, true, true, 1},
        {0x17a, true, true, 0},
        {0xc0010015, false, true, 1 << 24},
        {0xc0011029, false, true, 2},
        {0xc0010010, false, true, 0},
        {0xc001001d, false, true, 0},
        {0xc001001f, false, true, 0},
        {0xc0010114, false, true, 0},
        {0x49, false, false, 0}, /* write-only */
        {0x10b, false, false, 0},
        {0x122, false, false, 0},
        {0x345, false, false, 0},
        {0x400, true, true, 0}, /* one bank, */
        {0x403, true, true, 0},
        {0x404, false, false, 0}, /* and no more */
        {0x606, false, false, 0},
        {0xda0, false, false, 0},
        {0xc0000080, true, true, 0},
        {0x802, false, false, 0}, /* no APIC here */
        {0x4b564d02, false, false, 0},
        {0x4b564d04, false, false, 0},
        {0xdeadbeef, false, false, 0},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t value = UINT64_MAX;
        bool there = soft_msr_read(guest.v, cases[i].index, &value);
        if (there != (amd ? cases[i].amd : cases[i].intel))
            fail_msg("MSR %x", cases[i].index);
        if (there && value != cases[i].value)
            fail_msg("MSR %x reads %llx", cases[i].index, (unsigned long long)value);
    }
    if (amd) {
        assert_true(soft_msr_write(guest.v, 0xc0000080, EFER_AIBRSE | EFER_NXE));
        refuse(0x49, 1);
    } else {
        keep(0x48, 1);
        keep(0x48, 4);
        refuse(0x48, 8);
        assert_true(soft_msr_write(guest.v, 0x49, 1));
        refuse(0x49, 2);
    }
    refuse(0xdeadbeef, 0);
    keep(0x1d9, 2);
    refuse(0x1d9, 1);
}

static void tsc_and_its_adjustment_move_together(void **state)
{
    struct soft_vcpu *v = guest.v;
    uint64_t before = soft_tsc(v);
    assert_true(soft_tsc(v) >= before);
    assert_true(soft_msr_write(v, 0x10, before + 1000000000000));
    uint64_t adjust;
    assert_true(soft_msr_read(v, 0x3b, &adjust));
    assert_in_range(adjust, 999000000000, 1000000000000);
    assert_true(soft_tsc(v) >= before + 1000000000000);
    assert_true(soft_msr_write(v, 0x3b, 0));
    assert_true(soft_tsc(v) < before + 100000000000);
}

/* ---- the paravirtual clock ---- */

static uint64_t guest_ns(uint64_t gpa)
{
    const uint8_t *at = guest.ram + gpa;
    uint64_t tsc = soft_tsc(guest.v) - le64_read(at + 8);
    int8_t shift = (int8_t)at[28];
    tsc = shift < 0 ? tsc >> -shift : tsc << shift;
    return le64_read(at + 16) + (uint64_t)((unsigned __int128)tsc * le32_read(at + 24) >> 32);
}

static void the_clock_is_stable_monotonic_and_versioned(void **state)
{
    struct soft_vcpu *v = guest.v;
    static const uint32_t indexes[] = {0x4b564d01, 0x12};
    for (unsigned i = 0; i < 2; i++) {
        keep(indexes[i], (GUEST_DATA + 64) | 1);
        uint32_t version = le32_read(guest.ram + GUEST_DATA + 64);
        assert_true(version && version % 2 == 0);
        assert_int_equal(guest.ram[GUEST_DATA + 64 + 29], 1);
        uint64_t last = guest_ns(GUEST_DATA + 64);
        for (unsigned n = 0; n < 10000; n++) {
            uint64_t now = guest_ns(GUEST_DATA + 64);
            assert_true(now >= last);
            last = now;
        }
        /* A second of ticks is a second. */
        uint64_t first = kvmclock_now(v->vm);
        v->vm->tsc_start -= v->vm->tsc_khz * 1000;
        uint64_t second = kvmclock_now(v->vm) - first;
        assert_in_range(second, 999999000, 1001000000);
        assert_in_range(guest_ns(GUEST_DATA + 64) - last, 999999000, 1001000000);
        assert_true(soft_msr_write(v, 0x10, 0)); /* written anew after a jump */
        assert_true(le32_read(guest.ram + GUEST_DATA + 64) > version);
    }
    /* Off, and outside memory: nothing is written, nothing breaks. */
    memset(guest.ram + GUEST_DATA, 0, 256);
    keep(0x4b564d01, GUEST_DATA);
    assert_int_equal(le64_read(guest.ram + GUEST_DATA), 0);
    keep(0x4b564d01, UINT64_C(0xffffffffffffff01));
}

/* It came from elsewhere, where it was ahead of the TSC, or behind: the guest reads what it was. */
static void the_clock_goes_on_from_another_value(void **state)
{
    const uint64_t values[] = {0, 5000000000, UINT64_C(1) << 60};
    struct soft_vcpu *v = guest.v;
    for (unsigned i = 0; i < ARRAY_LEN(values); i++) {
        kvmclock_set(v->vm, values[i]);
        keep(0x4b564d01, (GUEST_DATA + 64) | 1);
        assert_in_range(guest_ns(GUEST_DATA + 64), values[i], values[i] + 1000000000);
        assert_in_range(kvmclock_now(v->vm), values[i], values[i] + 1000000000);
        /* The guest moves its counter, not the time. */
        assert_true(soft_msr_write(v, 0x10, UINT64_C(1) << (40 + i)));
        assert_in_range(guest_ns(GUEST_DATA + 64), values[i], values[i] + 1000000000);
    }
    kvmclock_set(v->vm, 0);
}

static void the_wall_clock_is_the_hosts(void **state)
{
    keep(0x4b564d00, GUEST_DATA);
    assert_int_equal(le32_read(guest.ram + GUEST_DATA) % 2, 0);
    uint64_t ns = le32_read(guest.ram + GUEST_DATA + 4) * UINT64_C(1000000000) +
                  le32_read(guest.ram + GUEST_DATA + 8) + kvmclock_now(guest.v->vm);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t host = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    assert_true(host - ns < 1000000000 || ns - host < 1000000000);
}

/* ---- hypercalls ---- */

GUEST_CODE(code_vmcall, 64, "vmcall;" GUEST_STOP);
GUEST_CODE(code_vmmcall3, 64, "vmmcall; int $0x80");

static void hypercalls_answer(void **state)
{
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RAX] = 99;
    assert_int_equal(RUN(code_vmcall), IN_CODE);
    assert_int_equal(guest.state.gpr[CPU_RAX], (uint64_t)-1000);
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RAX] = 10; /* send an IPI to CPU 0 */
    guest.state.gpr[CPU_RBX] = 1;
    guest.state.gpr[CPU_RDX] = 0;
    guest.state.gpr[CPU_RSI] = 0xfd;
    assert_int_equal(RUN(code_vmcall), IN_CODE);
    assert_int_equal(guest.state.gpr[CPU_RAX], 1);
    assert_int_equal(guest.apic.icr, 0xfd);
    guest_long(&guest, 3);
    guest.state.gpr[CPU_RAX] = 5;
    assert_int_equal(RUN(code_vmmcall3), 0x80);
    assert_int_equal(guest.state.gpr[CPU_RAX], (uint64_t)-1);
}

static void the_deadline_is_in_guest_ticks(void **state)
{
    struct soft_vcpu *v = guest.v;
    v->tsc_offset = 1000;
    keep(0x6e0, 5000);
    assert_int_equal(guest.apic.deadline, 4000);
    keep(0x6e0, 0);
    assert_true(soft_msr_write(v, 0x6e0, 500)); /* before the VM began: past, not disarmed */
    assert_int_equal(guest.apic.deadline, 1);
    v->tsc_offset = -(uint64_t)1000;
    keep(0x6e0, 5000);
    assert_int_equal(guest.apic.deadline, 6000);
}

/* ---- the canonical state ---- */

static void a_state_goes_in_and_out_unchanged(void **state)
{
    guest_long(&guest, 3);
    struct cpu_state *in = &guest.state, out;
    srand(7);
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        in->gpr[i] = (uint64_t)rand() << 32 | (unsigned)rand();
    in->rflags = RFLAG_ONE | RFLAG_ARITHMETIC | RFLAG_IF | RFLAG_ID | RFLAG_IOPL;
    in->dr[0] = 0x1000;
    in->dr6 = 0xffff4ff0;
    in->cr2 = 0xabc;
    in->msr[CPU_MSR_LSTAR] = 0xffffffff81000000;
    in->msr[CPU_MSR_PAT] = 0x0007040600070401;
    in->msr[CPU_MSR_TSC] = 0;
    in->pending.nmi_pending = 1;
    in->pending.nmi_blocked = 1;
    in->pending.interrupt_shadow = 2;
    in->pending.interrupt = 0x41;
    in->run_state = CPU_HALTED;
    for (unsigned i = 0; i < 256; i++)
        in->xsave[160 + i] = (uint8_t)rand();
    for (unsigned i = 0; i < CPU_APIC_SIZE; i++)
        in->apic[i] = (uint8_t)i;
    in->msr[CPU_MSR_APIC_BASE] = 0xfee00900;
    in->has_apic = 1;
    assert_int_equal(engine_soft.vcpu_set_state(guest.vcpu, in, NULL), 0);
    assert_int_equal(engine_soft.vcpu_get_state(guest.vcpu, &out, NULL), 0);
    assert_true(out.msr[CPU_MSR_TSC] < 10000000000);
    out.msr[CPU_MSR_TSC] = 0;
    memcpy(in->xsave + 512, out.xsave + 512, 8); /* XSTATE_BV may name more */
    const uint8_t *a = (const uint8_t *)in, *b = (const uint8_t *)&out;
    for (size_t i = 0; i < sizeof out; i++)
        if (a[i] != b[i])
            fail_msg("byte %zu of the state: %02x in, %02x out", i, a[i], b[i]);
}

static void an_impossible_state_is_refused(void **state)
{
    struct err err;
    static const uint64_t not_canonical = UINT64_C(1) << 60;
    for (unsigned i = 0; i < 10; i++) {
        guest_long(&guest, 0);
        struct cpu_state *s = &guest.state;
        switch (i) {
        case 0: s->efer &= ~(uint64_t)EFER_LMA; break;
        case 1: s->cr0 &= ~(uint64_t)CR0_PE; break;
        case 2: s->cr4 |= 1 << 30; break;
        case 3: s->efer |= 1 << 12; break;
        case 4: s->segment[CPU_FS].base = not_canonical; break;
        case 5: s->idt.base = not_canonical; break;
        case 6: s->run_state = 99; break;
        case 7: s->msr[CPU_MSR_LSTAR] = not_canonical; break;
        case 8: s->xcr0 = 2; break;
        case 9: s->pending.exception = 1000; break;
        }
        err.text[0] = 0;
        assert_true(engine_soft.vcpu_set_state(guest.vcpu, s, &err) < 0);
        assert_true(err.text[0] != 0);
    }
}

int main(void)
{
#define SYSTEM_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define AMD_TEST(name)    cmocka_unit_test_setup_teardown(name, setup_amd, teardown)
#define APIC_TEST(name)   cmocka_unit_test_setup_teardown(name, setup_apic, teardown)
    const struct CMUnitTest tests[] = {
        SYSTEM_TEST(privileged_instructions_fault_outside_cpl_0),
        SYSTEM_TEST(umip_and_tsd_hide_from_user_mode),
        SYSTEM_TEST(popf_obeys_iopl_and_cpl),
        SYSTEM_TEST(the_io_bitmap_decides_where_iopl_does_not),
        SYSTEM_TEST(string_io_moves_and_counts),
        SYSTEM_TEST(control_registers_refuse_what_they_must),
        SYSTEM_TEST(lmsw_cannot_clear_pe),
        SYSTEM_TEST(xcr0_is_checked_and_cpuid_follows),
        SYSTEM_TEST(invpcid_checks_its_descriptor),
        SYSTEM_TEST(pat_and_mtrrs_take_valid_types_only),
        SYSTEM_TEST(addresses_in_msrs_are_canonical),
        SYSTEM_TEST(intel_and_amd_have_their_own),
        AMD_TEST(intel_and_amd_have_their_own),
        SYSTEM_TEST(tsc_and_its_adjustment_move_together),
        SYSTEM_TEST(the_clock_is_stable_monotonic_and_versioned),
        SYSTEM_TEST(the_clock_goes_on_from_another_value),
        SYSTEM_TEST(the_wall_clock_is_the_hosts),
        APIC_TEST(hypercalls_answer),
        APIC_TEST(the_deadline_is_in_guest_ticks),
        APIC_TEST(a_state_goes_in_and_out_unchanged),
        SYSTEM_TEST(an_impossible_state_is_refused),
    };
    return cmocka_run_group_tests_name("soft system", tests, NULL, NULL);
}
