/*
 * Whole machines with guests of a few instructions, written here as 32-bit machine code behind a
 * multiboot header. Each test runs under every engine of the build that works on this host.
 */
#include "board/board.h"

#include "base/bytes.h"
#include "base/own.h"
#include "board/board_private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <cmocka.h>

enum { CODE_AT = 0x200000, HEADER_SIZE = 32, PATIENCE_MS = 20000 };

/* ---- a very small assembler ---- */

struct code {
    size_t size;
    uint8_t bytes[512];
};

static void emit(struct code *code, const char *bytes, size_t size)
{
    assert_true(size <= sizeof code->bytes - code->size);
    memcpy(code->bytes + code->size, bytes, size);
    code->size += size;
}
#define EMIT(code, literal) emit(code, literal, sizeof(literal) - 1)

static void emit16(struct code *code, unsigned value)
{
    char bytes[2] = {(char)value, (char)(value >> 8)};
    emit(code, bytes, 2);
}

static void emit32(struct code *code, uint32_t value)
{
    emit16(code, value & 0xffff);
    emit16(code, value >> 16);
}

static void set_dx(struct code *code, unsigned port)
{
    EMIT(code, "\x66\xba"); /* mov dx, imm16 */
    emit16(code, port);
}

static void out8(struct code *code, unsigned port, unsigned value)
{
    set_dx(code, port);
    char bytes[] = {'\xb0', (char)value, '\xee'}; /* mov al, imm8; out dx, al */
    emit(code, bytes, sizeof bytes);
}

static void out16(struct code *code, unsigned port, unsigned value)
{
    set_dx(code, port);
    EMIT(code, "\x66\xb8"); /* mov ax, imm16 */
    emit16(code, value);
    EMIT(code, "\x66\xef"); /* out dx, ax */
}

static void halt(struct code *code)
{
    EMIT(code, "\xf4\xeb\xfd"); /* hlt; jmp back */
}

/* The image: header with its own addresses (bit 16), then the code. */
static int kernel_of(const struct code *code)
{
    uint8_t image[HEADER_SIZE + sizeof code->bytes];
    const uint32_t header[] = {
        0x1badb002, 1 << 16,        -(0x1badb002u + (1 << 16)), CODE_AT, CODE_AT,
        0,          CODE_AT + 8192, CODE_AT + HEADER_SIZE};
    for (unsigned i = 0; i < ARRAY_LEN(header); i++)
        le32_write(image + i * 4, header[i]);
    memcpy(image + HEADER_SIZE, code->bytes, code->size);
    int fd = memfd_create("kernel", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, image, HEADER_SIZE + code->size), HEADER_SIZE + code->size);
    return fd;
}

/* ---- a machine under test ---- */

struct machine {
    struct board *board;
    int kernel_fd;
    int serial_in, serial_out; /* our ends; -1 = none */
    int theirs_in, theirs_out;
};

static void machine_start(struct machine *machine, const struct engine_ops *engine,
                          const struct code *code, bool serial, unsigned cpus)
{
    *machine = (struct machine){.kernel_fd = kernel_of(code),
                                .serial_in = -1,
                                .serial_out = -1,
                                .theirs_in = -1,
                                .theirs_out = -1};
    if (serial) {
        int in[2], out[2];
        assert_int_equal(pipe2(in, O_CLOEXEC), 0);
        assert_int_equal(pipe2(out, O_CLOEXEC), 0);
        machine->theirs_in = in[0];
        machine->serial_in = in[1];
        machine->serial_out = out[0];
        machine->theirs_out = out[1];
    }
    struct board_config config = {.engine = engine,
                                  .kvm_fd = -1,
                                  .memory = MIB(16),
                                  .cpus = cpus,
                                  .kernel_fd = machine->kernel_fd,
                                  .initrd_fd = -1,
                                  .command_line = "",
                                  .serial_in_fd = machine->theirs_in,
                                  .serial_out_fd = machine->theirs_out};
    struct err err = {0};
    if (board_new(&config, &machine->board, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(board_start(machine->board, &err), 0);
}

static void machine_end(struct machine *machine)
{
    board_free(machine->board);
    const int fds[] = {machine->kernel_fd, machine->serial_in, machine->serial_out,
                       machine->theirs_in, machine->theirs_out};
    for (size_t i = 0; i < ARRAY_LEN(fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static struct board_event machine_event(struct machine *machine)
{
    struct board_event event;
    while (!board_event_next(machine->board, &event)) {
        struct pollfd poll_fd = {.fd = board_event_fd(machine->board), .events = POLLIN};
        assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
    }
    return event;
}

static struct board_event expect(struct machine *machine, enum board_event_kind kind)
{
    struct board_event event = machine_event(machine);
    if (event.kind != kind)
        fail_msg("event %d instead of %d: %s", event.kind, kind, event.text);
    return event;
}

static void read_exactly(int fd, void *to, size_t size)
{
    for (size_t done = 0; done < size;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
        ssize_t n = read(fd, (char *)to + done, size - done);
        assert_true(n > 0);
        done += (size_t)n;
    }
}

/* ---- tests; `state` is the engine ---- */

static void guest_speaks_and_exits(void **state)
{
    struct code code = {0};
    out8(&code, 0x3f8, 'h');
    out8(&code, 0x3f8, 'i');
    out8(&code, 0x3f8, '\n');
    out8(&code, 0xf4, 0x10);
    halt(&code);
    struct machine machine;
    machine_start(&machine, *state, &code, true, 1);
    assert_true(expect(&machine, BOARD_EVENT_READY).value > 0);
    assert_int_equal(expect(&machine, BOARD_EVENT_DEBUG_EXIT).value, 0x10);
    assert_true(board_drain_serial(machine.board, PATIENCE_MS));
    char text[3];
    read_exactly(machine.serial_out, text, 3);
    assert_memory_equal(text, "hi\n", 3);
    machine_end(&machine);
}

/* What has no newline behind it is still in the UART when the machine is taken apart. */
static void free_with_half_a_line(void **state)
{
    struct code code = {0};
    out8(&code, 0xf4, 1);
    halt(&code);
    struct machine machine;
    machine_start(&machine, *state, &code, true, 1);
    expect(&machine, BOARD_EVENT_READY);
    expect(&machine, BOARD_EVENT_DEBUG_EXIT);
    board_pause(machine.board); /* its clock too: the UART's own flush does not come */
    bus_write(machine.board->bus, BUS_PORT, 0x3f8, 1, 'h');
    machine_end(&machine);
}

static void soft_off_ends_the_machine(void **state)
{
    struct code code = {0};
    out16(&code, MAP_POWER_PORT + POWER_PM1_CONTROL, POWER_S5_TYPE << 10 | 1 << 13);
    halt(&code);
    struct machine machine;
    machine_start(&machine, *state, &code, false, 2);
    expect(&machine, BOARD_EVENT_READY);
    expect(&machine, BOARD_EVENT_POWER_OFF);
    machine_end(&machine);
}

/* Counts in CMOS memory, which outlives a reset; main memory must not. */
static void reset_works_again_and_again(void **state)
{
    enum { CMOS = 0x50, MARK = CODE_AT + 4096, TIMES = 5 };
    struct code code = {0};
    EMIT(&code, "\xa1"); /* mov eax, [MARK] */
    emit32(&code, MARK);
    EMIT(&code, "\x85\xc0\x74\x0d"); /* test eax, eax; jz over */
    out8(&code, 0xf4, 0x7f);         /* memory survived: wrong */
    EMIT(&code, "\xf4\xeb\xfd\x90\x90\x90");
    EMIT(&code, "\xc7\x05"); /* mov dword [MARK], 1 */
    emit32(&code, MARK);
    emit32(&code, 1);
    out8(&code, 0x70, CMOS);
    EMIT(&code, "\xe4\x71");         /* in al, 0x71 */
    EMIT(&code, "\xfe\xc0\xe6\x71"); /* inc al; out 0x71, al */
    EMIT(&code, "\x3c\x05\x75\x0a"); /* cmp al, TIMES; jne over */
    set_dx(&code, 0xf4);
    EMIT(&code, "\xee\xf4\xeb\xfd\x90\x90"); /* out dx, al */
    out8(&code, MAP_RESET_PORT, MAP_RESET_VALUE);
    halt(&code);

    struct machine machine;
    machine_start(&machine, *state, &code, false, 1);
    expect(&machine, BOARD_EVENT_READY);
    for (int i = 1; i < TIMES; i++) {
        expect(&machine, BOARD_EVENT_RESET);
        assert_int_equal(board_reset(machine.board, NULL), 0);
    }
    assert_int_equal(expect(&machine, BOARD_EVENT_DEBUG_EXIT).value, TIMES);
    machine_end(&machine);
}

static void triple_fault_shows_the_registers(void **state)
{
    struct code code = {0};
    EMIT(&code, "\xbb\x78\x56\x34\x12"); /* mov ebx, 0x12345678 */
    EMIT(&code, "\x6a\x00\x6a\x00");     /* push 0; push 0 */
    EMIT(&code, "\x0f\x01\x1c\x24");     /* lidt [esp] */
    EMIT(&code, "\x0f\x0b");             /* ud2 */
    /* The stack is the multiboot guest's own affair. */
    struct code with_stack = {0};
    EMIT(&with_stack, "\xbc"); /* mov esp, imm32 */
    emit32(&with_stack, CODE_AT + 8000);
    emit(&with_stack, (const char *)code.bytes, code.size);
    struct machine machine;
    machine_start(&machine, *state, &with_stack, false, 1);
    expect(&machine, BOARD_EVENT_READY);
    struct board_event event = expect(&machine, BOARD_EVENT_TRIPLE_FAULT);
    assert_non_null(strstr(event.text, "vCPU 0: triple fault"));
    /* AMD's processors keep nothing of what shut down. */
    bool lost = *state == &engine_kvm && strstr(event.text, "KVM has reset it since");
    assert_true(lost || strstr(event.text, "12345678"));
    machine_end(&machine);
}

/* Echoes what comes in on COM1 until 'q'. */
static void serial_input_reaches_the_guest(void **state)
{
    struct code code = {0};
    out8(&code, 0x3fc, 3); /* DTR, RTS */
    size_t again = code.size;
    set_dx(&code, 0x3fd);
    EMIT(&code, "\xec\xa8\x01\x74\xfb"); /* in al, dx; test al, 1; jz -5 */
    set_dx(&code, 0x3f8);
    EMIT(&code, "\xec\xee");     /* in al, dx; out dx, al */
    EMIT(&code, "\x3c\x71\x75"); /* cmp al, 'q'; jne again */
    char back = (char)((int)again - (int)code.size - 1);
    emit(&code, &back, 1);
    out8(&code, 0xf4, 1);
    halt(&code);
    struct machine machine;
    machine_start(&machine, *state, &code, true, 1);
    static const char text[] = "the quick brown fox jumps over the lazy dog, twice: "
                               "no vowels needed here q";
    /* No 'q' before the last byte. */
    char sent[sizeof text - 1];
    memcpy(sent, text, sizeof sent);
    sent[4] = 'k';
    assert_int_equal(write(machine.serial_in, sent, sizeof sent), sizeof sent);
    char back_text[sizeof sent];
    read_exactly(machine.serial_out, back_text, sizeof back_text);
    assert_memory_equal(back_text, sent, sizeof sent);
    expect(&machine, BOARD_EVENT_READY);
    expect(&machine, BOARD_EVENT_DEBUG_EXIT);
    machine_end(&machine);
}

/* 200,000 bytes into a pipe of 64 KiB that nobody reads at first: the guest has to wait. */
static void slow_reader_loses_nothing(void **state)
{
    enum { BYTES = 200000 };
    struct code code = {0};
    EMIT(&code, "\xb9"); /* mov ecx, BYTES */
    emit32(&code, BYTES);
    set_dx(&code, 0x3f8);
    EMIT(&code, "\x88\xc8\xee\xe2\xfb"); /* mov al, cl; out dx, al; loop -5 */
    out8(&code, 0xf4, 1);
    halt(&code);
    struct machine machine;
    machine_start(&machine, *state, &code, true, 1);
    expect(&machine, BOARD_EVENT_READY);
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    struct board_event event;
    assert_false(board_event_next(machine.board, &event)); /* it has not got through */
    uint8_t *bytes = malloc(BYTES);
    read_exactly(machine.serial_out, bytes, BYTES / 2);
    board_pause(machine.board); /* also from within that wait */
    board_resume(machine.board);
    read_exactly(machine.serial_out, bytes + BYTES / 2, BYTES - BYTES / 2);
    for (uint32_t i = 0; i < BYTES; i++)
        if (bytes[i] != (uint8_t)(BYTES - i))
            fail_msg("byte %u", i);
    free(bytes);
    expect(&machine, BOARD_EVENT_DEBUG_EXIT);
    machine_end(&machine);
}

static void reader_that_leaves_does_not_hold_the_guest(void **state)
{
    struct code code = {0};
    EMIT(&code, "\xb9\x00\x00\x03\x00"); /* mov ecx, 0x30000 */
    set_dx(&code, 0x3f8);
    EMIT(&code, "\x88\xc8\xee\xe2\xfb");
    out8(&code, 0xf4, 1);
    halt(&code);
    struct machine machine;
    machine_start(&machine, *state, &code, true, 1);
    close(machine.serial_out);
    machine.serial_out = -1;
    expect(&machine, BOARD_EVENT_READY);
    expect(&machine, BOARD_EVENT_DEBUG_EXIT);
    assert_true(board_drain_serial(machine.board, PATIENCE_MS));
    machine_end(&machine);
}

static uint32_t counter_of(struct machine *machine)
{
    return *(volatile uint32_t *)mem_at(machine->board->mem, CODE_AT + 4096, 4, false);
}

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL);
}

static void paused_machine_stands_still(void **state)
{
    struct code code = {0};
    EMIT(&code, "\xff\x05"); /* inc dword [counter] */
    emit32(&code, CODE_AT + 4096);
    EMIT(&code, "\xeb\xf8");
    struct machine machine;
    machine_start(&machine, *state, &code, false, 2);
    for (int round = 0; round < 20; round++) {
        uint32_t before = counter_of(&machine);
        for (int ms = 0; counter_of(&machine) == before && ms < PATIENCE_MS; ms++)
            sleep_ms(1);
        assert_int_not_equal(counter_of(&machine), before);
        board_pause(machine.board);
        board_pause(machine.board);
        before = counter_of(&machine);
        uint64_t then = timers_now(machine.board->timers), tsc = board_tsc(machine.board);
        sleep_ms(5);
        assert_int_equal(counter_of(&machine), before);
        assert_int_equal(timers_now(machine.board->timers), then);
        assert_int_equal(board_tsc(machine.board), tsc);
        board_resume(machine.board);
    }
    /* Resets in quick succession, from a running machine. */
    for (int i = 0; i < 5; i++)
        assert_int_equal(board_reset(machine.board, NULL), 0);
    machine_end(&machine);
}

static void pci_devices_are_there_and_assigned(void **state)
{
    struct code code = {0};
    set_dx(&code, 0xcf8);
    EMIT(&code, "\xb8\x00\x08\x00\x80\xef"); /* device 1, register 0 */
    set_dx(&code, 0xcfc);
    EMIT(&code, "\xed\x66\x3d\xf4\x1a\x75\x0b"); /* in eax, dx; cmp ax, 0x1af4; jne */
    out8(&code, 0xf4, 1);
    halt(&code);
    EMIT(&code, "\x90");
    out8(&code, 0xf4, 2);
    halt(&code);
    struct machine machine;
    machine_start(&machine, *state, &code, false, 1);
    expect(&machine, BOARD_EVENT_READY);
    assert_int_equal(expect(&machine, BOARD_EVENT_DEBUG_EXIT).value, 1);
    machine_end(&machine);
}

static void panic_is_told_and_the_guest_goes_on(void **state)
{
    struct code code = {0};
    out8(&code, MAP_PANIC_PORT, 1);
    out8(&code, 0xf4, 3);
    halt(&code);
    struct machine machine;
    machine_start(&machine, *state, &code, false, 1);
    expect(&machine, BOARD_EVENT_READY);
    expect(&machine, BOARD_EVENT_PANICKED);
    assert_int_equal(expect(&machine, BOARD_EVENT_DEBUG_EXIT).value, 3);
    struct board_stats stats;
    board_stats(machine.board, &stats);
    assert_true(stats.guest_resident > 0 && stats.guest_resident <= MIB(16));
    machine_end(&machine);
}

static void what_cannot_be_made_is_said(void **state)
{
    struct code code = {0};
    halt(&code);
    struct board_config config = {.engine = *state,
                                  .kvm_fd = -1,
                                  .memory = MIB(16),
                                  .cpus = 1,
                                  .kernel_fd = -1,
                                  .initrd_fd = -1,
                                  .command_line = "",
                                  .serial_in_fd = -1,
                                  .serial_out_fd = -1};
    struct board *board;
    struct err err = {0};
    assert_int_equal(board_new(&config, &board, &err), -ENOEXEC);
    assert_non_null(strstr(err.text, "no kernel is given"));
    config.memory = 4096;
    assert_int_equal(board_new(&config, &board, &err), -EINVAL);
    config.memory = MIB(16);
    config.cpus = 65;
    assert_int_equal(board_new(&config, &board, &err), -EINVAL);
    config.cpus = 1;

    config.kernel_fd = kernel_of(&code);
    config.lockstep = (struct board_lockstep){.role = BOARD_LOCKSTEP_LEAD, .fd = -1};
    config.cpus = 2;
    assert_int_equal(board_new(&config, &board, &err), -EINVAL);
    assert_non_null(strstr(err.text, "lockstep: "));
    config.lockstep.role = BOARD_LOCKSTEP_NONE;
    config.cpus = 1;
    close(config.kernel_fd);

    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    config.kernel_fd = kernel_of(&code);
    config.consoles = (struct board_console[]){{.fd = ends[0]}, {.fd = ends[1]}};
    config.console_count = 2; /* both without a name */
    assert_int_equal(board_new(&config, &board, &err), -EINVAL);
    close(ends[0]);
    close(ends[1]);
    close(config.kernel_fd);
}

/* Whether a machine can be made with this engine on this host. */
static bool engine_works(const struct engine_ops *engine)
{
    struct code code = {0};
    halt(&code);
    _cleanup_fd_ int kernel_fd = kernel_of(&code);
    struct board_config config = {.engine = engine,
                                  .kvm_fd = -1,
                                  .memory = MIB(16),
                                  .cpus = 1,
                                  .kernel_fd = kernel_fd,
                                  .initrd_fd = -1,
                                  .command_line = "",
                                  .serial_in_fd = -1,
                                  .serial_out_fd = -1};
    struct board *board;
    struct err err = {0};
    if (board_new(&config, &board, &err) < 0) {
        /* The software engine works everywhere. */
        assert_ptr_not_equal(engine, &engine_soft);
        printf("engine %s is left out: %s\n", engine->name, err.text);
        return false;
    }
    board_free(board);
    return true;
}

#define ENGINE_TEST(function)                                                                      \
    {                                                                                              \
        .name = #function, .test_func = function, .initial_state = (void *)engine                  \
    }

int main(void)
{
    int failed = 0;
    for (size_t i = 0; engine_all[i]; i++) {
        const struct engine_ops *engine = engine_all[i];
        if (!engine_works(engine))
            continue;
        const struct CMUnitTest tests[] = {
            ENGINE_TEST(guest_speaks_and_exits),
            ENGINE_TEST(free_with_half_a_line),
            ENGINE_TEST(soft_off_ends_the_machine),
            ENGINE_TEST(reset_works_again_and_again),
            ENGINE_TEST(triple_fault_shows_the_registers),
            ENGINE_TEST(serial_input_reaches_the_guest),
            ENGINE_TEST(slow_reader_loses_nothing),
            ENGINE_TEST(reader_that_leaves_does_not_hold_the_guest),
            ENGINE_TEST(paused_machine_stands_still),
            ENGINE_TEST(pci_devices_are_there_and_assigned),
            ENGINE_TEST(panic_is_told_and_the_guest_goes_on),
            ENGINE_TEST(what_cannot_be_made_is_said),
        };
        failed += _cmocka_run_group_tests(engine->name, tests, ARRAY_LEN(tests), NULL, NULL);
    }
    return failed;
}
