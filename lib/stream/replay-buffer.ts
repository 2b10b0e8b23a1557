/**
 * The end of a stream of bytes, kept until the other end has it: a ring that grows up to a limit. Positions count from the
 * stream's beginning.
 */
export interface ReplayBuffer {
  /** The first byte that is still here. */
  readonly from: number
  /** Where the stream ends by now. */
  readonly to: number
  /** Copies as much of `bytes` as fits, and returns how much that was. */
  append(bytes: Uint8Array): number
  /** Where bytes may be put that come `headBytes` after the end: as many as lie together, at most `most`; none where it is full. */
  room(headBytes: number, most: number): Uint8Array
  /** Adds the head and `bytes` bytes of the last `room`. */
  commit(head: Uint8Array, bytes: number): void
  /** Bytes from `position` on: as many as lie together, at most `most`. Valid until they are forgotten. */
  at(position: number, most: number): Uint8Array
  /** What comes before `position` is not needed any more. */
  forget(position: number): void
}

const SMALLEST = 64 * 2 ** 10

/**
 * Keeps at most `limit` bytes, a power of two from 64 KiB on: in `memory`, or in some that grows. `grows` is told how many bytes more it
 * takes, before it does; what it throws `append` throws.
 */
export function openReplayBuffer(
  limit: number,
  memory: Uint8Array = Buffer.allocUnsafeSlow(SMALLEST),
  grows = (_bytes: number): void => {},
): ReplayBuffer {
  let ring = memory
  let from = 0
  let to = 0

  function at(position: number, most: number): Uint8Array {
    const start = position % ring.length
    return ring.subarray(start, Math.min(start + Math.min(most, to - position), ring.length))
  }

  function grow(wanted: number): void {
    let bytes = ring.length
    while (bytes < wanted && bytes < limit) bytes *= 2
    if (bytes === ring.length) return
    grows(bytes - ring.length)
    const larger = Buffer.allocUnsafeSlow(bytes)
    for (let moved = from; moved < to; ) {
      const part = at(moved, to - moved).subarray(0, bytes - (moved % bytes))
      larger.set(part, moved % bytes)
      moved += part.length
    }
    ring = larger
  }

  function append(bytes: Uint8Array): number {
    grow(to - from + bytes.length)
    const fits = Math.min(bytes.length, ring.length - (to - from))
    for (let done = 0; done < fits; ) {
      const start = to % ring.length
      const part = bytes.subarray(done, Math.min(fits, done + ring.length - start))
      ring.set(part, start)
      done += part.length
      to += part.length
    }
    return fits
  }

  return {
    get from() {
      return from
    },
    get to() {
      return to
    },
    append,
    room(headBytes, most) {
      grow(to - from + headBytes + most)
      const free = Math.max(0, ring.length - (to - from) - headBytes)
      const start = (to + headBytes) % ring.length
      return ring.subarray(start, Math.min(start + Math.min(free, most), ring.length))
    },
    commit(head, bytes) {
      append(head)
      to += bytes
    },
    at,
    forget(position) {
      from = Math.max(from, position)
    },
  }
}
