// A whole decoder pass in one parallel region: embedding, layers, final norm, logits of the wanted rows.
//
// Promise: weights and KV in their stored types, everything else (stream, norms, rotary embedding, softmax, logits) in float32; each row
// depends on its own token and KV only, bitwise. Price: the weights once, the visible KV once, ten barriers a layer, or six for a
// single row: it is prepared for a product by every thread for itself, which costs less than waiting for the one that would do it.
// Behind the last layer's attention only the wanted rows go on: of a prompt's other tokens nothing but their KV is needed.
#pragma once

#include "gemm.h"
#include "spans.h"

namespace sterna {

struct Product {  // matrices that read the same input, outputs side by side: one, or several where their kinds differ; null ends them
    const Matrix* parts[3];

    long width() const { return parts[0]->k; }
    template <class Use>
    void each(Use use) const {
        for (int i = 0; i < 3 && parts[i]; i++) use(*parts[i]);
    }
};

struct Layer {  // null: the family has none; norms are [width] float32
    Product qkv, out, gate_up, down;
    const float *before_attention, *after_attention, *before_mlp, *after_mlp, *q_norm, *k_norm;
    int64_t window, rope;  // 0: sees all; which rotary table, -1: none
};

struct Decoder {
    int64_t num_layers, hidden, mlp, heads, kv_heads, head_dim, rotary, vocab;
    int64_t activation;  // 0 silu, 1 gelu (tanh)
    int64_t embedding_group;  // columns that share a scale
    double norm_eps, attention_scale, attention_cap, logit_cap, embedding_multiplier, residual_multiplier, logit_multiplier;
    const void* embedding;          // [vocab, hidden]: bf16, or int8 where there are scales
    const float* embedding_scales;  // [vocab, hidden / embedding_group], or null
    const Layer* layers;
    const float* norm;
    Product head;
};

struct Step {
    long num_tokens, num_rows;
    const int32_t *tokens, *positions;
    const int32_t* rows;                 // tokens whose logits are wanted
    const float *const *cosines, *const *sines;  // per rotary table, [positions, rotary / 2]
    float *logits, *states;              // [num_rows, vocab], [num_rows, hidden] after the final norm; either may be null
};

// ---- rows ------------------------------------------------------------------------------------------------------------

inline void norm_row(const float* x, const float* weight, float eps, long n, float* y) {
    __m512 squares[4] = {};
    long i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++) {
            const __m512 v = _mm512_loadu_ps(x + i + j * 16);
            squares[j] = _mm512_fmadd_ps(v, v, squares[j]);
        }
    for (; i < n; i += 16) {
        const __m512 v = _mm512_loadu_ps(x + i);
        squares[0] = _mm512_fmadd_ps(v, v, squares[0]);
    }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(squares[0], squares[1]), _mm512_add_ps(squares[2], squares[3]));
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / n + eps));
    for (i = 0; i < n; i += 16) {
        const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), scale);
        _mm512_storeu_ps(y + i, _mm512_mul_ps(v, _mm512_loadu_ps(weight + i)));
    }
}

// The first `rotary` dimensions of a head: halves pair up.
inline void turn(float* x, const float* cosines, const float* sines, long rotary) {
    const long half = rotary / 2;
    for (long i = 0; i < half; i += 16) {
        const __mmask16 mask = lanes(half - i);
        const __m512 a = _mm512_maskz_loadu_ps(mask, x + i), b = _mm512_maskz_loadu_ps(mask, x + half + i);
        const __m512 c = _mm512_maskz_loadu_ps(mask, cosines + i), s = _mm512_maskz_loadu_ps(mask, sines + i);
        _mm512_mask_storeu_ps(x + i, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        _mm512_mask_storeu_ps(x + half + i, mask, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

inline __m512 activated(__m512 x, long activation) {
    const __m512 one = _mm512_set1_ps(1.0f);
    if (activation == 0) {  // x / (1 + e^-x)
        const __m512 power = exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(-1.442695041f)));
        return _mm512_div_ps(x, _mm512_add_ps(one, power));
    }
    const __m512 cubed = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 inner = _mm512_mul_ps(_mm512_fmadd_ps(cubed, _mm512_set1_ps(0.044715f), x), _mm512_set1_ps(0.7978845608f));
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), _mm512_add_ps(one, tanh_of(inner)));
}

inline void gate_row(const float* gate_up, long n, long activation, float* y) {
    for (long i = 0; i < n; i += 16) {
        const __m512 gate = activated(_mm512_loadu_ps(gate_up + i), activation);
        _mm512_storeu_ps(y + i, _mm512_mul_ps(gate, _mm512_loadu_ps(gate_up + n + i)));
    }
}

// ---- a step's memory -------------------------------------------------------------------------------------------------

struct Buffers {
    float *x, *qkv, *attended, *gate_up, *added;
    char* rows;           // prepared rows that all threads share
    char* own;            // per thread: prepared rows of its own, and one row to work on
    size_t own_rows, own_bytes;

    static Buffers in(Memory& memory, const Decoder& d, long tokens, long threads) {
        const long widest = std::max({d.hidden, d.mlp, d.heads * d.head_dim});
        Buffers b{};
        size_t used = 0;
        const auto take = [&used](size_t bytes) { return std::exchange(used, used + (bytes + 63) / 64 * 64); };
        const size_t x = take(tokens * d.hidden * 4), added = take(tokens * d.hidden * 4), attended = take(tokens * d.heads * d.head_dim * 4);
        const size_t qkv = take(tokens * (d.heads + 2 * d.kv_heads) * d.head_dim * 4), gate_up = take(tokens * 2 * d.mlp * 4);
        const size_t rows = take(rows_bytes(tokens, widest));
        b.own_rows = (rows_bytes(1, widest) + 63) / 64 * 64;
        b.own_bytes = (b.own_rows + widest * 4 + 127) / 64 * 64;
        const size_t own = take(b.own_bytes * threads);
        char* at = memory.at_least(used);
        b.x = (float*)(at + x), b.added = (float*)(at + added), b.attended = (float*)(at + attended);
        b.qkv = (float*)(at + qkv), b.gate_up = (float*)(at + gate_up), b.rows = at + rows, b.own = at + own;
        return b;
    }
};

// ---- the pass --------------------------------------------------------------------------------------------------------

class Pass {  // one thread's view of it
public:
    Pass(const Decoder& d, const Cache& cache, const Step& step, const Buffers& b, StepAttention& attention, Barrier& barrier, int thread,
         int threads)
        : d(d), cache(cache), step(step), b(b), attention(attention), barrier(barrier), thread(thread), threads(threads),
          count(step.num_tokens) {}

    void run() {
        embed();
        for (long i = 0; i < d.num_layers; i++) {
            attend(i, d.layers[i]);
            if (count) think(d.layers[i]);
        }
        answer();
    }

private:
    // Rows for the product with w, each written by fill(row, y [width]); ready for every thread when it returns.
    template <class Fill>
    Rows prepared(const Product& w, long count, Fill fill) {
        const bool alone = count == 1;
        char* own = b.own + thread * b.own_bytes;
        float* y = (float*)(own + b.own_rows);
        const Rows rows = rows_at(alone ? own : b.rows, count, w.width());
        bool wide = false, fixed = false;
        w.each([&](const Matrix& part) { (part.kind == BF16 ? wide : fixed) = true; });
        const Range range = alone ? Range{0, 1} : share(count, thread, threads);
        for (long i = range.begin; i < range.end; i++) {
            fill(i, y);
            if (wide) widen_row(rows, i, y);
            if (fixed) fix_row(rows, i, y);
        }
        if (!alone) barrier.wait(threads);
        return rows;
    }

    void times(const Product& w, const Rows& rows, float* y, long ldy, bool add) {
        w.each([&](const Matrix& part) {
            multiply(part, rows, y, ldy, add, thread, threads);
            y += part.n;
        });
        barrier.wait(threads);
    }

    void embed() {
        const Range range = share(step.num_tokens, thread, threads);
        const __m512 multiplier = _mm512_set1_ps(d.embedding_multiplier);
        for (long i = range.begin; i < range.end; i++)
            for (long c = 0; c < d.hidden; c += 16)
                _mm512_storeu_ps(b.x + i * d.hidden + c, _mm512_mul_ps(embedding(step.tokens[i] * d.hidden + c), multiplier));
        barrier.wait(threads);
    }

    __m512 embedding(long at) const {  // 16 values
        if (!d.embedding_scales) return load_some(static_cast<const uint16_t*>(d.embedding) + at, 0xffff);
        const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const int8_t*>(d.embedding) + at));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(values)), _mm512_set1_ps(d.embedding_scales[at / d.embedding_group]));
    }

    auto normed(const float* weight) {
        return [this, weight](long i, float* y) {
            const float* x = b.x + i * d.hidden;
            if (weight) norm_row(x, weight, d.norm_eps, d.hidden, y);
            else std::memcpy(y, x, d.hidden * sizeof(float));
        };
    }

    void attend(long index, const Layer& layer) {
        const long width = (d.heads + 2 * d.kv_heads) * d.head_dim, out_width = d.heads * d.head_dim;
        times(layer.qkv, prepared(layer.qkv, step.num_tokens, normed(layer.before_attention)), b.qkv, width, false);
        place(index, layer, width);
        barrier.wait(threads);
        const bool last = index + 1 == d.num_layers;
        if (last) count = step.num_rows;
        if (count == 0) return;
        attention.run(index, index, rules(layer), b.qkv, width, b.attended, thread);
        barrier.wait(threads);
        if (count < step.num_tokens) keep_wanted(out_width);
        const Rows rows = prepared(layer.out, count,
                                   [&](long i, float* y) { std::memcpy(y, b.attended + i * out_width, out_width * sizeof(float)); });
        add(layer.out, rows, layer.after_attention);
    }

    // Rows move to the front; they are in order, so none is overwritten before it has moved.
    void keep_wanted(long out_width) {
        for (long i = 0; thread == 0 && i < count; i++) {
            std::memmove(b.x + i * d.hidden, b.x + step.rows[i] * d.hidden, d.hidden * sizeof(float));
            std::memmove(b.attended + i * out_width, b.attended + step.rows[i] * out_width, out_width * sizeof(float));
        }
        barrier.wait(threads);
    }

    Rules rules(const Layer& layer) const {
        const float base2 = 1.442695041f;
        return {(float)d.attention_scale * base2, (float)d.attention_cap * base2, (long)layer.window};
    }

    // Norm and turn queries and keys, and store keys and values; by heads.
    void place(long index, const Layer& layer, long width) {
        const long each = d.heads + d.kv_heads, half = d.rotary / 2;
        const Range range = share(step.num_tokens * each, thread, threads);
        for (long i = range.begin; i < range.end; i++) {
            const long token = i / each, head = i % each, position = step.positions[token];
            float* x = b.qkv + token * width + head * d.head_dim;
            const float* norm = head < d.heads ? layer.q_norm : layer.k_norm;
            if (norm) norm_row(x, norm, d.norm_eps, d.head_dim, x);
            if (layer.rope >= 0) turn(x, step.cosines[layer.rope] + position * half, step.sines[layer.rope] + position * half, d.rotary);
            if (head >= d.heads) attention.keep(index, token, head - d.heads, position, x, x + d.kv_heads * d.head_dim);
        }
    }

    void think(const Layer& layer) {
        times(layer.gate_up, prepared(layer.gate_up, count, normed(layer.before_mlp)), b.gate_up, 2 * d.mlp, false);
        const Rows rows = prepared(layer.down, count,
                                   [&](long i, float* y) { gate_row(b.gate_up + i * 2 * d.mlp, d.mlp, d.activation, y); });
        add(layer.down, rows, layer.after_mlp);
    }

    // x += residual_multiplier * norm(rows Wᵀ)
    void add(const Product& w, const Rows& rows, const float* norm) {
        if (!norm && d.residual_multiplier == 1.0) return times(w, rows, b.x, d.hidden, true);
        times(w, rows, b.added, d.hidden, false);
        const Range range = share(count, thread, threads);
        const __m512 multiplier = _mm512_set1_ps(d.residual_multiplier);
        for (long i = range.begin; i < range.end; i++) {
            float *y = b.added + i * d.hidden, *x = b.x + i * d.hidden;
            if (norm) norm_row(y, norm, d.norm_eps, d.hidden, y);
            for (long c = 0; c < d.hidden; c += 16)
                _mm512_storeu_ps(x + c, _mm512_fmadd_ps(_mm512_loadu_ps(y + c), multiplier, _mm512_loadu_ps(x + c)));
        }
        barrier.wait(threads);
    }

    void answer() {
        const auto last = [this](long i, float* y) {
            norm_row(b.x + i * d.hidden, d.norm, d.norm_eps, d.hidden, y);
            if (step.states) std::memcpy(step.states + i * d.hidden, y, d.hidden * sizeof(float));
            const __m512 multiplier = _mm512_set1_ps(d.logit_multiplier);
            for (long c = 0; c < d.hidden; c += 16) _mm512_storeu_ps(y + c, _mm512_mul_ps(_mm512_loadu_ps(y + c), multiplier));
        };
        if (step.num_rows == 0) return;
        const Rows rows = prepared(d.head, step.num_rows, last);
        if (!step.logits) return;
        times(d.head, rows, step.logits, d.vocab, false);
        if (d.logit_cap == 0) return;
        const __m512 cap = _mm512_set1_ps(d.logit_cap);
        const Range range = share(step.num_rows * d.vocab, thread, threads);
        for (long i = range.begin; i < range.end; i += 16) {
            const __mmask16 mask = lanes(range.end - i);
            const __m512 v = _mm512_maskz_loadu_ps(mask, step.logits + i);
            _mm512_mask_storeu_ps(step.logits + i, mask, _mm512_mul_ps(tanh_of(_mm512_div_ps(v, cap)), cap));
        }
    }

    const Decoder& d;
    const Cache& cache;
    const Step& step;
    const Buffers& b;
    StepAttention& attention;
    Barrier& barrier;
    const int thread, threads;
    long count;  // rows that go on
};

}  // namespace sterna
