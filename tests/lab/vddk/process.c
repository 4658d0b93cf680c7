/* Copyright (c) 2026 the holdfast.backup authors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The process-wide part: start and end, log, error texts, the rules about threads, ordered faults. */

#define _GNU_SOURCE
#include "standin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef OLD_ABI
enum { OWN_MAJOR = 6 };
#else
enum { OWN_MAJOR = 8 };
#endif
enum { OBJECTS = 1024, FAULTS = 64 };

typedef struct {
    char operation[8];
    unsigned long long start, count;
    int code, times, number;
} Fault;

LogFunction *log_function, *warn_function, *panic_function;
static enum { FRESH, RUNNING, ENDED } phase;
static pid_t owner;
static Fault faults[FAULTS];
static int fault_count;
static void *objects[OBJECTS];
static bool checks_thread;
static pthread_t opener;
static bool has_opener;
static int (*ask)(const char *verb, const Lines *question, Lines *answer);
static int (*has_lab)(void);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, exclusive = PTHREAD_MUTEX_INITIALIZER;

void say(LogFunction *function, const char *format, ...)
{
    if (function == NULL)
        return;
    va_list arguments;
    va_start(arguments, format);
    function(format, arguments);
    va_end(arguments);
}

static bool load_vim(void)
{
    void *library = ask != NULL ? NULL : dlopen("libvixDiskLibVim.so.8", RTLD_NOW);
    if (library != NULL) {
        has_lab = (int (*)(void))dlsym(library, "vim_has_lab");
        ask = (int (*)(const char *, const Lines *, Lines *))dlsym(library, "vim_ask");
    }
    return ask != NULL;
}

int ask_lab(const char *verb, const Lines *question, Lines *answer)
{
    return load_vim() ? ask(verb, question, answer) : -1;
}

/* The caller broke a rule of the interface: the lab keeps a list, so that no test passes by luck. */
VixError violation(VixError error, const char *format, ...)
{
    char text[512];
    Lines question = {.length = 0}, answer;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    say(warn_function, "VixDiskLib: rule broken: %s\n", text);
    lines_add(&question, "text", text);
    ask_lab("violation", &question, &answer);
    return error;
}

bool initialised(void)
{
    return phase == RUNNING && owner == getpid();
}

void register_object(void *object)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < OBJECTS; i++)
        if (objects[i] == NULL) {
            objects[i] = object;
            break;
        }
    pthread_mutex_unlock(&lock);
}

static bool find_object(void *object, bool forget)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < OBJECTS && object != NULL && !found; i++)
        if (objects[i] == object) {
            found = true;
            if (forget)
                objects[i] = NULL;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

bool forget_object(void *object)
{
    return find_object(object, true);
}

bool known_object(void *object)
{
    return find_object(object, false);
}

/* Open, Close and QueryAllocatedBlocks: one at a time, and all from one thread. */
bool exclusive_begin(const char *what)
{
    if (pthread_mutex_trylock(&exclusive) != 0) {
        violation(FAIL, "%s while another thread opens, closes or queries", what);
        return false;
    }
    if (checks_thread && has_opener && !pthread_equal(opener, pthread_self())) {
        pthread_mutex_unlock(&exclusive);
        violation(FAIL, "%s from another thread than the first Open", what);
        return false;
    }
    opener = pthread_self();
    has_opener = true;
    return true;
}

void exclusive_end(void)
{
    pthread_mutex_unlock(&exclusive);
}

static void load_faults(const Lines *knobs)
{
    char *text;
    for (fault_count = 0; fault_count < FAULTS && (text = lines_get(knobs, "fault", fault_count)) != NULL; free(text)) {
        Fault *next = &faults[fault_count];
        next->number = fault_count;
        if (sscanf(text, "%7[a-z] %llu %llu %d %d", next->operation, &next->start, &next->count, &next->code,
                   &next->times) == 5)
            fault_count++;
    }
}

/* The lab counts, because the ordered number may be spread over several processes. */
static bool take(Fault *chosen)
{
    if (has_lab()) {
        Lines question = {.length = 0}, answer;
        lines_add_number(&question, "number", (unsigned long long)chosen->number);
        if (ask_lab("fault", &question, &answer) < 0)
            return false;
        return lines_number(&answer, "take", 0) != 0;
    }
    return chosen->times-- > 0;
}

VixError fault(const char *operation, uint64_t start, uint64_t count)
{
    int code = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < fault_count && code == 0; i++) {
        Fault *candidate = &faults[i];
        bool hit = strcmp(candidate->operation, operation) == 0 && candidate->start < start + count &&
                   start < candidate->start + candidate->count;
        if (hit && candidate->times > 0 && take(candidate))
            code = candidate->code;
    }
    pthread_mutex_unlock(&lock);
    if (code < 0) {
        say(panic_function, "VixDiskLib: panic as ordered\n");
        abort();
    }
    return (VixError)code;
}

/* "name = value" lines; and NFC buffers of more than 16 MiB are refused. */
static VixError check_config(const char *path)
{
    char line[1024];
    double size = 1, buffers = 4;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return violation(FILE_ERROR, "configuration file %s cannot be read", path);
    VixError result = OK;
    while (result == OK && fgets(line, sizeof line, file) != NULL) {
        if (line[0] != '\n' && line[0] != '#' && strchr(line, '=') == NULL)
            result = violation(INVALID_ARG, "configuration line without '=': %s", line);
        sscanf(line, "vixDiskLib.nfcAio.Session.BufSizeIn64KB = %lf", &size);
        sscanf(line, "vixDiskLib.nfcAio.Session.BufCount = %lf", &buffers);
    }
    fclose(file);
    if (result == OK && size * buffers > 256)
        result = violation(FAIL, "NFC buffers of %.0f times %.0f times 64 KiB", size, buffers);
    return result;
}

/* libDir is the root of the kit: the parts are looked for in its lib64. And the system must find them. */
static bool is_complete(const char *directory)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/lib64/libvixDiskLibVim.so.8", directory);
    return (directory == NULL || access(path, R_OK) == 0) && load_vim();
}

EXPORT VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, LogFunction *log, LogFunction *warn, LogFunction *panic,
                                  const char *directory, const char *config)
{
    Lines question = {.length = 0}, knobs;
    log_function = log;
    warn_function = warn;
    panic_function = panic;
    if (phase != FRESH)
        return violation(FAIL, "InitEx for the second time");
    if (gettid() != getpid())
        return violation(FAIL, "InitEx outside the main thread");
    if (major > OWN_MAJOR || major < 5)
        return violation(INVALID_ARG, "InitEx asks for version %u.%u of %d", major, minor, OWN_MAJOR);
    if (!is_complete(directory)) {
        say(warn_function, "VixDiskLib: libvixDiskLibVim.so.8 is not found\n");
        return SUBSYSTEM_INIT_FAIL;
    }
    VixError result = config == NULL ? OK : check_config(config);
    if (result != OK)
        return result;
    lines_add_number(&question, "pid", (unsigned long long)getpid());
    if (ask_lab("init", &question, &knobs) < 0) {
        say(warn_function, "VixDiskLib: the lab does not answer\n");
        return FAIL;
    }
    load_faults(&knobs);
    checks_thread = lines_number(&knobs, "check_thread", 1) != 0;
    owner = getpid();
    phase = RUNNING;
    say(log_function, "VixDiskLib: stand-in for %u.%u in process %d\n", major, minor, (int)owner);
    return OK;
}

EXPORT void VixDiskLib_Exit(void)
{
    int left = 0;
    for (int i = 0; i < OBJECTS; i++)
        left += objects[i] != NULL;
    if (!initialised())
        violation(FAIL, "Exit before InitEx or for the second time");
    else if (left > 0)
        violation(FAIL, "Exit with %d connections, handles or parameter blocks left", left);
    phase = ENDED;
}

static const struct {
    VixError code;
    const char *text;
} texts[] = {
    {OK, "The operation was successful"},
    {FAIL, "Unknown error"},
    {OUT_OF_MEMORY, "Memory allocation failed. Out of memory"},
    {INVALID_ARG, "One of the parameters was invalid"},
    {FILE_ACCESS_ERROR, "You do not have access rights to this file"},
    {FILE_READ_ONLY, "The file is write-protected"},
};

EXPORT char *VixDiskLib_GetErrorText(VixError error, const char *locale)
{
    char text[64];
    if (locale != NULL)
        violation(FAIL, "GetErrorText with a locale");
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].code == (error & 0xFFFF))
            return strdup(texts[i].text);
    snprintf(text, sizeof text, "Error %llu", (unsigned long long)(error & 0xFFFF));
    return strdup(text);
}

EXPORT void VixDiskLib_FreeErrorText(char *text)
{
    free(text);
}

EXPORT const char *VixDiskLib_ListTransportModes(void)
{
    return "file:san:hotadd:nbdssl:nbd";
}
