/*
 * libcuda.c - a stand-in for NVIDIA's driver: the functions that llmc calls, on the CPU.
 *
 * "Device" addresses are the host's plus an offset that makes them unusable to the host, as on a real GPU, and
 * every address is checked against what was allocated. Several threads may use it, each with streams of its own.
 * Modules are shared objects made by gpu_lab.py; the image that is loaded only has to be a fatbin. Environment: LLMC_EMULATED_KERNELS names the shared object, LLMC_EMULATED_FAIL is a
 * function that fails and with what: "cuMemAlloc_v2:2".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define OFFSET ((uint64_t)1 << 52)
#define REGIONS 256
#define STREAMS 64
#define ARGUMENTS 48
#define INVALID 1

typedef struct emu_kernel {
    const char *name;
    void *code;
    int n;
    const char *pointers;
    int waits;
} emu_kernel;

static struct {
    uint64_t at;
    size_t bytes;
} regions[REGIONS];
static void *kernels;
static const emu_kernel *(*find)(const char *);
static void (*launch)(const emu_kernel *, const uint64_t *, unsigned, unsigned);
static int context_of_device, streams[STREAMS]; /* 1: open */
static __thread int pushed;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the regions and streams, and held by a launch: kernels have statics */

static int planned(const char *function) {
    const char *plan = getenv("LLMC_EMULATED_FAIL");
    size_t length = strlen(function);
    return plan && strncmp(plan, function, length) == 0 && plan[length] == ':' ? atoi(plan + length + 1) : 0;
}

#define BEGIN \
    do { \
        int result = planned(__func__); \
        if (result) return result; \
    } while (0)

/* The host's address of `bytes` bytes of device memory, NULL if they are not all within one allocation. */
static char *host(uint64_t at, size_t bytes) {
    int i, found = 0;
    pthread_mutex_lock(&lock);
    for (i = 0; i < REGIONS && !found; i++)
        found = regions[i].bytes && at >= regions[i].at && at + bytes <= regions[i].at + regions[i].bytes;
    pthread_mutex_unlock(&lock);
    if (found) return (char *)(uintptr_t)(at - OFFSET);
    fprintf(stderr, "stand-in driver: %zu bytes at %#llx are no device memory\n", bytes, (unsigned long long)at);
    return NULL;
}

API int cuInit(unsigned flags) { BEGIN; return flags ? INVALID : 0; }

API int cuGetErrorString(int error, const char **text) {
    *text = error == 2 ? "out of memory" : error == 700 ? "an illegal memory access was encountered" : "invalid value";
    return 0;
}

API int cuDeviceGetCount(int *count) {
    BEGIN;
    *count = getenv("LLMC_EMULATED_NONE") ? 0 : 1;
    return 0;
}

API int cuDeviceGet(int *device, int number) { BEGIN; *device = number; return 0; }
API int cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, (size_t)size, "Stand-in"); return 0; }
API int cuDeviceGetAttribute(int *value, int attribute, int device) { (void)device; *value = attribute == 75 ? 6 : 1; return 0; }
API int cuDevicePrimaryCtxRetain(void **context, int device) { BEGIN; (void)device; *context = &context_of_device; return 0; }
API int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return pushed ? INVALID : 0; }
API int cuCtxPushCurrent_v2(void *context) { BEGIN; pushed++; return context == &context_of_device ? 0 : INVALID; }
API int cuCtxPopCurrent_v2(void **context) { *context = &context_of_device; return pushed-- > 0 ? 0 : INVALID; }

API int cuModuleLoadData(void **module, const void *image) {
    const char *path = getenv("LLMC_EMULATED_KERNELS");
    uint32_t magic;
    BEGIN;
    memcpy(&magic, image, sizeof magic);
    if (!pushed || magic != 0xBA55ED50u || !path) return INVALID;
    kernels = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!kernels) {
        fprintf(stderr, "stand-in driver: %s\n", dlerror());
        return INVALID;
    }
    *(void **)&find = dlsym(kernels, "emu_find");
    *(void **)&launch = dlsym(kernels, "emu_launch");
    *module = kernels;
    return 0;
}

API int cuModuleUnload(void *module) { return dlclose(module) ? INVALID : 0; }

API int cuModuleGetFunction(void **function, void *module, const char *name) {
    BEGIN;
    (void)module;
    *function = (void *)find(name);
    return *function ? 0 : 500; /* CUDA_ERROR_NOT_FOUND */
}

API int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    int i;
    void *memory;
    BEGIN;
    if (!pushed || !bytes || posix_memalign(&memory, 256, bytes)) return 2;
    memset(memory, 0xa5, bytes);
    pthread_mutex_lock(&lock);
    for (i = 0; i < REGIONS && regions[i].bytes; i++) continue;
    if (i < REGIONS) {
        regions[i].at = *at = (uint64_t)(uintptr_t)memory + OFFSET;
        regions[i].bytes = bytes;
    }
    pthread_mutex_unlock(&lock);
    return i < REGIONS ? 0 : 2;
}

API int cuMemFree_v2(uint64_t at) {
    int i;
    pthread_mutex_lock(&lock);
    for (i = 0; i < REGIONS && !(regions[i].bytes && regions[i].at == at); i++) continue;
    if (i < REGIONS) regions[i].bytes = 0;
    pthread_mutex_unlock(&lock);
    if (!pushed || i == REGIONS) return INVALID;
    free((void *)(uintptr_t)(at - OFFSET));
    return 0;
}

static int is_open(void *stream) {
    int i = (int)((int *)stream - streams);
    return stream && i >= 0 && i < STREAMS && streams[i];
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    char *memory = host(to, bytes);
    BEGIN;
    if (!is_open(stream) || !memory) return INVALID;
    memcpy(memory, from, bytes);
    return 0;
}

API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    char *memory = host(from, bytes);
    BEGIN;
    if (!is_open(stream) || !memory) return INVALID;
    memcpy(to, memory, bytes);
    return 0;
}

API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    char *target = host(to, bytes), *source = host(from, bytes);
    BEGIN;
    if (!is_open(stream) || !target || !source) return INVALID;
    memcpy(target, source, bytes);
    return 0;
}

API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    char *memory = host(to, bytes);
    BEGIN;
    if (!is_open(stream) || !memory) return INVALID;
    memset(memory, value, bytes);
    return 0;
}

API int cuStreamCreate(void **stream, unsigned flags) {
    int i;
    BEGIN;
    (void)flags;
    pthread_mutex_lock(&lock);
    for (i = 0; i < STREAMS && streams[i]; i++) continue;
    if (i < STREAMS) streams[i] = 1;
    pthread_mutex_unlock(&lock);
    *stream = &streams[i < STREAMS ? i : 0];
    return pushed && i < STREAMS ? 0 : INVALID;
}

API int cuStreamDestroy_v2(void *stream) {
    if (!is_open(stream)) return INVALID;
    *(int *)stream = 0;
    return 0;
}

API int cuStreamSynchronize(void *stream) { BEGIN; return is_open(stream) ? 0 : INVALID; }

API int cuLaunchKernel(void *function, unsigned blocks, unsigned blocks_y, unsigned blocks_z, unsigned threads,
                       unsigned threads_y, unsigned threads_z, unsigned shared, void *stream, void **parameters,
                       void **extra) {
    const emu_kernel *kernel = (const emu_kernel *)function;
    uint64_t arguments[ARGUMENTS] = {0};
    int i;
    BEGIN;
    if (blocks_y != 1 || blocks_z != 1 || threads_y != 1 || threads_z != 1 || shared || extra || !is_open(stream) || !blocks ||
        !threads || threads > 1024 || !pushed)
        return INVALID;
    for (i = 0; i < kernel->n; i++) {
        memcpy(&arguments[i], parameters[i], sizeof arguments[i]);
        if (kernel->pointers[i] != '*') continue;
        arguments[i] = (uint64_t)(uintptr_t)host(arguments[i], 1);
        if (!arguments[i]) return 700; /* CUDA_ERROR_ILLEGAL_ADDRESS */
    }
    pthread_mutex_lock(&lock);
    launch(kernel, arguments, blocks, threads);
    pthread_mutex_unlock(&lock);
    return 0;
}
