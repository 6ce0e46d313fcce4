#include "image/debian_recipe.h"

#include "base/bytes.h"
#include "base/own.h"
#include "image/initramfs.h"
#include "image/recipe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static const char *const packages[] = {
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd", /* unpacks faster than gzip, in software above all */
    "systemd-sysv",
    "systemd-resolved", /* what DHCP says about name servers goes there */
    "libnss-myhostname",
    "libpam-systemd",
    "dbus",
    "udev",
    "cloud-init",
    "openssh-server",
    "sudo",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "netbase",
    "kmod",
    "e2fsprogs",
    "procps",
    "less",
    "nano",
};

/* Beyond those of the default image. The disk of the image is the first, whatever else there is. */
static const char append[] = "root=/dev/vda rootfstype=ext4 rw";

static const struct {
    const char *path, *text;
} texts[] = {
    {"etc/fstab", "LABEL=debian / ext4 defaults 0 0\n"},
    {"etc/hostname", "debian\n"},
    {"etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
                  "ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"},
    {"etc/default/locale", "LANG=C.UTF-8\n"},
    {"etc/issue.d/lodge.issue", "Nobody has a password here. Keys and users: lodge run --ssh-key, "
                                "--user-data.\nA root shell: lodge run debian -- bash\n\n"},

    /* The initrd holds what it takes to mount the root file system, and no list of all that could
     * be in a PC. */
    {"etc/initramfs-tools/conf.d/lodge", "MODULES=list\nCOMPRESS=zstd\n"},
    {"usr/share/initramfs-tools/modules.d/lodge",
     "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\next4\n"},

    {"etc/systemd/network/80-lodge.network", "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n\n"
                                             /* Clones have one machine ID, but a MAC each. */
                                             "[DHCPv4]\nClientIdentifier=mac\n"},
    /* Nothing to wait for where there is no network, and no failure where nobody answers. */
    {"etc/systemd/system/systemd-networkd-wait-online.service.d/lodge.conf",
     "[Unit]\nConditionPathExistsGlob=|/sys/class/net/en*\n"
     "ConditionPathExistsGlob=|/sys/class/net/eth*\n\n[Service]\nExecStart=\n"
     "ExecStart=-/lib/systemd/systemd-networkd-wait-online --any --timeout=20\n"},

    {"etc/systemd/system/lodge-agent.service",
     "[Unit]\nDescription=Lodge agent, the host's hands in this guest\n"
     "StartLimitIntervalSec=0\n\n"
     /* Its commands are its children: they get no fewer tasks than a login would. */
     "[Service]\nExecStart=/usr/lib/lodge/lodge-agent\nRestart=always\nRestartSec=1\n"
     "TasksMax=infinity\n\n[Install]\nWantedBy=multi-user.target\n"},

    /* Each machine has keys of its own. cloud-init makes them where there is a seed. */
    {"etc/systemd/system/lodge-ssh-key.service",
     "[Unit]\nDescription=SSH host key of this machine\nAfter=cloud-init.service\n"
     "Before=ssh.service\nConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n\n"
     "[Service]\nType=oneshot\n"
     "ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n\n"
     "[Install]\nWantedBy=multi-user.target\n"},

    /* The network is networkd's, the package sources are as they were made, the disk has
     * neither partitions nor a boot loader, and RSA keys take long to make and are not missed. */
    {"etc/cloud/cloud.cfg.d/90-lodge.cfg", "datasource_list: [ NoCloud, ConfigDrive ]\n"
                                           "network: {config: disabled}\n"
                                           "apt: {preserve_sources_list: true}\n"
                                           "growpart: {mode: 'off'}\n"
                                           "grub_dpkg: {enabled: false}\n"
                                           "ssh_genkeytypes: [ed25519]\n"
                                           "locale: C.UTF-8\n"},

    /* While the image is made: removed by the script below. */
    {"etc/dpkg/dpkg.cfg.d/lodge-image", "path-exclude=/usr/share/doc/*\n"
                                        "path-include=/usr/share/doc/*/copyright\n"
                                        "path-exclude=/usr/share/man/*\n"
                                        "path-exclude=/usr/share/locale/*\n"},
};

const char debian_files_script[] = "set -eu\ntar -C \"$1\" -xf \"/proc/self/fd/$LODGE_FILES\"\n";

/* The root's own mounts (/proc, /sys, devices) would become part of the disk: it is copied through
 * a second mount of the root alone, in a mount namespace that ends with mke2fs. */
const char debian_finish_script[] =
    "set -eu\n"
    "cd \"$1\"\n"
    "chroot . systemctl --quiet enable systemd-networkd lodge-agent lodge-ssh-key\n"
    /* A guest that is thrown away needs no housekeeping of packages, and one without a screen, EFI,
     * partitions to make or foreign binaries no look for them: each is a process at boot. */
    "chroot . systemctl --quiet disable e2scrub_reap apt-daily.timer apt-daily-upgrade.timer \\\n"
    "    systemd-network-generator systemd-pstore getty@tty1\n"
    "chroot . systemctl --quiet mask systemd-repart modprobe@drm systemd-binfmt \\\n"
    "    proc-sys-fs-binfmt_misc.automount systemd-update-utmp-runlevel\n"
    "chroot . dpkg-query -W -f '${Package} ${Version}\\n' >\"/proc/self/fd/$LODGE_PACKAGES\"\n"
    "cat boot/vmlinuz-* >\"/proc/self/fd/$LODGE_KERNEL\"\n"
    "cat boot/initrd.img-* >\"/proc/self/fd/$LODGE_INITRD\"\n"
    "rm -rf var/lib/apt/lists/* var/cache/apt/*.bin var/cache/apt/archives/*.deb \\\n"
    "    var/cache/debconf/*-old var/log/*.log var/log/apt/* tmp/* \\\n"
    "    var/lib/systemd/random-seed etc/ssh/ssh_host_* var/lib/dbus/machine-id \\\n"
    "    etc/apt/apt.conf.d/*mmdebstrap etc/dpkg/dpkg.cfg.d/*mmdebstrap \\\n"
    "    etc/dpkg/dpkg.cfg.d/lodge-image\n"
    ": >etc/machine-id\n"
    "ln -sf ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf\n"
    "touch etc/.updated var/.updated\n" /* systemd: nothing in /usr is newer */
    "exec unshare --mount sh -euc 'mount --bind . mnt\n"
    "    exec mke2fs -q -F -t ext4 -L debian -m 1 -d mnt "
    "\"/proc/self/fd/$LODGE_DISK\" " DEBIAN_DISK_SIZE "'\n";

char *debian_packages(void)
{
    size_t size = 1;
    for (size_t i = 0; i < ARRAY_LEN(packages); i++)
        size += strlen(packages[i]) + 1;
    char *line = malloc(size), *at = line;
    for (size_t i = 0; line && i < ARRAY_LEN(packages); i++)
        at += sprintf(at, "%s%s", i ? "," : "", packages[i]);
    return line;
}

char *debian_append(void)
{
    _cleanup_free_ char *common = recipe_append();
    char *line;
    return common && asprintf(&line, "%s %s", common, append) >= 0 ? line : NULL;
}

int debian_write_files(const uint8_t *agent, size_t agent_size, int fd, struct err *err)
{
    struct initramfs *files = initramfs_new();
    if (!files)
        return err_set(err, -ENOMEM, "no memory");
    int r = initramfs_add_file(files, "usr/lib/lodge/lodge-agent", 0755, agent, agent_size, err);
    for (size_t i = 0; r >= 0 && i < ARRAY_LEN(texts); i++)
        r = initramfs_add_file(files, texts[i].path, 0644, texts[i].text, strlen(texts[i].text),
                               err);
    if (r >= 0)
        r = initramfs_write_tar(files, fd, err);
    initramfs_free(files);
    return r;
}
