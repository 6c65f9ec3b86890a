/*
 * generate.c - continue a prompt of token ids and print each new one as it comes. C99.
 *
 *   cc -std=c99 -Im.llmc generate.c -Lm.llmc -l:module.so -Wl,-rpath,$PWD/m.llmc -lm -o generate
 *   ./generate m.llmc 20 0.8 0 1 9 14 18
 *
 * Arguments: the artifact, the most new tokens, a temperature (0 takes the likeliest token), the token that ends a text
 * (-1: none), the prompt. On stderr: the memory's bound, and how long it took. Exit code 1 and a sentence on failure.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc.h"

static int print_token(void *user, const llmc_token *token) {
    (void)user;
    printf("%s%lld", token->index ? " " : "", (long long)token->token);
    fflush(stdout);
    return 0; /* anything else ends the text */
}

/* What a session holds at n tokens, and a run of 512 of them takes: nothing that llmc_generate() does takes more. */
static llmc_status find_bound(llmc_model *model, int64_t n, llmc_memory *needed, llmc_error *error) {
    const llmc_info *info = llmc_describe(model);
    int64_t sizes[LLMC_MAX_DIMS], seq, i;
    for (i = 0; i < info->n_dims; i++)
        if (!strcmp(info->dims[i].name, "past") && n > info->dims[i].high) n = info->dims[i].high;
    seq = n < 512 ? n : 512;
    for (i = 0; i < info->n_dims; i++)
        sizes[i] = !strcmp(info->dims[i].name, "past") ? n - seq : !strcmp(info->dims[i].name, "seq") ? seq : 1;
    return llmc_memory_needed(model, llmc_find_function(model, "step", error), sizes, needed, error);
}

static llmc_status continue_prompt(llmc_model *model, char **argv, const int64_t *prompt, int64_t n, llmc_error *error) {
    const int64_t stop = strtoll(argv[4], NULL, 10);
    llmc_session_options limits = {0, 0, 0, NULL, 0, NULL};
    llmc_generate_options options;
    llmc_generate_report report;
    llmc_session *session = NULL;
    llmc_memory needed = {0, 0, 0};
    llmc_status status;
    memset(&options, 0, sizeof options);
    options.max_new_tokens = strtoll(argv[2], NULL, 10);
    options.choice.temperature = strtod(argv[3], NULL);
    options.choice.do_sample = options.choice.temperature != 0;
    options.choice.top_k = 50;
    options.choice.seed = 1;
    options.choice.stop = &stop;
    options.choice.n_stop = stop >= 0;
    status = find_bound(model, options.max_new_tokens ? n + options.max_new_tokens : INT32_MAX, &needed, error);
    limits.max_memory = needed.states + needed.arena;
    if (status == LLMC_OK) fprintf(stderr, "at most %llu bytes\n", (unsigned long long)limits.max_memory);
    if (status == LLMC_OK) status = llmc_session_open(model, &limits, &session, error);
    if (status == LLMC_OK) status = llmc_generate(session, &options, prompt, n, print_token, NULL, &report, error);
    llmc_session_close(session);
    if (status != LLMC_OK) return status;
    fprintf(stderr, "\n%lld tokens of prompt in %.3f s, %lld new in %.3f s\n", (long long)report.prompt_tokens,
            report.prompt_seconds, (long long)report.new_tokens, report.seconds - report.prompt_seconds);
    return LLMC_OK;
}

int main(int argc, char **argv) {
    int64_t n = argc > 5 ? argc - 5 : 0, *prompt = (int64_t *)malloc((size_t)(n + 1) * sizeof *prompt), i;
    llmc_error error = {LLMC_ERROR_MEMORY, "out of memory", ""};
    llmc_model *model = NULL;
    llmc_status status = LLMC_ERROR_MEMORY;
    if (n < 1) {
        free(prompt);
        return fprintf(stderr, "usage: generate ARTIFACT MOST TEMPERATURE STOP ID ...\n"), 2;
    }
    for (i = 0; prompt && i < n; i++) prompt[i] = strtoll(argv[5 + i], NULL, 10);
    if (prompt) status = llmc_open(argv[1], NULL, &model, &error);
    if (status == LLMC_OK) status = continue_prompt(model, argv, prompt, n, &error);
    if (status != LLMC_OK) fprintf(stderr, "error: %s%s%s\n", error.message, *error.hint ? "\n  hint: " : "", error.hint);
    llmc_close(model);
    free(prompt);
    return status != LLMC_OK;
}
