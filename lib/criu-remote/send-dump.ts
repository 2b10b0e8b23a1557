/**
 * Sends one dump to an image-cache of `criu --remote`, by the wire of that time (cache-wire.ts).
 *
 * On that wire the size of an image goes before its bytes, so each image is read whole into memory first; and images go
 * one after the other, each when it is complete. CRIU is never made to wait for the link: it has several images open at
 * a time, and kills the tasks when it has written the last.
 *
 * inventory.img goes last, when the dump is known to be good as far as that can be known: without it nothing can be
 * restored, and holding it back is the only way to revoke what was sent. Of a chain the list of snapshots goes with the
 * last dump, for it can be sent only once (cache-wire.ts): rounds that no dump follows are on no list.
 */
import { Fault } from '../fault.ts'
import { type ImageEntry, MOST_IMAGES } from '../format/image-list.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { MemorySnapshot } from '../store/memory.ts'
import { type StoredImage, writeInto } from '../store/stored-image.ts'
import type { CriuTimeout } from '../stream/criu-timeout.ts'
import type { ImageBody, ImageSource, OpenImage } from '../stream/image.ts'
import { PipeReader } from '../stream/pipe-reader.ts'
import { type Snapshot, summarize } from '../stream/summary.ts'
import { abortWith } from '../stream/wait.ts'
import type { RemoteCacheLink } from './cache-link.ts'
import { encodeImageEntry, encodeList } from './cache-wire.ts'
import { IDS } from './local-wire.ts'

/** Most bytes that are given to the link at once. */
const MOST_SENT = 2 ** 20

export interface SendDumpOptions {
  /** The connection to the cache. When its signal is aborted everything stops, and the reason is thrown. */
  link: Pick<RemoteCacheLink, 'outlet' | 'signal'>
  /** Holds the images that are not sent yet. */
  memory: MemorySnapshot
  /** What criu dumps. Destroyed if sending fails. */
  source: ImageSource
  /**
   * The `-D` of the criu that dumps, by which a restore finds the dump, after those of the rounds that this connection
   * has carried before it, the oldest first.
   */
  snapshots: readonly string[]
  /** A dump follows, which sends the list of snapshots: this one needs no inventory.img. */
  round?: boolean
  /** Called when every image is out of CRIU's pipes. */
  onTaken?: () => void
  /** Awaited when all other images were sent, before inventory.img is. */
  confirm?: () => Promise<void>
  /** Is told when CRIU has sent something, and closed when it has sent everything. */
  silence: CriuTimeout
  /** Called for progress. */
  onBytes: (bytes: number) => void
}

/** Sends one dump. */
export class DumpSender {
  readonly #options: SendDumpOptions
  /** Aborted with the first failure. */
  readonly #stop = new AbortController()
  /** Pipes that are being read. */
  readonly #readers = new Set<PipeReader>()
  /** The images that CRIU has opened. */
  readonly #names = new Set<ImageName>()
  /** The images that were sent. */
  readonly #sent: ImageEntry[] = []
  /** Resolve when an image is sent, or has failed. */
  readonly #running: Promise<void>[] = []
  /** Resolves when everything that was queued for the link is sent. */
  #queue: Promise<void> = Promise.resolve()

  constructor(options: SendDumpOptions) {
    this.#options = options
    this.#stop.signal.addEventListener('abort', () => this.#interrupt())
  }

  /**
   * Sends all images; the stream does not end. Throws `FAILED_DUMP` for a dump without inventory.img, `MEMORY` where an
   * image does not fit, `CRIU_PROTOCOL`, `LINK`, and the reason of the link's signal. To be called once.
   */
  async run(): Promise<Snapshot> {
    const { link, memory, round = false, confirm } = this.#options
    const { signal } = this.#stop
    const unlink = abortWith(this.#stop, link.signal)
    try {
      signal.throwIfAborted()
      if (!round) {
        this.#queue = this.#sendList()
        this.#track(this.#queue)
      }
      await this.#takeImages()
      await Promise.all(this.#running)
      signal.throwIfAborted()
      await confirm?.()
      const inventory = memory.images.get(INVENTORY)
      if (!round && inventory !== undefined) await this.#send(inventory)
      return summarize(this.#sent, round)
    } catch (error) {
      this.#stop.abort(error)
      await Promise.all(this.#running)
      throw signal.reason
    } finally {
      unlink()
    }
  }

  #interrupt(): void {
    const reason = this.#stop.signal.reason as Error
    this.#options.source.destroy(reason)
    for (const reader of this.#readers) reader.interrupt(reason)
  }

  /** Reads every image into memory, and queues it for the link. */
  async #takeImages(): Promise<void> {
    const { source, silence, onTaken } = this.#options
    const reads: Promise<unknown>[] = []
    silence.follow(source.news)
    for await (const image of source.images) {
      silence.heard()
      // The list of snapshots tells the ids.
      if (image.name === IDS && image.body.kind === 'pieces') continue
      reads.push(this.#take(image))
    }
    await Promise.all(reads)
    silence.close()
    onTaken?.()
  }

  #take({ name, body }: OpenImage): Promise<StoredImage> {
    if (this.#names.has(name) || this.#names.size >= MOST_IMAGES) {
      if (body.kind === 'pipe') closeFd(body.fd)
      throw new Fault('CRIU_PROTOCOL', `image ${name} is opened twice, or is one too many`)
    }
    this.#names.add(name)
    const isHeldBack = name === INVENTORY && !this.#options.round
    const reading = this.#read(name, body)
    this.#track(reading.then((image) => (isHeldBack ? undefined : this.#send(image))))
    return reading
  }

  #track(task: Promise<void>): void {
    this.#running.push(task.catch((error: unknown) => this.#stop.abort(error)))
  }

  async #read(name: ImageName, body: ImageBody): Promise<StoredImage> {
    const { memory, silence } = this.#options
    if (body.kind === 'pipe') await this.#readPipe(name, new PipeReader(body.fd, body.begun))
    else {
      const writer = memory.open(name)
      let size = 0
      for await (const piece of body.pieces) {
        silence.heard()
        writeInto(writer, piece)
        size += piece.length
      }
      writer.end({ name, size, digest: 0n })
    }
    return memory.images.get(name) as StoredImage
  }

  async #readPipe(name: ImageName, reader: PipeReader): Promise<void> {
    const { memory, silence } = this.#options
    this.#readers.add(reader)
    try {
      const writer = memory.open(name)
      let size = 0
      while (await reader.ready()) {
        this.#stop.signal.throwIfAborted()
        const got = reader.take(writer.room(1))
        writer.wrote(got)
        silence.heard()
        size += got
      }
      writer.end({ name, size, digest: 0n })
    } finally {
      this.#readers.delete(reader)
      reader.close()
    }
  }

  /** Sends an image when all that are queued before it are sent. */
  #send(image: StoredImage): Promise<void> {
    this.#queue = this.#queue.then(() => this.#sendWhole(image))
    return this.#queue
  }

  async #sendWhole(image: StoredImage): Promise<void> {
    const { link, memory, snapshots, onBytes } = this.#options
    const { outlet } = link
    const { signal } = this.#stop
    signal.throwIfAborted()
    // The originals take all that follows for the bytes of an empty image, and answer that there is no such image.
    if (image.size === 0) return
    await outlet.send(encodeImageEntry(snapshots.at(-1) as string, image.name, image.size))
    for (const { window } of image.pieces) {
      for (let at = 0; at < window.length; at += MOST_SENT) {
        signal.throwIfAborted()
        const part = window.subarray(at, at + MOST_SENT)
        await outlet.send(part)
        onBytes(part.length)
      }
    }
    memory.discard(image)
    this.#sent.push(image)
  }

  async #sendList(): Promise<void> {
    const { link, snapshots } = this.#options
    for (const part of encodeList(snapshots)) await link.outlet.send(part)
  }
}
