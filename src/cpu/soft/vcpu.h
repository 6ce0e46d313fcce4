/*
 * vcpu.h: one virtual CPU of the software engine, and how its instructions touch the world.
 *
 * This is the private heart of src/cpu/soft; nothing outside the folder includes it. The rooms:
 *
 *   decode.c block.c run.c exclusive.c soft.c   decoding, cached blocks, the loop, vCPU threads
 *   op_*.c                                      instructions: one table of rows per file (insn.h)
 *   native.c op_vector.c op_fpu.c               instructions that run on the host CPU itself
 *   mmu.c walk.c                                TLB fills, slow memory accesses, page walks
 *   event.c segment.c op_far.c op_system.c ...  exceptions, segments, privileged instructions
 *   msr.c kvmclock.c state.c                    MSRs, paravirtual clock, canonical state
 *   jit_*.c                                     the translator (jit.h)
 *   populate.c                                  host memory ahead of its first use
 *
 * REGISTERS. `gpr` holds the sixteen general registers and two of ours: slot SOFT_ZERO is always 0
 * (a missing base or index), slot SOFT_RIP is the *base of the running block*: the address of an
 * instruction is gpr[SOFT_RIP] + insn->end - insn->len. Between blocks SOFT_RIP is RIP itself.
 * Operands name registers by byte offset into `gpr`, so AH is offset 1 and R9 is 72.
 *
 * FLAGS. CF PF AF ZF SF OF live in `flags`, in the form that LAHF and SETO give: bits 15..8 are
 * AH (SF 15, ZF 14, AF 12, PF 10, CF 8), bit 0 is OF. All other flags live in `rflags` at their
 * architectural places; the six are 0 there. Computed by the host's own instructions, so they are
 * exact, the undefined ones included (as on this host).
 *
 * FAULTS. A handler that finds a fault calls soft_raise(), which does not return: it unwinds to the
 * loop (run.c), which delivers the exception at the address of `insn`. Therefore a handler does
 * every check before it changes any register, and no handler holds a lock or memory at a raise (but
 * the exclusive section, which the loop ends).
 *
 * MEMORY. The inline load_ and store_ functions take a linear address. They hit when the page of
 * the *last* byte equals the tag of the entry that the *first* byte selects (so an access that
 * crosses a page misses), and end in one host access of the same width: the host's memory order is
 * the guest's. Everything else (miss, MMIO, page crossing, code pages, watchpoints) is a call to
 * mmu.c. There are four tables: user, supervisor, supervisor with SMAP suspended (AC=1), and one
 * that stays empty, for alignment checks.
 *
 * THREADS. Everything here belongs to the vCPU's own thread, except `attention`, `signals` and what
 * exclusive.c guards. Blocks are per vCPU. A page that has decoded blocks anywhere carries
 * MEM_PAGE_CODE in the memory map and is never in a write tag of any vCPU; making it so stops the
 * other vCPUs for a moment (exclusive.c). Writes to it go the slow way; those that hit code count
 * up the page's generation, which each block compares when it is entered.
 */
#pragma once

#include "base/bytes.h"
#include "cpu/engine.h"
#include "cpu/soft/system_state.h"

#include <assert.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>

enum {
    SOFT_ZERO = 16,
    SOFT_RIP = 17,
    SOFT_GPR_MAX = 18,
    SOFT_TLB_SIZE = 4096,
    SOFT_PAGE_MASK = MEM_PAGE_SIZE - 1,
};

enum soft_flag { /* in soft_vcpu.flags */
                 SOFT_OF = 1 << 0,
                 SOFT_CF = 1 << 8,
                 SOFT_PF = 1 << 10,
                 SOFT_AF = 1 << 12,
                 SOFT_ZF = 1 << 14,
                 SOFT_SF = 1 << 15,
};

enum rflag { /* in soft_vcpu.rflags; the arithmetic six only in values outside */
             RFLAG_CF = 1 << 0,
             RFLAG_ONE = 1 << 1,
             RFLAG_PF = 1 << 2,
             RFLAG_AF = 1 << 4,
             RFLAG_ZF = 1 << 6,
             RFLAG_SF = 1 << 7,
             RFLAG_TF = 1 << 8,
             RFLAG_IF = 1 << 9,
             RFLAG_DF = 1 << 10,
             RFLAG_OF = 1 << 11,
             RFLAG_IOPL = 3 << 12,
             RFLAG_NT = 1 << 14,
             RFLAG_RF = 1 << 16,
             RFLAG_VM = 1 << 17,
             RFLAG_AC = 1 << 18,
             RFLAG_VIF = 1 << 19,
             RFLAG_VIP = 1 << 20,
             RFLAG_ID = 1 << 21,
             RFLAG_ARITHMETIC = RFLAG_CF | RFLAG_PF | RFLAG_AF | RFLAG_ZF | RFLAG_SF | RFLAG_OF,
};

enum cr0_bit {
    CR0_PE = 1 << 0,
    CR0_MP = 1 << 1,
    CR0_EM = 1 << 2,
    CR0_TS = 1 << 3,
    CR0_ET = 1 << 4,
    CR0_NE = 1 << 5,
    CR0_WP = 1 << 16,
    CR0_AM = 1 << 18,
    CR0_NW = 1 << 29,
    CR0_CD = 1 << 30,
};
#define CR0_PG (1u << 31)

enum cr4_bit {
    CR4_VME = 1 << 0,
    CR4_PVI = 1 << 1,
    CR4_TSD = 1 << 2,
    CR4_DE = 1 << 3,
    CR4_PSE = 1 << 4,
    CR4_PAE = 1 << 5,
    CR4_MCE = 1 << 6,
    CR4_PGE = 1 << 7,
    CR4_PCE = 1 << 8,
    CR4_OSFXSR = 1 << 9,
    CR4_OSXMMEXCPT = 1 << 10,
    CR4_UMIP = 1 << 11,
    CR4_FSGSBASE = 1 << 16,
    CR4_PCIDE = 1 << 17,
    CR4_OSXSAVE = 1 << 18,
    CR4_SMEP = 1 << 20,
    CR4_SMAP = 1 << 21,
};

enum efer_bit {
    EFER_SCE = 1 << 0,
    EFER_LME = 1 << 8,
    EFER_LMA = 1 << 10,
    EFER_NXE = 1 << 11,
    EFER_AIBRSE = 1 << 21,
};

enum vector {
    VECTOR_DE = 0,
    VECTOR_DB = 1,
    VECTOR_NMI = 2,
    VECTOR_BP = 3,
    VECTOR_OF = 4,
    VECTOR_BR = 5,
    VECTOR_UD = 6,
    VECTOR_NM = 7,
    VECTOR_DF = 8,
    VECTOR_TS = 10,
    VECTOR_NP = 11,
    VECTOR_SS = 12,
    VECTOR_GP = 13,
    VECTOR_PF = 14,
    VECTOR_MF = 16,
    VECTOR_AC = 17,
    VECTOR_MC = 18,
    VECTOR_XM = 19,
};

/* What a block depends on besides its bytes. Kept in soft_vcpu.mode by soft_mode_update(); part of
 * every block's key, so a bind function may decide by it once and for all. */
enum soft_mode {
    MODE_CPL = 3,          /* two bits */
    MODE_64 = 1 << 2,      /* CS.L with EFER.LMA */
    MODE_CODE32 = 1 << 3,  /* default operand and address size is 32 (CS.D), outside MODE_64 */
    MODE_STACK32 = 1 << 4, /* SS.B, outside MODE_64 */
    MODE_PROTECTED = 1 << 5,
    MODE_LONG = 1 << 6,     /* EFER.LMA: MODE_64 or compatibility */
    MODE_VM86 = 1 << 7,     /* virtual-8086 */
    MODE_SEGCHECK = 1 << 8, /* outside MODE_64: some of CS SS DS ES is not flat and writable */
    MODE_TS = 1 << 9,       /* CR0.TS */
    MODE_EM = 1 << 10,      /* CR0.EM */
    MODE_MP = 1 << 11,      /* CR0.MP */
    MODE_SSE = 1 << 12,     /* CR4.OSFXSR */
    MODE_AVX = 1 << 13,     /* CR4.OSXSAVE and XCR0 enables YMM */
    MODE_UMIP = 1 << 14,    /* CR4.UMIP */
    MODE_AC = 1 << 15,      /* alignment checks are on: CR0.AM, EFLAGS.AC, CPL 3 */
};

/* Reasons to leave the fast path at the next block. Set by any thread. */
enum soft_attention {
    ATTENTION_KICK = 1 << 0,
    ATTENTION_INTERRUPT = 1 << 1, /* apic->poll() may have an answer */
    ATTENTION_SIGNAL = 1 << 2,    /* NMI, INIT or SIPI waits in `signals` */
    ATTENTION_EXCLUSIVE = 1 << 3, /* another vCPU asks for the world to stand still */
    ATTENTION_STEP = 1 << 4,      /* TF, an interrupt shadow, or DR7: one instruction at a time */
    ATTENTION_CODE = 1 << 5,      /* translated code may be stale (jit_code_events) */
    ATTENTION_STOP = 1 << 6,      /* `stop_at` is set: the loop sees every block */
};

struct soft_tlb_entry {
    uint64_t read;   /* page address where reads hit, or TLB_NONE */
    uint64_t write;  /* the same for writes; writes imply reads */
    uint64_t addend; /* host address = linear address + addend */
    uint64_t page;   /* guest-physical page | 1 when global */
};
_Static_assert(sizeof(struct soft_tlb_entry) == 32, "two entries a cache line");

enum soft_tlb_kind { TLB_USER, TLB_SUPERVISOR, TLB_SUPERVISOR_AC, TLB_NEVER, TLB_MAX };

/* No page address, nor one with low bits for an alignment: it never hits. */
#define TLB_NONE UINT64_C(0x800)

enum {
    JIT_JUMPS = 16384,  /* entries of a jump cache of translated code */
    JIT_JUMP_SHIFT = 2, /* bits of an address that do not choose its entry */
    JIT_EVENTS = 64,
};

/* What translated code reads and writes beside the registers (jit.h, jit_unit.h). */
struct jit_state {
    uint64_t target;    /* scratch: the code that `enter` or a call goes to */
    uint64_t addend;    /* of the open group of accesses */
    uint64_t host_rsp;  /* of the frame that `enter` made */
    uint64_t epoch[2];  /* by half: [0] CPL 0, [1] CPL 3; counts up */
    uint32_t exit_kind; /* enum jit_exit_kind */
    uint32_t exit_unit, exit_index;
    uint8_t vector_live;              /* YMM 0..15 of the guest are in the host's registers */
    uint64_t jump_keys[2][JIT_JUMPS]; /* linear addresses (jit_jump_empty) */
    uint64_t jump_code[2][JIT_JUMPS]; /* where its unit is entered, flags in memory */
};

struct insn;
struct soft_block;
struct soft_cache;
struct soft_native;
struct soft_jit;

struct soft_vm {
    struct engine_config config; /* mem, io, apic, tsc as the caller gave them */
    struct cpuid cpuid;
    struct mem *mem;
    struct engine_io io;
    struct engine_apic apic;
    bool has_apic;
    uint64_t tsc_khz;
    uint64_t tsc_start;     /* host TSC at which the guest's was 0 */
    uint64_t kvmclock_base; /* ns of the paravirtual clock where the VM's TSC was 0 */
    struct soft_vcpu *vcpus[ENGINE_VCPUS_MAX];

    /* Code pages: one generation per guest page of each memory region, same index as its marks;
     * counted up (atomically) by writes that hit code in a page marked MEM_PAGE_CODE; and one bit
     * for each 64 bytes of a page that hold code. Both belong to block.c. */
    uint32_t *code_generation[MEM_REGIONS_MAX];
    uint64_t *code_granules[MEM_REGIONS_MAX];
    pthread_mutex_t code_lock; /* changes of code_granules and of MEM_PAGE_CODE */
    /* The last pages whose code was written, for the translators (jit_code_event); code_lock. */
    uint64_t code_events[JIT_EVENTS];
    uint64_t code_event_count;

    /* populate.c: by memory region, a bit for each stretch that was asked for, and how many are */
    uint64_t *populated[MEM_REGIONS_MAX];
    uint64_t populated_count[MEM_REGIONS_MAX];

    /* exclusive.c */
    pthread_mutex_t exclusive_lock;
    pthread_cond_t exclusive_changed;
    struct soft_vcpu *exclusive_owner;
    unsigned exclusive_running; /* vCPUs between exclusive_enter() and exclusive_leave() */
};

struct soft_vcpu {
    /* The hot part comes first. */
    uint64_t gpr[SOFT_GPR_MAX];
    struct soft_tlb_entry *tlb; /* the table for the current privilege: tlbs[...] */
    _Atomic uint32_t attention; /* enum soft_attention */
    uint16_t flags;             /* enum soft_flag */
    uint32_t mode;              /* enum soft_mode */
    uint32_t tlb_flushes;       /* counted up by every soft_tlb_flush*() call: whoever remembers a
                                   translation compares it (right after `mode`: one 64-bit look) */
    uint64_t rflags;            /* enum rflag without the arithmetic six */
    uint64_t ea_base[8];        /* added to effective addresses: per enum cpu_seg; in MODE_64 only
                                   FS and GS are not 0; slot 7 is always 0 */
    uint64_t instructions;      /* executed, counted per block */
    uint64_t stop_at;           /* run() ends when `instructions` is this; UINT64_MAX = never */
    bool stop_attempt;          /* but one instruction is begun before */
    struct soft_block *block;   /* the block being executed */
    struct insn *link;          /* block.h: the branch that wants a link to what comes next */
    uint32_t exit_reason;       /* enum engine_exit_reason + 1 when run() must return; 0 = go on */

    struct soft_vm *vm;
    unsigned index;

    /* Vector registers: YMM 0..15 in memory, unless units hold them in the host's
     * (jit_state.vector_live); handlers load and store what they use (native.c).
     * x87, MMX and MXCSR are *live in the host CPU* while vcpu_run() executes, since neither our C
     * nor the callbacks of engine.h do floating point; `fpu` holds them (FXSAVE64 image) while it
     * does not. */
    uint8_t vector[16][32] __attribute__((aligned(32)));
    uint8_t fpu[512] __attribute__((aligned(16)));

    struct cpu_segment segment[CPU_SEG_MAX];
    struct cpu_segment ldt, task;
    struct cpu_table gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, xcr0;
    uint64_t dr[4], dr6, dr7;
    uint64_t msr[CPU_MSR_MAX];
    uint64_t tsc_offset; /* guest TSC = vm's TSC + this */
    struct cpuid cpuid;  /* as this vCPU sees it */

    /* Events (event.c). */
    uint64_t shadow_at; /* `instructions` right after the STI */
    uint8_t shadow;     /* interrupt shadow: 1 after STI, 2 after MOV SS; 0 none */
    bool nmi_blocked;
    bool in_delivery;         /* an exception is being delivered: a second one makes #DF */
    uint8_t delivering;       /* its vector */
    uint32_t run_state;       /* enum cpu_run_state */
    _Atomic uint32_t signals; /* bit 0 NMI, bit 1 INIT, bit 2 SIPI; bits 8..15 SIPI vector */
    struct engine_exit exit;

    /* What soft_raise() leaves for the loop. */
    jmp_buf unwind;
    struct {
        const struct insn *insn; /* NULL: between blocks, RIP is exact */
        uint8_t vector;
        bool has_error;
        uint32_t error;
        uint64_t payload; /* CR2 for #PF, DR6 bits for #DB */
    } raised;

    struct soft_tlb_entry tlbs[TLB_MAX][SOFT_TLB_SIZE] __attribute__((aligned(64)));
    struct soft_cache *cache;   /* block.c */
    struct soft_native *native; /* native.c */
    struct soft_jit *jit;       /* jit_cache.c; NULL: everything is interpreted */
    struct jit_state jit_state;

    /* exclusive.c and sleeping */
    pthread_mutex_t sleep_lock;
    pthread_cond_t sleep_wake;
    unsigned awake_ns; /* that it stays awake for when there is nothing to do (run.c) */
    bool running;      /* counted in exclusive_running */

    struct soft_system system; /* the privileged half's own (system_state.h) */
};

/* ---- registers ---- */

#define REG8(v, offset)  (*(uint8_t *)((uint8_t *)(v)->gpr + (offset)))
#define REG16(v, offset) (*(uint16_t *)((uint8_t *)(v)->gpr + (offset)))
#define REG32(v, offset) (*(uint32_t *)((uint8_t *)(v)->gpr + (offset))) /* to read only */
#define REG64(v, offset) (*(uint64_t *)((uint8_t *)(v)->gpr + (offset)))

/* A write of 32 bits clears the upper half. */
static inline void reg32_write(struct soft_vcpu *v, unsigned offset, uint32_t value)
{
    REG64(v, offset) = value;
}

static inline uint64_t flags_to_rflags(const struct soft_vcpu *v)
{
    return v->rflags | RFLAG_ONE | ((v->flags >> 8) & 0xd5) | (uint64_t)(v->flags & SOFT_OF) << 11;
}

static inline void flags_from_rflags(struct soft_vcpu *v, uint64_t rflags)
{
    v->flags = (uint16_t)((rflags & 0xd5) << 8 | 0x200 | ((rflags >> 11) & 1));
    v->rflags = rflags & ~(uint64_t)(RFLAG_ARITHMETIC | RFLAG_ONE);
}

static inline unsigned vcpu_cpl(const struct soft_vcpu *v)
{
    return v->mode & MODE_CPL;
}

/* ---- faults (event.c) ---- */

/* What setjmp(v->unwind) returns in the loop. SOFT_UNWOUND_RAISED: call soft_deliver_raised(), with
 * the same setjmp still standing, for delivery may itself raise. */
enum { SOFT_UNWOUND_RAISED = 1, SOFT_UNWOUND_AGAIN = 2 };

/* Unwinds to the loop, which delivers the exception. `insn` NULL = at a block boundary. */
_Noreturn void soft_raise(struct soft_vcpu *v, const struct insn *insn, enum vector vector);
_Noreturn void soft_raise_error(struct soft_vcpu *v, const struct insn *insn, enum vector vector,
                                uint32_t error);
/* #PF with CR2 = `linear`, #DB with DR6 bits. */
_Noreturn void soft_raise_payload(struct soft_vcpu *v, const struct insn *insn, enum vector vector,
                                  uint32_t error, uint64_t payload);
/* Unwinds to the loop without an exception: the instruction at `insn` is complete or must be run
 * again (SOFT_RIP is exact), or `exit_reason` has been set. */
_Noreturn void soft_unwind(struct soft_vcpu *v);

/* ---- memory (mmu.c) ---- */

/* Slow paths. `seg` is the enum cpu_seg that the access goes through: non-canonical addresses
 * raise #SS for CPU_SS and #GP otherwise. Sizes 1, 2, 4, 8. */
uint64_t soft_load_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                        unsigned size, unsigned seg);
void soft_store_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                     unsigned seg, uint64_t value);
/* Any size up to 512 bytes (vectors, FXSAVE), page crossings included; faults before any byte is
 * stored. */
void soft_load_bytes(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, void *to,
                     unsigned size, unsigned seg);
void soft_store_bytes(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                      const void *from, unsigned size, unsigned seg);
/* Raises what a write of [linear, linear + size) would raise, else returns. For instructions that
 * must know before they change anything (PUSHA, ENTER, CMPXCHG16B, string I/O). */
void soft_probe_write(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                      unsigned seg);
/* Host address for a read-modify-write of `size` bytes: read and write permission checked, dirty
 * and accessed bits set. NULL when it cannot be one host access (MMIO, page crossing, a code
 * page): use load and store then, for LOCK inside exclusive_begin(). */
void *soft_rmw_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                    unsigned seg);
/* As the system itself at CPL 0, for descriptor tables, TSS and stacks of an inner level: ignores
 * SMAP as the architecture says for implicit accesses. Sizes 1, 2, 4, 8. */
uint64_t soft_system_load(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                          unsigned size);
void soft_system_store(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                       uint64_t value);
/* Instruction fetch: translates `linear` for execution at the current privilege. Raises #PF or #GP.
 * Returns the guest-physical address; *ret_host is the host address of that byte, or NULL when it
 * is not memory. */
uint64_t soft_fetch_translate(struct soft_vcpu *v, uint64_t linear, const uint8_t **ret_host);
/* Segment limit and type check of an access outside 64-bit mode (INSN_SEGCHECK). `offset` is the
 * effective address before the base is added. Raises #GP or #SS. segment.c. */
void soft_segment_check(struct soft_vcpu *v, const struct insn *insn, unsigned seg, uint64_t offset,
                        unsigned size, bool write);

void soft_tlb_flush(struct soft_vcpu *v, bool global_too);
void soft_tlb_flush_page(struct soft_vcpu *v, uint64_t linear);
/* Removes every write tag that points into guest page `gpa`, because it becomes a code page. Called
 * for every vCPU, on the thread that is inside exclusive_begin(). */
void soft_tlb_protect(struct soft_vcpu *v, uint64_t gpa);

/* Picks the table for the current privilege. Alignment checks (MODE_AC) see a table that is never
 * filled, so that every access takes the slow path. */
static inline void soft_tlb_select(struct soft_vcpu *v)
{
    unsigned kind = (v->mode & MODE_AC) != 0      ? TLB_NEVER
                    : vcpu_cpl(v) == 3            ? TLB_USER
                    : (v->rflags & RFLAG_AC) != 0 ? TLB_SUPERVISOR_AC
                                                  : TLB_SUPERVISOR;
    v->tlb = v->tlbs[kind];
}

static inline struct soft_tlb_entry *tlb_slot(struct soft_vcpu *v, uint64_t linear)
{
    return &v->tlb[(linear >> MEM_PAGE_SHIFT) % SOFT_TLB_SIZE];
}

static inline bool tlb_hit(uint64_t tag, uint64_t linear, unsigned size)
{
    return likely(tag == ((linear + size - 1) & ~(uint64_t)SOFT_PAGE_MASK));
}

/* Guests access memory at any alignment; each access stays one host access. */
#define SOFT_DEFINE_ACCESS(bits)                                                                   \
    typedef uint##bits##_t guest_##bits __attribute__((aligned(1)));                               \
    static inline uint##bits##_t load_##bits(struct soft_vcpu *v, const struct insn *insn,         \
                                             uint64_t linear, unsigned seg)                        \
    {                                                                                              \
        struct soft_tlb_entry *entry = tlb_slot(v, linear);                                        \
        if (tlb_hit(entry->read, linear, bits / 8))                                                \
            return *(volatile guest_##bits *)(linear + entry->addend);                             \
        return (uint##bits##_t)soft_load_slow(v, insn, linear, bits / 8, seg);                     \
    }                                                                                              \
    static inline void store_##bits(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, \
                                    unsigned seg, uint##bits##_t value)                            \
    {                                                                                              \
        struct soft_tlb_entry *entry = tlb_slot(v, linear);                                        \
        if (tlb_hit(entry->write, linear, bits / 8))                                               \
            *(volatile guest_##bits *)(linear + entry->addend) = value;                            \
        else                                                                                       \
            soft_store_slow(v, insn, linear, bits / 8, seg, value);                                \
    }
SOFT_DEFINE_ACCESS(8)
SOFT_DEFINE_ACCESS(16)
SOFT_DEFINE_ACCESS(32)
SOFT_DEFINE_ACCESS(64)
#undef SOFT_DEFINE_ACCESS

/* Host address for a read-modify-write, or NULL (see soft_rmw_slow). */
static inline void *rmw_at(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                           unsigned size, unsigned seg)
{
    struct soft_tlb_entry *entry = tlb_slot(v, linear);
    if (tlb_hit(entry->write, linear, size))
        return (void *)(linear + entry->addend);
    return soft_rmw_slow(v, insn, linear, size, seg);
}

/* ---- modes, segments (segment.c) ---- */

/* Recomputes mode, ea_base and the TLB table after a change to CS, SS, DS, ES, FS, GS, CR0, CR4,
 * EFER, XCR0, EFLAGS.AC or .VM. */
void soft_mode_update(struct soft_vcpu *v);

/* ---- events (event.c) ---- */

/* Delivers what soft_raise() left: through the IDT, #DF, or a triple fault (exit_reason). */
void soft_deliver_raised(struct soft_vcpu *v);
/* Interrupts, NMI, INIT, SIPI, single-step traps, breakpoints, kicks: called by the loop between
 * instructions when `attention` says so or the vCPU is not running. Clears what it has dealt with.
 * Returns true when RIP or the exit reason changed; false: the next instruction begins (just one
 * while ATTENTION_STEP is set), or the vCPU sleeps (run_state). HLT itself only sets run_state to
 * CPU_HALTED with RIP past it, and leaves its block. */
bool soft_deliver_pending(struct soft_vcpu *v);

/* The interrupt shadow that still holds; what STI left ends by itself. */
static inline uint8_t soft_shadow(const struct soft_vcpu *v)
{
    return v->shadow == 1 && v->instructions != v->shadow_at ? 0 : v->shadow;
}

/* ---- vCPUs together (exclusive.c) ---- */

/* A vCPU thread is inside enter..leave while it may touch guest memory or blocks; it leaves while
 * it sleeps, calls a device, or is outside run(). Between begin and end all others are outside. */
void exclusive_enter(struct soft_vcpu *v);
void exclusive_leave(struct soft_vcpu *v);
void exclusive_begin(
    struct soft_vcpu *v); /* at a block boundary, or in a handler with nothing cached */
void exclusive_end(struct soft_vcpu *v);

/* ---- code pages (block.c) ---- */

/* A store changed [gpa, gpa + size), which lies in a page marked MEM_PAGE_CODE. Invalidates blocks
 * of all vCPUs by generation; when the block being executed is hit, makes it end after `insn`. Any
 * thread (v and insn NULL for devices). */
void soft_code_written(struct soft_vm *vm, struct soft_vcpu *v, const struct insn *insn,
                       uint64_t gpa, uint64_t size);

/* ---- time ---- */

/* The guest's TSC now, on this vCPU (offset and TSC_ADJUST included). msr.c */
uint64_t soft_vm_tsc(const struct soft_vm *vm);
uint64_t soft_tsc(struct soft_vcpu *v);

/* ---- MSRs (msr.c): false means #GP ---- */
bool soft_msr_read(struct soft_vcpu *v, uint32_t index, uint64_t *ret_value);
bool soft_msr_write(struct soft_vcpu *v, uint32_t index, uint64_t value);

/* ---- state.c ---- */
void soft_get_state(struct soft_vcpu *v, struct cpu_state *ret_state);
int soft_set_state(struct soft_vcpu *v, const struct cpu_state *state, struct err *err);
