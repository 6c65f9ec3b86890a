/*
 * stats.c - what a list of times says: percentiles, and bootstrap intervals of a mean and of a ratio of medians.
 *
 * Bootstrap: B. Efron, "Bootstrap methods: another look at the jackknife", 1979; percentile intervals. Random
 * numbers: xorshift64* (S. Vigna, 2016) from a fixed seed, so that the same samples give the same interval.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define RESAMPLES 1000
#define LOW 0.025 /* a 95 % interval lies between these quantiles of the resampled values */
#define HIGH 0.975

uint64_t llmc_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

/* An index below n: the high half of a 32 x 32 bit product; n is far below 2^32. */
static int64_t random_index(uint64_t *state, int64_t n) {
    return (int64_t)((llmc_random(state) >> 32) * (uint64_t)n >> 32);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void sort(double *values, int64_t n) {
    qsort(values, (size_t)n, sizeof *values, ascending);
}

/* Quantile q of sorted values, linear between neighbours (type 7 of Hyndman and Fan, NumPy's default). */
static double quantile(const double *sorted, int64_t n, double q) {
    double at = q * (double)(n - 1);
    int64_t below = (int64_t)at;
    if (below >= n - 1) return sorted[n - 1];
    return sorted[below] + (at - (double)below) * (sorted[below + 1] - sorted[below]);
}

static double sum(const double *values, int64_t n) {
    double total = 0;
    int64_t i;
    for (i = 0; i < n; i++) total += values[i];
    return total;
}

/* Put the k-th smallest of the values at index k, none greater before it, none smaller after (Hoare, 1961). */
static void select_nth(double *values, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        double pivot = values[(low + high) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot) i++;
            while (values[j] > pivot) j--;
            if (i <= j) {
                double swap = values[i];
                values[i++] = values[j];
                values[j--] = swap;
            }
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            return;
    }
}

double llmc_median(double *values, int64_t n) {
    int64_t middle = n / 2, i;
    double below;
    select_nth(values, n, middle);
    if (n % 2) return values[middle];
    below = values[0];
    for (i = 1; i < middle; i++)
        if (values[i] > below) below = values[i];
    return 0.5 * (below + values[middle]);
}

static int all_finite(const double *samples, int64_t n) {
    int64_t i;
    for (i = 0; i < n; i++)
        if (!(samples[i] - samples[i] == 0)) return 0;
    return 1;
}

static llmc_status check_samples(const double *samples, int64_t n, llmc_error *error) {
    if (!samples || n < 1 || n > INT32_MAX)
        return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "there are %lld samples, at least 1 is needed",
                         (long long)n);
    if (!all_finite(samples, n)) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "a sample is not a finite number");
    return LLMC_OK;
}

static void mean_interval(const double *samples, int64_t n, llmc_summary *summary) {
    double means[RESAMPLES];
    uint64_t state = 0x9e3779b97f4a7c15ull;
    int64_t i;
    int r;
    for (r = 0; r < RESAMPLES; r++) {
        double total = 0;
        for (i = 0; i < n; i++) total += samples[random_index(&state, n)];
        means[r] = total / (double)n;
    }
    sort(means, RESAMPLES);
    summary->mean_low = quantile(means, RESAMPLES, LOW);
    summary->mean_high = quantile(means, RESAMPLES, HIGH);
}

llmc_status llmc_summarise(const double *samples, int64_t n, llmc_summary *summary, llmc_error *error) {
    llmc_status status = check_samples(samples, n, error);
    double *sorted;
    if (status != LLMC_OK) return status;
    if (!summary) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "summary must not be NULL");
    sorted = (double *)malloc((size_t)n * sizeof *sorted);
    if (!sorted) return llmc_fail_memory(error, (size_t)n * sizeof *sorted);
    memcpy(sorted, samples, (size_t)n * sizeof *sorted);
    sort(sorted, n);
    summary->n = n;
    summary->mean = sum(sorted, n) / (double)n;
    summary->p50 = quantile(sorted, n, 0.50);
    summary->p90 = quantile(sorted, n, 0.90);
    summary->p95 = quantile(sorted, n, 0.95);
    summary->p99 = quantile(sorted, n, 0.99);
    summary->min = sorted[0];
    summary->max = sorted[n - 1];
    free(sorted);
    mean_interval(samples, n, summary);
    return LLMC_OK;
}

/* Median of the samples that `indices` names; `room` holds n values. */
static double median_of(const double *samples, const int32_t *indices, double *room, int64_t n) {
    int64_t i;
    for (i = 0; i < n; i++) room[i] = samples[indices[i]];
    return llmc_median(room, n);
}

llmc_status llmc_compare_samples(const double *a, const double *b, int64_t n, llmc_ratio *ratio, llmc_error *error) {
    double ratios[RESAMPLES], *room;
    int32_t *indices;
    uint64_t state = 0x9e3779b97f4a7c15ull;
    llmc_status status = check_samples(a, n, error);
    int64_t i;
    int r;
    if (status == LLMC_OK) status = check_samples(b, n, error);
    if (status != LLMC_OK) return status;
    if (!ratio) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "ratio must not be NULL");
    room = (double *)malloc((size_t)n * (sizeof *room + sizeof *indices));
    if (!room) return llmc_fail_memory(error, (size_t)n * (sizeof *room + sizeof *indices));
    indices = (int32_t *)(void *)(room + n);
    for (i = 0; i < n; i++) indices[i] = (int32_t)i;
    ratio->n = n;
    ratio->ratio = median_of(a, indices, room, n) / median_of(b, indices, room, n);
    for (r = 0; r < RESAMPLES; r++) {
        for (i = 0; i < n; i++) indices[i] = (int32_t)random_index(&state, n);
        ratios[r] = median_of(a, indices, room, n) / median_of(b, indices, room, n);
    }
    free(room);
    sort(ratios, RESAMPLES);
    ratio->low = quantile(ratios, RESAMPLES, LOW);
    ratio->high = quantile(ratios, RESAMPLES, HIGH);
    return LLMC_OK;
}
