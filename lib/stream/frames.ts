/** Frames over a link: one reader and one writer, which several may share. */
import { Fault } from '../fault.ts'
import { decodeFrame, decodeHeader, encodeFrame, HEADER_BYTES, headBytes } from '../format/frame.ts'
import type { Frame, FrameName, FrameOf } from '../format/frame-types.ts'
import { checkPreamble, encodePreamble, PREAMBLE_BYTES } from '../format/preamble.ts'
import type { Inlet, Outlet } from './link.ts'

/** Reads frames one by one. After a `data` or `packed` frame its bytes are the next that the inlet gives. */
export interface FrameReader {
  /**
   * Reads the next frame, which must be one of those that `takes` names: any other is refused by its header, and
   * nothing of its payload is read. Returns undefined where the stream ends between two frames. A payload above
   * `most` bytes, those of an image not counted, is `LIMIT`. Throws `FORMAT`, `LIMIT`, `TRUNCATED`, and `MEMORY`
   * where there is none for the payload.
   */
  next<Name extends FrameName>(takes: ReadonlySet<Name>, most?: number): Promise<FrameOf<Name> | undefined>
  /** As `next`; the end of the stream is `TRUNCATED`. */
  expect<Name extends FrameName>(takes: ReadonlySet<Name>, most?: number): Promise<FrameOf<Name>>
  readonly inlet: Pick<Inlet, 'fill'>
}

/** The frames of these names, which are allowed in one state of a conversation. */
export function accepting<Name extends FrameName>(...names: readonly Name[]): ReadonlySet<Name> {
  return new Set(names)
}

/** Payloads are read in steps of this many bytes, so that a length alone never makes us hold memory. */
const PAYLOAD_STEP = 64 * 2 ** 10
/** Smaller payloads cost about as much as a connection does anyway, and are not counted. */
const LEAST_CHARGED = 2 ** 10

export interface FrameReaderOptions {
  /** Gets the numbers of `got` frames, which the reader's caller does not see then (see session.ts). */
  onGot?: (bytes: number) => void
  /** The stream is a session's, and has no preamble: each of its links has had one (see session.ts). */
  started?: boolean
  /** A payload is counted there until the next frame is asked for. */
  memory?: { add(bytes: number): void }
}

/** Reads a preamble and then frames. Throws `LINK` for a peer that speaks TLS, and as `FrameReader.next` does. */
export function frameReader(
  inlet: Pick<Inlet, 'fill'>,
  { onGot, started = false, memory }: FrameReaderOptions = {},
): FrameReader {
  const header = Buffer.alloc(HEADER_BYTES)
  let charged = 0

  /** Reads the preamble. Returns false where the stream ends before it. */
  async function start(): Promise<boolean> {
    const preamble = Buffer.alloc(PREAMBLE_BYTES)
    if (!(await inlet.fill(preamble).catch(brokenAtStart))) return false
    refuseTls(preamble)
    checkPreamble(preamble)
    started = true
    return true
  }

  async function next<Name extends FrameName>(
    takes: ReadonlySet<Name>,
    most = Number.POSITIVE_INFINITY,
  ): Promise<FrameOf<Name> | undefined> {
    const allowed: ReadonlySet<FrameName> = takes
    for (;;) {
      if (charged > 0) memory?.add(-charged)
      charged = 0
      if (!(started || (await start())) || !(await inlet.fill(header))) return undefined
      const decoded = decodeHeader(header)
      const { type } = decoded
      if (!allowed.has(type) && !(type === 'got' && onGot !== undefined)) throw unexpected(decoded)
      const bytes = headBytes(decoded)
      if (bytes > most) throw new Fault('LIMIT', `a ${type} frame of ${bytes} bytes here, at most ${most} are allowed`)
      if (bytes > LEAST_CHARGED) {
        memory?.add(bytes)
        charged = bytes
      }
      const frame = decodeFrame(decoded, await payload(bytes))
      if (frame.type !== 'got' || onGot === undefined) return frame as FrameOf<Name>
      onGot(frame.offset)
    }
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

  async function expect<Name extends FrameName>(takes: ReadonlySet<Name>, most?: number): Promise<FrameOf<Name>> {
    const frame = await next(takes, most)
    if (frame !== undefined) return frame
    throw started ? truncated() : new Fault('TRUNCATED', NOTHING, { hint: NOTHING_HINT })
  }

  return { next, expect, inlet }
}

const NOTHING = 'the stream ended before the end of the snapshot: nothing came'
const NOTHING_HINT = 'the sender failed; or it is a cache that wants --tls or --key-file here too'

/** A link that breaks before its first byte. */
function brokenAtStart(error: unknown): never {
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

/** The fault for a frame that is not allowed now. */
export function unexpected(frame: { type: FrameName }): Fault {
  return new Fault('FORMAT', `a ${frame.type} frame where none belongs`)
}

/** The fault for a stream that ends too early; `where` ends the words `the stream ended`. */
export function truncated(where = 'before the end of the snapshot'): Fault {
  return new Fault('TRUNCATED', `the stream ended ${where}`, { hint: 'the sender was stopped or the link was cut' })
}

/** Writes frames. Several callers may share it: each frame goes out whole. */
export interface FrameWriter {
  /** Resolves when the frame was sent. */
  send(frame: Frame): Promise<void>
  /** Whether the outlet takes bytes in place. */
  readonly inPlace: boolean
  /** Runs `write` while nobody else writes. */
  exclusive<Result>(write: (outlet: Outlet) => Promise<Result>): Promise<Result>
}

/** Writes a preamble and then frames; with `started` the outlet has had its preamble. */
export function frameWriter(outlet: Outlet, started = false): FrameWriter {
  let last: Promise<unknown> = started ? Promise.resolve() : outlet.send(encodePreamble(), true)
  last.catch(() => {})
  function exclusive<Result>(write: (outlet: Outlet) => Promise<Result>): Promise<Result> {
    const result = last.then(() => write(outlet))
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
