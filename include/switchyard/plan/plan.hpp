// The plan: which expert each token goes to, in which row, with which weight. Everything downstream reads only this.
//
//   expert[T, k]    int32, best choice first; kept or dropped. -1 in all choices of a padding token.
//   slot[T, k]      int32, the choice's row within its expert, -1 where dropped.
//   gate[T, k]      the weight of the expert's output, 0 where dropped.
//   offsets[E + 1]  int64: expert e owns rows offsets[e] .. offsets[e + 1]; offsets[E] is how many rows there are.
//   order[rows]     int64: row -> token * k + choice, -1 in padding rows; expert by expert, slots rising. Its inverse
//                   is row = offsets[expert] + slot, so sums over a token's choices have a fixed order and need no
//                   atomics.
//   load_before[E], load_after[E]   choices an expert was given, before and after capacity.
//   balance_load[E] the choices the load-balancing loss counts (first choices, or all); training only.
//   row_maximum[T], row_sum[T]      what backward needs to recompute probabilities; training only.
//   totals          kept, counted tokens, losses, status.
//
// Experts without rows (`rowless_experts`): a plan may have E experts and, above them, ids E .. E + Z - 1 of experts
// that give back their input (identity, or copy) or nothing (zero). Their choices are chosen and weighed as all others.
// Then they have slot -1 and keep their gate, and that is all: no load, offset, capacity or count contains them, and
// `experts` is E. `combine` adds the tokens of identity choices whose gate is not 0: forbidden ones have that gate, and
// all of zero experts.
//
// `plan_view` is where these lie (any memory, no ownership, trivially copyable): an engine can point it at its own
// tensors. `basic_plan` owns them. What a plan counts lives in the plan's memory: on a device nothing needs to be read
// back, since row buffers can be sized by `row_bound`.
//
// Row blocks: an expert's rows begin at a multiple of `row_block`, for products that want whole tiles. load_after[e]
// rows are the expert's choices; padding rows fill its last block. They belong to no choice: dispatch and backward do
// not write them, combine and backward do not read them, `zero_rest` (dispatch/zero_rest.hpp) zeroes them. A block of
// 1, the default, has no padding. `set_row_block` before routing, or `lay_out` (plan/layout.hpp) afterwards.
//
// A plan is empty until the call that makes it has returned: after its constructor, after it was moved from, and where
// routing threw, on any policy, whatever the arrays hold by then. Every function that reads a plan refuses an empty one
// with a message; `kept()`, `offset()` and the losses of an empty plan are 0.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/philox.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/plan/capacity.hpp>

#include <cstdint>
#include <limits>
#include <utility>

namespace switchyard {

/// How routing went, where exceptions cannot tell (asynchronous policies). CPU policies throw instead.
enum class plan_status : std::int64_t {
    good = 0,
    bad_score = 1,   ///< NaN or +infinity
    unroutable = 2,  ///< every expert forbidden to a token, and nothing may be dropped
    repeated = 3,    ///< a token names an expert twice (plan/choices.hpp)
};

/// The numbers of a plan that are not arrays. They live in the plan's memory.
struct plan_totals {
    std::int64_t kept = 0;            ///< choices that have a row
    std::int64_t counted_tokens = 0;  ///< tokens that are not padding: the losses' denominator
    double load_balancing_loss = 0;   ///< weight included; training only
    double z_loss = 0;                ///< weight included; training only
    plan_status status = plan_status::good;
    std::int64_t status_token = -1;  ///< the first token with that status
};

/// Experts that take no rows, behind those that do: ids E .. E + identity - 1, then the zero ones, then the shared
/// ones.
struct rowless_experts {
    index_t identity = 0;  ///< their output is their input, the token
    index_t zero = 0;      ///< their output is 0
    index_t shared = 0;    ///< every token's last choices, chosen or not; what they run on is the caller's

    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr index_t count() const { return identity + zero + shared; }
    /// Of the number of one of them, from 0.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool is_zero(index_t number) const {
        return number >= identity && number < identity + zero;
    }
    friend constexpr bool operator==(const rowless_experts&, const rowless_experts&) = default;
};

/// What a plan was made by. Backward refuses a plan that its arguments cannot have made.
struct plan_origin {
    std::uint64_t settings = 0;  ///< a fingerprint of router and settings
    bool training = false;
    index_t width = 0;  ///< D where tokens were routed, 0 where scores were
    noise_key noise{};
    rowless_experts rowless{};
    bool finished = true;  ///< false: the plan is empty, or whoever makes it has not come to the end

    friend constexpr bool operator==(const plan_origin&, const plan_origin&) = default;
};

template <class S, class Space = host_space>
struct plan_view {
    using scalar = S;
    using space = Space;

    index_t tokens = 0;   ///< T
    index_t experts = 0;  ///< E, those with rows
    index_t choices = 1;  ///< k
    index_t capacity = unlimited;
    index_t row_bound = 0;  ///< no plan of this shape has more rows, padding included
    index_t row_block = 1;  ///< each expert's rows begin at a multiple of it

    std::int32_t* expert = nullptr;        // [T, k]
    std::int32_t* slot = nullptr;          // [T, k]
    S* gate = nullptr;                     // [T, k]
    std::int64_t* offsets = nullptr;       // [E + 1]
    std::int64_t* order = nullptr;         // [row_bound]
    std::int64_t* load_before = nullptr;   // [E]
    std::int64_t* load_after = nullptr;    // [E]
    std::int64_t* balance_load = nullptr;  // [E]
    S* row_maximum = nullptr;              // [T], training
    S* row_sum = nullptr;                  // [T], training
    plan_totals* totals = nullptr;

    plan_origin origin{};

    /// Whether choices get slots and rows at all: not where choices alone are asked for (router/route_choices.hpp).
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool has_rows() const { return offsets != nullptr; }
    /// The row of a choice among the dispatched rows, or -1 if it was dropped.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr index_t row_of(index_t position) const {
        return slot[position] < 0 ? -1 : offsets[expert[position]] + slot[position];
    }
    /// Whether an expert has no rows.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool is_rowless(index_t id) const { return id >= experts; }
    /// Whether a choice adds its token, times its gate, to what is combined.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool adds_token(index_t position) const {
        const index_t id = expert[position];
        return id >= experts && id < experts + origin.rowless.identity && gate[position] != S(0);
    }
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr index_t token_of(std::int64_t position) const {
        return position / choices;
    }
    /// Rows that `load` choices of an expert take, padding included.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr index_t rows_for(index_t load) const {
        return row_block == 1 ? load : (load + row_block - 1) / row_block * row_block;
    }
    /// Whether a row holds a kept choice: not if it is padding, or beyond all experts' rows.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool has_choice(index_t row) const {
        return row < offsets[experts] && (row_block == 1 || order[row] >= 0);
    }
};

inline namespace SWITCHYARD_TARGET {

/// min(T k, E C). Fails where no index_t counts T k.
constexpr index_t row_bound(index_t tokens, index_t choices, index_t experts, index_t capacity) {
    const index_t all = product_of_sizes("choices", tokens, choices);
    return experts > 0 && capacity < all / experts + 1 && experts * capacity < all ? experts * capacity : all;
}

/// The same with padding: whole blocks, of which an expert's last one may hold a single choice.
constexpr index_t row_bound(index_t tokens, index_t choices, index_t experts, index_t capacity, index_t row_block) {
    if (row_block < 1) {
        fail("row_block = ", row_block, " must be at least 1");
    }
    const index_t kept = row_bound(tokens, choices, experts, capacity);
    if (row_block == 1) {
        return kept;
    }
    const index_t begun = kept < experts ? kept : experts;
    const index_t most = kept < capacity ? kept : capacity;  // of one expert
    const index_t most_blocks = most / row_block + (most % row_block != 0 ? 1 : 0);
    index_t blocks = begun + (kept - begun) / row_block;
    if (experts > 0 && most_blocks < blocks / experts + 1 && experts * most_blocks < blocks) {
        blocks = experts * most_blocks;
    }
    return product_of_sizes("rows in blocks", blocks, row_block);
}

/// Fails where a plan is empty: see above.
template <class S, class Space>
void require_finished(const plan_view<S, Space>& plan) {
    require(plan.origin.finished && plan.offsets != nullptr,
            "the plan is empty: it was never made, or moved from, or the call that was to make it failed");
}

/// The plan is empty from now on, and until `finish_plan`: what throws in between leaves it so. Routers begin with it.
template <class Plan>
void begin_plan(Plan& plan) {
    plan.made_by({.finished = false});
}

/// Notes what the plan is being made by. It stays empty.
template <class Plan>
void continue_plan(Plan& plan, plan_origin origin) {
    origin.finished = false;
    plan.made_by(origin);
}

/// The plan is whole. Routers end with it.
template <class Plan>
void finish_plan(Plan& plan) {
    plan_origin origin = plan.view().origin;
    origin.finished = true;
    plan.made_by(origin);
}

namespace detail {

/// A view that stays behind empty where it is moved from.
template <class View>
struct view_of_owner {
    View view = nothing();

    view_of_owner() = default;
    // By hand: a function of the standard's would be one for all instruction sets.
    view_of_owner(view_of_owner&& other) noexcept : view(other.view) { other.view = nothing(); }
    view_of_owner& operator=(view_of_owner&& other) noexcept {
        const View taken = other.view;
        other.view = nothing();
        view = taken;
        return *this;
    }
    view_of_owner(const view_of_owner&) = delete;
    view_of_owner& operator=(const view_of_owner&) = delete;
    ~view_of_owner() = default;

    static View nothing() {
        View none;
        none.origin.finished = false;
        return none;
    }
};

}  // namespace detail

/// A plan that owns its arrays and keeps their memory from step to step. Movable, not copyable.
template <class S, class Memory = host_memory>
class basic_plan {
  public:
    using scalar = S;
    using memory = Memory;
    using space = typename Memory::space;

    basic_plan() = default;
    explicit basic_plan(const Memory& from)
        : expert_(0, from),
          slot_(0, from),
          gate_(0, from),
          counts_(0, from),
          order_(0, from),
          row_statistics_(0, from),
          totals_(0, from),
          scores_(from) {}

    /// Shapes the arrays; allocates only what no earlier shape needed. The plan is then empty, its contents undefined,
    /// until `made_by`. Fails, and changes nothing, where no index_t counts the elements.
    void resize(index_t tokens, index_t experts, index_t choices, index_t capacity) {
        const index_t positions = product_of_sizes("choices", tokens, choices);
        const index_t statistics = product_of_sizes("statistics of tokens", tokens, 2);
        const index_t counts = product_of_sizes("counts of experts", experts, 4) + 1;
        const index_t bound = switchyard::row_bound(tokens, choices, experts, capacity, row_block());
        auto& made = owned_.view;
        made.origin = plan_origin{.finished = false};
        made.tokens = tokens;
        made.experts = experts;
        made.choices = choices;
        made.capacity = capacity;
        made.row_bound = bound;
        made.expert = grown(expert_, positions);
        made.slot = grown(slot_, positions);
        made.gate = grown(gate_, positions);
        made.offsets = grown(counts_, counts);
        made.load_before = made.offsets + experts + 1;
        made.load_after = made.load_before + experts;
        made.balance_load = made.load_after + experts;
        made.order = grown(order_, made.row_bound);
        made.row_maximum = grown(row_statistics_, statistics);
        made.row_sum = made.row_maximum + tokens;
        made.totals = grown(totals_, 1);
    }

    /// Each expert's rows begin at a multiple of `block` (>= 1) from now on. The plan is then empty: set it before
    /// routing, or lay out what there is (`lay_out`, plan/layout.hpp).
    void set_row_block(index_t block) {
        auto& made = owned_.view;
        const index_t bound = switchyard::row_bound(made.tokens, made.choices, made.experts, made.capacity, block);
        made.origin.finished = false;
        made.row_block = block;
        made.row_bound = bound;
        made.order = grown(order_, bound);
    }

    /// Notes what the plan is made by, and whether it is whole: every router calls it, and whoever fills arrays by
    /// hand.
    void made_by(const plan_origin& origin) { owned_.view.origin = origin; }
    /// Whether there is a plan: not after the constructor, nor where it was moved from or a call failed.
    bool finished() const noexcept { return view().origin.finished && view().offsets != nullptr; }

    plan_view<S, space>& view() noexcept { return owned_.view; }
    const plan_view<S, space>& view() const noexcept { return owned_.view; }

    index_t tokens() const noexcept { return view().tokens; }
    index_t experts() const noexcept { return view().experts; }
    index_t choices() const noexcept { return view().choices; }
    index_t capacity() const noexcept { return view().capacity; }
    index_t row_bound() const noexcept { return view().row_bound; }
    index_t row_block() const noexcept { return view().row_block; }

    matrix_view<const std::int32_t, space> expert() const { return {view().expert, view().tokens, view().choices}; }
    matrix_view<const std::int32_t, space> slot() const { return {view().slot, view().tokens, view().choices}; }
    matrix_view<const S, space> gate() const { return {view().gate, view().tokens, view().choices}; }

    /// Scores computed from tokens, kept for backward: [T, E] after `route`. `route_scores` leaves them as they are:
    /// empty in a new plan, and otherwise those of the last `route`.
    matrix<S, Memory>& scores() noexcept { return scores_; }
    const matrix<S, Memory>& scores() const noexcept { return scores_; }

    // What the plan counted. Where it lies on a device, `totals_of` and `copy_to_host` (plan/device_plan.hpp) fetch it.
    const plan_totals& totals() const noexcept requires host_readable<Memory> {
        static constexpr plan_totals nothing{};
        return finished() ? *view().totals : nothing;
    }
    index_t kept() const noexcept requires host_readable<Memory> { return totals().kept; }
    double load_balancing_loss() const noexcept requires host_readable<Memory> { return totals().load_balancing_loss; }
    double z_loss() const noexcept requires host_readable<Memory> { return totals().z_loss; }
    /// Rows of all experts: kept(), and the padding of their last blocks.
    index_t rows() const noexcept requires host_readable<Memory> { return offset(experts()); }
    index_t offset(index_t expert) const noexcept requires host_readable<Memory> {
        return finished() ? view().offsets[expert] : 0;
    }

  private:
    template <class T>
    static T* grown(buffer<T, Memory>& array, index_t count) {
        array.resize(count);
        return array.data();
    }

    detail::view_of_owner<plan_view<S, space>> owned_;
    buffer<std::int32_t, Memory> expert_;
    buffer<std::int32_t, Memory> slot_;
    buffer<S, Memory> gate_;
    buffer<std::int64_t, Memory> counts_;
    buffer<std::int64_t, Memory> order_;
    buffer<S, Memory> row_statistics_;
    buffer<plan_totals, Memory> totals_;
    matrix<S, Memory> scores_;
};

/// The plan of the CPU policies; S is the type gates are computed in, float or double.
template <class S>
using plan = basic_plan<S, host_memory>;

/// A plan or a view of one, as the functions downstream take it.
template <class P>
concept plan_like = requires(const P& p) {
    p.view().totals;
}
|| requires(const P& p) { p.totals->kept; };

namespace detail {

/// The plan's gates as a matrix.
template <class S, class Space>
matrix_view<const S, Space> gates_of(const plan_view<S, Space>& plan) {
    return {plan.gate, plan.tokens, plan.choices};
}

}  // namespace detail

template <class S, class Space>
constexpr const plan_view<S, Space>& view_of_plan(const plan_view<S, Space>& p) {
    return p;
}
template <class S, class Memory>
const plan_view<S, typename Memory::space>& view_of_plan(const basic_plan<S, Memory>& p) {
    return p.view();
}

/// Fails, with a message, unless gradients of gates have the plan's shape.
template <class Plan, class Gates>
void require_gate_shape(const Plan& plan, const Gates& d_gates) {
    require(d_gates.rows == plan.tokens && d_gates.columns == plan.choices, "d_gates is ", d_gates.rows, " x ",
            d_gates.columns, "; the plan has ", plan.tokens, " tokens x ", plan.choices, " choices");
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
