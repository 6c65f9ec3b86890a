/*
 * llmc.h - run a model compiled by llmc. C99 or C++11, no dependency but libc, libm and libpthread.
 *
 * An artifact is a folder, say m.llmc, that holds module.so (code and runtime), weights.bin and this header.
 * Link module.so, or dlopen() it and dlsym() the functions below. In the order of use:
 *
 *   llmc_model *model = NULL;
 *   llmc_error error;
 *   if (llmc_open("m.llmc", NULL, &model, &error) != LLMC_OK) { fprintf(stderr, "%s\n", error.message); ... }
 *
 *   int64_t ids[1 * 3] = {101, 7592, 102};
 *   float logits[1 * 2];
 *   llmc_tensor in[] = {{ids, LLMC_I64, 2, {1, 3}}, {0}};           in the order of llmc_describe(model)->inputs;
 *   llmc_tensor out[] = {{logits, LLMC_F32, 2, {1, 2}}};            data == NULL leaves an input to its default
 *   if (llmc_run(model, in, out, &error) != LLMC_OK) ...
 *   llmc_close(model);
 *
 * llmc_output_shapes() tells how large the outputs for some inputs are.
 *
 * A model is functions, weights and states. Most have one function and no state: llmc_run() is all they need. A
 * session is one run at a time with memory of its own, and one sequence of calls where the functions keep states:
 *
 *   llmc_session *session;
 *   int step = llmc_find_function(model, "step", &error);
 *   if (llmc_session_open(model, NULL, &session, &error) != LLMC_OK) ...
 *   while (...) if (llmc_session_run(session, step, in, out, NULL, &error) != LLMC_OK) ...
 *   llmc_session_close(session);
 *
 * - Every function that can fail returns a status, and puts a sentence into `error` if that is not NULL. Nothing
 *   here aborts, exits, prints, reads the environment or keeps global state.
 * - The caller owns inputs and outputs. They must not overlap, and nobody may write to them during a run.
 * - Tensors are dense, last axis fastest, aligned to their element's size.
 * - Several threads may call llmc_run() on one model: the calls take turns. Different models are independent.
 *   Sessions of one model run at the same time if they have threads of their own, else they take turns too.
 * - A session is used by one thread at a time: a second one gets LLMC_ERROR_BUSY. Only llmc_session_cancel() may be
 *   called meanwhile.
 * - llmc_close() and llmc_session_close() must come after the last run. A model that is closed before its sessions
 *   goes with the last of them; until then they work.
 * - After fork() the child must open its own model and threads; using the parent's gives LLMC_ERROR_FORK. Closing
 *   them is fine.
 * - Memory for intermediate results grows to the largest sizes seen and is kept until llmc_close() or
 *   llmc_session_close(). That of states grows with them. A run allocates nothing else,
 *   but for a table where it has more sessions than any before.
 * - A run that fails, is cancelled or misses its deadline leaves its session as it was before.
 * - weights.bin is mapped, not read: several processes share one copy. Do not truncate it while a model is open;
 *   replace it by rename().
 */
#ifndef LLMC_H
#define LLMC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLMC_VERSION 9 /* of this interface; counts up when anything here changes its meaning or layout */
#define LLMC_MAX_RANK 8
#define LLMC_MAX_DIMS 16

#if defined(__GNUC__)
#define LLMC_API __attribute__((visibility("default")))
#else
#define LLMC_API
#endif

typedef enum llmc_status {
    LLMC_OK = 0,
    LLMC_ERROR_MEMORY,   /* the system has no memory or no threads left; the model stays usable */
    LLMC_ERROR_FILE,     /* a file is missing or cannot be read */
    LLMC_ERROR_WEIGHTS,  /* weights.bin is damaged or belongs to another build */
    LLMC_ERROR_MODULE,   /* module.so is not one this runtime can run */
    LLMC_ERROR_CPU,      /* the processor lacks a feature that the code needs */
    LLMC_ERROR_ARGUMENT, /* a NULL or an option that makes no sense */
    LLMC_ERROR_MISSING,  /* an input without default was not given */
    LLMC_ERROR_DTYPE,    /* a tensor's element type is not the one expected */
    LLMC_ERROR_SHAPE,    /* a tensor's rank or size does not fit, or a size is out of bounds */
    LLMC_ERROR_RANGE,    /* a value lies outside its range, such as a token id beyond the vocabulary */
    LLMC_ERROR_FORK,     /* the model, or the threads it was to share, were opened by the parent process */
    LLMC_ERROR_DEVICE,   /* there is no GPU or no driver for it, or it failed */
    LLMC_ERROR_STATE,    /* the call does not fit what its session holds, or there is no session to hold it */
    LLMC_ERROR_BUSY,     /* the session is in use by another thread */
    LLMC_ERROR_CANCELLED, /* by llmc_session_cancel() */
    LLMC_ERROR_DEADLINE,  /* the run took longer than its timeout */
    LLMC_ERROR_CALLBACK   /* a function of the caller's gave up */
} llmc_status;

/* A few words for each status, such as "wrong shape". */
LLMC_API const char *llmc_status_text(llmc_status status);

typedef struct llmc_error {
    llmc_status status;
    char message[512]; /* what is wrong, where, and what was found: one sentence, UTF-8 */
    char hint[256];    /* what to do about it, or "" */
} llmc_error;

typedef enum llmc_dtype {
    LLMC_F32 = 1,
    LLMC_F16,
    LLMC_BF16,
    LLMC_I8,
    LLMC_U8,
    LLMC_I32,
    LLMC_I64,
    LLMC_BOOL, /* one byte, 0 or 1 */
    LLMC_F64
} llmc_dtype;

LLMC_API const char *llmc_dtype_name(int dtype); /* "f32", or "?" */
LLMC_API size_t llmc_dtype_size(int dtype);      /* bytes of one element, or 0 */

/* ---- What a model takes and gives ---- */

/* A size that is known only when the model runs. */
typedef struct llmc_dim_info {
    const char *name;  /* "batch" */
    int64_t low, high; /* inclusive */
} llmc_dim_info;

typedef struct llmc_tensor_spec {
    const char *name;
    int dtype; /* llmc_dtype */
    int rank;
    int64_t dims[LLMC_MAX_RANK];          /* a fixed size, -1-d for dim d, or INT64_MIN for an expression */
    const char *dims_text[LLMC_MAX_RANK]; /* "batch", "2*seq + 1", "384" */
    int has_default;                      /* inputs: may be absent, is then filled with default_value (0 or 1 for f16 and bf16) */
    double default_value;
    int has_range; /* integer inputs: each value must lie in low..high */
    int64_t low, high;
} llmc_tensor_spec;

/* What a session keeps from one call to the next. */
typedef struct llmc_state_spec {
    const char *name; /* "keys.0" */
    int dtype;        /* llmc_dtype */
    int rank;
    int64_t dims[LLMC_MAX_RANK];          /* a fixed size, -1-d for dim d, or INT64_MIN for an expression */
    const char *dims_text[LLMC_MAX_RANK]; /* "batch", "past", "64" */
    int grows; /* the axis that grows, whose size is a dim that begins at 0; -1: none, the state begins as zeros */
} llmc_state_spec;

/* What a function does to a state. */
typedef enum llmc_state_use {
    LLMC_STATE_UNUSED = 0,
    LLMC_STATE_READ,
    LLMC_STATE_APPENDED, /* it grows; what it holds stays where it is */
    LLMC_STATE_REPLACED  /* by a new value */
} llmc_state_use;

typedef struct llmc_function_info {
    const char *name; /* "forward", "encode", "step" */
    int n_inputs, n_outputs, n_steps;
    const llmc_tensor_spec *inputs, *outputs;
    const unsigned char *dims_used; /* n_dims: 1 where the function needs the size */
    const unsigned char *state_use; /* n_states: llmc_state_use */
    int batches;        /* not 0: llmc_sessions_run() runs it for several sessions at once */
    const char *single; /* else why not, or NULL */
} llmc_function_info;

typedef struct llmc_info {
    const char *name;     /* of the model */
    const char *build_id; /* 64 hex digits */
    const char *variant;  /* the code that was picked for this CPU, such as "avx512" */
    int threads;
    int n_dims, n_inputs, n_outputs, n_steps; /* of the first function, but for n_dims */
    const llmc_dim_info *dims;                /* of all functions */
    const llmc_tensor_spec *inputs, *outputs;
    double load_seconds;    /* what llmc_open took */
    uint64_t weights_bytes; /* mapped */
    int n_functions, n_states;
    const llmc_function_info *functions; /* the first is what llmc_run() runs */
    const llmc_state_spec *states;
    int n_adapters;              /* beside the model's own weights, to choose from for each session */
    const char *const *adapters; /* their names */
} llmc_info;

/* ---- Open, run, close ---- */

typedef struct llmc_model llmc_model;
typedef struct llmc_threads llmc_threads;

/* Set to zero for the defaults. */
typedef struct llmc_options {
    int threads;          /* that work on one run, the caller's included; 0: one for each usable core */
    int pin;              /* not 0: bind each worker thread to a core of its own */
    int spin_us;          /* how long a worker waits awake for more work; 0: a good value, -1: sleep at once */
    int skip_weights_check; /* not 0: do not read all of weights.bin to compare it with its checksums */
    const char *variant;  /* NULL: the best that this CPU can run */
    llmc_threads *shared; /* NULL: threads of its own. Else it works with these, and `threads`, `pin` and `spin_us` are unused */
    uint64_t max_memory;  /* bytes that the model's sessions may hold together, its own included, what several share once;
                             0: no bound. Neither the mapped weights nor what threads work with are counted */
} llmc_options;

/* Threads that several models work with, of one artifact or of several: their runs take turns, so that two models do
 * not ask for more cores than there are. Of `options` (may be NULL) threads, pin and spin_us are used. */
LLMC_API llmc_status llmc_threads_open(const llmc_options *options, llmc_threads **threads, llmc_error *error);

/* After the last model that works with them is closed. NULL is fine. */
LLMC_API void llmc_threads_close(llmc_threads *threads);

/* Map the weights of the artifact in folder `directory`, start the threads, check that the weights are those of this
 * module: header and size, and every MiB against its CRC-32C, at the speed of memory.
 * `options` may be NULL. `*model` is NULL after a failure. */
LLMC_API llmc_status llmc_open(const char *directory, const llmc_options *options, llmc_model **model,
                               llmc_error *error);

/* NULL is fine. */
LLMC_API void llmc_close(llmc_model *model);

/* Valid until llmc_close(). */
LLMC_API const llmc_info *llmc_describe(const llmc_model *model);

typedef struct llmc_tensor {
    void *data; /* NULL: absent */
    int dtype;  /* llmc_dtype */
    int rank;
    int64_t shape[LLMC_MAX_RANK];
} llmc_tensor;

/* Check `inputs` (n_inputs of them) and set dtype, rank and shape of each of the n_outputs `outputs`. */
LLMC_API llmc_status llmc_output_shapes(const llmc_model *model, const llmc_tensor *inputs, llmc_tensor *outputs,
                                        llmc_error *error);

/* Run the model's first function once. Every output must have its data and the shape that llmc_output_shapes()
 * gives. A function that has states needs a session. */
LLMC_API llmc_status llmc_run(llmc_model *model, const llmc_tensor *inputs, const llmc_tensor *outputs,
                              llmc_error *error);

/* ---- Sessions ---- */

typedef struct llmc_session llmc_session;

/* Set to zero for the defaults. */
typedef struct llmc_session_options {
    int threads;          /* 0: the model's, whose sessions take turns; 1: the caller's alone; n: threads of its own */
    int pin, spin_us;     /* of its own threads, as in llmc_options */
    llmc_threads *shared; /* not NULL: these threads, in turns with all that work with them */
    uint64_t max_memory;  /* bytes that the session may hold; 0: no bound but the model's */
    const char *adapter;  /* the name of one in llmc_info.adapters; NULL: none. A fork has its session's */
} llmc_session_options;

/* Begin a sequence: no state holds anything. `options` may be NULL. `*session` is NULL after a failure. */
LLMC_API llmc_status llmc_session_open(llmc_model *model, const llmc_session_options *options, llmc_session **session,
                                       llmc_error *error);

/* NULL is fine. */
LLMC_API void llmc_session_close(llmc_session *session);

/* Begin anew. The memory is kept for the next sequence. */
LLMC_API llmc_status llmc_session_reset(llmc_session *session, llmc_error *error);

/* Go on with another adapter, NULL: none. The session begins anew, as what it holds is the other one's; with the same
 * nothing happens. */
LLMC_API llmc_status llmc_session_choose_adapter(llmc_session *session, const char *name, llmc_error *error);

/* The number of the function `name`; -1 and an error if there is none. */
LLMC_API int llmc_find_function(const llmc_model *model, const char *name, llmc_error *error);

/* Set to zero for the defaults. */
typedef struct llmc_run_options {
    double timeout; /* seconds after which the run is given up, waiting for threads included; 0: none */
    int discard;    /* not 0: afterwards the states are as before the run (for measuring) */
} llmc_run_options;

/* As llmc_output_shapes(), for a call at the present length of the session. */
LLMC_API llmc_status llmc_session_output_shapes(llmc_session *session, int function, const llmc_tensor *inputs,
                                                llmc_tensor *outputs, llmc_error *error);

/* Run a function on the session's states. `options` may be NULL. The states change if it succeeds, else nothing does. */
LLMC_API llmc_status llmc_session_run(llmc_session *session, int function, const llmc_tensor *inputs,
                                      const llmc_tensor *outputs, const llmc_run_options *options, llmc_error *error);

/* One session's part of a run of several. */
typedef struct llmc_member {
    llmc_session *session;
    int64_t sizes[LLMC_MAX_DIMS]; /* of the dims that inputs have: what this session brings along each. Others are unused */
} llmc_member;

/* Run a function for `n` sessions of one model at once: weights are read once for all. In inputs and outputs the rows of
 * the sessions lie one after the other, in their order: input_ids [1, 5 + 1], say, of a prompt of 5 tokens and of a next
 * token. What an input says of places, such as logits_to_keep, counts from its session's own first row. Each session
 * gets the bits that it would get alone. Threads and memory for intermediate results are the first session's, which
 * may take more memory for more sessions. An error, or llmc_session_cancel() of any, leaves all as they were. */
LLMC_API llmc_status llmc_sessions_run(const llmc_member *members, int n, int function, const llmc_tensor *inputs,
                                       const llmc_tensor *outputs, const llmc_run_options *options, llmc_error *error);

/* Give up the run in progress, from any thread: it ends with LLMC_ERROR_CANCELLED, unless it was about to end anyway.
 * Without one nothing happens. */
LLMC_API void llmc_session_cancel(llmc_session *session);

/* Put the session at other sizes; `sizes` has n_dims, those that no state has are unused. A shorter length forgets the
 * newest positions, a longer one adds zeros; the other dims are set where they are not known yet, else must agree. */
LLMC_API llmc_status llmc_session_resize(llmc_session *session, const int64_t *sizes, llmc_error *error);

/* Set dtype, rank and shape of each input of a function for these sizes of the n_dims dims. */
LLMC_API llmc_status llmc_input_shapes(const llmc_model *model, int function, const int64_t *sizes,
                                       llmc_tensor *inputs, llmc_error *error);

typedef struct llmc_session_report {
    int threads;
    int64_t sizes[LLMC_MAX_DIMS]; /* of the dims that states have: lengths, and what the first call decided; -1: not known */
    uint64_t arena_bytes;         /* held for intermediate results and inputs that were not given */
    uint64_t state_bytes;         /* held for states, with room to grow; shared or not */
    int adapter;                  /* 0: none, else llmc_info.adapters[adapter - 1] */
    uint64_t shared_bytes;        /* of state_bytes, those in memory that other sessions hold too, now */
} llmc_session_report;

LLMC_API llmc_status llmc_session_info(llmc_session *session, llmc_session_report *report, llmc_error *error);

typedef struct llmc_memory {
    uint64_t weights; /* mapped once for all sessions and processes */
    uint64_t arena;   /* of a session: as arena_bytes above */
    uint64_t states;  /* of a session: as state_bytes above, for the states that the function uses */
} llmc_memory;

/* What one call of a function at these sizes takes; `sizes` has n_dims, a length is that before the call. Those that the
 * function does not need are unused. States that grow call by call hold up to half more, if max_memory allows that. It is
 * for the model's threads: a session with more of them may run more samples of a large batch at once. Fewer samples, and
 * padding among them, never take more. */
LLMC_API llmc_status llmc_memory_needed(const llmc_model *model, int function, const int64_t *sizes,
                                        llmc_memory *memory, llmc_error *error);

/* ---- Sessions: back, beside, on disk ---- */

/* Put the session back to where it held `length` tokens, steps or whatever its states grow by. LLMC_ERROR_STATE if it
 * holds fewer, or if a state that keeps its shape cannot go back, as a recurrent one; 0 begins it anew then. Also where
 * positions are wanted that have left the window of a state, but not back to where the last call began. */
LLMC_API llmc_status llmc_session_rewind(llmc_session *session, int64_t length, llmc_error *error);

/* Another session that holds what this one does; from there on each goes its own way. Memory is shared until one of the two
 * writes to it: states that grow, of 64 KiB and more, in blocks of 16 KiB, of which that one then copies those that it
 * writes; others, and all on a GPU or on a system without memfd_create(), as a whole. What is shared counts in full for each
 * session and its bound, and once for all sessions of the model: a later run may be refused for want of a copy by the model's
 * bound alone. `options` are the new one's and may be NULL. */
LLMC_API llmc_status llmc_session_fork(llmc_session *session, const llmc_session_options *options, llmc_session **other,
                                       llmc_error *error);

/* Write what the session holds to a file, which appears whole or not at all, readable by its owner alone. */
LLMC_API llmc_status llmc_session_save(llmc_session *session, const char *path, llmc_error *error);

/* Make the session hold what was saved, by the same build of the model: its build id is in the file. A file that is
 * damaged, or another model's, leaves the session as it was. */
LLMC_API llmc_status llmc_session_load(llmc_session *session, const char *path, llmc_error *error);

/* ---- Text: tokens by their logits ---- */

typedef struct llmc_bias {
    int64_t token;
    double bias; /* is added to its logit; -INFINITY: the token never comes */
} llmc_bias;

typedef struct llmc_place {
    int64_t index; /* of a new token, 0 is the first behind the prompt */
    int64_t token;
} llmc_place;

/* How the next token is chosen. Set to zero for the likeliest one: 0 means that an option is not used. The options mean
 * what transformers' of the same names mean and come in this order: bias, repetition, presence, frequency,
 * no_repeat_ngram, barred, min_new_tokens, forced, without, allowed, and where do_sample is not 0 temperature, top_k, top_p, min_p, typical_p. */
typedef struct llmc_choice_options {
    const llmc_bias *bias;
    int64_t n_bias;
    double repetition_penalty; /* logits of all tokens so far are divided by it, or multiplied if they are below 0 */
    double presence_penalty;   /* is taken off the logits of new tokens, those behind the prompt */
    double frequency_penalty;  /* likewise, as often as they came */
    const int64_t *stop;       /* tokens that end a text */
    int64_t n_stop;
    int64_t min_new_tokens; /* before so many none of them comes */
    int do_sample;          /* 0: the likeliest token */
    double temperature;     /* logits are divided by it */
    int64_t top_k;
    double top_p, min_p, typical_p;
    uint64_t seed; /* the same seed draws the same tokens on every machine */
    int64_t no_repeat_ngram;   /* so many tokens in a row come once and not again */
    const int64_t *barred;     /* sequences that never come, one after the other, before each its length */
    int64_t n_barred;          /* numbers there are in all */
    const llmc_place *forced;  /* the new token at such a place is one of those given for it */
    int64_t n_forced;
    const llmc_place *without; /* the new token at such a place is none of those given for it */
    int64_t n_without;
    const uint32_t *allowed;   /* bits of the vocabulary's tokens, token t is bit t % 32 of allowed[t / 32]: those with 0 never
                                  come. Where it leaves none but stop tokens, min_new_tokens does not bar them. NULL: all may */
} llmc_choice_options;

/* The token that follows the `n` ids, of which the first n_prompt are the prompt, by its `vocabulary` logits.
 * `probabilities`, if not NULL, gets those of all tokens after penalties and filters. */
LLMC_API llmc_status llmc_choose(const llmc_choice_options *options, const float *logits, int64_t vocabulary,
                                 const int64_t *ids, int64_t n, int64_t n_prompt, int64_t *token, double *probabilities,
                                 llmc_error *error);

/* Set to zero for the defaults. */
typedef struct llmc_generate_options {
    const char *function, *tokens, *keep, *logits; /* names of the function, its inputs i64 [1, seq] and i64 [kept], the
                                                      places in `tokens` whose logits are wanted, and its output f32 [1, kept, vocabulary];
                                                      NULL: "step", "input_ids", "logits_to_keep", "logits" */
    llmc_choice_options choice;
    int64_t max_new_tokens; /* 0: as many as there is room for; it must be given where states do not grow */
    int64_t chunk;          /* tokens of a prompt in one run; 0: 512 */
    int64_t lookup;         /* so many tokens at most are guessed and checked in one run, 0: none. The text is the same. A guess is
                               what came after the last tokens where they came before */
    int64_t lookup_ngram;   /* so many last tokens at most are looked up; 0: 2 */
    int logprobs;           /* not 0: llmc_token has them */
    int64_t top_logprobs;   /* and those of so many of the likeliest tokens */
    double timeout;         /* seconds for all of it; 0: none */
    /* Which tokens may follow the `n` new ones: sets their bits in `allowed`, which is laid out as choice.allowed and begins
       with none. 0: done; above 0: the text ends here, with LLMC_FINISH_STOP and no stop token; below 0: an error. It is
       called once for each place, on the calling thread, and must not use the generation or its session. */
    int (*allow)(void *user, const int64_t *made, int64_t n, uint32_t *allowed);
    /* Guess at most `most` tokens that follow the `n` ids, prompt and text, instead of looking them up: how many, or below 0:
       an error. Called as `allow` is. */
    int64_t (*guess)(void *user, const int64_t *ids, int64_t n, int64_t most, int64_t *guesses);
    void *user;   /* of both */
    int64_t made; /* of the prompt the last so many tokens count as new ones: draws, penalties and places go on behind them */
} llmc_generate_options;

typedef struct llmc_token {
    int64_t token, index; /* 0 is the first behind the prompt */
    int stops;            /* it is one of choice.stop, and the last */
    double logprob;       /* by the model alone, before penalties and filters */
    int64_t n_top;
    const int64_t *top; /* the likeliest, best first, valid until the next token */
    const double *top_logprobs;
} llmc_token;

typedef enum llmc_finish {
    LLMC_FINISH_NONE = 0, /* there may be more tokens */
    LLMC_FINISH_STOP,     /* a stop token, or allow() */
    LLMC_FINISH_LENGTH,   /* max_new_tokens, or the model's bound */
    LLMC_FINISH_CALLER    /* the callback */
} llmc_finish;

typedef struct llmc_generate_report {
    int64_t prompt_tokens, cached_tokens, new_tokens; /* cached: the session held them already */
    int64_t runs, guessed, accepted;                  /* of the function; tokens that were guessed */
    double prompt_seconds, seconds;                   /* until the first token; of all */
    int finish;                                       /* llmc_finish */
} llmc_generate_report;

typedef struct llmc_generation llmc_generation;

/* Begin to continue a prompt of `n` >= 1 tokens. The session may hold anything: of what it holds by earlier calls of this
 * the tokens that the prompt begins with are kept, the rest is forgotten. A session is used by one generation at a time. */
LLMC_API llmc_status llmc_generation_open(llmc_session *session, const llmc_generate_options *options,
                                          const int64_t *prompt, int64_t n, llmc_generation **generation,
                                          llmc_error *error);

/* The next token, *more = 1; or *more = 0 if there is none. The first call runs the prompt. */
LLMC_API llmc_status llmc_generation_next(llmc_generation *generation, llmc_token *token, int *more,
                                          llmc_error *error);

/* What llmc_generations_next() found for a generation. */
typedef enum llmc_next {
    LLMC_NEXT_NONE = 0, /* the text has ended */
    LLMC_NEXT_TOKEN,    /* its next token */
    LLMC_NEXT_LATER     /* nothing yet: its prompt takes more than this run, or there was no room for it */
} llmc_next;

/* One run for `n` generations of one model, each in a session of its own, begun at any time and with options of its own:
 * found[i] says what there is of generation i, tokens[i] is its token if there is one. The texts are those that
 * llmc_generation_next() would give. Next tokens are run first, then as much of prompts as the longest `chunk` leaves room
 * for. After an error tokens that are there already are given by the next call. */
LLMC_API llmc_status llmc_generations_next(llmc_generation *const *generations, int n, llmc_token *tokens, int *found,
                                           llmc_error *error);

LLMC_API void llmc_generation_report(const llmc_generation *generation, llmc_generate_report *report);

/* Before its session. NULL is fine. The session then holds the prompt and all new tokens but the last. */
LLMC_API void llmc_generation_close(llmc_generation *generation);

/* All of the above: `on_token` gets each token, and ends the text if it returns other than 0. `report` may be NULL. */
LLMC_API llmc_status llmc_generate(llmc_session *session, const llmc_generate_options *options, const int64_t *prompt,
                                   int64_t n, int (*on_token)(void *user, const llmc_token *token), void *user,
                                   llmc_generate_report *report, llmc_error *error);

/* ---- Benchmark ---- Times are in seconds. */

typedef struct llmc_summary {
    int64_t n;
    double mean, mean_low, mean_high; /* and its 95 % bootstrap interval (percentile method, fixed seed) */
    double p50, p90, p95, p99, min, max;
} llmc_summary;

/* Describe n >= 1 samples. */
LLMC_API llmc_status llmc_summarise(const double *samples, int64_t n, llmc_summary *summary, llmc_error *error);

typedef struct llmc_ratio {
    int64_t n;
    double ratio, low, high; /* median(a) / median(b), and its 95 % bootstrap interval over pairs */
} llmc_ratio;

/* Compare n >= 1 pairs of samples, a[i] taken beside b[i]. */
LLMC_API llmc_status llmc_compare_samples(const double *a, const double *b, int64_t n, llmc_ratio *ratio,
                                          llmc_error *error);

/* Set to zero for the defaults. */
typedef struct llmc_benchmark_options {
    double seconds;     /* how long to collect samples; 0: 3 */
    int64_t max_runs;   /* 0: 10000 */
    int64_t warmup;     /* runs to discard first; 0: until the running median is steady, -1: none */
    uint64_t seed;      /* of the random inputs */
    int64_t shortest;   /* 0: rows are full; else the mask gives each row that many tokens or more, drawn evenly */
    int function;       /* its number */
} llmc_benchmark_options;

typedef struct llmc_step_report {
    const char *kernel, *source; /* what runs, and which part of the model it is */
    double seconds;              /* mean for one run of the model */
    double flops, bytes;         /* for one run of the model */
} llmc_step_report;

typedef struct llmc_benchmark_report {
    int64_t sizes[LLMC_MAX_DIMS]; /* of the dims, as run */
    int64_t warmup_runs;          /* discarded */
    llmc_summary latency;
    double runs_per_second;      /* runs in sequence: 1 / mean */
    double load_seconds;
    uint64_t peak_memory_bytes;  /* of the process so far; 0: unknown */
    double flops, bytes;         /* of one run */
    double peak_flops_per_second, peak_bytes_per_second; /* measured on this machine with the model's threads;
                                                            0 without profile or where unknown */
} llmc_benchmark_report;

/* Time a function on random valid inputs. `sizes` has n_dims sizes; NULL or a size 0 means 1 for "batch", 0 for the
 * length of states, and 128, or the nearest bound, for others. Every run begins at that length. `steps`, if not NULL, has
 * room for the function's n_steps and asks for a profile, taken after the samples. */
LLMC_API llmc_status llmc_benchmark(llmc_model *model, const int64_t *sizes, const llmc_benchmark_options *options,
                                    llmc_benchmark_report *report, llmc_step_report *steps, llmc_error *error);

/* The functions above as a table, for programs that dlopen() more than one artifact. */
typedef struct llmc_api {
    int version; /* LLMC_VERSION */
    llmc_status (*open)(const char *, const llmc_options *, llmc_model **, llmc_error *);
    void (*close)(llmc_model *);
    const llmc_info *(*describe)(const llmc_model *);
    llmc_status (*output_shapes)(const llmc_model *, const llmc_tensor *, llmc_tensor *, llmc_error *);
    llmc_status (*run)(llmc_model *, const llmc_tensor *, const llmc_tensor *, llmc_error *);
    llmc_status (*benchmark)(llmc_model *, const int64_t *, const llmc_benchmark_options *, llmc_benchmark_report *,
                             llmc_step_report *, llmc_error *);
    llmc_status (*compare)(const struct llmc_api *, llmc_model *, const int64_t *, const struct llmc_api *,
                           llmc_model *, const int64_t *, const llmc_benchmark_options *, llmc_summary *,
                           llmc_summary *, llmc_ratio *, llmc_error *);
    llmc_status (*threads_open)(const llmc_options *, llmc_threads **, llmc_error *);
    void (*threads_close)(llmc_threads *);
    int (*find_function)(const llmc_model *, const char *, llmc_error *);
    llmc_status (*input_shapes)(const llmc_model *, int, const int64_t *, llmc_tensor *, llmc_error *);
    llmc_status (*memory_needed)(const llmc_model *, int, const int64_t *, llmc_memory *, llmc_error *);
    llmc_status (*session_open)(llmc_model *, const llmc_session_options *, llmc_session **, llmc_error *);
    void (*session_close)(llmc_session *);
    llmc_status (*session_reset)(llmc_session *, llmc_error *);
    llmc_status (*session_output_shapes)(llmc_session *, int, const llmc_tensor *, llmc_tensor *, llmc_error *);
    llmc_status (*session_run)(llmc_session *, int, const llmc_tensor *, const llmc_tensor *,
                               const llmc_run_options *, llmc_error *);
    void (*session_cancel)(llmc_session *);
    llmc_status (*session_resize)(llmc_session *, const int64_t *, llmc_error *);
    llmc_status (*session_info)(llmc_session *, llmc_session_report *, llmc_error *);
    llmc_status (*session_rewind)(llmc_session *, int64_t, llmc_error *);
    llmc_status (*session_fork)(llmc_session *, const llmc_session_options *, llmc_session **, llmc_error *);
    llmc_status (*session_save)(llmc_session *, const char *, llmc_error *);
    llmc_status (*session_load)(llmc_session *, const char *, llmc_error *);
    llmc_status (*choose)(const llmc_choice_options *, const float *, int64_t, const int64_t *, int64_t, int64_t,
                          int64_t *, double *, llmc_error *);
    llmc_status (*generation_open)(llmc_session *, const llmc_generate_options *, const int64_t *, int64_t,
                                   llmc_generation **, llmc_error *);
    llmc_status (*generation_next)(llmc_generation *, llmc_token *, int *, llmc_error *);
    void (*generation_report)(const llmc_generation *, llmc_generate_report *);
    void (*generation_close)(llmc_generation *);
    llmc_status (*generate)(llmc_session *, const llmc_generate_options *, const int64_t *, int64_t,
                            int (*)(void *, const llmc_token *), void *, llmc_generate_report *, llmc_error *);
    llmc_status (*sessions_run)(const llmc_member *, int, int, const llmc_tensor *, const llmc_tensor *,
                                const llmc_run_options *, llmc_error *);
    llmc_status (*generations_next)(llmc_generation *const *, int, llmc_token *, int *, llmc_error *);
    llmc_status (*session_choose_adapter)(llmc_session *, const char *, llmc_error *);
} llmc_api;

LLMC_API const llmc_api *llmc_get_api(void);

/* Time two models, of one artifact or of two, in turns: A, B, B, A, ... Both are warmed up first. options->function is
 * the number of a function of A; B runs the one of the same name, or its first beside A's first. */
LLMC_API llmc_status llmc_compare(const llmc_api *api_a, llmc_model *a, const int64_t *sizes_a, const llmc_api *api_b,
                                  llmc_model *b, const int64_t *sizes_b, const llmc_benchmark_options *options,
                                  llmc_summary *summary_a, llmc_summary *summary_b, llmc_ratio *ratio,
                                  llmc_error *error);

#ifdef __cplusplus
}
#endif

#endif
