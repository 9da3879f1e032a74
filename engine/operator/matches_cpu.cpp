// The search for the best match of each query, as `engine.detection.context` describes it.
//
// All queries of a row of cells are compared with one row of cells after the other, in strips of 32
// columns and groups of 8 queries, whose sums stay in registers. For each column the best row so far
// is kept; the best column is found at the end. So of equal matches the first in reading order wins.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace {

constexpr int P = 25;       // cells of a descriptor
constexpr int STRIP = 32;   // columns
constexpr int GROUP = 8;    // queries
constexpr float NONE = -2;  // below any correlation, which is -1 to 1

// GCC and Clang split it where the processor's own vectors are shorter.
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
constexpr int LANES = 16;
constexpr int VECTORS = STRIP / LANES;

struct alignas(64) Best {
    Floats value[GROUP][VECTORS];
    Ints row[GROUP][VECTORS];
    Ints excluded[GROUP][VECTORS];  // columns that are near, in rows that are near
};

#if defined(__x86_64__) && defined(__GNUC__)
#define NAME compare_512
#define TARGET __attribute__((target("avx512f")))
#include "matches_compare.h"
#undef NAME
#undef TARGET
#define NAME compare_256
#define TARGET __attribute__((target("avx2,fma")))
#include "matches_compare.h"
#undef NAME
#undef TARGET
#endif
#define NAME compare_any
#define TARGET
#include "matches_compare.h"

auto best_compare() {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f")) return compare_512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return compare_256;
#endif
    return compare_any;
}

// Copy a strip of columns of (rows, columns, P) to (rows, P, STRIP), zeros beyond the last column.
void pack(const float* cells, int64_t rows, int64_t columns, int64_t first, float* out) {
    std::fill(out, out + rows * P * STRIP, 0.0f);
    const int64_t width = std::min<int64_t>(STRIP, columns - first);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c)
            for (int p = 0; p < P; ++p)
                out[(r * P + p) * STRIP + c] = cells[(r * columns + first + c) * P + p];
}

}  // namespace

// cells: (rows, columns, P) descriptors. value and place: (rows / 2, columns / 2), for the query in
// each second cell the highest correlation and the number of the cell that has it.
extern "C" __attribute__((visibility("default"))) void promptiml_best_matches(
    const float* cells, int64_t rows, int64_t columns, int64_t near, float* value, int64_t* place) {
    const int64_t query_rows = rows / 2, query_columns = columns / 2;
    const std::unique_ptr<float, decltype(&std::free)> packed(
        static_cast<float*>(std::aligned_alloc(64, rows * P * STRIP * sizeof(float))), std::free);
    const auto* strips = reinterpret_cast<const Floats*>(packed.get());
    std::fill(value, value + query_rows * query_columns, NONE - 1);
    const auto compare = best_compare();
    Best best;
    for (int64_t first = 0; first < columns; first += STRIP) {
        pack(cells, rows, columns, first, packed.get());
        const int64_t width = std::min<int64_t>(STRIP, columns - first);
        for (int64_t qr = 0; qr < query_rows; ++qr)
            for (int64_t group = 0; group < query_columns; group += GROUP) {
                float queries[GROUP * P] = {};
                const int64_t count = std::min<int64_t>(GROUP, query_columns - group);
                for (int64_t k = 0; k < count; ++k) {
                    const float* query = cells + ((2 * qr + 1) * columns + 2 * (group + k) + 1) * P;
                    std::copy(query, query + P, queries + k * P);
                }
                compare(strips, queries, rows, 2 * qr + 1, 2 * group + 1 - first, near, &best);
                for (int64_t k = 0; k < count; ++k) {
                    const float* values = reinterpret_cast<const float*>(best.value[k]);
                    const int32_t* rows_of = reinterpret_cast<const int32_t*>(best.row[k]);
                    const int64_t at = qr * query_columns + group + k;
                    for (int64_t c = 0; c < width; ++c) {
                        const float found = values[c];
                        const int64_t cell = rows_of[c] * columns + first + c;
                        const bool better = found > value[at] ||
                                            (found == value[at] && cell < place[at]);
                        if (better) {
                            value[at] = found;
                            place[at] = cell;
                        }
                    }
                }
            }
    }
}
