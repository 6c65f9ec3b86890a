/*
 * describe.c - load any artifact at run time and print what it takes and gives. C99 and POSIX.
 *
 *   cc -std=c99 -Im.llmc describe.c -ldl -o describe
 *   ./describe other.llmc
 */
#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <stdio.h>

#include "llmc.h"

/* One line a tensor: input input_ids [batch, seq] */
static void print_specs(const char *title, const llmc_tensor_spec *specs, int count) {
    int i, k;
    for (i = 0; i < count; i++) {
        printf("%s %s [", title, specs[i].name);
        for (k = 0; k < specs[i].rank; k++) printf("%s%s", k ? ", " : "", specs[i].dims_text[k]);
        printf("]%s\n", specs[i].has_default ? " optional" : "");
    }
}

static int describe(const char *folder, const llmc_api *api) {
    llmc_model *model;
    llmc_error error;
    const llmc_info *info;
    int i;
    if (api->open(folder, NULL, &model, &error) != LLMC_OK) {
        fprintf(stderr, "error: %s\n", error.message);
        return 1;
    }
    info = api->describe(model);
    printf("model %s, code for %s\n", info->name, info->variant);
    for (i = 0; i < info->n_dims; i++)
        printf("dim %s %lld..%lld\n", info->dims[i].name, (long long)info->dims[i].low, (long long)info->dims[i].high);
    print_specs("input", info->inputs, info->n_inputs);
    print_specs("output", info->outputs, info->n_outputs);
    api->close(model);
    return 0;
}

int main(int argc, char **argv) {
    char path[4096];
    void *library;
    const llmc_api *(*get_api)(void);
    int failed;
    if (argc != 2 || snprintf(path, sizeof path, "%s/module.so", argv[1]) >= (int)sizeof path) return 2;
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "error: %s\n", dlerror());
        return 1;
    }
    *(void **)&get_api = dlsym(library, "llmc_get_api"); /* as POSIX writes it: C has no such conversion */
    if (get_api == NULL || get_api()->version != LLMC_VERSION) {
        fprintf(stderr, "error: %s has another interface than this program\n", path);
        failed = 1;
    } else {
        failed = describe(argv[1], get_api());
    }
    dlclose(library); /* after the last model of this library is closed */
    return failed;
}
