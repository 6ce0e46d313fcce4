/*
 * state.h: the canonical state of one vCPU.
 *
 * This is what engine_vcpu_get_state() fills and engine_vcpu_set_state() takes, bit for bit the
 * same under every engine; snapshots and migration stand on it. Plain data, no pointers, no
 * padding that carries meaning. Layouts follow the Intel SDM and AMD APM; the XSAVE image is in
 * the standard (not compacted) format, SDM vol. 1, 13.4; the local APIC image is the 1 KiB
 * register page with each 32-bit register at its xAPIC offset (SDM vol. 3, 11.4.1), and in x2APIC
 * mode the ID register holds the x2APIC ID as KVM_CAP_X2APIC_API defines it (32 bits).
 */
#pragma once

#include <stdint.h>

enum cpu_gpr {
    CPU_RAX,
    CPU_RCX,
    CPU_RDX,
    CPU_RBX,
    CPU_RSP,
    CPU_RBP,
    CPU_RSI,
    CPU_RDI,
    CPU_R8,
    CPU_R9,
    CPU_R10,
    CPU_R11,
    CPU_R12,
    CPU_R13,
    CPU_R14,
    CPU_R15,
    CPU_GPR_MAX
};

/* In the order of the instruction encoding (ModRM.reg of MOV Sreg). */
enum cpu_seg { CPU_ES, CPU_CS, CPU_SS, CPU_DS, CPU_FS, CPU_GS, CPU_SEG_MAX };

/* Descriptor attributes as in bits 8..23 of the high descriptor word: type 0-3, S 4, DPL 5-6, P 7,
 * (limit bits read as 0) AVL 12, L 13, D/B 14, G 15. Bit 16 is ours: the segment is unusable. */
enum cpu_seg_attribute {
    CPU_SEG_TYPE = 0xf,
    CPU_SEG_ACCESSED = 1 << 0, /* code and data segments */
    CPU_SEG_WRITE = 1 << 1,    /* data: writable; code: readable */
    CPU_SEG_DOWN = 1 << 2,     /* data: expand-down; code: conforming */
    CPU_SEG_CODE = 1 << 3,
    CPU_SEG_S = 1 << 4,
    CPU_SEG_DPL_SHIFT = 5,
    CPU_SEG_P = 1 << 7,
    CPU_SEG_AVL = 1 << 12,
    CPU_SEG_L = 1 << 13,
    CPU_SEG_DB = 1 << 14,
    CPU_SEG_G = 1 << 15,
    CPU_SEG_UNUSABLE = 1 << 16,
};

struct cpu_segment {
    uint64_t base;
    uint32_t limit; /* in bytes, already scaled by G; the last valid offset */
    uint32_t attributes;
    uint16_t selector;
    uint16_t reserved[3];
};

struct cpu_table {
    uint64_t base;
    uint16_t limit;
    uint16_t reserved[3];
};

enum cpu_run_state { /* what the vCPU is doing, KVM_MP_STATE_* in our words */
                     CPU_RUNNING,
                     CPU_HALTED,
                     CPU_WAIT_FOR_SIPI, /* after INIT, and every vCPU but the first after reset */
                     CPU_RUN_STATE_MAX
};

/* Events between two instructions. Vectors are 0..255; -1 is none. */
struct cpu_pending {
    int16_t exception; /* being delivered: was interrupted by a memory exit */
    int16_t interrupt; /* accepted from the APIC or PIC, not yet delivered */
    uint32_t exception_error;
    uint64_t exception_payload; /* CR2 or DR6 value, not yet written */
    uint8_t exception_has_error;
    uint8_t exception_has_payload;
    uint8_t nmi_pending;
    uint8_t nmi_blocked;      /* until the next IRET */
    uint8_t interrupt_shadow; /* 1 after STI, 2 after MOV SS or POP SS */
    uint8_t interrupt_soft;   /* `interrupt` came from INT n */
    uint8_t reserved[2];
};

/* Model-specific registers that carry state, in one fixed order; cpu_msr_index[] in msr.h gives
 * the architectural numbers. The list only ever grows at its end. */
enum cpu_msr {
    CPU_MSR_TSC,
    CPU_MSR_APIC_BASE,
    CPU_MSR_SYSENTER_CS,
    CPU_MSR_SYSENTER_ESP,
    CPU_MSR_SYSENTER_EIP,
    CPU_MSR_STAR,
    CPU_MSR_LSTAR,
    CPU_MSR_CSTAR,
    CPU_MSR_SYSCALL_MASK,
    CPU_MSR_KERNEL_GS_BASE,
    CPU_MSR_TSC_AUX,
    CPU_MSR_PAT,
    CPU_MSR_MISC_ENABLE,
    CPU_MSR_TSC_DEADLINE,
    CPU_MSR_TSC_ADJUST,
    CPU_MSR_SPEC_CTRL,
    CPU_MSR_DEBUGCTL,
    CPU_MSR_MTRR_DEF_TYPE,
    CPU_MSR_MTRR_FIX64K_00000,
    CPU_MSR_MTRR_FIX16K_80000,
    CPU_MSR_MTRR_FIX16K_A0000,
    CPU_MSR_MTRR_FIX4K_C0000, /* and the seven that follow */
    CPU_MSR_MTRR_FIX4K_F8000 = CPU_MSR_MTRR_FIX4K_C0000 + 7,
    CPU_MSR_MTRR_PHYS_BASE0, /* base and mask in turn, eight pairs */
    CPU_MSR_MTRR_PHYS_MASK7 = CPU_MSR_MTRR_PHYS_BASE0 + 15,
    CPU_MSR_KVM_WALL_CLOCK,
    CPU_MSR_KVM_SYSTEM_TIME,
    CPU_MSR_KVM_ASYNC_PF,
    CPU_MSR_KVM_STEAL_TIME,
    CPU_MSR_KVM_PV_EOI,
    CPU_MSR_KVM_POLL_CONTROL,
    CPU_MSR_MAX
};

enum {
    CPU_XSAVE_SIZE = 4096, /* x87, SSE, AVX today; room for what a later CPU model shows */
    CPU_APIC_SIZE = 1024,
};

struct cpu_state {
    uint64_t gpr[CPU_GPR_MAX]; /* enum cpu_gpr */
    uint64_t rip;
    uint64_t rflags; /* bit 1 always set */
    struct cpu_segment segment[CPU_SEG_MAX];
    struct cpu_segment ldt;
    struct cpu_segment task;
    struct cpu_table gdt;
    struct cpu_table idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t xcr0;
    uint64_t dr[4], dr6, dr7;
    uint64_t msr[CPU_MSR_MAX]; /* enum cpu_msr */
    struct cpu_pending pending;
    uint32_t run_state; /* enum cpu_run_state */
    uint32_t has_apic;  /* 0 where the machine was made without a local APIC */
    uint8_t apic[CPU_APIC_SIZE];
    uint8_t xsave[CPU_XSAVE_SIZE];
};

/* Power-on state, SDM vol. 3 table 10-1: real mode at F000:FFF0, `index` 0 runs and the others
 * wait for SIPI. The XSAVE image is the initial one (FCW 0x37f, MXCSR 0x1f80). */
void cpu_state_reset(struct cpu_state *state, unsigned index);

/* Saves or loads it (base/record.h). Bounds are those of the fields alone: whether a CPU can be in
 * that state the engine says when it is set. */
enum { CPU_STATE_VERSION = 1 };
struct record;
void cpu_state_record(struct cpu_state *state, struct record *record);

/* One line per register group, for "the guest triple-faulted at ..." reports. Writes at most
 * `size` bytes with the final NUL; returns what snprintf would. */
int cpu_state_print(const struct cpu_state *state, char *to, unsigned size);
