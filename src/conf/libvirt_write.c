/*
 * A definition as domain XML that libvirt's schema accepts. What XML has no place for is noted.
 */
#include "base/bytes.h"
#include "base/own.h"
#include "conf/guest.h"
#include "conf/libxml2.h"
#include "conf/private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct writer {
    FILE *out;
    const struct guest_conf *conf;
    struct guest_notes *notes;
    struct err *err;
    int r;
};

static void lost(struct writer *writer, const char *what, const char *why)
{
    int r = guest_notes_add(writer->notes, GUEST_NOTE_IGNORED, 0, what, "%s", why);
    writer->r = writer->r < 0 ? writer->r : r;
}

static void fail(struct writer *writer, const char *why, const char *what)
{
    if (writer->r >= 0)
        writer->r = err_set(writer->err, -EINVAL, "'%.128s' %s", what, why);
}

/* Between quotes, or between tags. */
static void put_escaped(struct writer *writer, const char *text)
{
    if (!sym_xmlCheckUTF8((const xmlChar *)text))
        fail(writer, "is no UTF-8", text);
    for (const char *at = text; *at; at++) {
        if (*at == '&' || *at == '<' || *at == '>' || *at == '\'' || *at == '\t' || *at == '\n' ||
            *at == '\r')
            fprintf(writer->out, "&#%d;", *at);
        else if ((unsigned char)*at < ' ')
            fail(writer, "has a character that XML cannot hold", text);
        else
            fputc(*at, writer->out);
    }
}

/* Each %s is escaped; there is %s and nothing else. */
static void put(struct writer *writer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (const char *at = format; *at; at++)
        if (at[0] == '%' && at[1] == 's') {
            put_escaped(writer, va_arg(arguments, const char *));
            at++;
        } else {
            fputc(*at, writer->out);
        }
    va_end(arguments);
}

static void put_number(struct writer *writer, const char *format, uint64_t number)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    put(writer, format, text);
}

/* libvirt has no current folder. */
static const char *whole(struct writer *writer, const char *path)
{
    if (*path != '/')
        fail(writer, "is no whole path, which begins with /", path);
    return path;
}

static void put_os(struct writer *writer)
{
    const struct guest_conf *conf = writer->conf;
    bool uefi = conf->firmware && !strcmp(conf->firmware, GUEST_FIRMWARE_UEFI);
    put(writer, uefi ? "  <os firmware='efi'>\n" : "  <os>\n");
    put(writer, "    <type arch='x86_64'>hvm</type>\n");
    if (conf->firmware && !uefi)
        put(writer, "    <loader readonly='yes' type='pflash'>%s</loader>\n",
            whole(writer, conf->firmware));
    if (conf->nvram)
        put(writer, "    <nvram>%s</nvram>\n", whole(writer, conf->nvram));
    if (conf->kernel)
        put(writer, "    <kernel>%s</kernel>\n", whole(writer, conf->kernel));
    if (conf->initrd)
        put(writer, "    <initrd>%s</initrd>\n", whole(writer, conf->initrd));
    if (conf->append && *conf->append)
        put(writer, "    <cmdline>%s</cmdline>\n", conf->append);
    put(writer, "  </os>\n");
    if (!conf->firmware && !conf->kernel)
        lost(writer, "kernel", "it is an image's, which a definition does not name");
}

static void put_cpu(struct writer *writer)
{
    static const char *const lines[GUEST_CPU_MAX] = {
        [GUEST_CPU_AUTO] = "  <cpu mode='host-model'/>\n",
        [GUEST_CPU_HOST] = "  <cpu mode='host-passthrough'/>\n",
        [GUEST_CPU_PORTABLE] = "  <cpu mode='custom'>\n    <model>qemu64</model>\n  </cpu>\n",
    };
    put(writer, lines[writer->conf->cpu]);
    if (writer->conf->cpu == GUEST_CPU_PORTABLE)
        lost(writer, "cpu", "portable is no processor of libvirt's; it is written as qemu64");
}

/* http://HOST[:PORT]/NAME[?QUERY] */
static void put_url(struct writer *writer, const char *url)
{
    const char *host = strstr(url, "://"), *slash = host ? strchr(host + 3, '/') : NULL;
    if (!slash || memchr(host, '@', (size_t)(slash - host))) {
        fail(writer, "has no place in XML as a URL", url);
        return;
    }
    const char *query = strchr(slash, '?');
    _cleanup_free_ char *protocol = strndup(url, (size_t)(host - url)), *name = NULL;
    host += 3;
    bool six = *host == '[';
    const char *end = six ? strchr(host, ']') : memchr(host, ':', (size_t)(slash - host));
    if (six && (!end || end > slash)) {
        fail(writer, "has no place in XML as a URL", url);
        return;
    }
    const char *port = six ? end + 1 : end;
    name = strndup(host + six, (size_t)((end ? end : slash) - host) - six);
    _cleanup_free_ char *path = query ? strndup(slash, (size_t)(query - slash)) : strdup(slash);
    _cleanup_free_ char *number =
        port && *port == ':' ? strndup(port + 1, (size_t)(slash - port) - 1) : NULL;
    if (!protocol || !name || !path) {
        writer->r = -ENOMEM;
        return;
    }
    put(writer, "      <source protocol='%s' name='%s'", protocol, path);
    if (query)
        put(writer, " query='%s'", query + 1);
    put(writer, ">\n        <host name='%s'", name);
    if (number)
        put(writer, " port='%s'", number);
    put(writer, "/>\n      </source>\n");
}

static void put_iotune(struct writer *writer, const struct guest_disk *disk)
{
    if (!disk->iops && !disk->bps)
        return;
    put(writer, "      <iotune>\n");
    if (disk->bps)
        put_number(writer, "        <total_bytes_sec>%s</total_bytes_sec>\n", disk->bps);
    if (disk->iops)
        put_number(writer, "        <total_iops_sec>%s</total_iops_sec>\n", disk->iops);
    if (disk->bps_burst)
        put_number(writer, "        <total_bytes_sec_max>%s</total_bytes_sec_max>\n",
                   disk->bps_burst);
    if (disk->iops_burst)
        put_number(writer, "        <total_iops_sec_max>%s</total_iops_sec_max>\n",
                   disk->iops_burst);
    put(writer, "      </iotune>\n");
}

static void put_disk(struct writer *writer, const struct guest_disk *disk, unsigned index)
{
    bool url = strstr(disk->path, "://") != NULL;
    char target[] = "vda";
    target[2] = (char)('a' + index);
    put(writer, "    <disk type='%s' device='disk'>\n", url ? "network" : "file");
    put(writer, "      <driver name='qemu' type='%s' cache='%s' error_policy='%s'/>\n",
        disk->format == GUEST_DISK_QCOW2 ? "qcow2" : "raw", guest_disk_cache_name(disk->cache),
        disk->on_full == GUEST_DISK_ERROR ? "report" : "enospace");
    if (url)
        put_url(writer, disk->path);
    else
        put(writer, "      <source file='%s'/>\n", whole(writer, disk->path));
    put(writer, "      <target dev='%s' bus='virtio'/>\n", target);
    put_iotune(writer, disk);
    if (disk->read_only || url) /* as files of web servers are */
        put(writer, "      <readonly/>\n");
    if (disk->serial)
        put(writer, "      <serial>%s</serial>\n", disk->serial);
    put(writer, "    </disk>\n");
    if (disk->format == GUEST_DISK_PROBE)
        lost(writer, disk->path, "its format is found by its magic here; it is written as raw");
    if (disk->key_file || disk->cacert)
        lost(writer, disk->path, "XML has no place for key_file and cacert");
}

/* In kilobytes, of a thousand bytes. */
static void put_rate(struct writer *writer, const char *format, uint64_t rate)
{
    if (rate % 1000)
        lost(writer, "rate", "it is written as the next whole kilobyte a second");
    put_number(writer, format, rate / 1000 + (rate % 1000 > 0));
}

static void put_forward(struct writer *writer, const struct guest_forward *forward)
{
    put(writer, "      <portForward proto='%s'", forward->udp ? "udp" : "tcp");
    if (*forward->address)
        put(writer, " address='%s'", forward->address);
    put_number(writer, ">\n        <range start='%s'", forward->host);
    put_number(writer, " to='%s'/>\n      </portForward>\n", forward->guest);
}

static void put_nic(struct writer *writer, const struct guest_nic *nic)
{
    static const uint8_t none[sizeof nic->mac];
    bool tap = nic->net == GUEST_NET_TAP;
    put(writer, "    <interface type='%s'>\n", tap ? "ethernet" : "user");
    if (memcmp(nic->mac, none, sizeof none) != 0) {
        char mac[18];
        snprintf(mac, sizeof mac, "%02x:%02x:%02x:%02x:%02x:%02x", nic->mac[0], nic->mac[1],
                 nic->mac[2], nic->mac[3], nic->mac[4], nic->mac[5]);
        put(writer, "      <mac address='%s'/>\n", mac);
    }
    if (tap)
        put(writer, "      <target dev='%s' managed='no'/>\n", nic->tap);
    put(writer, "      <model type='virtio'/>\n");
    if (nic->queues)
        put_number(writer, "      <driver queues='%s'/>\n", nic->queues);
    if (!tap)
        put(writer, "      <backend type='passt'/>\n");
    for (unsigned i = 0; i < nic->forward_count; i++)
        put_forward(writer, &nic->forwards[i]);
    if (nic->mtu)
        put_number(writer, "      <mtu size='%s'/>\n", nic->mtu);
    if (nic->anti_spoof)
        put(writer, "      <filterref filter='no-mac-spoofing'/>\n");
    if (nic->rate_in || nic->rate_out) {
        put(writer, "      <bandwidth>\n");
        if (nic->rate_in)
            put_rate(writer, "        <inbound average='%s'/>\n", nic->rate_in);
        if (nic->rate_out)
            put_rate(writer, "        <outbound average='%s'/>\n", nic->rate_out);
        put(writer, "      </bandwidth>\n");
    }
    put(writer, "    </interface>\n");
    if (nic->host_loopback)
        lost(writer, "host_loopback", "XML has no place for it");
}

static void put_share(struct writer *writer, const struct guest_share *share)
{
    put(writer, "    <filesystem type='mount' accessmode='passthrough'>\n"
                "      <driver type='virtiofs'/>\n");
    put(writer, "      <source dir='%s'/>\n", whole(writer, share->path));
    put(writer, "      <target dir='%s'/>\n", share->tag);
    if (share->read_only)
        put(writer, "      <readonly/>\n");
    put(writer, "    </filesystem>\n");
    if (strncmp(share->at, "/mnt/", 5) != 0 || strcmp(share->at + 5, share->tag) != 0)
        lost(writer, share->at, "XML has no place for where a share is mounted");
}

static void put_vsock(struct writer *writer)
{
    const struct guest_conf *conf = writer->conf;
    _cleanup_free_ char *usual = NULL;
    if (!conf->vsock.path)
        return;
    put_number(writer,
               "    <vsock model='virtio'>\n      <cid auto='no' address='%s'/>\n    </vsock>\n",
               conf->vsock.cid);
    if (asprintf(&usual, "%s.vsock", conf->name ? conf->name : "guest") < 0)
        writer->r = -ENOMEM;
    else if (strcmp(usual, conf->vsock.path) != 0)
        lost(writer, conf->vsock.path, "XML has no place for the path of a vsock's sockets");
}

static void put_devices(struct writer *writer)
{
    static const char *const actions[GUEST_WATCHDOG_MAX] = {
        [GUEST_WATCHDOG_EVENT] = "none",
        [GUEST_WATCHDOG_RESET] = "reset",
        [GUEST_WATCHDOG_POWER_OFF] = "poweroff",
    };
    const struct guest_conf *conf = writer->conf;
    put(writer, "  <devices>\n");
    for (unsigned i = 0; i < conf->disk_count; i++)
        put_disk(writer, &conf->disks[i], i);
    for (unsigned i = 0; i < conf->share_count; i++)
        put_share(writer, &conf->shares[i]);
    for (unsigned i = 0; i < conf->nic_count; i++)
        put_nic(writer, &conf->nics[i]);
    put(writer, "    <serial type='pty'/>\n    <console type='pty'/>\n");
    if (conf->watchdog != GUEST_WATCHDOG_OFF)
        put(writer, "    <watchdog model='i6300esb' action='%s'/>\n", actions[conf->watchdog]);
    put(writer, "    <memballoon model='%s'/>\n", conf->balloon ? "virtio" : "none");
    put(writer, "    <rng model='virtio'>\n"
                "      <backend model='random'>/dev/urandom</backend>\n    </rng>\n");
    put_vsock(writer);
    put(writer, "  </devices>\n");
}

static void put_domain(struct writer *writer)
{
    const struct guest_conf *conf = writer->conf;
    put(writer, "<domain type='%s'>\n", conf->engine == GUEST_ENGINE_SOFT ? "qemu" : "kvm");
    put(writer, "  <name>%s</name>\n", conf->name ? conf->name : "guest");
    put_number(writer, "  <memory unit='KiB'>%s</memory>\n", conf->memory / 1024);
    put_number(writer, "  <vcpu>%s</vcpu>\n", conf->cpus);
    put_os(writer);
    put(writer, "  <features>\n    <acpi/>\n    <apic/>\n  </features>\n");
    put_cpu(writer);
    put(writer, "  <clock offset='utc'/>\n  <on_reboot>%s</on_reboot>\n",
        conf->on_reset == GUEST_ON_RESET_EXIT ? "destroy" : "restart");
    put_devices(writer);
    put(writer, "</domain>\n");
    if (!conf->name)
        lost(writer, "name", "the guest has none; libvirt's have, and it is written as 'guest'");
    if (conf->engine == GUEST_ENGINE_KVM)
        lost(writer, "engine", "kvm is read back as auto");
    if (conf->translate != GUEST_TRANSLATE_HOT || conf->code_cache)
        lost(writer, "translate, code_cache", "XML has no place for them");
}

int guest_conf_write_libvirt(const struct guest_conf *conf, char **ret_text,
                             struct guest_notes *notes, struct err *err)
{
    char *text = NULL;
    size_t size;
    int r = xml_load(err);
    if (r < 0)
        return r;
    struct writer writer = {
        .out = open_memstream(&text, &size), .conf = conf, .notes = notes, .err = err};
    if (!writer.out)
        return err_set(err, -ENOMEM, "no memory");
    put_domain(&writer);
    if (fclose(writer.out) != 0 || writer.r == -ENOMEM)
        writer.r = err_set(err, -ENOMEM, "no memory");
    if (writer.r < 0)
        free(text);
    else
        *ret_text = text;
    return writer.r;
}
