/**
 * dump-to-stdout: one image source to one link.
 *
 * The source is a criu that we start, a criu that somebody else starts, or a directory. Where we start it, its tasks are
 * killed only when every image has been taken by stdout (see gate.ts), and the end of the stream is written only after criu
 * itself has exited 0: a stream that is complete is a dump that succeeded.
 */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { closedGate, writeScript } from '../criu/action-script.ts'
import { CAPTURE_SOCKET, captureImages } from '../criu/capture.ts'
import { incrementalFault, readCriuCommand } from '../criu/command-line.ts'
import { acceptDump, type IncomingDump } from '../criu/incoming-dump.ts'
import { type WatchedTree, watchTree } from '../criu/process-tree.ts'
import { type CriuRun, checkCriuOptions, startCriu } from '../criu/run.ts'
import { reportSmallPipes } from '../criu/small-pipes.ts'
import { openWorkDir, temporaryDirectory, type WorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import { decodeDumpStats } from '../format/stats.ts'
import { tasksRunOn } from '../handover/outcome.ts'
import { cannotSeeTasks, onFirstImage } from '../handover/source.ts'
import type { Fd } from '../kernel/fd.ts'
import { isRunning } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { acceptSpeaker, acceptUnix, peerPid } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { directory } from '../store/directory-stage.ts'
import { openCriuTimeout } from '../stream/criu-timeout.ts'
import { frames } from '../stream/encode-frames.ts'
import { frameWriter } from '../stream/frames.ts'
import type { ImageSource } from '../stream/image.ts'
import type { Link, Outlet } from '../stream/link.ts'
import { link } from '../stream/link-stage.ts'
import { pack } from '../stream/pack.ts'
import { runPipeline } from '../stream/pipeline.ts'
import { rateLimit } from '../stream/rate-limit.ts'
import { type SendOptions, sendSnapshot } from '../stream/send.ts'
import { sendSteadily } from '../stream/source-link.ts'
import type { Snapshot } from '../stream/summary.ts'
import type { Tuning } from '../stream/tuning.ts'
import { defer, rejectAfter, rejectWhenAborted } from '../stream/wait.ts'

export interface DumpOptions {
  id: SnapshotId
  /** Work directory; a private temporary one if undefined. */
  directory: string | undefined
  tuning?: Tuning
  /** How long criu may say nothing, and whoever reads may take nothing, while the tasks are frozen. */
  timeoutMs: number
  report: Report
  signal: AbortSignal
}

export interface Dumping {
  /** It waits to be let go on, before it freezes anything. */
  dumping: IncomingDump
  run: CriuRun
  /** Where the gate is. */
  gates: string
}

/** Dumps the tree of `pid` with `criu` to `link`. Throws `CRIU`, `LINK`, `IO`, `FAILED_DUMP`. */
export async function dumpTree(
  criu: string,
  pid: number,
  criuOptions: readonly string[],
  link: Link,
  options: DumpOptions,
): Promise<void> {
  await withCriu(criu, pid, criuOptions, options, async ({ dumping, run, gates }) => {
    const gate = closedGate(gates, dumping.pid, 'post-dump')
    const onDrained = async (endBytes: number): Promise<void> => {
      await link.outlet.settle(endBytes)
      gate.open()
    }
    try {
      const images = dumping.images()
      dumping.open()
      await send(images, link, options, { frozen: true, reserve: dumping.bytes, onDrained, confirm: () => run.done })
    } finally {
      gate.remove()
    }
  })
}

/** Starts criu dump on the tree, and waits until it connects. `work` takes its images, before or after its end. */
export async function withCriu(
  criu: string,
  pid: number,
  criuOptions: readonly string[],
  options: DumpOptions,
  work: (dumping: Dumping) => Promise<void>,
): Promise<void> {
  checkCriuOptions(criuOptions)
  if (!isRunning(pid)) throw new Fault('MISSING', `no process ${pid}`, { hint: 'look with: ps -e' })
  const secret = temporaryDirectory()
  const place = openedBeside(secret, options.directory)
  const begun = performance.now()
  const script = writeScript(secret.path, 'post-dump')
  const run = startCriu(criu, 'dump', [
    ...['--stream', '-t', String(pid), '-D', place.path, '--action-script', script],
    ...criuOptions,
  ])
  let dumping: IncomingDump | undefined
  const came = new AbortController()
  try {
    const { timeoutMs, signal } = options
    dumping = await Promise.race([
      approachAt(place.listener, secret.path, timeoutMs, signal),
      rejectAfter(timeoutMs, 'criu dump did not connect to us', came.signal),
      run.done.then(() => {
        throw new Fault('CRIU', 'criu dump ended without sending an image', { hint: 'is it newer than 3.15?' })
      }),
      rejectWhenAborted(signal),
    ])
    came.abort()
    await work({ dumping, run, gates: secret.path })
    reportSmallPipes(options.report)
    options.report({ event: 'dumped', frozenMs: frozenMs(place), ms: performance.now() - begun })
  } catch (error) {
    // Without our ends of its socket and pipes criu gives up by itself and lets the process run on.
    place.remove()
    const cause = await Promise.race([run.done.catch((reason: unknown) => reason), patience()])
    if (cause === 'impatient') run.kill()
    throw betterOf(error, cause)
  } finally {
    came.abort()
    dumping?.remove()
    secret.remove()
    place.remove()
  }
}

/** Whoever leaves without a word was no criu. */
async function approachAt(listener: Fd, gates: string, timeoutMs: number, signal: AbortSignal): Promise<IncomingDump> {
  for (;;) {
    const dumping = await acceptDump(await acceptUnix(listener), gates, timeoutMs, signal)
    if (dumping !== undefined) return dumping
  }
}

/** The work directory, or neither of the two. */
function openedBeside(secret: { remove: () => void }, directory: string | undefined): WorkDir {
  try {
    return openWorkDir(directory, CAPTURE_SOCKET)
  } catch (error) {
    secret.remove()
    throw error
  }
}

/**
 * Waits in `directory` for a `criu dump --stream` that somebody else starts. It waits for nobody, and has no exit code for us: what it does to its
 * tasks says whether the dump is good. Throws `LINK`, `FAILED_DUMP`, `IO`, `TIMEOUT`, `CRIU` where its tasks cannot be seen, and `REFUSED` for an incremental one.
 */
export async function dumpFromListener(link: Link, options: DumpOptions): Promise<void> {
  const work = openWorkDir(options.directory, CAPTURE_SOCKET)
  let tree: WatchedTree | undefined
  try {
    options.report({ event: 'listening', at: join(work.path, CAPTURE_SOCKET) })
    const socket = await Promise.race([acceptSpeaker(work.listener), rejectWhenAborted(options.signal)])
    const pid = peerPid(socket)
    const command = readCriuCommand(pid)
    const objection = pid < 1 ? cannotSeeTasks() : incrementalFault(command)
    if (objection !== undefined) {
      closeFd(socket)
      throw objection
    }
    const written = defer<void>()
    const fate = written.promise.then(() => fateInTime(tree as WatchedTree, options.timeoutMs))
    const source = captureImages(
      socket,
      fate.then(() => {}),
    )
    fate.catch((reason: Error) => source.destroy(reason))
    const dump = onFirstImage(source, () => {
      tree = watchTree(pid)
    })
    await send(dump, link, options, {
      frozen: true,
      onDrained: async () => written.resolve(),
      async confirm() {
        if ((await fate) === 'alive' && command?.leaves !== true) throw tasksRunOn()
      },
    })
  } finally {
    tree?.close()
    work.remove()
  }
}

/** What becomes of tasks whose images are all written. One that does not die takes its time. Throws `TIMEOUT` where nothing happens to them. */
async function fateInTime(tree: WatchedTree, timeoutMs: number): Promise<'dead' | 'alive'> {
  const over = new AbortController()
  try {
    for (;;) {
      const patience = setTimeout(timeoutMs, undefined, { signal: over.signal })
      patience.catch(() => {})
      const fate = await Promise.race([tree.fate, patience])
      if (fate !== undefined) return fate
      if (!tree.isDying()) {
        throw new Fault('TIMEOUT', `criu has written all, and did not end within ${timeoutMs / 1000} s`)
      }
    }
  } finally {
    over.abort()
  }
}

/**
 * Streams the images of an existing directory, an incremental dump flattened. Throws `MISSING`, `FAILED_DUMP`, `LINK`
 * or `IO`.
 */
export async function dumpFromDirectory(path: string, to: Link, options: DumpOptions): Promise<void> {
  const { id, tuning = {}, report, signal } = options
  const begun = performance.now()
  const packed = pack(tuning)
  const { done, stop } = runPipeline([
    directory(path),
    packed,
    ...(tuning.limit === undefined ? [] : [rateLimit(tuning.limit)]),
    frames({ id, ...tuning }),
    link(to),
  ])
  const cut = (): void => cutOff(to, stop, signal.reason as Error)
  signal.addEventListener('abort', cut)
  if (signal.aborted) cut()
  await done.finally(() => signal.removeEventListener('abort', cut))
  reportSent(report, id, packed.snapshot, begun)
}

/** A reader that has stopped reading must not hold up the end. */
function cutOff(to: Link, stop: (reason: Error) => void, reason: Error): void {
  stop(reason)
  to.destroy(reason)
}

function reportSent(report: Report, id: SnapshotId, { images, bytes }: Snapshot, begun: number): void {
  const ms = performance.now() - begun
  report({ event: 'sent', id, images: images.length, bytes, ms, verified: false })
}

async function send(
  source: ImageSource,
  to: Link,
  { id, tuning, timeoutMs, report, signal }: DumpOptions,
  { frozen = false, ...more }: Pick<SendOptions, 'reserve' | 'onDrained' | 'confirm'> & { frozen?: boolean } = {},
): Promise<void> {
  const begun = performance.now()
  const [stop, stuck] = [new AbortController(), new AbortController()]
  const cut = (reason: Error): void => cutOff(to, (why) => stop.abort(why), reason)
  const signalled = (): void => cut(signal.reason as Error)
  stuck.signal.addEventListener('abort', () => cut(stuck.signal.reason as Error))
  signal.addEventListener('abort', signalled)
  if (signal.aborted) signalled()
  const silence = frozen
    ? openCriuTimeout(timeoutMs, (reason) => {
        stop.abort(reason)
        source.destroy(reason)
      })
    : undefined
  let waits = frozen
  const onDrained = async (endBytes: number): Promise<void> => {
    waits = false
    silence?.close()
    signal.removeEventListener('abort', signalled)
    await more.onDrained?.(endBytes)
  }
  const outlet: Outlet = {
    send: (bytes, follows) =>
      waits
        ? sendSteadily(to.outlet, bytes, follows, timeoutMs, 'whoever reads stdout', stuck)
        : to.outlet.send(bytes, follows),
    settle: to.outlet.settle,
    finish: to.outlet.finish,
  }
  const options = { signal: stop.signal, silence, ...tuning, ...more, onDrained }
  try {
    const sent = await sendSnapshot(frameWriter(outlet), id, source, options)
    await to.outlet.finish()
    to.destroy()
    reportSent(report, id, sent, begun)
  } finally {
    signal.removeEventListener('abort', signalled)
    silence?.close()
  }
}

/** A criu whose socket is gone ends within milliseconds; it may still have to thaw a large tree. */
const CRIU_PATIENCE_MS = 10_000

function patience(): Promise<'impatient'> {
  return setTimeout(CRIU_PATIENCE_MS, 'impatient' as const, { ref: false })
}

/** criu's own error explains a stream that broke off; a broken link explains criu's. */
function betterOf(error: unknown, criuError: unknown): unknown {
  const ours = error instanceof Fault ? error.code : undefined
  return ours === 'FAILED_DUMP' && criuError instanceof Fault ? criuError : error
}

/** From CRIU's statistics, where it left them in the work directory. */
function frozenMs(work: WorkDir): number | undefined {
  try {
    return decodeDumpStats(readFileSync(join(work.path, 'stats-dump'))).frozenTime / 1000
  } catch {
    return undefined
  }
}
