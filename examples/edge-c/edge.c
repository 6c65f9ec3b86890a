/*
 * edge.c - a classifier for a device: each line of a file of token ids gets a class and its probability. C99.
 *
 *   cc -std=c99 -Im.llmc edge.c -Lm.llmc -l:module.so -Wl,-rpath,$PWD/m.llmc -lm -o edge          shared
 *   cc -std=c99 -Im.llmc edge.c m.llmc/libmodel.a -lm -lpthread -o edge                           static
 *   ./edge m.llmc ids.txt
 *
 * The file has one text a line, its ids in decimal with blanks between. Memory is taken once, for the longest
 * text that the model allows; one thread works, so the device has the others for itself.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc.h"

#define MAX_INPUTS 8
#define MAX_CLASSES 1024

typedef struct classifier {
    llmc_model *model;
    llmc_tensor in[MAX_INPUTS], out;
    int ids;             /* which input takes the ids; the others stay absent and so take their defaults */
    int64_t *tokens;     /* room for the longest text */
    int64_t longest;
    float logits[MAX_CLASSES];
} classifier;

static int fail(const char *problem, const char *hint) {
    fprintf(stderr, "error: %s\n", problem);
    if (*hint) fprintf(stderr, "  hint: %s\n", hint);
    return 1;
}

/* The upper bound of a dim by its code in llmc_tensor_spec.dims, or the size itself. */
static int64_t largest(const llmc_info *info, int64_t size) {
    return size >= 0 ? size : info->dims[-1 - size].high;
}

/* Find the tensors of a text classifier; 0 if the model is none. */
static int describe(classifier *c) {
    const llmc_info *info = llmc_describe(c->model);
    if (info->n_inputs > MAX_INPUTS || info->n_outputs != 1 || info->outputs[0].rank != 2) return 0;
    if (info->outputs[0].dtype != LLMC_F32 || info->outputs[0].dims[1] < 1) return 0;
    if (info->outputs[0].dims[1] > MAX_CLASSES) return 0;
    for (c->ids = 0; c->ids < info->n_inputs; c->ids++)
        if (strcmp(info->inputs[c->ids].name, "input_ids") == 0) break;
    if (c->ids == info->n_inputs || info->inputs[c->ids].rank != 2) return 0;
    c->longest = largest(info, info->inputs[c->ids].dims[1]);
    c->tokens = malloc((size_t)c->longest * sizeof *c->tokens);
    return c->tokens != NULL;
}

/* Read one line: the number of ids, 0 for an empty line, -1 at the end of the file, -2 after a complaint. */
static int64_t read_line(classifier *c, FILE *file, int64_t line) {
    int64_t count = 0;
    int next = fgetc(file);
    if (next == EOF) return -1;
    for (;; next = fgetc(file)) {
        char word[24];
        size_t used = 0;
        char *end;
        while (next == ' ' || next == '\t' || next == '\r') next = fgetc(file);
        if (next == '\n' || next == EOF) return count;
        for (; next != EOF && !isspace(next) && used < sizeof word - 1; next = fgetc(file)) word[used++] = (char)next;
        word[used] = '\0';
        ungetc(next, file);
        errno = 0;
        if (count == c->longest) {
            fprintf(stderr, "error: line %lld has more than %lld ids\n", (long long)line, (long long)c->longest);
            return -2;
        }
        c->tokens[count++] = strtoll(word, &end, 10);
        if (*end || errno || (next != EOF && !isspace(next))) {
            fprintf(stderr, "error: line %lld: '%s' is not a token id\n", (long long)line, word);
            return -2;
        }
    }
}

static llmc_status classify(classifier *c, int64_t count, llmc_error *error) {
    llmc_tensor *ids = &c->in[c->ids];
    llmc_status status;
    ids->data = c->tokens;
    ids->dtype = LLMC_I64;
    ids->rank = 2;
    ids->shape[0] = 1;
    ids->shape[1] = count;
    status = llmc_output_shapes(c->model, c->in, &c->out, error);
    c->out.data = c->logits;
    return status == LLMC_OK ? llmc_run(c->model, c->in, &c->out, error) : status;
}

/* The most probable class by softmax. */
static void print_answer(const classifier *c, int64_t line) {
    int64_t i, best = 0;
    double sum = 0;
    for (i = 1; i < c->out.shape[1]; i++)
        if (c->logits[i] > c->logits[best]) best = i;
    for (i = 0; i < c->out.shape[1]; i++) sum += exp(c->logits[i] - c->logits[best]);
    printf("%lld %d %.6f\n", (long long)line, (int)best, 1 / sum);
}

static int run(classifier *c, FILE *file) {
    llmc_error error;
    int64_t line, count;
    for (line = 1; (count = read_line(c, file, line)) >= 0; line++) {
        if (count == 0) continue;
        if (classify(c, count, &error) != LLMC_OK) {
            fprintf(stderr, "error: line %lld: ", (long long)line);
            fprintf(stderr, "%s\n", error.message);
            return 1;
        }
        print_answer(c, line);
    }
    return count == -1 ? 0 : 1;
}

int main(int argc, char **argv) {
    static classifier c;
    llmc_options options;
    llmc_error error;
    FILE *file;
    int status;

    if (argc != 3) return fail("usage: edge ARTIFACT IDS.txt", "one text a line, as token ids"), 2;
    file = fopen(argv[2], "r");
    if (file == NULL) return fail("cannot open the file of ids", strerror(errno));
    memset(&options, 0, sizeof options);
    options.threads = 1;
    if (llmc_open(argv[1], &options, &c.model, &error) != LLMC_OK) {
        fclose(file);
        return fail(error.message, error.hint);
    }
    status = describe(&c) ? run(&c, file) : fail("this model is not a text classifier", "it needs input_ids and logits");
    free(c.tokens);
    llmc_close(c.model);
    fclose(file);
    return status;
}
