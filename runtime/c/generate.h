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

/* What a generation wants of a run: its tokens up to `to`, and the logits of the last `rows` of them. */
typedef struct llmc_wish {
    int64_t to, rows;
    int64_t n_guesses; /* of the tokens, the last so many are guessed */
    int chooses;       /* it is the end of what is known: new tokens follow from the logits */
} llmc_wish;

/* What a run of several generations needs besides: of the first of them. */
typedef struct llmc_batch {
    llmc_wish *wishes;
    llmc_member *members;
    int *who; /* numbers of those that wait for a run */
    int64_t *ids, *places;
    float *logits;
    int64_t room, room_for_tokens, room_for_rows;
} llmc_batch;

struct llmc_generation {
    llmc_session *session;
    llmc_generator by;
    llmc_generate_options options;
    llmc_chooser chooser;
    int64_t *ids, n, room; /* prompt and text */
    int64_t told;          /* new tokens that the caller has got; those behind are ready */
    float *logits;         /* [options.lookup + 1, vocabulary] of the last run, or of a whole chunk */
    llmc_batch batch;
    double *logprobs;      /* of the tokens that are ready, by their place among those of one run */
    int64_t *top;          /* [options.lookup + 1, options.top_logprobs] */
    double *top_logprobs;
    int64_t first_ready;   /* number of the new token that logprobs begin with */
    uint32_t *mask;        /* choice.allowed, NULL if all tokens may come */
    int64_t asked;         /* number of the new token that allow() was asked about last; -1: none */
    int over;              /* and whether the text ends before it */
    llmc_generate_report report;
};

/* generate_options.c */
llmc_status llmc_take_options(llmc_generation *g, const llmc_generate_options *options, llmc_error *error);
llmc_status llmc_check_prompt(const llmc_generation *g, const int64_t *prompt, int64_t n, llmc_error *error);
int llmc_copy_lists(llmc_choice_options *options); /* the caller's may go before the text ends; 0: no memory */
void llmc_free_lists(llmc_choice_options *options);

/* generate_memory.c */
llmc_status llmc_find_memory(llmc_generation *g, llmc_error *error);
llmc_status llmc_reserve_ids(llmc_generation *g, int64_t n, llmc_error *error);

/* hooks.c: what the caller says */
llmc_status llmc_ask_allowed(llmc_generation *g, int *over, llmc_error *error); /* *over: the text ends before the next token */
llmc_status llmc_guess(llmc_generation *g, int64_t most, int64_t *found, llmc_error *error); /* behind ids, where there is room */

/* generate.c, of a session that is claimed */
int64_t llmc_tokens_made(const llmc_generation *g);
llmc_status llmc_generation_begin(llmc_generation *g, llmc_error *error); /* whether the session is as it was left */
llmc_status llmc_generation_wish(llmc_generation *g, int64_t most, llmc_wish *wish, llmc_error *error); /* so many tokens */
void llmc_generation_took(llmc_generation *g, const llmc_wish *wish); /* the run has been */
/* Choose the tokens that follow, by the logits [rows, vocabulary]. */
llmc_status llmc_generation_choose(llmc_generation *g, const llmc_wish *wish, const float *logits, llmc_error *error);
void llmc_generation_tell(llmc_generation *g, llmc_token *token);
llmc_status llmc_generation_out_of_time(const llmc_generation *g, llmc_error *error);

/* The tensors of a run of `seq` tokens that gives `rows` logits; `out` is one. */
void llmc_generator_tensors(const llmc_generator *by, const int64_t *ids, int64_t seq, const int64_t *places, int64_t rows,
                            float *logits, llmc_tensor *in, llmc_tensor *out);

/* generations.c */
void llmc_batch_close(llmc_batch *batch);

/* generator.c */
llmc_status llmc_find_generator(const llmc_model *model, const llmc_generate_options *options, llmc_generator *found,
                                llmc_error *error);

/* lookup.c: at most `most` tokens that may follow; how many. The last `longest` tokens, or fewer, are looked for. */
int64_t llmc_look_up(const int64_t *ids, int64_t n, int64_t longest, int64_t most, int64_t *guesses);

#endif
