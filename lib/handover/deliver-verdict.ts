/** Delivers verdicts from a source to its target. A verdict stays on disk until the target has answered it. */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import type { Frame, FrameOf } from '../format/frame-types.ts'
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
import { abortWith, sleep } from '../stream/wait.ts'
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
export async function deliverAndForget(pending: PendingVerdict, options: DeliverOptions): Promise<DeliveredVerdict> {
  const { id } = pending
  options.report({ event: 'waiting', what: `the target, which must learn what became of snapshot ${id}` })
  const delivered = await deliver(pending, options)
  forgetVerdict(pending)
  return delivered
}

export interface DeliveredVerdict {
  verdict: Verdict
  fate: Fate
}

const RETRY_MS = 300
/** A connection over which no answer comes for so long is given up for a new one. */
const TRY_MS = 10_000

/** The signal may be a daemon's, and is not to know of each try. */
async function withinTry<Result>(work: (limit: AbortSignal) => Promise<Result>, signal: AbortSignal): Promise<Result> {
  const limit = new AbortController()
  const release = abortWith(limit, signal)
  const late = (): void => limit.abort(new Fault('LINK', 'the target does not answer'))
  sleep(TRY_MS, limit.signal, false).then(late, () => {})
  try {
    return await work(limit.signal)
  } finally {
    release()
    limit.abort(new Fault('ABORTED', 'over'))
  }
}

/** Tries over new connections until the target answers or `signal` is aborted. */
async function deliver(pending: PendingVerdict, { connect, signal }: DeliverOptions): Promise<DeliveredVerdict> {
  const { id, path } = pending
  for (;;) {
    signal.throwIfAborted()
    const verdict = verdictFor(pending)
    try {
      if (verdict !== undefined) {
        const token = Buffer.from(pending.token, 'hex')
        const send = async (limit: AbortSignal): Promise<Fate> =>
          sendVerdict(await connect(limit), { id, token, verdict }, limit)
        return { verdict, fate: await withinTry(send, signal) }
      }
    } catch (cause) {
      if (!(cause instanceof Fault)) throw cause
      const isUnknown = cause instanceof Fault && cause.code === 'MISSING'
      // The target never had all images, or has dropped them.
      if (isUnknown && verdict === 'drop') return { verdict, fate: 'dropped' }
      // It may have restored the snapshot and forgotten it; it may also be another cache than before, or have lost the
      // copy when it was killed.
      if (isUnknown) {
        throw new Fault('MISSING', `the process is gone from here, and the target does not know snapshot ${id}`, {
          hint: `look whether it runs there: it may be lost; when you know, rm ${path}`,
          cause,
        })
      }
    }
    await setTimeout(RETRY_MS, undefined, { signal }).catch(() => {})
  }
}

/**
 * Sends a verdict once, over a link that is closed afterwards. Its token proves that it comes from the source; a socket
 * that only our own user can reach takes `NO_TOKEN`. Throws the target's refusal, and `LINK`.
 */
export async function sendVerdict(
  link: Link,
  verdict: Omit<FrameOf<'verdict'>, 'type'>,
  signal?: AbortSignal,
): Promise<Fate> {
  const answer = await request(link, { type: 'verdict', ...verdict }, signal)
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
