// Body of `compare` in matches_cpu.cpp, included once for each generation of processors: GCC splits
// vectors before it clones a function, so that `target_clones` would leave scalars.

// Compare a group of queries with a strip of all rows. `cells` is (rows, P, STRIP), `queries`
// (GROUP, P); query k lies in row `row` of all cells and column `column + 2 k` of the strip.
TARGET void NAME(const Floats* cells, const float* queries, int64_t rows, int64_t row,
                    int64_t column, int64_t near, Best* best) {
    for (int k = 0; k < GROUP; ++k)
        for (int v = 0; v < VECTORS; ++v) {
            best->value[k][v] = Floats{} + (NONE - 1);
            best->row[k][v] = Ints{};
            for (int lane = 0; lane < LANES; ++lane)
                best->excluded[k][v][lane] =
                    std::abs(column + 2 * k - (LANES * v + lane)) < near ? -1 : 0;
        }
    for (int64_t r = 0; r < rows; ++r) {
        Floats sum[GROUP][VECTORS] = {};
        for (int p = 0; p < P; ++p, cells += VECTORS) {
#pragma GCC unroll 8
            for (int k = 0; k < GROUP; ++k) {
                const Floats query = Floats{} + queries[k * P + p];
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v) sum[k][v] += query * cells[v];
            }
        }
        if (std::abs(row - r) < near) {
#pragma GCC unroll 8
            for (int k = 0; k < GROUP; ++k)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v)
                    sum[k][v] = best->excluded[k][v] ? Floats{} + NONE : sum[k][v];
        }
#pragma GCC unroll 8
        for (int k = 0; k < GROUP; ++k)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) {
                const Ints better = sum[k][v] > best->value[k][v];
                best->value[k][v] = better ? sum[k][v] : best->value[k][v];
                best->row[k][v] = better ? Ints{} + static_cast<int32_t>(r) : best->row[k][v];
            }
    }
}
