/*
 * session.c - feed a model with states one position after the other, each a token id of one sequence. C99.
 *
 *   cc -std=c99 -Im.llmc session.c -Lm.llmc -l:module.so -Wl,-rpath,$PWD/m.llmc -o session
 *   ./session m.llmc step 3 1 4 1 5
 *
 * The function's first input takes the ids, [1, 1], its other inputs their defaults. After each call: how long the
 * states are now, and the first number of the first output, a float. Exit code 1 and a sentence on failure.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc.h"

#define MOST 16 /* tensors of a function */

static size_t size_of(const llmc_tensor *t) {
    size_t size = llmc_dtype_size(t->dtype);
    int i;
    for (i = 0; i < t->rank; i++) size *= (size_t)t->shape[i];
    return size;
}

/* One call with one id; the states change if it succeeds, and else stay as they are. */
static llmc_status feed(llmc_session *session, int number, const llmc_function_info *function, int64_t id,
                        llmc_error *error) {
    const llmc_tensor ids = {&id, LLMC_I64, 2, {1, 1}};
    const llmc_run_options options = {10.0, 0}; /* give up after ten seconds */
    llmc_tensor in[MOST], out[MOST];
    llmc_status status;
    int i;
    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    in[0] = ids;
    status = llmc_session_output_shapes(session, number, in, out, error);
    for (i = 0; status == LLMC_OK && i < function->n_outputs; i++) out[i].data = malloc(size_of(&out[i]) + 1);
    if (status == LLMC_OK) status = llmc_session_run(session, number, in, out, &options, error);
    if (status == LLMC_OK) printf("%g\n", *(float *)out[0].data);
    for (i = 0; i < function->n_outputs; i++) free(out[i].data);
    return status;
}

static int run(llmc_model *model, const char *name, char **ids, llmc_error *error) {
    const llmc_info *info = llmc_describe(model);
    int number = llmc_find_function(model, name, error), d;
    llmc_session *session = NULL;
    llmc_session_report report;
    llmc_status status;
    if (number < 0 || info->functions[number].n_inputs > MOST || info->functions[number].n_outputs > MOST) return 1;
    status = llmc_session_open(model, NULL, &session, error);
    for (; *ids && status == LLMC_OK; ids++) {
        status = feed(session, number, &info->functions[number], strtoll(*ids, NULL, 10), error);
        if (status == LLMC_OK) status = llmc_session_info(session, &report, error);
        for (d = 0; status == LLMC_OK && d < info->n_dims; d++)
            if (info->dims[d].low == 0) printf("  %s %lld\n", info->dims[d].name, (long long)report.sizes[d]);
    }
    llmc_session_close(session);
    return status != LLMC_OK;
}

int main(int argc, char **argv) {
    llmc_model *model;
    llmc_error error = {LLMC_OK, "this example takes fewer tensors", ""};
    int failed = argc < 4 || llmc_open(argv[1], NULL, &model, &error) != LLMC_OK;
    if (argc < 4) return fprintf(stderr, "usage: session ARTIFACT FUNCTION ID ...\n"), 2;
    if (!failed) {
        failed = run(model, argv[2], argv + 3, &error);
        llmc_close(model);
    }
    if (failed) fprintf(stderr, "error: %s\n", error.message);
    return failed;
}
