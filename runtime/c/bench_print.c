/*
 * bench_print.c - a report as text for people and as JSON for programs. JSON has seconds, bytes and FLOP, text has
 * whatever reads well.
 */
#include <string.h>

#include "bench.h"

/* "1.23 ms" in one of four turning buffers. */
static const char *duration(double seconds) {
    static char texts[4][32];
    static unsigned turn;
    char *text = texts[turn++ % 4];
    const char *unit = seconds < 1e-3 ? "us" : seconds < 1 ? "ms" : "s";
    double value = seconds * (seconds < 1e-3 ? 1e6 : seconds < 1 ? 1e3 : 1);
    snprintf(text, sizeof texts[0], "%.*f %s", value < 10 ? 2 : value < 100 ? 1 : 0, value, unit);
    return text;
}

static double ratio_of(double a, double b) {
    return b > 0 ? a / b : 0;
}

static void print_title(const bench_artifact *artifact, const int64_t *sizes) {
    const llmc_info *info = artifact->info;
    const char *function = info->functions[artifact->function].name;
    int i, named = strcmp(function, "forward") != 0;
    printf("%s%s%s:", info->name, named ? " " : "", named ? function : "");
    for (i = 0; sizes && i < info->n_dims; i++) printf(" %s %lld,", info->dims[i].name, (long long)sizes[i]);
    printf(" %d thread%s, %s\n", info->threads, info->threads == 1 ? "" : "s", info->variant);
}

static void print_latency(const llmc_summary *s) {
    printf("  latency  p50 %s   p90 %s   ", duration(s->p50), duration(s->p90));
    printf("p95 %s   p99 %s\n", duration(s->p95), duration(s->p99));
    printf("  mean     %s, 95 %% interval %s to ", duration(s->mean), duration(s->mean_low));
    printf("%s   min %s   max %s\n", duration(s->mean_high), duration(s->min), duration(s->max));
}

static void print_step(const llmc_benchmark_report *report, const llmc_step_report *step, double total) {
    double flops = ratio_of(step->flops, step->seconds), bytes = ratio_of(step->bytes, step->seconds);
    printf("  %10s %6.1f %%  %8.1f GF/s %5.0f %%  %7.1f GB/s %5.0f %%  %s  %s\n", duration(step->seconds),
           100 * ratio_of(step->seconds, total), 1e-9 * flops, 100 * ratio_of(flops, report->peak_flops_per_second),
           1e-9 * bytes, 100 * ratio_of(bytes, report->peak_bytes_per_second), step->kernel, step->source);
}

/* Why shares are above 100 %, if some are; the words are those of reports.py. */
static void print_above(int n_steps, const llmc_benchmark_report *report, const llmc_step_report *steps) {
    int i, arithmetic = 0, traffic = 0;
    for (i = 0; i < n_steps; i++) {
        double seconds = steps[i].seconds;
        arithmetic |= ratio_of(ratio_of(steps[i].flops, seconds), report->peak_flops_per_second) > 1;
        traffic |= ratio_of(ratio_of(steps[i].bytes, seconds), report->peak_bytes_per_second) > 1;
    }
    if (arithmetic)
        printf("  above 100 %% of arithmetic: integer products pass fma, or the machine was busier during the peak\n");
    if (traffic) printf("  above 100 %% of traffic: what lies in the caches is read faster than memory\n");
}

static void print_profile(int n_steps, const llmc_benchmark_report *report, const llmc_step_report *steps) {
    double total = 0;
    int i;
    for (i = 0; i < n_steps; i++) total += steps[i].seconds;
    printf("  peak     %.1f GFLOP/s by fma, %.1f GB/s from memory (0: not known); shares below are of these\n",
           1e-9 * report->peak_flops_per_second, 1e-9 * report->peak_bytes_per_second);
    print_above(n_steps, report, steps);
    printf("\n  %10s %8s  %13s %7s  %12s %7s  kernel, source\n", "time", "share", "arithmetic", "of peak", "traffic",
           "of peak");
    for (i = 0; i < n_steps; i++) print_step(report, &steps[i], total);
}

void bench_print_text(const bench_artifact *artifact, const llmc_benchmark_report *report,
                      const llmc_step_report *steps) {
    const llmc_summary *s = &report->latency;
    print_title(artifact, report->sizes);
    print_latency(s);
    printf("  speed    %.4g runs/s, %.4g GFLOP/s\n", report->runs_per_second, 1e-9 * ratio_of(report->flops, s->p50));
    printf("  samples  %lld after %lld warm-up runs\n", (long long)s->n, (long long)report->warmup_runs);
    printf("  load     %s   peak memory %.1f MB\n", duration(report->load_seconds),
           1e-6 * (double)report->peak_memory_bytes);
    if (steps) print_profile(artifact->info->functions[artifact->function].n_steps, report, steps);
}

void bench_print_pair_text(const bench_artifact pair[2], const llmc_summary summary[2], const llmc_ratio *ratio) {
    int i;
    for (i = 0; i < 2; i++) {
        printf("%s ", i ? "B" : "A");
        print_title(&pair[i], NULL);
        print_latency(&summary[i]);
    }
    printf("A / B      %.4f, 95 %% interval %.4f to %.4f, of the medians of %lld interleaved pairs\n", ratio->ratio,
           ratio->low, ratio->high, (long long)ratio->n);
}

static void json_string(const char *key, const char *text) {
    printf("\"%s\": \"", key);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 32)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    printf("\", ");
}

static void json_artifact(const bench_artifact *artifact) {
    const llmc_info *info = artifact->info;
    json_string("artifact", artifact->folder);
    json_string("name", info->name);
    json_string("build_id", info->build_id);
    json_string("function", info->functions[artifact->function].name);
    json_string("variant", info->variant);
    printf("\"threads\": %d, ", info->threads);
}

static void json_summary(const llmc_summary *s) {
    printf("\"latency\": {\"n\": %lld, \"mean\": %.9g, \"mean_low\": %.9g, \"mean_high\": %.9g, \"p50\": %.9g, "
           "\"p90\": %.9g, \"p95\": %.9g, \"p99\": %.9g, \"min\": %.9g, \"max\": %.9g}",
           (long long)s->n, s->mean, s->mean_low, s->mean_high, s->p50, s->p90, s->p95, s->p99, s->min, s->max);
}

static void json_steps(int n_steps, const llmc_step_report *steps) {
    int i;
    printf(", \"steps\": [");
    for (i = 0; i < n_steps; i++) {
        printf("%s{", i ? ", " : "");
        json_string("kernel", steps[i].kernel);
        json_string("source", steps[i].source);
        printf("\"seconds\": %.9g, \"flops\": %.17g, \"bytes\": %.17g}", steps[i].seconds, steps[i].flops,
               steps[i].bytes);
    }
    printf("]");
}

void bench_print_json(const bench_artifact *artifact, const llmc_benchmark_report *report,
                      const llmc_step_report *steps) {
    const llmc_info *info = artifact->info;
    int i;
    printf("{");
    json_artifact(artifact);
    printf("\"sizes\": {");
    for (i = 0; i < info->n_dims; i++)
        printf("%s\"%s\": %lld", i ? ", " : "", info->dims[i].name, (long long)report->sizes[i]);
    printf("}, \"warmup_runs\": %lld, ", (long long)report->warmup_runs);
    json_summary(&report->latency);
    printf(", \"runs_per_second\": %.9g, \"load_seconds\": %.9g, \"peak_memory_bytes\": %llu, \"flops\": %.17g, "
           "\"bytes\": %.17g, \"peak_flops_per_second\": %.9g, \"peak_bytes_per_second\": %.9g",
           report->runs_per_second, report->load_seconds, (unsigned long long)report->peak_memory_bytes, report->flops,
           report->bytes, report->peak_flops_per_second, report->peak_bytes_per_second);
    if (steps) json_steps(info->functions[artifact->function].n_steps, steps);
    printf("}\n");
}

void bench_print_pair_json(const bench_artifact pair[2], const llmc_summary summary[2], const llmc_ratio *ratio) {
    int i;
    printf("{");
    for (i = 0; i < 2; i++) {
        printf("\"%s\": {", i ? "b" : "a");
        json_artifact(&pair[i]);
        json_summary(&summary[i]);
        printf("}, ");
    }
    printf("\"ratio\": {\"n\": %lld, \"ratio\": %.9g, \"low\": %.9g, \"high\": %.9g}}\n", (long long)ratio->n,
           ratio->ratio, ratio->low, ratio->high);
}
