/*
 * jit_unit.h: what the rooms of the translator share (jit.h is its front door).
 *
 *   jit_asm.c       host instructions into a buffer
 *   jit_cache.c     the code cache: units, links, invalidation, epochs
 *   jit_entry.c     the way in and out of units, the slow path, host exceptions
 *   jit_translate.c one block: entries, the walk over its instructions, what is left to handlers
 *   jit_flags.c     where the guest's arithmetic flags are
 *   jit_memory.c    the TLB check in front of each access
 *   jit_group.c     one check for several accesses
 *   jit_copy.c      copying instructions with renamed registers
 *   jit_insn.c      the instructions that need something of their own
 *   jit_system.c    the privileged instructions that are worth it
 *   jit_branch.c    edges: links, guarded links, the jump cache, calls and returns
 *
 * REGISTERS of a running unit. The guest's lie in the host's so:
 *
 *     guest  rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15
 *     host   r11 rcx rdx rbx r15 rbp rsi rdi r8 r9 r10  -  r12 r13  -   -      - : in v->gpr
 *
 * Host RAX and R14 are scratch, RSP is the stack of the vCPU's thread. RAX is free because LAHF and
 * SETO, which bring flags to memory, need it. Vector, x87 and MMX registers are themselves.
 *
 * FLAGS are in the host's EFLAGS, in v->flags, or can be computed again (jit_flags.c). A TLB check
 * destroys EFLAGS.
 */
#pragma once

#include "cpu/soft/block.h"
#include "cpu/soft/jit.h"
#include "cpu/soft/jit_asm.h"

enum {
    JIT_T = JIT_R14,                   /* second scratch; the first is RAX */
    JIT_UNIT_ROOM = 24 << 10,          /* more than any unit can take */
    JIT_PAGES = 4096,                  /* chains of units by guest page */
    JIT_SEEN = 16384,                  /* bits of a filter of linear pages with code */
    JIT_JUMPS_USED = 2048,             /* filled slots of a jump cache that are remembered */
    JIT_LINKS_MAX = 12,                /* of one unit */
    JIT_STUBS_MAX = 2 * JIT_LINKS_MAX, /* one each, and a poll */
    JIT_TRAPS_MAX = INSN_BLOCK_MAX,
    JIT_PATCH = 5, /* bytes of a JMP rel32 */
    JIT_SLOW_MAX = 3 * INSN_BLOCK_MAX,
    JIT_AGAIN_MAX = INSN_BLOCK_MAX / 2, /* instructions of a loop that is emitted twice */
};

enum jit_exit_kind {
    JIT_EXIT_RIP,   /* SOFT_RIP is exact */
    JIT_EXIT_LINK,  /* along link exit_index, which wants its target */
    JIT_EXIT_POLL,  /* the same, but because something wants attention */
    JIT_EXIT_INSN,  /* instruction exit_index of exit_unit is to be run by its handler */
    JIT_EXIT_STALE, /* exit_unit was entered and is disconnected */
};

/* What a slow path returns to its stub. */
enum jit_slow_result { JIT_SLOW_ON, JIT_SLOW_VECTORS, JIT_SLOW_LEAVE };

/* Addresses of code are where it is executed: below 2 GiB. */
struct jit_unit {
    struct soft_block *block; /* NULL: dropped */
    uint32_t start;           /* of its code */
    uint32_t entry_host;      /* entered with the flags in EFLAGS */
    uint32_t entry_saved;     /* ... in v->flags */
    uint32_t stale_host, stale_saved;
    uint8_t was_host[JIT_PATCH], was_saved[JIT_PATCH]; /* the bytes under the patches */
    bool connected, vectors;
    uint16_t offset; /* in its page */
    uint8_t trap_count;
    uint32_t traps;    /* its struct jit_trap_note */
    uint32_t incoming; /* links that lead here; 0 = none */
    uint32_t next;     /* of the same guest page; 0 = none */
    uint32_t place;    /* struct jit_place of its page */
};

/* A host instruction that may raise an exception. These lie behind the code of their unit. */
struct jit_trap_note {
    uint16_t at;   /* from the unit's start */
    uint16_t stub; /* brings the flags to memory and leaves; 0: they are in EFLAGS, or there */
    uint8_t index; /* of the guest's instruction */
    bool host;     /* EFLAGS has the flags */
};

/* How a unit goes on: past its last instruction, by a branch, or by a call, which has pushed. */
enum jit_way { JIT_WAY_FALL, JIT_WAY_BRANCH, JIT_WAY_CALL };

/* An edge of a unit whose target is known. */
struct jit_link {
    uint32_t unit;
    uint32_t displacement; /* of the JMP or JCC to be patched */
    uint32_t stub;         /* where it goes while it is not linked */
    uint32_t guard;        /* across pages: the epoch that it holds for, in the cache; 0: inside */
    int64_t target;        /* from the start of the unit's page */
    uint32_t to, next;     /* linked: its unit, and the next of that unit's incoming links */
    bool saved;            /* enters its target with the flags in memory */
    bool linked;
    enum jit_way way;
};

/* Where units of one guest page, supervisor's or user's, are mapped, as far as they can be entered
 * in this epoch. Lies in the code cache, read by code. */
struct jit_place {
    uint64_t base; /* linear address of the page */
    uint64_t epoch;
};

enum { JIT_PLACES = 4 /* at a time, a cache line without code */ };

/* ---- one translation ---- */

struct jit_flags {
    bool host;  /* EFLAGS has them */
    bool saved; /* v->flags has them */
    /* Neither may hold, then this code computes them again from registers that are unchanged. */
    uint8_t again[40];
    uint8_t again_size;
    uint32_t again_uses; /* host registers, by bit */
};

/* A jump from the fast path to a stub behind the unit. */
struct jit_slow {
    uint32_t jump;         /* displacement to be patched; 0: none */
    uint32_t back;         /* where it goes on */
    uint16_t first, count; /* instructions that handlers do instead */
    struct jit_flags before;
    bool host_after; /* EFLAGS is expected at `back` */
};

struct jit_trap {
    uint32_t at;
    unsigned index;
    struct jit_flags before;
};

/* A piece of code behind the unit that a link goes to until it is made. */
struct jit_stub {
    uint32_t jump;
    uint32_t link;
    bool poll;
    struct jit_flags before;
};

/* An effective address, guest registers by number; JIT_NONE: missing. */
struct jit_ea {
    uint8_t base, index, scale;
    bool rip;    /* disp is from the start of the unit's page (struct jit_place) */
    uint8_t seg; /* CPU_FS, CPU_GS, or JIT_NONE */
    int64_t disp;
};

/* Accesses through one register that share a check (jit_group.c). */
struct jit_group {
    bool open;
    struct jit_ea ea;    /* as the first access has it */
    unsigned first, end; /* instructions [first, end) do not leave it */
    int64_t low, high;   /* bytes that were checked, relative to the base at the first access */
    bool write;          /* ... for writing */
    int64_t delta;       /* what has been added to the base since */
    bool kept;           /* the addend lies in jit_state.addend as well, for JIT_T gets lost */
};

struct jit {
    struct soft_vcpu *v;
    struct soft_jit *cache;
    struct soft_block *block;
    uint32_t unit; /* its number */
    struct jit_asm a;
    struct decoded *decoded;
    unsigned count;
    unsigned half; /* 0 supervisor, 1 user */
    struct jit_flags flags;
    uint32_t place; /* struct jit_place of its page */
    bool ended;     /* the last instruction has made its own edges */
    bool vectors;
    uint32_t body; /* behind the entries */
    uint32_t guards[2];
    unsigned guard_count;
    enum jit_need { JIT_NEED_NOTHING, JIT_NEED_SAVED, JIT_NEED_HOST } need;
    struct jit_group group;
    bool grouping, broken; /* broken: a group turned out to be none; try again without */
    /* In the cache, for a translation need not clear them. */
    struct jit_slow *slow;
    struct jit_trap *traps;
    struct jit_stub *stubs;
    unsigned slow_count;
    unsigned slow_first; /* of this emission of the body */
    unsigned trap_count, stub_count;
    /* The body of a loop once more (emit_again): where the first one goes on to it, the flags that
     * it begins with. */
    bool is_again;
    uint32_t again_jump, again_body;
    struct jit_flags again_flags;
    bool failed;
};

/* ---- the cache ---- */

struct soft_jit {
    uint8_t *write_alias, *execute_alias;
    size_t size;    /* of the cache */
    size_t prelude; /* bytes at its start that stay */
    size_t used;
    size_t populated; /* of it there is memory in both aliases */
    uint32_t places;  /* the next free one */
    unsigned places_left;
    uint64_t delta; /* execute_alias - write_alias */
    uint32_t enter, leave, exit_memory, slow, exit_link, exit_poll, exit_insn, exit_stale;
    uint32_t load_vectors;
    uint32_t check_hit; /* 0: nobody asks for it */
    unsigned tlb_entries;
    bool has_avx, has_bmi2, counting;

    struct jit_unit *units; /* [0] is none */
    uint32_t unit_count, unit_max;
    struct jit_link *links; /* [0] is none */
    uint32_t link_count, link_max;
    uint32_t pages[JIT_PAGES];
    uint64_t seen[2][JIT_SEEN / 64]; /* pages that links and jump caches lead to; [1]: lower half */
    bool seen_local;                 /* the supervisor has noted a page that is not global */
    bool seen_low;                   /* ... and one of the lower half */
    bool seen_high;                  /* the user has noted one of the upper half */
    uint32_t mode;                   /* without CPL: what jump caches and guards hold for */
    /* Slots of the jump caches that are filled, unless there are too many to remember. */
    uint16_t jumps_used[2][JIT_JUMPS_USED];
    unsigned jumps_count[2];
    uint64_t events_done;
    uint64_t epochs;

    /* A slow path under way: its block's instruction that stops it, and what stood there. */
    struct insn *stop;
    insn_run *stopped;
    bool completed;

    /* The link that the next look-up is to make, 0 = none; the loop's. */
    uint32_t want;

    struct jit work; /* the translation under way */
    struct jit_slow work_slow[JIT_SLOW_MAX];
    struct jit_trap work_traps[JIT_TRAPS_MAX];
    struct jit_stub work_stubs[JIT_STUBS_MAX];

    /* For those who measure. */
    uint64_t translated, resets, slow_paths, stale, exits;
};

/* Address of a field of the vCPU, as code names it. */
#define JIT_FIELD(v, field) ((uint32_t)(uintptr_t)(v) + (uint32_t)offsetof(struct soft_vcpu, field))
#define JIT_V(jit, field)   JIT_ABS(JIT_FIELD((jit)->v, field))

/* The linear address of the page that the unit lies in. */
#define JIT_PAGE_BASE(jit) JIT_ABS((jit)->place + (uint32_t)offsetof(struct jit_place, base))

extern const uint8_t jit_host_of[16]; /* JIT_NONE: in v->gpr */

static inline struct jit_rm jit_slot(const struct jit *jit, unsigned number)
{
    return JIT_ABS(JIT_FIELD(jit->v, gpr) + number * 8);
}

/* What an empty slot of a jump cache holds: an address that belongs into another slot, so that no
 * branch finds it here; and 0 in all but one, so that fresh memory needs no touch. */
static inline uint64_t jit_jump_empty(unsigned slot)
{
    return slot == 0 ? 1 << JIT_JUMP_SHIFT : 0;
}

/* jit_cache.c */
/* Room for one more unit, with memory under it. False: the cache, or the host, has none. */
bool jit_make_room(struct soft_jit *cache);
/* The unit that was just made, the next in number, may be entered from now on. */
void jit_unit_add(struct soft_jit *cache, uint32_t number);
/* The place of the block's page. */
uint32_t jit_place_of(struct soft_jit *cache, const struct soft_block *block);
/* The unit is about to be entered at SOFT_RIP, not by a link. */
void jit_place_set(struct soft_vcpu *v, const struct jit_unit *unit);
struct jit_link *jit_link_new(struct jit *jit, int64_t target, enum jit_way way,
                              uint32_t *ret_number);
/* Makes the wanted link to the unit of `block`, which was found at SOFT_RIP. */
void jit_make_link(struct soft_vcpu *v, uint32_t number, struct soft_block *block);
void jit_note_page(struct soft_vcpu *v, uint64_t linear);
bool jit_page_is_global(struct soft_vcpu *v, uint64_t linear);

/* jit_entry.c */
void jit_make_prelude(struct soft_vcpu *v, struct soft_jit *cache);

/* jit_flags.c */
void jit_flags_need_host(struct jit *jit);
void jit_flags_need_saved(struct jit *jit); /* EFLAGS may be lost */
/* Before code that destroys EFLAGS and from which one may leave. */
void jit_flags_lose(struct jit *jit);
/* The same for a stub: emits what brings flags in state `before` to memory. */
void jit_flags_save_cold(struct jit *jit, const struct jit_flags *before);
void jit_flags_restore(struct jit *jit); /* v->flags to EFLAGS, emitted at once */
/* `host` register was written: what was to be computed from it cannot be any more. */
void jit_flags_wrote(struct jit *jit, unsigned host);
void jit_flags_set(struct jit *jit);    /* an instruction has written all of them */
void jit_flags_forget(struct jit *jit); /* nobody will look at them before they are written anew */
/* Are they written anew from instruction k on, before anybody can look at them? */
bool jit_flags_dead(const struct jit *jit, unsigned k);

/* jit_translate.c: instruction k, with the flags where they are now, may raise a host exception;
 * the caller says `at` which host instruction. */
struct jit_trap *jit_may_trap(struct jit *jit, unsigned k);

/* jit_memory.c: checks an access of instruction `k`, `size` bytes at `ea`, aligned to `align` (1:
 * any), and returns the host operand, good until JIT_T changes. Loses EFLAGS, uses RAX. */
struct jit_rm jit_access(struct jit *jit, unsigned k, const struct jit_ea *ea, unsigned size,
                         bool write, unsigned align);
bool jit_ea_of(const struct jit *jit, unsigned k, const ZydisDecodedOperand *operand,
               struct jit_ea *ret_ea);
struct jit_slow *jit_slow_new(struct jit *jit, unsigned first, unsigned count);

/* The first half of jit_access(), from the address to JIT_T: checks bytes [low, high) around `ea`
 * without its disp. Returns the jump of a miss. */
uint32_t jit_check(struct jit *jit, const struct jit_ea *ea, int64_t low, int64_t high, bool write,
                   unsigned align);
struct jit_rm jit_operand(struct jit *jit, const struct jit_ea *ea);
/* The lower half of a host register, `shift`ed right, in JIT_T; its upper bits are anything. */
void jit_shifted(struct jit *jit, unsigned host, unsigned shift);
/* jit_group.c: does the access belong to the open group, or can it open one? Then no other check is
 * needed, and *ret_rm is its operand. */
bool jit_group_access(struct jit *jit, unsigned k, const struct jit_ea *ea, unsigned size,
                      bool write, struct jit_rm *ret_rm);
/* Where a slow path beginning at instruction k has to end. */
unsigned jit_group_end(const struct jit *jit, unsigned k);
void jit_group_after(struct jit *jit, unsigned k); /* instruction k is done */

/* What instruction k does to memory, for those who look ahead. */
enum jit_touch { JIT_TOUCH_NOTHING, JIT_TOUCH_ONE, JIT_TOUCH_OTHER, JIT_TOUCH_STOP };
enum jit_touch jit_touches(const struct jit *jit, unsigned k, struct jit_ea *ret_ea,
                           unsigned *ret_size, bool *ret_write);

/* jit_insn.c: false: no translation, and nothing was emitted. */
bool jit_insn(struct jit *jit, unsigned k);
bool jit_uses_vectors(const struct jit *jit);
/* jit_system.c: the same. jit_sti() for the one instruction that is alone in its block. */
bool jit_smap(struct jit *jit, unsigned k);
bool jit_cli(struct jit *jit, unsigned k);
bool jit_cld(struct jit *jit, unsigned k);
bool jit_sti(struct jit *jit, unsigned k);
bool jit_pushf(struct jit *jit, unsigned k);
bool jit_swapgs(struct jit *jit, unsigned k);
/* jit_branch.c: the last instruction, if it is a near branch. */
bool jit_branch(struct jit *jit, unsigned k);
/* A Jcc that is not the last one: emits its way out. */
void jit_side_exit(struct jit *jit, unsigned k);
/* Goes on at `target`, from the start of the page, with the flags wherever they are. */
void jit_edge(struct jit *jit, int64_t target, enum jit_way way);

/* What flags an instruction surely writes, and whether it looks at or keeps some (decode.c). */
bool decode_kills_flags(const struct decoded *decoded);
bool decode_uses_flags(const struct decoded *decoded);
bool decode_writes_flags(const struct decoded *decoded);
bool decode_shows_flags(const struct soft_vcpu *v, const struct decoded *decoded);
bool decode_is_barrier(const struct soft_vcpu *v, const struct decoded *decoded);
