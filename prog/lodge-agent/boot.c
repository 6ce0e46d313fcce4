#include "boot.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/own.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static const struct row {
    const char *type, *at, *data;
    unsigned long flags;
} mounts[] = {
    {"proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID},
    {"devpts", "/dev/pts", "mode=0620,gid=5,ptmxmode=0666", MS_NOSUID | MS_NOEXEC},
    {"tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV},
    {"tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV},
};

/* Names that POSIX programs expect in /dev, which devtmpfs does not make. */
static const char *const links[][2] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
};

static void complain(const char *what)
{
    dprintf(STDERR_FILENO, "lodge-agent: %s: %s\n", what, strerror(errno));
}

static void read_command_line(char *ret_line, size_t size)
{
    _cleanup_fd_ int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, ret_line, size - 1);
    ret_line[max(length, (ssize_t)0)] = '\0';
}

void boot_mount(void)
{
    for (size_t i = 0; i < ARRAY_LEN(mounts); i++) {
        mkdir(mounts[i].at, 0755);
        if (mount(mounts[i].type, mounts[i].at, mounts[i].type, mounts[i].flags, mounts[i].data) <
                0 &&
            errno != EBUSY)
            complain(mounts[i].at);
    }
    for (size_t i = 0; i < ARRAY_LEN(links); i++)
        if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
            complain(links[i][1]);
    char name[64];
    if (!boot_option("lodge.hostname", name, sizeof name))
        strcpy(name, "lodge");
    if (sethostname(name, strlen(name)) < 0)
        complain("host name");
}

static void load_module(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "/lib/modules/%s", name);
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        complain(path);
}

static bool file_says(const char *folder, const char *file, const char *text)
{
    char path[512], value[32] = "";
    snprintf(path, sizeof path, "%s/%s", folder, file);
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, value, sizeof value - 1);
    value[max(length, (ssize_t)0)] = '\0';
    value[strcspn(value, "\n")] = '\0';
    return !strcmp(value, text);
}

/* True where the PCI bus has such a device. */
static bool has_device(const char *vendor, const char *device)
{
    bool found = false;
    DIR *bus = opendir("/sys/bus/pci/devices");
    for (struct dirent *entry; bus && !found && (entry = readdir(bus));) {
        char folder[320];
        snprintf(folder, sizeof folder, "/sys/bus/pci/devices/%s", entry->d_name);
        found = file_says(folder, "vendor", vendor) && file_says(folder, "device", device);
    }
    if (bus)
        closedir(bus);
    return found;
}

/* "virtio_blk.ko 0x1af4 0x1042", "wdat_wdt.ko /sys/...": a module, and perhaps the device or the
 * path without which it is not needed. */
static void load_entry(char *line)
{
    char *rest = NULL, *name = strtok_r(line, " ", &rest);
    char *where = strtok_r(NULL, " ", &rest), *device = strtok_r(NULL, " ", &rest);
    if (!name || (device && !has_device(where, device)))
        return;
    if (!where || device || access(where, F_OK) == 0)
        load_module(name);
}

/* The next line's module; false at a blank line and at the end. */
static bool load_line(FILE *list)
{
    char line[128];
    if (!fgets(line, sizeof line, list))
        return false;
    line[strcspn(line, "\n")] = '\0';
    bool more = *line != '\0';
    load_entry(line);
    return more;
}

FILE *boot_load_modules(void)
{
    FILE *list = fopen("/lib/modules/lodge.list", "re");
    while (list && load_line(list))
        ;
    return list;
}

bool boot_load_module(FILE *list)
{
    if (load_line(list))
        return true;
    fclose(list);
    return false;
}

/* With the folders above it. */
static void make_folder(char *path)
{
    for (char *at = path + 1; (at = strchr(at, '/')); at++) {
        *at = '\0';
        mkdir(path, 0755);
        *at = '/';
    }
    mkdir(path, 0755);
}

/* TAG:FOLDER[:ro] */
static void mount_share(char *text)
{
    char *rest = NULL, *tag = strtok_r(text, ":", &rest), *at = strtok_r(NULL, ":", &rest);
    const char *how = strtok_r(NULL, ":", &rest);
    if (!tag || !at || *at != '/')
        return;
    unsigned long flags = MS_NOSUID | MS_NODEV | (how && !strcmp(how, "ro") ? MS_RDONLY : 0);
    make_folder(at);
    if (mount(tag, at, "virtiofs", flags, NULL) < 0)
        complain(at);
}

void boot_shares(void)
{
    static const char name[] = "lodge.share=";
    char line[4096], *rest = NULL;
    read_command_line(line, sizeof line);
    for (char *word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest))
        if (!strncmp(word, name, strlen(name)))
            mount_share(word + strlen(name));
}

void boot_network(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    _cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        complain("loopback interface");
}

enum { PID_FILE_MAX = 64 };

static void dhcp_pid_file(const char *interface, char ret_path[PID_FILE_MAX])
{
    snprintf(ret_path, PID_FILE_MAX, "/run/udhcpc.%s.pid", interface);
}

/* An address from DHCP; it goes on in the background once it has one, or has asked in vain for some
 * seconds. */
static pid_t start_dhcp(const char *interface)
{
    pid_t pid = -1;
    char file[PID_FILE_MAX];
    dhcp_pid_file(interface, file);
    char *argv[] = {"udhcpc", "-i", (char *)interface, "-b", "-t", "4", "-T",
                    "1",      "-s", "/etc/udhcpc.sh",  "-p", file, NULL};
    char *env[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    for (int fd = 0; fd < 3; fd++)
        posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
    int r = posix_spawn(&pid, "/sbin/udhcpc", &actions, &attributes, argv, env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return r == 0 ? pid : -1;
}

/* The client that has the old address says nothing more: the address is not ours to give back. */
static void stop_dhcp(const char *interface)
{
    char path[PID_FILE_MAX], text[16] = "";
    dhcp_pid_file(interface, path);
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return;
    pid_t pid = (pid_t)strtol(text, NULL, 10);
    if (pid > 1)
        kill(pid, SIGKILL);
    unlink(path);
}

int boot_renew(const char *interface)
{
    struct ifreq request = {0};
    char net[16];
    _cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    stop_dhcp(interface);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    request.ifr_addr.sa_family = AF_INET; /* 0.0.0.0 takes the address away, netdevice(7) */
    if (ioctl(fd, SIOCSIFADDR, &request) < 0 && errno != EADDRNOTAVAIL)
        return -errno;
    return boot_option("lodge.net", net, sizeof net) && start_dhcp(interface) < 0 ? -ENOENT : 0;
}

enum { DHCP_STEPS = 1500 }; /* of 2 ms */

static void wait_for_dhcp(pid_t pid)
{
    for (int i = 0; i < DHCP_STEPS && waitpid(pid, NULL, WNOHANG) == 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = 2 * 1000000}, NULL);
}

void boot_cards(void)
{
    char net[16], name[IF_NAMESIZE];
    if (!boot_option("lodge.net", net, sizeof net))
        return;
    for (unsigned i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "eth%u", i);
        if (!if_nametoindex(name))
            break;
        pid_t pid = start_dhcp(name);
        /* Who asked for a user network finds it working. passt answers at once. */
        if (pid > 0 && i == 0 && !strcmp(net, "user"))
            wait_for_dhcp(pid);
    }
}

bool boot_option(const char *name, char *ret_value, unsigned size)
{
    char line[4096];
    read_command_line(line, sizeof line);
    size_t name_length = strlen(name);
    char *rest = NULL;
    for (char *word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest))
        if (!strncmp(word, name, name_length) && word[name_length] == '=') {
            snprintf(ret_value, size, "%s", word + name_length + 1);
            return true;
        }
    return false;
}

int boot_open_uevents(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    _cleanup_fd_ int fd =
        socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -1;
    return take_fd(&fd);
}

static bool port_is_called(const char *port, const char *name)
{
    char path[320], text[128];
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", port);
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (length < 0)
        return false;
    text[length] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return !strcmp(text, name);
}

int boot_open_port(const char *name)
{
    int found = -1;
    DIR *ports = opendir("/sys/class/virtio-ports");
    if (!ports)
        return -1;
    for (struct dirent *entry = readdir(ports); entry && found < 0; entry = readdir(ports)) {
        char path[300];
        if (*entry->d_name == '.' || !port_is_called(entry->d_name, name))
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        found = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    closedir(ports);
    return found;
}

/* Until no child is left, at most `ms`. */
static void reap_for(int ms)
{
    const struct timespec step = {.tv_nsec = 10 * 1000000};
    int64_t end = clock_ms() + ms;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    for (;;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0)
            return;
        if (pid > 0)
            continue;
        sigtimedwait(&child, NULL, &step);
        if (clock_ms() >= end)
            return;
    }
}

void boot_shut_down(bool again)
{
    kill(-1, SIGTERM);
    kill(-1, SIGHUP); /* interactive shells ignore SIGTERM */
    kill(-1, SIGCONT);
    reap_for(2000);
    kill(-1, SIGKILL);
    reap_for(200);
    sync();
    reboot(again ? RB_AUTOBOOT : RB_POWER_OFF);
    complain("reboot");
    for (;;)
        pause();
}
