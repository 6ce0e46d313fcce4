/* "restore" and "listen_fd" of a JSON definition. */
#include "base/own.h"
#include "conf/guest.h"

#include "base/bytes.h"

#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static int read_text(struct guest_conf *conf, const char *text, struct err *err)
{
    guest_conf_init(conf);
    return guest_conf_read_json(conf, text, strlen(text), "definition", err);
}

static void nothing_said_is_a_boot_and_nobody_listens(void **state)
{
    (void)state;
    struct guest_conf conf;
    struct err err = {0};
    assert_int_equal(read_text(&conf, "{\"kernel_fd\": 3}", &err), 0);
    assert_int_equal(conf.restore.count, 0);
    assert_int_equal(conf.listen_fd, -1);
    _cleanup_free_ char *text = guest_conf_write_json(&conf);
    assert_null(strstr(text, "restore"));
    assert_null(strstr(text, "listen_fd"));
    guest_conf_free(&conf);
}

static void a_chain_is_read_in_its_order(void **state)
{
    (void)state;
    struct guest_conf conf;
    struct err err = {0};
    assert_int_equal(read_text(&conf,
                               "{\"listen_fd\": 9, \"restore\": {\"layers\": ["
                               "{\"state_fd\": 5, \"memory_fd\": 6},"
                               "{\"state_fd\": 7, \"memory_fd\": 0}],"
                               "\"same_host\": true, \"verify\": \"never\"}}",
                               &err),
                     0);
    assert_int_equal(conf.listen_fd, 9);
    assert_int_equal(conf.restore.count, 2);
    assert_int_equal(conf.restore.layers[0].state_fd, 5);
    assert_int_equal(conf.restore.layers[0].memory_fd, 6);
    assert_int_equal(conf.restore.layers[1].state_fd, 7);
    assert_int_equal(conf.restore.layers[1].memory_fd, 0);
    assert_true(conf.restore.same_host);
    assert_int_equal(conf.restore.verify, GUEST_VERIFY_NEVER);
    /* It needs no kernel: it does not boot. */
    assert_int_equal(guest_conf_check(&conf, &err), 0);
    guest_conf_free(&conf);
}

static void a_chain_goes_round(void **state)
{
    (void)state;
    for (unsigned count = 1; count <= GUEST_LAYERS_MAX; count += 5) {
        struct guest_conf conf, back;
        struct err err = {0};
        guest_conf_init(&conf);
        conf.kernel_fd = 3;
        conf.listen_fd = 0;
        conf.restore.count = count;
        conf.restore.same_host = count % 2;
        conf.restore.verify = count % GUEST_VERIFY_MAX;
        for (unsigned i = 0; i < count; i++) {
            conf.restore.layers[i].state_fd = (int)i;
            conf.restore.layers[i].memory_fd = INT_MAX - (int)i;
        }
        _cleanup_free_ char *text = guest_conf_write_json(&conf);
        assert_int_equal(read_text(&back, text, &err), 0);
        assert_int_equal(back.listen_fd, 0);
        assert_int_equal(back.restore.count, count);
        assert_int_equal(back.restore.same_host, count % 2);
        assert_int_equal(back.restore.verify, count % GUEST_VERIFY_MAX);
        for (unsigned i = 0; i < count; i++) {
            assert_int_equal(back.restore.layers[i].state_fd, i);
            assert_int_equal(back.restore.layers[i].memory_fd, INT_MAX - (int)i);
        }
        _cleanup_free_ char *again = guest_conf_write_json(&back);
        assert_string_equal(again, text);
        guest_conf_free(&conf);
        guest_conf_free(&back);
    }
}

#define LAYER  "{\"state_fd\": 5, \"memory_fd\": 6}"
#define LAYERS "\"layers\": [" LAYER "]"
#define FLAGS  "\"same_host\": false, \"verify\": \"beside\""

static void what_is_no_chain_is_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "[]",
        "7",
        "null",
        "\"x\"",
        "{}",
        "{" FLAGS "}",
        "{\"layers\": [], " FLAGS "}",
        "{\"layers\": {}, " FLAGS "}",
        "{\"layers\": 3, " FLAGS "}",
        "{\"layers\": [7], " FLAGS "}",
        "{\"layers\": [null], " FLAGS "}",
        "{\"layers\": [{}], " FLAGS "}",
        "{\"layers\": [{\"state_fd\": 5}], " FLAGS "}",
        "{\"layers\": [{\"memory_fd\": 5}], " FLAGS "}",
        "{\"layers\": [{\"state_fd\": -1, \"memory_fd\": 6}], " FLAGS "}",
        "{\"layers\": [{\"state_fd\": 5, \"memory_fd\": 2147483648}], " FLAGS "}",
        "{\"layers\": [{\"state_fd\": 5.0, \"memory_fd\": 6}], " FLAGS "}",
        "{\"layers\": [{\"state_fd\": \"5\", \"memory_fd\": 6}], " FLAGS "}",
        "{\"layers\": [{\"state_fd\": 5, \"memory_fd\": 6, \"more\": 7}], " FLAGS "}",
        "{" LAYERS ", \"same_host\": false}",
        "{" LAYERS ", \"same_host\": false, \"verify\": 1}",
        "{" LAYERS ", \"same_host\": false, \"verify\": \"perhaps\"}",
        "{" LAYERS ", \"same_host\": \"yes\", \"verify\": \"beside\"}",
        "{" LAYERS ", \"same_host\": false, \"other\": false}",
        "{" LAYERS ", " FLAGS ", \"more\": 1}",
    };
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct guest_conf conf;
        struct err err = {0};
        char text[512];
        snprintf(text, sizeof text, "{\"kernel_fd\": 3, \"restore\": %s}", wrong[i]);
        if (read_text(&conf, text, &err) != -EINVAL)
            fail_msg("%s was taken", wrong[i]);
        assert_non_null(strstr(err.text, "restore"));
        guest_conf_free(&conf);
    }
}

static void a_chain_has_a_length(void **state)
{
    (void)state;
    for (unsigned count = GUEST_LAYERS_MAX; count <= GUEST_LAYERS_MAX + 1; count++) {
        struct guest_conf conf;
        struct err err = {0};
        char text[2048] = "{\"restore\": {\"layers\": [" LAYER;
        for (unsigned i = 1; i < count; i++)
            strcat(text, ", " LAYER);
        strcat(text, "], " FLAGS "}}");
        assert_int_equal(read_text(&conf, text, &err), count > GUEST_LAYERS_MAX ? -EINVAL : 0);
        guest_conf_free(&conf);
    }
}

static void what_is_no_descriptor_does_not_listen(void **state)
{
    (void)state;
    static const char *const wrong[] = {"-2", "\"3\"", "2147483648", "1.5", "[]", "true"};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct guest_conf conf;
        struct err err = {0};
        char text[64];
        snprintf(text, sizeof text, "{\"kernel_fd\": 3, \"listen_fd\": %s}", wrong[i]);
        if (read_text(&conf, text, &err) != -EINVAL)
            fail_msg("%s was taken", wrong[i]);
        guest_conf_free(&conf);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_said_is_a_boot_and_nobody_listens),
        cmocka_unit_test(a_chain_is_read_in_its_order),
        cmocka_unit_test(a_chain_goes_round),
        cmocka_unit_test(what_is_no_chain_is_refused),
        cmocka_unit_test(a_chain_has_a_length),
        cmocka_unit_test(what_is_no_descriptor_does_not_listen),
    };
    return cmocka_run_group_tests_name("restore", tests, NULL, NULL);
}
