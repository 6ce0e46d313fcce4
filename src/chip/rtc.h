/*
 * rtc.h: the MC146818A real-time clock and its CMOS memory, ports 0x70 and 0x71.
 *
 * The time of day is the host's clock (UTC) plus what the guest moved it by. Registers 0x00..0x0d
 * are the chip's, 0x32 is the century, 0x0f the shutdown byte, the rest of the 128 bytes is memory
 * without battery: zero at creation, kept over reset. UIP is set 2.228 ms before each new second,
 * and the second changes when it falls. Interrupts: periodic (2 Hz to 8192 Hz), alarm, update
 * ended; late ones are not queued. Bit 7 of port 0x70 (NMI disable) is remembered and has no
 * effect. The PC's port 0x70 is write-only and reads as all ones.
 *
 * Threads: any; own mutex, held while `irq` is set. Free it after timers_free().
 * Errors: rtc_new() is NULL without memory.
 *
 *     rtc = rtc_new(&(struct rtc_config){.timers = timers, .irq = {board_irq, board, 8}});
 *     bus_claim(bus, BUS_PORT, RTC_PORT, RTC_PORTS, &rtc_ops, rtc, err);
 */
#pragma once

#include "base/timer.h"
#include "bus/bus.h"

enum { RTC_PORT = 0x70, RTC_PORTS = 2, RTC_CMOS_SIZE = 128 };

/* Where ACPI's FADT says the century is. */
enum { RTC_CENTURY = 0x32, RTC_SHUTDOWN = 0x0f };

struct rtc;

struct rtc_config {
    struct timers *timers; /* borrowed */
    struct irq_line irq;
    /* Nanoseconds since 1970-01-01 UTC; NULL = the host's CLOCK_REALTIME. */
    int64_t (*realtime)(void *opaque);
    void *realtime_opaque;
    /* What firmware finds in the CMOS memory of a PC's: bytes of RAM below and from 4 GiB on; 0 =
     * not said. */
    uint64_t low_memory, high_memory;
};

struct rtc *rtc_new(const struct rtc_config *config);
void rtc_reset(void *rtc);
void rtc_free(void *rtc);

extern const struct bus_ops rtc_ops;
extern const struct device_ops rtc_device;
