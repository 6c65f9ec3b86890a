/*
 * weights.c - weights.bin: mapped, its header read, its blocks compared with the checksums they were written with.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"

#define MAX_PATH 4096

static llmc_status check_header(const llmc_model *model, const char *path, llmc_error *error) {
    static const char again[] = "compile the model again, or copy the whole artifact";
    const llmc_program *program = model->program;
    const unsigned char *header = model->map;
    uint64_t payload = 0;
    int i;
    if (memcmp(header, "LLMCWTS1", 8) != 0)
        return llmc_fail(error, LLMC_ERROR_WEIGHTS, again, "%s is not a weights file: it does not start with LLMCWTS1",
                         path);
    if (memcmp(header + 8, program->build_id, 64) != 0)
        return llmc_fail(error, LLMC_ERROR_WEIGHTS, again, "%s belongs to another build: id %.12s..., expected %.12s...",
                         path, (const char *)header + 8, program->build_id);
    for (i = 7; i >= 0; i--) payload = payload << 8 | header[72 + i];
    if (payload != program->weights_bytes)
        return llmc_fail(error, LLMC_ERROR_WEIGHTS, again, "the header of %s says %llu bytes of weights, expected %llu",
                         path, (unsigned long long)payload, (unsigned long long)program->weights_bytes);
    for (i = 80; i < LLMC_WEIGHTS_HEADER; i++)
        if (header[i]) return llmc_fail(error, LLMC_ERROR_WEIGHTS, again, "byte %d of %s is not zero", i, path);
    return LLMC_OK;
}

/* Map an open file if it has the right kind and size. */
static llmc_status map_file(llmc_model *model, const char *path, int file, llmc_error *error) {
    uint64_t expected = LLMC_WEIGHTS_HEADER + model->program->weights_bytes;
    struct stat info;
    void *map;
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode))
        return llmc_fail(error, LLMC_ERROR_FILE, NULL, "%s is not a file", path);
    if ((uint64_t)info.st_size != expected)
        return llmc_fail(error, LLMC_ERROR_WEIGHTS, "copy the artifact again", "%s has %lld bytes, expected %llu", path,
                         (long long)info.st_size, (unsigned long long)expected);
    if (expected > SIZE_MAX) return llmc_fail_memory(error, SIZE_MAX);
    map = mmap(NULL, (size_t)expected, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED)
        return llmc_fail(error, LLMC_ERROR_MEMORY, NULL, "cannot map %s: %s", path, strerror(errno));
    model->map = (unsigned char *)map;
    model->map_bytes = (size_t)expected;
    madvise(map, (size_t)expected, MADV_WILLNEED); /* advice only */
    return LLMC_OK;
}

static llmc_status name_file(char path[MAX_PATH], const char *directory, llmc_error *error) {
    if (snprintf(path, MAX_PATH, "%s/weights.bin", directory) < MAX_PATH) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "the path has more than %d bytes", MAX_PATH);
}

llmc_status llmc_map_weights(llmc_model *model, const char *directory, llmc_error *error) {
    char path[MAX_PATH];
    llmc_status status = name_file(path, directory, error);
    int file;
    if (status != LLMC_OK) return status;
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return llmc_fail(error, LLMC_ERROR_FILE, "give the artifact's folder", "cannot open %s: %s", path,
                         strerror(errno));
    status = map_file(model, path, file, error);
    close(file);
    return status == LLMC_OK ? check_header(model, path, error) : status;
}

/* ---- Checksums ---- */

typedef struct comparison {
    const unsigned char *weights;
    uint64_t bytes;
    const uint32_t *expected;
    uint32_t (*crc32c)(const void *data, size_t bytes);
    int64_t *first, *differ; /* the first block that differs, and how many do; atomic */
} comparison;

static void note(const comparison *c, int64_t block) {
    int64_t first = __atomic_load_n(c->first, __ATOMIC_RELAXED);
    __atomic_add_fetch(c->differ, 1, __ATOMIC_RELAXED);
    while (block < first &&
           !__atomic_compare_exchange_n(c->first, &first, block, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

/* An llmc_task whose items are blocks. */
static void compare(const void *arguments, int64_t begin, int64_t end, void *scratch) {
    const comparison *c = (const comparison *)arguments;
    (void)scratch;
    for (; begin < end; begin++) {
        uint64_t offset = (uint64_t)begin * LLMC_WEIGHTS_BLOCK, left = c->bytes - offset;
        size_t bytes = left < LLMC_WEIGHTS_BLOCK ? (size_t)left : LLMC_WEIGHTS_BLOCK;
        if (c->crc32c(c->weights + offset, bytes) != c->expected[begin]) note(c, begin);
    }
}

static void run(const llmc_model *model, const comparison *c, int64_t blocks) {
    llmc_stop never = {0, 0};
    while (model->pool_shared && !model->pool_can->take_turn(model->pool)) continue;
    model->pool_can->run(model->pool, compare, c, blocks, LLMC_WEIGHTS_BLOCK / 8, &never);
    if (model->pool_shared) model->pool_can->end_turn(model->pool);
}

llmc_status llmc_check_weights(const llmc_model *model, const char *directory, llmc_error *error) {
    const llmc_program *program = model->program;
    int64_t blocks = (int64_t)((program->weights_bytes + LLMC_WEIGHTS_BLOCK - 1) / LLMC_WEIGHTS_BLOCK);
    int64_t first = blocks, differ = 0;
    comparison c = {model->map + LLMC_WEIGHTS_HEADER, program->weights_bytes, program->weights_crc32c, NULL, &first,
                    &differ};
    char path[MAX_PATH];
    llmc_status status = name_file(path, directory, error);
    if (status != LLMC_OK || !blocks) return status;
    if (!c.expected)
        return llmc_fail(error, LLMC_ERROR_MODULE, "open with skip_weights_check", "the module has no checksums of %s",
                         path);
    c.crc32c = llmc_cpu_has_crc32c() ? llmc_crc32c_by_instruction : llmc_crc32c_by_table;
    run(model, &c, blocks);
    if (!differ) return LLMC_OK;
    return llmc_fail(error, LLMC_ERROR_WEIGHTS, "copy the artifact again, or compile the model again",
                     "%s is damaged: of its %lld blocks of 1 MiB %lld differ from what was compiled, the first at byte %lld",
                     path, (long long)blocks, (long long)differ,
                     (long long)(LLMC_WEIGHTS_HEADER + first * LLMC_WEIGHTS_BLOCK));
}
