/*
 * lodge host: what this machine offers to guests, and which engine `auto` takes here.
 */
#include "base/bytes.h"
#include "cpu/kvm/probe.h"
#include "host/facts.h"
#include "verbs.h"

#include <string.h>

#include <jansson.h>

struct answer {
    struct host_facts facts;
    struct kvm_probe probe;
    const char *engine; /* what auto chooses */
};

static void ask(struct answer *answer)
{
    host_facts_read("", &answer->facts);
    kvm_probe(NULL, -1, &answer->probe);
    answer->engine = answer->probe.works && answer->probe.fast ? "kvm" : "soft";
}

static const char *virtualization(const struct host_facts *facts)
{
    return facts->vmx ? "VT-x" : facts->svm ? "AMD-V" : "none";
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (double)MIB(1);
}

static void print_engine(const struct answer *answer)
{
    const struct kvm_probe *probe = &answer->probe;
    printf("%-22s %s\n", "/dev/kvm",
           !probe->opens  ? "does not open"
           : probe->works ? "works"
                          : "opens, but does not work");
    if (probe->works)
        printf("%-22s %llu ns in kvm\n", "privileged instruction", (unsigned long long)probe->ns);
    printf("%-22s %s: %s\n", "engine auto", answer->engine, probe->why);
}

static void print_memory(const struct host_facts *facts)
{
    printf("%-22s %.0f MiB, %.0f MiB available\n", "memory", mib(facts->memory),
           mib(facts->memory_available));
    printf("%-22s ", "huge pages");
    for (unsigned i = 0; i < facts->huge_count; i++)
        printf("%llu of %.0f MiB (%llu free), ", (unsigned long long)facts->huge[i].total,
               mib(facts->huge[i].page), (unsigned long long)facts->huge[i].free);
    printf("transparent: %s\n", *facts->transparent_huge ? facts->transparent_huge : "not offered");
    printf("%-22s ", "KSM");
    if (facts->ksm_running)
        printf("running, %llu pages shared\n", (unsigned long long)facts->ksm_pages_sharing);
    else
        puts(facts->ksm ? "offered, not running" : "not offered");
}

static void print_table(const struct answer *answer)
{
    const struct host_facts *facts = &answer->facts;
    printf("%-22s %s\n", "CPU", *facts->cpu_model ? facts->cpu_model : "unknown");
    printf("%-22s %s%s\n", "virtualization", virtualization(facts),
           facts->hypervisor ? " (this machine is a guest itself)" : "");
    print_engine(answer);
    printf("%-22s %u\n", "cores", facts->cpus);
    print_memory(facts);
    printf("%-22s ", "cgroup");
    if (facts->cgroup)
        printf("version %u\n", facts->cgroup);
    else
        puts("none mounted");
    printf("%-22s Linux %s\n", "kernel", facts->kernel);
}

static json_t *huge_pages(const struct host_facts *facts)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < facts->huge_count; i++)
        json_array_append_new(array,
                              json_pack("{s:I, s:I, s:I}", "size", (json_int_t)facts->huge[i].page,
                                        "total", (json_int_t)facts->huge[i].total, "free",
                                        (json_int_t)facts->huge[i].free));
    return array;
}

static int print_json(const struct answer *answer)
{
    const struct host_facts *facts = &answer->facts;
    const struct kvm_probe *probe = &answer->probe;
    json_t *root = json_pack(
        "{s:{s:s, s:s, s:i, s:b, s:b, s:b}, s:{s:b, s:b, s:b, s:o}, s:{s:s, s:s},"
        " s:{s:I, s:I, s:o, s:s}, s:{s:b, s:b, s:I}, s:i, s:s}",
        "cpu", "model", facts->cpu_model, "vendor", facts->cpu_vendor, "cores", (int)facts->cpus,
        "vmx", (int)facts->vmx, "svm", (int)facts->svm, "hypervisor", (int)facts->hypervisor, "kvm",
        "opens", (int)probe->opens, "works", (int)probe->works, "fast", (int)probe->fast,
        "instruction_ns", probe->works ? json_integer((json_int_t)probe->ns) : json_null(),
        "engine", "auto", answer->engine, "why", probe->why, "memory", "total",
        (json_int_t)facts->memory, "available", (json_int_t)facts->memory_available, "huge_pages",
        huge_pages(facts), "transparent_huge_pages", facts->transparent_huge, "ksm", "offered",
        (int)facts->ksm, "running", (int)facts->ksm_running, "pages_sharing",
        (json_int_t)facts->ksm_pages_sharing, "cgroup", (int)facts->cgroup, "kernel",
        facts->kernel);
    int r = root ? json_dumpf(root, stdout, JSON_INDENT(2)) : -1;
    putchar('\n');
    json_decref(root);
    return r < 0 ? STATUS_FAILED : 0;
}

static int host(const struct arguments *arguments)
{
    struct answer answer = {0};
    const char *format = arguments_value(arguments, "format");
    if (format && strcmp(format, "json") != 0 && strcmp(format, "table") != 0) {
        fprintf(stderr, "lodge: --format is table or json, not '%s'\n", format);
        return STATUS_MISTAKE;
    }
    ask(&answer);
    if (format && !strcmp(format, "json"))
        return print_json(&answer);
    print_table(&answer);
    return 0;
}

static const struct option_row options[] = {
    {"format", 0, "FORMAT", "table or json (table)"},
    {0},
};

const struct verb verb_host = {
    .name = "host",
    .summary = "Show what this machine offers to guests",
    .usage = "",
    .details =
        "The cost of a privileged instruction is measured in a tiny guest: a /dev/kvm without\n"
        "hardware behind it is there but slow, and engine auto then takes the software engine.",
    .example = "lodge host --format json",
    .options = options,
    .mistake_status = STATUS_MISTAKE,
    .run = host,
};
