/*
 * portable.c - exponentials, logarithms and random numbers with the same bits on every machine.
 *
 * C libraries round exp() and log() differently, and by the processor that they find: a token whose turn comes by the
 * last bit would be another one there. Here are sums and products of doubles alone, never contracted.
 */
#include <string.h>

#include "choose.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF /* gcc does not contract in -std=c99 */
#endif

static const double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770002e-10; /* ln 2, in two parts */

static double scale(double x, int exponent) { /* x * 2^exponent, for normal results */
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return x * power;
}

#define PART(n, rest) (1.0 / (n) * (rest)) /* 1 / n!, which the compiler works out */
#define F4 PART(4, PART(3, PART(2, 1)))
#define F8 PART(8, PART(7, PART(6, PART(5, F4))))

static const double TAYLOR[] = {/* of exp, the highest power first */
    PART(13, PART(12, PART(11, PART(10, PART(9, F8))))), PART(12, PART(11, PART(10, PART(9, F8)))),
    PART(11, PART(10, PART(9, F8))), PART(10, PART(9, F8)), PART(9, F8), F8, PART(7, PART(6, PART(5, F4))),
    PART(6, PART(5, F4)), PART(5, F4), F4, PART(3, PART(2, 1)), PART(2, 1), 1, 1};

/* exp(x) = 2^k exp(r), |r| <= ln 2 / 2 */
double llmc_exp(double x) {
    double k, r, sum = 0;
    size_t i;
    if (!(x > -700)) return 0;
    k = (double)(int64_t)(x * 1.4426950408889634 - 0.5);
    r = (x - k * LN2_HIGH) - k * LN2_LOW;
    for (i = 0; i < sizeof TAYLOR / sizeof *TAYLOR; i++) sum = sum * r + TAYLOR[i];
    return scale(sum, (int)k);
}

/* log(2^k m) = k ln 2 + 2 artanh((m - 1) / (m + 1)), m between sqrt(1/2) and sqrt(2) */
double llmc_log(double x) {
    uint64_t bits;
    double m, s, square, sum = 0;
    int k, i;
    memcpy(&bits, &x, sizeof bits);
    k = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | (1023ull << 52);
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m /= 2;
        k++;
    }
    s = (m - 1) / (m + 1);
    square = s * s;
    for (i = 25; i > 0; i -= 2) sum = sum * square + 1.0 / i;
    return k * LN2_HIGH + (2 * s * sum + k * LN2_LOW);
}

/* Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011): a number of a sequence by its place, without those before it. */
double llmc_uniform(uint64_t seed, uint64_t index) {
    uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint64_t bits;
    int round;
    for (round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t next[4];
        next[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
        next[1] = (uint32_t)b;
        next[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        next[3] = (uint32_t)a;
        memcpy(c, next, sizeof c);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    bits = ((uint64_t)c[1] << 32 | c[0]) >> 11; /* 53 of them */
    return (double)bits / 9007199254740992.0;
}
