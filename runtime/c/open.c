/*
 * open.c - from a folder to a model that is ready to run, and back.
 */
#define _GNU_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model.h"

static llmc_status check_input(const llmc_function *function, const llmc_tensor_spec *spec, llmc_error *error) {
    double value = spec->default_value;
    int axis, is_half = spec->dtype == LLMC_F16 || spec->dtype == LLMC_BF16;
    if (is_half && value != 0 && value != 1)
        return llmc_fail(error, LLMC_ERROR_MODULE, NULL, "the default of input %s must be 0 or 1 for its type",
                         spec->name);
    for (axis = 0; axis < spec->rank; axis++)
        if (spec->dims[axis] == INT64_MIN && !function->input_shape)
            return llmc_fail(error, LLMC_ERROR_MODULE, NULL,
                             "axis %d of input %s is an expression that the program does not compute", axis, spec->name);
    return LLMC_OK;
}

static llmc_status check_state(const llmc_program *program, const llmc_state_spec *spec, llmc_error *error) {
    int64_t d = spec->grows >= 0 && spec->grows < spec->rank ? -1 - spec->dims[spec->grows] : -1;
    if (spec->grows < 0 || (d >= 0 && d < program->n_dims)) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_MODULE, NULL, "the axis along which state %s grows is not a dim", spec->name);
}

static llmc_status check_function(const llmc_program *program, const llmc_function *function, llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    if (program->n_dims + function->n_counted > LLMC_MAX_DIMS)
        return llmc_fail(error, LLMC_ERROR_MODULE, NULL, "the program has %d dims, at most %d are possible",
                         program->n_dims + function->n_counted, LLMC_MAX_DIMS);
    for (i = 0; i < function->n_inputs && status == LLMC_OK; i++)
        status = check_input(function, &function->inputs[i], error);
    return status;
}

/* For whoever writes the code generator: a program that gets here was made by it. */
static llmc_status check_program(const llmc_program *program, llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    if (program->abi != LLMC_MODULE_ABI)
        return llmc_fail(error, LLMC_ERROR_MODULE, "compile the model again",
                         "module.so was generated for runtime %u, but linked with runtime %u", program->abi,
                         LLMC_MODULE_ABI);
    if (program->n_functions < 1) return llmc_fail(error, LLMC_ERROR_MODULE, NULL, "the program has no function");
    for (i = 0; i < program->n_functions && status == LLMC_OK; i++)
        status = check_function(program, &program->functions[i], error);
    for (i = 0; i < program->n_states && status == LLMC_OK; i++)
        status = check_state(program, &program->states[i], error);
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

/* What llmc_describe() tells. */
static llmc_status describe(llmc_model *model, llmc_error *error) {
    const llmc_program *program = model->program;
    size_t n = (size_t)program->n_functions;
    llmc_function_info *functions = (llmc_function_info *)calloc(n, sizeof *functions);
    llmc_info *info = &model->info;
    size_t i;
    if (!functions) return llmc_fail_memory(error, n * sizeof *functions);
    for (i = 0; i < n; i++) {
        const llmc_function *f = &program->functions[i];
        const llmc_function_info one = {f->name,   f->n_inputs, f->n_outputs, f->n_steps,
                                        f->inputs, f->outputs,  f->dims_used, f->state_use,
                                        f->batches && !model->device->single, f->batches ? model->device->single : f->single};
        functions[i] = one;
    }
    model->functions = functions;
    info->name = program->name;
    info->build_id = program->build_id;
    info->variant = model->variant->name;
    info->threads = model->pool_can->threads(model->pool);
    info->n_dims = program->n_dims;
    info->n_inputs = functions->n_inputs;
    info->n_outputs = functions->n_outputs;
    info->n_steps = functions->n_steps;
    info->dims = program->dims;
    info->inputs = functions->inputs;
    info->outputs = functions->outputs;
    info->weights_bytes = program->weights_bytes;
    info->n_functions = program->n_functions;
    info->n_states = program->n_states;
    info->functions = functions;
    info->states = program->states;
    info->n_adapters = program->n_adapters;
    info->adapters = program->adapters;
    return LLMC_OK;
}

static const llmc_options DEFAULTS = {0, 0, 0, 0, NULL, NULL, 0};

static llmc_status find_threads(llmc_model *model, const llmc_options *options, llmc_error *error) {
    size_t scratch = model->program->scratch_bytes;
    int threads = options->threads ? options->threads : model->device->threads;
    model->pool_shared = options->shared != NULL;
    if (options->shared) return llmc_join_threads(options->shared, scratch, &model->pool, &model->pool_can, error);
    model->pool_can = &llmc_pool_can;
    return llmc_start_threads(threads, options->spin_us, options->pin, scratch, &model->pool, error);
}

static llmc_status open_parts(llmc_model *model, const char *directory, const llmc_options *options,
                              llmc_error *error) {
    llmc_status status = check_program(model->program, error);
    if (status == LLMC_OK) status = pick_variant(model, options->variant, error);
    if (status == LLMC_OK) status = llmc_map_weights(model, directory, error);
    if (status == LLMC_OK) status = find_threads(model, options, error);
    if (status == LLMC_OK && !options->skip_weights_check) status = llmc_check_weights(model, directory, error);
    if (status == LLMC_OK) status = model->device->open(model, error);
    if (status == LLMC_OK) status = describe(model, error);
    if (status == LLMC_OK) llmc_store_open(model);
    return status == LLMC_OK ? llmc_session_open(model, NULL, &model->own, error) : status;
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
    model->device = model->program->device ? model->program->device : &llmc_host;
    model->owner = getpid();
    model->users = 1;
    model->max_memory = options->max_memory;
    status = open_parts(model, directory, options, error);
    if (status != LLMC_OK) {
        llmc_close(model);
        return status;
    }
    model->info.load_seconds = llmc_now() - begin;
    *out = model;
    return LLMC_OK;
}

void llmc_model_leave(llmc_model *model) {
    int forked = model->owner != getpid();
    if (__atomic_sub_fetch(&model->users, 1, __ATOMIC_ACQ_REL)) return;
    model->device->close(model, forked);
    if (model->pool && !model->pool_shared) (forked ? llmc_pool_abandon : llmc_pool_close)(model->pool);
    if (model->map) munmap(model->map, model->map_bytes);
    llmc_store_close(model);
    free(model->functions);
    free(model);
}

void llmc_close(llmc_model *model) {
    if (!model) return;
    llmc_session_close(model->own);
    llmc_model_leave(model);
}

const llmc_info *llmc_describe(const llmc_model *model) {
    return model ? &model->info : NULL;
}
