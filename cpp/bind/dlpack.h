// The part of DLPack that reading a tensor in place needs: its layout in memory is the standard's (dmlc/dlpack 1.x).
#pragma once

#include <cstdint>

namespace fusedstep::bind::dlpack {

inline constexpr std::int32_t kCpu = 1;
enum Code : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: C order
  std::uint64_t byte_offset;
};

// What a type's `__dlpack_c_exchange_api__` capsule points to.
struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // borrows from the object; may be null
  void* current_stream;
};
inline constexpr std::uint32_t kMajor = 1;
inline constexpr const char* kCapsule = "dlpack_exchange_api";

}  // namespace fusedstep::bind::dlpack
