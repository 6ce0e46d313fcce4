/*
 * KVM's registers and the canonical state.
 *
 * Order matters on the way in:
 *   1 sregs      bring APIC_BASE, which decides the layout of the APIC page, and the mode
 *   2 regs, xcrs, xsave, debug registers
 *   3 MSRs       all but the TSC deadline
 *   4 APIC page  after APIC_BASE
 *   5 deadline   KVM drops it unless the timer register of the page says "TSC deadline"
 *   6 events     after everything that could raise or clear one
 *   7 mp_state   last: the steps before may wake a vCPU
 * While the clocks stand (clock.c), TSC, deadline and the count of the APIC's timer are held back.
 * On the way out mp_state comes first, for reading it makes KVM take pending INITs and SIPIs, which
 * changes all the rest.
 */
#include "cpu/kvm/kvm.h"

#include "base/bytes.h"
#include "cpu/msr.h"

#include <errno.h>
#include <inttypes.h>

struct msr_list {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[CPU_MSR_MAX];
};
_Static_assert(sizeof(struct kvm_xsave) == CPU_XSAVE_SIZE, "KVM_GET_XSAVE's area");
_Static_assert(KVM_APIC_REG_SIZE == CPU_APIC_SIZE, "KVM_GET_LAPIC's page");

static int request(const struct engine_vcpu *vcpu, unsigned long number, const char *name,
                   void *argument, struct err *err)
{
    int r = kvm_ioctl(vcpu->fd, number, argument);
    return r < 0 ? err_errno(err, -r, "%s of vCPU %u", name, vcpu->index) : r;
}
#define REQUEST(vcpu, number, argument, err) request(vcpu, number, #number, argument, err)

/* --- MSRs ------------------------------------------------------------------------------------- */

/* Reads the `count` slots into `values`; KVM stops at the first that it does not know. Returns how
 * many were read. */
static int read_msrs(const struct engine_vcpu *vcpu, const uint8_t *slots, unsigned count,
                     uint64_t *values)
{
    struct msr_list list = {.head.nmsrs = count};
    for (unsigned i = 0; i < count; i++)
        list.entries[i].index = cpu_msr_index[slots[i]];
    int r = kvm_ioctl(vcpu->fd, KVM_GET_MSRS, &list);
    for (int i = 0; i < r; i++)
        values[slots[i]] = list.entries[i].data;
    return r;
}

int kvm_vcpu_find_msrs(struct engine_vcpu *vcpu, struct err *err)
{
    uint8_t slots[CPU_MSR_MAX];
    uint64_t values[CPU_MSR_MAX];
    unsigned next = 0;
    for (uint8_t slot = 0; slot < CPU_MSR_MAX; slot++)
        slots[slot] = slot;
    while (next < CPU_MSR_MAX) {
        int r = read_msrs(vcpu, slots + next, CPU_MSR_MAX - next, values);
        if (r < 0)
            return err_errno(err, -r, "KVM_GET_MSRS");
        for (int i = 0; i < r; i++)
            if (slots[next + i] != CPU_MSR_APIC_BASE) /* travels with the sregs */
                vcpu->msrs[vcpu->msr_count++] = slots[next + i];
        next += (unsigned)r + 1;
    }
    return 0;
}

static bool knows(const struct engine_vcpu *vcpu, unsigned slot)
{
    for (unsigned i = 0; i < vcpu->msr_count; i++)
        if (vcpu->msrs[i] == slot)
            return true;
    return slot == CPU_MSR_APIC_BASE;
}

int kvm_vcpu_get_msrs(const struct engine_vcpu *vcpu, uint64_t *ret_values, struct err *err)
{
    memset(ret_values, 0, CPU_MSR_MAX * sizeof *ret_values);
    int r = read_msrs(vcpu, vcpu->msrs, vcpu->msr_count, ret_values);
    if (r < 0)
        return err_errno(err, -r, "KVM_GET_MSRS of vCPU %u", vcpu->index);
    if ((unsigned)r < vcpu->msr_count)
        return err_set(err, -EIO, "KVM no longer reads MSR 0x%" PRIx32 " of vCPU %u",
                       cpu_msr_index[vcpu->msrs[r]], vcpu->index);
    return 0;
}

/* Of the wall clock KVM writes the time into the guest's memory when the register is written, which
 * the guest may use for something else by now. */
static bool is_set_apart(const struct engine_vcpu *vcpu, unsigned slot)
{
    return slot == CPU_MSR_TSC_DEADLINE || slot == CPU_MSR_KVM_WALL_CLOCK ||
           (slot == CPU_MSR_TSC && vcpu->vm->stands);
}

/* A register that this KVM does not have can only be restored if nothing is in it; POLL_CONTROL is
 * no more than a hint to the host. */
static int set_msrs(const struct engine_vcpu *vcpu, const uint64_t *values, struct err *err)
{
    struct msr_list list = {0};
    for (unsigned slot = 0; slot < CPU_MSR_MAX; slot++)
        if (values[slot] && slot != CPU_MSR_KVM_POLL_CONTROL && !knows(vcpu, slot))
            return err_set(err, -EINVAL, "this KVM has no MSR 0x%" PRIx32 " for vCPU %u",
                           cpu_msr_index[slot], vcpu->index);
    for (unsigned i = 0; i < vcpu->msr_count; i++)
        if (!is_set_apart(vcpu, vcpu->msrs[i]))
            list.entries[list.head.nmsrs++] = (struct kvm_msr_entry){
                .index = cpu_msr_index[vcpu->msrs[i]], .data = values[vcpu->msrs[i]]};
    int r = kvm_ioctl(vcpu->fd, KVM_SET_MSRS, &list);
    if (r < 0)
        return err_errno(err, -r, "KVM_SET_MSRS of vCPU %u", vcpu->index);
    if ((unsigned)r < list.head.nmsrs)
        return err_set(err, -EINVAL, "MSR 0x%" PRIx32 " of vCPU %u does not take 0x%" PRIx64,
                       list.entries[r].index, vcpu->index, (uint64_t)list.entries[r].data);
    return 0;
}

static int set_msr(const struct engine_vcpu *vcpu, enum cpu_msr slot, uint64_t value)
{
    struct msr_list list = {.head.nmsrs = 1};
    list.entries[0] = (struct kvm_msr_entry){.index = cpu_msr_index[slot], .data = value};
    int r = kvm_ioctl(vcpu->fd, KVM_SET_MSRS, &list);
    return r == 0 ? -EINVAL : r;
}

int kvm_vcpu_set_tsc(const struct engine_vcpu *vcpu, uint64_t value)
{
    return set_msr(vcpu, CPU_MSR_TSC, value);
}

int kvm_vcpu_set_deadline(const struct engine_vcpu *vcpu, uint64_t value, struct err *err)
{
    int r = knows(vcpu, CPU_MSR_TSC_DEADLINE) ? set_msr(vcpu, CPU_MSR_TSC_DEADLINE, value) : 0;
    return r < 0 ? err_errno(err, -r, "TSC deadline of vCPU %u", vcpu->index) : 0;
}

/* --- segments and general registers ----------------------------------------------------------- */

static struct cpu_segment segment_from(const struct kvm_segment *from)
{
    return (struct cpu_segment){
        .base = from->base,
        .limit = from->limit,
        .selector = from->selector,
        .attributes = (uint32_t)(from->type | from->s << 4 | from->dpl << CPU_SEG_DPL_SHIFT |
                                 from->present << 7 | from->avl << 12 | from->l << 13 |
                                 from->db << 14 | from->g << 15 | from->unusable << 16),
    };
}

static struct kvm_segment segment_to(const struct cpu_segment *from)
{
    uint32_t bits = from->attributes;
    return (struct kvm_segment){
        .base = from->base,
        .limit = from->limit,
        .selector = from->selector,
        .type = bits & CPU_SEG_TYPE,
        .s = bits >> 4 & 1,
        .dpl = bits >> CPU_SEG_DPL_SHIFT & 3,
        .present = bits >> 7 & 1,
        .avl = bits >> 12 & 1,
        .l = bits >> 13 & 1,
        .db = bits >> 14 & 1,
        .g = bits >> 15 & 1,
        .unusable = bits >> 16 & 1,
    };
}

/* Where each of our segments and registers lies in KVM's structs. */
static const size_t segment_offset[CPU_SEG_MAX] = {
    [CPU_ES] = offsetof(struct kvm_sregs, es), [CPU_CS] = offsetof(struct kvm_sregs, cs),
    [CPU_SS] = offsetof(struct kvm_sregs, ss), [CPU_DS] = offsetof(struct kvm_sregs, ds),
    [CPU_FS] = offsetof(struct kvm_sregs, fs), [CPU_GS] = offsetof(struct kvm_sregs, gs),
};

static const size_t gpr_offset[CPU_GPR_MAX] = {
    [CPU_RAX] = offsetof(struct kvm_regs, rax), [CPU_RCX] = offsetof(struct kvm_regs, rcx),
    [CPU_RDX] = offsetof(struct kvm_regs, rdx), [CPU_RBX] = offsetof(struct kvm_regs, rbx),
    [CPU_RSP] = offsetof(struct kvm_regs, rsp), [CPU_RBP] = offsetof(struct kvm_regs, rbp),
    [CPU_RSI] = offsetof(struct kvm_regs, rsi), [CPU_RDI] = offsetof(struct kvm_regs, rdi),
    [CPU_R8] = offsetof(struct kvm_regs, r8),   [CPU_R9] = offsetof(struct kvm_regs, r9),
    [CPU_R10] = offsetof(struct kvm_regs, r10), [CPU_R11] = offsetof(struct kvm_regs, r11),
    [CPU_R12] = offsetof(struct kvm_regs, r12), [CPU_R13] = offsetof(struct kvm_regs, r13),
    [CPU_R14] = offsetof(struct kvm_regs, r14), [CPU_R15] = offsetof(struct kvm_regs, r15),
};

static int get_sregs(const struct engine_vcpu *vcpu, struct cpu_state *state, struct err *err)
{
    struct kvm_sregs sregs;
    int r = REQUEST(vcpu, KVM_GET_SREGS, &sregs, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < CPU_SEG_MAX; i++) {
        struct kvm_segment segment;
        memcpy(&segment, (uint8_t *)&sregs + segment_offset[i], sizeof segment);
        state->segment[i] = segment_from(&segment);
    }
    state->ldt = segment_from(&sregs.ldt);
    state->task = segment_from(&sregs.tr);
    state->gdt = (struct cpu_table){.base = sregs.gdt.base, .limit = sregs.gdt.limit};
    state->idt = (struct cpu_table){.base = sregs.idt.base, .limit = sregs.idt.limit};
    state->cr0 = sregs.cr0;
    state->cr2 = sregs.cr2;
    state->cr3 = sregs.cr3;
    state->cr4 = sregs.cr4;
    state->cr8 = sregs.cr8;
    state->efer = sregs.efer;
    state->msr[CPU_MSR_APIC_BASE] = sregs.apic_base;
    return 0;
}

static int set_sregs(const struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err)
{
    struct kvm_sregs sregs = {
        .ldt = segment_to(&state->ldt),
        .tr = segment_to(&state->task),
        .gdt = {.base = state->gdt.base, .limit = state->gdt.limit},
        .idt = {.base = state->idt.base, .limit = state->idt.limit},
        .cr0 = state->cr0,
        .cr2 = state->cr2,
        .cr3 = state->cr3,
        .cr4 = state->cr4,
        .cr8 = state->cr8,
        .efer = state->efer,
        .apic_base = state->msr[CPU_MSR_APIC_BASE],
    };
    for (unsigned i = 0; i < CPU_SEG_MAX; i++) {
        struct kvm_segment segment = segment_to(&state->segment[i]);
        memcpy((uint8_t *)&sregs + segment_offset[i], &segment, sizeof segment);
    }
    /* Without an in-kernel APIC, KVM_RUN takes CR8 from the shared page each time. */
    vcpu->run->cr8 = state->cr8;
    return REQUEST(vcpu, KVM_SET_SREGS, &sregs, err);
}

static int get_regs(const struct engine_vcpu *vcpu, struct cpu_state *state, struct err *err)
{
    struct kvm_regs regs;
    int r = REQUEST(vcpu, KVM_GET_REGS, &regs, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        state->gpr[i] = le64_read((uint8_t *)&regs + gpr_offset[i]);
    state->rip = regs.rip;
    state->rflags = regs.rflags;
    return 0;
}

static int set_regs(const struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err)
{
    struct kvm_regs regs = {.rip = state->rip, .rflags = state->rflags};
    for (unsigned i = 0; i < CPU_GPR_MAX; i++)
        le64_write((uint8_t *)&regs + gpr_offset[i], state->gpr[i]);
    return REQUEST(vcpu, KVM_SET_REGS, &regs, err);
}

/* --- vector, debug and APIC registers --------------------------------------------------------- */

enum { XSTATE_BV = 512, X87_AND_SSE = 3 };

/* KVM's image has the components that the host has. What the guest was not told of is in its
 * initial state, but some kernels name it all the same (PKRU), and another host may not know it. */
static void hide_components(const struct engine_vcpu *vcpu, uint8_t *image)
{
    struct cpuid_leaf shown = cpuid_find(&vcpu->vm->cpuid, 0xd, 0);
    uint64_t components = X87_AND_SSE | (shown.leaf == 0xd ? shown.eax : 0);
    le64_write(image + XSTATE_BV, le64_read(image + XSTATE_BV) & components);
}

static int get_vectors(const struct engine_vcpu *vcpu, struct cpu_state *state, struct err *err)
{
    struct kvm_xcrs xcrs = {0};
    struct kvm_xsave xsave = {0};
    int r = vcpu->vm->has_xcr0 ? REQUEST(vcpu, KVM_GET_XCRS, &xcrs, err) : 0;
    if (r >= 0)
        r = REQUEST(vcpu, KVM_GET_XSAVE, &xsave, err);
    if (r < 0)
        return r;
    state->xcr0 = 1;
    for (unsigned i = 0; i < min(xcrs.nr_xcrs, (__u32)KVM_MAX_XCRS); i++)
        if (xcrs.xcrs[i].xcr == 0)
            state->xcr0 = xcrs.xcrs[i].value;
    memcpy(state->xsave, &xsave, CPU_XSAVE_SIZE);
    hide_components(vcpu, state->xsave);
    return 0;
}

static int set_vectors(const struct engine_vcpu *vcpu, const struct cpu_state *state,
                       struct err *err)
{
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = state->xcr0}}};
    struct kvm_xsave xsave;
    memcpy(&xsave, state->xsave, sizeof xsave);
    if (!vcpu->vm->has_xcr0 && state->xcr0 > 1)
        return err_set(err, -ENOTSUP,
                       "this KVM lacks KVM_CAP_XCRS (the state has XCR0 0x%" PRIx64 ")",
                       state->xcr0);
    int r = vcpu->vm->has_xcr0 ? REQUEST(vcpu, KVM_SET_XCRS, &xcrs, err) : 0;
    return r < 0 ? r : REQUEST(vcpu, KVM_SET_XSAVE, &xsave, err);
}

static int get_debug(const struct engine_vcpu *vcpu, struct cpu_state *state, struct err *err)
{
    struct kvm_debugregs debug = {0};
    int r = REQUEST(vcpu, KVM_GET_DEBUGREGS, &debug, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < 4; i++)
        state->dr[i] = debug.db[i];
    state->dr6 = debug.dr6;
    state->dr7 = debug.dr7;
    return 0;
}

static int set_debug(const struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err)
{
    struct kvm_debugregs debug = {.dr6 = state->dr6, .dr7 = state->dr7};
    for (unsigned i = 0; i < 4; i++)
        debug.db[i] = state->dr[i];
    return REQUEST(vcpu, KVM_SET_DEBUGREGS, &debug, err);
}

/* A one-shot count that is at 0 has ended, or has just ended and is not delivered yet, and KVM does
 * not tell which. One interrupt too many is better than one too few: a nanosecond is left of it. */
static void keep_one_shot(uint8_t *page)
{
    uint32_t timer = le32_read(page + APIC_LVT_TIMER);
    if (!(timer & (APIC_LVT_MASKED | APIC_TIMER_MODES)) && le32_read(page + APIC_INITIAL) &&
        !le32_read(page + APIC_CURRENT))
        le32_write(page + APIC_CURRENT, 1);
}

static int get_apic(const struct engine_vcpu *vcpu, struct cpu_state *state, struct err *err)
{
    const struct held_vcpu *held = &vcpu->held;
    state->has_apic = vcpu->vm->has_irqchip;
    if (!state->has_apic)
        return 0;
    int r = REQUEST(vcpu, KVM_GET_LAPIC, state->apic, err);
    if (r >= 0 && vcpu->vm->stands && held->initial && held->count) {
        le32_write(state->apic + APIC_INITIAL, held->initial);
        le32_write(state->apic + APIC_CURRENT, held->count);
    }
    if (r >= 0)
        keep_one_shot(state->apic);
    return r;
}

/* KVM starts the timer when it takes the page, and ends at once a one-shot count that is at 0.
 * While the clocks stand none is started. */
static void hold_timer(struct engine_vcpu *vcpu, uint8_t *page)
{
    struct held_vcpu *held = &vcpu->held;
    uint32_t initial = le32_read(page + APIC_INITIAL), count = le32_read(page + APIC_CURRENT);
    held->initial = held->count = 0;
    if (kvm_apic_deadline_mode(page) || !initial)
        return;
    if (!count && kvm_apic_periodic(page))
        count = initial;
    if (vcpu->vm->stands) {
        held->initial = initial;
        held->count = count;
    }
    if (vcpu->vm->stands || !count)
        le32_write(page + APIC_INITIAL, 0);
}

static int set_apic(struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err)
{
    if (!state->has_apic || !vcpu->vm->has_irqchip)
        return 0;
    struct kvm_lapic_state page;
    memcpy(&page, state->apic, sizeof page);
    /* CR8 is bits 4..7 of the task priority register; KVM takes it from the page. Where the two
     * differ, CR8 is what the guest's instructions see. */
    if (le32_read(page.regs + APIC_TPR) >> 4 != state->cr8)
        le32_write(page.regs + APIC_TPR, (uint32_t)(state->cr8 & 0xf) << 4);
    hold_timer(vcpu, (uint8_t *)page.regs);
    return REQUEST(vcpu, KVM_SET_LAPIC, &page, err);
}

/* While the clocks stand, deadline and TSC wait for them to go on. */
static int set_deadline(struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err)
{
    uint64_t deadline = state->msr[CPU_MSR_TSC_DEADLINE];
    if (!vcpu->vm->stands)
        return kvm_vcpu_set_deadline(vcpu, deadline, err);
    vcpu->held.tsc = state->msr[CPU_MSR_TSC];
    if (vcpu->index == 0)
        vcpu->vm->held.tsc = vcpu->held.tsc - state->msr[CPU_MSR_TSC_ADJUST];
    vcpu->held.deadline = kvm_apic_deadline_mode(state->apic) ? deadline : 0;
    return 0;
}

/* --- events and what the vCPU is doing -------------------------------------------------------- */

/* KVM tells "being delivered" (injected) from "raised, effects not yet applied" (pending, with the
 * CR2 or DR6 value as payload); ours tells them by the payload. An NMI on its way is blocked
 * already in KVM's eyes; ours is pending and not blocked, which delivers the same. */
static int get_events(const struct engine_vcpu *vcpu, struct cpu_state *state, struct err *err)
{
    struct kvm_vcpu_events events = {0};
    int r = REQUEST(vcpu, KVM_GET_VCPU_EVENTS, &events, err);
    if (r < 0)
        return r;
    struct cpu_pending pending = {.exception = -1, .interrupt = -1};
    if (events.exception.injected || events.exception.pending) {
        pending.exception = events.exception.nr;
        pending.exception_has_error = events.exception.has_error_code;
        pending.exception_error = events.exception.error_code;
        pending.exception_has_payload =
            vcpu->vm->exception_payload && events.exception.pending && events.exception_has_payload;
        pending.exception_payload = pending.exception_has_payload ? events.exception_payload : 0;
    }
    if (events.interrupt.injected) /* never a soft one: KVM goes back to before the INT */
        pending.interrupt = events.interrupt.nr;
    pending.nmi_pending = events.nmi.pending || events.nmi.injected || atomic_load(&vcpu->nmi);
    pending.nmi_blocked = events.nmi.masked && !events.nmi.injected;
    /* AMD knows one shadow only, and KVM then sets both flags: STI is by far the likelier. */
    if (events.interrupt.shadow & KVM_X86_SHADOW_INT_STI)
        pending.interrupt_shadow = 1;
    else if (events.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS)
        pending.interrupt_shadow = 2;
    state->pending = pending;
    return 0;
}

static int set_events(struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err)
{
    const struct cpu_pending *pending = &state->pending;
    struct kvm_vcpu_events events = {.flags = KVM_VCPUEVENT_VALID_NMI_PENDING |
                                              KVM_VCPUEVENT_VALID_SHADOW};
    if (pending->exception > 31 || pending->interrupt > 255)
        return err_set(err, -EINVAL, "pending exception %d or interrupt %d", pending->exception,
                       pending->interrupt);
    if (pending->interrupt >= 0 && pending->interrupt_soft)
        return err_set(err, -ENOTSUP,
                       "KVM cannot restore a half-delivered INT 0x%x (its state is that before it)",
                       pending->interrupt);
    if (pending->exception_has_payload && !vcpu->vm->exception_payload)
        return err_set(err, -ENOTSUP, "this KVM lacks KVM_CAP_EXCEPTION_PAYLOAD (vCPU state)");
    if (vcpu->vm->exception_payload)
        events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    if (pending->exception >= 0) {
        events.exception.nr = (uint8_t)pending->exception;
        events.exception.has_error_code = pending->exception_has_error;
        events.exception.error_code = pending->exception_error;
        events.exception.pending = pending->exception_has_payload;
        events.exception.injected = !pending->exception_has_payload;
        events.exception_has_payload = pending->exception_has_payload;
        events.exception_payload = pending->exception_payload;
    }
    if (pending->interrupt >= 0) {
        events.interrupt.injected = 1;
        events.interrupt.nr = (uint8_t)pending->interrupt;
    }
    events.nmi.pending = pending->nmi_pending;
    events.nmi.masked = pending->nmi_blocked;
    if (pending->interrupt_shadow)
        events.interrupt.shadow =
            pending->interrupt_shadow == 2 ? KVM_X86_SHADOW_INT_MOV_SS : KVM_X86_SHADOW_INT_STI;
    atomic_store(&vcpu->nmi, false);
    return REQUEST(vcpu, KVM_SET_VCPU_EVENTS, &events, err);
}

static int get_run_state(struct engine_vcpu *vcpu, struct cpu_state *state, struct err *err)
{
    struct kvm_mp_state mp = {0};
    state->run_state = vcpu->run_state;
    if (!vcpu->vm->has_irqchip)
        return 0;
    int r = REQUEST(vcpu, KVM_GET_MP_STATE, &mp, err);
    if (r < 0)
        return r;
    switch (mp.mp_state) {
    case KVM_MP_STATE_RUNNABLE: state->run_state = CPU_RUNNING; break;
    case KVM_MP_STATE_HALTED: state->run_state = CPU_HALTED; break;
    default: state->run_state = CPU_WAIT_FOR_SIPI; break;
    }
    return 0;
}

static int set_run_state(struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err)
{
    static const uint32_t words[CPU_RUN_STATE_MAX] = {
        [CPU_RUNNING] = KVM_MP_STATE_RUNNABLE,
        [CPU_HALTED] = KVM_MP_STATE_HALTED,
        /* not UNINITIALIZED, which would wait for an INIT before it listens to a SIPI */
        [CPU_WAIT_FOR_SIPI] = KVM_MP_STATE_INIT_RECEIVED,
    };
    if (state->run_state >= CPU_RUN_STATE_MAX)
        return err_set(err, -EINVAL, "run state %" PRIu32, state->run_state);
    vcpu->run_state = state->run_state;
    struct kvm_mp_state mp = {.mp_state = vcpu->vm->has_irqchip ? words[state->run_state]
                                                                : (uint32_t)KVM_MP_STATE_RUNNABLE};
    return REQUEST(vcpu, KVM_SET_MP_STATE, &mp, err);
}

int kvm_vcpu_get_state(struct engine_vcpu *vcpu, struct cpu_state *ret_state, struct err *err)
{
    struct cpu_state state = {0};
    int r = get_run_state(vcpu, &state, err);
    if (r >= 0)
        r = get_events(vcpu, &state, err);
    if (r >= 0)
        r = kvm_vcpu_get_msrs(vcpu, state.msr, err);
    if (!state.msr[CPU_MSR_KVM_WALL_CLOCK])
        state.msr[CPU_MSR_KVM_WALL_CLOCK] = vcpu->wall_clock;
    if (vcpu->vm->stands) {
        state.msr[CPU_MSR_TSC] = vcpu->held.tsc;
        state.msr[CPU_MSR_TSC_DEADLINE] = vcpu->held.deadline;
    }
    if (r >= 0)
        r = get_sregs(vcpu, &state, err); /* after the MSRs: brings APIC_BASE */
    if (r >= 0)
        r = get_regs(vcpu, &state, err);
    if (r >= 0)
        r = get_vectors(vcpu, &state, err);
    if (r >= 0)
        r = get_debug(vcpu, &state, err);
    if (r >= 0)
        r = get_apic(vcpu, &state, err);
    if (r < 0)
        return err_prefix(err, r, "cannot read the state of a vCPU");
    *ret_state = state;
    return 0;
}

int kvm_vcpu_set_state(struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err)
{
    int r = set_sregs(vcpu, state, err);
    if (r >= 0)
        r = set_regs(vcpu, state, err);
    if (r >= 0)
        r = set_vectors(vcpu, state, err);
    if (r >= 0)
        r = set_debug(vcpu, state, err);
    if (r >= 0)
        r = set_msrs(vcpu, state->msr, err);
    vcpu->wall_clock = state->msr[CPU_MSR_KVM_WALL_CLOCK];
    if (r >= 0)
        r = set_apic(vcpu, state, err);
    if (r >= 0)
        r = set_deadline(vcpu, state, err);
    if (r >= 0)
        r = set_events(vcpu, state, err);
    if (r >= 0)
        r = set_run_state(vcpu, state, err);
    return r < 0 ? err_prefix(err, r, "cannot set the state of a vCPU") : 0;
}
