/* Network cards and forwarded ports, as people write them and as JSON. */
#include "base/bytes.h"
#include "base/own.h"
#include "conf/guest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static void cards_are_read(void **state)
{
    struct guest_nic nic;
    struct err err = {0};
    assert_int_equal(guest_nic_parse("user", &nic, &err), 0);
    assert_int_equal(nic.net, GUEST_NET_USER);
    assert_false(nic.host_loopback);
    assert_int_equal(
        guest_nic_parse("user,host-loopback,mac=52:54:00:aB:cd:ef,mtu=1400", &nic, &err), 0);
    assert_true(nic.host_loopback);
    assert_memory_equal(nic.mac, "\x52\x54\x00\xab\xcd\xef", 6);
    assert_int_equal(nic.mtu, 1400);
    assert_int_equal(
        guest_nic_parse("tap=tap0,queues=4,anti-spoof=on,rate-in=1M,rate-out=512K", &nic, &err), 0);
    assert_int_equal(nic.net, GUEST_NET_TAP);
    assert_string_equal(nic.tap, "tap0");
    assert_int_equal(nic.queues, 4);
    assert_true(nic.anti_spoof);
    assert_int_equal(nic.rate_in, MIB(1));
    assert_int_equal(nic.rate_out, KIB(512));
}

static void wrong_cards_are_explained(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "there are user and tap=NAME"},
        {"bridge", "'bridge' is no kind of network"},
        {"user=x", "takes no value"},
        {"tap", "tap=tap0"},
        {"tap=", "tap=tap0"},
        {"tap=a-name-that-is-too-long", "no name of an interface"},
        {"tap=../x", "no name of an interface"},
        {"tap=t%d", "no name of an interface"},
        {"user,mac=1:2:3:4:5:6", "52:54:00:12:34:56"},
        {"user,mac=53:54:00:12:34:56", "even"},
        {"user,mac=00:00:00:00:00:00", "even"},
        {"user,mac", "is no MAC"},
        {"user,mac=52:54:00:12:34:567", "is no MAC"},
        {"user,mtu=67", "from 68 to 65535"},
        {"user,mtu=65536", "from 68 to 65535"},
        {"user,queues=2", "one queue"},
        {"tap=t,queues=0", "from 1 to 8"},
        {"tap=t,queues=9", "from 1 to 8"},
        {"tap=t,host-loopback", "for user networks"},
        {"user,anti-spoof=maybe", "on or off"},
        {"user,rate-in=fast", "rate-in: 'fast' is no size"},
        {"user,color=red", "'color' is nothing"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct guest_nic nic;
        struct err err = {0};
        assert_int_equal(guest_nic_parse(cases[i].text, &nic, &err), -EINVAL);
        if (!strstr(err.text, cases[i].message))
            fail_msg("%s: '%s' does not hold '%s'", cases[i].text, err.text, cases[i].message);
    }
}

static void forwards_are_read(void **state)
{
    static const struct {
        const char *text, *address;
        unsigned host, guest;
        bool udp;
    } cases[] = {
        {"2222:22", "", 2222, 22, false},
        {"53:5353/udp", "", 53, 5353, true},
        {"80:80/tcp", "", 80, 80, false},
        {"127.0.0.1:2222:22", "127.0.0.1", 2222, 22, false},
        {"[::1]:65535:1/udp", "::1", 65535, 1, true},
    };
    static const char *const bad[] = {
        "",         "22",    "0:22",          "22:0",          "65536:1",
        "a:1",      "1:2:3", "1.2.3:4:5",     "::1:22:22",     "[::1:22:22",
        "1:2/icmp", "1:2/",  "[1.2.3.4]:1:2", "localhost:1:2", ":1:2",
        "1:",       ":1",
    };
    struct guest_forward forward;
    struct err err = {0};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(guest_forward_parse(cases[i].text, &forward, &err), 0);
        assert_string_equal(forward.address, cases[i].address);
        assert_int_equal(forward.host, cases[i].host);
        assert_int_equal(forward.guest, cases[i].guest);
        assert_int_equal(forward.udp, cases[i].udp);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (guest_forward_parse(bad[i], &forward, &err) != -EINVAL)
            fail_msg("'%s' was read", bad[i]);
}

static void a_forwarded_port_wants_a_user_network(void **state)
{
    struct guest_conf conf;
    struct err err = {0};
    guest_conf_init(&conf);
    assert_int_equal(guest_conf_add_forward(&conf, "2222:22", &err), 0);
    assert_int_equal(conf.nic_count, 1); /* made for it */
    assert_int_equal(conf.nics[0].net, GUEST_NET_USER);
    assert_int_equal(guest_conf_set_nets(&conf, "tap=t0  user", &err), 0);
    assert_int_equal(guest_conf_add_forward(&conf, "2222:22", &err), 0);
    assert_int_equal(conf.nics[0].forward_count, 0);
    assert_int_equal(conf.nics[1].forward_count, 1);
    assert_int_equal(guest_conf_set_nets(&conf, "tap=t0", &err), 0);
    assert_int_equal(guest_conf_add_forward(&conf, "2222:22", &err), -EINVAL);
    assert_non_null(strstr(err.text, "tap"));
    assert_int_equal(guest_conf_set_nets(&conf, "none", &err), 0);
    assert_int_equal(conf.nic_count, 0);
    for (unsigned i = 0; i < GUEST_FORWARDS_MAX; i++)
        assert_int_equal(guest_conf_add_forward(&conf, "1:1", &err), 0);
    assert_int_equal(guest_conf_add_forward(&conf, "1:1", &err), -EINVAL);
    for (unsigned i = 1; i < GUEST_NICS_MAX; i++)
        assert_int_equal(guest_conf_add_net(&conf, "user", &err), 0);
    assert_int_equal(guest_conf_add_net(&conf, "user", &err), -EINVAL);
    guest_conf_free(&conf);
}

static void vmconf_has_networks(void **state)
{
    static const char text[] = "publish = \"2222:22 127.0.0.1:53:53/udp\"\n"
                               "net = \"tap=t0,anti-spoof user\"\n";
    static const char wrong[] = "net = \"tap=t0\"\npublish = \"2222:22\"\n";
    struct guest_conf conf;
    struct err err = {0};
    guest_conf_init(&conf);
    assert_int_equal(guest_conf_read_vmconf(&conf, text, strlen(text), "f", &err), 0);
    assert_int_equal(conf.nic_count, 2);
    assert_true(conf.nics[0].anti_spoof);
    assert_int_equal(conf.nics[1].forward_count, 2);
    assert_true(conf.nics[1].forwards[1].udp);
    assert_int_equal(guest_conf_read_vmconf(&conf, wrong, strlen(wrong), "f", &err), -EINVAL);
    assert_non_null(strstr(err.text, "f:2:12: ports are forwarded to a user network"));
    assert_int_equal(conf.nic_count, 2);
    guest_conf_free(&conf);
}

static void json_goes_round(void **state)
{
    static const char text[] =
        "{\"nics\": [{\"net\": \"user\", \"mac\": \"52:54:00:00:00:01\", \"mtu\": 1500,"
        "\"forward\": [\"2222:22\", \"[::1]:53:53/udp\"], \"host_loopback\": true, \"fds\": [7]},"
        "{\"net\": \"tap\", \"tap\": \"t0\", \"queues\": 2, \"anti_spoof\": true,"
        "\"rate_in\": \"1M\", \"rate_out\": 4096, \"fds\": [8, 9]}]}";
    struct guest_conf conf, again;
    struct err err = {0};
    guest_conf_init(&conf);
    guest_conf_init(&again);
    assert_int_equal(guest_conf_read_json(&conf, text, strlen(text), "f", &err), 0);
    assert_int_equal(conf.nic_count, 2);
    assert_string_equal(conf.nics[0].forwards[1].address, "::1");
    assert_int_equal(conf.nics[1].rate_in, MIB(1));
    assert_int_equal(conf.nics[1].fds[1], 9);
    _cleanup_free_ char *json = guest_conf_write_json(&conf);
    assert_int_equal(guest_conf_read_json(&again, json, strlen(json), "g", &err), 0);
    assert_memory_equal(conf.nics, again.nics, sizeof conf.nics);
    assert_int_equal(again.nic_count, 2);
    guest_conf_free(&conf);
    guest_conf_free(&again);
}

static void wrong_json_is_explained(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\"nics\": {}}", "array of at most 8"},
        {"{\"nics\": [7]}", "objects like"},
        {"{\"nics\": [{\"net\": \"bridge\"}]}", "no kind of network"},
        {"{\"nics\": [{\"net\": \"tap\"}]}", "needs the name"},
        {"{\"nics\": [{\"net\": \"user\", \"mtu\": \"1500\"}]}", "mtu: must be a number"},
        {"{\"nics\": [{\"net\": \"user\", \"mtu\": 10}]}", "from 68"},
        {"{\"nics\": [{\"net\": \"user\", \"forward\": [22]}]}", "forward: must be a string"},
        {"{\"nics\": [{\"net\": \"user\", \"fds\": [-1]}]}", "fds: must hold descriptors"},
        {"{\"nics\": [{\"net\": \"user\", \"color\": 1}]}", "color: no network card has it"},
        {"{\"nics\": [{\"net\": \"user\", \"anti_spoof\": 1}]}", "true or false"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct guest_conf conf;
        struct err err = {0};
        guest_conf_init(&conf);
        assert_int_equal(
            guest_conf_read_json(&conf, cases[i].text, strlen(cases[i].text), "f", &err), -EINVAL);
        if (!strstr(err.text, cases[i].message))
            fail_msg("%s: '%s' does not hold '%s'", cases[i].text, err.text, cases[i].message);
        assert_int_equal(conf.nic_count, 0);
        guest_conf_free(&conf);
    }
}

static void macs_are_stable_and_local(void **state)
{
    uint8_t seen[200][6];
    char name[16];
    for (unsigned i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "guest-%u", i);
        for (unsigned card = 0; card < 2; card++) {
            uint8_t again[6], *mac = seen[2 * i + card];
            guest_nic_mac(name, card, mac);
            guest_nic_mac(name, card, again);
            assert_memory_equal(mac, again, 6);
            assert_int_equal(mac[0] & 3, 2);
        }
    }
    for (unsigned i = 0; i < 200; i++)
        for (unsigned j = 0; j < i; j++)
            assert_memory_not_equal(seen[i], seen[j], 6);
    /* What was given out once is given out for ever. */
    guest_nic_mac("web", 0, seen[0]);
    assert_memory_equal(seen[0], "\x96\x4e\xbb\x6c\x76\x1d", 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cards_are_read),
        cmocka_unit_test(wrong_cards_are_explained),
        cmocka_unit_test(forwards_are_read),
        cmocka_unit_test(a_forwarded_port_wants_a_user_network),
        cmocka_unit_test(vmconf_has_networks),
        cmocka_unit_test(json_goes_round),
        cmocka_unit_test(wrong_json_is_explained),
        cmocka_unit_test(macs_are_stable_and_local),
    };
    return cmocka_run_group_tests_name("network cards of a definition", tests, NULL, NULL);
}
