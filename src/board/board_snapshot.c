/*
 * Saving a machine and going on where one was saved.
 *
 * The order matters. To save: vCPUs are parked, the clock stands; what was due on it runs; each
 * virtio device finishes what it has begun and begins nothing. Now nobody changes the machine but
 * the host's stream behind COM1: a byte may come that raises a line. So interrupt controllers are
 * saved first, then devices, then the vCPUs with their local APICs: where an edge is in the I/O
 * APIC already, the UART that holds the line has it as well, and the local APIC that it went to.
 * What is in the local APIC alone is one interrupt too many, and not one too few.
 *
 * To restore: memory first, for queues lie in it; then the clock, for timers are set by it; then
 * the vCPUs with their local APICs, for devices raise lines as they are loaded; then devices in the
 * order of their making, interrupt controllers first.
 *
 * What counts inside an engine (engine.h, clock_stop()) stands from its making to the first start,
 * and whenever the machine does: saved states are of one moment, and restored ones go on from it.
 */
#include "board/board_private.h"
#include "board/snapshot.h"
#include "board/snapshot_memory.h"

#include <errno.h>
#include <inttypes.h>

enum { MACHINE_VERSION = 2, CPUID_VERSION = 1, MEMORY_VERSION = 1 };

struct machine {
    uint32_t cpus;
    uint64_t memory;
    uint64_t tsc, tsc_khz, clock;
    uint8_t id[BOARD_ID_SIZE], parent[BOARD_ID_SIZE];
    bool has_parent;
    uint64_t kvmclock;
    bool immune; /* board_private.h */
};

struct board_history {
    bool has_id; /* `id` names the snapshot that memory was last compared with */
    uint8_t id[BOARD_ID_SIZE];
    bool logged; /* the dirty log runs since then; else the pages are still those of a file */

    /* From a restore: */
    bool has_cpuid;
    struct cpuid cpuid;
    struct snapshot_reader state; /* of the first layer, until all of it is loaded */
    struct machine machine;
    struct page_map maps[BOARD_LAYERS_MAX];
    int memory_fds[BOARD_LAYERS_MAX];
    unsigned layers;

    bool unverified, has_verifier;
    _Atomic bool verify_stop;
    pthread_t verifier;
};

/* ---- what both ways share ---- */

static void machine_record(struct machine *machine, struct record *record)
{
    record_u32(record, &machine->cpus);
    record_u64(record, &machine->memory);
    record_u64(record, &machine->tsc);
    record_u64(record, &machine->tsc_khz);
    record_u64(record, &machine->clock);
    record_bytes(record, machine->id, sizeof machine->id);
    record_bytes(record, machine->parent, sizeof machine->parent);
    record_bool(record, &machine->has_parent);
    if (record->version >= 2) {
        record_u64(record, &machine->kvmclock);
        record_bool(record, &machine->immune);
    } else { /* the software engine's: the clock was the TSC in nanoseconds */
        machine->kvmclock =
            (uint64_t)((unsigned __int128)machine->tsc * 1000000 / max(machine->tsc_khz, 1u));
        machine->immune = true;
    }
}

/* "rtc", "virtio-blk", "virtio-blk.1": the name, and which of those that have it. */
static void section_name(const struct board *board, unsigned index,
                         char ret_name[SNAPSHOT_NAME_MAX + 1])
{
    const char *name = board->devices[index].name;
    unsigned same = 0;
    for (unsigned i = 0; i < index; i++)
        same += !strcmp(board->devices[i].name, name);
    if (same)
        snprintf(ret_name, SNAPSHOT_NAME_MAX + 1, "%s.%u", name, same);
    else
        snprintf(ret_name, SNAPSHOT_NAME_MAX + 1, "%s", name);
}

static struct board_history *history_of(struct board *board)
{
    if (!board->history)
        board->history = calloc(1, sizeof *board->history);
    return board->history;
}

void board_history_free(struct board *board)
{
    struct board_history *history = board->history;
    if (!history)
        return;
    if (history->has_verifier) { /* it looks for the history there, and may not have begun yet */
        history->verify_stop = true;
        pthread_join(history->verifier, NULL);
    }
    board->history = NULL;
    for (unsigned i = 0; i < history->layers; i++)
        page_map_free(&history->maps[i]);
    snapshot_reader_free(&history->state);
    free(history);
}

/* ---- saving ---- */

static int save_vcpus(struct board *board, struct snapshot_writer *writer, struct err *err)
{
    _cleanup_free_ struct cpu_state *state = malloc(sizeof *state);
    if (!state)
        return err_set(err, -ENOMEM, "no memory for a vCPU's state");
    for (unsigned i = 0; i < board->cpus; i++) {
        char name[SNAPSHOT_NAME_MAX + 1];
        snprintf(name, sizeof name, "vcpu%u", i);
        int r = board->engine->vcpu_get_state(board->vcpus[i].vcpu, state, err);
        if (r < 0)
            return err_prefix(err, r, "vCPU %u", i);
        cpu_state_record(state, snapshot_begin(writer, name, CPU_STATE_VERSION));
        snapshot_end(writer);
    }
    return 0;
}

static void save_devices(struct board *board, struct snapshot_writer *writer)
{
    for (unsigned i = 0; i < board->device_count; i++) {
        const struct board_device *device = &board->devices[i];
        char name[SNAPSHOT_NAME_MAX + 1];
        if (!device->ops->state)
            continue;
        section_name(board, i, name);
        device->ops->state(device->device,
                           snapshot_begin(writer, name, device->ops->state_version));
        snapshot_end(writer);
    }
}

static void save_machine(struct board *board, const struct board_save *save,
                         struct snapshot_writer *writer)
{
    struct machine machine = {.cpus = board->cpus,
                              .memory = mem_size(board->mem),
                              .tsc = board_tsc(board),
                              .tsc_khz = board->apic
                                             ? board_tsc_khz(board)
                                             : cpuid_tsc_khz(board->engine->vm_cpuid(board->vm)),
                              .clock = timers_now(board->timers),
                              .has_parent = save->changes,
                              .kvmclock = board->engine->kvmclock(board->vm),
                              .immune = board->immune};
    memcpy(machine.id, save->id, sizeof machine.id);
    if (save->changes)
        memcpy(machine.parent, save->parent, sizeof machine.parent);
    machine_record(&machine, snapshot_begin(writer, "machine", MACHINE_VERSION));
    snapshot_end(writer);
    struct cpuid cpuid = *board->engine->vm_cpuid(board->vm);
    cpuid_record(&cpuid, snapshot_begin(writer, "cpuid", CPUID_VERSION));
    snapshot_end(writer);
}

/* Marks that are not set are only read: those of memory that was never used take no room. */
static void marks_clear(struct mem *mem)
{
    for (unsigned i = 0; i < mem->count; i++)
        for (uint64_t page = 0; page < mem->regions[i].size >> MEM_PAGE_SHIFT; page++) {
            uint8_t *mark = &mem->regions[i].marks[page];
            if (__atomic_load_n(mark, __ATOMIC_RELAXED) & MEM_PAGE_DIRTY)
                __atomic_fetch_and(mark, (uint8_t)~MEM_PAGE_DIRTY, __ATOMIC_RELAXED);
        }
}

/* Which pages differ from what the last snapshot holds. */
static int choose_pages(struct board *board, const struct board_save *save,
                        enum pages_which *ret_which, struct err *err)
{
    const struct board_history *history = board->history;
    *ret_which = PAGES_ALL;
    if (!save->changes)
        return 0;
    if (!history || !history->has_id)
        return err_set(err, -EINVAL,
                       "there is no snapshot of this machine that changes could stand "
                       "on; take a whole one first");
    if (memcmp(history->id, save->parent, sizeof history->id) != 0)
        return err_set(err, -EINVAL,
                       "the base is not the snapshot that this machine was last saved to, or came "
                       "from");
    *ret_which = history->logged ? PAGES_MARKED : PAGES_PRIVATE;
    return history->logged ? board->engine->dirty_sync(board->vm, err) : 0;
}

static int save_all(struct board *board, const struct board_save *save, struct page_map *map,
                    struct snapshot_writer *writer, struct board_saved *saved, struct err *err)
{
    enum pages_which which;
    int r = choose_pages(board, save, &which, err);
    if (r < 0)
        return r;
    save_machine(board, save, writer);
    r = board_chips_save(board, writer, err);
    if (r < 0)
        return r;
    save_devices(board, writer);
    r = save_vcpus(board, writer, err);
    if (r < 0)
        return r;
    r = pages_save(board->mem, save->to.memory_fd, save->pagemap_fd, which, map, err);
    if (r < 0)
        return r;
    saved->pages = page_map_count(map);
    page_map_state(map, snapshot_begin(writer, "memory", MEMORY_VERSION));
    snapshot_end(writer);
    return snapshot_write(writer, save->to.state_fd, err);
}

/* From now on changes are what is written after this snapshot. */
static int remember(struct board *board, const struct board_save *save, struct err *err)
{
    struct board_history *history = history_of(board);
    if (!history)
        return err_set(err, -ENOMEM, "no memory");
    marks_clear(board->mem);
    int r = board->engine->dirty_start(board->vm, err);
    history->logged = history->has_id = r >= 0;
    memcpy(history->id, save->id, sizeof history->id);
    return r;
}

int board_save(struct board *board, const struct board_save *save, struct board_saved *ret_saved,
               struct err *err)
{
    struct snapshot_writer writer;
    struct page_map map;
    struct board_saved saved = {0};
    if (board->lockstep)
        return err_set(err, -ENOTSUP, "a machine in lockstep cannot be saved");
    bool was_held = board->held;
    int r = board_hold(board, err);
    if (r < 0)
        return r;
    snapshot_writer_init(&writer);
    r = page_map_init(&map, board->mem, err);
    if (r >= 0) {
        r = save_all(board, save, &map, &writer, &saved, err);
        page_map_free(&map);
    }
    snapshot_writer_free(&writer);
    if (r >= 0)
        r = remember(board, save, err);
    if (!was_held)
        board_let_go(board);
    if (r >= 0)
        *ret_saved = saved;
    return r;
}

/* ---- restoring ---- */

/* As it was asked for: where the VGA window lies there is no memory. */
static uint64_t mib(uint64_t bytes)
{
    return (bytes >> 20) + (bytes % MIB(1) != 0);
}

static int read_machine(struct snapshot_reader *reader, struct machine *machine, struct err *err)
{
    struct record record;
    *machine = (struct machine){0};
    int r = snapshot_find(reader, "machine", MACHINE_VERSION, &record, err);
    if (r < 0)
        return r;
    machine_record(machine, &record);
    return snapshot_loaded("machine", &record, err);
}

static int load_machine(const struct board *board, struct snapshot_reader *reader,
                        struct machine *ret_machine, struct err *err)
{
    struct machine machine;
    int r = read_machine(reader, &machine, err);
    if (r < 0)
        return r;
    if (machine.cpus != board->cpus || machine.memory != mem_size(board->mem))
        return err_set(err, -EINVAL,
                       "the snapshot is of a machine with %" PRIu32 " CPUs and %" PRIu64
                       " MiB of memory, this one has %u and %" PRIu64,
                       machine.cpus, mib(machine.memory), board->cpus, mib(mem_size(board->mem)));
    if (machine.tsc_khz < 1000 || machine.tsc_khz > 100000000)
        return err_set(err, -EBADMSG, "the snapshot's TSC has a frequency that cannot be");
    *ret_machine = machine;
    return 0;
}

static int load_map(struct board *board, struct snapshot_reader *reader, struct err *err)
{
    struct board_history *history = board->history;
    struct page_map *map = &history->maps[history->layers];
    struct record record;
    int r = snapshot_find(reader, "memory", MEMORY_VERSION, &record, err);
    if (r >= 0)
        r = page_map_init(map, board->mem, err);
    if (r < 0)
        return r;
    history->layers++;
    page_map_state(map, &record);
    return snapshot_loaded("memory", &record, err);
}

static int read_cpuid(struct snapshot_reader *reader, struct cpuid *cpuid, struct err *err)
{
    struct record record;
    int r = snapshot_find(reader, "cpuid", CPUID_VERSION, &record, err);
    if (r < 0)
        return r;
    cpuid_record(cpuid, &record);
    return snapshot_loaded("cpuid", &record, err);
}

/* What the guest may rely on must be there. */
static int check_processor(const struct engine_ops *engine, int kvm_fd,
                           const struct machine *machine, const struct cpuid *wanted,
                           struct err *err)
{
    char what[CPUID_WHAT_MAX];
    struct cpuid have;
    const struct engine_config config = {.vcpus = machine->cpus,
                                         .irqchip = engine->irqchip,
                                         .tsc_khz = machine->tsc_khz,
                                         .kvm_fd = kvm_fd};
    bool hardware = engine->irqchip == ENGINE_IRQCHIP_ENGINE;
    int r = engine->cpuid_able(&config, &have, err);
    if (r < 0)
        return r;
    if (hardware && machine->immune)
        return err_set(err, -ENOTSUP,
                       "the snapshot's guest was told that its processor has none of the known "
                       "flaws, which holds under --engine soft alone; one that is started with "
                       "--cpu portable goes on under both");
    /* Hardware of one vendor differs from that of another in more than CPUID tells. */
    if (hardware && !cpuid_same_vendor(&have, wanted))
        return err_set(err, -ENOTSUP,
                       "the snapshot's guest runs on a processor of another vendor; use --engine "
                       "soft");
    if (cpuid_covers(&have, wanted, what))
        return 0;
    return err_set(err, -ENOTSUP,
                   "the snapshot's guest may rely on %s, which engine '%s' lacks here", what,
                   engine->name);
}

int board_restore_suits(const struct board_restore *restore, const struct engine_ops *engine,
                        int kvm_fd, struct err *err)
{
    struct snapshot_reader reader = {0};
    struct machine machine;
    struct cpuid wanted;
    if (restore->count < 1)
        return err_set(err, -EINVAL, "there is no snapshot");
    int r = snapshot_read(restore->layers[0].state_fd, &reader, err);
    if (r >= 0)
        r = read_machine(&reader, &machine, err);
    if (r >= 0)
        r = read_cpuid(&reader, &wanted, err);
    snapshot_reader_free(&reader);
    if (r >= 0 && (machine.cpus < 1 || machine.cpus > ENGINE_VCPUS_MAX))
        r = err_set(err, -EBADMSG, "the snapshot is of a machine with %" PRIu32 " CPUs",
                    machine.cpus);
    return r < 0 ? r : check_processor(engine, kvm_fd, &machine, &wanted, err);
}

/* The chain: each layer's parent is the next one's name, and the last has none. */
static int check_link(const struct machine *above, const struct machine *below, unsigned layer,
                      struct err *err)
{
    if (!above->has_parent)
        return err_set(err, -EINVAL, "snapshot %u of the chain stands on nothing, but %u follows",
                       layer, layer + 1);
    if (memcmp(above->parent, below->id, sizeof below->id) != 0)
        return err_set(err, -EBADMSG, "snapshot %u of the chain is not the one that %u stands on",
                       layer + 1, layer);
    return 0;
}

static int read_layers(struct board *board, const struct board_restore *restore, struct err *err)
{
    struct board_history *history = board->history;
    struct machine machine, above = {0};
    for (unsigned i = 0; i < restore->count; i++) {
        struct snapshot_reader reader = {0};
        int r = snapshot_read(restore->layers[i].state_fd, &reader, err);
        if (r >= 0)
            r = load_machine(board, &reader, &machine, err);
        if (r >= 0 && i > 0)
            r = check_link(&above, &machine, i, err);
        if (r >= 0)
            r = load_map(board, &reader, err);
        history->memory_fds[i] = restore->layers[i].memory_fd;
        if (r >= 0 && i == 0) {
            history->state = reader;
            reader = (struct snapshot_reader){0};
            history->machine = machine;
            memcpy(history->id, machine.id, sizeof history->id);
            r = read_cpuid(&history->state, &history->cpuid, err);
            history->has_cpuid = r >= 0;
        }
        snapshot_reader_free(&reader);
        if (r < 0)
            return i ? err_prefix(err, r, "snapshot %u of the chain", i + 1) : r;
        above = machine;
    }
    return above.has_parent
               ? err_set(err, -EINVAL, "the snapshot stands on another one, which is missing")
               : 0;
}

int board_restore_map(struct board *board, struct err *err)
{
    const struct board_history *history = board->history;
    int r = 0;
    for (unsigned i = history->layers; r >= 0 && i-- > 0;)
        r = pages_map(board->mem, history->memory_fds[i], &history->maps[i],
                      i + 1 == history->layers, err);
    return r;
}

int board_restore_begin(struct board *board, const struct board_restore *restore, struct err *err)
{
    if (board->lockstep)
        return err_set(err, -ENOTSUP, "a snapshot cannot be restored in lockstep");
    if (restore->count < 1 || restore->count > BOARD_LAYERS_MAX)
        return err_set(err, -EINVAL, "a chain of snapshots has 1 to %d, not %u", BOARD_LAYERS_MAX,
                       restore->count);
    struct board_history *history = history_of(board);
    if (!history)
        return err_set(err, -ENOMEM, "no memory for a snapshot");
    int r = read_layers(board, restore, err);
    if (r < 0)
        return r;
    if (restore->same_host)
        cpuid_assume_host_tsc_khz(history->machine.tsc_khz);
    board->immune = history->machine.immune;
    bool only = restore->verify == BOARD_VERIFY_ONLY;
    r = only ? 0
             : check_processor(board->engine, board->kvm_fd, &history->machine, &history->cpuid,
                               err);
    bool now = only || restore->verify == BOARD_VERIFY_BEFORE;
    for (unsigned i = 0; r >= 0 && now && i < history->layers; i++)
        r = pages_verify(history->memory_fds[i], &history->maps[i], NULL, err);
    if (r < 0)
        return r;
    history->unverified = restore->verify == BOARD_VERIFY_BESIDE;
    history->has_id = true;
    board_clock_set(board, history->machine.tsc, history->machine.tsc_khz, history->machine.clock);
    return 0;
}

const struct cpuid *board_restore_cpuid(const struct board *board)
{
    return board->history && board->history->has_cpuid ? &board->history->cpuid : NULL;
}

static int load_vcpus(struct board *board, struct err *err)
{
    _cleanup_free_ struct cpu_state *state = malloc(sizeof *state);
    if (!state)
        return err_set(err, -ENOMEM, "no memory for a vCPU's state");
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < board->cpus; i++) {
        char name[SNAPSHOT_NAME_MAX + 1];
        struct record record;
        snprintf(name, sizeof name, "vcpu%u", i);
        r = snapshot_find(&board->history->state, name, CPU_STATE_VERSION, &record, err);
        if (r < 0)
            break;
        memset(state, 0, sizeof *state);
        cpu_state_record(state, &record);
        r = snapshot_loaded(name, &record, err);
        if (r >= 0 && (r = board->engine->vcpu_set_state(board->vcpus[i].vcpu, state, err)) < 0)
            err_prefix(err, r, "the snapshot's vCPU %u", i);
    }
    return r;
}

static int load_devices(struct board *board, struct err *err)
{
    for (unsigned i = 0; i < board->device_count; i++) {
        const struct board_device *device = &board->devices[i];
        char name[SNAPSHOT_NAME_MAX + 1];
        struct record record;
        if (!device->ops->state)
            continue;
        section_name(board, i, name);
        int r =
            snapshot_find(&board->history->state, name, device->ops->state_version, &record, err);
        if (r < 0)
            return r;
        device->ops->state(device->device, &record);
        r = snapshot_loaded(name, &record, err);
        if (r < 0)
            return r;
    }
    return snapshot_all_used(&board->history->state, err);
}

int board_restore_end(struct board *board, struct err *err)
{
    for (unsigned i = 0; i < board->virtio_count; i++)
        virtio_hold(board->virtio[i]);
    board->engine->kvmclock_set(board->vm, board->history->machine.kvmclock);
    int r = load_vcpus(board, err);
    if (r >= 0)
        r = board_chips_load(board, &board->history->state, err);
    if (r >= 0)
        r = load_devices(board, err);
    snapshot_reader_free(&board->history->state);
    if (r < 0)
        return r;
    /* It may not be the only one that goes on from there. */
    board_new_generation(board, NULL);
    return 0; /* its virtio devices are held until it runs: board_devices_begin() */
}

/* ---- verifying, beside the running guest ---- */

static void *verify_main(void *opaque)
{
    struct board *board = opaque;
    struct board_history *history = board->history;
    struct err err = {0};
    pthread_setname_np(pthread_self(), "verify");
    for (unsigned i = 0; i < history->layers; i++) {
        int r =
            pages_verify(history->memory_fds[i], &history->maps[i], &history->verify_stop, &err);
        if (r == -ECANCELED)
            return NULL;
        if (r < 0) {
            board_tell_final(board, BOARD_EVENT_ERROR, 0, err.text);
            return NULL;
        }
    }
    return NULL;
}

void board_verify_start(struct board *board)
{
    struct board_history *history = board->history;
    if (!history || !history->unverified)
        return;
    history->unverified = false;
    history->has_verifier = pthread_create(&history->verifier, NULL, verify_main, board) == 0;
    if (!history->has_verifier) /* then here: late is better than never */
        verify_main(board);
}
