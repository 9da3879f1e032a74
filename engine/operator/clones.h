// Functions marked CLONES are compiled for three generations of x86 processors where glibc's loader
// can take the best that runs here. Vectors of 512 bits, which GCC avoids for "skylake-avx512",
// save a third of the time.

#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && defined(__GNUC__)
#define CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define CLONES
#endif
