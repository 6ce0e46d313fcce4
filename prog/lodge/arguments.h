/*
 * arguments.h: verbs, their options, and what was given on the command line.
 *
 * A verb is a row; its options are rows. The same rows serve the parser, `lodge help VERB`, --help
 * and the hint after a mistake, so none of them can tell a different story.
 *
 *     static const struct option_row options[] = {
 *         {"memory", 'm', "SIZE", "memory of the guest (512M)"},
 *         {0},
 *     };
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stdio.h>

enum { ARGUMENTS_GIVEN_MAX = 256, ARGUMENTS_WORDS_MAX = 257 };

struct option_row {
    const char *name;  /* without "--"; NULL ends the rows */
    char letter;       /* or 0 */
    const char *value; /* what help calls its value; NULL = a flag; "[=FILE]": it may be missing,
                          and is then NULL, too */
    const char *help;
};

struct arguments;

struct verb {
    const char *name;
    const char *summary; /* one line */
    const char *usage;   /* what follows the name and [OPTION...], "" where nothing does */
    const char *details; /* paragraphs for help, or NULL */
    const char *example;
    const struct option_row *options; /* may be NULL */
    const struct verb *const
        *children; /* ended by NULL; a verb with children does nothing itself */
    unsigned words_max;
    bool takes_command; /* everything after "--" is somebody else's command line */
    int mistake_status; /* exit status after a wrong command line */
    int (*run)(const struct arguments *arguments);
};

struct arguments {
    const struct verb *verb;
    char path[64]; /* "lodge image build" */
    struct {
        const struct option_row *row;
        const char *value;
    } given[ARGUMENTS_GIVEN_MAX];
    unsigned given_count;
    const char *words[ARGUMENTS_WORDS_MAX];
    unsigned word_count;
    char *const *command; /* after "--", ended by NULL; NULL = there was none */
    bool help;
};

/* Reads `argv` (without the program's name) for the verb below `root`. On error *ret_arguments
 * still says how far it came, for the exit status. */
int arguments_parse(const struct verb *root, char *const *argv, struct arguments *ret_arguments,
                    struct err *err);

/* The last value given for a long name, or NULL. */
const char *arguments_value(const struct arguments *arguments, const char *name);
bool arguments_flag(const struct arguments *arguments, const char *name);

void arguments_help(const struct verb *verb, const char *path, FILE *to);
/* The same and more as a manual page (manual.c). */
void arguments_manual(const struct verb *verb, const char *path, const char *version, FILE *to);

/* The verb that `words` name below `root`, and its path; NULL when there is none. */
const struct verb *arguments_find(const struct verb *root, const char *const *words,
                                  unsigned word_count, char *ret_path, size_t size);
