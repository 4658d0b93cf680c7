/* Copyright (c) 2026 the holdfast.backup authors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Reading and writing, at once or later, and the question which blocks are allocated. */

#define _GNU_SOURCE
#include "standin.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void mark_written(Handle *handle, uint64_t start, uint64_t count)
{
    for (uint64_t chunk = start / MIN_CHUNK; chunk <= (start + count - 1) / MIN_CHUNK; chunk++)
        __atomic_fetch_or(&handle->state[64 + chunk / 8], (uint8_t)(1U << chunk % 8), __ATOMIC_RELAXED);
}

/* One request against the file, short transfers repeated. */
static VixError transfer(Handle *handle, bool write, uint64_t start, uint64_t count, uint8_t *buffer)
{
    off_t offset = (off_t)(start * SECTOR);
    for (size_t left = count * SECTOR; left > 0;) {
        ssize_t moved = write ? pwrite(handle->file, buffer, left, offset) : pread(handle->file, buffer, left, offset);
        if (moved <= 0)
            return FILE_ERROR;
        buffer += moved;
        offset += moved;
        left -= (size_t)moved;
    }
    (write ? &handle->writes : &handle->reads)[0]++;
    (write ? &handle->bytes_written : &handle->bytes_read)[0] += count * SECTOR;
    return OK;
}

static VixError serve(Handle *handle, bool write, uint64_t start, uint64_t count, uint8_t *buffer)
{
    if (handle->behaviour.latency_us > 0)
        usleep((useconds_t)handle->behaviour.latency_us);
    VixError result = __atomic_load_n((uint32_t *)handle->state, __ATOMIC_RELAXED);
    if (result == OK)
        result = fault(write ? "write" : "read", start, count);
    if (result != OK)
        return result;
    if (write)
        mark_written(handle, start, count);
    return transfer(handle, write, start, count, buffer);
}

static VixError check(Handle *handle, bool write, uint64_t start, uint64_t count, const uint8_t *buffer)
{
    if (!initialised() || !known_object(handle))
        return violation(INVALID_HANDLE, "a request on no handle");
    if (count == 0 || buffer == NULL)
        return violation(INVALID_ARG, "a request without a buffer or of no sectors");
    if (start >= handle->capacity || count > handle->capacity - start)
        return violation(OUT_OF_RANGE, "a request for sectors %llu + %llu of %llu", (unsigned long long)start,
                         (unsigned long long)count, (unsigned long long)handle->capacity);
    return write && handle->read_only ? FILE_READ_ONLY : OK;
}

static VixError synchronous(Handle *handle, bool write, uint64_t start, uint64_t count, uint8_t *buffer)
{
    VixError result = check(handle, write, start, count, buffer);
    if (result != OK)
        return result;
    if (atomic_flag_test_and_set(&handle->synchronous))
        return violation(FAIL, "two synchronous requests on one handle at the same time");
    pthread_mutex_lock(&handle->lock);
    int waiting = handle->in_flight;
    pthread_mutex_unlock(&handle->lock);
    result = waiting > 0 ? MIXED_MODE : serve(handle, write, start, count, buffer);
    atomic_flag_clear(&handle->synchronous);
    return result;
}

EXPORT VixError VixDiskLib_Read(Handle *handle, uint64_t start, uint64_t count, uint8_t *buffer)
{
    return synchronous(handle, false, start, count, buffer);
}

EXPORT VixError VixDiskLib_Write(Handle *handle, uint64_t start, uint64_t count, const uint8_t *buffer)
{
    return synchronous(handle, true, start, count, (uint8_t *)buffer);
}

static void finish(Handle *handle, Request *request)
{
    VixError result = request->result;
    if (result == OK)
        result = serve(handle, request->write, request->start, request->count, request->buffer);
    /* A client may issue its next request as soon as it is told: this one counts no more. */
    pthread_mutex_lock(&handle->lock);
    handle->in_flight--;
    handle->bytes_in_flight -= (long long)(request->count * SECTOR);
    pthread_mutex_unlock(&handle->lock);
    request->done(request->data, result);
    pthread_mutex_lock(&handle->lock);
    if (--handle->unfinished == 0)
        pthread_cond_broadcast(&handle->idle);
    pthread_mutex_unlock(&handle->lock);
    free(request);
}

static void *server(void *argument)
{
    Handle *handle = argument;
    pthread_mutex_lock(&handle->lock);
    while (!handle->closing || handle->first != NULL) {
        Request *request = handle->first;
        if (request == NULL) {
            pthread_cond_wait(&handle->changed, &handle->lock);
            continue;
        }
        handle->first = request->next;
        pthread_mutex_unlock(&handle->lock);
        finish(handle, request);
        pthread_mutex_lock(&handle->lock);
    }
    pthread_mutex_unlock(&handle->lock);
    return NULL;
}

void io_start(Handle *handle)
{
    atomic_flag_clear(&handle->issuing);
    atomic_flag_clear(&handle->synchronous);
    pthread_mutex_init(&handle->lock, NULL);
    pthread_cond_init(&handle->changed, NULL);
    pthread_cond_init(&handle->idle, NULL);
    handle->server_count = handle->behaviour.inline_callbacks ? 0 : handle->behaviour.servers;
    handle->servers = calloc((size_t)handle->server_count + 1, sizeof *handle->servers);
    for (int i = 0; i < handle->server_count; i++)
        pthread_create(&handle->servers[i], NULL, server, handle);
}

void io_stop(Handle *handle)
{
    pthread_mutex_lock(&handle->lock);
    handle->closing = true;
    pthread_cond_broadcast(&handle->changed);
    pthread_mutex_unlock(&handle->lock);
    for (int i = 0; i < handle->server_count; i++)
        pthread_join(handle->servers[i], NULL);
    free(handle->servers);
}

static void enqueue(Handle *handle, Request *request)
{
    pthread_mutex_lock(&handle->lock);
    handle->in_flight++;
    handle->unfinished++;
    handle->bytes_in_flight += (long long)(request->count * SECTOR);
    if (handle->in_flight > handle->most_in_flight)
        handle->most_in_flight = handle->in_flight;
    if (handle->bytes_in_flight > handle->behaviour.memory)
        request->result = OUT_OF_MEMORY;
    if (!handle->behaviour.inline_callbacks) {
        Request **place = &handle->first;
        while (!handle->behaviour.reversed && *place != NULL)
            place = &(*place)->next;
        request->next = *place;
        *place = request;
        pthread_cond_signal(&handle->changed);
    }
    pthread_mutex_unlock(&handle->lock);
    if (handle->behaviour.inline_callbacks)
        finish(handle, request);
}

static VixError asynchronous(Handle *handle, bool write, uint64_t start, uint64_t count, uint8_t *buffer, Completion *done,
                             void *data)
{
    VixError result = check(handle, write, start, count, buffer);
    if (result != OK)
        return result;
    if (done == NULL)
        return violation(INVALID_ARG, "an asynchronous request without a callback");
    if (atomic_flag_test_and_set(&handle->synchronous))
        return MIXED_MODE;
    atomic_flag_clear(&handle->synchronous);
    if (atomic_flag_test_and_set(&handle->issuing))
        return violation(FAIL, "two threads issue requests on one handle at the same time");
    Request *request = malloc(sizeof *request);
    *request = (Request){.write = write, .start = start, .count = count, .buffer = buffer, .done = done, .data = data};
    enqueue(handle, request);
    atomic_flag_clear(&handle->issuing);
    return ASYNC;
}

EXPORT VixError VixDiskLib_ReadAsync(Handle *handle, uint64_t start, uint64_t count, uint8_t *buffer, Completion *done,
                                     void *data)
{
    return asynchronous(handle, false, start, count, buffer, done, data);
}

EXPORT VixError VixDiskLib_WriteAsync(Handle *handle, uint64_t start, uint64_t count, const uint8_t *buffer,
                                      Completion *done, void *data)
{
    return asynchronous(handle, true, start, count, (uint8_t *)buffer, done, data);
}

EXPORT VixError VixDiskLib_Wait(Handle *handle)
{
    if (!initialised() || !known_object(handle))
        return violation(INVALID_HANDLE, "Wait for no handle");
    pthread_mutex_lock(&handle->lock);
    while (handle->unfinished > 0)
        pthread_cond_wait(&handle->idle, &handle->lock);
    pthread_mutex_unlock(&handle->lock);
    return OK;
}

EXPORT VixError VixDiskLib_Flush(Handle *handle)
{
    if (!initialised() || !known_object(handle))
        return violation(INVALID_HANDLE, "Flush of no handle");
    VixError result = fault("flush", 0, 1);
    if (result != OK)
        return result;
    return handle->read_only || fdatasync(handle->file) == 0 ? OK : FILE_ERROR;
}

#ifndef NO_BLOCKS
static VixError check_blocks(const Handle *handle, uint64_t start, uint64_t count, uint64_t chunk)
{
    if (chunk < MIN_CHUNK || chunk > MAX_CHUNK || (chunk & (chunk - 1)) != 0)
        return violation(INVALID_ARG, "allocated blocks in chunks of %llu sectors", (unsigned long long)chunk);
    if (count == 0 || start % chunk != 0 || count % chunk != 0 || count / chunk > MAX_CHUNKS_PER_CALL)
        return violation(INVALID_ARG, "allocated blocks of sectors %llu + %llu in chunks of %llu",
                         (unsigned long long)start, (unsigned long long)count, (unsigned long long)chunk);
    if (start >= handle->capacity || count > handle->capacity - start)
        return violation(INVALID_ARG, "allocated blocks past the end: %llu + %llu of %llu", (unsigned long long)start,
                         (unsigned long long)count, (unsigned long long)handle->capacity);
    return OK;
}

/* The data extents of the file, rounded outward to chunks and merged. */
static BlockList *find_blocks(const Handle *handle, uint64_t start, uint64_t count, uint64_t chunk)
{
    const off_t unit = (off_t)(chunk * SECTOR), end = (off_t)((start + count) * SECTOR);
    off_t position = (off_t)(start * SECTOR);
    BlockList *list = malloc(sizeof *list + (count / chunk + 1) * sizeof *list->blocks);
    list->count = 0;
    while (position < end) {
        off_t data = lseek(handle->file, position, SEEK_DATA);
        if (data < 0 || data >= end)
            break;
        off_t hole = lseek(handle->file, data, SEEK_HOLE);
        uint64_t first = (uint64_t)(data / unit) * chunk, last = (uint64_t)((hole + unit - 1) / unit) * chunk;
        last = last < start + count ? last : start + count;
        Block *previous = list->count > 0 ? &list->blocks[list->count - 1] : NULL;
        if (previous != NULL && first <= previous->offset + previous->length)
            previous->length = last - previous->offset;
        else
            list->blocks[list->count++] = (Block){.offset = first, .length = last - first};
        position = (off_t)(last * SECTOR);
    }
    return list;
}

EXPORT VixError VixDiskLib_QueryAllocatedBlocks(Handle *handle, uint64_t start, uint64_t count, uint64_t chunk,
                                                BlockList **result)
{
    if (!initialised() || !known_object(handle) || result == NULL)
        return violation(INVALID_HANDLE, "allocated blocks of no handle");
    if (!exclusive_begin("QueryAllocatedBlocks"))
        return FAIL;
    if (handle->behaviour.blocks_delay_us > 0)
        usleep((useconds_t)handle->behaviour.blocks_delay_us);
    VixError error = check_blocks(handle, start, count, chunk);
    if (error == OK)
        error = fault("blocks", start, count);
    if (error == OK) {
        *result = find_blocks(handle, start, count, chunk);
        register_object(*result);
    }
    exclusive_end();
    return error;
}

EXPORT VixError VixDiskLib_FreeBlockList(BlockList *list)
{
    if (!forget_object(list))
        return violation(INVALID_ARG, "FreeBlockList of no list");
    free(list);
    return OK;
}
#endif
