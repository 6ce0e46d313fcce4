/*
 * guest_fixture.h: what the tests have in common that run guests of a few instructions in 64-bit
 * mode (guest_harness.h): a guest made anew for each test, and RUN(). Included once, by a test.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/soft/guest_harness.h"

static struct guest guest;

static int set_up(void **state)
{
    (void)state;
    guest_begin(&guest, NULL);
    guest_long(&guest, 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    guest_end(&guest);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

/* Until the guest's own HLT, or into the handler of an exception. */
static void run(const uint8_t *code, const uint8_t *end)
{
    enum engine_exit_reason reason = guest_run_bytes(&guest, code, end);
    assert_int_equal(reason, guest_in_handler(&guest) ? ENGINE_EXIT_KICK : ENGINE_EXIT_HALT);
}
#define RUN(code) run(code, code##_end)

static uint64_t reg(enum cpu_gpr number)
{
    return guest.state.gpr[number];
}
