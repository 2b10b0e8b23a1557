/** The receiver's side of a conversation that outlives its link (see resumable.ts): others connect, and may bring it back. */
import { timingSafeEqual } from 'node:crypto'
import { Fault } from '../fault.ts'
import { encodeFrame, type Frame, TOKEN_BYTES } from '../format/wire.ts'
import type { Link } from './link.ts'
import { openSession } from './open-session.ts'
import type { Session } from './session.ts'

/** More than all acks of the largest snapshot: a sender that listens at all never fills it. */
export const RECEIVER_WINDOW = 4 * 2 ** 20
/** The sender's window is 8 of these, so it does not wait for us on a link that carries. */
const EVERY = 2 ** 20

/** A link that may become a conversation which outlives it. */
export interface TargetLink {
  /** What reads and writes the frames, before and after. */
  readonly link: Link
  /** Told of `got` frames. Throws `FORMAT` where none belongs. */
  onGot(position: number): void
  /**
   * From here on what is read and written counts, and another link may take this one's place within `timeoutMs`. `memory`: what is kept
   * for the peer is counted there.
   */
  outlive(token: Buffer, timeoutMs: number, memory?: { add(bytes: number): void }): void
  /** Goes on over the link of `other`, which `frame` came from. Throws `MISSING`, and `FORMAT` as `Session.attach` does. */
  resume(frame: Extract<Frame, { type: 'resume' }>, other: TargetLink): void
  /** The link itself; if `take` does not throw it is not this line's any more. */
  give(take: (link: Link) => void): void
}

/** A line over a new connection. */
export function openTargetLink(first: Link): TargetLink {
  let carrier: Link | undefined = first
  let session: Session | undefined
  let token: Buffer | undefined
  const now = (): Link => {
    if (carrier === undefined) throw new Fault('ABORTED', 'the link was given to another conversation')
    return carrier
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
      destroy: (reason) => carrier?.destroy(reason),
    },
    onGot(position) {
      if (session === undefined) throw new Fault('FORMAT', 'a got frame where none belongs')
      session.acknowledged(position)
    },
    outlive(shown, timeoutMs, memory) {
      token = Buffer.from(shown)
      const { peer } = first
      session = openSession({
        peer,
        window: RECEIVER_WINDOW,
        ...(memory && { grows: memory.add }),
        end: 'receiver',
        every: EVERY,
        timeoutMs,
      })
      session.attach(now(), 0)
      carrier = session.link
    },
    resume(frame, other) {
      const same = timingSafeEqual(frame.token, token ?? Buffer.alloc(TOKEN_BYTES))
      if (!same || session === undefined || session.over.aborted) throw unknownSnapshot()
      const greeting = encodeFrame({ type: 'got', offset: session.received })
      const goOn = session.attach
      other.give((link) => goOn(link, frame.offset, greeting))
    },
    give(take) {
      take(now())
      carrier = undefined
    },
  }
}

/** The same words for a snapshot that is not here and for a wrong token. */
export function unknownSnapshot(): Fault {
  return new Fault('MISSING', 'no such snapshot is on its way here')
}
