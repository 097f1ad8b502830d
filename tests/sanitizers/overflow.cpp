// An overflow that UndefinedBehaviorSanitizer must report.
#include <climits>
#include <cstdio>

int main(int argc, char**) {
    const int sum = INT_MAX - 1 + argc + argc;
    std::printf("%d\n", sum);
    return 0;
}
