/* Code that changes code on one processor: every loop is long enough to be hot when its code
 * changes, and every round of it is checked. The code is in smc_code.S and smc_stores.S. */
#include "guest.h"

enum { ROUNDS = 1000, ALIAS = 0x10000000 };

#define LOOP(name) extern uint64_t name(uint64_t rounds)
LOOP(smc_next);
LOOP(smc_later);
LOOP(smc_behind);
LOOP(smc_bytes);
LOOP(smc_other_block);
LOOP(smc_jump);
LOOP(smc_condition);
LOOP(smc_call);
LOOP(smc_static_key);
LOOP(smc_copy);
LOOP(smc_copy_ahead);
LOOP(smc_other_page);
LOOP(smc_return);
LOOP(smc_straddle);
LOOP(smc_every);

extern uint64_t smc_call_patched(void), smc_call_lone(void), smc_call_poked(void);
extern uint8_t smc_patched[], smc_lone[], smc_poked[];
extern const char smc_poked_after[];

struct store {
    const char *name;
    void (*run)(uint8_t *code, const void *image);
};
extern const struct store smc_stores[], smc_vector_stores[], smc_avx_stores[], smc_stores_end[];

static uint8_t *alias_of(void *code)
{
    uint64_t at = (uint64_t)code;
    guest_map(ALIAS, (at & ~UINT64_C(0xfff)) | 3);
    guest_map(ALIAS + 4096, (at & ~UINT64_C(0xfff)) + 4096 + 3);
    return (uint8_t *)(ALIAS + (at & 0xfff));
}

/* ---- loops that change themselves ---- */

/* Twice: the second time all of it is known already. */
static uint64_t wrong(uint64_t (*loop)(uint64_t rounds))
{
    return loop(ROUNDS) + loop(ROUNDS + 1);
}

static void loops(void)
{
    check_equal("the next instruction", wrong(smc_next), 0);
    check_equal("an opcode later in the block", wrong(smc_later), 0);
    check_equal("an instruction that ran already", wrong(smc_behind), 0);
    check_equal("single bytes of an immediate", wrong(smc_bytes), 0);
    check_equal("another block of the page", wrong(smc_other_block), 0);
    check_equal("the target of a jump", wrong(smc_jump), 0);
    check_equal("the condition of a branch", wrong(smc_condition), 0);
    check_equal("the target of a call", wrong(smc_call), 0);
    check_equal("a NOP that becomes a jump", wrong(smc_static_key), 0);
    check_equal("code copied over code", wrong(smc_copy), 0);
    check_equal("string stores right ahead", wrong(smc_copy_ahead), 0);
    check_equal("code of the next page", wrong(smc_other_page), 0);
    check_equal("the code a call returns to", wrong(smc_return), 0);
    check_equal("an instruction in two pages", wrong(smc_straddle), 0);
    check_equal("every instruction changes its successor", wrong(smc_every), 0);
}

/* ---- kinds of stores ---- */

static void make_image(uint8_t image[32], unsigned round)
{
    image[0] = 0x48; /* movabs $imm64, %rax */
    image[1] = 0xb8;
    for (unsigned i = 0; i < 8; i++)
        image[2 + i] = (uint8_t)(0x40 | ((round + i * 5) & 0x3f)); /* no NaN, as a double */
    image[10] = 0xc3;
    for (unsigned i = 11; i < 32; i++)
        image[i] = 0x90;
}

/* Rounds in which the function did not return what memory says, or memory did not change. */
static uint64_t store_errors(const struct store *store, uint8_t *through)
{
    uint8_t image[32] __attribute__((aligned(32)));
    volatile uint64_t *immediate = (volatile uint64_t *)(smc_patched + 2);
    uint64_t errors = 0;
    make_image(image, 0);
    memcpy(smc_patched, image, sizeof image);
    serialize();
    for (unsigned round = 1; round <= ROUNDS / 3; round++) {
        uint64_t before = *immediate;
        make_image(image, round);
        store->run(through, image);
        if (through != smc_patched)
            serialize();
        errors += smc_call_patched() != *immediate || *immediate == before;
    }
    return errors;
}

static void stores(const struct store *begin, const struct store *end)
{
    uint64_t direct = 0, aliased = 0;
    for (const struct store *store = begin; store < end; store++) {
        uint64_t one = store_errors(store, smc_patched);
        uint64_t two = store_errors(store, alias_of(smc_patched));
        if (one || two) {
            print("wrong: ");
            print(store->name);
            print("\n");
        }
        direct += one;
        aliased += two;
    }
    check_equal("stores of every kind reach code", direct, 0);
    check_equal("through an alias too", aliased, 0);
}

static void vector_stores(void)
{
    uint32_t features[4];
    cr4_write(cr4_read() | 0x600); /* OSFXSR, OSXMMEXCPT */
    cpuid(1, 0, features);
    stores(smc_vector_stores, smc_avx_stores);
    if (!(features[2] & 1 << 28) || !(features[2] & 1 << 26)) {
        print("SKIP AVX\n");
        return;
    }
    cr4_write(cr4_read() | 1 << 18); /* OSXSAVE */
    __asm__ volatile("xsetbv" ::"a"(7), "d"(0), "c"(0));
    stores(smc_avx_stores, smc_stores_end);
}

/* ---- a page that is code, data, and code again ---- */

static void put_function(uint8_t *at, uint32_t value)
{
    at[0] = 0xb8; /* mov $value, %eax; ret */
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

static void code_and_data(void)
{
    uint64_t wrong_code = 0, wrong_data = 0;
    volatile uint32_t *words = (volatile uint32_t *)smc_lone;
    for (uint32_t turn = 0; turn < 12; turn++) {
        put_function(smc_lone, turn);
        for (unsigned i = 0; i < 300; i++)
            wrong_code += smc_call_lone() != turn;
        for (uint32_t i = 0; i < 1024; i++)
            words[i] = i * 0x01010101 + turn;
        for (uint32_t i = 0; i < 1024; i++)
            wrong_data += words[i] != i * 0x01010101 + turn;
        for (uint32_t i = 0; i < 1024; i++)
            words[i] += words[1023 - i];
    }
    /* Data right beside hot code changes all the time; the code does not. */
    put_function(smc_lone, 77);
    for (uint32_t i = 0; i < 3 * ROUNDS; i++) {
        words[2 + i % 1000] = i;
        wrong_code += smc_call_lone() != 77;
        wrong_data += words[2 + i % 1000] != i;
    }
    check_equal("the code of a page that is data at times", wrong_code, 0);
    check_equal("and its data", wrong_data, 0);
}

/* Functions made one after another in one buffer, as a JIT does: each is hot, then replaced. */
static void made_functions(void)
{
    uint64_t errors = 0;
    for (uint32_t turn = 0; turn < 40; turn++) {
        uint8_t *at = smc_lone;
        for (uint32_t i = 0; i < turn; i++) { /* add $imm8, %eax, each its own */
            at[0] = 0x83;
            at[1] = 0xc0;
            at[2] = (uint8_t)(i + 1);
            at += 3;
        }
        *at = 0xc3;
        uint32_t sum = turn * (turn + 1) / 2, value = 5;
        for (uint32_t i = 0; i < 200; i++) {
            __asm__ volatile("call smc_lone" : "+a"(value)::"memory", "cc");
            errors += value != 5 + (i + 1) * sum;
        }
    }
    check_equal("functions made in place", errors, 0);
}

/* ---- INT3 first, as Linux's text_poke does ---- */

static volatile uint64_t pokes;

static void on_breakpoint(struct frame *frame)
{
    pokes += frame->rip == (uint64_t)smc_poked + 1;
    frame->rax = 0x777;
    frame->rip = (uint64_t)smc_poked_after;
}

static void call_often(uint32_t wanted, uint64_t *errors)
{
    for (unsigned i = 0; i < 8; i++)
        *errors += smc_call_poked() != wanted + 0x1000;
}

static void poke(uint8_t *through, uint32_t value, uint64_t *errors)
{
    uint64_t before = pokes;
    *(volatile uint8_t *)through = 0xcc;
    serialize();
    call_often(0x777, errors);
    for (unsigned i = 0; i < 4; i++)
        ((volatile uint8_t *)through)[1 + i] = (uint8_t)(value >> i * 8);
    serialize();
    call_often(0x777, errors);
    *errors += pokes != before + 16;
    *(volatile uint8_t *)through = 0xb8;
    serialize();
    call_often(value, errors);
    *errors += pokes != before + 16;
}

static void text_poke(void)
{
    uint64_t errors = 0;
    if (guest_emulated("INT3 in ring 0"))
        return;
    guest_handle(3, on_breakpoint);
    for (unsigned i = 0; i < ROUNDS / 4; i++)
        smc_call_poked();
    for (uint32_t i = 0; i < ROUNDS / 4; i++) {
        poke(smc_poked, i * 0x1001, &errors);
        poke(alias_of(smc_poked), i * 0x2003, &errors);
    }
    guest_handle(3, NULL);
    check_equal("patched under an INT3", errors, 0);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    loops();
    code_and_data();
    made_functions();
    text_poke();
    if (guest_emulated("every kind of store in ring 0"))
        return;
    stores(smc_stores, smc_vector_stores);
    vector_stores();
}
