/*
 * generate.c - from a prompt to a text: the prompt in chunks, then token by token, or several where they were guessed.
 *
 * Invariant between two calls: of the `n` tokens known, the session holds the first n - 1 or fewer, and no other.
 */
#include <stdlib.h>
#include <string.h>

#include "generate.h"

/* ---- the session ---- */

/* How many tokens it holds, of whatever sort. */
static int64_t held(const llmc_session *session) {
    int d = llmc_growing_dim(session->model->program);
    return d >= 0 ? session->sizes[d] : session->n_tokens;
}

/* Keep what the prompt begins with, but for its last token, whose logits are wanted. */
static llmc_status keep_shared(llmc_generation *g, llmc_error *error) {
    llmc_session *s = g->session;
    const llmc_program *program = s->model->program;
    int can_cut = llmc_growing_dim(program) >= 0 && llmc_fixed_history(program) < 0;
    int64_t shared = llmc_tokens_shared(s, g->ids, g->n - 1);
    int stays = !can_cut && !s->has_others && shared == s->n_tokens && shared == held(s);
    llmc_status status = can_cut && !s->has_others ? llmc_rewind(s, shared, error) : stays ? LLMC_OK : LLMC_ERROR_STATE;
    if (status == LLMC_ERROR_STATE) { /* it cannot, as where that has left a window */
        llmc_forget(s);
        shared = 0;
        status = LLMC_OK;
    }
    g->report.cached_tokens = shared;
    return status;
}

/* Run what is wished for; where its logits are goes to *logits. */
static llmc_status run(llmc_generation *g, const llmc_wish *w, const float **logits, llmc_error *error) {
    llmc_session *s = g->session;
    int64_t at = s->n_tokens, seq = w->to - at, places[LLMC_MOST_GUESSES + 1], i;
    llmc_tensor in[LLMC_MOST_INPUTS], out[1];
    const llmc_run_options whole = {g->options.timeout, 0}; /* for what is said when time is up */
    llmc_status status;
    for (i = 0; i < w->rows; i++) places[i] = seq - w->rows + i;
    llmc_generator_tensors(&g->by, g->ids + at, seq, places, w->rows, g->logits, in, out);
    status = llmc_run_claimed(s, g->by.function, in, out, &whole, error);
    *logits = g->logits + (g->by.keep < 0 ? (seq - w->rows) * g->by.vocabulary : 0);
    if (status == LLMC_OK) llmc_generation_took(g, w);
    return status;
}

void llmc_generation_took(llmc_generation *g, const llmc_wish *w) {
    llmc_session *s = g->session;
    memcpy(s->tokens + s->n_tokens, g->ids + s->n_tokens, (size_t)(w->to - s->n_tokens) * sizeof *s->tokens);
    s->n_tokens = w->to;
    s->has_others = 0;
    g->report.runs++;
    g->report.guessed += w->n_guesses;
}

llmc_status llmc_generation_open(llmc_session *session, const llmc_generate_options *options, const int64_t *prompt,
                                 int64_t n, llmc_generation **out, llmc_error *error) {
    llmc_generation *g;
    llmc_status status;
    if (!session || !out || (n > 0 && !prompt))
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session, prompt and generation must not be NULL");
    *out = NULL;
    g = (llmc_generation *)calloc(1, sizeof *g);
    if (!g) return llmc_fail_memory(error, sizeof *g);
    g->session = session;
    g->asked = -1;
    status = llmc_take_options(g, options, error);
    if (status != LLMC_OK) { /* what is in the options is still the caller's */
        free(g);
        return status;
    }
    status = llmc_find_memory(g, error);
    if (status == LLMC_OK) status = llmc_check_prompt(g, prompt, n, error);
    if (status == LLMC_OK) status = llmc_reserve_ids(g, n, error);
    if (status == LLMC_OK) status = llmc_claim(session, error);
    if (status == LLMC_OK) {
        memcpy(g->ids, prompt, (size_t)n * sizeof *prompt);
        g->n = g->report.prompt_tokens = n;
        status = keep_shared(g, error);
        llmc_unclaim(session);
    }
    if (status == LLMC_OK)
        *out = g;
    else
        llmc_generation_close(g);
    return status;
}

/* ---- tokens ---- */

int64_t llmc_tokens_made(const llmc_generation *g) {
    return g->n - g->report.prompt_tokens;
}

static int is_stop(const llmc_generation *g, int64_t token) {
    int64_t i;
    for (i = 0; i < g->options.choice.n_stop; i++)
        if (g->options.choice.stop[i] == token) return 1;
    return 0;
}

static void note_logprobs(llmc_generation *g, const float *logits, int64_t row, int64_t token) {
    int64_t top = g->options.top_logprobs;
    double total;
    if (!g->options.logprobs) return;
    total = llmc_log_total(logits, g->by.vocabulary);
    g->logprobs[row] = (double)logits[token] - total;
    llmc_top_tokens(logits, g->by.vocabulary, total, top, g->top + row * top, g->top_logprobs + row * top);
}

/* How many more tokens may come. */
static int64_t room_left(const llmc_generation *g) {
    int64_t left = g->by.longest - g->n, most = g->options.max_new_tokens;
    return most && most - llmc_tokens_made(g) < left ? most - llmc_tokens_made(g) : left;
}

/* Choose tokens by the rows of logits, as long as each is what had been guessed. */
static llmc_status choose(llmc_generation *g, const llmc_wish *w, const float *logits, llmc_error *error) {
    int64_t row;
    g->first_ready = llmc_tokens_made(g);
    for (row = 0; row < w->rows; row++, logits += g->by.vocabulary) {
        int64_t token, guess = row < w->n_guesses ? g->ids[g->n] : -1, first = g->report.prompt_tokens - g->options.made;
        int over;
        llmc_status status = llmc_ask_allowed(g, &over, error);
        if (status == LLMC_OK && over) break;
        if (status == LLMC_OK) status = llmc_next_token(&g->chooser, logits, g->ids, g->n, first, &token, error);
        if (status != LLMC_OK) return status;
        note_logprobs(g, logits, row, token);
        g->ids[g->n++] = token;
        g->report.accepted += token == guess;
        if (is_stop(g, token) || room_left(g) < 1 || token != guess) break;
    }
    return LLMC_OK;
}

llmc_status llmc_generation_wish(llmc_generation *g, int64_t most, llmc_wish *w, llmc_error *error) {
    llmc_session *s = g->session;
    int64_t n = g->n, room = room_left(g), lookup = g->options.lookup;
    llmc_status status = llmc_reserve_ids(g, n + lookup + 1, error);
    memset(w, 0, sizeof *w);
    w->chooses = n - s->n_tokens <= most;
    if (lookup > room - 1) lookup = room - 1;
    if (lookup > most - 1) lookup = most - 1;
    if (status == LLMC_OK && lookup > 0 && n - s->n_tokens == 1) status = llmc_guess(g, lookup, &w->n_guesses, error);
    w->rows = w->n_guesses + 1;
    w->to = w->chooses ? n + w->n_guesses : s->n_tokens + most;
    return status == LLMC_OK ? llmc_tokens_reserve(s, w->to, error) : status;
}

llmc_status llmc_generation_choose(llmc_generation *g, const llmc_wish *w, const float *logits, llmc_error *error) {
    llmc_session *s = g->session;
    int64_t n = g->n;
    llmc_status status = choose(g, w, logits, error);
    if (status != LLMC_OK) {
        g->n = n;
        (void)llmc_rewind(s, n - 1, NULL); /* where it cannot, the next call says so */
        return status;
    }
    if (g->n == n) {
        g->report.finish = LLMC_FINISH_STOP; /* before the first token */
        return LLMC_OK;
    }
    return s->n_tokens > g->n - 1 ? llmc_rewind(s, g->n - 1, error) : LLMC_OK; /* what was guessed wrong */
}

/* Run what the session does not hold yet, guesses behind it, and choose the tokens that follow. */
static llmc_status advance(llmc_generation *g, llmc_error *error) {
    const float *logits = NULL;
    llmc_wish wish;
    do {
        llmc_status status = llmc_generation_wish(g, g->options.chunk, &wish, error);
        if (status == LLMC_OK) status = run(g, &wish, &logits, error);
        if (status != LLMC_OK) return status;
    } while (!wish.chooses);
    return llmc_generation_choose(g, &wish, logits, error);
}

llmc_status llmc_generation_begin(llmc_generation *g, llmc_error *error) {
    const llmc_session *s = g->session;
    if (!s->has_others && held(s) == s->n_tokens && s->n_tokens < g->n &&
        llmc_tokens_shared(s, g->ids, g->n) == s->n_tokens)
        return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_STATE, "begin another generation", "the session was used for something else meanwhile");
}

llmc_status llmc_generation_out_of_time(const llmc_generation *g, llmc_error *error) {
    if (!(g->options.timeout > 0) || g->options.timeout > g->report.seconds) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_DEADLINE, "allow more time, or fewer tokens",
                     "the text took longer than its timeout of %g s", g->options.timeout);
}

static llmc_status advance_claimed(llmc_generation *g, llmc_error *error) {
    llmc_session *s = g->session;
    llmc_status status = llmc_generation_out_of_time(g, error);
    if (status == LLMC_OK) status = llmc_claim(s, error);
    if (status != LLMC_OK) return status;
    if (g->options.timeout > 0) s->stop.until = llmc_now() + g->options.timeout - g->report.seconds;
    status = llmc_generation_begin(g, error);
    if (status == LLMC_OK) status = advance(g, error);
    llmc_unclaim(s);
    return status;
}

/* Whether the text cannot go on, known before another run. Where asking fails, the next choice says so. */
static int ends_here(llmc_generation *g) {
    int over;
    return llmc_ask_allowed(g, &over, NULL) == LLMC_OK && over;
}

void llmc_generation_tell(llmc_generation *g, llmc_token *token) {
    int64_t row = g->told - g->first_ready, top = g->options.top_logprobs;
    if (!g->told) g->report.prompt_seconds = g->report.seconds;
    memset(token, 0, sizeof *token);
    token->index = g->told++;
    token->token = g->ids[g->report.prompt_tokens + token->index];
    token->stops = is_stop(g, token->token);
    if (g->options.logprobs) {
        token->logprob = g->logprobs[row];
        token->n_top = top;
        token->top = g->top + row * top;
        token->top_logprobs = g->top_logprobs + row * top;
    }
    g->report.new_tokens = g->told;
    if (token->stops)
        g->report.finish = LLMC_FINISH_STOP;
    else if (g->told == llmc_tokens_made(g))
        g->report.finish = ends_here(g) ? LLMC_FINISH_STOP : room_left(g) < 1 ? LLMC_FINISH_LENGTH : LLMC_FINISH_NONE;
}

llmc_status llmc_generation_next(llmc_generation *g, llmc_token *token, int *more, llmc_error *error) {
    double begin = llmc_now();
    llmc_status status = LLMC_OK;
    if (!g || !token || !more)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "generation, token and more must not be NULL");
    *more = 0;
    if (g->report.finish) return LLMC_OK;
    if (g->told == llmc_tokens_made(g)) status = advance_claimed(g, error);
    g->report.seconds += llmc_now() - begin;
    if (status != LLMC_OK || g->report.finish) return status;
    llmc_generation_tell(g, token);
    *more = 1;
    return LLMC_OK;
}

void llmc_generation_report(const llmc_generation *g, llmc_generate_report *report) {
    if (g && report) *report = g->report;
}

llmc_status llmc_generate(llmc_session *session, const llmc_generate_options *options, const int64_t *prompt, int64_t n,
                          int (*on_token)(void *user, const llmc_token *token), void *user,
                          llmc_generate_report *report, llmc_error *error) {
    llmc_generation *g = NULL;
    llmc_token token;
    int more = 1;
    llmc_status status = llmc_generation_open(session, options, prompt, n, &g, error);
    if (report) memset(report, 0, sizeof *report);
    while (status == LLMC_OK) {
        status = llmc_generation_next(g, &token, &more, error);
        if (status != LLMC_OK || !more) break;
        if (on_token && on_token(user, &token)) {
            if (!g->report.finish) g->report.finish = LLMC_FINISH_CALLER;
            break;
        }
    }
    llmc_generation_report(g, report);
    llmc_generation_close(g);
    return status;
}
