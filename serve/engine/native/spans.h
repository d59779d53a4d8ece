// The attention of a step: its spans cut into items that threads take one after the other.
//
// Promise: the cut decides who computes, never what (see attention.h). Price: a few microseconds of planning per step; where there are too
// few sequences to keep the threads busy, one partition's state in memory per partition and row.
#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "attention.h"
#include "team.h"

namespace sterna {

class StepAttention {
public:
    // What the step's spans need, for `layers` calls of `run`.
    void plan(const Cache& cache, std::vector<Span> spans, long heads, long layers, long threads) {
        cache_ = cache, spans_ = std::move(spans), heads_ = heads, group_ = heads / cache.kv_heads, threads_ = threads;
        state_floats_ = STATE + cache.head_dim;
        places_.clear();
        for (const Span& span : spans_) {
            const long last = span.start + span.length - 1;
            places_.insert(places_.end(), span.length, {span.blocks, false});
            if (span.length) places_.back().opens = last - last % TILE >= span.start;
        }
        cut();
        spread();
        if (num_counters_ < layers) counters_.reset(new std::atomic<long>[layers]), num_counters_ = layers;
        for (long i = 0; i < layers; i++) counters_[i].store(0, std::memory_order_relaxed);
        const size_t own = (TILE_ROWS * state_floats_ * sizeof(float) + wide_bytes(cache) + 63) / 64 * 64;
        own_bytes_ = own;
        char* memory = memory_.at_least(own * threads + num_states_ * state_floats_ * sizeof(float));
        own_ = memory, states_ = (float*)(memory + own * threads);
    }

    // Store the key and value of the step's token `row`, at `position` of its sequence.
    void keep(long layer, long row, long head, long position, const float* key, const float* value) const {
        const Place& place = places_[row];
        char* tile = cache_.tile(layer, place.blocks[position / cache_.block_size], head, position % cache_.block_size);
        store(cache_, tile, position % TILE, key, value);
        if (place.opens) clear_behind(cache_, tile, position % TILE);
    }

    // q [T, heads, head_dim] with `q_row` floats from token to token -> out [T, heads, head_dim]; called by every thread. `turn` counts
    // the calls since `plan`.
    void run(long layer, long turn, const Rules& rules, const float* q, long q_row, float* out, long thread) {
        char* own = own_ + thread * own_bytes_;
        float* states = (float*)own;
        uint16_t* wide = (uint16_t*)(own + TILE_ROWS * state_floats_ * sizeof(float));
        Row rows[TILE_ROWS];
        for (long i; (i = counters_[turn].fetch_add(1, std::memory_order_relaxed)) < (long)items_.size();) {
            const Item& item = items_[i];
            Tile& tile = tiles_[item.tile];
            const Span& span = spans_[tile.span];
            const bool split = tile.state >= 0;
            const long count = tile.num_queries * group_;
            line_up(rows, tile, span, rules, q, q_row, split ? states_ + (tile.state + item.from * count) * state_floats_ : states);
            attend(cache_, layer, tile.head, span.blocks, rows, count, rules, item.from, item.to, wide);
            if (!split) put(rows, tile, span, out);
            else if (pending_[item.tile].fetch_sub(1, std::memory_order_acq_rel) == 1) gather(rows, item.tile, span, out);
        }
    }

private:
    static constexpr long TILE_ROWS = 48;
    struct Place { const int32_t* blocks; bool opens; };  // of a row: opens: the span's last token, in a tile that the span began
    struct Tile { long span, head, query, num_queries, parts, state; };  // state: index of its first state where split, else -1
    struct Item { long tile, from, to; };                                // partitions [from, to)

    void cut() {
        tiles_.clear();
        const long queries = std::max(1L, TILE_ROWS / group_);
        for (long s = 0; s < (long)spans_.size(); s++)
            for (long head = 0; head < cache_.kv_heads; head++)
                for (long query = 0; query < spans_[s].length; query += queries) {
                    const long n = std::min(queries, spans_[s].length - query);
                    tiles_.push_back({s, head, query, n, (spans_[s].start + query + n + PARTITION - 1) / PARTITION, -1});
                }
        std::stable_sort(tiles_.begin(), tiles_.end(), [](const Tile& a, const Tile& b) { return a.parts * a.num_queries > b.parts * b.num_queries; });
    }

    void spread() {  // items: whole tiles, or their partitions where tiles are few
        items_.clear();
        num_states_ = 0;
        const bool split = threads_ > 1 && (long)tiles_.size() < 4 * threads_;
        if (num_pending_ < (long)tiles_.size()) num_pending_ = tiles_.size() * 2, pending_.reset(new std::atomic<long>[num_pending_]);
        for (long t = 0; t < (long)tiles_.size(); t++) {
            Tile& tile = tiles_[t];
            if (!split || tile.parts == 1) {
                items_.push_back({t, 0, tile.parts});
                continue;
            }
            tile.state = num_states_;
            num_states_ += tile.parts * tile.num_queries * group_;
            pending_[t].store(tile.parts, std::memory_order_relaxed);
            for (long part = 0; part < tile.parts; part++) items_.push_back({t, part, part + 1});
        }
    }

    void line_up(Row* rows, const Tile& tile, const Span& span, const Rules& rules, const float* q, long q_row, float* states) const {
        for (long i = 0; i < tile.num_queries * group_; i++) {
            const long query = tile.query + i / group_, at = span.start + query;
            rows[i].q = q + (span.row + query) * q_row + (tile.head * group_ + i % group_) * cache_.head_dim;
            rows[i].first = rules.window ? std::max(0L, at + 1 - rules.window) : 0;
            rows[i].last = at;
            rows[i].state = states + i * state_floats_;
            begin(rows[i].state, cache_.head_dim);
        }
    }

    void put(const Row* rows, const Tile& tile, const Span& span, float* out) const {
        for (long i = 0; i < tile.num_queries * group_; i++) {
            const long row = span.row + tile.query + i / group_;
            finish(rows[i].state, out + (row * heads_ + tile.head * group_ + i % group_) * cache_.head_dim, cache_.head_dim);
        }
    }

    void gather(Row* rows, long index, const Span& span, float* out) {  // the last to finish a tile merges its partitions, in their order
        const Tile& tile = tiles_[index];
        const long count = tile.num_queries * group_;
        for (long i = 0; i < count; i++) {
            rows[i].state = states_ + (tile.state + i) * state_floats_;
            for (long part = 1; part < tile.parts; part++)
                merge(rows[i].state, states_ + (tile.state + part * count + i) * state_floats_, cache_.head_dim);
        }
        put(rows, tile, span, out);
        pending_[index].store(tile.parts, std::memory_order_relaxed);  // for the next layer; a barrier comes before it
    }

    Cache cache_{};
    std::vector<Span> spans_;
    std::vector<Place> places_;  // per row
    std::vector<Tile> tiles_;
    std::vector<Item> items_;
    std::unique_ptr<std::atomic<long>[]> counters_, pending_;
    long num_counters_ = 0, num_pending_ = 0, num_states_ = 0;
    long heads_ = 0, group_ = 0, threads_ = 1, state_floats_ = 0;
    size_t own_bytes_ = 0;
    Memory memory_;
    char* own_ = nullptr;
    float* states_ = nullptr;
};

}  // namespace sterna
