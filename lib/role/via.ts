/**
 * dump-to-stdout --via: a hand-over to what a shell command starts, which is spoken to at its stdin and stdout.
 *
 * Nobody stays here to tell the target again and again, as a proxy does. A verdict that cannot be delivered stays on disk, and is
 * delivered when somebody asks for it (`--settle`): by its name, for only the user knows which command leads to its target.
 */
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Until } from '../format/words.ts'
import type { Report } from '../progress.ts'
import { type Commands, openCommands } from '../stream/command.ts'
import { leavingOption } from './criu.ts'
import { pay } from './debt.ts'
import { type Departed, depart } from './departure.ts'
import { type Dumping, type DumpOptions, withCriu } from './dump.ts'
import { conclude, endingOf } from './ending.ts'
import { HOLD_DIRECTORY } from './hold.ts'
import { type Delivered, type Owed, readOwed, verdictFor } from './owed.ts'
import { openDirectory, removeIfEmpty } from './workdir.ts'

type Connect = Commands['connect']

export interface HandOverOptions extends DumpOptions {
  until: Until
  /** How long the target may take, from the last image to its answer. */
  timeoutMs: number
}

/**
 * Dumps the tree of `pid` and hands it over through the shell command `command`. Throws like `dumpTree`, what the target
 * refuses, and `TIMEOUT`; then the tasks run on here, or the message says where they are.
 */
export async function handOverTree(
  criu: string,
  pid: number,
  criuOptions: readonly string[],
  command: string,
  options: HandOverOptions,
): Promise<void> {
  const leaves = leavingOption(criuOptions)
  if (leaves !== undefined) {
    throw new Fault('USAGE', `criu option ${leaves} and --via do not go together: a hand-over leaves one process`, {
      hint: 'for a copy use a pipe: dump-to-stdout -t PID -- -R | ...',
    })
  }
  await withDebts(command, options, async (debts, connect) => {
    for (const owed of readOwed(debts)) remind(owed, options)
    await withCriu(criu, pid, criuOptions, options, (dumping) => handOver(dumping, connect, debts, options))
  })
}

async function handOver(
  { dumping, run, gates }: Dumping,
  connect: Connect,
  debts: string,
  options: HandOverOptions,
): Promise<void> {
  const { id, until, tuning, timeoutMs, signal, report } = options
  const begun = performance.now()
  const end = await depart(dumping, { id, until, gates, directory: debts, connect, tuning, timeoutMs, signal })
  if ('reason' in end) {
    const moved = end.owed !== undefined && (await settleFailed(end.owed, connect, options))
    if (moved) return
    throw end.reason
  }
  const { images, bytes } = end.snapshot
  report({ event: 'sent', id, images: images.length, bytes, ms: performance.now() - begun, verified: true })
  const delivered = isTold(end) ? end : await payVia(end.owed, connect, options)
  concludeVia(id, delivered, report)
  // The process runs there, whatever criu says at its end.
  await run.done.catch(() => {})
}

/** The verdict of a hand-over that failed here: what keeps it from its target is said. Whether the process moved all the same. */
async function settleFailed(...[owed, connect, options]: Parameters<typeof payVia>): Promise<boolean> {
  const { id } = owed
  try {
    const delivered = await payVia(owed, connect, options)
    conclude(id, delivered, options.report)
    return delivered.verdict === 'go'
  } catch (fault) {
    grave(options.report, id, fault as Error)
    return false
  }
}

function isTold(end: Departed): end is Departed & Delivered {
  return end.fate !== undefined
}

/** For a hand-over that has failed already: what else must be known. */
function grave(report: Report, id: SnapshotId, fault: Error): void {
  report({ event: 'failed', what: `the verdict of snapshot ${id}`, fault })
}

/** A target without a cache keeps no images, and a copy was not asked for. */
function concludeVia(id: SnapshotId, delivered: Delivered, report: Report): void {
  const ending = endingOf(delivered.verdict, delivered.fate)
  if (ending === 'stored') {
    throw new Fault('CRIU', 'the process is gone from here, and does not run there: criu restore failed at its end', {
      hint: 'it is lost, unless the target kept its images',
    })
  }
  if (ending === 'copied' || ending === 'stayed') {
    throw new Fault('CRIU', 'the process runs on here: criu dump did not kill it', {
      hint: 'was criu killed, or does a configuration file of it say leave-running?',
    })
  }
  conclude(id, delivered, report)
}

/** How long a target may take after a signal, of the time that a command has then. */
const HURRY_MS = 4000

async function payVia(
  owed: Owed,
  connect: Connect,
  { signal, timeoutMs, report, directory }: Omit<HandOverOptions, 'id' | 'until'>,
): Promise<Delivered> {
  const stop = new AbortController()
  const hurry = (): void => void setTimeout(() => stop.abort(), HURRY_MS).unref()
  const timer = setTimeout(() => stop.abort(), timeoutMs)
  if (signal.aborted) hurry()
  signal.addEventListener('abort', hurry)
  try {
    return await pay(owed, { connect, report, signal: stop.signal })
  } catch (error) {
    throw stop.signal.aborted ? undelivered(owed, directory) : error
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', hurry)
  }
}

function undelivered(owed: Owed, directory: string | undefined): Fault {
  const { id } = owed
  const where = verdictFor(owed) === 'go' ? 'is gone from here' : 'runs on here'
  const dir = directory === undefined ? '' : ` -D ${directory}`
  return new Fault(
    'LINK',
    `the process of snapshot ${id} ${where}, and the target, which may hold a copy, was not told`,
    {
      hint: `tell it with: dump-to-stdout${dir} --settle ${id} --via COMMAND`,
    },
  )
}

/** Says what a dump-to-stdout before us, which was killed, still owes. */
function remind(owed: Owed, { report, directory }: HandOverOptions): void {
  if (verdictFor(owed) !== undefined) grave(report, owed.id, undelivered(owed, directory))
}

/**
 * Delivers the verdict of an earlier hand-over, which is owed in the work directory. Throws `MISSING` where nothing is, or where
 * the tasks are gone and the target does not know them; `LINK`, and then it is owed still; and what `conclude` throws.
 */
export async function settleVia(
  id: SnapshotId,
  command: string,
  options: Pick<HandOverOptions, 'directory' | 'report' | 'signal' | 'timeoutMs'>,
): Promise<void> {
  await withDebts(command, options, async (debts, connect) => {
    const owed = readOwed(debts).find((one) => one.id === id)
    if (owed === undefined) throw new Fault('MISSING', `nothing is owed for snapshot ${id} in ${debts}`)
    conclude(id, await payVia(owed, connect, options), options.report)
  })
}

/** With the directory where verdicts are kept, and the command, which ends with us. */
async function withDebts(
  command: string,
  { directory }: Pick<DumpOptions, 'directory'>,
  work: (debts: string, connect: Connect) => Promise<void>,
): Promise<void> {
  const debts = openDirectory(directory ?? HOLD_DIRECTORY)
  const { connect, end } = openCommands(command)
  try {
    await work(debts, connect)
  } finally {
    await end()
    if (directory === undefined) removeIfEmpty(debts)
  }
}
