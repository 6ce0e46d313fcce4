/* The rows of the engine benchmark: what one operation of each kind costs, in nanoseconds.
 *
 * The same static program runs on the host and, as PID 1 with nothing else in the initial file
 * system, in a guest. It prints, as it goes,
 *
 *     PID1                    in a guest only
 *     START
 *     ROW int 0.83            a row's name, nanoseconds for each operation
 *     ...
 *     TOTAL 1.93              seconds since START, to be held against the clock outside
 *
 * Two words change what it does, on the command line or, in a guest, the kernel's:
 *
 *     bench.rows=int,pipe     times only these rows
 *     bench.threads=2         runs each row in two processes at once; the slower one counts
 *
 * Each process stays on a CPU of its own, so that a row of two processes taking turns costs the
 * same kind of switch on the host as on a single vCPU. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX 16
#define LEAVE       "leave" /* the argument with which the exec row starts this program */

struct options {
    const char *rows; /* names with commas between them; NULL for all */
    int threads;
};

struct row {
    const char *name;
    void (*run)(long count);
    long count;    /* how often, when timed */
    double inside; /* operations in each of them */
};

/* What the processes of a run share. */
struct meeting {
    pthread_barrier_t barrier;
    double seconds[THREADS_MAX];
};

static volatile uint64_t sink; /* where results go, so that the compiler keeps the work */

static void fail(const char *what)
{
    printf("FAILED %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* --- plain computing --- */

/* Shifts, xors, a multiplication, and a branch nobody can predict well. */
static void run_int(long count)
{
    uint64_t x = 88172645463325252ull, sum = 0;
    for (long i = 0; i < count; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum += x * 0x9E3779B97F4A7C15ull;
        if (sum & 0x100)
            sum ^= (uint64_t)i;
    }
    sink = sum;
}

#define SIEVE_SIZE (1 << 20)

static void run_sieve(long count)
{
    static uint8_t prime[SIEVE_SIZE];
    for (long round = 0; round < count; round++) {
        memset(prime, 1, sizeof prime);
        for (long i = 2; i * i < SIEVE_SIZE; i++)
            if (prime[i])
                for (long j = i * i; j < SIEVE_SIZE; j += i)
                    prime[j] = 0;
    }
    sink = prime[997];
}

/* One linear congruential generator for all, so that every machine works on the same numbers. */
static uint32_t next_number(uint32_t x)
{
    return x * 1664525 + 1013904223;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

#define SORT_SIZE (1 << 16)

static void run_sort(long count)
{
    static uint32_t values[SORT_SIZE];
    uint32_t x = 1;
    for (long round = 0; round < count; round++) {
        for (int i = 0; i < SORT_SIZE; i++) {
            x = next_number(x);
            values[i] = x;
        }
        qsort(values, SORT_SIZE, sizeof values[0], compare);
    }
    sink = values[77];
}

#define FP_SIZE 128

/* Matrix products in doubles. */
static void run_fp(long count)
{
    static double a[FP_SIZE][FP_SIZE], b[FP_SIZE][FP_SIZE], product[FP_SIZE][FP_SIZE];
    for (int i = 0; i < FP_SIZE; i++)
        for (int j = 0; j < FP_SIZE; j++) {
            a[i][j] = i + j * .5;
            b[i][j] = i - j * .25;
        }
    for (long round = 0; round < count; round++) {
        for (int i = 0; i < FP_SIZE; i++)
            for (int j = 0; j < FP_SIZE; j++) {
                double sum = 0;
                for (int k = 0; k < FP_SIZE; k++)
                    sum += a[i][k] * b[k][j];
                product[i][j] = sum;
            }
        a[round % FP_SIZE][3] = product[5][5] * 1e-9;
    }
    sink = (uint64_t)product[7][9];
}

#define COPY_SIZE (1 << 16)

static void run_copy(long count)
{
    static char a[COPY_SIZE], b[COPY_SIZE];
    for (long i = 0; i < count; i++) {
        memcpy(a, b, sizeof a);
        a[i & (COPY_SIZE - 1)] = (char)i;
        memcpy(b, a, sizeof b);
    }
    sink = (uint64_t)b[5];
}

#define CHASE_SIZE (1 << 20)

/* One cycle through 4 MiB (Sattolo's shuffle), each load waiting for the one before. */
static void chase_prepare(uint32_t *next)
{
    for (uint32_t i = 0; i < CHASE_SIZE; i++)
        next[i] = i;
    uint32_t x = 1;
    for (uint32_t i = CHASE_SIZE - 1; i > 0; i--) {
        x = next_number(x);
        uint32_t j = (x >> 8) % i, kept = next[i];
        next[i] = next[j];
        next[j] = kept;
    }
}

static void run_chase(long count)
{
    static uint32_t next[CHASE_SIZE];
    static bool prepared;
    if (!prepared)
        chase_prepare(next);
    prepared = true;
    uint32_t at = 0;
    for (long i = 0; i < count; i++)
        at = next[at];
    sink = at;
}

static int add_one(int x)
{
    return x + 1;
}

static int xor_three(int x)
{
    return x ^ 3;
}

/* Indirect calls whose target changes. */
static void run_calls(long count)
{
    static int (*volatile callee)(int);
    int x = 0;
    for (long i = 0; i < count; i++) {
        callee = (x & 1) ? add_one : xor_three;
        x = callee(x);
    }
    sink = (uint64_t)x;
}

/* --- the kernel's work --- */

static void run_syscall(long count)
{
    for (long i = 0; i < count; i++)
        syscall(SYS_getppid);
}

#define FAULT_SIZE (1 << 20)
#define FAULT_PAGE 4096

static void run_pagefault(long count)
{
    for (long i = 0; i < count; i++) {
        char *memory =
            mmap(NULL, FAULT_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            fail("mmap");
        for (int at = 0; at < FAULT_SIZE; at += FAULT_PAGE)
            memory[at] = 1;
        munmap(memory, FAULT_SIZE);
    }
}

static pid_t fork_or_fail(void)
{
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    return child;
}

static void reap(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) < 0)
        fail("waitpid");
    errno = 0;
    if (status)
        fail("a child process");
}

static void run_fork(long count)
{
    for (long i = 0; i < count; i++) {
        pid_t child = fork_or_fail();
        if (child == 0)
            _exit(0);
        reap(child);
    }
}

static void run_exec(long count)
{
    for (long i = 0; i < count; i++) {
        pid_t child = fork_or_fail();
        if (child == 0) {
            execl("/proc/self/exe", "guestbench", LEAVE, NULL);
            _exit(1);
        }
        reap(child);
    }
}

/* A byte goes to another process and comes back. */
static void run_pipe(long count)
{
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) < 0 || pipe(back) < 0)
        fail("pipe");
    pid_t child = fork_or_fail();
    if (child == 0) {
        for (long i = 0; i < count; i++)
            if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    for (long i = 0; i < count; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("pipe");
    reap(child);
    close(there[0]);
    close(there[1]);
    close(back[0]);
    close(back[1]);
}

/* Their order matters: fork and exec copy the mappings of what the rows before them touched. */
static const struct row rows[] = {
    {"int", run_int, 20000000, 1},
    {"sieve", run_sieve, 20, SIEVE_SIZE},
    {"sort", run_sort, 8, SORT_SIZE},
    {"fp", run_fp, 10, (double)FP_SIZE *FP_SIZE *FP_SIZE},
    {"copy", run_copy, 2000, 2 * COPY_SIZE},
    {"chase", run_chase, 4000000, 1},
    {"calls", run_calls, 10000000, 1},
    {"syscall", run_syscall, 300000, 1},
    {"pagefault", run_pagefault, 40, (double)FAULT_SIZE / FAULT_PAGE},
    {"fork", run_fork, 300, 1},
    {"exec", run_exec, 150, 1},
    {"pipe", run_pipe, 20000, 1},
};

/* --- running them --- */

static bool row_is_chosen(const struct row *row, const struct options *options)
{
    size_t length = strlen(row->name);
    for (const char *at = options->rows; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, row->name, length) == 0 && (at[length] == 0 || at[length] == ','))
            return true;
    }
    return !options->rows;
}

static void allowed_cpus(cpu_set_t *set)
{
    if (sched_getaffinity(0, sizeof *set, set) < 0)
        fail("sched_getaffinity");
}

/* Moves the calling process to the `number`th of the CPUs it may use. */
static void stay_on_cpu(int number)
{
    cpu_set_t allowed, chosen;
    allowed_cpus(&allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || number-- > 0)
            continue;
        CPU_ZERO(&chosen);
        CPU_SET(cpu, &chosen);
        if (sched_setaffinity(0, sizeof chosen, &chosen) < 0)
            fail("sched_setaffinity");
        return;
    }
}

/* Times one row in every process at once; the first process reports the slowest. */
static void measure(const struct row *row, struct meeting *meeting, int self, int threads)
{
    pthread_barrier_wait(&meeting->barrier);
    double started = now();
    row->run(row->count);
    meeting->seconds[self] = now() - started;
    pthread_barrier_wait(&meeting->barrier);
    if (self > 0)
        return;
    double slowest = 0;
    for (int i = 0; i < threads; i++)
        if (meeting->seconds[i] > slowest)
            slowest = meeting->seconds[i];
    printf("ROW %s %.6f\n", row->name, slowest / (double)row->count / row->inside * 1e9);
    fflush(stdout);
}

static void run_rows(const struct options *options, struct meeting *meeting, int self)
{
    stay_on_cpu(self);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        rows[i].run(1); /* the rows left out too: see their order */
        if (row_is_chosen(&rows[i], options))
            measure(&rows[i], meeting, self, options->threads);
    }
}

static void run_all(const struct options *options)
{
    cpu_set_t allowed;
    allowed_cpus(&allowed);
    errno = ENODEV;
    if (CPU_COUNT(&allowed) < options->threads)
        fail("a CPU for each process");
    struct meeting *meeting =
        mmap(NULL, sizeof *meeting, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (meeting == MAP_FAILED)
        fail("mmap");
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&meeting->barrier, &shared, (unsigned)options->threads);

    printf("START\n");
    fflush(stdout);
    double started = now();
    pid_t others[THREADS_MAX];
    for (int i = 1; i < options->threads; i++) {
        others[i] = fork_or_fail();
        if (others[i] == 0) {
            run_rows(options, meeting, i);
            _exit(0);
        }
    }
    run_rows(options, meeting, 0);
    for (int i = 1; i < options->threads; i++)
        reap(others[i]);
    printf("TOTAL %.3f\n", now() - started);
    fflush(stdout);
}

static void read_option(char *word, struct options *options)
{
    if (strncmp(word, "bench.rows=", strlen("bench.rows=")) == 0)
        options->rows = word + strlen("bench.rows=");
    if (strncmp(word, "bench.threads=", strlen("bench.threads=")) == 0)
        options->threads = atoi(word + strlen("bench.threads="));
    if (options->threads < 1 || options->threads > THREADS_MAX) {
        errno = ERANGE;
        fail(word);
    }
}

static void read_kernel_options(char *line, int size, struct options *options)
{
    FILE *file = fopen("/proc/cmdline", "r");
    if (!file || !fgets(line, size, file))
        fail("/proc/cmdline");
    fclose(file);
    char *rest = line;
    for (char *word; (word = strsep(&rest, " \n"));)
        read_option(word, options);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], LEAVE) == 0)
        return 0;
    struct options options = {.threads = 1};
    char line[4096];
    bool is_guest = getpid() == 1;
    if (is_guest) {
        printf("PID1\n");
        fflush(stdout);
        mkdir("/proc", 0755);
        mount("proc", "/proc", "proc", 0, NULL); /* the exec row's path, our options */
        read_kernel_options(line, sizeof line, &options);
    }
    for (int i = 1; i < argc; i++)
        read_option(argv[i], &options);
    run_all(&options);
    if (is_guest)
        reboot(RB_POWER_OFF);
    return 0;
}
