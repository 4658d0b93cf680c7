/* Copyright (c) 2026 the holdfast.backup authors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * How the stand-in asks the lab. vim.c is a library of its own that InitEx loads by its bare name, as the
 * real library does with its parts: a process started without the kit's lib64 in LD_LIBRARY_PATH fails there.
 */

#ifndef VIM_H
#define VIM_H

#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

/* "key=value" lines: what the lab answers and what it is told. */
typedef struct {
    char text[32768];
    size_t length;
} Lines;

void lines_add(Lines *lines, const char *key, const char *value);
void lines_add_number(Lines *lines, const char *key, unsigned long long value);

/* The value of the n-th line with this key, copied; NULL when there is none. The caller frees it. */
char *lines_get(const Lines *lines, const char *key, int n);
long long lines_number(const Lines *lines, const char *key, long long otherwise);

/* Asks the lab named by `control=host:port` in the file lab.conf beside this library. Without that line
 * lab.conf itself is the answer to everything, and questions are appended to the file that its line
 * `report=path` names. 0, or -1 when the lab cannot be reached. */
int vim_ask(const char *verb, const Lines *question, Lines *answer);

/* Is there a lab that counts the faults, or is this lab.conf alone? */
int vim_has_lab(void);

#endif
