/*
 * power.h: ACPI fixed hardware (ACPI 6.4, 4.8): power button, sleep, PM timer, reset.
 *
 * One block of POWER_PORTS ports, wherever the board puts it (its FADT says where), with the
 * registers at these offsets:
 *
 *     POWER_PM1_EVENT    4 bytes  PM1a status and enable       FADT X_PM1a_EVT_BLK, length 4
 *     POWER_PM1_CONTROL  2 bytes  PM1a control                 FADT X_PM1a_CNT_BLK, length 2
 *     POWER_TIMER        4 bytes  PM timer, 32 bit             FADT X_PM_TMR_BLK, TMR_VAL_EXT = 1
 *     POWER_GPE0         4 bytes  GPE0 status 2, enable 2      FADT X_GPE0_BLK, length 4
 *     POWER_RESET        1 byte   as port 0xcf9                FADT RESET_REG; RESET_VALUE 0x06
 *     POWER_SMI_COMMAND  1 byte   0xf1 ACPI on, 0xf0 off       FADT SMI_CMD, only if one is wanted
 *
 * The machine starts in ACPI mode (SCI_EN = 1), so FADT SMI_CMD may be 0. Power off is SLP_EN with
 * SLP_TYP = `s5_type`, which the DSDT's _S5 says. Other sleep types are ignored.
 *
 * Port 0xcf9 itself lies inside the PCI host's CF8 dword: whoever claims 0xcf8 hands byte accesses
 * at 0xcf9 to power_reset_read() and power_reset_write().
 *
 * Threads: any; own mutex, held while `sci` is set. `power_off` and `reset` are called without it,
 * on the vCPU's thread. Free after timers_free(). Errors: power_new() is NULL without memory.
 */
#pragma once

#include "base/timer.h"
#include "bus/bus.h"

enum {
    POWER_PM1_EVENT = 0x00,
    POWER_PM1_CONTROL = 0x04,
    POWER_TIMER = 0x08,
    POWER_GPE0 = 0x0c,
    POWER_RESET = 0x10,
    POWER_SMI_COMMAND = 0x11,
    POWER_PORTS = 0x20,

    POWER_S5_TYPE = 5,
    POWER_TIMER_HZ = 3579545,
    POWER_GPE_COUNT = 16,
    POWER_ACPI_ENABLE = 0xf1,
    POWER_ACPI_DISABLE = 0xf0,
};

struct power;

struct power_config {
    struct timers *timers; /* borrowed */
    struct irq_line sci;   /* level-triggered, the FADT's SCI_INT (usually 9) */
    uint8_t s5_type;       /* SLP_TYP that turns the machine off, 0..7 */
    void (*power_off)(void *opaque);
    void (*reset)(void *opaque);
    void *opaque;
};

struct power *power_new(const struct power_config *config);
void power_reset(void *power);
void power_free(void *power);

extern const struct bus_ops power_ops;
extern const struct device_ops power_device;

/* Somebody pressed the power button: an SCI if the guest enabled it. Returns false when the guest
 * has not enabled the event (it will not react; the host may want to be harsher). */
bool power_button(struct power *power);
/* General-purpose event `number` (0..15) happened; the DSDT names what it means. */
void power_gpe(struct power *power, unsigned number);

/* The 0xcf9 reset register: 0x06 or 0x0e resets (SYS_RST and RST_CPU rising). */
uint8_t power_reset_read(struct power *power);
void power_reset_write(struct power *power, uint8_t value);
