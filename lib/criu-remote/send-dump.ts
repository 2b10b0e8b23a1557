/**
 * One dump to an image-cache of `criu --remote`, by the wire of that time (lib/criu-remote/cache-wire.ts).
 *
 * There the size of an image goes before its bytes, so each is read whole into memory first; and images go one after the other, each when it
 * is complete. CRIU is never made to wait for the link: it has several images open at a time, and kills the tasks when it has
 * written the last.
 *
 * inventory.img goes last, when the dump is known to be good as far as can be known: without it nothing can be restored, and that is the only way
 * to take back what was sent. Of a chain the list of snapshots goes with the last dump, for it can be sent only once
 * (lib/criu-remote/cache-wire.ts): rounds that no dump follows are on no list.
 */
import { Fault } from '../fault.ts'
import { type ImageEntry, MOST_IMAGES } from '../format/image-list.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { MemorySnapshot, MemoryWriter, StoredImage } from '../store/memory.ts'
import { writeInto } from '../store/piece-writer.ts'
import type { CriuTimeout } from '../stream/criu-timeout.ts'
import type { ImageBody, ImageSource } from '../stream/image.ts'
import type { Outlet } from '../stream/link.ts'
import { PipeReader } from '../stream/pipe-reader.ts'
import { type Snapshot, summarize } from '../stream/summary.ts'
import { encodeImageEntry, encodeList } from './cache-wire.ts'
import { IDS } from './local-wire.ts'

/** Bytes that are given to the link at once. */
const MOST_SENT = 2 ** 20

export interface SendDumpOptions {
  /** The `-D` of the criu that dumps, by which a restore finds it. */
  snapshot: string
  /** Those of the rounds that this connection has brought before it, the oldest first. */
  before?: readonly string[]
  /** A dump follows, which brings the list of snapshots: this needs no inventory.img. */
  round?: boolean
  /** Called when every image is out of CRIU's pipes. */
  onTaken?: () => void
  /** Awaited when all others were sent, before inventory.img is. */
  confirm?: () => void | Promise<void>
  /** Is told when CRIU has said something, and closed when it has said all. */
  silence?: CriuTimeout
  /** Called for progress. */
  onBytes?: (bytes: number) => void
  /** Stops everything; its reason is thrown. */
  signal: AbortSignal
}

/**
 * Sends all images of `source`, by way of `memory`; the stream does not end. Throws `FAILED_DUMP` for a dump without inventory.img, `MEMORY` where an image
 * does not fit, `CRIU_PROTOCOL`, `LINK`. The source is destroyed then.
 */
export async function sendDump(
  outlet: Outlet,
  memory: MemorySnapshot,
  source: ImageSource,
  {
    snapshot,
    before = [],
    round = false,
    onTaken = () => {},
    confirm,
    silence,
    onBytes = () => {},
    signal,
  }: SendDumpOptions,
): Promise<Snapshot> {
  const stop = new AbortController()
  const readers = new Set<PipeReader>()
  const names = new Set<ImageName>()
  const entries: ImageEntry[] = []
  const reads: Promise<StoredImage>[] = []
  const running = new Set<Promise<void>>()
  const fail = (reason: unknown): void => {
    if (stop.signal.aborted) return
    stop.abort(reason)
    source.destroy(reason as Error)
    for (const reader of readers) reader.interrupt(reason as Error)
  }
  const outside = (): void => fail(signal.reason)

  async function fill(writer: MemoryWriter, body: ImageBody): Promise<number> {
    if (body.kind === 'pieces') return fillFromPieces(writer, body.pieces, silence)
    const reader = new PipeReader(body.fd, body.begun)
    readers.add(reader)
    let size = 0
    try {
      while (await reader.ready()) {
        stop.signal.throwIfAborted()
        const got = reader.take(writer.room(1))
        writer.wrote(got)
        silence?.heard()
        size += got
      }
      return size
    } finally {
      readers.delete(reader)
      reader.close()
    }
  }

  async function read(name: ImageName, body: ImageBody): Promise<StoredImage> {
    const writer = open(name, body)
    writer.end({ name, size: await fill(writer, body), digest: 0n })
    return memory.images.get(name) as StoredImage
  }

  function open(name: ImageName, body: ImageBody): MemoryWriter {
    try {
      return memory.open(name)
    } catch (error) {
      if (body.kind === 'pipe') closeFd(body.fd)
      throw error
    }
  }

  let last: Promise<void> = Promise.resolve()
  /** In its turn. */
  function send(image: StoredImage): Promise<void> {
    last = last.then(() => sendWhole(image))
    return last
  }

  async function sendWhole(image: StoredImage): Promise<void> {
    stop.signal.throwIfAborted()
    // The originals take all that follows for its bytes, and say of an empty image that it is not there.
    if (image.size === 0) return
    await outlet.send(encodeImageEntry(snapshot, image.name, image.size))
    for (const { window } of image.pieces) {
      for (let at = 0; at < window.length; at += MOST_SENT) {
        stop.signal.throwIfAborted()
        const part = window.subarray(at, at + MOST_SENT)
        await outlet.send(part)
        onBytes(part.length)
      }
    }
    memory.discard(image)
    entries.push(image)
  }

  async function push(): Promise<void> {
    for (const part of encodeList([...before, snapshot])) await outlet.send(part)
  }

  function track(task: Promise<void>): void {
    const tracked = task.catch(fail).finally(() => running.delete(tracked))
    running.add(tracked)
  }

  signal.addEventListener('abort', outside)
  try {
    signal.throwIfAborted()
    if (!round) {
      last = push()
      track(last)
    }
    silence?.follow(source.news)
    for await (const { name, body } of source.images) {
      silence?.heard()
      // The list says it.
      if (name === IDS && body.kind === 'pieces') continue
      if (names.has(name) || names.size >= MOST_IMAGES) {
        if (body.kind === 'pipe') closeFd(body.fd)
        throw new Fault('CRIU_PROTOCOL', `image ${name} is opened twice, or is one too many`)
      }
      names.add(name)
      const image = read(name, body)
      reads.push(image)
      track(image.then((whole) => (name === INVENTORY && !round ? undefined : send(whole))))
    }
    await Promise.all(reads)
    silence?.close()
    onTaken()
    await Promise.all(running)
    stop.signal.throwIfAborted()
    await confirm?.()
    const inventory = memory.images.get(INVENTORY)
    if (!round && inventory !== undefined) await send(inventory)
    return summarize(entries, round)
  } catch (error) {
    fail(error)
    await Promise.all(running)
    throw stop.signal.reason
  } finally {
    signal.removeEventListener('abort', outside)
  }
}

async function fillFromPieces(
  writer: MemoryWriter,
  pieces: Extract<ImageBody, { kind: 'pieces' }>['pieces'],
  silence: CriuTimeout | undefined,
): Promise<number> {
  let size = 0
  for await (const piece of pieces) {
    silence?.heard()
    writeInto(writer, piece)
    size += piece.length
  }
  return size
}
