#include "space.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { PLACE_MAX = 512 };

/* Where the file system of an open file is mounted, by /proc/self/mountinfo (proc(5)): by the
 * mount's number, for a file that goes with its guest has no name. False for a device. */
static bool mount_of(int fd, char ret_place[PLACE_MAX])
{
    struct statx about;
    char line[4096];
    bool found = false;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_MNT_ID, &about) < 0 ||
        !(about.stx_mask & STATX_MNT_ID) || !S_ISREG(about.stx_mode))
        return false;
    FILE *file = fopen("/proc/self/mountinfo", "re");
    while (file && !found && fgets(line, sizeof line, file)) {
        unsigned long long id;
        found =
            sscanf(line, "%llu %*s %*s %*s %511s", &id, ret_place) == 2 && id == about.stx_mnt_id;
    }
    if (file)
        fclose(file);
    return found;
}

void space_describe(const struct guest_disk *disk, int number, char *ret_text, size_t size)
{
    char place[PLACE_MAX] = "";
    bool known = disk->image_count && mount_of(disk->images[0].fd, place);
    if (!number)
        snprintf(ret_text, size, "there is space for disk '%.256s' again", disk->path);
    else
        snprintf(ret_text, size,
                 "the guest stands still: %s its disk '%.256s'%s%s%s; it goes on by itself when "
                 "there is some",
                 number == EDQUOT ? "no quota is left for" : "there is no space for", disk->path,
                 known ? " on '" : "", known ? place : "", known ? "'" : "");
}
