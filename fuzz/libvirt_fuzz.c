// needs: base conf
// flags: -max_len=8192
// -seed_inputs=../../fuzz/seeds/libvirt/centos,../../fuzz/seeds/libvirt/most,../../fuzz/seeds/libvirt/written
/*
 * A definition as libvirt writes it. What is accepted is written as XML and read back to the same,
 * but for what the notes say is lost.
 */
#include "conf/guest.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void goes_round(const struct guest_conf *conf)
{
    struct guest_conf back;
    struct guest_notes notes = {0}, again = {0};
    char *text = NULL;
    guest_conf_init(&back);
    if (guest_conf_write_libvirt(conf, &text, &notes, NULL) >= 0) {
        int r = guest_conf_read_libvirt(&back, text, strlen(text), "again", &again, NULL);
        assert(r == 0);
        char *one = guest_conf_write_json(conf), *two = guest_conf_write_json(&back);
        assert(one && two && (notes.count > 0 || !strcmp(one, two)));
        free(one);
        free(two);
    }
    free(text);
    guest_notes_free(&notes);
    guest_notes_free(&again);
    guest_conf_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct guest_conf conf;
    struct guest_notes notes = {0};
    guest_conf_init(&conf);
    int r = guest_conf_read_libvirt(&conf, (const char *)data, size, "fuzz", &notes, &err);
    if (r >= 0)
        goes_round(&conf);
    else
        assert(*err.text);
    guest_notes_free(&notes);
    guest_conf_free(&conf);
    return 0;
}
