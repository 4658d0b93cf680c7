/* Copyright (c) 2026 the holdfast.backup authors
 * SPDX-License-Identifier: GPL-3.0-or-later */

#define _GNU_SOURCE
#include "vim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void lines_add(Lines *lines, const char *key, const char *value)
{
    if (value == NULL)
        return;
    int written = snprintf(lines->text + lines->length, sizeof lines->text - lines->length, "%s=%s\n", key, value);
    if (written > 0 && lines->length + (size_t)written < sizeof lines->text)
        lines->length += (size_t)written;
}

void lines_add_number(Lines *lines, const char *key, unsigned long long value)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", value);
    lines_add(lines, key, text);
}

char *lines_get(const Lines *lines, const char *key, int n)
{
    size_t length = strlen(key);
    for (const char *line = lines->text; *line != '\0';) {
        const char *end = strchrnul(line, '\n');
        if (strncmp(line, key, length) == 0 && line[length] == '=' && n-- == 0)
            return strndup(line + length + 1, (size_t)(end - line) - length - 1);
        line = *end == '\n' ? end + 1 : end;
    }
    return NULL;
}

long long lines_number(const Lines *lines, const char *key, long long otherwise)
{
    char *text = lines_get(lines, key, 0);
    long long value = text == NULL ? otherwise : atoll(text);
    free(text);
    return value;
}
