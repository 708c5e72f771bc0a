// Synchronization and data exchange between ranks; see hccl_segment.h.
#include "hccl_segment.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

namespace {
double seconds_from(const char* variable, double otherwise) {
  const char* value = getenv(variable);
  return value && atof(value) > 0 ? atof(value) : otherwise;
}
constexpr size_t header_bytes = 4096;
}  // namespace

template <class Condition>
bool Segment::wait_until(Condition condition, double seconds) const {
  auto start = std::chrono::steady_clock::now();
  for (uint64_t tries = 0; !condition(); tries++) {
    if (header_->abandoned) return false;
    if (tries < 200) {
      sched_yield();
      continue;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(tries < 2000 ? 20 : 500));
    std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
    if (waited.count() > seconds) return false;
  }
  return true;
}

int Segment::attach() {
  size_t bytes = header_bytes + ranks * slot_bytes + size_t(ranks) * ranks * sizeof(Mailbox);
  int file = shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes))) return hccl_code::open_file;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return hccl_code::memory;
  header_ = static_cast<Header*>(memory);
  slots_ = static_cast<char*>(memory) + header_bytes;
  mailboxes_ = reinterpret_cast<Mailbox*>(slots_ + ranks * slot_bytes);
  header_->attached++;
  bool complete = wait_until([this] { return header_->attached == ranks; },
                             seconds_from("HCCL_CONNECT_TIMEOUT", 120));
  // Nobody can attach any more, or nobody needs to: the name goes, the memory stays until the last rank ends.
  shm_unlink(name.c_str());
  if (complete) return hccl_code::success;
  set_error("EI0006: Getting socket times out. Rank " + std::to_string(rank) + " sees " +
            std::to_string(header_->attached) + " of " + std::to_string(ranks) + " ranks");
  return hccl_code::timed_out;
}

bool Segment::give_up() {
  header_->abandoned = 1;
  raise_fault(code::collective_timed_out,
              "EI0002: Notify register times out. Rank " + std::to_string(rank) + " waited for its peers in vain");
  return false;
}

bool Segment::barrier() {
  uint32_t generation = header_->generation;
  if (header_->waiting.fetch_add(1) + 1 == ranks) {
    header_->waiting = 0;
    header_->generation = generation + 1;
    return true;
  }
  bool met = wait_until([&] { return header_->generation != generation; }, seconds_from("HCCL_EXEC_TIMEOUT", 1800));
  return met || give_up();
}

bool Segment::advance(Transfer& transfer) const {
  const Message& message = transfer.message;
  size_t bytes = message.count * hccl_element_bytes(message.data_type);
  auto* data = static_cast<char*>(message.data) + transfer.moved;
  if (message.is_receive) {
    Mailbox& box = mailbox(message.peer, rank);
    if (!box.full) return false;
    memcpy(data, box.data, box.length);
    transfer.moved += box.length;
    box.full = 0;
  } else {
    Mailbox& box = mailbox(rank, message.peer);
    if (box.full) return false;
    box.length = static_cast<uint32_t>(std::min(mailbox_bytes, bytes - transfer.moved));
    memcpy(box.data, data, box.length);
    transfer.moved += box.length;
    box.full = 1;
  }
  transfer.done = transfer.moved >= bytes;
  return true;
}

bool Segment::exchange(const std::vector<Message>& messages) {
  std::vector<Transfer> transfers;
  for (auto& message : messages) transfers.push_back({message});
  // Messages of the same direction between the same two ranks keep their order.
  auto is_next = [&transfers](size_t index) {
    for (size_t earlier = 0; earlier < index; earlier++) {
      auto &one = transfers[earlier].message, &other = transfers[index].message;
      if (!transfers[earlier].done && one.is_receive == other.is_receive && one.peer == other.peer) return false;
    }
    return true;
  };
  auto all_done = [&] {
    bool done = true;
    for (size_t index = 0; index < transfers.size(); index++) {
      if (!transfers[index].done && is_next(index)) advance(transfers[index]);
      done = done && transfers[index].done;
    }
    return done;
  };
  return wait_until(all_done, seconds_from("HCCL_EXEC_TIMEOUT", 1800)) || give_up();
}

size_t hccl_element_bytes(int data_type) {
  switch (data_type) {
    case 0: case 7: return 1;          // int8, uint8
    case 1: case 3: case 11: return 2;  // int16, float16, bfloat16
    case 2: case 4: return 4;          // int32, float32
    case 5: case 6: case 10: return 8;  // int64, uint64, float64
    default: return 0;
  }
}

namespace {
template <class Stored, class Computed>
void reduce_as(void* into, const void* from, size_t count, int operation) {
  auto* result = static_cast<Stored*>(into);
  auto* other = static_cast<const Stored*>(from);
  for (size_t index = 0; index < count; index++) {
    Computed left = result[index], right = other[index];
    switch (operation) {
      case 0: result[index] = static_cast<Stored>(left + right); break;
      case 1: result[index] = static_cast<Stored>(left * right); break;
      case 2: result[index] = static_cast<Stored>(left > right ? left : right); break;
      default: result[index] = static_cast<Stored>(left < right ? left : right); break;
    }
  }
}
}  // namespace

void hccl_reduce(void* into, const void* from, size_t count, int data_type, int operation) {
  switch (data_type) {
    case 0: return reduce_as<int8_t, int>(into, from, count, operation);
    case 1: return reduce_as<int16_t, int>(into, from, count, operation);
    case 2: return reduce_as<int32_t, int64_t>(into, from, count, operation);
    case 3: return reduce_as<c10::Half, float>(into, from, count, operation);
    case 4: return reduce_as<float, float>(into, from, count, operation);
    case 5: return reduce_as<int64_t, int64_t>(into, from, count, operation);
    case 6: return reduce_as<uint64_t, uint64_t>(into, from, count, operation);
    case 7: return reduce_as<uint8_t, int>(into, from, count, operation);
    case 10: return reduce_as<double, double>(into, from, count, operation);
    case 11: return reduce_as<c10::BFloat16, float>(into, from, count, operation);
  }
}

}  // namespace emulator
