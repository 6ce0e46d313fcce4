/* The engines of this build. A library of its own: everything else in src/cpu knows no engine, and
 * a test that links one of them need not link the other. */
#include "cpu/engine.h"

const struct engine_ops *const engine_all[] = {&engine_kvm, &engine_soft, NULL};
