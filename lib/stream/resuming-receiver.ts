/**
 * The receiver's side of a conversation that outlives its links (see session.ts): new connections may go on with it.
 */
import { timingSafeEqual } from 'node:crypto'
import { Fault } from '../fault.ts'
import { encodeFrame, type Frame, TOKEN_BYTES } from '../format/frame.ts'
import type { Link } from './link.ts'
import { ResumableSession } from './session.ts'

/** More than all acks of the largest snapshot: a sender that reads at all never fills it. */
export const RECEIVER_WINDOW = 4 * 2 ** 20
/** The sender's window is 8 of these, so it does not wait for a `got` on a link that carries. */
const ACK_EVERY = 2 ** 20

/** A link that may become a conversation which outlives it. */
export interface TargetLink {
  /** The frames are read from it and written to it, before and after. */
  readonly link: Link
  /** Told of `got` frames. Throws `FORMAT` where none belongs. */
  onGot(position: number): void
  /**
   * From here on what is read and written counts, and another link may take this one's place within `timeoutMs`. What
   * is kept for the peer is counted in `memory`.
   */
  outlive(token: Buffer, timeoutMs: number, memory?: { add(bytes: number): void }): void
  /**
   * Goes on over the link of `other`, on which `frame` came. Throws `MISSING` for another token, and `FORMAT` as
   * `ResumableSession.attach` does.
   */
  resume(frame: Extract<Frame, { type: 'resume' }>, other: TargetLink): void
  /** Hands the link itself to `take`. Unless that throws, the link does not belong to this object any more. */
  give(take: (link: Link) => void): void
}

/** Over a new connection. */
export function openTargetLink(first: Link): TargetLink {
  /** The connection, then the session over it; undefined once it was given away. */
  let current: Link | undefined = first
  let session: ResumableSession | undefined
  let sessionToken: Buffer | undefined
  const now = (): Link => {
    if (current === undefined) throw new Fault('ABORTED', 'the link was given to another conversation')
    return current
  }
  return {
    link: {
      inlet: { fill: async (into) => now().inlet.fill(into), read: async (into) => now().inlet.read(into) },
      outlet: {
        send: async (bytes, more) => now().outlet.send(bytes, more),
        settle: async (bytes) => now().outlet.settle(bytes),
        finish: async () => now().outlet.finish(),
      },
      duplex: first.duplex,
      peer: first.peer,
      destroy: (reason) => current?.destroy(reason),
    },
    onGot(position) {
      if (session === undefined) throw new Fault('FORMAT', 'a got frame where none belongs')
      session.acknowledged(position)
    },
    outlive(token, timeoutMs, memory) {
      sessionToken = Buffer.from(token)
      session = new ResumableSession({
        peer: first.peer,
        role: 'receiver',
        window: RECEIVER_WINDOW,
        ...(memory && { onGrow: (bytes: number) => memory.add(bytes) }),
        ackEvery: ACK_EVERY,
        timeoutMs,
      })
      session.attach(now(), 0)
      current = session.link
    },
    resume({ token, offset }, other) {
      const same = timingSafeEqual(token, sessionToken ?? Buffer.alloc(TOKEN_BYTES))
      const resumed = session
      if (!same || resumed === undefined || resumed.over.aborted) throw unknownSnapshot()
      const greeting = encodeFrame({ type: 'got', offset: resumed.received })
      other.give((link) => resumed.attach(link, offset, greeting))
    },
    give(take) {
      take(now())
      current = undefined
    },
  }
}

/** The same fault for a snapshot that is not here and for a wrong token. */
export function unknownSnapshot(): Fault {
  return new Fault('MISSING', 'no such snapshot is on its way here')
}
