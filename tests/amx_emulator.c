/*
 * amx_emulator.c - the instructions of Intel AMX that kernels use, for processors without them.
 *
 *   amx_begin();                              forget what was
 *   amx_allow(memory, bytes);                 tiles may be loaded from here and stored to here, and nowhere else
 *   ... a kernel that calls amx_tilezero and so on where it would have the instruction ...
 *   const char *fault = amx_end();            what a processor would have refused, and more; "" if nothing
 *
 * Palette 1 of Intel's Software Developer's Manual, volume 2: 8 tiles of up to 16 rows of up to 64 bytes. What the
 * manual answers with #UD or #GP is a fault, as are a load or store outside of all allowed memory and tiles that are
 * still configured at the end. The first fault is kept, and the instruction that has one does nothing. start_row, where
 * an interrupted load goes on, is refused: no kernel has a use for it.
 */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define TILES 8
#define ROWS 16
#define BYTES 64
#define REGIONS 32

typedef struct tile {
    int rows;
    int bytes; /* of a row */
    uint8_t data[ROWS][BYTES];
} tile;

typedef struct region {
    uintptr_t start;
    uintptr_t end;
} region;

typedef struct unit {
    int configured;
    tile tiles[TILES];
    region regions[REGIONS];
    int allowed;
    int64_t products; /* of tiles */
    char fault[256];
} unit;

static __thread unit amx;

static int refuse(const char *format, ...)
{
    if (!amx.fault[0]) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(amx.fault, sizeof amx.fault, format, arguments);
        va_end(arguments);
    }
    return 0;
}

void amx_begin(void)
{
    memset(&amx, 0, sizeof amx);
}

void amx_allow(const void *memory, int64_t bytes)
{
    if (amx.allowed == REGIONS) {
        refuse("the emulator holds %d regions of memory", REGIONS);
        return;
    }
    amx.regions[amx.allowed].start = (uintptr_t)memory;
    amx.regions[amx.allowed++].end = (uintptr_t)memory + (uintptr_t)bytes;
}

const char *amx_end(void)
{
    if (amx.configured)
        refuse("tilerelease: it is missing, tiles are still configured at the end");
    return amx.fault;
}

int64_t amx_products(void)
{
    return amx.products;
}

static int within(const char *name, const uint8_t *memory, int64_t bytes)
{
    uintptr_t start = (uintptr_t)memory;
    for (int i = 0; i < amx.allowed; i++)
        if (start >= amx.regions[i].start && start + (uintptr_t)bytes <= amx.regions[i].end)
            return 1;
    return refuse("%s: %lld bytes outside of the kernel's operands", name, (long long)bytes);
}

static int usable(const char *name, int number)
{
    if (!amx.configured)
        return refuse("%s: no tile is configured", name);
    if (number < 0 || number >= TILES)
        return refuse("%s: there is no tile %d", name, number);
    if (!amx.tiles[number].rows)
        return refuse("%s: tile %d is not configured", name, number);
    if (amx.tiles[number].bytes % 4)
        return refuse("%s: tile %d has rows of %d bytes", name, number, amx.tiles[number].bytes);
    return 1;
}

void amx_tilerelease(void)
{
    amx.configured = 0;
    memset(amx.tiles, 0, sizeof amx.tiles);
}

static int reserved_are_zero(const uint8_t *config)
{
    for (int i = 0; i < 64; i++) {
        int said = i == 0 || (i >= 16 && i < 16 + 2 * TILES) || (i >= 48 && i < 48 + TILES);
        if (!said && config[i])
            return refuse("ldtilecfg: byte %d is %d, must be 0", i, config[i]);
    }
    return 1;
}

void amx_ldtilecfg(const uint8_t *config)
{
    if (!within("ldtilecfg", config, 64) || !reserved_are_zero(config))
        return;
    if (config[0] != 1) {
        refuse("ldtilecfg: palette %d", config[0]);
        return;
    }
    amx_tilerelease();
    for (int i = 0; i < TILES; i++) {
        int bytes = config[16 + 2 * i] | config[17 + 2 * i] << 8, rows = config[48 + i];
        if (rows > ROWS || bytes > BYTES || !rows != !bytes) {
            refuse("ldtilecfg: tile %d of %d rows of %d bytes", i, rows, bytes);
            amx_tilerelease();
            return;
        }
        amx.tiles[i].rows = rows;
        amx.tiles[i].bytes = bytes;
    }
    amx.configured = 1;
}

void amx_tilezero(int32_t number)
{
    if (usable("tilezero", number))
        memset(amx.tiles[number].data, 0, sizeof amx.tiles[number].data);
}

void amx_tileloadd64(int32_t number, const uint8_t *memory, int64_t stride)
{
    if (!usable("tileloadd", number))
        return;
    tile *to = &amx.tiles[number];
    memset(to->data, 0, sizeof to->data);
    for (int row = 0; row < to->rows; row++, memory += stride)
        if (within("tileloadd", memory, to->bytes))
            memcpy(to->data[row], memory, (size_t)to->bytes);
}

void amx_tilestored64(int32_t number, uint8_t *memory, int64_t stride)
{
    if (!usable("tilestored", number))
        return;
    const tile *from = &amx.tiles[number];
    for (int row = 0; row < from->rows; row++, memory += stride)
        if (within("tilestored", memory, from->bytes))
            memcpy(memory, from->data[row], (size_t)from->bytes);
}

static int fit(const char *name, const tile *sums, const tile *a, const tile *b)
{
    if (sums == a || sums == b || a == b)
        return refuse("%s: one tile twice", name);
    if (sums->rows != a->rows || sums->bytes != b->bytes || a->bytes != 4 * b->rows)
        return refuse("%s: %d rows of %d bytes, by %d of %d and %d of %d", name, sums->rows, sums->bytes, a->rows,
                      a->bytes, b->rows, b->bytes);
    return 1;
}

/* Whether three tiles can be used and fit together; then a product more is counted. */
static int may_multiply(const char *name, int32_t sums, int32_t a, int32_t b)
{
    if (!usable(name, sums) || !usable(name, a) || !usable(name, b))
        return 0;
    if (!fit(name, &amx.tiles[sums], &amx.tiles[a], &amx.tiles[b]))
        return 0;
    amx.products++;
    return 1;
}

/* sums[m][n] += the sum over i < 4 and k of a[m][4 k + i] * b[k][4 n + i], one of them signed, modulo 2^32 */
static void multiply(const char *name, int32_t sums_number, int32_t a_number, int32_t b_number, int a_is_signed)
{
    if (!may_multiply(name, sums_number, a_number, b_number))
        return;
    tile *sums = &amx.tiles[sums_number];
    const tile *a = &amx.tiles[a_number], *b = &amx.tiles[b_number];
    for (int m = 0; m < sums->rows; m++) {
        uint32_t row[BYTES / 4];
        memcpy(row, sums->data[m], sizeof row);
        for (int k = 0; k < b->rows; k++)
            for (int n = 0; n < sums->bytes / 4; n++)
                for (int i = 0; i < 4; i++) {
                    uint8_t left = a->data[m][4 * k + i], right = b->data[k][4 * n + i];
                    row[n] += (uint32_t)(a_is_signed ? (int8_t)left * right : left * (int8_t)right);
                }
        memcpy(sums->data[m], row, sizeof row);
    }
}

void amx_tdpbusd(int32_t sums, int32_t a, int32_t b)
{
    multiply("tdpbusd", sums, a, b, 0);
}

void amx_tdpbsud(int32_t sums, int32_t a, int32_t b)
{
    multiply("tdpbsud", sums, a, b, 1);
}

/* The float32 of which 16 bits are the upper half; a denormal is 0, as is every result that would be one. */
static float flushed(float value)
{
    return fpclassify(value) == FP_SUBNORMAL ? copysignf(0.0f, value) : value;
}

static float upper(const uint8_t *half)
{
    uint32_t bits = (uint32_t)(half[0] | half[1] << 8) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return flushed(value);
}

/* sums[m][n] += even + odd: chains of fused multiply-adds of a[m][2 k] * b[k][2 n] and a[m][2 k + 1] * b[k][2 n + 1] */
void amx_tdpbf16ps(int32_t sums_number, int32_t a_number, int32_t b_number)
{
    static const char name[] = "tdpbf16ps";
    if (!may_multiply(name, sums_number, a_number, b_number))
        return;
    tile *sums = &amx.tiles[sums_number];
    const tile *a = &amx.tiles[a_number], *b = &amx.tiles[b_number];
    for (int m = 0; m < sums->rows; m++)
        for (int n = 0; n < sums->bytes / 4; n++) {
            float chains[2] = {0, 0}, sum;
            for (int k = 0; k < b->rows; k++)
                for (int i = 0; i < 2; i++) {
                    float left = upper(&a->data[m][4 * k + 2 * i]), right = upper(&b->data[k][4 * n + 2 * i]);
                    chains[i] = flushed(fmaf(left, right, chains[i]));
                }
            memcpy(&sum, &sums->data[m][4 * n], sizeof sum);
            sum = flushed(flushed(sum) + flushed(chains[0] + chains[1]));
            memcpy(&sums->data[m][4 * n], &sum, sizeof sum);
        }
}
