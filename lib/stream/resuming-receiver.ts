/**
 * The receiver's side of a conversation that outlives its links (see session.ts): new connections may go on with it.
 */
import { timingSafeEqual } from 'node:crypto'
import { Fault } from '../fault.ts'
import { encodeFrame, TOKEN_BYTES } from '../format/frame.ts'
import type { FrameOf } from '../format/frame-types.ts'
import { filling, type Link } from './link.ts'
import { ResumableSession } from './session.ts'

/** Bytes that are sent between two reports. */
const STEP = 256 * 2 ** 10

/** A link whose progress is reported, and that may become a conversation which outlives it. */
export class TargetLink {
  /** The frames are read from it and written to it, before and after. */
  readonly link: Link
  /** The connection, then the session over it; undefined once it was given away. */
  #current: Link | undefined
  #session: ResumableSession | undefined
  #token: Buffer | undefined

  /**
   * Over a new connection. `moved` is told how many bytes were read, and how many the kernel, or the session, has
   * taken for the other end.
   */
  constructor(first: Link, moved = (_bytes: number): void => {}) {
    this.#current = first
    const read = async (into: Uint8Array): Promise<number> => {
      const got = await this.#now().inlet.read(into)
      moved(got)
      return got
    }
    this.link = {
      inlet: { read, fill: filling(read) },
      outlet: {
        send: async (bytes, more) => {
          for (let at = 0; at < bytes.length; at += STEP) {
            const part = bytes.subarray(at, at + STEP)
            await this.#now().outlet.send(part, more || at + STEP < bytes.length)
            moved(part.length)
          }
        },
        finish: async () => this.#now().outlet.finish(),
      },
      duplex: first.duplex,
      peer: first.peer,
      destroy: (reason) => this.#current?.destroy(reason),
    }
  }

  /** Told of `got` frames. Throws `FORMAT` where none belongs. */
  onGot(position: number): void {
    if (this.#session === undefined) throw new Fault('FORMAT', 'a got frame where none belongs')
    this.#session.acknowledged(position)
  }

  /**
   * From here on what is read and written counts, and another link may take this one's place within `timeoutMs`. What
   * is kept for the peer is counted in `memory`.
   */
  outlive(token: Buffer, timeoutMs: number, memory?: { add(bytes: number): void }): void {
    this.#token = Buffer.from(token)
    const onGrow = (bytes: number): void => memory?.add(bytes)
    this.#session = new ResumableSession({ peer: this.link.peer, role: 'receiver', onGrow, timeoutMs })
    this.#session.attach(this.#now(), 0)
    this.#current = this.#session.link
  }

  /**
   * Goes on over the link of `other`, on which `frame` came. Throws `MISSING` for another token, and `FORMAT` as
   * `ResumableSession.attach` does.
   */
  resume({ token, offset }: FrameOf<'resume'>, other: TargetLink): void {
    const same = timingSafeEqual(token, this.#token ?? Buffer.alloc(TOKEN_BYTES))
    const session = this.#session
    if (!same || session === undefined || session.over.aborted) throw unknownSnapshot()
    const greeting = encodeFrame({ type: 'got', offset: session.received })
    other.give((link) => session.attach(link, offset, greeting))
  }

  /** Hands the link itself to `take`. Unless that throws, the link does not belong to this object any more. */
  give(take: (link: Link) => void): void {
    take(this.#now())
    this.#current = undefined
  }

  #now(): Link {
    if (this.#current === undefined) throw new Fault('ABORTED', 'the link was given to another conversation')
    return this.#current
  }
}

/** The same fault for a snapshot that is not here and for a wrong token. */
export function unknownSnapshot(): Fault {
  return new Fault('MISSING', 'no such snapshot is on its way here')
}
