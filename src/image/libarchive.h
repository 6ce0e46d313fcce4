/*
 * libarchive.h: what is used here of libarchive, which is loaded when an image is built or a seed
 * is made (base/library.h): it brings libxml2, ICU and the C++ runtime along. Whoever calls
 * sym_NAME has had an archive_load() that went well.
 */
#pragma once

#include "base/library.h"

#include <archive.h>
#include <archive_entry.h>

_Static_assert(ARCHIVE_VERSION_NUMBER / 1000000 == 3, "the interface of libarchive.so.13");

#define ARCHIVE_SYMBOLS(X)                                                                         \
    X(archive_entry_filetype)                                                                      \
    X(archive_entry_free)                                                                          \
    X(archive_entry_new)                                                                           \
    X(archive_entry_pathname)                                                                      \
    X(archive_entry_set_gid)                                                                       \
    X(archive_entry_set_ino)                                                                       \
    X(archive_entry_set_mode)                                                                      \
    X(archive_entry_set_mtime)                                                                     \
    X(archive_entry_set_nlink)                                                                     \
    X(archive_entry_set_pathname)                                                                  \
    X(archive_entry_set_size)                                                                      \
    X(archive_entry_set_symlink)                                                                   \
    X(archive_entry_set_uid)                                                                       \
    X(archive_entry_size)                                                                          \
    X(archive_error_string)                                                                        \
    X(archive_read_data)                                                                           \
    X(archive_read_free)                                                                           \
    X(archive_read_new)                                                                            \
    X(archive_read_next_header)                                                                    \
    X(archive_read_open_fd)                                                                        \
    X(archive_read_open_memory)                                                                    \
    X(archive_read_support_filter_gzip)                                                            \
    X(archive_read_support_filter_xz)                                                              \
    X(archive_read_support_filter_zstd)                                                            \
    X(archive_read_support_format_raw)                                                             \
    X(archive_read_support_format_tar)                                                             \
    X(archive_write_close)                                                                         \
    X(archive_write_data)                                                                          \
    X(archive_write_free)                                                                          \
    X(archive_write_header)                                                                        \
    X(archive_write_new)                                                                           \
    X(archive_write_open_fd)                                                                       \
    X(archive_write_set_bytes_in_last_block)                                                       \
    X(archive_write_set_format_cpio_newc)                                                          \
    X(archive_write_set_format_iso9660)                                                            \
    X(archive_write_set_format_option)                                                             \
    X(archive_write_set_format_ustar)

ARCHIVE_SYMBOLS(LIBRARY_EXTERN)

/* -ENOENT with the reason: it is not there. */
int archive_load(struct err *err);
