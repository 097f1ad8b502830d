// NaN and infinities decide here.
// mistake flags: -ffinite-math-only
// expect: switchyard needs NaN and infinities
#include <switchyard/core/config.hpp>
