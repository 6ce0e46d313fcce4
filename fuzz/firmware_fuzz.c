// needs: base mem bus chip
/*
 * Random accesses to what firmware finds: fw_cfg, with control blocks in a memory that the input
 * fills, and the flash. What must hold after any history: a copy of an item is the item; the flash
 * shows its contents when it reads the array, and those are what its file has after a flush; and
 * whatever state either takes, it goes on with it.
 */
#include "base/bytes.h"
#include "base/record.h"
#include "chip/flash.h"
#include "chip/fw_cfg.h"
#include "input.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { STEPS_MAX = 2000, MEMORY = 8192, SIZE = 4 * FLASH_BLOCK };

struct machine {
    struct fw_cfg *fw_cfg;
    struct flash *flash;
    int fd;
    uint8_t memory[MEMORY], shown[SIZE];
};

static int memory_read(void *opaque, uint64_t gpa, void *to, uint64_t size)
{
    struct machine *machine = opaque;
    if (!range_fits(gpa, size, MEMORY))
        return -EFAULT;
    memcpy(to, machine->memory + gpa, size);
    return 0;
}

static int memory_write(void *opaque, uint64_t gpa, const void *from, uint64_t size)
{
    struct machine *machine = opaque;
    if (!range_fits(gpa, size, MEMORY))
        return -EFAULT;
    memcpy(machine->memory + gpa, from, size);
    return 0;
}

static void reload(const struct device_ops *ops, void *device, struct input *input)
{
    struct record saved, loaded;
    record_save(&saved, ops->state_version);
    ops->state(device, &saved);
    assert(!saved.failed);
    if (saved.size) /* not the contents of the flash, mostly: they would be all of the input */
        saved.bytes[input_next(input, 2) % min(saved.size, (size_t)300)] ^=
            (uint8_t)input_next(input, 1);
    record_load(&loaded, saved.bytes, saved.size, saved.version);
    ops->state(device, &loaded);
    record_free(&saved);
}

static void step_fw_cfg(struct machine *machine, struct input *input)
{
    static const unsigned sizes[] = {1, 2, 4};
    unsigned size = sizes[input_next(input, 1) % 3];
    const struct bus_ops *ops = input_next(input, 1) & 1 ? &fw_cfg_ops : &fw_cfg_dma_ops;
    uint64_t offset = input_next(input, 1) % 8;
    if (input_next(input, 1) & 1)
        ops->write(machine->fw_cfg, offset, size, input_next(input, size));
    else
        ops->read(machine->fw_cfg, offset, size);
}

/* A block that is likely to be right. */
static void step_dma(struct machine *machine, struct input *input)
{
    uint32_t at = input_next(input, 1) * 16;
    be32_write(machine->memory + at, (uint32_t)(input_next(input, 1) << 16 | input_next(input, 1)));
    be32_write(machine->memory + at + 4, (uint32_t)input_next(input, input_next(input, 1) % 5));
    be64_write(machine->memory + at + 8, input_next(input, 2));
    fw_cfg_dma_ops.write(machine->fw_cfg, 4, 4, __builtin_bswap32(at));
}

static void step_flash(struct machine *machine, struct input *input)
{
    static const uint8_t commands[] = {0xff, 0x10, 0x20, 0x40, 0x50, 0x60,
                                       0x70, 0x90, 0x98, 0xd0, 0xe8, 0x00};
    uint64_t offset = input_next(input, 2) % SIZE;
    uint8_t which = (uint8_t)input_next(input, 1);
    if (which < 128)
        flash_ops.write(machine->flash, offset, 1, commands[which % sizeof commands]);
    else
        flash_ops.write(machine->flash, offset, 1 << which % 4, input_next(input, 4));
}

static void check_flash(struct machine *machine)
{
    uint8_t file[SIZE];
    flash_ops.write(machine->flash, 0, 1, 0xd0); /* ends what was begun, whatever it was */
    flash_reset(machine->flash);
    assert(flash_flush(machine->flash) == 0);
    assert(pread(machine->fd, file, SIZE, 0) == SIZE);
    assert(memcmp(file, machine->shown, SIZE) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct machine *machine = calloc(1, sizeof *machine);
    if (!machine)
        return 0;
    machine->fd = memfd_create("flash", MFD_CLOEXEC);
    if (machine->fd < 0 || ftruncate(machine->fd, SIZE) < 0)
        abort();
    machine->fw_cfg = fw_cfg_new(
        &(struct fw_cfg_config){.read = memory_read, .write = memory_write, .opaque = machine});
    if (fw_cfg_add_file(machine->fw_cfg, "etc/file", data, min(size, (size_t)5000), NULL) < 0 ||
        flash_new(&(struct flash_config){.fd = machine->fd, .size = SIZE, .shown = machine->shown},
                  &machine->flash, NULL) < 0)
        abort();
    for (unsigned i = 0; i < STEPS_MAX && input.left; i++) {
        switch (input_next(&input, 1) % 8) {
        case 0:
        case 1: step_fw_cfg(machine, &input); break;
        case 2: step_dma(machine, &input); break;
        case 3: reload(&fw_cfg_device, machine->fw_cfg, &input); break;
        case 4: reload(&flash_device, machine->flash, &input); break;
        default: step_flash(machine, &input); break;
        }
    }
    check_flash(machine);
    flash_free(machine->flash);
    fw_cfg_free(machine->fw_cfg);
    close(machine->fd);
    free(machine);
    return 0;
}
