/*
 * lodge image: builds and lists what guests boot from.
 */
#include "image/build.h"

#include "base/own.h"
#include "copy.h"
#include "image/debian.h"
#include "image/store.h"
#include "machine.h"
#include "verbs.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

static volatile sig_atomic_t stop;

static void note_stop(int number)
{
    stop = number;
}

static void note(void *opaque, const char *text)
{
    fprintf(stderr, "lodge: %s\n", text);
}

/* Without SA_RESTART: the programs we wait for are then ended and our half-made files removed. */
static void watch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &(struct sigaction){.sa_handler = note_stop}, NULL);
}

static int make_disk(void *opaque, const char *raw, const char *qcow2, struct err *err)
{
    const struct disk_options options = {.format = DISK_FORMAT_RAW, .read_only = true};
    struct disk *from;
    int r = disk_open(raw, &options, &from, err);
    if (r < 0)
        return r;
    const struct disk_create create = {.format = DISK_FORMAT_QCOW2, .size = disk_size(from)};
    r = copy_disk(from, qcow2, &create, &stop, err);
    disk_close(from);
    return r;
}

static int build_default(const struct image_build *build, const char *tag, struct image *ret_image,
                         struct err *err)
{
    return image_build_default(build, ret_image, err);
}

/* What lodge can build: a name, and perhaps a tag. */
static const struct recipe {
    const char *name, *tag; /* the tag that the name alone means; NULL = it has none */
    int (*build)(const struct image_build *build, const char *tag, struct image *ret_image,
                 struct err *err);
} recipes[] = {
    {"default", NULL, build_default},
    {"debian", IMAGE_DEBIAN_SUITE, image_build_debian},
    {0},
};

/* The recipe for NAME or NAME:TAG, and the tag; NULL where there is none. */
static const struct recipe *find_recipe(const char *reference, const char **ret_tag)
{
    size_t length = strcspn(reference, ":");
    for (const struct recipe *recipe = recipes; recipe->name; recipe++) {
        if (strlen(recipe->name) != length || strncmp(reference, recipe->name, length) != 0)
            continue;
        *ret_tag = reference[length] ? reference + length + 1 : recipe->tag;
        return recipe->tag || !reference[length] ? recipe : NULL;
    }
    return NULL;
}

static int build_recipe(const struct recipe *recipe, const char *tag, struct image *ret_image,
                        struct err *err)
{
    _cleanup_free_ char *store = NULL;
    _cleanup_free_ char *cache = NULL;
    char agent[4096], vmm[4096];
    int r = image_store_path(&store, err);
    if (r >= 0)
        r = image_cache_path(&cache, err);
    if (r >= 0)
        r = machine_find_program("lodge-agent", "LODGE_AGENT", agent, sizeof agent, err);
    if (r >= 0)
        r = machine_find_program("lodge-vmm", "LODGE_VMM", vmm, sizeof vmm, err);
    if (r < 0)
        return r;
    watch_signals();
    const struct image_build build = {
        .store = store,
        .cache = cache,
        .agent = agent,
        .vmm = vmm,
        .note = note,
        .make_disk = make_disk,
        .stop = &stop,
    };
    return recipe->build(&build, tag, ret_image, err);
}

static int build(const struct arguments *arguments)
{
    struct err err = {0};
    struct image image = {0};
    const char *name = arguments->word_count ? arguments->words[0] : NULL, *tag = NULL;
    const struct recipe *recipe = name ? find_recipe(name, &tag) : NULL;
    if (!recipe) {
        fprintf(stderr, "lodge: %s%s%s; lodge can build: default, debian, debian:SUITE\n",
                name ? "there is no recipe for image '" : "which image?", name ? name : "",
                name ? "'" : "");
        return STATUS_MISTAKE;
    }
    int r = build_recipe(recipe, tag, &image, &err);
    if (r < 0) {
        fprintf(stderr, "lodge: %s\n", err.text);
        return stop ? 128 + stop : STATUS_FAILED;
    }
    printf("image '%s' (%.12s, Linux %s) %s\n", image.name, image.hash, image.release,
           r ? "is built" : "is up to date");
    image_free(&image);
    return 0;
}

static int list_json(const struct image_list *list)
{
    json_t *array = json_array();
    for (size_t i = 0; i < list->count; i++) {
        const struct image *image = &list->images[i];
        json_array_append_new(
            array, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s?, s:I, s:b}", "name",
                             image->name, "hash", image->hash, "created", image->created, "release",
                             image->release, "kernel", image->kernel, "initrd", image->initrd,
                             "append", image->append, "disk", image->disk, "size",
                             (json_int_t)image->size, "agent", (int)image->agent));
    }
    int r = json_dumpf(array, stdout, JSON_INDENT(2));
    json_decref(array);
    putchar('\n');
    return r < 0 ? STATUS_FAILED : 0;
}

static void list_table(const struct image_list *list)
{
    printf("%-16s %-14s %-28s %9s  %s\n", "NAME", "HASH", "KERNEL", "SIZE", "CREATED");
    for (size_t i = 0; i < list->count; i++) {
        const struct image *image = &list->images[i];
        printf("%-16s %-14.12s %-28s %5.1f MiB  %s\n", image->name, image->hash, image->release,
               (double)image->size / (1 << 20), image->created);
    }
}

static int list(const struct arguments *arguments)
{
    struct err err = {0};
    struct image_list images = {0};
    _cleanup_free_ char *store = NULL;
    const char *format = arguments_value(arguments, "format");
    if (format && strcmp(format, "json") != 0 && strcmp(format, "table") != 0) {
        fprintf(stderr, "lodge: --format is table or json, not '%s'\n", format);
        return STATUS_MISTAKE;
    }
    int r = image_store_path(&store, &err);
    if (r >= 0)
        r = image_list(store, &images, &err);
    if (r < 0) {
        fprintf(stderr, "lodge: %s\n", err.text);
        return STATUS_FAILED;
    }
    int status = 0;
    if (format && !strcmp(format, "json"))
        status = list_json(&images);
    else
        list_table(&images);
    image_list_free(&images);
    return status;
}

static const struct verb verb_build = {
    .name = "build",
    .summary = "Make an image from Debian's packages",
    .usage = "default|debian[:SUITE]",
    .details =
        "default is a kernel, BusyBox and lodge-agent, for commands that want to run at once.\n"
        "debian is a whole system on a disk, made by mmdebstrap; SUITE is " IMAGE_DEBIAN_SUITE
        " where\nnone is given. The packages are found and verified by this machine's apt. Root "
        "is not needed\nfor the first; for the second it is, or user namespaces with subordinate "
        "IDs. What is built\nalready from the same inputs is left alone.",
    .example = "lodge image build debian",
    .words_max = 1,
    .mistake_status = STATUS_MISTAKE,
    .run = build,
};

static const struct option_row list_options[] = {
    {"format", 0, "FORMAT", "table or json (table)"},
    {0},
};

static const struct verb verb_list = {
    .name = "ls",
    .summary = "List the images on this machine",
    .usage = "",
    .example = "lodge image ls --format json",
    .options = list_options,
    .mistake_status = STATUS_MISTAKE,
    .run = list,
};

static const struct verb *const children[] = {&verb_build, &verb_list, NULL};

const struct verb verb_image = {
    .name = "image",
    .summary = "Build and list images",
    .usage = "",
    .children = children,
    .mistake_status = STATUS_MISTAKE,
};
