/**
 * restore-from-socket: receives one snapshot over one link into one image sink.
 *
 * The whole snapshot is received and verified before CRIU gets any of it: a process must not run from an image whose
 * end is not there. The sink is a criu that we start, a criu that another program starts, or a directory.
 */
import { join } from 'node:path'
import { lostByStream, lostFault } from '../criu/image-files.ts'
import { type RestoreHold, RunningRestore } from '../criu/restore.ts'
import { checkCriuOptions } from '../criu/run.ts'
import { SERVE_SOCKET, serve } from '../criu/serve.ts'
import { openWorkDir, type WorkDir } from '../criu/work-directory.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { Fault } from '../fault.ts'
import { digestWords } from '../format/digest.ts'
import type { Until } from '../format/enums.ts'
import type { FrameOf } from '../format/frame-types.ts'
import type { SnapshotId } from '../format/names.ts'
import { refusalOf } from '../format/refusal.ts'
import { giveVerdict, holdSocket } from '../handover/manual-verdict.ts'
import { type HandoverOffer, RestoreHolder } from '../handover/standalone-target.ts'
import { acceptSpeaker } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { DirectorySink } from '../store/directory-sink.ts'
import { MemorySnapshot } from '../store/memory.ts'
import { Pool } from '../store/pool.ts'
import { runInSlices } from '../store/time-slices.ts'
import {
  accepting,
  type FrameReader,
  type FrameWriter,
  frameReader,
  frameWriter,
  unexpected,
} from '../stream/frames.ts'
import type { ImageSink } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { expectEnd, receiveSnapshot } from '../stream/receive.ts'
import { rejectWhenAborted } from '../stream/wait.ts'

interface RestoreOptions {
  /** The snapshot to ask a cache for; the newest sealed one if undefined. */
  id: SnapshotId | undefined
  /** Work directory; a private temporary one if undefined. */
  directory: string | undefined
  /** Most bytes of memory for images. */
  maxMemory: number
  /** Bytes of that memory that are made ready at once. */
  reserve: number
  /** How long a cache may wait for the snapshot to come. */
  timeoutMs: number
  /** Where to answer a peer that offers a hand-over over a link of one direction: stdout. */
  replyLink?: () => Link
  report: Report
  signal: AbortSignal
}

/** Restores with `criu`, which is started when everything is verified. Throws `CRIU`, and like `receive`. */
export async function restoreTree(
  criu: string,
  criuOptions: readonly string[],
  link: Link,
  options: RestoreOptions,
): Promise<void> {
  checkCriuOptions(criuOptions)
  let work: WorkDir | undefined
  try {
    const pool = new Pool(options.maxMemory, options.reserve)
    const snapshot = new MemorySnapshot(pool)
    // Not before the snapshot comes: a peer that only brings a verdict may find its holder in the same directory.
    const openWork = (): WorkDir => {
      work ??= openWorkDir(options.directory, SERVE_SOCKET)
      return work
    }
    const received = await receive(link, snapshot, { ...options, prepareHold: openWork }, () => snapshot.complete())
    if (received === 'verdict delivered') return
    await runInSlices(snapshot.protect())
    const { handOver } = received
    const begun = performance.now()
    const start = (hold: RestoreHold | undefined, signal: AbortSignal): RunningRestore =>
      new RunningRestore(criu, criuOptions, snapshot.images, openWork(), { hold, signal, pool })
    if (handOver === undefined) {
      link.destroy()
      await start(undefined, options.signal).done
    } else await new RestoreHolder(handOver, options).run(start)
    options.report({ event: 'restored', ms: performance.now() - begun })
  } finally {
    link.destroy()
    work?.remove()
  }
}

/** Serves a `criu restore --stream` that another program starts, at the socket in the work directory. */
export async function restoreToListener(link: Link, options: RestoreOptions): Promise<void> {
  const work = openWorkDir(options.directory, SERVE_SOCKET)
  try {
    const snapshot = new MemorySnapshot(new Pool(options.maxMemory, options.reserve))
    await receive(link, snapshot, options, () => snapshot.complete())
    await runInSlices(snapshot.protect())
    link.destroy()
    options.report({ event: 'listening', at: join(work.path, SERVE_SOCKET) })
    const begun = performance.now()
    const lost = lostByStream(snapshot.images)
    if (lost !== undefined) {
      options.report({ event: 'lost by stream', id: options.id ?? '-', fault: lostFault(lost) })
    }
    const socket = await Promise.race([acceptSpeaker(work.listener), rejectWhenAborted(options.signal)])
    const served = await Promise.race([serve(socket, async () => snapshot.images), rejectWhenAborted(options.signal)])
    const ms = performance.now() - begun
    options.report({ event: 'served', id: options.id ?? '-', images: served.images.length, bytes: served.bytes, ms })
  } finally {
    work.remove()
  }
}

/** Writes a directory that `criu restore -D` takes. It gets its name when everything is verified. */
export async function restoreToDirectory(path: string, link: Link, options: RestoreOptions): Promise<void> {
  const sink = new DirectorySink(path)
  try {
    await receive(link, sink, options, () => sink.seal())
  } finally {
    link.destroy()
    await sink.drop()
  }
}

/** The first frame: from a cache, a plain stream, or a source that lost its link. */
const firstFrames = accepting('hello', 'snapshot', 'verdict')
/** What a cache answers a `get` with. */
const replies = accepting('snapshot', 'refused')

/** What a link brought: a snapshot, which may be offered for a hand-over; or a verdict, which is delivered. */
type Received = { handOver: HandoverOffer | undefined } | 'verdict delivered'

/** `prepareHold`: called before the snapshot comes, where a process that is handed over can be held. */
type ReceiveOptions = RestoreOptions & { prepareHold?: () => void }

/**
 * Receives one snapshot. A peer that greets with `hello` is a cache: it is asked for the snapshot, and told the digest
 * afterwards. Any other peer just streams, and may offer a hand-over if it can be answered.
 */
async function receive(link: Link, sink: ImageSink, options: ReceiveOptions, seal: () => void): Promise<Received> {
  const received = receiveFrom(frameReader(link.inlet), link, sink, options, seal)
  try {
    return await Promise.race([received, rejectWhenAborted(options.signal)])
  } catch (error) {
    link.destroy()
    throw error
  } finally {
    if (options.signal.aborted) await received.catch(() => {})
  }
}

async function receiveFrom(
  reader: FrameReader,
  link: Link,
  sink: ImageSink,
  options: ReceiveOptions,
  seal: () => void,
): Promise<Received> {
  const begun = performance.now()
  const first = await reader.expect(firstFrames)
  if (first.type === 'verdict') {
    if (options.replyLink === undefined) throw unexpected(first)
    await deliverVerdict(first, greet(options.replyLink()), options)
    return 'verdict delivered'
  }
  options.prepareHold?.()
  const { id, answer } = await begin(first, reader, link, options)
  let offer: HandoverOffer | undefined
  const onHandOver = (until: Until): void => {
    const writer = answer ?? greet(options.replyLink?.() ?? link)
    offer = { id, until, reader, writer, agree: () => writer.send({ type: 'ready' }) }
  }
  const { images, bytes, digest } = await receiveSnapshot(reader, sink, {
    onHandOver: options.prepareHold && onHandOver,
    // A cache does not wait for it.
    onReserved: async (offset) => (answer ? undefined : offer?.writer.send({ type: 'reserved', offset })),
  })
  if (answer === undefined && offer === undefined) await expectEnd(reader)
  seal()
  const ms = performance.now() - begun
  options.report({ event: 'sealed', id, images: images.length, bytes, ms, digest: digestWords({ images, digest }) })
  const saySealed = async (): Promise<void> => (offer?.writer ?? answer)?.send({ type: 'sealed', digest })
  // A source that does not wait for `ready` must not let go before the tasks are held: nobody else has the images.
  if (offer?.until === 'sealed') offer.agree = saySealed
  else await saySealed()
  return { handOver: offer }
}

function greet(link: Link): FrameWriter {
  const writer = frameWriter(link.outlet)
  writer.send({ type: 'hello' }).catch(() => {})
  return writer
}

/**
 * Delivers the verdict of a source that lost its link, and started this command anew, to the process that holds the
 * tasks.
 */
async function deliverVerdict(
  verdict: FrameOf<'verdict'>,
  writer: FrameWriter,
  { directory }: RestoreOptions,
): Promise<void> {
  try {
    const fate = await giveVerdict(directory ?? HOLD_DIRECTORY, holdSocket(verdict.id), verdict)
    await writer.send({ type: 'fate', fate })
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    await writer.send({ type: 'refused', code: refusalOf(error), reason: error.message })
    throw error
  }
}

/** Asks a cache for the snapshot; a plain stream has begun it. Returns where a cache is answered. */
async function begin(
  first: FrameOf<'hello' | 'snapshot'>,
  reader: FrameReader,
  link: Link,
  { id, timeoutMs, report, prepareHold }: ReceiveOptions,
): Promise<{ id: SnapshotId; answer?: FrameWriter }> {
  if (first.type === 'snapshot') return { id: first.id }
  if (!link.duplex) throw unexpected(first)
  const answer = frameWriter(link.outlet)
  if (prepareHold) await answer.send({ type: 'handOver', until: 'running' })
  await answer.send({ type: 'get', id, timeoutMs })
  report({ event: 'waiting', what: id ?? 'the newest snapshot' })
  const reply = await reader.expect(replies)
  if (reply.type === 'refused') throw new Fault(reply.code, `${link.peer} refused: ${reply.reason}`)
  return { id: reply.id, answer }
}
