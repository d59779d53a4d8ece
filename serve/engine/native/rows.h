// A packed matrix, and the rows it is multiplied with as the tiles read them.
//
// bf16 weights want float32 rows; int8 and int4 weights want 16-bit fixed point with a scale for every 128 columns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <immintrin.h>

namespace sterna {

enum Kind { BF16 = 0, INT8 = 1, INT4 = 2 };

constexpr long PANEL = 32;         // outputs side by side in a packed matrix
constexpr long FIXED_GROUP = 128;  // columns of an activation row that share a fixed-point scale
constexpr long SUM_GROUP = 32;     // columns whose fixed-point sum is kept (int4's offset is taken back with it)
constexpr int MOST_ROWS = 12;      // rows of a register tile

// A weight [n, k] as pack.h lays it out: panels of 32 outputs, zeros where n ends. Memory belongs to the caller.
struct Matrix {
    int kind;
    long n, k;
    const void* data;     // panels, see pack.h
    const float* scales;  // [panels][32], where a scale goes for a whole row
    const float* bias;    // [n] or null
    long group;           // columns per scale: 32, 64 or 128, the scales lie in data; 0: the whole row
};

// m input rows as the kernels want them: tiles of `height` rows, in a tile column after column (for fixed, pair of columns after pair).
// `values` serve bf16 weights, the rest int8 and int4.
struct Rows {
    long m, k, height, columns;
    float* values;   // [tiles][columns][height]
    int32_t* fixed;  // [tiles][columns / 2][height], two 16-bit values each: x = fixed * scales[column / 128]
    float* scales;   // [m, num_groups]
    int32_t* sums;   // [m, num_sums]: -8 * the sum of 32 fixed values
    long num_groups, num_sums;
};

inline long round_up(long value, long unit) { return (value + unit - 1) / unit * unit; }

// Rows per tile for m rows: as few tiles as there must be, about equally high.
inline long tile_rows(long m) {
    const long tiles = std::max(1L, round_up(m, MOST_ROWS) / MOST_ROWS), rows = round_up(m, tiles) / tiles;
    return rows <= 2 ? std::max(rows, 1L) : round_up(rows, 2);
}

inline Rows rows_at(void* memory, long m, long k);

// Bytes that rows_at needs for m rows (64-byte aligned memory).
inline size_t rows_bytes(long m, long k) {
    const Rows r = rows_at(nullptr, m, k);
    return reinterpret_cast<size_t>(r.sums + round_up(m, r.height) * r.num_sums);
}

// Rows in the given memory. Tiles are whole: a kernel may read (not use) rows past the end.
inline Rows rows_at(void* memory, long m, long k) {
    Rows r{};
    r.m = m, r.k = k;
    r.height = tile_rows(m), r.columns = round_up(k, SUM_GROUP);
    r.num_groups = round_up(k, FIXED_GROUP) / FIXED_GROUP;
    r.num_sums = r.columns / SUM_GROUP;
    const long rows = round_up(m, r.height);
    char* at = static_cast<char*>(memory);
    auto take = [&at](size_t bytes) {
        char* start = at;
        at += round_up(bytes, 64);
        return static_cast<void*>(start);
    };
    r.values = static_cast<float*>(take(rows * r.columns * sizeof(float)));
    r.fixed = static_cast<int32_t*>(take(rows * r.columns * sizeof(int16_t)));
    r.scales = static_cast<float*>(take(rows * r.num_groups * sizeof(float)));
    r.sums = static_cast<int32_t*>(take(rows * r.num_sums * sizeof(int32_t)));
    return r;
}

inline __m512 load_some(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }

inline __m512 load_some(const uint16_t* x, __mmask16 mask) {  // bf16
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

inline __mmask16 lanes(long left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1; }

// 16 words to every `height`-th place.
inline void spread(void* out, long height, __m512i words) {
    if (height == 1) return _mm512_storeu_si512(out, words);
    const __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(height));
    _mm512_i32scatter_epi32(out, places, words, 4);
}

// Row i in float32, zeros up to a multiple of 32 columns.
template <class In>
void widen_row(const Rows& rows, long i, const In* x) {
    float* out = rows.values + i / rows.height * rows.columns * rows.height + i % rows.height;
    for (long c = 0; c < rows.columns; c += 16)
        spread(out + c * rows.height, rows.height, _mm512_castps_si512(load_some(x + c, lanes(rows.k - c))));
}

// Row i in fixed point. A scale is the largest magnitude / 32767; infinities and NaN make it NaN, so that they are not lost.
template <class In>
void fix_row(const Rows& rows, long i, const In* x) {
    int32_t* out = rows.fixed + i / rows.height * (rows.columns / 2) * rows.height + i % rows.height;
    for (long g = 0; g < rows.num_groups; ++g) {
        const long begin = g * FIXED_GROUP, end = std::min(rows.columns, begin + FIXED_GROUP);
        __m512 most = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (long c = begin; c < end; c += 16) {
            const __m512 v = load_some(x + c, lanes(rows.k - c));
            most = _mm512_max_ps(most, _mm512_abs_ps(v));
            odd = _mm512_fmadd_ps(v, _mm512_setzero_ps(), odd);
        }
        const float largest = _mm512_reduce_max_ps(most);
        rows.scales[i * rows.num_groups + g] = largest / 32767.0f + _mm512_reduce_add_ps(odd);
        const __m512 inverse = _mm512_set1_ps(largest > 1e-30f ? 32767.0f / largest : 0.0f);
        for (long c = begin; c < end; c += 32) {
            const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(load_some(x + c, lanes(rows.k - c)), inverse));
            const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(load_some(x + c + 16, lanes(rows.k - c - 16)), inverse));
            const __m256i a = _mm512_cvtsepi32_epi16(low), b = _mm512_cvtsepi32_epi16(high);
            spread(out + c / 2 * rows.height, rows.height, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
            rows.sums[i * rows.num_sums + c / SUM_GROUP] = -8 * _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
        }
    }
}

// Float32 (or bf16) rows x [m, ldx] into `rows`, by rows. The caller puts a barrier between this and multiply.
// INT8 and INT4 prepare alike, so one call serves both.
template <class In>
void prepare(const Rows& rows, const In* x, long ldx, int kind, int thread, int threads) {
    const long first = rows.m * thread / threads, last = rows.m * (thread + 1) / threads;
    for (long i = first; i < last; ++i) {
        if (kind == BF16)
            widen_row(rows, i, x + i * ldx);
        else
            fix_row(rows, i, x + i * ldx);
    }
    if (kind == BF16 && rows.m > 1 && rows.m % 2 && thread == threads - 1) {  // the row that an odd tile computes beside its own
        Rows none = rows;
        none.k = 0;
        widen_row(none, rows.m, x);
    }
}

}  // namespace sterna
