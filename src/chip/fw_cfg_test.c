#include "chip/fw_cfg.h"

#include "base/bytes.h"
#include "base/record.h"
#include "chip/chip_test.h"

#include <errno.h>

enum { MEMORY = 16384, BLOCK = 0x100, TARGET = 0x1000, READ = 2, SKIP = 4, SELECT = 8, WRITE = 16 };

struct fixture {
    struct fw_cfg *fw_cfg;
    uint8_t memory[MEMORY];
    uint16_t prepared;
    uint16_t file;
};

static int memory_read(void *opaque, uint64_t gpa, void *to, uint64_t size)
{
    struct fixture *f = opaque;
    if (!range_fits(gpa, size, MEMORY))
        return -EFAULT;
    memcpy(to, f->memory + gpa, size);
    return 0;
}

static int memory_write(void *opaque, uint64_t gpa, const void *from, uint64_t size)
{
    struct fixture *f = opaque;
    if (!range_fits(gpa, size, MEMORY))
        return -EFAULT;
    memcpy(f->memory + gpa, from, size);
    return 0;
}

static void prepare(void *opaque, uint16_t item)
{
    struct fixture *f = opaque;
    f->prepared = item;
    fw_cfg_replace(f->fw_cfg, item, "ABCDEFGH");
}

static void start(struct fixture *f)
{
    memset(f, 0xee, sizeof *f);
    f->prepared = 0;
    f->fw_cfg = fw_cfg_new(&(struct fw_cfg_config){
        .read = memory_read, .write = memory_write, .prepare = prepare, .opaque = f});
    assert_non_null(f->fw_cfg);
    assert_int_equal(fw_cfg_add(f->fw_cfg, FW_CFG_CPUS, "\3", 2, NULL), 0);
    int r = fw_cfg_add_file(f->fw_cfg, "etc/letters", "abcdefgh", 8, NULL);
    assert_true(r >= FW_CFG_FILE_FIRST);
    f->file = (uint16_t)r;
}

static void choose(struct fixture *f, uint16_t item)
{
    fw_cfg_ops.write(f->fw_cfg, 0, 2, item);
}

static void take(struct fixture *f, uint8_t *to, size_t size)
{
    for (size_t i = 0; i < size; i++)
        to[i] = in8(&fw_cfg_ops, f->fw_cfg, 1);
}

/* What the guest does: the block at BLOCK, its address into the register, high half first. */
static uint32_t dma(struct fixture *f, uint32_t control, uint32_t length, uint64_t to)
{
    be32_write(f->memory + BLOCK, control);
    be32_write(f->memory + BLOCK + 4, length);
    be64_write(f->memory + BLOCK + 8, to);
    fw_cfg_dma_ops.write(f->fw_cfg, 0, 4, 0);
    fw_cfg_dma_ops.write(f->fw_cfg, 4, 4, __builtin_bswap32(BLOCK));
    return be32_read(f->memory + BLOCK);
}

static void firmware_finds_it_and_reads_items(void **state)
{
    (void)state;
    struct fixture f;
    uint8_t bytes[8];
    start(&f);
    take(&f, bytes, 5); /* the signature is what is selected after a reset */
    assert_memory_equal(bytes, "QEMU\0", 5);
    choose(&f, FW_CFG_ID);
    take(&f, bytes, 4);
    assert_int_equal(le32_read(bytes), 3);
    choose(&f, FW_CFG_CPUS);
    take(&f, bytes, 4);
    assert_int_equal(le32_read(bytes), 3); /* zeros behind its end */
    choose(&f, 0x7777);
    take(&f, bytes, 1);
    assert_int_equal(bytes[0], 0);
    assert_int_equal(in8(&fw_cfg_ops, f.fw_cfg, 0), 0xff); /* the selector is not read */
    fw_cfg_ops.write(f.fw_cfg, 0, 1, FW_CFG_ID);           /* nor written by halves */
    take(&f, bytes, 1);
    assert_int_equal(bytes[0], 0);
    fw_cfg_free(f.fw_cfg);
}

static void the_directory_names_files_that_are_made_when_wanted(void **state)
{
    (void)state;
    struct fixture f;
    uint8_t bytes[68];
    start(&f);
    choose(&f, FW_CFG_DIRECTORY);
    take(&f, bytes, sizeof bytes);
    assert_int_equal(be32_read(bytes), 1);
    assert_int_equal(be32_read(bytes + 4), 8);
    assert_int_equal(be16_read(bytes + 8), f.file);
    assert_string_equal((char *)bytes + 12, "etc/letters");
    assert_int_equal(f.prepared, 0);
    choose(&f, f.file);
    assert_int_equal(f.prepared, f.file);
    take(&f, bytes, 9);
    assert_memory_equal(bytes, "ABCDEFGH\0", 9);
    fw_cfg_free(f.fw_cfg);
}

static void memory_is_written_to_directly(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    assert_int_equal((uint32_t)fw_cfg_dma_ops.read(f.fw_cfg, 0, 4), __builtin_bswap32(0x51454d55));
    assert_int_equal((uint32_t)fw_cfg_dma_ops.read(f.fw_cfg, 4, 4), __builtin_bswap32(0x20434647));
    assert_int_equal(dma(&f, (uint32_t)f.file << 16 | SELECT | READ, 5, TARGET), 0);
    assert_memory_equal(f.memory + TARGET, "ABCDE\xee", 6);
    assert_int_equal(dma(&f, SKIP, 1, 0), 0);
    assert_int_equal(dma(&f, READ, 4, TARGET), 0);
    assert_memory_equal(f.memory + TARGET, "GH\0\0E", 5);
    fw_cfg_free(f.fw_cfg);
}

static void what_makes_no_sense_is_an_error_and_no_work(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    dma(&f, (uint32_t)f.file << 16 | SELECT, 0, 0);
    assert_int_equal(dma(&f, READ, 8, MEMORY - 4), 1);
    dma(&f, (uint32_t)f.file << 16 | SELECT, 0, 0);
    assert_int_equal(dma(&f, READ, UINT32_MAX, TARGET), 1); /* four GiB of zeros */
    assert_int_equal(f.memory[TARGET], 0xee);
    assert_int_equal(dma(&f, WRITE, 4, TARGET), 1);
    dma(&f, SKIP, UINT32_MAX, 0);
    assert_int_equal(in8(&fw_cfg_ops, f.fw_cfg, 1), 0);
    /* A block outside of memory is not read, half an address does nothing. */
    fw_cfg_dma_ops.write(f.fw_cfg, 0, 4, UINT32_MAX);
    fw_cfg_dma_ops.write(f.fw_cfg, 4, 4, UINT32_MAX);
    fw_cfg_dma_ops.write(f.fw_cfg, 4, 2, 0x100);
    fw_cfg_dma_ops.write(f.fw_cfg, 2, 4, 0x100);
    fw_cfg_free(f.fw_cfg);
}

static void names_and_numbers_are_bounded(void **state)
{
    (void)state;
    struct fixture f;
    struct err err;
    start(&f);
    char name[FW_CFG_NAME_SIZE + 1];
    memset(name, 'n', FW_CFG_NAME_SIZE);
    name[FW_CFG_NAME_SIZE] = '\0';
    assert_int_equal(fw_cfg_add_file(f.fw_cfg, name, "", 0, &err), -EINVAL);
    for (int i = 1; i < FW_CFG_FILES_MAX; i++)
        assert_true(fw_cfg_add_file(f.fw_cfg, "more", "x", 1, &err) > 0);
    assert_int_equal(fw_cfg_add_file(f.fw_cfg, "too many", "x", 1, &err), -ENOSPC);
    fw_cfg_free(f.fw_cfg);
}

static void a_saved_one_goes_on_in_the_middle(void **state)
{
    (void)state;
    struct fixture f, g;
    struct record saved, loaded;
    uint8_t bytes[2];
    start(&f);
    start(&g);
    choose(&f, f.file);
    take(&f, bytes, 2);
    record_save(&saved, fw_cfg_device.state_version);
    fw_cfg_device.state(f.fw_cfg, &saved);
    record_load(&loaded, saved.bytes, saved.size, saved.version);
    fw_cfg_device.state(g.fw_cfg, &loaded);
    assert_true(record_ended(&loaded));
    take(&g, bytes, 2);
    assert_memory_equal(bytes, "CD", 2); /* as the other machine had prepared it */
    fw_cfg_reset(g.fw_cfg);
    take(&g, bytes, 1);
    assert_int_equal(bytes[0], 'Q');
    record_free(&saved);
    fw_cfg_free(f.fw_cfg);
    fw_cfg_free(g.fw_cfg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(firmware_finds_it_and_reads_items),
        cmocka_unit_test(the_directory_names_files_that_are_made_when_wanted),
        cmocka_unit_test(memory_is_written_to_directly),
        cmocka_unit_test(what_makes_no_sense_is_an_error_and_no_work),
        cmocka_unit_test(names_and_numbers_are_bounded),
        cmocka_unit_test(a_saved_one_goes_on_in_the_middle),
    };
    return cmocka_run_group_tests_name("fw_cfg", tests, NULL, NULL);
}
