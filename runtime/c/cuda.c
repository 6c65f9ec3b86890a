/*
 * cuda.c - a CUDA artifact's model: finds the driver, loads the kernels, takes the weights to the GPU.
 *
 * Linked into CUDA artifacts only.
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#define NO_BINARY_FOR_GPU 209   /* CUDA_ERROR_NO_BINARY_FOR_GPU */
#define OUT_OF_MEMORY 2         /* CUDA_ERROR_OUT_OF_MEMORY */
#define CAPABILITY_MAJOR 75     /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR */
#define CAPABILITY_MINOR 76

llmc_status llmc_cuda_fail(const gpu *s, int result, const char *doing, llmc_error *error) {
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

static llmc_status find_gpu(gpu *s, llmc_error *error) {
    int count = 0, result = s->cuda.init(0);
    if (result != 0) return llmc_cuda_fail(s, result, "start", error);
    result = s->cuda.count(&count);
    if (result == 0 && count == 0)
        return llmc_fail(error, LLMC_ERROR_DEVICE, "is CUDA_VISIBLE_DEVICES empty?", "the driver sees no NVIDIA GPU");
    if (result == 0) result = s->cuda.device(&s->device, 0);
    if (result == 0) result = s->cuda.retain(&s->context, s->device);
    s->has_context = result == 0;
    return result == 0 ? LLMC_OK : llmc_cuda_fail(s, result, "use the GPU", error);
}

static llmc_status load_code(gpu *s, const llmc_program *program, llmc_error *error) {
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
    if (result != 0) return llmc_cuda_fail(s, result, "load the kernels", error);
    s->kernels = (function *)calloc((size_t)code->n_kernels + 1, sizeof *s->kernels);
    if (!s->kernels) return llmc_fail_memory(error, (size_t)code->n_kernels * sizeof *s->kernels);
    for (i = 0; i < code->n_kernels && result == 0; i++)
        result = s->cuda.find(&s->kernels[i], s->module, code->kernels[i].name);
    return result == 0 ? LLMC_OK : llmc_cuda_fail(s, result, "find a kernel", error);
}

static llmc_status upload_weights(llmc_model *model, gpu *s, llmc_error *error) {
    size_t bytes = (size_t)model->program->weights_bytes;
    stream once = NULL;
    int result = s->cuda.open_stream(&once, 0);
    if (result == 0 && bytes) result = s->cuda.allocate(&s->weights, bytes);
    if (result == 0 && bytes) result = s->cuda.upload(s->weights, model->map + LLMC_WEIGHTS_HEADER, bytes, once);
    if (result == 0) result = s->cuda.wait(once);
    if (once) (void)s->cuda.close_stream(once);
    return result == 0 ? LLMC_OK : llmc_cuda_fail(s, result, "take the weights", error);
}

llmc_status llmc_cuda_open(llmc_model *model, llmc_error *error) {
    gpu *s = (gpu *)calloc(1, sizeof *s);
    context none;
    llmc_status status;
    int result;
    if (!s) return llmc_fail_memory(error, sizeof *s);
    model->on_device = s;
    status = find_driver(&s->cuda, error);
    if (status == LLMC_OK) status = find_gpu(s, error);
    if (status != LLMC_OK) return status;
    result = s->cuda.push(s->context);
    if (result != 0) return llmc_cuda_fail(s, result, "use the GPU", error);
    status = load_code(s, model->program, error);
    if (status == LLMC_OK) status = upload_weights(model, s, error);
    (void)s->cuda.pop(&none);
    return status;
}

/* What cannot be given back is lost with the context: there is no one to tell. */
void llmc_cuda_close(llmc_model *model, int forked) {
    gpu *s = model->on_device;
    context none;
    if (!s) return;
    if (s->has_context && !forked) {
        if (s->cuda.push(s->context) == 0) {
            if (s->weights) (void)s->cuda.release_memory(s->weights);
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
