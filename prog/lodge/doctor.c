/*
 * lodge doctor: what of this machine would be missed by a guest, and what to do about it.
 *
 * A row for each thing that is looked at. It only looks: nothing is made, changed or started, but
 * for the tiny guest that tells how fast /dev/kvm is (cpu/kvm/probe.h).
 */
#include "base/bytes.h"
#include "base/descriptors.h"
#include "base/own.h"
#include "cpu/kvm/probe.h"
#include "endpoint.h"
#include "firmware.h"
#include "image/store.h"
#include "machine.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <jansson.h>

enum verdict { FINE, NOTE, TROUBLE };

static const char *const verdict_names[] = {
    [FINE] = "fine",       /* */
    [NOTE] = "note",       /* something works less well, or not at all for those who want it */
    [TROUBLE] = "trouble", /* guests do not run */
};

struct finding {
    enum verdict verdict;
    char what[ERR_TEXT_MAX]; /* what was found */
    char advice[200];        /* what to do, or empty */
};

static void say(struct finding *finding, enum verdict verdict, const char *what, const char *advice)
{
    finding->verdict = verdict;
    snprintf(finding->what, sizeof finding->what, "%s", what);
    snprintf(finding->advice, sizeof finding->advice, "%s", advice);
}

/* A number in /proc or /sys; false where there is none. */
static bool read_number(const char *path, long *ret_number)
{
    char text[32] = "", *end;
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return false;
    *ret_number = strtol(text, &end, 10);
    return end != text;
}

static bool is_in_path(const char *program)
{
    const char *path = getenv("PATH");
    for (const char *at = path ? path : "/usr/bin:/bin"; *at;) {
        char file[4096];
        size_t length = strcspn(at, ":");
        snprintf(file, sizeof file, "%.*s/%s", (int)length, at, program);
        if (access(file, X_OK) == 0)
            return true;
        at += length;
        at += *at == ':';
    }
    return false;
}

/* ---- the rows ---- */

static void look_at_programs(struct finding *finding)
{
    static const char *const programs[][2] = {
        {"lodge-vmm", "LODGE_VMM"}, {"lodge-share", "LODGE_SHARE"}, {"lodge-http", "LODGE_HTTP"}};
    char path[4096];
    struct err err = {0};
    say(finding, FINE, "lodge-vmm, lodge-share and lodge-http are there", "");
    for (size_t i = 0; i < ARRAY_LEN(programs); i++)
        if (machine_find_program(programs[i][0], programs[i][1], path, sizeof path, &err) < 0) {
            say(finding, TROUBLE, err.text, "");
            return;
        }
}

static void look_at_kvm(struct finding *finding)
{
    struct kvm_probe probe = {0};
    kvm_probe(NULL, -1, &probe);
    if (probe.works && probe.fast)
        say(finding, FINE, probe.why, "");
    else if (!probe.opens && access("/dev/kvm", F_OK) == 0)
        say(finding, NOTE, "/dev/kvm is there, but you may not open it",
            "join the group kvm, or go on with the software engine");
    else
        say(finding, NOTE, probe.why, "guests run under the software engine");
}

/* What the software engine translates becomes code in memory that has no file. */
static void look_at_code(struct finding *finding)
{
    long level = 0;
    if (read_number("/proc/sys/vm/memfd_noexec", &level) && level >= 2)
        say(finding, TROUBLE, "vm.memfd_noexec is 2: the software engine may not make code",
            "sysctl vm.memfd_noexec=1");
    else
        say(finding, FINE, "the software engine may translate", "");
}

static void look_at_seccomp(struct finding *finding)
{
    if (access("/proc/sys/kernel/seccomp/actions_avail", R_OK) == 0)
        say(finding, FINE, "system call filters are offered", "");
    else
        say(finding, TROUBLE, "this kernel has no seccomp, and no guest runs without",
            "a kernel with CONFIG_SECCOMP_FILTER");
}

static void look_at_rings(struct finding *finding)
{
    long disabled = 0;
    if (!read_number("/proc/sys/kernel/io_uring_disabled", &disabled) || disabled == 0)
        say(finding, FINE, "io_uring is offered", "");
    else
        say(finding, NOTE, "io_uring is switched off: disks are slower",
            "sysctl kernel.io_uring_disabled=0");
}

static void look_at_network(struct finding *finding)
{
    long spaces = 1, cloning = 1;
    read_number("/proc/sys/user/max_user_namespaces", &spaces);
    read_number("/proc/sys/kernel/unprivileged_userns_clone", &cloning);
    if (!is_in_path("passt"))
        say(finding, NOTE, "passt is missing: no user-mode networks", "apt install passt");
    else if (spaces == 0 || (cloning == 0 && geteuid() != 0))
        say(finding, NOTE, "you may not make user namespaces, and passt wants one",
            spaces == 0 ? "sysctl user.max_user_namespaces=10000"
                        : "sysctl kernel.unprivileged_userns_clone=1");
    else
        say(finding, FINE, "passt is there for user-mode networks", "");
}

static void look_at_taps(struct finding *finding)
{
    if (access("/dev/net/tun", R_OK | W_OK) == 0)
        say(finding, FINE, "taps can be opened", "");
    else
        say(finding, NOTE, "/dev/net/tun does not open: no taps, user-mode networks only",
            errno == ENOENT ? "modprobe tun" : "taps are for root");
}

static void look_at_runtime(struct finding *finding)
{
    struct err err = {0};
    if (endpoint_check(&err) < 0)
        say(finding, TROUBLE, err.text, "set XDG_RUNTIME_DIR to a folder of your own");
    else
        say(finding, FINE, "guests with names can be found", "");
}

static void look_at_images(struct finding *finding)
{
    struct image_list images = {0};
    struct err err = {0};
    _cleanup_free_ char *store = NULL;
    int r = image_store_path(&store, &err);
    if (r >= 0)
        r = image_list(store, &images, &err);
    if (r < 0)
        say(finding, TROUBLE, err.text, "");
    else if (images.count == 0)
        say(finding, NOTE, "no image is built yet",
            is_in_path("apt-get") && is_in_path("dpkg-deb")
                ? "lodge image build default"
                : "images are made where there are apt and dpkg; or bring a kernel: --kernel");
    else
        snprintf(finding->what, sizeof finding->what, "%zu built", images.count);
    image_list_free(&images);
}

/* Of the file system that the images are or will be on. */
static void look_at_room(struct finding *finding)
{
    _cleanup_free_ char *store = NULL;
    struct statvfs about;
    if (image_store_path(&store, NULL) < 0)
        return say(finding, NOTE, "where images would go is not known", "set HOME");
    while (statvfs(store, &about) < 0 && errno == ENOENT && strrchr(store, '/') > store)
        *strrchr(store, '/') = '\0';
    uint64_t room = (uint64_t)about.f_bavail * about.f_frsize;
    snprintf(finding->what, sizeof finding->what, "%" PRIu64 " MiB free for images", room >> 20);
    if (room < GIB(2)) {
        finding->verdict = NOTE;
        snprintf(finding->advice, sizeof finding->advice,
                 "the Debian image needs 2 GiB while it is made");
    }
}

static void look_at_firmware(struct finding *finding)
{
    struct err err = {0};
    if (firmware_check(&err) < 0)
        say(finding, NOTE, err.text, "");
    else
        say(finding, FINE, "UEFI firmware is there for --firmware", "");
}

static void look_at_limits(struct finding *finding)
{
    struct rlimit files = {0};
    long mappings = 0;
    getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_max < 1024)
        say(finding, NOTE, "fewer than 1024 open files: not enough for many disks and clones",
            "ulimit -n 4096");
    else if (read_number("/proc/sys/vm/max_map_count", &mappings) && mappings < 65530)
        say(finding, NOTE, "vm.max_map_count is low: chains of snapshots are copied, not mapped",
            "sysctl vm.max_map_count=65530");
    else
        say(finding, FINE, "open files and mappings suffice", "");
}

static const struct row {
    const char *name;
    void (*look)(struct finding *finding);
} rows[] = {
    {"programs", look_at_programs}, {"kvm", look_at_kvm},           {"code", look_at_code},
    {"seccomp", look_at_seccomp},   {"io_uring", look_at_rings},    {"network", look_at_network},
    {"taps", look_at_taps},         {"names", look_at_runtime},     {"images", look_at_images},
    {"room", look_at_room},         {"firmware", look_at_firmware}, {"limits", look_at_limits},
};

/* ---- */

static void print_table(const struct finding *findings)
{
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        const struct finding *finding = &findings[i];
        printf("%-8s %-10s %s\n", verdict_names[finding->verdict], rows[i].name, finding->what);
        if (*finding->advice)
            printf("%-19s -> %s\n", "", finding->advice);
    }
}

static int print_json(const struct finding *findings)
{
    json_t *array = json_array();
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        json_array_append_new(array,
                              json_pack("{s:s, s:s, s:s, s:s}", "name", rows[i].name, "verdict",
                                        verdict_names[findings[i].verdict], "what",
                                        findings[i].what, "advice", findings[i].advice));
    int r = json_dumpf(array, stdout, JSON_INDENT(2));
    json_decref(array);
    putchar('\n');
    return r;
}

static int doctor(const struct arguments *arguments)
{
    struct finding findings[ARRAY_LEN(rows)] = {{0}};
    const char *format = arguments_value(arguments, "format");
    enum verdict worst = FINE;
    if (format && strcmp(format, "json") != 0 && strcmp(format, "table") != 0) {
        fprintf(stderr, "lodge: --format is table or json, not '%s'\n", format);
        return STATUS_MISTAKE;
    }
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        rows[i].look(&findings[i]);
        worst = max(worst, findings[i].verdict);
    }
    if (format && !strcmp(format, "json")) {
        if (print_json(findings) < 0)
            return STATUS_FAILED;
    } else {
        print_table(findings);
    }
    return worst == TROUBLE ? STATUS_FAILED : 0;
}

static const struct option_row options[] = {
    {"format", 0, "FORMAT", "table or json (table)"},
    {0},
};

const struct verb verb_doctor = {
    .name = "doctor",
    .summary = "Look for what guests would miss on this machine",
    .usage = "",
    .details =
        "Nothing is changed. Each line is fine, a note (something works less well, or not at\n"
        "all for those who want it) or trouble (guests do not run), with what to do about it.\n"
        "Exit status 1 where there is trouble.",
    .example = "lodge doctor",
    .options = options,
    .mistake_status = STATUS_MISTAKE,
    .run = doctor,
};
