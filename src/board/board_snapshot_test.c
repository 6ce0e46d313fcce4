/* Machines that are saved, and go on in another board. With KVM, where this host has it: under it,
 * and from one engine to the other. */
#include "board/board.h"

#include "base/own.h"
#include "board/acpi.h"
#include "board/board_private.h"
#include "board/snapshot.h"
#include "board/snapshot_guest.h"
#include "chip/serial.h"
#include "cpu/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <cmocka.h>

enum { PATIENCE_MS = 60000, MEMORY_MIB = 16 };

/* Machines begin under the one and are restored under the other. */
static const struct engine_ops *first = &engine_soft, *second = &engine_soft;

struct files {
    int state_fd, memory_fd;
    uint8_t id[BOARD_ID_SIZE], parent[BOARD_ID_SIZE];
    uint64_t pages;
};

struct machine {
    struct board *board;
    int kernel_fd;
    uint8_t last[BOARD_ID_SIZE]; /* snapshot */
};

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static struct board_config config_of(int kernel_fd, unsigned cpus, unsigned mib)
{
    return (struct board_config){.engine = second,
                                 .kvm_fd = -1,
                                 .memory = MIB((uint64_t)mib),
                                 .cpus = cpus,
                                 .portable = first != second,
                                 .kernel_fd = kernel_fd,
                                 .initrd_fd = -1,
                                 .command_line = "",
                                 .serial_in_fd = -1,
                                 .serial_out_fd = -1};
}

static struct machine boot_under(const struct engine_ops *engine, unsigned cpus, bool sleeps)
{
    struct machine machine = {.kernel_fd = guest_kernel(cpus, sleeps)};
    struct board_config config = config_of(machine.kernel_fd, cpus, MEMORY_MIB);
    struct err err = {0};
    config.engine = engine;
    if (board_new(&config, &machine.board, &err) < 0)
        fail_msg("%s", err.text);
    return machine;
}

static struct machine boot(unsigned cpus, bool sleeps)
{
    return boot_under(first, cpus, sleeps);
}

static void start(struct machine *machine)
{
    struct err err = {0};
    assert_int_equal(board_start(machine->board, &err), 0);
}

static void end(struct machine *machine)
{
    board_free(machine->board);
    if (machine->kernel_fd >= 0)
        close(machine->kernel_fd);
    *machine = (struct machine){.kernel_fd = -1};
}

static uint32_t word(const struct machine *machine, uint32_t at)
{
    return *(volatile uint32_t *)mem_at(machine->board->mem, at, 4, false);
}

static void wait_for(const struct machine *machine, uint32_t at, uint32_t value)
{
    for (int ms = 0; word(machine, at) < value; ms++) {
        if (ms == PATIENCE_MS)
            fail_msg("%#x is %u, not %u", at, word(machine, at), value);
        sleep_ms(1);
    }
}

static struct files files_new(void)
{
    static uint8_t number;
    struct files files = {.state_fd = memfd_create("state", MFD_CLOEXEC),
                          .memory_fd = memfd_create("memory", MFD_CLOEXEC)};
    assert_true(files.state_fd >= 0 && files.memory_fd >= 0);
    memset(files.id, ++number, sizeof files.id);
    return files;
}

static void files_free(struct files *files)
{
    close(files->state_fd);
    close(files->memory_fd);
}

static int save_to(struct machine *machine, struct files *files, bool changes, struct err *err)
{
    _cleanup_fd_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    struct board_save save = {
        .to = {files->state_fd, files->memory_fd}, .pagemap_fd = pagemap, .changes = changes};
    struct board_saved saved;
    memcpy(save.id, files->id, sizeof save.id);
    memcpy(save.parent, machine->last, sizeof save.parent);
    int r = board_save(machine->board, &save, &saved, err);
    if (r >= 0) {
        files->pages = saved.pages;
        memcpy(files->parent, machine->last, sizeof files->parent);
        memcpy(machine->last, files->id, sizeof machine->last);
    }
    return r;
}

static struct files save(struct machine *machine, bool changes)
{
    struct files files = files_new();
    struct err err = {0};
    if (save_to(machine, &files, changes, &err) < 0)
        fail_msg("%s", err.text);
    return files;
}

/* The newest first. */
static int restore_into(struct board_config *config, const struct files *const *chain,
                        unsigned count, bool verify, struct board **ret_board, struct err *err)
{
    struct board_restore restore = {.count = count, .same_host = true, .verify = verify};
    for (unsigned i = 0; i < count && i < BOARD_LAYERS_MAX; i++)
        restore.layers[i] = (struct board_layer){chain[i]->state_fd, chain[i]->memory_fd};
    config->restore = &restore;
    return board_new(config, ret_board, err);
}

static struct machine restored(unsigned cpus, const struct files *const *chain, unsigned count)
{
    struct machine machine = {.kernel_fd = guest_kernel(cpus, false)};
    struct board_config config = config_of(machine.kernel_fd, cpus, MEMORY_MIB);
    struct err err = {0};
    if (restore_into(&config, chain, count, false, &machine.board, &err) < 0)
        fail_msg("%s", err.text);
    memcpy(machine.last, chain[0]->id, sizeof machine.last);
    return machine;
}

static struct machine restored_from(unsigned cpus, const struct files *files)
{
    return restored(cpus, &files, 1);
}

/* All of it, but for the generation ID: that is a new one. */
static void check_same_memory(const struct machine *one, const struct machine *two)
{
    const struct mem *a = one->board->mem, *b = two->board->mem;
    const uint8_t *id = mem_at(a, ACPI_GENERATION, ACPI_GENERATION_SIZE, false);
    uint8_t *fresh = mem_at(b, ACPI_GENERATION, ACPI_GENERATION_SIZE, true);
    uint8_t kept[ACPI_GENERATION_SIZE];
    assert_memory_not_equal(id, fresh, ACPI_GENERATION_SIZE);
    memcpy(kept, fresh, sizeof kept);
    memcpy(fresh, id, sizeof kept);
    assert_int_equal(a->count, b->count);
    for (unsigned i = 0; i < a->count; i++) {
        assert_int_equal(a->regions[i].size, b->regions[i].size);
        assert_memory_equal(a->regions[i].host, b->regions[i].host, a->regions[i].size);
    }
    memcpy(fresh, kept, sizeof kept);
}

/* Each page holds the last count that belongs there: no write is lost, or comes too late. The guest
 * stands. */
static void check_pages(const struct machine *machine)
{
    uint32_t count = word(machine, GUEST_COUNT);
    for (uint32_t back = 1; back < GUEST_PAGE_COUNT && back < count; back++) {
        uint32_t expected = count - back;
        uint32_t found = word(machine, GUEST_PAGES + expected % GUEST_PAGE_COUNT * 4096);
        if (found != expected)
            fail_msg("page %u holds %u, not %u", expected % GUEST_PAGE_COUNT, found, expected);
    }
    uint32_t newest = word(machine, GUEST_PAGES + count % GUEST_PAGE_COUNT * 4096);
    assert_true(newest == count || newest + GUEST_PAGE_COUNT == count || count < GUEST_PAGE_COUNT);
}

/* Interrupts per guest time, over so many ticks; the guest runs before and after. Where the whole
 * host is emulated it may be slow beyond measure, but never too fast. */
static void check_pace(const struct machine *machine)
{
    enum { TICKS = 30 };
    const uint64_t late = getenv("LODGE_TEST_EMULATED") ? 1000 : 3;
    const uint32_t counters[] = {GUEST_PIT_TICKS, GUEST_APIC_TICKS};
    for (unsigned i = 0; i < 2; i++) {
        uint32_t begun = word(machine, counters[i]);
        wait_for(machine, counters[i], begun + 1);
        uint64_t begin = timers_now(machine->board->timers);
        wait_for(machine, counters[i], begun + 1 + TICKS);
        uint64_t took = timers_now(machine->board->timers) - begin;
        if (took < (TICKS - 2) * (uint64_t)GUEST_TICK_NS || took > late * TICKS * GUEST_TICK_NS)
            fail_msg("%s: %d ticks took %llu us", i ? "APIC" : "PIT", TICKS,
                     (unsigned long long)took / 1000);
    }
}

/* ---- */

static void goes_on(unsigned cpus, bool sleeps)
{
    struct machine one = boot(cpus, sleeps);
    start(&one);
    wait_for(&one, GUEST_PIT_TICKS, 10);
    wait_for(&one, GUEST_APIC_TICKS, 10);
    if (cpus > 1)
        wait_for(&one, GUEST_SECOND, 1000);
    board_pause(one.board);
    struct files files = save(&one, false);
    assert_true(files.pages > 5);
    struct machine two = restored_from(cpus, &files);
    check_same_memory(&one, &two);
    check_pages(&two);
    assert_int_equal(timers_now(two.board->timers), timers_now(one.board->timers));
    assert_int_equal(board_tsc(two.board), board_tsc(one.board));
    const uint32_t counters[] = {GUEST_COUNT, GUEST_PIT_TICKS, GUEST_APIC_TICKS, GUEST_SECOND};
    uint32_t before[4];
    for (unsigned i = 0; i < 4; i++)
        before[i] = word(&two, counters[i]);
    start(&two);
    check_pace(&two);
    for (unsigned i = 0; i < (cpus > 1 ? 4 : 3); i++)
        assert_true(word(&two, counters[i]) > before[i]);
    /* The machine that was saved is as before. */
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(word(&one, counters[i]), before[i]);
    board_resume(one.board);
    check_pace(&one);
    board_pause(one.board);
    check_pages(&one);
    board_pause(two.board);
    check_pages(&two);
    files_free(&files);
    end(&one);
    end(&two);
}

static void a_guest_goes_on_with_its_count_and_pace(void **state)
{
    goes_on(1, false);
}

static void so_does_one_with_two_processors(void **state)
{
    goes_on(2, false);
}

static void so_does_one_that_sleeps(void **state)
{
    goes_on(1, true);
}

/* Restored again and again: what was lost a little each time would be seen. */
static void many_generations(void **state)
{
    struct machine machine = boot(2, false);
    struct files before = files_new();
    start(&machine);
    wait_for(&machine, GUEST_PIT_TICKS, 3);
    for (unsigned generation = 0; generation < 10; generation++) {
        uint32_t pit = word(&machine, GUEST_PIT_TICKS), apic = word(&machine, GUEST_APIC_TICKS);
        wait_for(&machine, GUEST_PIT_TICKS, pit + 2);
        wait_for(&machine, GUEST_APIC_TICKS, apic + 2);
        board_pause(machine.board);
        struct files files = save(&machine, false);
        struct machine next = restored_from(2, &files);
        check_same_memory(&machine, &next);
        check_pages(&next);
        end(&machine);
        files_free(&before); /* no sooner: it may still have been verified */
        before = files;
        machine = next;
        start(&machine);
    }
    check_pace(&machine);
    end(&machine);
    files_free(&before);
}

/* The same machine twice is the same file but for its name. */
static void saving_changes_nothing(void **state)
{
    struct machine machine = boot(2, false);
    start(&machine);
    wait_for(&machine, GUEST_PIT_TICKS, 5);
    board_pause(machine.board);
    struct files one = files_new(), two = files_new();
    struct err err = {0};
    memcpy(two.id, one.id, sizeof two.id);
    assert_int_equal(save_to(&machine, &one, false, &err), 0);
    assert_int_equal(save_to(&machine, &two, false, &err), 0);
    off_t size = lseek(one.state_fd, 0, SEEK_END);
    assert_int_equal(lseek(two.state_fd, 0, SEEK_END), size);
    uint8_t *a = malloc((size_t)size), *b = malloc((size_t)size);
    assert_int_equal(pread(one.state_fd, a, (size_t)size, 0), size);
    assert_int_equal(pread(two.state_fd, b, (size_t)size, 0), size);
    assert_memory_equal(a, b, (size_t)size);
    free(a);
    free(b);
    files_free(&one);
    files_free(&two);
    end(&machine);
}

static void a_machine_that_never_ran_can_be_saved(void **state)
{
    struct machine one = boot(1, false);
    struct files files = save(&one, false);
    struct machine two = restored_from(1, &files);
    check_same_memory(&one, &two);
    assert_int_equal(word(&two, GUEST_COUNT), 0);
    start(&two);
    check_pace(&two);
    files_free(&files);
    end(&one);
    end(&two);
}

static void a_running_machine_is_not_saved(void **state)
{
    struct machine machine = boot(1, false);
    struct files files = files_new();
    struct err err = {0};
    start(&machine);
    wait_for(&machine, GUEST_COUNT, 1);
    assert_int_equal(save_to(&machine, &files, false, &err), -EINVAL);
    assert_non_null(strstr(err.text, "while it is paused"));
    board_pause(machine.board);
    assert_int_equal(save_to(&machine, &files, false, &err), 0);
    board_resume(machine.board);
    assert_int_equal(save_to(&machine, &files, false, &err), -EINVAL);
    files_free(&files);
    end(&machine);
}

/* ---- what is refused ---- */

static void check_refused(struct board_config *config, const struct files *const *chain,
                          unsigned count, int number, const char *why)
{
    struct board *board = NULL;
    struct err err = {0};
    assert_int_equal(restore_into(config, chain, count, false, &board, &err), number);
    if (!strstr(err.text, why))
        fail_msg("'%s' does not say '%s'", err.text, why);
}

static void another_machine_is_refused(void **state)
{
    struct machine machine = boot(2, false);
    struct files files = save(&machine, false);
    const struct files *chain[] = {&files};
    struct board_config other = config_of(machine.kernel_fd, 1, MEMORY_MIB);
    check_refused(&other, chain, 1, -EINVAL, "2 CPUs and 16 MiB of memory, this one has 1 and 16");
    other = config_of(machine.kernel_fd, 2, 32);
    check_refused(&other, chain, 1, -EINVAL, "2 CPUs and 16 MiB of memory, this one has 2 and 32");
    other = config_of(machine.kernel_fd, 2, MEMORY_MIB);
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    const struct board_console console = {.fd = ends[0]};
    other.consoles = &console;
    other.console_count = 1;
    check_refused(&other, chain, 1, -EBADMSG, "has other devices");
    close(ends[1]);
    files_free(&files);
    end(&machine);
}

static void a_damaged_state_is_refused(void **state)
{
    struct machine machine = boot(1, false);
    struct files files = save(&machine, false);
    const struct files *chain[] = {&files};
    struct board_config config = config_of(machine.kernel_fd, 1, MEMORY_MIB);
    off_t size = lseek(files.state_fd, 0, SEEK_END);
    for (off_t at = 1; at < size; at += size / 37) {
        uint8_t byte;
        assert_int_equal(pread(files.state_fd, &byte, 1, at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(files.state_fd, &byte, 1, at), 1);
        check_refused(&config, chain, 1, -EBADMSG, "the snapshot's state");
        byte ^= 0x10;
        assert_int_equal(pwrite(files.state_fd, &byte, 1, at), 1);
    }
    assert_int_equal(ftruncate(files.memory_fd, MIB(16) - 4096), 0);
    check_refused(&config, chain, 1, -EBADMSG, "the snapshot's memory is cut off");
    assert_int_equal(ftruncate(files.memory_fd, MIB(16)), 0);
    assert_int_equal(ftruncate(files.state_fd, size - 1), 0);
    check_refused(&config, chain, 1, -EBADMSG, "cut off");
    files_free(&files);
    end(&machine);
}

static struct board_event event_of(struct machine *machine)
{
    struct board_event event;
    while (!board_event_next(machine->board, &event)) {
        struct pollfd poll_fd = {.fd = board_event_fd(machine->board), .events = POLLIN};
        assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
    }
    return event;
}

/* Before it runs where that is asked for; else it stops as soon as it is found. */
static void damaged_memory_is_found(void **state)
{
    struct machine machine = boot(1, false), two = {.kernel_fd = -1};
    start(&machine);
    wait_for(&machine, GUEST_COUNT, 1000);
    board_pause(machine.board);
    struct files files = save(&machine, false);
    const struct files *chain[] = {&files};
    struct board_config config = config_of(machine.kernel_fd, 1, MEMORY_MIB);
    struct err err = {0};
    uint8_t byte;
    off_t at = GUEST_PAGES + 3 * 4096 + 100; /* nothing that it reads */
    assert_int_equal(pread(files.memory_fd, &byte, 1, at), 1);
    byte ^= 1;
    assert_int_equal(pwrite(files.memory_fd, &byte, 1, at), 1);
    assert_int_equal(restore_into(&config, chain, 1, true, &two.board, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "memory is damaged"));
    assert_int_equal(restore_into(&config, chain, 1, false, &two.board, &err), 0);
    start(&two);
    struct board_event event = event_of(&two);
    if (event.kind == BOARD_EVENT_READY)
        event = event_of(&two);
    assert_int_equal(event.kind, BOARD_EVENT_ERROR);
    assert_non_null(strstr(event.text, "memory is damaged"));
    end(&two);
    byte ^= 1;
    assert_int_equal(pwrite(files.memory_fd, &byte, 1, at), 1);
    assert_int_equal(restore_into(&config, chain, 1, true, &two.board, &err), 0);
    start(&two);
    check_pace(&two);
    end(&two);
    files_free(&files);
    end(&machine);
}

/* An engine of hardware, as far as its CPUID goes, that has not everything. */
static uint32_t lacking;

static int able_but(const struct engine_config *config, struct cpuid *ret_cpuid, struct err *err)
{
    int r = engine_soft.cpuid_able(config, ret_cpuid, err);
    for (unsigned i = 0; i < ret_cpuid->count; i++)
        if (ret_cpuid->leaves[i].leaf == 1)
            ret_cpuid->leaves[i].ecx &= ~lacking;
    return r;
}

static void what_a_guest_was_told_must_hold(void **state)
{
    struct engine_ops hardware = engine_soft;
    hardware.irqchip = ENGINE_IRQCHIP_ENGINE;
    hardware.cpuid_able = able_but;
    for (int portable = 0; portable < 2; portable++) {
        struct machine machine = {.kernel_fd = guest_kernel(1, false)};
        struct board_config config = config_of(machine.kernel_fd, 1, MEMORY_MIB);
        struct err err = {0};
        config.engine = &engine_soft;
        config.portable = portable;
        assert_int_equal(board_new(&config, &machine.board, &err), 0);
        struct files files = save(&machine, false);
        const struct board_restore restore = {.layers = {{files.state_fd, files.memory_fd}},
                                              .count = 1};
        assert_int_equal(board_restore_suits(&restore, &engine_soft, -1, &err), 0);
        lacking = 0;
        if (portable) {
            assert_int_equal(board_restore_suits(&restore, &hardware, -1, &err), 0);
            lacking = 1 << 21; /* x2apic */
            assert_int_equal(board_restore_suits(&restore, &hardware, -1, &err), -ENOTSUP);
            assert_non_null(strstr(err.text, "x2apic (CPUID 1.ecx, bits 0x200000), which engine"));
        } else {
            assert_int_equal(board_restore_suits(&restore, &hardware, -1, &err), -ENOTSUP);
            assert_non_null(strstr(err.text, "--cpu portable"));
            /* That stays so from snapshot to snapshot. */
            struct machine two = {.kernel_fd = -1};
            struct board_config plain = config_of(machine.kernel_fd, 1, MEMORY_MIB);
            const struct files *chain = &files;
            plain.engine = &engine_soft;
            plain.portable = true;
            assert_int_equal(restore_into(&plain, &chain, 1, false, &two.board, &err), 0);
            struct files again = save(&two, false);
            const struct board_restore second_hand = {.layers = {{again.state_fd, again.memory_fd}},
                                                      .count = 1};
            assert_int_equal(board_restore_suits(&second_hand, &hardware, -1, &err), -ENOTSUP);
            files_free(&again);
            end(&two);
        }
        assert_int_equal(ftruncate(files.state_fd, 100), 0);
        assert_int_equal(board_restore_suits(&restore, &engine_soft, -1, &err), -EBADMSG);
        files_free(&files);
        end(&machine);
    }
}

/* ---- changes ---- */

static void changes_stand_on_something(void **state)
{
    struct machine machine = boot(1, false);
    struct files files = files_new();
    struct err err = {0};
    assert_int_equal(save_to(&machine, &files, true, &err), -EINVAL);
    assert_non_null(strstr(err.text, "take a whole one first"));
    assert_int_equal(save_to(&machine, &files, false, &err), 0);
    struct files more = save(&machine, true);
    assert_memory_equal(more.parent, files.id, sizeof more.parent);
    assert_int_equal(more.pages, 0);
    /* A reset is the end of that. */
    start(&machine);
    assert_int_equal(board_reset(machine.board, &err), 0);
    board_pause(machine.board);
    assert_int_equal(save_to(&machine, &more, true, &err), -EINVAL);
    files_free(&files);
    files_free(&more);
    end(&machine);
}

/* Runs a little, stands, and is saved. */
static struct files step(struct machine *machine, bool changes)
{
    board_resume(machine->board);
    wait_for(machine, GUEST_COUNT, word(machine, GUEST_COUNT) + 700);
    board_pause(machine->board);
    return save(machine, changes);
}

static void a_chain_is_restored(void **state)
{
    for (unsigned cpus = 1; cpus <= 2; cpus++) {
        struct machine one = boot(cpus, false);
        start(&one);
        wait_for(&one, GUEST_PIT_TICKS, 2);
        board_pause(one.board);
        struct files a = save(&one, false);
        struct files b = step(&one, true);
        struct files c = step(&one, true);
        assert_memory_equal(b.parent, a.id, sizeof a.id);
        assert_memory_equal(c.parent, b.id, sizeof a.id);
        assert_true(b.pages > GUEST_PAGE_COUNT && b.pages < GUEST_PAGE_COUNT + 20);

        const struct files *chain[] = {&c, &b, &a};
        struct machine two = restored(cpus, chain, 3);
        check_same_memory(&one, &two);
        check_pages(&two);
        start(&two);
        check_pace(&two);
        board_pause(two.board);

        /* It stands on the chain that it came from, by what differs from the files. */
        struct files d = save(&two, true);
        assert_memory_equal(d.parent, c.id, sizeof c.id);
        struct files e = step(&two, true);
        assert_memory_equal(e.parent, d.id, sizeof d.id);
        const struct files *longer[] = {&e, &d, &c, &b, &a};
        struct machine three = restored(cpus, longer, 5);
        check_same_memory(&two, &three);
        check_pages(&three);
        start(&three);
        check_pace(&three);

        /* And one that is whole needs nothing. */
        struct files f = save(&two, false);
        struct machine four = restored_from(cpus, &f);
        check_same_memory(&two, &four);
        struct files *all[] = {&a, &b, &c, &d, &e, &f};
        for (unsigned i = 0; i < ARRAY_LEN(all); i++)
            files_free(all[i]);
        end(&one);
        end(&two);
        end(&three);
        end(&four);
    }
}

static void a_chain_with_a_wrong_link_is_refused(void **state)
{
    struct machine machine = boot(1, false);
    struct err err = {0};
    start(&machine);
    board_pause(machine.board);
    struct files a = save(&machine, false);
    struct files b = step(&machine, true);
    struct files c = step(&machine, true);
    struct files other = step(&machine, false);
    struct board_config config = config_of(machine.kernel_fd, 1, MEMORY_MIB);
    const struct files *missing[] = {&c}, *gap[] = {&c, &a}, *wrong[] = {&b, &other},
                       *longer[] = {&b, &a, &other}, *backwards[] = {&a, &b},
                       *many[BOARD_LAYERS_MAX + 1];
    check_refused(&config, missing, 1, -EINVAL, "stands on another one, which is missing");
    check_refused(&config, gap, 2, -EBADMSG, "snapshot 2 of the chain is not the one");
    check_refused(&config, wrong, 2, -EBADMSG, "is not the one that 1 stands on");
    check_refused(&config, longer, 3, -EINVAL, "snapshot 2 of the chain stands on nothing");
    check_refused(&config, backwards, 2, -EINVAL, "stands on nothing");
    for (unsigned i = 0; i < ARRAY_LEN(many); i++)
        many[i] = &a;
    check_refused(&config, many, BOARD_LAYERS_MAX + 1, -EINVAL, "1 to 16, not 17");
    check_refused(&config, many, 0, -EINVAL, "1 to 16, not 0");
    struct board *board = NULL;
    const struct files *right[] = {&c, &b, &a};
    assert_int_equal(restore_into(&config, right, 3, true, &board, &err), 0);
    board_free(board);
    files_free(&a);
    files_free(&b);
    files_free(&c);
    files_free(&other);
    end(&machine);
}

/* What a save that failed would have written is in the next one. */
static void a_save_that_fails_loses_nothing(void **state)
{
    struct machine machine = boot(1, false);
    struct err err = {0};
    start(&machine);
    wait_for(&machine, GUEST_PIT_TICKS, 2);
    board_pause(machine.board);
    struct files a = save(&machine, false), bad = files_new();
    close(bad.state_fd);
    bad.state_fd = open("/dev/full", O_RDWR | O_CLOEXEC);
    assert_true(bad.state_fd >= 0);
    board_resume(machine.board);
    wait_for(&machine, GUEST_COUNT, word(&machine, GUEST_COUNT) + 700);
    board_pause(machine.board);
    assert_int_equal(save_to(&machine, &bad, true, &err), -ENOSPC);
    struct files b = save(&machine, true);
    assert_memory_equal(b.parent, a.id, sizeof a.id);
    const struct files *chain[] = {&b, &a};
    struct machine two = restored(1, chain, 2);
    check_same_memory(&machine, &two);
    board_resume(machine.board);
    check_pace(&machine);
    files_free(&a);
    files_free(&b);
    files_free(&bad);
    end(&machine);
    end(&two);
}

/* ---- after ---- */

static void a_restored_machine_can_be_reset(void **state)
{
    struct machine one = boot(2, false);
    struct err err = {0};
    start(&one);
    wait_for(&one, GUEST_PIT_TICKS, 20);
    board_pause(one.board);
    struct files files = save(&one, false);
    struct machine two = restored_from(2, &files);
    start(&two);
    check_pace(&two);
    uint32_t before = word(&two, GUEST_PIT_TICKS);
    assert_int_equal(board_reset(two.board, &err), 0);
    assert_true(word(&two, GUEST_PIT_TICKS) < before);
    check_pace(&two);
    wait_for(&two, GUEST_SECOND, 1000);
    files_free(&files);
    end(&one);
    end(&two);
}

/* While, or before, its memory is verified. */
static void a_restored_machine_is_taken_apart_at_once(void **state)
{
    struct machine one = boot(1, false);
    struct files files = save(&one, false);
    struct err err = {0};
    for (unsigned i = 0; i < 60; i++) {
        struct machine two = restored_from(1, &files);
        if (i % 3)
            start(&two);
        if (i % 3 == 2)
            assert_int_equal(board_reset(two.board, &err), 0);
        end(&two);
    }
    files_free(&files);
    end(&one);
}

static void a_restored_machine_is_paused_and_resumed(void **state)
{
    struct machine one = boot(1, false);
    struct files files = save(&one, false);
    struct machine two = restored_from(1, &files);
    start(&two);
    wait_for(&two, GUEST_PIT_TICKS, 2);
    for (unsigned i = 0; i < 10; i++) {
        board_pause(two.board);
        uint32_t count = word(&two, GUEST_COUNT);
        uint64_t now = timers_now(two.board->timers), tsc = board_tsc(two.board);
        sleep_ms(2);
        assert_int_equal(word(&two, GUEST_COUNT), count);
        assert_int_equal(timers_now(two.board->timers), now);
        assert_int_equal(board_tsc(two.board), tsc);
        board_resume(two.board);
        wait_for(&two, GUEST_COUNT, count + 1);
    }
    check_pace(&two);
    files_free(&files);
    end(&one);
    end(&two);
}

/* A byte comes in at COM1 while the machine is being saved, before or after a vCPU was looked at:
 * the host's streams do not stand still. */
static struct intruder {
    struct machine *machine;
    bool before, after;
} intruder;

static void intrude(bool now)
{
    uint8_t byte = 'x';
    if (now)
        assert_int_equal(serial_receive(intruder.machine->board->com1, &byte, 1), 1);
}

static int get_state(struct engine_vcpu *vcpu, struct cpu_state *ret_state, struct err *err)
{
    intrude(intruder.before);
    int r = first->vcpu_get_state(vcpu, ret_state, err);
    intrude(intruder.after);
    return r;
}

static void a_byte_that_comes_meanwhile_loses_no_interrupt(void **state)
{
    struct engine_ops engine = *first;
    engine.vcpu_get_state = get_state;
    for (unsigned when = 0; when < 2; when++) {
        struct machine one = boot_under(&engine, 1, false);
        intruder = (struct intruder){&one, false, false};
        start(&one);
        wait_for(&one, GUEST_PIT_TICKS, 2);
        board_pause(one.board);
        intruder.before = when == 0;
        intruder.after = when == 1;
        struct files files = save(&one, false);
        intruder.before = intruder.after = false;
        struct machine two = restored_from(1, &files);
        uint32_t before = word(&two, GUEST_BYTES);
        start(&two);
        for (uint32_t i = 1; i < 5; i++) {
            uint8_t byte = 'y';
            for (int ms = 0; serial_receive(two.board->com1, &byte, 1) == 0; ms++) {
                assert_true(ms < PATIENCE_MS); /* it is deaf: the line is up, and nobody comes */
                sleep_ms(1);
            }
            wait_for(&two, GUEST_BYTES, before + i);
        }
        board_resume(one.board);
        wait_for(&one, GUEST_BYTES, before + 1);
        files_free(&files);
        end(&one);
        end(&two);
    }
}

static bool kvm_works(void)
{
    struct machine machine = {.kernel_fd = guest_kernel(1, false)};
    struct board_config config = config_of(machine.kernel_fd, 1, MEMORY_MIB);
    config.engine = &engine_kvm;
    bool works = board_new(&config, &machine.board, NULL) >= 0;
    end(&machine);
    return works;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_goes_on_with_its_count_and_pace),
        cmocka_unit_test(so_does_one_with_two_processors),
        cmocka_unit_test(so_does_one_that_sleeps),
        cmocka_unit_test(many_generations),
        cmocka_unit_test(saving_changes_nothing),
        cmocka_unit_test(a_machine_that_never_ran_can_be_saved),
        cmocka_unit_test(a_running_machine_is_not_saved),
        cmocka_unit_test(another_machine_is_refused),
        cmocka_unit_test(a_damaged_state_is_refused),
        cmocka_unit_test(damaged_memory_is_found),
        cmocka_unit_test(what_a_guest_was_told_must_hold),
        cmocka_unit_test(changes_stand_on_something),
        cmocka_unit_test(a_chain_is_restored),
        cmocka_unit_test(a_chain_with_a_wrong_link_is_refused),
        cmocka_unit_test(a_save_that_fails_loses_nothing),
        cmocka_unit_test(a_restored_machine_can_be_reset),
        cmocka_unit_test(a_restored_machine_is_taken_apart_at_once),
        cmocka_unit_test(a_restored_machine_is_paused_and_resumed),
        cmocka_unit_test(a_byte_that_comes_meanwhile_loses_no_interrupt),
    };
    /* What may differ from one engine to the other. */
    const struct CMUnitTest across[] = {
        cmocka_unit_test(a_guest_goes_on_with_its_count_and_pace),
        cmocka_unit_test(so_does_one_with_two_processors),
        cmocka_unit_test(so_does_one_that_sleeps),
        cmocka_unit_test(a_machine_that_never_ran_can_be_saved),
        cmocka_unit_test(a_chain_is_restored),
        cmocka_unit_test(a_restored_machine_can_be_reset),
        cmocka_unit_test(a_byte_that_comes_meanwhile_loses_no_interrupt),
    };
    int failed = 0;
    const char *only = getenv("LODGE_TEST_ENGINE");
    if (!only || strcmp(only, "kvm") != 0)
        failed = cmocka_run_group_tests_name("board snapshot", tests, NULL, NULL);
    if (!kvm_works())
        return failed;
    first = second = &engine_kvm;
    failed += cmocka_run_group_tests_name("board snapshot under KVM", tests, NULL, NULL);
    second = &engine_soft;
    failed += cmocka_run_group_tests_name("from KVM to software", across, NULL, NULL);
    first = &engine_soft;
    second = &engine_kvm;
    return failed + cmocka_run_group_tests_name("from software to KVM", across, NULL, NULL);
}
