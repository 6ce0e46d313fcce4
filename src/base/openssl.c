#include "base/openssl.h"

#include "base/bytes.h"

CRYPTO_SYMBOLS(LIBRARY_DEFINE)

static const struct library_symbol symbols[] = {CRYPTO_SYMBOLS(LIBRARY_ROW)};

static struct library crypto_library = {.file = "libcrypto.so.3",
                                        .symbols = symbols,
                                        .count = ARRAY_LEN(symbols),
                                        .lock = PTHREAD_MUTEX_INITIALIZER};

int crypto_load(struct err *err)
{
    return library_load(&crypto_library, err);
}
