// Built with -fno-exceptions -fno-rtti: a broken rule calls the handler, which must not return.
#include <switchyard/switchyard.hpp>

#include <array>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <span>

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "compile this with -fno-exceptions -fno-rtti"
#endif

namespace sy = switchyard;

namespace {

std::jmp_buf back;
char said[256];

[[noreturn]] void note_and_leave(const char* sentence) {
    std::strncpy(said, sentence, sizeof said - 1);
    std::longjmp(back, 1);
}

}  // namespace

int main() {
    sy::set_error_handler(&note_and_leave);
    static std::array<float, 6> numbers{1, 2, 3, 4, 5, 6};

    // What is right works as ever.
    const auto scores = sy::view_of(std::span(numbers), 2, 3);
    const auto plan = sy::route_scores(sy::seq, sy::switch_router{.capacity = {.number = 1}}, scores, sy::training{});
    if (plan.expert()(0, 0) != 2 || plan.kept() != 1) {
        std::puts("the router does not route");
        return 1;
    }
    // What is wrong calls the handler with the sentence.
    if (setjmp(back) == 0) {
        sy::view_of(std::span(numbers), 2, 4);
        std::puts("a wrong shape was accepted");
        return 1;
    }
    std::printf("handler: %s\n", said);
    return std::strcmp(said, "a span of 6 numbers cannot be viewed as 2 x 4") == 0 ? 0 : 1;
}
