/*
 * generator.c - the function that generates: its arguments by name, and what their types must be.
 */
#include <string.h>

#include "generate.h"

static int find(const char *name, const llmc_tensor_spec *specs, int n) {
    int i;
    for (i = 0; i < n; i++)
        if (strcmp(specs[i].name, name) == 0) return i;
    return -1;
}

static llmc_status no_generator(const llmc_function *function, const char *what, const char *name, llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_ARGUMENT, "generating needs a function of tokens i64 [1, seq] that gives logits f32 [1, kept, vocabulary]",
                     "function %s does not generate: %s %.60s", function->name, what, name);
}

static int64_t most(const llmc_program *program, int64_t size) {
    return size >= 0 ? size : size == INT64_MIN ? INT64_MAX : program->dims[-1 - size].high;
}

static llmc_status check_others(const llmc_function *function, const llmc_generator *found, llmc_error *error) {
    int i;
    if (function->n_inputs > LLMC_MOST_INPUTS) return no_generator(function, "it has more inputs than", "16", error);
    for (i = 0; i < function->n_inputs; i++)
        if (i != found->tokens && i != found->keep && !function->inputs[i].has_default)
            return no_generator(function, "it also takes", function->inputs[i].name, error);
    if (function->n_outputs != 1) return no_generator(function, "it also gives more than", function->outputs[0].name, error);
    return LLMC_OK;
}

static llmc_status find_arguments(const llmc_program *program, const char *const *names, llmc_generator *found,
                                  llmc_error *error) {
    const llmc_function *function = found->function;
    int logits = find(names[3], function->outputs, function->n_outputs);
    const llmc_tensor_spec *in, *out;
    found->tokens = find(names[1], function->inputs, function->n_inputs);
    found->keep = find(names[2], function->inputs, function->n_inputs);
    if (found->tokens < 0) return no_generator(function, "it has no input", names[1], error);
    if (logits < 0) return no_generator(function, "it has no output", names[3], error);
    in = &function->inputs[found->tokens];
    out = &function->outputs[logits];
    if (in->dtype != LLMC_I64 || in->rank != 2) return no_generator(function, "no tokens are", in->name, error);
    if (out->dtype != LLMC_F32 || out->rank != 3 || out->dims[2] < 1)
        return no_generator(function, "no logits are", out->name, error);
    found->vocabulary = out->dims[2];
    found->chunk = most(program, in->dims[1]);
    found->kept = found->chunk;
    if (found->keep < 0) return check_others(function, found, error);
    in = &function->inputs[found->keep];
    if (in->dtype != LLMC_I64 || in->rank != 1) return no_generator(function, "no places are", in->name, error);
    found->kept = most(program, in->dims[0]);
    return check_others(function, found, error);
}

static const char *or_usual(const char *name, const char *usual) {
    return name ? name : usual;
}

llmc_status llmc_find_generator(const llmc_model *model, const llmc_generate_options *options, llmc_generator *found,
                                llmc_error *error) {
    const char *names[4];
    int d = llmc_growing_dim(model->program), number;
    names[0] = or_usual(options->function, "step");
    names[1] = or_usual(options->tokens, "input_ids");
    names[2] = or_usual(options->keep, "logits_to_keep");
    names[3] = or_usual(options->logits, "logits");
    number = llmc_find_function(model, names[0], error);
    if (number < 0) return LLMC_ERROR_ARGUMENT;
    found->function = &model->program->functions[number];
    found->longest = d >= 0 ? model->program->dims[d].high : INT64_MAX;
    return find_arguments(model->program, names, found, error);
}

static void fill(llmc_tensor *tensor, const void *data, int dtype, int rank, int64_t first, int64_t second, int64_t third) {
    memset(tensor, 0, sizeof *tensor);
    tensor->data = (void *)(uintptr_t)data;
    tensor->dtype = dtype;
    tensor->rank = rank;
    tensor->shape[0] = first;
    tensor->shape[1] = second;
    tensor->shape[2] = third;
}

void llmc_generator_tensors(const llmc_generator *by, const int64_t *ids, int64_t seq, const int64_t *places, int64_t rows,
                            float *logits, llmc_tensor *in, llmc_tensor *out) {
    memset(in, 0, LLMC_MOST_INPUTS * sizeof *in);
    fill(&in[by->tokens], ids, LLMC_I64, 2, 1, seq, 0);
    if (by->keep >= 0) fill(&in[by->keep], places, LLMC_I64, 1, rows, 0, 0);
    fill(out, logits, LLMC_F32, 3, 1, by->keep >= 0 ? rows : seq, by->vocabulary);
}
