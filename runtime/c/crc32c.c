/*
 * crc32c.c - CRC-32C (Castagnoli's polynomial, as in RFC 3720). It tells damage, not malice.
 *
 * Polynomials over GF(2) are written with the lowest bit for the highest power: 1 is 1 << 31, x is 1 << 30.
 */
#include <string.h>

#include "model.h"

#define POLYNOMIAL 0x82f63b78u

static uint32_t times_x(uint32_t a) {
    return a & 1 ? a >> 1 ^ POLYNOMIAL : a >> 1;
}

static uint32_t add_byte(uint32_t crc, unsigned char byte) {
    int i;
    crc ^= byte;
    for (i = 0; i < 8; i++) crc = times_x(crc);
    return crc;
}

/* Eight bytes at a time, a table for each ("slicing by 8"; Kounavis and Berry, 2005). */
uint32_t llmc_crc32c_by_table(const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data, *end = p + bytes;
    uint32_t table[8][256], crc = 0xffffffffu;
    int i, k;
    for (i = 0; i < 256; i++) {
        table[0][i] = add_byte(0, (unsigned char)i);
        for (k = 1; k < 8; k++) table[k][i] = add_byte(table[k - 1][i], 0);
    }
    for (; end - p >= 8; p += 8)
        crc = table[7][p[0] ^ (crc & 255)] ^ table[6][p[1] ^ (crc >> 8 & 255)] ^ table[5][p[2] ^ (crc >> 16 & 255)] ^
              table[4][p[3] ^ crc >> 24] ^ table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
    while (p < end) crc = add_byte(crc, *p++);
    return ~crc;
}

#if defined(__x86_64__) || defined(__AARCH64EL__)

/* As assembly, because the rest of the runtime is compiled for processors that may lack the instruction. */
static uint64_t add_word(uint64_t crc, const unsigned char *p) {
    uint64_t word;
    memcpy(&word, p, sizeof word);
#if defined(__x86_64__)
    __asm__("crc32q %1, %0" : "+r"(crc) : "r"(word));
#else
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
#endif
    return crc;
}

static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0, bit;
    for (bit = 1u << 31; bit; bit >>= 1, b = times_x(b))
        if (a & bit) product ^= b;
    return product;
}

/* x ** (8 * bytes): what a CRC is multiplied by when so many bytes follow. */
static uint32_t shift_by(size_t bytes) {
    uint32_t power = 1u << 31, square = 1u << 23;
    for (; bytes; bytes >>= 1, square = multiply(square, square))
        if (bytes & 1) power = multiply(power, square);
    return power;
}

/* Four lanes, each a quarter of the bytes: the instruction takes three cycles, and one may begin in each. */
uint32_t llmc_crc32c_by_instruction(const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data, *end = p + bytes;
    size_t lane = bytes / 32 * 8, i;
    uint64_t a = 0xffffffffu, b = 0, c = 0, d = 0;
    uint32_t shift = shift_by(lane), crc;
    for (i = 0; i < lane; i += 8) {
        a = add_word(a, p + i);
        b = add_word(b, p + lane + i);
        c = add_word(c, p + 2 * lane + i);
        d = add_word(d, p + 3 * lane + i);
    }
    crc = multiply(multiply(multiply((uint32_t)a, shift) ^ (uint32_t)b, shift) ^ (uint32_t)c, shift) ^ (uint32_t)d;
    for (p += 4 * lane; end - p >= 8; p += 8) crc = (uint32_t)add_word(crc, p);
    while (p < end) crc = add_byte(crc, *p++);
    return ~crc;
}

#else

uint32_t llmc_crc32c_by_instruction(const void *data, size_t bytes) {
    return llmc_crc32c_by_table(data, bytes); /* llmc_cpu_has_crc32c() is 0 here */
}
#endif
