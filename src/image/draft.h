/*
 * draft.h: an image in the making, whatever it is made from.
 *
 * The image's folder is locked, its files are written into a temporary folder beside the images,
 * and the whole gets its name at once:
 *
 *     draft_open()     STORE/NAME/.lock; others who would make this image wait
 *     draft_begin()    STORE/NAME/.new-XXXXXX/
 *     draft_create(), draft_finish_file(), draft_write_kernel()     each file, with its digest
 *     draft_publish()  image.json, rename to STORE/NAME/HASH, current -> HASH, older images go
 *     draft_close()    removes what was not published
 *
 * A draft belongs to one thread. Errors: what files give, in `err` of the draft.
 */
#pragma once

#include "base/err.h"
#include "image/build.h"

#include <jansson.h>

struct draft {
    const struct image_build *build;
    const char *name;
    struct err *err;
    char *folder;    /* STORE/NAME */
    char *temporary; /* the folder in the making, or NULL */
    int lock;
    json_t *json; /* becomes image.json */
};

int draft_open(struct draft *draft, const struct image_build *build, const char *name,
               struct err *err);
void draft_close(struct draft *draft);

/* What happens now, for who watches. */
void draft_note(const struct draft *draft, const char *text);
/* -EINTR when a signal handler asked us to stop. */
int draft_stopped(const struct draft *draft);

/* FOLDER/NAME, malloc'd; NULL without memory. */
char *draft_path(const char *folder, const char *name);

int draft_begin(struct draft *draft);
int draft_create(struct draft *draft, const char *name, char **ret_path, int *ret_fd);
/* Read-only and on the disk from here on; `key` of image.json says what the file `name` is. */
int draft_finish_file(struct draft *draft, int fd, const char *path, const char *key,
                      const char *name);
/* The bzImage in `kernel_fd` becomes vmlinux, unpacked by lodge-vmm in its confinement. */
int draft_write_kernel(struct draft *draft, int kernel_fd);
/* `hash` names the image; `rest` (stolen) is what image.json has besides files, name, time. */
int draft_publish(struct draft *draft, const char *hash, json_t *rest);

/* A line beside the image that says from what it was made: while it still holds, looking further is
 * not worth the time. Not part of the image. */
void draft_write_stamp(const struct draft *draft, const char *hash, const char *text);
/* False without one. */
bool draft_read_stamp(const struct draft *draft, const char *hash, char *ret_text, size_t size);
