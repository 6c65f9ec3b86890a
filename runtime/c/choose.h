/*
 * choose.h - choosing tokens by logits. Internal.
 */
#ifndef LLMC_CHOOSE_H
#define LLMC_CHOOSE_H

#include "model.h"

/* portable.c: the same bits on every machine, by whatever C library and compiler; no flags of libm */
double llmc_exp(double x); /* x <= 0 */
double llmc_log(double x); /* x > 0, normal */
double llmc_uniform(uint64_t seed, uint64_t index); /* in 0..1, 1 excluded: number `index` of the sequence `seed` */

typedef struct llmc_candidate {
    float score;
    int32_t token;
    double p; /* probability among those that are left, or what it is sorted by */
} llmc_candidate;

typedef struct llmc_chooser {
    const llmc_choice_options *how;
    int64_t vocabulary;
    float *scores;             /* [vocabulary] */
    llmc_candidate *list;      /* [vocabulary], `n` of them are left */
    int64_t n;
    unsigned char *seen;       /* [vocabulary] */
    int32_t *counts;           /* [vocabulary] */
} llmc_chooser;

llmc_status llmc_check_choice(const llmc_choice_options *how, int64_t vocabulary, llmc_error *error);
llmc_status llmc_chooser_open(llmc_chooser *chooser, const llmc_choice_options *how, int64_t vocabulary,
                              llmc_error *error);
/* barred.c */
llmc_status llmc_check_barred(const llmc_choice_options *how, int64_t vocabulary, llmc_error *error);
void llmc_bar_sequences(llmc_chooser *chooser, const int64_t *ids, int64_t n); /* that would come again, or never do */
void llmc_bar_places(llmc_chooser *chooser, int64_t index);                    /* what the new token `index` is, or is not */
void llmc_bar_unlisted(llmc_chooser *chooser);                                 /* all but those allowed */
int llmc_is_allowed(const llmc_choice_options *how, int64_t token);
int llmc_must_end(const llmc_chooser *chooser); /* whether none but stop tokens is allowed */

void llmc_chooser_close(llmc_chooser *chooser); /* also after a failed open, and of zeros */

/* The token that follows `ids`, of which the first n_prompt are the prompt. `list` holds what could have been chosen. */
llmc_status llmc_next_token(llmc_chooser *chooser, const float *logits, const int64_t *ids, int64_t n,
                            int64_t n_prompt, int64_t *token, llmc_error *error);

/* filters.c: keep what an option keeps; at least one candidate stays */
void llmc_keep_top_k(llmc_chooser *chooser, int64_t k);
void llmc_keep_top_p(llmc_chooser *chooser, double mass);
void llmc_keep_min_p(llmc_chooser *chooser, double share);
void llmc_keep_typical(llmc_chooser *chooser, double mass);
void llmc_weigh(llmc_chooser *chooser); /* fill in p */

/* logprobs.c: of the model itself, before penalties and filters */
double llmc_log_total(const float *logits, int64_t n); /* log of the sum of their exponentials */
void llmc_top_tokens(const float *logits, int64_t n, double log_total, int64_t wanted, int64_t *tokens, double *logprobs);

#endif
