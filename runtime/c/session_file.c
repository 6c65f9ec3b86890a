/*
 * session_file.c - a session in a file: header, a line for each state, the tokens, the states one after the other.
 *
 *   0   LLMCSES3                        88   tokens held, has_others, bytes of the file, adapter (i64 each)
 *   8   build id, 64 hex digits         120  sizes of LLMC_MAX_DIMS dims (i64; -1: not known)
 *   72  number of dims, of states       248  states: begun, rows gone, bytes, CRC-32C (i64 each), then the same for the tokens
 *
 * The CRC-32C of all of this follows it in 8 bytes, then come tokens (i64) and states. Numbers are little-endian.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"

#define MAGIC "LLMCSES3"
#define ID_BYTES 64

typedef struct state_line {
    int64_t begun, gone, bytes, crc;
} state_line;

typedef struct header {
    char magic[8], build_id[ID_BYTES];
    int64_t n_dims, n_states, n_tokens, has_others, file_bytes, adapter;
    int64_t sizes[LLMC_MAX_DIMS];
} header;

static int64_t crc32c(const void *data, size_t bytes) {
    return (int64_t)(llmc_cpu_has_crc32c() ? llmc_crc32c_by_instruction : llmc_crc32c_by_table)(data, bytes);
}

static size_t head_bytes(const llmc_program *program) { /* with their CRC */
    return sizeof(header) + ((size_t)program->n_states + 1) * sizeof(state_line) + sizeof(int64_t);
}

static llmc_status file_failed(const char *doing, const char *path, llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_FILE, NULL, "cannot %s %.300s: %s", doing, path, strerror(errno));
}

/* ---- write ---- */

/* All of the file in one piece of memory. */
static llmc_status pack(llmc_session *session, unsigned char *file, size_t bytes, llmc_error *error) {
    const llmc_program *program = session->model->program;
    header *head = (header *)(void *)file;
    state_line *lines = (state_line *)(void *)(head + 1);
    unsigned char *at = file + head_bytes(program);
    size_t part = (size_t)session->n_tokens * sizeof(int64_t);
    int64_t crc;
    int i;
    memcpy(head->magic, MAGIC, sizeof head->magic);
    memcpy(head->build_id, program->build_id, ID_BYTES);
    head->n_dims = program->n_dims;
    head->n_states = program->n_states;
    head->n_tokens = session->n_tokens;
    head->has_others = session->has_others;
    head->file_bytes = (int64_t)bytes;
    head->adapter = session->adapter;
    memcpy(head->sizes, session->sizes, sizeof head->sizes);
    if (part) memcpy(at, session->tokens, part);
    lines[program->n_states].bytes = (int64_t)part;
    lines[program->n_states].crc = crc32c(at, part);
    at += part;
    for (i = 0; i < program->n_states; i++) {
        llmc_status status;
        if (!session->begun[i]) continue;
        part = llmc_held_bytes(program, session->sizes, i, session->gone[i]);
        status = session->model->device->fetch(session, at, session->values[i].at, part, error);
        if (status != LLMC_OK) return status;
        lines[i].begun = 1;
        lines[i].gone = session->gone[i];
        lines[i].bytes = (int64_t)part;
        lines[i].crc = crc32c(at, part);
        at += part;
    }
    crc = crc32c(file, head_bytes(program) - sizeof crc);
    memcpy(file + head_bytes(program) - sizeof crc, &crc, sizeof crc);
    return LLMC_OK;
}

static int write_all(int descriptor, const unsigned char *data, size_t bytes) {
    while (bytes) {
        ssize_t written = write(descriptor, data, bytes);
        if (written < 0 && errno != EINTR) return 0;
        if (written < 0) continue;
        data += written;
        bytes -= (size_t)written;
    }
    return fsync(descriptor) == 0;
}

/* A device, a pipe or a folder: a rename would put a file in its place, and opening may wait without end. */
static int is_no_file(const char *path) {
    struct stat found;
    return stat(path, &found) == 0 && !S_ISREG(found.st_mode);
}

static llmc_status replace(const char *path, const unsigned char *data, size_t bytes, llmc_error *error) {
    size_t room = strlen(path) + sizeof ".XXXXXX";
    char *part;
    llmc_status status = LLMC_OK;
    int descriptor, written;
    if (is_no_file(path))
        return llmc_fail(error, LLMC_ERROR_FILE, NULL, "cannot write %.300s: it is not a file", path);
    part = (char *)malloc(room);
    if (!part) return llmc_fail_memory(error, room);
    snprintf(part, room, "%s.XXXXXX", path);
    descriptor = mkstemp(part);
    if (descriptor < 0) {
        status = file_failed("write", path, error);
        free(part);
        return status;
    }
    written = write_all(descriptor, data, bytes);
    if (!written) status = file_failed("write", path, error);
    if (close(descriptor) != 0 && written) status = file_failed("write", path, error);
    if (status == LLMC_OK && rename(part, path) != 0) status = file_failed("write", path, error);
    if (status != LLMC_OK) (void)unlink(part);
    free(part);
    return status;
}

static llmc_status save(llmc_session *session, const char *path, llmc_error *error) {
    const llmc_program *program = session->model->program;
    size_t bytes = head_bytes(program) + (size_t)session->n_tokens * sizeof(int64_t);
    unsigned char *file;
    llmc_status status;
    int i;
    for (i = 0; i < program->n_states; i++)
        if (session->begun[i]) bytes += llmc_held_bytes(program, session->sizes, i, session->gone[i]);
    file = (unsigned char *)calloc(1, bytes);
    if (!file) return llmc_fail_memory(error, bytes);
    status = pack(session, file, bytes, error);
    if (status == LLMC_OK) status = replace(path, file, bytes, error);
    free(file);
    return status;
}

llmc_status llmc_session_save(llmc_session *session, const char *path, llmc_error *error) {
    llmc_status status;
    if (!session || !path) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session and path must not be NULL");
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    status = save(session, path, error);
    llmc_unclaim(session);
    return status;
}

/* ---- read ---- */

static llmc_status damaged(const char *path, const char *how, llmc_error *error) {
    return llmc_fail(error, LLMC_ERROR_FILE, "save the session again", "%.300s is no whole session: %s", path, how);
}

static llmc_status read_file(const char *path, unsigned char **file, size_t *bytes, llmc_error *error) {
    FILE *stream;
    llmc_status status = LLMC_OK;
    struct stat found;
    if (is_no_file(path)) return damaged(path, "it is not a file", error);
    stream = fopen(path, "rb");
    if (!stream) return file_failed("read", path, error);
    if (fstat(fileno(stream), &found) != 0)
        status = file_failed("read", path, error);
    else if (!S_ISREG(found.st_mode))
        status = damaged(path, "it is not a file", error);
    else {
        *bytes = (size_t)found.st_size;
        *file = (unsigned char *)malloc(*bytes + 1);
        if (!*file)
            status = llmc_fail_memory(error, *bytes);
        else if (fread(*file, 1, *bytes, stream) != *bytes)
            status = damaged(path, "it ends too early", error);
    }
    fclose(stream);
    return status;
}

static llmc_status check_head(const llmc_program *program, const unsigned char *file, size_t bytes, const char *path,
                              llmc_error *error) {
    const header *head = (const header *)(const void *)file;
    size_t all = head_bytes(program);
    int64_t crc;
    if (bytes < sizeof *head || memcmp(head->magic, MAGIC, sizeof head->magic) != 0)
        return damaged(path, "it does not begin as one", error);
    if (memcmp(head->build_id, program->build_id, ID_BYTES) != 0)
        return llmc_fail(error, LLMC_ERROR_FILE, "a session is of one build of a model: run its tokens again",
                         "%.300s is a session of build %.12s, this model is %.12s", path, head->build_id, program->build_id);
    if (bytes < all) return damaged(path, "it ends too early", error);
    memcpy(&crc, file + all - sizeof crc, sizeof crc);
    if (crc != crc32c(file, all - sizeof crc)) return damaged(path, "its header differs from what was written", error);
    if (head->file_bytes != (int64_t)bytes) return damaged(path, "it has another length than was written", error);
    return LLMC_OK;
}

/* Bytes that a state of the file has; 0 also where its rows make no sense. */
static size_t bytes_of(const llmc_program *program, const header *head, const state_line *lines, int i) {
    int d = llmc_length_of_state(program, i);
    if (!lines[i].begun) return 0;
    if (lines[i].gone < 0 || lines[i].gone > (d < 0 ? 0 : llmc_may_leave(program, i, head->sizes[d]))) return 0;
    return llmc_held_bytes(program, head->sizes, i, lines[i].gone);
}

/* The checksums hold, so whoever wrote the file meant it; the lengths are looked at all the same. */
static llmc_status check_parts(const llmc_program *program, const unsigned char *file, const char *path,
                               llmc_error *error) {
    const header *head = (const header *)(const void *)file;
    const state_line *lines = (const state_line *)(const void *)(head + 1);
    size_t used = head_bytes(program), all = (size_t)head->file_bytes;
    int i, k, d;
    if (head->adapter < 0 || head->adapter > program->n_adapters) return damaged(path, "it has no such adapter", error);
    for (d = 0; d < program->n_dims; d++)
        if (head->sizes[d] < -1 || head->sizes[d] > program->dims[d].high) return damaged(path, "a size is out of bounds", error);
    for (k = -1; k < program->n_states; k++) { /* tokens, then states */
        size_t part, want;
        i = k < 0 ? program->n_states : k;
        part = (size_t)lines[i].bytes;
        want = k < 0 ? (size_t)head->n_tokens * sizeof(int64_t) : bytes_of(program, head, lines, i);
        if (part != want || part > all - used) return damaged(path, "its parts do not fit the model", error);
        if (lines[i].crc != (part || k < 0 || lines[i].begun ? crc32c(file + used, part) : 0))
            return damaged(path, "its contents differ from what was written", error);
        used += part;
    }
    return used == all ? LLMC_OK : damaged(path, "it has more than its parts", error);
}

static llmc_status reserve_all(llmc_session *session, const unsigned char *file, llmc_error *error) {
    const llmc_program *program = session->model->program;
    const header *head = (const header *)(const void *)file;
    const state_line *lines = (const state_line *)(const void *)(head + 1);
    llmc_status status = llmc_tokens_reserve(session, head->n_tokens, error);
    int i;
    session->generous = 0;
    for (i = 0; i < program->n_states && status == LLMC_OK; i++) {
        size_t keep = session->begun[i] ? llmc_held_bytes(program, session->sizes, i, session->gone[i]) : 0;
        if (lines[i].bytes)
            status = llmc_reserve(session, session->model->device, &session->values[i], (size_t)lines[i].bytes, keep, error);
        if (lines[i].bytes && status == LLMC_OK)
            status = llmc_unshare(session, session->model->device, &session->values[i], 0, (size_t)lines[i].bytes, keep, error);
    }
    return status;
}

static llmc_status unpack(llmc_session *session, const unsigned char *file, llmc_error *error) {
    const llmc_program *program = session->model->program;
    const header *head = (const header *)(const void *)file;
    const state_line *lines = (const state_line *)(const void *)(head + 1);
    const unsigned char *at = file + head_bytes(program) + (size_t)head->n_tokens * sizeof(int64_t);
    llmc_status status = LLMC_OK;
    int i;
    for (i = 0; i < program->n_states && status == LLMC_OK; i++) {
        status = session->model->device->store(session, session->values[i].at, at, (size_t)lines[i].bytes, error);
        session->begun[i] = (unsigned char)(lines[i].begun != 0);
        session->gone[i] = lines[i].gone;
        at += lines[i].bytes;
    }
    if (status != LLMC_OK) { /* a device that cannot copy: what is where is not known any more */
        llmc_forget(session);
        return status;
    }
    if (head->n_tokens)
        memcpy(session->tokens, file + head_bytes(program), (size_t)head->n_tokens * sizeof(int64_t));
    session->n_tokens = head->n_tokens;
    session->has_others = head->has_others != 0;
    session->adapter = head->adapter;
    memcpy(session->sizes, head->sizes, sizeof session->sizes);
    return LLMC_OK;
}

static llmc_status load(llmc_session *session, const char *path, llmc_error *error) {
    const llmc_program *program = session->model->program;
    unsigned char *file = NULL;
    size_t bytes = 0;
    llmc_status status = read_file(path, &file, &bytes, error);
    if (status == LLMC_OK) status = check_head(program, file, bytes, path, error);
    if (status == LLMC_OK) status = check_parts(program, file, path, error);
    if (status == LLMC_OK) status = reserve_all(session, file, error);
    if (status == LLMC_OK) status = unpack(session, file, error);
    free(file);
    return status;
}

llmc_status llmc_session_load(llmc_session *session, const char *path, llmc_error *error) {
    llmc_status status;
    if (!session || !path) return llmc_fail(error, LLMC_ERROR_ARGUMENT, NULL, "session and path must not be NULL");
    status = llmc_claim(session, error);
    if (status != LLMC_OK) return status;
    status = load(session, path, error);
    llmc_unclaim(session);
    return status;
}
