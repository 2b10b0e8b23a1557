/**
 * A hand-over by a command that ends with it.
 *
 * A proxy stays and tries again and again to deliver a verdict; a command does not. A verdict that it cannot deliver
 * stays on disk until a user has it delivered with `--settle ID`: only the user knows the route to the target.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import { openDirectory, removeIfEmpty } from '../criu/work-directory.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Report } from '../progress.ts'
import { type DeliveredVerdict, type DeliverOptions, deliverAndForget } from './deliver-verdict.ts'
import { outcomeOf, reportOutcome, tasksRunOnFault } from './outcome.ts'
import { type HandoverOptions, handOver } from './source.ts'
import { type PendingVerdict, readPendingVerdicts, verdictFor } from './verdict-log.ts'

/** How a command reaches the target, and where it writes verdicts down. */
export interface RouteOptions extends Pick<DeliverOptions, 'connect' | 'report'> {
  /** The directory of the verdicts; `HOLD_DIRECTORY`, which goes when it is empty, if undefined. */
  directory: string | undefined
  /**
   * The command line by which a user has a verdict delivered. `dir`: the option that names the directory, if it was
   * named.
   */
  settleCommand: (dir: string, id: SnapshotId) => string
  /** The target stores images that nobody has restored yet. */
  storesImages: boolean
  /** How long the target may take, from the last image to its answer. */
  timeoutMs: number
  signal: AbortSignal
}

export interface TargetRoute extends RouteOptions {
  /** The directory of the verdicts, which is there. */
  verdicts: string
}

/** Calls `work` with a route. Throws `IO` and `USAGE` like `openDirectory`, and what `work` throws. */
export async function withRoute(options: RouteOptions, work: (route: TargetRoute) => Promise<void>): Promise<void> {
  const verdicts = openDirectory(options.directory ?? HOLD_DIRECTORY)
  try {
    await work({ ...options, verdicts })
  } finally {
    if (options.directory === undefined) removeIfEmpty(verdicts)
  }
}

/**
 * Hands over what this criu dumps, and returns when `run`, the criu, has ended. Throws the target's refusal, `TIMEOUT`,
 * and criu's error; then the tasks run on here, or the message says where they are.
 */
export async function handOverOnce(
  criu: IncomingDump,
  run: Promise<void>,
  route: TargetRoute,
  options: Pick<HandoverOptions, 'id' | 'until' | 'gates' | 'tuning' | 'resumes' | 'layer'>,
): Promise<void> {
  const { id } = options
  const { verdicts: directory, connect, timeoutMs, signal, report } = route
  const begun = performance.now()
  const end = await handOver(criu, { ...options, leaves: false, directory, connect, timeoutMs, signal })
  if ('reason' in end) {
    if (end.pending !== undefined && (await settleFailed(end.pending, route))) return
    throw end.reason
  }
  const { snapshot, verdict, fate, pending } = end
  const { images, bytes } = snapshot
  const ms = performance.now() - begun
  if (verdict !== 'drop') report({ event: 'sent', id, images: images.length, bytes, ms, verified: true })
  const delivered = fate === undefined ? await deliverInTime(pending, route) : { verdict, fate }
  const outcome = outcomeOf(delivered.verdict, delivered.fate)
  if (outcome === 'stored' && !route.storesImages) {
    throw new Fault('CRIU', 'the process is gone from here, and does not run there: criu restore failed at its end', {
      hint: 'it is lost, unless the target kept its images',
    })
  }
  if (outcome === 'stayed') throw tasksRunOnFault()
  reportOutcome(id, delivered, report)
  // The process runs there, whatever criu says at its end.
  await Promise.race([run.catch(() => {}), delay(CRIU_PATIENCE_MS, undefined, { ref: false })])
}

/**
 * Delivers the verdict of a hand-over that failed here, and reports what keeps it from the target. Returns whether the
 * process has moved all the same.
 */
async function settleFailed(pending: PendingVerdict, route: TargetRoute): Promise<boolean> {
  const { id } = pending
  try {
    const delivered = await deliverInTime(pending, route)
    reportOutcome(id, delivered, route.report)
    return delivered.verdict === 'go'
  } catch (fault) {
    reportFailed(route.report, id, fault as Error)
    return false
  }
}

/** Reports a verdict that could not be delivered, besides what the command itself throws. */
function reportFailed(report: Report, id: SnapshotId, fault: Error): void {
  report({ event: 'failed', what: `the verdict of snapshot ${id}`, fault })
}

/** How long a criu whose tasks are gone may take to end. */
const CRIU_PATIENCE_MS = 10_000

/** How long a target may take after a signal: a part of the time in which a command must end then. */
const HURRY_MS = 2000

async function deliverInTime(pending: PendingVerdict, route: TargetRoute): Promise<DeliveredVerdict> {
  const { signal, timeoutMs } = route
  const late = new AbortController()
  const timers = [setTimeout(() => late.abort(), timeoutMs)]
  const onSignal = (): void => void timers.push(setTimeout(() => late.abort(), HURRY_MS))
  if (signal.aborted) onSignal()
  else signal.addEventListener('abort', onSignal, { once: true })
  try {
    return await deliverAndForget(pending, { ...route, signal: late.signal })
  } catch (error) {
    throw late.signal.aborted ? undeliveredFault(pending, route) : error
  } finally {
    for (const timer of timers) clearTimeout(timer)
    signal.removeEventListener('abort', onSignal)
  }
}

function undeliveredFault(pending: PendingVerdict, { directory, settleCommand }: TargetRoute): Fault {
  const { id } = pending
  const where = verdictFor(pending) === 'go' ? 'is gone from here' : 'runs on here'
  const dir = directory === undefined ? '' : ` -D ${directory}`
  return new Fault(
    'LINK',
    `the process of snapshot ${id} ${where}, and the target, which may hold a copy, was not told`,
    { hint: `tell it with: ${settleCommand(dir, id)}` },
  )
}

/** Reports the verdicts that commands which were killed could not deliver. */
export function reportPendingVerdicts(route: TargetRoute): void {
  for (const pending of readPendingVerdicts(route.verdicts)) {
    if (verdictFor(pending) !== undefined) reportFailed(route.report, pending.id, undeliveredFault(pending, route))
  }
}

/**
 * Delivers the verdict of an earlier hand-over. Throws `MISSING` where there is none, or where the tasks are gone and
 * the target does not know the snapshot; `LINK` where it cannot be delivered, and stays on disk; and like
 * `reportOutcome`.
 */
export async function settleVerdict(id: SnapshotId, route: TargetRoute): Promise<void> {
  const pending = readPendingVerdicts(route.verdicts).find((one) => one.id === id)
  if (pending === undefined)
    throw new Fault('MISSING', `no verdict of snapshot ${id} waits for delivery in ${route.verdicts}`)
  reportOutcome(id, await deliverInTime(pending, route), route.report)
}
