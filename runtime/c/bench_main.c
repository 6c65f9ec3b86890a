/*
 * bench_main.c - the benchmarker that lies in every artifact: no Python, no environment, one process.
 * It runs only the module.so it was built with.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static const char help[] =
    "usage: bench [--batch N] [--seq N] [--dim NAME=N]... [options]\n"
    "\n"
    "Time this artifact's model on random inputs: warm up until the running median is steady, then take samples.\n"
    "\n"
    "  --batch N, --seq N   sizes; the same as --dim batch=N, --dim seq=N\n"
    "  --dim NAME=N         any named size of the model (default: batch 1, others 128 or their bound)\n"
    "  --function NAME      of the model's functions this one (default: the first)\n"
    "  --past N             positions that the states hold when each run begins (default: 0)\n"
    "  --shortest N         rows of N tokens to all, drawn evenly; the rest is padding (default: no padding)\n"
    "  --threads N          threads that work on one run (default: one for each usable core)\n"
    "  --pin                bind each worker thread to a core\n"
    "  --duration S         seconds of samples (default: 3)\n"
    "  --warmup N           runs to discard (default: until steady)\n"
    "  --profile            time per kernel, and its share of what this machine can do\n"
    "  --no-check           do not read all of weights.bin first, to compare it with its checksums\n"
    "  --variant V          run this code instead of the best for this CPU\n"
    "  --vs OTHER.llmc      time both in turns; ratio of the medians with its 95 % interval\n"
    "  --json               one JSON object; times in seconds\n"
    "  --help\n"
    "\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage.\n";

typedef struct arguments {
    const char *dims[LLMC_MAX_DIMS]; /* names, each ended by '=' or 0 */
    int64_t sizes[LLMC_MAX_DIMS];
    int n_dims, profile, json;
    int64_t past; /* -1: not given */
    const char *vs, *function;
    llmc_options options;
    llmc_benchmark_options benchmark;
} arguments;

static int usage(const char *problem, const char *what) {
    fprintf(stderr, "%s: %s\n  hint:  bench --help\n", problem, what);
    return 2;
}

static int to_integer(const char *text, int64_t low, int64_t high, int64_t *value) {
    char *end;
    long long n = strtoll(text, &end, 10);
    *value = n;
    return end != text && *end == 0 && n >= low && n <= high ? 0 : usage("not a number that fits here", text);
}

static int to_seconds(const char *text, double *value) {
    char *end;
    *value = strtod(text, &end);
    return end != text && *end == 0 && *value > 0 && *value < 1e6 ? 0 : usage("not a number of seconds", text);
}

static int add_dim(arguments *a, const char *name, const char *size) {
    if (a->n_dims == LLMC_MAX_DIMS) return usage("too many sizes", name);
    a->dims[a->n_dims] = name;
    return to_integer(size, 1, INT32_MAX, &a->sizes[a->n_dims++]);
}

/* An option that takes `value`; 0, or 2 for wrong usage. */
static int set_option(arguments *a, const char *option, const char *value) {
    int64_t n = 0;
    int status = 0;
    if (!strcmp(option, "--batch") || !strcmp(option, "--seq")) return add_dim(a, option + 2, value);
    if (!strcmp(option, "--dim")) {
        const char *equals = strchr(value, '=');
        return equals ? add_dim(a, value, equals + 1) : usage("not NAME=N", value);
    }
    if (!strcmp(option, "--duration")) return to_seconds(value, &a->benchmark.seconds);
    if (!strcmp(option, "--shortest")) return to_integer(value, 1, INT32_MAX, &a->benchmark.shortest);
    if (!strcmp(option, "--threads")) {
        status = to_integer(value, 1, 1024, &n);
        a->options.threads = (int)n;
    } else if (!strcmp(option, "--warmup")) {
        status = to_integer(value, 0, INT32_MAX, &n);
        a->benchmark.warmup = n ? n : -1;
    } else if (!strcmp(option, "--variant")) {
        a->options.variant = value;
    } else if (!strcmp(option, "--vs")) {
        a->vs = value;
    } else if (!strcmp(option, "--function")) {
        a->function = value;
    } else if (!strcmp(option, "--past")) {
        status = to_integer(value, 0, INT32_MAX, &a->past);
    } else {
        return usage("no such option", option);
    }
    return status;
}

static int parse(arguments *a, int argc, char **argv) {
    int i;
    for (i = 1; i < argc; i++) {
        const char *option = argv[i];
        int status = 0;
        if (!strcmp(option, "--profile"))
            a->profile = 1;
        else if (!strcmp(option, "--json"))
            a->json = 1;
        else if (!strcmp(option, "--pin"))
            a->options.pin = 1;
        else if (!strcmp(option, "--no-check"))
            a->options.skip_weights_check = 1;
        else if (option[0] != '-' || i + 1 == argc)
            return usage(option[0] == '-' ? "no such option, or its value is missing" : "not an option", option);
        else
            status = set_option(a, option, argv[++i]);
        if (status) return status;
    }
    return 0;
}

static int same_name(const char *asked, const char *name) {
    size_t n = strcspn(asked, "=");
    return strlen(name) == n && strncmp(asked, name, n) == 0;
}

/* Every state that grows holds that many positions. */
static int set_past(const arguments *a, bench_artifact *artifact) {
    const llmc_info *info = artifact->info;
    int i, found = 0;
    for (i = 0; i < info->n_states; i++) {
        const llmc_state_spec *spec = &info->states[i];
        if (spec->grows < 0) continue;
        artifact->sizes[-1 - spec->dims[spec->grows]] = a->past;
        found = 1;
    }
    return found ? 0 : usage("the model has no state that grows", "--past");
}

/* Give the sizes asked for to the artifact's dims. */
static int set_sizes(const arguments *a, bench_artifact *artifact) {
    const llmc_info *info = artifact->info;
    int i, d;
    for (i = 0; i < a->n_dims; i++) {
        for (d = 0; d < info->n_dims && !same_name(a->dims[i], info->dims[d].name); d++) {
        }
        if (d == info->n_dims) return usage("the model has no such size", a->dims[i]);
        artifact->sizes[d] = a->sizes[i];
    }
    return a->past < 0 ? 0 : set_past(a, artifact);
}

static int failed(const bench_artifact *artifact, const llmc_error *error) {
    bench_complain(error->message, artifact->folder, error->hint);
    return 1;
}

static int set_function(arguments *a, bench_artifact *artifact) {
    llmc_error error;
    if (a->function) artifact->function = artifact->api->find_function(artifact->model, a->function, &error);
    a->benchmark.function = artifact->function;
    return artifact->function < 0 ? failed(artifact, &error) : 0;
}

static int run_one(const arguments *a, bench_artifact *artifact) {
    llmc_benchmark_report report;
    llmc_step_report *steps = NULL;
    llmc_error error;
    int status = 0;
    if (a->profile) {
        steps = (llmc_step_report *)calloc((size_t)artifact->info->functions[artifact->function].n_steps + 1, sizeof *steps);
        if (!steps) return bench_complain("out of memory", NULL, NULL), 1;
    }
    if (artifact->api->benchmark(artifact->model, artifact->sizes, &a->benchmark, &report, steps, &error) != LLMC_OK)
        status = failed(artifact, &error);
    else
        (a->json ? bench_print_json : bench_print_text)(artifact, &report, steps);
    free(steps);
    return status;
}

static int run_pair(const arguments *a, bench_artifact pair[2]) {
    llmc_summary summary[2];
    llmc_ratio ratio;
    llmc_error error;
    char hash[65];
    int status;
    if (snprintf(pair[1].folder, BENCH_MAX_PATH, "%s", a->vs) >= BENCH_MAX_PATH) return usage("path too long", a->vs);
    if (bench_expected_hash(pair[1].folder, hash) != 0 || bench_load(&pair[1], hash, &a->options) != 0) return 1;
    pair[1].function = pair[1].api->find_function(pair[1].model, pair[0].info->functions[pair[0].function].name, &error);
    if (pair[1].function < 0 && pair[0].function) return failed(&pair[1], &error);
    if (pair[1].function < 0) pair[1].function = 0; /* first beside first, whatever they are called */
    status = set_sizes(a, &pair[1]);
    if (status) return status;
    if (pair[0].api->compare(pair[0].api, pair[0].model, pair[0].sizes, pair[1].api, pair[1].model, pair[1].sizes,
                             &a->benchmark, &summary[0], &summary[1], &ratio, &error) != LLMC_OK)
        return failed(&pair[0], &error);
    (a->json ? bench_print_pair_json : bench_print_pair_text)(pair, summary, &ratio);
    return 0;
}

int main(int argc, char **argv) {
    static arguments a;
    static bench_artifact pair[2];
    int i, status;
    for (i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return fputs(help, stdout) < 0;
    a.past = -1;
    status = parse(&a, argc, argv);
    if (status) return status;
    if (bench_find_folder(argv[0], pair[0].folder) != 0) return 1;
    if (bench_load(&pair[0], bench_module_hash, &a.options) != 0) return 1;
    status = set_function(&a, &pair[0]);
    if (!status) status = set_sizes(&a, &pair[0]);
    if (!status) status = a.vs ? run_pair(&a, pair) : run_one(&a, &pair[0]);
    for (i = 0; i < 2; i++)
        if (pair[i].model) pair[i].api->close(pair[i].model);
    if (fflush(stdout) != 0 && !status) status = 1;
    return status;
}
