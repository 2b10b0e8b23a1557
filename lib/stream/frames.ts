import { Fault } from '../fault.ts'
import type { Frame, FrameName, FrameOf } from '../format/frame.ts'
import { checkPreamble, encodePreamble, PREAMBLE_BYTES } from '../format/preamble.ts'
import { decodeFrame, decodeHeader, encodeFrame, HEADER_BYTES, headBytes } from '../format/wire.ts'
import type { Inlet, Outlet } from './link.ts'

/** Reads frames one by one. After a `data` or `packed` frame its bytes are the next that the inlet gives. */
export interface FrameReader {
  /**
   * The next frame, which must be one of those that are taken now: any other is refused by its header, and nothing of its payload is
   * read. Undefined where the stream ends between two frames. A payload above `most` bytes, those of an image not counted, is
   * `LIMIT`. Throws `FORMAT`, `LIMIT`, `TRUNCATED`, and `MEMORY` where the payload is not to be held.
   */
  next<Name extends FrameName>(takes: AcceptedFrames<Name>, most?: number): Promise<FrameOf<Name> | undefined>
  /** The same; the end of the stream is `TRUNCATED`. */
  expect<Name extends FrameName>(takes: AcceptedFrames<Name>, most?: number): Promise<FrameOf<Name>>
  readonly inlet: Pick<Inlet, 'fill'>
}

/** The frames that belong in one state of a conversation. */
export type AcceptedFrames<Name extends FrameName> = ReadonlySet<Name>

export function accepting<Name extends FrameName>(...names: readonly Name[]): AcceptedFrames<Name> {
  return new Set(names)
}

/** Payloads are read in steps of this many bytes, so that a length alone never makes us hold memory. */
const PAYLOAD_STEP = 64 * 2 ** 10
/** Smaller payloads than this cost about what a connection costs anyway. */
const LEAST_CHARGED = 2 ** 10

export interface FrameReaderOptions {
  /** Told what the peer has got, in place of the reader's caller (see resumable.ts). */
  onGot?: (bytes: number) => void
  /** The stream outlives its links, and each of them has had its preamble (see resumable.ts). */
  started?: boolean
  /** What is held of the peer's words is counted there, until the next frame is asked for. */
  memory?: { add(bytes: number): void }
}

export function frameReader(
  inlet: Pick<Inlet, 'fill'>,
  { onGot, started = false, memory }: FrameReaderOptions = {},
): FrameReader {
  const header = Buffer.alloc(HEADER_BYTES)
  let charged = 0

  async function next<Name extends FrameName>(
    takes: AcceptedFrames<Name>,
    most = Number.POSITIVE_INFINITY,
  ): Promise<FrameOf<Name> | undefined> {
    for (;;) {
      const frame = await nextOfAll(takes, most)
      if (frame?.type !== 'got' || onGot === undefined) return frame as FrameOf<Name> | undefined
      onGot(frame.offset)
    }
  }

  async function nextOfAll(takes: ReadonlySet<FrameName>, most: number): Promise<Frame | undefined> {
    if (charged > 0) memory?.add(-charged)
    charged = 0
    if (!started) {
      const preamble = Buffer.alloc(PREAMBLE_BYTES)
      if (!(await inlet.fill(preamble).catch(unheard))) return undefined
      refuseTls(preamble)
      checkPreamble(preamble)
      started = true
    }
    if (!(await inlet.fill(header))) return undefined
    const decoded = decodeHeader(header)
    const { type } = decoded
    if (!takes.has(type) && !(type === 'got' && onGot !== undefined)) throw unexpected(decoded)
    const bytes = headBytes(decoded)
    if (bytes > most) throw new Fault('LIMIT', `a ${type} frame of ${bytes} bytes here, at most ${most} are allowed`)
    if (bytes > LEAST_CHARGED) {
      memory?.add(bytes)
      charged = bytes
    }
    return decodeFrame(decoded, await payload(bytes))
  }

  async function payload(length: number): Promise<Buffer> {
    const steps: Buffer[] = []
    for (let left = length; left > 0; ) {
      const step = Buffer.alloc(Math.min(left, PAYLOAD_STEP))
      if (!(await inlet.fill(step))) throw truncated()
      steps.push(step)
      left -= step.length
    }
    return steps.length === 1 ? (steps[0] as Buffer) : Buffer.concat(steps)
  }

  async function expect<Name extends FrameName>(takes: AcceptedFrames<Name>, most?: number): Promise<FrameOf<Name>> {
    const frame = await next(takes, most)
    if (frame !== undefined) return frame
    throw started ? truncated() : new Fault('TRUNCATED', NOTHING, { hint: NOTHING_HINT })
  }

  return { next, expect, inlet }
}

const NOTHING = 'the stream ended before the end of the snapshot: nothing came'
const NOTHING_HINT = 'the sender failed; or it is a cache that wants --tls or --key-file here too'

/** A link that breaks before its first word. */
function unheard(error: unknown): never {
  if (!(error instanceof Fault) || error.code !== 'LINK' || error.hint !== undefined) throw error
  throw new Fault('LINK', error.message, { hint: NOTHING_HINT, cause: error })
}

/** Throws `LINK` for the start of a TLS handshake. */
function refuseTls(start: Buffer): void {
  if (start[0] !== 0x16 || start[1] !== 3) return
  throw new Fault('LINK', 'the other end speaks TLS, and this one does not', {
    hint: 'use --tls or --key-file at both ends or at none',
  })
}

export function unexpected(frame: { type: FrameName }): Fault {
  return new Fault('FORMAT', `a ${frame.type} frame where none belongs`)
}

export function truncated(): Fault {
  return new Fault('TRUNCATED', 'the stream ended before the end of the snapshot', {
    hint: 'the sender was stopped or the link was cut',
  })
}

/** Writes frames; several writers may share it, each frame goes out whole. */
export interface FrameWriter {
  send(frame: Frame): Promise<void>
  /** Whether the outlet takes bytes in place. */
  readonly inPlace: boolean
  /** Runs `turn` while nobody else writes. */
  exclusive<Result>(turn: (outlet: Outlet) => Promise<Result>): Promise<Result>
}

/** With `started` the outlet has had its preamble. */
export function frameWriter(outlet: Outlet, started = false): FrameWriter {
  let last: Promise<unknown> = started ? Promise.resolve() : outlet.send(encodePreamble(), true)
  last.catch(() => {})
  function exclusive<Result>(turn: (outlet: Outlet) => Promise<Result>): Promise<Result> {
    const result = last.then(() => turn(outlet))
    last = result
    result.catch(() => {})
    return result
  }
  return {
    exclusive,
    inPlace: outlet.fillInPlace !== undefined,
    send: (frame) => exclusive(() => outlet.send(encodeFrame(frame))),
  }
}
