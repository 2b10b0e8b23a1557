/**
 * Receiving a snapshot: frames to an image sink.
 *
 * Bytes go from the link straight to where the sink wants them and are checked there, while they are still in the
 * processor's cache. Nothing is believed before its digest has been compared: the sink hears of an image's end only
 * then, and this returns only after the list of all images has been compared with what really came.
 */
import { setImmediate as yieldToOthers } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import type { Until } from '../format/enums.ts'
import type { FrameName, FrameOf, Layer } from '../format/frame-types.ts'
import {
  EMPTY_LIST_BYTES,
  encodeImageList,
  entryBytes,
  type ImageEntry,
  LARGEST_IMAGE,
  MOST_IMAGES,
} from '../format/image-list.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { Decompressor } from './decompress.ts'
import { DedupReceiver, type Offered } from './dedup-receive.ts'
import { accepting, type FrameReader, unexpected } from './frames.ts'
import type { ImageSink } from './image.ts'
import { IncomingImage } from './incoming-image.ts'
import { type Snapshot, summarize } from './summary.ts'

/** Others get their turn after so many bytes of images. A frame counts as the bytes that take as long as it does. */
const MOST_AT_ONCE = 8 * 2 ** 20
const FRAME_COST = 4096
/** Images that a sender may have open at the same time; CRIU has 3 or 4. */
const MOST_OPEN = 64

export interface ReceiveOptions {
  /** Told of every image that is complete and verified. */
  onAck?: (channel: number, size: number) => Promise<void>
  /** Told that the sender will give a verdict; a receiver without it has no way to take one. */
  onHandOver?: ((until: Until, token: Buffer | undefined) => void) | undefined
  /**
   * Told, before anything is stored, that this is a part of a chain; may throw. A receiver without it keeps no chains.
   */
  onLayer?: ((layer: Layer) => void) | undefined
  /** Told how many bytes are ready for what the sender announced. */
  onReserved?: (bytes: number) => Promise<void>
  /**
   * Asked for the digests of pages that may come as `same`, from this number on. Resolves when the answer is on the
   * link; never rejects.
   */
  onRecall?: ((from: number) => Promise<void>) | undefined
  /** Counts the memory that is held for the sender's words and buffers. */
  memory?: { add(bytes: number): void } | undefined
  /** The pages that are offered to the sender; pages of zeros take no memory then. */
  offer?: Offered | undefined
}

/** Frames that bring bytes of an image. */
const byteFrames = ['data', 'packed', 'zeros', 'same'] as const
type ByteFrame = (typeof byteFrames)[number]
/** Frames that bring images. */
const imageFrames = [...byteFrames, 'image', 'imageEnd', 'recall', 'snapshotEnd', 'failed'] as const
/** Frames by which the sender says, before the first image, what comes. */
const announcements = ['handOver', 'layer', 'unchecked', 'reserve'] as const
const beforeImages = accepting(...imageFrames, ...announcements)
const amongImages = accepting(...imageFrames)
type Incoming = FrameOf<(typeof imageFrames)[number] | (typeof announcements)[number]>
/** Payload bytes of any frame but `snapshotEnd`; a reason is the longest. */
const LARGEST_HEAD = 2 ** 11
/** Bytes of a `snapshotEnd` beside its list: the digest and the checksum. */
const END_BYTES = 8 + 4

/**
 * Receives what follows a `snapshot` frame. Throws `FORMAT`, `LIMIT`, `DIGEST`, `TRUNCATED`, `LINK`, what the sink
 * throws, and the sender's reason where it gave up.
 */
export function receiveSnapshot(reader: FrameReader, sink: ImageSink, options: ReceiveOptions = {}): Promise<Snapshot> {
  return new SnapshotReceiver(reader, sink, options).receive()
}

class SnapshotReceiver {
  readonly #reader: FrameReader
  readonly #sink: ImageSink
  readonly #options: ReceiveOptions
  readonly #dedup: DedupReceiver
  readonly #decompressor: Decompressor
  /** The images that are open, by channel. */
  readonly #open = new Map<number, IncomingImage>()
  readonly #names = new Set<string>()
  /** By channel; undefined for an image that is open. */
  readonly #entries: (ImageEntry | undefined)[] = []
  /** Bytes of the list of the images that have come. */
  #listBytes = EMPTY_LIST_BYTES
  /** Bytes since others last got their turn. */
  #sinceYield = 0
  /** The last answer to a `recall`. */
  #recalling = Promise.resolve()
  /** The frames beside those of images that the sender has sent. */
  readonly #said = new Set<FrameName>()
  /** The snapshot is a round of a chain. */
  #round = false

  constructor(reader: FrameReader, sink: ImageSink, options: ReceiveOptions) {
    this.#reader = reader
    this.#sink = sink
    this.#options = options
    this.#dedup = new DedupReceiver(options)
    this.#decompressor = new Decompressor(reader.inlet, options.memory)
  }

  async receive(): Promise<Snapshot> {
    for (;;) {
      const takes = this.#entries.length === 0 ? beforeImages : amongImages
      // The largest is a `snapshotEnd`, whose list is of what has come.
      const frame = await this.#reader.expect(takes, Math.max(LARGEST_HEAD, this.#listBytes + END_BYTES))
      await this.#count(FRAME_COST)
      this.#options.offer?.used()
      if (frame.type === 'snapshotEnd') return this.#end(frame)
      await this.#take(frame)
    }
  }

  #take(frame: Exclude<Incoming, { type: 'snapshotEnd' }>): Promise<void> | void {
    switch (frame.type) {
      case 'image':
        return this.#openImage(frame)
      case 'data':
      case 'packed':
      case 'zeros':
      case 'same':
        return this.#takeBytes(frame)
      case 'imageEnd':
        return this.#endImage(frame)
      case 'recall':
        return this.#recall(frame)
      case 'failed':
        throw new Fault(frame.code, `the source gave up: ${frame.reason}`)
      default:
        return this.#takeAnnouncement(frame)
    }
  }

  /** A link that is faster than we are never makes us wait, and few bytes of it make many: others get their turn. */
  async #count(bytes: number): Promise<void> {
    this.#sinceYield += bytes
    if (this.#sinceYield < MOST_AT_ONCE) return
    this.#sinceYield = 0
    await yieldToOthers()
  }

  async #openImage({ channel, name }: FrameOf<'image'>): Promise<void> {
    if (channel !== this.#entries.length + 1) throw new Fault('FORMAT', 'channels are not numbered in order')
    if (this.#names.has(name)) throw new Fault('FORMAT', `image ${name} comes twice`)
    if (this.#names.size >= MOST_IMAGES) throw new Fault('LIMIT', `more than ${MOST_IMAGES} images in one snapshot`)
    if (this.#open.size >= MOST_OPEN) throw new Fault('LIMIT', `more than ${MOST_OPEN} images open at once`)
    this.#names.add(name)
    this.#listBytes += entryBytes(name)
    this.#entries.push(undefined)
    const image = new IncomingImage(name, await this.#sink.open(name), !this.#said.has('unchecked'))
    this.#open.set(channel, image)
    this.#dedup.opened(channel, image)
  }

  #imageOn(channel: number): IncomingImage {
    const image = this.#open.get(channel)
    if (image === undefined) throw new Fault('FORMAT', `channel ${channel} is not open`)
    return image
  }

  /** Takes the next bytes of an image, in whatever form they come. */
  async #takeBytes(frame: FrameOf<ByteFrame>): Promise<void> {
    const image = this.#imageOn(frame.channel)
    const bytes = bytesOf(frame)
    if (frame.offset !== image.size) throw new Fault('FORMAT', `image ${image.name} does not go on where it ended`)
    if (frame.offset + bytes > LARGEST_IMAGE) throw new Fault('LIMIT', `image ${image.name} is too large`)
    if (frame.type === 'data') await image.write(bytes, (room) => this.#reader.inlet.fill(room))
    else if (frame.type === 'packed') await this.#decompressor.unpack(frame, image)
    else if (frame.type === 'same') this.#dedup.take(frame, image)
    else if (!this.#dedup.zeros(bytes, image)) await image.write(bytes, (room) => room.fill(0))
    await this.#count(bytes)
  }

  async #endImage({ channel, size, digest }: FrameOf<'imageEnd'>): Promise<void> {
    const image = this.#imageOn(channel)
    const entry = image.finish()
    if (entry.size !== size || entry.digest !== digest) {
      const came = `${entry.size} bytes, digest ${hex64(entry.digest)}`
      throw image.damaged(`${came}; announced ${size}, ${hex64(digest)}`)
    }
    await image.writer.end(entry)
    this.#entries[channel - 1] = entry
    this.#open.delete(channel)
    await this.#options.onAck?.(channel, size)
  }

  #end(frame: FrameOf<'snapshotEnd'>): Snapshot {
    if (this.#open.size > 0) throw new Fault('FORMAT', 'the snapshot ends while images are open')
    const entries = this.#entries as ImageEntry[]
    if (!encodeImageList(frame.images).equals(encodeImageList(entries))) {
      throw new Fault('DIGEST', 'the list of images is not what came')
    }
    const snapshot = summarize(entries, this.#round)
    if (snapshot.digest !== frame.digest) throw new Fault('DIGEST', 'the list of images is damaged')
    return snapshot
  }

  async #recall(frame: FrameOf<'recall'>): Promise<void> {
    const { onRecall } = this.#options
    if (onRecall === undefined) throw unexpected(frame)
    this.#said.add('recall')
    // A sender that asks and does not read the answers makes us hold one answer, and no more.
    await this.#recalling
    this.#recalling = onRecall(frame.offset)
  }

  /** Each comes once: first `handOver`, then `layer`, then the others in any order. */
  #takeAnnouncement(frame: FrameOf<(typeof announcements)[number]>): void {
    const { onHandOver, onLayer, onReserved = async () => {} } = this.#options
    const handsOver = this.#said.has('handOver')
    const begun = this.#said.size > (handsOver ? 1 : 0)
    if (this.#said.has(frame.type)) throw unexpected(frame)
    this.#said.add(frame.type)
    switch (frame.type) {
      case 'handOver':
        if (onHandOver === undefined || begun) throw unexpected(frame)
        onHandOver(frame.until, frame.token)
        break
      case 'layer':
        if (onLayer === undefined || begun || (handsOver && !frame.last)) throw unexpected(frame)
        this.#round = !frame.last
        onLayer(frame)
        break
      case 'reserve':
        // Images may come before it is done. Where the link is gone, its reader knows why.
        void (this.#sink.reserve?.(frame.offset) ?? Promise.resolve(0)).then(onReserved).catch(() => {})
        break
      // `unchecked` is looked up when an image is opened.
    }
  }
}

/** The bytes of the image that a frame stands for. */
function bytesOf(frame: FrameOf<ByteFrame>): number {
  if (frame.type === 'data') return frame.length
  return frame.type === 'same' ? frame.pages * PAGE_BYTES : frame.raw
}

/** After the end of a one-way stream nothing may follow. Throws `TRAILING`. */
export async function expectEnd(reader: FrameReader): Promise<void> {
  if (await reader.inlet.fill(Buffer.alloc(1))) {
    throw new Fault('TRAILING', 'bytes after the end of the snapshot', { hint: 'one stream holds one snapshot' })
  }
}
