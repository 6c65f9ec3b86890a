/*
 * npy.c - read and write NumPy's .npy files, versions 1 to 3 of the format.
 */
#include "npy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEADER 65536

static const struct {
    const char *code;
    llmc_dtype dtype;
} codes[] = {{"<f4", LLMC_F32}, {"<f2", LLMC_F16}, {"|i1", LLMC_I8},  {"|u1", LLMC_U8},
             {"<i4", LLMC_I32}, {"<i8", LLMC_I64}, {"|b1", LLMC_BOOL}, {"<f8", LLMC_F64}};
#define N_CODES (sizeof codes / sizeof *codes)

size_t npy_bytes(const llmc_tensor *tensor) {
    size_t bytes = llmc_dtype_size(tensor->dtype);
    int i;
    for (i = 0; i < tensor->rank; i++) {
        size_t size = (size_t)tensor->shape[i];
        if (tensor->shape[i] < 0 || (size && bytes > SIZE_MAX / size)) return SIZE_MAX;
        bytes *= size;
    }
    return bytes;
}

/* What follows `key` and its colon in the header, a Python dict such as {'descr': '<f4', 'shape': (3,), }. */
static const char *value_of(const char *header, const char *key) {
    const char *at = strstr(header, key);
    if (!at) return "";
    at += strlen(key);
    return at + strspn(at, "': ");
}

static const char *parse_shape(const char *text, llmc_tensor *tensor) {
    if (*text++ != '(') return "its header has no shape";
    for (tensor->rank = 0;;) {
        char *end;
        text += strspn(text, ", ");
        if (*text == ')') return NULL;
        if (tensor->rank == LLMC_MAX_RANK) return "it has too many axes";
        tensor->shape[tensor->rank] = strtoll(text, &end, 10);
        if (end == text || tensor->shape[tensor->rank] < 0) return "its header has no shape";
        tensor->rank++;
        text = end;
    }
}

static const char *parse(const char *header, llmc_tensor *tensor) {
    const char *code = value_of(header, "'descr'");
    size_t i;
    for (i = 0; i < N_CODES && strncmp(code, codes[i].code, 3) != 0; i++) {
    }
    if (i == N_CODES || code[3] != '\'') return "its element type is not one of f4 f2 i1 u1 i4 i8 b1 f8, little-endian";
    tensor->dtype = codes[i].dtype;
    if (strncmp(value_of(header, "'fortran_order'"), "False", 5) != 0) return "it is in Fortran order";
    return parse_shape(value_of(header, "'shape'"), tensor);
}

/* The header's text from a file that is at its start, to be freed. */
static const char *read_header(FILE *file, char **header) {
    unsigned char start[12];
    size_t more, bytes;
    if (fread(start, 1, 8, file) != 8 || memcmp(start, "\x93NUMPY", 6) != 0) return "it is not an .npy file";
    more = start[6] == 1 ? 2 : 4;
    if (start[6] < 1 || start[6] > 3 || fread(start + 8, 1, more, file) != more) return "it is not an .npy file";
    bytes = start[8] | (size_t)start[9] << 8;
    if (more == 4) bytes |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    if (bytes > MAX_HEADER) return "its header is too long";
    *header = (char *)calloc(1, bytes + 1);
    if (!*header) return "there is no memory for it";
    return fread(*header, 1, bytes, file) == bytes ? NULL : "it ends within its header";
}

/* The rest of the file, which must be the tensor's elements and no more. */
static const char *read_elements(FILE *file, llmc_tensor *tensor) {
    size_t bytes = npy_bytes(tensor);
    if (bytes == SIZE_MAX) return "it is too large";
    tensor->data = malloc(bytes ? bytes : 1);
    if (!tensor->data) return "there is no memory for it";
    if (fread(tensor->data, 1, bytes, file) == bytes && fgetc(file) == EOF && !ferror(file)) return NULL;
    free(tensor->data);
    tensor->data = NULL;
    return "its length does not fit its shape";
}

const char *npy_read(const char *path, llmc_tensor *tensor) {
    char *header = NULL;
    const char *problem;
    FILE *file = fopen(path, "rb");
    if (!file) return "it cannot be opened";
    problem = read_header(file, &header);
    if (!problem) problem = parse(header, tensor);
    if (!problem) problem = read_elements(file, tensor);
    free(header);
    fclose(file);
    return problem;
}

const char *npy_read_raw(const char *path, llmc_tensor *tensor) {
    const char *problem;
    FILE *file = fopen(path, "rb");
    if (!file) return "it cannot be opened";
    problem = read_elements(file, tensor);
    fclose(file);
    return problem;
}

/* Version 1: magic, version, u16 length, dict, spaces and a newline up to a multiple of 64 bytes. */
static int write_header(FILE *file, const char *code, const llmc_tensor *tensor) {
    char text[256];
    size_t used, total;
    int i;
    used = (size_t)sprintf(text, "{'descr': '%s', 'fortran_order': False, 'shape': (", code);
    for (i = 0; i < tensor->rank; i++) used += (size_t)sprintf(text + used, "%lld,", (long long)tensor->shape[i]);
    used += (size_t)sprintf(text + used, "), }");
    total = (10 + used + 1 + 63) / 64 * 64 - 10;
    fwrite("\x93NUMPY\x01\x00", 1, 8, file);
    fputc((int)(total & 255), file);
    fputc((int)(total >> 8), file);
    return fprintf(file, "%-*s\n", (int)total - 1, text) < 0;
}

const char *npy_write(const char *path, const llmc_tensor *tensor) {
    size_t bytes = npy_bytes(tensor), i;
    FILE *file;
    int failed;
    for (i = 0; i < N_CODES && (int)codes[i].dtype != tensor->dtype; i++) {
    }
    if (i == N_CODES) return "NumPy has no such element type";
    file = fopen(path, "wb");
    if (!file) return "it cannot be written";
    failed = write_header(file, codes[i].code, tensor);
    failed |= fwrite(tensor->data, 1, bytes, file) != bytes;
    failed |= fclose(file) != 0;
    return failed ? "it cannot be written whole" : NULL;
}
