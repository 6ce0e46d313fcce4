#include "base/bytes.h"
#include "base/own.h"
#include "image/digest.h"
#include "image/initramfs.h"
#include "image/module.h"
#include "image/package.h"
#include "image/process.h"
#include "image/recipe.h"
#include "image/store.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <archive.h>
#include <archive_entry.h>
#include <cmocka.h>

/* A relocatable object with one .modinfo section, and nothing else that depmod would look at. */
static size_t make_module(uint8_t *bytes, const char *info, size_t info_size)
{
    static const char names[] = "\0.modinfo\0.shstrtab";
    Elf64_Ehdr header = {
        .e_ident = ELFMAG, .e_shentsize = sizeof(Elf64_Shdr), .e_shnum = 3, .e_shstrndx = 2};
    size_t info_at = sizeof header, names_at = info_at + info_size;
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_shoff = names_at + sizeof names;
    const Elf64_Shdr sections[3] = {
        {0},
        {.sh_name = 1, .sh_offset = info_at, .sh_size = info_size},
        {.sh_name = 10, .sh_offset = names_at, .sh_size = sizeof names},
    };
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + info_at, info, info_size);
    memcpy(bytes + names_at, names, sizeof names);
    memcpy(bytes + header.e_shoff, sections, sizeof sections);
    return header.e_shoff + sizeof sections;
}

static void add_module(struct module_set *set, const char *path, const char *depends)
{
    char info[256] = "license=GPL";
    uint8_t bytes[1024];
    size_t at = strlen(info) + 1;
    at += (size_t)snprintf(info + at, sizeof info - at, "depends=%s", depends) + 1;
    assert_int_equal(module_add(set, path, bytes, make_module(bytes, info, at)), 0);
}

static void modules_are_loaded_after_what_they_need(void **state)
{
    struct module_set set = {0};
    struct module **order = NULL;
    size_t count = 0;
    struct err err = {0};
    add_module(&set, "a/virtio_console.ko", "virtio,virtio_ring");
    add_module(&set, "a/virtio-rng.ko", "virtio");
    add_module(&set, "b/virtio_ring.ko", "virtio");
    add_module(&set, "b/virtio.ko", "");
    add_module(&set, "b/other.ko", "");
    const char *const wanted[] = {"virtio_console", "virtio_rng", "virtio"};
    assert_int_equal(module_order(&set, wanted, 3, &order, &count, &err), 0);
    assert_int_equal(count, 4);
    assert_string_equal(order[0]->name, "virtio");
    assert_string_equal(order[1]->name, "virtio_ring");
    assert_string_equal(order[2]->name, "virtio_console");
    assert_string_equal(order[3]->name, "virtio_rng");
    free(order);

    add_module(&set, "b/x.ko", "y");
    add_module(&set, "b/y.ko", "x");
    add_module(&set, "b/z.ko", "absent");
    assert_int_equal(module_order(&set, (const char *[]){"x"}, 1, &order, &count, &err), -ELOOP);
    assert_int_equal(module_order(&set, (const char *[]){"z"}, 1, &order, &count, &err), -ENOENT);
    assert_string_equal(err.text, "kernel module 'absent' is not in the package");
    module_set_free(&set);
}

static void damaged_modules_are_refused(void **state)
{
    uint8_t bytes[1024] = {0};
    char *value;
    size_t size = make_module(bytes, "depends=a", 10);
    assert_int_equal(module_info(bytes, size, "depends", &value), 0);
    assert_string_equal(value, "a");
    free(value);
    for (size_t length = 0; length < size; length++)
        if (module_info(bytes, length, "depends", &value) >= 0) {
            assert_true(length >= size - sizeof(Elf64_Shdr));
            free(value);
        }
    bytes[0] = 'X';
    assert_int_equal(module_info(bytes, size, "depends", &value), -EBADMSG);
}

struct listing {
    char text[65536];
    size_t length;
};

/* "mode path size target" of every entry, read back by libarchive. */
static void list_archive(int fd, struct listing *listing)
{
    struct archive *archive = archive_read_new();
    struct archive_entry *entry;
    archive_read_support_format_cpio(archive);
    lseek(fd, 0, SEEK_SET);
    assert_int_equal(archive_read_open_fd(archive, fd, 4096), ARCHIVE_OK);
    while (archive_read_next_header(archive, &entry) == ARCHIVE_OK) {
        const char *link = archive_entry_symlink(entry);
        assert_int_equal(archive_entry_mtime(entry), 0);
        assert_int_equal(archive_entry_uid(entry), 0);
        listing->length += (size_t)snprintf(
            listing->text + listing->length, sizeof listing->text - listing->length,
            "%o %s %d %s\n", archive_entry_mode(entry), archive_entry_pathname(entry),
            (int)archive_entry_size(entry), link ? link : "");
    }
    archive_read_free(archive);
}

static int write_small(const char *const *paths, size_t count)
{
    int fd = memfd_create("cpio", MFD_CLOEXEC);
    struct err err = {0};
    struct initramfs *initramfs = initramfs_new();
    for (size_t i = 0; i < count; i++)
        assert_int_equal(
            initramfs_add_file(initramfs, paths[i], 0644, paths[i], strlen(paths[i]), &err), 0);
    assert_int_equal(initramfs_add_link(initramfs, "bin/sh", "/bin/busybox", &err), 0);
    assert_int_equal(initramfs_add_directory(initramfs, "tmp", 01777, &err), 0);
    assert_int_equal(initramfs_add_file(initramfs, paths[0], 0644, "", 0, &err), -EEXIST);
    assert_int_equal(initramfs_write(initramfs, fd, &err), 0);
    initramfs_free(initramfs);
    return fd;
}

static void an_initramfs_is_sorted_and_reproducible(void **state)
{
    static const char *const forward[] = {"etc/passwd", "init", "a/b/c"};
    static const char *const backward[] = {"a/b/c", "init", "etc/passwd"};
    struct listing listing = {0};
    char digests[2][DIGEST_TEXT_SIZE], path[64];
    _cleanup_fd_ int a = write_small(forward, 3);
    _cleanup_fd_ int b = write_small(backward, 3);
    list_archive(a, &listing);
    assert_string_equal(listing.text, "40755 a 0 \n"
                                      "40755 a/b 0 \n"
                                      "100644 a/b/c 5 \n"
                                      "40755 bin 0 \n"
                                      "120777 bin/sh 12 /bin/busybox\n"
                                      "40755 etc 0 \n"
                                      "100644 etc/passwd 10 \n"
                                      "100644 init 4 \n"
                                      "41777 tmp 0 \n");
    snprintf(path, sizeof path, "/proc/self/fd/%d", a);
    assert_int_equal(digest_file(path, digests[0], NULL), 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", b);
    assert_int_equal(digest_file(path, digests[1], NULL), 0);
    assert_string_equal(digests[0], digests[1]);
}

static void the_default_image_holds_what_the_agent_needs(void **state)
{
    static struct listing listing;
    struct module_set set = {0};
    struct err err = {0};
    add_module(&set, "drivers/virtio_pci.ko", "virtio");
    add_module(&set, "drivers/virtio_console.ko", "virtio");
    add_module(&set, "drivers/virtio_blk.ko", "virtio");
    add_module(&set, "drivers/virtio-rng.ko", "virtio");
    add_module(&set, "drivers/virtio_balloon.ko", "virtio");
    add_module(&set, "drivers/pvpanic-mmio.ko", "pvpanic");
    add_module(&set, "drivers/pvpanic.ko", "");
    add_module(&set, "drivers/wdat_wdt.ko", "watchdog");
    add_module(&set, "drivers/watchdog.ko", "");
    add_module(&set, "net/vmw_vsock_virtio_transport.ko", "virtio");
    add_module(&set, "fs/virtiofs.ko", "virtio,fuse");
    add_module(&set, "fs/fuse.ko", "");
    add_module(&set, "drivers/virtio.ko", "");
    add_module(&set, "drivers/virtio_net.ko", "net_failover,virtio");
    add_module(&set, "drivers/net_failover.ko", "");
    struct recipe_files files = {
        .busybox = (const uint8_t *)"busybox",
        .busybox_size = 7,
        .agent = (const uint8_t *)"agent",
        .agent_size = 5,
        .applets = "bin/busybox\nbin/sh\nusr/bin/awk\nsbin/init\n",
        .modules = &set,
    };
    _cleanup_fd_ int fd = memfd_create("cpio", MFD_CLOEXEC);
    assert_int_equal(recipe_write_initramfs(&files, fd, &err), 0);
    list_archive(fd, &listing);
    static const char *const expected[] = {
        "100755 init 5 \n",
        "100755 bin/busybox 7 \n",
        "120777 bin/sh 12 /bin/busybox\n",
        "120777 usr/bin/awk 12 /bin/busybox\n",
        "120777 sbin/init 5 /init\n",
        "100644 lib/modules/lodge.list 388 \n",
        "100644 lib/modules/virtio_rng.ko ",
        "100755 etc/udhcpc.sh ",
        "100644 lib/modules/virtio_net.ko ",
        "100644 lib/modules/virtiofs.ko ",
        "100644 lib/modules/fuse.ko ",
        "40755 dev 0 \n",
        "40555 proc 0 \n",
        "100644 etc/passwd ",
    };
    for (size_t i = 0; i < ARRAY_LEN(expected); i++)
        if (!strstr(listing.text, expected[i]))
            fail_msg("no '%s' in\n%s", expected[i], listing.text);
    files.applets = "../etc/shadow\n";
    assert_int_equal(recipe_write_initramfs(&files, fd, &err), -EBADMSG);
    module_set_free(&set);
    _cleanup_free_ char *append = recipe_append();
    assert_int_equal(strncmp(append, "console=ttyS0 quiet panic=-1 ", 29), 0);
}

static void compressed_files_come_out_whole(void **state)
{
    static const uint8_t gzip[] = {0x1f, 0x8b, 8,    0,    0,    0,    0,    0, 0, 3, 0x4b,
                                   0x04, 0,    0x43, 0xbe, 0xb7, 0xe8, 0x01, 0, 0, 0};
    static const uint8_t plain[] = "plain bytes";
    uint8_t *bytes = NULL;
    size_t size = 0;
    assert_int_equal(package_decompress(gzip, sizeof gzip, &bytes, &size), 0);
    assert_int_equal(size, 1);
    assert_int_equal(bytes[0], 'a');
    free(bytes);
    assert_int_equal(package_decompress(plain, sizeof plain, &bytes, &size), 0);
    assert_int_equal(size, sizeof plain);
    assert_memory_equal(bytes, plain, size);
    free(bytes);
}

static void digests_are_sha_256(void **state)
{
    char text[DIGEST_TEXT_SIZE];
    assert_int_equal(digest_bytes("abc", 3, text), 0);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    struct err err = {0};
    assert_int_equal(digest_file("/no/such/file", text, &err), -ENOENT);
}

static void programs_say_why_they_failed(void **state)
{
    struct err err = {0};
    char *text = NULL;
    assert_int_equal(process_output((const char *[]){"echo", "a b", NULL}, NULL, 64, &text, &err),
                     0);
    assert_string_equal(text, "a b\n");
    free(text);
    assert_int_equal(process_output((const char *[]){"sh", "-c",
                                                     "echo first >&2; echo why >&2; "
                                                     "exit 3",
                                                     NULL},
                                    NULL, 64, &text, &err),
                     -EIO);
    assert_string_equal(err.text, "sh failed: why");
    static const char *const marked[] = {
        "sh", "-c", "echo first >&2; echo E: why >&2; echo E: so >&2; exit 3", NULL};
    assert_int_equal(process_run(marked, NULL, NULL, 0, &err), -EIO);
    assert_string_equal(err.text, "sh failed: E: why");
    assert_int_equal(process_run((const char *[]){"/no/such/program", NULL}, NULL, NULL, 0, &err),
                     -ENOENT);
    assert_non_null(strstr(err.text, "cannot run /no/such/program"));
    assert_int_equal(process_output((const char *[]){"sh", "-c", "head -c 100 /dev/zero", NULL},
                                    "/", 64, &text, &err),
                     -E2BIG);
}

static void image_names_lead_nowhere_else(void **state)
{
    static const char *const good[] = {"default", "a", "Debian-12.1_x"};
    static const char *const bad[] = {"", ".", "..", "-x", "a/b", "a b", "\xc3\xa9"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_true(image_name_valid(good[i]));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(image_name_valid(bad[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(modules_are_loaded_after_what_they_need),
        cmocka_unit_test(damaged_modules_are_refused),
        cmocka_unit_test(an_initramfs_is_sorted_and_reproducible),
        cmocka_unit_test(the_default_image_holds_what_the_agent_needs),
        cmocka_unit_test(compressed_files_come_out_whole),
        cmocka_unit_test(digests_are_sha_256),
        cmocka_unit_test(programs_say_why_they_failed),
        cmocka_unit_test(image_names_lead_nowhere_else),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
