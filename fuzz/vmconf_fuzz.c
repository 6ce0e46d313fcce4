// needs: base conf
/*
 * A guest's definition as people write it. The first byte chooses the reader; what is accepted must
 * survive being written as JSON and read back.
 */
#include "conf/guest.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void goes_round(const struct guest_conf *conf)
{
    struct guest_conf back;
    guest_conf_init(&back);
    char *text = guest_conf_write_json(conf);
    if (text) { /* NULL where a string is no UTF-8, which JSON cannot hold */
        int r = guest_conf_read_json(&back, text, strlen(text), "again", NULL);
        assert(r == 0);
        char *again = guest_conf_write_json(&back);
        assert(again && !strcmp(text, again));
        free(again);
    }
    free(text);
    guest_conf_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const char *text = (const char *)data + 1;
    struct err err = {0};
    struct guest_conf conf;
    guest_conf_init(&conf);
    int r = data[0] & 1 ? guest_conf_read_json(&conf, text, size - 1, "fuzz", &err)
                        : guest_conf_read_vmconf(&conf, text, size - 1, "fuzz", &err);
    if (r >= 0)
        goes_round(&conf);
    else
        assert(*err.text);
    guest_conf_free(&conf);
    return 0;
}
