/*
 * Repeated string instructions over memory that is paged on demand: at each fault the registers say
 * how many elements are done, and memory says the same. The code is in faultstrings_code.S.
 */
#include "demand.h"

enum { FLAGS = 0xcd5 };

enum string_kind { MOVS, STOS, LODS, CMPS, SCAS };

struct string {
    const char *name;
    demand_loop *run;
    const char *at;
    enum string_kind kind;
    int step; /* bytes, negative where it goes down */
};

#define STRING(text, kind, step)                                                                   \
    {                                                                                              \
        "rep " #text, string_##text, string_##text##_at, kind, step                                \
    }
#define DECLARE(text)                                                                              \
    extern demand_loop string_##text;                                                              \
    extern const char string_##text##_at[]
DECLARE(movsb);
DECLARE(movsw);
DECLARE(movsd);
DECLARE(movsq);
DECLARE(movsb_down);
DECLARE(movsq_down);
DECLARE(stosb);
DECLARE(stosw);
DECLARE(stosd);
DECLARE(stosq);
DECLARE(stosd_down);
DECLARE(lodsb);
DECLARE(lodsq);
DECLARE(cmpsb);
DECLARE(cmpsw);
DECLARE(cmpsd);
DECLARE(cmpsq_down);
DECLARE(scasb);
DECLARE(scasw);
DECLARE(scasq);

static const struct string strings[] = {
    STRING(movsb, MOVS, 1), STRING(movsw, MOVS, 2),       STRING(movsd, MOVS, 4),
    STRING(movsq, MOVS, 8), STRING(movsb_down, MOVS, -1), STRING(movsq_down, MOVS, -8),
    STRING(stosb, STOS, 1), STRING(stosw, STOS, 2),       STRING(stosd, STOS, 4),
    STRING(stosq, STOS, 8), STRING(stosd_down, STOS, -4), STRING(lodsb, LODS, 1),
    STRING(lodsq, LODS, 8), STRING(cmpsb, CMPS, 1),       STRING(cmpsw, CMPS, 2),
    STRING(cmpsd, CMPS, 4), STRING(cmpsq_down, CMPS, -8), STRING(scasb, SCAS, 1),
    STRING(scasw, SCAS, 2), STRING(scasq, SCAS, 8),
};
static const struct string *string;

static bool check_string(struct frame *frame, uint64_t address)
{
    int64_t done = (int64_t)(demand_total - frame->rcx), step = string->step;
    unsigned size = (unsigned)(step < 0 ? -step : step);
    uint64_t one = demand_from + (uint64_t)(done * step), two = demand_to + (uint64_t)(done * step);
    bool reads = string->kind != STOS && string->kind != SCAS;
    bool writes = string->kind == MOVS || string->kind == STOS;
    (void)address;
    /* As CMP left them; but SCAS may show its last comparison: Intel's manual says no, AMD's
     * processors do. */
    uint64_t flags = frame->rflags & FLAGS;
    if (flags != (0x44 | (step < 0 ? 0x400 : 0)) &&
        !(string->kind == SCAS && done && flags == 0x81))
        return false;
    if (reads && frame->rsi != one)
        return false;
    if (string->kind != LODS && frame->rdi != two)
        return false;
    if (writes) { /* the element before is there, this one is not */
        const volatile uint8_t *last = at(two - (uint64_t)step), *now = at(two);
        for (unsigned i = 0; i < size; i++)
            if (now[i] != 0xff || (done && last[i] == 0xff))
                return false;
    }
    return (reads && demand_at(frame, string->at, one, size, false)) ||
           (string->kind != LODS && demand_at(frame, string->at, two, size, writes));
}

/* One instruction of `count` elements. CMPS and SCAS find what ends them in element `stop`. */
static void run_once(uint64_t source_offset, uint64_t target_offset, uint64_t count, uint64_t stop)
{
    unsigned size = (unsigned)(string->step < 0 ? -string->step : string->step);
    bool down = string->step < 0, seeks = string->kind == CMPS || string->kind == SCAS;
    uint64_t back = down ? (count - 1) * size : 0; /* from the first element to the lowest */
    demand_choose(source_offset, target_offset, count);
    uint8_t *source = at(demand_from - back), *target = at(demand_to - back);
    for (uint64_t i = 0; i < count * size; i++)
        source[i] = (uint8_t)(i % 251);
    if (string->kind == CMPS)
        memcpy(target, source, count * size);
    else /* REPE SCASW, the others REPNE */
        memset(target,
               string->kind == MOVS || string->kind == STOS ? 0xff
               : string->step == 2                          ? 0x5a
                                                            : 0x77,
               count * size);
    if (stop < count && string->kind == CMPS)
        *(uint8_t *)at(demand_to + (uint64_t)(string->step * (int64_t)stop)) ^= 0x80;
    if (stop < count && string->kind == SCAS)
        memset(at(demand_to + stop * size), string->step == 2 ? 0x77 : 0x5a, size);
    uint64_t left = demand_run(string->run);
    WRONG(left != (seeks && stop < count ? count - 1 - stop : 0));
    for (uint64_t i = 0; i < count * size; i++)
        if (string->kind == MOVS)
            WRONG(target[i] != (uint8_t)(i % 251));
        else if (string->kind == STOS)
            WRONG(target[i] != 0x5a);
}

static unsigned below(unsigned limit)
{
    return (unsigned)((demand_random() >> 32) % limit);
}

/* Many short ones over the end of a page, so that they are hot, and a long one. */
static void run_string(unsigned pass)
{
    unsigned size = (unsigned)(string->step < 0 ? -string->step : string->step);
    uint64_t odd = pass * 3, long_count = (SIZE - 4096) / size;
    for (unsigned i = 0; i < 150; i++) {
        uint64_t count = 1 + below(40), one = 4096 * (1 + below(30)), two = 4096 * (1 + below(30));
        one -= below((unsigned)count * size + 16);
        two -= below((unsigned)count * size + 16);
        if (string->step < 0)
            one += count * size, two += count * size;
        run_once(one, two, count, below(2) ? below((unsigned)count) : count);
    }
    if (string->step < 0)
        run_once(SIZE - 64 + odd, SIZE - 64 + odd, long_count, long_count - 100);
    else
        run_once(odd, odd, long_count, long_count - 100);
}

static void all_strings(unsigned pass)
{
    demand_check = check_string;
    for (string = strings; string < strings + sizeof strings / sizeof strings[0]; string++) {
        uint64_t before = demand_wrong;
        run_string(pass);
        if (demand_wrong != before) {
            print("wrong: ");
            print(string->name);
            print("\n");
        }
    }
}

void guest_main(uint32_t multiboot_info)
{
    (void)multiboot_info;
    if (guest_emulated("string instructions of so many elements in ring 0")) {
        check("there is nothing to test", true);
        return;
    }
    demand_begin();
    demand_often("faults in string instructions", all_strings);
}
