// The last few tokens without a place, on a device: they take what is free.
//
// An auction of many tokens spends most of its rounds on the last thousandth of them, whose bids raise the prices of
// full experts place by place. Given the free places they like best instead, they lose some of their margin; what that
// comes to is what the certificate says. Where it is not good enough, the auction goes on from where it was.
//
// Experts below their lower bounds come first; others take tokens once no such expert is left. Of the tokens that want
// an expert more than it has room for, the first ones get it.
#pragma once

#include <switchyard/assignment/detail/device_auction_market.hpp>
#include <switchyard/core/config.hpp>

#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Places an expert has for tokens now.
SWITCHYARD_HD inline index_t room_of(const device_market& market, index_t e) {
    const index_t bound = market.state->missing > 0 ? market.lower[e] : market.upper[e];
    return bound > market.load[e] ? bound - market.load[e] : 0;
}

/// The market in which places are filled, another one's copy.
struct copy_rows {
    device_market from;
    device_market to;

    SWITCHYARD_HD void operator()(index_t t) const { to.expert[t] = from.expert[t]; }
};
struct copy_loads {
    device_market from;
    device_market to;

    SWITCHYARD_HD void operator()(index_t e) const { to.load[e] = from.load[e]; }
};

/// How many tokens the lower bounds are short of. One thread.
struct count_missing {
    device_market market;

    SWITCHYARD_HD void operator()(index_t) const {
        index_t missing = 0;
        for (index_t e = 0; e < market.experts; ++e) {
            const index_t short_of = market.lower[e] - market.load[e];
            missing += short_of > 0 ? short_of : 0;
        }
        market.state->missing = missing;
    }
};

/// A token without a place asks for the expert with room that it likes best, at a level below all that were bid.
template <class S, class Space>
struct ask_for_room {
    device_market market;
    device_scores<S, Space> scores;

    SWITCHYARD_HD void operator()(index_t t) const {
        if (market.expert[t] != open_token) return;
        double best = -device_market::infinity;
        for (index_t e = 0; e < market.experts; ++e) {
            if (room_of(market, e) == 0) continue;
            const double margin = scores(t, e) - market.price[e];
            if (!(margin > best)) continue;
            best = margin;
            market.expert[t] = static_cast<std::int32_t>(e);
            market.level[t] = -std::numeric_limits<double>::max();
        }
    }
};

/// Rows beyond the room of their experts go on looking.
struct take_askers {
    device_market market;

    SWITCHYARD_HD void operator()(index_t i) const {
        const std::int32_t e = market.line.expert[i];
        if (e == market.experts) return;
        const index_t kept = market.load[e] + room_of(market, e);
        if (i < market.line.start[e + 1] - kept) market.expert[market.line.position[i]] = open_token;
    }
};
struct settle_room {
    device_market market;

    SWITCHYARD_HD void operator()(index_t e) const {
        const index_t asked = market.line.start[e + 1] - market.line.start[e];
        const index_t most = market.load[e] + room_of(market, e);
        market.load[e] = asked < most ? asked : most;
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
