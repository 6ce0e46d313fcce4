// needs: base mem cpu cpu/kvm cpu/soft bus chip chip/state disk virtio board
/*
 * The loaders against hostile files. The input is a kernel, loaded into a guest of 32 MiB (so that
 * ordinary kernels' addresses exist and bombs do not fit); its first byte also chooses whether the
 * same bytes serve as the initrd. What the loader promises is checked: an entry inside the guest,
 * or one phrase that says why not.
 */
#include "base/bytes.h"
#include "board/load.h"

#include <assert.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    struct mem *mem = mem_new();
    assert(mem && mem_add(mem, 0, MIB(32), false, NULL) == 0);
    int fd = memfd_create("kernel", MFD_CLOEXEC);
    assert(fd >= 0 && write(fd, data + 1, size - 1) == (ssize_t)(size - 1));

    const struct load_range ranges[] = {{0, 0x9fc00, LOAD_RANGE_RAM},
                                        {0xe0000, 0x20000, LOAD_RANGE_RESERVED},
                                        {MIB(1), MIB(31), LOAD_RANGE_RAM}};
    const struct load_request request = {.mem = mem,
                                         .kernel_fd = fd,
                                         .initrd_fd = data[0] & 1 ? fd : -1,
                                         .command_line = "console=ttyS0",
                                         .ranges = ranges,
                                         .range_count = ARRAY_LEN(ranges),
                                         .rsdp = 0xe0000};
    struct load_entry entry;
    struct err err = {0};
    if (load_kernel(&request, &entry, &err) == 0) {
        assert(mem_at(mem, entry.rip, 1, false) && mem_at(mem, entry.info, 4, false));
        struct cpu_state state;
        cpu_state_reset(&state, 0);
        load_entry_state(&entry, &state);
    } else {
        assert(err.text[0]);
    }
    close(fd);
    mem_free(mem);
    return 0;
}
