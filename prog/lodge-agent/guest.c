#include "guest.h"

#include "base/bytes.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <net/if.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum { ADDRESSES_MAX = 64 };

/* A stream in memory that puts the strings one behind the other; each add() is one. */
struct description {
    FILE *to;
    unsigned count;
};

static void add(struct description *description, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void add(struct description *description, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(description->to, format, arguments);
    va_end(arguments);
    fputc('\0', description->to);
    description->count++;
}

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* PRETTY_NAME of os-release(5), which is shell: quotes around it, if any, are taken off. */
static void add_system(struct description *description)
{
    static const char name[] = "PRETTY_NAME=", other[] = "NAME=";
    char line[256], found[256] = "";
    FILE *file = fopen("/etc/os-release", "re");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        bool pretty = !strncmp(line, name, sizeof name - 1);
        if (!pretty && (strncmp(line, other, sizeof other - 1) != 0 || *found))
            continue;
        char *value = strchr(line, '=') + 1;
        size_t length = strlen(value);
        if (length >= 2 && (*value == '"' || *value == '\'') && value[length - 1] == *value) {
            value[length - 1] = '\0';
            value++;
        }
        strcpy(found, value);
        if (pretty)
            break;
    }
    if (file)
        fclose(file);
    if (*found)
        add(description, "system=%s", found);
}

static void add_addresses(struct description *description)
{
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list) < 0)
        return;
    unsigned count = 0;
    for (const struct ifaddrs *at = list; at && count < ADDRESSES_MAX; at = at->ifa_next) {
        char text[INET6_ADDRSTRLEN];
        int family = at->ifa_addr ? at->ifa_addr->sa_family : AF_UNSPEC;
        const void *bytes = NULL;
        if (family == AF_INET)
            bytes = &((const struct sockaddr_in *)(const void *)at->ifa_addr)->sin_addr;
        else if (family == AF_INET6)
            bytes = &((const struct sockaddr_in6 *)(const void *)at->ifa_addr)->sin6_addr;
        if (!bytes || at->ifa_flags & IFF_LOOPBACK)
            continue;
        add(description, "address=%s %s", at->ifa_name,
            inet_ntop(family, bytes, text, sizeof text));
        count++;
    }
    freeifaddrs(list);
}

int guest_describe(char **ret_bytes, struct agent_strings *ret_strings)
{
    struct utsname names;
    struct sysinfo system;
    size_t size = 0;
    struct description description = {.to = open_memstream(ret_bytes, &size)};
    if (!description.to)
        return -ENOMEM;
    uname(&names);
    sysinfo(&system);
    add(&description, "agent=%s", LODGE_VERSION);
    add(&description, "kernel=%s", names.release);
    add(&description, "hostname=%s", names.nodename);
    add_system(&description);
    add(&description, "init=%d", getpid() == 1);
    add(&description, "cpus=%ld", sysconf(_SC_NPROCESSORS_ONLN));
    add(&description, "memory=%" PRIu64, (uint64_t)system.totalram * system.mem_unit);
    add(&description, "memory_free=%" PRIu64, (uint64_t)system.freeram * system.mem_unit);
    add(&description, "uptime_ns=%" PRIu64, now(CLOCK_BOOTTIME));
    add(&description, "time_ns=%" PRIu64, now(CLOCK_REALTIME));
    add_addresses(&description);
    if (fclose(description.to) != 0)
        return -ENOMEM;
    *ret_strings = (struct agent_strings){*ret_bytes, size, description.count};
    return 0;
}

int guest_set_clock(uint64_t time, struct err *err)
{
    struct timespec wanted = {.tv_sec = (time_t)(time / 1000000000),
                              .tv_nsec = (long)(time % 1000000000)};
    if (clock_settime(CLOCK_REALTIME, &wanted) < 0)
        return err_errno(err, errno, "the clock");
    return 0;
}

int guest_ask_init(enum agent_shutdown how, struct err *err)
{
    char *program = (char *)(how == AGENT_REBOOT ? "/sbin/reboot" : "/sbin/poweroff");
    char *const argv[] = {program, NULL};
    char *const env[] = {(char *)"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    posix_spawnattr_t attributes;
    sigset_t none;
    pid_t pid;
    sigemptyset(&none);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
    int number = posix_spawn(&pid, program, NULL, &attributes, argv, env);
    posix_spawnattr_destroy(&attributes);
    return number ? err_errno(err, number, "'%s'", program) : 0;
}
