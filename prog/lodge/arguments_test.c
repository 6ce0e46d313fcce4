#include "arguments.h"
#include "base/bytes.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int nothing(const struct arguments *arguments)
{
    return 0;
}

static const struct option_row options[] = {
    {"memory", 'm', "SIZE", "memory of the guest"},
    {"env", 'e', "NAME=VALUE", "environment"},
    {"tty", 't', NULL, "a terminal"},
    {"firmware", 0, "[=FILE]", "firmware"},
    {"publish", 'p', "[ADDRESS:]PORT", "a port"},
    {"verbose", 'v', NULL, "say more"},
    {0},
};
static const struct verb run = {
    .name = "run",
    .summary = "Boot",
    .usage = "[IMAGE] [-- COMMAND]",
    .example = "lodge run -m 1G",
    .options = options,
    .words_max = 1,
    .takes_command = true,
    .run = nothing,
};
static const struct verb ls = {.name = "ls", .summary = "List", .usage = "", .run = nothing};
static const struct verb *const image_children[] = {&ls, NULL};
static const struct verb image = {
    .name = "image", .summary = "Images", .usage = "", .children = image_children};
static const struct verb *const root_children[] = {&run, &image, NULL};
static const struct verb root = {
    .name = "lodge", .summary = "Guests", .usage = "", .children = root_children};

static int parse(struct arguments *arguments, struct err *err, char *const *argv)
{
    return arguments_parse(&root, argv, arguments, err);
}
#define PARSE(arguments, err, ...) parse(arguments, err, (char *[]){__VA_ARGS__, NULL})

static void a_value_may_be_optional(void **state)
{
    struct arguments a;
    struct err err = {0};
    assert_int_equal(PARSE(&a, &err, "run", "--firmware", "web"), 0);
    assert_true(arguments_flag(&a, "firmware"));
    assert_null(arguments_value(&a, "firmware"));
    assert_string_equal(a.words[0], "web"); /* which is not its value */
    assert_int_equal(PARSE(&a, &err, "run", "--firmware=a.fd"), 0);
    assert_string_equal(arguments_value(&a, "firmware"), "a.fd");
    assert_int_equal(PARSE(&a, &err, "run", "--publish", "80"), 0);
    assert_string_equal(arguments_value(&a, "publish"), "80"); /* part of one may be, too */
}

static void all_spellings_of_options(void **state)
{
    struct arguments a;
    struct err err = {0};
    assert_int_equal(PARSE(&a, &err, "run", "--memory", "1G", "-m2G", "--memory=3G", "-tv", "-e",
                           "A=1", "web", "-eB", "--", "ls", "-l", "--", "x"),
                     0);
    assert_ptr_equal(a.verb, &run);
    assert_string_equal(a.path, "lodge run");
    assert_string_equal(arguments_value(&a, "memory"), "3G");
    assert_true(arguments_flag(&a, "tty") && arguments_flag(&a, "verbose"));
    assert_int_equal(a.given_count, 7);
    assert_int_equal(a.word_count, 1);
    assert_string_equal(a.words[0], "web");
    assert_string_equal(a.command[0], "ls");
    assert_string_equal(a.command[3], "x");
    assert_null(a.command[4]);
    assert_false(a.help);

    assert_int_equal(PARSE(&a, &err, "run", "--tty"), 0);
    assert_null(arguments_value(&a, "memory"));
    assert_false(arguments_flag(&a, "verbose"));
    assert_null(a.command);
    assert_int_equal(PARSE(&a, &err, "image", "ls", "-h"), 0);
    assert_ptr_equal(a.verb, &ls);
    assert_true(a.help);
}

static void mistakes_are_named(void **state)
{
    static const struct {
        char *argv[5];
        const char *message;
    } cases[] = {
        {{"run", "--memry", "1G"}, "unknown option '--memry'; did you mean --memory?"},
        {{"run", "--colour"}, "unknown option '--colour'; see lodge run --help"},
        {{"run", "-tx"}, "unknown option '-tx'; see lodge run --help"},
        {{"run", "--memory"}, "option '--memory' needs a SIZE"},
        {{"run", "-m"}, "option '-m' needs a SIZE"},
        {{"run", "--tty=yes"}, "option '--tty' takes no value"},
        {{"run", "web", "ls"}, "'ls' is one word too many; a command comes after --"},
        {{"run", "--"}, "after -- a command must follow"},
        {{"image", "ls", "x"}, "'x' is one word too many; see lodge image ls --help"},
        {{"image", "ls", "--", "x"}, "no command can follow here"},
        {{"rum"}, "'rum' is no command; did you mean lodge run?"},
        {{"destroy"}, "'destroy' is no command; see lodge --help"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct arguments a;
        struct err err = {0};
        assert_int_equal(parse(&a, &err, cases[i].argv), -EINVAL);
        assert_string_equal(err.text, cases[i].message);
    }
}

static void help_shows_every_option(void **state)
{
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    arguments_help(&run, "lodge run", to);
    fclose(to);
    assert_int_equal(
        strncmp(text, "Usage: lodge run [OPTION...] [IMAGE] [-- COMMAND]\nBoot.\n", 55), 0);
    for (const struct option_row *row = options; row->name; row++)
        assert_non_null(strstr(text, row->help));
    assert_non_null(strstr(text, "  -m, --memory SIZE"));
    assert_non_null(strstr(text, "Example:\n  lodge run -m 1G\n"));
    free(text);
}

static void verbs_are_found_by_their_words(void **state)
{
    char path[64];
    const char *words[] = {"image", "ls", "x"};
    assert_ptr_equal(arguments_find(&root, words, 2, path, sizeof path), &ls);
    assert_string_equal(path, "lodge image ls");
    assert_null(arguments_find(&root, words, 3, path, sizeof path));
    assert_ptr_equal(arguments_find(&root, words, 0, path, sizeof path), &root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_spellings_of_options),
        cmocka_unit_test(a_value_may_be_optional),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(help_shows_every_option),
        cmocka_unit_test(verbs_are_found_by_their_words),
    };
    return cmocka_run_group_tests_name("arguments", tests, NULL, NULL);
}
