import { Fault } from '../fault.ts'
import type { Fd } from '../kernel/fd.ts'

/** Where bytes come from: a socket, a pipe, a file, or a Node stream where the kernel's descriptor cannot be used. */
export interface Inlet {
  /**
   * Fills all of `into`, in place. Returns false when the stream ends before the first byte, throws `TRUNCATED` when
   * it ends later, `LINK` when the peer is gone.
   */
  fill(into: Uint8Array): Promise<boolean>
  /** Reads once: at least one byte, 0 at the end. For who must know what came before a link broke. */
  read(into: Uint8Array): Promise<number>
}

/** Where bytes go. One caller at a time. */
export interface Outlet {
  /** Resolves when `bytes` may be reused. `more` says that the next bytes follow at once. Throws `LINK` or `IO`. */
  send(bytes: Uint8Array, more?: boolean): Promise<void>
  /**
   * Where the bytes would be copied before they go out: lets `fill` put them there itself, when there is room. What it returns goes
   * out, the head first; nothing does if it returns undefined.
   */
  fillInPlace?(headBytes: number, most: number, fill: (room: Uint8Array) => Filled | undefined): Promise<void>
  /**
   * Takes up to `most` bytes out of a pipe by reference, and lets them out after the head that `head` makes for them: they must not
   * change before the other end has them. Returns how many; 0 where there is not enough to be worth it, or no way.
   */
  passOn?(pipe: Fd, most: number, head: (bytes: number) => Uint8Array): Promise<number>
  /** Sends `bytes` bytes of a pipe by reference. */
  splice?(pipe: Fd, bytes: number): Promise<void>
  /** What was sent is safe as far as this host can tell, and `bytes` more will fit: for a file. Throws `IO`. */
  settle(bytes: number): Promise<void>
  /** Everything is handed to the kernel; a socket is closed for writing, a pipe or a file by `destroy`. */
  finish(): Promise<void>
}

/** The bytes before what was put in place, `headBytes` of them, and how many bytes that was. */
export interface Filled {
  head: Uint8Array
  bytes: number
}

/** A connection, or one of the two directions of a pipe. */
export interface Link {
  readonly inlet: Inlet
  readonly outlet: Outlet
  /** Whether the peer can answer: false for a pipe or a file. */
  readonly duplex: boolean
  /** For messages: `127.0.0.1:9997`, `stdin`. */
  readonly peer: string
  /** Releases the descriptor; whoever waits is rejected with `reason`. May be called twice. */
  destroy(reason?: Error): void
}

/** An inlet's `fill`, by its `read`. */
export function filling(read: Inlet['read']): Inlet['fill'] {
  return async (into) => {
    for (let filled = 0; filled < into.length; ) {
      const got = await read(into.subarray(filled))
      if (got === 0 && filled === 0) return false
      if (got === 0) {
        throw new Fault('TRUNCATED', 'the stream ended in the middle', {
          hint: 'the sender was stopped or the link was cut',
        })
      }
      filled += got
    }
    return true
  }
}

/** Off with FERRY_NO_SPLICE=1: then the link is one of Node's own streams, and CRIU is served by write(). */
export const spliceAllowed = process.env.FERRY_NO_SPLICE !== '1'
