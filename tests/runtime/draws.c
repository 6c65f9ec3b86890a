/*
 * draws.c - print a hash of all bits of many distributions, and of the tokens drawn: the same on every machine.
 */
#include <stdio.h>
#include <string.h>

#include "llmc.h"

#define SIZE 2000

static float logits[SIZE];
static double probabilities[SIZE];

static uint64_t hash(uint64_t sum, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    for (; bytes; bytes--) sum = (sum ^ *p++) * 0x100000001B3u;
    return sum;
}

int main(void) {
    uint64_t sum = 0xCBF29CE484222325u, random = 1;
    int64_t seed, token;
    int i;
    for (seed = 0; seed < 60; seed++) {
        llmc_choice_options options;
        llmc_error error;
        memset(&options, 0, sizeof options);
        options.do_sample = 1;
        options.seed = (uint64_t)seed;
        options.temperature = 0.3 + 0.05 * (double)seed;
        options.top_k = seed % 3 ? 0 : 100;
        options.top_p = seed % 4 ? 0 : 0.9;
        options.min_p = seed % 5 ? 0 : 0.01;
        options.typical_p = seed % 7 ? 0 : 0.8;
        for (i = 0; i < SIZE; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            logits[i] = (float)(random >> 40) / 1000000 - 8;
        }
        if (llmc_choose(&options, logits, SIZE, NULL, 0, 0, &token, probabilities, &error) != LLMC_OK) return 1;
        sum = hash(sum, probabilities, sizeof probabilities);
        sum = hash(sum, &token, sizeof token);
    }
    printf("%016llx\n", (unsigned long long)sum);
    return 0;
}
