/** One end of a conversation that outlives its links (see resumable.ts). */
import type { Fault } from '../fault.ts'
import type { Link } from './link.ts'
import type { ReplayMemory } from './replay-memory.ts'

export interface SessionOptions {
  peer: string
  /** Bytes that are kept: a power of two. */
  window: number
  /** Where they are kept; given back when it is over. */
  ring?: ReplayMemory
  /** Where none is given: told how many bytes more are kept. */
  grows?: (bytes: number) => void
  /** The sender of a snapshot waits in `send` for room; of a receiver, which says little, a full window is a `LIMIT`. */
  end: 'sender' | 'receiver'
  /** `got` is said after this many bytes. */
  every: number
  /** How long nothing may move, with a link or without: what the sender sends, that is. Then it is `LINK` or `TIMEOUT`. */
  timeoutMs: number
}

export interface Session {
  /** What reads and writes the frames. `finish` waits until all is sent; from then on the end of a link is the end. */
  readonly link: Link
  /** Bytes of the peer's stream that were taken. */
  readonly received: number
  /** Nothing was ever acknowledged, nothing was ever taken: it can begin again. */
  readonly untouched: boolean
  /** Aborted when it is over. */
  readonly over: AbortSignal
  /** How long a link may be silent. */
  readonly quietMs: number
  /** From now on something must move. */
  watch(): void
  /** Why there is no link yet, for the message. */
  blame(reason: Fault): void
  /** The peer has got that many bytes. Throws `FORMAT` for a number that cannot be. */
  acknowledged(position: number): void
  /**
   * Goes on over `link`, after `greeting`; the peer has got `position` bytes. Another link is dropped. Throws `FORMAT`, and
   * is over, for a number that cannot be.
   */
  attach(link: Link, position: number, greeting?: Uint8Array): void
  /** Resolves when there is no link. Throws why it is over. */
  detached(): Promise<void>
  /** Nothing waits for room or for a new link any more. */
  stop(reason: Error): void
}
