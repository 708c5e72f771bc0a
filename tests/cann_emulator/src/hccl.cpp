// HCCL between processes of one machine. Every rank reduces in rank order, so all get the same bits. A peer that does not
// come is an asynchronous fault, as on the device: the call returns, a later synchronize reports 507048.
#include <unistd.h>

#include <memory>

#include "hccl_segment.h"

using namespace emulator;

namespace {

// Between HcclGroupStart and HcclGroupEnd messages are gathered, then moved together.
thread_local int group_depth = 0;
thread_local std::vector<std::pair<Segment*, Message>> group;

int send_or_receive(Segment* segment, const Message& message) {
  if (pending_fault()) return hccl_code::success;
  if (!hccl_element_bytes(message.data_type)) return hccl_code::not_supported;
  if (group_depth) {
    group.emplace_back(segment, message);
  } else {
    segment->exchange({message});
  }
  return hccl_code::success;
}

// Runs `piece(first, count)` over pieces of at most `piece_elements`; stops at a fault.
template <class Piece>
int in_pieces(size_t elements, size_t piece_elements, Piece piece) {
  for (size_t first = 0; first < elements; first += piece_elements) {
    if (!piece(first, std::min(piece_elements, elements - first))) break;
  }
  return hccl_code::success;
}

char* at_element(void* data, size_t index, size_t element_bytes) {
  return static_cast<char*>(data) + index * element_bytes;
}

// into = the reduction over all ranks of `count` elements that lie `offset` bytes into each rank's slot
void reduce_slots(Segment* segment, void* into, size_t offset, size_t count, int data_type, int operation) {
  memcpy(into, segment->slot(0) + offset, count * hccl_element_bytes(data_type));
  for (uint32_t rank = 1; rank < segment->ranks; rank++) {
    hccl_reduce(into, segment->slot(rank) + offset, count, data_type, operation);
  }
}

}  // namespace

#define COLLECTIVE(NAME, DATA_TYPE)                                       \
  MAY_FAIL(NAME);                                                         \
  note_launch(#NAME);                                                     \
  auto* segment = static_cast<Segment*>(communicator);                    \
  const size_t element_bytes = hccl_element_bytes(DATA_TYPE);             \
  if (!element_bytes) return hccl_code::not_supported;                    \
  if (pending_fault() || is_nulled(#NAME)) return hccl_code::success

extern "C" {

// ---- communicators

int HcclGetRootInfo(char* root_info) {  // 4108 bytes that rank 0 sends to the others: here the name of the memory
  MAY_FAIL(HcclGetRootInfo);
  static std::atomic<int> count{0};
  memset(root_info, 0, 4108);
  auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  snprintf(root_info, 200, "/cann_emulator_%d_%d_%lld", getpid(), count++, static_cast<long long>(now));
  return hccl_code::success;
}
int HcclCommInitRootInfo(uint32_t ranks, const char* root_info, uint32_t rank, void** communicator) {
  MAY_FAIL(HcclCommInitRootInfo);
  if (ranks > Segment::most_ranks) return hccl_code::invalid;
  auto segment = std::make_unique<Segment>(root_info, rank, ranks);
  if (int code = segment->attach()) return code;
  *communicator = segment.release();
  return hccl_code::success;
}
int HcclCommInitRootInfoConfig(uint32_t ranks, const char* root_info, uint32_t rank, const void*, void** communicator) {
  return HcclCommInitRootInfo(ranks, root_info, rank, communicator);
}
int HcclCommDestroy(void*) { return hccl_code::success; }  // the memory is unmapped when the process ends
int HcclGetCommAsyncError(void* communicator, int* error) {
  auto* segment = static_cast<Segment*>(communicator);
  *error = segment && segment->abandoned() ? hccl_code::remote_gone : hccl_code::success;
  return hccl_code::success;
}
uint32_t HcclGetCommConfigCapability() { return 0; }  // no sub-communicators: new_group begins with a new root info
int HcclGetCommName(void* communicator, char* name) {
  strncpy(name, static_cast<Segment*>(communicator)->name.c_str(), 127);
  return hccl_code::success;
}
int HcclGetRankSize(void* communicator, uint32_t* ranks) {
  *ranks = static_cast<Segment*>(communicator)->ranks;
  return hccl_code::success;
}
int HcclGetRankId(void* communicator, uint32_t* rank) {
  *rank = static_cast<Segment*>(communicator)->rank;
  return hccl_code::success;
}
int HcclSetConfig(int, int) { return hccl_code::success; }
int HcclGetConfig(int, int* value) {
  *value = 0;
  return hccl_code::success;
}

// ---- collectives

int HcclAllReduce(void* send, void* receive, uint64_t count, int data_type, int operation, void* communicator, void*) {
  COLLECTIVE(HcclAllReduce, data_type);
  return in_pieces(count, Segment::slot_bytes / element_bytes, [&](size_t first, size_t part) {
    memcpy(segment->slot(segment->rank), at_element(send, first, element_bytes), part * element_bytes);
    if (!segment->barrier()) return false;
    reduce_slots(segment, at_element(receive, first, element_bytes), 0, part, data_type, operation);
    return segment->barrier();
  });
}
int HcclReduce(void* send, void* receive, uint64_t count, int data_type, int operation, uint32_t root,
               void* communicator, void*) {
  COLLECTIVE(HcclReduce, data_type);
  return in_pieces(count, Segment::slot_bytes / element_bytes, [&](size_t first, size_t part) {
    memcpy(segment->slot(segment->rank), at_element(send, first, element_bytes), part * element_bytes);
    if (!segment->barrier()) return false;
    if (segment->rank == root) {
      reduce_slots(segment, at_element(receive, first, element_bytes), 0, part, data_type, operation);
    }
    return segment->barrier();
  });
}
int HcclBroadcast(void* data, uint64_t count, int data_type, uint32_t root, void* communicator, void*) {
  COLLECTIVE(HcclBroadcast, data_type);
  return in_pieces(count, Segment::slot_bytes / element_bytes, [&](size_t first, size_t part) {
    char* piece = at_element(data, first, element_bytes);
    if (segment->rank == root) memcpy(segment->slot(root), piece, part * element_bytes);
    if (!segment->barrier()) return false;
    if (segment->rank != root) memcpy(piece, segment->slot(root), part * element_bytes);
    return segment->barrier();
  });
}
int HcclAllGather(void* send, void* receive, uint64_t count, int data_type, void* communicator, void*) {
  COLLECTIVE(HcclAllGather, data_type);
  return in_pieces(count, Segment::slot_bytes / element_bytes, [&](size_t first, size_t part) {
    memcpy(segment->slot(segment->rank), at_element(send, first, element_bytes), part * element_bytes);
    if (!segment->barrier()) return false;
    for (uint32_t rank = 0; rank < segment->ranks; rank++) {
      memcpy(at_element(receive, rank * count + first, element_bytes), segment->slot(rank), part * element_bytes);
    }
    return segment->barrier();
  });
}
int HcclReduceScatter(void* send, void* receive, uint64_t count, int data_type, int operation, void* communicator,
                      void*) {
  COLLECTIVE(HcclReduceScatter, data_type);
  const size_t piece = Segment::slot_bytes / segment->ranks / element_bytes;
  return in_pieces(count, piece, [&](size_t first, size_t part) {
    char* mine = segment->slot(segment->rank);
    for (uint32_t rank = 0; rank < segment->ranks; rank++) {
      memcpy(at_element(mine, rank * piece, element_bytes), at_element(send, rank * count + first, element_bytes),
             part * element_bytes);
    }
    if (!segment->barrier()) return false;
    reduce_slots(segment, at_element(receive, first, element_bytes), segment->rank * piece * element_bytes, part,
                 data_type, operation);
    return segment->barrier();
  });
}
int HcclScatter(void* send, void* receive, uint64_t count, int data_type, uint32_t root, void* communicator, void*) {
  COLLECTIVE(HcclScatter, data_type);
  const size_t piece = Segment::slot_bytes / segment->ranks / element_bytes;
  return in_pieces(count, piece, [&](size_t first, size_t part) {
    char* whole = segment->slot(root);
    for (uint32_t rank = 0; segment->rank == root && rank < segment->ranks; rank++) {
      memcpy(at_element(whole, rank * piece, element_bytes), at_element(send, rank * count + first, element_bytes),
             part * element_bytes);
    }
    if (!segment->barrier()) return false;
    memcpy(at_element(receive, first, element_bytes), at_element(whole, segment->rank * piece, element_bytes),
           part * element_bytes);
    return segment->barrier();
  });
}
int HcclAlltoAllV(void* send, const uint64_t* send_counts, const uint64_t* send_offsets, int data_type, void* receive,
                  const uint64_t* receive_counts, const uint64_t* receive_offsets, int, void* communicator, void*) {
  COLLECTIVE(HcclAlltoAllV, data_type);
  std::vector<Message> messages;
  for (uint32_t rank = 0; rank < segment->ranks; rank++) {
    char* outgoing = at_element(send, send_offsets[rank], element_bytes);
    char* incoming = at_element(receive, receive_offsets[rank], element_bytes);
    if (rank == segment->rank) {
      memcpy(incoming, outgoing, send_counts[rank] * element_bytes);
      continue;
    }
    if (send_counts[rank]) messages.push_back({0, outgoing, send_counts[rank], data_type, rank});
    if (receive_counts[rank]) messages.push_back({1, incoming, receive_counts[rank], data_type, rank});
  }
  if (segment->exchange(messages)) segment->barrier();
  return hccl_code::success;
}
int HcclAlltoAll(void* send, uint64_t count, int data_type, void* receive, uint64_t, int, void* communicator,
                 void* stream) {
  uint32_t ranks = static_cast<Segment*>(communicator)->ranks;
  std::vector<uint64_t> counts(ranks, count), offsets(ranks);
  for (uint32_t rank = 0; rank < ranks; rank++) offsets[rank] = rank * count;
  return HcclAlltoAllV(send, counts.data(), offsets.data(), data_type, receive, counts.data(), offsets.data(),
                       data_type, communicator, stream);
}
int HcclBarrier(void* communicator, void*) {
  MAY_FAIL(HcclBarrier);
  if (!pending_fault()) static_cast<Segment*>(communicator)->barrier();
  return hccl_code::success;
}

// ---- messages

int HcclGroupStart() {
  group_depth++;
  return hccl_code::success;
}
int HcclGroupEnd() {
  if (--group_depth) return hccl_code::success;
  auto waiting = std::move(group);
  group.clear();
  while (!waiting.empty()) {
    Segment* segment = waiting.front().first;
    std::vector<Message> together;
    std::vector<std::pair<Segment*, Message>> others;
    for (auto& entry : waiting) {
      if (entry.first == segment) {
        together.push_back(entry.second);
      } else {
        others.push_back(entry);
      }
    }
    if (!segment->exchange(together)) break;
    waiting = std::move(others);
  }
  return hccl_code::success;
}
int HcclSend(void* data, uint64_t count, int data_type, uint32_t to, void* communicator, void*) {
  MAY_FAIL(HcclSend);
  note_launch("HcclSend");
  return send_or_receive(static_cast<Segment*>(communicator), {0, data, count, data_type, to});
}
int HcclRecv(void* data, uint64_t count, int data_type, uint32_t from, void* communicator, void*) {
  MAY_FAIL(HcclRecv);
  note_launch("HcclRecv");
  return send_or_receive(static_cast<Segment*>(communicator), {1, data, count, data_type, from});
}
int HcclBatchSendRecv(const Message* messages, uint32_t count, void* communicator, void*) {
  MAY_FAIL(HcclBatchSendRecv);
  if (!pending_fault()) static_cast<Segment*>(communicator)->exchange({messages, messages + count});
  return hccl_code::success;
}

}  // extern "C"
