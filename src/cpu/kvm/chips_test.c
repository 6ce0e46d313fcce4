/* KVM's structs of its chips and ours: everywhere, without /dev/kvm. */
#include "cpu/kvm/chips.h"

#include "base/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum { SEC_NS = 1000000000 };

/* ---- PIC ---- */

static const struct pic_state busy_pic = {
    .half = {{.lines = 0x90,
              .irr = 0x11,
              .imr = 0xa2,
              .isr = 0x04,
              .elcr = 0x80,
              .first = 3,
              .vector = 0x30,
              .icw1 = 0x11,
              .auto_eoi = true,
              .nested = true,
              .read_isr = true},
             {.lines = 0x42,
              .irr = 0x02,
              .imr = 0x0f,
              .isr = 0x80,
              .elcr = 0x40,
              .first = 0,
              .vector = 0x38,
              .icw = 4,
              .icw1 = 0x11,
              .rotate_auto = true,
              .mask_mode = true,
              .poll = true}},
};

static void same_half(const struct pic_half *a, const struct pic_half *b)
{
    assert_int_equal(a->lines, b->lines);
    assert_int_equal(a->irr, b->irr);
    assert_int_equal(a->imr, b->imr);
    assert_int_equal(a->isr, b->isr);
    assert_int_equal(a->elcr, b->elcr);
    assert_int_equal(a->first, b->first);
    assert_int_equal(a->vector, b->vector);
    assert_int_equal(a->icw, b->icw);
    assert_int_equal(a->icw1, b->icw1);
    assert_int_equal(a->auto_eoi, b->auto_eoi);
    assert_int_equal(a->rotate_auto, b->rotate_auto);
    assert_int_equal(a->nested, b->nested);
    assert_int_equal(a->mask_mode, b->mask_mode);
    assert_int_equal(a->read_isr, b->read_isr);
    assert_int_equal(a->poll, b->poll);
}

static void the_pics_come_back(void **test)
{
    struct kvm_pic_state kvm[2];
    struct chip_states states = {.pic = busy_pic};
    struct pic_state back;
    kvm_pic_from(&busy_pic, kvm);
    kvm_pic_to(kvm, kvm_chips_lines(&states), &back);
    same_half(&back.half[0], &busy_pic.half[0]);
    same_half(&back.half[1], &busy_pic.half[1]);
}

static void the_pics_are_as_kvm_has_them(void **test)
{
    struct kvm_pic_state kvm[2];
    kvm_pic_from(&busy_pic, kvm);
    assert_int_equal(kvm[0].last_irr, 0x90);
    assert_int_equal(kvm[0].irr, 0x91); /* edges 0 and 4; level 7 is up */
    assert_int_equal(kvm[0].priority_add, 3);
    assert_int_equal(kvm[0].irq_base, 0x30);
    assert_int_equal(kvm[0].init_state, 0);
    assert_int_equal(kvm[0].elcr_mask, 0xf8);
    assert_int_equal(kvm[1].irr, 0x42);
    assert_int_equal(kvm[1].init_state, 3); /* ICW4 is next */
    assert_int_equal(kvm[1].init4, 1);
    assert_int_equal(kvm[1].elcr_mask, 0xde);
}

/* Each step of the initialization, told in both ways of counting. */
static void initialization_goes_on(void **test)
{
    for (uint8_t icw = 0; icw <= 4; icw++) {
        struct pic_state state = {.half = {{.icw = icw, .icw1 = 0x10}}}, back;
        struct kvm_pic_state kvm[2];
        if (icw == 1)
            continue;
        kvm_pic_from(&state, kvm);
        assert_int_equal(kvm[0].init_state, icw ? icw - 1 : 0);
        kvm_pic_to(kvm, 0, &back);
        assert_int_equal(back.half[0].icw, icw);
        assert_int_equal(back.half[0].icw1, 0x10);
    }
}

/* A line that was raised before is no edge in KVM, and the PIT's, which it raises by itself, is not
 * taken for one that stays up. */
static void lines_are_kept(void **test)
{
    struct chip_states states = {
        .pic.half[0].lines = 0x15, .pic.half[1].lines = 0x80, .ioapic.lines = 0x418014};
    assert_int_equal(kvm_chips_lines(&states), 0x418010);
    struct kvm_pic_state kvm[2];
    kvm_pic_from(&states.pic, kvm);
    assert_int_equal(kvm[0].last_irr & 1, 0);
    struct pic_state pic;
    struct ioapic_state ioapic;
    const struct kvm_ioapic_state none = {0};
    kvm_pic_to(kvm, 0x418010 | 1, &pic);
    assert_int_equal(pic.half[0].lines, 0x11);
    assert_int_equal(pic.half[1].lines, 0x80);
    kvm_ioapic_to(&none, 0x418010 | 1, &ioapic);
    assert_int_equal(ioapic.lines, 0x418014); /* GSI 0 is pin 2 */
}

/* ---- I/O APIC ---- */

static void the_ioapic_comes_back(void **test)
{
    struct ioapic_state state = {.select = 0x17, .id = 5 << 24, .lines = 0xf10010}, back;
    struct kvm_ioapic_state kvm;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        state.entry[pin] = (uint64_t)pin << 56 | 0x30 | pin | (pin % 3 ? IOAPIC_ENTRY_MASKED : 0) |
                           (pin >= 16 ? IOAPIC_ENTRY_LEVEL : 0) |
                           (pin == 20 ? IOAPIC_ENTRY_REMOTE_IRR : 0);
    kvm_ioapic_from(&state, &kvm);
    assert_int_equal(kvm.base_address, 0xfec00000);
    assert_int_equal(kvm.id, 5);
    assert_int_equal(kvm.irr, 0xf10000); /* levels only: pin 4 has had its edge */
    assert_int_equal(kvm.redirtbl[20].fields.remote_irr, 1);
    assert_int_equal(kvm.redirtbl[20].fields.dest_id, 20);
    assert_int_equal(kvm.redirtbl[20].fields.vector, 0x34);
    kvm.redirtbl[3].fields.delivery_status = 1; /* nobody's business */
    kvm_ioapic_to(&kvm, state.lines, &back);
    assert_memory_equal(&back, &state, sizeof back);
}

/* ---- PIT ---- */

static struct kvm_pit_state2 fresh(void)
{
    struct kvm_pit_state2 kvm = {0};
    for (unsigned i = 0; i < 3; i++) {
        kvm.channels[i].mode = 0xff;
        kvm.channels[i].count = 65536;
        kvm.channels[i].gate = i != 2;
    }
    return kvm;
}

static void a_pit_that_nobody_uses_stays_so(void **test)
{
    struct kvm_pit_state2 kvm = fresh(), back;
    struct pit_state state;
    kvm_pit_to(&kvm, SEC_NS, 1000, &state);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(state.channel[i].mode, 3); /* as src/chip's after a reset */
        assert_int_equal(state.channel[i].access, PIT_ACCESS_BOTH);
        assert_false(state.channel[i].loaded || state.channel[i].running);
        assert_int_equal(state.channel[i].gate, i != 2);
    }
    assert_true(kvm_pit_output(&state));
    kvm_pit_from(&state, 2000, &back);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(back.channels[i].mode, 0xff);
}

static void a_periodic_channel_ticks_on(void **test)
{
    struct kvm_pit_state2 kvm = fresh(), back;
    struct pit_state state;
    kvm.channels[0] = (struct kvm_pit_channel_state){.mode = 2,
                                                     .rw_mode = 3,
                                                     .read_state = 3,
                                                     .write_state = 4,
                                                     .write_latch = 0x9c,
                                                     .count = 11932,
                                                     .gate = 1,
                                                     .count_latched = 2,
                                                     .latched_count = 0x1234};
    kvm.channels[2] = (struct kvm_pit_channel_state){
        .mode = 3, .rw_mode = 3, .count = 1000, .gate = 1, .count_load_time = 5 * (int64_t)SEC_NS};
    kvm.flags = KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    kvm_pit_to(&kvm, 5 * (int64_t)SEC_NS + SEC_NS / 1000, 50000, &state);
    const struct pit_channel *channel = &state.channel[0];
    assert_true(channel->loaded && channel->running);
    assert_int_equal(channel->count, 11932);
    assert_int_equal(channel->start, 50000); /* KVM does not say where in its period it is */
    assert_true(channel->write_high);
    assert_int_equal(channel->write_low, 0x9c);
    assert_true(channel->count_latched && channel->read_high);
    assert_int_equal(state.channel[2].start, 50000 - 1193); /* a millisecond ago */
    assert_int_equal(state.port61, PIT_PORT61_GATE | PIT_PORT61_SPEAKER);
    assert_true(kvm_pit_output(&state));
    kvm_pit_from(&state, 60000, &back);
    assert_int_equal(back.channels[0].count, 11932);
    assert_int_equal(back.channels[0].mode, 2);
    assert_int_equal(back.channels[0].count_latched, 2);
    assert_int_equal(back.channels[0].latched_count, 0x1234);
    assert_int_equal(back.channels[0].write_state, 4);
    assert_int_equal(back.channels[0].read_state, 3);
    assert_int_equal(back.channels[2].gate, 1);
    assert_int_equal(back.flags, KVM_PIT_FLAGS_SPEAKER_DATA_ON);
}

/* What is left of it counts on; what has ended does not begin again. */
static void a_one_shot_ends_when_it_would_have(void **test)
{
    for (unsigned mode = 0; mode <= 4; mode += 4) {
        struct pit_state state = {0};
        struct kvm_pit_state2 kvm;
        state.channel[0] = (struct pit_channel){.mode = (uint8_t)mode,
                                                .access = PIT_ACCESS_BOTH,
                                                .gate = true,
                                                .loaded = true,
                                                .running = true,
                                                .count = 5000,
                                                .start = 100000};
        kvm_pit_from(&state, 101000, &kvm);
        assert_int_equal(kvm.channels[0].count, 4000);
        assert_int_equal(kvm.channels[0].mode, mode);
        kvm_pit_from(&state, 105000, &kvm);
        assert_int_equal(kvm.channels[0].mode, 5); /* no timer */
        kvm_pit_from(&state, UINT64_MAX, &kvm);
        assert_int_equal(kvm.channels[0].mode, 5);
    }
}

/* A count that waits for the period's end is there at once. */
static void a_new_count_is_taken(void **test)
{
    struct pit_state state = {0};
    struct kvm_pit_state2 kvm;
    state.channel[0] = (struct pit_channel){.mode = 2,
                                            .access = PIT_ACCESS_BOTH,
                                            .gate = true,
                                            .loaded = true,
                                            .running = true,
                                            .count = 5000,
                                            .next_valid = true,
                                            .next = 700,
                                            .next_at = 9000};
    kvm_pit_from(&state, 8000, &kvm);
    assert_int_equal(kvm.channels[0].count, 700);
}

/* Whatever KVM or a file says: every value is one that the other side takes. */
static void nothing_leaves_its_bounds(void **test)
{
    srand(1);
    for (unsigned turn = 0; turn < 20000; turn++) {
        struct kvm_pit_state2 kvm;
        struct pit_state state;
        uint8_t *bytes = (uint8_t *)&kvm;
        for (size_t i = 0; i < sizeof kvm; i++)
            bytes[i] = (uint8_t)(rand() >> 8);
        for (unsigned i = 0; i < 3; i++) {
            kvm.channels[i].count %= 65537;
            kvm.channels[i].mode %= turn % 2 ? 6 : 255;
            kvm.channels[i].gate &= 1;
        }
        kvm_pit_to(&kvm, rand(), (uint64_t)rand(), &state);
        for (unsigned i = 0; i < 3; i++) {
            const struct pit_channel *channel = &state.channel[i];
            assert_true(channel->mode < 6 && channel->access < 4 && channel->count <= 65536);
            assert_true(!channel->loaded || channel->count > 0);
            assert_true(!channel->next_valid || channel->next > 0);
        }
        kvm_pit_from(&state, (uint64_t)rand(), &kvm);
        for (unsigned i = 0; i < 3; i++)
            assert_true(kvm.channels[i].count <= 65536);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_pics_come_back),
        cmocka_unit_test(the_pics_are_as_kvm_has_them),
        cmocka_unit_test(initialization_goes_on),
        cmocka_unit_test(lines_are_kept),
        cmocka_unit_test(the_ioapic_comes_back),
        cmocka_unit_test(a_pit_that_nobody_uses_stays_so),
        cmocka_unit_test(a_periodic_channel_ticks_on),
        cmocka_unit_test(a_one_shot_ends_when_it_would_have),
        cmocka_unit_test(a_new_count_is_taken),
        cmocka_unit_test(nothing_leaves_its_bounds),
    };
    return cmocka_run_group_tests_name("kvm chips", tests, NULL, NULL);
}
