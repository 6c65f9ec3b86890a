/*
 * workload.h - between workload.c, stats.c and benchmark.c. Internal.
 */
#ifndef LLMC_WORKLOAD_H
#define LLMC_WORKLOAD_H

#include "model.h"

typedef struct llmc_workload {
    const llmc_api *api; /* of the artifact that `model` is from */
    llmc_model *model;
    llmc_session *session; /* of its own, with the model's threads */
    int function;
    const llmc_function_info *info; /* of the function */
    int64_t sizes[LLMC_MAX_DIMS];
    llmc_tensor *inputs, *outputs; /* own their data */
} llmc_workload;

/* `sizes`, and `options->seed` and `shortest`, as for llmc_benchmark(). */
llmc_status llmc_workload_open(llmc_workload *w, const llmc_api *api, llmc_model *model, int function,
                               const int64_t *sizes, const llmc_benchmark_options *options, llmc_error *error);
void llmc_workload_close(llmc_workload *w); /* also after a failed open */
llmc_status llmc_workload_time(llmc_workload *w, double *seconds, llmc_error *error); /* one run */

uint64_t llmc_random(uint64_t *state);              /* stats.c; *state must not be 0 */
double llmc_median(double *values, int64_t n);      /* stats.c; reorders the values */

#endif
