/*
 * error.c - status codes and their sentences.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model.h"

const char *llmc_status_text(llmc_status status) {
    switch (status) {
    case LLMC_OK: return "success";
    case LLMC_ERROR_MEMORY: return "out of memory";
    case LLMC_ERROR_FILE: return "unreadable file";
    case LLMC_ERROR_WEIGHTS: return "wrong weights file";
    case LLMC_ERROR_MODULE: return "unusable module";
    case LLMC_ERROR_CPU: return "unsupported processor";
    case LLMC_ERROR_ARGUMENT: return "invalid argument";
    case LLMC_ERROR_MISSING: return "missing input";
    case LLMC_ERROR_DTYPE: return "wrong element type";
    case LLMC_ERROR_SHAPE: return "wrong shape";
    case LLMC_ERROR_RANGE: return "value out of range";
    case LLMC_ERROR_FORK: return "model belongs to the parent process";
    case LLMC_ERROR_DEVICE: return "unusable GPU";
    case LLMC_ERROR_STATE: return "wrong state of the session";
    case LLMC_ERROR_BUSY: return "session in use";
    case LLMC_ERROR_CANCELLED: return "cancelled";
    case LLMC_ERROR_DEADLINE: return "deadline passed";
    case LLMC_ERROR_CALLBACK: return "a callback gave up";
    }
    return "unknown status";
}

llmc_status llmc_fail(llmc_error *error, llmc_status status, const char *hint, const char *format, ...) {
    va_list values;
    if (!error) return status;
    error->status = status;
    va_start(values, format);
    vsnprintf(error->message, sizeof error->message, format, values);
    va_end(values);
    snprintf(error->hint, sizeof error->hint, "%s", hint ? hint : "");
    return status;
}

llmc_status llmc_fail_memory(llmc_error *error, size_t bytes) {
    return llmc_fail(error, LLMC_ERROR_MEMORY, "use smaller inputs or free memory", "cannot allocate %zu bytes",
                     bytes);
}

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {{"?", 0},  {"f32", 4}, {"f16", 2}, {"bf16", 2}, {"i8", 1},
              {"u8", 1}, {"i32", 4}, {"i64", 8}, {"bool", 1}, {"f64", 8}};

static int known(int dtype) {
    return dtype >= LLMC_F32 && dtype <= LLMC_F64;
}

const char *llmc_dtype_name(int dtype) {
    return dtypes[known(dtype) ? dtype : 0].name;
}

size_t llmc_dtype_size(int dtype) {
    return dtypes[known(dtype) ? dtype : 0].size;
}
