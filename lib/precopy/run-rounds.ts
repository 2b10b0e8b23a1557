/**
 * The rounds of a pre-copy: each is a `criu pre-dump` of what changed since the one before, sent as the next layer of
 * one chain.
 */

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { commandName } from '../command-name.ts'
import { type PageServer, SocketPageServer } from '../criu/page-server.ts'
import { type CriuRun, explainFailure, frozenMs, startCriu } from '../criu/run.ts'
import { Fault } from '../fault.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import type { TargetRoute } from '../handover/standalone-source.ts'
import { setBlocking } from '../kernel/fd.ts'
import { memoryOfTree } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { socketPair } from '../kernel/unix.ts'
import type { Tuning } from '../stream/tuning.ts'
import { rejectAfter } from '../stream/wait.ts'
import { type PreCopyChain, sendRound } from './send-round.ts'
import { type CompletedRound, predictedFreezeMs, type StopRule, stopReason } from './stop-rule.ts'

/** The pre-copy of one process tree. */
export interface PreCopy {
  criu: string
  pid: number
  criuOptions: readonly string[]
  tuning: Tuning
  readonly chain: PreCopyChain
  /** A directory in memory, with a directory for each layer in it. */
  readonly path: string
  /** The rounds that were sent. */
  readonly rounds: CompletedRound[]
}

/**
 * Starts criu on the next layer of the chain. Returns it with the server that receives its pages, and the directory of
 * its other images. Throws `LINK` and `IO`.
 */
export function startLayer(
  { chain, path, criu, pid, criuOptions }: PreCopy,
  action: 'pre-dump' | 'dump',
  more: readonly string[] = [],
): { run: CriuRun; server: PageServer; directory: string } {
  const number = chain.under
  const directory = join(path, String(number))
  mkdirSync(directory, { mode: 0o700 })
  const [near, far] = socketPair()
  setBlocking(far)
  try {
    const ours = ['-t', String(pid), '-D', directory, '--track-mem', '--page-server', '--ps-socket', '3']
    const before = number === 0 ? [] : ['--prev-images-dir', `../${number - 1}`]
    const run = startCriu(criu, action, [...ours, ...before, ...more, ...criuOptions], [far])
    const server = new SocketPageServer(near, (name) => chain.pagemaps.has(name))
    return { run, server, directory }
  } finally {
    closeFd(far)
  }
}

/**
 * Sends rounds until `rule` says that the last dump is to follow. Throws like `sendRound`, and `CRIU`; the chain is
 * over then.
 */
export async function runRounds(copy: PreCopy, rule: StopRule, route: TargetRoute): Promise<void> {
  const { rounds } = copy
  for (let why = stopReason(rounds, rule); why === undefined; ) {
    await runRound(copy, route)
    why = stopReason(rounds, rule)
    route.report({ event: 'predicted', frozenMs: predictedFreezeMs(rounds), enough: why })
  }
}

async function runRound(copy: PreCopy, route: TargetRoute): Promise<void> {
  const { chain, rounds, tuning, pid } = copy
  const reserve = chain.under === 0 ? memoryOfTree(pid) : 0
  const { run, server, directory } = startLayer(copy, 'pre-dump')
  const stop = new AbortController()
  // The cache need not be reached for a criu that has failed.
  run.done.catch((reason: unknown) => stop.abort(reason))
  const signal = AbortSignal.any([route.signal, stop.signal])
  try {
    const sent = await sendRound(chain, server, { ...route, signal, tuning, reserve })
    await Promise.race([run.done, rejectAfter(route.timeoutMs, 'criu pre-dump did not end', route.signal)])
    rounds.push({ ...sent, frozenMs: frozenMs(directory) ?? 0 })
    const { pages, ms } = sent
    route.report({ event: 'round', id: chain.id, number: chain.under, pages, bytes: pages * PAGE_BYTES, ms })
  } catch (error) {
    throw await explainLayer(error, run)
  }
}

/**
 * How long a criu that has lost its socket may take to end: a stopped one does not, and its tasks run on when it is
 * killed.
 */
export const CRIU_PATIENCE_MS = 3000
/** criu/config.c, 4.1.1 to 4.3. */
const NOT_TRACKED = /Tracking memory is not available/

/** The cause of a failed layer. */
export async function explainLayer(error: unknown, run: CriuRun): Promise<unknown> {
  const cause = await explainFailure(error, run, CRIU_PATIENCE_MS)
  if (!(cause instanceof Fault && NOT_TRACKED.test(cause.message))) return cause
  return new Fault('CRIU', 'this kernel does not track changed pages (CONFIG_MEM_SOFT_DIRTY)', {
    hint: `move the process at once: ${commandName('proxy')}, or ${commandName('dump-to-stdout')} --via`,
    cause,
  })
}
