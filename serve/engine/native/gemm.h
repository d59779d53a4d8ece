// Products with a model's weights, y = x Wᵀ, for any number of rows, on AVX-512.
//
// Promise: every element of y is summed by its own position alone (k ascending, in one chain), so a row's result is bitwise the same
// whatever the number of rows, the row's place among them and the number of threads. Activations are never rounded to bfloat16:
// bf16 weights meet float32 activations; int8 and int4 weights meet 16-bit fixed point with one scale per row and 128 columns, whose
// integer sums are exact, which is closer to the product with float32 activations than bfloat16 activations would be (unless one of the
// 128 is some 200 times larger than the others).
// Price: the weights are read once for up to 12 rows, and beyond that from the core's own cache.
//
// Why not the processor's bf16 dot product: on a Xeon of the fifth generation it does 16 multiplications a cycle, widening to float32 and
// FMA do 32, and 16-bit integers 64.
//
// All functions are called by every thread of a team; each does its share, and none holds a barrier.
#pragma once

#include "rows.h"
#include "tiles.h"

namespace sterna {

// y[m, n] (+)= x Wᵀ + bias for prepared rows, split over n. Out is float or bf16 (uint16_t; never with add).
template <class Out>
void multiply(const Matrix& w, const Rows& x, Out* y, long ldy, bool add, int thread, int threads) {
    const long panels = round_up(w.n, PANEL) / PANEL;
    const long first = panels * thread / threads, last = panels * (thread + 1) / threads;
    const long step = x.height, block = std::max(step, block_rows(w, x) / step * step);
    alignas(64) float sums[MOST_ROWS * PANEL];
    for (long top = 0; top < x.m; top += block) {
        const long bottom = std::min(x.m, top + block);
        for (long panel = first; panel < last; ++panel) {
            for (long row = top; row < bottom; row += step) {
                const long count = std::min(step, bottom - row);
                tile(w, x, panel, row, count, sums);
                for (long i = 0; i < count; ++i) store(w, panel, sums + i * PANEL, y + (row + i) * ldy, add);
            }
        }
    }
}

}  // namespace sterna
