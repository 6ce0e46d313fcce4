#include "base/bytes.h"
#include "base/own.h"
#include "conf/guest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef int reader(struct guest_conf *, const char *, size_t, const char *, struct err *);

static void expect_error(reader *read, const char *text, const char *message)
{
    struct guest_conf conf;
    struct err err = {0};
    guest_conf_init(&conf);
    conf.memory = MIB(77);
    assert_int_equal(read(&conf, text, strlen(text), "f", &err), -EINVAL);
    if (!strstr(err.text, message))
        fail_msg("'%s' does not hold '%s'", err.text, message);
    assert_int_equal(conf.memory, MIB(77)); /* an error changes nothing */
    assert_null(conf.kernel);
    guest_conf_free(&conf);
}

static void vmconf_reads_the_file_of_the_manual(void **state)
{
    static const char text[] = "# a guest\n"
                               "kernel = \"/boot/vmlinuz\"\n"
                               "initrd = \"/boot/initrd.img\"\n\n"
                               "appended = \"console=ttyS0\"   # its console\n"
                               "root = \"/dev/sda1\"\n"
                               "  mem=\"1.5G\"\r\n"
                               "vcpus = \"3\"\n"
                               "code_cache = \"128M\"\n"
                               "translate = \"never\"\ncpu = \"host\"\n"
                               "vsock = \"a,,b.vsock,cid=7\"\n"
                               "share = \"/s/a,,b\"\n"
                               "share = \"src,ro,tag=code,at=/home/me/code\"\n"
                               "disk = \"/d/a,,b.img,ro,cache=none,iops=500\"\n"
                               "disk = \"two.qcow2,format=qcow2,serial=x y,bps=1.5M\"\n"
                               "watchdog = \"event\"\nballoon = \"off\"\n"
                               "name = \"a \\\"b\\\\\"";
    struct guest_conf conf;
    struct err err = {0};
    guest_conf_init(&conf);
    assert_int_equal(guest_conf_read_vmconf(&conf, text, strlen(text), "vm.conf", &err), 0);
    assert_string_equal(conf.kernel, "/boot/vmlinuz");
    assert_string_equal(conf.initrd, "/boot/initrd.img");
    assert_string_equal(conf.append, "console=ttyS0 root=/dev/sda1");
    assert_string_equal(conf.name, "a \"b\\");
    assert_int_equal(conf.memory, MIB(1536));
    assert_int_equal(conf.cpus, 3);
    assert_int_equal(conf.code_cache, MIB(128));
    assert_int_equal(conf.translate, GUEST_TRANSLATE_NEVER);
    assert_string_equal(conf.vsock.path, "a,b.vsock");
    assert_int_equal(conf.vsock.cid, 7);
    assert_int_equal(conf.share_count, 2);
    assert_string_equal(conf.shares[0].path, "/s/a,b");
    assert_string_equal(conf.shares[0].tag, "share");
    assert_string_equal(conf.shares[0].at, "/mnt/share");
    assert_false(conf.shares[0].read_only);
    assert_int_equal(conf.shares[0].fd, -1);
    assert_string_equal(conf.shares[1].tag, "code");
    assert_string_equal(conf.shares[1].at, "/home/me/code");
    assert_true(conf.shares[1].read_only);
    assert_int_equal(conf.disk_count, 2);
    assert_string_equal(conf.disks[0].path, "/d/a,b.img");
    assert_true(conf.disks[0].read_only && conf.disks[0].cache == GUEST_DISK_NONE);
    assert_int_equal(conf.disks[0].iops, 500);
    assert_string_equal(conf.disks[1].path, "two.qcow2");
    assert_int_equal(conf.disks[1].format, GUEST_DISK_QCOW2);
    assert_string_equal(conf.disks[1].serial, "x y");
    assert_int_equal(conf.disks[1].bps, 3 << 19);
    assert_int_equal(conf.watchdog, GUEST_WATCHDOG_EVENT);
    assert_int_equal(conf.cpu, GUEST_CPU_HOST);
    assert_false(conf.balloon);
    assert_int_equal(guest_conf_check(&conf, &err), 0);
    guest_conf_free(&conf);
}

static void vmconf_errors_name_line_and_column(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"kernel = \"/k\"\ncolour = \"red\"\n", "f:2:1: unknown key 'colour'"},
        {"\n  mem = \"0\"", "f:2:10: memory of 0 bytes is too little"},
        {"mem = \"3\"", "f:1:8: memory of 3 bytes is too little; a guest needs at least 16M"},
        {"mem = \"16777217\"", "no multiple of 4K"},
        {"mem = \"lots\"", "f:1:8: memory: 'lots' is no size"},
        {"vcpus = \"0\"", "f:1:10: 0 CPUs: a guest has 1 to 64"},
        {"vcpus = \"300\"", "f:1:10: 300 CPUs"},
        {"vcpus = \"-1\"", "'-1' is no number of CPUs"},
        {"vcpus = 2", "f:1:9: a value in double quotes"},
        {"mem \"512M\"", "f:1:5: '=' is missing"},
        {"mem = \"512M", "f:1:7: the value's closing quote is missing"},
        {"mem = \"512M\nvcpus = \"1\"", "f:1:7: the value's closing quote is missing"},
        {"mem = \"512M\" 1", "f:1:14: only a comment can follow"},
        {"mem = \"64M\"\nmem = \"64M\"", "f:2:1: 'mem' was set on line 1 already"},
        {"name = \"a\\n\"", "f:1:10: after a backslash"},
        {"= \"x\"", "f:1:1: a key must stand here"},
        {"kernel = \"\"", "'kernel' is empty"},
        {"root = \"/dev/sda ro\"", "root must be one word"},
        {"engine = \"qemu\"", "engine 'qemu' is unknown"},
        {"cpu = \"max\"", "cpu 'max' is unknown; there are auto, portable and host"},
        {"translate = \"often\"", "f:1:14: translate 'often' is unknown"},
        {"translate = \"\"", "translate '' is unknown; there are hot, never and always"},
        {"code_cache = \"0\"", "f:1:15: a code cache of 0 bytes is too little; it is 1M to 512M"},
        {"code_cache = \"1048575\"", "of 1048575 bytes is too little"},
        {"code_cache = \"1048577\"", "no multiple of 4K"},
        {"code_cache = \"536875008\"", "of 536875008 bytes is too much; it is 1M to 512M"},
        {"watchdog = \"on\"", "f:1:13: a watchdog is off, event, reset or poweroff, not 'on'"},
        {"balloon = \"yes\"", "f:1:12: a balloon is on or off, not 'yes'"},
        {"share = \"\"", "f:1:10: a share wants a path"},
        {"share = \",ro\"", "a share wants a path"},
        {"share = \"x,rw\"", "'rw' says nothing of a share; there are tag=, at= and ro"},
        {"share = \"x,path=y\"", "the path of a share is its first word"},
        {"share = \"x,tag=\"", "a share's tag has 1 to 36 letters"},
        {"share = \"x,tag=a b\"", "unlike 'a b'"},
        {"share = \"x,tag=a:b\"", "unlike 'a:b'"},
        {"share = \"x,tag=1234567890123456789012345678901234567\"", "a share's tag has 1 to 36"},
        {"share = \"x,at=mnt\"", "is a path from /"},
        {"share = \"x,at=/a b\"", "is a path from /"},
        {"share = \"x,at=/a:ro\"", "is a path from /"},
        {"share = \"x,tag=a\"\nshare = \"y,tag=a\"", "f:2:10: two shares have the tag 'a'"},
        {"disk = \"\"", "f:1:9: a disk wants a path"},
        {"disk = \"x,key_file=-\"", "standard input is the guest's"},
        {"disk = \"x,key_file=\"", "key_file and cacert are paths"},
        {"disk = \"x,rw\"", "f:1:9: 'rw' is no property of a disk; there are ro, format"},
        {"disk = \"x,format=vmdk\"", "disk format 'vmdk' is unknown; there are raw and qcow2"},
        {"disk = \"x,format=probe\"", "disk format 'probe' is unknown"},
        {"disk = \"x,on_full=stop\"", "on_full of a disk is pause or error, not 'stop'"},
        {"disk = \"x,cache=on\"", "there are writeback, none and unsafe"},
        {"disk = \"x,serial=123456789012345678901\"", "is longer than 20 bytes"},
        {"disk = \"x,iops=0\"", "'0' is no number of requests a second"},
        {"disk = \"x,iops=1e3\"", "'1e3' is no number of requests a second"},
        {"disk = \"x,bps=fast\"", "'fast' is no size"},
        {"disk = \"x,iops_burst=5\"", "disk 'x': a burst without a limit"},
        {"vsock = \"\"", "f:1:10: vsock wants a path"},
        {"vsock = \",cid=3\"", "vsock wants a path"},
        {"vsock = \"x,cid=2\"", "f:1:10: a guest's CID is 3 to 4294967294, not 2"},
        {"vsock = \"x,cid=4294967295\"", "not 4294967295"},
        {"vsock = \"x,cid=\"", "'' is no CID"},
        {"vsock = \"x,cid=0x3\"", "'0x3' is no CID"},
        {"vsock = \"x,port=3\"", "'port=3' says nothing of a vsock; there is cid=N"},
        {"vsock = \"x\"\nvsock = \"y\"", "f:2:1: 'vsock' was set on line 1 already"},
        {"code_cache = \"much\"", "f:1:15: code cache: 'much' is no size"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        expect_error(guest_conf_read_vmconf, cases[i].text, cases[i].message);

    struct guest_conf conf;
    struct err err = {0};
    guest_conf_init(&conf);
    assert_int_equal(guest_conf_read_vmconf(&conf, "mem\0 = 1", 8, "f", &err), -EINVAL);
    assert_string_equal(err.text, "f:1:4: a NUL byte; this is no text file");
    guest_conf_free(&conf);
}

static void json_errors_name_line_and_column(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\"cpus\": 2,\n  \"colour\": 1}", "f:2:3: unknown field 'colour'"},
        {"{\"cpus\": 2,\n  \"memory\" 1}", "f:2:12: "},
        {"{\"cpus\": 2,\n\"cpus\": 3}", "f:2:"},
        {"{\"name\": \"cpus\", \"cpus\": 65}", "f:1:18: cpus: 65 CPUs"},
        {"{\"memory\": 3}", "f:1:2: memory: memory of 3 bytes"},
        {"{\"memory\": -1}", "must be a number of bytes"},
        {"{\"kernel\": 3}", "kernel: must be a string"},
        {"{\"engine\": true}", "engine: must be"},
        {"{\"cpu\": 1}", "cpu: must be"},
        {"{\"translate\": 1}", "translate: must be \"hot\", \"never\" or \"always\""},
        {"{\"translate\": \"HOT\"}", "translate 'HOT' is unknown"},
        {"{\"code_cache\": \"64\"}", "code_cache: a code cache of 64 bytes is too little"},
        {"{\"code_cache\": 0}", "code_cache: a code cache of 0 bytes is too little"},
        {"{\"code_cache\": -1}", "code_cache: must be a number of bytes"},
        {"{\"code_cache\": 536870913}", "code_cache: a code cache of 536870913 bytes is too"},
        {"{\"watchdog\": true}", "watchdog: must be \"off\", \"event\", \"reset\" or \"poweroff\""},
        {"{\"watchdog\": \"none\"}", "watchdog: a watchdog is off, event, reset or poweroff"},
        {"{\"balloon\": \"on\"}", "balloon: must be true or false"},
        {"{\"lockstep\": 3}", "lockstep: must be an object"},
        {"{\"lockstep\": {\"role\": \"lead\"}}", "must have a role and an fd"},
        {"{\"lockstep\": {\"role\": \"run\", \"fd\": 3}}", "must be \"lead\" or \"follow\""},
        {"{\"lockstep\": {\"role\": \"lead\", \"fd\": 3, \"x\": 1}}", "'x' is no field"},
        {"{\"lockstep\": {\"role\": \"lead\", \"fd\": 3, \"tlb_entries\": 3}}", "'tlb_entries' is"},
        {"{\"kernel_fd\": 4294967296}", "must be a descriptor"},
        {"{\"consoles\": [{\"fd\": 3, \"x\": 1}]}", "f:1:2: consoles: 'x' is no field"},
        {"{\"consoles\": [1]}", "must hold objects"},
        {"{\"shares\": 1}", "shares: must be an array of at most 8 shares"},
        {"{\"shares\": [1]}", "shares: must hold objects with a path"},
        {"{\"shares\": [{}]}", "shares: a share wants a path"},
        {"{\"shares\": [{\"path\": \"\"}]}", "shares: a share wants a path"},
        {"{\"shares\": [{\"path\": \"x\", \"read_only\": 1}]}", "'read_only' is no field of a"},
        {"{\"shares\": [{\"path\": \"x\", \"fd\": -2}]}", "'fd' is no field of a share"},
        {"{\"shares\": [{\"path\": \"x\", \"color\": \"y\"}]}", "'color' says nothing of a"},
        {"{\"disks\": 1}", "disks: must be an array of at most 8 disks"},
        {"{\"disks\": [1]}", "disks: must hold objects"},
        {"{\"disks\": [{}]}", "disks: a disk wants a path"},
        {"{\"disks\": [{\"path\": \"x\", \"color\": \"y\"}]}", "'color' is no property"},
        {"{\"disks\": [{\"path\": \"x\", \"read_only\": 1}]}", "'read_only' of a disk is no such"},
        {"{\"disks\": [{\"path\": \"x\", \"iops\": -1}]}", "'iops' of a disk is no such number"},
        {"{\"disks\": [{\"path\": \"x\", \"images\": [{\"fd\": 3}]}]}", "an image is an object"},
        {"{\"vsock\": \"x\"}", "vsock: must be an object with a path"},
        {"{\"vsock\": {}}", "vsock: must have a path"},
        {"{\"vsock\": {\"cid\": 3}}", "vsock: must have a path"},
        {"{\"vsock\": {\"path\": \"x\", \"cid\": 0}}", "a guest's CID is 3 to 4294967294, not 0"},
        {"{\"vsock\": {\"path\": \"x\", \"cid\": \"3\"}}", "'cid' is no field of it, or not of"},
        {"{\"vsock\": {\"path\": \"x\", \"port\": 3}}", "'port' is no field"},
        {"[]", "f:1:1: a definition is one object"},
        {"", "f:1:1: "},
        {"{} {}", "f:1:4: "},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        expect_error(guest_conf_read_json, cases[i].text, cases[i].message);
}

static void json_goes_round(void **state)
{
    struct guest_conf conf, back;
    struct err err = {0};
    guest_conf_init(&conf);
    guest_conf_init(&back);
    conf.name = strdup("we\"b");
    conf.kernel = strdup("/boot/vmlinuz-\xc3\xa9");
    guest_conf_append(&conf, "quiet");
    guest_conf_append(&conf, "panic=-1");
    conf.memory = GIB(3);
    conf.cpus = 64;
    assert_int_equal(guest_conf_add_disk(
                         &conf, "a,ro,iops=5,iops_burst=7,serial=s,key_file=k,,1,cacert=c", &err),
                     0);
    assert_int_equal(guest_conf_add_disk(&conf, "b,format=qcow2,cache=unsafe,on_full=error", &err),
                     0);
    assert_int_equal(guest_conf_add_share(&conf, "src,ro", &err), 0);
    assert_int_equal(guest_conf_add_share(&conf, "out,at=/o", &err), 0);
    conf.shares[1].fd = 13;
    assert_int_equal(guest_disk_add_image(&conf.disks[1], "b", 11), 0);
    assert_int_equal(guest_disk_add_image(&conf.disks[1], "base.img", 12), 0);
    conf.disks[1].unlocked = true;
    conf.disks[1].key_fd = 13;
    conf.engine = GUEST_ENGINE_SOFT;
    conf.cpu = GUEST_CPU_PORTABLE;
    conf.translate = GUEST_TRANSLATE_ALWAYS;
    conf.code_cache = GUEST_CODE_CACHE_MAX;
    conf.kernel_fd = 0;
    conf.control_fd = 12;
    conf.balloon = false;
    conf.watchdog = GUEST_WATCHDOG_POWER_OFF;
    conf.lockstep = (struct guest_lockstep){GUEST_LOCKSTEP_FOLLOW, 9, 1000, 16};
    conf.consoles[0].fd = 5;
    conf.consoles[1] = (struct guest_console){strdup("org.lodge.agent"), 6};
    conf.console_count = 2;
    assert_int_equal(guest_conf_set_vsock(&conf, "web.vsock,cid=4294967294", &err), 0);
    conf.vsock.fd = 13;
    _cleanup_free_ char *text = guest_conf_write_json(&conf);
    assert_non_null(text);
    assert_int_equal(guest_conf_read_json(&back, text, strlen(text), "f", &err), 0);
    assert_string_equal(back.name, conf.name);
    assert_string_equal(back.kernel, conf.kernel);
    assert_string_equal(back.append, "quiet panic=-1");
    assert_null(back.initrd);
    assert_false(back.balloon);
    assert_int_equal(back.watchdog, GUEST_WATCHDOG_POWER_OFF);
    assert_int_equal(back.memory, conf.memory);
    assert_int_equal(back.cpus, 64);
    assert_int_equal(back.engine, GUEST_ENGINE_SOFT);
    assert_int_equal(back.cpu, GUEST_CPU_PORTABLE);
    assert_int_equal(back.translate, GUEST_TRANSLATE_ALWAYS);
    assert_int_equal(back.code_cache, GUEST_CODE_CACHE_MAX);
    assert_int_equal(back.kernel_fd, 0);
    assert_int_equal(back.initrd_fd, -1);
    assert_int_equal(back.control_fd, 12);
    assert_int_equal(back.lockstep.role, GUEST_LOCKSTEP_FOLLOW);
    assert_int_equal(back.lockstep.fd, 9);
    assert_int_equal(back.lockstep.instructions, 1000);
    assert_int_equal(back.lockstep.tlb_entries, 16);
    assert_int_equal(back.share_count, 2);
    assert_string_equal(back.shares[0].path, "src");
    assert_string_equal(back.shares[0].at, "/mnt/share");
    assert_true(back.shares[0].read_only && !back.shares[1].read_only);
    assert_int_equal(back.shares[0].fd, -1);
    assert_string_equal(back.shares[1].tag, "share2");
    assert_string_equal(back.shares[1].at, "/o");
    assert_int_equal(back.shares[1].fd, 13);
    assert_int_equal(back.disk_count, 2);
    assert_string_equal(back.disks[0].path, "a");
    assert_true(back.disks[0].read_only && !back.disks[1].read_only);
    assert_int_equal(back.disks[0].iops, 5);
    assert_int_equal(back.disks[0].iops_burst, 7);
    assert_string_equal(back.disks[0].serial, "s");
    assert_null(back.disks[1].serial);
    assert_int_equal(back.disks[0].cache, GUEST_DISK_WRITEBACK);
    assert_int_equal(back.disks[1].cache, GUEST_DISK_UNSAFE);
    assert_int_equal(back.disks[0].on_full, GUEST_DISK_PAUSE);
    assert_int_equal(back.disks[1].on_full, GUEST_DISK_ERROR);
    assert_int_equal(back.disks[1].format, GUEST_DISK_QCOW2);
    assert_string_equal(back.disks[0].key_file, "k,1");
    assert_string_equal(back.disks[0].cacert, "c");
    assert_false(back.disks[0].unlocked);
    assert_true(back.disks[1].unlocked && back.disks[1].key_fd == 13);
    assert_string_equal(back.disks[1].images[1].name, "base.img");
    assert_int_equal(back.disks[1].images[1].fd, 12);
    assert_string_equal(back.vsock.path, "web.vsock");
    assert_int_equal(back.vsock.cid, UINT32_C(4294967294));
    assert_int_equal(back.vsock.fd, 13);
    assert_int_equal(back.console_count, 2);
    assert_null(back.consoles[0].name);
    assert_int_equal(back.consoles[0].fd, 5);
    assert_string_equal(back.consoles[1].name, "org.lodge.agent");
    assert_int_equal(back.consoles[1].fd, 6);
    _cleanup_free_ char *again = guest_conf_write_json(&back);
    assert_string_equal(again, text);
    guest_conf_free(&conf);
    guest_conf_free(&back);
}

/* A descriptor that is forgotten here is one that lodge-vmm does not get. */
static void every_descriptor_is_listed(void **state)
{
    struct guest_conf conf;
    int fds[GUEST_FDS_MAX], fd = 20;
    guest_conf_init(&conf);
    assert_int_equal(guest_conf_fds(&conf, fds), 0);
    conf.console_count = 2;
    conf.disk_count = 2;
    conf.nic_count = 1;
    conf.nics[0].fd_count = 2;
    conf.share_count = 1;
    conf.restore.count = 2;
    assert_int_equal(guest_disk_add_image(&conf.disks[0], "a", -1), 0);
    assert_int_equal(guest_disk_add_image(&conf.disks[1], "b", -1), 0);
    conf.disks[1].unlocked = true;
    conf.disks[0].key_fd = 99; /* of a disk that is not encrypted */
    int *const places[] = {
        &conf.kernel_fd,
        &conf.initrd_fd,
        &conf.kvm_fd,
        &conf.firmware_fd,
        &conf.nvram_fd,
        &conf.serial_in_fd,
        &conf.serial_out_fd,
        &conf.control_fd,
        &conf.listen_fd,
        &conf.lockstep.fd,
        &conf.vsock.fd,
        &conf.consoles[0].fd,
        &conf.consoles[1].fd,
        &conf.disks[0].images[0].fd,
        &conf.disks[1].images[0].fd,
        &conf.disks[1].key_fd,
        &conf.restore.layers[0].state_fd,
        &conf.restore.layers[0].memory_fd,
        &conf.restore.layers[1].state_fd,
        &conf.restore.layers[1].memory_fd,
        &conf.nics[0].fds[0],
        &conf.nics[0].fds[1],
        &conf.shares[0].fd,
    };
    for (size_t i = 0; i < ARRAY_LEN(places); i++)
        *places[i] = fd++;
    assert_int_equal(guest_conf_fds(&conf, fds), ARRAY_LEN(places));
    for (size_t i = 0; i < ARRAY_LEN(places); i++)
        assert_int_equal(fds[i], 20 + i);
    conf.lockstep.fd = -1;
    assert_int_equal(guest_conf_fds(&conf, fds), ARRAY_LEN(places) - 1);
    guest_conf_free(&conf);
}

static void a_vsock_path_fits_an_address(void **state)
{
    struct guest_conf conf;
    struct err err = {0};
    char path[GUEST_VSOCK_PATH_MAX + 2];
    guest_conf_init(&conf);
    assert_int_equal(conf.vsock.cid, 3);
    memset(path, 'x', sizeof path);
    path[GUEST_VSOCK_PATH_MAX + 1] = 0;
    assert_int_equal(guest_conf_set_vsock(&conf, path, &err), -EINVAL);
    assert_null(conf.vsock.path);
    path[GUEST_VSOCK_PATH_MAX] = 0;
    assert_int_equal(guest_conf_set_vsock(&conf, path, &err), 0);
    assert_string_equal(conf.vsock.path, path);
    guest_conf_free(&conf);
}

static void the_engine_chooses_where_nothing_is_said(void **state)
{
    static const char text[] = "{\"kernel\": \"/k\"}";
    struct guest_conf conf;
    struct err err = {0};
    guest_conf_init(&conf);
    assert_int_equal(guest_conf_read_json(&conf, text, strlen(text), "f", &err), 0);
    assert_int_equal(conf.translate, GUEST_TRANSLATE_HOT);
    assert_int_equal(conf.code_cache, 0);
    assert_int_equal(guest_conf_check(&conf, &err), 0);
    conf.code_cache = KIB(4);
    assert_int_equal(guest_conf_check(&conf, &err), -EINVAL);
    guest_conf_free(&conf);
}

static void sizes_are_read_exactly(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes; /* 0 = an error */
    } cases[] = {
        {"512M", MIB(512)},
        {"1G", GIB(1)},
        {"1.5G", MIB(1536)},
        {"1GiB", GIB(1)},
        {"2gb", GIB(2)},
        {"64k", KIB(64)},
        {"1T", GIB(1024)},
        {"268435456", MIB(256)},
        {"3", 3},
        {"7B", 7},
        {"0.5K", 512},
        {"18446744073709551615", UINT64_MAX},
        {"18446744073709551616", 0},
        {"16777216T", 0},
        {"0", 0},
        {"0M", 0},
        {"", 0},
        {"M", 0},
        {"-1", 0},
        {"1.5", 0},
        {"1.G", 0},
        {"1.5.5G", 0},
        {"1 G", 0},
        {"1P", 0},
        {"1GG", 0},
        {"0x10", 0},
        {"1.1234567890G", 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t bytes = 0;
        struct err err = {0};
        int r = guest_parse_size(cases[i].text, &bytes, &err);
        if (bytes != cases[i].bytes || (r < 0) != (cases[i].bytes == 0))
            fail_msg("'%s' read as %llu (%d)", cases[i].text, (unsigned long long)bytes, r);
        assert_int_equal(r < 0, *err.text != '\0');
    }
}

static void a_definition_without_kernel_is_refused(void **state)
{
    struct guest_conf conf;
    struct err err = {0};
    guest_conf_init(&conf);
    assert_int_equal(guest_conf_check(&conf, &err), -EINVAL);
    assert_non_null(strstr(err.text, "no kernel"));
    conf.kernel_fd = 3;
    assert_int_equal(guest_conf_check(&conf, &err), 0);
    guest_conf_free(&conf);
}

static void refused_with(const struct guest_conf *conf, const char *message)
{
    struct err err = {0};
    assert_int_equal(guest_conf_check(conf, &err), -EINVAL);
    if (!strstr(err.text, message))
        fail_msg("'%s' does not hold '%s'", err.text, message);
}

static void firmware_is_instead_of_a_kernel(void **state)
{
    static const char text[] = "{\"firmware\": \"uefi\", \"nvram\": \"v\", \"firmware_fd\": 5, "
                               "\"nvram_fd\": 6}";
    static const char vmconf[] = "firmware = \"uefi\"\nnvram = \"vars.fd\"\n";
    struct guest_conf conf, back;
    guest_conf_init(&conf);
    assert_int_equal(guest_conf_read_vmconf(&conf, vmconf, strlen(vmconf), "f", NULL), 0);
    assert_string_equal(conf.firmware, GUEST_FIRMWARE_UEFI);
    assert_string_equal(conf.nvram, "vars.fd");
    assert_int_equal(guest_conf_read_json(&conf, text, strlen(text), "f", NULL), 0);
    assert_int_equal(guest_conf_check(&conf, NULL), 0);
    _cleanup_free_ char *written = guest_conf_write_json(&conf);
    guest_conf_init(&back);
    assert_int_equal(guest_conf_read_json(&back, written, strlen(written), "f", NULL), 0);
    assert_string_equal(back.firmware, "uefi");
    assert_string_equal(back.nvram, "v");
    assert_int_equal(back.firmware_fd, 5);
    assert_int_equal(back.nvram_fd, 6);

    conf.kernel_fd = 3;
    refused_with(&conf, "not both");
    conf.kernel_fd = -1;
    conf.memory = MIB(64);
    refused_with(&conf, "too little for firmware");
    conf.memory = MIB(128);
    assert_int_equal(guest_conf_append(&conf, "quiet"), 0);
    refused_with(&conf, "boot loader; leave 'quiet' out");
    *conf.append = '\0';
    assert_int_equal(guest_conf_check(&conf, NULL), 0);
    free(conf.firmware);
    conf.firmware = NULL;
    conf.firmware_fd = -1;
    conf.kernel_fd = 3;
    refused_with(&conf, "nvram is the firmware's");
    guest_conf_free(&conf);
    guest_conf_free(&back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vmconf_reads_the_file_of_the_manual),
        cmocka_unit_test(vmconf_errors_name_line_and_column),
        cmocka_unit_test(json_errors_name_line_and_column),
        cmocka_unit_test(json_goes_round),
        cmocka_unit_test(every_descriptor_is_listed),
        cmocka_unit_test(a_vsock_path_fits_an_address),
        cmocka_unit_test(the_engine_chooses_where_nothing_is_said),
        cmocka_unit_test(sizes_are_read_exactly),
        cmocka_unit_test(a_definition_without_kernel_is_refused),
        cmocka_unit_test(firmware_is_instead_of_a_kernel),
    };
    return cmocka_run_group_tests_name("conf", tests, NULL, NULL);
}
