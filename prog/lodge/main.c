/*
 * lodge: the command line. A verb is a row in verb_root's table and a file of its own.
 */
#include "verbs.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int help(const struct arguments *arguments)
{
    char path[64];
    const struct verb *verb =
        arguments_find(&verb_root, arguments->words, arguments->word_count, path, sizeof path);
    if (!verb) {
        fprintf(stderr, "lodge: '%s' is no command; see lodge help\n",
                arguments->words[arguments->word_count - 1]);
        return STATUS_MISTAKE;
    }
    if (arguments_flag(arguments, "man"))
        arguments_manual(verb, path, LODGE_VERSION, stdout);
    else
        arguments_help(verb, path, stdout);
    return 0;
}

static const struct option_row help_options[] = {
    {"man", 0, NULL, "as a manual page, for man -l -"},
    {0},
};

const struct verb verb_help = {
    .name = "help",
    .summary = "Explain a command",
    .usage = "[COMMAND...]",
    .example = "lodge help run",
    .options = help_options,
    .words_max = 3,
    .mistake_status = STATUS_MISTAKE,
    .run = help,
};

static int version(const struct arguments *arguments)
{
    puts("lodge " LODGE_VERSION);
    return 0;
}

const struct verb verb_version = {
    .name = "version",
    .summary = "Print the version",
    .usage = "",
    .mistake_status = STATUS_MISTAKE,
    .run = version,
};

static const struct verb *const children[] = {
    &verb_run,   &verb_pause, &verb_resume,     &verb_snapshot, &verb_restore,
    &verb_clone, &verb_link,  &verb_host,       &verb_doctor,   &verb_convert_definition,
    &verb_image, &verb_disk,  &verb_completion, &verb_help,     &verb_version,
    NULL};

const struct verb verb_root = {
    .name = "lodge",
    .summary = "Virtual machines on any Linux, with KVM or without",
    .usage = "",
    .example = "lodge run -- uname -a",
    .children = children,
    .mistake_status = STATUS_MISTAKE,
};

/* A descriptor that we open must not become 0, 1 or 2 and be taken for somebody's. */
static void fill_standard_descriptors(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

int main(int argc, char **argv)
{
    struct arguments arguments;
    struct err err = {0};
    fill_standard_descriptors();
    int r = arguments_parse(&verb_root, argv + 1, &arguments, &err);
    if (r < 0) {
        fprintf(stderr, "lodge: %s\n", err.text);
        return arguments.verb->mistake_status;
    }
    if (arguments.help) {
        arguments_help(arguments.verb, arguments.path, stdout);
        return 0;
    }
    if (!arguments.verb->run) {
        arguments_help(arguments.verb, arguments.path, stderr);
        return STATUS_MISTAKE;
    }
    int status = arguments.verb->run(&arguments);
    if (fflush(stdout) != 0 && status == 0) {
        fputs("lodge: cannot write to standard output\n", stderr);
        status = STATUS_FAILED;
    }
    return status;
}
