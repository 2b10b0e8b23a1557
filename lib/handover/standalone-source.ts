/**
 * A hand-over by a command that ends with it.
 *
 * Nobody stays here to tell the target again and again, as a proxy does. A verdict that cannot be delivered stays on disk, and is
 * delivered when somebody asks for it (`--settle`): by its name, for only the user knows the route to its target.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Report } from '../progress.ts'
import type { Link } from '../stream/link.ts'
import type { DeliveredVerdict } from './deliver-verdict.ts'
import { deliverAndForget } from './deliver-verdict.ts'
import { outcomeOf, reportOutcome, tasksRunOn } from './outcome.ts'
import { type HandedOver, type HandoverOptions, handOver } from './source.ts'
import { type PendingVerdict, readPendingVerdicts, verdictFor } from './verdict-log.ts'

/** The route to the target, and what cannot go it now. */
export interface TargetRoute {
  /** Where verdicts are kept. */
  verdicts: string
  connect: (signal: AbortSignal) => Promise<Link>
  /** How a user has a verdict delivered. */
  settleCommand: (id: SnapshotId) => string
  /** The target keeps images that nobody has restored yet. */
  storesImages: boolean
  report: Report
  /** How long the target may take, from the last image to its answer. */
  timeoutMs: number
  signal: AbortSignal
}

/**
 * Hands over what this criu dumps, and returns when `run`, the criu, has ended. Throws what the target refuses, `TIMEOUT`, and what
 * criu says; then the tasks run on here, or the message says where they are.
 */
export async function handOverOnce(
  criu: IncomingDump,
  run: Promise<void>,
  route: TargetRoute,
  departure: Pick<HandoverOptions, 'id' | 'until' | 'gates' | 'tuning' | 'resumes' | 'layer'>,
): Promise<void> {
  const { id } = departure
  const { verdicts: directory, connect, timeoutMs, signal, report } = route
  const begun = performance.now()
  const end = await handOver(criu, { ...departure, leaves: false, directory, connect, timeoutMs, signal })
  if ('reason' in end) {
    const moved = end.owed !== undefined && (await settleFailed(end.owed, route))
    if (moved) return
    throw end.reason
  }
  const { images, bytes } = end.snapshot
  const ms = performance.now() - begun
  if (end.verdict !== 'drop') report({ event: 'sent', id, images: images.length, bytes, ms, verified: true })
  const delivered = isTold(end) ? end : await payInTime(end.owed, route)
  concludeOnce(id, delivered, route)
  // The process runs there, whatever criu says at its end.
  await Promise.race([run.catch(() => {}), delay(CRIU_PATIENCE_MS, undefined, { ref: false })])
}

/** The verdict of a hand-over that failed here: what keeps it from its target is said. Whether the process moved all the same. */
async function settleFailed(owed: PendingVerdict, route: TargetRoute): Promise<boolean> {
  const { id } = owed
  try {
    const delivered = await payInTime(owed, route)
    reportOutcome(id, delivered, route.report)
    return delivered.verdict === 'go'
  } catch (fault) {
    grave(route.report, id, fault as Error)
    return false
  }
}

function isTold(end: HandedOver): end is HandedOver & DeliveredVerdict {
  return end.fate !== undefined
}

/** For a hand-over that has failed already: what else must be known. */
function grave(report: Report, id: SnapshotId, fault: Error): void {
  report({ event: 'failed', what: `the verdict of snapshot ${id}`, fault })
}

/** Here it is an error where the process is not there, and nowhere else. */
function concludeOnce(id: SnapshotId, delivered: DeliveredVerdict, { storesImages, report }: TargetRoute): void {
  const ending = outcomeOf(delivered.verdict, delivered.fate)
  if (ending === 'stored' && !storesImages) {
    throw new Fault('CRIU', 'the process is gone from here, and does not run there: criu restore failed at its end', {
      hint: 'it is lost, unless the target kept its images',
    })
  }
  if (ending === 'stayed') throw tasksRunOn()
  reportOutcome(id, delivered, report)
}

/** A criu whose tasks are gone has nothing to do but to end. */
const CRIU_PATIENCE_MS = 10_000

/** How long a target may take after a signal, of the time that a command has then. */
const HURRY_MS = 2000

async function payInTime(
  owed: PendingVerdict,
  { connect, settleCommand, signal, timeoutMs, report }: TargetRoute,
): Promise<DeliveredVerdict> {
  const stop = new AbortController()
  const hurry = (): void => void setTimeout(() => stop.abort(), HURRY_MS).unref()
  const timer = setTimeout(() => stop.abort(), timeoutMs)
  if (signal.aborted) hurry()
  signal.addEventListener('abort', hurry)
  try {
    return await deliverAndForget(owed, { connect, report, signal: stop.signal })
  } catch (error) {
    throw stop.signal.aborted ? undelivered(owed, settleCommand) : error
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', hurry)
  }
}

function undelivered(owed: PendingVerdict, settleCommand: TargetRoute['settleCommand']): Fault {
  const { id } = owed
  const where = verdictFor(owed) === 'go' ? 'is gone from here' : 'runs on here'
  return new Fault(
    'LINK',
    `the process of snapshot ${id} ${where}, and the target, which may hold a copy, was not told`,
    { hint: `tell it with: ${settleCommand(id)}` },
  )
}

/** Says what commands before us, which were killed, still owe. */
export function reportPendingVerdicts({ verdicts, settleCommand, report }: TargetRoute): void {
  for (const owed of readPendingVerdicts(verdicts)) {
    if (verdictFor(owed) !== undefined) grave(report, owed.id, undelivered(owed, settleCommand))
  }
}

/**
 * Delivers the verdict of an earlier hand-over. Throws `MISSING` where nothing is owed, or where
 * the tasks are gone and the target does not know them; `LINK`, and then it is owed still; and what `conclude` throws.
 */
export async function settleVerdict(id: SnapshotId, route: TargetRoute): Promise<void> {
  const owed = readPendingVerdicts(route.verdicts).find((one) => one.id === id)
  if (owed === undefined) throw new Fault('MISSING', `nothing is owed for snapshot ${id} in ${route.verdicts}`)
  reportOutcome(id, await payInTime(owed, route), route.report)
}
