#include "image/store.h"

#include "base/bytes.h"
#include "base/own.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

enum { NAME_MAX_LENGTH = 64, HASH_MAX_LENGTH = 128 };

static void own_json(json_t **json)
{
    json_decref(*json);
}

static void own_dir(DIR **dir)
{
    if (*dir)
        closedir(*dir);
}

static int xdg_path(const char *variable, const char *under_home, const char *rest, char **ret_path,
                    struct err *err)
{
    const char *base = getenv(variable), *home = getenv("HOME");
    int r;
    /* The XDG specification: a relative value is to be ignored. */
    if (base && *base == '/')
        r = asprintf(ret_path, "%s/%s", base, rest);
    else if (home && *home == '/')
        r = asprintf(ret_path, "%s/%s/%s", home, under_home, rest);
    else
        return err_set(err, -ENOENT, "neither %s nor HOME is set; images need a place", variable);
    return r < 0 ? err_set(err, -ENOMEM, "no memory") : 0;
}

int image_store_path(char **ret_path, struct err *err)
{
    return xdg_path("XDG_DATA_HOME", ".local/share", "lodge/images", ret_path, err);
}

int image_cache_path(char **ret_path, struct err *err)
{
    return xdg_path("XDG_CACHE_HOME", ".cache", "lodge", ret_path, err);
}

int image_make_directories(const char *path, struct err *err)
{
    _cleanup_free_ char *copy = strdup(path);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    for (char *slash = strchr(copy + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = '\0';
        if (mkdir(copy, 0755) < 0 && errno != EEXIST)
            return err_errno(err, errno, "cannot make folder '%s'", copy);
        if (!slash)
            return 0;
        *slash = '/';
    }
}

static bool word_valid(const char *word, size_t longest)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    size_t length = strlen(word);
    return length > 0 && length <= longest && strchr(letters, *word) &&
           strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
               length;
}

bool image_name_valid(const char *name)
{
    return word_valid(name, NAME_MAX_LENGTH);
}

bool image_reference_valid(const char *reference)
{
    char name[NAME_MAX_LENGTH + 1];
    const char *colon = strchr(reference, ':');
    if (!colon)
        return image_name_valid(reference);
    size_t length = (size_t)(colon - reference);
    if (length > NAME_MAX_LENGTH)
        return false;
    memcpy(name, reference, length);
    name[length] = '\0';
    return image_name_valid(name) && image_name_valid(colon + 1);
}

char *image_full_name(const char *reference)
{
    return strdup(strcmp(reference, "debian") != 0 ? reference : "debian:" IMAGE_DEBIAN_SUITE);
}

bool image_usable(const struct image *image)
{
    return access(image->kernel, R_OK) == 0 && access(image->initrd, R_OK) == 0 &&
           (!image->disk || access(image->disk, R_OK) == 0);
}

void image_free(struct image *image)
{
    free(image->name);
    free(image->hash);
    free(image->created);
    free(image->release);
    free(image->kernel);
    free(image->initrd);
    free(image->append);
    free(image->disk);
    *image = (struct image){0};
}

void image_list_free(struct image_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        image_free(&list->images[i]);
    free(list->images);
    *list = (struct image_list){0};
}

static char *string_of(const json_t *root, const char *key)
{
    const char *text = json_string_value(json_object_get(root, key));
    return strdup(text ? text : "");
}

/* The path of one of the image's files, whose name may not lead out of its folder. */
static int file_of(const json_t *root, const char *key, const char *folder, char **ret_path,
                   uint64_t *size)
{
    const json_t *file = json_object_get(root, key);
    const char *name = json_string_value(json_object_get(file, "file"));
    if (!name || !word_valid(name, NAME_MAX_LENGTH))
        return -EBADMSG;
    *size += (uint64_t)json_integer_value(json_object_get(file, "size"));
    return asprintf(ret_path, "%s/%s", folder, name) < 0 ? -ENOMEM : 0;
}

static int read_image(const char *folder, const char *name, struct image *ret_image,
                      struct err *err)
{
    _cleanup_free_ char *path = NULL;
    json_error_t where;
    if (asprintf(&path, "%s/image.json", folder) < 0) {
        path = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    _cleanup_(own_json)
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return err_set(err, -EBADMSG, "%s:%d:%d: %s", path, where.line, where.column, where.text);
    struct image image = {
        .name = strdup(name),
        .hash = string_of(root, "hash"),
        .created = string_of(root, "created"),
        .release = string_of(root, "release"),
        .append = string_of(root, "append"),
        .memory = (uint64_t)json_integer_value(json_object_get(root, "memory")),
        .agent = json_is_true(json_object_get(root, "agent")),
        .login = json_is_true(json_object_get(root, "login")),
        .seed = json_is_true(json_object_get(root, "seed")),
    };
    int r = file_of(root, "kernel", folder, &image.kernel, &image.size);
    if (r >= 0)
        r = file_of(root, "initrd", folder, &image.initrd, &image.size);
    if (r >= 0 && json_object_get(root, "disk"))
        r = file_of(root, "disk", folder, &image.disk, &image.size);
    if (r < 0) {
        image_free(&image);
        return err_set(err, r, "image '%s' is damaged; make it anew with lodge image build %s",
                       name, name);
    }
    *ret_image = image;
    return 0;
}

/* The folder that `current` points to; -ENOENT where there is none. */
static int current_folder(const char *store, const char *name, char **ret_folder)
{
    _cleanup_free_ char *link = NULL;
    char target[HASH_MAX_LENGTH + 1];
    if (asprintf(&link, "%s/%s/current", store, name) < 0) {
        link = NULL;
        return -ENOMEM;
    }
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0)
        return -errno;
    target[length] = '\0';
    if (!word_valid(target, HASH_MAX_LENGTH))
        return -ENOENT;
    return asprintf(ret_folder, "%s/%s/%s", store, name, target) < 0 ? -ENOMEM : 0;
}

static int no_such_image(const char *store, const char *name, struct err *err)
{
    struct image_list list = {0};
    char names[512] = "";
    size_t length = 0;
    image_list(store, &list, NULL);
    for (size_t i = 0; i < list.count && length < sizeof names; i++)
        length += (size_t)snprintf(names + length, sizeof names - length, "%s%s", i ? ", " : "",
                                   list.images[i].name);
    size_t count = list.count;
    image_list_free(&list);
    if (count == 0)
        return err_set(err, -ENOENT,
                       "image '%.64s' does not exist, and there is no other; make one with: "
                       "lodge image build %.64s",
                       name, strncmp(name, "debian", 6) == 0 ? name : "default");
    if (strncmp(name, "debian:", 7) == 0)
        return err_set(err, -ENOENT,
                       "image '%.64s' does not exist; make it with: lodge image build %.64s", name,
                       name);
    return err_set(err, -ENOENT, "image '%.64s' does not exist; there are: %s", name, names);
}

int image_find(const char *store, const char *name, struct image *ret_image, struct err *err)
{
    _cleanup_free_ char *folder = NULL;
    if (!image_reference_valid(name))
        return err_set(err, -EINVAL,
                       "'%.64s' is no image name; those are letters, digits, '.', '_' and '-', and "
                       "perhaps ':' and a tag",
                       name);
    _cleanup_free_ char *full = image_full_name(name);
    if (!full)
        return err_set(err, -ENOMEM, "no memory");
    name = full;
    int r = current_folder(store, name, &folder);
    if (r == -ENOENT || r == -EINVAL)
        return no_such_image(store, name, err);
    if (r < 0)
        return err_errno(err, -r, "image '%s'", name);
    return read_image(folder, name, ret_image, err);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct image *)a)->name, ((const struct image *)b)->name);
}

static int add_image(struct image_list *list, const char *store, const char *name)
{
    struct image image;
    _cleanup_free_ char *folder = NULL;
    if (!image_reference_valid(name) || current_folder(store, name, &folder) < 0 ||
        read_image(folder, name, &image, NULL) < 0)
        return 0; /* a folder that is no image is not ours to judge */
    struct image *images = reallocarray(list->images, list->count + 1, sizeof *images);
    if (!images) {
        image_free(&image);
        return -ENOMEM;
    }
    list->images = images;
    list->images[list->count++] = image;
    return 0;
}

int image_list(const char *store, struct image_list *ret_list, struct err *err)
{
    struct image_list list = {0};
    *ret_list = list;
    _cleanup_(own_dir)
    DIR *dir = opendir(store);
    if (!dir && errno == ENOENT)
        return 0;
    if (!dir)
        return err_errno(err, errno, "'%s'", store);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir))
        if (add_image(&list, store, entry->d_name) < 0) {
            image_list_free(&list);
            return err_set(err, -ENOMEM, "no memory");
        }
    if (list.count)
        qsort(list.images, list.count, sizeof *list.images, by_name);
    *ret_list = list;
    return 0;
}
