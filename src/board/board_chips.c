/*
 * The interrupt controllers and the PIT of a machine whose engine has them: saved as sections of
 * the same names and contents as those of src/chip, so that the machine goes on under either kind
 * of engine.
 */
#include "board/board_private.h"
#include "chip/state/state.h"

/* What is in no register page. KVM shows none of it: its errors are in the page, its PICs' output
 * is what their state makes of it. */
static void apics_record(const struct board *board, struct record *record)
{
    record_same(record, board->cpus, "is of a machine with other CPUs");
    for (unsigned i = 0; i < board->cpus && !record->failed; i++) {
        struct apic_state none = {0};
        apic_state_record(&none, record);
    }
}

int board_chips_save(struct board *board, struct snapshot_writer *writer, struct err *err)
{
    struct chip_states states;
    if (board->engine->irqchip != ENGINE_IRQCHIP_ENGINE)
        return 0;
    int r = board->engine->chips_get(board->vm, timers_now(board->timers), &states, err);
    if (r < 0)
        return r;
    apics_record(board, snapshot_begin(writer, apic_device.name, APIC_STATE_VERSION));
    snapshot_end(writer);
    ioapic_state_record(&states.ioapic,
                        snapshot_begin(writer, ioapic_device.name, IOAPIC_STATE_VERSION));
    snapshot_end(writer);
    pic_state_record(&states.pic, snapshot_begin(writer, pic_device.name, PIC_STATE_VERSION));
    snapshot_end(writer);
    pit_state_record(&states.pit, snapshot_begin(writer, pit_device.name, PIT_STATE_VERSION));
    snapshot_end(writer);
    return 0;
}

int board_chips_load(struct board *board, struct snapshot_reader *reader, struct err *err)
{
    struct chip_states states;
    struct record record;
    if (board->engine->irqchip != ENGINE_IRQCHIP_ENGINE)
        return 0;
    int r = snapshot_find(reader, apic_device.name, APIC_STATE_VERSION, &record, err);
    if (r < 0)
        return r;
    apics_record(board, &record);
    r = snapshot_loaded(apic_device.name, &record, err);
    if (r >= 0)
        r = snapshot_find(reader, ioapic_device.name, IOAPIC_STATE_VERSION, &record, err);
    if (r < 0)
        return r;
    ioapic_state_record(&states.ioapic, &record);
    r = snapshot_loaded(ioapic_device.name, &record, err);
    if (r >= 0)
        r = snapshot_find(reader, pic_device.name, PIC_STATE_VERSION, &record, err);
    if (r < 0)
        return r;
    pic_state_record(&states.pic, &record);
    r = snapshot_loaded(pic_device.name, &record, err);
    if (r >= 0)
        r = snapshot_find(reader, pit_device.name, PIT_STATE_VERSION, &record, err);
    if (r < 0)
        return r;
    pit_state_record(&states.pit, &record);
    r = snapshot_loaded(pit_device.name, &record, err);
    if (r < 0)
        return r;
    return board->engine->chips_set(board->vm, timers_now(board->timers), &states, err);
}
