// Body of `compare` in matches_cpu.cpp, included once for each generation of processors: GCC splits
// vectors before it clones a function, so that `target_clones` would leave scalars.

// Compare all queries, a multiple of GROUP, with the first `count` cells of a chunk. `cells` are
// their descriptors, transposed to (P, CHUNK).
TARGET void NAME(std::vector<Query>& queries, const float* cells, int32_t count, const Grid& grid) {
    typedef float Floats __attribute__((vector_size(BYTES)));
    constexpr int LANES = BYTES / sizeof(float);
    constexpr int VECTORS = BYTES == 64 ? 4 : 2;  // as many sums as there are registers
    constexpr int BLOCK = VECTORS * LANES;
    static_assert(CHUNK % BLOCK == 0);
    for (Query* query = queries.data(); query < queries.data() + queries.size(); query += GROUP)
        for (int32_t first = 0; first < count; first += BLOCK) {
            Floats sum[GROUP][VECTORS] = {};
            for (int p = 0; p < P; ++p) {
                const auto* cell = reinterpret_cast<const Floats*>(cells + p * CHUNK + first);
#pragma GCC unroll 8
                for (int k = 0; k < GROUP; ++k)
#pragma GCC unroll 4
                    for (int v = 0; v < VECTORS; ++v)
                        sum[k][v] += query[k].descriptor[p] * cell[v];
            }
            unsigned better[GROUP], any = 0;
#pragma GCC unroll 8
            for (int k = 0; k < GROUP; ++k) {
                Floats most = sum[k][0];
#pragma GCC unroll 4
                for (int v = 1; v < VECTORS; ++v) most = most > sum[k][v] ? most : sum[k][v];
                any |= better[k] = GREATER(most, query[k].value);
            }
            if (!any) continue;  // as in all but a fifth of the blocks
#pragma GCC unroll 8
            for (int k = 0; k < GROUP; ++k) {
                if (!better[k]) continue;
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) {
                    alignas(BYTES) float found[LANES];
                    *reinterpret_cast<Floats*>(found) = sum[k][v];
                    unsigned lanes = GREATER(sum[k][v], query[k].value);
                    for (; lanes; lanes &= lanes - 1) {
                        const int lane = __builtin_ctz(lanes);
                        const int32_t cell = first + v * LANES + lane;
                        if (cell < count) query[k].offer(found[lane], cell, grid);
                    }
                }
            }
        }
}

#undef NAME
#undef TARGET
#undef BYTES
#undef GREATER
