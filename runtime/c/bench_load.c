/*
 * bench_load.c - find an artifact, check its module against a hash, and only then load it.
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "model.h" /* for SHA-256 only */

int bench_complain(const char *problem, const char *at, const char *hint) {
    fprintf(stderr, "%s\n", problem);
    if (at && *at) fprintf(stderr, "  at:    %s\n", at);
    if (hint && *hint) fprintf(stderr, "  hint:  %s\n", hint);
    return -1;
}

int bench_find_folder(const char *argv0, char *folder) {
    ssize_t n = readlink("/proc/self/exe", folder, BENCH_MAX_PATH - 1);
    char *slash;
    if (n > 0)
        folder[n] = 0;
    else if (snprintf(folder, BENCH_MAX_PATH, "%s", argv0 ? argv0 : "") >= BENCH_MAX_PATH)
        folder[0] = 0;
    slash = strrchr(folder, '/');
    if (!slash) return bench_complain("cannot tell where this program lies", NULL, "start it by its full path");
    *slash = 0;
    return 0;
}

static int join(char *path, const char *folder, const char *name) {
    if (snprintf(path, BENCH_MAX_PATH, "%s/%s", folder, name) < BENCH_MAX_PATH) return 0;
    return bench_complain("the path is too long", folder, NULL);
}

/* The text of a file of at most 64 MB, to be freed. */
static char *read_text(const char *path) {
    const size_t most = (size_t)64 << 20;
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t held = 0, used = 0, n;
    if (!file) return NULL;
    do {
        char *more = (char *)realloc(text, held = 2 * held + 4096);
        if (!more || held > most) {
            free(more ? more : text);
            fclose(file);
            return NULL;
        }
        text = more;
        n = fread(text + used, 1, held - used - 1, file);
        used += n;
    } while (n > 0);
    text[used] = 0;
    fclose(file);
    return text;
}

/* No JSON parser: the entry of module.so is an object without objects in it, so its braces delimit it. */
int bench_expected_hash(const char *folder, char hash[65]) {
    char path[BENCH_MAX_PATH], *text, *at, *end;
    int found = 0;
    if (join(path, folder, "manifest.json") != 0) return -1;
    text = read_text(path);
    if (!text) return bench_complain("cannot read manifest.json", path, "give the folder of an artifact");
    at = strstr(text, "\"module.so\"");
    end = at ? strchr(at, '}') : NULL;
    if (end) {
        *end = 0;
        at = strstr(at, "\"sha256\"");
        at = at ? strchr(at + 8, '"') : NULL;
        found = at && strspn(at + 1, "0123456789abcdef") == 64 && sscanf(at + 1, "%64[0-9a-f]", hash) == 1;
    }
    free(text);
    return found ? 0 : bench_complain("the manifest has no sha256 of module.so", path, "compile the model again");
}

static int check_hash(const char *path, const char *expected) {
    unsigned char buffer[16384];
    llmc_sha256 hash;
    char found[65];
    size_t n;
    FILE *file = fopen(path, "rb");
    if (!file) return bench_complain("cannot open module.so", path, "copy the whole artifact");
    llmc_sha256_start(&hash);
    while ((n = fread(buffer, 1, sizeof buffer, file)) > 0) llmc_sha256_add(&hash, buffer, n);
    fclose(file);
    llmc_sha256_hex(&hash, found);
    if (strcmp(found, expected) == 0) return 0;
    return bench_complain("module.so is damaged or of another build", path, "copy the artifact again");
}

static const llmc_api *get_api(const char *path) {
    const llmc_api *(*function)(void) = NULL;
    void *symbol, *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const llmc_api *api;
    char problem[100];
    if (!library) {
        bench_complain(dlerror(), path, "was it compiled for this system?");
        return NULL;
    }
    symbol = dlsym(library, "llmc_get_api");
    memcpy(&function, &symbol, sizeof function); /* ISO C has no cast from object to function pointer */
    api = function ? function() : NULL;
    if (api && api->version == LLMC_VERSION) return api;
    snprintf(problem, sizeof problem, "module.so speaks version %d of llmc.h, this program version %d",
             api ? api->version : 0, LLMC_VERSION);
    bench_complain(problem, path, "compile the model again");
    return NULL;
}

int bench_load(bench_artifact *artifact, const char *hash, const llmc_options *options) {
    char path[BENCH_MAX_PATH];
    llmc_error error;
    if (join(path, artifact->folder, "module.so") != 0 || check_hash(path, hash) != 0) return -1;
    artifact->api = get_api(path);
    if (!artifact->api) return -1;
    if (artifact->api->open(artifact->folder, options, &artifact->model, &error) != LLMC_OK)
        return bench_complain(error.message, artifact->folder, error.hint);
    artifact->info = artifact->api->describe(artifact->model);
    return 0;
}
