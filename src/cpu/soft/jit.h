/*
 * jit.h: the translator, seen from the loop (run.c), the block cache and the MMU.
 *
 * A block that is entered often becomes a *unit*: host code that does what the block's handlers
 * would do, with the guest's registers in the host's. The interpreter stays the reference and the
 * safety net: whatever a unit does not do itself (a TLB miss, a device, an instruction without a
 * translation), it does by running the block's own handler for that instruction. docs/engine.md
 * has the pictures.
 *
 * Only 64-bit code at CPL 0 and 3 without alignment checks is translated; everything else is
 * interpreted (jit_wanted).
 *
 * INVARIANTS
 *   1. The vCPU, its TLB and its code lie below 2 GiB, so that code names them by 32-bit addresses.
 *   2. Outside a unit all guest state is in struct soft_vcpu; vector registers may still be in the
 *      host's while `vector_live`; the way out and the slow path spill them before any C runs.
 *   3. A unit is entered only while its block is valid. A write to code makes every unit of the
 *      page *disconnected* before the next instruction that must see it (jit_code_events): its
 *      entries jump to the loop, which compares the bytes and connects it again or forgets it.
 *   4. Links inside a page need no check, for what maps one block maps the other. Links and jump
 *      cache entries across pages hold for one *epoch*; jit_epoch_*() end it wherever a
 *      translation of a page with code, or the mode, may have changed.
 *   5. No page is ever writable and executable: the cache is one memfd, mapped twice.
 *
 * Threads: everything belongs to the vCPU's thread; jit_code_event() is for any.
 */
#pragma once

#include "cpu/soft/insn.h"

#include <ucontext.h>

struct soft_block;

enum {
    JIT_HEAT = 24, /* entries of a block by the interpreter until it is translated */
    /* The first units need more of them: a guest that wakes for some milliseconds only, as a clone
     * that takes its new name, would pay for each unit and run few of them often enough. */
    JIT_HEAT_FIRST = 1000,
    JIT_UNITS_FIRST = 256,
};

/* Makes v->jit, or leaves it NULL where the configuration asks for no translator, or the host
 * cannot have one (no memory below 2 GiB, none that may be executed): then the interpreter does
 * everything. -ENOMEM. */
int jit_new(struct soft_vcpu *v, struct err *err);
void jit_free(struct soft_vcpu *v);

/* Forgets all units: block_forget_all() calls it, since units refer to blocks. */
void jit_reset(struct soft_vcpu *v);

/* The block, valid and entered at SOFT_RIP, has run hot: translates it. False: it cannot be, and
 * its heat says so. */
bool jit_translate(struct soft_vcpu *v, struct soft_block *block);

/* May the current mode run units at all? */
static inline bool jit_wanted(const struct soft_vcpu *v)
{
    enum { NEED = MODE_64 | MODE_PROTECTED | MODE_LONG, NEVER = MODE_VM86 | MODE_AC };
    unsigned cpl = v->mode & MODE_CPL;
    return v->jit && (v->mode & (NEED | NEVER)) == NEED && (cpl == 0 || cpl == 3);
}

/* Where to enter the code for SOFT_RIP: that of the block, which has a unit and was looked up
 * there; or what was remembered for this address and still holds, 0: nothing. */
uint32_t jit_entry(struct soft_vcpu *v, struct soft_block *block);
uint32_t jit_remembered(struct soft_vcpu *v);

/* Runs a unit, and those that it leads to, until something is to be done by the loop. On return all
 * state is in the vCPU; NULL: SOFT_RIP is exact; else that instruction of v->block is to be run by
 * its handler. */
const struct insn *jit_run(struct soft_vcpu *v, uint32_t entry);

/* After longjmp() out of a slow path, and before any other use of blocks. */
void jit_recover(struct soft_vcpu *v);

/* RIP is no longer where the last unit wanted to go. */
void jit_forget_want(struct soft_vcpu *v);

/* In a signal handler: an instruction of a unit has raised a host exception. Sends the thread on to
 * that instruction's handler, which will raise the guest's. False: it was nothing of ours. */
bool jit_redirect(struct soft_vcpu *v, greg_t *regs);

/* The block leaves the cache of blocks for good. */
void jit_drop(struct soft_vcpu *v, struct soft_block *block);
/* The block, which has a unit, lies elsewhere now. */
void jit_moved(struct soft_vcpu *v, struct soft_block *block);
/* Bytes that decoded blocks may take, beside the code made of them. */
uint64_t jit_bound(const struct soft_vcpu *v);
/* It is valid again, as it was. */
void jit_reconnect(struct soft_vcpu *v, struct soft_block *block);

/* Somebody changed code in the page at `gpa`; with vm->code_lock held. */
void jit_code_event(struct soft_vm *vm, uint64_t gpa);
/* Takes note of all events so far. The loop calls it when ATTENTION_CODE is set. */
void jit_code_events(struct soft_vcpu *v);

/* Translations of the TLB were dropped: all, all but global ones, or those of one page (`size`
 * bytes around it when it was part of a large page). */
void jit_epoch_flush(struct soft_vcpu *v, bool global_too);
void jit_epoch_page(struct soft_vcpu *v, uint64_t linear, uint64_t size);
