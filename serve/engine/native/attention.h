// Attention over paged KV on AVX-512, for one query or many.
//
// Promise: a row's result depends on its own query and on the keys it sees, bitwise: keys are taken in partitions of 128 by absolute
// position, a partition's softmax is computed by itself, and partitions are merged in ascending order, whoever computes them. So a token
// attends alike alone, batched, drafted, in a chunk, or with its partitions spread over threads.
// Price: one read of the visible keys and values per KV head and tile of queries; two exponentials per row and partition for the merge.
// Source: FlashDecoding's split (Dao et al. 2023) with fixed borders; paged KV (arXiv 2309.06180).
//
// Layout of KV: 16 keys make a tile of bf16 pairs, widened by a shift and a mask (on this kind of CPU two float32 FMAs a cycle beat
// vdpbf16ps at one in two cycles, and neither queries nor weights are rounded),
//     keys   [head_dim / 2][16 keys][2]        a vector holds a pair of dimensions of 16 keys
//     values [8 pairs of keys][head_dim][2]    a vector holds two keys of 16 dimensions
// a block of one layer is [kv_heads][block_size / 16] tiles, a block is [layers] of those. int8 tiles open with 16 scales of keys and 16
// of values (float32; one per token and head) and are widened, exactly, before use.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace sterna {

constexpr long TILE = 16, PARTITION = 128, TILES = PARTITION / TILE;
constexpr long STATE = 16;  // floats before a row's accumulated values: [0] the largest score, [1] the sum of weights
constexpr float NOTHING = -INFINITY;

struct Cache {
    char* data;
    int64_t num_layers, kv_heads, head_dim, block_size, quantised;

    int64_t tile_bytes() const { return 2 * TILE * head_dim * (quantised ? 1 : 2) + (quantised ? 2 * TILE * 4 : 0); }
    int64_t layer_bytes() const { return kv_heads * (block_size / TILE) * tile_bytes(); }
    char* tile(long layer, long block, long head, long offset) const {  // the tile of the block's token `offset`
        return data + (block * num_layers + layer) * layer_bytes() + (head * (block_size / TILE) + offset / TILE) * tile_bytes();
    }
};

struct Span {  // consecutive new tokens of one sequence
    long start, length, row;  // first position, how many, first row in the step
    const int32_t* blocks;
};

struct Rules {  // how a layer looks at its keys
    float scale;  // of scores, times log2(e)
    float cap;    // scores are bent to cap * tanh(score / cap); 0: not (times log2(e))
    long window;  // how many keys a query sees; 0: all
};

// ---- numbers ---------------------------------------------------------------------------------------------------------

// 2^x for x <= 0 or small: 2^n by exponent, 2^f on [-0.5, 0.5] by polynomial (relative error below 2e-7); -inf gives 0, NaN
// stays (of a maximum or minimum with NaN the second operand is taken).
inline __m512 exp2_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(1.535336188e-4f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.339887440e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.618437357e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.550332548e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.402264791e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.931472028e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

inline float exp2_of(float x) { return _mm512_cvtss_f32(exp2_of(_mm512_set1_ps(x))); }

inline __m512 tanh_of(__m512 x) {  // 1 - 2 / (1 + e^2x)
    const __m512 bounded = _mm512_min_ps(_mm512_set1_ps(60.0f), _mm512_mul_ps(x, _mm512_set1_ps(2.885390082f)));
    const __m512 power = _mm512_add_ps(exp2_of(bounded), _mm512_set1_ps(1.0f));
    return _mm512_sub_ps(_mm512_set1_ps(1.0f), _mm512_div_ps(_mm512_set1_ps(2.0f), power));
}

inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
inline __m512 first_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline __m512 second_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000))); }

// ---- writing ---------------------------------------------------------------------------------------------------------

// int8 of x [dim] with the scale that lets the largest fill the range; infinities and NaN make it NaN, so that they are not lost.
inline float quantise(const float* x, long dim, int8_t* y) {
    __m512 most = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (long d = 0; d < dim; d += 16) {
        const __m512 v = _mm512_loadu_ps(x + d);
        most = _mm512_max_ps(most, _mm512_abs_ps(v));
        odd = _mm512_fmadd_ps(v, _mm512_setzero_ps(), odd);
    }
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    for (long d = 0; d < dim; d += 16) {
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + d), inverse));
        _mm_storeu_si128((__m128i*)(y + d), _mm512_cvtsepi32_epi8(rounded));
    }
    return largest / 127.0f + _mm512_reduce_add_ps(odd);
}

// Key and value [dim] of one token and KV head into their slot of a tile.
inline void store(const Cache& cache, char* tile, long slot, const float* key, const float* value) {
    const long dim = cache.head_dim, half = slot % 2;
    if (cache.quantised) {
        int8_t k[1024], v[1024];
        float* scales = (float*)tile;
        scales[slot] = quantise(key, dim, k);
        scales[TILE + slot] = quantise(value, dim, v);
        int8_t* keys = (int8_t*)(tile + 2 * TILE * 4);
        int8_t* values = keys + TILE * dim;
        for (long d = 0; d < dim; d += 2) std::memcpy(keys + d * TILE + slot * 2, k + d, 2);
        for (long d = 0; d < dim; d++) values[((slot / 2) * dim + d) * 2 + half] = v[d];
        return;
    }
    uint16_t* keys = (uint16_t*)tile;
    uint16_t* values = keys + TILE * dim + (slot / 2) * dim * 2;
    alignas(64) uint16_t k[1024];
    for (long d = 0; d < dim; d += 16) {
        _mm256_storeu_si256((__m256i*)(k + d), to_bf16(_mm512_loadu_ps(key + d)));
        const __m512i wide = _mm512_cvtepu16_epi32(to_bf16(_mm512_loadu_ps(value + d)));
        const __m512i placed = half ? _mm512_slli_epi32(wide, 16) : wide;
        _mm512_mask_storeu_epi16(values + d * 2, half ? 0xAAAAAAAA : 0x55555555, placed);
    }
    for (long d = 0; d < dim; d += 2) std::memcpy(keys + d * TILE + slot * 2, k + d, 4);
}

// Nothing of value behind `slot` in a tile: what a former sequence left there meets weights of 0, which NaN would survive.
inline void clear_behind(const Cache& cache, char* tile, long slot) {
    if (cache.quantised) {
        float* scales = (float*)tile;
        std::fill(scales + TILE + slot + 1, scales + 2 * TILE, 0.0f);
        return;
    }
    const long dim = cache.head_dim, pair = slot / 2;
    uint16_t* values = (uint16_t*)tile + TILE * dim;
    for (long d = 0; d < dim && slot % 2 == 0; d++) values[(pair * dim + d) * 2 + 1] = 0;
    std::fill(values + (pair + 1) * dim * 2, values + TILE * dim, 0);
}

// ---- reading ---------------------------------------------------------------------------------------------------------

struct View {  // a partition's tiles of one KV head
    long base;   // position of its first key
    bool fresh;  // nobody has read it: ask for what comes next, as tiles lie in pages far from each other
    const uint16_t *keys[TILES + 4], *values[TILES];  // behind the last keys: the next partition's first, or any
    const float *key_scales[TILES], *value_scales[TILES];  // null: 1
};

struct Row {  // one head of one query
    const float* q;
    long first, last;  // positions of the keys it sees
    float* state;      // STATE floats, then head_dim accumulated values
};

inline __mmask16 seen(const Row& row, long key) {  // which of the keys key … key + 15
    const long from = std::clamp(row.first - key, 0L, TILE), to = std::clamp(row.last + 1 - key, 0L, TILE);
    return from < to ? (__mmask16)(((1u << to) - 1) & ~((1u << from) - 1)) : 0;
}

// Shares of what is known and of what comes, so that both count from the larger of their largest scores; updates the state's head.
inline void merge_heads(float* state, float largest, float total, float& old_share, float& new_share) {
    const float most = std::max(state[0], largest);
    old_share = exp2_of(state[0] - most), new_share = exp2_of(largest - most);
    state[1] = std::fmaf(total, new_share, state[1] * old_share);
    state[0] = most;
}

// Scores of R rows with tiles lo … hi, and each row's largest.
template <int R>
inline void score_keys(const View& view, const Row* rows, const Rules& rules, long dim, long lo, long hi, float (*scores)[PARTITION],
                       float* largest) {
    constexpr int G = R < 3 ? 4 : 2;  // tiles at once: enough chains of sums to hide the latency of one
    const __m512 scale = _mm512_set1_ps(rules.scale);
    __m512 top[R];
    for (int r = 0; r < R; r++) top[r] = _mm512_set1_ps(NOTHING);
    for (long t = lo & ~(G - 1L); t <= hi; t += G) {
        __m512 sum[R][G];
        for (int r = 0; r < R; r++)
            for (int g = 0; g < G; g++) sum[r][g] = _mm512_setzero_ps();
        for (long d = 0; d < dim; d += 2) {
            __m512 even[G], odd[G];
            for (int g = 0; g < G; g++) {
                const __m512i pairs = _mm512_loadu_si512(view.keys[t + g] + d * TILE);
                even[g] = first_of(pairs), odd[g] = second_of(pairs);
                if (view.fresh) {
                    _mm_prefetch((const char*)(view.values[t + g] + d * TILE), _MM_HINT_T0);
                    _mm_prefetch((const char*)(view.keys[t + G + g] + d * TILE), _MM_HINT_T0);
                }
            }
            for (int r = 0; r < R; r++) {
                const __m512 q0 = _mm512_set1_ps(rows[r].q[d]), q1 = _mm512_set1_ps(rows[r].q[d + 1]);
                for (int g = 0; g < G; g++) sum[r][g] = _mm512_fmadd_ps(odd[g], q1, _mm512_fmadd_ps(even[g], q0, sum[r][g]));
            }
        }
        for (int r = 0; r < R; r++)
            for (int g = 0; g < G; g++) {
                __m512 s = _mm512_mul_ps(sum[r][g], scale);
                if (view.key_scales[t + g]) s = _mm512_mul_ps(s, _mm512_loadu_ps(view.key_scales[t + g]));
                if (rules.cap > 0) s = _mm512_mul_ps(tanh_of(_mm512_div_ps(s, _mm512_set1_ps(rules.cap))), _mm512_set1_ps(rules.cap));
                s = _mm512_mask_mov_ps(_mm512_set1_ps(NOTHING), seen(rows[r], view.base + (t + g) * TILE), s);
                top[r] = _mm512_max_ps(top[r], s);
                _mm512_store_ps(scores[r] + (t + g) * TILE, s);
            }
    }
    for (int r = 0; r < R; r++) largest[r] = _mm512_reduce_max_ps(top[r]);
}

// Scores become weights, 1 for the largest; their sum. A row that sees none of the keys gets zeros.
inline float weigh(const View& view, float* scores, long lo, long hi, float largest) {
    const __m512 base = _mm512_set1_ps(largest == NOTHING ? 0.0f : largest);
    __m512 total = _mm512_setzero_ps();
    for (long t = lo; t <= hi; t++) {
        __m512 weight = exp2_of(_mm512_sub_ps(_mm512_load_ps(scores + t * TILE), base));
        total = _mm512_add_ps(total, weight);
        if (view.value_scales[t]) weight = _mm512_mul_ps(weight, _mm512_loadu_ps(view.value_scales[t]));
        _mm512_store_ps(scores + t * TILE, weight);
    }
    return _mm512_reduce_add_ps(total);
}

// Values of tiles lo … hi, C vectors of dimensions from d on, summed by weight into the rows' states.
template <int R, int C>
inline void add_values(const View& view, const Row* rows, const float (*weights)[PARTITION], long lo, long hi, const float* old_share,
                       const float* new_share, long d, long dim) {
    __m512 sum[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sum[r][c] = _mm512_setzero_ps();
    for (long t = lo; t <= hi; t++) {
        const uint16_t* values = view.values[t] + d * 2;
        for (long key = t * TILE; key < (t + 1) * TILE; key += 2, values += dim * 2) {
            __m512 weight[R];
            for (int r = 0; r < R; r++) weight[r] = _mm512_set1_ps(weights[r][key]);
            for (int c = 0; c < C; c++) {
                const __m512 v = first_of(_mm512_loadu_si512(values + c * 32));
                for (int r = 0; r < R; r++) sum[r][c] = _mm512_fmadd_ps(v, weight[r], sum[r][c]);
            }
            for (int r = 0; r < R; r++) weight[r] = _mm512_set1_ps(weights[r][key + 1]);
            for (int c = 0; c < C; c++) {
                const __m512 v = second_of(_mm512_loadu_si512(values + c * 32));
                for (int r = 0; r < R; r++) sum[r][c] = _mm512_fmadd_ps(v, weight[r], sum[r][c]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) {
            float* kept = rows[r].state + STATE + d + c * 16;
            const __m512 before = _mm512_mul_ps(_mm512_loadu_ps(kept), _mm512_set1_ps(old_share[r]));
            _mm512_storeu_ps(kept, _mm512_fmadd_ps(sum[r][c], _mm512_set1_ps(new_share[r]), before));
        }
}

// One partition seen by R rows, in ascending order of their positions, merged into their states.
template <int R>
inline void attend_rows(const View& view, const Row* rows, const Rules& rules, long dim) {
    const long lo = std::max(0L, rows[0].first - view.base) / TILE;
    const long hi = std::min(PARTITION - 1, rows[R - 1].last - view.base) / TILE;
    alignas(64) float scores[R][PARTITION];
    float largest[R], old_share[R], new_share[R];
    score_keys<R>(view, rows, rules, dim, lo, hi, scores, largest);
    for (int r = 0; r < R; r++) {
        const float total = weigh(view, scores[r], lo, hi, largest[r]);
        if (largest[r] == NOTHING)
            old_share[r] = 1, new_share[r] = 0;
        else
            merge_heads(rows[r].state, largest[r], total, old_share[r], new_share[r]);
    }
    long d = 0;
    for (; d + 64 <= dim; d += 64) add_values<R, 4>(view, rows, scores, lo, hi, old_share, new_share, d, dim);
    for (; d < dim; d += 16) add_values<R, 1>(view, rows, scores, lo, hi, old_share, new_share, d, dim);
}

// A tile of int8 as bf16, while the next one is asked for.
inline void widen(const char* tile, const char* next, uint16_t* out, long count) {
    constexpr long SCALES = 2 * TILE * 4;
    _mm_prefetch(next, _MM_HINT_T0);
    _mm_prefetch(next + 64, _MM_HINT_T0);
    for (long i = 0; i < count; i += 64) {
        _mm_prefetch(next + SCALES + i, _MM_HINT_T0);
        for (long j = i; j < i + 64; j += 32) {
            const __m128i* narrow = (const __m128i*)(tile + SCALES + j);
            const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(narrow)));
            const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(narrow + 1)));
            _mm512_storeu_si512(out + j, to_bf16(low, high));
        }
    }
}

// Tiles first … last of a partition; the others point to one of them, for they are read and masked. `final`: the last key ever wanted.
inline void look(View& view, const Cache& cache, long layer, long head, const int32_t* blocks, long first, long last, long final,
                 uint16_t* wide) {
    const long per_block = cache.block_size / TILE, values = TILE * cache.head_dim;
    const char* tiles[TILES + 4];
    for (long t = 0; t < TILES + 4; t++) {
        const long limit = t < TILES ? last : (final - view.base) / TILE;
        const long at = view.base / TILE + std::max(std::min(t, limit), first);
        tiles[t] = cache.tile(layer, blocks[at / per_block], head, at % per_block * TILE);
    }
    view.fresh = !cache.quantised;
    for (long t = 0; t < TILES + 4 && !cache.quantised; t++) {
        view.keys[t] = (const uint16_t*)tiles[t];
        if (t < TILES) view.values[t] = view.keys[t] + values, view.key_scales[t] = view.value_scales[t] = nullptr;
    }
    for (long t = 0; t < TILES && cache.quantised; t++) {
        view.key_scales[t] = (const float*)tiles[t];
        view.value_scales[t] = view.key_scales[t] + TILE;
        uint16_t* own = wide + std::clamp(t, first, last) * 2 * values;
        view.keys[t] = own, view.values[t] = own + values;
        if (t >= first && t <= last) widen(tiles[t], tiles[t + 1], own, 2 * values);
    }
}

inline size_t wide_bytes(const Cache& cache) { return cache.quantised ? PARTITION * 2 * cache.head_dim * sizeof(uint16_t) : 0; }

// Partitions [from, to) seen by rows of one KV head in ascending order of their positions, merged into their states.
inline void attend(const Cache& cache, long layer, long head, const int32_t* blocks, const Row* rows, long count, const Rules& rules,
                   long from, long to, uint16_t* wide) {
    for (long part = std::max(from, rows[0].first / PARTITION); part < to; part++) {
        View view;
        view.base = part * PARTITION;
        if (view.base > rows[count - 1].last) break;
        const long first = std::max(0L, rows[0].first - view.base) / TILE;
        const long last = std::min(PARTITION - 1, rows[count - 1].last - view.base) / TILE;
        look(view, cache, layer, head, blocks, first, last, rows[count - 1].last, wide);
        for (long r = 0; r < count; r += 6, view.fresh = false) {
            const Row* some = rows + r;
            const long n = std::min(6L, count - r), dim = cache.head_dim;
            if (some[n - 1].last < view.base || some[0].first >= view.base + PARTITION) continue;
            if (n == 6) attend_rows<6>(view, some, rules, dim);
            if (n == 5) attend_rows<5>(view, some, rules, dim);
            if (n == 4) attend_rows<4>(view, some, rules, dim);
            if (n == 3) attend_rows<3>(view, some, rules, dim);
            if (n == 2) attend_rows<2>(view, some, rules, dim);
            if (n == 1) attend_rows<1>(view, some, rules, dim);
        }
    }
}

inline void begin(float* state, long dim) {
    std::memset(state, 0, (STATE + dim) * sizeof(float));
    state[0] = NOTHING;
}

// What `more` knows of later keys, into `state`: the arithmetic of attend_rows, so that splitting changes no bit.
inline void merge(float* state, const float* more, long dim) {
    if (more[0] == NOTHING) return;
    float old_share, new_share;
    merge_heads(state, more[0], more[1], old_share, new_share);
    for (long d = STATE; d < STATE + dim; d += 16) {
        const __m512 before = _mm512_mul_ps(_mm512_loadu_ps(state + d), _mm512_set1_ps(old_share));
        _mm512_storeu_ps(state + d, _mm512_fmadd_ps(_mm512_loadu_ps(more + d), _mm512_set1_ps(new_share), before));
    }
}

inline void finish(const float* state, float* out, long dim) {
    const __m512 share = _mm512_set1_ps(1.0f / state[1]);
    for (long d = 0; d < dim; d += 16) _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(state + STATE + d), share));
}

}  // namespace sterna
