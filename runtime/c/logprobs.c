/*
 * logprobs.c - how likely the model finds tokens, before any penalty or filter.
 */
#include "choose.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

double llmc_log_total(const float *logits, int64_t n) {
    double most = (double)logits[0], sum = 0;
    int64_t i;
    for (i = 1; i < n; i++)
        if ((double)logits[i] > most) most = (double)logits[i];
    for (i = 0; i < n; i++) sum += llmc_exp((double)logits[i] - most);
    return llmc_log(sum) + most;
}

/* Each goes to its place among the best so far; of equal ones the first goes before. */
void llmc_top_tokens(const float *logits, int64_t n, double log_total, int64_t wanted, int64_t *tokens,
                     double *logprobs) {
    int64_t i, held = 0;
    for (i = 0; i < n && wanted > 0; i++) {
        double logprob = (double)logits[i] - log_total;
        int64_t at = held < wanted ? held++ : held;
        if (at == wanted && logprob <= logprobs[wanted - 1]) continue;
        if (at == wanted) at--;
        for (; at > 0 && logprobs[at - 1] < logprob; at--) {
            logprobs[at] = logprobs[at - 1];
            tokens[at] = tokens[at - 1];
        }
        logprobs[at] = logprob;
        tokens[at] = i;
    }
}
