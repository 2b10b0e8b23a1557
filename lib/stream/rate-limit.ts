/** The stage `rateLimit`: bytes go out evenly, a little at a time, for all links that share a limit. */
import { Transform, type TransformCallback } from 'node:stream'
import { setTimeout } from 'node:timers/promises'
import { encodeFrame, MOST_DATA } from '../format/frame.ts'
import type { CriuTimeout } from './criu-timeout.ts'
import type { Part } from './image-part.ts'

/** What was not used is made up for within this time. */
const BEHIND_MS = 50
/** One frame takes about so long; headers would be felt in smaller ones than LEAST_FRAME. */
const FRAME_MS = 50
const LEAST_FRAME = 16 * 2 ** 10
/** Timers are no finer. */
const TICK_MS = 1

/** A rate that several links may share. */
export class RateLimit {
  /** Bytes that one frame may have at most, so that no frame holds the link for long. */
  readonly most: number
  readonly #bytesPerMs: number
  /** When all that had its turn is out, by performance.now(). */
  #free = Number.NEGATIVE_INFINITY

  /** At most `rate` bytes a second. */
  constructor(rate: number) {
    this.#bytesPerMs = rate / 1000
    this.most = Math.min(MOST_DATA, Math.max(LEAST_FRAME, Math.floor(this.#bytesPerMs * FRAME_MS)))
  }

  /** Resolves when it is these bytes' turn. */
  async turn(bytes: number): Promise<void> {
    const now = performance.now()
    const at = Math.max(this.#free, now - BEHIND_MS)
    this.#free = at + bytes / this.#bytesPerMs
    if (at - now >= TICK_MS) await setTimeout(at - now)
  }
}

/** Holds parts up, each before it begins. CRIU is not waited for meanwhile. */
export function rateLimit(limit: RateLimit, silence?: CriuTimeout): Transform {
  return new Transform({
    objectMode: true,
    transform(part: Part, _encoding, done: TransformCallback) {
      const turn = limit.turn(bytesOf(part))
      ;(silence?.during(turn) ?? turn).then(() => done(null, part), done)
    },
  })
}

/** The bytes that a part will take on the link. */
function bytesOf({ frames }: Part): number {
  return frames.reduce((sum, { frame, bytes }) => sum + encodeFrame(frame).length + (bytes?.length ?? 0), 0)
}
