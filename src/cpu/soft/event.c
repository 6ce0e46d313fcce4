/*
 * What happens between two instructions: exceptions that handlers raised, and everything that comes
 * from outside.
 *
 * Order of soft_deliver_pending(), SDM vol. 3, table 6-2: INIT and SIPI, traps of the instruction
 * before (single step, data breakpoints), NMI, interrupts, then the instruction breakpoint of the
 * instruction to come. While ATTENTION_STEP is set the loop calls it before every instruction; a
 * return of false means that one instruction now begins, which is when `step_armed`,
 * `shadow_passed` and `resume_passed` are set for the next call to find.
 *
 * Interrupts that cannot be taken (IF clear, shadow) cost nothing: the attention bit goes away and
 * `interrupt_waiting` remembers to ask again once IF is set (event_flags_changed).
 *
 * STI ends its block and leaves shadow = 1 behind, with the count of instructions at which it holds
 * (`shadow_at`). Where nothing waits, nobody looks at it; who does sees by the count whether it is
 * over. (Where translated code does not count, it may seem to last: then an interrupt is one
 * instruction late, which nobody can tell.) HLT, which must not sleep through it, clears it. MOV SS
 * (shadow 2) also holds traps back, so it is exact: alone in its block, with ATTENTION_STEP.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/system.h"

#include <stdio.h>

enum {
    VECTOR_NONE = 0xff,   /* in raised.vector: nothing was raised */
    VECTOR_BENIGN = 0xfe, /* in delivering: an interrupt, for the rules of double faults */
};

/* ---- raising ---- */

_Noreturn static void raise_full(struct soft_vcpu *v, const struct insn *insn, uint8_t vector,
                                 bool has_error, uint32_t error, uint64_t payload)
{
    v->raised.insn = insn;
    v->raised.vector = vector;
    v->raised.has_error = has_error;
    v->raised.error = error;
    v->raised.payload = payload;
    longjmp(v->unwind, SOFT_UNWOUND_RAISED);
}

void soft_raise(struct soft_vcpu *v, const struct insn *insn, enum vector vector)
{
    raise_full(v, insn, (uint8_t)vector, false, 0, 0);
}

void soft_raise_error(struct soft_vcpu *v, const struct insn *insn, enum vector vector,
                      uint32_t error)
{
    raise_full(v, insn, (uint8_t)vector, true, error, 0);
}

void soft_raise_payload(struct soft_vcpu *v, const struct insn *insn, enum vector vector,
                        uint32_t error, uint64_t payload)
{
    raise_full(v, insn, (uint8_t)vector, vector == VECTOR_PF, error, payload);
}

void soft_unwind(struct soft_vcpu *v)
{
    v->raised.vector = VECTOR_NONE;
    v->raised.insn = NULL;
    longjmp(v->unwind, SOFT_UNWOUND_AGAIN);
}

void event_engine_fault(struct soft_vcpu *v, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(v->exit.detail, sizeof v->exit.detail, format, arguments);
    va_end(arguments);
    v->exit.reason = ENGINE_EXIT_FAULT;
    v->exit_reason = ENGINE_EXIT_FAULT + 1;
    v->in_delivery = v->system.double_fault = v->system.external = false;
    soft_unwind(v);
}

void event_flags_changed(struct soft_vcpu *v)
{
    uint32_t wanted = 0;
    if (v->rflags & RFLAG_TF || v->shadow == 2)
        wanted |= ATTENTION_STEP;
    if (v->system.interrupt_waiting && v->rflags & RFLAG_IF)
        wanted |= ATTENTION_INTERRUPT;
    if (wanted)
        atomic_fetch_or(&v->attention, wanted);
}

/* ---- delivering what was raised ---- */

enum fault_class { CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE, CLASS_DOUBLE };

/* SDM vol. 3, table 6-4. */
static enum fault_class class_of(unsigned vector)
{
    switch (vector) {
    case VECTOR_DE:
    case VECTOR_TS:
    case VECTOR_NP:
    case VECTOR_SS:
    case VECTOR_GP: return CLASS_CONTRIBUTORY;
    case VECTOR_PF: return CLASS_PAGE;
    case VECTOR_DF: return CLASS_DOUBLE;
    default: return CLASS_BENIGN;
    }
}

static bool has_error_code(unsigned vector)
{
    switch (vector) {
    case VECTOR_DF:
    case VECTOR_TS:
    case VECTOR_NP:
    case VECTOR_SS:
    case VECTOR_GP:
    case VECTOR_PF:
    case VECTOR_AC: return true;
    default: return false;
    }
}

static void shutdown(struct soft_vcpu *v)
{
    v->cr2 = v->system.first_cr2;
    v->dr6 = v->system.first_dr6;
    v->in_delivery = v->system.external = false;
    v->exit.reason = ENGINE_EXIT_SHUTDOWN;
    v->exit.detail[0] = 0;
    v->exit_reason = ENGINE_EXIT_SHUTDOWN + 1;
}

static void delivered(struct soft_vcpu *v)
{
    v->in_delivery = v->system.external = false;
    v->shadow = 0;
    v->system.step_armed = v->system.shadow_passed = v->system.resume_passed = false;
    v->run_state = CPU_RUNNING;
    event_flags_changed(v);
    if (debug_armed(v))
        atomic_fetch_or(&v->attention, ATTENTION_STEP);
}

/* A second exception while `delivering` is under way. False: it is delivered on its own. */
static bool doubles(const struct soft_vcpu *v, unsigned second)
{
    enum fault_class before = class_of(v->delivering), now = class_of(second);
    if (before == CLASS_CONTRIBUTORY)
        return now == CLASS_CONTRIBUTORY;
    return (before == CLASS_PAGE || before == CLASS_DOUBLE) &&
           (now == CLASS_CONTRIBUTORY || now == CLASS_PAGE);
}

void soft_deliver_raised(struct soft_vcpu *v)
{
    unsigned vector = v->raised.vector;
    if (vector == VECTOR_NONE)
        return;
    if (v->raised.insn) {
        v->gpr[SOFT_RIP] = insn_address(v, v->raised.insn);
        if (!(v->mode & MODE_64))
            v->gpr[SOFT_RIP] &= UINT32_MAX;
        v->raised.insn = NULL;
    }
    if (!v->in_delivery) {
        v->system.first_cr2 = v->cr2;
        v->system.first_dr6 = v->dr6;
    }
    struct event event = {.kind = EVENT_EXCEPTION,
                          .has_error = has_error_code(vector) && v->raised.has_error,
                          .error = v->raised.error};
    if (vector == VECTOR_PF)
        v->cr2 = v->raised.payload;
    if (vector == VECTOR_DB) {
        v->dr6 |= v->raised.payload;
        v->dr7 &= ~(uint64_t)DR7_GD;
        v->msr[CPU_MSR_DEBUGCTL] &= ~(uint64_t)EVENT_DEBUGCTL_BTF;
    }
    if (v->in_delivery && doubles(v, vector)) {
        if (v->delivering == VECTOR_DF) {
            shutdown(v);
            return;
        }
        vector = VECTOR_DF;
        event.has_error = true;
        event.error = 0;
    }
    event.vector = (uint8_t)vector;
    event.rip = v->gpr[SOFT_RIP];
    event.rflags = flags_to_rflags(v) & ~(uint64_t)RFLAG_RF;
    if (vector != VECTOR_DB && vector != VECTOR_DF && vector != VECTOR_MC)
        event.rflags |= RFLAG_RF; /* SDM vol. 3, 17.3.1.1 */
    v->in_delivery = v->system.external = true;
    v->delivering = (uint8_t)vector;
    event_deliver(v, NULL, &event);
    delivered(v);
}

static void deliver_trap(struct soft_vcpu *v, uint64_t dr6)
{
    v->raised.insn = NULL;
    v->raised.vector = VECTOR_DB;
    v->raised.has_error = false;
    v->raised.payload = dr6;
    soft_deliver_raised(v);
}

static void deliver_external(struct soft_vcpu *v, uint8_t vector, enum event_kind kind)
{
    struct event event = {.kind = kind,
                          .vector = vector,
                          .rip = v->gpr[SOFT_RIP],
                          .rflags = flags_to_rflags(v) & ~(uint64_t)RFLAG_RF};
    v->run_state = CPU_RUNNING;
    v->system.first_cr2 = v->cr2;
    v->system.first_dr6 = v->dr6;
    v->in_delivery = v->system.external = true;
    v->delivering = VECTOR_BENIGN;
    event_deliver(v, NULL, &event);
    delivered(v);
}

/* ---- INIT and SIPI ---- */

/* SDM vol. 3, table 10-1, the column "INIT"; APM vol. 2, table 14-1 for EFER. */
static void init_reset(struct soft_vcpu *v)
{
    struct cpu_state reset;
    cpu_state_reset(&reset, v->index);
    memcpy(v->gpr, reset.gpr, sizeof reset.gpr);
    v->gpr[CPU_RDX] = cpuid_find(&v->cpuid, 1, 0).eax;
    v->gpr[SOFT_RIP] = reset.rip;
    flags_from_rflags(v, reset.rflags);
    memcpy(v->segment, reset.segment, sizeof reset.segment);
    v->ldt = reset.ldt;
    v->task = reset.task;
    v->gdt = reset.gdt;
    v->idt = reset.idt;
    v->cr0 = CR0_ET | (v->cr0 & (CR0_NW | CR0_CD));
    v->cr2 = v->cr3 = v->cr4 = v->efer = 0;
    memcpy(v->dr, reset.dr, sizeof reset.dr);
    v->dr6 = reset.dr6;
    v->dr7 = reset.dr7;
    v->shadow = 0;
    v->nmi_blocked = v->in_delivery = false;
    v->system.step_armed = v->system.shadow_passed = v->system.resume_passed = false;
    v->system.debug_traps = 0;
    v->system.interrupt = v->system.exception = 0;
    v->run_state = v->index == 0 ? CPU_RUNNING : CPU_WAIT_FOR_SIPI;
    if (v->vm->has_apic && v->vm->apic.init)
        v->vm->apic.init(v->vm->apic.opaque, v->index);
    soft_tlb_flush(v, true);
    debug_update(v);
    soft_mode_update(v);
}

/* SDM vol. 3, 8.4.3: the start page in the vector. */
static void sipi_start(struct soft_vcpu *v, uint8_t page)
{
    segment_load_real(v, CPU_CS, (uint16_t)(page << 8));
    v->segment[CPU_CS].attributes =
        CPU_SEG_P | CPU_SEG_S | CPU_SEG_CODE | CPU_SEG_WRITE | CPU_SEG_ACCESSED;
    v->segment[CPU_CS].limit = 0xffff;
    v->gpr[SOFT_RIP] = 0;
    v->run_state = CPU_RUNNING;
    soft_mode_update(v);
}

bool event_take_start(struct soft_vcpu *v)
{
    enum { START = EVENT_SIGNAL_INIT | EVENT_SIGNAL_SIPI };
    if (likely(!(atomic_load(&v->signals) & START)))
        return false;
    /* Both from one look: a SIPI whose INIT came after the look would start what INIT then stops.
     */
    uint32_t signals = atomic_fetch_and(&v->signals, ~(uint32_t)START);
    bool changed = false;
    if (signals & EVENT_SIGNAL_INIT) {
        init_reset(v);
        changed = true;
    }
    if (signals & EVENT_SIGNAL_SIPI && v->run_state == CPU_WAIT_FOR_SIPI) { /* else it is dropped */
        sipi_start(v, (uint8_t)(signals >> EVENT_SIGNAL_SIPI_SHIFT));
        changed = true;
    }
    return changed;
}

/* ---- between two instructions ---- */

static bool take_interrupts(struct soft_vcpu *v)
{
    struct soft_system *s = &v->system;
    bool blocked = v->shadow != 0;
    if (s->interrupt) { /* a restored state had accepted it */
        uint8_t vector = (uint8_t)(s->interrupt - 1);
        s->interrupt = 0;
        deliver_external(v, vector, s->interrupt_soft ? EVENT_SOFTWARE : EVENT_EXTERNAL);
        return true;
    }
    if (atomic_load(&v->signals) & EVENT_SIGNAL_NMI && !v->nmi_blocked && !blocked) {
        atomic_fetch_and(&v->signals, ~(uint32_t)EVENT_SIGNAL_NMI);
        v->nmi_blocked = true;
        deliver_external(v, VECTOR_NMI, EVENT_EXTERNAL);
        return true;
    }
    if (!(atomic_load(&v->attention) & ATTENTION_INTERRUPT) && !s->interrupt_waiting)
        return false;
    atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_INTERRUPT);
    if (!v->vm->has_apic)
        return false;
    s->interrupt_waiting = true;
    if (blocked || !(v->rflags & RFLAG_IF))
        return false;
    const struct engine_apic *apic = &v->vm->apic;
    int vector = apic->poll(apic->opaque, v->index);
    if (vector >= 0)
        vector = apic->accept(apic->opaque, v->index);
    if (vector < 0) {
        s->interrupt_waiting = false;
        return false;
    }
    deliver_external(v, (uint8_t)vector, EVENT_EXTERNAL); /* others may wait behind it */
    return true;
}

/* With DEBUGCTL.BTF only taken branches trap (SDM vol. 3, 17.4.3): those that did not go on behind
 * the one instruction of the block that was stepped. */
static bool step_traps(const struct soft_vcpu *v)
{
    if (!(v->msr[CPU_MSR_DEBUGCTL] & EVENT_DEBUGCTL_BTF))
        return true;
    const struct soft_block *block = v->block;
    uint64_t length = block ? block->size : 0;
    if (block && block->flags & BLOCK_STRADDLES)
        length += block->size2;
    return v->gpr[SOFT_RIP] != v->system.step_rip + length;
}

static bool take_traps(struct soft_vcpu *v)
{
    struct soft_system *s = &v->system;
    if (s->exception) { /* a restored state was about to deliver it */
        v->raised.insn = NULL;
        v->raised.vector = (uint8_t)(s->exception - 1);
        v->raised.has_error = s->exception_has_error;
        v->raised.error = s->exception_error;
        v->raised.payload = s->exception_payload;
        s->exception = 0;
        soft_deliver_raised(v);
        return true;
    }
    if (s->shadow_passed) {
        v->shadow = 0;
        s->shadow_passed = false;
    }
    if (s->resume_passed) {
        v->rflags &= ~(uint64_t)RFLAG_RF;
        s->resume_passed = false;
    }
    bool stepped = s->step_armed && step_traps(v);
    s->step_armed = false;
    if (v->shadow == 2) /* MOV SS holds traps back, SDM vol. 3, 6.8.3 */
        return false;
    uint64_t traps = s->debug_traps | (stepped ? DR6_BS : 0);
    if (!traps)
        return false;
    s->debug_traps = 0;
    v->run_state = CPU_RUNNING;
    deliver_trap(v, traps);
    return true;
}

/* One instruction begins: what must be seen after it. */
static bool begin_instruction(struct soft_vcpu *v)
{
    struct soft_system *s = &v->system;
    if (s->break_execute && !(v->rflags & RFLAG_RF) && v->shadow != 2) {
        uint64_t linear = v->gpr[SOFT_RIP];
        if (!(v->mode & MODE_64))
            linear = (uint32_t)(linear + v->segment[CPU_CS].base);
        uint64_t hits = debug_execute(v, linear);
        if (hits) {
            deliver_trap(v, hits);
            return true;
        }
    }
    s->step_armed = v->rflags & RFLAG_TF;
    s->step_rip = v->gpr[SOFT_RIP];
    s->shadow_passed = v->shadow != 0;
    s->resume_passed = v->rflags & RFLAG_RF;
    if (s->step_armed || s->shadow_passed || debug_armed(v))
        atomic_fetch_or(&v->attention, ATTENTION_STEP);
    else
        atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_STEP);
    return false;
}

bool soft_deliver_pending(struct soft_vcpu *v)
{
    if (atomic_load(&v->attention) & ATTENTION_EXCLUSIVE) {
        exclusive_leave(v);
        exclusive_enter(v);
    }
    v->shadow = soft_shadow(v);
    /* The bit goes before the signals are read: one that comes later sets it again. */
    if (atomic_load(&v->attention) & ATTENTION_SIGNAL)
        atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_SIGNAL);
    bool changed = event_take_start(v);
    if (v->run_state != CPU_WAIT_FOR_SIPI && !changed)
        changed = take_traps(v) || take_interrupts(v);
    if (!changed && atomic_load(&v->attention) & ATTENTION_KICK) {
        atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_KICK);
        v->exit.reason = ENGINE_EXIT_KICK;
        v->exit.detail[0] = 0;
        v->exit_reason = ENGINE_EXIT_KICK + 1;
        return true;
    }
    if (changed)
        return true;
    if (v->run_state == CPU_HALTED && atomic_load(&v->signals) & EVENT_SIGNAL_UNHALT) {
        atomic_fetch_and(&v->signals, ~(uint32_t)EVENT_SIGNAL_UNHALT);
        v->run_state = CPU_RUNNING;
        return true;
    }
    if (v->run_state != CPU_RUNNING) {
        /* Asleep: only what can wake it may stand. Who waits for SIPI takes no interrupts. */
        atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_STEP);
        if (v->run_state == CPU_WAIT_FOR_SIPI &&
            atomic_fetch_and(&v->attention, ~(uint32_t)ATTENTION_INTERRUPT) & ATTENTION_INTERRUPT)
            v->system.interrupt_waiting = true;
        return false;
    }
    return begin_instruction(v);
}
