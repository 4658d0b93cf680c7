/* Copyright (c) 2026 the holdfast.backup authors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The public binary interface of libvixDiskLib on Linux x86_64, as far as the stand-in has it.
 * Offsets and sizes are what clients rely on, so they are asserted at compile time.
 */

#ifndef ABI_H
#define ABI_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t VixError;
typedef char Bool;
typedef void LogFunction(const char *format, va_list arguments);
typedef void Completion(void *data, VixError result);

enum { SECTOR = 512, MIN_CHUNK = 128, MAX_CHUNK = 131072, MAX_CHUNKS_PER_CALL = 524288 };

enum {
    OK = 0,
    FAIL = 1,
    OUT_OF_MEMORY = 2,
    INVALID_ARG = 3,
    NOT_SUPPORTED = 6,
    FILE_ACCESS_ERROR = 13,
    FILE_READ_ONLY = 11,
    FILE_ERROR = 7,
    INVALID_HANDLE = 1000,
    OUT_OF_RANGE = 16007,
    NOT_INITIALISED = 16001,
    SUBSYSTEM_INIT_FAIL = 16053,
    ASYNC = 25000,
    MIXED_MODE = 26000,
};

enum { OPEN_READ_ONLY = 4, CREDENTIALS_UID = 1, SPEC_VMX = 0, SPEC_STORAGE_OBJECT = 1 };

typedef struct {
    char *vmx_spec, *server, *thumbprint;
    long private_use;
    int credential_type;
    struct {
        char *username, *password, *unused;
    } uid;
    uint32_t port, nfc_port;
    char *api_version;
    char reserved[8];
    void *state;
    struct {
        char *id, *datastore, *snapshot;
    } object; /* for SPEC_STORAGE_OBJECT */
    int spec_type;
} ConnectParams;

typedef struct {
    uint32_t bios_geometry[3], physical_geometry[3];
    uint64_t capacity; /* sectors */
    int adapter_type, links;
    char *parent_hint, *uuid;
#ifndef OLD_ABI
    uint32_t logical_sector, physical_sector; /* since 7.0 */
#endif
} Info;

typedef struct {
    uint64_t offset, length; /* sectors */
} Block;

typedef struct {
    uint32_t count;
    Block blocks[];
} BlockList;

_Static_assert(offsetof(ConnectParams, uid) == 40, "creds");
_Static_assert(offsetof(ConnectParams, port) == 64, "port");
_Static_assert(offsetof(ConnectParams, state) == 88, "state");
_Static_assert(offsetof(ConnectParams, object) == 96, "spec");
_Static_assert(offsetof(ConnectParams, spec_type) == 120, "specType");
_Static_assert(sizeof(ConnectParams) == 128, "ConnectParams");
_Static_assert(offsetof(Info, capacity) == 24 && offsetof(Info, uuid) == 48, "Info");
_Static_assert(offsetof(BlockList, blocks) == 8 && sizeof(Block) == 16, "BlockList");
#ifdef OLD_ABI
_Static_assert(sizeof(Info) == 56, "Info before 7.0");
#else
_Static_assert(sizeof(Info) == 64, "Info since 7.0");
#endif

#endif
