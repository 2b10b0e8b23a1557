/** Links in memory that break where a test wants, and lose what was under way. */
import { Fault } from '../../lib/fault.ts'
import { check, type Fd } from '../../lib/kernel/fd.ts'
import { read } from '../../lib/kernel/libc.ts'
import type { Link } from '../../lib/stream/link.ts'

export interface Cable {
  near: Link
  far: Link
  /** Bytes that were delivered, to the far end and to the near end. */
  readonly up: number
  readonly down: number
  /** Bytes that were taken out of pipes. */
  readonly spliced: number
  /** Breaks it, for both ends; what was not read yet is lost. */
  cut(): void
  /** From now on it swallows everything, and neither end is told. */
  mute(): void
}

/**
 * Breaks when the far end has read `up` bytes, or the near end `down`. An end holds at most `room` unread bytes. With
 * `splices` it takes bytes of pipes.
 */
export function cable({
  up = Number.POSITIVE_INFINITY,
  down = Number.POSITIVE_INFINITY,
  room = 2 ** 18,
  splices = false,
} = {}): Cable {
  let broken: Error | undefined
  let muted = false
  let spliced = 0
  const wakers = new Set<() => void>()
  const wake = (): void => {
    for (const waker of [...wakers]) waker()
    wakers.clear()
  }
  const changed = (): Promise<void> => new Promise((resolve) => wakers.add(resolve))
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
        while (broken === undefined && (waiting >= room || muted)) await changed()
        if (broken !== undefined) throw broken
        if (bytes.length === 0) return
        waiting += bytes.length
        queue.push(Buffer.from(bytes))
        wake()
      },
      async read(into: Uint8Array): Promise<number> {
        if (delivered >= most) cut()
        while (broken === undefined && (queue.length === 0 || muted)) await changed()
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

  /** As with splice(2), what it took before the link broke is lost. */
  async function drain(pipe: Fd, bytes: number, send: (bytes: Uint8Array) => Promise<void>): Promise<void> {
    for (let left = bytes; left > 0; ) {
      const part = Buffer.alloc(Math.min(left, 50_000))
      const got = check(read(pipe, part, part.length), 'read')
      left -= got
      spliced += got
      await send(part.subarray(0, got))
    }
  }

  function end(out: typeof rising, from: typeof rising, peer: string): Link {
    return {
      inlet: {
        read: from.read,
        async fill(into) {
          for (let at = 0; at < into.length; ) at += await from.read(into.subarray(at))
          return true
        },
      },
      outlet: {
        send: out.send,
        ...(splices ? { splice: (pipe: Fd, bytes: number) => drain(pipe, bytes, out.send) } : {}),
        finish: async () => {},
      },
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
    get spliced() {
      return spliced
    },
    cut: () => cut(),
    mute() {
      muted = true
    },
  }
}
