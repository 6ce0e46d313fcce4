#include "identity.h"

#include "base/bytes.h"
#include "base/own.h"
#include "boot.h"
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    FILE_MAX = 64 * 1024,
    KEY_STEPS = 6000, /* of 20 ms: an RSA key takes long on a slow machine */
};

/* ---- random numbers ---- */

/* The seed counts for what it is, and is used at once, on all CPUs. A kernel with a driver for the
 * VM generation ID has done the like by itself; many have none. */
static int seed_kernel(const uint8_t seed[AGENT_SEED_SIZE], struct err *err)
{
    struct {
        struct rand_pool_info info;
        uint8_t bytes[AGENT_SEED_SIZE];
    } pool = {.info = {.entropy_count = 8 * AGENT_SEED_SIZE, .buf_size = AGENT_SEED_SIZE}};
    memcpy(pool.bytes, seed, sizeof pool.bytes);
    _cleanup_fd_ int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    int r =
        fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0 ? -errno : 0;
    explicit_bzero(&pool, sizeof pool);
    return r < 0 ? err_errno(err, -r, "the kernel's random numbers") : 0;
}

/* ---- files ---- */

/* A small file, with a NUL behind it. -ENOENT where it is none, or no file. */
static int read_file(const char *path, char **ret_text, struct stat *ret_status)
{
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, ret_status) < 0)
        return -errno;
    if (!S_ISREG(ret_status->st_mode) || ret_status->st_size > FILE_MAX)
        return -ENOENT;
    size_t size = (size_t)ret_status->st_size;
    _cleanup_free_ char *text = calloc(1, size + 1);
    if (!text)
        return -ENOMEM;
    if (read(fd, text, size) != (ssize_t)size)
        return -EIO;
    *ret_text = take_ptr(text);
    return 0;
}

/* Written beside its place, then put there: whoever looks sees the old one or the new one. */
static int replace_file(const char *path, const char *text, const struct stat *status)
{
    char making[512];
    if (snprintf(making, sizeof making, "%s.lodge", path) >= (int)sizeof making)
        return -ENAMETOOLONG;
    unlink(making); /* of an earlier one that was broken off */
    _cleanup_fd_ int fd = open(making, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    size_t length = strlen(text);
    if (fd < 0)
        return -errno;
    errno = ENOSPC; /* of a write that falls short */
    if (write(fd, text, length) == (ssize_t)length && fchmod(fd, status->st_mode & 07777) == 0 &&
        fchown(fd, status->st_uid, status->st_gid) == 0 && fsync(fd) == 0 &&
        rename(making, path) == 0)
        return 0;
    int r = -errno;
    unlink(making);
    return r;
}

static bool is_blank(char letter)
{
    return letter == ' ' || letter == '\t' || letter == '\n' || letter == '\0';
}

/* Names of this machine: on lines of 127.0.1.1, as in Debian, the word `before` becomes `name`. */
static void write_hosts(FILE *to, const char *text, const char *before, const char *name)
{
    static const char own[] = "127.0.1.1";
    size_t length = strlen(before);
    for (const char *line = text; *line;) {
        const char *end = line + strcspn(line, "\n");
        bool ours = !strncmp(line, own, sizeof own - 1) && is_blank(line[sizeof own - 1]);
        for (const char *at = line; at < end;) {
            bool word = at > line && is_blank(at[-1]) && !strncmp(at, before, length) &&
                        (is_blank(at[length]) || at[length] == '.');
            if (ours && length && word) {
                fputs(name, to);
                at += length;
            } else {
                fputc(*at++, to);
            }
        }
        if (*end)
            fputc('\n', to);
        line = end + (*end != '\0');
    }
}

static int change_hosts(const char *root, const char *before, const char *name)
{
    _cleanup_free_ char *text = NULL;
    _cleanup_free_ char *changed = NULL;
    char path[300];
    struct stat status;
    size_t size = 0;
    snprintf(path, sizeof path, "%s/etc/hosts", root);
    int r = read_file(path, &text, &status);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    FILE *to = open_memstream(&changed, &size);
    if (!to)
        return -ENOMEM;
    write_hosts(to, text, before, name);
    if (fclose(to) != 0)
        return -ENOMEM;
    return strcmp(text, changed) != 0 ? replace_file(path, changed, &status) : 0;
}

int identity_hostname_files(const char *root, const char *before, const char *name, struct err *err)
{
    _cleanup_free_ char *text = NULL;
    char path[300], line[AGENT_HOSTNAME_MAX + 2];
    struct stat status;
    snprintf(path, sizeof path, "%s/etc/hostname", root);
    snprintf(line, sizeof line, "%s\n", name);
    int r = read_file(path, &text, &status);
    if (r >= 0)
        r = replace_file(path, line, &status);
    if (r < 0 && r != -ENOENT)
        return err_errno(err, -r, "'%s'", path);
    r = change_hosts(root, before, name);
    return r < 0 ? err_errno(err, -r, "'%s/etc/hosts'", root) : 0;
}

static int set_hostname(const char *name, struct err *err)
{
    struct utsname names;
    if (!*name)
        return 0;
    uname(&names);
    if (sethostname(name, strlen(name)) < 0)
        return err_errno(err, errno, "the host name '%s'", name);
    return identity_hostname_files("", names.nodename, name, err);
}

/* machine-id(5): 32 digits, those of a random UUID (RFC 4122, 4.4). */
static int make_machine_id(char ret_text[34])
{
    uint8_t id[16];
    if (getrandom(id, sizeof id, 0) != sizeof id)
        return -EIO;
    id[6] = (uint8_t)((id[6] & 0x0f) | 0x40);
    id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
    for (unsigned i = 0; i < sizeof id; i++)
        snprintf(ret_text + 2 * i, 3, "%02x", id[i]);
    strcpy(ret_text + 32, "\n");
    return 0;
}

/* D-Bus's, where it is no link to the other, was the same and stays so. */
int identity_machine_id(const char *root, struct err *err)
{
    static const char *const files[] = {"etc/machine-id", "var/lib/dbus/machine-id"};
    char id[34], path[300];
    int r = make_machine_id(id);
    for (size_t i = 0; r >= 0 && i < ARRAY_LEN(files); i++) {
        _cleanup_free_ char *text = NULL;
        struct stat status, link;
        snprintf(path, sizeof path, "%s/%s", root, files[i]);
        r = lstat(path, &link) < 0 ? -errno : read_file(path, &text, &status);
        if (r >= 0 && S_ISREG(link.st_mode) && *text)
            r = replace_file(path, id, &status);
        if (r == -ENOENT)
            r = 0;
    }
    return r < 0 ? err_errno(err, -r, "'%s'", path) : 0;
}

/* ---- network cards ---- */

static bool hardware_address(int fd, const char *name, uint8_t ret_mac[6])
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(fd, SIOCGIFHWADDR, &request) < 0 || request.ifr_hwaddr.sa_family != ARPHRD_ETHER)
        return false;
    memcpy(ret_mac, request.ifr_hwaddr.sa_data, 6);
    return true;
}

/* Of cards that have such a device: a bridge or a VLAN over one has its address as well. */
static bool find_card(int fd, const uint8_t mac[6], char ret_name[IF_NAMESIZE])
{
    bool found = false;
    struct if_nameindex *all = if_nameindex();
    for (const struct if_nameindex *at = all; at && at->if_name && !found; at++) {
        char path[64];
        uint8_t has[6];
        snprintf(path, sizeof path, "/sys/class/net/%s/device", at->if_name);
        found = access(path, F_OK) == 0 && hardware_address(fd, at->if_name, has) &&
                !memcmp(has, mac, sizeof has);
        if (found)
            snprintf(ret_name, IF_NAMESIZE, "%s", at->if_name);
    }
    if_freenameindex(all);
    return found;
}

/* IPv6 addresses that were made of the old one go; and what manages the card here notices that it
 * was down, and asks anew. */
static int bounce(int fd, struct ifreq *request)
{
    if (ioctl(fd, SIOCGIFFLAGS, request) < 0)
        return -errno;
    short flags = request->ifr_flags;
    if (!(flags & IFF_UP))
        return 0;
    request->ifr_flags = (short)(flags & ~IFF_UP);
    if (ioctl(fd, SIOCSIFFLAGS, request) < 0)
        return -errno;
    request->ifr_flags = flags;
    return ioctl(fd, SIOCSIFFLAGS, request) < 0 ? -errno : 0;
}

static int set_card(const struct agent_card *card, bool init, struct err *err)
{
    struct ifreq request = {0};
    char name[IF_NAMESIZE];
    _cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_errno(err, errno, "network cards");
    if (!find_card(fd, card->from, name))
        return 0; /* no driver: it will find the new address when it comes */
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, card->to, sizeof card->to);
    if (ioctl(fd, SIOCSIFHWADDR, &request) < 0)
        return err_errno(err, errno, "the address of network card %s", name);
    if (!card->renew)
        return 0;
    int r = bounce(fd, &request);
    if (r >= 0 && init)
        r = boot_renew(name);
    return r < 0 ? err_errno(err, -r, "network card %s", name) : 0;
}

/* ---- sshd ---- */

/* One process, at most so long. */
static int run(char *const *argv)
{
    char *env[] = {(char *)"PATH=/usr/sbin:/usr/bin:/sbin:/bin", (char *)"HOME=/root", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    pid_t pid;
    int status = 0;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
    for (int fd = 0; fd < 3; fd++)
        posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
    int number = posix_spawnp(&pid, argv[0], &actions, &attributes, argv, env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (number)
        return -number;
    for (int i = 0; i < KEY_STEPS; i++) {
        if (waitpid(pid, &status, WNOHANG) != 0)
            return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000000}, NULL);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return -ETIMEDOUT;
}

/* A key and its public half, made beside the old ones, which they then replace. */
static int renew_key(const char *folder, const char *type, struct err *err)
{
    char path[300], making[320], public[320], making_public[330];
    snprintf(path, sizeof path, "%s/ssh_host_%s_key", folder, type);
    snprintf(making, sizeof making, "%s.lodge", path);
    snprintf(public, sizeof public, "%s.pub", path);
    snprintf(making_public, sizeof making_public, "%s.pub", making);
    unlink(making);
    char *argv[] = {(char *)"ssh-keygen", (char *)"-q", (char *)"-t", (char *)type, (char *)"-N",
                    (char *)"",           (char *)"-f", making,       NULL};
    int r = run(argv);
    if (r >= 0 && (rename(making, path) < 0 || rename(making_public, public) < 0))
        r = -errno;
    return r < 0 ? err_errno(err, -r, "ssh-keygen for '%s'", path) : 0;
}

static int renew_ssh_keys(const char *folder, struct err *err)
{
    static const char *const types[] = {"ed25519", "ecdsa", "rsa"};
    int r = 0;
    for (size_t i = 0; r >= 0 && i < ARRAY_LEN(types); i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/ssh_host_%s_key", folder, types[i]);
        if (access(path, F_OK) == 0)
            r = renew_key(folder, types[i], err);
    }
    return r;
}

int identity_set(const struct agent_message *message, bool init, struct err *err)
{
    int r = seed_kernel(message->identity.seed, err);
    if (r >= 0 && message->identity.time)
        r = guest_set_clock(message->identity.time, err);
    if (r >= 0)
        r = set_hostname(message->identity.hostname, err);
    if (r >= 0 && message->identity.flags & AGENT_IDENTITY_MACHINE_ID)
        r = identity_machine_id("", err);
    for (uint32_t i = 0; r >= 0 && i < message->identity.card_count; i++)
        r = set_card(&message->identity.cards[i], init, err);
    if (r >= 0 && message->identity.flags & AGENT_IDENTITY_SSH_KEYS)
        r = renew_ssh_keys("/etc/ssh", err);
    return r;
}
