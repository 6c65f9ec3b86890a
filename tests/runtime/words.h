/*
 * words.h - what words.c computes, for whoever compares with it.
 */
#ifndef WORDS_H
#define WORDS_H

#include <stdint.h>

#define WORDS 41
#ifndef WORDS_BOUND
#define WORDS_BOUND 64 /* tokens of a sequence */
#endif

uint64_t words_context(const int64_t *tokens, int64_t n); /* of the next token, where the state grows */
void words_logits(uint64_t context, float *logits);

#endif
