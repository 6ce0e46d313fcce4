#include "guest.h"

struct task_segment guest_task;
uint64_t guest_idt[512] __attribute__((aligned(16)));

static struct guest_place *try_place;
static struct fault try_fault;
static void (*handlers[256])(struct frame *frame);
static unsigned failures;
static char command_line[256];
static uint8_t interrupt_stack[8192] __attribute__((aligned(16)));
static void (*volatile cpu_body)(void);
static volatile uint32_t cpu_started;
static uint8_t cpu_stacks[8][8192] __attribute__((aligned(16)));
static unsigned cpu_count;
static uint64_t page_level1[16][512] __attribute__((aligned(4096)));
static unsigned page_level1_used;
static uint64_t spaces[4][3][512] __attribute__((aligned(4096)));
static unsigned space_count;

extern uint32_t ap_stack;
extern const char interrupt_stubs[], ap_begin[], ap_end[];
void guest_start(uint32_t multiboot_info);
void guest_cpu_main(void);
void guest_interrupt(struct frame *frame);

/* The compiler may call these. */
void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
    return start;
}

void *memset(void *to, int byte, size_t n)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return start;
}

void print(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    uint16_t port = 0xe9;
    __asm__ volatile("rep outsb" : "+S"(text), "+c"(length) : "d"(port) : "memory");
}

void print_hex(uint64_t value)
{
    char text[19] = "0x";
    int digits = 16;
    while (digits > 1 && value >> (digits * 4 - 4) == 0)
        digits--;
    for (int i = 0; i < digits; i++)
        text[2 + i] = "0123456789abcdef"[value >> ((digits - 1 - i) * 4) & 15];
    text[2 + digits] = 0;
    print(text);
}

void check(const char *name, bool good)
{
    print(good ? "PASS " : "FAIL ");
    print(name);
    print("\n");
    failures += !good;
}

void check_equal(const char *name, uint64_t got, uint64_t wanted)
{
    if (got == wanted) {
        check(name, true);
        return;
    }
    print("FAIL ");
    print(name);
    print(": got ");
    print_hex(got);
    print(", wanted ");
    print_hex(wanted);
    print("\n");
    failures++;
}

void guest_exit(unsigned code)
{
    for (;;)
        outb(0xf4, (uint8_t)code);
}

void guest_gate(unsigned vector, unsigned ist, unsigned dpl, bool trap)
{
    uint64_t at = (uint64_t)(interrupt_stubs + vector * 16);
    guest_idt[vector * 2] = (at & 0xffff) | (uint64_t)SELECTOR_CODE << 16 | (uint64_t)ist << 32 |
                            (uint64_t)(0x8e | trap | dpl << 5) << 40 | (at >> 16 & 0xffff) << 48;
    guest_idt[vector * 2 + 1] = at >> 32;
}

bool guest_told(const char *word)
{
    for (const char *at = command_line; *at; at++) {
        size_t n = 0;
        while (word[n] && at[n] == word[n])
            n++;
        if (!word[n])
            return true;
    }
    return false;
}

bool guest_emulated(const char *what)
{
    if (!guest_told("emulated"))
        return false;
    print("SKIP ");
    print(what);
    print("\n");
    return true;
}

static void load_idt(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof guest_idt - 1, (uint64_t)guest_idt};
    __asm__ volatile("lidt %0" ::"m"(pointer));
}

void guest_start(uint32_t multiboot_info)
{
    uint64_t task = (uint64_t)&guest_task;
    gdt[SELECTOR_TASK / 8] = (sizeof guest_task - 1) | (task & 0xffffff) << 16 |
                             UINT64_C(0x89) << 40 | (task >> 24 & 0xff) << 56;
    gdt[SELECTOR_TASK / 8 + 1] = task >> 32;
    guest_task.rsp[0] = (uint64_t)interrupt_stack + sizeof interrupt_stack / 2;
    guest_task.ist[0] = (uint64_t)interrupt_stack + sizeof interrupt_stack;
    guest_task.io_map = sizeof guest_task;
    __asm__ volatile("ltr %w0" ::"r"(SELECTOR_TASK));
    for (unsigned vector = 0; vector < 64; vector++)
        guest_gate(vector, 0, 0, false);
    load_idt();
    const uint32_t *info = (const uint32_t *)(uint64_t)multiboot_info;
    if (info[0] & 4) /* a command line; the loader may put the program's name first */
        for (unsigned i = 0; i < sizeof command_line - 1; i++)
            if (!(command_line[i] = ((const char *)(uint64_t)info[4])[i]))
                break;
    guest_main(multiboot_info);
    guest_exit(failures != 0);
}

struct fault guest_try(void (*body)(void *argument), void *argument)
{
    struct guest_place place;
    struct guest_place *outer = try_place;
    if (guest_save(&place) == 0) {
        try_place = &place;
        try_fault.vector = -1;
        body(argument);
        try_fault.vector = -1;
    }
    try_place = outer;
    return try_fault;
}

void guest_handle(unsigned vector, void (*handler)(struct frame *frame))
{
    handlers[vector] = handler;
    if (vector >= 64)
        guest_gate(vector, 0, 0, false);
}

void guest_interrupt(struct frame *frame)
{
    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    try_fault =
        (struct fault){(int)frame->vector, frame->error, frame->rip, cr2_read(), frame->rflags};
    if (try_place)
        guest_return(try_place);
    print("FAIL unexpected exception ");
    print_hex(frame->vector);
    print(" error ");
    print_hex(frame->error);
    print(" at ");
    print_hex(frame->rip);
    print(" cr2 ");
    print_hex(cr2_read());
    print("\n");
    guest_exit(1);
}

void guest_cpu_main(void)
{
    load_idt();
    void (*body)(void) = cpu_body;
    cpu_started = 1;
    body();
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void apic_command(uint32_t id, uint32_t command)
{
    volatile uint32_t *apic = (volatile uint32_t *)0xfee00000;
    apic[0x310 / 4] = id << 24;
    apic[0x300 / 4] = command;
    while (apic[0x300 / 4] & 1 << 12)
        ;
}

void guest_start_cpu(unsigned apic_id, void (*body)(void))
{
    memcpy((void *)0x8000, ap_begin, (size_t)(ap_end - ap_begin));
    ap_stack = (uint32_t)(uint64_t)(cpu_stacks[cpu_count] + sizeof cpu_stacks[0]);
    cpu_count++;
    cpu_body = body;
    cpu_started = 0;
    apic_command(apic_id, 0x4500);     /* INIT */
    apic_command(apic_id, 0x4600 | 8); /* SIPI at 0x8000 */
    while (!cpu_started)
        __asm__ volatile("pause");
}

uint64_t *guest_page(uint64_t address)
{
    uint64_t *large = &page_level2[address >> 21];
    if (*large & 0x80) {
        uint64_t *table = page_level1[page_level1_used++];
        uint64_t base = *large & ~UINT64_C(0x1fffff);
        for (unsigned i = 0; i < 512; i++)
            table[i] = base + i * 4096 + 3;
        *large = (uint64_t)table | 7;
        cr3_write(cr3_read());
    }
    uint64_t *table = (uint64_t *)(*large & ~UINT64_C(0xfff));
    return &table[address >> 12 & 511];
}

void guest_map(uint64_t address, uint64_t entry)
{
    *guest_page(address) = entry;
    invlpg(address);
}

uint64_t guest_space(uint64_t address, uint64_t **ret_table)
{
    guest_page(address);
    uint64_t(*space)[512] = spaces[space_count++];
    unsigned gigabyte = address >> 30 & 3, large = address >> 21 & 511;
    uint64_t *table = page_level1[page_level1_used++];
    memcpy(table, (void *)(page_level2[address >> 21] & ~UINT64_C(0xfff)), 4096);
    memcpy(space[0], page_level4, 4096);
    memcpy(space[1], page_level3, 4096);
    memcpy(space[2], page_level2 + gigabyte * 512, 4096);
    space[0][0] = (uint64_t)space[1] | 7;
    space[1][gigabyte] = (uint64_t)space[2] | 7;
    space[2][large] = (uint64_t)table | 7;
    *ret_table = table;
    return (uint64_t)space[0];
}
