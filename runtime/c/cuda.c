/*
 * cuda.c - the device of a CUDA artifact: finds the driver when a model is opened, runs its kernels in order.
 *
 * Linked into CUDA artifacts only. Nothing of CUDA is needed to build it: the few functions of libcuda.so.1 that it
 * calls are declared here as the driver API documents them. A CUresult is an int, 0 for success.
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

typedef uint64_t device_pointer; /* CUdeviceptr */
typedef struct CUctx_st *context;
typedef struct CUmod_st *module;
typedef struct CUfunc_st *function;
typedef struct CUstream_st *stream;

#define NO_BINARY_FOR_GPU 209   /* CUDA_ERROR_NO_BINARY_FOR_GPU */
#define OUT_OF_MEMORY 2         /* CUDA_ERROR_OUT_OF_MEMORY */
#define CAPABILITY_MAJOR 75     /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR */
#define CAPABILITY_MINOR 76
#define MOST_ARGUMENTS 48

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

typedef struct region {
    device_pointer at;
    size_t bytes;
} region;

struct llmc_device_state {
    driver cuda;
    int device, has_context;
    context context;
    module module;
    stream stream;
    function *kernels;
    region weights, arena, ends; /* `ends`: inputs and outputs, one after the other */
    int failed;                  /* first CUresult of the run in progress that is not 0 */
    const char *doing;           /* what failed */
};

typedef struct llmc_device_state state;

static llmc_status fail(const state *s, int result, const char *doing, llmc_error *error) {
    const char *text = NULL;
    llmc_status status = result == OUT_OF_MEMORY ? LLMC_ERROR_MEMORY : LLMC_ERROR_DEVICE;
    if (s->cuda.error_text(result, &text) != 0 || !text) text = "unknown error";
    return llmc_fail(error, status, result == OUT_OF_MEMORY ? "use smaller inputs or free GPU memory" : NULL,
                     "the GPU driver could not %s: %s (CUDA error %d)", doing, text, result);
}

/* dlsym() gives an object pointer; POSIX says that its bits are the function's. */
static int resolve(void *library, const char *symbol, void *field) {
    void *found = dlsym(library, symbol);
    memcpy(field, &found, sizeof found);
    return found != NULL;
}

static llmc_status find_driver(driver *cuda, llmc_error *error) {
    static const char hint[] = "install the NVIDIA driver, or compile the model for a CPU target";
    const char *missing = NULL;
    cuda->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!cuda->library) {
        const char *why = dlerror();
        return llmc_fail(error, LLMC_ERROR_DEVICE, hint, "no NVIDIA driver found: %s",
                         why ? why : "libcuda.so.1 cannot be loaded");
    }
#define RESOLVE(field, symbol, parameters) \
    if (!resolve(cuda->library, symbol, &cuda->field)) missing = symbol;
    DRIVER(RESOLVE)
#undef RESOLVE
    if (!missing) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_DEVICE, "update the NVIDIA driver", "libcuda.so.1 lacks %s", missing);
}

static llmc_status find_gpu(state *s, llmc_error *error) {
    int count = 0, result = s->cuda.init(0);
    if (result != 0) return fail(s, result, "start", error);
    result = s->cuda.count(&count);
    if (result == 0 && count == 0)
        return llmc_fail(error, LLMC_ERROR_DEVICE, "is CUDA_VISIBLE_DEVICES empty?", "the driver sees no NVIDIA GPU");
    if (result == 0) result = s->cuda.device(&s->device, 0);
    if (result == 0) result = s->cuda.retain(&s->context, s->device);
    s->has_context = result == 0;
    return result == 0 ? LLMC_OK : fail(s, result, "use the GPU", error);
}

static llmc_status load_code(state *s, const llmc_program *program, llmc_error *error) {
    const llmc_gpu_code *code = program->gpu;
    int i, result = s->cuda.load(&s->module, code->image);
    if (result == NO_BINARY_FOR_GPU) {
        char name[100] = "the GPU";
        int major = 0, minor = 0;
        s->module = NULL;
        (void)s->cuda.name(name, (int)sizeof name, s->device);
        (void)s->cuda.attribute(&major, CAPABILITY_MAJOR, s->device);
        (void)s->cuda.attribute(&minor, CAPABILITY_MINOR, s->device);
        return llmc_fail(error, LLMC_ERROR_DEVICE, "compile the model with --target cuda, or for that architecture",
                         "the artifact has code for %s, but %s is sm_%d%d", code->architectures, name, major, minor);
    }
    if (result != 0) return fail(s, result, "load the kernels", error);
    s->kernels = (function *)calloc((size_t)code->n_kernels + 1, sizeof *s->kernels);
    if (!s->kernels) return llmc_fail_memory(error, (size_t)code->n_kernels * sizeof *s->kernels);
    for (i = 0; i < code->n_kernels && result == 0; i++)
        result = s->cuda.find(&s->kernels[i], s->module, code->kernels[i].name);
    return result == 0 ? LLMC_OK : fail(s, result, "find a kernel", error);
}

/* Make `memory` hold at least `bytes`; what it held is lost. */
static int grow(state *s, region *memory, size_t bytes) {
    int result = 0;
    if (bytes <= memory->bytes) return 0;
    if (memory->bytes) result = s->cuda.release_memory(memory->at);
    memory->bytes = 0;
    if (result == 0) result = s->cuda.allocate(&memory->at, bytes);
    if (result == 0) memory->bytes = bytes;
    return result;
}

static llmc_status upload_weights(llmc_model *model, state *s, llmc_error *error) {
    size_t bytes = (size_t)model->program->weights_bytes;
    int result = s->cuda.open_stream(&s->stream, 0);
    if (result == 0 && bytes) result = grow(s, &s->weights, bytes);
    if (result == 0 && bytes)
        result = s->cuda.upload(s->weights.at, model->map + LLMC_WEIGHTS_HEADER, bytes, s->stream);
    if (result == 0) result = s->cuda.wait(s->stream);
    return result == 0 ? LLMC_OK : fail(s, result, "take the weights", error);
}

static llmc_status open_device(llmc_model *model, llmc_error *error) {
    state *s = (state *)calloc(1, sizeof *s);
    context none;
    llmc_status status;
    int result;
    if (!s) return llmc_fail_memory(error, sizeof *s);
    model->device = s;
    status = find_driver(&s->cuda, error);
    if (status == LLMC_OK) status = find_gpu(s, error);
    if (status != LLMC_OK) return status;
    result = s->cuda.push(s->context);
    if (result != 0) return fail(s, result, "use the GPU", error);
    status = load_code(s, model->program, error);
    if (status == LLMC_OK) status = upload_weights(model, s, error);
    (void)s->cuda.pop(&none);
    return status;
}

static void free_region(state *s, region *memory) {
    if (memory->bytes) (void)s->cuda.release_memory(memory->at);
}

/* What cannot be given back is lost with the context: there is no one to tell. */
static void close_device(llmc_model *model, int forked) {
    state *s = model->device;
    context none;
    if (!s) return;
    if (s->has_context && !forked) {
        if (s->cuda.push(s->context) == 0) {
            free_region(s, &s->weights);
            free_region(s, &s->arena);
            free_region(s, &s->ends);
            if (s->stream) (void)s->cuda.close_stream(s->stream);
            if (s->module) (void)s->cuda.unload(s->module);
            (void)s->cuda.pop(&none);
        }
        (void)s->cuda.release(s->device);
    }
    /* The driver has threads of its own: once started it stays loaded. */
    if (s->cuda.library && !s->has_context && !forked) dlclose(s->cuda.library);
    free(s->kernels);
    free(s);
}

static size_t tensor_bytes(const llmc_tensor_spec *spec, const int64_t *shape, const int64_t *sizes) {
    size_t bytes = llmc_dtype_size(spec->dtype);
    int axis;
    for (axis = 0; axis < spec->rank; axis++) {
        int64_t d = spec->dims[axis];
        bytes *= (size_t)(shape ? shape[axis] : d >= 0 ? d : sizes[-1 - d]);
    }
    return bytes;
}

static size_t padded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static void note(state *s, int result, const char *doing) {
    if (s->failed || result == 0) return;
    s->failed = result;
    s->doing = doing;
}

void llmc_launch(llmc_frame *frame, int step, int kernel, const uint64_t *arguments, int n, int64_t blocks) {
    llmc_model *model = (llmc_model *)frame->runtime;
    state *s = model->device;
    void *parameters[MOST_ARGUMENTS];
    double begin = model->step_seconds ? llmc_now() : 0;
    int i;
    if (s->failed || blocks == 0) return;
    if (n > MOST_ARGUMENTS || blocks > INT32_MAX) {
        note(s, 1, "launch so large a kernel"); /* CUDA_ERROR_INVALID_VALUE */
        return;
    }
    for (i = 0; i < n; i++) parameters[i] = (void *)&arguments[i];
    note(s,
         s->cuda.launch(s->kernels[kernel], (unsigned)blocks, 1, 1, (unsigned)model->program->gpu->kernels[kernel].threads,
                        1, 1, 0, s->stream, parameters, NULL),
         "launch a kernel");
    if (!model->step_seconds) return;
    note(s, s->cuda.wait(s->stream), "run a kernel");
    model->step_seconds[step] += llmc_now() - begin;
}

void llmc_copy(llmc_frame *frame, int step, void *to, const void *from, size_t bytes) {
    state *s = ((llmc_model *)frame->runtime)->device;
    (void)step;
    if (s->failed || !bytes) return;
    note(s, s->cuda.copy((device_pointer)(uintptr_t)to, (device_pointer)(uintptr_t)from, bytes, s->stream),
         "copy an output");
}

/* Addresses of inputs and outputs in `ends`; the size of all. NULL tensors: only the size. */
static size_t place_ends(const llmc_program *program, const llmc_tensor *outputs, const int64_t *sizes,
                         device_pointer base, device_pointer *at) {
    size_t used = 0;
    int i;
    for (i = 0; i < program->n_inputs; i++) {
        if (at) at[i] = base + used;
        used += padded(tensor_bytes(&program->inputs[i], NULL, sizes) + 1);
    }
    for (i = 0; i < program->n_outputs; i++) {
        if (at) at[program->n_inputs + i] = base + used;
        used += padded(tensor_bytes(&program->outputs[i], outputs[i].shape, sizes) + 1);
    }
    return used;
}

static void run_kernels(llmc_model *model, const llmc_tensor *outputs, const int64_t *sizes, device_pointer *at) {
    const llmc_program *program = model->program;
    state *s = model->device;
    llmc_frame frame;
    int i;
    place_ends(program, outputs, sizes, s->ends.at, at);
    for (i = 0; i < program->n_inputs; i++) {
        size_t bytes = tensor_bytes(&program->inputs[i], NULL, sizes);
        if (bytes) note(s, s->cuda.upload(at[i], model->inputs[i], bytes, s->stream), "take an input");
    }
    for (i = 0; i < program->n_inputs; i++) model->inputs[i] = (const void *)(uintptr_t)at[i];
    for (i = 0; i < program->n_outputs; i++) model->outputs[i] = (void *)(uintptr_t)at[program->n_inputs + i];
    frame.dims = sizes;
    frame.weights = (const unsigned char *)(uintptr_t)s->weights.at;
    frame.arena = (unsigned char *)(uintptr_t)s->arena.at;
    frame.inputs = model->inputs;
    frame.outputs = model->outputs;
    frame.runtime = model;
    program->run(&frame, model->variant->kernels);
    for (i = 0; i < program->n_outputs; i++) {
        size_t bytes = tensor_bytes(&program->outputs[i], outputs[i].shape, sizes);
        if (s->failed || !bytes) continue;
        note(s, s->cuda.download(outputs[i].data, at[program->n_inputs + i], bytes, s->stream), "give an output");
    }
    note(s, s->cuda.wait(s->stream), "run the kernels");
}

static llmc_status run_device(llmc_model *model, const llmc_tensor *outputs, const int64_t *sizes, llmc_error *error) {
    const llmc_program *program = model->program;
    size_t ends = (size_t)(program->n_inputs + program->n_outputs) + 1;
    state *s = model->device;
    device_pointer *at;
    context none;
    int result = s->cuda.push(s->context);
    if (result != 0) return fail(s, result, "use the GPU", error);
    at = (device_pointer *)malloc(ends * sizeof *at);
    s->failed = 0;
    s->doing = "find memory";
    note(s, grow(s, &s->arena, program->arena_bytes(sizes) + 64), "find memory");
    note(s, grow(s, &s->ends, place_ends(program, outputs, sizes, 0, NULL) + 64), "find memory");
    if (at && !s->failed) run_kernels(model, outputs, sizes, at);
    (void)s->cuda.pop(&none);
    if (!at) return llmc_fail_memory(error, ends * sizeof *at);
    free(at);
    return s->failed ? fail(s, s->failed, s->doing, error) : LLMC_OK;
}

const llmc_device llmc_cuda = {open_device, close_device, run_device};
