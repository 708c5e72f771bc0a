// The runtime's view of devices, streams and events. Work is done when it is launched: a stream is only a name.
#include "emulator.h"

using namespace emulator;

namespace {
thread_local int current_device = 0;
std::atomic<int> next_stream_id{1};

struct Stream {
  int id;
};
struct Event {
  std::atomic<double> milliseconds{0};
  std::atomic<bool> recorded{false};
};

double now_milliseconds() {
  auto since_start = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(since_start).count();
}

int write_text(char* out, size_t size, const char* text) {
  if (size) {
    strncpy(out, text, size - 1);
    out[size - 1] = 0;
  }
  return code::success;
}

constexpr const char* cann_version = "9.1.0";
constexpr int cube_cores = 20, vector_cores = 40;
}  // namespace

extern "C" {

// ---- the library

int aclInit(const char*) {
  MAY_FAIL(aclInit);
  return code::success;
}
int aclFinalize() { return code::success; }
int aclrtPeekAtLastError(int) { return pending_fault(); }
void aclAppLog(int, const char*, const char*, uint32_t, const char*, ...) {}  // the device's log files
int aclGetCannAttribute(int, int* value) {
  *value = 1;  // inf and NaN are kept, as on 910B and later; otherwise the gradient scaler expects saturation
  return code::success;
}
int aclsysGetCANNVersion(int, char* version) { return write_text(version, 128, cann_version); }
int aclsysGetVersionStr(const char*, char* version) { return write_text(version, 16, cann_version); }
size_t aclGetCompileoptSize(int) { return 16; }
int aclGetCompileopt(int, char* value, size_t size) { return write_text(value, size, "disable"); }
int aclSetCompileopt(int, const char*) { return code::success; }

// ---- devices

int aclrtGetDeviceCount(unsigned* count) {
  MAY_FAIL(aclrtGetDeviceCount);
  *count = static_cast<unsigned>(setting("DEVICES", 1L));
  return code::success;
}
int drvGetDevNum(unsigned* count) {
  MAY_FAIL(drvGetDevNum);
  return aclrtGetDeviceCount(count);
}
const char* aclrtGetSocName() { return setting("SOC") ? setting("SOC") : "Ascend910B3"; }
int aclrtGetDevice(int* device) {
  *device = current_device;
  return code::success;
}
int aclrtSetDevice(int device) {
  MAY_FAIL(aclrtSetDevice);
  unsigned count = 0;
  if (int code = aclrtGetDeviceCount(&count)) return code;
  if (device < 0 || device >= static_cast<int>(count)) return code::invalid_device;
  current_device = device;
  return code::success;
}
int aclrtResetDevice(int) { return code::success; }
int aclrtGetCurrentContext(void** context) {
  static char only_context;
  *context = &only_context;
  return code::success;
}
int aclrtSetCurrentContext(void*) { return code::success; }
int aclrtGetPrimaryCtxState(int, unsigned*, int* active) {
  if (active) *active = 1;
  return code::success;
}
int aclrtGetDeviceInfo(unsigned, int attribute, int64_t* value) {  // numbered in acl_rt.h, in the wheel's include/
  switch (attribute) {
    case 1: *value = 6; break;      // AI CPUs
    case 101: case 102: *value = cube_cores; break;
    case 201: *value = vector_cores; break;
    case 301: *value = static_cast<int64_t>(memory_limit_bytes()); break;
    case 302: *value = 192 << 20; break;  // level-2 cache
    default: return code::feature_not_supported;
  }
  return code::success;
}
int aclGetDeviceCapability(unsigned, int capability, int64_t* value) {  // 0 AI cores, 1 vector cores, 2 level-2 cache
  constexpr int attributes[] = {101, 201, 302};
  if (capability < 0 || capability > 2) return code::feature_not_supported;
  return aclrtGetDeviceInfo(0, attributes[capability], value);
}
int aclrtDeviceGetUuid(int device, char* uuid) {  // 16 bytes
  memset(uuid, 0, 16);
  uuid[15] = static_cast<char>(device + 1);
  return code::success;
}

// ---- settings of a device that change nothing here: saturation, deadlines, what a stream does after an error

int aclrtSetDeviceSatMode(int) { return code::success; }
int aclrtSetOpExecuteTimeOutV2(uint64_t, uint64_t*) { return code::success; }
int aclrtSetOpWaitTimeout(uint32_t) { return code::success; }
int aclrtSetStreamFailureMode(void*, uint64_t) { return code::success; }
int aclrtCtxSetSysParamOpt(int, int64_t) { return code::success; }
int aclrtSetSysParamOpt(int, int64_t) { return code::success; }
int aclrtGetSysParamOpt(int, int64_t* value) {
  *value = 0;
  return code::success;
}

// ---- streams

int aclrtCreateStream(void** stream) {
  MAY_FAIL(aclrtCreateStream);
  *stream = new Stream{next_stream_id++};
  return code::success;
}
int aclrtCreateStreamWithConfig(void** stream, unsigned, unsigned) { return aclrtCreateStream(stream); }
int aclrtDestroyStream(void* stream) {
  delete static_cast<Stream*>(stream);
  return code::success;
}
int aclrtDestroyStreamForce(void* stream) { return aclrtDestroyStream(stream); }
int aclrtStreamGetId(void* stream, int* id) {
  *id = stream ? static_cast<Stream*>(stream)->id : 0;
  return code::success;
}
int aclrtStreamQuery(void*, int* status) {
  *status = 0;  // complete
  return pending_fault();
}
int aclrtSetStreamAttribute(void*, int, void*) { return code::success; }
int aclmdlRICaptureGetInfo(void*, int* status, void** graph) {
  if (status) *status = 0;  // not capturing
  if (graph) *graph = nullptr;
  return code::success;
}

// ---- waiting, which reports an asynchronous fault

int aclrtSynchronizeDevice() {
  MAY_FAIL(aclrtSynchronizeDevice);
  return pending_fault();
}
int aclrtSynchronizeDeviceWithTimeout(int) {
  MAY_FAIL(aclrtSynchronizeDeviceWithTimeout);
  return pending_fault();
}
int aclrtSynchronizeStream(void*) {
  MAY_FAIL(aclrtSynchronizeStream);
  return pending_fault();
}
int aclrtSynchronizeStreamWithTimeout(void*, int) {
  MAY_FAIL(aclrtSynchronizeStreamWithTimeout);
  return pending_fault();
}

// ---- events

int aclrtCreateEvent(void** event) {
  *event = new Event;
  return code::success;
}
int aclrtCreateEventWithFlag(void** event, unsigned) { return aclrtCreateEvent(event); }
int aclrtCreateEventExWithFlag(void** event, unsigned) { return aclrtCreateEvent(event); }
int aclrtDestroyEvent(void* event) {
  delete static_cast<Event*>(event);
  return code::success;
}
int aclrtRecordEvent(void* event, void*) {
  static_cast<Event*>(event)->milliseconds = now_milliseconds();
  static_cast<Event*>(event)->recorded = true;
  return code::success;
}
int aclrtStreamWaitEvent(void*, void* event) {
  // Two task queues of one process may reach the record and the wait in either order.
  for (int tries = 0; tries < 200000 && !static_cast<Event*>(event)->recorded; tries++) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return code::success;
}
int aclrtEventElapsedTime(float* milliseconds, void* start, void* end) {
  MAY_FAIL(aclrtEventElapsedTime);
  *milliseconds = static_cast<float>(static_cast<Event*>(end)->milliseconds - static_cast<Event*>(start)->milliseconds);
  return code::success;
}
int aclrtSynchronizeEvent(void*) {
  MAY_FAIL(aclrtSynchronizeEvent);
  return pending_fault();
}
int aclrtQueryEventStatus(void* event, int* status) {
  *status = static_cast<Event*>(event)->recorded ? 1 : 0;
  return pending_fault();
}
int aclrtQueryEventWaitStatus(void*, int* status) {
  *status = 1;
  return code::success;
}

}  // extern "C"
