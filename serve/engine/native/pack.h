// Weights as stored, row by row, into the panels that tiles.h reads.
//
// A panel holds 32 outputs. bf16 and int8: [k / 2][32][2], so that two neighbouring columns of 16 outputs fill a vector (or half of one).
// int4: [k / 8][32] words of 8 values: columns 0 2 4 6 in the low half from the lowest bits on, 1 3 5 7 in the high half, each plus 8.
// Before every group of columns that has a scale come the scales of its 32 outputs, in float32: all that is read is one stream.
// Rows come as the file has them: bf16; int8 as bytes plus 128; int4 as nibbles plus 8, lowest bits first (compressed-tensors).
// Price: one read and one write of the weights; 16 rows by 64 bytes are transposed in registers.
#pragma once

#include "tiles.h"

namespace sterna {

// 16 rows of 16 words to 16 columns of 16 words.
inline void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

// The even nibbles of every word to its low half, the odd ones to its high half.
inline __m512i part_nibbles(__m512i v) {
    const __m512i nibbles = _mm512_set1_epi32(0x0f0f0f0f), bytes = _mm512_set1_epi32(0x00ff00ff), half = _mm512_set1_epi32(0xffff);
    auto squeeze = [&](__m512i x) {
        x = _mm512_and_si512(x, nibbles);
        x = _mm512_and_si512(_mm512_or_si512(x, _mm512_srli_epi32(x, 4)), bytes);
        return _mm512_and_si512(_mm512_or_si512(x, _mm512_srli_epi32(x, 8)), half);
    };
    return _mm512_or_si512(squeeze(v), _mm512_slli_epi32(squeeze(_mm512_srli_epi32(v, 4)), 16));
}

// The 32 outputs of a word (2, 4 or 8 columns) in a panel.
inline char* word_at(int kind, long group, char* panel, long word) {
    const long columns = kind == BF16 ? 2 : kind == INT8 ? 4 : 8, scales = group ? word * columns / group + 1 : 0;
    return panel + (word + scales) * 128;
}

// A word of 16 outputs; `half` 1 for the panel's outputs 16 to 31.
inline void place(int kind, char* at, int half, __m512i v) {
    if (kind == BF16) return _mm512_store_si512(at + half * 64, v);
    if (kind == INT4) return _mm512_store_si512(at + half * 64, part_nibbles(v));
    __m256i* bytes = reinterpret_cast<__m256i*>(at + half * 32);
    _mm256_store_si256(bytes, _mm512_cvtepi32_epi16(v));
    _mm256_store_si256(bytes + 2, _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
}

// Bytes of a stored row that hold values.
inline long row_bytes(int kind, long k) { return kind == BF16 ? 2 * k : kind == INT8 ? k : (k + 1) / 2; }

// 16 rows (null: zeros) into one half of a panel.
inline void pack_half(int kind, long k, long group, const char* const* rows, char* panel, int half) {
    const long bytes = row_bytes(kind, k), words = static_cast<long>(weight_bytes(kind, k)) / 128;
    for (long word = 0; word < words; word += 16) {
        const long left = bytes - word * 4;
        const __mmask64 mask = left >= 64 ? ~0ull : left <= 0 ? 0 : (1ull << left) - 1;
        const __m512i offset = _mm512_maskz_set1_epi8(kind == INT8 ? mask : 0, -128);
        __m512i v[16];
        for (int i = 0; i < 16; ++i) {
            if (rows[i])
                v[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, rows[i] + word * 4), offset);
            else
                v[i] = _mm512_setzero_si512();
        }
        transpose(v);
        for (long i = 0; i < std::min(16L, words - word); ++i) place(kind, word_at(kind, group, panel, word + i), half, v[i]);
    }
}

// Several stored matrices, one below the other, into `data`; a thread's share of the panels.
inline void pack(
    int kind, long k, long group, long parts, const char* const* stored, const long* counts, const long* strides, char* data, int thread, int threads
) {
    long n = 0;
    for (long p = 0; p < parts; ++p) n += counts[p];
    const long panels = round_up(n, PANEL) / PANEL;
    for (long panel = panels * thread / threads; panel < panels * (thread + 1) / threads; ++panel) {
        const char* rows[PANEL];
        for (long i = 0; i < PANEL; ++i) {
            long row = panel * PANEL + i, p = 0;
            while (p < parts && row >= counts[p]) row -= counts[p++];
            rows[i] = p < parts ? stored[p] + row * strides[p] : nullptr;
        }
        for (int half = 0; half < 2; ++half) pack_half(kind, k, group, rows + 16 * half, data + panel * panel_bytes(kind, k, group), half);
    }
}

}  // namespace sterna
