// Device memory is host memory with a limit: CANN_EMULATOR_MEMORY_MIB, 64 GiB if not set.
#include <sys/mman.h>

#include "emulator.h"

using namespace emulator;

size_t emulator::memory_limit_bytes() {
  static const size_t limit = static_cast<size_t>(setting("MEMORY_MIB", 65536L)) << 20;
  return limit;
}

namespace {
std::mutex mutex;
std::unordered_map<void*, size_t> allocations;
std::unordered_map<void*, size_t> reservations;
size_t used_bytes = 0;

struct PhysicalBlock {
  size_t bytes;
};

bool take(size_t bytes) {  // with the mutex held
  if (used_bytes + bytes > memory_limit_bytes()) return false;
  used_bytes += bytes;
  return true;
}

void maybe_poison(void* memory, size_t bytes) {
  if (poisons_memory()) memset(memory, 0xFF, bytes);  // NaN in every floating-point type
}
}  // namespace

extern "C" {

int aclrtMalloc(void** out, size_t bytes, int) {
  MAY_FAIL(aclrtMalloc);
  std::lock_guard<std::mutex> lock(mutex);
  void* memory = nullptr;
  if (!take(bytes) || posix_memalign(&memory, 512, bytes + 64)) return code::out_of_memory;
  maybe_poison(memory, bytes);
  allocations[memory] = bytes;
  *out = memory;
  return code::success;
}
int aclrtMallocAlign32(void** out, size_t bytes, int policy) { return aclrtMalloc(out, bytes, policy); }
int aclrtMallocWithCfg(void** out, size_t bytes, int policy, void*) { return aclrtMalloc(out, bytes, policy); }
int aclrtFree(void* memory) {
  std::lock_guard<std::mutex> lock(mutex);
  auto found = allocations.find(memory);
  if (found == allocations.end()) return code::invalid_parameter;
  used_bytes -= found->second;
  allocations.erase(found);
  free(memory);
  return code::success;
}

// ---- expandable segments: addresses are reserved once, memory is mapped into them piece by piece

int aclrtReserveMemAddress(void** out, size_t bytes, size_t, void*, uint64_t) {
  MAY_FAIL(aclrtReserveMemAddress);
  void* address =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return code::out_of_memory;
  std::lock_guard<std::mutex> lock(mutex);
  reservations[address] = bytes;
  *out = address;
  return code::success;
}
int aclrtReleaseMemAddress(void* address) {
  std::lock_guard<std::mutex> lock(mutex);
  munmap(address, reservations[address]);
  reservations.erase(address);
  return code::success;
}
int aclrtMallocPhysical(void** out, size_t bytes, const void*, uint64_t) {
  MAY_FAIL(aclrtMallocPhysical);
  std::lock_guard<std::mutex> lock(mutex);
  if (!take(bytes)) return code::out_of_memory;
  *out = new PhysicalBlock{bytes};
  return code::success;
}
int aclrtFreePhysical(void* block) {
  std::lock_guard<std::mutex> lock(mutex);
  used_bytes -= static_cast<PhysicalBlock*>(block)->bytes;
  delete static_cast<PhysicalBlock*>(block);
  return code::success;
}
int aclrtMapMem(void* address, size_t bytes, size_t, void*, uint64_t) {
  maybe_poison(address, bytes);
  return code::success;
}
int aclrtUnmapMem(void*) { return code::success; }

// ---- page-locked host memory

int aclrtMallocHost(void** out, size_t bytes) {
  MAY_FAIL(aclrtMallocHost);
  return posix_memalign(out, 64, bytes) ? code::out_of_memory : code::success;
}
int aclrtMallocHostWithCfg(void** out, size_t bytes, void*) { return aclrtMallocHost(out, bytes); }
int aclrtFreeHost(void* memory) {
  free(memory);
  return code::success;
}

// ---- copies and figures

int aclrtMemcpy(void* to, size_t, const void* from, size_t bytes, int) {
  MAY_FAIL(aclrtMemcpy);
  if (int fault = pending_fault()) return fault;
  memmove(to, from, bytes);
  return code::success;
}
int aclrtMemcpyAsync(void* to, size_t, const void* from, size_t bytes, int, void*) {
  MAY_FAIL(aclrtMemcpyAsync);
  if (!pending_fault()) memmove(to, from, bytes);
  return code::success;
}
int aclrtMemcpyAsyncWithCondition(void* to, size_t room, const void* from, size_t bytes, int kind, void* stream) {
  return aclrtMemcpyAsync(to, room, from, bytes, kind, stream);
}
int aclrtMemset(void* to, size_t, int value, size_t bytes) {
  memset(to, value, bytes);
  return code::success;
}
int aclrtMemsetAsync(void* to, size_t, int value, size_t bytes, void*) {
  memset(to, value, bytes);
  return code::success;
}
int aclrtGetMemInfo(int, size_t* free_bytes, size_t* total_bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  *total_bytes = memory_limit_bytes();
  *free_bytes = memory_limit_bytes() > used_bytes ? memory_limit_bytes() - used_bytes : 0;
  return code::success;
}
int aclrtPointerGetAttributes(void*, void*) { return 1; }  // any error means: not page-locked memory

}  // extern "C"
