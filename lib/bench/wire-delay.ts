/**
 * What a long cable does to packets: it holds each back for a time and loses some. A program of its own: it carries
 * them between two devices (`openTun`), descriptors 3 and 4, until its stdin ends, and then says how many. Whole
 * packets of a real TCP pass and nobody in the middle answers them: the round trip, and what a loss costs, are those of
 * the two ends.
 *
 * Arguments: milliseconds in each direction; how many of 1,000 packets are lost, in each direction.
 */
import { writeSync } from 'node:fs'
import { setPriority } from 'node:os'
import { asFd, type Fd } from '../kernel/fd.ts'
import { Poll } from '../kernel/poll.ts'
import { readNow, writeNow } from '../kernel/transfer.ts'

/** Packets. */
export interface Tally {
  carried: number
  lost: number
}

const LARGEST_PACKET = 66_000
/** More than 10 Gbit/s in 10 ms; what does not fit is lost, as in a router. */
const QUEUE_BYTES = 16 * 2 ** 20
/** At most so many packets in a row from one side. */
const BURST = 64

interface Packet {
  at: number
  length: number
  due: number
}

function direction(from: Fd, to: Fd, delay: number, loss: number, tally: Tally) {
  const ring = Buffer.allocUnsafeSlow(QUEUE_BYTES)
  let queue: Packet[] = []
  let first = 0
  let head = 0
  let held = 0

  function take(now: number): void {
    for (let count = 0; count < BURST; count++) {
      if (head + LARGEST_PACKET > QUEUE_BYTES) head = 0
      const length = readNow(from, ring.subarray(head, head + LARGEST_PACKET))
      if (length === undefined || length === 0) return
      const full = held + LARGEST_PACKET > QUEUE_BYTES / 2
      if (full || Math.random() * 1000 < loss) {
        tally.lost++
        continue
      }
      queue.push({ at: head, length, due: now + delay })
      head += length
      held += length
    }
  }

  /** Sends what is due, and says when the next one is. */
  function give(now: number): number {
    for (; first < queue.length; first++) {
      const { at, length, due } = queue[first] as Packet
      if (due > now) break
      writeNow(to, ring.subarray(at, at + length))
      tally.carried++
      held -= length
    }
    if (first > 1000) {
      queue = queue.slice(first)
      first = 0
    }
    return queue[first]?.due ?? Number.POSITIVE_INFINITY
  }
  return { take, give }
}

/** Until the descriptor `until` ends. Returns how many packets passed and how many were lost. */
function carry(near: Fd, far: Fd, until: Fd, delay: number, loss: number): Tally {
  const tally = { carried: 0, lost: 0 }
  const ways = [direction(near, far, delay, loss, tally), direction(far, near, delay, loss, tally)]
  const poll = new Poll([near, far, until])
  for (;;) {
    const now = performance.now()
    for (const { take } of ways) take(now)
    const next = Math.min(...ways.map(({ give }) => give(performance.now())))
    const ms = Math.min(LONGEST_WAIT_MS, Math.max(0, next - performance.now()))
    poll.wait(ms)
    if (poll.saw(2)) return tally
  }
}

const LONGEST_WAIT_MS = 900

// A cable does not wait for a processor.
setPriority(-20)
const [delay = 0, loss = 0] = process.argv.slice(2).map(Number)
writeSync(1, JSON.stringify(carry(asFd(3), asFd(4), asFd(0), delay, loss)))
