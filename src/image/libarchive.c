#include "image/libarchive.h"

#include "base/bytes.h"

ARCHIVE_SYMBOLS(LIBRARY_DEFINE)

static const struct library_symbol symbols[] = {ARCHIVE_SYMBOLS(LIBRARY_ROW)};

static struct library archive_library = {.file = "libarchive.so.13",
                                         .symbols = symbols,
                                         .count = ARRAY_LEN(symbols),
                                         .lock = PTHREAD_MUTEX_INITIALIZER};

int archive_load(struct err *err)
{
    return library_load(&archive_library, err);
}
