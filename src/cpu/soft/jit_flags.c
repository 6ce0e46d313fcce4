/*
 * Where the guest's arithmetic flags are.
 *
 * An ALU instruction of the guest leaves them in EFLAGS, for nothing. A TLB check, a poll, anything
 * else of ours destroys EFLAGS; and wherever a unit can be left (a fault pushes RFLAGS), they must
 * be known. So before EFLAGS is destroyed one of three things holds:
 *
 *   saved   v->flags has them: LAHF, SETO and a store, three instructions
 *   again   they can be computed again from registers that have not changed: CMP and TEST as they
 *           stand, AND, OR, XOR by a TEST of their result, ADD and SUB by taking them back and
 *           doing them again. The code for it stands in the stub that leaves, so the fast path
 *           pays nothing; if the flags are needed again, it is one instruction
 *   neither then they are saved now
 *
 * What the host's own instruction leaves in flags that the manuals call undefined is what the guest
 * sees, as in the interpreter.
 */
#include "cpu/soft/jit_unit.h"

static void emit_save(struct jit *jit)
{
    static const uint8_t lahf_seto[] = {0x9f, 0x0f, 0x90, 0xc0};
    asm_bytes(&jit->a, lahf_seto, sizeof lahf_seto);
    asm_byte(&jit->a, 0x66);
    asm_op(&jit->a, 0x89, 4, JIT_RAX, JIT_V(jit, flags));
}

void jit_flags_restore(struct jit *jit)
{
    static const uint8_t add_sahf[] = {0x04, 0x7f, 0x9e};
    asm_op_0f(&jit->a, 0xb7, 4, JIT_RAX, JIT_V(jit, flags));
    asm_bytes(&jit->a, add_sahf, sizeof add_sahf);
}

void jit_flags_need_host(struct jit *jit)
{
    if (jit->flags.host)
        return;
    if (jit->flags.again_size)
        asm_bytes(&jit->a, jit->flags.again, jit->flags.again_size);
    else
        jit_flags_restore(jit);
    jit->flags.host = true;
}

void jit_flags_save_cold(struct jit *jit, const struct jit_flags *before)
{
    if (before->saved)
        return;
    if (!before->host) {
        assert(before->again_size);
        asm_bytes(&jit->a, before->again, before->again_size);
    }
    emit_save(jit);
}

void jit_flags_need_saved(struct jit *jit)
{
    if (jit->flags.saved)
        return;
    jit_flags_need_host(jit);
    emit_save(jit);
    jit->flags.saved = true;
}

void jit_flags_lose(struct jit *jit)
{
    if (!jit->flags.saved && !jit->flags.again_size) {
        emit_save(jit);
        jit->flags.saved = true;
    }
    jit->flags.host = false;
}

void jit_flags_wrote(struct jit *jit, unsigned host)
{
    struct jit_flags *flags = &jit->flags;
    if (!flags->again_size || !(flags->again_uses & 1u << host))
        return;
    /* The last moment to keep them, if they are not in EFLAGS. The caller says this before it
     * emits the write. */
    if (!flags->host && !flags->saved)
        jit_flags_need_saved(jit);
    flags->again_size = 0;
}

void jit_flags_set(struct jit *jit)
{
    jit->flags = (struct jit_flags){.host = true};
}

/* EFLAGS holds something, and it does not matter what. */
void jit_flags_forget(struct jit *jit)
{
    jit->flags = (struct jit_flags){.host = true};
}

bool jit_flags_dead(const struct jit *jit, unsigned k)
{
    for (; k < jit->count; k++) {
        const struct decoded *d = &jit->decoded[k];
        if (decode_shows_flags(jit->v, d) || decode_uses_flags(d))
            return false;
        if (decode_kills_flags(d))
            return true;
    }
    return false;
}
