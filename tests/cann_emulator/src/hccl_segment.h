// The shared memory behind one communicator: a slot per rank for collectives, a mailbox per ordered pair of ranks for
// point-to-point messages, and a barrier.
#pragma once

#include <vector>

#include "emulator.h"

namespace emulator {

namespace hccl_code {
constexpr int success = 0, invalid = 1, memory = 3, not_supported = 5, open_file = 8, timed_out = 9, remote_gone = 21;
}

struct Message {  // laid out as HCCL's HcclSendRecvItem
  int is_receive;
  void* data;
  uint64_t count;
  int data_type;
  uint32_t peer;
};

class Segment {
 public:
  static constexpr size_t slot_bytes = 4u << 20;
  static constexpr size_t mailbox_bytes = 1u << 20;
  static constexpr uint32_t most_ranks = 16;

  const std::string name;
  const uint32_t rank, ranks;

  Segment(const char* name, uint32_t rank, uint32_t ranks) : name(name), rank(rank), ranks(ranks) {}

  int attach();   // waits for every rank, at most HCCL_CONNECT_TIMEOUT seconds (120)
  bool barrier();  // false, with a fault raised, after HCCL_EXEC_TIMEOUT seconds (1800) or when a peer gave up
  bool exchange(const std::vector<Message>& messages);  // all of them together: pairs must not wait for each other
  char* slot(uint32_t of_rank) const { return slots_ + of_rank * slot_bytes; }
  bool abandoned() const { return header_->abandoned; }

 private:
  struct Header {
    std::atomic<uint32_t> attached, waiting, generation, abandoned;
  };
  struct Mailbox {
    std::atomic<uint32_t> full;
    uint32_t length;
    char data[mailbox_bytes];
  };
  struct Transfer {
    Message message;
    size_t moved = 0;
    bool done = false;
  };

  Mailbox& mailbox(uint32_t from, uint32_t to) const { return mailboxes_[from * ranks + to]; }
  bool advance(Transfer& transfer) const;
  bool give_up();
  template <class Condition>
  bool wait_until(Condition condition, double seconds) const;

  Header* header_ = nullptr;
  char* slots_ = nullptr;
  Mailbox* mailboxes_ = nullptr;
};

size_t hccl_element_bytes(int data_type);  // 0 for an unknown type
void hccl_reduce(void* into, const void* from, size_t count, int data_type, int operation);

}  // namespace emulator
