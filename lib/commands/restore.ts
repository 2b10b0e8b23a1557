/**
 * restore-from-socket: one link to one image sink.
 *
 * The whole snapshot is received and verified before CRIU hears of it: a process must not run from an image whose end
 * nobody has seen. The sink is a criu that we start, a criu that somebody else starts, or a directory.
 */
import { join } from 'node:path'
import { type RestoreHold, type RunningRestore, startRestore } from '../criu/restore.ts'
import { checkCriuOptions } from '../criu/run.ts'
import { SERVE_SOCKET, serve } from '../criu/serve.ts'
import { openWorkDir, type WorkDir } from '../criu/work-directory.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { Fault } from '../fault.ts'
import { digestWords } from '../format/digest.ts'
import type { Until, Verdict } from '../format/enums.ts'
import type { FrameOf } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
import { refusalOf } from '../format/refusal.ts'
import { giveVerdict } from '../handover/manual-verdict.ts'
import { type HandoverOffer, holdRestored, holdSocket } from '../handover/standalone-target.ts'
import { acceptSpeaker } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { directorySink } from '../store/directory.ts'
import { runInSlices } from '../store/in-turns.ts'
import { memorySnapshot } from '../store/memory.ts'
import { openPool } from '../store/pool.ts'
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

export interface RestoreOptions {
  /** Which snapshot to ask a cache for; the newest sealed one if undefined. */
  id: SnapshotId | undefined
  /** Work directory; a private temporary one if undefined. */
  directory: string | undefined
  /** Most bytes of memory for images. */
  maxMemory: number
  /** Bytes of it that are made ready at once. */
  reserve: number
  /** How long a cache may let us wait for a snapshot. */
  timeoutMs: number
  /** Where to answer a peer that offers a hand-over on a link of one direction: stdout. */
  wayBack?: () => Link
  report: Report
  signal: AbortSignal
}

/** Restores with `criu`, which is started when everything is verified. Throws `CRIU` and what receiving throws. */
export async function restoreTree(
  criu: string,
  criuOptions: readonly string[],
  link: Link,
  options: RestoreOptions,
): Promise<void> {
  checkCriuOptions(criuOptions)
  let work: WorkDir | undefined
  try {
    const snapshot = memorySnapshot(openPool(options.maxMemory, options.reserve))
    // Who brings a verdict does not need it: the holder of the snapshot may be in it.
    const openWork = (): WorkDir => {
      work ??= openWorkDir(options.directory, SERVE_SOCKET)
      return work
    }
    const received = await receive(link, snapshot, { ...options, holds: true, prepare: openWork }, () =>
      snapshot.complete(),
    )
    if (received === 'verdict passed on') return
    await runInSlices(snapshot.protect())
    const { handOver } = received
    const begun = performance.now()
    const start = (hold: RestoreHold | undefined, signal: AbortSignal): RunningRestore =>
      startRestore(criu, criuOptions, snapshot.images, openWork(), { hold, signal })
    if (handOver === undefined) {
      link.destroy()
      await start(undefined, options.signal).done
    } else await holdRestored(handOver, start, options)
    options.report({ event: 'restored', ms: performance.now() - begun })
  } finally {
    link.destroy()
    work?.remove()
  }
}

/** Offers the socket in the work directory to a `criu restore --stream` that somebody else starts. */
export async function restoreToListener(link: Link, options: RestoreOptions): Promise<void> {
  const work = openWorkDir(options.directory, SERVE_SOCKET)
  try {
    const snapshot = memorySnapshot(openPool(options.maxMemory, options.reserve))
    await receive(link, snapshot, options, () => snapshot.complete())
    await runInSlices(snapshot.protect())
    link.destroy()
    options.report({ event: 'listening', at: join(work.path, SERVE_SOCKET) })
    const begun = performance.now()
    const socket = await Promise.race([acceptSpeaker(work.listener), rejectWhenAborted(options.signal)])
    const served = await Promise.race([serve(socket, async () => snapshot.images), rejectWhenAborted(options.signal)])
    const ms = performance.now() - begun
    options.report({ event: 'served', id: options.id ?? '-', images: served.images.length, bytes: served.bytes, ms })
  } finally {
    work.remove()
  }
}

/** Writes a directory that `criu restore -D` takes. It has its name only when everything is verified. */
export async function restoreToDirectory(path: string, link: Link, options: RestoreOptions): Promise<void> {
  const sink = directorySink(path)
  try {
    await receive(link, sink, options, () => sink.seal())
  } finally {
    link.destroy()
    await sink.drop()
  }
}

/** How a peer begins: a cache, a plain stream, a source that lost its link. */
const beginnings = accepting('hello', 'snapshot', 'verdict')
/** What a cache answers a `get` with. */
const replies = accepting('snapshot', 'refused')

/**
 * Receives one snapshot. A peer that greets with `hello` is a cache: it is asked for the snapshot, and told the digest
 * afterwards; any other just streams, and may offer a hand-over if it has a way to hear us.
 */
async function receive(
  link: Link,
  sink: ImageSink,
  options: RestoreOptions & { holds?: boolean; prepare?: () => void },
  seal: () => void = () => {},
): Promise<{ handOver: HandoverOffer | undefined } | 'verdict passed on'> {
  const begun = performance.now()
  const reader = frameReader(link.inlet)
  const work = async (): Promise<{ handOver: HandoverOffer | undefined } | 'verdict passed on'> => {
    const first = await reader.expect(beginnings)
    if (first.type === 'verdict') {
      if (options.wayBack === undefined) throw unexpected(first)
      await passOn(first, greet(options.wayBack()), options)
      return 'verdict passed on'
    }
    options.prepare?.()
    const { id, answer } = await begin(first, reader, link, options)
    let offer: HandoverOffer | undefined
    const onHandOver = (until: Until): void => {
      const writer = answer ?? greet(options.wayBack?.() ?? link)
      offer = { id, until, reader, writer, seal: () => Promise.resolve() }
    }
    const { images, bytes, digest } = await receiveSnapshot(reader, sink, {
      onHandOver: options.holds === true ? onHandOver : undefined,
      // A cache does not wait for it.
      onReserved: async (offset) => (answer ? undefined : offer?.writer.send({ type: 'reserved', offset })),
    })
    if (answer === undefined && offer === undefined) await expectEnd(reader)
    seal()
    const ms = performance.now() - begun
    options.report({ event: 'sealed', id, images: images.length, bytes, ms, digest: digestWords({ images, digest }) })
    const sealed = async (): Promise<void> => (offer?.writer ?? answer)?.send({ type: 'sealed', digest })
    // Who does not wait for `ready` must not let go before the tasks are held: nobody else has the images.
    if (offer?.until === 'sealed') offer.seal = sealed
    else await sealed()
    return { handOver: offer }
  }
  const working = work()
  try {
    return await Promise.race([working, rejectWhenAborted(options.signal)])
  } catch (error) {
    link.destroy()
    throw error
  } finally {
    if (options.signal.aborted) await working.catch(() => {})
  }
}

function greet(back: Link): FrameWriter {
  const writer = frameWriter(back.outlet)
  writer.send({ type: 'hello' }).catch(() => {})
  return writer
}

/** A source that lost its link starts us anew, to tell the one that holds its tasks. */
async function passOn(
  { id, verdict }: { id: SnapshotId; verdict: Verdict },
  writer: FrameWriter,
  { directory }: RestoreOptions,
): Promise<void> {
  try {
    const fate = await giveVerdict(directory ?? HOLD_DIRECTORY, holdSocket(id), { id, verdict })
    await writer.send({ type: 'fate', fate })
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    await writer.send({ type: 'refused', code: refusalOf(error), reason: error.message })
    throw error
  }
}

async function begin(
  first: FrameOf<'hello' | 'snapshot'>,
  reader: FrameReader,
  link: Link,
  { id, timeoutMs, report, holds }: RestoreOptions & { holds?: boolean },
): Promise<{ id: SnapshotId; answer?: FrameWriter }> {
  if (first.type === 'snapshot') return { id: first.id }
  if (!link.duplex) throw unexpected(first)
  const answer = frameWriter(link.outlet)
  if (holds === true) await answer.send({ type: 'handOver', until: 'running' })
  await answer.send({ type: 'get', id, timeoutMs })
  report({ event: 'waiting', what: id ?? 'the newest snapshot' })
  const reply = await reader.expect(replies)
  if (reply.type === 'refused') throw new Fault(reply.code, `${link.peer} refused: ${reply.reason}`)
  return { id: reply.id, answer }
}
