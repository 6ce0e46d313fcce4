#include "image/digest.h"

#include "base/openssl.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>

static void own_context(EVP_MD_CTX **context)
{
    sym_EVP_MD_CTX_free(*context);
}

static int finish(EVP_MD_CTX *context, char *ret_text)
{
    uint8_t bytes[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    if (sym_EVP_DigestFinal_ex(context, bytes, &length) != 1 || 2 * length + 1 != DIGEST_TEXT_SIZE)
        return -EIO;
    for (unsigned i = 0; i < length; i++)
        snprintf(ret_text + 2 * i, 3, "%02x", bytes[i]);
    return 0;
}

int digest_bytes(const void *bytes, size_t size, char ret_text[DIGEST_TEXT_SIZE])
{
    int r = crypto_load(NULL);
    if (r < 0)
        return r;
    _cleanup_(own_context)
    EVP_MD_CTX *context = sym_EVP_MD_CTX_new();
    if (!context || sym_EVP_DigestInit_ex(context, sym_EVP_sha256(), NULL) != 1 ||
        sym_EVP_DigestUpdate(context, bytes, size) != 1)
        return -EIO;
    return finish(context, ret_text);
}

int digest_file(const char *path, char ret_text[DIGEST_TEXT_SIZE], struct err *err)
{
    char buffer[65536];
    int r = crypto_load(err);
    if (r < 0)
        return r;
    _cleanup_(own_context)
    EVP_MD_CTX *context = sym_EVP_MD_CTX_new();
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "'%s'", path);
    if (!context || sym_EVP_DigestInit_ex(context, sym_EVP_sha256(), NULL) != 1)
        return err_set(err, -EIO, "OpenSSL offers no SHA-256");
    for (;;) {
        ssize_t n = read(fd, buffer, sizeof buffer);
        if (n < 0)
            return err_errno(err, errno, "'%s'", path);
        if (n == 0)
            break;
        if (sym_EVP_DigestUpdate(context, buffer, (size_t)n) != 1)
            return err_set(err, -EIO, "'%s': SHA-256 failed", path);
    }
    return finish(context, ret_text) < 0 ? err_set(err, -EIO, "SHA-256 failed") : 0;
}
