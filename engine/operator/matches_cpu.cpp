// The search for the best match of each query, as `engine.detection.context` describes it.
//
// It is a matrix product of queries and cells, of which only the largest element of each query is
// kept. A chunk of cells stays in the first cache while all queries pass. The sums of a group of
// queries with a block of cells stay in registers, and are looked at one by one only where one is
// better than its query's best, near or not. A sum adds its products in the order of the
// descriptor. Cells come in reading order, and a later one must be better: so of equal matches the
// first wins.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace {

constexpr int P = 25;       // cells of a descriptor
constexpr int CHUNK = 192;  // cells whose descriptors, 19 KB, stay in the first cache
constexpr int GROUP = 6;    // queries

struct Grid {
    int32_t columns, near;  // see promptiml_best_matches
    int32_t first;          // number of the first cell of the chunk
};

struct Query {
    float descriptor[P];
    int32_t row, column;
    float value = -2;   // of the best match so far; any correlation is -1 to 1
    int32_t place = 0;  // number of its cell

    // Take a cell of the chunk as the best match if it is better and not near.
    inline __attribute__((always_inline)) void offer(float found, int32_t cell, const Grid& grid) {
        const int32_t number = grid.first + cell;
        const bool near = std::abs(number / grid.columns - row) < grid.near &&
                          std::abs(number % grid.columns - column) < grid.near;
        if (found > value && !near) {
            value = found;
            place = number;
        }
    }
};

// GREATER(vector, number) has a bit for each element that is greater than the number.
#if defined(__x86_64__) && defined(__GNUC__)
#define NAME compare_512
#define TARGET __attribute__((target("avx512f")))
#define BYTES 64
#define GREATER(a, b) _mm512_cmp_ps_mask(a, _mm512_set1_ps(b), _CMP_GT_OQ)
#include "matches_compare.h"
#define NAME compare_256
#define TARGET __attribute__((target("avx2,fma")))
#define BYTES 32
#define GREATER(a, b) _mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_set1_ps(b), _CMP_GT_OQ))
#include "matches_compare.h"
#endif

template <class Floats>
unsigned greater(Floats a, float b) {
    unsigned bits = 0;
    for (unsigned lane = 0; lane < sizeof(Floats) / sizeof(float); ++lane)
        bits |= static_cast<unsigned>(a[lane] > b) << lane;
    return bits;
}
#define NAME compare_any
#define TARGET
#define BYTES 16
#define GREATER(a, b) greater(a, b)
#include "matches_compare.h"

auto best_compare([[maybe_unused]] int64_t longest) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (longest >= 64 && __builtin_cpu_supports("avx512f")) return compare_512;
    if (longest >= 32 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return compare_256;
#endif
    return compare_any;
}

}  // namespace

// cells: (rows, columns, P) descriptors. value and place: (rows / 2, columns / 2), for the query in
// each second cell the highest correlation and the number of the cell that has it. Cells less than
// `near` rows and columns away do not count. Vectors have at most `longest` bytes.
extern "C" __attribute__((visibility("default"))) void promptiml_best_matches(
    const float* cells, int64_t rows, int64_t columns, int64_t near, int64_t longest, float* value,
    int64_t* place) {
    const int64_t query_columns = columns / 2, count = rows / 2 * query_columns;
    std::vector<Query> queries((count + GROUP - 1) / GROUP * GROUP);
    for (int64_t q = 0; q < count; ++q) {
        queries[q].row = 2 * (q / query_columns) + 1;
        queries[q].column = 2 * (q % query_columns) + 1;
        const float* descriptor = cells + (queries[q].row * columns + queries[q].column) * P;
        std::copy_n(descriptor, P, queries[q].descriptor);
    }
    const auto compare = best_compare(longest);
    alignas(64) float chunk[P * CHUNK] = {};
    Grid grid = {static_cast<int32_t>(columns), static_cast<int32_t>(near), 0};
    for (; grid.first < rows * columns; grid.first += CHUNK) {
        const int64_t width = std::min<int64_t>(CHUNK, rows * columns - grid.first);
        for (int64_t c = 0; c < width; ++c)
            for (int p = 0; p < P; ++p) chunk[p * CHUNK + c] = cells[(grid.first + c) * P + p];
        compare(queries, chunk, width, grid);
    }
    for (int64_t q = 0; q < count; ++q) {
        value[q] = queries[q].value;
        place[q] = queries[q].place;
    }
}
