/*
 * msr.h: the architectural numbers of the model-specific registers in the canonical state.
 *
 * `cpu_msr_index[slot]` is what RDMSR's ECX holds for enum cpu_msr `slot`; cpu_msr_slot() is the
 * way back. Sources: SDM vol. 4; AMD APM vol. 2, appendix A; Linux Documentation/virt/kvm/x86/msr.
 * Constant data and a pure function: any thread, no errors.
 */
#pragma once

#include "cpu/state.h"

#include <stdint.h>

/* Numbers that an engine needs beside the table: registers which carry no state of their own
 * (constants, commands, aliases) and EFER, which cpu_state holds apart. */
enum {
    MSR_SPEC_CTRL = 0x48,
    MSR_PRED_CMD = 0x49,
    MSR_ARCH_CAPABILITIES = 0x10a,
    MSR_XSS = 0xda0,
    MSR_FS_BASE = 0xc0000100,
    MSR_GS_BASE = 0xc0000101,
    MSR_KVM_WALL_CLOCK_OLD = 0x11,  /* alias of CPU_MSR_KVM_WALL_CLOCK, KVM_FEATURE_CLOCKSOURCE */
    MSR_KVM_SYSTEM_TIME_OLD = 0x12, /* alias of CPU_MSR_KVM_SYSTEM_TIME */
};
#define MSR_EFER UINT32_C(0xc0000080)

extern const uint32_t cpu_msr_index[CPU_MSR_MAX];

/* The slot of MSR `index` in cpu_state.msr, or -1. The two old KVM clock numbers find the slots of
 * the new ones. */
int cpu_msr_slot(uint32_t index);
