// Register tiles: up to 12 rows by 32 outputs, k ascending, one chain of sums per element.
#pragma once

#include "rows.h"

namespace sterna {

// Weights that are `ahead` to the second-level cache, those that come next to the first. (Inlined by force: a call of it g++ 12 takes for
// one without effect.)
inline __attribute__((always_inline)) void ask(const char* weights, long ahead) {
    constexpr long NEXT = 1024;
    _mm_prefetch(weights + ahead, _MM_HINT_T1);
    _mm_prefetch(weights + ahead + 64, _MM_HINT_T1);
    _mm_prefetch(weights + NEXT, _MM_HINT_T0);
    _mm_prefetch(weights + NEXT + 64, _MM_HINT_T0);
}

// k as packed: what all kinds can read in whole steps.
inline long packed_columns(long k) { return round_up(k, 8); }

// Bytes of the weights of one panel, and with the scales of its groups, 32 floats before each.
inline size_t weight_bytes(int kind, long k) {
    const size_t elements = static_cast<size_t>(packed_columns(k)) * PANEL;
    return kind == BF16 ? elements * 2 : kind == INT8 ? elements : elements / 2;
}

inline size_t panel_bytes(int kind, long k, long group) {
    return weight_bytes(kind, k) + (group ? round_up(k, group) / group * PANEL * sizeof(float) : 0);
}

// How far ahead weights are asked for: the next panel, where the cache holds two.
inline long distance(size_t panel) { return std::min<long>(panel, 1 << 17); }

// All tiles: rows row … row + M of x (row begins a tile) times the 32 outputs of a panel, to out [M, 32].
template <int M>
void tile_bf16(const Matrix& w, const Rows& x, long panel, long row, float* out) {
    const char* data = static_cast<const char*>(w.data) + panel * weight_bytes(BF16, w.k);
    const float* values = x.values + row * x.columns;
    const long columns = packed_columns(w.k), height = x.height, ahead = distance(weight_bytes(BF16, w.k));
    const __m512i high = _mm512_set1_epi32(0xffff0000);
    __m512 acc[M][2];
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
#pragma GCC unroll 2
    for (long c = 0; c < columns; c += 2, data += 128, values += 2 * height) {
        ask(data, ahead);
        const __m512i a = _mm512_load_si512(data), b = _mm512_load_si512(data + 64);
        const __m512 a0 = _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), b0 = _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
#pragma GCC unroll 12
        for (int i = 0; i < M; ++i) {
            const __m512 v = _mm512_set1_ps(values[i]);
            acc[i][0] = _mm512_fmadd_ps(v, a0, acc[i][0]);
            acc[i][1] = _mm512_fmadd_ps(v, b0, acc[i][1]);
        }
        const __m512 a1 = _mm512_castsi512_ps(_mm512_and_si512(a, high)), b1 = _mm512_castsi512_ps(_mm512_and_si512(b, high));
#pragma GCC unroll 12
        for (int i = 0; i < M; ++i) {
            const __m512 v = _mm512_set1_ps(values[height + i]);
            acc[i][0] = _mm512_fmadd_ps(v, a1, acc[i][0]);
            acc[i][1] = _mm512_fmadd_ps(v, b1, acc[i][1]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) {
        _mm512_store_ps(out + i * PANEL, acc[i][0]);
        _mm512_store_ps(out + i * PANEL + 16, acc[i][1]);
    }
}

// sum += two products of 16 bits, in every lane. The intrinsic's copies of the sum would cost as much as the work.
inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i a, __m512i b) {
    sum = _mm512_dpwssd_epi32(sum, a, b);
}

// Exact integer sums of M rows by 32 outputs. Few rows have several accumulators per sum, which hides the instruction's latency.
template <int M>
struct Sums {
    static constexpr int LANES = M <= 2 ? 4 : M <= 4 ? 2 : 1;
    __m512i at[M][2][LANES];

    // Two columns of every row times two columns of the outputs 0 to 15 (a) and 16 to 31 (b).
    template <int PAIR>
    inline __attribute__((always_inline)) void add(const int32_t* fixed, __m512i a, __m512i b) {
#pragma GCC unroll 12
        for (int i = 0; i < M; ++i) {
            const __m512i v = _mm512_set1_epi32(fixed[i]);
            dot(at[i][0][PAIR % LANES], v, a);
            dot(at[i][1][PAIR % LANES], v, b);
        }
    }

    inline __attribute__((always_inline)) __m512 value(int i, int half) const {
        __m512i sum = at[i][half][0];
#pragma GCC unroll 4
        for (int lane = 1; lane < LANES; ++lane) sum = _mm512_add_epi32(sum, at[i][half][lane]);
        return _mm512_cvtepi32_ps(sum);
    }
};

template <int M, int PAIR>
inline __attribute__((always_inline)) void add_bytes(Sums<M>& sums, const char* data, const int32_t* fixed) {
    const __m256i* at = reinterpret_cast<const __m256i*>(data + PAIR * 64);
    sums.template add<PAIR>(fixed, _mm512_cvtepi8_epi16(_mm256_load_si256(at)), _mm512_cvtepi8_epi16(_mm256_load_si256(at + 1)));
}

// 8 columns of a panel.
template <int M, int BITS>
inline __attribute__((always_inline)) void add_columns(Sums<M>& sums, const char* data, const int32_t* fixed, long height, long ahead) {
    if constexpr (BITS == 8) {
        ask(data, ahead), ask(data + 128, ahead);
        add_bytes<M, 0>(sums, data, fixed);
        add_bytes<M, 1>(sums, data, fixed + height);
        add_bytes<M, 2>(sums, data, fixed + 2 * height);
        add_bytes<M, 3>(sums, data, fixed + 3 * height);
    } else {
        ask(data, ahead);
        const __m512i nibble = _mm512_set1_epi32(0x000f000f);
        const __m512i a = _mm512_load_si512(data), b = _mm512_load_si512(data + 64);
        auto part = [nibble](__m512i v, int bits) { return _mm512_and_si512(_mm512_srli_epi16(v, bits), nibble); };
        sums.template add<0>(fixed, _mm512_and_si512(a, nibble), _mm512_and_si512(b, nibble));
        sums.template add<1>(fixed + height, part(a, 4), part(b, 4));
        sums.template add<2>(fixed + 2 * height, part(a, 8), part(b, 8));
        sums.template add<3>(fixed + 3 * height, _mm512_srli_epi16(a, 12), _mm512_srli_epi16(b, 12));
    }
}

// The sums start at what takes back int4's offset: it is stored as 0 to 15, 8 too much.
template <int M, int BITS>
inline __attribute__((always_inline)) void start(Sums<M>& sums, const Rows& x, long row, long begin, long end) {
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) {
        uint32_t offset = 0;  // may overflow in a row that is computed and dropped
        if constexpr (BITS == 4)
            for (long s = begin / SUM_GROUP; s * SUM_GROUP < end; ++s) offset += x.sums[(row + i) * x.num_sums + s];
#pragma GCC unroll 4
        for (int lane = 0; lane < Sums<M>::LANES; ++lane)
            sums.at[i][0][lane] = sums.at[i][1][lane] = lane ? _mm512_setzero_si512() : _mm512_set1_epi32(static_cast<int32_t>(offset));
    }
}

template <int M, int BITS, bool GROUPED>
void tile_fixed(const Matrix& w, const Rows& x, long panel, long row, float* out) {
    const long columns = packed_columns(w.k), step = GROUPED ? w.group : FIXED_GROUP, height = x.height;
    const size_t bytes = panel_bytes(w.kind, w.k, w.group);
    const long ahead = distance(bytes);
    const char* data = static_cast<const char*>(w.data) + panel * bytes;
    const int32_t* fixed = x.fixed + row * (x.columns / 2);
    std::fill(out, out + M * PANEL, 0.0f);
#pragma GCC unroll 1
    for (long begin = 0; begin < columns; begin += step) {
        const long end = std::min(columns, begin + step);
        __m512 a, b;
        if constexpr (GROUPED) {
            ask(data, ahead);
            a = _mm512_load_ps(data), b = _mm512_load_ps(data + 64), data += PANEL * sizeof(float);
        }
        Sums<M> sums;
        start<M, BITS>(sums, x, row, begin, end);
#pragma GCC unroll 1
        for (long c = begin; c < end; c += 8, data += BITS * PANEL, fixed += 4 * height) add_columns<M, BITS>(sums, data, fixed, height, ahead);
#pragma GCC unroll 12
        for (int i = 0; i < M; ++i) {
            const __m512 scale = _mm512_set1_ps(x.scales[(row + i) * x.num_groups + begin / FIXED_GROUP]);
            float* total0 = out + i * PANEL;
            _mm512_store_ps(total0, _mm512_fmadd_ps(sums.value(i, 0), GROUPED ? _mm512_mul_ps(scale, a) : scale, _mm512_load_ps(total0)));
            float* total1 = out + i * PANEL + 16;
            _mm512_store_ps(total1, _mm512_fmadd_ps(sums.value(i, 1), GROUPED ? _mm512_mul_ps(scale, b) : scale, _mm512_load_ps(total1)));
        }
    }
    if constexpr (GROUPED) return;
    const __m512 a = _mm512_load_ps(w.scales + panel * PANEL), b = _mm512_load_ps(w.scales + panel * PANEL + 16);
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) {
        _mm512_store_ps(out + i * PANEL, _mm512_mul_ps(_mm512_load_ps(out + i * PANEL), a));
        _mm512_store_ps(out + i * PANEL + 16, _mm512_mul_ps(_mm512_load_ps(out + i * PANEL + 16), b));
    }
}

template <int M>
void tile_of(const Matrix& w, const Rows& x, long panel, long row, float* out) {
    if (w.kind == BF16) return tile_bf16<M>(w, x, panel, row, out);
    if (w.kind == INT8) return w.group ? tile_fixed<M, 8, true>(w, x, panel, row, out) : tile_fixed<M, 8, false>(w, x, panel, row, out);
    return w.group ? tile_fixed<M, 4, true>(w, x, panel, row, out) : tile_fixed<M, 4, false>(w, x, panel, row, out);
}

// `count` rows from `row` on, into out [count, 32]; odd counts compute a row more and drop it.
inline void tile(const Matrix& w, const Rows& x, long panel, long row, long count, float* out) {
    if (count <= 1) return tile_of<1>(w, x, panel, row, out);
    if (count <= 2) return tile_of<2>(w, x, panel, row, out);
    if (count <= 4) return tile_of<4>(w, x, panel, row, out);
    if (count <= 6) return tile_of<6>(w, x, panel, row, out);
    if (count <= 8) return tile_of<8>(w, x, panel, row, out);
    if (count <= 10) return tile_of<10>(w, x, panel, row, out);
    return tile_of<12>(w, x, panel, row, out);
}

// Rows whose activations stay in a core's second-level cache beside a panel.
inline long block_rows(const Matrix& w, const Rows& x) {
    return (1L << 20) / (x.columns * (w.kind == BF16 ? 4 : 2));
}

inline __m512 with_bias(const Matrix& w, long column, __mmask16 mask, __m512 v) {
    return w.bias ? _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, w.bias + column)) : v;
}

// One row of a tile to its place in y, which begins at y[0] for output 0.
inline void store(const Matrix& w, long panel, const float* sums, float* y, bool add) {
    for (long c = panel * PANEL; c < std::min(w.n, (panel + 1) * PANEL); c += 16, sums += 16) {
        const __mmask16 mask = w.n - c >= 16 ? 0xffff : (1u << (w.n - c)) - 1;
        __m512 v = with_bias(w, c, mask, _mm512_load_ps(sums));
        if (add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, y + c));
        _mm512_mask_storeu_ps(y + c, mask, v);
    }
}

inline void store(const Matrix& w, long panel, const float* sums, uint16_t* y, bool) {
    for (long c = panel * PANEL; c < std::min(w.n, (panel + 1) * PANEL); c += 16, sums += 16) {
        const __mmask16 mask = w.n - c >= 16 ? 0xffff : (1u << (w.n - c)) - 1;
        const __m512 v = with_bias(w, c, mask, _mm512_load_ps(sums));
        _mm256_mask_storeu_epi16(y + c, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
    }
}

}  // namespace sterna
