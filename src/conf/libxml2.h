/*
 * libxml2.h: what is used here of libxml2, which is loaded when a definition is XML
 * (base/library.h): it brings ICU and the C++ runtime along. Whoever calls sym_NAME has had an
 * xml_load() that went well.
 */
#pragma once

#include "base/library.h"

#include <libxml/parser.h>
#include <libxml/parserInternals.h>
#include <libxml/tree.h>

_Static_assert(LIBXML_VERSION / 10000 == 2, "the interface of libxml2.so.2");

#define XML_SYMBOLS(X)                                                                             \
    X(xmlCheckUTF8)                                                                                \
    X(xmlCtxtGetLastError)                                                                         \
    X(xmlCtxtReadMemory)                                                                           \
    X(xmlFreeDoc)                                                                                  \
    X(xmlFreeParserCtxt)                                                                           \
    X(xmlGetLineNo)                                                                                \
    X(xmlNewParserCtxt)                                                                            \
    X(xmlStopParser)

XML_SYMBOLS(LIBRARY_EXTERN)

/* -ENOENT with the reason: it is not there. */
int xml_load(struct err *err);
