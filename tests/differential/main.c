/*
 * differential [--engine soft] [--translate WHAT] [--code-cache SIZE]
 *              [--cases N] [--insns N] [--seed S] [--one] [--only MNEMONIC] [--alone]
 *
 * Runs N random tests on the host CPU and by the engine; prints a reproducer for each mismatch and
 * ends with a line that says how many agreed. Exit status 0 only when all did. With --insns 2 and
 * more a test is a block (block.c).
 *
 * The software engine runs each test as interpreter and as translator; --translate never, always or
 * hot picks one way. Where both run, they must also have counted the same instructions.
 *
 * --alone leaves the host CPU out: each test must end in an exception, and the ways of the engine
 * must agree. For sanitizer builds, whose own memory lies where the host's runs should find
 * nothing.
 */
#include "differential.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 512, MISMATCHES_SHOWN = 48, RUNS_MAX = 2 };

/* A way to run a test in a guest. */
struct leg {
    const char *name, *translate; /* for people; for the command line */
    enum engine_translate way;
    struct guest *guest;
    struct outcome outcome;
    uint64_t differ;
};

static const struct leg soft_legs[] = {
    {.name = "interpreter", .translate = "never", .way = ENGINE_TRANSLATE_NEVER},
    {.name = "translator", .translate = "always", .way = ENGINE_TRANSLATE_ALWAYS},
    {.name = "both, by heat", .translate = "hot", .way = ENGINE_TRANSLATE_HOT},
};
enum { LEGS_MAX = sizeof soft_legs / sizeof *soft_legs };

struct run {
    const char *engine, *translate, *only;
    uint64_t cases, seed, code_cache;
    unsigned insns;
    bool alone;

    struct generator *generator;
    struct leg legs[LEGS_MAX];
    unsigned leg_count;
    uint64_t agreed, bad, dropped;
    bool wavers; /* the host gave two answers to the test under way */
    unsigned bad_by_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1];
};

static const struct engine_ops *find_engine(const char *name)
{
    for (unsigned i = 0; engine_all[i]; i++)
        if (strcmp(engine_all[i]->name, name) == 0)
            return engine_all[i];
    fprintf(stderr, "there is no engine '%s'\n", name);
    exit(2);
}

/* Without --translate the two that everything is measured by. */
static void choose_legs(struct run *run)
{
    const struct engine_ops *engine = find_engine(run->engine);
    if (engine != &engine_soft) {
        run->legs[run->leg_count++] = (struct leg){.name = engine->name};
    } else {
        for (unsigned i = 0; i < LEGS_MAX; i++)
            if (run->translate ? strcmp(run->translate, soft_legs[i].translate) == 0 : i < 2)
                run->legs[run->leg_count++] = soft_legs[i];
    }
    if (run->leg_count == 0) {
        fprintf(stderr, "--translate is never, always or hot\n");
        exit(2);
    }
    for (unsigned i = 0; i < run->leg_count; i++)
        run->legs[i].guest = guest_new(engine, run->legs[i].way, run->code_cache);
}

static void mismatch(struct run *run, const struct test *test, uint64_t seed, unsigned turn,
                     const struct leg *leg, struct compared expected)
{
    if (run->bad_by_mnemonic[test->mnemonic] >= 2 || run->bad > MISMATCHES_SHOWN)
        return;
    printf("mismatch: differential --engine %s", run->engine);
    if (leg->translate)
        printf(" --translate %s", leg->translate);
    if (run->code_cache)
        printf(" --code-cache %" PRIu64, run->code_cache);
    printf(" --insns %u --seed %" PRIu64 " --one%s%s%s\n", run->insns, seed,
           run->only ? " --only " : "", run->only ? run->only : "", run->alone ? " --alone" : "");
    printf("  %s against %s%s\n", leg->name, expected.name, turn ? ", second run" : "");
    test_show(test);
    outcomes_compare(test, expected, (struct compared){leg->name, &leg->outcome}, true);
}

/* Does the host say the same again? A host that is a guest itself may take an interrupt, and with a
 * stack pointer that is no address make an exception of it. */
static bool host_repeats(const struct test *test, const struct outcome *host)
{
    static struct outcome again;
    native_run(test, 1, &again);
    return outcomes_compare(test, (struct compared){"host", host},
                            (struct compared){"host, again", &again}, false) == 0;
}

/* Runs a loaded test by every leg. `host` NULL: each is compared with the first one. */
static bool turn_agrees(struct run *run, const struct test *test, uint64_t seed, unsigned turn,
                        const struct outcome *host)
{
    bool good = true;
    for (unsigned i = 0; i < run->leg_count; i++) {
        struct leg *leg = &run->legs[i];
        struct compared ours = {leg->name, &leg->outcome};
        struct compared first = {run->legs[0].name, &run->legs[0].outcome};
        guest_run(leg->guest, test, &leg->outcome);
        if (leg->outcome.vector == VECTOR_NONE && !host)
            first = (struct compared){"nobody", &(struct outcome){.vector = 3}};
        struct compared expected = host ? (struct compared){"host", host} : first;
        /* The host does not count instructions. */
        if (outcomes_compare(test, expected, ours, false) == 0) {
            if (i == 0 || run->legs[0].outcome.instructions == leg->outcome.instructions)
                continue;
            expected = first;
        }
        if (host && !host_repeats(test, host)) {
            run->wavers = true;
            return false;
        }
        good = false;
        leg->differ++;
        mismatch(run, test, seed, turn, leg, expected);
    }
    return good;
}

/* It killed its process, or loaded a bit of MXCSR that the guest's CPU does not have (AMD's MM). */
static bool comparable(const struct outcome *host)
{
    uint32_t mxcsr;
    memcpy(&mxcsr, host->out.legacy + 24, sizeof mxcsr);
    return host->vector != VECTOR_NONE && mxcsr <= 0xffff;
}

static void drop(struct run *run, const struct test *test, uint64_t seed, const char *why)
{
    if (run->dropped++ >= 3)
        return;
    printf("not comparable%s: seed %" PRIu64 "\n", why, seed);
    test_show(test);
}

static void run_test(struct run *run, const struct test *test, uint64_t seed,
                     const struct outcome *host)
{
    if (host && !comparable(host)) {
        drop(run, test, seed, "");
        return;
    }
    run->wavers = false;
    for (unsigned i = 0; i < run->leg_count; i++)
        guest_load(run->legs[i].guest, test);
    for (unsigned turn = 0; turn < test->runs; turn++)
        if (!turn_agrees(run, test, seed, turn, host)) {
            if (run->wavers) {
                drop(run, test, seed, ", for the host does not repeat itself");
                return;
            }
            run->bad++;
            run->bad_by_mnemonic[test->mnemonic]++;
            return;
        }
    run->agreed++;
}

static void run_all(struct run *run)
{
    static struct test tests[BATCH];
    static struct outcome host[BATCH];
    for (uint64_t done = 0; done < run->cases;) {
        uint64_t left = run->cases - done;
        unsigned count = left < BATCH ? (unsigned)left : BATCH;
        for (unsigned i = 0; i < count; i++)
            generator_make(run->generator, run->seed + done + i, run->insns, &tests[i]);
        if (!run->alone)
            native_run(tests, count, host);
        for (unsigned i = 0; i < count; i++)
            run_test(run, &tests[i], run->seed + done + i, run->alone ? NULL : &host[i]);
        done += count;
    }
}

static int report(const struct run *run)
{
    for (unsigned i = 0; i <= ZYDIS_MNEMONIC_MAX_VALUE; i++)
        if (run->bad_by_mnemonic[i])
            printf("%6u mismatches end in %s\n", run->bad_by_mnemonic[i],
                   ZydisMnemonicGetString((ZydisMnemonic)i));
    for (unsigned i = 0; run->bad && i < run->leg_count; i++)
        printf("%s: %" PRIu64 " differ\n", run->legs[i].name, run->legs[i].differ);
    printf("%" PRIu64 " agreed, %" PRIu64 " differ, %" PRIu64 " not comparable, %u mnemonics\n",
           run->agreed, run->bad, run->dropped, generator_mnemonics(run->generator));
    return run->bad || run->dropped > run->cases / 100 || run->agreed == 0;
}

static void read_options(struct run *run, int argc, char **argv)
{
    static const struct option options[] = {
        {"engine", 1, NULL, 'e'},    {"cases", 1, NULL, 'c'},
        {"insns", 1, NULL, 'i'},     {"seed", 1, NULL, 's'},
        {"only", 1, NULL, 'o'},      {"one", 0, NULL, '1'},
        {"translate", 1, NULL, 't'}, {"code-cache", 1, NULL, 'k'},
        {"alone", 0, NULL, 'a'},     {0}};
    bool one = false;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (option) {
        case 'e': run->engine = optarg; break;
        case 't': run->translate = optarg; break;
        case 'k': run->code_cache = strtoull(optarg, NULL, 0); break;
        case 'c': run->cases = strtoull(optarg, NULL, 0); break;
        case 'i': run->insns = (unsigned)strtoul(optarg, NULL, 0); break;
        case 's': run->seed = strtoull(optarg, NULL, 0); break;
        case 'o': run->only = optarg; break;
        case '1': one = true; break;
        case 'a': run->alone = true; break;
        default: exit(2);
        }
    if (run->insns < 1 || run->insns > TEST_INSNS_MAX) {
        fprintf(stderr, "--insns is 1 to %d\n", TEST_INSNS_MAX);
        exit(2);
    }
    if (one)
        run->cases = 1;
}

int main(int argc, char **argv)
{
    static struct run run = {.engine = "soft", .cases = 100000, .seed = 1, .insns = 1};
    read_options(&run, argc, argv);
    run.generator = generator_new(run.only);
    if (generator_mnemonics(run.generator) == 0) {
        fprintf(stderr, "no instruction '%s' that ring 3 can run\n", run.only ? run.only : "");
        return 2;
    }
    choose_legs(&run);
    run_all(&run);
    int status = report(&run);
    for (unsigned i = 0; i < run.leg_count; i++)
        guest_free(run.legs[i].guest);
    generator_free(run.generator);
    return status;
}
