#include "disk/crypt.h"

#include "base/bytes.h"
#include "base/openssl.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

/*
 * OpenSSL's contexts belong to one thread at a time, and to set up a key costs more than a sector.
 * So there is a stock of keyed contexts, as many as there were threads at once.
 *
 * The library context is our own: the default one reads a configuration file when it is first
 * used, and that may be where no file can be opened.
 */
enum { SPARE_MAX = 64 };

struct stock {
    EVP_CIPHER_CTX *first; /* copied, never used */
    EVP_CIPHER_CTX *spare[SPARE_MAX];
    unsigned count;
};

struct cipher {
    OSSL_LIB_CTX *library;
    EVP_CIPHER *algorithm;
    pthread_mutex_t lock;
    struct stock stocks[2]; /* decrypt, encrypt */
};

static EVP_CIPHER_CTX *keyed(const struct cipher *cipher, const uint8_t *key, int encrypt)
{
    EVP_CIPHER_CTX *context = sym_EVP_CIPHER_CTX_new();
    if (context &&
        sym_EVP_CipherInit_ex2(context, cipher->algorithm, key, NULL, encrypt, NULL) == 1 &&
        sym_EVP_CIPHER_CTX_set_padding(context, 0) == 1)
        return context;
    sym_EVP_CIPHER_CTX_free(context);
    return NULL;
}

int cipher_new(const uint8_t *key, size_t key_size, struct cipher **ret_cipher)
{
    if (key_size != 32 && key_size != 64)
        return -EINVAL;
    int r = crypto_load(NULL);
    if (r < 0)
        return r;
    sym_OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
    struct cipher *cipher = calloc(1, sizeof *cipher);
    if (!cipher)
        return -ENOMEM;
    pthread_mutex_init(&cipher->lock, NULL);
    cipher->library = sym_OSSL_LIB_CTX_new();
    if (cipher->library)
        cipher->algorithm = sym_EVP_CIPHER_fetch(
            cipher->library, key_size == 64 ? "AES-256-XTS" : "AES-128-XTS", "provider=default");
    r = cipher->algorithm ? 0 : -ENOMEM;
    for (int encrypt = 0; r >= 0 && encrypt < 2; encrypt++) {
        cipher->stocks[encrypt].first = keyed(cipher, key, encrypt);
        if (!cipher->stocks[encrypt].first)
            r = -EINVAL; /* two equal halves: FIPS 140-2 IG A.9 forbids them */
    }
    if (r < 0) {
        cipher_free(cipher);
        return r;
    }
    *ret_cipher = cipher;
    return 0;
}

/* OpenSSL wipes the key schedules. */
void cipher_free(struct cipher *cipher)
{
    if (!cipher)
        return;
    for (int encrypt = 0; encrypt < 2; encrypt++) {
        struct stock *stock = &cipher->stocks[encrypt];
        sym_EVP_CIPHER_CTX_free(stock->first);
        while (stock->count)
            sym_EVP_CIPHER_CTX_free(stock->spare[--stock->count]);
    }
    sym_EVP_CIPHER_free(cipher->algorithm);
    sym_OSSL_LIB_CTX_free(cipher->library);
    pthread_mutex_destroy(&cipher->lock);
    free(cipher);
}

static EVP_CIPHER_CTX *take(struct cipher *cipher, struct stock *stock)
{
    pthread_mutex_lock(&cipher->lock);
    EVP_CIPHER_CTX *context =
        stock->count ? stock->spare[--stock->count] : sym_EVP_CIPHER_CTX_new();
    bool fresh = context && !sym_EVP_CIPHER_CTX_get0_cipher(context);
    if (fresh && sym_EVP_CIPHER_CTX_copy(context, stock->first) != 1) {
        sym_EVP_CIPHER_CTX_free(context);
        context = NULL;
    }
    pthread_mutex_unlock(&cipher->lock);
    return context;
}

static void give(struct cipher *cipher, struct stock *stock, EVP_CIPHER_CTX *context)
{
    pthread_mutex_lock(&cipher->lock);
    if (stock->count < SPARE_MAX) {
        stock->spare[stock->count++] = context;
        context = NULL;
    }
    pthread_mutex_unlock(&cipher->lock);
    sym_EVP_CIPHER_CTX_free(context);
}

int cipher_run(struct cipher *cipher, bool encrypt, uint64_t tweak, uint32_t sector_size,
               uint8_t *bytes, size_t length)
{
    struct stock *stock = &cipher->stocks[encrypt];
    EVP_CIPHER_CTX *context = take(cipher, stock);
    if (!context)
        return -ENOMEM;
    int r = 0, done;
    for (size_t at = 0; r >= 0 && at < length; at += sector_size) {
        uint8_t iv[16] = {0};
        le64_write(iv, tweak);
        tweak += sector_size / CRYPT_UNIT;
        if (sym_EVP_CipherInit_ex2(context, NULL, NULL, iv, -1, NULL) != 1 ||
            sym_EVP_CipherUpdate(context, bytes + at, &done, bytes + at, (int)sector_size) != 1 ||
            done != (int)sector_size)
            r = -EIO;
    }
    give(cipher, stock, context);
    return r;
}
