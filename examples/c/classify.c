/*
 * classify.c - run a compiled classifier on one text, given as token ids. C99.
 *
 *   cc -std=c99 -Im.llmc classify.c -Lm.llmc -l:module.so -Wl,-rpath,$PWD/m.llmc -lm -o classify
 *   ./classify m.llmc 101 2023 2003 102         ids as arguments
 *   ./classify m.llmc - < ids.txt               ids on standard input, separated by blanks
 *
 * Prints one line for each class: its number and its probability. Exit code 1 and a sentence on failure.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc.h"

#define MAX_TOKENS 8192
#define MAX_TENSORS 16

static int fail(const char *problem, const char *hint) {
    fprintf(stderr, "error: %s\n", problem);
    if (*hint) fprintf(stderr, "  hint: %s\n", hint);
    return 1;
}

/* One id in decimal; 0 if `text` is anything else. */
static int parse_id(const char *text, int64_t *id) {
    char *end;
    errno = 0;
    *id = strtoll(text, &end, 10);
    return end != text && *end == '\0' && errno == 0;
}

/* The ids of the arguments, or of standard input if the one argument is "-"; -1 if one is not a number. */
static int64_t read_ids(int argc, char **argv, int64_t *ids) {
    char word[32];
    int64_t count = 0;
    if (argc != 3 || strcmp(argv[2], "-") != 0) {
        for (; count < argc - 2 && count < MAX_TOKENS; count++)
            if (!parse_id(argv[2 + count], &ids[count])) return -1;
        return count;
    }
    while (count < MAX_TOKENS && scanf("%31s", word) == 1)
        if (!parse_id(word, &ids[count++])) return -1;
    return count;
}

/* The index of the tensor called `name`, or -1. */
static int find(const llmc_tensor_spec *specs, int count, const char *name) {
    int i;
    for (i = 0; i < count; i++)
        if (strcmp(specs[i].name, name) == 0) return i;
    return -1;
}

static size_t size_of(const llmc_tensor *t) {
    size_t size = llmc_dtype_size(t->dtype);
    int i;
    for (i = 0; i < t->rank; i++) size *= (size_t)t->shape[i];
    return size;
}

static void print_softmax(const float *logits, int64_t count) {
    float most = logits[0];
    double sum = 0;
    int64_t i;
    for (i = 1; i < count; i++)
        if (logits[i] > most) most = logits[i];
    for (i = 0; i < count; i++) sum += exp(logits[i] - most);
    for (i = 0; i < count; i++) printf("%d %.6f\n", (int)i, exp(logits[i] - most) / sum);
}

/* Inputs that stay zero, such as attention_mask, take their defaults. */
static llmc_status classify(llmc_model *model, int64_t *ids, int64_t count, llmc_error *error) {
    const llmc_info *info = llmc_describe(model);
    llmc_tensor in[MAX_TENSORS], out[MAX_TENSORS];
    int i, input = find(info->inputs, info->n_inputs, "input_ids");
    int output = find(info->outputs, info->n_outputs, "logits");
    llmc_status status;

    memset(error, 0, sizeof *error);
    if (input < 0 || output < 0 || info->n_inputs > MAX_TENSORS || info->n_outputs > MAX_TENSORS) {
        strcpy(error->message, "this model is not a text classifier");
        return LLMC_ERROR_ARGUMENT;
    }
    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    in[input].data = ids;
    in[input].dtype = LLMC_I64;
    in[input].rank = 2;
    in[input].shape[0] = 1;
    in[input].shape[1] = count;

    status = llmc_output_shapes(model, in, out, error);
    for (i = 0; status == LLMC_OK && i < info->n_outputs; i++) {
        out[i].data = malloc(size_of(&out[i]));
        if (out[i].data == NULL) status = LLMC_ERROR_MEMORY;
    }
    if (status == LLMC_OK) status = llmc_run(model, in, out, error);
    if (status == LLMC_OK) print_softmax(out[output].data, out[output].shape[1]);
    for (i = 0; i < info->n_outputs; i++) free(out[i].data);
    return status;
}

int main(int argc, char **argv) {
    static int64_t ids[MAX_TOKENS];
    int64_t count;
    llmc_model *model;
    llmc_error error;
    llmc_options options;
    llmc_status status;

    if (argc < 3) return fail("usage: classify FOLDER ID ...", "or classify FOLDER - with the ids on standard input"), 2;
    count = read_ids(argc, argv, ids);
    if (count < 0) return fail("a token id is not a number", "");

    memset(&options, 0, sizeof options); /* all defaults ... */
    options.threads = 1;                 /* ... but one thread */
    if (llmc_open(argv[1], &options, &model, &error) != LLMC_OK) return fail(error.message, error.hint);
    status = classify(model, ids, count, &error);
    llmc_close(model);
    return status == LLMC_OK ? 0 : fail(*error.message ? error.message : llmc_status_text(status), error.hint);
}
