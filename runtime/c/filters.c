/*
 * filters.c - which tokens may be drawn: top-k, top-p, min-p, typical-p, as transformers' logits warpers do it.
 */
#include <stdlib.h>

#include "choose.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

static float highest(const llmc_chooser *c) {
    float most = c->list[0].score;
    int64_t i;
    for (i = 1; i < c->n; i++)
        if (c->list[i].score > most) most = c->list[i].score;
    return most;
}

void llmc_weigh(llmc_chooser *c) {
    double most = (double)highest(c), sum = 0;
    int64_t i;
    for (i = 0; i < c->n; i++) sum += c->list[i].p = llmc_exp((double)c->list[i].score - most);
    for (i = 0; i < c->n; i++) c->list[i].p /= sum;
}

/* Most likely first; equal ones by their number, so that no sort can choose. */
static int by_score(const void *one, const void *other) {
    const llmc_candidate *a = (const llmc_candidate *)one, *b = (const llmc_candidate *)other;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->token < b->token ? -1 : 1;
}

static int by_p(const void *one, const void *other) { /* least first */
    const llmc_candidate *a = (const llmc_candidate *)one, *b = (const llmc_candidate *)other;
    if (a->p != b->p) return a->p < b->p ? -1 : 1;
    return a->token < b->token ? -1 : 1;
}

static void sink(float *heap, int64_t k, int64_t at) {
    for (;;) {
        int64_t least = at, child = 2 * at + 1;
        float swapped = heap[at];
        if (child < k && heap[child] < heap[least]) least = child;
        if (child + 1 < k && heap[child + 1] < heap[least]) least = child + 1;
        if (least == at) return;
        heap[at] = heap[least];
        heap[least] = swapped;
        at = least;
    }
}

static void keep_from(llmc_chooser *c, float least) {
    int64_t i, n = 0;
    for (i = 0; i < c->n; i++)
        if (c->list[i].score >= least) c->list[n++] = c->list[i];
    c->n = n;
}

/* All that are no less than the k-th, so that equal ones stay together. `scores` has been read by now: it is the heap. */
void llmc_keep_top_k(llmc_chooser *c, int64_t k) {
    float *heap = c->scores;
    int64_t i;
    if (k >= c->n) return;
    for (i = 0; i < k; i++) heap[i] = c->list[i].score;
    for (i = k / 2; i-- > 0;) sink(heap, k, i);
    for (i = k; i < c->n; i++) {
        if (c->list[i].score <= heap[0]) continue;
        heap[0] = c->list[i].score;
        sink(heap, k, 0);
    }
    keep_from(c, heap[0]);
}

/* From the least likely on, those go whose sum is at most 1 - mass. All below (1 - mass) / n are among them: they need
 * not be sorted. */
void llmc_keep_top_p(llmc_chooser *c, double mass) {
    double rest = 1 - mass, gone = 0, small = rest / (double)c->n;
    int64_t i, n = 0;
    llmc_weigh(c);
    for (i = 0; i < c->n; i++)
        if (c->list[i].p < small)
            gone += c->list[i].p;
        else
            c->list[n++] = c->list[i];
    qsort(c->list, (size_t)n, sizeof *c->list, by_score);
    for (i = n - 1; i > 0; i--) {
        gone += c->list[i].p;
        if (gone > rest) break;
    }
    c->n = i + 1;
}

void llmc_keep_min_p(llmc_chooser *c, double share) {
    double most = 0;
    int64_t i, n = 0;
    llmc_weigh(c);
    for (i = 0; i < c->n; i++)
        if (c->list[i].p > most) most = c->list[i].p;
    for (i = 0; i < c->n; i++)
        if (c->list[i].p >= share * most) c->list[n++] = c->list[i];
    c->n = n;
}

/* Those whose surprise is nearest to the expected one, until their sum reaches the mass (Meister et al. 2022). */
void llmc_keep_typical(llmc_chooser *c, double mass) {
    double most = (double)highest(c), sum = 0, entropy = 0, total = 0, last;
    int64_t i, n = 0;
    for (i = 0; i < c->n; i++) sum += llmc_exp((double)c->list[i].score - most);
    sum = llmc_log(sum) + most;
    for (i = 0; i < c->n; i++) {
        double logarithm = (double)c->list[i].score - sum;
        entropy -= logarithm * llmc_exp(logarithm);
    }
    for (i = 0; i < c->n; i++) {
        double far = -((double)c->list[i].score - sum) - entropy;
        c->list[i].p = far < 0 ? -far : far;
    }
    qsort(c->list, (size_t)c->n, sizeof *c->list, by_p);
    for (i = 0; i < c->n - 1; i++) {
        total += llmc_exp((double)c->list[i].score - sum);
        if (!(total < mass)) break;
    }
    last = c->list[i].p;
    while (n < c->n && c->list[n].p <= last) n++;
    c->n = n;
}
