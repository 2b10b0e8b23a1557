/**
 * pre-copy: rounds of `criu pre-dump --track-mem` while the process runs, and then a hand-over of what changed since.
 *
 * CRIU speaks its page server protocol to us over an inherited socket, so pages go from it to the cache and touch no disk; what
 * little it writes by itself stays in memory (tmpfs). Rounds and the last dump are layers of one chain at the cache (layers.ts).
 */

import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { commandName } from '../command-name.ts'
import { closedGate, writeScript } from '../criu/action-script.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import { type PageServer, pageServer } from '../criu/page-server.ts'
import { type CriuRun, checkCriuOptions, refuseLeaving, startCriu } from '../criu/run.ts'
import { memoryDirectory, openDirectory, removeIfEmpty, temporaryDirectory } from '../criu/work-directory.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { Fault } from '../fault.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { decodeDumpStats } from '../format/stats.ts'
import { handOverOnce, reportPendingVerdicts, settleVerdict, type TargetRoute } from '../handover/standalone-source.ts'
import { setBlocking } from '../kernel/fd.ts'
import { isRunning, lockMarks, memoryOfTree } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { socketPair } from '../kernel/unix.ts'
import { abandonChain, lastLayer, newChain, nextLayer, type PreCopyChain, sendRound } from '../precopy/send-round.ts'
import { type CompletedRound, predictedFreezeMs, type StopRule, stopReason } from '../precopy/stop-rule.ts'
import type { Report } from '../progress.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import type { Link } from '../stream/link.ts'
import type { Tuning } from '../stream/tuning.ts'
import { rejectAfter, rejectWhenAborted } from '../stream/wait.ts'

export interface PreCopyOptions {
  criu: string
  pid: number
  criuOptions: readonly string[]
  id: SnapshotId
  until: Until
  tuning: Tuning
  rule: StopRule
}

export interface Target {
  cache: Endpoint
  /** Where verdicts are kept; that of all such commands if undefined. */
  directory: string | undefined
  /** How long it may be out of reach, and may take to agree. */
  timeoutMs: number
  report: Report
  signal: AbortSignal
}

interface Copying {
  readonly chain: PreCopyChain
  /** In memory: a directory for each layer. */
  readonly path: string
  readonly rounds: CompletedRound[]
}

/** What a criu of ours has been started for. */
interface Layer {
  run: CriuRun
  server: PageServer
  directory: string
}

/**
 * Moves the tree of `pid` to the cache at the end of `route`. Throws `CRIU` where the kernel does not track changed pages, and
 * like `part`; then the tasks run on here, or the message says where they are.
 */
export async function preCopy(options: PreCopyOptions, target: Target): Promise<void> {
  const { criuOptions, pid } = options
  checkCriuOptions(criuOptions, ours)
  refuseLeaving(criuOptions, commandName('pre-copy'), 'for a copy use a proxy: criu dump --stream -R')
  if (!isRunning(pid)) throw new Fault('MISSING', `no process ${pid}`, { hint: 'look with: ps -e' })
  const release = lockMarks(pid)
  if (release === undefined) throw copiedAlready(pid)
  try {
    await withRoute(target, async (route) => {
      reportPendingVerdicts(route)
      await copyAll(options, route)
    })
  } finally {
    release()
  }
}

/** Statistics lie there, by which rounds are weighed. */
const ours = { '-W': 'the work directory is ours', '--work-dir': 'the work directory is ours' }

/** Each would clear the marks that the other needs, and neither would notice. */
function copiedAlready(pid: number): Fault {
  return new Fault(
    'EXISTS',
    `another pre-copy is at work on process ${pid}, or on a tree that shares tasks with its own`,
    {
      hint: 'wait until it has ended; a proxy with rounds of it counts too, until it dumps it or ends',
    },
  )
}

/** Delivers the verdict of an earlier hand-over that is still owed. Throws like `settle`. */
export async function settlePreCopy(id: SnapshotId, target: Target): Promise<void> {
  await withRoute(target, (route) => settleVerdict(id, route))
}

async function withRoute(
  { cache, directory, timeoutMs, report, signal }: Target,
  work: (route: TargetRoute) => Promise<void>,
): Promise<void> {
  const verdicts = openDirectory(directory ?? HOLD_DIRECTORY)
  const dir = directory === undefined ? '' : ` -D ${directory}`
  const settleCommand = (id: SnapshotId): string =>
    `${commandName('pre-copy')}${dir} --settle ${id} --address HOST --port N`
  const connect = (stop: AbortSignal): Promise<Link> => connectEndpoint(cache, timeoutMs, stop)
  try {
    await work({ verdicts, connect, settleCommand, storesImages: true, report, signal, timeoutMs })
  } finally {
    if (directory === undefined) removeIfEmpty(verdicts)
  }
}

async function copyAll(options: PreCopyOptions, route: TargetRoute): Promise<void> {
  const { rule } = options
  const place = memoryDirectory()
  const copying: Copying = { chain: newChain(options.id), path: place.path, rounds: [] }
  const { rounds } = copying
  try {
    for (let why = stopReason(rounds, rule); why === undefined; ) {
      await copyRound(copying, options, route)
      why = stopReason(rounds, rule)
      route.report({ event: 'predicted', frozenMs: predictedFreezeMs(rounds), enough: why })
    }
    await handOver(copying, options, route)
  } catch (error) {
    // First: a target that says nothing may cost the rest of our time.
    place.remove()
    // It has dropped it already, if that was what failed.
    await abandonChain(copying.chain, route.connect, AbortSignal.timeout(ABANDON_MS)).catch(() => {})
    throw error
  } finally {
    place.remove()
  }
}

/** Of the time that a command has after a signal; up to 13 s of it the hand-over takes (source.ts, standalone-source.ts). */
const ABANDON_MS = 1000

/** Starts criu on the next layer of the chain. It speaks to `server`. */
function startLayer(
  { chain, path }: Copying,
  action: 'pre-dump' | 'dump',
  { criu, pid, criuOptions }: PreCopyOptions,
  more: readonly string[],
): Layer {
  const number = chain.under
  const directory = join(path, String(number))
  mkdirSync(directory, { mode: 0o700 })
  const [ours, theirs] = socketPair()
  setBlocking(theirs)
  try {
    const run = startCriu(
      criu,
      action,
      [
        ...['-t', String(pid), '-D', directory, '--track-mem', '--page-server', '--ps-socket', '3'],
        ...(number === 0 ? [] : ['--prev-images-dir', `../${number - 1}`]),
        ...more,
        ...criuOptions,
      ],
      [theirs],
    )
    return { run, server: pageServer(ours, { hasParent: (name) => chain.pagemaps.has(name) }), directory }
  } finally {
    closeFd(theirs)
  }
}

async function copyRound(copying: Copying, options: PreCopyOptions, route: TargetRoute): Promise<void> {
  const { chain, rounds } = copying
  const reserve = chain.under === 0 ? memoryOfTree(options.pid) : 0
  const { run, server, directory } = startLayer(copying, 'pre-dump', options, [])
  const stop = new AbortController()
  // Nobody has to be reached for a criu that has failed.
  run.done.catch((reason: unknown) => stop.abort(reason))
  const signal = AbortSignal.any([route.signal, stop.signal])
  try {
    const sent = await sendRound(chain, server, { ...route, signal, tuning: options.tuning, reserve })
    await Promise.race([run.done, rejectAfter(route.timeoutMs, 'criu pre-dump did not end', route.signal)])
    rounds.push({ ...sent, frozenMs: frozenMs(directory) ?? 0 })
    const { pages, ms } = sent
    route.report({ event: 'round', id: chain.id, number: chain.under, pages, bytes: pages * PAGE_BYTES, ms })
  } catch (error) {
    throw await betterOf(error, run)
  }
}

/** A criu that lost its socket ends by itself; one that is stopped does not, and its tasks run on when it is killed. */
const CRIU_PATIENCE_MS = 3000
/** criu/config.c, 4.1.1 to 4.3. */
const NOT_TRACKED = /Tracking memory is not available/

/** criu's own error explains a conversation that broke off. */
async function betterOf(error: unknown, { done, kill }: CriuRun): Promise<unknown> {
  const patience = setTimeout(CRIU_PATIENCE_MS, 'impatient' as const, { ref: false })
  const cause = await Promise.race([done.catch((reason: unknown) => reason), patience])
  if (cause === 'impatient') kill()
  const word = error instanceof Fault && error.code === 'FAILED_DUMP' && cause instanceof Fault ? cause : error
  if (!(word instanceof Fault && NOT_TRACKED.test(word.message))) return word
  return new Fault('CRIU', 'this kernel does not track changed pages (CONFIG_MEM_SOFT_DIRTY)', {
    hint: `move the process at once: ${commandName('proxy')}, or ${commandName('dump-to-stdout')} --via`,
    cause: word,
  })
}

async function handOver(copying: Copying, options: PreCopyOptions, route: TargetRoute): Promise<void> {
  const { id, until, tuning, pid } = options
  const { chain, rounds } = copying
  // Not beside the images: /run may be mounted noexec.
  const secret = temporaryDirectory()
  const gates = secret.path
  const script = writeScript(gates, 'post-dump')
  const begun = performance.now()
  const { run, server, directory } = startLayer(copying, 'dump', options, ['--action-script', script])
  const gate = closedGate(gates, run.pid, 'pre-dump')
  const remove = (): void => {
    gate.remove()
    server.destroy(new Fault('ABORTED', 'over'))
  }
  const dirty = (rounds.at(-1)?.pages ?? 0) * PAGE_BYTES
  const criu: IncomingDump = {
    pid: run.pid,
    bytes: Math.min(memoryOfTree(pid), 2 * dirty),
    open: gate.open,
    // Our script holds it until the target has all, so its CLOSE is answered at once.
    images: (handOver) => lastLayer(server, directory, { complete: handOver?.complete ?? run.done, ended: run.done }),
    remove,
  }
  try {
    const held = rejectAfter(route.timeoutMs, 'criu dump did not come to its pre-dump', route.signal)
    await Promise.race([gate.held, run.done, held, rejectWhenAborted(route.signal)])
    const departure = { id, until, gates, tuning, resumes: true, layer: nextLayer(chain, true) }
    await handOverOnce(criu, run.done, route, departure)
    route.report({ event: 'dumped', frozenMs: frozenMs(directory), ms: performance.now() - begun })
  } catch (error) {
    remove()
    throw await betterOf(error, run)
  } finally {
    remove()
    await Promise.race([run.done.catch(() => {}), setTimeout(CRIU_PATIENCE_MS, undefined, { ref: false })])
    secret.remove()
  }
}

/** Undefined where criu has not written it: it is its last file. */
function frozenMs(directory: string): number | undefined {
  try {
    return decodeDumpStats(readFileSync(join(directory, 'stats-dump'))).frozenTime / 1000
  } catch {
    return undefined
  }
}
