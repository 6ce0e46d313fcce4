/*
 * private.h: what the parts of src/share have in common, and nobody else sees.
 */
#pragma once

#include "share/share.h"

#include <linux/fuse.h>
#include <string.h>
#include <sys/stat.h>

/* An inode that the guest knows. It asks for it by `id`, until it has forgotten it as many times as
 * it was told of it. */
struct node {
    uint64_t id; /* slot, and in the upper half how often the slot was used before */
    int fd;      /* O_PATH */
    mode_t type; /* S_IFMT of it, which never changes */
    dev_t dev;
    ino_t ino;
    uint64_t lookups;
    struct node *next; /* in its bucket */
};

struct handle {
    int fd; /* -1 = free */
    uint32_t uses;
    bool folder;
    int64_t position; /* of the descriptor, in a folder */
};

enum { SHARE_BUCKETS = 1 << 14, FOLDER_BYTES = 32 << 10 };

struct share {
    struct share_options options;
    int descriptors; /* borrowed: /proc/self/fd */
    dev_t dev;       /* of the root */
    bool greeted;    /* INIT has come */

    struct node root;
    struct node **nodes; /* by slot; NULL = free. Slot 0 is nobody, 1 the root */
    uint32_t *uses;      /* of a slot, before now */
    uint32_t *free_slots;
    uint32_t slot_count, slot_room, free_count;
    uint64_t bucket_key;
    struct node *buckets[SHARE_BUCKETS];

    struct handle *handles;
    uint32_t handle_count, handle_low; /* none below `handle_low` is free */

    uint8_t folder[FOLDER_BYTES]; /* what getdents64() gave */
};

/* One request while it is served. */
struct request {
    struct fuse_in_header header;
    const uint8_t *body;
    size_t left;
    uint8_t *reply; /* behind the header */
    size_t room, length;
};

/* message.c. -EINVAL where the request is too short; names are checked (S2). */
int request_take(struct request *request, void *to, size_t size);
int request_name(struct request *request, const char **ret_name);
/* One after the other. */
int request_take_named(struct request *request, void *to, size_t size, const char **ret_name);
int request_text(struct request *request, const char **ret_text); /* any, but not empty */
void request_give(struct request *request, const void *from, size_t size);

/* node.c */
int node_tables_new(struct share *share);
void node_tables_free(struct share *share);
void node_forget_all(struct share *share);
struct node *node_find(struct share *share, uint64_t id); /* NULL = no such */
/* The node of what `fd`, which is taken over, stands for: one that is known or a new one, with one
 * lookup more. -ENFILE. */
int node_enter(struct share *share, int fd, struct node **ret_node);
void node_forget(struct share *share, uint64_t id, uint64_t lookups);
/* By name, without following links; one lookup more. */
int node_look_up(struct share *share, const struct node *folder, const char *name,
                 struct node **ret_node);
/* A descriptor of the same file opened for more than O_PATH. -ELOOP, -EACCES for what is neither
 * file nor folder (S3). */
int node_open(struct share *share, const struct node *node, int flags);
/* O_PATH, or what `flags` say, of the same file as `fd`. */
int descriptor_reopen(struct share *share, int fd, int flags);
/* The name of `fd` below share->descriptors. */
void descriptor_name(int fd, char ret_name[16]);

/* handle.c */
struct handle *handle_find(struct share *share, uint64_t id, bool folder); /* NULL = no such */
/* What a request says, `size` bytes that begin with an open file's number, and that file; -EBADF.
 */
int handle_take(struct share *share, struct request *request, bool folder, void *ret_in,
                size_t size, struct handle **ret_handle);
/* Replies that `fd`, which is taken over, is open. */
int handle_give(struct share *share, struct request *request, int fd, bool folder);
int handle_release(struct share *share, struct request *request, bool folder);
int handle_sync(struct share *share, struct request *request, bool folder);
void handle_close_all(struct share *share);

/* attr.c */
int attr_of(struct share *share, const struct node *node, struct fuse_attr *ret_attr);
int entry_of(struct share *share, const struct node *node, struct fuse_entry_out *ret_entry);
/* The reply to everything that finds or makes an inode. Where it cannot be made the lookup is
 * taken back. */
int entry_give(struct share *share, struct request *request, struct node *node);

/* Handlers: 0, or -errno for the guest. `node` is the request's, which exists. */
int attr_get(struct share *share, struct node *node, struct request *request);
int attr_set(struct share *share, struct node *node, struct request *request);
int attr_statfs(struct share *share, struct node *node, struct request *request);

int file_open(struct share *share, struct node *node, struct request *request);
int file_create(struct share *share, struct node *node, struct request *request);
int file_read(struct share *share, struct node *node, struct request *request);
int file_write(struct share *share, struct node *node, struct request *request);
int file_release(struct share *share, struct node *node, struct request *request);
int file_fsync(struct share *share, struct node *node, struct request *request);
int file_fallocate(struct share *share, struct node *node, struct request *request);
int file_lseek(struct share *share, struct node *node, struct request *request);

int folder_open(struct share *share, struct node *node, struct request *request);
int folder_read(struct share *share, struct node *node, struct request *request);
int folder_read_plus(struct share *share, struct node *node, struct request *request);
int folder_release(struct share *share, struct node *node, struct request *request);
int folder_fsync(struct share *share, struct node *node, struct request *request);

int name_look_up(struct share *share, struct node *node, struct request *request);
int name_readlink(struct share *share, struct node *node, struct request *request);
int name_symlink(struct share *share, struct node *node, struct request *request);
int name_mknod(struct share *share, struct node *node, struct request *request);
int name_mkdir(struct share *share, struct node *node, struct request *request);
int name_unlink(struct share *share, struct node *node, struct request *request);
int name_rmdir(struct share *share, struct node *node, struct request *request);
int name_rename(struct share *share, struct node *node, struct request *request);
int name_rename2(struct share *share, struct node *node, struct request *request);
int name_link(struct share *share, struct node *node, struct request *request);

/* name.c: makes a regular file in a folder and opens it; it must not have been there (-EEXIST). */
int name_make(const struct node *folder, const char *name, int flags, mode_t mode);
/* Gives a new file to who asked for it; in a folder that says so, to the folder's group. */
int name_own(struct share *share, const struct node *folder, int fd,
             const struct fuse_in_header *header);
