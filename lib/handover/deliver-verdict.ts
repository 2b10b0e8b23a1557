/** Delivers verdicts from a source to its target. A verdict stays on disk until the target has answered it. */
import { setTimeout } from 'node:timers/promises'
import { Fault, type FaultCode } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import { NO_TOKEN } from '../format/frame.ts'
import type { Frame } from '../format/frame-types.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Report } from '../progress.ts'
import {
  accepting,
  type FrameReader,
  type FrameWriter,
  frameReader,
  frameWriter,
  unexpected,
} from '../stream/frames.ts'
import type { Link } from '../stream/link.ts'
import { forgetVerdict, type PendingVerdict, verdictFor } from './verdict-log.ts'

export interface DeliverOptions {
  connect: (signal: AbortSignal) => Promise<Link>
  report: Report
  /** Ends the attempts; the verdict stays on disk. */
  signal: AbortSignal
}

/**
 * Delivers a verdict that the target does not know yet, and forgets it. Leaves it on disk and throws `MISSING` where
 * the tasks are gone and the target does not know the snapshot, or the signal's reason.
 */
export async function deliverAndForget(
  pending: PendingVerdict,
  { connect, report, signal }: DeliverOptions,
): Promise<DeliveredVerdict> {
  const { id } = pending
  report({ event: 'waiting', what: `the target, which must learn what became of snapshot ${id}` })
  const delivered = await deliverVerdict(pending, connect, signal).catch((error: unknown) => {
    throw error instanceof Fault && error.code === 'MISSING' ? unknownAtTarget(pending, error) : error
  })
  forgetVerdict(pending)
  return delivered
}

/**
 * The target may have restored the snapshot and forgotten it; it may also be another cache than before, or have lost
 * the copy when it was killed.
 */
function unknownAtTarget({ id, path }: PendingVerdict, cause: Fault): Fault {
  return new Fault('MISSING', `the process is gone from here, and the target does not know snapshot ${id}`, {
    hint: `look whether it runs there: it may be lost; when you know, rm ${path}`,
    cause,
  })
}

export interface DeliveredVerdict {
  verdict: Verdict
  fate: Fate
}

const RETRY_MS = 300
/** A connection over which no answer comes for so long is given up for a new one. */
const TRY_MS = 10_000

/**
 * Delivers the verdict over new connections until the target answers or `signal` is aborted. Returns the verdict, and
 * what became of the target's tasks. Throws `MISSING` if the target does not know the snapshot, and the signal's
 * reason.
 */
export async function deliverVerdict(
  pending: PendingVerdict,
  connect: (signal: AbortSignal) => Promise<Link>,
  signal: AbortSignal,
): Promise<DeliveredVerdict> {
  for (;;) {
    signal.throwIfAborted()
    const verdict = verdictFor(pending)
    try {
      if (verdict !== undefined) {
        const limit = AbortSignal.any([signal, AbortSignal.timeout(TRY_MS)])
        const token = Buffer.from(pending.token, 'hex')
        return { verdict, fate: await sendVerdict(await connect(limit), { id: pending.id, token, verdict }, limit) }
      }
    } catch (error) {
      if (!(error instanceof Fault || (error as Error).name === 'TimeoutError')) throw error
      // The target never had all images, or has dropped them.
      if (codeOf(error) === 'MISSING' && verdict === 'drop') return { verdict, fate: 'dropped' }
      if (codeOf(error) === 'MISSING') throw error
    }
    await setTimeout(RETRY_MS, undefined, { signal }).catch(() => {})
  }
}

function codeOf(error: unknown): FaultCode | undefined {
  return error instanceof Fault ? error.code : undefined
}

export interface VerdictMessage {
  id: SnapshotId
  verdict: Verdict
  /** Proves that the verdict comes from the source. Not needed at a socket that only our own user can reach. */
  token?: Buffer
}

/** Sends a verdict once, over a link that is closed afterwards. Throws the target's refusal, and `LINK`. */
export async function sendVerdict(
  link: Link,
  { id, verdict, token = NO_TOKEN }: VerdictMessage,
  signal?: AbortSignal,
): Promise<Fate> {
  const answer = await request(link, { type: 'verdict', verdict, token, id }, signal)
  if (answer.type !== 'fate') throw unexpected(answer)
  return answer.fate
}

const greeting = accepting('hello')
const answers = accepting('refused', 'fate', 'listed')

/** Sends one frame and returns its answer, over a link that is closed afterwards. Throws like `sendVerdict`. */
export function request(link: Link, frame: Frame, signal?: AbortSignal): Promise<Frame> {
  return overLink(link, signal, async (reader, writer) => {
    // Some targets send `hello` only after the first frame.
    await writer.send(frame)
    await reader.expect(greeting)
    const answer = await reader.expect(answers)
    if (answer.type === 'refused') throw new Fault(answer.code, answer.reason)
    return answer
  })
}

/** Calls `speak` with a link, which is destroyed afterwards, or when the signal is aborted. */
export async function overLink<Result>(
  link: Link,
  signal: AbortSignal | undefined,
  speak: (reader: FrameReader, writer: FrameWriter) => Promise<Result>,
): Promise<Result> {
  const cut = (): void => link.destroy(signal?.reason as Error)
  signal?.addEventListener('abort', cut, { once: true })
  try {
    return await speak(frameReader(link.inlet), frameWriter(link.outlet))
  } finally {
    signal?.removeEventListener('abort', cut)
    link.destroy()
  }
}
