/** Delivers a verdict from the source to the target. The verdict stays on disk until the target has answered it. */
import { setTimeout } from 'node:timers/promises'
import { Fault, type FaultCode } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import type { Frame } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
import { NO_TOKEN } from '../format/wire.ts'
import type { Report } from '../progress.ts'
import { accepting, frameReader, frameWriter, unexpected } from '../stream/frames.ts'
import type { Link } from '../stream/link.ts'
import { forgetVerdict, type PendingVerdict, verdictFor } from './verdict-log.ts'

export interface Delivery {
  connect: (signal: AbortSignal) => Promise<Link>
  report: Report
  /** Leaves the debt on disk. */
  signal: AbortSignal
}

/**
 * Delivers a verdict that the target does not know yet, and forgets it. Throws, and keeps it, with `MISSING` where the tasks
 * are gone and the target does not know them, and with the signal's reason.
 */
export async function deliverAndForget(
  owed: PendingVerdict,
  { connect, report, signal }: Delivery,
): Promise<DeliveredVerdict> {
  const { id } = owed
  report({ event: 'waiting', what: `the target, which must learn what became of snapshot ${id}` })
  const delivered = await deliverVerdict(owed, connect, signal).catch((error: unknown) => {
    throw error instanceof Fault && error.code === 'MISSING' ? unknownThere(owed, error) : error
  })
  forgetVerdict(owed)
  return delivered
}

/** The target may have run it and forgotten; it may also be another one than before, or have died with the copy. */
function unknownThere({ id, path }: PendingVerdict, cause: Fault): Fault {
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
/** A link that is made and stays silent is left for another one. */
const TRY_MS = 10_000

/**
 * Delivers the verdict over new connections, again and again until the target answers or `signal` comes. Returns it, and
 * what became of the target's tasks. Throws `MISSING` if the target does not know the snapshot, and the signal's reason.
 */
export async function deliverVerdict(
  owed: PendingVerdict,
  connect: (signal: AbortSignal) => Promise<Link>,
  signal: AbortSignal,
): Promise<DeliveredVerdict> {
  for (;;) {
    signal.throwIfAborted()
    const verdict = verdictFor(owed)
    try {
      if (verdict !== undefined) {
        const limit = AbortSignal.any([signal, AbortSignal.timeout(TRY_MS)])
        return {
          verdict,
          fate: await sendVerdict(
            await connect(limit),
            { ...owed, token: Buffer.from(owed.token, 'hex'), verdict },
            limit,
          ),
        }
      }
    } catch (error) {
      if (!(error instanceof Fault || (error as Error).name === 'TimeoutError')) throw error
      // It never had all images, or has dropped them.
      if (codeOf(error) === 'MISSING' && verdict === 'drop') return { verdict, fate: 'dropped' }
      if (codeOf(error) === 'MISSING') throw error
    }
    await setTimeout(RETRY_MS, undefined, { signal }).catch(() => {})
  }
}

function codeOf(error: unknown): FaultCode | undefined {
  return error instanceof Fault ? error.code : undefined
}

/** A verdict; without a token for those who believe us anyway: at a socket of our own user. */
export interface VerdictMessage {
  id: SnapshotId
  verdict: Verdict
  token?: Buffer
}

/** One try on a link of its own, which is closed. Throws `REFUSED` and the like, and `LINK`. */
export async function sendVerdict(link: Link, said: VerdictMessage, signal?: AbortSignal): Promise<Fate> {
  const { id, verdict, token = NO_TOKEN } = said
  const answer = await request(link, { type: 'verdict', verdict, token, id }, signal)
  if (answer.type !== 'fate') throw unexpected(answer)
  return answer.fate
}

const greeting = accepting('hello')
const answers = accepting('refused', 'fate', 'listed')

/** One frame and its answer, on a link of their own. Throws as `tell` does. */
export async function request(link: Link, frame: Frame, signal?: AbortSignal): Promise<Frame> {
  const cut = (): void => link.destroy(signal?.reason as Error)
  signal?.addEventListener('abort', cut)
  try {
    const reader = frameReader(link.inlet)
    // Not every target greets before it is spoken to.
    await frameWriter(link.outlet).send(frame)
    await reader.expect(greeting)
    const answer = await reader.expect(answers)
    if (answer.type === 'refused') throw new Fault(answer.code, answer.reason)
    return answer
  } finally {
    signal?.removeEventListener('abort', cut)
    link.destroy()
  }
}
