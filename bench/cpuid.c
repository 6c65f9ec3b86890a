/*
 * cpuid.c - hide AVX-512, AMX and AVX-VNNI from libraries that ask the processor itself and have no switch.
 *
 * Linux can make the CPUID instruction fault where the processor supports it (arch_prctl(2), ARCH_SET_CPUID). The
 * handler executes it, clears the bits and goes on after it. The setting is inherited by threads, not by programs
 * that are started.
 */
#define _GNU_SOURCE

#include <cpuid.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

static int allow_cpuid(int allowed) {
    return (int)syscall(SYS_arch_prctl, 0x1012 /* ARCH_SET_CPUID */, allowed);
}

/* Intel's manual, volume 2A, CPUID: leaf 7. */
static void hide(unsigned leaf, unsigned subleaf, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
    if (leaf != 7) return;
    if (subleaf == 0) {
        *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* F DQ IFMA PF ER CD BW VL */
        *c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                    /* VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
        *d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* ..., AMX-BF16 FP16 AMX-TILE AMX-INT8 */
    }
    if (subleaf == 1) {
        *a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX-VNNI AVX512-BF16 AMX-FP16 AVX-IFMA */
        *d &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19)); /* AVX-VNNI-INT8 AVX-NE-CONVERT AVX-VNNI-INT16 AVX10 */
    }
}

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)registers[REG_RIP];
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], a, b, c, d;
    if (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR || at[0] != 0x0f || at[1] != 0xa2) {
        signal(number, SIG_DFL); /* a fault of another kind: let it happen again */
        return;
    }
    allow_cpuid(1);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    allow_cpuid(0);
    hide(leaf, subleaf, &a, &b, &c, &d);
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

/* From now on for this thread and those it starts; 0 if it could be done. */
int hide_wide_vectors(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (sigaction(SIGSEGV, &action, NULL)) return -1;
    return allow_cpuid(0);
}
