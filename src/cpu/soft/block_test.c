/* Cached blocks: what they must notice (code that changes, pages that move), what they may cost,
 * and execution instruction by instruction. */
#include "cpu/soft/block.h"
#include "cpu/soft/guest_fixture.h"

enum { A = GUEST_WINDOW, B = GUEST_WINDOW + 0x10000 };

/* ---- code that changes ---- */

/* The store changes the immediate of the instruction right behind it. */
GUEST_CODE(patch_next, 64,
           "mov $3, %ecx; 1: movb %cl, 2f+1(%rip); 2: mov $0x55, %al; add %eax, %ebx; nop;"
           "dec %ecx; jnz 1b; hlt");

static void a_store_into_the_running_block_counts_at_once(void **state)
{
    (void)state;
    RUN(patch_next);
    assert_int_equal(reg(CPU_RBX), 3 + 2 + 1);
    assert_int_equal(guest.v->instructions, 1 + 3 * 6 + 1);
}

/* Code is run once through one address, then changed through another. */
GUEST_CODE(patch_alias, 64,
           "call f; mov %eax, %ebx; movb $0x22, 0x400001; call f; add %eax, %ebx; hlt;"
           ".balign 64; f: jmp *%rsi");

static void a_store_through_an_alias_counts(void **state)
{
    (void)state;
    static const uint8_t f[] = {0xb8, 0x11, 0, 0, 0, 0xc3}; /* mov $0x11, %eax; ret */
    memcpy(guest.ram + B, f, sizeof f);
    guest_page(&guest, 0, B | 3);
    guest.state.gpr[CPU_RSI] = B;
    RUN(patch_alias);
    assert_int_equal(reg(CPU_RBX), 0x11 + 0x22);
}

GUEST_CODE(data_beside, 64,
           "mov $10000, %ecx; 1: addl $1, 3f(%rip); dec %ecx; jnz 1b; mov 3f(%rip), %eax; hlt;"
           ".skip 64; 3: .long 0");

static void data_beside_code_does_not_decode_again(void **state)
{
    (void)state;
    RUN(data_beside);
    assert_int_equal(reg(CPU_RAX), 10000);
    assert_true(guest.v->cache->blocks <= 4);
    assert_int_equal(guest.v->cache->revalidated, 0);
}

GUEST_CODE(return_7, 64, "mov $7, %eax; hlt");

static void a_device_may_write_code(void **state)
{
    (void)state;
    RUN(return_7);
    assert_int_equal(reg(CPU_RAX), 7);
    const struct mem_region *region = mem_find(guest.mem, GUEST_CODE_AT);
    uint8_t *mark = &region->marks[(GUEST_CODE_AT - region->start) >> MEM_PAGE_SHIFT];
    assert_true(*mark & MEM_PAGE_CODE);
    uint32_t nine = 9;
    assert_int_equal(mem_write(guest.mem, GUEST_CODE_AT + 1, &nine, 4), 0);
    assert_false(*mark & MEM_PAGE_CODE); /* its only code is stale: stores are fast again */
    guest_long(&guest, 0);
    assert_int_equal(guest_go(&guest), ENGINE_EXIT_HALT);
    assert_int_equal(reg(CPU_RAX), 9);
}

GUEST_CODE(write_and_return_7, 64, "mov $7, %eax; mov %eax, 0x60010; hlt");

static void memory_that_was_given_back_is_empty(void **state)
{
    (void)state;
    enum { STRETCH = 64 << 10 }; /* what populate.c brings at once */
    RUN(write_and_return_7);
    assert_int_equal(*guest_quad(&guest, GUEST_DATA + 16), 7);
    const uint64_t *populated = guest.v->vm->populated[0];
    assert_true(*populated >> GUEST_DATA / STRETCH & 1);
    uint64_t count = guest.v->vm->populated_count[0];
    assert_int_equal(mem_discard(guest.mem, GUEST_DATA, STRETCH), 0);
    assert_false(*populated >> GUEST_DATA / STRETCH & 1);
    assert_int_equal(guest.v->vm->populated_count[0], count - 1);
    assert_int_equal(*guest_quad(&guest, GUEST_DATA + 16), 0);

    assert_int_equal(mem_discard(guest.mem, GUEST_CODE_AT, MEM_PAGE_SIZE), 0);
    guest.ram[GUEST_CODE_AT + MEM_PAGE_SIZE] = 0xf4;
    guest_long(&guest, 0);
    guest.state.gpr[CPU_RAX] = GUEST_DATA; /* zeroes are add %al, (%rax) */
    assert_int_equal(guest_go(&guest), ENGINE_EXIT_HALT);
    assert_int_equal(guest.state.rip, GUEST_CODE_AT + MEM_PAGE_SIZE + 1);
    assert_int_equal(reg(CPU_RAX), GUEST_DATA);
}

/* ---- two pages ---- */

/* mov $imm, %eax over the end of window page 0; then a jump back into the loop at `rsi`. */
static void put_straddling(uint32_t immediate)
{
    static const uint8_t after[] = {0x01, 0xc3, 0xff, 0xe6}; /* add %eax, %ebx; jmp *%rsi */
    guest.ram[A + 0xffe] = 0xb8;
    guest.ram[A + 0xfff] = (uint8_t)immediate;
    guest.ram[A + 0x1000] = (uint8_t)(immediate >> 8);
    guest.ram[A + 0x1001] = (uint8_t)(immediate >> 16);
    guest.ram[A + 0x1002] = (uint8_t)(immediate >> 24);
    memcpy(guest.ram + A + 0x1003, after, sizeof after);
}

/* Calls the straddling code three times and maps another second page before the last. */
GUEST_CODE(straddle, 64,
           "mov $0x400ffe, %edi; lea 1f(%rip), %rsi; mov $1000, %ecx; jmp *%rdi; 1: dec %ecx;"
           "jz 2f; jmp *%rdi; 2: mov %ebx, %r8d; xor %ebx, %ebx;"
           "mov %r9, 0x4008; invlpg 0x401000; lea 3f(%rip), %rsi; jmp *%rdi; 3: hlt");

static void an_instruction_in_two_pages_follows_both(void **state)
{
    (void)state;
    put_straddling(0x00020301);
    memcpy(guest.ram + B, guest.ram + A + 0x1000, 16);
    guest.ram[B] = 0x07; /* second byte of the immediate */
    guest.state.gpr[CPU_R9] = B | 3;
    RUN(straddle);
    assert_int_equal(reg(CPU_R8), 1000 * 0x00020301);
    assert_int_equal(reg(CPU_RBX), 0x00020701);
}

/* The straddling code runs, becomes a short instruction in the first page, and the second goes. */
GUEST_CODE(
    shortened, 64,
    "mov $0x400ffe, %edi; lea 1f(%rip), %rsi; jmp *%rdi; 1: lea 2f(%rip), %rsi;"
    "movw $0xe6ff, (%rdi); movq $0, 0x4008; invlpg 0x401000; jmp *%rdi; 2: mov $9, %edx; hlt");

static void a_straddling_instruction_that_became_short_forgets_the_second_page(void **state)
{
    (void)state;
    put_straddling(1);
    RUN(shortened);
    assert_int_equal(reg(CPU_RDX), 9);
    assert_int_equal(reg(CPU_RBX), 1);
}

static void the_second_page_faults_at_its_own_address(void **state)
{
    (void)state;
    put_straddling(1);
    guest_page(&guest, 1, 0);
    RUN(straddle);
    assert_int_equal(guest_vector(&guest), VECTOR_PF);
    assert_int_equal(guest.state.cr2, A + 0x1000);
    assert_int_equal(guest_stack(&guest, 1), A + 0xffe);
    /* Nothing of a block that ends in the page waits for the next one. */
    guest_long(&guest, 0);
    guest_page(&guest, 1, 0);
    guest.ram[A + 0xfff] = 0xf4;
    guest.state.rip = A + 0xfff;
    assert_int_equal(guest_go(&guest), ENGINE_EXIT_HALT);
    assert_int_equal(guest.state.rip, A + 0x1000);
}

static void code_in_a_device_runs(void **state)
{
    (void)state;
    guest.state.rip = GUEST_MMIO + 0x10; /* reads as c7 c7 c7 ...: mov $0xc7c7c7c7, %edi */
    guest_load(&guest, return_7, return_7_end);
    assert_int_equal(engine_soft.vcpu_set_state(guest.vcpu, &guest.state, NULL), 0);
    assert_int_equal(soft_step(guest.v), -1);
    assert_int_equal(guest.v->gpr[CPU_RDI], 0xc7c7c7c7);
    assert_int_equal(guest.v->gpr[SOFT_RIP], GUEST_MMIO + 0x16);
}

/* ---- bounds ---- */

static void an_endless_stretch_of_code_does_not_take_endless_memory(void **state)
{
    (void)state;
    enum { AT = 1 << 20, SIZE = 2 << 20 };
    memset(guest.ram + AT, 0x90, SIZE);
    guest.ram[AT + SIZE] = 0xf4;
    guest.state.rip = AT;
    guest_load(&guest, return_7, return_7_end);
    assert_int_equal(guest_go(&guest), ENGINE_EXIT_HALT);
    assert_int_equal(guest.state.rip, AT + SIZE + 1);
    assert_int_equal(guest.v->instructions, SIZE + 1);
    assert_true(guest.v->cache->forgotten > 0);
}

/* ---- stepping from outside ---- */

GUEST_CODE(steps, 64, "mov $5, %eax; 1: dec %eax; jnz 1b; ud2");

static void soft_step_executes_exactly_one_instruction(void **state)
{
    (void)state;
    guest_load(&guest, steps, steps_end);
    assert_int_equal(engine_soft.vcpu_set_state(guest.vcpu, &guest.state, NULL), 0);
    uint64_t count = 0;
    int vector;
    while ((vector = soft_step(guest.v)) == -1)
        count++;
    assert_int_equal(vector, VECTOR_UD);
    assert_int_equal(count, 11);
    assert_int_equal(guest.v->instructions, 11);
    assert_int_equal(guest.v->gpr[SOFT_RIP], GUEST_CODE_AT + 9);
}

GUEST_CODE(trapped, 64, "push $0x102; popf; nop; nop; hlt");

static void tf_traps_after_one_instruction(void **state)
{
    (void)state;
    RUN(trapped);
    assert_int_equal(guest_vector(&guest), VECTOR_DB);
    assert_int_equal(guest_stack(&guest, 0), GUEST_CODE_AT + 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_store_into_the_running_block_counts_at_once),
        TEST(a_store_through_an_alias_counts),
        TEST(data_beside_code_does_not_decode_again),
        TEST(a_device_may_write_code),
        TEST(memory_that_was_given_back_is_empty),
        TEST(an_instruction_in_two_pages_follows_both),
        TEST(a_straddling_instruction_that_became_short_forgets_the_second_page),
        TEST(the_second_page_faults_at_its_own_address),
        TEST(code_in_a_device_runs),
        TEST(an_endless_stretch_of_code_does_not_take_endless_memory),
        TEST(soft_step_executes_exactly_one_instruction),
        TEST(tf_traps_after_one_instruction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
