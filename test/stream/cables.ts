/** Links in memory that break where a test says, and lose what was under way. */
import { Fault } from '../../lib/fault.ts'
import type { Link } from '../../lib/stream/link.ts'

export interface Cable {
  near: Link
  far: Link
  /** Bytes that were delivered, to the far end and to the near end. */
  readonly up: number
  readonly down: number
  /** Breaks it, for both ends; what was not read yet is lost. */
  cut(): void
  /** It swallows everything from now on, and neither end hears of it. */
  mute(): void
}

/** Breaks, if told so, when the far end has read `up` bytes or the near end `down`. An end holds at most `room` unread. */
export function cable({ up = Number.POSITIVE_INFINITY, down = Number.POSITIVE_INFINITY, room = 2 ** 18 } = {}): Cable {
  let broken: Error | undefined
  let muted = false
  const wakers = new Set<() => void>()
  const wake = (): void => {
    for (const waker of [...wakers]) waker()
    wakers.clear()
  }
  const news = (): Promise<void> => new Promise((resolve) => wakers.add(resolve))
  const cut = (reason: Error = new Fault('LINK', 'the other end went away (cut)')): void => {
    broken ??= reason
    wake()
  }

  function direction(most: number) {
    const queue: Buffer[] = []
    let waiting = 0
    let delivered = 0
    return {
      get delivered() {
        return delivered
      },
      async send(bytes: Uint8Array): Promise<void> {
        while (broken === undefined && (waiting >= room || muted)) await news()
        if (broken !== undefined) throw broken
        if (bytes.length === 0) return
        waiting += bytes.length
        queue.push(Buffer.from(bytes))
        wake()
      },
      async read(into: Uint8Array): Promise<number> {
        if (delivered >= most) cut()
        while (broken === undefined && (queue.length === 0 || muted)) await news()
        if (broken !== undefined) throw broken
        const first = queue[0] as Buffer
        const part = first.subarray(0, Math.min(into.length, most - delivered))
        into.set(part)
        if (part.length === first.length) queue.shift()
        else queue[0] = first.subarray(part.length)
        waiting -= part.length
        delivered += part.length
        wake()
        return part.length
      },
    }
  }
  const [rising, falling] = [direction(up), direction(down)]

  function end(out: typeof rising, from: typeof rising, peer: string): Link {
    return {
      inlet: {
        read: from.read,
        async fill(into) {
          for (let at = 0; at < into.length; ) at += await from.read(into.subarray(at))
          return true
        },
      },
      outlet: { send: out.send, settle: async () => {}, finish: async () => {} },
      duplex: true,
      peer,
      destroy: cut,
    }
  }
  return {
    near: end(rising, falling, 'far'),
    far: end(falling, rising, 'near'),
    get up() {
      return rising.delivered
    },
    get down() {
      return falling.delivered
    },
    cut: () => cut(),
    mute() {
      muted = true
    },
  }
}
