// assignment_report: how far greedy choice, Switch with a capacity, the auction and the exact solver are from the best
// balanced assignment, on a file's scores or on generated ones.
//
// Bad input of any kind ends with status 2, one line on stderr and nothing written.
#include "complain.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "output.hpp"
#include "output_file.hpp"

#include <iostream>
#include <string>

namespace {

using namespace study;

void run(const options& asked) {
    output_file csv(asked.csv);  // before the work, not after it
    output_file prices(asked.prices);
    const report made = measure(asked);
    csv.write(csv_of(made));
    prices.write(prices_npy(made));
    std::cout << text_of(made) << std::flush;
    sy::require(std::cout.good(), "the table cannot be written to standard output");
    csv.move_in();
    prices.move_in();
}

}  // namespace

int main(int argc, char** argv) {
    return study::run_or_complain("assignment_report", "not enough memory for these scores", [&] {
        if (const auto asked = parse_options(argc, argv)) {
            run(*asked);
        }
        return 0;
    });
}
