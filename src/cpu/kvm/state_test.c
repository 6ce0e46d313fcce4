#include "cpu/kvm/guest_test.h"

#include "cpu/msr.h"

#include <cpuid.h>
#include <inttypes.h>

/* A state in which every field says something of its own and which every KVM can hold. */
static void rich(struct guest *guest, struct cpu_state *state)
{
    long_mode(guest, state);
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        state->gpr[i] = UINT64_C(0x0101010101010101) * (i + 1);
    state->rip = 0xffffffff81001234;
    state->rflags = 0x2 | 1 << 0 | 1 << 6 | 1 << 9 | 1 << 11; /* CF ZF IF OF */
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        if (i != CPU_CS)
            state->segment[i].selector = (uint16_t)(0x18 + 8 * i);
    state->segment[CPU_FS].base = 0x00007f1234567000;
    state->segment[CPU_GS].base = 0xffff888000001000;
    state->ldt = (struct cpu_segment){
        .selector = 0x40, .base = 0xffffc90000001000, .limit = 0x57, .attributes = 0x82};
    state->task = (struct cpu_segment){
        .selector = 0x48, .base = 0xfffffe0000003000, .limit = 0x206f, .attributes = 0x8b};
    state->gdt = (struct cpu_table){.base = 0xfffffe0000001000, .limit = 0x7f};
    state->idt = (struct cpu_table){.base = 0xfffffe0000000000, .limit = 0xfff};
    state->cr2 = 0x00007fdeadbeef00;
    state->cr8 = 5; /* the APIC page says 0: CR8 wins */
    for (unsigned i = 0; i < 4; i++)
        state->dr[i] = 0x1000 + 0x10 * i;
    state->dr6 = 0xffff0ff1;
    state->dr7 = 0x401;
    le64_write(state->xsave + 32, 0x8000000000000000); /* ST0 = 1.0 */
    le16_write(state->xsave + 40, 0x3fff);
    le16_write(state->xsave, 0x27f);
    le32_write(state->xsave + 24, 0x1fa0);
    for (unsigned i = 0; i < 16 * 16; i++)
        state->xsave[160 + i] = (uint8_t)(i * 7 + 1);
}

static const uint64_t msr_values[CPU_MSR_MAX] = {
    [CPU_MSR_SYSENTER_CS] = 0x10,
    [CPU_MSR_SYSENTER_ESP] = 0xfffffe0000002200,
    [CPU_MSR_SYSENTER_EIP] = 0xffffffff81a01230,
    [CPU_MSR_STAR] = 0x0023001000000000,
    [CPU_MSR_LSTAR] = 0xffffffff81a00000,
    [CPU_MSR_CSTAR] = 0xffffffff81a01000,
    [CPU_MSR_SYSCALL_MASK] = 0x47700,
    [CPU_MSR_KERNEL_GS_BASE] = 0x00007f0000001000,
    [CPU_MSR_TSC_AUX] = 0x1003,
    [CPU_MSR_PAT] = 0x0407050600070106,
    [CPU_MSR_TSC_ADJUST] = 0x12345,
    [CPU_MSR_MTRR_DEF_TYPE] = 0xc06,
    [CPU_MSR_MTRR_FIX64K_00000] = 0x0606060606060606,
    [CPU_MSR_MTRR_FIX16K_A0000] = 0x0101010101010101,
    [CPU_MSR_MTRR_FIX4K_F8000] = 0x0505050505050505,
    [CPU_MSR_MTRR_PHYS_BASE0] = 0x80000000,
    [CPU_MSR_MTRR_PHYS_BASE0 + 1] = 0x0f80000800 /* 36 bits: the least that a processor has */,
    [CPU_MSR_KVM_WALL_CLOCK] = 0,
    [CPU_MSR_KVM_POLL_CONTROL] = 1,
};

static bool known(const struct engine_vcpu *vcpu, unsigned slot)
{
    for (unsigned i = 0; i < vcpu->msr_count; i++)
        if (vcpu->msrs[i] == slot)
            return true;
    return false;
}

static void set_and_get(struct guest *guest, const struct cpu_state *state, struct cpu_state *back)
{
    guest_set(guest, 0, state);
    memset(back, 0x5a, sizeof *back);
    guest_get(guest, 0, back);
}

static void same_segment(const struct cpu_segment *a, const struct cpu_segment *b)
{
    assert_int_equal(a->selector, b->selector);
    assert_int_equal(a->base, b->base);
    assert_int_equal(a->limit, b->limit);
    assert_int_equal(a->attributes, b->attributes);
}

static void registers_come_back(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 1);
    rich(&guest, &state);
    set_and_get(&guest, &state, &back);
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        assert_int_equal(back.gpr[i], state.gpr[i]);
    assert_int_equal(back.rip, state.rip);
    assert_int_equal(back.rflags, state.rflags);
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        same_segment(&back.segment[i], &state.segment[i]);
    same_segment(&back.ldt, &state.ldt);
    same_segment(&back.task, &state.task);
    assert_int_equal(back.gdt.base, state.gdt.base);
    assert_int_equal(back.gdt.limit, state.gdt.limit);
    assert_int_equal(back.idt.base, state.idt.base);
    assert_int_equal(back.idt.limit, state.idt.limit);
    assert_int_equal(back.cr0, state.cr0);
    assert_int_equal(back.cr2, state.cr2);
    assert_int_equal(back.cr3, state.cr3);
    assert_int_equal(back.cr4, state.cr4);
    assert_int_equal(back.cr8, state.cr8);
    assert_int_equal(back.efer, state.efer);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(back.dr[i], state.dr[i]);
    assert_int_equal(back.dr6, state.dr6);
    assert_int_equal(back.dr7, state.dr7);
    assert_int_equal(back.run_state, CPU_RUNNING);
    assert_int_equal(back.has_apic, 1);
    guest_end(&guest);
}

static void vectors_come_back(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    rich(&guest, &state);
    struct cpuid_leaf features = cpuid_find(&guest.vm->cpuid, 1, 0);
    struct cpuid_leaf area = cpuid_find(&guest.vm->cpuid, 0xd, 0);
    bool ymm = features.ecx >> 26 & 1 && (area.eax & 7) == 7;
    if (ymm) {
        state.cr4 |= 1 << 18;
        state.xcr0 = 7;
        le64_write(state.xsave + 512, 7);
        for (unsigned i = 0; i < 256; i++)
            state.xsave[576 + i] = (uint8_t)(i * 3 + 5);
    } else {
        print_message("this KVM offers no XSAVE: x87 and SSE only\n");
    }
    set_and_get(&guest, &state, &back);
    assert_int_equal(back.xcr0, state.xcr0);
    assert_memory_equal(back.xsave, state.xsave, 24);               /* x87 control */
    assert_memory_equal(back.xsave + 24, state.xsave + 24, 4);      /* MXCSR */
    assert_memory_equal(back.xsave + 32, state.xsave + 32, 8 * 16); /* ST */
    assert_memory_equal(back.xsave + 160, state.xsave + 160, 256);  /* XMM */
    assert_int_equal(le64_read(back.xsave + 512) & 3, 3);
    if (ymm)
        assert_memory_equal(back.xsave + 576, state.xsave + 576, 256);
    guest_end(&guest);
}

/* KVM gives a guest that calls itself AMD's no more of these than the 32 bits that such a processor
 * has (AMD APM vol. 2, 6.1.2: SYSENTER is for legacy mode). */
static uint64_t bits_of(const struct guest *guest, unsigned slot)
{
    bool narrow = slot == CPU_MSR_SYSENTER_ESP || slot == CPU_MSR_SYSENTER_EIP;
    bool intel = cpuid_find(&guest->vm->cpuid, 0, 0).ebx == signature_INTEL_ebx;
    return narrow && !intel ? UINT32_MAX : UINT64_MAX;
}

static void msrs_come_back(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    unsigned compared = 0;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 1);
    rich(&guest, &state);
    for (unsigned slot = 0; slot < CPU_MSR_MAX; slot++)
        if (msr_values[slot] && known(guest.vcpu[0], slot))
            state.msr[slot] = msr_values[slot] & bits_of(&guest, slot);
        else if (msr_values[slot])
            print_message("this KVM has no MSR 0x%" PRIx32 "\n", cpu_msr_index[slot]);
    set_and_get(&guest, &state, &back);
    for (unsigned slot = 0; slot < CPU_MSR_MAX; slot++) {
        if (slot == CPU_MSR_TSC) /* runs */
            continue;
        if (back.msr[slot] != state.msr[slot])
            fail_msg("MSR 0x%" PRIx32 ": 0x%" PRIx64 " became 0x%" PRIx64, cpu_msr_index[slot],
                     state.msr[slot], back.msr[slot]);
        compared++;
    }
    assert_int_equal(compared, CPU_MSR_MAX - 1);
    assert_true(known(guest.vcpu[0], CPU_MSR_TSC));
    assert_true(known(guest.vcpu[0], CPU_MSR_STAR));
    assert_true(known(guest.vcpu[0], CPU_MSR_KVM_SYSTEM_TIME));
    guest_end(&guest);
}

static void the_clock_goes_on_from_its_value(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 1);
    rich(&guest, &state);
    const uint64_t start = UINT64_C(1) << 50;
    state.msr[CPU_MSR_TSC] = start;
    set_and_get(&guest, &state, &back);
    if (back.msr[CPU_MSR_TSC] < start) {
        print_message("skipped: this KVM cannot set a guest's time-stamp counter\n");
        guest_end(&guest);
        skip();
    }
    uint64_t second = cpuid_host_tsc_khz() * 1000;
    assert_in_range(back.msr[CPU_MSR_TSC], start, start + 5 * second);
    nap_ms(2);
    uint64_t first = back.msr[CPU_MSR_TSC];
    guest_get(&guest, 0, &back);
    assert_in_range(back.msr[CPU_MSR_TSC], first + second / 1000, first + 5 * second);
    guest_end(&guest);
}

static void the_apic_page_comes_back(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 1);
    for (int x2apic = 0; x2apic < 2; x2apic++) {
        rich(&guest, &state);
        state.rflags &= ~(uint64_t)(1 << 9); /* nothing of this is delivered */
        state.cr8 = 3;
        if (x2apic) {
            state.msr[CPU_MSR_APIC_BASE] |= 1 << 10;
            le32_write(state.apic + 0x20, 0); /* the plain ID */
        }
        le32_write(state.apic + 0x80, 0x30);            /* TPR = CR8 */
        le32_write(state.apic + 0xf0, 0x1ff);           /* enabled, spurious 0xff */
        le32_write(state.apic + 0x320, 2 << 17 | 0xec); /* TSC deadline */
        le32_write(state.apic + 0x350, 0x400);          /* LINT0: NMI... */
        le32_write(state.apic + 0x360, 0x10700);        /* LINT1: ExtINT, masked */
        le32_write(state.apic + 0x110, 1 << 8);         /* ISR: 0x28 in service */
        le32_write(state.apic + 0x220, 1 << 17);        /* IRR: 0x51 requested */
        set_and_get(&guest, &state, &back);
        static const unsigned offsets[] = {0x20,  0x80,  0xf0,  0x320, 0x340, 0x350,
                                           0x360, 0x370, 0x110, 0x220, 0x230, 0x3e0};
        for (unsigned i = 0; i < ARRAY_LEN(offsets); i++)
            if (le32_read(back.apic + offsets[i]) != le32_read(state.apic + offsets[i]))
                fail_msg("APIC register 0x%x: 0x%x became 0x%x", offsets[i],
                         le32_read(state.apic + offsets[i]), le32_read(back.apic + offsets[i]));
        assert_int_equal(back.msr[CPU_MSR_APIC_BASE], state.msr[CPU_MSR_APIC_BASE]);
    }
    guest_end(&guest);
}

static void the_deadline_comes_back(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 1);
    if (!known(guest.vcpu[0], CPU_MSR_TSC_DEADLINE)) {
        guest_end(&guest);
        skip();
    }
    rich(&guest, &state);
    le32_write(state.apic + 0xf0, 0x1ff);
    le32_write(state.apic + 0x320, 2 << 17 | 0xec);
    state.msr[CPU_MSR_TSC_DEADLINE] = UINT64_C(1) << 60;
    set_and_get(&guest, &state, &back);
    assert_int_equal(back.msr[CPU_MSR_TSC_DEADLINE], UINT64_C(1) << 60);
    guest_end(&guest);
}

static bool host_is_amd(void)
{
    uint32_t a, b, c, d;
    __cpuid(0, a, b, c, d);
    return c == signature_AMD_ecx || c == 0x656e6975; /* "cAMD", "uine" of HygonGenuine */
}

static void same_pending(const struct cpu_pending *a, const struct cpu_pending *b)
{
    assert_int_equal(a->exception, b->exception);
    assert_int_equal(a->exception_has_error, b->exception_has_error);
    assert_int_equal(a->exception_error, b->exception_error);
    assert_int_equal(a->exception_has_payload, b->exception_has_payload);
    assert_int_equal(a->exception_payload, b->exception_payload);
    assert_int_equal(a->interrupt, b->interrupt);
    assert_int_equal(a->interrupt_soft, b->interrupt_soft);
    /* AMD has one shadow for STI and MOV SS: KVM tells both, we take STI. */
    if (a->interrupt_shadow != b->interrupt_shadow)
        assert_true(a->interrupt_shadow == 1 && b->interrupt_shadow == 2 && host_is_amd());
    assert_int_equal(a->nmi_pending, b->nmi_pending);
    assert_int_equal(a->nmi_blocked, b->nmi_blocked);
}

static void pending_events_come_back(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 1);
    const struct cpu_pending cases[] = {
        {.exception = -1, .interrupt = -1},
        {.exception = 13, .exception_has_error = 1, .exception_error = 0x18, .interrupt = -1},
        {.exception = 14,
         .exception_has_error = 1,
         .exception_error = 6,
         .exception_has_payload = 1,
         .exception_payload = 0x7fff12345000,
         .interrupt = -1},
        {.exception = 6, .interrupt = -1},
        {.exception = -1, .interrupt = 0x51},
        {.exception = -1, .interrupt = -1, .nmi_pending = 1},
        {.exception = -1, .interrupt = -1, .nmi_blocked = 1},
        {.exception = -1, .interrupt = -1, .nmi_pending = 1, .nmi_blocked = 1},
        {.exception = -1, .interrupt = -1, .interrupt_shadow = 1},
        {.exception = -1, .interrupt = -1, .interrupt_shadow = 2},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        if (cases[i].exception_has_payload && !guest.vm->exception_payload)
            continue;
        rich(&guest, &state);
        state.pending = cases[i];
        set_and_get(&guest, &state, &back);
        same_pending(&back.pending, &cases[i]);
    }
    guest_end(&guest);
}

static void run_states_come_back(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 2);
    guest_get(&guest, 1, &back); /* fresh: the second processor waits */
    assert_int_equal(back.run_state, CPU_WAIT_FOR_SIPI);
    for (uint32_t run = 0; run < CPU_RUN_STATE_MAX; run++) {
        cpu_state_reset(&state, 1);
        state.run_state = run;
        guest_set(&guest, 1, &state);
        guest_get(&guest, 1, &back);
        assert_int_equal(back.run_state, run);
    }
    guest_end(&guest);
}

static void the_reset_state_comes_back(void **test)
{
    (void)test;
    need_kvm();
    for (int chip = 0; chip < 2; chip++) {
        struct guest guest;
        struct cpu_state state, back;
        guest_make(&guest, chip ? ENGINE_IRQCHIP_ENGINE : ENGINE_IRQCHIP_NONE, 2);
        for (unsigned i = 0; i < 2; i++) {
            cpu_state_reset(&state, i);
            guest_set(&guest, i, &state);
            guest_get(&guest, i, &back);
            assert_int_equal(back.rip, state.rip);
            for (unsigned j = 0; j < CPU_SEG_MAX; j++)
                same_segment(&back.segment[j], &state.segment[j]);
            same_segment(&back.ldt, &state.ldt);
            same_segment(&back.task, &state.task);
            assert_int_equal(back.cr0, state.cr0);
            assert_int_equal(back.cr4, state.cr4);
            assert_int_equal(back.dr6, state.dr6);
            assert_int_equal(back.dr7, state.dr7);
            assert_int_equal(back.xcr0, state.xcr0);
            assert_int_equal(back.run_state, state.run_state);
            assert_int_equal(back.has_apic, chip);
            for (unsigned slot = CPU_MSR_APIC_BASE; slot < CPU_MSR_MAX; slot++)
                assert_int_equal(back.msr[slot], state.msr[slot]);
            if (chip) {
                uint32_t version = le32_read(back.apic + 0x30);
                assert_int_equal(version & 0xff, 0x14);
                le32_write(back.apic + 0x30, le32_read(state.apic + 0x30)); /* KVM's own */
                assert_memory_equal(back.apic, state.apic, CPU_APIC_SIZE);
            }
        }
        guest_end(&guest);
    }
}

static void impossible_states_are_refused(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    struct err err = {0};
    guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 1);
    rich(&guest, &state);
    state.run_state = CPU_RUN_STATE_MAX;
    assert_int_equal(engine_kvm.vcpu_set_state(guest.vcpu[0], &state, &err), -EINVAL);
    rich(&guest, &state);
    state.pending.exception = 32;
    assert_int_equal(engine_kvm.vcpu_set_state(guest.vcpu[0], &state, &err), -EINVAL);
    assert_non_null(strstr(err.text, "exception 32"));
    rich(&guest, &state);
    state.cr4 |= UINT64_C(1) << 40; /* reserved */
    assert_true(engine_kvm.vcpu_set_state(guest.vcpu[0], &state, &err) < 0);
    rich(&guest, &state);
    state.msr[CPU_MSR_MTRR_DEF_TYPE] = 0xcff; /* no such memory type */
    assert_int_equal(engine_kvm.vcpu_set_state(guest.vcpu[0], &state, &err), -EINVAL);
    assert_non_null(strstr(err.text, "MSR 0x2ff"));
    rich(&guest, &state);
    state.pending.interrupt = 0x80;
    state.pending.interrupt_soft = 1;
    assert_int_equal(engine_kvm.vcpu_set_state(guest.vcpu[0], &state, &err), -ENOTSUP);
    if (!guest.vm->has_xcr0) {
        rich(&guest, &state);
        state.xcr0 = 7;
        assert_int_equal(engine_kvm.vcpu_set_state(guest.vcpu[0], &state, &err), -ENOTSUP);
        assert_non_null(strstr(err.text, "XCR0 0x7"));
    }
    rich(&guest, &state); /* and a good one is taken after all that */
    guest_set(&guest, 0, &state);
    guest_end(&guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registers_come_back),
        cmocka_unit_test(vectors_come_back),
        cmocka_unit_test(msrs_come_back),
        cmocka_unit_test(the_clock_goes_on_from_its_value),
        cmocka_unit_test(the_apic_page_comes_back),
        cmocka_unit_test(the_deadline_comes_back),
        cmocka_unit_test(pending_events_come_back),
        cmocka_unit_test(run_states_come_back),
        cmocka_unit_test(the_reset_state_comes_back),
        cmocka_unit_test(impossible_states_are_refused),
    };
    int failed = cmocka_run_group_tests_name("kvm state", tests, NULL, NULL);
    return tests_result(failed, ARRAY_LEN(tests));
}
