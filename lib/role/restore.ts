/**
 * restore-from-socket: one link to one image sink.
 *
 * The whole snapshot is received and verified before CRIU hears of it: a process must not run from an image whose end
 * nobody has seen. The sink is a criu that we start, a criu that somebody else starts, or a directory.
 */
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import { INVENTORY, type SnapshotId } from '../format/names.ts'
import { acceptSpeaker } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { directorySink } from '../store/directory.ts'
import { type MemorySnapshot, memorySnapshot } from '../store/memory.ts'
import { openPool } from '../store/pool.ts'
import { type FrameReader, type FrameWriter, frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSink } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { expectEnd, receiveSnapshot, unexpected } from '../stream/receive.ts'
import { checkCriuOptions, startCriu } from './criu.ts'
import { aborted } from './dump.ts'
import { SERVE_SOCKET, serve } from './serve.ts'
import { openWorkDir } from './workdir.ts'

export interface RestoreOptions {
  /** Which snapshot to ask a cache for; the newest sealed one if undefined. */
  id: SnapshotId | undefined
  /** Work directory; a private temporary one if undefined. */
  directory: string | undefined
  /** Most bytes of memory for images. */
  maxMemory: number
  /** How long a cache may let us wait for a snapshot. */
  timeoutMs: number
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
  const work = openWorkDir(options.directory, SERVE_SOCKET)
  try {
    const snapshot = await receiveToMemory(link, options)
    const begun = performance.now()
    const run = startCriu(criu, 'restore', ['--stream', '-d', '-D', work.path, ...criuOptions])
    // A signal takes the images away from criu, which then removes what it has restored; it is never killed half way.
    const stop = (): void => work.remove(options.signal.reason as Error)
    options.signal.addEventListener('abort', stop)
    const serving = (async () =>
      serve(await acceptSpeaker(work.listener), async () => snapshot.images, options.signal))()
    serving.catch(() => {})
    await run.done.catch((error: unknown) => {
      throw options.signal.aborted ? options.signal.reason : error
    })
    const served = await Promise.race([serving, setTimeout(TAKEN_MS, undefined, { ref: false })])
    if (served?.images.includes(INVENTORY) !== true) {
      throw new Fault('CRIU', 'criu restore ended without taking the images', { hint: 'look at the options behind --' })
    }
    options.report({ event: 'restored', ms: performance.now() - begun })
  } finally {
    work.remove()
  }
}

/** After criu's end, its socket's end is noticed at once. */
const TAKEN_MS = 1000

/** Offers the socket in the work directory to a `criu restore --stream` that somebody else starts. */
export async function restoreToListener(link: Link, options: RestoreOptions): Promise<void> {
  const work = openWorkDir(options.directory, SERVE_SOCKET)
  try {
    const snapshot = await receiveToMemory(link, options)
    options.report({ event: 'listening', at: join(work.path, SERVE_SOCKET) })
    const begun = performance.now()
    const socket = await Promise.race([acceptSpeaker(work.listener), aborted(options.signal)])
    const served = await Promise.race([serve(socket, async () => snapshot.images), aborted(options.signal)])
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
    await sink.drop()
  }
}

async function receiveToMemory(link: Link, options: RestoreOptions): Promise<MemorySnapshot> {
  const snapshot = memorySnapshot(openPool(options.maxMemory))
  await receive(link, snapshot, options)
  return snapshot
}

/**
 * Receives one snapshot. A peer that greets with `hello` is a cache: it is asked for the snapshot, and told the digest
 * afterwards; any other just streams.
 */
async function receive(link: Link, sink: ImageSink, options: RestoreOptions, seal: () => void = () => {}) {
  const begun = performance.now()
  const reader = frameReader(link.inlet)
  const work = async (): Promise<void> => {
    const { id, answer } = await begin(reader, link, options)
    const { images, bytes, digest } = await receiveSnapshot(reader, sink)
    if (answer === undefined) await expectEnd(reader)
    seal()
    await answer?.send({ type: 'sealed', digest })
    const ms = performance.now() - begun
    options.report({ event: 'sealed', id, images: images.length, bytes, ms, digest: hex64(digest) })
  }
  const working = work()
  try {
    await Promise.race([working, aborted(options.signal)])
  } finally {
    link.destroy()
    await working.catch(() => {})
  }
}

async function begin(
  reader: FrameReader,
  link: Link,
  { id, timeoutMs, report }: RestoreOptions,
): Promise<{ id: SnapshotId; answer?: FrameWriter }> {
  const first = await reader.expect()
  if (first.type === 'snapshot') return { id: first.id }
  if (first.type !== 'hello' || !link.duplex) throw unexpected(first)
  const answer = frameWriter(link.outlet)
  await answer.send({ type: 'get', id, timeoutMs })
  report({ event: 'waiting', what: id ?? 'the newest snapshot' })
  const reply = await reader.expect()
  if (reply.type === 'refused') throw new Fault(reply.code, `${link.peer} refused: ${reply.reason}`)
  if (reply.type !== 'snapshot') throw unexpected(reply)
  return { id: reply.id, answer }
}
