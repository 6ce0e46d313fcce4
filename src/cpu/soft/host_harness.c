#include "cpu/soft/host_harness.h"

#include <assert.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { CODE_SIZE = 4096, SLOT_SIZE = 16 };

static struct {
    uint8_t *code; /* prologue, one instruction, epilogue */
    unsigned length;
    unsigned slot;     /* offset of the instruction */
    unsigned epilogue; /* offset of what follows it */
    volatile unsigned trap;
    struct sigaction actions[5];
    uint8_t stack[65536];
} host;

static const int signals[5] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};

struct host_state *host_state(void)
{
    return (struct host_state *)(uintptr_t)HOST_STATE_AT;
}

uint8_t *host_data(void)
{
    return (uint8_t *)(uintptr_t)HOST_DATA_AT;
}

static void emit(const char *bytes, unsigned count)
{
    memcpy(host.code + host.length, bytes, count);
    host.length += count;
}

/* `op` with its ModRM.reg and the absolute address of a field of the state. */
static void emit_field(const char *op, unsigned count, unsigned reg, size_t offset)
{
    emit(op, count);
    char tail[6] = {(char)(reg << 3 | 4), 0x25};
    uint32_t at = HOST_STATE_AT + (uint32_t)offset;
    memcpy(tail + 2, &at, 4);
    emit(tail, 6);
}

static void emit_general(bool store, unsigned number)
{
    const char op[2] = {(char)(0x48 | (number >> 3) << 2), (char)(store ? 0x89 : 0x8b)};
    emit_field(op, 2, number & 7, offsetof(struct host_state, gpr) + 8 * number);
}

static void emit_vector(bool store, unsigned number)
{
    const char op[3] = {(char)0xc5, (char)((number < 8 ? 0x80 : 0) | 0x7e),
                        (char)(store ? 0x7f : 0x6f)};
    emit_field(op, 3, number & 7, offsetof(struct host_state, vector) + 32 * number);
}

static void build(void)
{
    static const char init[] = "\xdb\xe3\x68\x80\x1f\x00\x00\x0f\xae\x14\x24\x58\xc5\xf8\x77";
    emit("\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57", 10);
    emit_field("\x48\x89", 2, 4, offsetof(struct host_state, host_rsp));
    emit_field("\x48\x0f\xae", 3, 1, offsetof(struct host_state, fx)); /* fxrstor64 */
    for (unsigned i = 0; i < 16; i++)
        emit_vector(false, i);
    emit_field("\xff", 1, 6, offsetof(struct host_state, rflags)); /* push; popf */
    emit("\x9d", 1);
    for (unsigned i = 0; i < 16; i++)
        emit_general(false, i);
    host.slot = host.length;
    memset(host.code + host.slot, 0x90, SLOT_SIZE);
    host.epilogue = host.length += SLOT_SIZE;
    for (unsigned i = 0; i < 16; i++)
        emit_general(true, i);
    emit_field("\x48\x8b", 2, 4, offsetof(struct host_state, host_rsp));
    emit("\x9c", 1); /* pushf; pop */
    emit_field("\x8f", 1, 0, offsetof(struct host_state, rflags));
    emit("\xfc", 1);
    for (unsigned i = 0; i < 16; i++)
        emit_vector(true, i);
    emit_field("\x48\x0f\xae", 3, 0, offsetof(struct host_state, fx)); /* fxsave64 */
    emit(init, sizeof init - 1); /* fninit; ldmxcsr 0x1f80; vzeroupper */
    emit("\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3", 11);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    uint64_t offset = (uint64_t)regs[REG_RIP] - (uint64_t)host.code;
    if (offset < host.slot || offset >= host.epilogue) {
        static const char text[] = "a fault that is neither the reference's nor foreseen\n";
        if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
            _exit(98);
        signal(number, SIG_DFL);
        return;
    }
    host.trap = (unsigned)regs[REG_TRAPNO];
    if (host.trap == 0)
        host.trap = 256;
    regs[REG_RIP] = (greg_t)(host.code + host.epilogue);
}

static void *map_at(uint64_t at, size_t size, int protection)
{
    void *to = mmap((void *)at, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
                    -1, 0);
    assert(to == (void *)at);
    return to;
}

void host_start(void)
{
    map_at(HOST_STATE_AT, 4096, PROT_READ | PROT_WRITE);
    map_at(HOST_DATA_AT - 4096, HOST_DATA_SIZE + 2 * 4096, PROT_NONE);
    mprotect(host_data(), HOST_DATA_SIZE, PROT_READ | PROT_WRITE);
    host.code = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(host.code != MAP_FAILED);
    build();
    stack_t stack = {.ss_size = sizeof host.stack, .ss_sp = host.stack};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = on_signal,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    for (unsigned i = 0; i < 5; i++)
        sigaction(signals[i], &action, NULL);
}

void host_signals_remember(void)
{
    for (unsigned i = 0; i < 5; i++)
        sigaction(signals[i], NULL, &host.actions[i]);
}

void host_signals_restore(void)
{
    for (unsigned i = 0; i < 5; i++)
        sigaction(signals[i], &host.actions[i], NULL);
}

unsigned host_run(const uint8_t *code, unsigned length)
{
    memset(host.code + host.slot, 0x90, SLOT_SIZE);
    memcpy(host.code + host.slot, code, length);
    host.trap = 0;
    ((void (*)(void))host.code)();
    return host.trap;
}
