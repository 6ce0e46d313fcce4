/*
 * chain.h: opens the files of a guest's disks, for a lodge-vmm that opens nothing.
 *
 * An image may name another that it stands on. Which, and where it lies, the disk library says
 * (disk/disk.h): it opens the chain once, for reading, through an opener that keeps the
 * descriptors.
 *
 * Each file is locked as long as anybody has it open: the top for itself if it is written to, all
 * else shared. -EBUSY with the path where another guest has it.
 *
 * A disk of a web server is read through the socket of a lodge-http, which is started here. What is
 * encrypted is unlocked here: disk->key_fd then has the key, and the passphrase goes nowhere.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"

/* Fills disk->images. On an error, too, chain_close() closes what was opened. */
int chain_open(struct guest_disk *disk, struct err *err);
void chain_close(struct guest_disk *disk);
