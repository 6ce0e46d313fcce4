/*
 * lodge convert: a definition of any form in another.
 */
#include "base/own.h"
#include "definition.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

enum format { FORMAT_JSON, FORMAT_LIBVIRT, FORMAT_MAX };

static const char *const format_names[FORMAT_MAX] = {
    [FORMAT_JSON] = "json",
    [FORMAT_LIBVIRT] = "libvirt-xml",
};

/* libvirt has no current folder, and what is to be made (nvram) need not be there. */
static int make_whole(char **path, struct err *err)
{
    if (!*path || **path == '/' || strstr(*path, "://"))
        return 0;
    _cleanup_free_ char *here = getcwd(NULL, 0);
    char *whole;
    if (!here || asprintf(&whole, "%s/%s", here, *path) < 0)
        return err_errno(err, errno, "the current folder");
    free(*path);
    *path = whole;
    return 0;
}

/* libvirt guesses no formats, and a qcow2 disk that is taken as raw is lost. */
static void find_format(struct guest_disk *disk)
{
    char magic[4];
    _cleanup_fd_ int fd = open(disk->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (disk->format == GUEST_DISK_PROBE && fd >= 0 && pread(fd, magic, 4, 0) == 4)
        disk->format = memcmp(magic, "QFI\xfb", 4) ? GUEST_DISK_RAW : GUEST_DISK_QCOW2;
}

static int prepare(struct guest_conf *conf, struct err *err)
{
    int r = make_whole(&conf->kernel, err);
    if (r >= 0)
        r = make_whole(&conf->initrd, err);
    if (r >= 0)
        r = make_whole(&conf->nvram, err);
    if (r >= 0 && conf->firmware && strcmp(conf->firmware, GUEST_FIRMWARE_UEFI) != 0)
        r = make_whole(&conf->firmware, err);
    for (unsigned i = 0; r >= 0 && i < conf->disk_count; i++) {
        find_format(&conf->disks[i]);
        r = make_whole(&conf->disks[i].path, err);
    }
    for (unsigned i = 0; r >= 0 && i < conf->share_count; i++)
        r = make_whole(&conf->shares[i].path, err);
    return r;
}

static int print_json(const struct guest_conf *conf, struct err *err)
{
    _cleanup_free_ char *text = guest_conf_write_json(conf);
    json_t *root = text ? json_loads(text, 0, NULL) : NULL;
    if (!root)
        return err_set(err, -EINVAL, "the definition holds a string that is no UTF-8");
    int r = json_dumpf(root, stdout, JSON_INDENT(2));
    json_decref(root);
    putchar('\n');
    return r < 0 ? err_set(err, -EIO, "cannot write to standard output") : 0;
}

static int print_libvirt(struct guest_conf *conf, const char *path, struct err *err)
{
    struct guest_notes notes = {0};
    _cleanup_free_ char *text = NULL;
    int r = prepare(conf, err);
    if (r >= 0)
        r = guest_conf_write_libvirt(conf, &text, &notes, err);
    definition_print_notes(path, &notes);
    guest_notes_free(&notes);
    if (r >= 0)
        fputs(text, stdout);
    return r;
}

static int print(const char *path, enum format format, struct err *err)
{
    struct guest_conf conf;
    struct guest_notes notes = {0};
    guest_conf_init(&conf);
    conf.on_reset = GUEST_ON_RESET_EXIT; /* as lodge run has it where nothing is said */
    int r = definition_read(&conf, path, &notes, err);
    definition_print_notes(path, &notes);
    guest_notes_free(&notes);
    if (r >= 0)
        r = format == FORMAT_JSON ? print_json(&conf, err) : print_libvirt(&conf, path, err);
    guest_conf_free(&conf);
    return r;
}

static int convert(const struct arguments *arguments)
{
    struct err err = {0};
    const char *name = arguments_value(arguments, "format");
    enum format format = FORMAT_JSON;
    while (name && format < FORMAT_MAX && strcmp(name, format_names[format]) != 0)
        format++;
    if (format == FORMAT_MAX) {
        fprintf(stderr, "lodge: --format is json or libvirt-xml, not '%s'\n", name);
        return STATUS_MISTAKE;
    }
    if (arguments->word_count == 0) {
        fputs("lodge: no file; see lodge convert --help\n", stderr);
        return STATUS_MISTAKE;
    }
    if (print(arguments->words[0], format, &err) >= 0)
        return 0;
    fprintf(stderr, "lodge: %s\n", err.text);
    return STATUS_FAILED;
}

static const struct option_row options[] = {
    {"format", 0, "FORMAT", "json or libvirt-xml (json)"},
    {0},
};

const struct verb verb_convert_definition = {
    .name = "convert",
    .summary = "Print a guest's definition in another form",
    .usage = "FILE",
    .details =
        "FILE is vm.conf, JSON or libvirt's domain XML. What the other form has no place for is\n"
        "said on standard error, line by line: read as something near it, ignored, or refused,\n"
        "which is an error (docs/libvirt-xml.md).",
    .example = "lodge convert domain.xml --format json",
    .options = options,
    .words_max = 1,
    .mistake_status = STATUS_MISTAKE,
    .run = convert,
};
