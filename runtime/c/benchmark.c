/*
 * benchmark.c - warm up, collect samples, profile; and the same for two models in turns.
 */
#include <stdlib.h>
#include <string.h>

#include "workload.h"

#define DEFAULT_SECONDS 3.0
#define DEFAULT_MAX_RUNS 10000
#define MOST_RUNS 10000000
#define FEWEST_RUNS 3
#define WINDOW 8              /* runs between two looks at the median */
#define STEADY 0.02           /* warm when two medians in a row differ by less */
#define WARMUP_SHARE 0.4      /* of the time asked for, at most */
#define PROFILE_SHARE 0.3

static const llmc_api api = {LLMC_VERSION,
                             llmc_open,
                             llmc_close,
                             llmc_describe,
                             llmc_output_shapes,
                             llmc_run,
                             llmc_benchmark,
                             llmc_compare,
                             llmc_threads_open,
                             llmc_threads_close,
                             llmc_find_function,
                             llmc_input_shapes,
                             llmc_memory_needed,
                             llmc_session_open,
                             llmc_session_close,
                             llmc_session_reset,
                             llmc_session_output_shapes,
                             llmc_session_run,
                             llmc_session_cancel,
                             llmc_session_resize,
                             llmc_session_info,
                             llmc_session_rewind,
                             llmc_session_fork,
                             llmc_session_save,
                             llmc_session_load,
                             llmc_choose,
                             llmc_generation_open,
                             llmc_generation_next,
                             llmc_generation_report,
                             llmc_generation_close,
                             llmc_generate,
                             llmc_sessions_run,
                             llmc_generations_next,
                             llmc_session_choose_adapter};

const llmc_api *llmc_get_api(void) {
    return &api;
}

static llmc_status check_options(const llmc_benchmark_options *asked, llmc_benchmark_options *options,
                                 llmc_error *error) {
    memset(options, 0, sizeof *options);
    if (asked) *options = *asked;
    if (!(options->seconds >= 0 && options->seconds < 1e6))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "seconds is %g, must be within 0..1e6", options->seconds);
    if (options->max_runs < 0 || options->max_runs > MOST_RUNS)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "max_runs is %lld, must be within 0..%d",
                         (long long)options->max_runs, MOST_RUNS);
    if (options->shortest < 0)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "shortest is %lld, must not be negative",
                         (long long)options->shortest);
    if (options->seconds == 0) options->seconds = DEFAULT_SECONDS;
    if (options->max_runs == 0) options->max_runs = DEFAULT_MAX_RUNS;
    return LLMC_OK;
}

static int64_t fewest(const llmc_benchmark_options *options) {
    return options->max_runs < FEWEST_RUNS ? options->max_runs : FEWEST_RUNS;
}

/* Run until the median of WINDOW runs stays within 2 % twice, or the number asked for; returns the runs made. */
static llmc_status warm_up(llmc_workload *w, const llmc_benchmark_options *options, int64_t *runs, llmc_error *error) {
    double window[WINDOW], last = 0, until = llmc_now() + WARMUP_SHARE * options->seconds;
    llmc_status status = LLMC_OK;
    int steady = 0;
    *runs = 0;
    while (status == LLMC_OK && steady < 2) {
        double median;
        if (options->warmup ? *runs >= options->warmup : *runs > 0 && llmc_now() > until) break;
        status = llmc_workload_time(w, &window[*runs % WINDOW], error);
        if (++*runs % WINDOW || options->warmup) continue;
        median = llmc_median(window, WINDOW);
        steady = median > last * (1 - STEADY) && median < last * (1 + STEADY) ? steady + 1 : 0;
        last = median;
    }
    return status;
}

static llmc_status sample(llmc_workload *w, const llmc_benchmark_options *options, double *samples, int64_t *n,
                          llmc_error *error) {
    double until = llmc_now() + options->seconds;
    llmc_status status = LLMC_OK;
    for (*n = 0; status == LLMC_OK && *n < options->max_runs; ++*n) {
        if (*n >= fewest(options) && llmc_now() > until) break;
        status = llmc_workload_time(w, &samples[*n], error);
    }
    return status;
}

/* Mean time of each step over a third as long as the samples took. */
static llmc_status profile(llmc_workload *w, const llmc_benchmark_options *options, llmc_step_report *steps,
                           llmc_error *error) {
    const llmc_function *function = &w->model->program->functions[w->function];
    double *sums = (double *)calloc((size_t)function->n_steps + 1, sizeof *sums), seconds;
    double until = llmc_now() + PROFILE_SHARE * options->seconds;
    llmc_status status = LLMC_OK;
    int64_t runs = 0;
    int i;
    if (!sums) return llmc_fail_memory(error, (size_t)function->n_steps * sizeof *sums);
    w->session->step_seconds = sums;
    do {
        status = llmc_workload_time(w, &seconds, error);
        runs++;
    } while (status == LLMC_OK && runs < options->max_runs && (llmc_now() < until || runs < fewest(options)));
    w->session->step_seconds = NULL;
    for (i = 0; i < function->n_steps; i++) {
        steps[i].kernel = function->steps[i].kernel;
        steps[i].source = function->steps[i].source;
        steps[i].seconds = sums[i] / (double)runs;
    }
    free(sums);
    return status;
}

/* FLOP and bytes of a run, and of each step where `steps` is not NULL. */
static void add_costs(const llmc_workload *w, llmc_benchmark_report *report, llmc_step_report *steps) {
    const llmc_program *program = w->model->program;
    const llmc_function *function = &program->functions[w->function];
    int64_t sizes[LLMC_MAX_DIMS];
    int i;
    memcpy(sizes, w->sizes, sizeof sizes);
    llmc_count_dims(program, function, w->inputs, sizes);
    for (i = 0; i < function->n_steps; i++) {
        double flops = 0, bytes = 0;
        function->step_cost(sizes, i, &flops, &bytes);
        report->flops += flops;
        report->bytes += bytes;
        if (!steps) continue;
        steps[i].flops = flops;
        steps[i].bytes = bytes;
    }
}

/* The device's limits; the turn keeps other threads' runs from the pool. */
static void add_peaks(llmc_session *session, llmc_benchmark_report *report) {
    const llmc_device *device = session->model->device;
    if (llmc_take_turn(session) != LLMC_OK) return;
    report->peak_flops_per_second = device->peak_flops(session);
    report->peak_bytes_per_second = device->peak_stream(session);
    llmc_end_turn(session);
}

static llmc_status measure(llmc_workload *w, const llmc_benchmark_options *options, llmc_benchmark_report *report,
                           llmc_error *error) {
    double *samples = (double *)malloc((size_t)options->max_runs * sizeof *samples);
    int64_t n = 0;
    llmc_status status;
    if (!samples) return llmc_fail_memory(error, (size_t)options->max_runs * sizeof *samples);
    status = warm_up(w, options, &report->warmup_runs, error);
    if (status == LLMC_OK) status = sample(w, options, samples, &n, error);
    if (status == LLMC_OK) status = llmc_summarise(samples, n, &report->latency, error);
    free(samples);
    return status;
}

llmc_status llmc_benchmark(llmc_model *model, const int64_t *sizes, const llmc_benchmark_options *asked,
                           llmc_benchmark_report *report, llmc_step_report *steps, llmc_error *error) {
    llmc_benchmark_options options;
    llmc_workload w;
    llmc_status status;
    if (!model || !report) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "model and report must not be NULL");
    memset(report, 0, sizeof *report);
    status = check_options(asked, &options, error);
    if (status == LLMC_OK) status = llmc_workload_open(&w, &api, model, options.function, sizes, &options, error);
    if (status != LLMC_OK) return status;
    status = measure(&w, &options, report, error);
    report->peak_memory_bytes = llmc_peak_memory(); /* before the profile takes memory of its own */
    if (status == LLMC_OK && steps) status = profile(&w, &options, steps, error);
    memcpy(report->sizes, w.sizes, sizeof report->sizes);
    add_costs(&w, report, steps);
    if (status == LLMC_OK && steps) add_peaks(w.session, report);
    llmc_workload_close(&w);
    report->runs_per_second = report->latency.mean > 0 ? 1 / report->latency.mean : 0;
    report->load_seconds = model->info.load_seconds;
    return status;
}

/* A B, B A, A B, ...: neither always profits from what the other left in the caches. */
static llmc_status sample_pairs(llmc_workload pair[2], const llmc_benchmark_options *options, double *samples[2],
                                int64_t *n, llmc_error *error) {
    double until = llmc_now() + options->seconds;
    llmc_status status = LLMC_OK;
    for (*n = 0; status == LLMC_OK && *n < options->max_runs; ++*n) {
        int first = (int)(*n % 2);
        if (*n >= fewest(options) && llmc_now() > until) break;
        status = llmc_workload_time(&pair[first], &samples[first][*n], error);
        if (status == LLMC_OK) status = llmc_workload_time(&pair[!first], &samples[!first][*n], error);
    }
    return status;
}

static llmc_status measure_pair(llmc_workload pair[2], const llmc_benchmark_options *options, llmc_summary *summary_a,
                                llmc_summary *summary_b, llmc_ratio *ratio, llmc_error *error) {
    size_t bytes = (size_t)options->max_runs * sizeof(double);
    double *samples[2];
    int64_t n = 0;
    llmc_status status;
    samples[0] = (double *)malloc(2 * bytes);
    if (!samples[0]) return llmc_fail_memory(error, 2 * bytes);
    samples[1] = samples[0] + options->max_runs;
    status = warm_up(&pair[0], options, &n, error);
    if (status == LLMC_OK) status = warm_up(&pair[1], options, &n, error);
    if (status == LLMC_OK) status = sample_pairs(pair, options, samples, &n, error);
    if (status == LLMC_OK) status = llmc_summarise(samples[0], n, summary_a, error);
    if (status == LLMC_OK) status = llmc_summarise(samples[1], n, summary_b, error);
    if (status == LLMC_OK) status = llmc_compare_samples(samples[0], samples[1], n, ratio, error);
    free(samples[0]);
    return status;
}

llmc_status llmc_compare(const llmc_api *api_a, llmc_model *a, const int64_t *sizes_a, const llmc_api *api_b,
                         llmc_model *b, const int64_t *sizes_b, const llmc_benchmark_options *asked,
                         llmc_summary *summary_a, llmc_summary *summary_b, llmc_ratio *ratio, llmc_error *error) {
    llmc_benchmark_options options;
    llmc_workload pair[2];
    llmc_status status;
    int function;
    if (!api_a || !a || !api_b || !b || !summary_a || !summary_b || !ratio)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "a model, its api, or a result is NULL");
    if (api_a->version != LLMC_VERSION || api_b->version != LLMC_VERSION)
        return llmc_fail(error, LLMC_ERROR_MODULE, "compile both models with one llmc",
                         "the artifacts speak versions %d and %d of llmc.h, expected %d", api_a->version,
                         api_b->version, LLMC_VERSION);
    memset(pair, 0, sizeof pair);
    status = check_options(asked, &options, error);
    if (status == LLMC_OK) status = llmc_workload_open(&pair[0], api_a, a, options.function, sizes_a, &options, error);
    if (status != LLMC_OK) return status;
    function = api_b->find_function(b, pair[0].info->name, error);
    /* the first functions are compared whatever they are called: most models have only one */
    if (function < 0 && options.function == 0) function = 0;
    status = function < 0 ? LLMC_ERROR_ARGUMENT
                          : llmc_workload_open(&pair[1], api_b, b, function, sizes_b, &options, error);
    if (status == LLMC_OK) status = measure_pair(pair, &options, summary_a, summary_b, ratio, error);
    llmc_workload_close(&pair[0]);
    llmc_workload_close(&pair[1]);
    return status;
}
