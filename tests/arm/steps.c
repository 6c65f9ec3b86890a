/*
 * steps.c - a text token by token, as tests/steps.py has it: each new token, and the logarithms of all probabilities.
 *
 *   steps ARTIFACT TOKENS N ID ...     the first N ids are the source that `encode` reads, if N > 0; the others the prompt
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc.h"

#define MOST 64      /* ids */
#define NUMBERS 4096 /* of what `encode` gives */
#define WORDS 100

static int print_token(void *user, const llmc_token *token) {
    int64_t i;
    (void)user;
    printf("%lld", (long long)token->token);
    for (i = 0; i < token->n_top; i++) printf(" %lld %a", (long long)token->top[i], token->top_logprobs[i]);
    return printf("\n") < 0;
}

static llmc_status read_source(llmc_session *session, int64_t *ids, int64_t n, llmc_error *error) {
    static float numbers[NUMBERS];
    llmc_tensor in[1] = {{0}}, out[1] = {{0}};
    in[0].data = ids;
    in[0].dtype = LLMC_I64;
    in[0].rank = 2;
    in[0].shape[0] = 1;
    in[0].shape[1] = n;
    if (llmc_session_output_shapes(session, 0, in, out, error) != LLMC_OK) return LLMC_ERROR_SHAPE;
    if (out[0].shape[1] * out[0].shape[2] > NUMBERS) return LLMC_ERROR_SHAPE;
    out[0].data = numbers;
    return llmc_session_run(session, 0, in, out, NULL, error);
}

int main(int argc, char **argv) {
    int64_t ids[MOST], n = argc - 4, source = argc > 3 ? atoi(argv[3]) : 0, i;
    llmc_error error = {LLMC_ERROR_ARGUMENT, "usage: steps ARTIFACT TOKENS N ID ...", ""};
    llmc_generate_options options;
    llmc_session *session = NULL;
    llmc_model *model = NULL;
    llmc_status status = LLMC_ERROR_ARGUMENT;
    memset(&options, 0, sizeof options);
    if (n > source && n <= MOST) status = llmc_open(argv[1], NULL, &model, &error);
    for (i = 0; i < n && i < MOST; i++) ids[i] = atoi(argv[4 + i]);
    if (status == LLMC_OK) status = llmc_session_open(model, NULL, &session, &error);
    if (status == LLMC_OK && source) status = read_source(session, ids, source, &error);
    if (status == LLMC_OK) {
        options.max_new_tokens = atoi(argv[2]);
        options.choice.no_repeat_ngram = 1;
        options.logprobs = 1;
        options.top_logprobs = WORDS;
        status = llmc_generate(session, &options, ids + source, n - source, print_token, NULL, NULL, &error);
    }
    if (status != LLMC_OK) fprintf(stderr, "error %d: %s\n", (int)status, error.message);
    llmc_session_close(session);
    llmc_close(model);
    return status != LLMC_OK;
}
