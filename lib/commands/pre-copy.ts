/**
 * pre-copy: rounds of `criu pre-dump --track-mem` while the process runs, and then a hand-over of what changed since.
 *
 * CRIU speaks its page server protocol to us over an inherited socket, so pages go from CRIU to the cache and touch no
 * disk; the few images that CRIU writes itself stay in memory (tmpfs). Rounds and the last dump are layers of one chain
 * at the cache (send-round.ts).
 */
import { setTimeout } from 'node:timers/promises'
import { commandName } from '../command-name.ts'
import { closedGate, writeScript } from '../criu/action-script.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import { checkCriuOptions, frozenMs, refuseLeaving } from '../criu/run.ts'
import { memoryDirectory, temporaryDirectory } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import * as source from '../handover/standalone-source.ts'
import { isRunning, lockMarks, memoryOfTree } from '../kernel/process.ts'
import { CRIU_PATIENCE_MS, explainLayer, type PreCopy, runRounds, startLayer } from '../precopy/run-rounds.ts'
import { abandonChain, lastLayer, newChain, nextLayer } from '../precopy/send-round.ts'
import type { StopRule } from '../precopy/stop-rule.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import { rejectAfter, rejectWhenAborted } from '../stream/wait.ts'

interface PreCopyOptions extends Pick<PreCopy, 'criu' | 'pid' | 'criuOptions' | 'tuning'> {
  id: SnapshotId
  until: Until
  rule: StopRule
}

/** `timeoutMs`: how long the cache may be out of reach, and may take to agree. */
interface Target extends Pick<source.RouteOptions, 'directory' | 'timeoutMs' | 'report' | 'signal'> {
  cache: Endpoint
}

/**
 * Moves the tree of `pid` to the cache. Throws `CRIU` where the kernel does not track changed pages, and like
 * `handOverOnce`; then the tasks run on here, or the message says where they are.
 */
export async function preCopy(options: PreCopyOptions, target: Target): Promise<void> {
  const { criuOptions, pid } = options
  checkCriuOptions(criuOptions, ours)
  refuseLeaving(criuOptions, commandName('pre-copy'), 'for a copy use a proxy: criu dump --stream -R')
  if (!isRunning(pid)) throw new Fault('MISSING', `no process ${pid}`, { hint: 'look with: ps -e' })
  const release = lockMarks(pid)
  if (release === undefined) throw copiedAlreadyFault(pid)
  try {
    await withCacheRoute(target, async (route) => {
      source.reportPendingVerdicts(route)
      await copyAll(options, route)
    })
  } finally {
    release()
  }
}

/** CRIU's statistics are in its work directory: the stop rule needs them. */
const ours = { '-W': 'the work directory is ours', '--work-dir': 'the work directory is ours' }

/** Two at a time would each clear the kernel's marks that the other needs, and neither would notice. */
function copiedAlreadyFault(pid: number): Fault {
  const what = `another pre-copy is at work on process ${pid}, or on a tree that shares tasks with its own`
  const hint = 'wait until it has ended; a proxy with rounds of it counts too, until it dumps it or ends'
  return new Fault('EXISTS', what, { hint })
}

/** Calls `work` with a route to the cache. */
export async function withCacheRoute(
  { cache, ...target }: Target,
  work: Parameters<typeof source.withRoute>[1],
): Promise<void> {
  const route: source.RouteOptions = {
    ...target,
    connect: (signal) => connectEndpoint(cache, target.timeoutMs, signal),
    settleCommand: (dir, id) => `${commandName('pre-copy')}${dir} --settle ${id} --address HOST --port N`,
    storesImages: true,
  }
  await source.withRoute(route, work)
}

async function copyAll(options: PreCopyOptions, route: source.TargetRoute): Promise<void> {
  const place = memoryDirectory()
  const copy: PreCopy = { ...options, chain: newChain(options.id), path: place.path, rounds: [] }
  try {
    await runRounds(copy, options.rule, route)
    await handOverRest(copy, options.until, route)
  } catch (error) {
    // The memory goes first: a cache that does not answer may cost the rest of our time.
    place.remove()
    // The cache has dropped the chain already if it was the cause of the failure.
    await abandonChain(copy.chain, route.connect, AbortSignal.timeout(ABANDON_MS)).catch(() => {})
    throw error
  } finally {
    place.remove()
  }
}

/**
 * A part of the time that a command has after a signal; the hand-over takes up to 13 s of it (source.ts,
 * standalone-source.ts).
 */
const ABANDON_MS = 1000

/** Dumps what changed since the last round, and hands the process over. */
async function handOverRest(copy: PreCopy, until: Until, route: source.TargetRoute): Promise<void> {
  const { chain, rounds, tuning, pid } = copy
  // Not beside the images: /run may be mounted noexec.
  const secret = temporaryDirectory()
  const gates = secret.path
  const script = writeScript(gates, 'post-dump')
  const begun = performance.now()
  const { run, server, directory } = startLayer(copy, 'dump', ['--action-script', script])
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
    images: (steps) => lastLayer(server, directory, { complete: steps?.complete ?? run.done, ended: run.done }),
    remove,
  }
  try {
    const late = rejectAfter(route.timeoutMs, 'criu dump did not come to its pre-dump', route.signal)
    await Promise.race([gate.held, run.done, late, rejectWhenAborted(route.signal)])
    const options = { id: chain.id, until, gates, tuning, resumes: true, layer: nextLayer(chain, true) }
    await source.handOverOnce(criu, run.done, route, options)
    route.report({ event: 'dumped', frozenMs: frozenMs(directory), ms: performance.now() - begun })
  } catch (error) {
    remove()
    throw await explainLayer(error, run)
  } finally {
    remove()
    await Promise.race([run.done.catch(() => {}), setTimeout(CRIU_PATIENCE_MS, undefined, { ref: false })])
    secret.remove()
  }
}
