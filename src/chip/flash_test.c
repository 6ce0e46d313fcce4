#include "chip/flash.h"

#include "base/bytes.h"
#include "base/record.h"
#include "chip/chip_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SIZE = 3 * FLASH_BLOCK, READY = 0x80, PROGRAM_ERROR = 0x10, BOTH_ERRORS = 0x30 };

struct fixture {
    int fd;
    struct flash *flash;
    uint8_t shown[SIZE];
    int changes, errors;
};

static void changed(void *opaque)
{
    ((struct fixture *)opaque)->changes++;
}

static void failed(void *opaque, int number)
{
    ((struct fixture *)opaque)->errors = number;
}

static int make(struct fixture *f, int fd)
{
    return flash_new(&(struct flash_config){.fd = fd,
                                            .size = SIZE,
                                            .shown = f->shown,
                                            .changed = changed,
                                            .on_error = failed,
                                            .opaque = f},
                     &f->flash, NULL);
}

static void start(struct fixture *f)
{
    *f = (struct fixture){.fd = memfd_create("flash", MFD_CLOEXEC)};
    assert_int_equal(ftruncate(f->fd, SIZE), 0);
    assert_int_equal(pwrite(f->fd, "old", 3, FLASH_BLOCK), 3);
    assert_int_equal(make(f, f->fd), 0);
}

static void stop(struct fixture *f)
{
    flash_free(f->flash);
    close(f->fd);
}

static void put(struct fixture *f, uint32_t at, uint8_t value)
{
    out8(&flash_ops, f->flash, at, value);
}

static uint8_t in_file(struct fixture *f, uint32_t at)
{
    uint8_t byte;
    assert_int_equal(pread(f->fd, &byte, 1, at), 1);
    return byte;
}

/* As OVMF looks for it: neither memory, which would keep what is written, nor ROM. */
static void firmware_knows_it_for_a_flash(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    assert_memory_equal(f.shown + FLASH_BLOCK, "old", 3);
    put(&f, FLASH_BLOCK, 0x50);
    assert_int_equal(f.shown[FLASH_BLOCK], 'o');
    put(&f, FLASH_BLOCK, 0x70);
    assert_int_equal(f.shown[FLASH_BLOCK], 0);
    put(&f, FLASH_BLOCK, 0xff);
    assert_memory_equal(f.shown + FLASH_BLOCK, "old", 3);
    stop(&f);
}

static void a_block_is_erased_and_bytes_are_programmed(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    put(&f, FLASH_BLOCK + 77, 0x20);
    put(&f, FLASH_BLOCK + 77, 0xd0);
    assert_int_equal(f.shown[0], READY); /* the status, wherever one looks */
    const char text[] = "hello";
    for (unsigned i = 0; i < 5; i++) {
        put(&f, FLASH_BLOCK + i, i & 1 ? 0x40 : 0x10);
        put(&f, FLASH_BLOCK + i, (uint8_t)text[i]);
    }
    assert_int_equal(f.shown[SIZE - 1], READY);
    assert_int_equal(in_file(&f, FLASH_BLOCK), 'o'); /* not yet */
    put(&f, 0, 0xff);
    assert_memory_equal(f.shown + FLASH_BLOCK, "hello\xff", 6);
    assert_int_equal(f.shown[2 * FLASH_BLOCK - 1], 0xff);
    assert_int_equal(f.shown[2 * FLASH_BLOCK], 0);
    assert_int_equal(f.shown[FLASH_BLOCK - 1], 0);
    assert_int_equal(in_file(&f, FLASH_BLOCK), 'h');
    assert_int_equal(in_file(&f, 2 * FLASH_BLOCK - 1), 0xff);
    assert_int_equal(in_file(&f, 2 * FLASH_BLOCK), 0);
    stop(&f);
}

static void a_buffer_is_programmed_at_once(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    put(&f, 16, 0xe8);
    assert_int_equal(f.shown[0], READY);
    put(&f, 16, 3);
    for (unsigned i = 0; i < 4; i++)
        put(&f, 16 + i, (uint8_t)('a' + i));
    put(&f, 16, 0xd0);
    put(&f, 16, 0xff);
    assert_memory_equal(f.shown + 16, "abcd\0", 5);
    stop(&f);
}

static void broken_sequences_show_in_the_status(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    put(&f, 0, 0x20);
    put(&f, 0, 0x20); /* no confirmation */
    assert_int_equal(f.shown[0], READY | BOTH_ERRORS);
    put(&f, 0, 0x50);
    put(&f, 0, 0xe8);
    put(&f, 0, 1);
    put(&f, 8, 'x');
    put(&f, 10, 'y'); /* behind what was announced */
    assert_int_equal(f.shown[0], READY | BOTH_ERRORS);
    put(&f, 0, 0x50);
    put(&f, 0, 0xe8);
    put(&f, 0, 255);
    put(&f, SIZE - 8, 'x'); /* does not fit */
    assert_int_equal(f.shown[0], READY | BOTH_ERRORS);
    put(&f, 0, 0x50);
    put(&f, 0, 0xe8);
    put(&f, 0, 0);
    put(&f, 0, 'x');
    put(&f, 0, 0xff); /* no confirmation */
    assert_int_equal(f.shown[0], READY | BOTH_ERRORS);
    put(&f, 0, 0xff);
    assert_int_equal(f.shown[0], 0);
    flash_ops.write(f.flash, SIZE - 2, 4, 0x70707070); /* over the end */
    assert_int_equal(f.shown[0], READY | BOTH_ERRORS);
    stop(&f);
}

static void a_driver_finds_its_geometry(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    put(&f, 0x55, 0x98);
    assert_memory_equal(f.shown + 0x10, "QRY\1", 4);
    assert_int_equal(f.shown[0x27], 14); /* 12 KiB fit 2^14 */
    assert_int_equal(le16_read(f.shown + 0x2d), 2);
    assert_int_equal(le16_read(f.shown + 0x2f) * 256, FLASH_BLOCK);
    put(&f, 0, 0x90);
    assert_int_equal(f.shown[0], 0x89);
    put(&f, 0, 0x60);
    put(&f, 0, 0xd0); /* unlocking works on what has no locks */
    assert_int_equal(f.shown[0], READY);
    stop(&f);
}

static void the_file_has_it_all_in_the_end(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    put(&f, 1, 0x10);
    put(&f, 1, 'x');
    assert_int_equal(flash_flush(f.flash), 0);
    assert_int_equal(in_file(&f, 1), 'x');
    put(&f, 2, 0x10);
    put(&f, 2, 'y');
    flash_reset(f.flash);
    assert_int_equal(in_file(&f, 2), 'y');
    assert_int_equal(f.shown[2], 'y');
    /* A reset of the machine clears its memory. */
    memset(f.shown, 0, SIZE);
    flash_show(f.flash);
    assert_int_equal(f.shown[2], 'y');
    put(&f, 3, 0x10);
    put(&f, 3, 'z');
    flash_free(f.flash);
    assert_int_equal(in_file(&f, 3), 'z');
    close(f.fd);
}

static void writes_that_fail_are_told(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    flash_free(f.flash);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", f.fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(make(&f, fd), 0);
    put(&f, 0, 0x10);
    put(&f, 0, 'x');
    put(&f, 0, 0xff);
    assert_int_equal(f.errors, EBADF);
    assert_int_equal(f.shown[0], 'x'); /* the guest goes on */
    put(&f, 0, 0x70);
    assert_int_equal(f.shown[0], READY | PROGRAM_ERROR);
    assert_int_equal(flash_flush(f.flash), -EBADF);
    stop(&f);
    close(fd);
}

static void sizes_are_checked(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    flash_free(f.flash);
    assert_int_equal(ftruncate(f.fd, SIZE - 1), 0);
    assert_int_equal(make(&f, f.fd), -EINVAL);
    struct flash_config config = {.fd = f.fd, .size = FLASH_BLOCK + 1, .shown = f.shown};
    assert_int_equal(flash_new(&config, &f.flash, NULL), -EINVAL);
    config.size = FLASH_SIZE_MAX + FLASH_BLOCK;
    assert_int_equal(flash_new(&config, &f.flash, NULL), -EINVAL);
    close(f.fd);
}

static void a_saved_one_goes_on_with_its_contents(void **state)
{
    (void)state;
    struct fixture f, g;
    struct record saved, loaded;
    start(&f);
    start(&g);
    put(&f, 9, 0x10);
    put(&f, 9, 'x');
    put(&f, 10, 0x10); /* a byte is due */
    record_save(&saved, flash_device.state_version);
    flash_device.state(f.flash, &saved);
    record_load(&loaded, saved.bytes, saved.size, saved.version);
    flash_device.state(g.flash, &loaded);
    assert_true(record_ended(&loaded));
    assert_int_equal(g.shown[0], READY);
    put(&g, 10, 'y');
    put(&g, 0, 0xff);
    assert_memory_equal(g.shown + 9, "xy", 2);
    assert_int_equal(in_file(&g, 10), 'y');
    /* Bounds of what is in it: where the buffer goes is the last word before the contents. */
    le32_write(saved.bytes + saved.size - SIZE - 12, SIZE - 1);
    le32_write(saved.bytes + saved.size - SIZE - 8, 200);
    record_load(&loaded, saved.bytes, saved.size, saved.version);
    flash_device.state(g.flash, &loaded);
    assert_false(record_ended(&loaded));
    flash_flush(g.flash); /* nothing of it reaches the file */
    assert_int_equal(in_file(&g, 10), 'y');
    record_free(&saved);
    stop(&f);
    stop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(firmware_knows_it_for_a_flash),
        cmocka_unit_test(a_block_is_erased_and_bytes_are_programmed),
        cmocka_unit_test(a_buffer_is_programmed_at_once),
        cmocka_unit_test(broken_sequences_show_in_the_status),
        cmocka_unit_test(a_driver_finds_its_geometry),
        cmocka_unit_test(the_file_has_it_all_in_the_end),
        cmocka_unit_test(writes_that_fail_are_told),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(a_saved_one_goes_on_with_its_contents),
    };
    return cmocka_run_group_tests_name("flash", tests, NULL, NULL);
}
