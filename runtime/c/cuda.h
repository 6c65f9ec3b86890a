/*
 * cuda.h - between cuda.c and cuda_run.c, the device of a CUDA artifact. Internal.
 *
 * Nothing of CUDA is needed to build it: the few functions of libcuda.so.1 that it calls are declared here as the
 * driver API documents them. A CUresult is an int, 0 for success.
 */
#ifndef LLMC_CUDA_H
#define LLMC_CUDA_H

#include "model.h"

typedef uint64_t device_pointer; /* CUdeviceptr */
typedef struct CUctx_st *context;
typedef struct CUmod_st *module;
typedef struct CUfunc_st *function;
typedef struct CUstream_st *stream;

/* X(field, symbol, parameters) */
#define DRIVER(X) \
    X(init, "cuInit", (unsigned)) \
    X(error_text, "cuGetErrorString", (int, const char **)) \
    X(count, "cuDeviceGetCount", (int *)) \
    X(device, "cuDeviceGet", (int *, int)) \
    X(name, "cuDeviceGetName", (char *, int, int)) \
    X(attribute, "cuDeviceGetAttribute", (int *, int, int)) \
    X(retain, "cuDevicePrimaryCtxRetain", (context *, int)) \
    X(release, "cuDevicePrimaryCtxRelease_v2", (int)) \
    X(push, "cuCtxPushCurrent_v2", (context)) \
    X(pop, "cuCtxPopCurrent_v2", (context *)) \
    X(load, "cuModuleLoadData", (module *, const void *)) \
    X(unload, "cuModuleUnload", (module)) \
    X(find, "cuModuleGetFunction", (function *, module, const char *)) \
    X(allocate, "cuMemAlloc_v2", (device_pointer *, size_t)) \
    X(release_memory, "cuMemFree_v2", (device_pointer)) \
    X(upload, "cuMemcpyHtoDAsync_v2", (device_pointer, const void *, size_t, stream)) \
    X(download, "cuMemcpyDtoHAsync_v2", (void *, device_pointer, size_t, stream)) \
    X(copy, "cuMemcpyDtoDAsync_v2", (device_pointer, device_pointer, size_t, stream)) \
    X(zero, "cuMemsetD8Async", (device_pointer, unsigned char, size_t, stream)) \
    X(open_stream, "cuStreamCreate", (stream *, unsigned)) \
    X(close_stream, "cuStreamDestroy_v2", (stream)) \
    X(wait, "cuStreamSynchronize", (stream)) \
    X(launch, "cuLaunchKernel", (function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, \
                                 stream, void **, void **))

typedef struct driver {
    void *library;
#define FIELD(field, symbol, parameters) int (*field) parameters;
    DRIVER(FIELD)
#undef FIELD
} driver;

struct llmc_device_model {
    driver cuda;
    int device, has_context;
    context context;
    module module;
    function *kernels;
    device_pointer weights; /* 0: none */
};

struct llmc_device_session {
    stream stream;
    llmc_region ends;   /* inputs and outputs, one after the other */
    device_pointer *at; /* of each of them */
    int failed;         /* first CUresult of the run in progress that is not 0 */
    const char *doing;  /* what failed */
};

typedef struct llmc_device_model gpu;
typedef struct llmc_device_session lane;

/* cuda.c */
llmc_status llmc_cuda_fail(const gpu *s, int result, const char *doing, llmc_error *error);
llmc_status llmc_cuda_open(llmc_model *model, llmc_error *error);
void llmc_cuda_close(llmc_model *model, int forked);

#endif
