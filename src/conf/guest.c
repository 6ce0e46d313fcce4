#include "conf/guest.h"

#include "base/own.h"
#include "conf/private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char *const engine_names[GUEST_ENGINE_MAX] = {
    [GUEST_ENGINE_AUTO] = "auto",
    [GUEST_ENGINE_KVM] = "kvm",
    [GUEST_ENGINE_SOFT] = "soft",
};

static const char *const cpu_names[GUEST_CPU_MAX] = {
    [GUEST_CPU_AUTO] = "auto",
    [GUEST_CPU_PORTABLE] = "portable",
    [GUEST_CPU_HOST] = "host",
};

static const char *const translate_names[GUEST_TRANSLATE_MAX] = {
    [GUEST_TRANSLATE_HOT] = "hot",
    [GUEST_TRANSLATE_NEVER] = "never",
    [GUEST_TRANSLATE_ALWAYS] = "always",
};

static const char *const watchdog_names[GUEST_WATCHDOG_MAX] = {
    [GUEST_WATCHDOG_OFF] = "off",
    [GUEST_WATCHDOG_EVENT] = "event",
    [GUEST_WATCHDOG_RESET] = "reset",
    [GUEST_WATCHDOG_POWER_OFF] = "poweroff",
};

const char *guest_engine_name(enum guest_engine engine)
{
    return engine_names[engine];
}

const char *guest_cpu_name(enum guest_cpu cpu)
{
    return cpu_names[cpu];
}

const char *guest_translate_name(enum guest_translate translate)
{
    return translate_names[translate];
}

const char *guest_watchdog_name(enum guest_watchdog watchdog)
{
    return watchdog_names[watchdog];
}

void guest_conf_init(struct guest_conf *conf)
{
    *conf = (struct guest_conf){
        .engine = GUEST_ENGINE_AUTO,
        .memory = MIB(512),
        .cpus = 1,
        .balloon = true,
        .append = strdup(""),
        .kernel_fd = -1,
        .initrd_fd = -1,
        .firmware_fd = -1,
        .nvram_fd = -1,
        .kvm_fd = -1,
        .serial_in_fd = -1,
        .serial_out_fd = -1,
        .control_fd = -1,
        .listen_fd = -1,
        .lockstep.fd = -1,
        .vsock = {.cid = GUEST_CID_MIN, .fd = -1},
    };
    for (size_t i = 0; i < GUEST_CONSOLES_MAX; i++)
        conf->consoles[i].fd = -1;
    for (size_t i = 0; i < GUEST_SHARES_MAX; i++)
        conf->shares[i].fd = -1;
}

void guest_conf_free(struct guest_conf *conf)
{
    if (!conf)
        return;
    free(conf->name);
    free(conf->kernel);
    free(conf->initrd);
    free(conf->append);
    free(conf->firmware);
    free(conf->nvram);
    for (size_t i = 0; i < GUEST_CONSOLES_MAX; i++)
        free(conf->consoles[i].name);
    for (size_t i = 0; i < GUEST_DISKS_MAX; i++)
        guest_disk_free(&conf->disks[i]);
    free(conf->vsock.path);
    for (size_t i = 0; i < GUEST_SHARES_MAX; i++)
        guest_share_free(&conf->shares[i]);
    *conf = (struct guest_conf){0};
}

static int copy_string(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return from && !*to ? -ENOMEM : 0;
}

int guest_conf_copy(struct guest_conf *to, const struct guest_conf *from)
{
    *to = *from;
    to->name = to->kernel = to->initrd = to->append = to->vsock.path = NULL;
    to->firmware = to->nvram = NULL;
    for (size_t i = 0; i < GUEST_CONSOLES_MAX; i++)
        to->consoles[i].name = NULL;
    memset(to->disks, 0, sizeof to->disks);
    memset(to->shares, 0, sizeof to->shares);
    int r = copy_string(&to->name, from->name);
    if (r >= 0)
        r = copy_string(&to->kernel, from->kernel);
    if (r >= 0)
        r = copy_string(&to->initrd, from->initrd);
    if (r >= 0)
        r = copy_string(&to->append, from->append);
    if (r >= 0)
        r = copy_string(&to->firmware, from->firmware);
    if (r >= 0)
        r = copy_string(&to->nvram, from->nvram);
    if (r >= 0)
        r = copy_string(&to->vsock.path, from->vsock.path);
    for (size_t i = 0; r >= 0 && i < GUEST_CONSOLES_MAX; i++)
        r = copy_string(&to->consoles[i].name, from->consoles[i].name);
    for (size_t i = 0; r >= 0 && i < from->disk_count; i++)
        r = guest_disk_copy(&to->disks[i], &from->disks[i]);
    for (size_t i = 0; r >= 0 && i < GUEST_SHARES_MAX; i++)
        r = guest_share_copy(&to->shares[i], &from->shares[i]);
    if (r < 0)
        guest_conf_free(to);
    return r;
}

int guest_conf_append(struct guest_conf *conf, const char *words)
{
    if (!*words)
        return 0;
    char *joined;
    const char *before = conf->append ? conf->append : "";
    if (asprintf(&joined, "%s%s%s", before, *before ? " " : "", words) < 0)
        return -ENOMEM;
    free(conf->append);
    conf->append = joined;
    return 0;
}

static int suffix_shift(const char *suffix)
{
    static const char letters[] = "KMGT";
    if (!*suffix)
        return 0;
    if (!strcmp(suffix, "B"))
        return 0;
    char upper = (char)(*suffix >= 'a' && *suffix <= 'z' ? *suffix - 'a' + 'A' : *suffix);
    const char *found = strchr(letters, upper);
    if (!found || !upper)
        return -EINVAL;
    const char *rest = suffix + 1;
    if (*rest && strcmp(rest, "B") && strcmp(rest, "iB") && strcmp(rest, "b"))
        return -EINVAL;
    return 10 * (int)(found - letters + 1);
}

static int not_a_size(const char *text, struct err *err)
{
    return err_set(err, -EINVAL, "'%.64s' is no size; write it like 512M, 1.5G or 268435456", text);
}

/* Digits of a fraction, as a share of 2^shift: "5" with shift 30 is 0.5 * 2^30. Exact in 64 bits
 * for the nine digits that are accepted. */
static int parse_fraction(const char **at, int shift, uint64_t *ret_bytes)
{
    uint64_t digits = 0, scale = 1;
    const char *start = *at;
    for (; **at >= '0' && **at <= '9'; (*at)++) {
        if (*at - start >= 9)
            return -EINVAL;
        digits = digits * 10 + (uint64_t)(**at - '0');
        scale *= 10;
    }
    if (*at == start || suffix_shift(*at) != shift)
        return -EINVAL;
    unsigned __int128 bytes = ((unsigned __int128)digits << shift) / scale;
    *ret_bytes = (uint64_t)bytes;
    return 0;
}

int guest_parse_size(const char *text, uint64_t *ret_bytes, struct err *err)
{
    const char *at = text;
    uint64_t whole = 0, fraction = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        if (__builtin_mul_overflow(whole, UINT64_C(10), &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*at - '0'), &whole))
            return err_set(err, -EINVAL, "size '%.64s' does not fit 64 bits", text);
    if (at == text)
        return not_a_size(text, err);
    const char *suffix = at;
    if (*at == '.')
        suffix = at + 1 + strspn(at + 1, "0123456789");
    int shift = suffix_shift(suffix);
    if (shift < 0)
        return not_a_size(text, err);
    if (*at == '.') {
        at++;
        if (shift == 0 || parse_fraction(&at, shift, &fraction) < 0)
            return not_a_size(text, err);
    }
    uint64_t bytes;
    if (__builtin_mul_overflow(whole, UINT64_C(1) << shift, &bytes) ||
        __builtin_add_overflow(bytes, fraction, &bytes))
        return err_set(err, -EINVAL, "size '%.64s' does not fit 64 bits", text);
    if (bytes == 0)
        return err_set(err, -EINVAL, "size '%.64s' is nothing; write it like 512M", text);
    *ret_bytes = bytes;
    return 0;
}

int guest_check_memory(uint64_t bytes, struct err *err)
{
    if (bytes < GUEST_MEMORY_MIN)
        return err_set(err, -EINVAL,
                       "memory of %" PRIu64 " bytes is too little; a guest needs at least 16M",
                       bytes);
    if (bytes > GUEST_MEMORY_MAX)
        return err_set(err, -EINVAL, "memory of %" PRIu64 " bytes is more than the largest, 1T",
                       bytes);
    if (bytes % 4096)
        return err_set(err, -EINVAL,
                       "memory of %" PRIu64 " bytes is no multiple of 4K; write it like 512M",
                       bytes);
    return 0;
}

int guest_check_cpus(uint64_t cpus, struct err *err)
{
    if (cpus < 1 || cpus > GUEST_CPUS_MAX)
        return err_set(err, -EINVAL, "%" PRIu64 " CPUs: a guest has 1 to %d", cpus, GUEST_CPUS_MAX);
    return 0;
}

int guest_check_code_cache(uint64_t bytes, struct err *err)
{
    if (bytes < GUEST_CODE_CACHE_MIN)
        return err_set(err, -EINVAL,
                       "a code cache of %" PRIu64 " bytes is too little; it is 1M to 512M", bytes);
    if (bytes > GUEST_CODE_CACHE_MAX)
        return err_set(err, -EINVAL,
                       "a code cache of %" PRIu64 " bytes is too much; it is 1M to 512M", bytes);
    if (bytes % 4096)
        return err_set(err, -EINVAL,
                       "a code cache of %" PRIu64 " bytes is no multiple of 4K; write it like 64M",
                       bytes);
    return 0;
}

static int set_size(uint64_t *field, const char *what, int (*check)(uint64_t, struct err *),
                    const char *text, struct err *err)
{
    uint64_t bytes;
    /* guest_parse_size() refuses nothing; here it deserves the same words as too little. */
    if (*text == '0' && strspn(text, "0") == strlen(text))
        return check(0, err);
    int r = guest_parse_size(text, &bytes, err);
    if (r < 0)
        return err_prefix(err, r, "%s", what);
    r = check(bytes, err);
    if (r >= 0)
        *field = bytes;
    return r;
}

int guest_conf_set_memory(struct guest_conf *conf, const char *text, struct err *err)
{
    return set_size(&conf->memory, "memory", guest_check_memory, text, err);
}

int guest_conf_set_code_cache(struct guest_conf *conf, const char *text, struct err *err)
{
    return set_size(&conf->code_cache, "code cache", guest_check_code_cache, text, err);
}

int guest_conf_set_cpus(struct guest_conf *conf, const char *text, struct err *err)
{
    uint64_t cpus = 0;
    size_t length = strlen(text);
    if (length == 0 || length > 9 || strspn(text, "0123456789") != length)
        return err_set(err, -EINVAL, "'%.64s' is no number of CPUs; a guest has 1 to %d", text,
                       GUEST_CPUS_MAX);
    for (const char *at = text; *at; at++)
        cpus = cpus * 10 + (uint64_t)(*at - '0');
    int r = guest_check_cpus(cpus, err);
    if (r >= 0)
        conf->cpus = (unsigned)cpus;
    return r;
}

int guest_conf_set_engine(struct guest_conf *conf, const char *text, struct err *err)
{
    for (enum guest_engine engine = 0; engine < GUEST_ENGINE_MAX; engine++)
        if (!strcmp(text, engine_names[engine])) {
            conf->engine = engine;
            return 0;
        }
    return err_set(err, -EINVAL, "engine '%.64s' is unknown; there are auto, kvm and soft", text);
}

int guest_conf_set_cpu(struct guest_conf *conf, const char *text, struct err *err)
{
    for (enum guest_cpu cpu = 0; cpu < GUEST_CPU_MAX; cpu++)
        if (!strcmp(text, cpu_names[cpu])) {
            conf->cpu = cpu;
            return 0;
        }
    return err_set(err, -EINVAL, "cpu '%.64s' is unknown; there are auto, portable and host", text);
}

int guest_conf_set_translate(struct guest_conf *conf, const char *text, struct err *err)
{
    for (enum guest_translate translate = 0; translate < GUEST_TRANSLATE_MAX; translate++)
        if (!strcmp(text, translate_names[translate])) {
            conf->translate = translate;
            return 0;
        }
    return err_set(err, -EINVAL, "translate '%.64s' is unknown; there are hot, never and always",
                   text);
}

int guest_conf_set_watchdog(struct guest_conf *conf, const char *text, struct err *err)
{
    for (enum guest_watchdog watchdog = 0; watchdog < GUEST_WATCHDOG_MAX; watchdog++)
        if (!strcmp(text, watchdog_names[watchdog])) {
            conf->watchdog = watchdog;
            return 0;
        }
    return err_set(err, -EINVAL, "a watchdog is off, event, reset or poweroff, not '%.64s'", text);
}

int guest_conf_set_balloon(struct guest_conf *conf, const char *text, struct err *err)
{
    if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0)
        return err_set(err, -EINVAL, "a balloon is on or off, not '%.64s'", text);
    conf->balloon = !strcmp(text, "on");
    return 0;
}

static int check_firmware(const struct guest_conf *conf, struct err *err)
{
    if (conf->kernel || conf->kernel_fd >= 0 || conf->initrd || conf->initrd_fd >= 0)
        return err_set(err, -EINVAL,
                       "a guest has firmware or a kernel, not both: firmware finds the kernel on a "
                       "disk");
    if (conf->append && *conf->append)
        return err_set(err, -EINVAL,
                       "a guest with firmware has its kernel's command line from its boot loader; "
                       "leave '%.64s' out",
                       conf->append);
    if (conf->memory < GUEST_FIRMWARE_MEMORY_MIN)
        return err_set(err, -EINVAL, "memory of %" PRIu64 " MiB is too little for firmware: 128M",
                       conf->memory >> 20);
    return 0;
}

/* What the guest begins with. */
static int check_start(const struct guest_conf *conf, struct err *err)
{
    if (conf->firmware || conf->firmware_fd >= 0)
        return check_firmware(conf, err);
    if (conf->nvram || conf->nvram_fd >= 0)
        return err_set(err, -EINVAL, "nvram is the firmware's; there is none");
    if (!conf->kernel && conf->kernel_fd < 0 && !conf->restore.count)
        return err_set(err, -EINVAL,
                       "no kernel; name one with kernel = \"...\" or --kernel, "
                       "or an image, or use --firmware");
    return 0;
}

int guest_conf_check(const struct guest_conf *conf, struct err *err)
{
    int r = guest_check_memory(conf->memory, err);
    if (r >= 0)
        r = guest_check_cpus(conf->cpus, err);
    if (r >= 0 && conf->code_cache)
        r = guest_check_code_cache(conf->code_cache, err);
    if (r >= 0)
        r = check_start(conf, err);
    if (r < 0)
        return r;
    if (conf->console_count > GUEST_CONSOLES_MAX)
        return err_set(err, -EINVAL, "%u consoles: a guest has at most %d", conf->console_count,
                       GUEST_CONSOLES_MAX);
    return guest_conf_check_nics(conf, err);
}

static void fd_add(int fd, int *fds, unsigned *count)
{
    if (fd >= 0)
        fds[(*count)++] = fd;
}

unsigned guest_conf_fds(const struct guest_conf *conf, int ret_fds[GUEST_FDS_MAX])
{
    const int named[] = {conf->kernel_fd,     conf->initrd_fd,  conf->kvm_fd,
                         conf->firmware_fd,   conf->nvram_fd,   conf->serial_in_fd,
                         conf->serial_out_fd, conf->control_fd, conf->listen_fd,
                         conf->lockstep.fd,   conf->vsock.fd};
    unsigned count = 0;
    for (size_t i = 0; i < ARRAY_LEN(named); i++)
        fd_add(named[i], ret_fds, &count);
    for (unsigned i = 0; i < conf->console_count; i++)
        fd_add(conf->consoles[i].fd, ret_fds, &count);
    for (unsigned i = 0; i < conf->disk_count; i++) {
        const struct guest_disk *disk = &conf->disks[i];
        for (unsigned j = 0; j < disk->image_count; j++)
            fd_add(disk->images[j].fd, ret_fds, &count);
        if (disk->unlocked)
            fd_add(disk->key_fd, ret_fds, &count);
    }
    for (unsigned i = 0; i < conf->restore.count; i++) {
        fd_add(conf->restore.layers[i].state_fd, ret_fds, &count);
        fd_add(conf->restore.layers[i].memory_fd, ret_fds, &count);
    }
    for (unsigned i = 0; i < conf->nic_count; i++)
        for (unsigned j = 0; j < conf->nics[i].fd_count; j++)
            fd_add(conf->nics[i].fds[j], ret_fds, &count);
    for (unsigned i = 0; i < conf->share_count; i++)
        fd_add(conf->shares[i].fd, ret_fds, &count);
    return count;
}
