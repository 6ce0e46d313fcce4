#include "engine.h"

#include "cpu/kvm/probe.h"

#include <errno.h>
#include <stdio.h>

int engine_choose(enum guest_engine wanted, int kvm_fd, const struct engine_ops **ret_engine,
                  char why[ENGINE_WHY_MAX], struct err *err)
{
    struct kvm_probe probe = {.why = "there is no usable /dev/kvm"};
    switch (wanted) {
    case GUEST_ENGINE_SOFT:
        *ret_engine = &engine_soft;
        snprintf(why, ENGINE_WHY_MAX, "asked for");
        return 0;
    case GUEST_ENGINE_KVM:
        if (kvm_fd < 0)
            return err_set(err, -ENODEV,
                           "engine kvm: /dev/kvm could not be opened; load the kvm module, join "
                           "the group kvm, or use --engine soft");
        *ret_engine = &engine_kvm;
        snprintf(why, ENGINE_WHY_MAX, "asked for");
        return 0;
    default: break;
    }
    if (kvm_fd >= 0)
        kvm_probe(NULL, kvm_fd, &probe);
    *ret_engine = probe.works && probe.fast ? &engine_kvm : &engine_soft;
    snprintf(why, ENGINE_WHY_MAX, "%s", probe.why);
    return 0;
}
