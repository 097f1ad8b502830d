// LEMON's network simplex on the balanced assignment: the baseline of exact solvers.
//
// Used in the way that was the fastest of those tried (LEMON 1.3.1, skewed scores): the altering candidate list; arcs
// added expert by expert, mixed by LEMON except where there are few tokens per expert; integer costs. At 65536 x 64 and
// 65536 x 256, arcs added token by token took 1.1 to 2 times as long, block search 1.2 to 1.5 times, the candidate list
// 2 to 3 times, first eligible 10 times and more; at 16384 x 1024 mixing took 1.3 times as long as not, and at 65536 x
// 64 a third or less. SmartDigraph, StaticDigraph and ListDigraph differ by noise: the solver copies the graph into
// arrays of its own. Costs in double are as fast where they fit the caches, and slower where they do not. Building is
// not part of `run`.
//
// Costs are the scores in units of 2^-24 of the largest: its optimum is one of scores rounded to that.
#pragma once

#include "assignment_scores.hpp"

#include <lemon/network_simplex.h>
#include <lemon/smart_graph.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace bench {

/// Each expert takes T / E tokens; where E does not divide T, some take one more.
class lemon_network_simplex {
  public:
    explicit lemon_network_simplex(const row_major& scores)
        : tokens_(scores.rows()), experts_(scores.cols()), costs_(graph_, 0) {
        const index_t quota = tokens_ / experts_;
        const bool even = tokens_ % experts_ == 0;
        graph_.reserveNode(static_cast<int>(tokens_ + experts_ + 1));
        graph_.reserveArc(static_cast<int>(tokens_ * experts_ + experts_));
        for (index_t i = 0; i < tokens_ + experts_ + 1; ++i) graph_.addNode();
        double largest = 0;
        for (index_t i = 0; i < scores.size(); ++i) {
            const double size = std::abs(static_cast<double>(scores.data()[i]));
            if (std::isfinite(size)) largest = std::max(largest, size);
        }
        units_ = largest > 0 ? (1 << 24) / largest : 1.0;
        for (index_t e = 0; e < experts_; ++e) {
            for (index_t t = 0; t < tokens_; ++t) {
                const auto score = static_cast<double>(scores(t, e));
                if (!std::isfinite(score)) continue;  // forbidden
                costs_[graph_.addArc(node(t), node(tokens_ + e))] = static_cast<int>(std::lround(-units_ * score));
            }
        }
        graph::ArcMap<int> lower(graph_, 0), upper(graph_, 1);
        graph::NodeMap<int> supply(graph_, 0);
        for (index_t t = 0; t < tokens_; ++t) supply[node(t)] = 1;
        for (index_t e = 0; e < experts_; ++e) {
            if (even) {
                supply[node(tokens_ + e)] = static_cast<int>(-quota);
                continue;
            }
            const auto arc = graph_.addArc(node(tokens_ + e), sink());
            lower[arc] = static_cast<int>(quota);
            upper[arc] = static_cast<int>(quota + 1);
        }
        if (!even) supply[sink()] = static_cast<int>(-tokens_);
        network_ = std::make_unique<simplex>(graph_, tokens_ >= 64 * experts_);
        network_->costMap(costs_).supplyMap(supply);
        // Without bounds where none are needed: a token's one unit bounds its arcs.
        if (!even) network_->lowerMap(lower).upperMap(upper);
    }

    bool run() { return network_->run(simplex::ALTERING_LIST) == simplex::OPTIMAL; }

    std::vector<std::int32_t> expert_of_token() const {
        std::vector<std::int32_t> chosen(static_cast<std::size_t>(tokens_), -1);
        for (graph::ArcIt arc(graph_); arc != lemon::INVALID; ++arc) {
            const index_t t = graph::id(graph_.source(arc));
            if (t < tokens_ && network_->flow(arc) > 0) {
                chosen[static_cast<std::size_t>(t)] =
                    static_cast<std::int32_t>(graph::id(graph_.target(arc)) - tokens_);
            }
        }
        return chosen;
    }

    /// The dual: reduced costs -s + pi_t - pi_e are not negative, so prices are -pi_e, counted from the sink's.
    std::vector<double> prices() const {
        std::vector<double> found;
        const int market = tokens_ % experts_ == 0 ? 0 : network_->potential(sink());
        for (index_t e = 0; e < experts_; ++e) {
            found.push_back((market - network_->potential(node(tokens_ + e))) / units_);
        }
        return found;
    }

  private:
    using graph = lemon::SmartDigraph;
    using simplex = lemon::NetworkSimplex<graph, int, int>;

    static graph::Node node(index_t i) { return graph::nodeFromId(static_cast<int>(i)); }
    graph::Node sink() const { return node(tokens_ + experts_); }

    index_t tokens_;
    index_t experts_;
    double units_ = 1;  // in a score of 1
    graph graph_;
    graph::ArcMap<int> costs_;
    std::unique_ptr<simplex> network_;
};

}  // namespace bench
