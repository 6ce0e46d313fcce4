#include "chip/state/state.h"

#include "base/record.h"

static void pic_half_record(struct pic_half *half, struct record *record)
{
    record_u8(record, &half->lines);
    record_u8(record, &half->irr);
    record_u8(record, &half->imr);
    record_u8(record, &half->isr);
    record_u8(record, &half->elcr);
    record_u8_below(record, &half->first, 8);
    record_u8(record, &half->vector);
    record_u8_below(record, &half->icw, 5);
    record_u8(record, &half->icw1);
    record_bool(record, &half->auto_eoi);
    record_bool(record, &half->rotate_auto);
    record_bool(record, &half->nested);
    record_bool(record, &half->mask_mode);
    record_bool(record, &half->read_isr);
    record_bool(record, &half->poll);
}

void pic_state_record(struct pic_state *state, struct record *record)
{
    pic_half_record(&state->half[0], record);
    pic_half_record(&state->half[1], record);
    record_bool(record, &state->slave_out);
}

void ioapic_state_record(struct ioapic_state *state, struct record *record)
{
    record_u32_below(record, &state->select, 0x100);
    record_u32(record, &state->id);
    record_u32(record, &state->lines);
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        record_u64(record, &state->entry[pin]);
        state->entry[pin] &= IOAPIC_ENTRY_WRITABLE | IOAPIC_ENTRY_REMOTE_IRR;
    }
}

static void pit_channel_record(struct pit_channel *channel, struct record *record)
{
    record_u8_below(record, &channel->mode, 6);
    record_u8_below(record, &channel->access, 4);
    record_bool(record, &channel->bcd);
    record_bool(record, &channel->gate);
    record_bool(record, &channel->loaded);
    record_bool(record, &channel->running);
    record_u32_below(record, &channel->count, 65537);
    record_u64(record, &channel->start);
    record_u64(record, &channel->held);
    record_bool(record, &channel->next_valid);
    record_u32_below(record, &channel->next, 65537);
    record_u64(record, &channel->next_at);
    record_bool(record, &channel->write_high);
    record_bool(record, &channel->read_high);
    record_u8(record, &channel->write_low);
    record_bool(record, &channel->count_latched);
    record_bool(record, &channel->status_latched);
    record_u16(record, &channel->latch);
    record_u8(record, &channel->status);
    /* Counts are divided by. */
    if (record->loading && ((channel->loaded && !channel->count && channel->mode != 0) ||
                            (channel->next_valid && !channel->next)))
        record_fail(record, "has a count that cannot be");
}

void pit_state_record(struct pit_state *state, struct record *record)
{
    for (unsigned i = 0; i < PIT_CHANNELS; i++)
        pit_channel_record(&state->channel[i], record);
    record_u8(record, &state->port61);
}

void apic_state_record(struct apic_state *state, struct record *record)
{
    record_u32(record, &state->esr_new);
    record_bool(record, &state->extint);
    record_bool(record, &state->lint[0]);
    record_bool(record, &state->lint[1]);
}
