/*
 * The host's side. A child process shares tests and outcomes with us and lives in its signal
 * handler: each return from it loads a test's registers, and the INT3 (or fault) that ends the test
 * brings it back with everything in the signal frame, YMM included.
 */
#include "differential.h"

#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { XSAVE_MAGIC_OFFSET = 464, XSAVE_YMM = 576, XSAVE_HEADER = 512, ALARM_SECONDS = 20 };

static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

static struct batch {
    volatile unsigned next;
    volatile bool entered;
    unsigned count;
    const struct test *tests;
    struct outcome *outcomes;
} * batch;

/* The code pages are not writable where the test runs, as in the guest. */
static uint8_t *code_alias;

static unsigned code_room(const struct test *test)
{
    uint64_t room = CODE_AT + CODE_SIZE - test->in.rip;
    return test->length < room ? test->length : (unsigned)room;
}

static void load(ucontext_t *context, const struct test *test)
{
    if (batch->next > 0) {
        const struct test *before = test - 1;
        memset(code_alias + (before->in.rip - CODE_AT), 0xcc, code_room(before));
    }
    memcpy(code_alias + (test->in.rip - CODE_AT), test->code, code_room(test));
    window_fill(test->memory_seed, (void *)WINDOW_AT, WINDOW_WRITABLE);
    for (int i = 0; i < 16; i++)
        context->uc_mcontext.gregs[greg_of[i]] = (greg_t)test->in.gpr[i];
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)test->in.rip;
    context->uc_mcontext.gregs[REG_EFL] = (greg_t)test->in.rflags;
    uint8_t *area = (uint8_t *)context->uc_mcontext.fpregs;
    memcpy(area, test->in.legacy, 416); /* the rest is the kernel's */
    uint64_t *present = (uint64_t *)(area + XSAVE_HEADER);
    *present |= 7;
    memcpy(area + XSAVE_YMM, test->in.upper, sizeof test->in.upper);
}

static void store(const ucontext_t *context, int number, struct outcome *outcome)
{
    for (int i = 0; i < 16; i++)
        outcome->out.gpr[i] = (uint64_t)context->uc_mcontext.gregs[greg_of[i]];
    outcome->out.rip = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
    outcome->out.rflags = (uint64_t)context->uc_mcontext.gregs[REG_EFL];
    const uint8_t *area = (const uint8_t *)context->uc_mcontext.fpregs;
    memcpy(outcome->out.legacy, area, 416);
    uint64_t present = *(const uint64_t *)(area + XSAVE_HEADER);
    if (!(present & 2)) /* XMM in its initial state: the area's bytes are stale */
        memset(outcome->out.legacy + 160, 0, 256);
    if (present & 4)
        memcpy(outcome->out.upper, area + XSAVE_YMM, sizeof outcome->out.upper);
    else
        memset(outcome->out.upper, 0, sizeof outcome->out.upper);
    outcome->vector = (uint32_t)context->uc_mcontext.gregs[REG_TRAPNO];
    outcome->error = (uint32_t)context->uc_mcontext.gregs[REG_ERR];
    outcome->cr2 = (uint64_t)context->uc_mcontext.gregs[REG_CR2];
    memcpy(outcome->memory, (void *)WINDOW_AT, WINDOW_WRITABLE);
    if (number == SIGALRM) { /* it did not end */
        outcome->vector = VECTOR_NONE;
        alarm(ALARM_SECONDS);
    }
}

static void on_signal(int number, siginfo_t *info, void *opaque)
{
    (void)info;
    ucontext_t *context = opaque;
    if (batch->entered) {
        store(context, number, &batch->outcomes[batch->next]);
        batch->next++;
    }
    batch->entered = true;
    if (batch->next == batch->count)
        _exit(0);
    load(context, &batch->tests[batch->next]);
}

static void child(void)
{
    static uint8_t stack[1 << 16];
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
    struct sigaction action = {.sa_sigaction = on_signal,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    const int signals[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGALRM};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
    /* The engine keeps what its translated code uses below 2 GiB; the tests' wild addresses must
     * find nothing there. */
    munmap((void *)0x40000000, 0x40000000);
    int fd = memfd_create("code", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, CODE_SIZE) < 0 ||
        (code_alias = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) ==
            MAP_FAILED ||
        mmap((void *)CODE_AT, CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED_NOREPLACE,
             fd, 0) == MAP_FAILED ||
        mmap((void *)WINDOW_AT, WINDOW_SIZE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED) {
        perror("map the test window");
        _exit(2);
    }
    memset(code_alias, 0xcc, CODE_SIZE);
    window_fill(1, (void *)(WINDOW_AT + WINDOW_WRITABLE), WINDOW_SIZE - WINDOW_WRITABLE);
    mprotect((void *)(WINDOW_AT + WINDOW_WRITABLE), WINDOW_SIZE - WINDOW_WRITABLE, PROT_READ);
    alarm(ALARM_SECONDS); /* no batch takes a second */
    raise(SIGTRAP);
    _exit(3);
}

static void *shared(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        perror("share memory with the native process");
        exit(2);
    }
    return at;
}

void native_run(const struct test *tests, unsigned count, struct outcome *outcomes)
{
    static struct outcome *results;
    static unsigned room;
    if (!batch)
        batch = shared(sizeof *batch);
    if (room < count) {
        results = shared(count * sizeof *results);
        room = count;
    }
    *batch = (struct batch){.count = count, .tests = tests, .outcomes = results};
    while (batch->next < count) {
        batch->entered = false;
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0)
            child();
        int status;
        waitpid(pid, &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 2)
            exit(2);
        if (batch->next < count) {
            results[batch->next].vector = VECTOR_NONE;
            batch->next++;
        }
    }
    memcpy(outcomes, results, count * sizeof *outcomes);
}
