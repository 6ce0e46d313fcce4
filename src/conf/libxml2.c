#include "conf/libxml2.h"

#include "base/bytes.h"

XML_SYMBOLS(LIBRARY_DEFINE)

static const struct library_symbol symbols[] = {XML_SYMBOLS(LIBRARY_ROW)};

static struct library xml_library = {.file = "libxml2.so.2",
                                     .symbols = symbols,
                                     .count = ARRAY_LEN(symbols),
                                     .lock = PTHREAD_MUTEX_INITIALIZER};

int xml_load(struct err *err)
{
    return library_load(&xml_library, err);
}
