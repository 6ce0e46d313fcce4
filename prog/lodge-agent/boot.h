/*
 * boot.h: what PID 1 of the default image does before and after everything else.
 *
 * Nothing here waits: file systems and modules are there when the calls return, and what the kernel
 * announces later (the channel's port, a console of virtio's) is found again at each uevent.
 */
#pragma once

#include <stdbool.h>
#include <stdio.h>

/* /proc, /sys, /dev, /dev/pts, /run, /tmp; the host's name; the loopback interface. What fails is
 * said on the console and left out. */
void boot_mount(void);
/* Loads the modules that /lib/modules/lodge.list names, in its order, as far as its first blank
 * line: those that the channel needs. A line is "NAME.ko" and, where something must be there for it
 * to drive, "VENDOR DEVICE" of the PCI bus or a path. Returns the list with the rest in it, or
 * NULL.
 */
FILE *boot_load_modules(void);
/* Loads the next of the rest; false when there is none, and the list is closed. */
bool boot_load_module(FILE *list);
/* Mounts what the command line names, lodge.share=TAG:FOLDER[:ro], as often as it stands there. */
void boot_shares(void);
void boot_network(void);
/* Addresses for network cards, where the kernel's command line has lodge.net. After the modules. */
void boot_cards(void);
/* What `interface` has as an IPv4 address is another guest's: it is taken away, and where there is
 * lodge.net another one is asked for, in the background. A negative errno where that cannot be. */
int boot_renew(const char *interface);

/* The value of `name=` on the kernel's command line, in `value`; false where there is none. */
bool boot_option(const char *name, char *ret_value, unsigned size);

/* A descriptor on which the kernel announces devices, or -1. */
int boot_open_uevents(void);

/* Opens the virtio port that is called `name`, non-blocking; -1 while there is none. */
int boot_open_port(const char *name);

/* SIGTERM to all, two seconds of patience, SIGKILL, sync, and off or round again. Does not return.
 */
void boot_shut_down(bool reboot) __attribute__((noreturn));
