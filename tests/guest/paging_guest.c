/* Paging: permissions, error codes, accessed and dirty bits, aliases, INVLPG, large pages, SMEP,
 * SMAP. */
#include "guest.h"

enum { PAGE = 0x400000 }; /* a page in a 2 MiB page of its own, split by guest_page() */

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40 };
#define NX (UINT64_C(1) << 63)

static void read_page(void *argument)
{
    (void)*(volatile uint64_t *)argument;
}
static void write_page(void *argument)
{
    *(volatile uint64_t *)argument = 1;
}
static void run_page(void *argument)
{
    ((void (*)(void))argument)();
}
static void locked_compare(void *argument)
{
    __asm__ volatile("lock cmpxchg %1, %0"
                     : "+m"(*(uint64_t *)argument)
                     : "r"(UINT64_C(7)), "a"(UINT64_C(0x123456))
                     : "memory");
}
static void across(void *argument)
{
    *(volatile uint64_t *)((char *)argument - 4) = UINT64_C(0x1111111122222222);
}

static uint64_t result(struct fault fault)
{
    return fault.vector < 0 ? UINT64_MAX : (uint64_t)fault.vector << 32 | fault.error;
}

static uint64_t with(uint64_t *entry, uint64_t bits, void (*body)(void *))
{
    *entry = PAGE | bits;
    invlpg(PAGE);
    return result(guest_try(body, (void *)(uint64_t)PAGE));
}

#define PF(error) (UINT64_C(14) << 32 | (error))
#define FINE      UINT64_MAX

static void permissions(uint64_t *entry)
{
    *(volatile uint8_t *)PAGE = 0xc3; /* ret */
    check_equal("read absent", with(entry, 0, read_page), PF(0));
    check_equal("write absent", with(entry, W, write_page), PF(2));
    check_equal("fetch absent", with(entry, 0, run_page), PF(0x10));
    check_equal("write read-only with WP", with(entry, P, write_page), PF(3));
    check_equal("locked compare that fails writes too", with(entry, P, locked_compare), PF(3));
    cr0_write(cr0_read() & ~UINT64_C(0x10000));
    check_equal("write read-only without WP", with(entry, P, locked_compare), FINE);
    cr0_write(cr0_read() | 0x10000);
    check_equal("fetch NX", with(entry, P | W | NX, run_page), PF(0x11));
    check_equal("read NX", with(entry, P | W | NX, read_page), FINE);
    check_equal("fetch", with(entry, P | W, run_page), FINE);
    check_equal("reserved bit", with(entry, P | W | UINT64_C(1) << 51, read_page), PF(9));
}

static void accessed_dirty(uint64_t *entry)
{
    with(entry, P | W, read_page);
    check_equal("a read sets A", *entry & (A | D), A);
    with(entry, P | W, write_page);
    check_equal("a write sets A and D", *entry & (A | D), A | D);
    with(entry, P | W | A, read_page);
    *(volatile uint64_t *)PAGE = 5;
    memory_barrier();
    check_equal("a write after a cached read sets D", *entry & (A | D), A | D);
    with(entry, P, write_page);
    check_equal("a refused write sets no D", *entry & D, 0);
    check_equal("upper levels have A", page_level2[PAGE >> 21] & A, A);
    entry[1] = (PAGE + 4096) | P;
    invlpg(PAGE + 4096);
    *entry = PAGE | P | W;
    invlpg(PAGE);
    *(volatile uint32_t *)(PAGE + 4092) = 0x77777777;
    struct fault fault = guest_try(across, (void *)(uint64_t)(PAGE + 4096));
    check_equal("a write across pages faults", result(fault), PF(3));
    check_equal("CR2 is in the second page", fault.cr2, PAGE + 4096);
    if (!guest_emulated("a write across pages is all or nothing"))
        check_equal("and nothing was written", *(volatile uint32_t *)(PAGE + 4092), 0x77777777);
    entry[1] = (PAGE + 4096) | P | W;
    invlpg(PAGE + 4096);
}

static void aliases(uint64_t *entry)
{
    volatile uint64_t *one = (volatile uint64_t *)PAGE;
    volatile uint64_t *two = (volatile uint64_t *)(PAGE + 4096);
    entry[0] = PAGE | P | W;
    entry[1] = PAGE | P | W;
    cr3_write(cr3_read());
    *one = 42;
    check_equal("an alias sees the write", *two, 42);
    entry[1] = (PAGE + 8192) | P | W;
    invlpg(PAGE + 4096);
    *two = 43;
    check_equal("after INVLPG it is another page", *one, 42);
    entry[2] = (PAGE + 8192) | P | W;
    check_equal("which kept its value", *(volatile uint64_t *)(PAGE + 8192), 43);

    cr4_write(cr4_read() | 0x80); /* PGE */
    entry[1] = (PAGE + 4096) | P | W | 0x100;
    invlpg(PAGE + 4096);
    (void)*two;
    entry[1] = 0;
    cr4_write(cr4_read() & ~UINT64_C(0x80));
    check_equal("clearing PGE flushes global pages",
                result(guest_try(read_page, (void *)(uint64_t)(PAGE + 4096))), PF(0));
    entry[1] = (PAGE + 4096) | P | W;
}

static void large_pages(void)
{
    uint64_t saved = page_level2[8];
    volatile uint64_t *at = (volatile uint64_t *)(8 * UINT64_C(0x200000) + 0x5000);
    *at = 1;
    (void)at[0x3000];
    page_level2[8] = saved & ~UINT64_C(1);
    invlpg(8 * UINT64_C(0x200000) + 0x100000); /* any address in it */
    check_equal("INVLPG drops the whole large page", result(guest_try(read_page, (void *)at)),
                PF(0));
    page_level2[8] = saved | 0x2000; /* a reserved address bit */
    invlpg((uint64_t)at);
    check_equal("reserved bits of a large page", result(guest_try(read_page, (void *)at)), PF(9));
    page_level2[8] = saved & ~UINT64_C(0x60);
    invlpg((uint64_t)at);
    *at = 2;
    memory_barrier();
    check_equal("A and D of a large page", page_level2[8] & (A | D), A | D);
}

static void supervisor_modes(uint64_t *entry)
{
    uint32_t features[4];
    cpuid(7, 0, features);
    page_level4[0] |= U;
    page_level3[0] |= U;
    *(volatile uint8_t *)PAGE = 0xc3;
    if (features[1] & 1 << 7) {
        check_equal("fetch a user page without SMEP", with(entry, P | W | U, run_page), FINE);
        cr4_write(cr4_read() | 1 << 20);
        check_equal("fetch a user page with SMEP", with(entry, P | W | U, run_page), PF(0x11));
        check_equal("read a user page with SMEP", with(entry, P | W | U, read_page), FINE);
        cr4_write(cr4_read() & ~(UINT64_C(1) << 20));
    } else {
        print("SKIP SMEP\n");
    }
    if (features[1] & 1 << 20 && !guest_emulated("STAC and CLAC")) {
        cr4_write(cr4_read() | 1 << 21);
        check_equal("read a user page with SMAP", with(entry, P | W | U, read_page), PF(1));
        check_equal("write a user page with SMAP", with(entry, P | W | U, write_page), PF(3));
        __asm__ volatile("stac");
        check_equal("with AC it may", with(entry, P | W | U, read_page), FINE);
        __asm__ volatile("clac");
        check_equal("and after CLAC no more", result(guest_try(read_page, (void *)PAGE)), PF(1));
        cr4_write(cr4_read() & ~(UINT64_C(1) << 21));
    } else {
        print("SKIP SMAP\n");
    }
    *entry = PAGE | P | W;
    invlpg(PAGE);
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    uint64_t *entry = guest_page(PAGE);
    permissions(entry);
    accessed_dirty(entry);
    aliases(entry);
    large_pages();
    supervisor_modes(entry);
}
