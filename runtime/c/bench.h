/*
 * bench.h - between bench_main.c, bench_load.c and bench_print.c, which make the `bench` executable. Internal.
 */
#ifndef LLMC_BENCH_H
#define LLMC_BENCH_H

#include <stdio.h>

#include "llmc.h"

#define BENCH_MAX_PATH 4096

/* An artifact that is open. */
typedef struct bench_artifact {
    char folder[BENCH_MAX_PATH];
    const llmc_api *api;
    llmc_model *model;
    const llmc_info *info;
    int function;                 /* its number */
    int64_t sizes[LLMC_MAX_DIMS]; /* asked for; 0: default */
} bench_artifact;

/* bench_load.c. Each returns 0, or -1 after a sentence on stderr. */
int bench_find_folder(const char *argv0, char *folder); /* of this executable */
int bench_expected_hash(const char *folder, char hash[65]); /* of module.so, from the manifest */
extern const char bench_module_hash[65];                    /* of the module.so it was built with; llmc writes it */
int bench_load(bench_artifact *artifact, const char *hash, const llmc_options *options);
int bench_complain(const char *problem, const char *at, const char *hint); /* -1 */

/* bench_print.c */
void bench_print_text(const bench_artifact *artifact, const llmc_benchmark_report *report,
                      const llmc_step_report *steps);
void bench_print_json(const bench_artifact *artifact, const llmc_benchmark_report *report,
                      const llmc_step_report *steps);
void bench_print_pair_text(const bench_artifact pair[2], const llmc_summary summary[2], const llmc_ratio *ratio);
void bench_print_pair_json(const bench_artifact pair[2], const llmc_summary summary[2], const llmc_ratio *ratio);

#endif
