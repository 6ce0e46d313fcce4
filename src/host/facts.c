#include "host/facts.h"

#include "base/bytes.h"
#include "base/own.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

static FILE *open_at(const char *root, const char *path)
{
    char full[4200];
    snprintf(full, sizeof full, "%s%s", root, path);
    return fopen(full, "re");
}

/* The first line, without its end; "" where there is none. */
static bool first_line(const char *root, const char *path, char *ret_line, size_t size)
{
    _cleanup_file_ FILE *file = open_at(root, path);
    *ret_line = '\0';
    if (!file || !fgets(ret_line, (int)size, file))
        return false;
    ret_line[strcspn(ret_line, "\n")] = '\0';
    return true;
}

static uint64_t number(const char *root, const char *path)
{
    char line[64];
    return first_line(root, path, line, sizeof line) ? strtoull(line, NULL, 10) : 0;
}

/* "key<blanks>:<blanks>value" */
static const char *value_of(const char *line, const char *key)
{
    size_t length = strlen(key);
    if (strncmp(line, key, length) != 0)
        return NULL;
    line += length + strspn(line + length, " \t");
    if (*line != ':')
        return NULL;
    return line + 1 + strspn(line + 1, " \t");
}

static bool has_word(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = strstr(words, word); at; at = strstr(at + 1, word))
        if ((at == words || at[-1] == ' ') && (!at[length] || at[length] == ' '))
            return true;
    return false;
}

static void copy(char *to, size_t size, const char *from)
{
    if (from && !*to)
        snprintf(to, size, "%s", from);
}

static void read_cpu(const char *root, struct host_facts *facts)
{
    _cleanup_free_ char *line = NULL;
    size_t size = 0;
    bool flags_seen = false;
    _cleanup_file_ FILE *file = open_at(root, "/proc/cpuinfo");
    while (file && getline(&line, &size, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        if (value_of(line, "processor"))
            facts->cpus++;
        copy(facts->cpu_model, sizeof facts->cpu_model, value_of(line, "model name"));
        copy(facts->cpu_vendor, sizeof facts->cpu_vendor, value_of(line, "vendor_id"));
        const char *flags = flags_seen ? NULL : value_of(line, "flags");
        if (!flags)
            continue;
        flags_seen = true;
        facts->vmx = has_word(flags, "vmx");
        facts->svm = has_word(flags, "svm");
        facts->hypervisor = has_word(flags, "hypervisor");
    }
}

static void read_memory(const char *root, struct host_facts *facts)
{
    char line[128];
    _cleanup_file_ FILE *file = open_at(root, "/proc/meminfo");
    while (file && fgets(line, sizeof line, file)) {
        const char *total = value_of(line, "MemTotal"), *free = value_of(line, "MemAvailable");
        if (total)
            facts->memory = KIB(strtoull(total, NULL, 10));
        if (free)
            facts->memory_available = KIB(strtoull(free, NULL, 10));
    }
}

static int by_page(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

/* /sys/kernel/mm/hugepages/hugepages-2048kB/{nr,free}_hugepages */
static void read_huge_pages(const char *root, struct host_facts *facts)
{
    static const char folder[] = "/sys/kernel/mm/hugepages";
    char path[4200];
    snprintf(path, sizeof path, "%s%s", root, folder);
    DIR *dir = opendir(path);
    if (!dir)
        return;
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        if (strncmp(entry->d_name, "hugepages-", 10) != 0 ||
            facts->huge_count == HOST_HUGE_SIZES_MAX)
            continue;
        unsigned i = facts->huge_count++;
        facts->huge[i].page = KIB(strtoull(entry->d_name + 10, NULL, 10));
        snprintf(path, sizeof path, "%s/%s/nr_hugepages", folder, entry->d_name);
        facts->huge[i].total = number(root, path);
        snprintf(path, sizeof path, "%s/%s/free_hugepages", folder, entry->d_name);
        facts->huge[i].free = number(root, path);
    }
    closedir(dir);
    _Static_assert(offsetof(struct host_facts, huge[0].page) == offsetof(struct host_facts, huge),
                   "by_page() looks at the first field");
    qsort(facts->huge, facts->huge_count, sizeof facts->huge[0], by_page);
}

/* The chosen one stands in brackets: "always [madvise] never". */
static void read_transparent_huge(const char *root, struct host_facts *facts)
{
    char line[64];
    first_line(root, "/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line);
    const char *open = strchr(line, '['), *close = open ? strchr(open, ']') : NULL;
    if (close)
        snprintf(facts->transparent_huge, sizeof facts->transparent_huge, "%.*s",
                 (int)(close - open - 1), open + 1);
}

static void read_ksm(const char *root, struct host_facts *facts)
{
    char line[32];
    facts->ksm = first_line(root, "/sys/kernel/mm/ksm/run", line, sizeof line);
    facts->ksm_running = facts->ksm && !strcmp(line, "1");
    facts->ksm_pages_sharing = number(root, "/sys/kernel/mm/ksm/pages_sharing");
}

/* A hybrid machine mounts version 2 too, but without controllers in it. */
static void read_cgroup(const char *root, struct host_facts *facts)
{
    char line[512];
    if (first_line(root, "/sys/fs/cgroup/cgroup.controllers", line, sizeof line)) {
        facts->cgroup = 2;
        return;
    }
    _cleanup_file_ FILE *file = open_at(root, "/proc/self/mounts");
    while (file && fgets(line, sizeof line, file))
        if (strstr(line, " cgroup "))
            facts->cgroup = 1;
}

void host_facts_read(const char *root, struct host_facts *ret_facts)
{
    struct utsname names;
    *ret_facts = (struct host_facts){0};
    read_cpu(root, ret_facts);
    read_memory(root, ret_facts);
    read_huge_pages(root, ret_facts);
    read_transparent_huge(root, ret_facts);
    read_ksm(root, ret_facts);
    read_cgroup(root, ret_facts);
    if (uname(&names) == 0)
        copy(ret_facts->kernel, sizeof ret_facts->kernel, names.release);
}
