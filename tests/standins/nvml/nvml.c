/*
 * A stand-in for libnvidia-ml.so.1, for machines without a card.
 *
 * Implements the calls that gpushare makes, with the struct layouts that the Python package nvidia-ml-py expects.
 * Everything it says is read anew at each call from the text file that GPUSHARE_FAKE_NVML_STATE names:
 *
 *   driver 580.159.03
 *   cuda 13000
 *   empty_utilization 6                        what "no samples" is answered with (0 or 6)
 *   log 1                                      append the name of each call to STATE.calls
 *   card uuid=GPU-.. model=NVIDIA_H200 total=143771 reserved=600 used=0 minor=0 bus=00000000:01:00.0 mode=0 mig=0
 *        sm=0 mem=0 power=75000 energy=1000 temp=30 ecc=0 action=0            (MiB; "-" is NotSupported)
 *   proc uuid=GPU-.. pid=4711 mib=1024 list=compute                           (list: compute graphics mps; mib - : unknown)
 *   util uuid=GPU-.. pid=4711 sm=40 age_ms=100
 *   fault call=nvmlDeviceGetPowerUsage uuid=* code=15
 *   hang call=nvmlDeviceGetMemoryInfo_v2 uuid=GPU-.. seconds=60               (no signal but SIGKILL ends it)
 *
 * A card whose line disappears while its handle is open is lost (15). Setters are refused, and STATE.setters tells
 * that one was called. Built with -DOLD_DRIVER it lacks what drivers before 510 lack.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define API __attribute__((visibility("default")))

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25
};

#define MAX_CARDS 64
#define MAX_ROWS 4096
#define ABSENT (-1LL)
#define MIB (1ULL << 20)

struct card {
    char uuid[96], model[96], bus[32];
    long long total, reserved, used, minor, mode, mig, sm, mem, power, energy, temp, ecc, action;
};
struct row { char uuid[96], list[16]; long long pid, mib, sm, age_ms; };
struct fault { char call[96], uuid[96]; long long code, seconds; };

static struct {
    char driver[80];
    long long cuda, empty_utilization, log;
    int cards, procs, utils, faults;
    struct card card[MAX_CARDS];
    struct row proc[MAX_ROWS], util[MAX_ROWS];
    struct fault fault[64];
} state;

/* A handle stays with its UUID, whatever the order of the lines becomes. */
static struct { char uuid[96]; } handles[MAX_CARDS];
static int open_handles, initialised;

static const char *state_path(void) { return getenv("GPUSHARE_FAKE_NVML_STATE"); }

static int word(const char *line, const char *key, char *out, size_t size) {
    char wanted[40];
    snprintf(wanted, sizeof wanted, " %s=", key);
    const char *at = strstr(line, wanted);
    if (!at) return 0;
    at += strlen(wanted);
    size_t n = strcspn(at, " \n");
    if (n >= size) n = size - 1;
    memcpy(out, at, n);
    out[n] = 0;
    return 1;
}

static long long number(const char *line, const char *key, long long otherwise) {
    char text[32];
    if (!word(line, key, text, sizeof text)) return otherwise;
    return strcmp(text, "-") == 0 ? ABSENT : atoll(text);
}

static void read_card(const char *line) {
    if (state.cards == MAX_CARDS) return;
    struct card *c = &state.card[state.cards++];
    word(line, "uuid", c->uuid, sizeof c->uuid);
    word(line, "model", c->model, sizeof c->model);
    for (char *p = c->model; *p; p++) if (*p == '_') *p = ' ';
    word(line, "bus", c->bus, sizeof c->bus);
    c->total = number(line, "total", 0);
    c->reserved = number(line, "reserved", 0);
    c->used = number(line, "used", 0);
    c->minor = number(line, "minor", state.cards - 1);
    c->mode = number(line, "mode", 0);
    c->mig = number(line, "mig", 0);
    c->sm = number(line, "sm", 0);
    c->mem = number(line, "mem", 0);
    c->power = number(line, "power", 0);
    c->energy = number(line, "energy", 0);
    c->temp = number(line, "temp", 30);
    c->ecc = number(line, "ecc", 0);
    c->action = number(line, "action", 0);
}

static void read_row(const char *line, struct row *r) {
    word(line, "uuid", r->uuid, sizeof r->uuid);
    word(line, "list", r->list, sizeof r->list);
    r->pid = number(line, "pid", 0);
    r->mib = number(line, "mib", ABSENT);
    r->sm = number(line, "sm", 0);
    r->age_ms = number(line, "age_ms", 0);
}

static int load(void) {
    char line[1024];
    FILE *file = state_path() ? fopen(state_path(), "r") : NULL;
    if (!file) return 0;
    memset(&state, 0, sizeof state);
    state.empty_utilization = NOT_FOUND;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, "card ", 5) == 0) read_card(line);
        else if (strncmp(line, "proc ", 5) == 0 && state.procs < MAX_ROWS) read_row(line, &state.proc[state.procs++]);
        else if (strncmp(line, "util ", 5) == 0 && state.utils < MAX_ROWS) read_row(line, &state.util[state.utils++]);
        else if ((strncmp(line, "fault ", 6) == 0 || strncmp(line, "hang ", 5) == 0) && state.faults < 64) {
            struct fault *f = &state.fault[state.faults++];
            word(line, "call", f->call, sizeof f->call);
            word(line, "uuid", f->uuid, sizeof f->uuid);
            f->code = number(line, "code", 0);
            f->seconds = number(line, "seconds", 0);
        } else if (strncmp(line, "driver ", 7) == 0) sscanf(line, "driver %79s", state.driver);
        else if (strncmp(line, "cuda ", 5) == 0) state.cuda = atoll(line + 5);
        else if (strncmp(line, "empty_utilization ", 18) == 0) state.empty_utilization = atoll(line + 18);
        else if (strncmp(line, "log ", 4) == 0) state.log = atoll(line + 4);
    }
    fclose(file);
    return 1;
}

static void note(const char *suffix, const char *call) {
    char path[512];
    snprintf(path, sizeof path, "%s.%s", state_path() ? state_path() : "/dev/null", suffix);
    FILE *file = fopen(path, "a");
    if (!file) return;
    fprintf(file, "%s\n", call);
    fclose(file);
}

static const struct fault *fault_for(const char *call, const char *uuid) {
    for (int i = 0; i < state.faults; i++) {
        const struct fault *f = &state.fault[i];
        if (strcmp(f->call, call) != 0 && strcmp(f->call, "*") != 0) continue;
        if (strcmp(f->uuid, "*") == 0 || f->uuid[0] == 0 || (uuid && strcmp(f->uuid, uuid) == 0)) return f;
    }
    return NULL;
}

static int meet_faults(const char *call, const char *uuid) {
    const struct fault *f = fault_for(call, uuid);
    if (!f) return OK;
    if (!f->seconds) return (int)f->code;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    struct timespec began, now, nap = {0, 20000000};
    clock_gettime(CLOCK_BOOTTIME, &began);
    do {
        nanosleep(&nap, NULL);
        clock_gettime(CLOCK_BOOTTIME, &now);
        load();
        f = fault_for(call, uuid);
    } while (f && f->seconds && now.tv_sec - began.tv_sec < f->seconds);
    return OK;
}

/* What every call begins with: the state of this moment, the log, the faults, and the card behind the handle. */
static int enter(const char *call, void *handle, struct card **card) {
    if (!load()) return DRIVER_NOT_LOADED;
    if (state.log) note("calls", call);
    const char *uuid = handle ? (const char *)handle : NULL;
    int code = meet_faults(call, uuid);
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    if (!handle) return OK;
    for (int i = 0; i < state.cards; i++)
        if (strcmp(state.card[i].uuid, uuid) == 0) {
            if (card) *card = &state.card[i];
            return OK;
        }
    return GPU_IS_LOST;
}

static void *handle_of(const char *uuid) {
    for (int i = 0; i < open_handles; i++)
        if (strcmp(handles[i].uuid, uuid) == 0) return &handles[i];
    if (open_handles == MAX_CARDS) return NULL;
    snprintf(handles[open_handles].uuid, sizeof handles[0].uuid, "%s", uuid);
    return &handles[open_handles++];
}

/* -- the library ------------------------------------------------------------------------------------------------- */

API int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    initialised = 1;
    int code = enter("nvmlInitWithFlags", NULL, NULL);
    initialised = code == OK;
    return code;
}

API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API int nvmlShutdown(void) {
    int code = enter("nvmlShutdown", NULL, NULL);
    initialised = 0;
    return code;
}

API const char *nvmlErrorString(int code) {
    static char text[40];
    snprintf(text, sizeof text, "stand-in error %d", code);
    return text;
}

API int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    int code = enter("nvmlSystemGetDriverVersion", NULL, NULL);
    if (!code) snprintf(out, size, "%s", state.driver);
    return code;
}

API int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    int code = enter("nvmlSystemGetNVMLVersion", NULL, NULL);
    if (!code) snprintf(out, size, "13.%s", state.driver);
    return code;
}

API int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    int code = enter("nvmlSystemGetCudaDriverVersion_v2", NULL, NULL);
    if (!code) *out = (int)state.cuda;
    return code;
}

API int nvmlDeviceGetCount_v2(unsigned *out) {
    int code = enter("nvmlDeviceGetCount_v2", NULL, NULL);
    if (!code) *out = (unsigned)state.cards;
    return code;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    if (!load()) return DRIVER_NOT_LOADED;
    if (index >= (unsigned)state.cards) return INVALID_ARGUMENT;
    void *handle = handle_of(state.card[index].uuid);
    int code = enter("nvmlDeviceGetHandleByIndex_v2", handle, NULL);
    if (!code) *out = handle;
    return code;
}

API int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    int code = enter("nvmlDeviceGetHandleByUUID", NULL, NULL);
    if (code) return code;
    for (int i = 0; i < state.cards; i++)
        if (strcmp(state.card[i].uuid, uuid) == 0) {
            *out = handle_of(uuid);
            return OK;
        }
    return NOT_FOUND;
}

/* -- identity ---------------------------------------------------------------------------------------------------- */

API int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    struct card *c;
    int code = enter("nvmlDeviceGetUUID", handle, &c);
    if (!code) snprintf(out, size, "%s", c->uuid);
    return code;
}

API int nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    struct card *c;
    int code = enter("nvmlDeviceGetName", handle, &c);
    if (!code) snprintf(out, size, "%s", c->model);
    return code;
}

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};

API int nvmlDeviceGetPciInfo_v3(void *handle, struct pci_info *out) {
    struct card *c;
    int code = enter("nvmlDeviceGetPciInfo_v3", handle, &c);
    if (code) return code;
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", c->bus);
    return OK;
}

#define CARD_FIELD(call, type, field)                    \
    API int call(void *handle, type *out) {              \
        struct card *c;                                  \
        int code = enter(#call, handle, &c);             \
        if (code) return code;                           \
        if (c->field == ABSENT) return NOT_SUPPORTED;    \
        *out = (type)c->field;                           \
        return OK;                                       \
    }

CARD_FIELD(nvmlDeviceGetMinorNumber, unsigned, minor)
CARD_FIELD(nvmlDeviceGetComputeMode, unsigned, mode)
CARD_FIELD(nvmlDeviceGetPowerUsage, unsigned, power)
CARD_FIELD(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, energy)

API int nvmlDeviceGetIndex(void *handle, unsigned *out) {
    struct card *c;
    int code = enter("nvmlDeviceGetIndex", handle, &c);
    if (code) return code;
    *out = (unsigned)(c - state.card);
    return OK;
}

API int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    struct card *c;
    int code = enter("nvmlDeviceGetMigMode", handle, &c);
    if (code) return code;
    if (c->mig == ABSENT) return NOT_SUPPORTED;
    *current = *pending = (unsigned)c->mig;
    return OK;
}

/* -- memory, load, heat, health ------------------------------------------------------------------------------------ */

struct memory_v1 { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };

static unsigned long long bytes_free(const struct card *c) {
    long long free_mib = c->total - c->reserved - c->used;
    return free_mib > 0 ? (unsigned long long)free_mib * MIB : 0;
}

API int nvmlDeviceGetMemoryInfo(void *handle, struct memory_v1 *out) {
    struct card *c;
    int code = enter("nvmlDeviceGetMemoryInfo", handle, &c);
    if (code) return code;
    out->total = c->total * MIB;
    out->free = bytes_free(c);
    out->used = (c->used + c->reserved) * MIB;
    return OK;
}

#ifndef OLD_DRIVER
API int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *out) {
    struct card *c;
    int code = enter("nvmlDeviceGetMemoryInfo_v2", handle, &c);
    if (code) return code;
    if (out->version != 0x02000028) return ARGUMENT_VERSION_MISMATCH;
    out->total = c->total * MIB;
    out->reserved = c->reserved * MIB;
    out->free = bytes_free(c);
    out->used = c->used * MIB;
    return OK;
}
#endif

struct utilization { unsigned gpu, memory; };

API int nvmlDeviceGetUtilizationRates(void *handle, struct utilization *out) {
    struct card *c;
    int code = enter("nvmlDeviceGetUtilizationRates", handle, &c);
    if (code) return code;
    if (c->sm == ABSENT) return NOT_SUPPORTED;
    out->gpu = (unsigned)c->sm;
    out->memory = (unsigned)c->mem;
    return OK;
}

API int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *out) {
    struct card *c;
    int code = enter("nvmlDeviceGetTemperature", handle, &c);
    if (code) return code;
    if (sensor || c->temp == ABSENT) return NOT_SUPPORTED;
    *out = (unsigned)c->temp;
    return OK;
}

#ifndef OLD_DRIVER
struct temperature { unsigned version, sensor; int celsius; };

API int nvmlDeviceGetTemperatureV(void *handle, struct temperature *out) {
    struct card *c;
    int code = enter("nvmlDeviceGetTemperatureV", handle, &c);
    if (code) return code;
    if (out->version != 0x100000C) return ARGUMENT_VERSION_MISMATCH;
    if (out->sensor || c->temp == ABSENT) return NOT_SUPPORTED;
    out->celsius = (int)c->temp;
    return OK;
}
#endif

API int nvmlDeviceGetTotalEccErrors(void *handle, unsigned type, unsigned counter, unsigned long long *out) {
    struct card *c;
    int code = enter("nvmlDeviceGetTotalEccErrors", handle, &c);
    if (code) return code;
    if (type != 1 || counter != 0 || c->ecc == ABSENT) return NOT_SUPPORTED;
    *out = (unsigned long long)c->ecc;
    return OK;
}

struct field_value {
    unsigned field, scope;
    int64_t timestamp, latency_us;
    unsigned value_type;
    int code;
    union { unsigned u; unsigned long long ull; double d; } value;
};

API int nvmlDeviceGetFieldValues(void *handle, int count, struct field_value *values) {
    struct card *c;
    int code = enter("nvmlDeviceGetFieldValues", handle, &c);
    if (code) return code;
    for (int i = 0; i < count; i++) {
        values[i].code = values[i].field == 230 && c->action != ABSENT ? OK : NOT_SUPPORTED;
        values[i].value_type = 1;
        values[i].value.u = values[i].code == OK ? (unsigned)c->action : 0;
    }
    return OK;
}

/* -- processes ----------------------------------------------------------------------------------------------------- */

struct process { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

static int list_processes(const char *call, const char *list, void *handle, unsigned *count, struct process *out) {
    struct card *c;
    int code = enter(call, handle, &c);
    if (code) return code;
    unsigned n = 0;
    for (int i = 0; i < state.procs; i++) {
        const struct row *r = &state.proc[i];
        if (strcmp(r->uuid, c->uuid) != 0 || strcmp(r->list, list) != 0) continue;
        if (out && n < *count) {
            out[n].pid = (unsigned)r->pid;
            out[n].bytes = r->mib == ABSENT ? ~0ULL : (unsigned long long)r->mib * MIB;
            out[n].gpu_instance = out[n].compute_instance = 0xFFFFFFFFu;
        }
        n++;
    }
    int fits = n <= *count;
    *count = n;
    return fits ? OK : INSUFFICIENT_SIZE;
}

#define PROCESS_LIST(call, list)                                                         \
    API int call(void *handle, unsigned *count, struct process *out) {                   \
        return list_processes(#call, list, handle, count, out);                          \
    }

PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, "mps")
#ifndef OLD_DRIVER
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")
#endif

struct utilization_sample { unsigned pid; unsigned long long stamp_us; unsigned sm, mem, enc, dec; };

API int nvmlDeviceGetProcessUtilization(void *handle, struct utilization_sample *out, unsigned *count,
                                        unsigned long long last_seen_us) {
    struct card *c;
    int code = enter("nvmlDeviceGetProcessUtilization", handle, &c);
    if (code) return code;
    if (c->sm == ABSENT) return NOT_SUPPORTED;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long now_us = now.tv_sec * 1000000ULL + now.tv_nsec / 1000;
    unsigned n = 0;
    for (int i = 0; i < state.utils; i++) {
        const struct row *r = &state.util[i];
        unsigned long long stamp_us = now_us - (unsigned long long)(r->age_ms * 1000);
        /* A stamp of 0 asks for everything; rubbish rows (over 100 %) come whatever was asked for. */
        if (strcmp(r->uuid, c->uuid) != 0 || (last_seen_us && stamp_us <= last_seen_us && r->sm <= 100)) continue;
        if (out && n < *count) {
            memset(&out[n], 0, sizeof out[n]);
            out[n].pid = (unsigned)r->pid;
            out[n].stamp_us = stamp_us;
            out[n].sm = (unsigned)r->sm;
        }
        n++;
    }
    if (n == 0) {
        *count = 0;
        return (int)state.empty_utilization;
    }
    int fits = out && n <= *count;
    *count = n;
    return fits ? OK : INSUFFICIENT_SIZE;
}

/* -- setters: refused, and told on ---------------------------------------------------------------------------------- */

#define SETTER(call)                                     \
    API int call(void *handle, unsigned a, unsigned b) { \
        (void)handle, (void)a, (void)b;                  \
        note("setters", #call);                          \
        return NO_PERMISSION;                            \
    }

SETTER(nvmlDeviceSetComputeMode)
SETTER(nvmlDeviceSetPersistenceMode)
SETTER(nvmlDeviceSetMigMode)
SETTER(nvmlDeviceSetPowerManagementLimit)
SETTER(nvmlDeviceSetAccountingMode)
SETTER(nvmlDeviceSetGpuLockedClocks)
SETTER(nvmlDeviceSetEccMode)
