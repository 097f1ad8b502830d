#include "train_run.hpp"

namespace study {

template run_record train<float>(const options&, const run_settings&, const corpus&, thread_team&, const watcher&);

}  // namespace study
