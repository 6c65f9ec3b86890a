/*
 * failures.h - the n-th allocation fails: for programs linked with --wrap of the functions below.
 */
#ifndef FAILURES_H
#define FAILURES_H

#include <pthread.h>
#include <stddef.h>

static long countdown; /* 0: no failure; also when it has passed */

static int fails(void) {
    return countdown && --countdown == 0;
}

void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
void *__real_realloc(void *, size_t);
int __real_posix_memalign(void **, size_t, size_t);
void *__real_mmap(void *, size_t, int, int, int, long);
int __real_fallocate(int, int, long, long);
int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_realloc(void *p, size_t n);
int __wrap_posix_memalign(void **p, size_t a, size_t n);
void *__wrap_mmap(void *a, size_t n, int p, int f, int d, long o);
int __wrap_fallocate(int file, int mode, long a, long n);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x);

void *__wrap_malloc(size_t n) {
    return fails() ? NULL : __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t m) {
    return fails() ? NULL : __real_calloc(n, m);
}
void *__wrap_realloc(void *p, size_t n) {
    return fails() ? NULL : __real_realloc(p, n);
}
int __wrap_posix_memalign(void **p, size_t a, size_t n) {
    return fails() ? 12 : __real_posix_memalign(p, a, n);
}
void *__wrap_mmap(void *a, size_t n, int p, int f, int d, long o) {
    return fails() ? (void *)-1 : __real_mmap(a, n, p, f, d, o);
}
int __wrap_fallocate(int file, int mode, long a, long n) {
    return fails() ? -1 : __real_fallocate(file, mode, a, n);
}
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) {
    return fails() ? 11 : __real_pthread_create(t, a, f, x);
}

#endif
