// A training step of a router on numbers of one's own, and a hash of every array that it makes. Includes nothing of the
// library: what includes it has done so.
#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

namespace steps {

inline std::vector<float> drawn(std::size_t count, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<float> numbers(count);
    for (float& number : numbers) number = (static_cast<float>(random() % 20001) - 10000) / 4096;
    return numbers;
}

template <class T>
unsigned long long hash(const T* numbers, switchyard::index_t count) {
    unsigned long long found = 0xcbf29ce484222325u;
    const auto* const bytes = reinterpret_cast<const unsigned char*>(numbers);
    const switchyard::index_t size = count * static_cast<switchyard::index_t>(sizeof(T));
    for (switchyard::index_t i = 0; i < size; ++i) found = (found ^ bytes[i]) * 0x100000001b3u;
    return found;
}

template <class Router>
void step(const char* name, const Router& router) {
    constexpr switchyard::index_t tokens = 96, experts = 8, width = 24;
    const std::vector<float> x = drawn(tokens * width, 1), w = drawn(width * experts, 2);
    const auto rows_of_x = switchyard::view_of(std::span(x), tokens, width);
    const auto rows_of_w = switchyard::view_of(std::span(w), width, experts);
    const auto& seq = switchyard::seq;
    const auto plan =
        switchyard::route(seq, router, rows_of_x, rows_of_w, switchyard::training{.seed = 5, .stream = 1});
    const auto rows = switchyard::dispatch(seq, plan, rows_of_x);
    const auto y = switchyard::combine(seq, plan, rows);
    const auto [d_rows, d_gates] = switchyard::combine_backward(seq, plan, rows, rows_of_x);
    const auto [d_x, d_w] = switchyard::route_backward(seq, router, plan, rows_of_x, rows_of_w, d_gates);
    const auto made = plan.view();
    std::printf("%s: kept %lld expert %llx gate %llx y %llx d_rows %llx d_x %llx d_w %llx\n", name,
                static_cast<long long>(plan.kept()), hash(made.expert, tokens * made.choices),
                hash(made.gate, tokens * made.choices), hash(y.view().data, tokens * width),
                hash(d_rows.view().data, d_rows.rows() * width), hash(d_x.view().data, tokens * width),
                hash(d_w.view().data, width * experts));
}

}  // namespace steps
