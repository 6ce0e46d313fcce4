/* Manual pages, from the rows that help is made of (man(7)). */
#include "arguments.h"

#include <ctype.h>
#include <string.h>

/* Text as it is: what roff would take for something else is escaped. */
static void put(const char *text, size_t length, FILE *to)
{
    for (size_t i = 0; i < length; i++) {
        bool first = i == 0 || text[i - 1] == '\n';
        if (first && (text[i] == '.' || text[i] == '\''))
            fputs("\\&", to);
        if (text[i] == '\\')
            fputs("\\e", to);
        else if (text[i] == '-')
            fputs("\\-", to);
        else
            fputc(text[i], to);
    }
}

/* Help breaks lines and indents what goes on; a page fills its own. */
static void put_filled(const char *text, FILE *to)
{
    while (*text) {
        size_t line = strcspn(text, "\n");
        put(text, line, to);
        fputc('\n', to);
        text += line;
        if (!strncmp(text, "\n\n", 2))
            fputs(".PP\n", to);
        text += strspn(text, "\n ");
    }
}

static void put_option(const struct option_row *row, FILE *to)
{
    fputs(".TP\n", to);
    if (row->letter)
        fprintf(to, "\\fB\\-%c\\fR, ", row->letter);
    fputs("\\fB\\-\\-", to);
    put(row->name, strlen(row->name), to);
    fputs("\\fR", to);
    if (row->value) {
        fputs(*row->value == '[' ? "\\fI" : " \\fI", to);
        put(row->value, strlen(row->value), to);
        fputs("\\fR", to);
    }
    fputc('\n', to);
    put_filled(row->help, to);
}

/* "lodge image build" is the page lodge-image-build. */
static void put_name(const char *path, bool capitals, FILE *to)
{
    for (; *path; path++) {
        if (*path == ' ')
            fputs("\\-", to);
        else
            fputc(capitals ? toupper((unsigned char)*path) : *path, to);
    }
}

void arguments_manual(const struct verb *verb, const char *path, const char *version, FILE *to)
{
    fputs(".TH ", to);
    put_name(path, true, to);
    fprintf(to, " 1 \"\" \"lodge %s\"\n.SH NAME\n", version);
    put_name(path, false, to);
    fputs(" \\- ", to);
    put(verb->summary, strlen(verb->summary), to);
    fputs("\n.SH SYNOPSIS\n\\fB", to);
    put(path, strlen(path), to);
    fprintf(to, "\\fR %s", verb->children ? "\\fICOMMAND\\fR" : "[\\fIOPTION\\fR...]");
    if (*verb->usage) {
        fputc(' ', to);
        put(verb->usage, strlen(verb->usage), to);
    }
    fputs("\n.SH DESCRIPTION\n", to);
    put(verb->summary, strlen(verb->summary), to);
    fputs(".\n", to);
    if (verb->details) {
        fputs(".PP\n", to);
        put_filled(verb->details, to);
    }
    if (verb->children)
        fputs(".SH COMMANDS\n", to);
    for (const struct verb *const *child = verb->children; child && *child; child++) {
        fprintf(to, ".TP\n\\fB%s\\fR\n", (*child)->name);
        put(path, strlen(path), to);
        fprintf(to, " %s: ", (*child)->name);
        put((*child)->summary, strlen((*child)->summary), to);
        fputc('\n', to);
    }
    fputs(".SH OPTIONS\n", to);
    for (const struct option_row *row = verb->options; row && row->name; row++)
        put_option(row, to);
    put_option(&(const struct option_row){"help", 'h', NULL, "show a short help"}, to);
    if (verb->example) {
        fputs(".SH EXAMPLE\n.nf\n", to);
        put(verb->example, strlen(verb->example), to);
        fputs("\n.fi\n", to);
    }
    fputs(".SH SEE ALSO\n", to);
    if (strchr(path, ' '))
        fputs("\\fBlodge\\fR(1)", to);
    for (const struct verb *const *child = verb->children; child && *child; child++) {
        fprintf(to, "%s\\fB", child == verb->children && !strchr(path, ' ') ? "" : ", ");
        put_name(path, false, to);
        fprintf(to, "\\-%s\\fR(1)", (*child)->name);
    }
    fputc('\n', to);
}
