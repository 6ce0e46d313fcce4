/*
 * Interrupts and clocks. With ENGINE_IRQCHIP_ENGINE every line and message goes to the engine's own
 * chips. With ENGINE_IRQCHIP_BOARD they are ours: an ISA interrupt reaches the PIC and the I/O APIC
 * at once, as on a PC (its number 0 arrives at pin 2 there); the lines from MAP_GSI_PCI on are the
 * I/O APIC's alone.
 *
 * The TSC is one for all vCPUs and stands still while the machine does: the engine reads it through
 * board_tsc() as the local APICs' deadline timers do, so that both agree to the tick. What a guest
 * adds by writing the TSC itself stays inside its vCPU. An engine with local APICs of its own has
 * its own TSC, too, and is told when it stands (engine.h, clock_stop()); board_tsc() then says
 * where.
 */
#include "board/board_private.h"

#include <x86intrin.h>

enum { ISA_IRQS = 16, TIMER_PIN = 2, TSC_SCALE_SHIFT = 48 };

/* Guest ticks for so many of the host's. */
static uint64_t tsc_scaled(const struct board *board, uint64_t ticks)
{
    return (uint64_t)((unsigned __int128)ticks * board->tsc_scale >> TSC_SCALE_SHIFT);
}

uint64_t board_tsc(void *opaque)
{
    struct board *board = opaque;
    if (unlikely(board->lockstep))
        return lockstep_clock(board->lockstep);
    if (!atomic_load_explicit(&board->tsc_runs, memory_order_acquire))
        return atomic_load_explicit(&board->tsc_frozen, memory_order_relaxed);
    uint64_t base = atomic_load_explicit(&board->tsc_base, memory_order_relaxed);
    if (likely(!board->tsc_scale))
        return __rdtsc() - base;
    return atomic_load_explicit(&board->tsc_began, memory_order_relaxed) +
           tsc_scaled(board, __rdtsc() - base);
}

uint64_t board_tsc_khz(const struct board *board)
{
    if (board->lockstep)
        return LOCKSTEP_TSC_KHZ;
    return board->tsc_khz ? board->tsc_khz : cpuid_host_tsc_khz();
}

int board_clock_stop(struct board *board, struct err *err)
{
    if (board->lockstep)
        return 0;
    timers_pause(board->timers);
    if (atomic_load(&board->tsc_runs)) {
        atomic_store(&board->tsc_frozen, board_tsc(board));
        atomic_store(&board->tsc_runs, false);
    }
    if (!board->vm || !board->engine->clock_stop)
        return 0;
    uint64_t tsc; /* the engine's own is the machine's */
    int r = board->engine->clock_stop(board->vm, &tsc, err);
    if (r >= 0)
        atomic_store(&board->tsc_frozen, tsc);
    return r;
}

int board_clock_run(struct board *board, struct err *err)
{
    if (board->lockstep)
        return 0;
    int r = board->engine->clock_run ? board->engine->clock_run(board->vm, err) : 0;
    if (r < 0)
        return r;
    if (!atomic_load(&board->tsc_runs)) {
        atomic_store(&board->tsc_began, board->tsc_frozen);
        atomic_store(&board->tsc_base,
                     __rdtsc() - (board->tsc_scale ? 0 : atomic_load(&board->tsc_frozen)));
        atomic_store(&board->tsc_runs, true);
    }
    timers_resume(board->timers);
    return 0;
}

void board_clock_zero(struct board *board)
{
    atomic_store(&board->tsc_frozen, 0);
}

void board_clock_set(struct board *board, uint64_t tsc, uint64_t tsc_khz, uint64_t now)
{
    board->tsc_khz = tsc_khz;
    atomic_store(&board->tsc_frozen, tsc);
    timers_set_now(board->timers, now);
    if (board->engine->irqchip == ENGINE_IRQCHIP_ENGINE) /* which sees to it */
        return;
    uint64_t host = cpuid_host_tsc_khz();
    uint64_t apart = host > tsc_khz ? host - tsc_khz : tsc_khz - host;
    /* Two measurements of one frequency differ by less than this, and clocks of two hosts too. */
    if (apart > tsc_khz / 2000)
        board->tsc_scale = (uint64_t)(((unsigned __int128)tsc_khz << TSC_SCALE_SHIFT) / host);
}

static uint64_t tsc_of_vcpu(void *opaque, unsigned vcpu)
{
    return board_tsc(opaque);
}

static void engine_line(void *opaque, unsigned gsi, bool level)
{
    struct board *board = opaque;
    board->engine->irq_line(board->vm, gsi, level);
}

static void chip_line(void *opaque, unsigned gsi, bool level)
{
    struct board *board = opaque;
    if (gsi < ISA_IRQS)
        pic_line(board->pic, gsi, level);
    ioapic_line(board->ioapic, gsi == MAP_IRQ_TIMER ? TIMER_PIN : gsi, level);
}

struct irq_line board_line(struct board *board, unsigned gsi)
{
    bool chips = board->engine->irqchip == ENGINE_IRQCHIP_BOARD;
    return (struct irq_line){
        .set = chips ? chip_line : engine_line, .opaque = board, .number = gsi};
}

static void engine_message(void *opaque, uint64_t address, uint32_t data)
{
    struct board *board = opaque;
    board->engine->msi(board->vm, address, data);
}

struct msi_target board_msi(struct board *board)
{
    if (board->engine->irqchip == ENGINE_IRQCHIP_BOARD)
        return (struct msi_target){.send = apic_msi, .opaque = board->apic};
    return (struct msi_target){.send = engine_message, .opaque = board};
}

/* Chips are reset before there are vCPUs to tell. */
static void vcpu_notify(void *opaque, unsigned index)
{
    struct board *board = opaque;
    if (board->lockstep)
        lockstep_notify(board->lockstep);
    else if (board->vcpus[index].vcpu)
        board->engine->vcpu_notify(board->vcpus[index].vcpu);
}

static void vcpu_signal(void *opaque, unsigned index, enum apic_signal signal, uint8_t vector)
{
    static const enum engine_signal signals[] = {
        [APIC_SIGNAL_NMI] = ENGINE_SIGNAL_NMI,
        [APIC_SIGNAL_INIT] = ENGINE_SIGNAL_INIT,
        [APIC_SIGNAL_SIPI] = ENGINE_SIGNAL_SIPI,
    };
    struct board *board = opaque;
    if (board->vcpus[index].vcpu)
        board->engine->vcpu_signal(board->vcpus[index].vcpu, signals[signal], vector);
}

static void end_of_interrupt(void *opaque, uint8_t vector)
{
    struct board *board = opaque;
    ioapic_eoi(board->ioapic, vector);
}

/* APICs and PIC want each other; the APICs reach the PIC through the board. */
static int poll_pic(void *opaque)
{
    struct board *board = opaque;
    return pic_poll(board->pic);
}

static int accept_pic(void *opaque)
{
    struct board *board = opaque;
    return pic_accept(board->pic);
}

struct apic *board_apic_new(struct board *board)
{
    struct apic *apic = apic_new(&(struct apic_config){.vcpus = board->cpus,
                                                       .timers = board->timers,
                                                       .tsc = tsc_of_vcpu,
                                                       .tsc_khz = board_tsc_khz(board),
                                                       .notify = vcpu_notify,
                                                       .signal = vcpu_signal,
                                                       .eoi = end_of_interrupt,
                                                       .opaque = board,
                                                       .pic_poll = poll_pic,
                                                       .pic_accept = accept_pic,
                                                       .pic = board});
    board->apic_row = (struct engine_apic){.opaque = apic,
                                           .poll = apic_poll,
                                           .accept = apic_accept,
                                           .cr8_read = apic_cr8_read,
                                           .cr8_write = apic_cr8_write,
                                           .msr_read = apic_msr_read,
                                           .msr_write = apic_msr_write,
                                           .save = apic_save,
                                           .load = apic_load,
                                           .init = apic_init};
    return apic;
}
