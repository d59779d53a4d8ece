// The native decoder's face to Python (decoder.py): plain C, pointers and numbers.
#include <omp.h>

#include <utility>

#include "stack.h"

namespace {

using namespace sterna;

struct Workspace {  // kept from step to step, so that a step allocates nothing
    StepAttention attention;
    Memory memory;
};

// `plan`: per span start, length, offset of its blocks in `tables`; rows follow each other.
std::vector<Span> spans_of(const int32_t* plan, long num_spans, const int32_t* tables) {
    std::vector<Span> spans(num_spans);
    long row = 0;
    for (long i = 0; i < num_spans; i++, plan += 3) {
        spans[i] = {plan[0], plan[1], row, tables + plan[2]};
        row += plan[1];
    }
    return spans;
}

std::vector<int32_t> positions_of(const std::vector<Span>& spans) {
    std::vector<int32_t> positions;
    for (const Span& span : spans)
        for (long i = 0; i < span.length; i++) positions.push_back(span.start + i);
    return positions;
}

}  // namespace

extern "C" {

Workspace* sterna_workspace() { return new Workspace; }

void sterna_workspace_free(Workspace* workspace) { delete workspace; }

// One pass over the spans' tokens. Logits and final states (either may be null) of `rows`.
void sterna_decode(Workspace* workspace, const Decoder* decoder, const Cache* cache, const int32_t* plan, long num_spans,
                   const int32_t* tables, const int32_t* tokens, const int32_t* rows, long num_rows, const float* const* cosines,
                   const float* const* sines, float* logits, float* states, int threads) {
    const std::vector<Span> spans = spans_of(plan, num_spans, tables);
    const std::vector<int32_t> positions = positions_of(spans);
    const Step step{(long)positions.size(), num_rows, tokens, positions.data(), rows, cosines, sines, logits, states};
    workspace->attention.plan(*cache, spans, decoder->heads, decoder->num_layers, threads);
    const Buffers buffers = Buffers::in(workspace->memory, *decoder, std::max(step.num_tokens, num_rows), threads);
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    Pass(*decoder, *cache, step, buffers, workspace->attention, barrier, omp_get_thread_num(), omp_get_num_threads()).run();
}

// One layer's attention by itself: q [T, heads, head_dim] and new keys and values kv [2, kv_heads, T, head_dim], both bf16 with the given
// distances (in values) from token to token and, for kv, from head to head and from keys to values -> out [T, heads * head_dim] bf16.
void sterna_attend(Workspace* workspace, const Cache* cache, long layer, const int32_t* plan, long num_spans, const int32_t* tables,
                   const uint16_t* q, long q_row, const uint16_t* kv, long kv_half, long kv_head, long kv_row, long heads, double scale,
                   double cap, long window, uint16_t* out, int threads) {
    const std::vector<Span> spans = spans_of(plan, num_spans, tables);
    const std::vector<int32_t> positions = positions_of(spans);
    const long tokens = positions.size(), dim = cache->head_dim, width = heads * dim, kv_width = 2 * cache->kv_heads * dim;
    float* wide_q = (float*)workspace->memory.at_least((2 * width + kv_width) * tokens * sizeof(float));
    float *wide_kv = wide_q + tokens * width, *wide_out = wide_kv + tokens * kv_width;
    StepAttention& attention = workspace->attention;
    attention.plan(*cache, spans, heads, 1, threads);
    const Rules rules{(float)scale * 1.442695041f, (float)cap * 1.442695041f, window};
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        const Range range = share(tokens, thread, team);
        const auto widen = [](const uint16_t* x, float* y, long n) {
            for (long c = 0; c < n; c += 16) _mm512_storeu_ps(y + c, load_some(x + c, 0xffff));
        };
        for (long i = range.begin; i < range.end; i++) {
            widen(q + i * q_row, wide_q + i * width, width);
            for (long head = 0; head < cache->kv_heads; head++) {
                float* key = wide_kv + i * kv_width + head * 2 * dim;
                widen(kv + i * kv_row + head * kv_head, key, dim);
                widen(kv + kv_half + i * kv_row + head * kv_head, key + dim, dim);
                attention.keep(layer, i, head, positions[i], key, key + dim);
            }
        }
        barrier.wait(team);
        attention.run(layer, 0, rules, wide_q, width, wide_out, thread);
        barrier.wait(team);
        for (long i = range.begin * width; i < range.end * width; i += 16)
            _mm256_storeu_si256((__m256i*)(out + i), to_bf16(_mm512_loadu_ps(wide_out + i)));
    }
}

}  // extern "C"
