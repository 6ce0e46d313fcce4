#include "mem/mem.h"

#include "base/bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE_SIZE MIB(2)

struct mem *mem_new(void)
{
    struct mem *mem = calloc(1, sizeof *mem);
    if (mem)
        pthread_mutex_init(&mem->advice, NULL);
    return mem;
}

void mem_free(struct mem *mem)
{
    if (!mem)
        return;
    for (unsigned i = 0; i < mem->count; i++) {
        munmap(mem->regions[i].host, mem->regions[i].size);
        munmap(mem->regions[i].marks, mem->regions[i].size >> MEM_PAGE_SHIFT);
    }
    pthread_mutex_destroy(&mem->advice);
    free(mem);
}

/* The host's address and the guest's are the same within a huge page: KVM maps none for a guest
 * where they differ (kvm_alloc_memslot_metadata() in Linux). MAP_FAILED or a mapping of `size`. */
static uint8_t *map_like(uint64_t start, uint64_t size)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    uint64_t slack =
        size >= HUGE_PAGE_SIZE && size <= SIZE_MAX - HUGE_PAGE_SIZE ? HUGE_PAGE_SIZE : 0;
    uint8_t *room = mmap(NULL, size + slack, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (room == MAP_FAILED || !slack)
        return room;
    uint64_t before = (start - (uintptr_t)room) % HUGE_PAGE_SIZE;
    if (before)
        munmap(room, before);
    munmap(room + before + size, slack - before);
    return room + before;
}

int mem_add(struct mem *mem, uint64_t start, uint64_t size, bool read_only, struct err *err)
{
    if (size == 0 || start % MEM_PAGE_SIZE || size % MEM_PAGE_SIZE || start + size < start)
        return err_set(err, -EINVAL, "memory region at 0x%" PRIx64 " of %" PRIu64 " bytes", start,
                       size);
    if (mem->count == MEM_REGIONS_MAX)
        return err_set(err, -ENOMEM, "more than %d memory regions", MEM_REGIONS_MAX);
    unsigned slot = 0;
    while (slot < mem->count && mem->regions[slot].start < start)
        slot++;
    if ((slot > 0 && mem->regions[slot - 1].start + mem->regions[slot - 1].size > start) ||
        (slot < mem->count && start + size > mem->regions[slot].start))
        return err_set(err, -EEXIST, "memory region at 0x%" PRIx64 " overlaps another", start);

    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    uint8_t *host = map_like(start, size);
    if (host == MAP_FAILED)
        return err_errno(err, errno, "cannot map %" PRIu64 " MiB of guest memory", size >> 20);
    uint8_t *marks = mmap(NULL, size >> MEM_PAGE_SHIFT, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (marks == MAP_FAILED) {
        int number = errno;
        munmap(host, size);
        return err_errno(err, number, "cannot map page marks for guest memory");
    }
    /* Advice only: a kernel without it costs speed or a larger core file, not correctness. */
    madvise(host, size, MADV_DONTDUMP);

    for (unsigned i = mem->count; i > slot; i--)
        mem->regions[i] = mem->regions[i - 1];
    mem->regions[slot] = (struct mem_region){
        .start = start, .size = size, .host = host, .marks = marks, .read_only = read_only};
    mem->count++;
    mem_offer_huge(mem, slot, true);
    return 0;
}

const struct mem_region *mem_find(const struct mem *mem, uint64_t gpa)
{
    for (unsigned i = 0; i < mem->count; i++)
        if (gpa - mem->regions[i].start < mem->regions[i].size)
            return &mem->regions[i];
    return NULL;
}

static void *at(const struct mem *mem, uint64_t gpa, uint64_t size, bool write, bool load)
{
    const struct mem_region *region = mem_find(mem, gpa);
    if (!region || !range_fits(gpa - region->start, size, region->size))
        return NULL;
    if (write && region->read_only && !load)
        return NULL;
    return region->host + (gpa - region->start);
}

void *mem_at(const struct mem *mem, uint64_t gpa, uint64_t size, bool write)
{
    return at(mem, gpa, size, write, false);
}

void *mem_at_load(const struct mem *mem, uint64_t gpa, uint64_t size)
{
    return at(mem, gpa, size, true, true);
}

int mem_read(const struct mem *mem, uint64_t gpa, void *to, uint64_t size)
{
    const void *from = at(mem, gpa, size, false, false);
    if (!from)
        return -EFAULT;
    memcpy(to, from, size);
    return 0;
}

int mem_write(struct mem *mem, uint64_t gpa, const void *from, uint64_t size)
{
    void *to = at(mem, gpa, size, true, false);
    if (!to)
        return -EFAULT;
    memcpy(to, from, size);
    mem_written(mem, gpa, size);
    return 0;
}

void mem_note_file(struct mem *mem, uint64_t gpa, uint64_t size)
{
    const struct mem_region *region = mem_find(mem, gpa);
    if (!region || size == 0 || !range_fits(gpa - region->start, size, region->size))
        return;
    uint64_t first = (gpa - region->start) >> MEM_PAGE_SHIFT;
    uint64_t last = (gpa - region->start + size - 1) >> MEM_PAGE_SHIFT;
    for (uint64_t page = first; page <= last; page++)
        __atomic_fetch_or(&region->marks[page], MEM_PAGE_FILE, __ATOMIC_RELAXED);
}

int mem_map_file(struct mem *mem, uint64_t gpa, uint64_t size, int fd, uint64_t offset)
{
    uint8_t *host = at(mem, gpa, size, true, true);
    if (!host || (gpa | size | offset) % MEM_PAGE_SIZE || size == 0)
        return -EFAULT;
    if (mmap(host, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd,
             (off_t)offset) == MAP_FAILED)
        return -errno;
    madvise(host, size, MADV_DONTDUMP);
    mem_note_file(mem, gpa, size);
    return 0;
}

void mem_written(struct mem *mem, uint64_t gpa, uint64_t size)
{
    const struct mem_region *region = mem_find(mem, gpa);
    if (!region || size == 0 || !range_fits(gpa - region->start, size, region->size))
        return;
    uint64_t first = (gpa - region->start) >> MEM_PAGE_SHIFT;
    uint64_t last = (gpa - region->start + size - 1) >> MEM_PAGE_SHIFT;
    bool code = false;
    /* The bytes before the marks: whoever marks a page as code and then reads it sees them, or we
     * see the mark. */
    atomic_thread_fence(memory_order_seq_cst);
    for (uint64_t page = first; page <= last; page++) {
        uint8_t marks = __atomic_load_n(&region->marks[page], __ATOMIC_RELAXED);
        code |= marks & MEM_PAGE_CODE;
        if (mem->dirty_log && !(marks & MEM_PAGE_DIRTY))
            __atomic_fetch_or(&region->marks[page], MEM_PAGE_DIRTY, __ATOMIC_RELAXED);
    }
    if (code && mem->code_written)
        mem->code_written(mem->code_opaque, gpa, size);
}

void mem_observe_code(struct mem *mem, void (*written)(void *opaque, uint64_t gpa, uint64_t size),
                      void *opaque)
{
    mem->code_written = written;
    mem->code_opaque = opaque;
}

bool mem_holds_file(const struct mem_region *region, uint64_t offset, uint64_t size)
{
    for (uint64_t page = offset >> MEM_PAGE_SHIFT; page < (offset + size) >> MEM_PAGE_SHIFT; page++)
        if (__atomic_load_n(&region->marks[page], __ATOMIC_RELAXED) & MEM_PAGE_FILE)
            return true;
    return false;
}

int mem_discard(struct mem *mem, uint64_t gpa, uint64_t size)
{
    uint8_t *host = mem_at(mem, gpa, size, true);
    if (!host)
        return -EFAULT;
    uint64_t start = align_up(gpa, MEM_PAGE_SIZE), end = align_down(gpa + size, MEM_PAGE_SIZE);
    if (start >= end)
        return 0;
    if (madvise(host + (start - gpa), end - start, MADV_DONTNEED) < 0)
        return 0;
    mem_written(mem, start, end - start);
    if (mem->discarded)
        mem->discarded(mem->discard_opaque, start, end - start);
    return 0;
}

void mem_observe_discard(struct mem *mem,
                         void (*discarded)(void *opaque, uint64_t gpa, uint64_t size), void *opaque)
{
    mem->discarded = discarded;
    mem->discard_opaque = opaque;
}

/* Advice again: a kernel without huge pages refuses it. */
static void advise_huge(const struct mem *mem, const struct mem_region *region)
{
    bool huge = region->huge && !mem->keep_small;
    madvise(region->host, region->size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

void mem_offer_huge(struct mem *mem, unsigned index, bool huge)
{
    pthread_mutex_lock(&mem->advice);
    mem->regions[index].huge = huge;
    advise_huge(mem, &mem->regions[index]);
    pthread_mutex_unlock(&mem->advice);
}

void mem_keep_small(struct mem *mem, bool small)
{
    pthread_mutex_lock(&mem->advice);
    if (mem->keep_small != small) {
        mem->keep_small = small;
        for (unsigned i = 0; i < mem->count; i++)
            advise_huge(mem, &mem->regions[i]);
    }
    pthread_mutex_unlock(&mem->advice);
}

/* Mapped anew rather than dropped: a private page of a file that is dropped is the file's again. */
static int region_clear(struct mem *mem, struct mem_region *region)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(region->host, region->size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
        return -errno;
    madvise(region->host, region->size, MADV_DONTDUMP);
    for (uint64_t page = 0; page < region->size >> MEM_PAGE_SHIFT; page++)
        if (__atomic_load_n(&region->marks[page], __ATOMIC_RELAXED) & MEM_PAGE_FILE)
            __atomic_fetch_and(&region->marks[page], (uint8_t)~MEM_PAGE_FILE, __ATOMIC_RELAXED);
    pthread_mutex_lock(&mem->advice);
    advise_huge(mem, region);
    pthread_mutex_unlock(&mem->advice);
    mem_written(mem, region->start, region->size);
    if (mem->discarded)
        mem->discarded(mem->discard_opaque, region->start, region->size);
    return 0;
}

int mem_clear(struct mem *mem)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < mem->count; i++)
        r = region_clear(mem, &mem->regions[i]);
    return r;
}

uint64_t mem_size(const struct mem *mem)
{
    uint64_t size = 0;
    for (unsigned i = 0; i < mem->count; i++)
        if (!mem->regions[i].read_only)
            size += mem->regions[i].size;
    return size;
}
