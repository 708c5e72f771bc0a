// Error codes, settings and faults, shared by every file of the emulator. No libtorch, whose headers take most of the
// build time: files that compute include kernel.h.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace emulator {

// ---- error codes, as CANN numbers them

namespace code {
constexpr int success = 0;
constexpr int invalid_device = 107001;
constexpr int invalid_parameter = 161002;
constexpr int out_of_memory = 207001;
constexpr int feature_not_supported = 207000;
constexpr int collective_timed_out = 507048;
constexpr int aicore_exception = 507015;
constexpr int kernel_failed = 561002;
constexpr int kernel_not_found = 561103;
}  // namespace code

// Thrown by a kernel that does not support its arguments: the launch returns the code, the message gives the reason.
struct Refusal {
  int code;
  std::string message;
};

// ---- settings: environment variables CANN_EMULATOR_<NAME>, some of them adjustable later (faults.cpp)

const char* setting(const char* name);  // nullptr when it is not set
long setting(const char* name, long otherwise);

size_t memory_limit_bytes();  // of the device (memory.cpp)

// ---- faults (faults.cpp)

void set_error(const std::string& message);    // what aclGetRecentErrMsg returns next
int injected_failure(const char* function);    // the code that CANN_EMULATOR_FAIL names for a function, or 0
int pending_fault();                           // the code of an asynchronous fault that a synchronize reports, or 0
void raise_fault(int code, const std::string& message);
bool faults_now(const char* kernel);           // whether this launch is the one that CANN_EMULATOR_FAULT names
bool is_nulled(const char* kernel);            // whether this kernel does nothing, as a test's sabotage
bool poisons_memory();                         // whether fresh device memory is filled with NaN
bool register_kernel(const char* kernel);      // so that tests can list what is implemented
void note_launch(const char* kernel);

}  // namespace emulator

// An exported runtime function begins with this, so that CANN_EMULATOR_FAIL can name it.
#define MAY_FAIL(NAME) \
  if (int injected = emulator::injected_failure(#NAME)) return injected
