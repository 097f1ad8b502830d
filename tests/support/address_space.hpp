// Room for numbers that lie 2^32 elements apart: addresses for all of it, and memory where it is touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>

namespace switchyard_test {

/// For policies whose memory is the host's own. `data()` is null where there is no room.
template <class Policy>
class address_space {
  public:
    explicit address_space(std::size_t bytes)
        : bytes_(bytes),
          data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
    address_space(const address_space&) = delete;
    address_space& operator=(const address_space&) = delete;
    ~address_space() {
        if (data() != nullptr) munmap(data_, bytes_);
    }
    void* data() const { return data_ == MAP_FAILED ? nullptr : data_; }

  private:
    std::size_t bytes_;
    void* data_;
};

}  // namespace switchyard_test
