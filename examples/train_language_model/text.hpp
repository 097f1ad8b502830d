// The text: bytes of files, cut into a part to learn from and a part held out.
//
// The bytes are cut into stretches of 4 KiB; every tenth is held out. Contexts do not reach beyond their stretch, so
// that no byte of the one part is seen in the other.
#pragma once

#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace study {

namespace sy = switchyard;
using sy::index_t;

/// Places in a text, and with them the bytes before and the byte to be told.
struct batch {
    std::span<const std::uint8_t> text;
    index_t length = 0;           ///< of a context
    std::vector<index_t> places;  ///< [T]: where the byte to be told is

    index_t size() const { return static_cast<index_t>(places.size()); }
    /// Byte i of token t's context; the last one, i = length - 1, is the byte just before.
    std::uint8_t context(index_t t, index_t i) const {
        return text[static_cast<std::size_t>(places[static_cast<std::size_t>(t)] - length + i)];
    }
    std::uint8_t next(index_t t) const { return text[static_cast<std::size_t>(places[static_cast<std::size_t>(t)])]; }
};

class corpus {
  public:
    /// Reads files, and folders with all their files in order of path. Fails with an error message where there is too
    /// little text.
    corpus(const std::vector<std::string>& paths, index_t context);

    index_t size() const { return static_cast<index_t>(bytes_.size()); }
    index_t held_out() const { return held_out_; }

    /// `count` random places to learn from: the same for the same seed and step.
    void draw(std::uint64_t seed, std::uint32_t step, index_t count, batch& drawn) const;

    /// `count` places of the held-out part, evenly spread and always the same.
    batch validation(index_t count) const;

    std::span<const std::uint8_t> bytes() const { return bytes_; }

  private:
    static constexpr index_t stretch = 4 * 1024;
    static constexpr index_t every = 10;  ///< every tenth stretch is held out

    std::vector<std::uint8_t> bytes_;
    index_t context_;
    index_t held_out_ = 0;  ///< bytes
};

}  // namespace study
