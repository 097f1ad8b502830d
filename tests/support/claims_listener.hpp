// Writes what the test cases of a program claim to cover (claims.hpp). Included by the one file that holds doctest's
// implementation.
#pragma once

#include "support/claims.hpp"

#include <doctest/doctest.h>

namespace switchyard_test {

class claims_listener : public doctest::IReporter {
  public:
    explicit claims_listener(const doctest::ContextOptions&) {}

    void test_case_start(const doctest::TestCaseData&) override { claims_of_test_case().clear(); }
    void test_case_end(const doctest::CurrentTestCaseStats& result) override {
        if (result.failure_flags == 0) file_.add(claims_of_test_case());
        claims_of_test_case().clear();
    }

    void test_run_end(const doctest::TestRunStats& result) override {
        file_.line("end", result.numTestCasesFailed == 0 ? "passed" : "failed");
    }

    void report_query(const doctest::QueryData&) override {}
    void test_run_start() override {}
    void test_case_reenter(const doctest::TestCaseData&) override {}
    void test_case_exception(const doctest::TestCaseException&) override {}
    void subcase_start(const doctest::SubcaseSignature&) override {}
    void subcase_end() override {}
    void log_assert(const doctest::AssertData&) override {}
    void log_message(const doctest::MessageData&) override {}
    void test_case_skipped(const doctest::TestCaseData&) override {}

  private:
    claims_file file_;
};

}  // namespace switchyard_test

REGISTER_LISTENER("covers", 1, switchyard_test::claims_listener);
