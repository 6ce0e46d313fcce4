/*
 * system.h: how the files of the privileged half speak to each other and to the instruction tables.
 *
 * Mnemonics that the core's tables own come here for their privileged forms: JMP, CALL and RET
 * whose branch type is far go to op_far_bind(); MOV, PUSH and POP of a segment register to
 * op_segment_bind(); MOV of a control or debug register to op_control_bind(). They have the
 * contract of any bind function (insn.h).
 *
 * Everything here runs on the vCPU's own thread and follows the fault rules of vcpu.h: a function
 * that may raise does all its checks before it changes any register.
 */
#pragma once

#include "cpu/soft/insn.h"

/* ---- bind functions for the core's rows ---- */

void op_far_bind(struct decoder *decoder);
void op_segment_bind(struct decoder *decoder);
void op_control_bind(struct decoder *decoder);

/* ---- mmu.c ---- */

/* One walk of the page tables, without TLB and without faults. */
struct mmu_page {
    uint64_t gpa;       /* of the address asked for */
    uint64_t page_size; /* 4K, 2M, 4M or 1G; 4K when paging is off */
    bool user;          /* every level has U/S */
    bool write;         /* every level has R/W */
    bool execute;       /* no level has NX */
    bool dirty;
    bool global;
};

enum mmu_access { MMU_READ, MMU_WRITE, MMU_FETCH };

/* Loads the four PAE page-directory pointers from `cr3`. False: a reserved bit is set, #GP. */
bool mmu_load_pdptes(struct soft_vcpu *v, uint64_t cr3);
/* What CPUID decides about paging; called when the table may have changed. */
void mmu_configure(struct soft_vcpu *v);
/* Atomically sets bits of the byte at `linear`, as the system (descriptor accessed and busy). */
void soft_system_or8(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, uint8_t bits);
/* Raises what a read of one byte would; reads nothing (CLFLUSH). */
void soft_probe_read(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned seg);
/* Raises what a write by the system would. */
void soft_system_probe_write(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                             unsigned size);

static inline bool canonical(uint64_t linear)
{
    return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

/* ---- event.c ---- */

enum { /* bits of soft_vcpu.signals */
       EVENT_SIGNAL_NMI = 1 << 0,
       EVENT_SIGNAL_INIT = 1 << 1,
       EVENT_SIGNAL_SIPI = 1 << 2,
       EVENT_SIGNAL_UNHALT = 1 << 3, /* ours: KVM_HC_KICK_CPU */
       EVENT_SIGNAL_SIPI_SHIFT = 8,
};

enum { EVENT_DEBUGCTL_BTF = 1 << 1 }; /* single-step on branches */

enum event_kind {
    EVENT_EXCEPTION, /* faults, aborts, #DB: EXT in nested error codes */
    EVENT_EXTERNAL,  /* interrupts and NMI */
    EVENT_SOFTWARE,  /* INT n, INT3, INTO: gate DPL is checked */
    EVENT_ICEBP,     /* INT1: as software, but DPL is not checked */
};

struct event {
    enum event_kind kind;
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t rip;    /* to be pushed */
    uint64_t rflags; /* to be pushed */
};

/* Through the IVT or IDT, all modes. Raises with `insn` when that fails; nothing has changed then
 * but memory below the new stack pointer. On return the vCPU is at the handler. */
void event_deliver(struct soft_vcpu *v, const struct insn *insn, const struct event *event);
/* After any change of RFLAGS.IF, TF or of what may be waiting: looks again at the next block. */
void event_flags_changed(struct soft_vcpu *v);
/* Takes a waiting INIT and SIPI. True: the vCPU is elsewhere now. Raises nothing. */
bool event_take_start(struct soft_vcpu *v);
/* Ends run() with ENGINE_EXIT_FAULT and one phrase; unwinds. */
_Noreturn void event_engine_fault(struct soft_vcpu *v, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The instruction that follows `insn` is next: SOFT_RIP moves there. */
static inline void insn_done(struct soft_vcpu *v, const struct insn *insn)
{
    v->gpr[SOFT_RIP] = insn_next(v, insn);
    if (!(v->mode & MODE_64))
        v->gpr[SOFT_RIP] &= UINT32_MAX;
}

/* ---- operands ---- */

/* The r/m operand: memory, or the register at insn->a. Sizes 1, 2, 4, 8. */
uint64_t operand_load(struct soft_vcpu *v, const struct insn *insn, unsigned size);
void operand_store(struct soft_vcpu *v, const struct insn *insn, unsigned size, uint64_t value);
void register_write(struct soft_vcpu *v, unsigned offset, unsigned size, uint64_t value);
/* Ends the block after `insn`, which is complete: the mode changed, or events must be looked at. */
void insn_leave(struct soft_vcpu *v, const struct insn *insn);

/* Common checks at the head of a handler. */
static inline void need_cpl0(struct soft_vcpu *v, const struct insn *insn)
{
    if (vcpu_cpl(v) != 0)
        soft_raise_error(v, insn, VECTOR_GP, 0);
}

static inline bool protected_mode(uint32_t mode)
{
    return (mode & (MODE_PROTECTED | MODE_VM86)) == MODE_PROTECTED;
}

/* ---- segment.c ---- */

struct descriptor {
    uint16_t selector;
    uint64_t address; /* linear, of the descriptor itself */
    uint32_t low, high;
    uint32_t base_high; /* of 16-byte system descriptors in long mode */
};

enum { /* fields of descriptor.high */
       DESC_ACCESSED = 1 << 8,
       DESC_WRITE = 1 << 9, /* data: writable, code: readable */
       DESC_DOWN = 1 << 10, /* data: expand-down, code: conforming */
       DESC_CODE = 1 << 11,
       DESC_S = 1 << 12,
       DESC_P = 1 << 15,
       DESC_L = 1 << 21,
       DESC_DB = 1 << 22,
       DESC_G = 1 << 23,
};

enum system_type { /* type field where S = 0 */
                   SYSTEM_TSS16 = 1,
                   SYSTEM_LDT = 2,
                   SYSTEM_TSS16_BUSY = 3,
                   SYSTEM_CALL16 = 4,
                   SYSTEM_TASK_GATE = 5,
                   SYSTEM_INT16 = 6,
                   SYSTEM_TRAP16 = 7,
                   SYSTEM_TSS = 9,
                   SYSTEM_TSS_BUSY = 11,
                   SYSTEM_CALL = 12,
                   SYSTEM_INT = 14,
                   SYSTEM_TRAP = 15,
};

static inline unsigned descriptor_type(const struct descriptor *d)
{
    return (d->high >> 8) & 15;
}

static inline unsigned descriptor_dpl(const struct descriptor *d)
{
    return (d->high >> 13) & 3;
}

static inline bool descriptor_is_code(const struct descriptor *d)
{
    return (d->high & (DESC_S | DESC_CODE)) == (DESC_S | DESC_CODE);
}

uint64_t descriptor_base(const struct descriptor *d);
uint32_t descriptor_limit(const struct descriptor *d);
struct cpu_segment descriptor_segment(const struct descriptor *d, uint16_t selector);

/* Where `selector`'s descriptor lies. False: null, or outside its table. */
bool descriptor_locate(struct soft_vcpu *v, uint16_t selector, unsigned size, uint64_t *ret_linear);
/* Reads it; raises `vector` with the selector (and `ext`) as error code when it is not there. */
void descriptor_fetch(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                      enum vector vector, unsigned ext, struct descriptor *ret_descriptor);
/* The upper half of a 16-byte system descriptor in long mode. */
void descriptor_fetch_high(struct soft_vcpu *v, const struct insn *insn, enum vector vector,
                           unsigned ext, struct descriptor *descriptor);
/* Does an access of `size` bytes at `offset` stay inside the segment? */
bool segment_inside(const struct cpu_segment *segment, uint64_t offset, unsigned size);
/* Sets the accessed bit in memory, where it is not set. */
void descriptor_touch(struct soft_vcpu *v, const struct insn *insn, struct descriptor *descriptor);

/* MOV or POP to ES, SS, DS, FS, GS with all checks, in any mode. */
void segment_load(struct soft_vcpu *v, const struct insn *insn, unsigned seg, uint16_t selector);
/* As real mode and virtual-8086 do: base = selector * 16. */
void segment_load_real(struct soft_vcpu *v, unsigned seg, uint16_t selector);
/* The checks of SS for a stack at privilege `cpl` (inner stacks raise #TS, returns #GP). */
void segment_check_stack(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                         unsigned cpl, enum vector vector, unsigned ext,
                         struct descriptor *ret_descriptor);
/* The new CS of RETF and IRET, checked against its own RPL. */
void segment_return_code(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                         struct descriptor *ret_code);
/* The new SS for a return to `code` at privilege `cpl`: null only for 64-bit code above CPL 3. */
void segment_return_stack(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                          const struct descriptor *code, unsigned cpl, struct cpu_segment *ret_ss);
/* After a return to an outer level: data segments that `cpl` may not use become null. */
void segment_drop_inner(struct soft_vcpu *v, unsigned cpl);
/* CS for code at privilege `cpl`; CPL itself follows SS.DPL (segment_set_cpl). */
void segment_set_code(struct soft_vcpu *v, const struct descriptor *d, unsigned cpl);
/* Flat segments as SYSCALL, SYSENTER and their returns make them. */
void segment_set_flat(struct soft_vcpu *v, unsigned seg, uint16_t selector, unsigned cpl,
                      bool long_code);
/* Address to jump to in `d`: #GP(0) when it is outside the limit or not canonical. */
void segment_check_target(struct soft_vcpu *v, const struct insn *insn, const struct descriptor *d,
                          uint64_t rip, unsigned ext);

/* ---- stack.c ---- */

/* A stack being pushed to or popped from, not yet the vCPU's: SP is written back with
 * stack_commit() after every check has passed. */
struct stack {
    struct cpu_segment segment;
    uint64_t sp;
    uint64_t mask;  /* the bits of SP that move */
    uint64_t base;  /* of the segment, 0 in 64-bit mode */
    unsigned width; /* bytes per item: 2, 4, 8 */
    bool flat;      /* 64-bit: no limit */
    bool inner;     /* accessed by the system, not at the current privilege */
    uint32_t error; /* error code of #SS when there is no room */
};

/* The vCPU's own stack. */
struct stack stack_current(const struct soft_vcpu *v, unsigned width);
/* Another one in a legacy mode: SS from `d`. */
struct stack stack_other(const struct descriptor *d, uint16_t selector, uint64_t sp, unsigned width,
                         unsigned ext);
/* Another one in long mode, which has no segment. */
struct stack stack_long(uint64_t sp, unsigned width, bool inner);
void stack_push(struct soft_vcpu *v, const struct insn *insn, struct stack *stack, uint64_t value);
uint64_t stack_pop(struct soft_vcpu *v, const struct insn *insn, struct stack *stack);
/* Writes SP alone. */
void stack_commit(struct soft_vcpu *v, const struct stack *stack);
/* SS:SP for privilege `cpl` from the task state segment of a legacy mode. */
void stack_from_task(struct soft_vcpu *v, const struct insn *insn, unsigned cpl, unsigned ext,
                     uint16_t *ret_selector, uint32_t *ret_sp);
/* RSP0..2 (`index` 0..2) or IST1..7 (`index` 4..10) from the 64-bit task state segment. */
uint64_t stack_from_task_long(struct soft_vcpu *v, const struct insn *insn, unsigned index,
                              unsigned ext);

/* ---- task.c ---- */

enum task_cause { TASK_CALL, TASK_JUMP, TASK_RETURN, TASK_EVENT };

/* Hardware task switch to the TSS that `selector` names (legacy modes). `rip` is where the old task
 * goes on; an event's error code is pushed on the new task's stack. */
void task_switch(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                 enum task_cause cause, uint64_t rip, const struct event *event);

/* ---- op_system.c ---- */

/* CPUID as this vCPU sees it now, `v->cpuid` brought up to date. */
void cpuid_refresh(struct soft_vcpu *v);
/* What the CPUID table allows in CR4, EFER and XCR0: computed once the table is known. */
void cpuid_configure(struct soft_vcpu *v);

/* op_control.c, op_flags.c, op_iret.c, op_syscall.c: bind functions of the tables. */
enum control_op { CONTROL_LMSW, CONTROL_SMSW, CONTROL_CLTS, CONTROL_XGETBV, CONTROL_XSETBV };
void control_bind(struct decoder *decoder); /* arg: enum control_op */
enum flags_op { FLAGS_PUSH, FLAGS_POP, FLAGS_CLI, FLAGS_STI, FLAGS_STAC, FLAGS_CLAC };
void flags_bind(struct decoder *decoder); /* arg: enum flags_op | size << 8 */
void iret_bind(struct decoder *decoder);  /* arg: size */
enum syscall_op { SYSCALL_CALL, SYSCALL_RETURN, SYSCALL_ENTER, SYSCALL_EXIT };
void syscall_bind(struct decoder *decoder); /* arg: enum syscall_op */

/* Which bits of RFLAGS POPF and IRET with `size` bytes may change at the current CPL and IOPL. */
uint64_t flags_writable(const struct soft_vcpu *v, unsigned size);
/* Changes the bits in `mask` to those of `value`, with all that follows from it. True: the mode
 * changed or somebody waits, so the block must end. */
bool flags_change(struct soft_vcpu *v, uint64_t mask, uint64_t value);
/* MOV to CR0, CR3, CR4, CR8 and XCR0's setter: false is #GP(0), and nothing has changed. */
bool control_write(struct soft_vcpu *v, unsigned number, uint64_t value);
bool xcr0_write(struct soft_vcpu *v, uint64_t value);

/* ---- op_io.c ---- */

/* Port accesses through the board, between exclusive_leave() and _enter(). */
uint32_t io_port_read(struct soft_vcpu *v, uint16_t port, unsigned size);
void io_port_write(struct soft_vcpu *v, uint16_t port, unsigned size, uint32_t value);

/* ---- hypercall.c ---- */

void hypercall(struct soft_vcpu *v, const struct insn *insn);

/* ---- msr.c, mtrr.c ---- */

/* Restores the TSC: the same on all vCPUs of the VM where they are near each other. */
void msr_tsc_restore(struct soft_vcpu *v, uint64_t tsc, uint64_t adjust);
/* May `value` be written to PAT or the MTRR in `slot`? */
bool mtrr_valid(const struct soft_vcpu *v, enum cpu_msr slot, uint64_t value);

/* ---- kvmclock.c ---- */

/* Guest time in nanoseconds. */
uint64_t kvmclock_now(const struct soft_vm *vm);
/* Before the vCPUs' states are set, which write it where the guest reads it. */
void kvmclock_set(struct soft_vm *vm, uint64_t ns);
bool kvmclock_system_time_write(struct soft_vcpu *v, uint64_t value);
bool kvmclock_wall_clock_write(struct soft_vcpu *v, uint64_t value);
/* Writes the structure that MSR_KVM_SYSTEM_TIME names again: after a restore, a TSC write. */
void kvmclock_update(struct soft_vcpu *v);

/* ---- debug.c ---- */

/* After a change of DR0..3 or DR7: what to watch; flushes the TLB where data is watched, or was. */
void debug_update(struct soft_vcpu *v);
/* Does page `linear` hold a data breakpoint? */
bool debug_watches_page(const struct soft_vcpu *v, uint64_t linear);
/* A data access happened: remembers the trap for the end of the instruction. */
void debug_data_access(struct soft_vcpu *v, uint64_t linear, unsigned size, bool write);
void debug_io_access(struct soft_vcpu *v, uint16_t port, unsigned size);
/* DR6 bits of the instruction breakpoints at `linear`, 0 for none. */
uint64_t debug_execute(const struct soft_vcpu *v, uint64_t linear);
/* Something needs the loop to go instruction by instruction because of DR7. */
static inline bool debug_armed(const struct soft_vcpu *v)
{
    return v->system.break_execute | v->system.break_write | v->system.break_access |
           v->system.break_io;
}

enum {
    DR6_BD = 1 << 13,
    DR6_BS = 1 << 14,
    DR6_BT = 1 << 15,
    DR7_GD = 1 << 13,
    DR7_FIXED = 1 << 10,
};
#define DR6_FIXED UINT32_C(0xffff0ff0)
