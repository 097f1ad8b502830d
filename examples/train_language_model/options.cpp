#include "options.hpp"

#include "command_line.hpp"

#include <algorithm>
#include <cstdint>
#include <string>
#include <thread>

namespace study {
namespace {

constexpr const char* about =
    "Trains a small language model over bytes, with every router of the switchyard library and a dense\n"
    "model of equal work per token, and compares them.";

constexpr const char* more =
    "Written to DIR:\n"
    "  results.csv    one line per evaluation of a run: step, seconds, losses, loads\n"
    "  results.json   everything, the options included\n"
    "  scores/*.npy   float32 [tokens, experts], what each trained router gives the held-out text\n"
    "  report.html    the same as pictures\n"
    "Ctrl-C ends the training and writes what there is.\n"
    "\n"
    "Examples:\n"
    "  train_language_model\n"
    "  train_language_model --router dense,switch,base --seeds 5 --text my.txt --out my-results\n"
    "  train_language_model --router switch --precision float32,bfloat16,pure_bfloat16 --seeds 5\n"
    "\n"
    "Exit status: 0 done; 2 bad input, with one line on stderr; 130 interrupted, with what there is written.";

class grammar : public command_line {
  public:
    explicit grammar(options& asked) : command_line("train_language_model", about, more, 34), asked_(asked) {
        add_what();
        add_model();
        add_training();
        add_execution();
    }

  private:
    void add_what() {
        group_ = "What is compared";
        add("--router", "R[,R...]",
            "all, or some of\n"
            "dense              no router: one expert for all, of equal work per token\n"
            "switch_unbalanced  the best expert, without a balance loss\n"
            "switch             the best expert (Fedus et al. 2021)\n"
            "switch_jitter      the same with noise on the router's input\n"
            "top_2              the two best of half the width\n"
            "base               balanced assignment (Lewis et al. 2021)\n"
            "gshard             the two best of half the width, the second by chance (Lepikhin et al. 2020)\n"
            "sparse_mixer       two drawn in turn, of half the width (Liu et al. 2023)\n"
            "deepseek_v3        two by sigmoid + bias within the best groups; the bias balances\n"
            "deepseek_v4        two by sqrt-softplus + bias; the bias balances\n"
            "quantile           the best by score + bias, moved by quantiles of scores\n"
            "sinkhorn           the best by softly balanced scores (Clark et al. 2022)\n"
            "hash               by a table of bytes (Roller et al. 2021)\n"
            "random             by chance\n"
            "round_robin        in turn\n"
            "(the first six)",
            [this](const char* name, const std::string& text) {
                if (text == "all") {
                    for (const auto& entry : contenders_by_name) asked_.contenders.push_back(entry.value);
                } else {
                    asked_.contenders = values_in(name, contenders_by_name, text);
                }
            });
        add_names("--precision", "P[,P...]", precisions_by_name, asked_.precisions,
                  "Of activations: float32, bfloat16 with routing in float32, pure_bfloat16 with the router in "
                  "bfloat16, too (float32)");
        app_.add_option("--text", asked_.text, "Files and folders to learn from (the Eigen headers)")
            ->type_name("FILE")
            ->group(group_);
        add_path("--out", "DIR", "Folder for the results, made if need be (study-results)", asked_.out);
    }

    void add_model() {
        group_ = "The model";
        add_number<index_t>("--experts", "N", "Experts per layer (16)", asked_.experts, 2, 1024);
        add_number<index_t>("--hidden", "N",
                            "Hidden width of an expert, and of the dense model; top_2's have half (256)", asked_.hidden,
                            2, 65536);
        add_number<index_t>("--width", "N", "Numbers per token (64)", asked_.width, 1, 4096);
        add_number<index_t>("--layers", "N", "Layers of experts (1)", asked_.layers, 1, 64);
        add_number<index_t>("--context", "N", "Bytes the next one is told from (16)", asked_.context, 1, 512);
    }

    void add_training() {
        group_ = "Training";
        add_number<index_t>("--steps", "N", "Steps of a run (2000)", asked_.steps, 1, 100'000'000);
        add_number<index_t>("--tokens", "N", "Tokens per step (1024)", asked_.tokens, 1, 1 << 20);
        add_number<double>("--rate", "X", "Adam's learning rate, after a hundred steps of warming up (0.02)",
                           asked_.rate, 0, 10);
        add_number<double>("--capacity-factor", "F", "Rows per expert = F k T / E, in training (1.25)",
                           asked_.capacity_factor, 0, 1e6);
        add_number<double>("--balance-weight", "W",
                           "Of the balance loss of switch, switch_jitter, top_2, gshard and sparse_mixer (0.05)",
                           asked_.balance_weight, 0, 1e6);
        add_number<double>("--jitter", "X", "Of switch_jitter: the router's input times U[1-X, 1+X) (0.01)",
                           asked_.jitter, 0, 0.999);
        add_number<std::uint64_t>("--seed", "N", "Of the first run of each router (1)", asked_.seed);
        add_number<index_t>("--seeds", "N", "Runs of each router, with seeds that follow (1)", asked_.seeds, 1, 10'000);
    }

    void add_execution() {
        group_ = "How it runs";
        add_number<int>("--threads", "N", "One per core unless given; results do not depend on it", asked_.threads, 1,
                        1024);
        app_.add_flag_callback(
                "--no-report", [this] { asked_.report = false; }, "Make no report.html")
            ->group(group_);
    }

    options& asked_;
};

}  // namespace

std::optional<options> parse_options(int argc, const char* const* argv) {
    options asked;
    grammar line(asked);
    if (!line.parse(argc, argv)) {
        return std::nullopt;
    }
    if (asked.contenders.empty()) {
        for (std::size_t i = 0; i < usual_contenders; ++i) asked.contenders.push_back(contenders_by_name[i].value);
    }
    if (asked.precisions.empty()) {
        asked.precisions.push_back(precision::float32);
    }
    if (asked.threads == 0) {
        asked.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    }
    for (const contender kind : asked.contenders) {
        const bool wants_one = kind != contender::dense && std::count(asked.precisions.begin(), asked.precisions.end(),
                                                                      precision::pure_bfloat16) > 0;
        sy::require(!wants_one || has_bfloat16_router(kind), "--precision pure_bfloat16: there is no such router of ",
                    name_of(contenders_by_name, kind));
        sy::require(kind != contender::quantile || asked.tokens % asked.experts == 0, "--router quantile: --tokens ",
                    asked.tokens, " must be a multiple of --experts ", asked.experts);
    }
    sy::require(asked.tokens >= asked.experts, "--tokens ", asked.tokens, " must be at least --experts ",
                asked.experts);
    const double numbers = 12.0 * static_cast<double>(asked.layers) * static_cast<double>(asked.experts) *
                           static_cast<double>(asked.hidden) * static_cast<double>(asked.width);
    sy::require(numbers <= 4e9, "--layers ", asked.layers, " of --experts ", asked.experts, ", --hidden ", asked.hidden,
                " and --width ", asked.width, " are too large: over a thousand million numbers to learn");
    return asked;
}

}  // namespace study
