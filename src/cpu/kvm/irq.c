/*
 * Interrupts of KVM's in-kernel controllers.
 *
 * One routing table serves lines and messages; KVM replaces it as a whole. GSI 0..23 are the pins
 * of the I/O APIC, the first sixteen of them also the PICs' inputs, wired as on a PC: ISA interrupt
 * 0 (the PIT, which KVM raises as GSI 0) arrives at pin 2 of the I/O APIC, and pin 0 is free. The
 * machine's MADT says the same with an interrupt source override. GSI 24 + n is message slot n.
 */
#include "cpu/kvm/kvm.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <stdlib.h>

static void route_pin(struct kvm_irq_routing *table, unsigned gsi, unsigned chip, unsigned pin)
{
    table->entries[table->nr++] = (struct kvm_irq_routing_entry){
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_IRQCHIP,
        .u.irqchip = {.irqchip = chip, .pin = pin},
    };
}

static void route_lines(struct kvm_irq_routing *table)
{
    for (unsigned gsi = 0; gsi < GSI_LINES; gsi++) {
        if (gsi == GSI_CASCADE)
            continue;
        if (gsi < PIC_PINS)
            route_pin(table, gsi, KVM_IRQCHIP_PIC_MASTER, gsi);
        else if (gsi < 2 * PIC_PINS)
            route_pin(table, gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS);
        route_pin(table, gsi, KVM_IRQCHIP_IOAPIC, gsi == GSI_TIMER ? TIMER_PIN : gsi);
    }
}

static void route_messages(struct kvm_irq_routing *table, const struct irq_route *routes)
{
    for (unsigned slot = 0; slot < IRQ_FD_SLOTS; slot++)
        if (routes[slot].fd >= 0)
            table->entries[table->nr++] = (struct kvm_irq_routing_entry){
                .gsi = GSI_LINES + slot,
                .type = KVM_IRQ_ROUTING_MSI,
                .u.msi = {.address_lo = (uint32_t)routes[slot].address,
                          .address_hi = (uint32_t)(routes[slot].address >> 32),
                          .data = routes[slot].data},
            };
}

static int set_routes(struct engine_vm *vm, struct err *err)
{
    _cleanup_free_ struct kvm_irq_routing *table =
        calloc(1, sizeof *table + (2 * GSI_LINES + IRQ_FD_SLOTS) * sizeof table->entries[0]);
    if (!table)
        return err_set(err, -ENOMEM, "no memory for interrupt routes");
    route_lines(table);
    route_messages(table, vm->routes);
    int r = kvm_ioctl(vm->fd, KVM_SET_GSI_ROUTING, table);
    return r < 0 ? err_errno(err, -r, "KVM_SET_GSI_ROUTING") : 0;
}

int kvm_irqchip_new(struct engine_vm *vm, struct err *err)
{
    int r = kvm_ioctl_number(vm->fd, KVM_CREATE_IRQCHIP, 0);
    if (r < 0)
        return err_errno(err, -r, "KVM_CREATE_IRQCHIP");
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    r = kvm_ioctl(vm->fd, KVM_CREATE_PIT2, &pit);
    if (r < 0)
        return err_errno(err, -r, "KVM_CREATE_PIT2");
    /* Ticks that a guest was too slow for are lost, as with src/chip's PIT, and do not all come at
     * once later. Optional: a guest that counts ticks would only count a few more. */
    struct kvm_reinject_control lose = {.pit_reinject = 0};
    kvm_ioctl(vm->fd, KVM_REINJECT_CONTROL, &lose);
    return set_routes(vm, err);
}

int kvm_irq_line(struct engine_vm *vm, unsigned gsi, bool level)
{
    if (!vm->has_irqchip)
        return -ENOTSUP;
    if (gsi >= GSI_LINES)
        return -EINVAL;
    /* A line that does not change is no edge, and nothing that KVM must hear of. */
    uint32_t bit = UINT32_C(1) << gsi;
    uint32_t before = level ? atomic_fetch_or(&vm->lines, bit) : atomic_fetch_and(&vm->lines, ~bit);
    if (!!(before & bit) == level)
        return 0;
    struct kvm_irq_level line = {.irq = gsi, .level = level};
    pthread_rwlock_rdlock(&vm->messages);
    int r = kvm_ioctl(vm->fd, KVM_IRQ_LINE, &line);
    pthread_rwlock_unlock(&vm->messages);
    return r;
}

int kvm_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
    if (!vm->has_irqchip)
        return -ENOTSUP;
    struct kvm_msi message = {
        .address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
    pthread_rwlock_rdlock(&vm->messages);
    int r = kvm_ioctl(vm->fd, KVM_SIGNAL_MSI, &message);
    pthread_rwlock_unlock(&vm->messages);
    return r < 0 ? r : 0; /* 0 and 1 tell a masked from a delivered message: both are fine */
}

static int bind(struct engine_vm *vm, int fd, unsigned slot, bool assign)
{
    struct kvm_irqfd irqfd = {
        .fd = (uint32_t)fd, .gsi = GSI_LINES + slot, .flags = assign ? 0 : KVM_IRQFD_FLAG_DEASSIGN};
    return kvm_ioctl(vm->fd, KVM_IRQFD, &irqfd);
}

static int assign_slot(struct engine_vm *vm, int fd, unsigned slot, uint64_t address, uint32_t data,
                       struct err *err)
{
    struct irq_route *route = &vm->routes[slot];
    struct irq_route before = *route;
    *route = (struct irq_route){fd, address, data};
    int r = set_routes(vm, err);
    if (r < 0 || before.fd == fd) {
        if (r < 0)
            *route = before;
        return r;
    }
    if (before.fd >= 0)
        bind(vm, before.fd, slot, false);
    r = bind(vm, fd, slot, true);
    if (r < 0) {
        route->fd = -1;
        set_routes(vm, NULL);
        return err_errno(err, -r, "KVM_IRQFD for message slot %u", slot);
    }
    return 0;
}

static int release_slot(struct engine_vm *vm, unsigned slot, struct err *err)
{
    struct irq_route *route = &vm->routes[slot];
    if (route->fd < 0)
        return 0;
    int r = bind(vm, route->fd, slot, false);
    if (r < 0)
        return err_errno(err, -r, "KVM_IRQFD for message slot %u", slot);
    route->fd = -1;
    return set_routes(vm, err);
}

int kvm_irq_fd(struct engine_vm *vm, int fd, unsigned slot, uint64_t address, uint32_t data,
               bool assign, struct err *err)
{
    if (!vm->has_irqchip)
        return err_set(err, -ENOTSUP, "this machine has no interrupt controller in KVM");
    if (slot >= IRQ_FD_SLOTS || (assign && fd < 0))
        return err_set(err, -EINVAL, "message slot %u of %d", slot, IRQ_FD_SLOTS);
    pthread_mutex_lock(&vm->lock);
    int r = assign ? assign_slot(vm, fd, slot, address, data, err) : release_slot(vm, slot, err);
    pthread_mutex_unlock(&vm->lock);
    return r < 0 ? r : 0;
}

int kvm_io_fd(struct engine_vm *vm, int fd, uint64_t gpa, unsigned size, bool assign,
              struct err *err)
{
    if (size != 1 && size != 2 && size != 4 && size != 8)
        return err_set(err, -EINVAL, "notification of %u bytes", size);
    struct kvm_ioeventfd event = {
        .addr = gpa, .len = size, .fd = fd, .flags = assign ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN};
    int r = kvm_ioctl(vm->fd, KVM_IOEVENTFD, &event);
    return r < 0 ? err_errno(err, -r, "KVM_IOEVENTFD") : 0;
}
