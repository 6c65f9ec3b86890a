/*
 * generations.c - texts of words.c as a C program makes them, for the tests under sanitizers and valgrind.
 *
 *   generations FOLDER [STEPS]     everything once, then sessions opened, forked, cut and closed at random
 *   generations FOLDER failures    the n-th allocation fails, for n = 1, 2, ... (linked with --wrap)
 */
#define _GNU_SOURCE

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "llmc.h"
#include "words.h"
#ifdef FAILURES
#include "failures.h"
#endif

#define MOST 64

static __thread llmc_error error;

typedef struct text {
    int64_t ids[MOST], n;
    double logprobs[MOST];
} text;

static int note(void *user, const llmc_token *token) {
    text *t = (text *)user;
    CHECK(token->index == t->n);
    t->logprobs[t->n] = token->logprob;
    t->ids[t->n++] = token->token;
    return 0;
}

/* The likeliest tokens by words.c itself. */
static text expected(const int64_t *prompt, int64_t n, int64_t wanted) {
    int64_t all[2 * MOST];
    float logits[WORDS];
    text t;
    memset(&t, 0, sizeof t);
    memcpy(all, prompt, (size_t)n * sizeof *all);
    for (; t.n < wanted; t.n++) {
        int v, best = 0;
        words_logits(words_context(all, n + t.n), logits);
        for (v = 1; v < WORDS; v++)
            if (logits[v] > logits[best]) best = v;
        all[n + t.n] = t.ids[t.n] = best;
    }
    return t;
}

static const int64_t PROMPT[] = {5, 6, 7, 5, 6, 7, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 5, 6};
#define N_PROMPT ((int64_t)(sizeof PROMPT / sizeof *PROMPT))

static llmc_status generate(llmc_session *session, int64_t n, int64_t wanted, int64_t lookup, text *t) {
    llmc_generate_options options;
    memset(&options, 0, sizeof options);
    memset(t, 0, sizeof *t);
    options.max_new_tokens = wanted;
    options.chunk = 7;
    options.lookup = lookup;
    options.logprobs = 1;
    options.top_logprobs = 3;
    return llmc_generate(session, &options, PROMPT, n, note, t, NULL, &error);
}

static int same(const text *a, const text *b) {
    return a->n == b->n && memcmp(a->ids, b->ids, (size_t)a->n * sizeof *a->ids) == 0;
}

#define TEXTS 3

/* Prompts of n, n - 3 and n - 6 tokens and texts of as many, run by run until all have ended. */
static llmc_status together(llmc_session *const *sessions, int64_t n, int64_t lookup) {
    llmc_generation *all[TEXTS] = {NULL};
    llmc_generate_options options;
    llmc_token tokens[TEXTS];
    int found[TEXTS], i, going = TEXTS;
    text texts[TEXTS], want;
    llmc_status status = LLMC_OK;
    memset(texts, 0, sizeof texts);
    memset(&options, 0, sizeof options);
    options.chunk = 5;
    options.lookup = lookup;
    for (i = 0; i < TEXTS && status == LLMC_OK; i++) {
        options.max_new_tokens = n - 3 * i;
        status = llmc_generation_open(sessions[i], &options, PROMPT, n - 3 * i, &all[i], &error);
    }
    while (status == LLMC_OK && going) {
        status = llmc_generations_next(all, TEXTS, tokens, found, &error);
        for (i = going = 0; i < TEXTS && status == LLMC_OK; i++) {
            if (found[i] == LLMC_NEXT_TOKEN) note(&texts[i], &tokens[i]);
            going += found[i] != LLMC_NEXT_NONE;
        }
    }
    for (i = 0; i < TEXTS; i++) {
        want = expected(PROMPT, n - 3 * i, n - 3 * i);
        if (status == LLMC_OK) CHECK(same(&texts[i], &want));
        llmc_generation_close(all[i]);
    }
    return status;
}

/* The logits of two sessions in one run; mistakes change nothing. */
static llmc_status one_run(llmc_model *model, llmc_session *a, llmc_session *b) {
    int step = llmc_find_function(model, "step", &error);
    int64_t ids[] = {5, 6, 7, 9}, keep[] = {2, 0};
    float logits[2 * WORDS], want[WORDS];
    llmc_member members[2];
    llmc_tensor in[2], out[1];
    llmc_status status;
    memset(members, 0, sizeof members);
    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    members[0].session = a;
    members[0].sizes[0] = 3;
    members[1].session = b;
    members[1].sizes[0] = 1;
    members[0].sizes[1] = members[1].sizes[1] = 1;
    in[0].data = ids;
    in[1].data = keep;
    in[0].dtype = in[1].dtype = LLMC_I64;
    in[0].rank = 2;
    in[0].shape[0] = 1;
    in[0].shape[1] = 4;
    in[1].rank = 1;
    in[1].shape[0] = 2;
    out[0].data = logits;
    out[0].dtype = LLMC_F32;
    out[0].rank = 3;
    out[0].shape[0] = 1;
    out[0].shape[1] = 2;
    out[0].shape[2] = WORDS;
    status = llmc_sessions_run(members, 2, step, in, out, NULL, &error);
    if (status != LLMC_OK) return status;
    words_logits(words_context(ids, 3), want);
    CHECK(memcmp(logits, want, sizeof want) == 0);
    words_logits(words_context(ids + 3, 1), want);
    CHECK(memcmp(logits + WORDS, want, sizeof want) == 0);
    in[0].shape[1] = 3;
    CHECK(llmc_sessions_run(members, 2, step, in, out, NULL, &error) == LLMC_ERROR_SHAPE);
    members[1].session = a;
    CHECK(llmc_sessions_run(members, 2, step, in, out, NULL, &error) == LLMC_ERROR_ARGUMENT);
    members[1].session = NULL;
    CHECK(llmc_sessions_run(members, 2, step, in, out, NULL, &error) == LLMC_ERROR_ARGUMENT);
    CHECK(llmc_sessions_run(members, 0, step, in, out, NULL, &error) == LLMC_ERROR_ARGUMENT);
    return LLMC_OK;
}

static llmc_status in_company(llmc_model *model) {
    llmc_session *sessions[TEXTS] = {NULL};
    llmc_status status = LLMC_OK;
    int i;
    for (i = 0; i < TEXTS && status == LLMC_OK; i++) status = llmc_session_open(model, NULL, &sessions[i], &error);
    if (status == LLMC_OK) status = one_run(model, sessions[0], sessions[1]);
    if (status == LLMC_OK) status = together(sessions, 14, 0);
    if (status == LLMC_OK) status = together(sessions, N_PROMPT, 3);
    for (i = 0; i < TEXTS; i++) llmc_session_close(sessions[i]);
    return status;
}

/* Tokens in turns even and odd, nine of them; the guesses are the text that came before, which may be none. */
static int in_turns(void *user, const int64_t *made, int64_t n, uint32_t *allowed) {
    int v;
    CHECK(n == 0 || made[n - 1] % 2 != n % 2);
    for (v = (int)(n % 2); v < WORDS; v += 2) allowed[v / 32] |= 1u << v % 32;
    return ((text *)user)->n == MOST ? -1 : n == 9;
}

static int64_t as_before(void *user, const int64_t *ids, int64_t n, int64_t most, int64_t *guesses) {
    const text *before = (const text *)user;
    int64_t i, made = n - N_PROMPT;
    CHECK(memcmp(ids, PROMPT, sizeof PROMPT) == 0);
    for (i = 0; i < most && made + i < before->n; i++) guesses[i] = before->ids[made + i];
    return before->logprobs[0] > 0 ? -1 : i;
}

static llmc_status hooked(llmc_session *session) {
    llmc_generate_options options;
    llmc_generate_report report;
    text t = {{0}, 0, {0}}, before = t, more = t;
    int64_t longer[N_PROMPT + 4];
    llmc_status status;
    memset(&options, 0, sizeof options);
    options.allow = in_turns;
    options.guess = as_before;
    options.user = &before;
    status = llmc_generate(session, &options, PROMPT, N_PROMPT, note, &t, &report, &error);
    if (status != LLMC_OK) return status;
    CHECK(t.n == 9 && report.finish == LLMC_FINISH_STOP && report.runs == 9 && report.guessed == 0);
    before = t;
    options.lookup = 4;
    t.n = 0;
    status = llmc_generate(session, &options, PROMPT, N_PROMPT, note, &t, &report, &error);
    if (status != LLMC_OK) return status;
    CHECK(same(&t, &before) && report.runs == 2 && report.accepted == 8 && report.guessed == 8);
    for (before.logprobs[0] = 1; before.n <= MOST; before.n += MOST - 9) { /* guess() gives up, then allow() */
        status = llmc_generate(session, &options, PROMPT, N_PROMPT, NULL, NULL, &report, &error);
        if (status == LLMC_ERROR_MEMORY) return status;
        CHECK(status == LLMC_ERROR_CALLBACK);
    }
    /* draws go on as they began */
    memset(&options, 0, sizeof options);
    options.choice.do_sample = 1;
    options.choice.presence_penalty = 2;
    options.max_new_tokens = 12;
    t.n = 0;
    status = llmc_generate(session, &options, PROMPT, N_PROMPT, note, &t, NULL, &error);
    if (status != LLMC_OK) return status;
    memcpy(longer, PROMPT, sizeof PROMPT);
    memcpy(longer + N_PROMPT, t.ids, 4 * sizeof *longer);
    options.made = 4;
    options.max_new_tokens = 8;
    status = llmc_generate(session, &options, longer, N_PROMPT + 4, note, &more, NULL, &error);
    if (status != LLMC_OK) return status;
    CHECK(memcmp(more.ids, t.ids + 4, 8 * sizeof *t.ids) == 0);
    options.made = N_PROMPT + 5;
    status = llmc_generate(session, &options, longer, N_PROMPT + 4, NULL, NULL, NULL, &error);
    CHECK(status == LLMC_ERROR_ARGUMENT || status == LLMC_ERROR_MEMORY);
    return status == LLMC_ERROR_MEMORY ? status : LLMC_OK;
}

static llmc_status everything(llmc_model *model, const char *file) {
    llmc_session *session = NULL, *other = NULL;
    text t, want = expected(PROMPT, N_PROMPT, 40);
    llmc_status status = llmc_session_open(model, NULL, &session, &error);
    if (status == LLMC_OK) status = generate(session, N_PROMPT, 40, 0, &t);
    if (status == LLMC_OK) CHECK(same(&t, &want));
    if (status == LLMC_OK) status = llmc_session_fork(session, NULL, &other, &error);
    if (status == LLMC_OK) status = generate(other, N_PROMPT, 40, 5, &t);
    if (status == LLMC_OK) CHECK(same(&t, &want));
    if (status == LLMC_OK) status = llmc_session_rewind(session, 4, &error);
    if (status == LLMC_OK) status = llmc_session_save(session, file, &error);
    if (status == LLMC_OK) status = llmc_session_load(other, file, &error);
    if (status == LLMC_OK) status = generate(other, N_PROMPT, 40, 8, &t);
    if (status == LLMC_OK) CHECK(same(&t, &want));
    if (status == LLMC_OK) status = hooked(session);
    llmc_session_close(session);
    llmc_session_close(other);
    return status == LLMC_OK ? in_company(model) : status;
}

/* Whatever byte of a file is another, it is refused, and the session goes on as if nothing had been. */
static void damage(llmc_model *model, const char *file) {
    llmc_session *session = NULL;
    unsigned char bytes[4096];
    size_t n, i;
    text t, want = expected(PROMPT, N_PROMPT, 10);
    FILE *stream;
    CHECK(llmc_session_open(model, NULL, &session, &error) == LLMC_OK);
    CHECK(generate(session, N_PROMPT, 10, 0, &t) == LLMC_OK && same(&t, &want));
    CHECK(llmc_session_save(session, file, &error) == LLMC_OK);
    CHECK((stream = fopen(file, "rb")) != NULL);
    n = fread(bytes, 1, sizeof bytes, stream);
    fclose(stream);
    for (i = 0; i <= n; i++) { /* the last time it is cut */
        CHECK((stream = fopen(file, "wb")) != NULL);
        if (i < n) bytes[i] ^= 0x10;
        CHECK(fwrite(bytes, 1, i < n ? n : n / 2, stream) == (i < n ? n : n / 2));
        if (i < n) bytes[i] ^= 0x10;
        fclose(stream);
        CHECK(llmc_session_load(session, file, &error) == LLMC_ERROR_FILE);
    }
    CHECK(generate(session, N_PROMPT, 10, 0, &t) == LLMC_OK && same(&t, &want));
    llmc_session_close(session);
}

/* Many sessions that are opened, continued, cut, forked and closed at random. */
#define SESSIONS 64

static int steps = 300; /* of each thread */

static void *at_random(void *argument) {
    llmc_model *model = (llmc_model *)argument;
    llmc_session_options alone;
    llmc_session *sessions[SESSIONS];
    unsigned seed = 1;
    int step;
    memset(sessions, 0, sizeof sessions);
    memset(&alone, 0, sizeof alone);
    alone.threads = 1;
    for (step = 0; step < steps; step++) {
        int i, j;
        llmc_session_report report;
        seed = seed * 1664525u + 1013904223u;
        i = (int)(seed >> 10) % SESSIONS;
        j = (int)(seed >> 14) % SESSIONS;
        if (!sessions[i]) {
            CHECK(llmc_session_open(model, &alone, &sessions[i], &error) == LLMC_OK);
        } else if (seed >> 28 < 8) {
            int64_t n = 1 + (int64_t)(seed >> 16) % N_PROMPT, wanted = 1 + (int64_t)(seed >> 20) % 9;
            text t, want = expected(PROMPT, n, wanted);
            CHECK(generate(sessions[i], n, wanted, seed & 1 ? 4 : 0, &t) == LLMC_OK);
            CHECK(same(&t, &want));
        } else if (seed >> 28 == 8 && i + TEXTS <= SESSIONS && sessions[i + 1] && sessions[i + 2]) {
            CHECK(together(sessions + i, 7 + (int64_t)(seed >> 16) % 9, seed & 1 ? 4 : 0) == LLMC_OK);
        } else if (seed >> 28 < 11) {
            CHECK(llmc_session_info(sessions[i], &report, &error) == LLMC_OK);
            CHECK(llmc_session_rewind(sessions[i], report.sizes[2] / 2, &error) == LLMC_OK);
            CHECK(llmc_session_rewind(sessions[i], report.sizes[2] / 2 + 1, &error) == LLMC_ERROR_STATE);
        } else if (seed >> 28 < 14 && !sessions[j]) {
            CHECK(llmc_session_fork(sessions[i], &alone, &sessions[j], &error) == LLMC_OK);
        } else if (seed >> 28 == 15) {
            llmc_session_close(sessions[i]);
            sessions[i] = NULL;
        }
    }
    for (step = 0; step < SESSIONS; step++) llmc_session_close(sessions[step]);
    return NULL;
}

int main(int argc, char **argv) {
    llmc_model *model = NULL;
    char file[512];
    if (argc < 2) return 2;
    snprintf(file, sizeof file, "/tmp/llmc-generations-%ld", (long)getpid());
#ifdef FAILURES
    if (argc > 2 && strcmp(argv[2], "failures") == 0) {
        int failed = 1;
        long n;
        for (n = 1; failed; n++) {
            llmc_status status;
            countdown = n;
            status = llmc_open(argv[1], NULL, &model, &error);
            if (status == LLMC_OK) status = everything(model, file);
            failed = countdown == 0;
            CHECK(status == LLMC_OK || (failed && status == LLMC_ERROR_MEMORY));
            countdown = 0;
            llmc_close(model);
        }
        printf("%ld allocations failed\n", n - 2);
        (void)unlink(file);
        return 0;
    }
#endif
    if (argc > 2) steps = atoi(argv[2]);
    {
        pthread_t threads[3];
        int i;
        CHECK(llmc_open(argv[1], NULL, &model, &error) == LLMC_OK);
        CHECK(everything(model, file) == LLMC_OK);
        damage(model, file);
        for (i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, at_random, model) == 0);
        for (i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
        llmc_close(model);
    }
    (void)unlink(file);
    puts("done");
    return 0;
}
