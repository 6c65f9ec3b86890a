/*
 * choose.c - the next token by its logits: penalties, filters, and a draw that is the same everywhere.
 *
 * The options mean what transformers' logits processors of the same names mean, and come in their order.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "choose.h"

#define COLDEST 1e-30 /* a temperature below it makes infinities of logits */

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

static llmc_status wrong(const char *name, double value, const char *must, llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "%s is %g, must be %s", name, value, must);
}

static int is_finite(double x) {
    return x < INFINITY && x > -INFINITY;
}

static llmc_status check_tokens(const llmc_choice_options *how, int64_t vocabulary, llmc_error *error) {
    int64_t i;
    for (i = 0; i < how->n_bias + how->n_stop; i++) {
        int64_t token = i < how->n_bias ? how->bias[i].token : how->stop[i - how->n_bias];
        if (token < 0 || token >= vocabulary)
            return llmc_fail(error, LLMC_ERROR_RANGE, NULL, "%s %lld is no token, must be within 0..%lld",
                             i < how->n_bias ? "the biased" : "the stopping", (long long)token, (long long)vocabulary - 1);
        if (i < how->n_bias && !(how->bias[i].bias <= FLT_MAX))
            return wrong("a bias", how->bias[i].bias, "a number, or minus infinity", error);
    }
    return LLMC_OK;
}

llmc_status llmc_check_choice(const llmc_choice_options *how, int64_t vocabulary, llmc_error *error) {
    llmc_status status;
    if (!(how->temperature == 0 || (how->temperature >= COLDEST && how->temperature < INFINITY)))
        return wrong("temperature", how->temperature, "above 0; do_sample = 0 takes the likeliest token", error);
    if (how->top_k < 0) return wrong("top_k", (double)how->top_k, "at least 1", error);
    if (!(how->top_p >= 0 && how->top_p <= 1)) return wrong("top_p", how->top_p, "within 0..1", error);
    if (!(how->min_p >= 0 && how->min_p <= 1)) return wrong("min_p", how->min_p, "within 0..1", error);
    if (!(how->typical_p >= 0 && how->typical_p <= 1))
        return wrong("typical_p", how->typical_p, "above 0 and at most 1", error);
    if (!(how->repetition_penalty >= 0 && how->repetition_penalty < INFINITY))
        return wrong("repetition_penalty", how->repetition_penalty, "above 0", error);
    if (!is_finite(how->presence_penalty))
        return wrong("presence_penalty", how->presence_penalty, "a number", error);
    if (!is_finite(how->frequency_penalty))
        return wrong("frequency_penalty", how->frequency_penalty, "a number", error);
    if (how->min_new_tokens < 0) return wrong("min_new_tokens", (double)how->min_new_tokens, "at least 0", error);
    if (how->n_bias < 0 || how->n_stop < 0 || (how->n_bias && !how->bias) || (how->n_stop && !how->stop))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "bias and stop must hold n_bias and n_stop tokens");
    status = llmc_check_barred(how, vocabulary, error);
    return status == LLMC_OK ? check_tokens(how, vocabulary, error) : status;
}

llmc_status llmc_chooser_open(llmc_chooser *c, const llmc_choice_options *how, int64_t vocabulary, llmc_error *error) {
    size_t n = (size_t)vocabulary;
    memset(c, 0, sizeof *c);
    if (vocabulary < 1 || vocabulary > INT32_MAX)
        return wrong("the number of tokens", (double)vocabulary, "within 1..2147483647", error);
    c->how = how;
    c->vocabulary = vocabulary;
    c->scores = (float *)malloc(n * sizeof *c->scores);
    c->list = (llmc_candidate *)malloc(n * sizeof *c->list);
    c->counts = (int32_t *)malloc(n * sizeof *c->counts);
    c->seen = (unsigned char *)malloc(n);
    if (c->scores && c->list && c->counts && c->seen) return LLMC_OK;
    llmc_chooser_close(c);
    return llmc_fail_memory(error, n * (sizeof *c->scores + sizeof *c->list + sizeof *c->counts + 1));
}

void llmc_chooser_close(llmc_chooser *c) {
    free(c->scores);
    free(c->list);
    free(c->counts);
    free(c->seen);
    memset(c, 0, sizeof *c);
}

static void repeat_less(llmc_chooser *c, const int64_t *ids, int64_t n) {
    float penalty = (float)c->how->repetition_penalty;
    int64_t i;
    if (penalty == 0 || penalty == 1) return;
    memset(c->seen, 0, (size_t)c->vocabulary);
    for (i = 0; i < n; i++) {
        float *score = &c->scores[ids[i]];
        if (c->seen[ids[i]]) continue;
        c->seen[ids[i]] = 1;
        *score = *score < 0 ? *score * penalty : *score / penalty;
    }
}

static void count_against(llmc_chooser *c, const int64_t *made, int64_t n) {
    float presence = (float)c->how->presence_penalty, frequency = (float)c->how->frequency_penalty;
    int64_t i;
    if (presence == 0 && frequency == 0) return;
    memset(c->counts, 0, (size_t)c->vocabulary * sizeof *c->counts);
    for (i = 0; i < n; i++) c->counts[made[i]]++;
    for (i = 0; i < c->vocabulary; i++)
        if (c->counts[i]) c->scores[i] -= frequency * (float)c->counts[i] + presence;
}

/* What is added to logits or taken off them, whether a token is drawn or the likeliest is taken. */
static void penalise(llmc_chooser *c, const int64_t *ids, int64_t n, int64_t n_prompt) {
    const llmc_choice_options *how = c->how;
    int64_t i;
    for (i = 0; i < how->n_bias; i++) c->scores[how->bias[i].token] += (float)how->bias[i].bias;
    repeat_less(c, ids, n);
    count_against(c, ids + n_prompt, n - n_prompt);
    llmc_bar_sequences(c, ids, n);
    if (n - n_prompt < how->min_new_tokens && !llmc_must_end(c))
        for (i = 0; i < how->n_stop; i++) c->scores[how->stop[i]] = -INFINITY;
    llmc_bar_places(c, n - n_prompt);
    llmc_bar_unlisted(c);
}

/* The likeliest, of equal ones the first. -1: there is none; -2: one is no number. */
static int64_t likeliest(const float *scores, int64_t n) {
    float most = -INFINITY;
    int64_t i, found = -1;
    for (i = 0; i < n; i++) {
        if (scores[i] != scores[i] || scores[i] == INFINITY) return -2;
        if (scores[i] > most) {
            most = scores[i];
            found = i;
        }
    }
    return found;
}

static void filter(llmc_chooser *c) {
    const llmc_choice_options *how = c->how;
    float temperature = how->temperature > 0 ? (float)how->temperature : 1;
    int64_t i;
    for (i = 0, c->n = 0; i < c->vocabulary; i++) {
        llmc_candidate *next = &c->list[c->n];
        if (c->scores[i] == -INFINITY) continue;
        next->token = (int32_t)i;
        next->score = c->scores[i] / temperature;
        c->n++;
    }
    if (how->top_k) llmc_keep_top_k(c, how->top_k);
    if (how->top_p > 0 && how->top_p < 1) llmc_keep_top_p(c, how->top_p);
    if (how->min_p > 0) llmc_keep_min_p(c, how->min_p);
    if (how->typical_p > 0 && how->typical_p < 1) llmc_keep_typical(c, how->typical_p);
    llmc_weigh(c);
}

static int64_t draw(const llmc_chooser *c, double point) {
    double sum = 0;
    int64_t i;
    for (i = 0; i < c->n - 1; i++) {
        sum += c->list[i].p;
        if (point < sum) break;
    }
    return c->list[i].token;
}

llmc_status llmc_next_token(llmc_chooser *c, const float *logits, const int64_t *ids, int64_t n, int64_t n_prompt,
                            int64_t *token, llmc_error *error) {
    memcpy(c->scores, logits, (size_t)c->vocabulary * sizeof *logits);
    penalise(c, ids, n, n_prompt);
    *token = likeliest(c->scores, c->vocabulary);
    if (*token == -1)
        return llmc_fail(error, LLMC_ERROR_RANGE, "bias, suppress or forbid fewer tokens", "no token is left to choose from");
    if (*token == -2)
        return llmc_fail(error, LLMC_ERROR_RANGE, "compile the model in f32, or with other options",
                         "the model gave logits that are no numbers");
    if (!c->how->do_sample) {
        c->list[0].token = (int32_t)*token;
        c->list[0].p = 1;
        c->n = 1;
        return LLMC_OK;
    }
    filter(c);
    *token = draw(c, llmc_uniform(c->how->seed, (uint64_t)(n - n_prompt)));
    return LLMC_OK;
}

static llmc_status check_ids(const int64_t *ids, int64_t n, int64_t n_prompt, int64_t vocabulary, llmc_error *error) {
    int64_t i;
    if (n < 0 || n_prompt < 0 || n_prompt > n || (n && !ids))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "of %lld ids %lld cannot be the prompt", (long long)n,
                         (long long)n_prompt);
    for (i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocabulary)
            return llmc_fail(error, LLMC_ERROR_RANGE, NULL, "ids[%lld] is %lld, must be within 0..%lld", (long long)i,
                             (long long)ids[i], (long long)vocabulary - 1);
    return LLMC_OK;
}

llmc_status llmc_choose(const llmc_choice_options *how, const float *logits, int64_t vocabulary, const int64_t *ids,
                        int64_t n, int64_t n_prompt, int64_t *token, double *probabilities, llmc_error *error) {
    llmc_chooser c;
    llmc_status status;
    int64_t i;
    if (!how || !logits || !token)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "options, logits and token must not be NULL");
    status = llmc_check_choice(how, vocabulary, error);
    if (status == LLMC_OK) status = check_ids(ids, n, n_prompt, vocabulary, error);
    if (status == LLMC_OK) status = llmc_chooser_open(&c, how, vocabulary, error);
    if (status != LLMC_OK) return status;
    status = llmc_next_token(&c, logits, ids, n, n_prompt, token, error);
    if (status == LLMC_OK && probabilities) {
        memset(probabilities, 0, (size_t)vocabulary * sizeof *probabilities);
        for (i = 0; i < c.n; i++) probabilities[c.list[i].token] = c.list[i].p;
    }
    llmc_chooser_close(&c);
    return status;
}
