/*
 * Definitions as libvirt writes them: what is read, what is noted, what is refused, and what a
 * hostile text does. The schema is asked in tests/test_definitions.py.
 */
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

#define OS      "<os><type>hvm</type><kernel>/k</kernel></os>"
#define DOMAIN  "<domain type='kvm'>" OS
#define DEVICES DOMAIN "<devices>"
#define CLOSE   "</devices></domain>"

struct reading {
    struct guest_conf conf;
    struct guest_notes notes;
    struct err err;
    int r;
};

static void read_sized(struct reading *reading, const char *text, size_t length)
{
    *reading = (struct reading){0};
    guest_conf_init(&reading->conf);
    reading->r = guest_conf_read_libvirt(&reading->conf, text, length, "d.xml", &reading->notes,
                                         &reading->err);
}

static void read_text(struct reading *reading, const char *text)
{
    read_sized(reading, text, strlen(text));
}

static void forget(struct reading *reading)
{
    guest_conf_free(&reading->conf);
    guest_notes_free(&reading->notes);
}

static const struct guest_note *find_note(const struct reading *reading, const char *path)
{
    for (unsigned i = 0; i < reading->notes.count; i++)
        if (!strcmp(reading->notes.list[i].path, path))
            return &reading->notes.list[i];
    return NULL;
}

static void expect_note(const struct reading *reading, enum guest_verdict verdict, const char *path,
                        const char *why)
{
    const struct guest_note *note = find_note(reading, path);
    if (!note)
        fail_msg("no note on %s", path);
    else if (note->verdict != verdict || !strstr(note->why, why))
        fail_msg("%s: %s '%s' does not hold '%s'", path, guest_verdict_name(note->verdict),
                 note->why, why);
}

static void reads(struct reading *reading, const char *text)
{
    read_text(reading, text);
    if (reading->r < 0)
        fail_msg("%s", reading->err.text);
}

static void the_example_of_the_manual(void **state)
{
    struct reading at;
    reads(&at, "<domain type='kvm'><name>centos7</name><memory unit='MB'>2048</memory>"
               "<cpu mode='host-passthrough'/>\n"
               "<disk type='network' device='cdrom'><source protocol='http' name='/centos7.iso'>"
               "<host name='127.0.0.1' port='8000'/></source>"
               "<target dev='sda' bus='virtio'/><readonly/></disk>\n"
               "<interface type='network'><source network='default'/><model type='virtio'/>"
               "</interface>\n"
               "<graphics type='vnc' port='5900' listen='127.0.0.1'/></domain>");
    assert_string_equal(at.conf.name, "centos7");
    assert_int_equal(at.conf.memory, UINT64_C(2048000000));
    assert_int_equal(at.conf.cpu, GUEST_CPU_HOST);
    assert_int_equal(at.conf.engine, GUEST_ENGINE_AUTO);
    assert_string_equal(at.conf.firmware, "uefi");
    assert_true(at.notes.firmware_assumed);
    assert_int_equal(at.conf.disk_count, 1);
    assert_string_equal(at.conf.disks[0].path, "http://127.0.0.1:8000/centos7.iso");
    assert_true(at.conf.disks[0].read_only);
    assert_int_equal(at.conf.disks[0].format, GUEST_DISK_RAW);
    assert_int_equal(at.conf.nic_count, 1);
    assert_int_equal(at.conf.nics[0].net, GUEST_NET_USER);
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain", "firmware uefi");
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/@type", "software engine");
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/disk/target/@dev", "vda");
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/interface/source/@network", "user network");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/graphics", "no screen");
    assert_int_equal(find_note(&at, "/domain/graphics")->line, 4);
    assert_int_equal(at.notes.count, 5);
    forget(&at);
}

static void memory_has_libvirts_units(void **state)
{
    static const struct {
        const char *unit;
        uint64_t number, bytes;
    } rows[] = {
        {"", 524288, MIB(512)},
        {" unit='b'", 67108864, MIB(64)},
        {" unit='bytes'", 67108864, MIB(64)},
        {" unit='KB'", 65536, 65536000},
        {" unit='k'", 65536, MIB(64)},
        {" unit='KiB'", 65536, MIB(64)},
        {" unit='MB'", 512, 512000000},
        {" unit='M'", 64, MIB(64)},
        {" unit='MiB'", 64, MIB(64)},
        {" unit='GB'", 2, 2000003072}, /* whole pages */
        {" unit='G'", 2, GIB(2)},
        {" unit='GiB'", 2, GIB(2)},
        {" unit='TB'", 1, UINT64_C(1000000000000)},
        {" unit='T'", 1, GIB(1024)},
        {" unit='TiB'", 1, GIB(1024)},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct reading at;
        char text[256];
        snprintf(text, sizeof text, DOMAIN "<memory%s>%llu</memory></domain>", rows[i].unit,
                 (unsigned long long)rows[i].number);
        reads(&at, text);
        assert_int_equal(at.conf.memory, rows[i].bytes);
        assert_true((rows[i].bytes == 2000003072) == (find_note(&at, "/domain/memory") != NULL));
        forget(&at);
    }
}

static void a_guest_with_a_kernel(void **state)
{
    struct reading at;
    reads(&at, "<domain type='qemu' id='7'><name>web</name><uuid>x</uuid><memory>262144</memory>\n"
               "<currentMemory unit='MiB'>128</currentMemory><vcpu placement='static' current='2'>4"
               "</vcpu><cpu mode='host-model'><topology sockets='1'/></cpu>\n"
               "<os><type arch='x86_64' machine='q35'>hvm</type><kernel> /boot/k </kernel>"
               "<initrd>/boot/i</initrd><cmdline>a='1' &amp;<!-- no --> b<![CDATA[<]]></cmdline>"
               "<boot dev='hd'/><boot dev='cdrom'/></os>\n"
               "<features><acpi/><pae/><hyperv/></features><clock offset='localtime'/>"
               "<on_reboot>destroy</on_reboot><on_crash>preserve</on_crash>"
               "<devices><memballoon model='none'/><watchdog model='itco' action='poweroff'/>"
               "<vsock><cid auto='no' address='9'/></vsock><serial type='pty'/><serial type='pty'/>"
               "<filesystem type='mount'><driver type='virtiofs'/><source dir='/srv'/>"
               "<target dir='code'/><readonly/></filesystem>"
               "<flux capacitor='1'/></devices></domain>");
    assert_int_equal(at.conf.engine, GUEST_ENGINE_SOFT);
    assert_int_equal(at.conf.memory, MIB(256));
    assert_int_equal(at.conf.cpus, 2);
    assert_int_equal(at.conf.cpu, GUEST_CPU_AUTO);
    assert_string_equal(at.conf.kernel, "/boot/k");
    assert_string_equal(at.conf.initrd, "/boot/i");
    assert_string_equal(at.conf.append, "a='1' & b<");
    assert_null(at.conf.firmware);
    assert_false(at.notes.firmware_assumed || at.conf.balloon);
    assert_int_equal(at.conf.on_reset, GUEST_ON_RESET_EXIT);
    assert_int_equal(at.conf.watchdog, GUEST_WATCHDOG_POWER_OFF);
    assert_string_equal(at.conf.vsock.path, "web.vsock");
    assert_int_equal(at.conf.vsock.cid, 9);
    assert_int_equal(at.conf.share_count, 1);
    assert_string_equal(at.conf.shares[0].tag, "code");
    assert_true(at.conf.shares[0].read_only);
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/@id", "no such setting");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/uuid", "its name");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/currentMemory", "begins with all");
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/vcpu/@current", "2 CPUs");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/cpu/topology", "one socket");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/os/type/@machine", "Lodge's own");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/os/boot/@dev", "order");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/features/hyperv", "nothing of that name");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/clock/@offset", "UTC");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/on_crash", "panic");
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/devices/watchdog/@model", "wdat_wdt");
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/devices/vsock", "Unix sockets");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/devices/serial", "second");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/devices/flux", "nothing of that name");
    assert_int_equal(at.notes.refused, 0);
    forget(&at);
    /* libvirt restarts a guest unless it is told otherwise. */
    reads(&at, DOMAIN "<cpu match='exact'><model>Nehalem</model></cpu></domain>");
    assert_int_equal(at.conf.on_reset, GUEST_ON_RESET_REBOOT);
    assert_int_equal(at.conf.cpu, GUEST_CPU_PORTABLE);
    forget(&at);
}

static void disks(void **state)
{
    struct reading at;
    reads(
        &at, DEVICES
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'"
        " error_policy='report'/><source file='/d/a&amp;b.qcow2'/><target dev='sda' bus='sata'/>"
        "<serial>S-1</serial><iotune><total_iops_sec>500</total_iops_sec>"
        "<total_bytes_sec>1000000</total_bytes_sec><total_iops_sec_max>900</total_iops_sec_max>"
        "<read_bytes_sec>5</read_bytes_sec></iotune><address type='pci'/></disk>"
        "<disk type='block'><driver cache='directsync'/><source dev='/dev/vg/x'/>"
        "<target dev='vdb' bus='virtio'/></disk>"
        "<disk type='file' device='cdrom'><target dev='sdc' bus='sata'/></disk>"
        "<disk type='network'><source protocol='https' name='a/b.img' query='v=1'>"
        "<host name='::1'/></source><target dev='vdc' bus='virtio'/></disk>" CLOSE);
    assert_int_equal(at.conf.disk_count, 3);
    const struct guest_disk *disk = at.conf.disks;
    assert_string_equal(disk->path, "/d/a&b.qcow2");
    assert_int_equal(disk->format, GUEST_DISK_QCOW2);
    assert_int_equal(disk->cache, GUEST_DISK_NONE);
    assert_int_equal(disk->on_full, GUEST_DISK_ERROR);
    assert_string_equal(disk->serial, "S-1");
    assert_int_equal(disk->iops, 500);
    assert_int_equal(disk->iops_burst, 900);
    assert_int_equal(disk->bps, 1000000);
    assert_false(disk->read_only);
    assert_string_equal(disk[1].path, "/dev/vg/x");
    assert_int_equal(disk[1].cache, GUEST_DISK_NONE);
    assert_string_equal(disk[2].path, "https://[::1]/a/b.img?v=1");
    assert_true(disk[2].read_only);
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/devices/disk/target/@bus", "instead of sata");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/devices/disk/driver/@io", "no such");
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/devices/disk/driver/@cache", "write cache");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/devices/disk/iotune/read_bytes_sec", "total_");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/devices/disk/address", "itself");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/devices/disk", "without a disc");
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/devices/disk/source", "read-only");
    forget(&at);
}

static void network_cards(void **state)
{
    struct reading at;
    reads(
        &at, DEVICES
        "<interface type='user'><mac address='52:54:00:12:34:56'/><model type='e1000'/>"
        "<backend type='passt'/><portForward proto='tcp' address='127.0.0.1'>"
        "<range start='2222' to='22'/><range start='8000' end='8002'/></portForward>"
        "<portForward proto='udp' address='::1'><range start='53'/></portForward>"
        "<bandwidth><inbound average='1000' peak='5'/><outbound average='125'/></bandwidth>"
        "<link state='down'/></interface>"
        "<interface type='ethernet'><target dev='tap7' managed='no'/><mtu size='9000'/>"
        "<driver name='vhost' queues='4'/><filterref filter='no-mac-spoofing'/></interface>" CLOSE);
    assert_int_equal(at.conf.nic_count, 2);
    const struct guest_nic *nic = at.conf.nics;
    assert_int_equal(nic->mac[5], 0x56);
    assert_int_equal(nic->forward_count, 5);
    assert_string_equal(nic->forwards[0].address, "127.0.0.1");
    assert_int_equal(nic->forwards[0].host, 2222);
    assert_int_equal(nic->forwards[0].guest, 22);
    assert_int_equal(nic->forwards[3].guest, 8002);
    assert_true(nic->forwards[4].udp);
    assert_string_equal(nic->forwards[4].address, "::1");
    assert_int_equal(nic->rate_in, 1000000);
    assert_int_equal(nic->rate_out, 125000);
    assert_false(nic->unplugged);
    assert_int_equal(nic[1].net, GUEST_NET_TAP);
    assert_string_equal(nic[1].tap, "tap7");
    assert_int_equal(nic[1].mtu, 9000);
    assert_int_equal(nic[1].queues, 4);
    assert_true(nic[1].anti_spoof);
    expect_note(&at, GUEST_NOTE_MAPPED, "/domain/devices/interface/model/@type", "e1000");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/devices/interface/bandwidth/inbound/@peak", "");
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/devices/interface/link/@state", "lodge link");
    forget(&at);
}

static void firmware_and_its_files(void **state)
{
    struct reading at;
    reads(&at, "<domain type='kvm'><os firmware='efi'><type>hvm</type><nvram>/n</nvram>"
               "<firmware><feature enabled='no' name='secure-boot'/></firmware></os></domain>");
    assert_string_equal(at.conf.firmware, "uefi");
    assert_string_equal(at.conf.nvram, "/n");
    assert_false(at.notes.firmware_assumed);
    forget(&at);
    reads(&at, "<domain type='kvm'><os><type>hvm</type><loader readonly='yes' type='pflash'>/c"
               "</loader><nvram type='file'><source file='/n'/></nvram></os></domain>");
    assert_string_equal(at.conf.firmware, "/c");
    assert_string_equal(at.conf.nvram, "/n");
    forget(&at);
    /* A kernel is booted without. */
    reads(&at, "<domain type='kvm'><os firmware='efi'><type>hvm</type><kernel>/k</kernel>"
               "<nvram>/n</nvram></os></domain>");
    assert_null(at.conf.firmware);
    assert_null(at.conf.nvram);
    expect_note(&at, GUEST_NOTE_IGNORED, "/domain/os", "booted directly");
    forget(&at);
}

static const struct refusal {
    const char *text, *path, *why;
} refusals[] = {
    {"<domain>" OS "</domain>", "/domain", "<domain type='kvm'>"},
    {"<domain type='xen'>" OS "</domain>", "/domain/@type", "another hypervisor"},
    {DOMAIN "<name>a</name><name>b</name></domain>", "/domain/name", "a second <name>"},
    {DOMAIN "<name>a/../b</name></domain>", "/domain/name", "no name for a guest"},
    {DOMAIN "<name> </name></domain>", "/domain/name", "no name for a guest"},
    {DOMAIN "<memory unit='XB'>1</memory></domain>", "/domain/memory/@unit", "no unit"},
    {DOMAIN "<memory>-1</memory></domain>", "/domain/memory", "<memory unit='MiB'>512</memory>"},
    {DOMAIN "<memory>1.5</memory></domain>", "/domain/memory", "no number"},
    {DOMAIN "<memory>1</memory></domain>", "/domain/memory", "too little"},
    {DOMAIN "<memory unit='TiB'>16777217</memory></domain>", "/domain/memory", "no number"},
    {DOMAIN "<memory unit='TiB'>2</memory></domain>", "/domain/memory", "more than the largest"},
    {DOMAIN "<vcpu>0</vcpu></domain>", "/domain/vcpu", "no CPU"},
    {DOMAIN "<vcpu>65</vcpu></domain>", "/domain/vcpu", "up to 64"},
    {DOMAIN "<vcpu current='3'>2</vcpu></domain>", "/domain/vcpu/@current", "no number"},
    {DOMAIN "<cpu mode='fast'/></domain>", "/domain/cpu/@mode", "host-passthrough"},
    {DOMAIN "<launchSecurity type='sev'/></domain>", "/domain/launchSecurity", "not encrypted"},
    {"<domain type='kvm'><os><type arch='aarch64'>hvm</type></os></domain>",
     "/domain/os/type/@arch", "another architecture"},
    {"<domain type='kvm'><os><type>linux</type></os></domain>", "/domain/os/type", "hvm"},
    {"<domain type='kvm'><os firmware='bios'/></domain>", "/domain/os/@firmware", "no BIOS"},
    {"<domain type='kvm'><os><cmdline>x</cmdline></os></domain>", "/domain", "without a <kernel>"},
    {"<domain type='kvm'><os><loader secure='yes'>/c</loader></os></domain>",
     "/domain/os/loader/@secure", "secure boot"},
    {"<domain type='kvm'><os><loader>/c</loader><nvram format='qcow2'>/n</nvram></os></domain>",
     "/domain/os/nvram/@format", "raw"},
    {DEVICES "<hostdev mode='subsystem'/>" CLOSE, "/domain/devices/hostdev", "miss it"},
    {DEVICES "<tpm model='tpm-tis'/>" CLOSE, "/domain/devices/tpm", "no TPM"},
    {DEVICES "<watchdog model='x' action='dump'/>" CLOSE, "/domain/devices/watchdog/@action",
     "cannot be done"},
    {DEVICES "<vsock><cid address='2'/></vsock>" CLOSE, "/domain/devices/vsock/cid/@address",
     "CID"},
    {DEVICES "<filesystem><source dir='/a'/><target dir='/x y'/></filesystem>" CLOSE,
     "/domain/devices/filesystem/target/@dir", "tag"},
    {DEVICES "<disk type='volume'><source pool='p' volume='v'/></disk>" CLOSE,
     "/domain/devices/disk/@type", "storage pools"},
    {DEVICES "<disk type='nvme'/>" CLOSE, "/domain/devices/disk/@type", "file, block and network"},
    {DEVICES "<disk type='file' device='floppy'/>" CLOSE, "/domain/devices/disk/@device",
     "disk and cdrom"},
    {DEVICES "<disk type='file'/>" CLOSE, "/domain/devices/disk", "<source file='/PATH'/>"},
    {DEVICES "<disk><source file='/a'/><driver type='vmdk'/></disk>" CLOSE,
     "/domain/devices/disk/driver/@type", "raw and qcow2"},
    {DEVICES "<disk><source file='/a'/><driver cache='fast'/></disk>" CLOSE,
     "/domain/devices/disk/driver/@cache", "writeback, none and unsafe"},
    {DEVICES "<disk><source file='/a'><encryption format='luks'><secret type='passphrase'/>"
             "</encryption></source></disk>" CLOSE,
     "/domain/devices/disk/source/encryption", "key_file"},
    {DEVICES "<disk><source file='/a'/><transient/></disk>" CLOSE, "/domain/devices/disk/transient",
     "overlay"},
    {DEVICES "<disk><source file='/a'/><serial>123456789012345678901</serial></disk>" CLOSE,
     "/domain/devices/disk/serial", "longer than 20"},
    {DEVICES "<disk><source file='/a'/><iotune><total_iops_sec_max>5</total_iops_sec_max>"
             "</iotune></disk>" CLOSE,
     "/domain/devices/disk", "burst without"},
    {DEVICES "<disk type='network'><source protocol='rbd' name='x'/></disk>" CLOSE,
     "/domain/devices/disk/source/@protocol", "http or https"},
    {DEVICES "<disk type='network'><source protocol='http' name='/x y'><host name='h'/></source>"
             "</disk>" CLOSE,
     "/domain/devices/disk/source", "no URL"},
    {DEVICES "<disk type='network'><source protocol='http' name='/x'><host name='h/'/></source>"
             "</disk>" CLOSE,
     "/domain/devices/disk/source", "no URL"},
    {DEVICES "<disk type='network'><source protocol='http' name='/x'><host name='h' port='0x1'/>"
             "</source></disk>" CLOSE,
     "/domain/devices/disk/source/host/@port", "1 to 65535"},
    {DEVICES "<disk type='network'><source protocol='http' name='/x'><host name='h' port='0'/>"
             "</source></disk>" CLOSE,
     "/domain/devices/disk/source/host/@port", "no port 0"},
    /* How such files were once written. */
    {DEVICES
     "<disk type='network' device='cdrom'><source path='http://127.0.0.1/a.iso'/></disk>" CLOSE,
     "/domain/devices/disk/source/@path", "<source protocol='http' name='/PATH'>"},
    {DEVICES "<disk><source path='/a'/></disk>" CLOSE, "/domain/devices/disk/source/@path",
     "<source file='/PATH'/>"},
    {DEVICES "<disk><source file='/a'/><read only='yes'/></disk>" CLOSE,
     "/domain/devices/disk/read", "write <readonly/>"},
    {DEVICES "<interface type='bridge'><source bridge='br0'/></interface>" CLOSE,
     "/domain/devices/interface/@type", "ip tuntap"},
    {DEVICES "<interface type='direct'/>" CLOSE, "/domain/devices/interface/@type", "ethernet"},
    {DEVICES "<interface type='network'><source network='lab'/></interface>" CLOSE,
     "/domain/devices/interface/source/@network", "'default'"},
    {DEVICES "<interface type='ethernet'/>" CLOSE, "/domain/devices/interface", "tap0"},
    {DEVICES "<interface type='user'><mac address='52:54:00:12:34:5x'/></interface>" CLOSE,
     "/domain/devices/interface/mac/@address", "52:54:00:12:34:56"},
    {DEVICES "<interface type='user'><filterref filter='clean-traffic'/></interface>" CLOSE,
     "/domain/devices/interface/filterref/@filter", "no-mac-spoofing"},
    {DEVICES "<interface type='user'><portForward proto='tcp' address='1:1:1'>"
             "<range start='1'/></portForward></interface>" CLOSE,
     "/domain/devices/interface/portForward/@address", "no address"},
    {DEVICES "<interface type='user'><portForward proto='tcp'><range start='1' end='60000'/>"
             "</portForward></interface>" CLOSE,
     "/domain/devices/interface/portForward/range", "at most 32"},
    {DEVICES "<interface type='user'><portForward proto='tcp'><range start='9' end='8'/>"
             "</portForward></interface>" CLOSE,
     "/domain/devices/interface/portForward/range", "no ports"},
};

static void what_would_be_missed_is_refused(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(refusals); i++) {
        struct reading at;
        read_text(&at, refusals[i].text);
        if (at.r != -EINVAL)
            fail_msg("accepted: %s", refusals[i].text);
        bool found = false;
        for (unsigned k = 0; k < at.notes.count; k++)
            found |= at.notes.list[k].verdict == GUEST_NOTE_REFUSED &&
                     !strcmp(at.notes.list[k].path, refusals[i].path) &&
                     strstr(at.notes.list[k].why, refusals[i].why);
        if (!found)
            fail_msg("'%s', not %s: %s", at.err.text, refusals[i].path, refusals[i].why);
        assert_non_null(strstr(at.err.text, "d.xml:1: /domain"));
        assert_int_equal(at.conf.memory, MIB(512)); /* an error changes nothing */
        assert_null(at.conf.kernel);
        forget(&at);
    }
}

static void all_refusals_are_there_at_once(void **state)
{
    struct reading at;
    read_text(&at, DEVICES "<tpm/>\n<hostdev/>\n<disk type='volume'/>\n<disk type='file'/>" CLOSE);
    assert_int_equal(at.r, -EINVAL);
    assert_int_equal(at.notes.refused, 4);
    assert_non_null(strstr(at.err.text, "d.xml:1: /domain/devices/tpm"));
    assert_non_null(strstr(at.err.text, "and more"));
    forget(&at);
}

/* ---- what strangers send ---- */

static void expect_error(const char *text, size_t length, const char *message)
{
    struct reading at;
    read_sized(&at, text, length);
    if (at.r != -EINVAL || !strstr(at.err.text, message))
        fail_msg("%d, '%s' does not hold '%s'", at.r, at.err.text, message);
    forget(&at);
}

static void no_document_type(void **state)
{
    static const char *const texts[] = {
        "<!DOCTYPE domain><domain type='kvm'/>",
        "<!DOCTYPE domain SYSTEM 'http://127.0.0.1:1/x.dtd'><domain type='kvm'/>",
        "<?xml version='1.0'?><!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>"
        "<!ENTITY c '&b;&b;&b;&b;'>]><domain type='kvm'><name>&c;</name></domain>",
        "<!DOCTYPE d [<!ENTITY f SYSTEM 'file:///etc/passwd'>]><domain type='kvm'><name>&f;</name>"
        "</domain>",
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        expect_error(texts[i], strlen(texts[i]), "<!DOCTYPE> is not accepted");
    static const char entity[] = DOMAIN "<name>&c;</name></domain>";
    expect_error(entity, sizeof entity - 1, "d.xml:1:");
}

static void hostile_texts(void **state)
{
    static const char nul[] = "<domain type='kvm'><name>a\0b</name></domain>";
    static const char bytes[] = DOMAIN "<title>\xff\xfe</title></domain>";
    static const char latin[] = "<?xml version='1.0' encoding='ISO-8859-1'?><domain type='kvm'>"
                                "<name>\xe9</name></domain>";
    static const char twice[] = "<domain type='kvm' type='qemu'/>";
    static const char other[] = "<network><name>default</name></network>";
    static const char cut[] = "<domain type='kvm'>\n<name>a";
    expect_error(nul, sizeof nul - 1, "NUL byte");
    expect_error(bytes, sizeof bytes - 1, "d.xml:1:");
    expect_error(latin, sizeof latin - 1, "d.xml:1:");
    expect_error(twice, sizeof twice - 1, "d.xml:1:");
    expect_error(other, sizeof other - 1, "<network> is no guest");
    expect_error(cut, sizeof cut - 1, "d.xml:2:");
    expect_error("", 0, "d.xml:1:1:");
    expect_error("<", 1, "d.xml:1:");
}

static char *repeat(const char *before, const char *what, size_t count, const char *behind,
                    size_t *ret_length)
{
    char *text;
    FILE *out = open_memstream(&text, ret_length);
    fputs(before, out);
    for (size_t i = 0; i < count; i++)
        fputs(what, out);
    fputs(behind, out);
    fclose(out);
    return text;
}

static void large_texts(void **state)
{
    size_t length;
    struct reading at;
    _cleanup_free_ char *deep = repeat(DOMAIN "<metadata>", "<a>", 100000, "", &length);
    expect_error(deep, length, "d.xml:1:");
    _cleanup_free_ char *many = repeat(DOMAIN, "<x/>", 5000, "</domain>", &length);
    expect_error(many, length, "more than 1000");
    _cleanup_free_ char *whole = repeat(DOMAIN "<title>", "0123456789", 110000, "", &length);
    expect_error(whole, length, "longer than a definition");
    _cleanup_free_ char *tag = repeat("<domain ", "a='' ", 100000, "/>", &length);
    expect_error(tag, length, "too many attributes");
    _cleanup_free_ char *spaces =
        repeat("<domain>", "<a xmlns:b='c'/>", 60000, "</domain>", &length);
    expect_error(spaces, length, "too many namespaces");
    /* Names and values are cut where they are shown. */
    _cleanup_free_ char *name = repeat(DOMAIN "<", "abcdefghij", 4000, "/></domain>", &length);
    read_sized(&at, name, length);
    assert_int_equal(at.r, 0);
    assert_non_null(find_note(&at, "/domain/abcdefghijabcdefghijabcdefghijabcdefghij"));
    forget(&at);
    _cleanup_free_ char *value =
        repeat("<domain type='", "abcdefghij", 90000, "'></domain>", &length);
    read_sized(&at, value, length);
    assert_int_equal(at.r, -EINVAL);
    assert_true(strlen(at.notes.list[0].why) < 300);
    forget(&at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_example_of_the_manual),
        cmocka_unit_test(memory_has_libvirts_units),
        cmocka_unit_test(a_guest_with_a_kernel),
        cmocka_unit_test(disks),
        cmocka_unit_test(network_cards),
        cmocka_unit_test(firmware_and_its_files),
        cmocka_unit_test(what_would_be_missed_is_refused),
        cmocka_unit_test(all_refusals_are_there_at_once),
        cmocka_unit_test(no_document_type),
        cmocka_unit_test(hostile_texts),
        cmocka_unit_test(large_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
