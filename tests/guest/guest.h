/*
 * guest.h: what a bare-metal test guest stands on.
 *
 * Each *_guest.c is one program with a guest_main(); it runs in 64-bit mode at CPL 0 on a
 * one-to-one mapping of the first 4 GiB. Results go to port 0xe9 as lines "PASS name" and "FAIL
 * name: ..."; the program ends by writing 0 (all passed) or 1 to the debug-exit port 0xf4, so that
 * QEMU and Lodge exit with 1 and 3. The same binaries run under both of our engines, and under QEMU
 * as a check on the tests themselves. Keep them short: where KVM emulates ring 0, an instruction
 * costs microseconds.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct frame { /* what an interrupt stub leaves on the stack */
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

struct guest_place {
    uint64_t slot[8];
};

struct fault { /* what guest_try() caught; vector -1 when nothing was raised */
    int vector;
    uint64_t error, rip, cr2, rflags;
};

struct task_segment {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3, io_map;
} __attribute__((packed));

enum {
    SELECTOR_CODE = 0x08,
    SELECTOR_DATA = 0x10,
    SELECTOR_CODE32 = 0x18,
    SELECTOR_CODE16 = 0x20,
    SELECTOR_TASK = 0x28,
    SELECTOR_USER_CODE32 = 0x3b,
    SELECTOR_USER_DATA = 0x43,
    SELECTOR_USER_CODE = 0x4b,
    SELECTOR_ABSENT = 0x50,
};

extern uint64_t page_level4[512], page_level3[512], page_level2[2048], gdt[11];
extern struct task_segment guest_task;
extern uint64_t guest_idt[512];
extern uint32_t multiboot_magic;

void guest_main(uint32_t multiboot_info);

/* True where the command line says "emulated": this KVM has no hardware under it, and its emulator
 * of ring 0 is known not to have what is asked about. Prints "SKIP what". */
bool guest_emulated(const char *what);

/* True where the command line has that word. */
bool guest_told(const char *word);

/* One line "PASS name" or "FAIL name: got ..., wanted ...". */
void check(const char *name, bool good);
void check_equal(const char *name, uint64_t got, uint64_t wanted);
void print(const char *text);
void print_hex(uint64_t value);
_Noreturn void guest_exit(unsigned code); /* the host's status becomes code << 1 | 1 */

/* Runs `body` and says which exception it raised. */
struct fault guest_try(void (*body)(void *argument), void *argument);
/* Called for `vector` instead of ending a guest_try(); NULL takes it back. */
void guest_handle(unsigned vector, void (*handler)(struct frame *frame));
int guest_save(struct guest_place *place) __attribute__((returns_twice));
_Noreturn void guest_return(struct guest_place *place);
void guest_gate(unsigned vector, unsigned ist, unsigned dpl, bool trap);

/* Starts the other processors with INIT and SIPI, one after another; each runs `body(index)`. */
void guest_start_cpu(unsigned apic_id, void (*body)(void));

void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);

/* A page table entry for `address` at 4 KiB; splits the 2 MiB page it lies in. */
uint64_t *guest_page(uint64_t address);
/* Writes that entry and drops what is cached of it. */
void guest_map(uint64_t address, uint64_t entry);
/* Another address space, the same as the first but for the 2 MiB around `address`: those have a
 * page table of their own, a copy at first, which comes back in *ret_table. Returns its CR3. Pages
 * that are split later are split in the first one only. */
uint64_t guest_space(uint64_t address, uint64_t **ret_table);

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port));
}
static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}
static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline uint16_t inw(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline uint64_t rdmsr(uint32_t index)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}
static inline void wrmsr(uint32_t index, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
}
static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}
static inline void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    __asm__ volatile("cpuid"
                     : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(leaf), "c"(subleaf));
}
#define DEFINE_CONTROL(name)                                                                       \
    static inline uint64_t name##_read(void)                                                       \
    {                                                                                              \
        uint64_t value;                                                                            \
        __asm__ volatile("mov %%" #name ", %0" : "=r"(value));                                     \
        return value;                                                                              \
    }                                                                                              \
    static inline void name##_write(uint64_t value)                                                \
    {                                                                                              \
        __asm__ volatile("mov %0, %%" #name ::"r"(value) : "memory");                              \
    }
DEFINE_CONTROL(cr0)
DEFINE_CONTROL(cr2)
DEFINE_CONTROL(cr3)
DEFINE_CONTROL(cr4)
DEFINE_CONTROL(cr8)
#undef DEFINE_CONTROL

/* What the processor writes into tables behind the compiler's back is read again after this. */
static inline void memory_barrier(void)
{
    __asm__ volatile("" ::: "memory");
}
static inline void invlpg(uint64_t address)
{
    __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory");
}
/* What the architecture asks for after a change of code through another linear address. */
static inline void serialize(void)
{
    uint32_t ignored[4];
    cpuid(0, 0, ignored);
    memory_barrier();
}
static inline void interrupts_on(void)
{
    __asm__ volatile("sti" ::: "memory");
}
/* Interrupts on, for as long as it takes whatever is pending to arrive: a KVM that emulates ring 0
 * looks for interrupts at exits only, so there are some. */
static inline void interrupts_window(void)
{
    __asm__ volatile("sti" ::: "memory");
    for (int i = 0; i < 6; i++)
        outb(0x80, 0);
    __asm__ volatile("cli" ::: "memory");
}
static inline void interrupts_off(void)
{
    __asm__ volatile("cli" ::: "memory");
}
