/*
 * differential [--engine soft] [--cases N] [--insns N] [--seed S] [--one] [--only MNEMONIC]
 *
 * Runs N random tests on the host CPU and by the engine; prints a reproducer for each mismatch and
 * ends with a line that says how many agreed. Exit status 0 only when all did.
 *
 * --alone leaves the host CPU out and asks only that each test ends in an exception: for sanitizer
 * builds, whose own memory lies where the host's runs should find nothing.
 */
#include "differential.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 512, MISMATCHES_SHOWN = 12, RFLAGS_COMPARED = 0xcd5 };

static const char *const gpr_name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static void show_code(const struct test *test)
{
    ZydisDecoder decoder;
    ZydisFormatter formatter;
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
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

static bool masked_store(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: return true;
    default: return false;
    }
}

/* One line per difference; 0 when there is none. `quiet` only counts. */
static unsigned compare(const struct test *test, const struct outcome *host,
                        const struct outcome *ours, bool quiet)
{
    unsigned differences = 0;
#define DIFFER(...)                                                                                \
    do {                                                                                           \
        differences++;                                                                             \
        if (!quiet)                                                                                \
            printf(__VA_ARGS__);                                                                   \
    } while (0)
    if (host->vector != ours->vector) {
        DIFFER("  exception: host %u (error %#x), ours %u (error %#x)\n", host->vector, host->error,
               ours->vector, ours->error);
        return differences;
    }
    /* Linux reports the error code of #PF and selectors; others are 0. */
    uint32_t error = host->error;
    if (host->vector == 14 && host->cr2 >> 47) /* Linux hides which kernel pages are there */
        error &= ~1u;
    if ((host->vector == 14 || host->vector == 13) && error != ours->error)
        DIFFER("  error code: host %#x, ours %#x\n", host->error, ours->error);
    /* Which byte of a masked store faults first is the model's choice. */
    uint64_t cr2_mask = masked_store(test->mnemonic) ? ~UINT64_C(4095) : UINT64_MAX;
    if (host->vector == 14 && (host->cr2 ^ ours->cr2) & cr2_mask)
        DIFFER("  cr2: host %#" PRIx64 ", ours %#" PRIx64 "\n", host->cr2, ours->cr2);
    if (host->out.rip != ours->out.rip)
        DIFFER("  rip: host %#" PRIx64 ", ours %#" PRIx64 "\n", host->out.rip, ours->out.rip);
    for (unsigned i = 0; i < 16; i++)
        if (host->out.gpr[i] != ours->out.gpr[i])
            DIFFER("  %s: in %#" PRIx64 ", host %#" PRIx64 ", ours %#" PRIx64 "\n", gpr_name[i],
                   test->in.gpr[i], host->out.gpr[i], ours->out.gpr[i]);
    uint32_t undefined = host->vector == 3 ? test->undefined_flags : test->undefined_ever;
    uint64_t mask = RFLAGS_COMPARED & ~(uint64_t)undefined;
    if ((host->out.rflags ^ ours->out.rflags) & mask)
        DIFFER("  rflags: in %#" PRIx64 ", host %#" PRIx64 ", ours %#" PRIx64 " (compared %#" PRIx64
               ")\n",
               test->in.rflags, host->out.rflags, ours->out.rflags, mask);
    for (unsigned i = 0; i < 16; i++) {
        if (memcmp(host->out.legacy + 160 + i * 16, ours->out.legacy + 160 + i * 16, 16))
            DIFFER("  xmm%u differs\n", i);
        if (memcmp(host->out.upper[i], ours->out.upper[i], 16))
            DIFFER("  ymm%u, upper half, differs\n", i);
    }
    /* x87: control, status, tags, registers; the pointers (bytes 6..23) are not compared. */
    if (memcmp(host->out.legacy, ours->out.legacy, 5))
        DIFFER("  x87 control, status or tags: host %02x%02x %02x%02x %02x, ours %02x%02x "
               "%02x%02x %02x\n",
               host->out.legacy[1], host->out.legacy[0], host->out.legacy[3], host->out.legacy[2],
               host->out.legacy[4], ours->out.legacy[1], ours->out.legacy[0], ours->out.legacy[3],
               ours->out.legacy[2], ours->out.legacy[4]);
    if (memcmp(host->out.legacy + 24, ours->out.legacy + 24, 4))
        DIFFER("  mxcsr differs\n");
    for (unsigned i = 0; i < 8; i++)
        if (memcmp(host->out.legacy + 32 + i * 16, ours->out.legacy + 32 + i * 16, 10))
            DIFFER("  st%u differs\n", i);
    for (unsigned i = 0; i < WINDOW_WRITABLE; i++)
        if (host->memory[i] != ours->memory[i]) {
            DIFFER("  memory at %#x: host %02x, ours %02x\n", WINDOW_AT + i, host->memory[i],
                   ours->memory[i]);
            break;
        }
#undef DIFFER
    return differences;
}

int main(int argc, char **argv)
{
    const char *engine = "soft", *only = NULL;
    uint64_t cases = 100000, seed = 1;
    unsigned insns = 1;
    bool one = false, alone = false;
    static const struct option options[] = {{"engine", 1, NULL, 'e'}, {"cases", 1, NULL, 'c'},
                                            {"insns", 1, NULL, 'i'},  {"seed", 1, NULL, 's'},
                                            {"only", 1, NULL, 'o'},   {"one", 0, NULL, '1'},
                                            {"alone", 0, NULL, 'a'},  {0}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (option) {
        case 'e': engine = optarg; break;
        case 'c': cases = strtoull(optarg, NULL, 0); break;
        case 'i': insns = (unsigned)strtoul(optarg, NULL, 0); break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'o': only = optarg; break;
        case '1': one = true; break;
        case 'a': alone = true; break;
        default: return 2;
        }
    if (insns < 1 || insns > TEST_INSNS_MAX) {
        fprintf(stderr, "--insns is 1 to %d\n", TEST_INSNS_MAX);
        return 2;
    }
    if (one)
        cases = 1;

    struct generator *generator = generator_new(only);
    if (generator_mnemonics(generator) == 0) {
        fprintf(stderr, "no instruction '%s' that ring 3 can run\n", only ? only : "");
        return 2;
    }
    struct guest *guest = guest_new(engine);
    static struct test tests[BATCH];
    static struct outcome host[BATCH], ours;
    static unsigned bad_by_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    uint64_t agreed = 0, bad = 0, dropped = 0;
    for (uint64_t done = 0; done < cases;) {
        unsigned count = cases - done < BATCH ? (unsigned)(cases - done) : BATCH;
        for (unsigned i = 0; i < count; i++)
            generator_make(generator, seed + done + i, insns, &tests[i]);
        if (!alone)
            native_run(tests, count, host);
        for (unsigned i = 0; i < count; i++) {
            if (!alone &&
                host[i].vector == VECTOR_NONE) { /* it killed its process: nothing to compare */
                dropped++;
                continue;
            }
            guest_run(guest, &tests[i], &ours);
            if (alone) {
                agreed += ours.vector != VECTOR_NONE;
                bad += ours.vector == VECTOR_NONE;
                continue;
            }
            if (compare(&tests[i], &host[i], &ours, true) == 0) {
                agreed++;
                continue;
            }
            bad++;
            if (bad_by_mnemonic[tests[i].mnemonic]++ < 2 && bad <= MISMATCHES_SHOWN * 4) {
                printf("mismatch: differential --engine %s --insns %u --seed %" PRIu64
                       " --one%s%s\n",
                       engine, insns, seed + done + i, only ? " --only " : "", only ? only : "");
                show_code(&tests[i]);
                compare(&tests[i], &host[i], &ours, false);
            }
        }
        done += count;
    }
    for (unsigned i = 0; i <= ZYDIS_MNEMONIC_MAX_VALUE; i++)
        if (bad_by_mnemonic[i])
            printf("%6u mismatches end in %s\n", bad_by_mnemonic[i], ZydisMnemonicGetString(i));
    printf("%" PRIu64 " agreed, %" PRIu64 " differ, %" PRIu64 " not comparable, %u mnemonics\n",
           agreed, bad, dropped, generator_mnemonics(generator));
    guest_free(guest);
    generator_free(generator);
    return bad || dropped > cases / 100 || agreed == 0;
}
