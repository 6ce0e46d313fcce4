/*
 * facts.h: what this machine is, as far as guests care: read from /proc and /sys, nothing measured.
 *
 * Each fact stands alone: what cannot be read is zero or empty and no error, for a container or an
 * old kernel hides some of them. Pure but for reading; any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HOST_HUGE_SIZES_MAX = 4 };

struct host_facts {
    char cpu_model[128], cpu_vendor[32];
    bool vmx, svm;   /* VT-x, AMD-V, as this kernel sees them */
    bool hypervisor; /* we are a guest ourselves */
    unsigned cpus;   /* online */
    char kernel[80];

    uint64_t memory, memory_available; /* bytes */
    struct {
        uint64_t page; /* bytes */
        uint64_t total, free;
    } huge[HOST_HUGE_SIZES_MAX];
    unsigned huge_count;
    char transparent_huge[16]; /* "always", "madvise", "never", "" = not offered */

    bool ksm; /* kernel samepage merging is offered */
    bool ksm_running;
    uint64_t ksm_pages_sharing;

    unsigned cgroup; /* 1, 2, or 0 where none is mounted; 2 where both are and 2 has controllers */
};

/* `root` is put before each path: "" for this machine, a folder in tests. */
void host_facts_read(const char *root, struct host_facts *ret_facts);
