#include "seeding.h"

#include "base/own.h"
#include "image/seed.h"
#include "input.h"

#include <string.h>

bool seeding_wanted(const struct arguments *arguments)
{
    return arguments_value(arguments, "user-data") || arguments_value(arguments, "ssh-key");
}

static int read_keys(struct seed *seed, const char *path, struct err *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length = 0;
    int r = input_read("SSH key", path, SEED_FILE_MAX, &text, &length, err);
    return r < 0 ? r : seed_add_keys(seed, path, text, length, err);
}

static int read_all_keys(struct seed *seed, const struct arguments *arguments, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < arguments->given_count; i++)
        if (!strcmp(arguments->given[i].row->name, "ssh-key"))
            r = read_keys(seed, arguments->given[i].value, err);
    return r;
}

int seeding_open(const struct arguments *arguments, const char *hostname, struct err *err)
{
    struct seed seed = {.hostname = hostname};
    _cleanup_free_ char *text = NULL;
    const char *path = arguments_value(arguments, "user-data");
    int r = 0;
    if (path)
        r = input_read("user data", path, SEED_FILE_MAX, &text, &seed.user_data_size, err);
    if (r >= 0 && path)
        r = seed_check_user_data(path, text, seed.user_data_size, err);
    seed.user_data = text;
    if (r >= 0)
        r = read_all_keys(&seed, arguments, err);
    if (r >= 0)
        r = seed_write(&seed, err);
    seed_free(&seed);
    return r;
}
