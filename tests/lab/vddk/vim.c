/* Copyright (c) 2026 the holdfast.backup authors
 * SPDX-License-Identifier: GPL-3.0-or-later */

#define _GNU_SOURCE
#include "vim.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int read_conf(Lines *conf)
{
    Dl_info self;
    char path[4096];
    if (dladdr((void *)vim_ask, &self) == 0)
        return -1;
    const char *slash = strrchr(self.dli_fname, '/');
    snprintf(path, sizeof path, "%.*slab.conf", slash == NULL ? 0 : (int)(slash - self.dli_fname) + 1, self.dli_fname);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return -1;
    conf->length = fread(conf->text, 1, sizeof conf->text - 1, file);
    conf->text[conf->length] = '\0';
    fclose(file);
    return 0;
}

static int send_all(int socket, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(socket, data, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return -1;
        data += sent;
        length -= (size_t)sent;
    }
    return 0;
}

static int post(const char *control, const char *verb, const Lines *question, Lines *answer)
{
    char host[64], head[256], reply[sizeof answer->text];
    int port;
    if (sscanf(control, "%63[^:]:%d", host, &port) != 2)
        return -1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (inet_aton(host, &address.sin_addr) == 0 || connection < 0)
        return -1;
    int length = snprintf(head, sizeof head, "POST /control/vddk/%s HTTP/1.0\r\nHost: %s\r\nContent-Length: %zu\r\n\r\n", verb,
                          control, question->length);
    size_t received = 0;
    ssize_t more = -1;
    if (connect(connection, (struct sockaddr *)&address, sizeof address) == 0 &&
        send_all(connection, head, (size_t)length) == 0 && send_all(connection, question->text, question->length) == 0)
        while ((more = recv(connection, reply + received, sizeof reply - 1 - received, 0)) > 0)
            received += (size_t)more;
    close(connection);
    reply[received] = '\0';
    const char *body = strstr(reply, "\r\n\r\n");
    if (more < 0 || body == NULL || strstr(reply, " 200 ") == NULL)
        return -1;
    answer->length = strlen(body + 4);
    memcpy(answer->text, body + 4, answer->length + 1);
    return 0;
}

static void record(const char *path, const char *verb, const Lines *question)
{
    FILE *file = fopen(path, "a");
    if (file == NULL)
        return;
    fprintf(file, "verb=%s\n%s\n", verb, question->text);
    fclose(file);
}

EXPORT int vim_ask(const char *verb, const Lines *question, Lines *answer)
{
    if (read_conf(answer) < 0)
        return -1;
    char *control = lines_get(answer, "control", 0);
    if (control == NULL) {
        char *report = lines_get(answer, "report", 0);
        if (report != NULL)
            record(report, verb, question);
        free(report);
        return 0;
    }
    int result = post(control, verb, question, answer);
    free(control);
    return result;
}

EXPORT int vim_has_lab(void)
{
    Lines conf;
    char *control = read_conf(&conf) < 0 ? NULL : lines_get(&conf, "control", 0);
    free(control);
    return control != NULL;
}
