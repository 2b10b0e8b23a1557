/**
 * The stage `pack`: images go in as they are opened, parts of them come out, compressed and without what the receiver
 * has.
 *
 * CRIU holds several images open at a time and blocks on whichever pipe is full, so every open image has its own loop,
 * and a part is the unit in which they take turns on the link. An image gives its next part when the one before is out:
 * that is how the link holds up CRIU. The end of an image carries its digest, the end of the snapshot the list of all.
 * A source that ends without inventory.img is a dump that failed, however tidy it looks: it has no end.
 */
import { Duplex, type Readable } from 'node:stream'
import { Fault } from '../fault.ts'
import type { CodecName } from '../format/enums.ts'
import { encodeFrame, MOST_DATA } from '../format/frame.ts'
import { type ImageEntry, MOST_IMAGES } from '../format/image-list.ts'
import { INVENTORY } from '../format/names.ts'
import { PAGE_BYTES, pagesPattern } from '../format/pagemap.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { CompressionChooser } from './adaptive-compression.ts'
import { type Chunk, ChunkPacker, type Compress, type Slot, SlotPool } from './compress.ts'
import type { CriuTimeout } from './criu-timeout.ts'
import type { DedupSender } from './dedup-send.ts'
import type { ImageBody, OpenImage } from './image.ts'
import { OutgoingImage, Part, type Tap } from './image-part.ts'
import { PipeReader } from './pipe-reader.ts'
import type { RateLimit } from './rate-limit.ts'
import { semaphore } from './semaphore.ts'
import { type Snapshot, summarize, unfinished } from './summary.ts'

export interface PackOptions {
  /** Images go out as they are if undefined. */
  compress?: Compress | undefined
  /** Pages that the receiver has are not sent. */
  known?: DedupSender | undefined
  /** Parts are so small that none holds up a link of this rate. */
  limit?: RateLimit | undefined
  /** Nobody computes digests of what is in images: only their sizes are compared. */
  unchecked?: boolean
  /** The link takes bytes out of CRIU's pipes itself, to where it wants them; else they are read here. */
  inPlace?: boolean
  /** The tasks stay frozen until the other end has it all: what is not read here may go out by reference. */
  frozen?: boolean
  /** A round of a chain: it needs no inventory.img. */
  round?: boolean
  /** Called for progress, with the bytes that were taken from the source. */
  onBytes?: (bytes: number) => void
  /** Is told when CRIU has said something, and closed when it has said all. */
  silence?: CriuTimeout | undefined
  /**
   * Called when inventory.img and every image before it are out of CRIU's pipes: it may let go of the tasks.
   * `endBytes` is the size of the end frame that is still to come. If it throws, the snapshot fails.
   */
  onDrained?: (endBytes: number) => Promise<void>
  /** Awaited before the end frame: the last chance to say that the dump failed after all. */
  confirm?: (images: number) => Promise<void>
}

/**
 * Images that are under way at a time. CRIU opens hundreds when a tree has many deleted files; the others wait, read
 * but not sent. A receiver need not take more (docs/protocol/wire.md).
 */
const MOST_UNDER_WAY = 32

export class Pack extends Duplex {
  readonly #options: PackOptions
  readonly #chunks: ChunkPacker
  readonly #slots = new SlotPool()
  /** Bytes in a part. */
  readonly #most: number
  readonly #inPlace: boolean
  /** Aborted when the stage is destroyed. */
  readonly #stop = new AbortController()
  readonly #underWay = semaphore(MOST_UNDER_WAY)
  readonly #names = new Set<string>()
  /** By channel; a channel gets its number when it is announced. */
  readonly #entries: (ImageEntry | undefined)[] = []
  /** The loops of the images that are open. */
  readonly #running = new Set<Promise<void>>()
  /** The pipes that are read at this moment. */
  readonly #readers = new Set<PipeReader>()
  /** Parts that are not out. */
  readonly #parts = new Set<Part>()
  /** The stage above. */
  #source: Readable | undefined
  /** How much is on its way to the link, and when that began or the last of it was out, in ms. */
  #sending = 0
  #busySince = 0
  #snapshot: Snapshot | undefined

  /** Throws `IO` where a library for `compress` is not installed. */
  constructor(options: PackOptions) {
    super({ readableObjectMode: true, writableObjectMode: true, writableHighWaterMark: 1 })
    const { compress, limit, inPlace } = options
    this.#options = options
    this.once('pipe', (source: Readable) => {
      this.#source = source
    })
    this.#chunks = new ChunkPacker(compress)
    const most = limit?.most ?? MOST_DATA
    this.#most = most - (most % PAGE_BYTES)
    // A rate is kept part by part.
    this.#inPlace = inPlace === true && limit === undefined
  }

  /** What was sent, once the stage has ended. */
  get snapshot(): Snapshot {
    if (this.#snapshot === undefined) throw new Error('the snapshot is not complete')
    return this.#snapshot
  }

  /** Resolves when nothing of a stage that was destroyed is used any more. */
  async released(): Promise<void> {
    await Promise.all(this.#running)
  }

  override _read(): void {
    // Parts are few: an image has one under way, or as many as there are slots.
  }

  override _write(image: OpenImage, _encoding: string, done: (error?: Error | null) => void): void {
    const { name, body } = image
    if (this.#names.has(name) || this.#names.size >= MOST_IMAGES) {
      if (body.kind === 'pipe') closeFd(body.fd)
      done(new Fault('CRIU_PROTOCOL', `image ${name} is opened twice, or is one too many`))
      return
    }
    this.#names.add(name)
    this.#options.silence?.heard()
    const sent = this.#track(this.#sendImage(image))
    // CRIU holds several pipes open and needs them all read; what merely lies there goes out in order.
    if (body.kind === 'pieces' && !body.meanwhile) void sent.then(() => done())
    else done()
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#end().then(() => done(), done)
  }

  override _destroy(reason: Error | null, done: (error: Error | null) => void): void {
    const why = reason ?? new Fault('ABORTED', 'the pipeline was stopped')
    this.#stop.abort(why)
    // At once: an image that came meanwhile would be written to nobody, and its pipe stay open.
    if (reason !== null) this.#source?.destroy(reason)
    for (const reader of this.#readers) reader.interrupt(why)
    for (const part of this.#parts) part.giveUp(why)
    // A thread may still be at work on a slot.
    void this.released().then(() => this.#slots.close())
    done(reason)
  }

  /** All images are open. Their ends are awaited, and then the end of the snapshot goes out. */
  async #end(): Promise<void> {
    const { round = false, silence, confirm } = this.#options
    // Not awaited before this is known: the link may not take the rest for long.
    if (!round && !this.#names.has(INVENTORY)) throw unfinished()
    await Promise.all(this.#running)
    silence?.close()
    this.#stop.signal.throwIfAborted()
    const snapshot = summarize(this.#entries as ImageEntry[], round)
    await confirm?.(this.#entries.length)
    await this.#put(new Part([{ frame: { type: 'snapshotEnd', ...snapshot } }]))
    this.#snapshot = snapshot
    this.push(null)
  }

  #track(sending: Promise<void>): Promise<void> {
    const task: Promise<void> = sending
      .then(() => this.#ended(task))
      .catch((reason: Error) => {
        // At once with `destroy`: no other image may be the last one before that.
        this.#running.delete(task)
        this.destroy(reason)
      })
    this.#running.add(task)
    return task
  }

  async #ended(task: Promise<void>): Promise<void> {
    this.#running.delete(task)
    if (this.#running.size > 0 || !this.#names.has(INVENTORY) || this.#stop.signal.aborted) return
    const end = encodeFrame({ type: 'snapshotEnd', ...summarize(this.#entries as ImageEntry[]) })
    await this.#options.onDrained?.(end.length)
  }

  /** Gives a part to the next stage. Resolves when it is out. */
  async #put(part: Part): Promise<void> {
    this.#stop.signal.throwIfAborted()
    this.#parts.add(part)
    this.push(part)
    try {
      await this.#timed(part.out)
    } finally {
      this.#parts.delete(part)
    }
  }

  /** Awaits bytes that go to the link, and tells the chooser how long nothing else could. */
  #timed(sending: Promise<number>): Promise<unknown> {
    const { chooser } = this.#chunks
    return chooser === undefined ? sending : this.#meter(sending, chooser)
  }

  async #meter(sending: Promise<number>, chooser: CompressionChooser): Promise<void> {
    if (this.#sending++ === 0) this.#busySince = performance.now()
    const bytes = await sending.finally(() => this.#sending--)
    const now = performance.now()
    chooser.sent(bytes, now - this.#busySince)
    this.#busySince = now
  }

  /** Sends an image from its name to its end, and notes what it was. */
  async #sendImage({ name, body }: OpenImage): Promise<void> {
    const reader = body.kind === 'pipe' ? new PipeReader(body.fd, body.begun) : undefined
    if (reader !== undefined) this.#readers.add(reader)
    try {
      await whileSending(reader, this.#underWay.take())
      try {
        this.#stop.signal.throwIfAborted()
        const image = this.#open(name)
        await whileSending(reader, this.#put(new Part([{ frame: { type: 'image', channel: image.channel, name } }])))
        if (reader !== undefined) await this.#sendPipe(image, reader)
        else if (body.kind === 'pieces') await this.#sendPieces(image, body)
        const entry = image.finish()
        const { size, digest } = entry
        await this.#put(new Part([{ frame: { type: 'imageEnd', channel: image.channel, size, digest } }]))
        this.#entries[image.channel - 1] = entry
      } finally {
        this.#underWay.give()
      }
    } finally {
      if (reader !== undefined) this.#readers.delete(reader)
      reader?.close()
    }
  }

  #open(name: OpenImage['name']): OutgoingImage {
    const { unchecked, silence, onBytes } = this.#options
    const { chooser } = this.#chunks
    return new OutgoingImage(this.#entries.push(undefined), name, !unchecked, (bytes) => {
      chooser?.taken(bytes)
      silence?.heard()
      onBytes?.(bytes)
    })
  }

  /** Where to look up pages of this image; undefined where the receiver cannot have any. */
  #knownFor({ name }: OutgoingImage): DedupSender | undefined {
    const { known } = this.#options
    return known?.offers === true && pagesPattern.test(name) ? known : undefined
  }

  async #sendPipe(image: OutgoingImage, reader: PipeReader): Promise<void> {
    const tap = this.#inPlace ? await this.#tapFor(image, reader) : undefined
    const { compress, known } = this.#options
    if (compress === undefined && known === undefined && tap === undefined) return this.#copyPipe(image, reader)
    let last = Promise.resolve()
    try {
      while (await reader.ready()) {
        this.#stop.signal.throwIfAborted()
        const codec = this.#chunks.codec()
        if (codec === undefined && this.#knownFor(image) === undefined) {
          await reader.whileSending(last)
          // `failed` may be on its way: no frame may follow it.
          this.#stop.signal.throwIfAborted()
          if (tap !== undefined) await reader.whileSending(this.#timed(tap()))
          else await this.#copyChunk(image, reader)
          continue
        }
        const slot = await reader.whileSending(this.#slots.take())
        const bytes = this.#fill(slot, image, reader)
        if (bytes === 0) this.#slots.give(slot)
        else {
          last = this.#sendChunk(slot, bytes, image, codec, last)
          last.catch((reason: Error) => reader.interrupt(reason))
        }
      }
    } finally {
      // A thread may still be at work on a slot.
      await reader.whileSending(last)
    }
  }

  /** Asks the link how it takes bytes out of this pipe. */
  async #tapFor(image: OutgoingImage, reader: PipeReader): Promise<Tap | undefined> {
    const { unchecked, frozen } = this.#options
    const byReference = unchecked === true && frozen === true && this.#chunks.chooser === undefined
    const part = new Part([], { image, reader, most: this.#most, byReference })
    await reader.whileSending(this.#put(part))
    return part.tap
  }

  /** Sends what comes out of a pipe as it is. */
  async #copyPipe(image: OutgoingImage, reader: PipeReader): Promise<void> {
    do {
      this.#stop.signal.throwIfAborted()
    } while ((await this.#copyChunk(image, reader)) || (await reader.ready()))
  }

  /** Sends what is in a pipe now. Returns false where there was nothing. */
  async #copyChunk(image: OutgoingImage, reader: PipeReader): Promise<boolean> {
    const bytes = reader.chunk(this.#most)
    if (bytes.length > 0) await reader.whileSending(this.#sendPlain(image, bytes))
    return bytes.length > 0
  }

  /** Reads what is in a pipe into a slot. Returns how many bytes. */
  #fill({ raw }: Slot, image: OutgoingImage, reader: PipeReader): number {
    // Pages are looked up whole.
    const beyond = this.#knownFor(image) === undefined ? 0 : image.size % PAGE_BYTES
    const room = raw.subarray(0, beyond === 0 ? this.#most : PAGE_BYTES - beyond)
    for (let filled = 0; ; ) {
      const got = filled === room.length ? 0 : reader.take(room.subarray(filled))
      if (got === 0) return filled
      filled += got
    }
  }

  async #sendPieces(image: OutgoingImage, { pieces }: Extract<ImageBody, { kind: 'pieces' }>): Promise<void> {
    for await (const piece of pieces) {
      for (let at = 0; at < piece.length; at += this.#most) {
        this.#stop.signal.throwIfAborted()
        await this.#sendPiece(image, piece.subarray(at, at + this.#most))
      }
    }
  }

  async #sendPiece(image: OutgoingImage, bytes: Uint8Array): Promise<void> {
    const codec = this.#chunks.codec()
    if (codec === undefined && this.#knownFor(image) === undefined) return this.#sendPlain(image, bytes)
    const slot = await this.#slots.take()
    slot.raw.set(bytes)
    return this.#sendChunk(slot, bytes.length, image, codec, Promise.resolve())
  }

  #sendPlain(image: OutgoingImage, bytes: Uint8Array): Promise<void> {
    const { channel } = image
    const frame = { type: 'data', channel, offset: image.add(bytes), length: bytes.length } as const
    return this.#put(new Part([{ frame, bytes }]))
  }

  /** Packs the first `bytes` bytes of the slot at once, and sends them after `before`. */
  async #sendChunk(
    slot: Slot,
    bytes: number,
    image: OutgoingImage,
    codec: CodecName | undefined,
    before: Promise<void>,
  ): Promise<void> {
    try {
      const chunk: Chunk = { slot, bytes, image, offset: image.add(slot.raw.subarray(0, bytes)) }
      const known = this.#knownFor(image)
      const frames = await this.#chunks.pack(chunk, codec, known)
      await before
      await this.#put(new Part(frames))
      known?.sent(image.channel, Math.floor((chunk.offset + bytes) / PAGE_BYTES))
    } finally {
      this.#slots.give(slot)
    }
  }
}

/** The second stage of a sender. Takes images (`OpenImage`), gives parts of them (`Part`). */
export function pack(options: PackOptions = {}): Pack {
  return new Pack(options)
}

function whileSending<Result>(reader: PipeReader | undefined, sending: Promise<Result>): Promise<Result> {
  return reader === undefined ? sending : reader.whileSending(sending)
}
