/*
 * hooks.c - what the caller says of a text in the making: which tokens may come next, and which are likely.
 */
#include <string.h>

#include "generate.h"

llmc_status llmc_ask_allowed(llmc_generation *g, int *over, llmc_error *error) {
    const llmc_generate_options *o = &g->options;
    int64_t made = llmc_tokens_made(g);
    int said;
    *over = 0;
    if (!o->allow) return LLMC_OK;
    if (g->asked != made) {
        memset(g->mask, 0, ((size_t)g->by.vocabulary + 31) / 32 * sizeof *g->mask);
        said = o->allow(o->user, g->ids + g->report.prompt_tokens, made, g->mask);
        if (said < 0)
            return llmc_fail(error, LLMC_ERROR_CALLBACK, NULL, "allow() gave up before new token %lld", (long long)made);
        g->asked = made;
        g->over = said > 0;
    }
    *over = g->over;
    return LLMC_OK;
}

llmc_status llmc_guess(llmc_generation *g, int64_t most, int64_t *found, llmc_error *error) {
    const llmc_generate_options *o = &g->options;
    int64_t *guesses = g->ids + g->n, i;
    *found = o->guess ? o->guess(o->user, g->ids, g->n, most, guesses)
                      : llmc_look_up(g->ids, g->n, o->lookup_ngram, most, guesses);
    if (*found < 0) return llmc_fail(error, LLMC_ERROR_CALLBACK, NULL, "guess() gave up behind token %lld", (long long)g->n);
    if (*found > most)
        return llmc_fail(error, LLMC_ERROR_CALLBACK, NULL, "guess() gave %lld tokens, %lld were asked for", (long long)*found,
                         (long long)most);
    for (i = 0; i < *found; i++)
        if (guesses[i] < 0 || guesses[i] >= g->by.vocabulary) *found = i; /* no token: what is before it may be right */
    return LLMC_OK;
}
