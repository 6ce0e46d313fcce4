/*
 * openssl.h: what is used here of libcrypto, which is loaded when it is needed (library.h): for
 * encrypted disks and for digests. Whoever calls sym_NAME has had a crypto_load() that went well.
 */
#pragma once

#include "base/library.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

_Static_assert(OPENSSL_VERSION_MAJOR == 3, "the version in the library's file name");

#define CRYPTO_SYMBOLS(X)                                                                          \
    X(OPENSSL_init_crypto)                                                                         \
    X(OSSL_LIB_CTX_new)                                                                            \
    X(OSSL_LIB_CTX_free)                                                                           \
    X(EVP_CIPHER_fetch)                                                                            \
    X(EVP_CIPHER_free)                                                                             \
    X(EVP_CIPHER_CTX_new)                                                                          \
    X(EVP_CIPHER_CTX_free)                                                                         \
    X(EVP_CIPHER_CTX_copy)                                                                         \
    X(EVP_CIPHER_CTX_get0_cipher)                                                                  \
    X(EVP_CIPHER_CTX_set_padding)                                                                  \
    X(EVP_CipherInit_ex2)                                                                          \
    X(EVP_CipherUpdate)                                                                            \
    X(EVP_sha1)                                                                                    \
    X(EVP_sha224)                                                                                  \
    X(EVP_sha256)                                                                                  \
    X(EVP_sha384)                                                                                  \
    X(EVP_sha512)                                                                                  \
    X(EVP_Digest)                                                                                  \
    X(EVP_MD_CTX_new)                                                                              \
    X(EVP_MD_CTX_free)                                                                             \
    X(EVP_DigestInit_ex)                                                                           \
    X(EVP_DigestUpdate)                                                                            \
    X(EVP_DigestFinal_ex)                                                                          \
    X(EVP_MD_get_size)                                                                             \
    X(RAND_bytes)                                                                                  \
    X(RAND_priv_bytes)                                                                             \
    X(CRYPTO_memcmp)                                                                               \
    X(EVP_EncodeBlock)                                                                             \
    X(EVP_DecodeBlock)                                                                             \
    X(PKCS5_PBKDF2_HMAC)

CRYPTO_SYMBOLS(LIBRARY_EXTERN)

/* -ENOENT with the reason: it is not there. Under a process's confinement it is too late to load;
 * nothing is opened where it has been loaded before. */
int crypto_load(struct err *err);
