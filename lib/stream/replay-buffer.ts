/**
 * The end of a stream of bytes, kept until the other end has it: a ring that grows up to a limit. Positions count
 * from the stream's beginning.
 */
import { discard, mapMemory, populate, type Region } from '../kernel/mapped-memory.ts'

const SMALLEST = 64 * 2 ** 10

export class ReplayBuffer {
  readonly #limit: number
  readonly #onGrow: (bytes: number) => void
  #ring: Uint8Array
  /** Position of the first byte that is still here. Nobody else changes it, nor `to`. */
  from = 0
  /** Position where the stream ends by now. */
  to = 0

  /**
   * Keeps at most `limit` bytes, a power of two from 64 KiB on: in `memory` of that size, or in memory that grows.
   * `onGrow` is told how many bytes more it takes, before it does; what it throws `append` and `room` throw.
   */
  constructor(
    limit: number,
    memory: Uint8Array = Buffer.allocUnsafeSlow(SMALLEST),
    onGrow = (_bytes: number): void => {},
  ) {
    this.#limit = limit
    this.#ring = memory
    this.#onGrow = onGrow
  }

  /** Bytes that can be added. */
  get free(): number {
    return this.#limit - (this.to - this.from)
  }

  /** Copies as much of `bytes` as fits, and returns how much that was. */
  append(bytes: Uint8Array): number {
    this.#grow(this.to - this.from + bytes.length)
    const ring = this.#ring
    const fits = Math.min(bytes.length, ring.length - (this.to - this.from))
    for (let done = 0; done < fits; ) {
      const start = this.to % ring.length
      const part = bytes.subarray(done, Math.min(fits, done + ring.length - start))
      ring.set(part, start)
      done += part.length
      this.to += part.length
    }
    return fits
  }

  /**
   * Memory for bytes that come `headBytes` after the end: as many as lie together, at most `most`; none where the
   * buffer is full. `commit` adds them.
   */
  room(headBytes: number, most: number): Uint8Array {
    this.#grow(this.to - this.from + headBytes + most)
    const ring = this.#ring
    const free = Math.max(0, ring.length - (this.to - this.from) - headBytes)
    const start = (this.to + headBytes) % ring.length
    return ring.subarray(start, Math.min(start + Math.min(free, most), ring.length))
  }

  /** Adds the head, and `bytes` bytes that were put into the last `room`, or are kept elsewhere. */
  commit(head: Uint8Array, bytes: number): void {
    this.append(head)
    this.to += bytes
  }

  /** Bytes from `position` on: as many as lie together, at most `most`. Valid until they are forgotten. */
  at(position: number, most: number): Uint8Array {
    const start = position % this.#ring.length
    const end = start + Math.min(most, this.to - position)
    return this.#ring.subarray(start, Math.min(end, this.#ring.length))
  }

  /** What comes before `position` is not needed any more. */
  forget(position: number): void {
    this.from = Math.max(this.from, position)
  }

  /** Enlarges the ring for `wanted` bytes, as far as the limit allows. */
  #grow(wanted: number): void {
    let bytes = this.#ring.length
    while (bytes < wanted && bytes < this.#limit) bytes *= 2
    if (bytes === this.#ring.length) return
    this.#onGrow(bytes - this.#ring.length)
    const larger = Buffer.allocUnsafeSlow(bytes)
    for (let moved = this.from; moved < this.to; ) {
      const part = this.at(moved, bytes - (moved % bytes))
      larger.set(part, moved % bytes)
      moved += part.length
    }
    this.#ring = larger
  }
}

/**
 * Bytes that a sender keeps for its peer: as much as is lost in the queues of a link of 1 Gbit/s and 60 ms when it
 * breaks; more would only cost memory.
 */
export const SENDER_WINDOW = 8 * 2 ** 20

/** Memory that is not in use: one region stays ready. */
const idle: Region[] = []

/**
 * Memory for a sender's replay buffer: mapped, faulted in before the tasks are frozen, and used again. Fresh memory
 * cost the first 8 MiB of every dump 0.05 s (4000 page faults of 13 us, on a host that had taken its memory back).
 * Throws `MEMORY`.
 */
export function takeReplayMemory(): Region {
  const region = idle.pop() ?? mapMemory(SENDER_WINDOW)
  void populate(region.address, region.bytes)
  return region
}

/** Gives back what `takeReplayMemory` has returned, once: nobody reads or writes it any more. */
export function giveReplayMemory(region: Region): void {
  // No process's memory stays here.
  if (idle.length > 0) discard(region.address, region.bytes)
  else region.window.fill(0)
  idle.unshift(region)
}
