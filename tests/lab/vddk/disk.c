/* Copyright (c) 2026 the holdfast.backup authors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Connections and disk handles. Who may open what is the lab's decision. */

#define _GNU_SOURCE
#include "standin.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_SERVERS = 64, SERVERS = 8, IDENTITY = 50 };

static char *copy(const char *text)
{
    return text == NULL ? NULL : strdup(text);
}

#ifndef OLD_ABI
EXPORT ConnectParams *VixDiskLib_AllocateConnectParams(void)
{
    ConnectParams *params = calloc(1, sizeof *params);
    params->state = params;
    register_object(params);
    return params;
}

EXPORT void VixDiskLib_FreeConnectParams(ConnectParams *params)
{
    if (params != NULL && !forget_object(params))
        violation(FAIL, "FreeConnectParams of a block that the library did not allocate");
    else
        free(params);
}
#endif

static bool is_empty(const char *text)
{
    return text == NULL || *text == '\0';
}

/* Structures before 6.7 end before the specification. */
static bool is_object(const ConnectParams *params)
{
#ifdef OLD_ABI
    (void)params;
    return false;
#else
    return params->spec_type == SPEC_STORAGE_OBJECT;
#endif
}

static VixError check_params(const ConnectParams *params)
{
    if (!initialised())
        return violation(NOT_INITIALISED, "a call before InitEx or in another process");
    if (params == NULL)
        return NOT_SUPPORTED; /* local disks */
#ifndef OLD_ABI
    if (!known_object((void *)params) || params->state != params)
        return violation(INVALID_ARG, "connection parameters that AllocateConnectParams did not make");
    if (params->spec_type != SPEC_VMX && params->spec_type != SPEC_STORAGE_OBJECT)
        return NOT_SUPPORTED;
    if (is_object(params) && (params->vmx_spec != NULL || is_empty(params->object.id) || is_empty(params->object.datastore)))
        return violation(INVALID_ARG, "a storage object with a VM, or without its ID or its datastore");
#endif
    if (params->server == NULL || params->credential_type != CREDENTIALS_UID || params->uid.username == NULL ||
        params->uid.password == NULL)
        return INVALID_ARG;
    return OK;
}

static void describe(Lines *question, const ConnectParams *params)
{
    lines_add(question, "server", params->server);
    lines_add_number(question, "port", params->port);
    lines_add(question, "thumbprint", params->thumbprint);
    lines_add(question, "username", params->uid.username);
    lines_add(question, "password", params->uid.password);
    lines_add(question, "vm", params->vmx_spec);
    if (is_object(params)) {
        lines_add(question, "fcd", params->object.id);
        lines_add(question, "datastore", params->object.datastore);
        lines_add(question, "fcd_snapshot", params->object.snapshot);
    }
    lines_add_number(question, "pid", (unsigned long long)getpid());
}

static VixError ask(const char *verb, const Lines *question, Lines *answer)
{
    if (ask_lab(verb, question, answer) < 0)
        return FAIL;
    char *reason = lines_get(answer, "reason", 0);
    if (reason != NULL)
        say(warn_function, "VixDiskLib: %s: %s\n", verb, reason);
    free(reason);
    return (VixError)lines_number(answer, "error", OK);
}

static VixError access_call(const char *verb, const ConnectParams *params, const char *identity, Lines *answer)
{
    Lines question = {.length = 0};
    VixError result = check_params(params);
    if (result != OK)
        return result;
    if (identity != NULL && strlen(identity) > IDENTITY)
        return violation(INVALID_ARG, "an identity of more than %d characters", IDENTITY);
    describe(&question, params);
    lines_add(&question, "identity", identity);
    result = fault(verb, 0, 1);
    return result != OK ? result : ask(verb, &question, answer);
}

EXPORT VixError VixDiskLib_PrepareForAccess(const ConnectParams *params, const char *identity)
{
    Lines answer;
    return identity == NULL ? INVALID_ARG : access_call("prepare", params, identity, &answer);
}

EXPORT VixError VixDiskLib_EndAccess(const ConnectParams *params, const char *identity)
{
    Lines answer;
    return identity == NULL ? INVALID_ARG : access_call("end", params, identity, &answer);
}

EXPORT VixError VixDiskLib_Cleanup(const ConnectParams *params, uint32_t *cleaned, uint32_t *remaining)
{
    Lines answer;
    VixError result = access_call("cleanup", params, NULL, &answer);
    if (result == OK && params->vmx_spec != NULL)
        result = violation(INVALID_ARG, "Cleanup with a VM");
    if (result == OK && cleaned != NULL)
        *cleaned = (uint32_t)lines_number(&answer, "cleaned", 0);
    if (result == OK && remaining != NULL)
        *remaining = (uint32_t)lines_number(&answer, "remaining", 0);
    return result;
}

EXPORT VixError VixDiskLib_ConnectEx(const ConnectParams *params, Bool read_only, const char *snapshot, const char *modes,
                                     Connection **result)
{
    Lines question = {.length = 0}, answer;
    VixError error = check_params(params);
    if (error != OK)
        return error;
    if (result == NULL)
        return INVALID_ARG;
    if (!is_object(params) && (params->vmx_spec == NULL || strncmp(params->vmx_spec, "moref=", 6) != 0))
        return INVALID_ARG;
    if (is_object(params) && !is_empty(snapshot))
        return violation(INVALID_ARG, "ConnectEx to a storage object with a snapshot of a VM");
    describe(&question, params);
    error = fault("connect", 0, 1);
    if (error == OK)
        error = ask("connect", &question, &answer);
    if (error != OK)
        return error;
    Connection *connection = calloc(1, sizeof *connection);
    connection->params = (ConnectParams){
        .vmx_spec = copy(params->vmx_spec),
        .server = copy(params->server),
        .thumbprint = copy(params->thumbprint),
        .uid = {copy(params->uid.username), copy(params->uid.password), NULL},
        .port = params->port,
    };
    if (is_object(params)) {
        connection->params.spec_type = SPEC_STORAGE_OBJECT;
        connection->params.object.id = copy(params->object.id);
        connection->params.object.datastore = copy(params->object.datastore);
        connection->params.object.snapshot = copy(params->object.snapshot);
    }
    connection->read_only = read_only != 0;
    connection->snapshot = copy(snapshot);
    connection->modes = copy(modes == NULL ? "file:san:hotadd:nbd" : modes);
    register_object(connection);
    *result = connection;
    return OK;
}

EXPORT VixError VixDiskLib_Disconnect(Connection *connection)
{
    if (!initialised() || !forget_object(connection))
        return violation(INVALID_ARG, "Disconnect of no connection");
    free(connection->params.vmx_spec);
    free(connection->params.server);
    free(connection->params.thumbprint);
    free(connection->params.uid.username);
    free(connection->params.uid.password);
    free(connection->params.object.id);
    free(connection->params.object.datastore);
    free(connection->params.object.snapshot);
    free(connection->snapshot);
    free(connection->modes);
    free(connection);
    return OK;
}

/* The transport that the lab pretends, or the first NBD one asked for; NULL when nothing fits. */
static char *choose_transport(const char *modes, const char *pretended)
{
    char *list = strdup(modes), *rest = list, *mode, *chosen = NULL;
    while (chosen == NULL && (mode = strsep(&rest, ":")) != NULL)
        if (pretended != NULL ? strcmp(mode, pretended) == 0 : strncmp(mode, "nbd", 3) == 0)
            chosen = strdup(mode);
    free(list);
    return chosen;
}

static void map_state(Handle *handle, const char *path)
{
    handle->state_size = 64 + handle->capacity / MIN_CHUNK / 8 + 1;
    int file = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    handle->state = mmap(NULL, handle->state_size, PROT_READ | PROT_WRITE, flags, file, 0);
    if (file >= 0)
        close(file);
}

static bool is_set(const Lines *answer, const char *key, const char *value)
{
    char *text = lines_get(answer, key, 0);
    bool same = text != NULL && strcmp(text, value) == 0;
    free(text);
    return same;
}

static VixError make_handle(Connection *connection, bool read_only, const Lines *answer, Handle **result)
{
    char *flat = lines_get(answer, "flat", 0), *state = lines_get(answer, "state", 0);
    char *pretended = lines_get(answer, "transport", 0);
    char *transport = choose_transport(connection->modes, pretended);
    int file = flat == NULL ? -1 : open(flat, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    free(pretended);
    free(flat);
    if (transport == NULL || file < 0) {
        free(transport);
        free(state);
        if (file >= 0)
            close(file);
        return FILE_ACCESS_ERROR;
    }
    Handle *handle = calloc(1, sizeof *handle);
    handle->id = lines_get(answer, "id", 0);
    handle->connection = connection;
    handle->file = file;
    handle->read_only = read_only;
    handle->capacity = (uint64_t)lines_number(answer, "capacity", 0) / SECTOR;
    handle->transport = transport;
    long long servers = lines_number(answer, "in_flight", SERVERS);
    handle->behaviour = (Behaviour){
        .inline_callbacks = is_set(answer, "callbacks", "inline"),
        .reversed = is_set(answer, "callbacks", "reversed"),
        .servers = servers > MAX_SERVERS ? MAX_SERVERS : (int)servers,
        .latency_us = lines_number(answer, "latency_us", 0),
        .memory = lines_number(answer, "memory", 48 << 20),
        .blocks_delay_us = lines_number(answer, "blocks_delay_us", 0),
    };
    map_state(handle, state);
    free(state);
    io_start(handle);
    register_object(handle);
    *result = handle;
    return OK;
}

static VixError open_disk(Connection *connection, const char *path, bool read_only, Handle **result)
{
    Lines question = {.length = 0}, answer;
    static atomic_uint_least64_t attempts;
    VixError error = fault("open", attempts++, 1);
    if (error != OK)
        return error;
    describe(&question, &connection->params);
    lines_add(&question, "snapshot", connection->snapshot);
    lines_add(&question, "path", path);
    lines_add_number(&question, "write", !read_only);
    error = ask("open", &question, &answer);
    return error != OK ? error : make_handle(connection, read_only, &answer, result);
}

EXPORT VixError VixDiskLib_Open(Connection *connection, const char *path, uint32_t flags, Handle **result)
{
    if (!initialised() || !known_object(connection) || result == NULL)
        return violation(INVALID_ARG, "Open without a connection or a place for the handle");
    if (is_object(&connection->params) ? !is_empty(path) : path == NULL)
        return violation(INVALID_ARG, "Open of a VM's disk without a path, or of a storage object with one");
    if (!exclusive_begin("Open"))
        return FAIL;
    VixError error = open_disk(connection, path, connection->read_only || (flags & OPEN_READ_ONLY) != 0, result);
    exclusive_end();
    if (error == OK)
        say(log_function, "VixDiskLib: opened %s by %s\n", is_empty(path) ? connection->params.object.id : path,
            (*result)->transport);
    return error;
}

static void report_close(const Handle *handle)
{
    Lines question = {.length = 0}, answer;
    lines_add(&question, "id", handle->id);
    lines_add_number(&question, "reads", handle->reads);
    lines_add_number(&question, "writes", handle->writes);
    lines_add_number(&question, "bytes_read", handle->bytes_read);
    lines_add_number(&question, "bytes_written", handle->bytes_written);
    lines_add_number(&question, "most_in_flight", (unsigned long long)handle->most_in_flight);
    ask_lab("close", &question, &answer);
}

EXPORT VixError VixDiskLib_Close(Handle *handle)
{
    if (!initialised() || !known_object(handle))
        return violation(INVALID_HANDLE, "Close of no handle");
    if (!exclusive_begin("Close"))
        return FAIL;
    pthread_mutex_lock(&handle->lock);
    int waiting = handle->unfinished;
    pthread_mutex_unlock(&handle->lock);
    forget_object(handle);
    io_stop(handle);
    report_close(handle);
    munmap(handle->state, handle->state_size);
    close(handle->file);
    free(handle->transport);
    free(handle->id);
    free(handle);
    exclusive_end();
    return waiting == 0 ? OK : violation(FAIL, "Close with %d requests in flight, without Wait", waiting);
}

EXPORT const char *VixDiskLib_GetTransportMode(Handle *handle)
{
    return known_object(handle) ? handle->transport : NULL;
}

/* At the very end of a page with nothing behind it, so that reading past an older, shorter structure
 * ends the process instead of finding zeros. */
EXPORT VixError VixDiskLib_GetInfo(Handle *handle, Info **result)
{
    if (!initialised() || !known_object(handle) || result == NULL)
        return violation(INVALID_HANDLE, "GetInfo of no handle");
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + page, page, PROT_NONE);
    Info *info = (Info *)(pages + page - sizeof *info);
    info->capacity = handle->capacity;
    info->adapter_type = 3;
    info->links = 1;
    *result = info;
    return OK;
}

EXPORT void VixDiskLib_FreeInfo(Info *info)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (info != NULL)
        munmap((char *)((uintptr_t)info & ~(page - 1)), 2 * page);
}

/* Clients want to find it; only disks on this machine can be created, and the lab has none. */
EXPORT VixError VixDiskLib_Create(Connection *connection, const char *path, const void *params, void *progress, void *data)
{
    (void)connection, (void)path, (void)params, (void)progress, (void)data;
    return NOT_SUPPORTED;
}
