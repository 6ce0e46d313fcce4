#include "image/recipe.h"

#include "base/bytes.h"
#include "base/own.h"
#include "image/initramfs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const append[] = {
    "console=ttyS0",   /* the kernel's log goes to the serial port, apart from every command */
    "quiet",           /* warnings and worse only: each character is an exit of the machine */
    "panic=-1",        /* a panic resets at once, and lodge reports it */
    "8250.nr_uarts=1", /* the board has one serial port: probing 31 more takes exits */
    "i8042.noaux",     /* it has neither mouse nor keyboard, only the controller's reset line: */
    "i8042.nokbd",     /* looking for them waits for timeouts */
    "i8042.nopnp",
    "tsc=reliable",      /* the counter is the host's: no watchdog need check it against others */
    "cryptomgr.notests", /* the kernel's crypto self-tests are two fifths of a boot in software */
    "rcupdate.rcu_expedited=1", /* grace periods at boot do not wait for ticks */
};

/* Modules that the guest wants; what they need in turn is found. Those with a device (PCI vendor
 * and device, or a path in /sys) are loaded only where there is one, with what they need: a signed
 * module costs some milliseconds of RSA. */
static const struct wanted {
    const char *name, *device;
    bool late; /* can wait until a command runs */
} wanted[] = {
    {"virtio_pci", NULL, false},
    {"virtio_console", NULL, false},
    {"virtio_blk", "0x1af4 0x1042", false},
    {"wdat_wdt", "/sys/bus/platform/devices/wdat_wdt", false},
    {"virtio_net", "0x1af4 0x1041", false},
    {"vmw_vsock_virtio_transport", "0x1af4 0x1053", false},
    {"virtiofs", "0x1af4 0x105a", false},
    {"virtio_rng", NULL, true},
    {"virtio_balloon", "0x1af4 0x1045", true},
    {"pvpanic_mmio", NULL, true},
};

static const struct {
    const char *path;
    mode_t mode;
} directories[] = {
    {"dev", 0755}, {"mnt", 0755}, {"proc", 0555}, {"root", 0700},
    {"run", 0755}, {"sys", 0555}, {"tmp", 01777}, {"var/tmp", 01777},
};

static const struct {
    const char *path, *text;
} texts[] = {
    {"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"
                   "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"},
    {"etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"},
    {"etc/hosts", "127.0.0.1 localhost lodge\n::1 localhost\n"},
    {"etc/profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
                    "export PS1='\\h:\\w\\$ '\n"},
    {"etc/os-release", "NAME=\"Lodge default image\"\nID=lodge\nID_LIKE=debian\n"},
};

/* What udhcpc calls with an address, or without. */
static const char dhcp_script[] =
    "#!/bin/sh\n"
    "case $1 in\n"
    "deconfig) ip link set \"$interface\" up ;;\n"
    "bound | renew)\n"
    "    ip addr flush dev \"$interface\" scope global\n"
    "    ip addr add \"$ip/${mask:-24}\" dev \"$interface\"\n"
    "    for gateway in $router; do\n"
    "        ip route replace \"$gateway\" dev \"$interface\"\n"
    "        ip route replace default via \"$gateway\" dev \"$interface\" && break\n"
    "    done\n"
    "    : >/etc/resolv.conf\n"
    "    [ -z \"$domain\" ] || echo \"search $domain\" >>/etc/resolv.conf\n"
    "    for server in $dns; do echo \"nameserver $server\" >>/etc/resolv.conf; done\n"
    "    ;;\n"
    "esac\n";

char *recipe_append(void)
{
    char *line = strdup("");
    for (size_t i = 0; line && i < ARRAY_LEN(append); i++) {
        char *longer;
        if (asprintf(&longer, "%s%s%s", line, i ? " " : "", append[i]) < 0)
            longer = NULL;
        free(line);
        line = longer;
    }
    return line;
}

static int add_skeleton(struct initramfs *to, struct err *err)
{
    int r = 0;
    for (size_t i = 0; r >= 0 && i < ARRAY_LEN(directories); i++)
        r = initramfs_add_directory(to, directories[i].path, directories[i].mode, err);
    for (size_t i = 0; r >= 0 && i < ARRAY_LEN(texts); i++)
        r = initramfs_add_file(to, texts[i].path, 0644, texts[i].text, strlen(texts[i].text), err);
    return r < 0 ? r
                 : initramfs_add_file(to, "etc/udhcpc.sh", 0755, dhcp_script,
                                      sizeof dhcp_script - 1, err);
}

static int add_programs(const struct recipe_files *files, struct initramfs *to, struct err *err)
{
    int r = initramfs_add_file(to, "init", 0755, files->agent, files->agent_size, err);
    if (r >= 0)
        r = initramfs_add_file(to, "bin/busybox", 0755, files->busybox, files->busybox_size, err);
    return r;
}

/* One link for each line of --list-full. */
static int add_applets(const struct recipe_files *files, struct initramfs *to, struct err *err)
{
    _cleanup_free_ char *lines = strdup(files->applets);
    if (!lines)
        return err_set(err, -ENOMEM, "no memory");
    char *rest = NULL;
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        /* BusyBox's init and linuxrc would shadow the agent for who starts /sbin/init. */
        if (!strcmp(line, "bin/busybox") || !strcmp(line, "sbin/init") || !strcmp(line, "linuxrc"))
            continue;
        if (*line == '/' || strstr(line, ".."))
            return err_set(err, -EBADMSG, "busybox lists an applet '%.64s'", line);
        int r = initramfs_add_link(to, line, "/bin/busybox", err);
        if (r < 0)
            return r;
    }
    return initramfs_add_link(to, "sbin/init", "/init", err);
}

struct module_list {
    char text[4096];
    size_t length;
    const char *always[64]; /* names of those without a condition */
    size_t always_count;
};

static bool is_listed(const struct module_list *list, const char *name)
{
    bool listed = false;
    for (size_t i = 0; i < list->always_count; i++)
        listed |= !strcmp(list->always[i], name);
    return listed;
}

static int list_module(struct module_list *list, const char *name, const char *device,
                       struct err *err)
{
    list->length += (size_t)snprintf(list->text + list->length, sizeof list->text - list->length,
                                     "%s.ko%s%s\n", name, device ? " " : "", device ? device : "");
    if (list->length >= sizeof list->text || list->always_count == ARRAY_LEN(list->always))
        return err_set(err, -E2BIG, "too many kernel modules");
    if (!device)
        list->always[list->always_count++] = name;
    return 0;
}

/* One of the wanted, after what it needs. A module that several devices need is listed for each. */
static int add_wanted(const struct recipe_files *files, const struct wanted *one,
                      struct module_list *list, struct initramfs *to, struct err *err)
{
    _cleanup_free_ struct module **order = NULL;
    size_t count = 0;
    int r = module_order(files->modules, &one->name, 1, &order, &count, err);
    for (size_t i = 0; r >= 0 && i < count; i++) {
        char path[256];
        if (is_listed(list, order[i]->name))
            continue;
        snprintf(path, sizeof path, "lib/modules/%s.ko", order[i]->name);
        r = initramfs_add_file(to, path, 0644, order[i]->bytes, order[i]->size, err);
        if (r >= 0)
            r = list_module(list, order[i]->name, one->device, err);
    }
    return r;
}

/* Those that can wait stand behind a blank line. */
static int add_modules(const struct recipe_files *files, struct initramfs *to, struct err *err)
{
    struct module_list list = {0};
    int r = 0;
    for (int late = 0; late < 2; late++) {
        for (size_t i = 0; i < ARRAY_LEN(wanted) && r >= 0; i++)
            if (wanted[i].late == late)
                r = add_wanted(files, &wanted[i], &list, to, err);
        if (!late && r >= 0)
            list.text[list.length++] = '\n';
    }
    return r < 0 ? r
                 : initramfs_add_file(to, "lib/modules/lodge.list", 0644, list.text, list.length,
                                      err);
}

int recipe_write_initramfs(const struct recipe_files *files, int fd, struct err *err)
{
    struct initramfs *initramfs = initramfs_new();
    if (!initramfs)
        return err_set(err, -ENOMEM, "no memory");
    int r = add_skeleton(initramfs, err);
    if (r >= 0)
        r = add_programs(files, initramfs, err);
    if (r >= 0)
        r = add_applets(files, initramfs, err);
    if (r >= 0)
        r = add_modules(files, initramfs, err);
    if (r >= 0)
        r = initramfs_write(initramfs, fd, err);
    initramfs_free(initramfs);
    return r;
}
