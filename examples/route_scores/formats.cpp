#include "formats.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace study {
namespace {

template <class T>
std::string type_name() {
    return sizeof(T) == 1 ? std::string("|u1") : npy_type<T>();
}

/// Writes the arrays of one plan.
template <class S>
class format_writer {
  public:
    format_writer(const options& asked, sy::plan<S>& plan) : asked_(asked), plan_(plan) {}

    std::vector<format_array> write() {
        const auto write_those = [&](bool by_slot) {
            for (const format_kind format : asked_.formats) {
                name_ = name_of(formats_by_name, format);
                if ((format == format_kind::one_hot) == by_slot) write(format);
            }
        };
        write_those(true);  // by the slots of slots.npy, which sorting moves
        sy::sort_rows_by_token(sy::seq, plan_, scratch_);
        write_those(false);
        return std::move(made_);
    }

  private:
    index_t tokens() const { return plan_.tokens(); }
    index_t experts() const { return plan_.experts(); }
    index_t choices() const { return plan_.choices(); }
    index_t block_or(index_t usual) const { return asked_.block.value_or(usual); }

    /// write(out) fills out[rows, columns]; a list, with one row, has one dimension.
    template <class T, class Write>
    void table(const char* array, index_t rows, index_t columns, bool is_list, const Write& write) {
        sy::matrix<T> out(rows, columns);
        write(out);
        format_array file{name_ + "_" + array, type_name<T>(), {}, {}};
        if (!is_list) file.shape.push_back(rows);
        file.shape.push_back(columns);
        file.bytes.resize(static_cast<std::size_t>(rows * columns) * sizeof(T));
        if (!file.bytes.empty()) std::memcpy(file.bytes.data(), out.data(), file.bytes.size());
        made_.push_back(std::move(file));
    }
    template <class T = std::int32_t, class Write>
    void list(const char* array, index_t count, const Write& write) {
        table<T>(array, 1, count, true, write);
    }
    void counts(const char* array, sy::plan_counts kind) {
        list(array, experts() + (kind == sy::plan_counts::offsets ? 1 : 0),
             [&](auto& out) { sy::write_counts(sy::seq, plan_, kind, out); });
    }
    void row_tokens(const char* array) {
        list(array, plan_.rows(), [&](auto& out) { sy::write_row_tokens(sy::seq, plan_, out); });
    }
    void row_choices(const char* array) {
        list(array, plan_.rows(), [&](auto& out) { sy::write_row_choices(sy::seq, plan_, out); });
    }
    void row_experts(const char* array) {
        list(array, plan_.rows(), [&](auto& out) { sy::write_row_experts(sy::seq, plan_, out); });
    }
    void row_weights(const char* array) {
        list<float>(array, plan_.rows(), [&](auto& out) {
            for (index_t row = 0; row < plan_.rows(); ++row) {
                out.data()[row] = static_cast<float>(plan_.view().gate[plan_.view().order[row]]);
            }
        });
    }
    void choice_rows(const char* array) {
        table<std::int32_t>(array, tokens(), choices(), false,
                            [&](auto& out) { sy::write_choice_rows(sy::seq, plan_, out); });
    }
    void weights(const char* array) {
        table<float>(array, tokens(), choices(), false, [&](auto& out) { sy::write_weights(sy::seq, plan_, out); });
    }

    void write(format_kind format) {
        sy::lay_out(sy::seq, plan_, 1, scratch_);
        switch (format) {
            case format_kind::rows:
                row_choices("order");
                row_tokens("tokens");
                counts("counts", sy::plan_counts::kept);
                counts("offsets", sy::plan_counts::offsets);
                return choice_rows("row_of_choice");
            case format_kind::grouped_mm:
                return counts("offs", sy::plan_counts::ends);
            case format_kind::vllm:
                return write_vllm(block_or(16));
            case format_kind::deepgemm:
                return write_deepgemm(block_or(128));
            case format_kind::megatron:
                return write_megatron();
            case format_kind::te:
                return write_transformer_engine();
            case format_kind::deepep:
                return write_deepep();
            case format_kind::megablocks:
                return write_megablocks(block_or(128));
            case format_kind::sonic:
                return write_sonic();
            case format_kind::scatter:
                row_experts("sorted_expert_idxs");
                row_choices("sorted_scattered_idxs");
                return counts("expert_offsets", sy::plan_counts::ends);
            case format_kind::llama_cpp:
                table<std::int32_t>("ids", tokens(), choices(), false,
                                    [&](auto& out) { sy::write_ids(sy::seq, plan_, out, {.none = 0}); });
                return weights("weights");
            case format_kind::flashinfer:
                return table<std::int32_t>("packed", tokens(), choices(), false,
                                           [&](auto& out) { sy::write_packed_choices(sy::seq, plan_, out); });
            case format_kind::one_hot:
                return write_one_hot();
        }
    }

    void write_vllm(index_t block) {
        sy::lay_out(sy::seq, plan_, block, scratch_);
        const auto sizes = sy::aligned_block_sizes(tokens(), choices(), experts(), block);
        sy::matrix<std::int32_t> ids(1, sizes.ids);
        sy::matrix<std::int32_t> owners(1, sizes.blocks);
        sy::matrix<std::int32_t> padded(1, 1);
        sy::write_aligned_blocks(sy::seq, plan_, ids, owners, padded);
        const auto keep = [&](const char* array, const sy::matrix<std::int32_t>& from) {
            list(array, from.columns(), [&](auto& out) {
                for (index_t i = 0; i < from.columns(); ++i) out.data()[i] = from.data()[i];
            });
        };
        keep("sorted_token_ids", ids);
        keep("expert_ids", owners);
        keep("num_tokens_post_pad", padded);
    }
    void write_deepgemm(index_t block) {
        sy::lay_out(sy::seq, plan_, block, scratch_);
        row_experts("m_indices");
        counts("psum_aligned", sy::plan_counts::ends);
        counts("psum_actual", sy::plan_counts::kept_ends);
        // The row of each sorted choice.
        list("row_of_sorted", plan_.kept(), [&](auto& out) {
            index_t sorted = 0;
            for (index_t row = 0; row < plan_.rows(); ++row) {
                if (plan_.view().order[row] >= 0) out.data()[sorted++] = static_cast<std::int32_t>(row);
            }
        });
    }
    void write_megatron() {
        table<std::uint8_t>("routing_map", tokens(), experts(), false,
                            [&](auto& out) { sy::write_routing_map(sy::seq, plan_, out); });
        table<float>("probs", tokens(), experts(), false,
                     [&](auto& out) { sy::write_routing_weights(sy::seq, plan_, out); });
        row_tokens("sorted_indices");
        row_weights("permuted_probs");
    }
    void write_transformer_engine() {
        table<std::int32_t>("row_id_map", tokens(), 2 * experts() + 1, false,
                            [&](auto& out) { sy::write_row_map(sy::seq, plan_, out); });
        table<std::uint8_t>("router_bitmap", tokens(), (experts() + 7) / 8, false,
                            [&](auto& out) { sy::write_routing_bits(sy::seq, plan_, out); });
    }
    void write_deepep() {
        const index_t ranks = *asked_.ranks;
        table<std::int64_t>("topk_idx", tokens(), choices(), false,
                            [&](auto& out) { sy::write_ids(sy::seq, plan_, out); });
        weights("topk_weights");
        sy::matrix<std::int32_t> per_rank(1, ranks);
        table<std::uint8_t>("is_token_in_rank", tokens(), ranks, false,
                            [&](auto& out) { sy::write_rank_layout(sy::seq, plan_, ranks, per_rank, out, scratch_); });
        list("num_tokens_per_rank", ranks, [&](auto& out) {
            for (index_t r = 0; r < ranks; ++r) out.data()[r] = per_rank.data()[r];
        });
        counts("num_tokens_per_expert", sy::plan_counts::kept);
    }
    void write_megablocks(index_t block) {
        list("bins", experts(), [&](auto& out) { sy::write_bins(sy::seq, plan_, 1, out); });
        list("padded_bins", experts(), [&](auto& out) { sy::write_bins(sy::seq, plan_, block, out); });
        row_choices("indices");
        row_experts("bin_ids");
    }
    void write_sonic() {
        counts("expert_frequency_offset", sy::plan_counts::offsets);
        row_tokens("x_gather_idx");
        row_choices("s_scatter_idx");
        choice_rows("s_reverse_scatter_idx");
    }
    void write_one_hot() {
        index_t most = plan_.capacity();
        if (most == sy::unlimited || most > tokens()) {  // a token that names an expert twice has two rows there
            most = sy::masked_rows(plan_);
            for (index_t e = 0; e < experts(); ++e) {
                most = std::max(most, static_cast<index_t>(plan_.view().load_after[e]));
            }
        }
        constexpr double largest = 1 << 28;
        sy::require(
            static_cast<double>(tokens()) * static_cast<double>(experts()) * static_cast<double>(most) <= largest,
            "--format one_hot needs ", tokens(), " x ", experts(), " x ", most, " numbers, which is for small sizes");
        const auto write_table = [&](const char* array, auto number, const auto& fill) {
            using T = decltype(number);
            table<T>(array, tokens(), experts() * most, false, fill);
            made_.back().shape = {tokens(), experts(), most};
        };
        write_table("dispatch", std::uint8_t{}, [&](auto& out) { sy::write_one_hot(sy::seq, plan_, out); });
        write_table("combine", float{}, [&](auto& out) { sy::write_combine_weights(sy::seq, plan_, out); });
    }

    const options& asked_;
    sy::plan<S>& plan_;
    sy::workspace scratch_;
    std::string name_;
    std::vector<format_array> made_;
};

}  // namespace

template <class S>
std::vector<format_array> format_arrays_of(const options& asked, sy::plan<S>& plan) {
    if (asked.formats.empty()) return {};
    return format_writer<S>(asked, plan).write();
}
template std::vector<format_array> format_arrays_of(const options&, sy::plan<float>&);
template std::vector<format_array> format_arrays_of(const options&, sy::plan<double>&);

}  // namespace study
