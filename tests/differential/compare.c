/* What differs between two outcomes of a test. */
#include "differential.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { RFLAGS_COMPARED = 0xcd5 };

static const char *const gpr_name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

void test_show(const struct test *test)
{
    ZydisDecoder decoder;
    ZydisFormatter formatter;
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    if (test->warm)
        printf("  (pages touched before)\n");
    unsigned at = 0;
    while (at < test->length) {
        ZydisDecodedInstruction insn;
        ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
        char text[128] = "?";
        if (ZYAN_FAILED(ZydisDecoderDecodeFull(&decoder, test->code + at, test->length - at, &insn,
                                               operands)))
            break;
        ZydisFormatterFormatInstruction(&formatter, &insn, operands, insn.operand_count_visible,
                                        text, sizeof text, test->in.rip + at, NULL);
        printf("  %#" PRIx64 ":", test->in.rip + at);
        for (unsigned i = 0; i < insn.length; i++)
            printf(" %02x", test->code[at + i]);
        printf("   %s\n", text);
        at += insn.length;
    }
}

/* Two outcomes, and the differences found so far. */
struct comparison {
    const struct test *test;
    struct compared a, b;
    bool show;
    unsigned differences;
};

/* "  rax: in 0x1, host 0x2, interpreter 0x3" */
static void numbers(struct comparison *c, const char *what, const uint64_t *in, uint64_t a,
                    uint64_t b)
{
    if (a == b)
        return;
    c->differences++;
    if (!c->show)
        return;
    printf("  %s: ", what);
    if (in)
        printf("in %#" PRIx64 ", ", *in);
    printf("%s %#" PRIx64 ", %s %#" PRIx64 "\n", c->a.name, a, c->b.name, b);
}

static void bytes(struct comparison *c, const void *a, const void *b, size_t size,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));

static void bytes(struct comparison *c, const void *a, const void *b, size_t size,
                  const char *format, ...)
{
    const uint8_t *first = a, *second = b;
    if (memcmp(a, b, size) == 0)
        return;
    c->differences++;
    if (!c->show)
        return;
    va_list arguments;
    va_start(arguments, format);
    printf("  ");
    vprintf(format, arguments);
    va_end(arguments);
    for (int which = 0; which < 2; which++) {
        printf("%s %s ", which ? "," : ":", which ? c->b.name : c->a.name);
        for (size_t i = size; i-- > 0;)
            printf("%02x", (which ? second : first)[i]);
    }
    printf("\n");
}

static void compare_exception(struct comparison *c)
{
    const struct outcome *a = c->a.outcome, *b = c->b.outcome;
    /* Linux reports the error code of #PF and of selectors; others are 0. */
    uint32_t hidden = 0;
    if (a->vector == 14 && a->cr2 >> 47) /* and hides which kernel pages are there */
        hidden = 1;
    if (a->vector == 14 || a->vector == 13)
        numbers(c, "error code", NULL, a->error & ~hidden, b->error & ~hidden);
    uint64_t cr2_mask = c->test->any_byte_faults ? ~UINT64_C(4095) : UINT64_MAX;
    if (a->vector == 14)
        numbers(c, "cr2", NULL, a->cr2 & cr2_mask, b->cr2 & cr2_mask);
}

static void compare_general(struct comparison *c)
{
    const struct test *test = c->test;
    const struct registers *a = &c->a.outcome->out, *b = &c->b.outcome->out;
    numbers(c, "rip", NULL, a->rip, b->rip);
    for (unsigned i = 0; i < 16; i++)
        numbers(c, gpr_name[i], &test->in.gpr[i], a->gpr[i], b->gpr[i]);
    bool to_the_end = c->a.outcome->vector == 3 && a->rip == test->in.rip + test->end + 1;
    uint64_t mask =
        RFLAGS_COMPARED & ~(uint64_t)(to_the_end ? test->undefined_flags : test->undefined_ever);
    uint64_t in = test->in.rflags & mask;
    numbers(c, "rflags", &in, a->rflags & mask, b->rflags & mask);
}

static void compare_vectors(struct comparison *c)
{
    const struct registers *a = &c->a.outcome->out, *b = &c->b.outcome->out;
    for (unsigned i = 0; i < 16; i++) {
        bytes(c, a->legacy + 160 + i * 16, b->legacy + 160 + i * 16, 16, "xmm%u", i);
        bytes(c, a->upper[i], b->upper[i], 16, "ymm%u, upper half", i);
    }
    /* x87: control, status, tags, registers; the pointers (bytes 6..23) are not compared. */
    bytes(c, a->legacy, b->legacy, 5, "x87 tags, status, control");
    bytes(c, a->legacy + 24, b->legacy + 24, 4, "mxcsr");
    for (unsigned i = 0; i < 8; i++)
        bytes(c, a->legacy + 32 + i * 16, b->legacy + 32 + i * 16, 10, "st%u", i);
}

static void compare_memory(struct comparison *c)
{
    const uint8_t *a = c->a.outcome->memory, *b = c->b.outcome->memory;
    if (memcmp(a, b, WINDOW_WRITABLE) == 0)
        return;
    unsigned at = 0;
    while (a[at] == b[at])
        at++;
    bytes(c, a + at, b + at, 1, "memory at %#x", WINDOW_AT + at);
}

unsigned outcomes_compare(const struct test *test, struct compared expected, struct compared ours,
                          bool show)
{
    struct comparison c = {.test = test, .a = expected, .b = ours, .show = show};
    numbers(&c, "exception", NULL, expected.outcome->vector, ours.outcome->vector);
    if (c.differences) {
        numbers(&c, "its error code", NULL, expected.outcome->error, ours.outcome->error);
        numbers(&c, "its address", NULL, expected.outcome->out.rip, ours.outcome->out.rip);
        return c.differences;
    }
    compare_exception(&c);
    compare_general(&c);
    compare_vectors(&c);
    compare_memory(&c);
    if (expected.outcome->instructions && ours.outcome->instructions)
        numbers(&c, "instructions counted", NULL, expected.outcome->instructions,
                ours.outcome->instructions);
    return c.differences;
}
