/*
 * The machine's devices. One row is one device: made in this order, reset in this order, freed
 * backwards. A row's make() leaves what it made on the board's list, so that whatever happens
 * later frees it.
 */
#include "board/board_firmware.h"
#include "board/board_private.h"
#include "chip/debug.h"
#include "chip/i8042.h"
#include "chip/pit.h"
#include "chip/port92.h"
#include "chip/rtc.h"
#include "chip/watchdog.h"
#include "virtio/blk.h"
#include "virtio/fs.h"
#include "virtio/net.h"
#include "virtio/pci.h"
#include "virtio/rng.h"

#include <assert.h>
#include <errno.h>

int board_device_add(struct board *board, const struct device_ops *ops, void *device,
                     struct err *err)
{
    if (!device)
        return err_set(err, -ENOMEM, "no memory");
    assert(board->device_count < BOARD_DEVICES_MAX);
    board->devices[board->device_count++] =
        (struct board_device){.name = ops->name, .ops = ops, .device = device};
    return 0;
}

static int claim(struct board *board, uint16_t port, unsigned ports, const struct bus_ops *ops,
                 void *device, struct err *err)
{
    return bus_claim(board->bus, BUS_PORT, port, ports, ops, device, err);
}

static void reset_asked(void *opaque)
{
    board_tell_final(opaque, BOARD_EVENT_RESET, 0, "");
}

static void power_off_asked(void *opaque)
{
    board_tell_final(opaque, BOARD_EVENT_POWER_OFF, 0, "");
}

static void exit_asked(void *opaque, uint32_t value)
{
    board_tell_final(opaque, BOARD_EVENT_DEBUG_EXIT, value, "");
}

static int make_apic(struct board *board, const struct board_config *config, struct err *err)
{
    board->apic = board_apic_new(board);
    return board_device_add(board, &apic_device, board->apic, err);
}

static int make_ioapic(struct board *board, const struct board_config *config, struct err *err)
{
    board->ioapic =
        ioapic_new(&(struct ioapic_config){.deliver = apic_message, .opaque = board->apic});
    int r = board_device_add(board, &ioapic_device, board->ioapic, err);
    if (r < 0)
        return r;
    return bus_claim(board->bus, BUS_MMIO, IOAPIC_ADDRESS, IOAPIC_SIZE, &ioapic_ops, board->ioapic,
                     err);
}

static int make_pic(struct board *board, const struct board_config *config, struct err *err)
{
    board->pic = pic_new(&(struct pic_config){.output = {apic_lint0, board->apic, 0}});
    int r = board_device_add(board, &pic_device, board->pic, err);
    if (r >= 0)
        r = claim(board, PIC_MASTER_PORT, 2, &pic_master_ops, board->pic, err);
    if (r >= 0)
        r = claim(board, PIC_SLAVE_PORT, 2, &pic_slave_ops, board->pic, err);
    if (r >= 0)
        r = claim(board, PIC_ELCR_PORT, 2, &pic_elcr_ops, board->pic, err);
    return r;
}

static int make_pit(struct board *board, const struct board_config *config, struct err *err)
{
    struct pit *pit = pit_new(
        &(struct pit_config){.timers = board->timers, .irq = board_line(board, MAP_IRQ_TIMER)});
    int r = board_device_add(board, &pit_device, pit, err);
    if (r >= 0)
        r = claim(board, PIT_PORT, PIT_PORTS, &pit_ops, pit, err);
    if (r >= 0)
        r = claim(board, PIT_SPEAKER_PORT, 1, &pit_speaker_ops, pit, err);
    return r;
}

static int make_rtc(struct board *board, const struct board_config *config, struct err *err)
{
    bool firmware = board->has_firmware;
    struct rtc *rtc =
        rtc_new(&(struct rtc_config){.timers = board->timers,
                                     .irq = board_line(board, MAP_IRQ_RTC),
                                     .low_memory = firmware ? map_low_memory(board->mem) : 0,
                                     .high_memory = firmware ? map_high_memory(board->mem) : 0,
                                     .realtime = board->lockstep ? lockstep_realtime : NULL,
                                     .realtime_opaque = board->lockstep});
    int r = board_device_add(board, &rtc_device, rtc, err);
    return r < 0 ? r : claim(board, RTC_PORT, RTC_PORTS, &rtc_ops, rtc, err);
}

/* Firmware waits for its keyboard for a quarter of a minute; where there is no controller it does
 * not. */
static int make_i8042(struct board *board, const struct board_config *config, struct err *err)
{
    if (board->has_firmware)
        return 0;
    struct i8042 *i8042 =
        i8042_new(&(struct i8042_config){.keyboard_irq = board_line(board, MAP_IRQ_KEYBOARD),
                                         .reset = reset_asked,
                                         .opaque = board});
    int r = board_device_add(board, &i8042_device, i8042, err);
    if (r >= 0)
        r = claim(board, I8042_DATA_PORT, 1, &i8042_data_ops, i8042, err);
    if (r >= 0)
        r = claim(board, I8042_COMMAND_PORT, 1, &i8042_command_ops, i8042, err);
    return r;
}

static int make_port92(struct board *board, const struct board_config *config, struct err *err)
{
    struct port92 *port92 =
        port92_new(&(struct port92_config){.reset = reset_asked, .opaque = board});
    int r = board_device_add(board, &port92_device, port92, err);
    return r < 0 ? r : claim(board, PORT92_PORT, 1, &port92_ops, port92, err);
}

static int make_serial(struct board *board, const struct board_config *config, struct err *err)
{
    int r = board_serial_new(config->serial_in_fd, config->serial_out_fd, &board->serial, err);
    if (r < 0)
        return r;
    board->com1 = serial_new(&(struct serial_config){.timers = board->timers,
                                                     .irq = board_line(board, MAP_IRQ_COM1),
                                                     .output = board_serial_output,
                                                     .room = board_serial_room,
                                                     .opaque = board->serial});
    r = board_device_add(board, &serial_device, board->com1, err);
    if (r >= 0)
        r = claim(board, MAP_COM1_PORT, SERIAL_PORTS, &serial_ops, board->com1, err);
    return r;
}

static int make_power(struct board *board, const struct board_config *config, struct err *err)
{
    board->power = power_new(&(struct power_config){.timers = board->timers,
                                                    .sci = board_line(board, MAP_IRQ_SCI),
                                                    .s5_type = board_s5_type(board),
                                                    .power_off = power_off_asked,
                                                    .reset = reset_asked,
                                                    .opaque = board});
    int r = board_device_add(board, &power_device, board->power, err);
    return r < 0 ? r : claim(board, MAP_POWER_PORT, POWER_PORTS, &power_ops, board->power, err);
}

/* What is written to the debug console comes out where COM1 does: bare-metal tests write there, and
 * systems that use both do not. */
static void console_written(void *opaque, const uint8_t *bytes, size_t count)
{
    struct board *board = opaque;
    board_serial_output(board->serial, bytes, count);
}

static int make_debug(struct board *board, const struct board_config *config, struct err *err)
{
    struct debug *debug = debug_new(&(struct debug_config){
        .exit = exit_asked,
        .console = config->serial_out_fd >= 0 ? console_written : NULL,
        .opaque = board,
    });
    int r = board_device_add(board, &debug_device, debug, err);
    if (r >= 0)
        r = claim(board, DEBUG_EXIT_PORT, 4, &debug_exit_ops, debug, err);
    if (r >= 0)
        r = claim(board, DEBUG_POST_PORT, 1, &debug_post_ops, debug, err);
    if (r >= 0)
        r = claim(board, DEBUG_CONSOLE_PORT, 1, &debug_console_ops, debug, err);
    return r;
}

/* The pvpanic port as Linux's driver knows it: reads say which events are understood. */
enum { PANIC_PANICKED = 1 << 0, PANIC_CRASH_LOADED = 1 << 1 };

static uint64_t panic_read(void *opaque, uint64_t offset, unsigned size)
{
    return PANIC_PANICKED | PANIC_CRASH_LOADED;
}

static void panic_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    if (value & PANIC_PANICKED)
        board_tell_plain(opaque, BOARD_EVENT_PANICKED, true);
    if (value & PANIC_CRASH_LOADED)
        board_tell_plain(opaque, BOARD_EVENT_CRASH_LOADED, true);
}

static int make_panic(struct board *board, const struct board_config *config, struct err *err)
{
    static const struct bus_ops ops = {.name = "panic", .read = panic_read, .write = panic_write};
    return claim(board, MAP_PANIC_PORT, 1, &ops, board, err);
}

static void watchdog_expired(void *opaque)
{
    struct board *board = opaque;
    board_tell_plain(board, BOARD_EVENT_WATCHDOG, false);
    if (board->watchdog == BOARD_WATCHDOG_RESET)
        board_tell_final(board, BOARD_EVENT_RESET, 0, "");
    else if (board->watchdog == BOARD_WATCHDOG_POWER_OFF)
        board_tell_final(board, BOARD_EVENT_POWER_OFF, 0, "");
}

static int make_watchdog(struct board *board, const struct board_config *config, struct err *err)
{
    if (config->watchdog == BOARD_WATCHDOG_OFF)
        return 0;
    struct watchdog *watchdog = watchdog_new(&(struct watchdog_config){
        .timers = board->timers, .expired = watchdog_expired, .opaque = board});
    int r = board_device_add(board, &watchdog_device, watchdog, err);
    return r < 0 ? r
                 : claim(board, MAP_WATCHDOG_PORT, WATCHDOG_PORTS, &watchdog_ops, watchdog, err);
}

static void reset_pci(void *pci)
{
    pci_host_reset(pci);
}

static void pci_state(void *pci, struct record *record)
{
    pci_host_state(pci, record);
}

static void free_pci(void *pci)
{
    pci_host_free(pci);
}

static int make_pci(struct board *board, const struct board_config *config, struct err *err)
{
    static const struct device_ops ops = {.name = "pci",
                                          .reset = reset_pci,
                                          .free = free_pci,
                                          .state = pci_state,
                                          .state_version = 1};
    bool firmware = board->has_firmware;
    struct pci_host_config host = {.bus = board->bus,
                                   .ecam_base = firmware ? 0 : MAP_ECAM,
                                   .ecam_size = firmware ? 0 : MAP_ECAM_SIZE,
                                   .q35 = firmware,
                                   .msi = board_msi(board),
                                   .reset_asked = reset_asked,
                                   .reset_opaque = board};
    for (unsigned i = 0; i < PCI_LINES; i++) {
        host.lines[i] = board_line(board, MAP_GSI_PCI + i);
        host.line_numbers[i] = (uint8_t)(MAP_GSI_PCI + i);
    }
    int r = pci_host_new(&host, &board->pci, err);
    return r < 0 ? r : board_device_add(board, &ops, board->pci, err);
}

/* A virtio device on the board. Where the engine offers it, a guest's notification becomes a write
 * to the device's eventfd without stopping the vCPU; where it does not, or refuses, the access
 * comes through the bus as any other. */
struct board_virtio {
    struct board *board;
    struct virtio_pci *transport;
    struct virtio_device *device;
    uint64_t base; /* where the notifications are bound, 0 = nowhere */
};

static void notify_bind(struct board_virtio *virtio, bool assign)
{
    for (unsigned i = 0; i < virtio->device->queue_count; i++) {
        int fd = virtio->device->ops->notify_fd(virtio->device, i);
        if (fd >= 0)
            virtio->board->engine->io_fd(virtio->board->vm, fd,
                                         virtio->base + i * VIRTIO_PCI_NOTIFY_STRIDE,
                                         sizeof(uint16_t), assign, NULL);
    }
}

static void notify_moved(void *opaque, uint64_t base)
{
    struct board_virtio *virtio = opaque;
    if (virtio->base)
        notify_bind(virtio, false);
    virtio->base = base;
    if (virtio->base)
        notify_bind(virtio, true);
}

static void free_virtio(void *opaque)
{
    struct board_virtio *virtio = opaque;
    virtio_pci_free(virtio->transport);
    free(virtio);
}

static void state_virtio(void *opaque, struct record *record)
{
    struct board_virtio *virtio = opaque;
    virtio_pci_state(virtio->transport, record);
}

/* The transport takes the device over, and it is freed here where there is no transport. The host
 * bridge resets it. */
static int add_virtio(struct board *board, struct virtio_device *device, struct err *err)
{
    static const struct device_ops ops = {
        .name = "virtio", .free = free_virtio, .state = state_virtio, .state_version = 1};
    struct board_virtio *virtio = calloc(1, sizeof *virtio);
    int r = virtio ? virtio_pci_new(board->pci, PCI_SLOT_ANY, device, &virtio->transport, err)
                   : err_set(err, -ENOMEM, "no memory");
    if (r < 0) {
        device->ops->free(device);
        free(virtio);
        return r;
    }
    virtio->board = board;
    virtio->device = device;
    r = board_device_add(board, &ops, virtio, err);
    board->devices[board->device_count - 1].name = device->ops->name;
    board->virtio[board->virtio_count++] = device;
    if (r >= 0 && board->engine->io_fd && device->ops->notify_fd)
        virtio_pci_observe_notify(virtio->transport, notify_moved, virtio);
    return r;
}

static int make_rng(struct board *board, const struct board_config *config, struct err *err)
{
    struct virtio_device *rng;
    if (board->lockstep) /* nobody can repeat it */
        return 0;
    int r = virtio_rng_new(board->mem, &rng, err);
    return r < 0 ? r : add_virtio(board, rng, err);
}

/* Port 0 is the hvc console, there or not; the named ports follow in the definition's order. */
static int make_console(struct board *board, const struct board_config *config, struct err *err)
{
    if (config->console_count == 0)
        return 0;
    struct virtio_console_port ports[BOARD_CONSOLES_MAX + 1] = {{.fd = -1}};
    unsigned count = 1;
    for (unsigned i = 0; i < config->console_count; i++) {
        const struct board_console *console = &config->consoles[i];
        struct virtio_console_port *port = console->name ? &ports[count++] : &ports[0];
        if (!console->name && port->fd >= 0)
            return err_set(err, -EINVAL, "more than one console without a name");
        *port = (struct virtio_console_port){.name = console->name, .fd = console->fd};
    }
    int r = virtio_console_new(board->mem,
                               &(struct virtio_console_config){.ports = ports,
                                                               .port_count = count,
                                                               .guest_opened = board_tell_console,
                                                               .opaque = board},
                               &board->console, err);
    if (r < 0)
        return r;
    r = add_virtio(board, virtio_console_device(board->console), err);
    if (r < 0)
        board->console = NULL;
    return r;
}

unsigned board_disk_queues(unsigned cpus)
{
    _Static_assert((int)BOARD_DISK_QUEUES_MAX <= (int)BLK_QUEUES_MAX,
                   "virtio-blk has that many queues");
    return min(cpus, (unsigned)BOARD_DISK_QUEUES_MAX);
}

static int make_disk(struct board *board, const struct board_disk *disk, struct err *err)
{
    struct virtio_blk *blk;
    int r =
        virtio_blk_new(board->mem,
                       &(struct virtio_blk_config){.disk = disk->disk,
                                                   .serial = disk->serial,
                                                   .queues = board_disk_queues(board->cpus),
                                                   .rings = disk->rings,
                                                   .iops = disk->iops,
                                                   .bps = disk->bps,
                                                   .iops_burst = disk->iops_burst,
                                                   .bps_burst = disk->bps_burst,
                                                   .on_error = disk->on_error,
                                                   .opaque = disk->opaque,
                                                   .on_full = disk->waits ? board_tell_full : NULL,
                                                   .full_opaque = board},
                       &blk, err);
    if (r >= 0)
        r = add_virtio(board, virtio_blk_device(blk), err);
    if (r < 0)
        return r;
    const struct board_virtio *virtio = board->devices[board->device_count - 1].device;
    board->disk_slots[board->disk_count] = pci_device_slot(virtio_pci_device(virtio->transport));
    board->disks[board->disk_count++] = blk;
    return 0;
}

/* In the definition's order, so that the first is the guest's vda. */
static int make_disks(struct board *board, const struct board_config *config, struct err *err)
{
    if (config->disk_count > BOARD_DISKS_MAX)
        return err_set(err, -EINVAL, "%u: a machine has at most %d", config->disk_count,
                       BOARD_DISKS_MAX);
    if (config->disk_count && board->lockstep)
        return err_set(err, -EINVAL, "when they answer cannot be repeated in lockstep");
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < config->disk_count; i++)
        r = make_disk(board, &config->disks[i], err);
    return r;
}

static int make_vsock(struct board *board, const struct board_config *config, struct err *err)
{
    if (config->vsock_cid == 0)
        return 0;
    if (board->lockstep)
        return err_set(err, -EINVAL, "when its peers speak cannot be repeated in lockstep");
    int r = board_vsock_new(&board->vsock, board->mem, config->vsock_cid, config->vsock_fd, err);
    if (r < 0)
        return r;
    r = add_virtio(board, virtio_vsock_device(board->vsock.device), err);
    if (r < 0)
        board->vsock.device = NULL;
    return r;
}

void board_retry_disks(struct board *board)
{
    for (unsigned i = 0; i < board->disk_count; i++)
        virtio_blk_retry(board->disks[i]);
}

void board_release_disks(struct board *board)
{
    if (board->flash)
        flash_flush(board->flash);
    for (unsigned i = 0; i < board->disk_count; i++)
        virtio_blk_stop(board->disks[i]);
}

static int make_balloon(struct board *board, const struct board_config *config, struct err *err)
{
    if (!config->balloon || board->lockstep) /* reports of free memory come when they come */
        return 0;
    const struct virtio_balloon_config balloon = {.heard = board_tell_balloon, .opaque = board};
    int r = virtio_balloon_new(board->mem, &balloon, &board->balloon, err);
    if (r < 0)
        return r;
    r = add_virtio(board, virtio_balloon_device(board->balloon), err);
    if (r < 0)
        board->balloon = NULL;
    return r;
}

static int make_nets(struct board *board, const struct board_config *config, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < config->nic_count; i++) {
        struct virtio_net *net;
        r = board_net_new(board->mem, &config->nics[i], &net, err);
        if (r >= 0)
            r = add_virtio(board, virtio_net_device(net), err);
        if (r >= 0)
            board->nics[board->nic_count++] = net;
    }
    return r;
}

static int make_share(struct board *board, const struct board_share *share, struct err *err)
{
    struct virtio_device *fs;
    int r = virtio_fs_new(board->mem,
                          &(struct virtio_fs_config){.tag = share->tag, .fd = share->fd}, &fs, err);
    return r < 0 ? r : add_virtio(board, fs, err);
}

static int make_shares(struct board *board, const struct board_config *config, struct err *err)
{
    if (config->share_count && board->lockstep)
        return err_set(err, -EINVAL, "when they answer cannot be repeated in lockstep");
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < config->share_count; i++)
        r = make_share(board, &config->shares[i], err);
    return r;
}

static int make_firmware(struct board *board, const struct board_config *config, struct err *err)
{
    return config->firmware ? board_firmware_make(board, config->firmware, err) : 0;
}

static const struct row {
    const char *name;
    bool irqchip; /* part of the interrupt controller: only where the engine has none */
    int (*make)(struct board *board, const struct board_config *config, struct err *err);
} rows[] = {
    {"local APIC", true, make_apic},
    {"I/O APIC", true, make_ioapic},
    {"PIC", true, make_pic},
    {"PIT", true, make_pit},
    {"RTC", false, make_rtc},
    {"i8042", false, make_i8042},
    {"port 92", false, make_port92},
    {"serial", false, make_serial},
    {"power", false, make_power},
    {"debug ports", false, make_debug},
    {"panic port", false, make_panic},
    {"PCI", false, make_pci},
    {"virtio-rng", false, make_rng},
    {"virtio-console", false, make_console},
    {"disks", false, make_disks},
    {"shared folders", false, make_shares},
    {"virtio-net", false, make_nets},
    {"virtio-vsock", false, make_vsock},
    {"balloon", false, make_balloon},
    {"watchdog", false, make_watchdog},
    {"firmware", false, make_firmware},
};

int board_devices_make(struct board *board, const struct board_config *config, bool irqchip,
                       struct err *err)
{
    if (irqchip && board->engine->irqchip != ENGINE_IRQCHIP_BOARD)
        return 0;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        if (rows[i].irqchip != irqchip)
            continue;
        int r = rows[i].make(board, config, err);
        if (r < 0)
            return err_prefix(err, r, "cannot make the machine's %s", rows[i].name);
    }
    return 0;
}

int board_devices_begin(struct board *board, struct err *err)
{
    int r = timers_begin(board->timers);
    if (r < 0)
        return err_errno(err, -r, "cannot start the timers' thread");
    r = board_serial_start(board->serial, board->com1, err);
    for (unsigned i = 0; r >= 0 && i < board->virtio_count; i++)
        r = virtio_begin(board->virtio[i], err);
    for (unsigned i = 0; r >= 0 && i < board->virtio_count; i++)
        virtio_release(board->virtio[i]);
    return r;
}

int board_pci_assign(struct board *board, struct err *err)
{
    const struct pci_windows windows = {
        .mmio32 = {MAP_WINDOW32, MAP_WINDOW32_SIZE},
        .mmio64 = {map_window64(board->mem), MAP_WINDOW64_SIZE},
        .io = {MAP_PCI_IO_WINDOW, MAP_PCI_IO_WINDOW_SIZE},
    };
    return pci_assign_bars(board->pci, &windows, err);
}

void board_devices_reset(struct board *board)
{
    for (unsigned i = 0; i < board->device_count; i++)
        if (board->devices[i].ops->reset)
            board->devices[i].ops->reset(board->devices[i].device);
}

void board_devices_free(struct board *board)
{
    while (board->device_count > 0) {
        struct board_device *device = &board->devices[--board->device_count];
        device->ops->free(device->device);
    }
    /* Last: a UART gives away what it still holds when it is freed. */
    board_serial_free(take_ptr(board->serial));
}
