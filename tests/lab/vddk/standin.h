/* Copyright (c) 2026 the holdfast.backup authors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the parts of the stand-in share. Everything but the VixDiskLib_* calls is hidden in the library.
 */

#ifndef STANDIN_H
#define STANDIN_H

#include "abi.h"
#include "vim.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* How the lab wants this handle to behave; see README.md. */
typedef struct {
    bool inline_callbacks; /* complete inside ReadAsync, as transports without real asynchrony do */
    bool reversed;         /* serve the newest waiting request first */
    int servers;           /* requests served at the same time */
    long latency_us;       /* before each request */
    long long memory;      /* bytes that may be in flight on the handle; more ends in OUT_OF_MEMORY */
    long blocks_delay_us;  /* before each answer about allocated blocks */
} Behaviour;

typedef struct Request {
    struct Request *next;
    bool write;
    uint64_t start, count;
    uint8_t *buffer;
    Completion *done;
    void *data;
    VixError result; /* decided at issue, when not 0 */
} Request;

typedef struct {
    ConnectParams params; /* strings are copies */
    bool read_only;
    char *snapshot, *modes;
} Connection;

typedef struct {
    char *id; /* the lab's name of this open */
    Connection *connection;
    int file;
    bool read_only;
    uint64_t capacity; /* sectors */
    char *transport;
    Behaviour behaviour;
    /* Shared with the lab: an error code that every request then ends in (0: none), and from byte 64 on
     * one bit for each 64 KiB written. */
    uint8_t *state;
    size_t state_size;

    atomic_flag issuing, synchronous;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* for the servers */
    pthread_cond_t idle;    /* nothing is unfinished */
    Request *first;
    int in_flight, most_in_flight; /* issued, not served */
    int unfinished;                /* issued, callback not yet returned */
    long long bytes_in_flight;
    bool closing;
    pthread_t *servers;
    int server_count;
    _Atomic uint64_t reads, writes, bytes_read, bytes_written;
} Handle;

/* process.c */
extern LogFunction *log_function, *warn_function, *panic_function;
bool initialised(void);
/* As vim_ask, once the library behind it is loaded. */
int ask_lab(const char *verb, const Lines *question, Lines *answer);
void say(LogFunction *function, const char *format, ...) __attribute__((format(printf, 2, 3)));
VixError violation(VixError error, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The configured error for this operation on these sectors, once for each time it was ordered. */
VixError fault(const char *operation, uint64_t start, uint64_t count);
void register_object(void *object);
bool forget_object(void *object);
bool known_object(void *object);
bool exclusive_begin(const char *what);
void exclusive_end(void);

/* io.c */
void io_start(Handle *handle);
void io_stop(Handle *handle);

#endif
