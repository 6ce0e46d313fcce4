/* PID 1 of the boot benchmark: says that it runs, does the work its kernel argument names, and
 * powers off. Static; the whole initial file system is this program. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

static int spins(void)
{
    char line[4096] = "";
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    FILE *file = fopen("/proc/cmdline", "r");
    if (file) {
        if (!fgets(line, sizeof line, file))
            line[0] = 0;
        fclose(file);
    }
    const char *at = strstr(line, "bench.spin=");
    return at ? atoi(at + strlen("bench.spin=")) : 0;
}

int main(void)
{
    printf("PID1\n");
    fflush(stdout);
    /* A loop of known length: instructions per second of plain user code. */
    unsigned long sum = 0;
    for (long i = 0, n = spins() * 1000000L; i < n; i++)
        __asm__ volatile("add %1, %0; xor $5, %0; lea 1(%0), %0" : "+r"(sum) : "r"(i));
    printf("DONE %lu\n", sum & 1);
    fflush(stdout);
    reboot(RB_POWER_OFF);
    return 1;
}
