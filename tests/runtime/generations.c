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
    llmc_session_close(session);
    llmc_session_close(other);
    return status;
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
