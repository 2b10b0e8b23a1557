/** `--rate-limit`: bytes go out evenly, a little at a time, for all links that share a limit. */
import { setTimeout } from 'node:timers/promises'
import { MOST_DATA } from '../format/wire.ts'
import { type FrameWriter, writerOver } from './frames.ts'
import type { Outlet } from './link.ts'

export interface RateLimit {
  /** Bytes that one frame may have at most, so that no frame holds the link for long. */
  readonly most: number
  /** Resolves when it is these bytes' turn. */
  turn(bytes: number): Promise<void>
  /** These bytes go out with the last turn as well. */
  more(bytes: number): void
}

/** What was not used is made up for within this time. */
const BEHIND_MS = 50
/** One frame takes about so long; headers would be felt in smaller ones than this. */
const FRAME_MS = 50
const LEAST_FRAME = 16 * 2 ** 10
/** Timers are no finer. */
const TICK_MS = 1

/** At most `rate` bytes a second. */
export function rateLimit(rate: number): RateLimit {
  const perMs = rate / 1000
  /** When all that had its turn is out. */
  let free = Number.NEGATIVE_INFINITY
  return {
    most: Math.min(MOST_DATA, Math.max(LEAST_FRAME, Math.floor(perMs * FRAME_MS))),
    async turn(bytes) {
      const now = performance.now()
      const at = Math.max(free, now - BEHIND_MS)
      free = at + bytes / perMs
      if (at - now >= TICK_MS) await setTimeout(at - now)
    },
    more(bytes) {
      free += bytes / perMs
    },
  }
}

/** The same writer, within the limit. */
export function limited(writer: FrameWriter, limit: RateLimit): FrameWriter {
  return writerOver(writer, (outlet) => within(outlet, limit))
}

/**
 * Waits between frames and never inside of one: there a link that outlives its breaks could not say that it is alive.
 */
function within(outlet: Outlet, limit: RateLimit): Outlet {
  const { fillInPlace } = outlet
  let inFrame = false
  return {
    async send(bytes, more = false) {
      if (inFrame) limit.more(bytes.length)
      else await limit.turn(bytes.length)
      inFrame = more
      await outlet.send(bytes, more)
    },
    ...(fillInPlace && {
      async fillInPlace(headBytes, most, fill) {
        await limit.turn(0)
        await fillInPlace(headBytes, most, (room) => {
          const filled = fill(room)
          if (filled !== undefined) limit.more(filled.head.length + filled.bytes)
          return filled
        })
      },
    }),
    settle: outlet.settle,
    finish: outlet.finish,
  }
}
