#include "board/board.h"

#include "board/acpi.h"
#include "board/board_firmware.h"
#include "board/board_private.h"
#include "board/load.h"
#include "chip/rtc.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>

uint8_t board_s5_type(const struct board *board)
{
    return board->has_firmware ? 0 : POWER_S5_TYPE;
}

void board_acpi_config(const struct board *board, struct acpi_config *ret_config)
{
    struct acpi_config acpi = {
        .cpus = board->cpus,
        .pm1_event = MAP_POWER_PORT + POWER_PM1_EVENT,
        .pm1_control = MAP_POWER_PORT + POWER_PM1_CONTROL,
        .pm_timer = MAP_POWER_PORT + POWER_TIMER,
        .gpe0 = MAP_POWER_PORT + POWER_GPE0,
        .sci = MAP_IRQ_SCI,
        .s5_type = board_s5_type(board),
        .reset_port = MAP_RESET_PORT,
        .reset_value = MAP_RESET_VALUE,
        .panic_port = MAP_PANIC_PORT,
        .rtc_century = RTC_CENTURY,
        .ioapic = IOAPIC_ADDRESS,
        .local_apic = APIC_ADDRESS,
        .ecam = MAP_ECAM,
        .ecam_size = MAP_ECAM_SIZE,
        .window32 = (uint32_t)MAP_WINDOW32,
        .window32_size = (uint32_t)MAP_WINDOW32_SIZE,
        .window64 = map_window64(board->mem),
        .window64_size = MAP_WINDOW64_SIZE,
        .watchdog = board->watchdog ? MAP_WATCHDOG_PORT : 0,
    };
    memcpy(acpi.generation, board->generation, sizeof acpi.generation);
    for (unsigned i = 0; i < PCI_LINES; i++)
        acpi.pci_gsi[i] = (uint8_t)(MAP_GSI_PCI + i);
    *ret_config = acpi;
}

/* Local vector table of the boot processor as firmware leaves it: the PIC comes in at LINT0, NMI at
 * LINT1 (SDM vol. 3, 11.5.1; virtual wire mode of the MultiProcessor Specification, 3.6.2.2). */
static void apic_page_boot(uint8_t *page)
{
    enum { LVT_LINT0 = 0x350, LVT_LINT1 = 0x360, LVT_EXTINT = 7 << 8, LVT_NMI = 4 << 8 };
    le32_write(page + LVT_LINT0, LVT_EXTINT);
    le32_write(page + LVT_LINT1, LVT_NMI);
}

/* Memory types as firmware leaves them: MTRRs on, everything write-back unless the page tables say
 * otherwise (SDM vol. 3, 12.11.2.1). */
static const uint64_t mtrr_boot = 1 << 11 | 6;

static int vcpus_boot(struct board *board, const struct load_entry *entry, struct err *err)
{
    _cleanup_free_ struct cpu_state *state = malloc(sizeof *state);
    if (!state)
        return err_set(err, -ENOMEM, "no memory for a vCPU's state");
    for (unsigned i = 0; i < board->cpus; i++) {
        cpu_state_reset(state, i);
        if (!board->has_firmware)
            state->msr[CPU_MSR_MTRR_DEF_TYPE] = mtrr_boot;
        if (i == 0 && !board->has_firmware)
            load_entry_state(entry, state);
        if (board->apic)
            apic_save(board->apic, i, state->apic);
        else if (i == 0 && !board->has_firmware)
            apic_page_boot(state->apic);
        int r = board->engine->vcpu_set_state(board->vcpus[i].vcpu, state, err);
        if (r < 0)
            return err_prefix(err, r, "cannot set vCPU %u to its start", i);
    }
    return 0;
}

/* Memory as a boot loader leaves it, on RAM that is zero. */
static int memory_fill(struct board *board, struct load_entry *ret_entry, struct err *err)
{
    if (board->has_firmware)
        return board_firmware_load(board, err);
    struct load_range ranges[LOAD_RANGES_MAX];
    struct load_request request = {.mem = board->mem,
                                   .kernel_fd = board->kernel_fd,
                                   .initrd_fd = board->initrd_fd,
                                   .command_line = board->command_line,
                                   .ranges = ranges,
                                   .range_count = map_ranges(board->mem, ranges)};
    struct acpi_config acpi;
    board_acpi_config(board, &acpi);
    int r = acpi_build(board->mem, &acpi, &request.rsdp, err);
    return r < 0 ? r : load_kernel(&request, ret_entry, err);
}

/* Devices and vCPUs as firmware and boot loader leave them; or as after a reset, for firmware. */
static int machine_boot(struct board *board, const struct load_entry *entry, struct err *err)
{
    int r = board->has_firmware ? 0 : board_pci_assign(board, err);
    return r < 0 ? r : vcpus_boot(board, entry, err);
}

static int memory_make(struct board *board, const struct board_config *config, struct err *err)
{
    if (config->memory < BOARD_MEMORY_MIN || config->memory % MEM_PAGE_SIZE)
        return err_set(err, -EINVAL, "a machine needs at least %d MiB of memory, in whole pages",
                       BOARD_MEMORY_MIN >> 20);
    board->mem = mem_new();
    if (!board->mem)
        return err_set(err, -ENOMEM, "no memory for the memory map");
    int r = map_add_ram(board->mem, config->memory, err);
    return r < 0 ? r : board_firmware_map(board, config, err);
}

static int vm_make(struct board *board, struct err *err)
{
    bool chips = board->engine->irqchip == ENGINE_IRQCHIP_BOARD;
    struct cpuid cpuid;
    if (board->lockstep) {
        cpuid_model(&cpuid, CPUID_SOFT, NULL, board->cpus, LOCKSTEP_TSC_KHZ);
        lockstep_cpuid(&cpuid);
    }
    const struct engine_config engine = {.mem = board->mem,
                                         .vcpus = board->cpus,
                                         .irqchip = board->engine->irqchip,
                                         .io = &board->io,
                                         .apic = chips ? &board->apic_row : NULL,
                                         .cpuid =
                                             board->lockstep ? &cpuid : board_restore_cpuid(board),
                                         .portable = board->portable,
                                         .physical_bits = board_firmware_bits(board),
                                         .tsc_khz = board->tsc_khz,
                                         .tsc = chips ? board_tsc : NULL,
                                         .tsc_opaque = board,
                                         .translate = board->translate,
                                         .code_cache = board->code_cache,
                                         .count = board->lockstep != NULL,
                                         .tlb_entries = board->tlb_entries,
                                         .kvm_fd = board->kvm_fd};
    return board->engine->vm_new(&engine, &board->vm, err);
}

/* Until the machine starts. */
static int vm_clock_stop(struct board *board, struct err *err)
{
    uint64_t tsc;
    return board->engine->clock_stop ? board->engine->clock_stop(board->vm, &tsc, err) : 0;
}

static void engine_free(struct board *board)
{
    for (unsigned i = 0; i < board->cpus; i++)
        if (board->vcpus[i].vcpu)
            board->engine->vcpu_free(take_ptr(board->vcpus[i].vcpu));
    if (board->vm)
        board->engine->vm_free(take_ptr(board->vm));
}

static void *tsc_measure(void *unused)
{
    cpuid_host_tsc_khz();
    return NULL;
}

/* Where the host does not say its TSC's frequency, finding it takes ten milliseconds of watching
 * the clock, and loading a kernel takes as long: both at once. Whoever asks after this has the
 * answer. */
static int memory_fill_measuring(struct board *board, struct load_entry *ret_entry, struct err *err)
{
    pthread_t thread;
    bool measures = board->engine->irqchip == ENGINE_IRQCHIP_BOARD &&
                    pthread_create(&thread, NULL, tsc_measure, NULL) == 0;
    int r = memory_fill(board, ret_entry, err);
    if (measures)
        pthread_join(thread, NULL);
    return r;
}

/* Each makes its vCPU, and parks. */
static int threads_make(struct board *board, struct err *err)
{
    for (unsigned i = 0; i < board->cpus; i++) {
        struct board_vcpu *vcpu = &board->vcpus[i];
        int number = pthread_create(&vcpu->thread, NULL, board_vcpu_main, vcpu);
        if (number)
            return err_errno(err, number, "cannot start the thread of vCPU %u", i);
        vcpu->has_thread = true;
    }
    return 0;
}

/* A host without random numbers does not get as far as here. */
static void generation_random(struct board *board)
{
    if (getrandom(board->generation, sizeof board->generation, 0) < 0)
        memset(board->generation, 0, sizeof board->generation);
}

static int board_fill(struct board *board, const struct board_config *config, struct err *err)
{
    struct load_entry entry;
    int r = memory_make(board, config, err);
    if (r < 0)
        return r;
    board->command_line = strdup(config->command_line);
    board->final = calloc(1, sizeof *board->final);
    board->bus = bus_new();
    if (config->lockstep.role != BOARD_LOCKSTEP_NONE) {
        r = lockstep_new(board, config, &board->lockstep, err);
        if (r < 0)
            return r;
    }
    board->timers =
        board->lockstep ? timers_new_driven(lockstep_clock, board->lockstep) : timers_new_paused();
    if (!board->command_line || !board->final || !board->bus || !board->timers)
        return err_set(err, -ENOMEM, "no memory for a machine");
    board_clock_stop(board, NULL); /* there is no engine yet that could refuse */
    if (!board->lockstep)          /* nobody can repeat it */
        generation_random(board);
    board->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (board->event_fd < 0)
        return err_errno(err, errno, "cannot make an eventfd");
    board_io_init(board);
    r = config->restore ? board_restore_begin(board, config->restore, err)
                        : memory_fill_measuring(board, &entry, err);
    if (config->restore && config->restore->verify == BOARD_VERIFY_ONLY)
        return r;
    if (r >= 0)
        r = board_devices_make(board, config, true, err);
    if (r >= 0)
        r = vm_make(board, err);
    if (r >= 0)
        r = threads_make(board, err);
    if (r >= 0 && config->restore)
        r = board_restore_map(board, err);
    if (r >= 0)
        r = board_devices_make(board, config, false, err);
    if (r >= 0)
        r = board_vcpus_wait(board, err);
    if (r >= 0)
        r = vm_clock_stop(board, err);
    if (r < 0)
        return r;
    board_devices_reset(board);
    return config->restore ? board_restore_end(board, err) : machine_boot(board, &entry, err);
}

int board_new(const struct board_config *config, struct board **ret_board, struct err *err)
{
    if (config->cpus < 1 || config->cpus > ENGINE_VCPUS_MAX)
        return err_set(err, -EINVAL, "a machine has 1 to %d CPUs", ENGINE_VCPUS_MAX);
    struct board *board = calloc(1, sizeof *board);
    if (!board)
        return err_set(err, -ENOMEM, "no memory for a machine");
    board->engine = config->engine;
    board->translate = config->translate;
    board->code_cache = config->code_cache;
    board->portable = config->portable;
    board->immune = config->engine->irqchip == ENGINE_IRQCHIP_BOARD && !config->portable;
    board->cpus = config->cpus;
    board->kvm_fd = config->kvm_fd;
    board->kernel_fd = config->kernel_fd;
    board->initrd_fd = config->initrd_fd;
    board->tlb_entries = config->lockstep.tlb_entries;
    board->watchdog = config->watchdog;
    board->event_fd = -1;
    for (unsigned i = 0; i < board->cpus; i++)
        board->vcpus[i] = (struct board_vcpu){.board = board, .index = i};
    pthread_mutex_init(&board->lock, NULL);
    pthread_cond_init(&board->parked, NULL);
    pthread_cond_init(&board->go, NULL);

    int r = board_fill(board, config, err);
    if (r < 0) {
        board_free(board);
        return r;
    }
    *ret_board = board;
    return 0;
}

static void threads_end(struct board *board)
{
    pthread_mutex_lock(&board->lock);
    board_stop_locked(board);
    board->run = BOARD_LEAVING;
    pthread_cond_broadcast(&board->go);
    pthread_mutex_unlock(&board->lock);
    for (unsigned i = 0; i < board->cpus; i++)
        if (board->vcpus[i].has_thread)
            pthread_join(board->vcpus[i].thread, NULL);
}

void board_free(struct board *board)
{
    if (!board)
        return;
    lockstep_stop(board->lockstep);
    threads_end(board);
    board_history_free(board);
    board_serial_stop(board->serial); /* its thread uses the UART, and that the timers */
    timers_free(board->timers);
    board_devices_free(board);
    engine_free(board);
    bus_free(board->bus);
    mem_free(board->mem);
    lockstep_free(board->lockstep);
    if (board->event_fd >= 0)
        close(board->event_fd);
    pthread_cond_destroy(&board->go);
    pthread_cond_destroy(&board->parked);
    pthread_mutex_destroy(&board->lock);
    free(board->command_line);
    free(board->final);
    free(board);
}

int board_start(struct board *board, struct err *err)
{
    int r = board->lockstep ? lockstep_start(board->lockstep, err) : 0;
    if (r < 0)
        return r;
    board->started = true;
    board_resume(board);
    r = board_devices_begin(board, err);
    if (r >= 0)
        board_verify_start(board);
    return r;
}

void board_pause(struct board *board)
{
    pthread_mutex_lock(&board->lock);
    board_stop_locked(board);
    while (board->started && board->parked_count < board->cpus)
        pthread_cond_wait(&board->parked, &board->lock);
    pthread_mutex_unlock(&board->lock);
    struct err err = {0};
    if (board_clock_stop(board, &err) < 0)
        board_tell_final(board, BOARD_EVENT_ERROR, 0, err.text);
}

void board_resume(struct board *board)
{
    struct err err = {0};
    int r = 0;
    pthread_mutex_lock(&board->lock);
    if (!board->ended && board->started && board->run == BOARD_STOPPED) {
        r = board_clock_run(board, &err);
        if (r >= 0) {
            board->run = BOARD_RUNNING;
            pthread_cond_broadcast(&board->go);
        }
    }
    pthread_mutex_unlock(&board->lock);
    if (r < 0)
        board_tell_final(board, BOARD_EVENT_ERROR, 0, err.text);
}

int board_reset(struct board *board, struct err *err)
{
    board_pause(board);
    board_devices_reset(board);
    board_history_free(board);
    board_clock_zero(board);
    struct load_entry entry;
    int r = mem_clear(board->mem);
    if (r < 0)
        err_errno(err, -r, "cannot give the guest's memory back");
    if (r >= 0)
        r = memory_fill(board, &entry, err);
    if (r >= 0 && board->engine->irqchip == ENGINE_IRQCHIP_ENGINE) {
        /* The interrupt controllers inside the engine have no reset of their own: a new VM is one.
         * Nobody raises a line meanwhile, for all devices are reset and the vCPUs parked. */
        engine_free(board);
        r = vm_make(board, err);
        for (unsigned i = 0; r >= 0 && i < board->cpus; i++)
            r = board->engine->vcpu_new(board->vm, i, &board->vcpus[i].vcpu, err);
        if (r >= 0)
            r = vm_clock_stop(board, err);
    }
    if (r >= 0)
        r = machine_boot(board, &entry, err);
    if (r < 0)
        return err_prefix(err, r, "cannot boot the guest again");
    pthread_mutex_lock(&board->lock);
    board->ended = false;
    board->once_told = board->plain_due = 0;
    board->final->kind = BOARD_EVENT_NONE;
    pthread_mutex_unlock(&board->lock);
    board_resume(board);
    return 0;
}

/* The bytes are there before the event says so. */
void board_new_generation(struct board *board, const uint8_t *generation)
{
    if (generation)
        memcpy(board->generation, generation, sizeof board->generation);
    else
        generation_random(board);
    mem_write(board->mem, ACPI_GENERATION, board->generation, sizeof board->generation);
    power_gpe(board->power, ACPI_GENERATION_EVENT);
}

int board_balloon_target(struct board *board, uint64_t bytes)
{
    if (!board->balloon)
        return -ENODEV;
    virtio_balloon_target(board->balloon, bytes);
    return 0;
}

bool board_balloon_ask(struct board *board)
{
    return board->balloon && virtio_balloon_ask(board->balloon);
}

void board_balloon(struct board *board, struct board_balloon *ret_balloon)
{
    struct virtio_balloon_info info;
    *ret_balloon = (struct board_balloon){.present = board->balloon != NULL};
    if (!board->balloon)
        return;
    virtio_balloon_info(board->balloon, &info);
    ret_balloon->driver = info.driver;
    ret_balloon->target = info.target;
    ret_balloon->actual = info.actual;
    ret_balloon->reported = info.reported;
    ret_balloon->stats_at = info.stats_at;
    ret_balloon->known = info.known;
    memcpy(ret_balloon->stats, info.stats, sizeof info.stats);
}

bool board_power_button(struct board *board)
{
    return power_button(board->power);
}

void board_console_size(struct board *board, unsigned port, uint16_t cols, uint16_t rows)
{
    if (board->console)
        virtio_console_resize(board->console, port, cols, rows);
}

bool board_drain_serial(struct board *board, int timeout_ms)
{
    serial_flush(board->com1);
    return board_serial_drain(board->serial, timeout_ms);
}

bool board_drain_consoles(struct board *board, int timeout_ms)
{
    return !board->console || virtio_console_drain(board->console, timeout_ms) >= 0;
}

/* Resident bytes of a region, asked for in pieces so that a large guest needs no large answer. */
static uint64_t region_resident(const struct mem_region *region)
{
    enum { PAGES = 4096 };
    unsigned char pages[PAGES];
    uint64_t resident = 0;
    for (uint64_t at = 0; at < region->size; at += PAGES * MEM_PAGE_SIZE) {
        uint64_t size = min(region->size - at, (uint64_t)PAGES * MEM_PAGE_SIZE);
        if (mincore(region->host + at, size, pages) < 0)
            return resident;
        for (uint64_t i = 0; i < size / MEM_PAGE_SIZE; i++)
            resident += (pages[i] & 1) * MEM_PAGE_SIZE;
    }
    return resident;
}

void board_stats(struct board *board, struct board_stats *ret_stats)
{
    *ret_stats = (struct board_stats){0};
    for (unsigned i = 0; i < board->cpus; i++)
        ret_stats->instructions += board->engine->vcpu_instructions(board->vcpus[i].vcpu);
    for (unsigned i = 0; i < board->mem->count; i++)
        ret_stats->guest_resident += region_resident(&board->mem->regions[i]);
}
