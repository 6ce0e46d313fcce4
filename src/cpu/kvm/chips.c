#include "cpu/kvm/chips.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "cpu/kvm/kvm.h"

#include <errno.h>
#include <time.h>

/* Which inputs of a PC's PICs may be level-triggered. */
static const uint8_t elcr_masks[2] = {0xf8, 0xde};

enum { ICW1_IC4 = 1 << 0, ICW1 = 1 << 4 };

/* ---- PIC ---- */

/* KVM counts what is still to come from ICW2 on, we name it. */
static uint8_t icw_of(uint8_t init_state)
{
    return init_state >= 1 && init_state <= 3 ? (uint8_t)(init_state + 1) : 0;
}

static void pic_half_to(const struct kvm_pic_state *kvm, uint8_t lines, struct pic_half *half)
{
    *half = (struct pic_half){
        .lines = lines,
        .irr = kvm->irr & (uint8_t)~kvm->elcr,
        .imr = kvm->imr,
        .isr = kvm->isr,
        .elcr = kvm->elcr,
        .first = kvm->priority_add & 7,
        .vector = kvm->irq_base,
        .icw = icw_of(kvm->init_state),
        .icw1 = kvm->init4 ? ICW1 | ICW1_IC4 : ICW1,
        .auto_eoi = kvm->auto_eoi,
        .rotate_auto = kvm->rotate_on_auto_eoi,
        .nested = kvm->special_fully_nested_mode,
        .mask_mode = kvm->special_mask,
        .read_isr = kvm->read_reg_select,
        .poll = kvm->poll,
    };
}

void kvm_pic_to(const struct kvm_pic_state kvm[2], uint32_t lines, struct pic_state *ret_state)
{
    pic_half_to(&kvm[0], (uint8_t)(lines & ~(1u << GSI_CASCADE)), &ret_state->half[0]);
    pic_half_to(&kvm[1], (uint8_t)(lines >> PIC_PINS), &ret_state->half[1]);
    /* KVM tells the master of the slave's request after each change. What is still to be told, the
     * PIC tells itself when it has loaded this. */
    ret_state->slave_out = false;
}

static void pic_half_from(const struct pic_half *half, uint8_t elcr_mask, struct kvm_pic_state *kvm)
{
    *kvm = (struct kvm_pic_state){
        .last_irr = half->lines,
        .irr = (uint8_t)((half->irr & ~half->elcr) | (half->lines & half->elcr)),
        .imr = half->imr,
        .isr = half->isr,
        .priority_add = half->first,
        .irq_base = half->vector,
        .read_reg_select = half->read_isr,
        .poll = half->poll,
        .special_mask = half->mask_mode,
        .init_state = half->icw ? (uint8_t)(half->icw - 1) : 0,
        .auto_eoi = half->auto_eoi,
        .rotate_on_auto_eoi = half->rotate_auto,
        .special_fully_nested_mode = half->nested,
        .init4 = half->icw1 & ICW1_IC4,
        .elcr = half->elcr & elcr_mask,
        .elcr_mask = elcr_mask,
    };
}

void kvm_pic_from(const struct pic_state *state, struct kvm_pic_state ret_kvm[2])
{
    for (unsigned i = 0; i < 2; i++)
        pic_half_from(&state->half[i], elcr_masks[i], &ret_kvm[i]);
    /* KVM's PIT raises its line for a moment only. */
    ret_kvm[0].last_irr &= (uint8_t) ~(1u << GSI_TIMER);
}

/* ---- I/O APIC ---- */

void kvm_ioapic_to(const struct kvm_ioapic_state *kvm, uint32_t lines,
                   struct ioapic_state *ret_state)
{
    const uint32_t elsewhere = 1u << GSI_TIMER | 1u << GSI_CASCADE;
    uint32_t timer = lines >> GSI_TIMER & 1;
    *ret_state = (struct ioapic_state){
        .select = kvm->ioregsel & 0xff,
        .id = (kvm->id & 0xf) << 24,
        .lines = (lines & ~elsewhere) | timer << TIMER_PIN,
    };
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        ret_state->entry[pin] =
            kvm->redirtbl[pin].bits & (IOAPIC_ENTRY_WRITABLE | IOAPIC_ENTRY_REMOTE_IRR);
}

/* KVM takes each bit of its IRR for a line that rises now. A level is one in any case; an edge that
 * has been would be one again. */
void kvm_ioapic_from(const struct ioapic_state *state, struct kvm_ioapic_state *ret_kvm)
{
    *ret_kvm = (struct kvm_ioapic_state){
        .base_address = 0xfec00000,
        .ioregsel = state->select,
        .id = state->id >> 24 & 0xf,
    };
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        ret_kvm->redirtbl[pin].bits = state->entry[pin];
        if (state->entry[pin] & IOAPIC_ENTRY_LEVEL)
            ret_kvm->irr |= state->lines & 1u << pin;
    }
}

/* ---- PIT ---- */

enum {
    PIT_MODE_NONE = 0xff, /* KVM's, until the guest writes a control word */
    PIT_MODE_IDLE = 5,    /* waits for a gate that channel 0 has not: KVM sets no timer */
    PIT_COUNT_MAX = 65536,
    STATE_HIGH = 2,
    STATE_BOTH = 3, /* the low byte first */
    STATE_BOTH_HIGH = 4,
};

static bool periodic(const struct pit_channel *channel)
{
    return channel->mode == 2 || channel->mode == 3;
}

static bool triggered(const struct pit_channel *channel)
{
    return channel->mode == 1 || channel->mode == 5;
}

static void pit_channel_to(const struct kvm_pit_channel_state *kvm, uint64_t elapsed, uint64_t tick,
                           struct pit_channel *channel)
{
    bool used = kvm->mode <= 5;
    *channel = (struct pit_channel){
        .mode = used ? kvm->mode : 3,
        .access = used ? kvm->rw_mode & 3 : PIT_ACCESS_BOTH,
        .bcd = kvm->bcd,
        .gate = kvm->gate,
        .write_low = kvm->write_latch,
        .write_high = kvm->write_state == STATE_BOTH_HIGH,
        .read_high = kvm->count_latched
                         ? kvm->rw_mode == STATE_BOTH && kvm->count_latched == STATE_HIGH
                         : kvm->read_state == STATE_BOTH_HIGH,
        .count_latched = kvm->count_latched,
        .status_latched = kvm->status_latched,
        .latch = kvm->latched_count,
        .status = kvm->status,
    };
    if (!used)
        return;
    channel->loaded = true;
    channel->count = min(kvm->count ? kvm->count : PIT_COUNT_MAX,
                         channel->bcd ? 10000u : (uint32_t)PIT_COUNT_MAX);
    channel->running = channel->gate || triggered(channel);
    channel->held = channel->running ? 0 : elapsed;
    /* The machine's clock may be younger than the count: whole periods then make no difference. */
    if (elapsed > tick && periodic(channel))
        elapsed %= channel->count;
    channel->start = tick - min(elapsed, tick);
    if (triggered(channel)) { /* to be loaded again when the gate rises */
        channel->next = channel->count;
        channel->next_valid = true;
        channel->next_at = UINT64_MAX;
    }
}

static uint64_t ticks_of(int64_t ns)
{
    return ns > 0 ? (uint64_t)((unsigned __int128)ns * PIT_HZ / 1000000000) : 0;
}

void kvm_pit_to(const struct kvm_pit_state2 *kvm, int64_t now_ns, uint64_t tick,
                struct pit_state *ret_state)
{
    *ret_state = (struct pit_state){0};
    for (unsigned i = 0; i < PIT_CHANNELS; i++) {
        const struct kvm_pit_channel_state *channel = &kvm->channels[i];
        uint64_t elapsed = i == 0 ? 0 : ticks_of(now_ns - channel->count_load_time);
        pit_channel_to(channel, elapsed, tick, &ret_state->channel[i]);
    }
    if (kvm->channels[2].gate)
        ret_state->port61 |= PIT_PORT61_GATE;
    if (kvm->flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON)
        ret_state->port61 |= PIT_PORT61_SPEAKER;
}

bool kvm_pit_output(const struct pit_state *state)
{
    const struct pit_channel *channel = &state->channel[0];
    return channel->mode >= 2 || (channel->mode == 1 && !channel->loaded);
}

/* Ticks until the channel's one-shot count ends, 0 = it has. */
static uint32_t remaining(const struct pit_channel *channel, uint64_t tick)
{
    uint64_t elapsed = channel->held;
    if (channel->running)
        elapsed = tick < channel->start ? 0 : tick - channel->start;
    return elapsed < channel->count ? channel->count - (uint32_t)elapsed : 0;
}

static void pit_channel_from(const struct pit_channel *channel, bool interrupts, uint64_t tick,
                             struct kvm_pit_channel_state *kvm)
{
    bool both = channel->access == PIT_ACCESS_BOTH;
    *kvm = (struct kvm_pit_channel_state){
        .count = channel->next_valid ? channel->next : channel->count,
        .latched_count = channel->latch,
        .count_latched = channel->count_latched ? channel->access : 0,
        .status_latched = channel->status_latched,
        .status = channel->status,
        .read_state = both && channel->read_high && !channel->count_latched ? STATE_BOTH_HIGH
                                                                            : channel->access,
        .write_state = both && channel->write_high ? STATE_BOTH_HIGH : channel->access,
        .write_latch = channel->write_low,
        .rw_mode = channel->access,
        .mode = channel->mode,
        .bcd = channel->bcd,
        .gate = channel->gate,
    };
    if (both && channel->count_latched && channel->read_high)
        kvm->count_latched = STATE_HIGH;
    if (!channel->loaded) { /* else KVM would begin to count */
        if (channel->mode == 3 && both && !channel->write_high)
            kvm->mode = PIT_MODE_NONE;
        return;
    }
    if (!periodic(channel) && !triggered(channel)) {
        uint32_t left = remaining(channel, tick);
        if (left)
            kvm->count = left;
        else if (interrupts)
            kvm->mode = PIT_MODE_IDLE;
    }
}

void kvm_pit_from(const struct pit_state *state, uint64_t tick, struct kvm_pit_state2 *ret_kvm)
{
    *ret_kvm = (struct kvm_pit_state2){0};
    for (unsigned i = 0; i < PIT_CHANNELS; i++)
        pit_channel_from(&state->channel[i], i == 0, tick, &ret_kvm->channels[i]);
    ret_kvm->channels[2].gate = (state->port61 & PIT_PORT61_GATE) != 0;
    if (state->port61 & PIT_PORT61_SPEAKER)
        ret_kvm->flags |= KVM_PIT_FLAGS_SPEAKER_DATA_ON;
}

uint32_t kvm_chips_lines(const struct chip_states *states)
{
    uint32_t isa = (uint32_t)states->pic.half[1].lines << PIC_PINS | states->pic.half[0].lines;
    return (states->ioapic.lines >> 2 * PIC_PINS << 2 * PIC_PINS) |
           (isa & ~(1u << GSI_TIMER | 1u << GSI_CASCADE));
}

/* ---- the VM's ---- */

static int chip_get(struct engine_vm *vm, uint32_t id, struct kvm_irqchip *chip, struct err *err)
{
    *chip = (struct kvm_irqchip){.chip_id = id};
    int r = kvm_ioctl(vm->fd, KVM_GET_IRQCHIP, chip);
    return r < 0 ? err_errno(err, -r, "KVM_GET_IRQCHIP of chip %u", id) : 0;
}

static int chip_set(struct engine_vm *vm, struct kvm_irqchip *chip, struct err *err)
{
    int r = kvm_ioctl(vm->fd, KVM_SET_IRQCHIP, chip);
    return r < 0 ? err_errno(err, -r, "KVM_SET_IRQCHIP of chip %u", chip->chip_id) : 0;
}

int kvm_chips_get(struct engine_vm *vm, uint64_t now, struct chip_states *ret_states,
                  struct err *err)
{
    struct kvm_irqchip master, slave, ioapic;
    struct chip_states states;
    if (!vm->has_irqchip || !vm->stands)
        return err_set(err, -EINVAL, "chips are read while the clocks stand");
    int r = chip_get(vm, KVM_IRQCHIP_PIC_MASTER, &master, err);
    if (r >= 0)
        r = chip_get(vm, KVM_IRQCHIP_PIC_SLAVE, &slave, err);
    if (r >= 0)
        r = chip_get(vm, KVM_IRQCHIP_IOAPIC, &ioapic, err);
    if (r < 0)
        return r;
    kvm_pit_to(&vm->held.pit, vm->held.monotonic_ns, ticks_of((int64_t)now), &states.pit);
    uint32_t lines = atomic_load(&vm->lines) | (uint32_t)kvm_pit_output(&states.pit) << GSI_TIMER;
    kvm_pic_to((const struct kvm_pic_state[]){master.chip.pic, slave.chip.pic}, lines, &states.pic);
    kvm_ioapic_to(&ioapic.chip.ioapic, lines, &states.ioapic);
    *ret_states = states;
    return 0;
}

int kvm_chips_set(struct engine_vm *vm, uint64_t now, const struct chip_states *states,
                  struct err *err)
{
    struct kvm_pic_state pic[2];
    if (!vm->has_irqchip || !vm->stands)
        return err_set(err, -EINVAL, "chips are set while the clocks stand");
    kvm_pic_from(&states->pic, pic);
    struct kvm_irqchip master = {.chip_id = KVM_IRQCHIP_PIC_MASTER, .chip.pic = pic[0]};
    struct kvm_irqchip slave = {.chip_id = KVM_IRQCHIP_PIC_SLAVE, .chip.pic = pic[1]};
    struct kvm_irqchip ioapic = {.chip_id = KVM_IRQCHIP_IOAPIC};
    kvm_ioapic_from(&states->ioapic, &ioapic.chip.ioapic);
    /* The slave first: the master is told of its requests when it is set. */
    int r = chip_set(vm, &slave, err);
    if (r >= 0)
        r = chip_set(vm, &master, err);
    if (r >= 0)
        r = chip_set(vm, &ioapic, err);
    if (r < 0)
        return r;
    atomic_store(&vm->lines, kvm_chips_lines(states));
    kvm_pit_from(&states->pit, ticks_of((int64_t)now), &vm->held.pit);
    vm->held.monotonic_ns = (int64_t)clock_ns();
    for (unsigned i = 0; i < PIT_CHANNELS; i++)
        vm->held.pit.channels[i].count_load_time = vm->held.monotonic_ns;
    return 0;
}

int kvm_pit_stop(struct engine_vm *vm, struct err *err)
{
    int r = kvm_ioctl(vm->fd, KVM_GET_PIT2, &vm->held.pit);
    if (r < 0)
        return err_errno(err, -r, "KVM_GET_PIT2");
    vm->held.monotonic_ns = (int64_t)clock_ns();
    struct kvm_pit_state2 still = vm->held.pit;
    still.channels[0].mode = PIT_MODE_IDLE;
    r = kvm_ioctl(vm->fd, KVM_SET_PIT2, &still);
    return r < 0 ? err_errno(err, -r, "KVM_SET_PIT2") : 0;
}

int kvm_pit_run(struct engine_vm *vm, struct err *err)
{
    int r = kvm_ioctl(vm->fd, KVM_SET_PIT2, &vm->held.pit);
    return r < 0 ? err_errno(err, -r, "KVM_SET_PIT2") : 0;
}
