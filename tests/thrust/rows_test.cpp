// Dispatch, combine, projection and their backward on a Thrust policy, against the CPU backend.
#include "support/property.hpp"
#include "thrust/device.hpp"

#include <switchyard/router/route.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

constexpr double allowed = tolerance<float>::gradient;

/// A plan with drops and padding, on both sides.
struct plans {
    sy::plan<float> host;
    device_plan<float> made;

    plans(index_t tokens, index_t experts, index_t k, std::uint64_t seed) {
        const auto scores = gaussian<float>(tokens, experts, seed);
        const auto mask = draw_mask(tokens, seed);
        const device_mask padding(mask);
        const sy::top_k_router router{.k = k, .capacity = {.factor = 0.9}};
        host = sy::route_scores(sy::seq, router, scores, sy::training{.mask = mask_of(mask)});
        made =
            sy::route_scores(device, router, sy::copy_to_device(device, scores), sy::training{.mask = padding.get()});
    }
};

/// The kept rows of a device matrix, which has room for more.
sy::matrix<float> kept_rows(const sy::matrix<float, device_memory>& rows, index_t kept) {
    const auto view = sy::as_view(rows);
    return sy::copy_to_host(device, sy::matrix_view<const float, device_space>(view.data, kept, view.columns));
}

}  // namespace

TEST_CASE("dispatch and combine on Thrust: the CPU backend's rows") {
    for (const index_t k : {1, 3}) {
        for (const index_t width : {1, 7, 64}) {
            CAPTURE(k);
            CAPTURE(width);
            const plans p(130, 6, k, 9);
            const auto x = gaussian<float>(130, width, 1);
            const auto device_x = sy::copy_to_device(device, x);
            const index_t kept = p.host.kept();
            const auto rows = sy::dispatch(sy::seq, p.host, x);
            const auto device_rows = sy::dispatch(device, p.made, device_x);
            CHECK(device_rows.rows() == p.made.row_bound());
            CHECK(matrix_difference(kept_rows(device_rows, kept), rows, 0) == "");
            const auto weighted = sy::dispatch(sy::seq, p.host, x, {.apply_gates = true});
            const auto device_weighted = sy::dispatch(device, p.made, device_x, {.apply_gates = true});
            CHECK(matrix_difference(kept_rows(device_weighted, kept), weighted, allowed) == "");

            CHECK(matrix_difference(sy::copy_to_host(device, sy::combine(device, p.made, device_rows)),
                                    sy::combine(sy::seq, p.host, rows), allowed) == "");
            for (const sy::combine_settings settings :
                 {sy::combine_settings{.apply_gates = false}, sy::combine_settings{.accumulate = true}}) {
                auto y = gaussian<float>(130, width, 2);
                auto device_y = sy::copy_to_device(device, y);
                sy::combine(sy::seq, p.host, rows, y, settings);
                sy::combine(device, p.made, device_rows, device_y, settings);
                CHECK(matrix_difference(sy::copy_to_host(device, device_y), y, allowed) == "");
            }
        }
    }
    covers<operation("dispatch"), operation("combine")>(device);
}

TEST_CASE("dispatch and combine on Thrust: the CPU backend's gradients") {
    const plans p(200, 9, 3, 10);
    const index_t kept = p.host.kept();
    const auto x = gaussian<float>(200, 33, 1);
    const auto d_y = gaussian<float>(200, 33, 2);
    const auto rows = sy::dispatch(sy::seq, p.host, x);
    const auto device_x = sy::copy_to_device(device, x);
    const auto device_rows = sy::dispatch(device, p.made, device_x);
    const auto want = sy::combine_backward(sy::seq, p.host, rows, d_y);
    const auto got = sy::combine_backward(device, p.made, device_rows, sy::copy_to_device(device, d_y));
    CHECK(matrix_difference(kept_rows(got.d_rows, kept), want.d_rows, allowed) == "");
    CHECK(matrix_difference(sy::copy_to_host(device, got.d_gates), want.d_gates, allowed) == "");

    sy::matrix<float> d_x(200, 33);
    sy::matrix<float> d_gates(200, 3);
    sy::matrix<float, device_memory> device_d_x(200, 33);
    sy::matrix<float, device_memory> device_d_gates(200, 3);
    sy::dispatch_backward(sy::seq, p.host, want.d_rows, d_x);
    sy::dispatch_backward(device, p.made, got.d_rows, device_d_x);
    CHECK(matrix_difference(sy::copy_to_host(device, device_d_x), d_x, allowed) == "");
    sy::dispatch_backward(sy::seq, p.host, x, want.d_rows, d_x, d_gates);
    sy::dispatch_backward(device, p.made, device_x, got.d_rows, device_d_x, device_d_gates);
    CHECK(matrix_difference(sy::copy_to_host(device, device_d_x), d_x, allowed) == "");
    CHECK(matrix_difference(sy::copy_to_host(device, device_d_gates), d_gates, allowed) == "");
    covers<operation("dispatch, backward"), operation("combine, backward")>(device);
}

TEST_CASE("dispatch on Thrust: shapes are checked by the bound, since kept is not read") {
    const plans p(64, 4, 2, 3);
    sy::matrix<float, device_memory> small(p.host.kept(), 5);
    const auto x = sy::copy_to_device(device, gaussian<float>(64, 5, 1));
    REQUIRE(p.host.kept() < p.made.row_bound());
    CHECK(sentence_of([&] { sy::dispatch(device, p.made, x, small); }) ==
          said("rows has ", p.host.kept(), " rows; the plan needs ", p.made.row_bound()));
    CHECK(sentence_of([&] { sy::combine(device, p.made, sy::dispatch(device, p.made, x), small); }) ==
          said("y has ", p.host.kept(), " rows; the plan was made for 64 tokens"));
}

TEST_CASE("routing from tokens on Thrust: projection with noise and padding, and its gradients") {
    for (const index_t tokens : {0, 1, 63, 64, 200}) {
        CAPTURE(tokens);
        const auto x = gaussian<float>(tokens, 30, 1);
        const auto w = gaussian<float>(30, 7, 2);
        const auto mask = draw_mask(tokens, 5);
        const device_mask padding(mask);
        const auto device_x = sy::copy_to_device(device, x);
        const auto device_w = sy::copy_to_device(device, w);
        // From a matrix product scores differ in their last bits: a k of all experts and no capacity leave no decision.
        const sy::top_k_router router{.k = 7, .input_jitter = 0.1f, .input_dropout = 0.2f, .z_weight = 1e-3};
        const auto host = sy::route(sy::seq, router, x, w, sy::training{.seed = 3, .stream = 0, .mask = mask_of(mask)});
        const auto made =
            sy::route(device, router, device_x, device_w, sy::training{.seed = 3, .stream = 0, .mask = padding.get()});
        CHECK(matrix_difference(sy::copy_to_host(device, made.scores()), host.scores(), allowed) == "");
        sy::check(device, made);
        const auto copy = sy::copy_to_host(device, made);
        CHECK(copy.kept() == host.kept());
        CHECK(is_close(copy.load_balancing_loss(), host.load_balancing_loss(), 64 * tolerance<float>::epsilon));
        CHECK(is_close(copy.z_loss(), host.z_loss(), 64 * tolerance<float>::epsilon));
        if (array_difference("expert", copy.view().expert, host.view().expert, tokens * 7) != "") {
            continue;  // a near-tie went the other way: gradients of the gates stand at other choices
        }
        const auto d_gates = gaussian<float>(tokens, 7, 3);
        const auto want = sy::route_backward(sy::seq, router, host, x, w, d_gates);
        const auto got =
            sy::route_backward(device, router, made, device_x, device_w, sy::copy_to_device(device, d_gates));
        CHECK(matrix_difference(sy::copy_to_host(device, got.d_x), want.d_x, 2 * allowed) == "");
        CHECK(matrix_difference(sy::copy_to_host(device, got.d_w), want.d_w, 2 * allowed) == "");
        if (tokens == 200) {
            covers<operation("projection"), operation("projection, backward"), operation("input jitter and dropout")>(
                device);
        }
    }
}

TEST_CASE("aliasing on Thrust: the expert output's gradient in place, in both layouts") {
    const plans p(130, 6, 3, 9);
    const index_t bound = p.made.row_bound();
    const auto check = [&]<class S>(S, bool turned) {
        CAPTURE(turned);
        const auto d_y = sy::copy_to_device(device, gaussian<S>(130, 33, 2));
        sy::matrix<S, device_memory> memory(turned ? 33 : bound, turned ? bound : 33);
        const auto rows = turned ? sy::transposed(memory.view()) : memory.view();
        sy::matrix<S, device_memory> d_rows(bound, 33);
        sy::matrix<float, device_memory> d_gates(130, 3);
        sy::matrix<float, device_memory> in_place(130, 3);
        sy::copy_to_device(device, gaussian<S>(bound, 33, 3), rows);
        sy::combine_backward(device, p.made, rows, d_y, d_rows, d_gates);
        sy::combine_backward(device, p.made, rows, d_y, rows, in_place);
        const auto kept = [&](auto view) {
            view.rows = p.host.kept();
            return sy::copy_to_host(device, view);
        };
        CHECK(matrix_difference(kept(rows), kept(d_rows.view()), 0) == "");
        CHECK(matrix_difference(sy::copy_to_host(device, in_place), sy::copy_to_host(device, d_gates), 0) == "");
    };
    for (const bool turned : {false, true}) {
        check(float{}, turned);
        check(double{}, turned);
    }
}

TEST_CASE("aliasing on Thrust: d_x = x, and what is refused by address") {
    const auto must_lie_apart = [](const char* output, const char* input) {
        return said(output, " shares memory with ", input, ": it must lie apart");
    };
    // k = 1 and one expert: tokens and rows have one shape.
    const auto scores = sy::copy_to_device(device, gaussian<float>(20, 1, 1));
    const auto plan = sy::route_scores(device, sy::top_k_router{.k = 1}, scores, sy::inference{});
    auto a = sy::copy_to_device(device, gaussian<float>(20, 5, 2));
    auto b = sy::copy_to_device(device, gaussian<float>(20, 5, 3));
    sy::matrix<float, device_memory> c(20, 5);
    sy::matrix<float, device_memory> gates(20, 1);
    CHECK(sentence_of([&] { sy::dispatch(device, plan, a, a); }) == must_lie_apart("rows", "x"));
    CHECK(sentence_of([&] { sy::combine(device, plan, a, a); }) == must_lie_apart("y", "rows"));
    CHECK(sentence_of([&] { sy::dispatch_backward(device, plan, a, a); }) == must_lie_apart("d_x", "d_rows"));
    CHECK(sentence_of([&] { sy::dispatch_backward(device, plan, a, b, a, gates); }) == must_lie_apart("d_x", "x"));
    CHECK(sentence_of([&] { sy::combine_backward(device, plan, a, b, b, gates); }) == must_lie_apart("d_rows", "d_y"));
    const sy::matrix_view<float, device_space> narrower(a.data(), 20, 5, 4, 1);
    CHECK(sentence_of([&] { sy::combine_backward(device, plan, a, b, narrower, gates); }) ==
          "d_rows shares memory with rows and is another view: it must be the same view, or lie apart");

    const auto x = gaussian<float>(40, 12, 1);
    auto device_x = sy::copy_to_device(device, x);
    auto w = sy::copy_to_device(device, gaussian<float>(12, 6, 2));
    const sy::top_k_router router{.k = 2, .input_jitter = 0.1f};
    const auto made = sy::route(device, router, device_x, w, sy::training{.seed = 3, .stream = 0});
    const auto d_gates = sy::copy_to_device(device, gaussian<float>(40, 2, 3));
    sy::matrix<float, device_memory> d_x(40, 12), d_w(12, 6), again(12, 6);
    device_scratch scratch;
    sy::route_backward(device, router, made, device_x, w, d_gates, d_x, d_w, scratch);
    CHECK(sentence_of([&] { sy::route_backward(device, router, made, device_x, w, d_gates, d_x, w, scratch); }) ==
          must_lie_apart("d_w", "w"));
    sy::route_backward(device, router, made, device_x, w, d_gates, device_x, again, scratch);
    CHECK(matrix_difference(sy::copy_to_host(device, device_x), sy::copy_to_host(device, d_x), 0) == "");
    CHECK(matrix_difference(sy::copy_to_host(device, again), sy::copy_to_host(device, d_w), 0) == "");
}
