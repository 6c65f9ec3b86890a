/*
 * open.c - from a folder to a model that is ready to run, and back.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"

#define MAX_THREADS 1024
#define SPIN_US 100       /* longer than the pause between two jobs of a run */
#define CROWDED_SPIN_US 5 /* with more threads than cores, waiting keeps others from working */

static llmc_status check_input(const llmc_program *program, const llmc_tensor_spec *spec, llmc_error *error) {
    double value = spec->default_value;
    int axis, is_half = spec->dtype == LLMC_F16 || spec->dtype == LLMC_BF16;
    if (is_half && value != 0 && value != 1)
        return llmc_fail(error, LLMC_ERROR_MODULE, NULL, "the default of input %s must be 0 or 1 for its type",
                         spec->name);
    for (axis = 0; axis < spec->rank; axis++)
        if (spec->dims[axis] < -(int64_t)program->n_dims)
            return llmc_fail(error, LLMC_ERROR_MODULE, NULL,
                             "axis %d of input %s is an expression; inputs have fixed sizes and dims only", axis,
                             spec->name);
    return LLMC_OK;
}

/* For whoever writes the code generator: a program that gets here was made by it. */
static llmc_status check_program(const llmc_program *program, llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    if (program->abi != LLMC_MODULE_ABI)
        return llmc_fail(error, LLMC_ERROR_MODULE, "compile the model again",
                         "module.so was generated for runtime %u, but linked with runtime %u", program->abi,
                         LLMC_MODULE_ABI);
    if (program->n_dims + program->n_counted > LLMC_MAX_DIMS)
        return llmc_fail(error, LLMC_ERROR_MODULE, NULL, "the program has %d dims, at most %d are possible",
                         program->n_dims + program->n_counted, LLMC_MAX_DIMS);
    for (i = 0; i < program->n_inputs && status == LLMC_OK; i++)
        status = check_input(program, &program->inputs[i], error);
    return status;
}

static llmc_status forced_variant(llmc_model *model, const char *name, llmc_error *error) {
    const llmc_program *program = model->program;
    char names[200] = "";
    int i;
    for (i = 0; i < program->n_variants; i++) {
        size_t used = strlen(names);
        if (strcmp(program->variants[i].name, name) == 0) {
            model->variant = &program->variants[i];
            return LLMC_OK;
        }
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "use one of: ", program->variants[i].name);
    }
    return llmc_fail(error, LLMC_ERROR_ARGUMENT, names, "the artifact has no variant '%s'", name);
}

static llmc_status pick_variant(llmc_model *model, const char *name, llmc_error *error) {
    const llmc_program *program = model->program;
    unsigned have = llmc_cpu_features(), missing = 0;
    char text[200];
    int i;
    if (name) {
        llmc_status status = forced_variant(model, name, error);
        if (status != LLMC_OK) return status;
        missing = model->variant->features & ~have;
    } else {
        for (i = 0; i < program->n_variants; i++) {
            model->variant = &program->variants[i];
            missing = model->variant->features & ~have;
            if (!missing) return LLMC_OK;
        }
    }
    if (!model->variant) return llmc_fail(error, LLMC_ERROR_MODULE, NULL, "the artifact holds no code");
    if (!missing) return LLMC_OK;
    llmc_cpu_feature_names(missing, text, sizeof text);
    return llmc_fail(error, LLMC_ERROR_CPU,
                     name ? "leave the choice of variant to the runtime" : "compile the model for this processor",
                     "this processor, or its operating system, lacks %s, which variant %s of the artifact needs", text,
                     model->variant->name);
}

static llmc_status check_header(const llmc_model *model, const char *path, llmc_error *error) {
    static const char again[] = "compile the model again, or copy the whole artifact";
    const llmc_program *program = model->program;
    const unsigned char *header = model->map;
    uint64_t payload = 0;
    int i;
    if (memcmp(header, "LLMCWTS1", 8) != 0)
        return llmc_fail(error, LLMC_ERROR_WEIGHTS, again, "%s is not a weights file: it does not start with LLMCWTS1",
                         path);
    if (memcmp(header + 8, program->build_id, 64) != 0)
        return llmc_fail(error, LLMC_ERROR_WEIGHTS, again, "%s belongs to another build: id %.12s..., expected %.12s...",
                         path, (const char *)header + 8, program->build_id);
    for (i = 7; i >= 0; i--) payload = payload << 8 | header[72 + i];
    if (payload != program->weights_bytes)
        return llmc_fail(error, LLMC_ERROR_WEIGHTS, again, "the header of %s says %llu bytes of weights, expected %llu",
                         path, (unsigned long long)payload, (unsigned long long)program->weights_bytes);
    for (i = 80; i < LLMC_WEIGHTS_HEADER; i++)
        if (header[i]) return llmc_fail(error, LLMC_ERROR_WEIGHTS, again, "byte %d of %s is not zero", i, path);
    return LLMC_OK;
}

static llmc_status hash_weights(const llmc_model *model, const char *path, llmc_error *error) {
    const char *expected = model->program->weights_sha256;
    llmc_sha256 hash;
    char found[65];
    if (!expected)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "open without check_weights", "the hash of %s is not known", path);
    llmc_sha256_start(&hash);
    llmc_sha256_add(&hash, model->map + LLMC_WEIGHTS_HEADER, model->map_bytes - LLMC_WEIGHTS_HEADER);
    llmc_sha256_hex(&hash, found);
    if (strcmp(found, expected) == 0) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_WEIGHTS, "copy the artifact again",
                     "%s is damaged: its weights have sha256 %.12s..., expected %.12s...", path, found, expected);
}

/* Map an open file if it has the right kind and size. */
static llmc_status map_file(llmc_model *model, const char *path, int file, llmc_error *error) {
    uint64_t expected = LLMC_WEIGHTS_HEADER + model->program->weights_bytes;
    struct stat info;
    void *map;
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode))
        return llmc_fail(error, LLMC_ERROR_FILE, NULL, "%s is not a file", path);
    if ((uint64_t)info.st_size != expected)
        return llmc_fail(error, LLMC_ERROR_WEIGHTS, "copy the artifact again", "%s has %lld bytes, expected %llu", path,
                         (long long)info.st_size, (unsigned long long)expected);
    if (expected > SIZE_MAX) return llmc_fail_memory(error, SIZE_MAX);
    map = mmap(NULL, (size_t)expected, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED)
        return llmc_fail(error, LLMC_ERROR_MEMORY, NULL, "cannot map %s: %s", path, strerror(errno));
    model->map = (unsigned char *)map;
    model->map_bytes = (size_t)expected;
    madvise(map, (size_t)expected, MADV_WILLNEED); /* advice only */
    return LLMC_OK;
}

static llmc_status map_weights(llmc_model *model, const char *directory, int check, llmc_error *error) {
    char path[4096];
    llmc_status status;
    int file;
    if (snprintf(path, sizeof path, "%s/weights.bin", directory) >= (int)sizeof path)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "the path has more than %d bytes", (int)sizeof path);
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return llmc_fail(error, LLMC_ERROR_FILE, "give the artifact's folder", "cannot open %s: %s", path,
                         strerror(errno));
    status = map_file(model, path, file, error);
    close(file);
    if (status == LLMC_OK) status = check_header(model, path, error);
    if (status == LLMC_OK && check) status = hash_weights(model, path, error);
    return status;
}

static void describe(llmc_model *model) {
    const llmc_program *program = model->program;
    llmc_info *info = &model->info;
    info->name = program->name;
    info->build_id = program->build_id;
    info->variant = model->variant->name;
    info->threads = model->pool_can->threads(model->pool);
    info->n_dims = program->n_dims;
    info->n_inputs = program->n_inputs;
    info->n_outputs = program->n_outputs;
    info->n_steps = program->n_steps;
    info->dims = program->dims;
    info->inputs = program->inputs;
    info->outputs = program->outputs;
    info->weights_bytes = program->weights_bytes;
}

static const llmc_options DEFAULTS = {0, 0, 0, 0, NULL, NULL};

static llmc_status start_threads(const llmc_options *options, int usual, size_t scratch_bytes, llmc_pool **pool,
                                 llmc_error *error) {
    int cores = llmc_usable_cores(), threads = options->threads ? options->threads : usual ? usual : cores;
    int spin_us = options->spin_us ? options->spin_us : threads > cores ? CROWDED_SPIN_US : SPIN_US;
    if (threads < 1 || threads > MAX_THREADS)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "0 means one for each core",
                         "threads is %d, must be within 0..%d", threads, MAX_THREADS);
    return llmc_pool_open(pool, threads, spin_us, options->pin, scratch_bytes, error);
}

llmc_status llmc_threads_open(const llmc_options *options, llmc_threads **threads, llmc_error *error) {
    llmc_pool *pool = NULL;
    llmc_status status;
    if (!threads) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "threads must not be NULL");
    *threads = NULL;
    status = start_threads(options ? options : &DEFAULTS, 0, 0, &pool, error);
    *threads = (llmc_threads *)(void *)pool;
    return status;
}

void llmc_threads_close(llmc_threads *threads) {
    if (threads) llmc_pool_close((llmc_pool *)(void *)threads);
}

void llmc_lock(llmc_model *model) {
    pthread_mutex_lock(&model->lock);
    if (model->pool_shared) model->pool_can->turn(model->pool, 1);
}

void llmc_unlock(llmc_model *model) {
    if (model->pool_shared) model->pool_can->turn(model->pool, 0);
    pthread_mutex_unlock(&model->lock);
}

static llmc_status join_threads(llmc_model *model, llmc_threads *shared, llmc_error *error) {
    llmc_status status;
    if (shared->functions->version != LLMC_VERSION)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "compile both artifacts with the same llmc",
                         "the shared threads speak version %d of llmc.h, this module version %d",
                         shared->functions->version, LLMC_VERSION);
    model->pool = (llmc_pool *)(void *)shared;
    model->pool_can = shared->functions;
    model->pool_shared = 1;
    model->pool_can->turn(model->pool, 1);
    status = model->pool_can->reserve(model->pool, model->program->scratch_bytes, error);
    model->pool_can->turn(model->pool, 0);
    return status;
}

static llmc_status start(llmc_model *model, const llmc_options *options, llmc_error *error) {
    const llmc_program *program = model->program;
    model->inputs = (const void **)calloc((size_t)program->n_inputs + 1, sizeof *model->inputs);
    model->outputs = (void **)calloc((size_t)program->n_outputs + 1, sizeof *model->outputs);
    if (!model->inputs || !model->outputs) return llmc_fail_memory(error, sizeof(void *));
    if (options->shared) return join_threads(model, options->shared, error);
    model->pool_can = &llmc_pool_can;
    return start_threads(options, program->device ? 1 : 0, program->scratch_bytes, &model->pool, error);
}

llmc_status llmc_open(const char *directory, const llmc_options *options, llmc_model **out, llmc_error *error) {
    double begin = llmc_now();
    llmc_model *model;
    llmc_status status;
    if (!directory || !out) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "directory and model must not be NULL");
    if (!options) options = &DEFAULTS;
    *out = NULL;
    model = (llmc_model *)calloc(1, sizeof *model);
    if (!model) return llmc_fail_memory(error, sizeof *model);
    model->program = &llmc_this_program;
    model->owner = getpid();
    pthread_mutex_init(&model->lock, NULL);
    status = check_program(model->program, error);
    if (status == LLMC_OK) status = pick_variant(model, options->variant, error);
    if (status == LLMC_OK) status = map_weights(model, directory, options->check_weights, error);
    if (status == LLMC_OK) status = start(model, options, error);
    if (status == LLMC_OK && model->program->device) status = model->program->device->open(model, error);
    if (status != LLMC_OK) {
        llmc_close(model);
        return status;
    }
    describe(model);
    model->info.load_seconds = llmc_now() - begin;
    *out = model;
    return LLMC_OK;
}

void llmc_close(llmc_model *model) {
    if (!model) return;
    if (model->program->device) model->program->device->close(model, model->owner != getpid());
    if (model->pool && !model->pool_shared) (model->owner == getpid() ? llmc_pool_close : llmc_pool_abandon)(model->pool);
    if (model->map) munmap(model->map, model->map_bytes);
    if (model->owner == getpid()) pthread_mutex_destroy(&model->lock);
    free(model->arena);
    free(model->defaults);
    free(model->inputs);
    free(model->outputs);
    free(model);
}

const llmc_info *llmc_describe(const llmc_model *model) {
    return model ? &model->info : NULL;
}
