/**
 * dump-to-stdout: sends one image source over one link.
 *
 * The source is a criu that we start, a criu that another program starts, or a directory. A criu that we start may kill
 * the tasks only when stdout has taken every image (see action-script.ts), and the end of the stream is written only
 * after criu has exited 0: a stream that is complete is a dump that succeeded.
 */
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { closedGate, writeScript } from '../criu/action-script.ts'
import { CAPTURE_SOCKET, CapturedImages } from '../criu/capture.ts'
import { incrementalFault, readCriuCommand } from '../criu/command-line.ts'
import { acceptDump, type IncomingDump } from '../criu/incoming-dump.ts'
import { type WatchedTree, watchTree } from '../criu/process-tree.ts'
import { type CriuRun, checkCriuOptions, explainFailure, frozenMs, startCriu } from '../criu/run.ts'
import { reportSmallPipes } from '../criu/small-pipes.ts'
import { openWorkDir, temporaryDirectory, type WorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import { tasksRunOnFault } from '../handover/outcome.ts'
import { onFirstImage, unseenTasksFault } from '../handover/source.ts'
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
import { abortWith, defer, rejectAfter, rejectWhenAborted } from '../stream/wait.ts'

export interface DumpOptions {
  id: SnapshotId
  /** Work directory; a private temporary one if undefined. */
  directory: string | undefined
  tuning: Tuning
  /** How long criu may send nothing, and the reader of stdout take nothing, while the tasks are frozen. */
  timeoutMs: number
  report: Report
  signal: AbortSignal
}

/** A process tree, and the criu that dumps it. */
export interface TreeDump {
  criu: string
  pid: number
  criuOptions: readonly string[]
}

interface Dumping {
  /** Waits at pre-dump, before it freezes anything. */
  dumping: IncomingDump
  run: CriuRun
  /** The directory of the gate. */
  gates: string
}

/** Dumps a process tree to `link`. Throws `CRIU`, `LINK`, `IO`, `FAILED_DUMP`. */
export async function dumpTree(tree: TreeDump, link: Link, options: DumpOptions): Promise<void> {
  await withCriu(tree, options, async ({ dumping, run, gates }) => {
    const gate = closedGate(gates, dumping.pid, 'post-dump')
    const onDrained = async (endBytes: number): Promise<void> => {
      await link.outlet.settle?.(endBytes)
      gate.open()
    }
    try {
      const images = dumping.images()
      dumping.open()
      await send(images, link, options, { reserve: dumping.bytes, onDrained, confirm: () => run.done })
    } finally {
      gate.remove()
    }
  })
}

/** How long a criu whose socket is gone may take to end: milliseconds, unless it has to thaw a large tree. */
const CRIU_PATIENCE_MS = 10_000

/**
 * Starts criu dump on the tree, waits until it connects, and calls `work`, which takes its images. Throws like
 * `dumpTree`.
 */
export async function withCriu(
  { criu, pid, criuOptions }: TreeDump,
  options: Omit<DumpOptions, 'id' | 'tuning'>,
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
  const connected = new AbortController()
  try {
    const { timeoutMs, signal } = options
    dumping = await Promise.race([
      acceptCriu(place.listener, secret.path, timeoutMs, signal),
      rejectAfter(timeoutMs, 'criu dump did not connect to us', connected.signal),
      run.done.then(() => {
        throw new Fault('CRIU', 'criu dump ended without sending an image', { hint: 'is it newer than 3.15?' })
      }),
      rejectWhenAborted(signal),
    ])
    connected.abort()
    await work({ dumping, run, gates: secret.path })
    reportSmallPipes(options.report)
    options.report({ event: 'dumped', frozenMs: frozenMs(place.path), ms: performance.now() - begun })
  } catch (error) {
    // Without our ends of its socket and pipes criu gives up by itself and lets the process run on.
    place.remove()
    throw await explainFailure(error, run, CRIU_PATIENCE_MS)
  } finally {
    connected.abort()
    dumping?.remove()
    secret.remove()
    place.remove()
  }
}

/** Waits for criu: a client that leaves without a byte is another program. */
async function acceptCriu(listener: Fd, gates: string, timeoutMs: number, signal: AbortSignal): Promise<IncomingDump> {
  for (;;) {
    const dumping = await acceptDump(await acceptUnix(listener), gates, timeoutMs, signal)
    if (dumping !== undefined) return dumping
  }
}

/** Opens the work directory. Removes `secret` where that fails. */
function openedBeside(secret: { remove: () => void }, directory: string | undefined): WorkDir {
  try {
    return openWorkDir(directory, CAPTURE_SOCKET)
  } catch (error) {
    secret.remove()
    throw error
  }
}

/**
 * Waits in `directory` for a `criu dump --stream` that another program starts. Such a criu does not wait for us, and we
 * do not learn its exit code: what it does to its tasks says whether the dump is good. Throws `LINK`, `FAILED_DUMP`,
 * `IO`, `TIMEOUT`, `CRIU` where its tasks cannot be seen, and `REFUSED` for an incremental dump.
 */
export async function dumpFromListener(link: Link, options: DumpOptions): Promise<void> {
  const work = openWorkDir(options.directory, CAPTURE_SOCKET)
  let tree: WatchedTree | undefined
  try {
    options.report({ event: 'listening', at: join(work.path, CAPTURE_SOCKET) })
    const socket = await Promise.race([acceptSpeaker(work.listener), rejectWhenAborted(options.signal)])
    const pid = peerPid(socket)
    const command = readCriuCommand(pid)
    const objection = pid < 1 ? unseenTasksFault() : incrementalFault(command)
    if (objection !== undefined) {
      closeFd(socket)
      throw objection
    }
    const written = defer<void>()
    const fate = written.promise.then(() => fateInTime(tree as WatchedTree, options.timeoutMs))
    const source = new CapturedImages(
      socket,
      fate.then(() => {}),
    )
    fate.catch((reason: Error) => source.destroy(reason))
    const dump = onFirstImage(source, () => {
      tree = watchTree(pid)
    })
    await send(dump, link, options, {
      onDrained: async () => written.resolve(),
      async confirm() {
        if ((await fate) === 'alive' && command?.leaves !== true) throw tasksRunOnFault()
      },
    })
  } finally {
    tree?.close()
    work.remove()
  }
}

/**
 * The fate of tasks whose images are all written. Throws `TIMEOUT` where nothing happens to them for `timeoutMs`; tasks
 * that are being killed may take longer.
 */
async function fateInTime(tree: WatchedTree, timeoutMs: number): Promise<'dead' | 'alive'> {
  const over = new AbortController()
  try {
    for (;;) {
      const late = setTimeout(timeoutMs, undefined, { signal: over.signal })
      late.catch(() => {})
      const fate = await Promise.race([tree.fate, late])
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
  const { id, tuning, report, signal } = options
  const begun = performance.now()
  const packed = pack(tuning)
  const { done, stop } = runPipeline([
    directory(path),
    packed,
    ...(tuning.limit === undefined ? [] : [rateLimit(tuning.limit)]),
    frames({ id, ...tuning }),
    link(to),
  ])
  const { release } = cutter(to, signal, stop)
  await done.finally(release)
  reportSent(report, id, packed.snapshot, begun)
}

/**
 * Gives up the link, after `stop`, when `cut` is aborted or, until `release` is called, `signal`: a reader that has
 * stopped reading must not hold up the end.
 */
function cutter(
  to: Link,
  signal: AbortSignal,
  stop: (reason: Error) => void,
): { cut: AbortController; release: () => void } {
  const cut = new AbortController()
  cut.signal.addEventListener('abort', () => {
    stop(cut.signal.reason as Error)
    to.destroy(cut.signal.reason as Error)
  })
  return { cut, release: abortWith(cut, signal) }
}

function reportSent(report: Report, id: SnapshotId, { images, bytes }: Snapshot, begun: number): void {
  const ms = performance.now() - begun
  report({ event: 'sent', id, images: images.length, bytes, ms, verified: false })
}

/** Sends the images of a criu whose tasks are frozen until they are drained. */
async function send(
  source: ImageSource,
  to: Link,
  { id, tuning, timeoutMs, report, signal }: DumpOptions,
  steps: Pick<SendOptions, 'reserve' | 'confirm'> & Required<Pick<SendOptions, 'onDrained'>>,
): Promise<void> {
  const begun = performance.now()
  const stop = new AbortController()
  const { cut, release } = cutter(to, signal, (reason) => stop.abort(reason))
  const silence = openCriuTimeout(timeoutMs, (reason) => {
    stop.abort(reason)
    source.destroy(reason)
  })
  let waits = true
  const onDrained = async (endBytes: number): Promise<void> => {
    waits = false
    silence.close()
    release()
    await steps.onDrained(endBytes)
  }
  const outlet: Outlet = {
    send: (bytes, follows) =>
      waits
        ? sendSteadily(to.outlet, bytes, follows, timeoutMs, 'the reader of stdout', cut)
        : to.outlet.send(bytes, follows),
    finish: to.outlet.finish,
  }
  const options = { signal: stop.signal, silence, ...tuning, ...steps, onDrained }
  try {
    const sent = await sendSnapshot(frameWriter(outlet), id, source, options)
    await to.outlet.finish()
    to.destroy()
    reportSent(report, id, sent, begun)
  } finally {
    release()
    silence.close()
  }
}
