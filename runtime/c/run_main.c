/*
 * run_main.c - the `run` executable: one model linked in, arrays in from files, arrays out to files.
 */
#define _GNU_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "npy.h"

#define MAX_PATH 4096
#define MAX_INPUTS 64 /* on the command line */

static const char help[] =
    "usage: run [options] INPUT=FILE.npy ... [INPUT:2x16=FILE ...]\n"
    "\n"
    "Run this artifact's model once. An input that has a default may be left out; the second form reads a file of bare\n"
    "elements. Each output goes to OUTPUT.npy, a / in its name written as %2F. Without arguments: what the model takes and gives.\n"
    "\n"
    "  --function NAME  of the model's functions this one (default: the first)\n"
    "  --past N       positions, all zeros, that the states hold before the run (default: 0)\n"
    "  -o DIR         where outputs go, a folder that exists (default: the current one)\n"
    "  --threads N    threads that work on the run (default: one for each usable core)\n"
    "  --variant V    run this code instead of the best for this CPU\n"
    "  --no-check     do not read all of weights.bin first, to compare it with its checksums\n"
    "  --model DIR    folder of weights.bin (default: this program's own)\n"
    "  --help\n"
    "\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage.\n";

typedef struct arguments {
    const char *model, *folder;
    const char *inputs[MAX_INPUTS];
    const char *function;
    int n_inputs;
    int64_t past; /* -1: not given */
    llmc_options options;
} arguments;

static int complain(const char *problem, const char *at, const char *hint) {
    fprintf(stderr, "error: %s\n", problem);
    if (at && *at) fprintf(stderr, "  at:    %s\n", at);
    if (hint && *hint) fprintf(stderr, "  hint:  %s\n", hint);
    return 1;
}

static int usage(const char *problem, const char *what) {
    return complain(problem, what, "run --help"), 2;
}

static int parse_number(const char *text, int64_t low, int64_t high, int64_t *value) {
    char *end;
    *value = strtoll(text, &end, 10);
    return end != text && !*end && *value >= low && *value <= high;
}

static int set_option(arguments *a, const char *option, const char *value) {
    int64_t n;
    if (!value) return usage("no such option, or its value is missing", option);
    if (!strcmp(option, "-o"))
        a->folder = value;
    else if (!strcmp(option, "--model"))
        a->model = value;
    else if (!strcmp(option, "--variant"))
        a->options.variant = value;
    else if (!strcmp(option, "--function"))
        a->function = value;
    else if (!strcmp(option, "--threads")) {
        if (!parse_number(value, 1, 1024, &n)) return usage("not a number of threads", value);
        a->options.threads = (int)n;
    } else if (!strcmp(option, "--past")) {
        if (!parse_number(value, 0, INT32_MAX, &a->past)) return usage("not a number of positions", value);
    } else
        return usage("no such option", option);
    return 0;
}

static int parse(arguments *a, int argc, char **argv) {
    int i, status;
    for (i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--no-check")) {
            a->options.skip_weights_check = 1;
        } else if (argv[i][0] == '-') {
            status = set_option(a, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
            if (status) return status;
            i++;
        } else if (!strchr(argv[i], '=')) {
            return usage("not INPUT=FILE", argv[i]);
        } else if (a->n_inputs == MAX_INPUTS) {
            return usage("too many inputs", argv[i]);
        } else {
            a->inputs[a->n_inputs++] = argv[i];
        }
    }
    return 0;
}

/* "2x16" up to '='; 0 if it is not that. */
static int parse_shape(const char *text, llmc_tensor *tensor) {
    for (tensor->rank = 0; tensor->rank < LLMC_MAX_RANK; text++) {
        char *end;
        tensor->shape[tensor->rank++] = strtoll(text, &end, 10);
        if (end == text || (*end != 'x' && *end != '=')) return 0;
        text = end;
        if (*text == '=') return 1;
    }
    return 0;
}

/* Read what INPUT=FILE or INPUT:SHAPE=FILE names. */
static int read_input(const llmc_function_info *info, const char *argument, llmc_tensor *inputs) {
    const char *file = strchr(argument, '=') + 1, *problem;
    size_t name = strcspn(argument, ":=");
    int i;
    for (i = 0; i < info->n_inputs; i++)
        if (strlen(info->inputs[i].name) == name && !strncmp(info->inputs[i].name, argument, name)) break;
    if (i == info->n_inputs) return usage("the model has no such input", argument);
    if (inputs[i].data) return usage("the input is given twice", argument);
    if (argument[name] == ':') {
        inputs[i].dtype = info->inputs[i].dtype;
        if (!parse_shape(argument + name + 1, &inputs[i])) return usage("not INPUT:2x16=FILE", argument);
        problem = npy_read_raw(file, &inputs[i]);
    } else {
        problem = npy_read(file, &inputs[i]);
    }
    if (problem) return fprintf(stderr, "error: cannot use %s: %s\n", file, problem), 1;
    return 0;
}

/* FOLDER/NAME.npy. A name may hold any characters: '/' would lead out of the folder. 0 if it is too long. */
static int output_path(char *path, const char *folder, const char *name) {
    int used = snprintf(path, MAX_PATH, "%s/", folder);
    for (; used >= 0 && used < MAX_PATH - 8 && *name; name++) {
        const char *format = *name == '/' || *name == '%' ? "%%%02X" : "%c";
        used += snprintf(path + used, (size_t)(MAX_PATH - used), format, (unsigned char)*name);
    }
    if (used < 0 || used >= MAX_PATH - 8) return 0;
    return snprintf(path + used, (size_t)(MAX_PATH - used), ".npy") == 4;
}

static int write_output(const char *folder, const char *name, const llmc_tensor *tensor) {
    char path[MAX_PATH];
    const char *problem;
    if (!output_path(path, folder, name)) return complain("path too long", name, NULL);
    problem = npy_write(path, tensor);
    return problem ? fprintf(stderr, "error: cannot use %s: %s\n", path, problem), 1 : 0;
}

static int failed(const llmc_error *error) {
    return complain(error->message, NULL, error->hint);
}

/* The size of dim `d` in the inputs; -1: none has it. */
static int64_t size_in(const llmc_function_info *function, const llmc_tensor *inputs, int d) {
    int i, axis;
    for (i = 0; i < function->n_inputs; i++)
        for (axis = 0; inputs[i].data && axis < function->inputs[i].rank && axis < inputs[i].rank; axis++)
            if (function->inputs[i].dims[axis] == -1 - d) return inputs[i].shape[axis];
    return -1;
}

/* States that grow hold `past` positions; their other sizes are those of the inputs. */
static llmc_status set_past(llmc_session *session, const llmc_info *info, const llmc_function_info *function,
                            int64_t past, const llmc_tensor *inputs, llmc_error *error) {
    int64_t sizes[LLMC_MAX_DIMS];
    int i;
    for (i = 0; i < info->n_dims; i++) sizes[i] = size_in(function, inputs, i);
    for (i = 0; i < info->n_states; i++)
        if (info->states[i].grows >= 0) sizes[-1 - info->states[i].dims[info->states[i].grows]] = past;
    return llmc_session_resize(session, sizes, error);
}

static int run(llmc_session *session, const llmc_info *info, int number, const arguments *a, llmc_tensor *inputs,
               llmc_tensor *outputs) {
    const llmc_function_info *function = &info->functions[number];
    llmc_error error;
    int i, status = 0;
    for (i = 0; i < a->n_inputs && !status; i++) status = read_input(function, a->inputs[i], inputs);
    if (status) return status;
    if (a->past >= 0 && set_past(session, info, function, a->past, inputs, &error) != LLMC_OK) return failed(&error);
    if (llmc_session_output_shapes(session, number, inputs, outputs, &error) != LLMC_OK) return failed(&error);
    for (i = 0; i < function->n_outputs; i++) {
        outputs[i].data = malloc(npy_bytes(&outputs[i]) + 1);
        if (!outputs[i].data) return complain("no memory for an output", function->outputs[i].name, "use a smaller batch");
    }
    if (llmc_session_run(session, number, inputs, outputs, NULL, &error) != LLMC_OK) return failed(&error);
    for (i = 0; i < function->n_outputs && !status; i++)
        status = write_output(a->folder, function->outputs[i].name, &outputs[i]);
    return status;
}

static int run_in_session(llmc_model *model, int number, const arguments *a) {
    const llmc_info *info = llmc_describe(model);
    const llmc_function_info *function = &info->functions[number];
    llmc_tensor *inputs = (llmc_tensor *)calloc((size_t)function->n_inputs + 1, sizeof *inputs);
    llmc_tensor *outputs = (llmc_tensor *)calloc((size_t)function->n_outputs + 1, sizeof *outputs);
    llmc_session *session = NULL;
    llmc_error error;
    int i, status;
    if (!inputs || !outputs)
        status = complain("no memory for the tensors", NULL, NULL);
    else if (llmc_session_open(model, NULL, &session, &error) != LLMC_OK)
        status = failed(&error);
    else
        status = run(session, info, number, a, inputs, outputs);
    for (i = 0; inputs && i < function->n_inputs; i++) free(inputs[i].data);
    for (i = 0; outputs && i < function->n_outputs; i++) free(outputs[i].data);
    free(inputs);
    free(outputs);
    llmc_session_close(session);
    return status;
}

static void print_tensor(const char *kind, const llmc_tensor_spec *spec) {
    int i;
    printf("%s %s %s [", kind, spec->name, llmc_dtype_name(spec->dtype));
    for (i = 0; i < spec->rank; i++) printf("%s%s", i ? ", " : "", spec->dims_text[i]);
    printf("]%s\n", spec->has_default ? " optional" : "");
}

static void print_state(const llmc_state_spec *spec) {
    int i;
    printf("state %s %s [", spec->name, llmc_dtype_name(spec->dtype));
    for (i = 0; i < spec->rank; i++) printf("%s%s", i ? ", " : "", spec->dims_text[i]);
    printf("]%s%s\n", spec->grows < 0 ? "" : " grows along ", spec->grows < 0 ? "" : spec->dims_text[spec->grows]);
}

static void describe(const llmc_info *info) {
    int i, f;
    printf("%s, code for %s\n", info->name, info->variant);
    for (i = 0; i < info->n_dims; i++)
        printf("size %s within %lld..%lld\n", info->dims[i].name, (long long)info->dims[i].low,
               (long long)info->dims[i].high);
    for (i = 0; i < info->n_states; i++) print_state(&info->states[i]);
    for (f = 0; f < info->n_functions; f++) {
        const llmc_function_info *function = &info->functions[f];
        if (info->n_functions > 1) printf("function %s\n", function->name);
        for (i = 0; i < function->n_inputs; i++) print_tensor("input", &function->inputs[i]);
        for (i = 0; i < function->n_outputs; i++) print_tensor("output", &function->outputs[i]);
    }
}

/* The folder this program lies in. */
static int own_folder(char *folder) {
    ssize_t n = readlink("/proc/self/exe", folder, MAX_PATH - 1);
    if (n <= 0) return complain("cannot tell where this program lies", NULL, "give the artifact by --model");
    folder[n] = 0;
    *strrchr(folder, '/') = 0;
    return 0;
}

static int use(llmc_model *model, const arguments *a, int only_describe) {
    llmc_error error;
    int number = a->function ? llmc_find_function(model, a->function, &error) : 0;
    if (number < 0) return failed(&error);
    if (!only_describe) return run_in_session(model, number, a);
    describe(llmc_describe(model));
    return 0;
}

int main(int argc, char **argv) {
    static arguments a;
    char own[MAX_PATH];
    llmc_model *model;
    llmc_error error;
    int i, status;
    for (i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return fputs(help, stdout) < 0;
    a.folder = ".";
    a.past = -1;
    status = parse(&a, argc, argv);
    if (!status && !a.model) status = own_folder(own);
    if (status) return status;
    if (llmc_open(a.model ? a.model : own, &a.options, &model, &error) != LLMC_OK) return failed(&error);
    status = use(model, &a, argc == 1);
    llmc_close(model);
    if (fflush(stdout) != 0 && !status) status = 1;
    return status;
}
