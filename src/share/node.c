/*
 * The inodes that a guest knows. Slots are used again, but never with the same number: a guest that
 * asks for what it has forgotten finds nothing rather than another file.
 */
#include "share/private.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SLOTS_FIRST = 256, SLOT_ROOT = FUSE_ROOT_ID };

int node_tables_new(struct share *share)
{
    share->slot_room = SLOTS_FIRST;
    share->nodes = calloc(SLOTS_FIRST, sizeof *share->nodes);
    share->uses = calloc(SLOTS_FIRST, sizeof *share->uses);
    share->free_slots = calloc(SLOTS_FIRST, sizeof *share->free_slots);
    if (!share->nodes || !share->uses || !share->free_slots)
        return -ENOMEM;
    share->slot_count = SLOT_ROOT + 1;
    share->nodes[SLOT_ROOT] = &share->root;
    /* So that nobody outside can choose inodes that all fall into one bucket. Without randomness it
     * is only slower. */
    if (getrandom(&share->bucket_key, sizeof share->bucket_key, GRND_NONBLOCK) < 0)
        share->bucket_key = 0;
    share->bucket_key |= 1;
    return 0;
}

static struct node **bucket_of(struct share *share, dev_t dev, ino_t ino)
{
    uint64_t mixed = (ino ^ dev << 40) * share->bucket_key;
    return &share->buckets[mixed >> 50 & (SHARE_BUCKETS - 1)];
}

/* The root stays. */
static void drop(struct share *share, struct node *node)
{
    struct node **at = bucket_of(share, node->dev, node->ino);
    uint32_t slot = (uint32_t)node->id;
    while (*at && *at != node)
        at = &(*at)->next;
    if (*at)
        *at = node->next;
    share->nodes[slot] = NULL;
    share->uses[slot]++;
    share->free_slots[share->free_count++] = slot;
    close(node->fd);
    free(node);
}

void node_forget_all(struct share *share)
{
    for (uint32_t slot = SLOT_ROOT + 1; slot < share->slot_count; slot++)
        if (share->nodes[slot])
            drop(share, share->nodes[slot]);
}

void node_tables_free(struct share *share)
{
    if (share->nodes && share->free_slots)
        node_forget_all(share);
    free(share->nodes);
    free(share->uses);
    free(share->free_slots);
}

struct node *node_find(struct share *share, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    if (slot >= share->slot_count || !share->nodes[slot] || share->nodes[slot]->id != id)
        return NULL;
    return share->nodes[slot];
}

/* All three tables have room for `slot_room`; one that has more already is fine. */
static int slots_grow(struct share *share)
{
    uint32_t room = share->slot_room * 2;
    struct node **nodes = realloc(share->nodes, room * sizeof *nodes);
    if (!nodes)
        return -ENOMEM;
    share->nodes = nodes;
    uint32_t *uses = realloc(share->uses, room * sizeof *uses);
    if (!uses)
        return -ENOMEM;
    share->uses = uses;
    uint32_t *free_slots = realloc(share->free_slots, room * sizeof *free_slots);
    if (!free_slots)
        return -ENOMEM;
    share->free_slots = free_slots;
    share->slot_room = room;
    return 0;
}

static int slot_take(struct share *share, uint32_t *ret_slot)
{
    if (share->free_count > 0) {
        *ret_slot = share->free_slots[--share->free_count];
        return 0;
    }
    if (share->slot_count > share->options.nodes_max)
        return -ENFILE;
    int r = share->slot_count == share->slot_room ? slots_grow(share) : 0;
    if (r < 0)
        return r;
    share->uses[share->slot_count] = 0;
    *ret_slot = share->slot_count++;
    return 0;
}

static int add(struct share *share, int fd, const struct stat *status, struct node **ret_node)
{
    uint32_t slot;
    struct node *node = calloc(1, sizeof *node);
    int r = node ? slot_take(share, &slot) : -ENOMEM;
    if (r < 0) {
        free(node);
        return r;
    }
    struct node **bucket = bucket_of(share, status->st_dev, status->st_ino);
    *node = (struct node){.id = (uint64_t)share->uses[slot] << 32 | slot,
                          .fd = fd,
                          .type = status->st_mode & S_IFMT,
                          .dev = status->st_dev,
                          .ino = status->st_ino,
                          .next = *bucket};
    *bucket = node;
    share->nodes[slot] = node;
    *ret_node = node;
    return 0;
}

int node_enter(struct share *share, int fd, struct node **ret_node)
{
    _cleanup_fd_ int owned = fd;
    struct stat status;
    if (fstatat(fd, "", &status, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    struct node *node = *bucket_of(share, status.st_dev, status.st_ino);
    while (node && (node->dev != status.st_dev || node->ino != status.st_ino))
        node = node->next;
    int r = node ? 0 : add(share, fd, &status, &node);
    if (r < 0)
        return r;
    if (node->fd == fd)
        take_fd(&owned);
    node->lookups++;
    *ret_node = node;
    return 0;
}

void node_forget(struct share *share, uint64_t id, uint64_t lookups)
{
    struct node *node = node_find(share, id);
    if (!node || node == &share->root)
        return;
    node->lookups -= min(lookups, node->lookups);
    if (node->lookups == 0)
        drop(share, node);
}

/* S2 */
static int open_below(int folder, const char *name)
{
    struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
                           .resolve =
                               RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS};
    long fd = syscall(SYS_openat2, folder, name, &how, sizeof how);
    return fd < 0 ? -errno : (int)fd;
}

int node_look_up(struct share *share, const struct node *folder, const char *name,
                 struct node **ret_node)
{
    int fd = open_below(folder->fd, name);
    return fd < 0 ? fd : node_enter(share, fd, ret_node);
}

void descriptor_name(int fd, char ret_name[16])
{
    snprintf(ret_name, 16, "%d", fd);
}

int descriptor_reopen(struct share *share, int fd, int flags)
{
    char name[16];
    descriptor_name(fd, name);
    int opened = openat(share->descriptors, name, flags | O_CLOEXEC);
    return opened < 0 ? -errno : opened;
}

int node_open(struct share *share, const struct node *node, int flags)
{
    if (node->type != S_IFREG && node->type != S_IFDIR)
        return node->type == S_IFLNK ? -ELOOP : -EACCES;
    return descriptor_reopen(share, node->fd, flags);
}
