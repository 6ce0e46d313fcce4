#include "image/module.h"

#include "base/bytes.h"
#include "base/own.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MARK_NEW, MARK_VISITING, MARK_DONE, DEPTH_MAX = 64 };

static char *module_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *name = strdup(slash ? slash + 1 : path);
    if (!name)
        return NULL;
    name[strcspn(name, ".")] = '\0';
    for (char *at = name; *at; at++)
        if (*at == '-')
            *at = '_';
    return name;
}

int module_add(struct module_set *set, const char *path, const void *bytes, size_t size)
{
    if (set->count == set->capacity) {
        size_t capacity = max(2 * set->capacity, (size_t)64);
        struct module *modules = reallocarray(set->modules, capacity, sizeof *modules);
        if (!modules)
            return -ENOMEM;
        set->modules = modules;
        set->capacity = capacity;
    }
    struct module module = {module_name(path), malloc(size + 1), size, MARK_NEW};
    if (!module.name || !module.bytes) {
        free(module.name);
        free(module.bytes);
        return -ENOMEM;
    }
    memcpy(module.bytes, bytes, size);
    set->modules[set->count++] = module;
    return 0;
}

void module_set_free(struct module_set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        free(set->modules[i].name);
        free(set->modules[i].bytes);
    }
    free(set->modules);
    *set = (struct module_set){0};
}

/* Copies one structure out of the file, or fails. */
static bool get(const uint8_t *bytes, size_t size, uint64_t offset, void *to, size_t length)
{
    if (!range_fits(offset, length, size))
        return false;
    memcpy(to, bytes + offset, length);
    return true;
}

static int find_section(const uint8_t *bytes, size_t size, const char *name, Elf64_Shdr *ret_found)
{
    Elf64_Ehdr header;
    Elf64_Shdr names;
    if (!get(bytes, size, 0, &header, sizeof header) ||
        memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_shentsize != sizeof(Elf64_Shdr) ||
        !get(bytes, size, header.e_shoff + (uint64_t)header.e_shstrndx * sizeof names, &names,
             sizeof names))
        return -EBADMSG;
    for (unsigned i = 0; i < header.e_shnum; i++) {
        Elf64_Shdr section;
        char text[32] = {0};
        if (!get(bytes, size, header.e_shoff + i * sizeof section, &section, sizeof section))
            return -EBADMSG;
        if (get(bytes, size, names.sh_offset + section.sh_name, text, strlen(name) + 1) &&
            !strcmp(text, name)) {
            *ret_found = section;
            return range_fits(section.sh_offset, section.sh_size, size) ? 0 : -EBADMSG;
        }
    }
    return -ENOENT;
}

int module_info(const uint8_t *bytes, size_t size, const char *key, char **ret_value)
{
    Elf64_Shdr info;
    int r = find_section(bytes, size, ".modinfo", &info);
    if (r < 0 && r != -ENOENT)
        return r;
    const char *at = r < 0 ? "" : (const char *)bytes + info.sh_offset;
    const char *end = r < 0 ? at : at + info.sh_size;
    size_t key_length = strlen(key);
    while (at < end) {
        size_t length = strnlen(at, (size_t)(end - at));
        if (length > key_length && at[key_length] == '=' && !memcmp(at, key, key_length)) {
            *ret_value = strndup(at + key_length + 1, length - key_length - 1);
            return *ret_value ? 0 : -ENOMEM;
        }
        at += length + 1;
    }
    *ret_value = strdup("");
    return *ret_value ? 0 : -ENOMEM;
}

struct order {
    struct module_set *set;
    struct module **modules;
    size_t count;
    struct err *err;
};

static struct module *find(struct module_set *set, const char *name)
{
    for (size_t i = 0; i < set->count; i++)
        if (!strcmp(set->modules[i].name, name))
            return &set->modules[i];
    return NULL;
}

static int visit(struct order *order, const char *path, unsigned depth)
{
    _cleanup_free_ char *name = module_name(path);
    _cleanup_free_ char *depends = NULL;
    if (!name)
        return -ENOMEM;
    struct module *module = find(order->set, name);
    if (!module)
        return err_set(order->err, -ENOENT, "kernel module '%s' is not in the package", name);
    if (module->mark == MARK_DONE)
        return 0;
    if (module->mark == MARK_VISITING || depth > DEPTH_MAX)
        return err_set(order->err, -ELOOP, "kernel module '%s' needs itself", name);
    module->mark = MARK_VISITING;
    int r = module_info(module->bytes, module->size, "depends", &depends);
    if (r < 0)
        return err_errno(order->err, -r, "kernel module '%s'", name);
    char *rest = NULL;
    for (char *word = strtok_r(depends, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
        r = visit(order, word, depth + 1);
        if (r < 0)
            return r;
    }
    module->mark = MARK_DONE;
    order->modules[order->count++] = module;
    return 0;
}

int module_order(struct module_set *set, const char *const *wanted, size_t wanted_count,
                 struct module ***ret_order, size_t *ret_count, struct err *err)
{
    _cleanup_free_ struct module **modules = calloc(set->count + 1, sizeof *modules);
    if (!modules)
        return err_set(err, -ENOMEM, "no memory");
    for (size_t i = 0; i < set->count; i++)
        set->modules[i].mark = MARK_NEW;
    struct order order = {.set = set, .modules = modules, .err = err};
    for (size_t i = 0; i < wanted_count; i++) {
        int r = visit(&order, wanted[i], 0);
        if (r < 0)
            return r;
    }
    *ret_order = take_ptr(modules);
    *ret_count = order.count;
    return 0;
}
