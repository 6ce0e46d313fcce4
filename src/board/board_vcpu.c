/*
 * A vCPU's thread: parked while the machine does not run, else inside the engine. A stop sets
 * `run`, kicks everybody and is complete when all are counted in `parked_count`. A kick is sticky
 * in the engine, so one that comes between the look at `run` and vcpu_run() is not lost; one that
 * comes too late costs an extra turn of the loop.
 */
#include "board/board_private.h"

#include <inttypes.h>
#include <stdio.h>

static uint32_t port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    struct board *board = opaque;
    return (uint32_t)bus_read(board->bus, BUS_PORT, port, size);
}

static bool runs(struct board *board)
{
    pthread_mutex_lock(&board->lock);
    bool is = board->run == BOARD_RUNNING;
    pthread_mutex_unlock(&board->lock);
    return is;
}

static void port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint32_t value)
{
    struct board *board = opaque;
    bus_write(board->bus, BUS_PORT, port, size, value);
    while (unlikely(board_serial_crowded(board->serial)) && runs(board))
        board_serial_wait(board->serial);
}

static uint64_t mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    struct board *board = opaque;
    uint64_t value;
    if (board->apic && apic_mmio_read(board->apic, vcpu, gpa, size, &value))
        return value;
    return bus_read(board->bus, BUS_MMIO, gpa, size);
}

static void mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    struct board *board = opaque;
    if (board->apic && apic_mmio_write(board->apic, vcpu, gpa, size, value))
        return;
    bus_write(board->bus, BUS_MMIO, gpa, size, value);
}

void board_io_init(struct board *board)
{
    board->io = (struct engine_io){.opaque = board,
                                   .port_read = port_read,
                                   .port_write = port_write,
                                   .mmio_read = mmio_read,
                                   .mmio_write = mmio_write};
}

void board_stop_locked(struct board *board)
{
    if (board->run != BOARD_RUNNING)
        return;
    board->run = BOARD_STOPPED;
    for (unsigned i = 0; i < board->cpus; i++)
        board->engine->vcpu_kick(board->vcpus[i].vcpu);
}

/* True to run, false to leave. */
static bool park(struct board *board)
{
    pthread_mutex_lock(&board->lock);
    if (board->run == BOARD_STOPPED) {
        board->parked_count++;
        pthread_cond_signal(&board->parked);
        while (board->run == BOARD_STOPPED)
            pthread_cond_wait(&board->go, &board->lock);
        board->parked_count--;
    }
    bool go = board->run == BOARD_RUNNING;
    pthread_mutex_unlock(&board->lock);
    return go;
}

/* Where the processor's state is lost at a shutdown, as on AMD, KVM puts it back to a reset's. */
static bool was_reset(const struct cpu_state *state)
{
    return state->rip == 0xfff0 && state->segment[CPU_CS].base == 0xffff0000;
}

/* "vCPU 0: reason", then the registers; the fault's own thread may read its state. */
static void tell_fault(struct board_vcpu *vcpu, enum board_event_kind kind, const char *reason)
{
    struct board *board = vcpu->board;
    char text[BOARD_TEXT_MAX];
    struct cpu_state state;
    int n = snprintf(text, sizeof text, "vCPU %u: %s\n", vcpu->index, reason);
    bool known = board->engine->vcpu_get_state(vcpu->vcpu, &state, NULL) >= 0;
    if (known && kind == BOARD_EVENT_TRIPLE_FAULT && was_reset(&state))
        n += snprintf(text + n, sizeof text - (size_t)n,
                      "(KVM has reset it since: these registers are not the guest's)\n");
    if (known)
        cpu_state_print(&state, text + n, (unsigned)(sizeof text - (size_t)n));
    board_tell_final(board, kind, 0, text);
}

static void exit_handle(struct board_vcpu *vcpu, const struct engine_exit *exit)
{
    switch (exit->reason) {
    case ENGINE_EXIT_KICK:
        if (vcpu->board->lockstep && runs(vcpu->board))
            lockstep_tick(vcpu->board->lockstep);
        break;
    case ENGINE_EXIT_SHUTDOWN: tell_fault(vcpu, BOARD_EVENT_TRIPLE_FAULT, "triple fault"); break;
    case ENGINE_EXIT_FAULT: tell_fault(vcpu, BOARD_EVENT_ERROR, exit->detail); break;
    default: tell_fault(vcpu, BOARD_EVENT_ERROR, "the engine stopped for no known reason"); break;
    }
}

/* Each makes its own: they take a millisecond, in which the others make theirs and the main thread
 * the devices. */
static void make(struct board_vcpu *vcpu)
{
    struct board *board = vcpu->board;
    int r = board->engine->vcpu_new(board->vm, vcpu->index, &vcpu->vcpu, &vcpu->err);
    pthread_mutex_lock(&board->lock);
    vcpu->r = r;
    vcpu->made = true;
    pthread_cond_signal(&board->parked);
    pthread_mutex_unlock(&board->lock);
}

int board_vcpus_wait(struct board *board, struct err *err)
{
    int r = 0;
    pthread_mutex_lock(&board->lock);
    for (unsigned i = 0; i < board->cpus; i++) {
        while (!board->vcpus[i].made)
            pthread_cond_wait(&board->parked, &board->lock);
        if (r >= 0 && board->vcpus[i].r < 0)
            r = err_set(err, board->vcpus[i].r, "%s", board->vcpus[i].err.text);
    }
    pthread_mutex_unlock(&board->lock);
    return r;
}

static void tell_first_instruction(struct board *board)
{
    board_tell_ready(board, clock_ns());
}

void *board_vcpu_main(void *opaque)
{
    struct board_vcpu *vcpu = opaque;
    struct board *board = vcpu->board;
    char name[16];
    snprintf(name, sizeof name, "vcpu%u", vcpu->index);
    pthread_setname_np(pthread_self(), name);

    make(vcpu);
    bool first = vcpu->index == 0;
    while (park(board)) {
        if (first)
            tell_first_instruction(board);
        first = false;
        if (board->lockstep && !lockstep_prepare(board->lockstep))
            continue;
        struct engine_exit exit = {.reason = ENGINE_EXIT_MAX};
        struct err err = {0};
        if (board->engine->vcpu_run(vcpu->vcpu, &exit, &err) < 0)
            tell_fault(vcpu, BOARD_EVENT_ERROR, err.text);
        else
            exit_handle(vcpu, &exit);
    }
    return NULL;
}
