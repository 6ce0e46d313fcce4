#include "arguments.h"

#include "base/bytes.h"

#include <errno.h>
#include <string.h>

static const struct option_row help_row = {"help", 'h', NULL, "show this"};

static const struct option_row no_options[] = {{0}};

static const struct option_row *rows_of(const struct verb *verb)
{
    return verb->options ? verb->options : no_options;
}

/* Edit distance, of words short enough to be a slip of the finger. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[32];
    size_t length = strlen(b);
    if (length >= ARRAY_LEN(row) || strlen(a) >= ARRAY_LEN(row))
        return 99;
    for (unsigned j = 0; j <= length; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= length; j++) {
            unsigned changed = diagonal + (a[i - 1] != b[j - 1]);
            unsigned shifted = min(row[j], row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = min(changed, shifted);
        }
    }
    return row[length];
}

static int unknown_option(const struct arguments *arguments, const char *text, struct err *err)
{
    const char *nearest = NULL;
    unsigned best = 3;
    for (const struct option_row *row = rows_of(arguments->verb); row->name; row++)
        if (!strncmp(text, "--", 2) && distance(text + 2, row->name) < best) {
            best = distance(text + 2, row->name);
            nearest = row->name;
        }
    if (nearest)
        return err_set(err, -EINVAL, "unknown option '%s'; did you mean --%s?", text, nearest);
    return err_set(err, -EINVAL, "unknown option '%s'; see %s --help", text, arguments->path);
}

static int unknown_verb(const struct arguments *arguments, const char *text, struct err *err)
{
    for (const struct verb *const *verb = arguments->verb->children; *verb; verb++)
        if (distance(text, (*verb)->name) <= 2)
            return err_set(err, -EINVAL, "'%s' is no command; did you mean %s %s?", text,
                           arguments->path, (*verb)->name);
    return err_set(err, -EINVAL, "'%s' is no command; see %s --help", text, arguments->path);
}

static int give(struct arguments *arguments, const struct option_row *row, const char *value,
                struct err *err)
{
    if (row == &help_row) {
        arguments->help = true;
        return 0;
    }
    if (arguments->given_count == ARGUMENTS_GIVEN_MAX)
        return err_set(err, -E2BIG, "more than %d options", ARGUMENTS_GIVEN_MAX);
    arguments->given[arguments->given_count].row = row;
    arguments->given[arguments->given_count++].value = value;
    return 0;
}

static const struct option_row *find_long(const struct verb *verb, const char *name, size_t length)
{
    if (length == 4 && !strncmp(name, "help", 4))
        return &help_row;
    for (const struct option_row *row = rows_of(verb); row->name; row++)
        if (strlen(row->name) == length && !strncmp(row->name, name, length))
            return row;
    return NULL;
}

static const struct option_row *find_letter(const struct verb *verb, char letter)
{
    if (letter == 'h')
        return &help_row;
    for (const struct option_row *row = rows_of(verb); row->name; row++)
        if (row->letter == letter)
            return row;
    return NULL;
}

/* Of a value that may be missing, so that the next word is none: "[=FILE]". */
static bool may_be_missing(const struct option_row *row)
{
    return !strncmp(row->value, "[=", 2);
}

/* "--name", "--name=value" or "--name value". */
static int parse_long(struct arguments *arguments, char *const **at, struct err *err)
{
    const char *text = **at;
    const char *equals = strchr(text, '=');
    size_t length = equals ? (size_t)(equals - text - 2) : strlen(text + 2);
    const struct option_row *row = find_long(arguments->verb, text + 2, length);
    if (!row)
        return unknown_option(arguments, text, err);
    if (!row->value && equals)
        return err_set(err, -EINVAL, "option '--%s' takes no value", row->name);
    if (!row->value)
        return give(arguments, row, NULL, err);
    if (equals)
        return give(arguments, row, equals + 1, err);
    if (may_be_missing(row))
        return give(arguments, row, NULL, err);
    if (!(*at)[1])
        return err_set(err, -EINVAL, "option '--%s' needs a %s", row->name, row->value);
    (*at)++;
    return give(arguments, row, **at, err);
}

/* "-m 1G", "-m1G", "-tv". */
static int parse_letters(struct arguments *arguments, char *const **at, struct err *err)
{
    for (const char *letter = **at + 1; *letter; letter++) {
        const struct option_row *row = find_letter(arguments->verb, *letter);
        if (!row)
            return unknown_option(arguments, **at, err);
        if (!row->value) {
            int r = give(arguments, row, NULL, err);
            if (r < 0)
                return r;
            continue;
        }
        if (letter[1])
            return give(arguments, row, letter + 1, err);
        if (!(*at)[1])
            return err_set(err, -EINVAL, "option '-%c' needs a %s", row->letter, row->value);
        (*at)++;
        return give(arguments, row, **at, err);
    }
    return 0;
}

static int parse_word(struct arguments *arguments, const char *word, struct err *err)
{
    const struct verb *verb = arguments->verb;
    if (verb->children) {
        const struct verb *child = arguments_find(verb, &word, 1, NULL, 0);
        if (!child)
            return unknown_verb(arguments, word, err);
        size_t length = strlen(arguments->path);
        snprintf(arguments->path + length, sizeof arguments->path - length, " %s", child->name);
        arguments->verb = child;
        return 0;
    }
    if (arguments->word_count == min(verb->words_max, (unsigned)ARGUMENTS_WORDS_MAX)) {
        if (verb->takes_command)
            return err_set(err, -EINVAL, "'%s' is one word too many; a command comes after --",
                           word);
        return err_set(err, -EINVAL, "'%s' is one word too many; see %s --help", word,
                       arguments->path);
    }
    arguments->words[arguments->word_count++] = word;
    return 0;
}

int arguments_parse(const struct verb *root, char *const *argv, struct arguments *ret_arguments,
                    struct err *err)
{
    struct arguments *arguments = ret_arguments;
    *arguments = (struct arguments){.verb = root};
    snprintf(arguments->path, sizeof arguments->path, "%s", root->name);
    for (char *const *at = argv; *at; at++) {
        int r;
        if (!strcmp(*at, "--")) {
            if (!arguments->verb->takes_command || !at[1])
                return err_set(err, -EINVAL,
                               arguments->verb->takes_command ? "after -- a command must follow"
                                                              : "no command can follow here");
            arguments->command = at + 1;
            return 0;
        }
        if (!strncmp(*at, "--", 2))
            r = parse_long(arguments, &at, err);
        else if (**at == '-' && (*at)[1])
            r = parse_letters(arguments, &at, err);
        else
            r = parse_word(arguments, *at, err);
        if (r < 0)
            return r;
    }
    return 0;
}

const char *arguments_value(const struct arguments *arguments, const char *name)
{
    for (unsigned i = arguments->given_count; i-- > 0;)
        if (!strcmp(arguments->given[i].row->name, name))
            return arguments->given[i].value;
    return NULL;
}

bool arguments_flag(const struct arguments *arguments, const char *name)
{
    for (unsigned i = 0; i < arguments->given_count; i++)
        if (!strcmp(arguments->given[i].row->name, name))
            return true;
    return false;
}

const struct verb *arguments_find(const struct verb *root, const char *const *words,
                                  unsigned word_count, char *ret_path, size_t size)
{
    const struct verb *verb = root;
    size_t length = 0;
    if (ret_path)
        length = (size_t)snprintf(ret_path, size, "%s", root->name);
    for (unsigned i = 0; i < word_count; i++) {
        const struct verb *const *child = verb->children;
        while (child && *child && strcmp((*child)->name, words[i]) != 0)
            child++;
        if (!child || !*child)
            return NULL;
        verb = *child;
        if (ret_path && length < size)
            length += (size_t)snprintf(ret_path + length, size - length, " %s", verb->name);
    }
    return verb;
}

static void help_option(const struct option_row *row, FILE *to)
{
    char left[64];
    int length = row->letter ? snprintf(left, sizeof left, "-%c, --%s", row->letter, row->name)
                             : snprintf(left, sizeof left, "    --%s", row->name);
    if (row->value)
        snprintf(left + length, sizeof left - (size_t)length, "%s%s",
                 may_be_missing(row) ? "" : " ", row->value);
    fprintf(to, "  %-28s %s\n", left, row->help);
}

void arguments_help(const struct verb *verb, const char *path, FILE *to)
{
    fprintf(to, "Usage: %s%s%s%s\n%s.\n", path, verb->children ? " COMMAND" : " [OPTION...]",
            *verb->usage ? " " : "", verb->usage, verb->summary);
    if (verb->details)
        fprintf(to, "\n%s\n", verb->details);
    if (verb->children) {
        fprintf(to, "\nCommands:\n");
        for (const struct verb *const *child = verb->children; *child; child++)
            fprintf(to, "  %-12s %s\n", (*child)->name, (*child)->summary);
    }
    fprintf(to, "\nOptions:\n");
    for (const struct option_row *row = rows_of(verb); row->name; row++)
        help_option(row, to);
    help_option(&help_row, to);
    if (verb->example)
        fprintf(to, "\nExample:\n  %s\n", verb->example);
}
