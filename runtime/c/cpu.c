/*
 * cpu.c - the processor: its features, its cores, its floating-point mode, its clock.
 */
#define _GNU_SOURCE

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

/* The register state that the system saves: bits 1-2 SSE and AVX, 5-7 the AVX-512 registers. */
static uint64_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Whether this process may use tile registers: Linux gives their 8 KB of state to those that ask, once for all threads. */
static int may_use_tiles(uint64_t saved) {
#if defined(__linux__) && defined(__x86_64__)
    const long request_permission = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM; the bit of XCR0 */
    return (saved & 0x60000) == 0x60000 && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    (void)saved;
    return 0;
#endif
}

unsigned llmc_cpu_features(void) {
    const unsigned tiles = 1u << 22 | 1u << 24 | 1u << 25;                      /* leaf 7, edx: BF16, tiles, INT8 */
    const unsigned fma = 1u << 12, osxsave = 1u << 27, f16c = 1u << 29;                    /* leaf 1, ecx */
    const unsigned avx2 = 1u << 5;                                                        /* leaf 7, ebx */
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, vnni = 1u << 11;     /* F DQ BW VL; ecx */
    const unsigned avx_vnni = 1u << 4;                                                    /* leaf 7.1, eax */
    unsigned a, b, c, d, more, unused, features = 0;
    uint64_t saved;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (fma | osxsave | f16c)) != (fma | osxsave | f16c)) return 0;
    saved = saved_state();
    if ((saved & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & avx2)) return 0;
    features = LLMC_CPU_AVX2;
    if (__get_cpuid_count(7, 1, &more, &unused, &unused, &unused) && (more & avx_vnni)) features |= LLMC_CPU_AVXVNNI;
    if ((saved & 0xe0) == 0xe0 && (b & avx512) == avx512) {
        features |= LLMC_CPU_AVX512;
        if (c & vnni) features |= LLMC_CPU_AVX512VNNI;
        if ((c & vnni) && (d & tiles) == tiles && may_use_tiles(saved)) features |= LLMC_CPU_AMX;
    }
    return features;
}

int llmc_cpu_has_crc32c(void) {
    const unsigned sse42 = 1u << 20; /* leaf 1, ecx */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & sse42);
}

/* MXCSR: all exceptions masked, round to nearest, denormals kept. */
uint64_t llmc_float_mode(void) {
    uint64_t mode = __builtin_ia32_stmxcsr();
    llmc_set_float_mode(0x1f80);
    return mode;
}

void llmc_set_float_mode(uint64_t mode) {
    __builtin_ia32_ldmxcsr((unsigned)mode);
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

/* Linux's bits of AT_HWCAP and AT_HWCAP2, written out: old headers lack the newer ones. */
unsigned llmc_cpu_features(void) {
    const unsigned long asimd = 1ul << 1, asimdhp = 1ul << 10, asimddp = 1ul << 20, i8mm = 1ul << 13;
    unsigned long have = getauxval(AT_HWCAP), more = getauxval(26 /* AT_HWCAP2 */);
    if (!(have & asimd)) return 0;
    return LLMC_CPU_NEON | (have & asimddp ? LLMC_CPU_DOTPROD : 0) | (have & asimdhp ? LLMC_CPU_FP16 : 0) |
           (more & i8mm ? LLMC_CPU_I8MM : 0);
}

int llmc_cpu_has_crc32c(void) {
    return getauxval(AT_HWCAP) >> 7 & 1;
}

/* FPCR: the same as MXCSR above. */
uint64_t llmc_float_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    llmc_set_float_mode(0);
    return mode;
}

void llmc_set_float_mode(uint64_t mode) {
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}

#else

unsigned llmc_cpu_features(void) {
    return 0;
}

int llmc_cpu_has_crc32c(void) {
    return 0;
}

uint64_t llmc_float_mode(void) {
    return 0;
}

void llmc_set_float_mode(uint64_t mode) {
    (void)mode;
}
#endif

void llmc_cpu_feature_names(unsigned features, char *text, size_t size) {
    static const char *const names[32] = {[0] = "AVX2 with FMA and F16C", [1] = "AVX-512 F/BW/DQ/VL",
                                          [2] = "AVX-512 VNNI", [3] = "AMX with INT8 and BF16",
                                          [4] = "AVX-VNNI", [8] = "NEON",
                                          [9] = "dot product", [10] = "half-precision arithmetic", [11] = "I8MM"};
    size_t used = 0;
    unsigned i;
    if (size) text[0] = 0;
    for (i = 0; i < 32; i++) {
        int n;
        if (!(features >> i & 1) || used >= size) continue;
        n = names[i] ? snprintf(text + used, size - used, "%s%s", used ? ", " : "", names[i])
                     : snprintf(text + used, size - used, "%sfeature %u", used ? ", " : "", i);
        if (n > 0) used += (size_t)n;
    }
}

/* The first number in a small system file, or `otherwise`. */
static int first_number(const char *path, int otherwise) {
    int value = otherwise;
    FILE *file = fopen(path, "r");
    if (!file) return otherwise;
    if (fscanf(file, "%d", &value) != 1) value = otherwise;
    fclose(file);
    return value;
}

/* cgroup v2 "quota period" in microseconds; the cores it allows, rounded up. */
static int cores_of_quota(int cores) {
    long quota = 0, period = 0;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file) return cores;
    if (fscanf(file, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0) {
        long allowed = (quota + period - 1) / period;
        if (allowed < cores) cores = (int)allowed;
    }
    fclose(file);
    return cores;
}

/* Of the processors in `mask` the first of each physical core, in order; how many. `list` may be NULL. */
static int first_siblings(const cpu_set_t *mask, int *list, int capacity) {
    char path[96];
    int cpu, count = 0;
    for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        int sibling;
        if (!CPU_ISSET((size_t)cpu, mask)) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        sibling = first_number(path, cpu);
        if (sibling >= 0 && sibling < cpu && CPU_ISSET((size_t)sibling, mask)) continue; /* its core is counted */
        if (list && count < capacity) list[count] = cpu;
        count++;
    }
    return count;
}

int llmc_usable_cores(void) {
    cpu_set_t mask;
    int cores;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return 1; /* more than CPU_SETSIZE processors */
    cores = cores_of_quota(first_siblings(&mask, NULL, 0));
    return cores < 1 ? 1 : cores;
}

int llmc_pin_thread(int index) {
    cpu_set_t mask, one;
    int list[256], count;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return -1;
    count = first_siblings(&mask, list, 256);
    if (count > 256) count = 256;
    if (count < 1) return -1;
    CPU_ZERO(&one);
    CPU_SET((size_t)list[index % count], &one);
    return sched_setaffinity(0, sizeof one, &one);
}

double llmc_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

uint64_t llmc_peak_memory(void) {
    char line[256];
    unsigned long long kilobytes = 0;
    FILE *file = fopen("/proc/self/status", "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "VmHWM: %llu", &kilobytes) == 1) break;
    fclose(file);
    return (uint64_t)kilobytes * 1024;
}
