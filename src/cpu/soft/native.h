/*
 * native.h: instructions that the host CPU runs itself, one at a time.
 *
 * native_bind() (declared in insn.h) turns a decoded instruction into a *stub*: a few host
 * instructions that load what it reads from the vCPU, run the guest's own instruction with its
 * registers renamed and its memory operand rewritten, and store what it wrote. Results, flags
 * (the undefined ones too), rounding and exceptions are therefore the host's own.
 *
 * A stub is a handler with one more argument: rdi = v, rsi = insn, rdx = host address of the memory
 * operand; it ends with a jump to insn[1].run. It depends on registers and immediates but not on
 * addresses, so equal stubs are shared: a guest has some thousands.
 *
 * ARENA. Each vCPU owns one memfd, mapped twice (write alias, execute alias; no page is ever both).
 * It is bounded. Its owner asks native_full() *before it builds a block*; when that says true it
 * must forget all blocks of the vCPU, which calls native_reset(), then build. Room for one whole
 * block is kept back, so that binding itself cannot fail.
 *
 * FLOATING POINT. Between native_enter() and native_leave() the guest's x87, MMX and MXCSR are
 * live in the host CPU; otherwise they are in v->fpu (FXSAVE64 image; its XMM part is unused and 0:
 * XMM and YMM live in v->vector whenever C runs). The x87 instruction and operand pointers (FIP FDP
 * FOP FCS FDS) read as 0 in everything the guest can see, since the host's would be addresses of
 * ours.
 *
 * EXCEPTIONS. An unmasked SIMD or x87 exception reaches us as SIGFPE inside a stub (or a unit:
 * jit_redirect). The handler, installed once a process and chained to the previous one, sends the
 * thread on to a function that raises #XM (#UD without CR4.OSXMMEXCPT) or #MF at the guest
 * instruction. #MF is raised even where CR0.NE is 0: the external FERR# and IRQ 13 wiring of the
 * 80386 is not offered. #DE comes the same way.
 *
 * Threads: everything belongs to the vCPU's own thread, except new and free. Errors: native_new()
 * returns -errno (-ENOMEM, or what memfd_create and mmap say).
 */
#pragma once

#include "cpu/soft/vcpu.h"

enum {
    NATIVE_XSAVE_LEGACY = 512,  /* x87, MXCSR, XMM: an FXSAVE image */
    NATIVE_XSAVE_AVX = 576,     /* offset of the upper halves of YMM 0..15, after the header */
    NATIVE_XSAVE_TOTAL = 832,   /* bytes of the standard format that the engine knows */
    NATIVE_MXCSR_MASK = 0xffff, /* bits of MXCSR that a guest may set */
    NATIVE_MXCSR_INIT = 0x1f80,
    NATIVE_FCW_INIT = 0x37f,
};

/* Makes v->native and the initial v->fpu. Needs v->vm->cpuid, which decides what native_bind()
 * offers. Installs the SIGFPE handler the first time. */
int native_new(struct soft_vcpu *v, struct err *err);
void native_free(struct soft_vcpu *v); /* NULL v->native is legal */

/* Puts the SIGFPE handler in place, if another one is. The first native_new() does; a test
 * framework that replaces handlers afterwards has to ask for it again. No other thread may do so
 * meanwhile. */
void native_install(void);

/* True when the arena may be too full for one more block. */
bool native_full(const struct soft_vcpu *v);
/* Forgets all stubs. No block of this vCPU may be run again that was bound before. */
void native_reset(struct soft_vcpu *v);

/* Around the interpreter's loop, on the thread that runs it. Not nested. */
void native_enter(struct soft_vcpu *v);
void native_leave(struct soft_vcpu *v);

/* The canonical XSAVE image of CPU_XSAVE_SIZE bytes (state.h), to and from v->fpu and v->vector,
 * while the vCPU is not between enter and leave. load returns false, and changes nothing, when a
 * header or MXCSR bit is set that the engine does not know. */
void native_xsave_image(const struct soft_vcpu *v, uint8_t *to);
bool native_xrstor_image(struct soft_vcpu *v, const uint8_t *from);
