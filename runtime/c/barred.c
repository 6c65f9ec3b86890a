/*
 * barred.c - tokens that must not come, or must: by what came before them, by their place, or as the caller says.
 */
#include <math.h>
#include <string.h>

#include "choose.h"

static llmc_status check_places(const llmc_place *places, int64_t n, const char *name, int64_t vocabulary,
                                llmc_error *error) {
    int64_t i;
    if (n < 0 || (n && !places))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "%s must hold n_%s places", name, name);
    for (i = 0; i < n; i++)
        if (places[i].token < 0 || places[i].token >= vocabulary)
            return llmc_fail(error, LLMC_ERROR_RANGE, NULL, "the %s %lld is no token, must be within 0..%lld", name,
                             (long long)places[i].token, (long long)vocabulary - 1);
    return LLMC_OK;
}

static llmc_status check_sequences(const llmc_choice_options *how, int64_t vocabulary, llmc_error *error) {
    int64_t at = 0, i, length;
    if (how->n_barred < 0 || (how->n_barred && !how->barred))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "barred must hold n_barred numbers");
    for (; at < how->n_barred; at += length + 1) {
        length = how->barred[at];
        if (length < 1 || length > how->n_barred - at - 1)
            return llmc_fail(error, LLMC_ERROR_ARGUMENT, "before each sequence comes its length",
                             "a barred sequence has %lld tokens", (long long)length);
        for (i = at + 1; i <= at + length; i++)
            if (how->barred[i] < 0 || how->barred[i] >= vocabulary)
                return llmc_fail(error, LLMC_ERROR_RANGE, NULL, "the barred %lld is no token, must be within 0..%lld",
                                 (long long)how->barred[i], (long long)vocabulary - 1);
    }
    return LLMC_OK;
}

llmc_status llmc_check_barred(const llmc_choice_options *how, int64_t vocabulary, llmc_error *error) {
    llmc_status status = check_places(how->forced, how->n_forced, "forced", vocabulary, error);
    if (status == LLMC_OK) status = check_places(how->without, how->n_without, "without", vocabulary, error);
    if (status == LLMC_OK && how->no_repeat_ngram < 0)
        status = llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "no_repeat_ngram is %lld, must not be negative",
                           (long long)how->no_repeat_ngram);
    return status == LLMC_OK ? check_sequences(how, vocabulary, error) : status;
}

/* Whether `ids` end with the `n` tokens. */
static int ends_with(const int64_t *ids, int64_t n_ids, const int64_t *tokens, int64_t n) {
    return n <= n_ids && memcmp(ids + n_ids - n, tokens, (size_t)n * sizeof *ids) == 0;
}

static void bar_repeats(llmc_chooser *c, const int64_t *ids, int64_t n) {
    int64_t before = c->how->no_repeat_ngram - 1, i;
    if (before < 0) return;
    for (i = 0; i + before < n; i++)
        if (ends_with(ids, n, ids + i, before)) c->scores[ids[i + before]] = -INFINITY;
}

static void bar_sequences(llmc_chooser *c, const int64_t *ids, int64_t n) {
    const int64_t *at = c->how->barred, *end = at + c->how->n_barred;
    for (; at < end; at += *at + 1)
        if (ends_with(ids, n, at + 1, *at - 1)) c->scores[at[*at]] = -INFINITY;
}

void llmc_bar_sequences(llmc_chooser *c, const int64_t *ids, int64_t n) {
    bar_repeats(c, ids, n);
    if (c->how->n_barred) bar_sequences(c, ids, n);
}

/* Where one of the places is this one, none but its tokens is left, as likely as each other. */
static void force(llmc_chooser *c, int64_t index) {
    const llmc_choice_options *how = c->how;
    int64_t i, k, any = 0;
    for (i = 0; i < how->n_forced; i++) any |= how->forced[i].index == index;
    if (!any) return;
    for (k = 0; k < c->vocabulary; k++) c->scores[k] = -INFINITY;
    for (i = 0; i < how->n_forced; i++)
        if (how->forced[i].index == index) c->scores[how->forced[i].token] = 0;
}

void llmc_bar_places(llmc_chooser *c, int64_t index) {
    const llmc_choice_options *how = c->how;
    int64_t i;
    force(c, index);
    for (i = 0; i < how->n_without; i++)
        if (how->without[i].index == index) c->scores[how->without[i].token] = -INFINITY;
}

int llmc_is_allowed(const llmc_choice_options *how, int64_t token) {
    return !how->allowed || (how->allowed[token / 32] >> (token % 32) & 1);
}

int llmc_must_end(const llmc_chooser *c) {
    const llmc_choice_options *how = c->how;
    int64_t i, k;
    if (!how->allowed) return 0;
    for (i = 0; i < c->vocabulary; i++) {
        if (!llmc_is_allowed(how, i)) continue;
        for (k = 0; k < how->n_stop && how->stop[k] != i; k++) continue;
        if (k == how->n_stop) return 0;
    }
    return 1;
}

void llmc_bar_unlisted(llmc_chooser *c) {
    int64_t i;
    if (!c->how->allowed) return;
    for (i = 0; i < c->vocabulary; i++)
        if (!llmc_is_allowed(c->how, i)) c->scores[i] = -INFINITY;
}
