// What public functions take as arguments, what they allocate, and routers of other namespaces in every form.
#include <switchyard/switchyard.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

namespace engine {

namespace sy = switchyard;

/// A router of its own kind: the last expert that is allowed, gate 1/2, and a backward that is no softmax's.
struct last_router {
    double scale = 0.5;
};

template <class Policy, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const last_router& router, const Scores& scores, const sy::run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    const auto input = sy::const_view(sy::as_view(scores));
    plan.resize(input.rows, input.columns, 1, sy::unlimited);
    plan.made_by(sy::origin_of(mode, 5));
    for (sy::index_t t = 0; t < input.rows; ++t) {
        plan.view().expert[t] = static_cast<std::int32_t>(input.columns - 1);
        plan.view().gate[t] = static_cast<typename Plan::scalar>(router.scale);
    }
    sy::place_choices(policy, plan.view(), sy::slot_settings{}, scratch);
    sy::finish_losses(policy, plan.view(), sy::softmax_settings{}, nullptr, scratch);
}

template <class Policy, class Plan, class Scores, class Gates, class Out, class Workspace>
void route_scores_backward(const Policy&, const last_router& router, const Plan&, const Scores&, const Gates& d_gates,
                           Out&& d_scores, Workspace&, const sy::backward_settings& backward) {
    const auto gates = sy::as_view(d_gates);
    const auto out = sy::as_view(d_scores);
    for (sy::index_t t = 0; t < out.rows; ++t) {
        for (sy::index_t e = 0; e < out.columns; ++e) {
            out(t, e) = static_cast<float>(backward.loss_scale * router.scale) * gates(t, 0);
        }
    }
}

}  // namespace engine

namespace {

namespace sy = switchyard;
using sy::index_t;

template <class Call>
std::string sentence_of(Call&& call) {
    try {
        call();
    } catch (const sy::error& e) {
        return e.what();
    }
    return "";
}

struct derived_matrix : Eigen::MatrixXf {
    using Eigen::MatrixXf::MatrixXf;
};

}  // namespace

TEST_CASE("arguments: blocks of vectors, derived classes and maps with strides are what they show") {
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(6, 4);
    const sy::switch_router router;
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});
    const Eigen::VectorXf gates = Eigen::VectorXf::Random(9);
    const Eigen::MatrixXf six = gates.head(6), middle = gates.segment(1, 6);
    const auto expected = sy::route_scores_backward(sy::seq, router, plan, scores, six);
    CHECK(sy::as_eigen(sy::route_scores_backward(sy::seq, router, plan, scores, gates.head(6))) ==
          sy::as_eigen(expected));
    CHECK(sy::as_eigen(sy::route_scores_backward(sy::seq, router, plan, scores, gates.segment(1, 6))) ==
          sy::as_eigen(sy::route_scores_backward(sy::seq, router, plan, scores, middle)));
    // As outputs, too.
    Eigen::VectorXf d_gates = Eigen::VectorXf::Zero(8);
    Eigen::MatrixXf d_rows(plan.kept(), 4);
    const auto rows = sy::dispatch(sy::seq, plan, scores);
    sy::combine_backward(sy::seq, plan, rows, scores, d_rows, d_gates.segment(1, 6));
    CHECK(d_gates(0) == 0);
    CHECK(d_gates(7) == 0);
    CHECK(d_gates.segment(1, 6) == sy::as_eigen(sy::combine_backward(sy::seq, plan, rows, scores).d_gates));

    derived_matrix derived(6, 4);
    derived = scores;
    CHECK(sy::as_eigen(sy::route_scores(sy::seq, router, derived).gate()) ==
          sy::as_eigen(sy::route_scores(sy::seq, router, scores).gate()));
    // Every other row of every other column.
    using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    const Eigen::Map<const Eigen::MatrixXf, Eigen::Unaligned, strides> spread(scores.data(), 3, 2, strides(12, 2));
    const Eigen::MatrixXf copy = spread;
    CHECK(sy::as_eigen(sy::route_scores(sy::seq, router, spread).gate()) ==
          sy::as_eigen(sy::route_scores(sy::seq, router, copy).gate()));
    // One token is a row; one expert is a matrix of one column.
    const Eigen::VectorXf one = Eigen::VectorXf::Random(4);
    CHECK(sy::route_scores(sy::seq, router, one.transpose()).tokens() == 1);
    const Eigen::MatrixXf single = Eigen::MatrixXf::Zero(5, 1);
    CHECK(sy::route_scores(sy::seq, router, single).experts() == 1);
}

TEST_CASE_TEMPLATE("gradients that the library allocates are in the compute type", Storage, Eigen::half,
                   Eigen::bfloat16) {
    const index_t tokens = 65'536;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    Eigen::Matrix<Storage, Eigen::Dynamic, Eigen::Dynamic> scores(tokens, 8);
    for (index_t i = 0; i < scores.size(); ++i) scores.data()[i] = static_cast<Storage>(normal(random));
    const sy::switch_router router;
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});
    const Eigen::MatrixXf d_gates = Eigen::MatrixXf::Zero(tokens, 1);
    const auto d_scores = sy::route_scores_backward(sy::seq, router, plan, scores, d_gates);
    static_assert(std::is_same_v<sy::scalar_of<decltype(d_scores)>, float>);
    const auto zeros = (sy::as_eigen(d_scores).array() == 0).count();
    CHECK(zeros < tokens * 8 / 100);

    const Eigen::Matrix<Storage, Eigen::Dynamic, Eigen::Dynamic> few = scores.topRows(40);
    const Eigen::Matrix<Storage, Eigen::Dynamic, Eigen::Dynamic> w = scores.topRows(8);
    const auto from_tokens = sy::route(sy::seq, router, few, w, sy::training{});
    const Eigen::MatrixXf ones = Eigen::MatrixXf::Ones(40, 1);
    const auto gradients = sy::route_backward(sy::seq, router, from_tokens, few, w, ones);
    static_assert(std::is_same_v<sy::scalar_of<decltype(gradients.d_x)>, float>);
    static_assert(std::is_same_v<sy::scalar_of<decltype(gradients.d_w)>, float>);
    const auto rows = sy::dispatch(sy::seq, from_tokens, few);
    static_assert(std::is_same_v<sy::scalar_of<decltype(rows)>, Storage>);
    const auto back = sy::combine_backward(sy::seq, from_tokens, rows, few);
    static_assert(std::is_same_v<sy::scalar_of<decltype(back.d_rows)>, float>);
    const auto d_x = sy::dispatch_backward(sy::seq, from_tokens, rows);
    static_assert(std::is_same_v<sy::scalar_of<decltype(d_x)>, float>);
    // The same numbers as from rows in float.
    const Eigen::MatrixXf wide = sy::as_eigen(rows).template cast<float>();
    CHECK(sy::as_eigen(d_x) == sy::as_eigen(sy::dispatch_backward(sy::seq, from_tokens, wide)));
}

TEST_CASE("combine_backward: rows that the plan does not keep are zeros in what it allocates") {
    Eigen::MatrixXf scores = Eigen::MatrixXf::Zero(8, 4);
    scores.col(0).setOnes();
    const sy::switch_router router{.capacity = {.number = 2}};
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});
    REQUIRE(plan.kept() == 2);
    REQUIRE(plan.view().row_bound == 8);
    const Eigen::MatrixXf buffer = Eigen::MatrixXf::Ones(8, 3), d_y = Eigen::MatrixXf::Ones(8, 3);
    for (int times = 0; times < 3; ++times) {
        {
            sy::matrix<float> dirt(8, 3);  // its memory is likely given out again
            sy::as_eigen(dirt).setConstant(std::numeric_limits<float>::quiet_NaN());
        }
        const auto gradients = sy::combine_backward(sy::seq, plan, buffer, d_y);
        CHECK(gradients.d_rows.rows() == 8);
        CHECK(sy::as_eigen(gradients.d_rows).bottomRows(6).isZero(0));
        CHECK(sy::as_eigen(gradients.d_rows).topRows(2).minCoeff() > 0);
    }
}

TEST_CASE("a router of another namespace: switchyard::route_scores is the name of every form") {
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(6, 4), w = Eigen::MatrixXf::Random(4, 3);
    const engine::last_router router;
    sy::plan<float> plan;
    sy::workspace scratch;
    const auto is_right = [](const auto& made, index_t experts) {
        return made.expert()(5, 0) == experts - 1 && made.gate()(0, 0) == 0.5f && made.kept() == 6;
    };
    const sy::run_mode mode = sy::training{.seed = 3};
    sy::route_scores(sy::seq, router, scores, sy::training{}, plan, scratch);
    CHECK(is_right(plan, 4));
    CHECK(plan.view().origin.training);
    sy::route_scores(sy::seq, router, scores, mode, plan, scratch);
    CHECK(plan.view().origin.noise.seed == 3);
    sy::route_scores(sy::seq, router, scores, sy::inference{}, plan, scratch);
    CHECK(!plan.view().origin.training);
    route_scores(sy::seq, router, scores, sy::training{}, plan, scratch);
    CHECK(is_right(plan, 4));
    route_scores(sy::seq, router, scores, mode, plan, scratch);
    CHECK(is_right(sy::route_scores(sy::seq, router, scores), 4));
    CHECK(is_right(sy::route_scores(sy::seq, router, scores, sy::training{}), 4));
    CHECK(is_right(sy::route(sy::seq, router, scores, w), 3));
    sy::route(sy::seq, router, scores, w, sy::training{}, plan, scratch);
    CHECK(is_right(plan, 3));

    const Eigen::MatrixXf d_gates = Eigen::MatrixXf::Constant(6, 1, 4);
    Eigen::MatrixXf d_scores(6, 4), d_x(6, 4), d_w(4, 3);
    sy::route_scores(sy::seq, router, scores, sy::training{}, plan, scratch);
    sy::route_scores_backward(sy::seq, router, plan, scores, d_gates, d_scores, scratch);
    CHECK(d_scores == Eigen::MatrixXf::Constant(6, 4, 2));
    sy::route_scores_backward(sy::seq, router, plan, scores, d_gates, d_scores, scratch, {.loss_scale = 3});
    CHECK(d_scores == Eigen::MatrixXf::Constant(6, 4, 6));
    route_scores_backward(sy::seq, router, plan, scores, d_gates, d_scores, scratch, sy::backward_settings{});
    CHECK(d_scores == Eigen::MatrixXf::Constant(6, 4, 2));
    CHECK(sy::as_eigen(sy::route_scores_backward(sy::seq, router, plan, scores, d_gates)) == d_scores);
    sy::route(sy::seq, router, scores, w, sy::training{}, plan, scratch);
    sy::route_backward(sy::seq, router, plan, scores, w, d_gates, d_x, d_w, scratch);
    CHECK(d_x.isApprox(Eigen::MatrixXf::Constant(6, 3, 2) * w.transpose()));
}

TEST_CASE("noise needs a stream, and settings that are NaN are refused") {
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(6, 4), w = Eigen::MatrixXf::Random(4, 3);
    const auto sentence = [&](const auto& router, const sy::run_mode& mode) {
        return sentence_of([&] { static_cast<void>(sy::route(sy::seq, router, scores, w, mode)); });
    };
    const std::string why =
        " draws noise: give each layer a stream of its own, since layers with the same one share "
        "their noise";
    CHECK(sentence(sy::switch_router{.input_jitter = 0.25f}, sy::training{}) ==
          "training::stream is not set, and input_jitter = 0.25" + why);
    CHECK(sentence(sy::switch_router{.input_dropout = 0.25f}, sy::training{}) ==
          "training::stream is not set, and input_dropout = 0.25" + why);
    CHECK(sentence(sy::switch_router{.sample_temperature = 2}, sy::training{}) ==
          "training::stream is not set, and sample_temperature = 2" + why);
    CHECK(sentence(sy::top_k_router{.logit_jitter = 0.5f}, sy::training{.seed = 4, .step = 2}) ==
          "training::stream is not set, and logit_jitter = 0.5" + why);
    CHECK(sentence(sy::top_k_router{.logit_jitter = 0.5f}, sy::training{.stream = 0}) == "");
    CHECK(sentence(sy::top_k_router{.logit_jitter = 0.5f}, sy::inference{}) == "");
    CHECK(sentence(sy::switch_router{}, sy::training{}) == "");

    const double nan = std::numeric_limits<double>::quiet_NaN();
    const auto as_float = static_cast<float>(nan);
    const sy::training mode{.stream = 1};
    CHECK(sentence(sy::switch_router{.capacity = {.factor = nan}}, mode) != "");
    CHECK(sentence(sy::switch_router{.input_jitter = as_float}, mode) != "");
    CHECK(sentence(sy::switch_router{.input_dropout = as_float}, mode) != "");
    CHECK(sentence(sy::switch_router{.sample_temperature = as_float}, mode) != "");
    CHECK(sentence(sy::switch_router{.logit_jitter = as_float}, mode) != "");
    CHECK(sentence(sy::switch_router{.balance_weight = nan}, mode) != "");
    CHECK(sentence(sy::switch_router{.z_weight = nan}, mode) != "");
    CHECK(sentence(sy::top_k_router{.logit_jitter = as_float}, mode) != "");
    CHECK(sentence(sy::top_k_router{.balance_weight = nan}, mode) != "");
    CHECK(sentence(sy::top_k_router{.z_weight = nan}, mode) != "");
    CHECK(sentence(sy::base_router<sy::hungarian>{.solver = {.time_limit = nan}}, mode) != "");
    CHECK(sentence(sy::base_router<sy::auction>{.solver = {.gap_per_token = nan}}, mode) != "");
    CHECK(sentence(sy::base_router<sy::auction>{.solver = {.time_limit = nan}}, mode) != "");
    sy::matrix<float> weights(4, 3);
    CHECK(sentence_of([&] { initialise(sy::truncated_normal{.scale = nan}, sy::noise_key{}, weights); }) != "");
    CHECK(sentence_of([&] { initialise(sy::orthogonal{.gain = nan}, sy::noise_key{}, weights); }) != "");
    const Eigen::MatrixXf d_gates = Eigen::MatrixXf::Ones(6, 1);
    const auto backward = [&](const auto& router) {
        const auto plan = sy::route_scores(sy::seq, router, scores, mode);
        return sentence_of([&] {
            static_cast<void>(
                sy::route_scores_backward(sy::seq, router, plan, scores, d_gates, sy::backward_settings{nan}));
        });
    };
    CHECK(backward(sy::switch_router{}) == "loss_scale = nan must be finite");
    CHECK(backward(sy::base_router<>{}) == "loss_scale = nan must be finite");
}
