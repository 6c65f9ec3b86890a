/*
 * generations.c - several texts at once: one run gives each its next token, or brings it further through its prompt.
 *
 * A model that runs for one session at a time gives the same texts one after the other.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generate.h"

void llmc_batch_close(llmc_batch *batch) {
    free(batch->wishes);
    free(batch->members);
    free(batch->who);
    free(batch->ids);
    free(batch->places);
    free(batch->logits);
}

static int grown(void **memory, int64_t n, size_t bytes) {
    void *more = (size_t)n < SIZE_MAX / bytes ? realloc(*memory, (size_t)n * bytes) : NULL;
    if (more) *memory = more;
    return more != NULL;
}

static llmc_status reserve_members(llmc_batch *b, int64_t n, llmc_error *error) {
    if (n <= b->room) return LLMC_OK;
    if (!grown((void **)&b->wishes, n, sizeof *b->wishes) || !grown((void **)&b->members, n, sizeof *b->members) ||
        !grown((void **)&b->who, n, sizeof *b->who))
        return llmc_fail_memory(error, (size_t)n * sizeof *b->members);
    b->room = n;
    return LLMC_OK;
}

static llmc_status reserve_rows(llmc_batch *b, int64_t tokens, int64_t rows, int64_t vocabulary, llmc_error *error) {
    size_t row = (size_t)vocabulary * sizeof *b->logits;
    if (tokens > b->room_for_tokens && !grown((void **)&b->ids, tokens, sizeof *b->ids))
        return llmc_fail_memory(error, (size_t)tokens * sizeof *b->ids);
    if (tokens > b->room_for_tokens) b->room_for_tokens = tokens;
    if (rows <= b->room_for_rows) return LLMC_OK;
    if (!grown((void **)&b->places, rows, sizeof *b->places) || !grown((void **)&b->logits, rows, row))
        return llmc_fail_memory(error, (size_t)rows * row);
    b->room_for_rows = rows;
    return LLMC_OK;
}

/* Say which text an error is about. */
static llmc_status of_text(int i, llmc_status status, llmc_error *error) {
    char message[sizeof error->message];
    if (status == LLMC_OK || !error) return status;
    memcpy(message, error->message, sizeof message);
    snprintf(error->message, sizeof error->message, "text %d: %.490s", i, message);
    return status;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* The dim of an axis of an input. */
static int dim_of(const llmc_tensor_spec *spec, int axis) {
    return (int)(-1 - spec->dims[axis]);
}

/* What one text has of a run, as there is room; w->to is -1 if there is none. */
static llmc_status take(llmc_generation *g, int64_t *room, int64_t *kept, llmc_wish *w, llmc_error *error) {
    int is_prompt = g->n - g->session->n_tokens > 1;
    int64_t most = least(*room, is_prompt ? g->options.chunk : *kept);
    llmc_status status;
    w->to = -1;
    if (most < 1 || *kept < 1) return LLMC_OK;
    status = llmc_generation_wish(g, most, w, error);
    *room -= w->to - g->session->n_tokens;
    *kept -= w->rows;
    return status;
}

/* What one run takes of the n texts that wait for it, batch.who: next tokens first, then of prompts as much as there is
 * room for. Those that get nothing come last in batch.who, and wait for the next run. */
static llmc_status fill_run(llmc_generation *const *all, int n, llmc_batch *b, int *taken, llmc_error *error) {
    int64_t room = all[*b->who]->by.chunk, kept = all[*b->who]->by.kept, chunk = 0;
    int i, prompts;
    for (i = 0; i < n; i++)
        if (all[b->who[i]]->options.chunk > chunk) chunk = all[b->who[i]]->options.chunk;
    for (prompts = 0; prompts < 2; prompts++, room = least(room, chunk))
        for (i = 0; i < n; i++) {
            llmc_generation *g = all[b->who[i]];
            llmc_status status;
            if ((g->n - g->session->n_tokens > 1) != prompts) continue;
            status = of_text(b->who[i], take(g, &room, &kept, &b->wishes[b->who[i]], error), error);
            if (status != LLMC_OK) return status;
        }
    for (i = 0, *taken = 0; i < n; i++) {
        int one = b->who[i];
        if (b->wishes[one].to < 0) continue;
        b->who[i] = b->who[*taken];
        b->who[(*taken)++] = one;
    }
    return LLMC_OK;
}

/* The rows of all texts, one after the other. */
static void join(llmc_generation *const *all, int n, llmc_batch *b) {
    int64_t tokens = 0, rows = 0;
    int i;
    for (i = 0; i < n; i++) {
        const llmc_generation *g = all[b->who[i]];
        const llmc_wish *w = &b->wishes[b->who[i]];
        int64_t at = g->session->n_tokens, seq = w->to - at, k;
        memcpy(b->ids + tokens, g->ids + at, (size_t)seq * sizeof *b->ids);
        for (k = 0; g->by.keep >= 0 && k < w->rows; k++) b->places[rows + k] = seq - w->rows + k;
        memset(&b->members[i], 0, sizeof b->members[i]);
        b->members[i].session = g->session;
        b->members[i].sizes[dim_of(&g->by.function->inputs[g->by.tokens], 1)] = seq;
        if (g->by.keep >= 0) b->members[i].sizes[dim_of(&g->by.function->inputs[g->by.keep], 0)] = w->rows;
        tokens += seq;
        rows += w->rows;
    }
}

static void count(llmc_generation *const *all, int n, const llmc_batch *b, int64_t *tokens, int64_t *rows) {
    int i;
    *tokens = *rows = 0;
    for (i = 0; i < n; i++) {
        const llmc_wish *w = &b->wishes[b->who[i]];
        int64_t seq = w->to - all[b->who[i]]->session->n_tokens;
        *tokens += seq;
        *rows += all[b->who[i]]->by.keep >= 0 ? w->rows : seq;
    }
}

/* The logits of each text, one after the other. All texts are dealt with, whatever befalls one. */
static llmc_status settle(llmc_generation *const *all, int n, llmc_batch *b, llmc_error *error) {
    const float *logits = b->logits;
    llmc_status first = LLMC_OK;
    int i;
    for (i = 0; i < n; i++) {
        llmc_generation *g = all[b->who[i]];
        const llmc_wish *w = &b->wishes[b->who[i]];
        int64_t v = g->by.vocabulary, seq = w->to - g->session->n_tokens, rows = g->by.keep >= 0 ? w->rows : seq;
        llmc_status status = LLMC_OK;
        llmc_generation_took(g, w);
        if (w->chooses)
            status = llmc_generation_choose(g, w, logits + (rows - w->rows) * v, first == LLMC_OK ? error : NULL);
        if (first == LLMC_OK) first = of_text(b->who[i], status, error);
        logits += rows * v;
    }
    return first;
}

/* The first moment at which a text has no time left; 0: none has. */
static double first_end(llmc_generation *const *all, int n, const llmc_batch *b, double *timeout) {
    double now = llmc_now(), first = 0;
    int i;
    *timeout = 0;
    for (i = 0; i < n; i++) {
        const llmc_generation *g = all[b->who[i]];
        double end = now + g->options.timeout - g->report.seconds;
        if (!(g->options.timeout > 0) || (first > 0 && end >= first)) continue;
        first = end;
        *timeout = g->options.timeout;
    }
    return first;
}

static llmc_status run_all(llmc_generation *const *all, int n, llmc_batch *b, llmc_error *error) {
    const llmc_generator *by = &all[*b->who]->by;
    llmc_run_options whole = {0, 0}; /* for what is said when time is up */
    llmc_tensor in[LLMC_MOST_INPUTS], out[1];
    int64_t tokens, rows;
    int taken;
    llmc_status status = fill_run(all, n, b, &taken, error);
    if (status != LLMC_OK) return status;
    count(all, taken, b, &tokens, &rows);
    status = reserve_rows(b, tokens, rows, by->vocabulary, error);
    if (status != LLMC_OK) return status;
    join(all, taken, b);
    all[*b->who]->session->stop.until = first_end(all, taken, b, &whole.timeout);
    llmc_generator_tensors(by, b->ids, tokens, b->places, rows, b->logits, in, out);
    status = llmc_run_together(b->members, taken, by->function, in, out, &whole, error);
    return status == LLMC_OK ? settle(all, taken, b, error) : status;
}

static llmc_status claim(llmc_generation *g, llmc_error *error) {
    llmc_status status = llmc_generation_out_of_time(g, error);
    if (status == LLMC_OK) status = llmc_claim(g->session, error);
    if (status != LLMC_OK) return status;
    status = llmc_generation_begin(g, error);
    if (status != LLMC_OK) llmc_unclaim(g->session);
    return status;
}

/* One run of the n texts of batch.who. */
static llmc_status advance(llmc_generation *const *all, int n, llmc_batch *b, llmc_error *error) {
    llmc_status status = LLMC_OK;
    int claimed;
    for (claimed = 0; claimed < n && status == LLMC_OK; claimed++)
        status = of_text(b->who[claimed], claim(all[b->who[claimed]], error), error);
    if (status == LLMC_OK)
        status = run_all(all, n, b, error);
    else
        claimed--;
    while (claimed > 0) llmc_unclaim(all[b->who[--claimed]]->session);
    return status;
}

static int waits(const llmc_generation *g) {
    return !g->report.finish && g->told == llmc_tokens_made(g);
}

static int batches(const llmc_generation *g) {
    return g->by.function->batches && !g->session->model->device->single;
}

static llmc_status check_all(llmc_generation *const *all, int n, llmc_error *error) {
    int i, j;
    for (i = 0; i < n; i++) {
        if (!all[i]) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "generation %d must not be NULL", i);
        if (all[i]->by.function != (*all)->by.function)
            return llmc_fail(error, LLMC_ERROR_ARGUMENT, "one run is for texts of one model",
                             "generation %d is another model's than generation 0", i);
        for (j = 0; j < i; j++)
            if (all[i]->session == all[j]->session)
                return llmc_fail(error, LLMC_ERROR_ARGUMENT, "open a session for each text",
                                 "generations %d and %d have the same session", j, i);
    }
    return LLMC_OK;
}

/* For a model that runs for one session at a time. */
static llmc_status next_each(llmc_generation *const *all, int n, llmc_token *tokens, int *found, llmc_error *error) {
    llmc_status status = LLMC_OK;
    int i;
    for (i = 0; i < n && status == LLMC_OK; i++) {
        found[i] = LLMC_NEXT_NONE;
        status = of_text(i, llmc_generation_next(all[i], &tokens[i], &found[i], error), error);
    }
    return status;
}

llmc_status llmc_generations_next(llmc_generation *const *all, int n, llmc_token *tokens, int *found,
                                  llmc_error *error) {
    double begin = llmc_now(), spent;
    llmc_status status;
    llmc_batch *b;
    int i, waiting = 0;
    if (!all || n < 1 || !tokens || !found)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "generations, tokens and found must not be NULL, n is at least 1");
    status = check_all(all, n, error);
    if (status != LLMC_OK) return status;
    if (!batches(*all)) return next_each(all, n, tokens, found, error);
    b = &(*all)->batch;
    status = reserve_members(b, n, error);
    if (status != LLMC_OK) return status;
    for (i = 0; i < n; i++)
        if (waits(all[i])) b->who[waiting++] = i;
    if (waiting) status = advance(all, waiting, b, error);
    spent = llmc_now() - begin;
    for (i = 0; i < waiting; i++) all[b->who[i]]->report.seconds += spent;
    for (i = 0; i < n && status == LLMC_OK; i++) {
        found[i] = all[i]->report.finish ? LLMC_NEXT_NONE : waits(all[i]) ? LLMC_NEXT_LATER : LLMC_NEXT_TOKEN;
        if (found[i] == LLMC_NEXT_TOKEN) llmc_generation_tell(all[i], &tokens[i]);
    }
    return status;
}
