/*
 * lodge disk: makes, shows, resizes, checks and converts virtual disks.
 */
#include "disk/disk.h"

#include "bar.h"
#include "base/bytes.h"
#include "base/own.h"
#include "conf/guest.h"
#include "copy.h"
#include "fetch.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

enum { STATUS_LEAKS = 3 };

static volatile sig_atomic_t stop;

static void note_stop(int number)
{
    stop = number;
}

/* What we make is removed again when we are told to stop. */
static void watch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        sigaction(numbers[i], &(struct sigaction){.sa_handler = note_stop}, NULL);
}

static int failed(const struct err *err)
{
    fprintf(stderr, "lodge: %s\n", err->text);
    return stop ? 128 + stop : STATUS_FAILED;
}

static int mistake(const struct err *err)
{
    failed(err);
    return STATUS_MISTAKE;
}

/* --- what options say --- */

static const char *type_name(enum disk_format format)
{
    return format == DISK_FORMAT_RAW ? "raw" : format == DISK_FORMAT_QCOW2 ? "qcow2" : "unknown";
}

static int parse_type(const struct arguments *arguments, const char *option,
                      enum disk_format absent, enum disk_format *ret_format, struct err *err)
{
    const char *text = arguments_value(arguments, option);
    *ret_format = absent;
    if (!text)
        return 0;
    for (enum disk_format format = DISK_FORMAT_RAW; format <= DISK_FORMAT_QCOW2; format++)
        if (!strcmp(text, type_name(format))) {
            *ret_format = format;
            return 0;
        }
    return err_set(err, -EINVAL, "--%s is raw or qcow2, not '%.32s'", option, text);
}

static int parse_cluster_size(const struct arguments *arguments, unsigned *ret_bits,
                              struct err *err)
{
    const char *text = arguments_value(arguments, "cluster-size");
    uint64_t bytes;
    *ret_bits = 0;
    if (!text)
        return 0;
    int r = guest_parse_size(text, &bytes, err);
    if (r < 0)
        return err_prefix(err, r, "--cluster-size");
    if (bytes & (bytes - 1) || bytes < 512 || bytes > MIB(2))
        return err_set(err, -EINVAL, "--cluster-size is a power of two from 512 to 2M, not '%.32s'",
                       text);
    *ret_bits = (unsigned)__builtin_ctzll(bytes);
    return 0;
}

static int want_words(const struct arguments *arguments, unsigned count, struct err *err)
{
    return arguments->word_count == count
               ? 0
               : err_set(err, -EINVAL, "%s needs %s; see %s --help", arguments->path,
                         arguments->verb->usage, arguments->path);
}

/* --- keys --- */

static void own_key(struct disk_key **key)
{
    disk_key_free(*key);
}
#define _cleanup_key_ _cleanup_(own_key)

/* Opens what is there, a web server's file too. */
static int open_existing(const struct arguments *arguments, struct disk_options *options,
                         struct disk **ret_disk, struct err *err)
{
    struct fetch fetch = {.ca_file = arguments_value(arguments, "cacert")};
    const struct disk_opener opener = {fetch_open, &fetch};
    options->opener = &opener;
    int r = disk_open(arguments->words[0], options, ret_disk, err);
    options->opener = NULL;
    return r < 0 && *fetch.why.text
               ? err_set(err, r, "disk '%s': %s", arguments->words[0], fetch.why.text)
               : r;
}

static int read_key(const struct arguments *arguments, const char *option,
                    struct disk_key **ret_key, struct err *err)
{
    const char *path = arguments_value(arguments, option);
    return path ? disk_key_read(path, ret_key, err) : 0;
}

/* What a new container shall be like; nothing is read yet. */
static int parse_encryption(const struct arguments *arguments, struct disk_create *create,
                            struct err *err)
{
    const char *kdf = arguments_value(arguments, "kdf"),
               *ms = arguments_value(arguments, "iter-time");
    bool encrypt = arguments_flag(arguments, "encrypt");
    if (encrypt != (arguments_value(arguments, "key-file") != NULL))
        return err_set(err, -EINVAL,
                       encrypt ? "--encrypt needs --key-file" : "--key-file is for --encrypt");
    if (!encrypt && (kdf || ms))
        return err_set(err, -EINVAL, "--kdf and --iter-time are for --encrypt");
    if (kdf && strcmp(kdf, "argon2id") != 0 && strcmp(kdf, "pbkdf2") != 0)
        return err_set(err, -EINVAL, "--kdf is argon2id or pbkdf2, not '%.32s'", kdf);
    create->kdf = kdf && !strcmp(kdf, "pbkdf2") ? DISK_KDF_PBKDF2 : DISK_KDF_ARGON2ID;
    if (!ms)
        return 0;
    size_t length = strlen(ms);
    if (length == 0 || length > 5 || strspn(ms, "0123456789") != length || *ms == '0')
        return err_set(err, -EINVAL, "--iter-time takes milliseconds, 1 to 99999, not '%.32s'", ms);
    create->unlock_ms = (unsigned)strtoul(ms, NULL, 10);
    return 0;
}

/* The options of a disk that is to be made: OPTIONS_NEW_DISK and --type. */
static int read_new_disk(const struct arguments *arguments, struct disk_create *create,
                         struct err *err)
{
    create->preallocate = arguments_flag(arguments, "preallocate");
    int r = parse_type(arguments, "type", DISK_FORMAT_QCOW2, &create->format, err);
    if (r >= 0)
        r = parse_cluster_size(arguments, &create->cluster_bits, err);
    return r < 0 ? r : parse_encryption(arguments, create, err);
}

/* --- create --- */

static int read_create(const struct arguments *arguments, struct disk_create *create,
                       struct err *err)
{
    int r = read_new_disk(arguments, create, err);
    if (r >= 0)
        r = parse_type(arguments, "backing-type", DISK_FORMAT_PROBE, &create->backing_format, err);
    create->backing = arguments_value(arguments, "backing");
    if (r < 0)
        return r;
    if (create->backing && create->backing_format == DISK_FORMAT_PROBE)
        return err_set(err, -EINVAL, "--backing needs --backing-type raw or qcow2");
    bool sized = arguments->word_count == 2;
    if (!arguments->word_count || (!sized && !create->backing))
        return err_set(err, -EINVAL, "lodge disk create needs a FILE and a SIZE, like 10G");
    return sized ? guest_parse_size(arguments->words[1], &create->size, err) : 0;
}

static int create(const struct arguments *arguments)
{
    struct err err = {0};
    struct disk_create create = {0};
    _cleanup_key_ struct disk_key *key = NULL;
    int r = read_create(arguments, &create, &err);
    if (r < 0)
        return mistake(&err);
    r = read_key(arguments, "key-file", &key, &err);
    create.key = key;
    if (r >= 0)
        r = disk_create(arguments->words[0], &create, &err);
    return r < 0 ? failed(&err) : 0;
}

/* --- info --- */

static int info_json(const char *path, const struct disk_info *info)
{
    json_t *object = json_pack("{s:s, s:s, s:I, s:I}", "file", path, "type", info->format, "size",
                               (json_int_t)info->size, "allocated", (json_int_t)info->allocated);
    if (info->cluster_bits)
        json_object_update_new(object, json_pack("{s:i, s:b, s:b, s:i}", "cluster_size",
                                                 1 << info->cluster_bits, "dirty", (int)info->dirty,
                                                 "damaged", (int)info->corrupt, "snapshots",
                                                 (int)info->snapshots));
    if (info->backing) {
        json_t *name = json_string(info->backing); /* NULL where it is no UTF-8 */
        json_object_set_new(object, "backing", name ? name : json_null());
        if (info->backing_format != DISK_FORMAT_PROBE)
            json_object_set_new(object, "backing_type",
                                json_string(type_name(info->backing_format)));
    }
    if (*info->encryption)
        json_object_set_new(object, "encryption", json_string(info->encryption));
    if (!object) {
        fprintf(stderr, "lodge: disk '%s': JSON takes only names in UTF-8; --format table does\n",
                path);
        return STATUS_FAILED;
    }
    int r = json_dumpf(object, stdout, JSON_INDENT(2));
    json_decref(object);
    putchar('\n');
    return r < 0 ? STATUS_FAILED : 0;
}

/* A name from a file, for a terminal. */
static void print_name(const char *name)
{
    for (; *name; name++)
        putchar((unsigned char)*name < ' ' || *name == 127 ? '?' : *name);
}

static void info_table(const struct disk_info *info)
{
    printf("%-13s %s\n", "type", info->format);
    printf("%-13s %" PRIu64 " (%.1f MiB)\n", "size", info->size,
           (double)info->size / (double)MIB(1));
    printf("%-13s %" PRIu64 " (%.1f MiB)\n", "on this disk", info->allocated,
           (double)info->allocated / (double)MIB(1));
    if (info->cluster_bits)
        printf("%-13s %d\n%-13s %u\n", "cluster size", 1 << info->cluster_bits, "snapshots",
               info->snapshots);
    if (*info->encryption)
        printf("%-13s %s\n", "encryption", info->encryption);
    if (info->dirty || info->corrupt)
        printf("%-13s %s\n", "state", info->corrupt ? "damaged" : "refcounts are to be mended");
    if (info->backing) {
        printf("%-13s ", "backing");
        print_name(info->backing);
        printf(" (%s)\n", info->backing_format == DISK_FORMAT_PROBE
                              ? "its type is not said"
                              : type_name(info->backing_format));
    }
}

static int info(const struct arguments *arguments)
{
    struct err err = {0};
    struct disk_options options = {.read_only = true, .alone = true, .unlocked = true};
    _cleanup_key_ struct disk_key *key = NULL;
    struct disk_info info;
    struct disk *disk;
    const char *format = arguments_value(arguments, "format");
    bool json = format && !strcmp(format, "json");
    int r = want_words(arguments, 1, &err);
    if (r >= 0 && format && !json && strcmp(format, "table") != 0)
        r = err_set(&err, -EINVAL, "--format is table or json, not '%s'", format);
    if (r >= 0)
        r = parse_type(arguments, "type", DISK_FORMAT_PROBE, &options.format, &err);
    if (r < 0)
        return mistake(&err);
    if (read_key(arguments, "key-file", &key, &err) < 0)
        return failed(&err);
    options.key = key;
    if (open_existing(arguments, &options, &disk, &err) < 0)
        return failed(&err);
    r = disk_info(disk, &info);
    disk_close(disk);
    if (r < 0) {
        err_errno(&err, -r, "disk '%s'", arguments->words[0]);
        return failed(&err);
    }
    int status = 0;
    if (json)
        status = info_json(arguments->words[0], &info);
    else
        info_table(&info);
    disk_info_free(&info);
    return status;
}

/* --- resize --- */

static int new_size(const char *text, uint64_t old, uint64_t *ret_size, struct err *err)
{
    int r = guest_parse_size(*text == '+' ? text + 1 : text, ret_size, err);
    if (r >= 0 && *text == '+' && __builtin_add_overflow(old, *ret_size, ret_size))
        r = err_set(err, -EINVAL, "size '%s' is too much", text);
    return r;
}

static int resize(const struct arguments *arguments)
{
    struct err err = {0};
    struct disk_options options = {0};
    _cleanup_key_ struct disk_key *key = NULL;
    struct disk *disk;
    uint64_t size;
    int r = want_words(arguments, 2, &err);
    if (r >= 0)
        r = parse_type(arguments, "type", DISK_FORMAT_PROBE, &options.format, &err);
    if (r >= 0)
        r = new_size(arguments->words[1], 0, &size, &err);
    if (r < 0)
        return mistake(&err);
    if (read_key(arguments, "key-file", &key, &err) < 0)
        return failed(&err);
    options.key = key;
    if (disk_open(arguments->words[0], &options, &disk, &err) < 0)
        return failed(&err);
    r = new_size(arguments->words[1], disk_size(disk), &size, &err);
    if (r >= 0 && size < disk_size(disk) && !arguments_flag(arguments, "shrink"))
        r = err_set(&err, -EINVAL,
                    "disk '%s' would lose what lies behind %" PRIu64 " bytes; --shrink allows it",
                    arguments->words[0], size);
    if (r >= 0)
        r = disk_resize(disk, size, &err);
    int closed = disk_close(disk);
    if (r >= 0 && closed < 0)
        r = err_errno(&err, -closed, "disk '%s'", arguments->words[0]);
    return r < 0 ? failed(&err) : 0;
}

/* --- check --- */

static void report(void *opaque, const char *line)
{
    bar_clear(opaque);
    puts(line);
}

static int check(const struct arguments *arguments)
{
    struct err err = {0};
    struct disk_check found;
    struct bar bar = {.what = "checking"};
    struct disk_checker checker = {
        .repair = arguments_flag(arguments, "repair"),
        .report = report,
        .progress = bar_draw,
        .opaque = &bar,
    };
    _cleanup_key_ struct disk_key *key = NULL;
    if (want_words(arguments, 1, &err) < 0)
        return mistake(&err);
    if (read_key(arguments, "key-file", &key, &err) < 0)
        return failed(&err);
    checker.key = key;
    int r = disk_check(arguments->words[0], DISK_FORMAT_PROBE, &checker, &found, &err);
    bar_clear(&bar);
    if (r < 0)
        return failed(&err);
    if (found.repaired)
        printf("%" PRIu64 " mended\n", found.repaired);
    if (found.errors || found.leaks)
        printf("%" PRIu64 " errors, %" PRIu64 " leaked clusters\n", found.errors, found.leaks);
    else
        puts("no errors");
    return found.errors ? STATUS_FAILED : found.leaks ? STATUS_LEAKS : 0;
}

/* --- convert --- */

/* Under another name until it is whole. */
static int convert_to(struct disk *from, const char *target, struct disk_create *create,
                      struct err *err)
{
    _cleanup_free_ char *part = NULL;
    if (access(target, F_OK) == 0)
        return err_set(err, -EEXIST, "disk '%s' is there already; nothing is overwritten", target);
    if (asprintf(&part, "%s.part-%d", target, (int)getpid()) < 0)
        return err_set(err, -ENOMEM, "no memory");
    create->size = disk_size(from);
    int r = copy_disk(from, part, create, &stop, err);
    if (r >= 0 && renameat2(AT_FDCWD, part, AT_FDCWD, target, RENAME_NOREPLACE) < 0)
        r = err_errno(err, errno, "disk '%s'", target);
    if (r < 0)
        unlink(part);
    return r;
}

static int convert(const struct arguments *arguments)
{
    struct err err = {0};
    struct disk_options options = {.read_only = true};
    struct disk_create create = {0};
    _cleanup_key_ struct disk_key *key = NULL;
    _cleanup_key_ struct disk_key *from_key = NULL;
    struct disk *from;
    int r = want_words(arguments, 2, &err);
    if (r >= 0)
        r = parse_type(arguments, "from-type", DISK_FORMAT_PROBE, &options.format, &err);
    if (r >= 0)
        r = read_new_disk(arguments, &create, &err);
    if (r < 0)
        return mistake(&err);
    if (read_key(arguments, "from-key-file", &from_key, &err) < 0 ||
        read_key(arguments, "key-file", &key, &err) < 0)
        return failed(&err);
    options.key = from_key;
    create.key = key;
    if (open_existing(arguments, &options, &from, &err) < 0)
        return failed(&err);
    watch_signals();
    r = convert_to(from, arguments->words[1], &create, &err);
    disk_close(from);
    return r < 0 ? failed(&err) : 0;
}

/* --- rows --- */

/* clang-format off */
#define OPTION_TYPE {"type", 't', "TYPE", "qcow2 or raw; else its first bytes tell"}
#define OPTION_KEY \
    {"key-file", 0, "FILE", "of an encrypted disk, all bytes of FILE; - is standard input"}
#define OPTION_CACERT \
    {"cacert", 0, "FILE", "believe these certificates of https servers, not the system's"}
#define OPTIONS_NEW_DISK /* what read_new_disk() reads */ \
    {"cluster-size", 0, "SIZE", "of a qcow2, 512 to 2M (64K)"}, \
    {"preallocate", 0, NULL, "take all of its space now"}, \
    {"encrypt", 0, NULL, "encrypt it: inside a LUKS2 container, AES-256-XTS"}, \
    {"key-file", 0, "FILE", "its passphrase: all bytes of FILE; - is standard input"}, \
    {"kdf", 0, "KDF", "what makes guessing slow: argon2id or pbkdf2 (argon2id)"}, \
    {"iter-time", 0, "MS", "how long it takes to unlock, on this machine (1000)"}
/* clang-format on */

static const struct option_row create_options[] = {
    {"type", 't', "TYPE", "qcow2 or raw (qcow2)"},
    {"backing", 'b', "FILE", "what it stands on: only changes go into the new disk"},
    {"backing-type", 'B', "TYPE", "of the backing, qcow2 or raw"},
    OPTIONS_NEW_DISK,
    {0},
};

static const struct verb verb_create = {
    .name = "create",
    .summary = "Make an empty disk, or one that stands on another",
    .usage = "FILE [SIZE]",
    .details = "Nothing is overwritten. The backing's name is written down as it is given, and is\n"
               "looked for from the folder of the new disk. Without SIZE the disk is as large as "
               "its\nbacking.",
    .example = "lodge disk create --backing base.qcow2 --backing-type qcow2 web.qcow2",
    .options = create_options,
    .words_max = 2,
    .mistake_status = STATUS_MISTAKE,
    .run = create,
};

static const struct option_row info_options[] = {
    {"format", 0, "FORMAT", "table or json (table)"}, OPTION_TYPE, OPTION_KEY, OPTION_CACERT, {0},
};

static const struct verb verb_info = {
    .name = "info",
    .summary = "Show what a disk is",
    .usage = "FILE",
    .details = "Its backing is named, not opened.",
    .example = "lodge disk info --format json web.qcow2",
    .options = info_options,
    .words_max = 1,
    .mistake_status = STATUS_MISTAKE,
    .run = info,
};

static const struct option_row resize_options[] = {
    {"shrink", 0, NULL, "lose what lies behind the new end"},
    OPTION_TYPE,
    OPTION_KEY,
    {0},
};

static const struct verb verb_resize = {
    .name = "resize",
    .summary = "Make a disk larger or smaller",
    .usage = "FILE SIZE",
    .details = "SIZE is the new one, or +SIZE what is added. Nobody may use the disk meanwhile.",
    .example = "lodge disk resize web.qcow2 +10G",
    .options = resize_options,
    .words_max = 2,
    .mistake_status = STATUS_MISTAKE,
    .run = resize,
};

static const struct option_row check_options[] = {
    {"repair", 'r', NULL, "mend refcounts and flags, give leaked space back"},
    OPTION_KEY,
    {0},
};

static const struct verb verb_check = {
    .name = "check",
    .summary = "Look for damage in a qcow2",
    .usage = "FILE",
    .details = "Exit status: 0 no errors, 1 errors or it cannot be checked, 3 leaked space only.\n"
               "Nobody may use the disk meanwhile.",
    .example = "lodge disk check web.qcow2",
    .options = check_options,
    .words_max = 1,
    .mistake_status = STATUS_MISTAKE,
    .run = check,
};

static const struct option_row convert_options[] = {
    {"type", 't', "TYPE", "of the new disk, qcow2 or raw (qcow2)"},
    {"from-type", 'T', "TYPE", "of the old one; else its first bytes tell"},
    {"from-key-file", 0, "FILE", "of an encrypted SOURCE, all bytes of FILE"},
    OPTIONS_NEW_DISK,
    OPTION_CACERT,
    {0},
};

static const struct verb verb_convert = {
    .name = "convert",
    .summary = "Copy a disk, with all it stands on, into a new one",
    .usage = "SOURCE TARGET",
    .details = "What is zero takes no space. TARGET appears when it is whole; nothing is "
               "overwritten.",
    .example = "lodge disk convert --type raw web.qcow2 web.raw",
    .options = convert_options,
    .words_max = 2,
    .mistake_status = STATUS_MISTAKE,
    .run = convert,
};

static const struct verb *const children[] = {&verb_create, &verb_info,    &verb_resize,
                                              &verb_check,  &verb_convert, NULL};

const struct verb verb_disk = {
    .name = "disk",
    .summary = "Make, show, check and convert disks",
    .usage = "",
    .children = children,
    .mistake_status = STATUS_MISTAKE,
};
