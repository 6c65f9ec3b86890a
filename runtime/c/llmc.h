/*
 * llmc.h - run a model compiled by llmc. C99 or C++11, no dependency but libc, libm and libpthread.
 *
 * An artifact is a folder, say m.llmc, that holds module.so (code and runtime), weights.bin and this header.
 * Link module.so, or dlopen() it and dlsym() the functions below. In the order of use:
 *
 *   llmc_model *model = NULL;
 *   llmc_error error;
 *   if (llmc_open("m.llmc", NULL, &model, &error) != LLMC_OK) { fprintf(stderr, "%s\n", error.message); ... }
 *
 *   int64_t ids[1 * 3] = {101, 7592, 102};
 *   float logits[1 * 2];
 *   llmc_tensor in[] = {{ids, LLMC_I64, 2, {1, 3}}, {0}};           in the order of llmc_describe(model)->inputs;
 *   llmc_tensor out[] = {{logits, LLMC_F32, 2, {1, 2}}};            data == NULL leaves an input to its default
 *   if (llmc_run(model, in, out, &error) != LLMC_OK) ...
 *   llmc_close(model);
 *
 * llmc_output_shapes() tells how large the outputs for some inputs are.
 *
 * - Every function that can fail returns a status, and puts a sentence into `error` if that is not NULL. Nothing
 *   here aborts, exits, prints, reads the environment or keeps global state.
 * - The caller owns inputs and outputs. They must not overlap, and nobody may write to them during a run.
 * - Tensors are dense, last axis fastest, aligned to their element's size.
 * - Several threads may call llmc_run() on one model: the calls take turns. Different models are independent.
 *   llmc_close() must come after the last of them.
 * - After fork() the child must open its own model; using the parent's gives LLMC_ERROR_FORK.
 * - Memory for intermediate results grows to the largest sizes seen and is kept until llmc_close().
 *   A run allocates nothing else.
 * - weights.bin is mapped, not read: several processes share one copy. Do not truncate it while a model is open;
 *   replace it by rename().
 */
#ifndef LLMC_H
#define LLMC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLMC_VERSION 2 /* of this interface; counts up when anything here changes its meaning or layout */
#define LLMC_MAX_RANK 8
#define LLMC_MAX_DIMS 16

#if defined(__GNUC__)
#define LLMC_API __attribute__((visibility("default")))
#else
#define LLMC_API
#endif

typedef enum llmc_status {
    LLMC_OK = 0,
    LLMC_ERROR_MEMORY,   /* the system has no memory or no threads left; the model stays usable */
    LLMC_ERROR_FILE,     /* a file is missing or cannot be read */
    LLMC_ERROR_WEIGHTS,  /* weights.bin is damaged or belongs to another build */
    LLMC_ERROR_MODULE,   /* module.so is not one this runtime can run */
    LLMC_ERROR_CPU,      /* the processor lacks a feature that the code needs */
    LLMC_ERROR_ARGUMENT, /* a NULL or an option that makes no sense */
    LLMC_ERROR_MISSING,  /* an input without default was not given */
    LLMC_ERROR_DTYPE,    /* a tensor's element type is not the one expected */
    LLMC_ERROR_SHAPE,    /* a tensor's rank or size does not fit, or a size is out of bounds */
    LLMC_ERROR_RANGE,    /* a value lies outside its range, such as a token id beyond the vocabulary */
    LLMC_ERROR_FORK,     /* the model was opened by the parent process */
    LLMC_ERROR_DEVICE    /* there is no GPU or no driver for it, or it failed */
} llmc_status;

/* A few words for each status, such as "wrong shape". */
LLMC_API const char *llmc_status_text(llmc_status status);

typedef struct llmc_error {
    llmc_status status;
    char message[512]; /* what is wrong, where, and what was found: one sentence, UTF-8 */
    char hint[256];    /* what to do about it, or "" */
} llmc_error;

typedef enum llmc_dtype {
    LLMC_F32 = 1,
    LLMC_F16,
    LLMC_BF16,
    LLMC_I8,
    LLMC_U8,
    LLMC_I32,
    LLMC_I64,
    LLMC_BOOL /* one byte, 0 or 1 */
} llmc_dtype;

LLMC_API const char *llmc_dtype_name(int dtype); /* "f32", or "?" */
LLMC_API size_t llmc_dtype_size(int dtype);      /* bytes of one element, or 0 */

/* ---- What a model takes and gives ---- */

/* A size that is known only when the model runs. */
typedef struct llmc_dim_info {
    const char *name;  /* "batch" */
    int64_t low, high; /* inclusive */
} llmc_dim_info;

typedef struct llmc_tensor_spec {
    const char *name;
    int dtype; /* llmc_dtype */
    int rank;
    int64_t dims[LLMC_MAX_RANK];          /* a fixed size, -1-d for dim d, or INT64_MIN for an expression (outputs only) */
    const char *dims_text[LLMC_MAX_RANK]; /* "batch", "2*seq + 1", "384" */
    int has_default;                      /* inputs: may be absent, is then filled with default_value (0 or 1 for f16 and bf16) */
    double default_value;
    int has_range; /* integer inputs: each value must lie in low..high */
    int64_t low, high;
} llmc_tensor_spec;

typedef struct llmc_info {
    const char *name;     /* of the model */
    const char *build_id; /* 64 hex digits */
    const char *variant;  /* the code that was picked for this CPU, such as "avx512" */
    int threads;
    int n_dims, n_inputs, n_outputs, n_steps;
    const llmc_dim_info *dims;
    const llmc_tensor_spec *inputs, *outputs;
    double load_seconds;    /* what llmc_open took */
    uint64_t weights_bytes; /* mapped */
} llmc_info;

/* ---- Open, run, close ---- */

typedef struct llmc_model llmc_model;
typedef struct llmc_threads llmc_threads;

/* Set to zero for the defaults. */
typedef struct llmc_options {
    int threads;         /* that work on one run, the caller's included; 0: one for each usable core */
    int pin;             /* not 0: bind each worker thread to a core of its own */
    int spin_us;         /* how long a worker waits awake for more work; 0: a good value, -1: sleep at once */
    int check_weights;   /* not 0: hash weights.bin (reads all of it) */
    const char *variant; /* NULL: the best that this CPU can run */
    llmc_threads *shared; /* NULL: threads of its own. Else it works with these, and `threads`, `pin` and `spin_us` are unused */
} llmc_options;

/* Threads that several models work with, of one artifact or of several: their runs take turns, so that two models do
 * not ask for more cores than there are. Of `options` (may be NULL) threads, pin and spin_us are used. */
LLMC_API llmc_status llmc_threads_open(const llmc_options *options, llmc_threads **threads, llmc_error *error);

/* After the last model that works with them is closed. NULL is fine. */
LLMC_API void llmc_threads_close(llmc_threads *threads);

/* Map the weights of the artifact in folder `directory`, check that they belong to this module, start the threads.
 * `options` may be NULL. `*model` is NULL after a failure. */
LLMC_API llmc_status llmc_open(const char *directory, const llmc_options *options, llmc_model **model,
                               llmc_error *error);

/* NULL is fine. */
LLMC_API void llmc_close(llmc_model *model);

/* Valid until llmc_close(). */
LLMC_API const llmc_info *llmc_describe(const llmc_model *model);

typedef struct llmc_tensor {
    void *data; /* NULL: absent */
    int dtype;  /* llmc_dtype */
    int rank;
    int64_t shape[LLMC_MAX_RANK];
} llmc_tensor;

/* Check `inputs` (n_inputs of them) and set dtype, rank and shape of each of the n_outputs `outputs`. */
LLMC_API llmc_status llmc_output_shapes(const llmc_model *model, const llmc_tensor *inputs, llmc_tensor *outputs,
                                        llmc_error *error);

/* Run the model once. Every output must have its data and the shape that llmc_output_shapes() gives. */
LLMC_API llmc_status llmc_run(llmc_model *model, const llmc_tensor *inputs, const llmc_tensor *outputs,
                              llmc_error *error);

/* ---- Benchmark ---- Times are in seconds. */

typedef struct llmc_summary {
    int64_t n;
    double mean, mean_low, mean_high; /* and its 95 % bootstrap interval (percentile method, fixed seed) */
    double p50, p90, p95, p99, min, max;
} llmc_summary;

/* Describe n >= 1 samples. */
LLMC_API llmc_status llmc_summarise(const double *samples, int64_t n, llmc_summary *summary, llmc_error *error);

typedef struct llmc_ratio {
    int64_t n;
    double ratio, low, high; /* median(a) / median(b), and its 95 % bootstrap interval over pairs */
} llmc_ratio;

/* Compare n >= 1 pairs of samples, a[i] taken beside b[i]. */
LLMC_API llmc_status llmc_compare_samples(const double *a, const double *b, int64_t n, llmc_ratio *ratio,
                                          llmc_error *error);

/* Set to zero for the defaults. */
typedef struct llmc_benchmark_options {
    double seconds;     /* how long to collect samples; 0: 3 */
    int64_t max_runs;   /* 0: 10000 */
    int64_t warmup;     /* runs to discard first; 0: until the running median is steady, -1: none */
    uint64_t seed;      /* of the random inputs */
    int64_t shortest;   /* 0: rows are full; else the mask gives each row that many tokens or more, drawn evenly */
} llmc_benchmark_options;

typedef struct llmc_step_report {
    const char *kernel, *source; /* what runs, and which part of the model it is */
    double seconds;              /* mean for one run of the model */
    double flops, bytes;         /* for one run of the model */
} llmc_step_report;

typedef struct llmc_benchmark_report {
    int64_t sizes[LLMC_MAX_DIMS]; /* of the dims, as run */
    int64_t warmup_runs;          /* discarded */
    llmc_summary latency;
    double runs_per_second;      /* runs in sequence: 1 / mean */
    double load_seconds;
    uint64_t peak_memory_bytes;  /* of the process so far; 0: unknown */
    double flops, bytes;         /* of one run */
    double peak_flops_per_second, peak_bytes_per_second; /* measured on this machine with the model's threads;
                                                            0 without profile or where unknown */
} llmc_benchmark_report;

/* Time the model on random valid inputs. `sizes` has n_dims sizes; NULL or a size 0 means 1 for "batch" and 128, or the
 * nearest bound, for others. `steps`, if not NULL, has room for n_steps and asks for a profile, taken after the samples. */
LLMC_API llmc_status llmc_benchmark(llmc_model *model, const int64_t *sizes, const llmc_benchmark_options *options,
                                    llmc_benchmark_report *report, llmc_step_report *steps, llmc_error *error);

/* The functions above as a table, for programs that dlopen() more than one artifact. */
typedef struct llmc_api {
    int version; /* LLMC_VERSION */
    llmc_status (*open)(const char *, const llmc_options *, llmc_model **, llmc_error *);
    void (*close)(llmc_model *);
    const llmc_info *(*describe)(const llmc_model *);
    llmc_status (*output_shapes)(const llmc_model *, const llmc_tensor *, llmc_tensor *, llmc_error *);
    llmc_status (*run)(llmc_model *, const llmc_tensor *, const llmc_tensor *, llmc_error *);
    llmc_status (*benchmark)(llmc_model *, const int64_t *, const llmc_benchmark_options *, llmc_benchmark_report *,
                             llmc_step_report *, llmc_error *);
    llmc_status (*compare)(const struct llmc_api *, llmc_model *, const int64_t *, const struct llmc_api *,
                           llmc_model *, const int64_t *, const llmc_benchmark_options *, llmc_summary *,
                           llmc_summary *, llmc_ratio *, llmc_error *);
    llmc_status (*threads_open)(const llmc_options *, llmc_threads **, llmc_error *);
    void (*threads_close)(llmc_threads *);
} llmc_api;

LLMC_API const llmc_api *llmc_get_api(void);

/* Time two models, of one artifact or of two, in turns: A, B, B, A, ... Both are warmed up first. */
LLMC_API llmc_status llmc_compare(const llmc_api *api_a, llmc_model *a, const int64_t *sizes_a, const llmc_api *api_b,
                                  llmc_model *b, const int64_t *sizes_b, const llmc_benchmark_options *options,
                                  llmc_summary *summary_a, llmc_summary *summary_b, llmc_ratio *ratio,
                                  llmc_error *error);

#ifdef __cplusplus
}
#endif

#endif
