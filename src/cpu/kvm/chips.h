/*
 * chips.h: KVM's structs of its interrupt controllers and its PIT, and the form in which the house
 * saves them (chip/state/state.h). Pure functions, so that they are tested without /dev/kvm.
 *
 * KVM does not tell the levels of inputs: irq.c, which raises them, keeps them (`lines`, a bit for
 * each GSI), and the PIT's own is what src/chip's PIT would hold it at. It does not tell either
 * where channel 0 of the PIT is in its period, which therefore begins anew.
 *
 * It cannot hold a count of the PIT that waits for the end of a period, which is loaded at once;
 * nor a channel that was programmed to mode 3 and has no count yet, which becomes one that nobody
 * has programmed. A one-shot count under way becomes a count of what is left of it, and so ends at
 * the same time.
 */
#pragma once

#include "chip/state/state.h"

#include <linux/kvm.h>

/* Master and slave. */
void kvm_pic_to(const struct kvm_pic_state kvm[2], uint32_t lines, struct pic_state *ret_state);
void kvm_pic_from(const struct pic_state *state, struct kvm_pic_state ret_kvm[2]);

void kvm_ioapic_to(const struct kvm_ioapic_state *kvm, uint32_t lines,
                   struct ioapic_state *ret_state);
void kvm_ioapic_from(const struct ioapic_state *state, struct kvm_ioapic_state *ret_kvm);

/* `tick` is now on the machine's clock (PIT_HZ), `now_ns` CLOCK_MONOTONIC, which KVM counts by. */
void kvm_pit_to(const struct kvm_pit_state2 *kvm, int64_t now_ns, uint64_t tick,
                struct pit_state *ret_state);
void kvm_pit_from(const struct pit_state *state, uint64_t tick, struct kvm_pit_state2 *ret_kvm);

/* The level at which src/chip's PIT holds GSI 0 in that state; and all GSIs' in those states, but
 * for that one, which is KVM's own. */
bool kvm_pit_output(const struct pit_state *state);
uint32_t kvm_chips_lines(const struct chip_states *states);
