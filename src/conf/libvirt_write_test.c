/* Definitions as XML, and back. */
#include "base/bytes.h"
#include "base/own.h"
#include "conf/guest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *written(const struct guest_conf *conf, struct guest_notes *notes)
{
    char *text = NULL;
    struct err err = {0};
    if (guest_conf_write_libvirt(conf, &text, notes, &err) < 0)
        fail_msg("%s", err.text);
    return text;
}

static void read_text(struct guest_conf *conf, const char *text)
{
    struct guest_notes notes = {0};
    struct err err = {0};
    guest_conf_init(conf);
    if (guest_conf_read_libvirt(conf, text, strlen(text), "d.xml", &notes, &err) < 0)
        fail_msg("%s", err.text);
    guest_notes_free(&notes);
}

static void goes_round(const char *text)
{
    struct guest_conf one, two;
    struct guest_notes notes = {0};
    read_text(&one, text);
    _cleanup_free_ char *xml = written(&one, &notes);
    assert_int_equal(notes.count, 0);
    read_text(&two, xml);
    _cleanup_free_ char *a = guest_conf_write_json(&one), *b = guest_conf_write_json(&two);
    assert_string_equal(a, b);
    guest_notes_free(&notes);
    guest_conf_free(&one);
    guest_conf_free(&two);
}

static void what_is_written_is_read_back(void **state)
{
    goes_round("<domain type='kvm'><name>a</name></domain>");
    goes_round("<domain type='qemu'><name>a.b</name><memory unit='GB'>3</memory><vcpu>7</vcpu>"
               "<cpu mode='maximum'/><os><type>hvm</type><loader>/c</loader><nvram>/n&lt;</nvram>"
               "</os><on_reboot>destroy</on_reboot><devices>"
               "<watchdog action='reset'/><memballoon model='none'/>"
               "<vsock><cid address='77'/></vsock>"
               "<filesystem><source dir='/a b'/><target dir='t'/><readonly/></filesystem>"
               "<disk type='network'><source protocol='https' name='/x' query='q=1&amp;r'>"
               "<host name='::1' port='8443'/></source></disk>"
               "<disk type='network'><source protocol='http' name='/x'><host name='h.example'/>"
               "</source></disk>"
               "<disk><source file='/q&apos;&quot;.img'/><driver type='qcow2' cache='unsafe' "
               "error_policy='report'/><serial>&lt;1&gt;</serial><iotune><total_bytes_sec>9"
               "</total_bytes_sec><total_bytes_sec_max>99</total_bytes_sec_max>"
               "<total_iops_sec>8</total_iops_sec></iotune></disk>"
               "<interface type='user'><mac address='52:54:00:12:34:56'/><portForward proto='udp' "
               "address='::1'><range start='1' end='3'/></portForward><mtu size='1400'/>"
               "<bandwidth><inbound average='8'/><outbound average='9'/></bandwidth></interface>"
               "<interface type='ethernet'><target dev='tap0' managed='no'/>"
               "<filterref filter='no-mac-spoofing'/><driver queues='2'/></interface>"
               "</devices></domain>");
    goes_round("<domain type='kvm'><name>k</name><os><kernel>/k</kernel><initrd>/i</initrd>"
               "<cmdline>a=&quot;b&#10;c&quot; &amp;amp; d</cmdline></os></domain>");
}

static void what_is_lost_is_noted(void **state)
{
    struct guest_conf conf;
    struct guest_notes notes = {0};
    struct err err = {0};
    char *text = NULL;
    guest_conf_init(&conf);
    conf.engine = GUEST_ENGINE_KVM;
    conf.cpu = GUEST_CPU_PORTABLE;
    conf.code_cache = MIB(64);
    assert_int_equal(guest_conf_add_disk(&conf, "/d,key_file=/k", &err), 0);
    assert_int_equal(guest_conf_add_net(&conf, "user,host-loopback,rate-in=1500", &err), 0);
    assert_int_equal(guest_conf_add_share(&conf, "/s,at=/home", &err), 0);
    assert_int_equal(guest_conf_set_vsock(&conf, "/v", &err), 0);
    _cleanup_free_ char *xml = written(&conf, &notes);
    static const char *const paths[] = {
        "kernel", "cpu",           "name",  "engine", "/d",
        "rate",   "host_loopback", "/home", "/v",     "translate, code_cache"};
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        bool found = false;
        for (unsigned k = 0; k < notes.count; k++)
            found |= !strcmp(notes.list[k].path, paths[i]);
        if (!found)
            fail_msg("no note on %s", paths[i]);
    }
    assert_int_equal(notes.count, ARRAY_LEN(paths) + 1); /* two of the disk */
    guest_notes_free(&notes);
    assert_int_equal(guest_conf_add_disk(&conf, "relative.img", &err), 0);
    assert_int_equal(guest_conf_write_libvirt(&conf, &text, &notes, &err), -EINVAL);
    assert_non_null(strstr(err.text, "'relative.img' is no whole path"));
    guest_notes_free(&notes);
    conf.disk_count = 1;
    free(conf.name);
    conf.name = strdup("a\x01");
    assert_int_equal(guest_conf_write_libvirt(&conf, &text, &notes, &err), -EINVAL);
    guest_notes_free(&notes);
    conf.name[1] = (char)0xff;
    assert_int_equal(guest_conf_write_libvirt(&conf, &text, &notes, &err), -EINVAL);
    assert_non_null(strstr(err.text, "no UTF-8"));
    guest_notes_free(&notes);
    conf.disk_count = 2;
    guest_conf_free(&conf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(what_is_lost_is_noted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
