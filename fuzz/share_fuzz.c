// needs: base share
/*
 * The server of a shared folder: requests as drivers make them, with what the input changes of
 * them, on a folder of its own in /tmp. Beside the folder lies a file that must stay as it is.
 */
#include "base/bytes.h"
#include "input.h"
#include "share/share.h"

#include <assert.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { STEPS = 64 };

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *walk)
{
    if (walk->level > 0) {
        chmod(path, 0700);
        remove(path);
    }
    return 0;
}

/* Numbers that were given out, mostly; or anything. */
static uint64_t number(struct input *input)
{
    uint64_t how = input_next(input, 1);
    if (how < 200)
        return how % 16;
    return how < 230 ? (how % 4) << 32 | how % 8 : input_next(input, 8);
}

static void put_name(struct input *input, uint8_t *to, size_t *length)
{
    static const char *const names[] = {"a",   "b", "c",    "d",           ".", "..",
                                        "a/b", "",  "../x", "/etc/passwd", "l", "file"};
    const char *name = names[input_next(input, 1) % ARRAY_LEN(names)];
    memcpy(to + *length, name, strlen(name) + 1);
    *length += strlen(name) + 1;
}

/* Arguments are mostly numbers of 8 and 4 bytes in the first 64. */
static size_t make(struct input *input, uint8_t *request)
{
    static const uint8_t common[] = {FUSE_LOOKUP, FUSE_CREATE,  FUSE_OPEN,  FUSE_READ,
                                     FUSE_WRITE,  FUSE_OPENDIR, FUSE_MKDIR, FUSE_READDIRPLUS};
    static const uint8_t sizes[] = {0, 8, 16, 24, 32, 40, 88};
    uint8_t kind = (uint8_t)input_next(input, 1);
    struct fuse_in_header in = {.opcode = kind < 128 ? kind % 64u : common[kind % 8],
                                .nodeid = number(input),
                                .unique = 1,
                                .uid = getuid(),
                                .gid = getgid()};
    size_t length = sizeof in, args = sizes[input_next(input, 1) % sizeof sizes];
    memset(request + length, 0, args);
    for (size_t i = 0; i + 8 <= args && input_next(input, 1) % 4; i += 8)
        le64_write(request + length + i,
                   input_next(input, 1) % 2 ? number(input) : input_next(input, 2));
    length += args;
    unsigned names = (unsigned)input_next(input, 1) % 4;
    for (unsigned i = 0; i < names; i++)
        put_name(input, request, &length);
    in.len = (uint32_t)length;
    /* A length that is a lie is for whoever cuts the stream, and refused here. */
    if (input_next(input, 1) % 32 == 0)
        in.len = (uint32_t)input_next(input, 4);
    memcpy(request, &in, sizeof in);
    return length;
}

static void greet(struct share *share, uint8_t *request, uint8_t *reply)
{
    const struct fuse_init_in init = {.major = 7, .minor = 36};
    const struct fuse_in_header in = {.opcode = FUSE_INIT, .len = sizeof in + sizeof init};
    memcpy(request, &in, sizeof in);
    memcpy(request + sizeof in, &init, sizeof init);
    assert(share_serve(share, request, in.len, reply) == 16 + sizeof(struct fuse_init_out));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t request[4096], reply[SHARE_MESSAGE_MAX];
    static char top[64], inside[80], beside[80];
    static int folder = -1, descriptors;
    struct input input = {data, size};
    struct share *share;
    struct stat status;
    if (folder < 0) {
        strcpy(top, "/tmp/lodge-share-fuzz-XXXXXX");
        if (!mkdtemp(top))
            return 0;
        snprintf(inside, sizeof inside, "%s/folder", top);
        snprintf(beside, sizeof beside, "%s/x", top);
        mkdir(inside, 0700);
        close(open(beside, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        folder = open(inside, O_PATH | O_DIRECTORY | O_CLOEXEC);
        descriptors = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    }
    const struct share_options options = {
        .read_only = input_next(&input, 1) % 8 == 0, .nodes_max = 20, .handles_max = 10};
    if (share_new(folder, descriptors, &options, &share, NULL) < 0)
        return 0;
    greet(share, request, reply);
    for (int i = 0; i < STEPS && input.left > 0; i++) {
        size_t length = make(&input, request);
        /* No file may grow so far that the next inputs have no room. */
        if (le32_read(request + 4) == FUSE_FALLOCATE || le32_read(request + 4) == FUSE_SETATTR)
            le64_write(request + 40 + 16, le64_read(request + 40 + 16) & 0xffff);
        size_t answer = share_serve(share, request, length, reply);
        assert(answer == 0 || (answer >= 16 && answer == le32_read(reply)));
    }
    share_free(share);
    int r = lstat(beside, &status);
    assert(r == 0 && S_ISREG(status.st_mode) && (status.st_mode & 07777) == 0600 &&
           status.st_size == 0 && status.st_nlink == 1);
    nftw(inside, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    (void)r;
    return 0;
}
