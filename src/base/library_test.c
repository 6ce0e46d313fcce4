/* Libraries that are loaded when they are needed, on one that every process has. */
#include "base/library.h"

#include "base/bytes.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static double (*sym_cbrt)(double);
static void *sym_nothing;

static const struct library_symbol good[] = {LIBRARY_ROW(cbrt)};
static const struct library_symbol bad[] = {LIBRARY_ROW(cbrt) LIBRARY_ROW(nothing)};

static void functions_are_there_once_it_is_loaded(void **state)
{
    (void)state;
    struct library library = {.file = "libm.so.6",
                              .symbols = good,
                              .count = ARRAY_LEN(good),
                              .lock = PTHREAD_MUTEX_INITIALIZER};
    sym_cbrt = NULL;
    assert_int_equal(library_load(&library, NULL), 0);
    assert_non_null(sym_cbrt);
    assert_true(sym_cbrt(27) > 2.999 && sym_cbrt(27) < 3.001);
    /* The second time nothing is looked for. */
    sym_cbrt = NULL;
    assert_int_equal(library_load(&library, NULL), 0);
    assert_null(sym_cbrt);
}

static void what_is_missing_is_named(void **state)
{
    (void)state;
    struct err err = {0};
    struct library none = {.file = "liblodge-has-no-such.so.9", .lock = PTHREAD_MUTEX_INITIALIZER};
    assert_int_equal(library_load(&none, &err), -ENOENT);
    assert_non_null(strstr(err.text, "liblodge-has-no-such.so.9"));
    struct library library = {.file = "libm.so.6",
                              .symbols = bad,
                              .count = ARRAY_LEN(bad),
                              .lock = PTHREAD_MUTEX_INITIALIZER};
    for (int i = 0; i < 2; i++) { /* and again, for it is not loaded */
        err = (struct err){0};
        assert_int_equal(library_load(&library, &err), -ENOENT);
        assert_string_equal(err.text, "libm.so.6 has no nothing");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(functions_are_there_once_it_is_loaded),
        cmocka_unit_test(what_is_missing_is_named),
    };
    return cmocka_run_group_tests_name("library", tests, NULL, NULL);
}
