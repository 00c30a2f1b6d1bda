/* For benches: answers the CPUID instruction without AVX-512, where it was replaced by UD2 (packaged_blake3.py says why).
 *
 * CPUID and UD2 are two bytes each, so nothing else of the program moves. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

/* Leaf 7, subleaf 0: every AVX-512 feature. The Intel manual names the bits; <cpuid.h> has the same names. */
#define EBX7 (bit_AVX512F | bit_AVX512DQ | bit_AVX512IFMA | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL)
#define ECX7 (bit_AVX512VBMI | bit_AVX512VBMI2 | bit_AVX512VNNI | bit_AVX512BITALG | bit_AVX512VPOPCNTDQ)

static struct sigaction before;
static unsigned answered;

static void answer(int signal, siginfo_t *info __attribute__((unused)), void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    static const uint8_t ud2[2] = {0x0f, 0x0b};
    if (memcmp((const void *)registers[REG_RIP], ud2, sizeof ud2)) {
        sigaction(signal, &before, NULL); /* a real one: run again, and meet who handled it before */
        return;
    }
    uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) {
        b &= ~(uint32_t)EBX7;
        c &= ~(uint32_t)ECX7;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += sizeof ud2;
    answered++;
}

/* 0, or -1. */
int masked_cpuid_start(void)
{
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    return sigaction(SIGILL, &action, &before);
}

/* How many were answered. */
unsigned masked_cpuid_stop(void)
{
    sigaction(SIGILL, &before, NULL);
    return answered;
}
