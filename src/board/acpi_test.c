/*
 * The tables are walked as a guest would find them, and ACPICA's own disassembler and compiler
 * (iasl) is the judge of the AML: it must disassemble without a warning, and what it prints must
 * compile again without an error.
 */
#include "board/acpi_script.h"

#include "base/bytes.h"
#include "base/own.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const struct acpi_config config = {
    .cpus = 64,
    .pm1_event = 0x600,
    .pm1_control = 0x604,
    .pm_timer = 0x608,
    .sci = 9,
    .gpe0 = 0x60c,
    .watchdog = 0x620,
    .generation = "0123456789abcde",
    .s5_type = 5,
    .reset_port = 0xcf9,
    .reset_value = 6,
    .panic_port = 0x505,
    .rtc_century = 0x32,
    .ioapic = 0xfec00000,
    .local_apic = 0xfee00000,
    .ecam = 0xb0000000,
    .ecam_size = MIB(256),
    .window32 = 0xc0000000,
    .window32_size = 0x3ec00000,
    .window64 = GIB(8),
    .window64_size = GIB(16),
    .pci_gsi = {16, 17, 18, 19},
};

static struct mem *tables(uint64_t *ret_rsdp)
{
    struct mem *mem = mem_new();
    assert_int_equal(mem_add(mem, 0xc0000, 0x40000, false, NULL), 0);
    assert_int_equal(acpi_build(mem, &config, ret_rsdp, NULL), 0);
    return mem;
}

static unsigned sum(const uint8_t *bytes, size_t size)
{
    uint8_t total = 0;
    for (size_t i = 0; i < size; i++)
        total = (uint8_t)(total + bytes[i]);
    return total;
}

/* Checks length and checksum and returns the table; `from` is an address in the guest. */
static const uint8_t *table_at(struct mem *mem, uint64_t from, const char *signature)
{
    const uint8_t *header = mem_at(mem, from, 36, false);
    assert_non_null(header);
    assert_memory_equal(header, signature, 4);
    const uint8_t *table = mem_at(mem, from, le32_read(header + 4), false);
    assert_non_null(table);
    assert_int_equal(sum(table, le32_read(header + 4)), 0);
    return table;
}

static const uint8_t *table_find(struct mem *mem, uint64_t rsdp, const char *signature)
{
    const uint8_t *root = mem_at(mem, rsdp, 36, false);
    const uint8_t *xsdt = table_at(mem, le64_read(root + 24), "XSDT");
    for (uint32_t at = 36; at < le32_read(xsdt + 4); at += 8)
        if (memcmp(mem_at(mem, le64_read(xsdt + at), 4, false), signature, 4) == 0)
            return table_at(mem, le64_read(xsdt + at), signature);
    fail_msg("no table %s", signature);
    return NULL;
}

static void root_pointer_is_found_by_its_signature(void **state)
{
    (void)state;
    uint64_t rsdp;
    struct mem *mem = tables(&rsdp);
    uint64_t found = 0;
    for (uint64_t at = 0xe0000; at < 0x100000 && !found; at += 16)
        if (memcmp(mem_at(mem, at, 8, false), "RSD PTR ", 8) == 0)
            found = at;
    assert_int_equal(found, rsdp);
    const uint8_t *root = mem_at(mem, rsdp, 36, false);
    assert_int_equal(sum(root, 20), 0);
    assert_int_equal(sum(root, 36), 0);
    mem_free(mem);
}

static void madt_lists_every_processor(void **state)
{
    (void)state;
    uint64_t rsdp;
    struct mem *mem = tables(&rsdp);
    const uint8_t *madt = table_find(mem, rsdp, "APIC");
    unsigned processors = 0, io_apics = 0, timer = 0, sci = 0;
    uint32_t at = 44, size = le32_read(madt + 4);
    while (at < size) {
        const uint8_t *entry = madt + at;
        assert_true(entry[1] >= 2 && at + entry[1] <= size);
        if (entry[0] == 0)
            assert_int_equal(entry[3], processors++);
        io_apics += entry[0] == 1;
        timer += entry[0] == 2 && entry[3] == 0 && le32_read(entry + 4) == 2;
        sci += entry[0] == 2 && entry[3] == 9 && le16_read(entry + 8) == 0xd;
        at += entry[1];
    }
    assert_int_equal(processors, config.cpus);
    assert_int_equal(io_apics, 1);
    assert_int_equal(timer, 1);
    assert_int_equal(sci, 1);
    mem_free(mem);
}

static void fadt_offers_reset_and_soft_off(void **state)
{
    (void)state;
    uint64_t rsdp;
    struct mem *mem = tables(&rsdp);
    const uint8_t *fadt = table_find(mem, rsdp, "FACP");
    assert_int_equal(le64_read(fadt + 116 + 4), 0xcf9);
    assert_true(le32_read(fadt + 112) & 1 << 10);
    assert_false(le32_read(fadt + 112) & 1 << 4); /* fixed power button */
    assert_int_equal(le32_read(fadt + 56), 0x600);
    assert_int_equal(le32_read(fadt + 80), 0x60c); /* GPE0, 16 events */
    assert_int_equal(fadt[92], 4);
    assert_int_equal(le64_read(fadt + 220 + 4), 0x60c);
    assert_int_equal(le32_read(fadt + 36) % 64, 0);
    table_at(mem, le64_read(fadt + 140), "DSDT");
    mem_free(mem);
}

static void generation_has_a_page_of_its_own(void **state)
{
    (void)state;
    uint64_t rsdp;
    struct mem *mem = tables(&rsdp);
    const uint8_t *page = mem_at(mem, ACPI_GENERATION, 4096, false);
    assert_int_equal(ACPI_GENERATION % 4096, 0);
    assert_memory_equal(page, config.generation, 16);
    for (unsigned i = 16; i < 4096; i++)
        assert_int_equal(page[i], 0);
    mem_free(mem);
}

static void without_a_watchdog_there_is_no_table_of_it(void **state)
{
    (void)state;
    struct acpi_config without = config;
    without.watchdog = 0;
    uint64_t rsdp;
    struct mem *mem = tables(&rsdp);
    const uint8_t *wdat = table_find(mem, rsdp, "WDAT");
    assert_int_equal(le32_read(wdat + 4), 36 + 32 + 24 * le32_read(wdat + 64));
    const uint8_t *root = mem_at(mem, rsdp, 36, false);
    uint32_t with = le32_read(table_at(mem, le64_read(root + 24), "XSDT") + 4);
    assert_int_equal(acpi_build(mem, &without, &rsdp, NULL), 0);
    root = mem_at(mem, rsdp, 36, false);
    assert_int_equal(le32_read(table_at(mem, le64_read(root + 24), "XSDT") + 4), with - 8);
    mem_free(mem);
}

/* Runs `iasl` and returns what it printed; NULL where there is no iasl. */
static char *iasl(const char *folder, const char *arguments)
{
    char command[512];
    snprintf(command, sizeof command, "cd '%s' && iasl %s 2>&1", folder, arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    char *text = calloc(1, 65536);
    size_t n = fread(text, 1, 65535, pipe);
    int status = pclose(pipe);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        free(text);
        return NULL;
    }
    text[n] = 0;
    if (status != 0)
        fail_msg("iasl %s: %s", arguments, text);
    return text;
}

static void file_write(const char *folder, const char *name, const uint8_t *bytes, size_t size)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    _cleanup_fd_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, bytes, size), size);
}

static void iasl_finds_nothing_wrong(void **state)
{
    (void)state;
    uint64_t rsdp;
    struct mem *mem = tables(&rsdp);
    char folder[] = "/tmp/lodge-acpi-XXXXXX";
    assert_non_null(mkdtemp(folder));
    const uint8_t *fadt = table_find(mem, rsdp, "FACP");
    const uint8_t *list[] = {fadt, table_find(mem, rsdp, "APIC"), table_find(mem, rsdp, "MCFG"),
                             table_find(mem, rsdp, "WDAT"),
                             table_at(mem, le64_read(fadt + 140), "DSDT")};
    const char *names[] = {"facp.dat", "apic.dat", "mcfg.dat", "wdat.dat", "dsdt.dat"};
    bool have_iasl = true;
    for (size_t i = 0; i < ARRAY_LEN(list) && have_iasl; i++) {
        file_write(folder, names[i], list[i], le32_read(list[i] + 4));
        char arguments[64];
        snprintf(arguments, sizeof arguments, "-d %s", names[i]);
        _cleanup_free_ char *said = iasl(folder, arguments);
        have_iasl = said;
        if (said && (strstr(said, "Warning") || strstr(said, "Error") || strstr(said, "nvalid")))
            fail_msg("%s", said);
    }
    if (have_iasl) {
        _cleanup_free_ char *said = iasl(folder, "-f -p again dsdt.dsl");
        if (!strstr(said, " 0 Errors") || !strstr(said, " 0 Warnings"))
            fail_msg("%s", said);
    }
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_int_equal(system(command), 0);
    mem_free(mem);
    if (!have_iasl)
        skip();
}

/* What firmware makes of the script is what acpi_build() makes by itself, wherever it is put. */
static void a_script_says_how_to_place_them(void **state)
{
    (void)state;
    static const char file[] = ACPI_SCRIPT_FILE;
    struct acpi_image image;
    uint8_t script[ACPI_SCRIPT_MAX];
    acpi_image(&config, 0, &image);
    size_t size = acpi_script(&image, script);
    assert_int_equal(size % ACPI_SCRIPT_ENTRY, 0);
    assert_int_equal(le32_read(script), 1); /* allocate it, anywhere */
    assert_string_equal((char *)script + 4, file);
    for (const uint8_t *at = script + ACPI_SCRIPT_ENTRY; at < script + size;
         at += ACPI_SCRIPT_ENTRY) {
        assert_string_equal((const char *)at + 4, file);
        if (le32_read(at) == 2) { /* add where it lies */
            assert_string_equal((const char *)at + 60, file);
            uint8_t *field = image.bytes + le32_read(at + 116);
            uint64_t to = at[120] == 8 ? le64_read(field) : le32_read(field);
            assert_true(at[120] == 8 || at[120] == 4);
            assert_true(to < image.size);
            if (at[120] == 8)
                le64_write(field, to + ACPI_AREA_START);
            else
                le32_write(field, (uint32_t)to + ACPI_AREA_START);
        } else {
            assert_int_equal(le32_read(at), 3); /* sum up */
            assert_true(range_fits(le32_read(at + 64), le32_read(at + 68), image.size));
            uint8_t *field = image.bytes + le32_read(at + 60);
            assert_int_equal(*field, 0);
            *field = (uint8_t)-sum(image.bytes + le32_read(at + 64), le32_read(at + 68));
        }
    }
    uint64_t rsdp;
    struct mem *mem = tables(&rsdp);
    assert_int_equal(rsdp, ACPI_AREA_START);
    assert_memory_equal(mem_at(mem, rsdp, image.size, false), image.bytes, image.size);
    mem_free(mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(root_pointer_is_found_by_its_signature),
        cmocka_unit_test(madt_lists_every_processor),
        cmocka_unit_test(fadt_offers_reset_and_soft_off),
        cmocka_unit_test(generation_has_a_page_of_its_own),
        cmocka_unit_test(without_a_watchdog_there_is_no_table_of_it),
        cmocka_unit_test(a_script_says_how_to_place_them),
        cmocka_unit_test(iasl_finds_nothing_wrong),
    };
    return cmocka_run_group_tests_name("acpi", tests, NULL, NULL);
}
