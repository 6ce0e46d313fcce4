/* What may be written to PAT and the MTRRs: SDM vol. 3, 12.11 and 12.12. They steer nothing here
 * (guest memory is ordinary host memory); guests read back what they wrote. */
#include "cpu/soft/system.h"

enum {
    PAT_TYPES = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7,
    MTRR_TYPES = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6,
    DEF_TYPE_KNOWN = 0xcff,
};

static bool every_byte_in(uint64_t value, unsigned types)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned type = value >> i * 8 & 0xff;
        if (type > 7 || !(types >> type & 1))
            return false;
    }
    return true;
}

static bool type_valid(uint64_t value)
{
    unsigned type = value & 0xff;
    return type <= 7 && MTRR_TYPES >> type & 1;
}

bool mtrr_valid(const struct soft_vcpu *v, enum cpu_msr slot, uint64_t value)
{
    if (slot == CPU_MSR_PAT)
        return every_byte_in(value, PAT_TYPES);
    if (slot == CPU_MSR_MTRR_DEF_TYPE)
        return !(value & ~(uint64_t)DEF_TYPE_KNOWN) && type_valid(value);
    if (slot < CPU_MSR_MTRR_PHYS_BASE0)
        return every_byte_in(value, MTRR_TYPES);
    if (value & ~v->system.physical_mask)
        return false;
    bool base = !((slot - CPU_MSR_MTRR_PHYS_BASE0) & 1);
    return base ? type_valid(value) && !(value & 0xf00) : !(value & 0x7ff);
}
