#include "cpu/soft/native_harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

/* ---- one by one ---- */

/* Decodes, binds and runs `bytes` from host_state(). */
static unsigned run_bytes(const char *bytes, unsigned length, uint32_t mode,
                          struct outcome *outcome)
{
    struct form form = {0};
    struct insn insns[2];
    memcpy(form.bytes, bytes, length);
    assert_true(form_decode(&form, mode & MODE_64 ? &harness.decoder_64 : &harness.decoder_32));
    load_vcpu(host_state());
    harness.vcpu->mode = mode;
    set_tlb(true);
    form_bind(&form, mode, insns);
    unsigned trap = run_vcpu(insns, outcome);
    harness.vcpu->mode = MODE_TEST;
    return trap;
}

#define RUN(bytes, mode, outcome) run_bytes(bytes, sizeof(bytes) - 1, mode, outcome)

static void control_registers_decide(void **state)
{
    (void)state;
    static struct outcome outcome;
    static const struct {
        const char *name, *bytes;
        unsigned length;
        uint32_t without, with; /* mode bits taken from and added to MODE_TEST */
        unsigned trap;
    } cases[] = {
        {"fabs", "\xd9\xe1", 2, 0, MODE_TS, VECTOR_NM},
        {"fabs", "\xd9\xe1", 2, 0, MODE_EM, VECTOR_NM},
        {"fwait", "\x9b", 1, 0, MODE_TS, 0},
        {"fwait", "\x9b", 1, 0, MODE_TS | MODE_MP, VECTOR_NM},
        {"fwait", "\x9b", 1, 0, MODE_EM, 0},
        {"paddb mm", "\x0f\xfc\xc1", 3, 0, MODE_TS, VECTOR_NM},
        {"paddb mm", "\x0f\xfc\xc1", 3, 0, MODE_EM | MODE_TS, VECTOR_UD},
        {"paddb mm", "\x0f\xfc\xc1", 3, MODE_SSE, 0, 0},
        {"paddb xmm", "\x66\x0f\xfc\xc1", 4, 0, MODE_TS, VECTOR_NM},
        {"paddb xmm", "\x66\x0f\xfc\xc1", 4, 0, MODE_EM, VECTOR_UD},
        {"paddb xmm", "\x66\x0f\xfc\xc1", 4, MODE_SSE, 0, VECTOR_UD},
        {"movaps xmm", "\x0f\x28\xc1", 3, MODE_SSE, 0, VECTOR_UD},
        {"movaps xmm", "\x0f\x28\xc1", 3, 0, MODE_TS, VECTOR_NM},
        {"pxor xmm same", "\x66\x0f\xef\xc0", 4, 0, MODE_TS, VECTOR_NM},
        {"crc32", "\xf2\x0f\x38\xf1\xc1", 5, MODE_SSE, MODE_TS | MODE_EM, 0},
        {"vpaddb", "\xc5\xf1\xfc\xc1", 4, MODE_AVX, 0, VECTOR_UD},
        {"vpaddb", "\xc5\xf1\xfc\xc1", 4, MODE_SSE, MODE_EM, 0},
        {"vpaddb", "\xc5\xf1\xfc\xc1", 4, 0, MODE_TS, VECTOR_NM},
        {"vpaddb", "\xc5\xf1\xfc\xc1", 4, MODE_PROTECTED, 0, VECTOR_UD},
        {"vpaddb", "\xc5\xf1\xfc\xc1", 4, 0, MODE_VM86, VECTOR_UD},
        {"vzeroupper", "\xc5\xf8\x77", 3, MODE_AVX, 0, VECTOR_UD},
        {"andn", "\xc4\xe2\x70\xf2\xc1", 5, MODE_AVX, MODE_TS | MODE_EM, 0},
        {"andn", "\xc4\xe2\x70\xf2\xc1", 5, 0, MODE_VM86, VECTOR_UD},
        {"fxsave", "\x0f\xae\x03", 3, 0, MODE_EM, VECTOR_NM},
        {"fxsave", "\x0f\xae\x03", 3, 0, MODE_TS, VECTOR_NM},
        {"xsave", "\x0f\xae\x23", 3, 0, MODE_TS, VECTOR_NM},
        {"xsave", "\x0f\xae\x23", 3, 0, MODE_EM, 0},
        {"ldmxcsr", "\x0f\xae\x13", 3, MODE_SSE, 0, VECTOR_UD},
        {"ldmxcsr", "\x0f\xae\x13", 3, 0, MODE_TS, VECTOR_NM},
        {"movups unaligned", "\x0f\x10\x43\x01", 4, 0, 0, 0},
        {"movups unaligned", "\x0f\x10\x43\x01", 4, 0, MODE_AC, VECTOR_AC},
        {"fld m64 unaligned", "\xdd\x43\x04", 3, 0, MODE_AC, VECTOR_AC},
        {"fldenv unaligned", "\xd9\x63\x02", 3, 0, MODE_AC, VECTOR_AC},
        {"fldenv aligned", "\xd9\x63\x04", 3, 0, MODE_AC, 0},
        {"fld m64 aligned", "\xdd\x43\x08", 3, 0, MODE_AC, 0},
    };
    host_signals_restore();
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        random_state(host_state(), false);
        host_state()->fx[4] = 0;
        host_state()->gpr[CPU_RBX] = HOST_DATA_AT;
        le32_write(host_data(), NATIVE_MXCSR_INIT);
        uint32_t mode = (MODE_TEST & ~cases[i].without) | cases[i].with;
        unsigned trap = run_bytes(cases[i].bytes, cases[i].length, mode, &outcome);
        if (trap != cases[i].trap)
            fail_msg("%s (case %u): exception %u, not %u", cases[i].name, i, trap, cases[i].trap);
    }
    harness.vcpu->cr4 &= ~(uint64_t)CR4_OSXSAVE;
    assert_int_equal(RUN("\x0f\xae\x23", MODE_TEST | MODE_TS, &outcome), VECTOR_UD);
    harness.vcpu->cr4 |= CR4_OSXSAVE;
}

static void simd_exception_needs_osxmmexcpt(void **state)
{
    (void)state;
    static struct outcome outcome;
    host_signals_restore();
    for (unsigned i = 0; i < 2; i++) {
        random_state(host_state(), false);
        le32_write(host_state()->fx + 24, 0x1f80 & ~(1u << 9)); /* division by zero */
        memset(host_state()->vector[1], 0, 32);
        le32_write(host_state()->vector[0], 0x3f800000);
        harness.vcpu->cr4 ^= i ? CR4_OSXMMEXCPT : 0;
        /* divss xmm0, xmm1 */
        assert_int_equal(RUN("\xf3\x0f\x5e\xc1", MODE_TEST, &outcome), i ? VECTOR_UD : VECTOR_XM);
        assert_true(le32_read(outcome.state.fx + 24) & 4); /* ZE */
        assert_int_equal(le32_read(outcome.state.vector[0]), 0x3f800000);
    }
    harness.vcpu->cr4 ^= CR4_OSXMMEXCPT;
}

static void mxcsr_refuses_reserved_bits(void **state)
{
    (void)state;
    static struct outcome outcome;
    host_signals_restore();
    random_state(host_state(), false);
    host_state()->gpr[CPU_RBX] = HOST_DATA_AT;
    le32_write(host_data(), 0x10000);
    assert_int_equal(RUN("\x0f\xae\x13", MODE_TEST, &outcome), VECTOR_GP);
    le32_write(host_data(), 0xffff);
    assert_int_equal(RUN("\x0f\xae\x13", MODE_TEST, &outcome), 0);
    assert_int_equal(le32_read(outcome.state.fx + 24), 0xffff);
    random_fx(host_data(), false);
    le32_write(host_data() + 24, 0x20000);
    assert_int_equal(RUN("\x0f\xae\x0b", MODE_TEST, &outcome), VECTOR_GP); /* fxrstor */
}

/* Random numbers cannot be compared, only looked at. */
static void rdrand_gives_numbers(void **state)
{
    (void)state;
    static struct outcome outcome;
    uint64_t seen[4];
    host_signals_restore();
    for (unsigned i = 0; i < 4; i++) {
        random_state(host_state(), false);
        host_state()->gpr[CPU_R13] = 0;
        assert_int_equal(RUN("\x49\x0f\xc7\xf5", MODE_TEST, &outcome), 0);
        assert_int_equal(outcome.state.rflags & RFLAG_ARITHMETIC, RFLAG_CF);
        seen[i] = outcome.state.gpr[CPU_R13];
    }
    assert_false(seen[0] == seen[1] && seen[1] == seen[2] && seen[2] == seen[3]);
}

/* x87 and SSE parts of a random image, in the standard format. */
static void random_area(uint8_t *area, uint64_t present)
{
    random_fx(area, false);
    for (unsigned i = 160; i < 416; i += 8)
        le64_write(area + i, random_value());
    memset(area + 512, 0, 64);
    le64_write(area + 512, present);
    for (unsigned i = 576; i < 832; i += 8)
        le64_write(area + i, random_value());
}

/* XRSTOR of every mixture of components, on both sides; then XSAVE of what that left. */
static void xsave_agrees_with_the_host(void **state)
{
    (void)state;
    static struct outcome ours, hosts;
    static uint8_t data[HOST_DATA_SIZE];
    static const char xrstor[] = "\x48\x0f\xae\x2b", xsave[] = "\x48\x0f\xae\x23",
                      xsaveopt[] = "\x48\x0f\xae\x33";
    host_signals_restore();
    for (unsigned i = 0; i < 8 * 8 * 20; i++) {
        struct host_state *now = host_state(), before;
        random_state(now, false);
        random_area(host_data(), i % 8);
        now->gpr[CPU_RBX] = HOST_DATA_AT;
        now->gpr[CPU_RAX] = i / 8 % 8;
        now->gpr[CPU_RDX] = 0;
        if (i % 11 == 0)
            host_data()[520 + random_below(16)] = 1;
        if (i % 13 == 0)
            le32_write(host_data() + 24, 0x80001f80);
        if (i % 17 == 0)
            now->gpr[CPU_RBX] += 32;
        before = *now;
        memcpy(data, host_data(), sizeof data);
        const char *bytes = i % 3 == 0 ? xrstor : i % 3 == 1 ? xsave : xsaveopt;
        run_host((const uint8_t *)bytes, 4, &hosts);
        memcpy(host_data(), data, sizeof data);
        *now = before;
        run_bytes(bytes, 4, MODE_TEST, &ours);
        /* XINUSE of a component in its initial state is the CPU's choice, and so is whether
         * XSAVEOPT writes such a component; our values are not initial but for x87 pointers. */
        for (unsigned k = 0; k < 2 && bytes != xrstor; k++) {
            uint8_t *bytes_of = k ? hosts.data : ours.data;
            if (now->gpr[CPU_RAX] & 1) {
                memset(bytes_of + 5, 0, 19);
                for (unsigned r = 0; r < 8; r++)
                    memset(bytes_of + 42 + 16 * r, 0, 6);
            }
            memset(bytes_of + 28, 0, 4);
        }
        const char *text = difference(&ours, &hosts);
        if (text)
            fail_msg("case %u: %s", i, text);
    }
}

static void image_survives(void **state)
{
    (void)state;
    static uint8_t first[CPU_XSAVE_SIZE], second[CPU_XSAVE_SIZE];
    static uint8_t fpu[512], vectors[16][32];
    random_area(first, 7);
    memset(first + 5, 0, 19);
    le32_write(first + 28, NATIVE_MXCSR_MASK);
    assert_true(native_xrstor_image(harness.vcpu, first));
    native_enter(harness.vcpu);
    native_leave(harness.vcpu);
    native_xsave_image(harness.vcpu, second);
    for (unsigned i = 0; i < 8; i++)
        memset(first + 42 + 16 * i, 0, 6);
    assert_memory_equal(first, second, sizeof first);

    /* Absent components take their initial values. */
    le64_write(first + 512, 0);
    assert_true(native_xrstor_image(harness.vcpu, first));
    native_xsave_image(harness.vcpu, second);
    assert_int_equal(le16_read(second), NATIVE_FCW_INIT);
    assert_int_equal(le32_read(second + 24), NATIVE_MXCSR_INIT);
    assert_int_equal(le64_read(second + 512), 3);
    for (unsigned i = 160; i < 416; i++)
        assert_int_equal(second[i], 0);

    /* What it refuses changes nothing. */
    memcpy(fpu, harness.vcpu->fpu, sizeof fpu);
    memcpy(vectors, harness.vcpu->vector, sizeof vectors);
    random_area(first, 8);
    assert_false(native_xrstor_image(harness.vcpu, first));
    random_area(first, 7);
    le32_write(first + 24, 0x10000);
    assert_false(native_xrstor_image(harness.vcpu, first));
    random_area(first, 7);
    first[527] = 0x80; /* compacted */
    assert_false(native_xrstor_image(harness.vcpu, first));
    assert_memory_equal(fpu, harness.vcpu->fpu, sizeof fpu);
    assert_memory_equal(vectors, harness.vcpu->vector, sizeof vectors);
}

static void leave_gives_the_host_its_defaults(void **state)
{
    (void)state;
    random_fx(harness.vcpu->fpu, true);
    memset(harness.vcpu->fpu + 160, 0, sizeof harness.vcpu->fpu - 160);
    native_enter(harness.vcpu);
    native_leave(harness.vcpu);
    uint16_t control;
    uint32_t mxcsr;
    asm volatile("fnstcw %0; stmxcsr %1" : "=m"(control), "=m"(mxcsr));
    assert_int_equal(control, 0x37f);
    assert_int_equal(mxcsr, 0x1f80);
}

/* ---- other modes ---- */

static void vex_w_is_ignored_in_legacy_modes(void **state)
{
    (void)state;
    static struct outcome outcome;
    host_signals_restore();
    random_state(host_state(), false);
    uint64_t expected = le32_read(host_state()->vector[1]);
    uint32_t mode = MODE_TEST & ~(uint32_t)(MODE_64 | MODE_LONG);
    /* vmovd eax, xmm1 with W = 1 */
    assert_int_equal(RUN("\xc4\xe1\xf9\x7e\xc8", mode, &outcome), 0);
    assert_int_equal(outcome.state.gpr[CPU_RAX], expected);
    /* vzeroupper leaves registers 8 to 15 alone */
    assert_int_equal(RUN("\xc5\xf8\x77", mode, &outcome), 0);
    assert_memory_equal(outcome.state.vector[8], host_state()->vector[8], 32);
    assert_int_equal(le64_read(outcome.state.vector[7] + 16), 0);
}

static void arena_fills_and_is_reset(void **state)
{
    (void)state;
    struct insn insns[2];
    struct form form = {.bytes = {0x66, 0x40, 0x0f, 0x3a, 0x0f}}; /* palignr xmm, xmm, i */
    unsigned count = 0;
    native_reset(harness.vcpu);
    while (!native_full(harness.vcpu) && count < 1 << 16) {
        struct decoder decoder = {
            .vm = &harness.vm, .v = harness.vcpu, .mode = MODE_TEST, .insn = insns};
        form.bytes[1] = (uint8_t)(0x40 | (count >> 8 & 1) | (count >> 12 & 1) << 2);
        form.bytes[5] = (uint8_t)(0xc0 | (count >> 9 & 7) | (count >> 13 & 7) << 3);
        form.bytes[6] = (uint8_t)count++;
        assert_true(form_decode(&form, &harness.decoder_64));
        decoder.zydis = &form.zydis;
        decoder.operands = form.operands;
        insns[0] = (struct insn){0};
        native_bind(&decoder);
        assert_non_null(insns[0].run);
        uint32_t used = harness.vcpu->native->used;
        insns[0] = (struct insn){0};
        native_bind(&decoder);
        assert_int_equal(harness.vcpu->native->used, used); /* equal stubs are shared */
    }
    assert_true(native_full(harness.vcpu));
    assert_true(count > 10000);
    native_reset(harness.vcpu);
    assert_false(native_full(harness.vcpu));
    struct outcome *outcome = calloc(1, sizeof *outcome);
    random_state(host_state(), false);
    assert_int_equal(RUN("\x66\x0f\xfc\xc1", MODE_TEST, outcome), 0);
    free(outcome);
}

/* ---- speed ---- */

static void measure(const char *name, const char *bytes, unsigned length)
{
    enum { BLOCK = 30, REPEAT = 20000 };
    static struct insn insns[BLOCK + 1];
    struct form form = {0};
    struct timespec start, end;
    memcpy(form.bytes, bytes, length);
    assert_true(form_decode(&form, &harness.decoder_64));
    random_state(host_state(), false);
    host_state()->gpr[CPU_RBX] = HOST_DATA_AT;
    load_vcpu(host_state());
    set_tlb(true);
    for (unsigned i = 0; i < BLOCK; i++)
        form_bind(&form, MODE_TEST, &insns[i]);
    native_enter(harness.vcpu);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (unsigned i = 0; i < REPEAT; i++)
        insns->run(harness.vcpu, insns);
    clock_gettime(CLOCK_MONOTONIC, &end);
    native_leave(harness.vcpu);
    double ns = (double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec);
    print_message("%-24s %5.2f ns\n", name, ns / (BLOCK * REPEAT));
}

static void speed_is_printed(void **state)
{
    (void)state;
    static const struct {
        const char *name, *bytes;
        unsigned length;
    } cases[] = {
        {"paddb xmm, xmm", "\x66\x0f\xfc\xc1", 4},
        {"paddb xmm, [m]", "\x66\x0f\xfc\x03", 4},
        {"vpaddb ymm, ymm, ymm", "\xc5\xf5\xfc\xc1", 4},
        {"vmovdqu ymm, [m]", "\xc5\xfe\x6f\x03", 4},
        {"vmovdqu [m], ymm", "\xc5\xfe\x7f\x03", 4},
        {"movups xmm, [m]", "\x0f\x10\x03", 3},
        {"movups [m], xmm", "\x0f\x11\x03", 3},
        {"movsd xmm, [m]", "\xf2\x0f\x10\x03", 4},
        {"movsd [m], xmm", "\xf2\x0f\x11\x03", 4},
        {"movq xmm, rax", "\x66\x48\x0f\x6e\xc0", 5},
        {"mulsd xmm, xmm", "\xf2\x0f\x59\xc1", 4},
        {"ucomisd xmm, xmm", "\x66\x0f\x2e\xc1", 4},
        {"crc32 rax, rcx", "\xf2\x48\x0f\x38\xf1\xc1", 6},
        {"popcnt rax, rcx", "\xf3\x48\x0f\xb8\xc1", 5},
        {"fchs", "\xd9\xe0", 2},
        {"fxsave64", "\x48\x0f\xae\x03", 4},
        {"xsave64", "\x48\x0f\xae\x23", 4},
    };
    host_signals_restore();
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++)
        measure(cases[i].name, cases[i].bytes, cases[i].length);
}

int main(void)
{
    const char *text = getenv("NATIVE_TEST_ROUNDS");
    if (text)
        harness.rounds = (unsigned)strtoul(text, NULL, 10);
    text = getenv("NATIVE_TEST_SEED");
    if (text)
        harness.seed = strtoull(text, NULL, 10);
    harness_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_agree_with_the_host),
        cmocka_unit_test(control_registers_decide),
        cmocka_unit_test(simd_exception_needs_osxmmexcpt),
        cmocka_unit_test(mxcsr_refuses_reserved_bits),
        cmocka_unit_test(rdrand_gives_numbers),
        cmocka_unit_test(xsave_agrees_with_the_host),
        cmocka_unit_test(image_survives),
        cmocka_unit_test(leave_gives_the_host_its_defaults),
        cmocka_unit_test(legacy_modes_make_the_same_stubs),
        cmocka_unit_test(operand_size_follows_the_mode),
        cmocka_unit_test(vex_w_is_ignored_in_legacy_modes),
        cmocka_unit_test(arena_fills_and_is_reset),
        cmocka_unit_test(speed_is_printed),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    harness_stop();
    return failed;
}
