// route_scores: routes a file of scores by one or several routers, for studies that compare them.
//
// Everything is read and routed first; only then are files written, all of them or none. Bad input of any kind ends
// with status 2, one line on stderr and nothing written.
#include "complain.hpp"
#include "npy.hpp"
#include "options.hpp"
#include "output.hpp"
#include "report.hpp"
#include "run.hpp"

#include <iostream>
#include <string>
#include <variant>
#include <vector>

namespace {

using namespace study;

void write_all(const options& asked, const std::vector<routing>& all) {
    output_folder out(asked.out);
    const bool several = all.size() > 1;
    for (const routing& made : all) {
        write_results(out, several ? name_of(routers_by_name, made.router) : "", asked, made);
    }
    out.move_in();
    if (several) {
        std::cout << comparison_of(all) << std::flush;
        sy::require(std::cout.good(), "the comparison cannot be written to standard output");
    }
    out.keep();
}

void run(const options& asked) {
    require_built_in(asked);
    {
        const output_folder writable(asked.out);  // before the work, not after it
    }
    const inputs given = read_inputs(asked);
    const index_t experts = std::visit([](const auto& table) { return table.columns(); }, given.scores);
    for (const router_kind router : asked.routers) {
        const index_t k = chooses_by_keys(router) ? recipe_of(asked, router).k : 1;
        const index_t choosable = experts - (is_recipe(router) ? shared_experts_of(asked) : 0);
        sy::require(k <= choosable, "--k ", k, " must lie in 1..E = ", choosable);
    }
    std::vector<routing> all;
    for (const router_kind router : asked.routers) {
        all.push_back(run_router(asked, router, given));
    }
    write_all(asked, all);
}

}  // namespace

int main(int argc, char** argv) {
    return study::run_or_complain("route_scores", "not enough memory for these scores", [&] {
        if (const auto asked = parse_options(argc, argv)) {
            run(*asked);
        }
        return 0;
    });
}
