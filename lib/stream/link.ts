/** What every link has, whatever it is made of: an inlet, an outlet, and an end. */
import { Fault } from '../fault.ts'
import type { Fd } from '../kernel/fd.ts'

/** Brings bytes: from a socket, a pipe, a file, or a Node stream where the kernel's descriptor cannot be used. */
export interface Inlet {
  /**
   * Fills all of `into`, in place. Returns false when the stream ends before the first byte, throws `TRUNCATED` when
   * it ends later, `LINK` when the peer is gone.
   */
  fill(into: Uint8Array): Promise<boolean>
  /**
   * Reads once. Returns the number of bytes: at least one, or 0 at the end. So a caller knows what came before a link
   * broke.
   */
  read(into: Uint8Array): Promise<number>
}

/** Takes bytes. One caller at a time. */
export interface Outlet {
  /** Resolves when `bytes` may be reused. `more` says that the next bytes follow at once. Throws `LINK` or `IO`. */
  send(bytes: Uint8Array, more?: boolean): Promise<void>
  /**
   * For an outlet that keeps a copy of what it sends: lets `fill` write the bytes right there, at most `most`, when
   * there is room. They go out behind the head that `fill` returns; nothing goes out if it returns undefined.
   */
  fillInPlace?(headBytes: number, most: number, fill: (room: Uint8Array) => Filled | undefined): Promise<void>
  /**
   * Takes up to `most` bytes out of a pipe by reference, and sends them behind the head that `head` makes for them:
   * they must not change before the other end has them. `untouched` is asked for the pipe each time that there may be
   * room: it may be read and closed meanwhile. Returns how many bytes; 0 where there are too few to be worth it, or
   * the link cannot do it.
   */
  passOn?(untouched: () => Fd | undefined, most: number, head: (bytes: number) => Uint8Array): Promise<number>
  /** Sends `bytes` bytes of a pipe by reference. */
  splice?(pipe: Fd, bytes: number): Promise<void>
  /** For a file: writes what was sent to its disk, and makes sure that `bytes` more will fit. Throws `IO`. */
  settle?(bytes: number): Promise<void>
  /** Hands everything to the kernel, and closes a socket for writing. A pipe or a file is closed by `destroy`. */
  finish(): Promise<void>
}

/** What `fill` wrote in place. */
export interface Filled {
  /** Goes out before them: `headBytes` bytes. */
  head: Uint8Array
  /** How many bytes were written. */
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
  /** Releases the descriptor; reads and writes that wait are rejected with `reason`. May be called twice. */
  destroy(reason?: Error): void
}

/** An inlet's `fill`, made of its `read`. */
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

/** False with FERRY_NO_SPLICE=1: then links are Node's own streams, and CRIU is served by write(). */
export const spliceAllowed = process.env.FERRY_NO_SPLICE !== '1'
