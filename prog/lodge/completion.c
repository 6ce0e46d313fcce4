/*
 * lodge completion: what a shell offers when Tab is pressed.
 *
 * The shells' own parts are a few lines each: they hand the words of the line so far to `lodge
 * completion --words`, which reads them by the rows that the parser reads them by, and prints what
 * can follow, a candidate a line, "CANDIDATE<Tab>what it is". A line "/" stands for the shell's own
 * completion of file names.
 */
#include "base/bytes.h"
#include "base/own.h"
#include "endpoint.h"
#include "image/store.h"
#include "verbs.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* By the line, not by COMP_WORDS: those are cut at colons, too ("debian:bookworm"), and what is put
 * in replaces only what stands behind the last one. */
static const char bash[] =
    "# Completion of lodge for bash: source it, or put it where bash-completion looks.\n"
    "_lodge() {\n"
    "    local line word cut='' before=${COMP_LINE:0:COMP_POINT}\n"
    "    local -a words\n"
    "    COMPREPLY=()\n"
    "    read -ra words <<<\"$before\"\n"
    "    [[ $before == *' ' ]] && words+=('')\n"
    "    word=${words[${#words[@]}-1]}\n"
    "    [[ $word == *:* && $COMP_WORDBREAKS == *:* ]] && cut=${word%\"${word##*:}\"}\n"
    "    while IFS= read -r line; do\n"
    "        if [[ $line == / ]]; then\n"
    "            compopt -o filenames 2>/dev/null\n"
    "            while IFS= read -r line; do COMPREPLY+=(\"$line\"); done < <(compgen -f -- "
    "\"$word\")\n"
    "        else\n"
    "            line=${line%%$'\\t'*}\n"
    "            COMPREPLY+=(\"${line#\"$cut\"}\")\n"
    "        fi\n"
    "    done < <(\"${words[0]}\" completion --words -- \"${words[@]:1}\" 2>/dev/null)\n"
    "}\n"
    "complete -F _lodge lodge\n";

static const char zsh[] =
    "#compdef lodge\n"
    "# Completion of lodge for zsh: put it as _lodge into a folder of $fpath.\n"
    "_lodge() {\n"
    "    local line files\n"
    "    local -a found\n"
    "    while IFS= read -r line; do\n"
    "        if [[ $line == / ]]; then\n"
    "            files=1\n"
    "        else\n"
    "            found+=(\"${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}\")\n"
    "        fi\n"
    "    done < <(\"${words[1]}\" completion --words -- \"${(@)words[2,CURRENT]}\" 2>/dev/null)\n"
    "    (( ${#found} )) && _describe lodge found\n"
    "    [[ -n $files ]] && _files\n"
    "}\n"
    /* Loaded by its name it is run as that function, sourced it is not. */
    "if [[ $funcstack[1] == _lodge ]]; then _lodge \"$@\"; else compdef _lodge lodge; fi\n";

static const char fish[] =
    "# Completion of lodge for fish: put it as lodge.fish into a folder of completions.\n"
    "function __lodge_complete\n"
    "    set -l words (commandline -opc) (commandline -ct)\n"
    "    for line in ($words[1] completion --words -- $words[2..-1] 2>/dev/null)\n"
    "        if test \"$line\" = /\n"
    "            __fish_complete_path (commandline -ct)\n"
    "        else\n"
    "            echo $line\n"
    "        end\n"
    "    end\n"
    "end\n"
    "complete -c lodge -f -a '(__lodge_complete)'\n";

static const struct shell {
    const char *name, *script;
} shells[] = {{"bash", bash}, {"zsh", zsh}, {"fish", fish}};

/* ---- candidates ---- */

static void offer(const char *start, const char *candidate, const char *about)
{
    if (!strncmp(candidate, start, strlen(start)))
        printf("%s\t%s\n", candidate, about);
}

static void offer_guest(void *opaque, const char *name)
{
    offer(opaque, name, "guest");
}

static void offer_images(const char *start)
{
    struct image_list images = {0};
    _cleanup_free_ char *store = NULL;
    if (image_store_path(&store, NULL) < 0 || image_list(store, &images, NULL) < 0)
        return;
    for (size_t i = 0; i < images.count; i++)
        offer(start, images.images[i].name, "image");
    image_list_free(&images);
}

/* Of a placeholder's alternatives: "up|down". */
static void offer_alternatives(const char *start, const char *text, size_t length)
{
    while (length > 0) {
        size_t part = 0;
        while (part < length && text[part] != '|')
            part++;
        char word[64];
        size_t plain = 0; /* "debian[:SUITE]" is offered as "debian" */
        while (plain < part && plain + 1 < sizeof word &&
               (islower((unsigned char)text[plain]) || text[plain] == '-'))
            plain++;
        snprintf(word, sizeof word, "%.*s", (int)plain, text);
        if (plain > 0)
            offer(start, word, "");
        part += part < length;
        text += part;
        length -= part;
    }
}

static bool is_word(const char *text, size_t length, const char *word)
{
    return strlen(word) == length && !strncmp(text, word, length);
}

static void offer_for(const char *start, const char *text, size_t length)
{
    static const char *const files[] = {"FILE", "PATH", "FOLDER", "SOURCE", "TARGET"};
    if (is_word(text, length, "GUEST"))
        endpoint_each(offer_guest, (void *)(uintptr_t)start);
    else if (is_word(text, length, "IMAGE"))
        offer_images(start);
    for (size_t i = 0; i < ARRAY_LEN(files); i++)
        if (length >= strlen(files[i]) && !strncmp(text, files[i], strlen(files[i])))
            puts("/");
    if (islower((unsigned char)*text))
        offer_alternatives(start, text, length);
}

/* The n-th word that may follow, by the usage line: "GUEST FOLDER", "[IMAGE] [-- COMMAND]". The
 * last one that may be repeated stands for all behind it. */
static void offer_word(const struct verb *verb, const char *start, unsigned number)
{
    for (const char *at = verb->usage; *at;) {
        bool optional = *at == '[';
        size_t length = strcspn(at + optional, " ]");
        const char *text = at + optional;
        size_t name = length;
        while (name > 3 && !strncmp(text + name - 3, "...", 3))
            name -= 3;
        if (!strncmp(text, "--", 2))
            return;
        if (number == 0 || name < length) {
            offer_for(start, text, name);
            return;
        }
        number--;
        at = text + length;
        at += *at == ']';
        at += strspn(at, ".");
        at += *at == ' ';
    }
}

static void offer_options(const struct verb *verb, const char *start)
{
    for (const struct option_row *row = verb->options; row && row->name; row++) {
        char name[64];
        snprintf(name, sizeof name, "--%s", row->name);
        size_t line = strcspn(row->help, "\n");
        char about[160];
        snprintf(about, sizeof about, "%.*s", (int)min(line, sizeof about - 1), row->help);
        offer(start, name, about);
    }
    offer(start, "--help", "show this");
}

/* The option whose value comes next, after `word`: "--disk", "-m". */
static const struct option_row *wants_value(const struct verb *verb, const char *word)
{
    for (const struct option_row *row = verb->options; row && row->name; row++) {
        bool is = !strncmp(word, "--", 2) ? !strcmp(word + 2, row->name)
                                          : word[0] == '-' && word[1] == row->letter && !word[2];
        if (is)
            return row->value && strncmp(row->value, "[=", 2) != 0 ? row : NULL;
    }
    return NULL;
}

/* `words` are all after "lodge"; the last is the one that is being written. */
static void complete(char *const *words)
{
    const struct verb *verb = &verb_root;
    const struct option_row *row = NULL;
    unsigned number = 0;
    for (; words[0] && words[1]; words++) {
        const char *const word = *words;
        if (row) {
            row = NULL;
            continue;
        }
        if (!strcmp(word, "--"))
            return; /* somebody else's command line */
        if (*word == '-')
            row = wants_value(verb, word);
        else if (verb->children)
            verb = arguments_find(verb, &word, 1, NULL, 0);
        else
            number++;
        if (!verb)
            return;
    }
    const char *start = words[0] ? words[0] : "";
    if (row) {
        offer_for(start, row->value, strcspn(row->value, "[,:= "));
    } else if (*start == '-') {
        offer_options(verb, start);
    } else if (verb->children || verb == &verb_help) {
        const struct verb *above = verb->children ? verb : &verb_root;
        for (const struct verb *const *child = above->children; *child; child++)
            offer(start, (*child)->name, (*child)->summary);
    } else {
        offer_word(verb, start, number);
    }
}

static int completion(const struct arguments *arguments)
{
    static char *const nothing[] = {NULL};
    if (arguments_flag(arguments, "words")) {
        complete(arguments->command ? arguments->command : nothing);
        return 0;
    }
    for (size_t i = 0; i < ARRAY_LEN(shells) && arguments->word_count; i++)
        if (!strcmp(arguments->words[0], shells[i].name)) {
            fputs(shells[i].script, stdout);
            return 0;
        }
    fputs("lodge: completion is for bash, zsh or fish\n", stderr);
    return STATUS_MISTAKE;
}

static const struct option_row options[] = {
    {"words", 0, NULL, "what can follow the words behind --; for the scripts"},
    {0},
};

const struct verb verb_completion = {
    .name = "completion",
    .summary = "Print a shell's completion script",
    .usage = "bash|zsh|fish [-- WORD...]",
    .details = "What it offers is read from the same table as lodge help, and from what is there: "
               "guests\nthat run, images, files.",
    .example = "source <(lodge completion bash)",
    .options = options,
    .words_max = 1,
    .takes_command = true,
    .mistake_status = STATUS_MISTAKE,
    .run = completion,
};
