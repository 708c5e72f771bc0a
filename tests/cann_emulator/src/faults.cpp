// Settings and sabotage: failures that the environment or a test injects.
//   CANN_EMULATOR_FAIL=function=code,...      a runtime, HCCL or kernel function returns that code
//   CANN_EMULATOR_FAULT=kernel:n[:code]       its n-th launch kills the device; the next synchronize reports it
//   CANN_EMULATOR_NULL=kernel                 that kernel does nothing
//   CANN_EMULATOR_POISON=1                    fresh device memory is NaN
//   CANN_EMULATOR_LAUNCHES=file               the name of every kernel that is launched, once each, is appended to it
#include <fcntl.h>
#include <unistd.h>

#include <set>

#include "emulator.h"

namespace emulator {

namespace {
std::mutex mutex;
std::string recent_error;
std::atomic<int> fault_code{0};
std::string nulled = setting("NULL") ? setting("NULL") : "";
std::atomic<bool> poison{setting("POISON", 0L) != 0};
std::set<std::string> launched;

std::set<std::string>& kernels() {  // filled before main: not a global of its own, whose turn might come too late
  static std::set<std::string> names;
  return names;
}

size_t write_names(const std::set<std::string>& names, char* out, size_t size) {
  std::string text;
  for (auto& name : names) text += name + "\n";
  if (out && size) {
    size_t count = std::min(size - 1, text.size());
    memcpy(out, text.data(), count);
    out[count] = 0;
  }
  return text.size() + 1;
}

struct PlannedFault {
  std::string kernel;
  long launch = 1;
  int code = code::aicore_exception;
};
PlannedFault read_planned_fault() {
  PlannedFault fault;
  const char* text = setting("FAULT");
  if (!text) return fault;
  std::string rest = text;
  auto next = [&rest] {
    auto colon = rest.find(':');
    std::string part = rest.substr(0, colon);
    rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
    return part;
  };
  fault.kernel = next();
  if (!rest.empty()) fault.launch = std::stol(next());
  if (!rest.empty()) fault.code = std::stoi(next());
  return fault;
}
}  // namespace

const char* setting(const char* name) {
  const char* value = getenv((std::string("CANN_EMULATOR_") + name).c_str());
  return value && *value ? value : nullptr;
}

long setting(const char* name, long otherwise) {
  const char* value = setting(name);
  return value ? atol(value) : otherwise;
}

void set_error(const std::string& message) {
  std::lock_guard<std::mutex> lock(mutex);
  recent_error = message;
}

int injected_failure(const char* function) {
  static const std::string plan = setting("FAIL") ? std::string(",") + setting("FAIL") : "";
  if (plan.empty()) return 0;
  auto found = plan.find("," + std::string(function) + "=");
  if (found == std::string::npos) return 0;
  int code = atoi(plan.c_str() + found + strlen(function) + 2);
  if (code) set_error("EE9999: the emulator was told to fail " + std::string(function));
  return code;
}

int pending_fault() { return fault_code; }

void raise_fault(int code, const std::string& message) {
  fault_code = code;
  set_error(message);
}

bool faults_now(const char* kernel) {
  static const PlannedFault plan = read_planned_fault();
  static std::atomic<long> launches{0};
  if (plan.kernel != kernel || ++launches != plan.launch) return false;
  raise_fault(plan.code, "EZ9999: Inner Error!\n        The error from device(chipId:0, dieId:0), kernel " + plan.kernel +
                             " (the emulator was told to)");
  return true;
}

bool is_nulled(const char* kernel) {
  std::lock_guard<std::mutex> lock(mutex);
  return nulled == kernel;
}

bool register_kernel(const char* kernel) { return kernels().insert(kernel).second; }

bool poisons_memory() { return poison; }

void note_launch(const char* kernel) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!launched.insert(kernel).second) return;
  static const char* path = setting("LAUNCHES");
  if (!path) return;
  // One write in append mode: several processes may share the file.
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  std::string line = std::string(kernel) + "\n";
  if (file < 0 || write(file, line.data(), line.size()) < 0) perror(path);
  if (file >= 0) close(file);
}

}  // namespace emulator

// For tests in the same process, through ctypes (control.py).
extern "C" {
extern const char cann_emulator_marker[];  // how the harness knows; const alone would keep the name inside
__attribute__((used)) const char cann_emulator_marker[] = "this libascendcl.so is an emulator";

void cann_emulator_null(const char* kernel) {
  std::lock_guard<std::mutex> lock(emulator::mutex);
  emulator::nulled = kernel;
}
void cann_emulator_poison(int on) { emulator::poison = on != 0; }
// Names, each ended by a newline; both return the bytes needed for all of them.
size_t cann_emulator_launched(char* out, size_t size) {
  std::lock_guard<std::mutex> lock(emulator::mutex);
  return emulator::write_names(emulator::launched, out, size);
}
size_t cann_emulator_kernels(char* out, size_t size) { return emulator::write_names(emulator::kernels(), out, size); }

const char* aclGetRecentErrMsg() {
  static thread_local std::string message;
  std::lock_guard<std::mutex> lock(emulator::mutex);
  message = emulator::recent_error;
  return message.c_str();
}

// Called by the generated stubs: an unimplemented kernel, or a runtime call that training does not make.
int cann_emulator_no_kernel(const char* kernel) {
  fprintf(stderr, "cann emulator: kernel %s is not implemented\n", kernel);
  emulator::set_error(std::string("EZ9999: the emulator does not implement the kernel ") + kernel);
  return emulator::code::kernel_not_found;
}
int cann_emulator_no_function(const char* function) {
  fprintf(stderr, "cann emulator: %s is not implemented\n", function);
  emulator::set_error(std::string("EE9999: the emulator does not implement ") + function);
  return emulator::code::feature_not_supported;
}
}
