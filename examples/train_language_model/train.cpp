#include "train.hpp"

namespace study {

std::string run_settings::name() const {
    std::string name = name_of(contenders_by_name, kind);
    if (stored != precision::float32) {
        name += ' ';
        name += name_of(precisions_by_name, stored);
    }
    return name;
}

}  // namespace study
