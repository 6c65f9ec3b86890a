/*
 * generate.h - a text in the making. Internal.
 */
#ifndef LLMC_GENERATE_H
#define LLMC_GENERATE_H

#include "choose.h"

/* Which function generates, and where its arguments are. */
typedef struct llmc_generator {
    const llmc_function *function;
    int tokens, keep;   /* inputs; keep is -1 where all logits are given */
    int64_t vocabulary;
    int64_t longest;    /* tokens of a sequence; INT64_MAX: any */
    int64_t chunk;      /* tokens of one run */
    int64_t kept;       /* logits of one run */
} llmc_generator;

#define LLMC_MOST_INPUTS 16
#define LLMC_MOST_GUESSES 64

struct llmc_generation {
    llmc_session *session;
    llmc_generator by;
    llmc_generate_options options;
    llmc_chooser chooser;
    int64_t *ids, n, room; /* prompt and text */
    int64_t told;          /* new tokens that the caller has got; those behind are ready */
    float *logits;         /* [options.lookup + 1, vocabulary] of the last run, or of a whole chunk */
    double *logprobs;      /* of the tokens that are ready, by their place among those of one run */
    int64_t *top;          /* [options.lookup + 1, options.top_logprobs] */
    double *top_logprobs;
    int64_t first_ready;   /* number of the new token that logprobs begin with */
    llmc_generate_report report;
};

/* generate_options.c */
llmc_status llmc_take_options(llmc_generation *g, const llmc_generate_options *options, llmc_error *error);
llmc_status llmc_check_prompt(const llmc_generation *g, const int64_t *prompt, int64_t n, llmc_error *error);

/* generator.c */
llmc_status llmc_find_generator(const llmc_model *model, const llmc_generate_options *options, llmc_generator *found,
                                llmc_error *error);

/* lookup.c: at most `most` tokens that may follow; how many. The last `longest` tokens, or fewer, are looked for. */
int64_t llmc_look_up(const int64_t *ids, int64_t n, int64_t longest, int64_t most, int64_t *guesses);

#endif
