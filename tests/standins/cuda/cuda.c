/*
 * A stand-in for libcuda.so.1, for machines without a card: just enough to run the programs of the GPU check.
 *
 * The folder that GPUSHARE_FAKE_CUDA_DIR names holds `card` ("UUID TOTAL_MIB"). Each process with a context keeps a file
 * named by its pid there ("MIB mps|plain"), which a test turns into NVML's process list. A program that reaches the socket
 * of its pipe directory is a client of the MPS stand-in and then obeys the memory limit and thread percentage of its
 * environment; outside MPS, kernels of different processes exclude each other. Kernels only sleep.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, ILLEGAL_STATE = 401, ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801, MPS_CONNECTION_FAILED = 805
};
enum { MULTIPROCESSORS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MPS_ENABLED = 133 };

#define MIB (1ULL << 20)
#define SMS 132
#define CONTEXT_MIB 300
#define BLOCKS 8192
#define NS_PER_ROUND 20LL

static char folder[512], uuid[96];
static unsigned long long total_mib, limit_mib, used_mib;
static int mps = -1, sticky, sms = SMS, has_context;
static struct { uint64_t mib; uint32_t word; } block[BLOCKS];

static void path_of(char *path, size_t size, const char *name) { snprintf(path, size, "%s/%s", folder, name); }

static void show(void)
{
    char path[640], name[32];
    snprintf(name, sizeof name, "%d", getpid());
    path_of(path, sizeof path, name);
    FILE *file = fopen(path, "w");
    if (file) {
        fprintf(file, "%llu %s\n", used_mib, mps >= 0 ? "mps" : "plain");
        fclose(file);
    }
}

static int connect_mps(void)
{
    const char *pipe = getenv("CUDA_MPS_PIPE_DIRECTORY");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char answer[16] = "";
    if (!pipe)
        return OK;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/control", pipe);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return OK;
    }
    if (send(fd, "CLIENT", 6, MSG_NOSIGNAL) != 6 || recv(fd, answer, sizeof answer - 1, 0) <= 0 || strcmp(answer, "MPS") != 0)
        return MPS_CONNECTION_FAILED;
    mps = fd;
    const char *limit = getenv("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"), *percent = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    if (limit)
        sscanf(limit, "0=%lluM", &limit_mib);
    if (percent)
        sms = SMS * atoi(percent) / 100;
    return OK;
}

API int cuInit(unsigned flags)
{
    (void)flags;
    char path[640];
    snprintf(folder, sizeof folder, "%s", getenv("GPUSHARE_FAKE_CUDA_DIR"));
    path_of(path, sizeof path, "card");
    FILE *file = fopen(path, "r");
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int known = file && fscanf(file, "%95s %llu", uuid, &total_mib) == 2;
    if (file)
        fclose(file);
    return known && visible && strcmp(visible, uuid) == 0 ? OK : NO_DEVICE;
}

API int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
API int cuDeviceGetCount(int *count) { *count = 1; return OK; }
API int cuDeviceGet(int *device, int ordinal) { *device = 0; return ordinal ? INVALID_VALUE : OK; }
API int cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, size, "Stand-in"); return OK; }
API int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = total_mib * MIB; return OK; }

API int cuDeviceGetUuid_v2(unsigned char *raw, int device)
{
    const char *digits = uuid + 4;
    (void)device;
    for (int n = 0; n < 16; n++, digits += 2) {
        unsigned value;
        if (*digits == '-')
            digits++;
        sscanf(digits, "%2x", &value);
        raw[n] = value;
    }
    return OK;
}

API int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    switch (attribute) {
    case MULTIPROCESSORS: *value = sms; return OK;
    case CAPABILITY_MAJOR: *value = 9; return OK;
    case CAPABILITY_MINOR: *value = 0; return OK;
    case MPS_ENABLED: *value = mps >= 0; return OK;
    default: return INVALID_VALUE;
    }
}

API int cuDevicePrimaryCtxRetain(void **context, int device)
{
    (void)device;
    int code = has_context ? OK : connect_mps();
    if (code == OK && !has_context) {
        has_context = 1;
        used_mib = CONTEXT_MIB;
        show();
    }
    *context = &has_context;
    return code;
}

API int cuCtxSetCurrent(void *context) { (void)context; return OK; }
static unsigned long long room(void) { return (limit_mib ? limit_mib : total_mib) - used_mib; }

API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    *free_bytes = room() * MIB;
    *total = total_mib * MIB;
    return sticky;
}

API int cuMemAlloc_v2(uint64_t *pointer, size_t bytes)
{
    unsigned long long mib = (bytes + MIB - 1) / MIB;
    if (sticky)
        return sticky;
    if (mib > room())
        return OUT_OF_MEMORY;
    for (uint64_t n = 1; n < BLOCKS; n++)
        if (!block[n].mib) {
            block[n].mib = mib;
            used_mib += mib;
            *pointer = n << 40;
            show();
            return OK;
        }
    return OUT_OF_MEMORY;
}

API int cuMemAllocManaged(uint64_t *pointer, size_t bytes, unsigned flags)
{
    (void)flags;
    unsigned long long limit = limit_mib;
    limit_mib = 0; /* no process's limit counts managed memory here */
    int code = cuMemAlloc_v2(pointer, bytes);
    limit_mib = limit;
    return code;
}

API int cuMemFree_v2(uint64_t pointer)
{
    used_mib -= block[pointer >> 40].mib;
    block[pointer >> 40].mib = 0;
    show();
    return sticky;
}

API int cuMemsetD32_v2(uint64_t pointer, uint32_t word, size_t count)
{
    (void)count;
    block[pointer >> 40].word = word;
    return sticky;
}

API int cuMemcpyDtoH_v2(void *to, uint64_t pointer, size_t bytes)
{
    memcpy(to, &block[pointer >> 40].word, bytes);
    return sticky;
}

API int cuCtxSynchronize(void) { return sticky; }
API int cuModuleLoadData(void **module, const char *image) { *module = (void *)image; return OK; }

API int cuModuleGetFunction(void **function, void *module, const char *name)
{
    static int burn = 0, crash = 1;
    (void)module;
    *function = strcmp(name, "crash") == 0 ? &crash : &burn;
    return OK;
}

API int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void *stream, void **parameters, void **extra)
{
    char path[640], word[16];
    (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)stream, (void)extra;
    if (mps >= 0 && recv(mps, word, sizeof word, MSG_DONTWAIT) > 0)
        sticky = atoi(word); /* terminate_client */
    if (sticky)
        return sticky;
    if (*(int *)function)
        return sticky = ILLEGAL_ADDRESS;
    long long ns = NS_PER_ROUND * *(uint32_t *)parameters[1];
    struct timespec pause = {ns / 1000000000, ns % 1000000000};
    int lock = -1;
    if (mps < 0) {
        path_of(path, sizeof path, "card");
        lock = open(path, O_RDONLY | O_CLOEXEC);
        flock(lock, LOCK_EX);
    }
    nanosleep(&pause, NULL);
    if (lock >= 0)
        close(lock);
    return OK;
}

static int parked(int pid, char *path, size_t size, int *is_mps)
{
    char name[48], kind[16] = "";
    unsigned long long mib;
    snprintf(name, sizeof name, "%d", pid);
    path_of(path, size, name);
    FILE *file = fopen(path, "r");
    *is_mps = file && fscanf(file, "%llu %15s", &mib, kind) == 2 && strcmp(kind, "mps") == 0;
    if (file)
        fclose(file);
    snprintf(name, sizeof name, "%d.parked", pid);
    path_of(path, size, name);
    return access(path, F_OK) == 0;
}

API int cuCheckpointProcessGetState(int pid, int *value)
{
    char path[640];
    int is_mps;
    *value = parked(pid, path, sizeof path, &is_mps) ? 2 : 0;
    return OK;
}

API int cuCheckpointProcessLock(int pid, const unsigned *timeout_ms)
{
    char path[640];
    int is_mps;
    parked(pid, path, sizeof path, &is_mps);
    return is_mps ? NOT_SUPPORTED : *timeout_ms ? OK : INVALID_VALUE;
}

API int cuCheckpointProcessCheckpoint(int pid, void *arguments)
{
    char path[640];
    int is_mps;
    (void)arguments;
    if (parked(pid, path, sizeof path, &is_mps))
        return ILLEGAL_STATE;
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    return OK;
}

API int cuCheckpointProcessRestore(int pid, void *arguments)
{
    char path[640];
    int is_mps;
    (void)arguments;
    return parked(pid, path, sizeof path, &is_mps) && unlink(path) == 0 ? OK : ILLEGAL_STATE;
}

API int cuCheckpointProcessUnlock(int pid, void *arguments) { (void)pid, (void)arguments; return OK; }
