/*
 * generate_options.c - what a text may be asked for, and which prompts fit.
 */
#include <stdlib.h>
#include <string.h>

#include "generate.h"

#define CHUNK 512
#define NGRAM 2

static llmc_status check_counts(const llmc_generate_options *o, int64_t vocabulary, llmc_error *error) {
    const int64_t values[] = {o->max_new_tokens, o->chunk, o->lookup, o->lookup_ngram, o->top_logprobs, o->made};
    static const char *const names[] = {"max_new_tokens", "chunk", "lookup", "lookup_ngram", "top_logprobs", "made"};
    const int64_t bounds[] = {INT64_MAX, INT64_MAX, LLMC_MOST_GUESSES, LLMC_MOST_GUESSES, vocabulary, INT64_MAX};
    size_t i;
    for (i = 0; i < sizeof values / sizeof *values; i++) {
        if (values[i] < 0)
            return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "%s is %lld, must not be negative", names[i],
                             (long long)values[i]);
        if (values[i] > bounds[i])
            return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "%s is %lld, must be within 0..%lld", names[i],
                             (long long)values[i], (long long)bounds[i]);
    }
    if (o->allow && o->choice.allowed)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "allow and choice.allowed cannot go together");
    if (!(o->timeout >= 0))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "0 means none", "timeout is %g s, must not be negative", o->timeout);
    return LLMC_OK;
}

llmc_status llmc_check_prompt(const llmc_generation *g, const int64_t *prompt, int64_t n, llmc_error *error) {
    int64_t i;
    if (n < 1)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "begin with the token that begins a text", "the prompt is empty");
    if (g->options.made > n)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "made is %lld, the prompt has %lld tokens",
                         (long long)g->options.made, (long long)n);
    for (i = 0; i < n; i++)
        if (prompt[i] < 0 || prompt[i] >= g->by.vocabulary)
            return llmc_fail(error, LLMC_ERROR_RANGE, NULL, "token %lld of the prompt is %lld, must be within 0..%lld",
                             (long long)i, (long long)prompt[i], (long long)g->by.vocabulary - 1);
    if (n >= g->by.longest)
        return llmc_fail(error, LLMC_ERROR_SHAPE, "give a shorter prompt, or compile the model with a larger bound (--max-seq)",
                         "the prompt has %lld tokens, the model takes at most %lld, new ones included", (long long)n,
                         (long long)g->by.longest);
    if (g->by.longest == INT64_MAX && !g->options.max_new_tokens)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "max_new_tokens must be given: the model has no bound");
    return LLMC_OK;
}

llmc_status llmc_take_options(llmc_generation *g, const llmc_generate_options *options, llmc_error *error) {
    llmc_generate_options *o = &g->options;
    const llmc_model *model = g->session->model;
    llmc_status status;
    if (options) *o = *options;
    status = llmc_find_generator(model, o, &g->by, error);
    if (status == LLMC_OK) status = check_counts(o, g->by.vocabulary, error);
    if (status == LLMC_OK) status = llmc_check_choice(&o->choice, g->by.vocabulary, error);
    if (status != LLMC_OK) return status;
    if (o->lookup && (llmc_growing_dim(model->program) < 0 || llmc_fixed_history(model->program) >= 0))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, "leave look-up out",
                         "tokens cannot be guessed: the states of the model cannot go back");
    if (!o->chunk) o->chunk = CHUNK;
    if (!o->lookup_ngram) o->lookup_ngram = NGRAM;
    if (o->chunk > g->by.chunk) o->chunk = g->by.chunk;
    if (o->lookup > g->by.kept - 1) o->lookup = g->by.kept - 1;
    if (o->lookup > g->by.chunk - 1) o->lookup = g->by.chunk - 1;
    return LLMC_OK;
}

/* A copy, which llmc_free_lists() frees; NULL: no memory. */
static void *copied(const void *list, int64_t n, size_t each) {
    void *own = malloc(((size_t)n + 1) * each);
    if (own && n) memcpy(own, list, (size_t)n * each);
    return own;
}

int llmc_copy_lists(llmc_choice_options *o) {
    o->bias = (const llmc_bias *)copied(o->bias, o->n_bias, sizeof *o->bias);
    o->stop = (const int64_t *)copied(o->stop, o->n_stop, sizeof *o->stop);
    o->barred = (const int64_t *)copied(o->barred, o->n_barred, sizeof *o->barred);
    o->forced = (const llmc_place *)copied(o->forced, o->n_forced, sizeof *o->forced);
    o->without = (const llmc_place *)copied(o->without, o->n_without, sizeof *o->without);
    return o->bias && o->stop && o->barred && o->forced && o->without;
}

void llmc_free_lists(llmc_choice_options *o) {
    const void *lists[5];
    int i;
    lists[0] = o->bias;
    lists[1] = o->stop;
    lists[2] = o->barred;
    lists[3] = o->forced;
    lists[4] = o->without;
    for (i = 0; i < 5; i++) free((void *)(uintptr_t)lists[i]);
}
