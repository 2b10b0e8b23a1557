/**
 * Receiving a snapshot: frames to an image sink.
 *
 * Bytes go from the link straight to where the sink wants them and are checked there, while they are still in the
 * processor's cache. Nothing is believed before its digest has been compared: the sink hears of an image's end only
 * then, and this returns only after the list of all images has been compared with what really came.
 */
import { setImmediate as yieldToOthers } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { digest, hex64, NO_DIGEST } from '../format/digest.ts'
import type { Until } from '../format/enums.ts'
import type { Layer } from '../format/frame.ts'
import type { FrameOf } from '../format/frame-types.ts'
import {
  EMPTY_LIST_BYTES,
  encodeImageList,
  entryBytes,
  type ImageEntry,
  LARGEST_IMAGE,
  MOST_IMAGES,
} from '../format/image-list.ts'
import type { ImageName } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { type Decompressor, decompressor, endedIn, fillZeros, type Room } from './decompress.ts'
import { DedupReceiver, type IncomingImage, type Offered } from './dedup-receive.ts'
import { accepting, type FrameReader, unexpected } from './frames.ts'
import type { ImageSink, ImageWriter } from './image.ts'
import { type Snapshot, summarize } from './summary.ts'

/** Others get their turn after so many bytes of images. A frame counts as the bytes that take as long as it does. */
const MOST_AT_ONCE = 8 * 2 ** 20
const FRAME_COST = 4096
/** Images that a sender may have open at the same time; CRIU has 3 or 4. */
const MOST_OPEN = 64

interface Channel extends IncomingImage {
  name: ImageName
  writer: ImageWriter
}

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

/** Frames that bring images. */
const imageFrames = ['image', 'data', 'packed', 'zeros', 'same', 'imageEnd', 'recall', 'snapshotEnd', 'failed'] as const
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
  readonly #unpack: Decompressor['unpack']
  /** The images that are open. */
  readonly #channels = new Map<number, Channel>()
  readonly #names = new Set<string>()
  /** By channel; undefined for an image that is open. */
  readonly #entries: (ImageEntry | undefined)[] = []
  /** Bytes of the list of the images that have come. */
  #listBytes = EMPTY_LIST_BYTES
  /** Bytes since others last got their turn. */
  #sinceYield = 0
  /** The last answer to a `recall`. */
  #recalling = Promise.resolve()
  /** What the sender has said before the first image. */
  #handsOver = false
  #layer: Layer | undefined
  #reserves = false
  #recalls = false
  #checked = true

  constructor(reader: FrameReader, sink: ImageSink, options: ReceiveOptions) {
    this.#reader = reader
    this.#sink = sink
    this.#options = options
    this.#dedup = new DedupReceiver(options)
    this.#unpack = decompressor(reader.inlet, options.memory).unpack
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
        return this.#open(frame)
      case 'data':
        return this.#takeData(frame)
      case 'packed':
        return this.#takePacked(frame)
      case 'zeros':
        return this.#takeZeros(frame)
      case 'same':
        return this.#takeSame(frame)
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

  async #open({ channel, name }: FrameOf<'image'>): Promise<void> {
    if (channel !== this.#entries.length + 1) throw new Fault('FORMAT', 'channels are not numbered in order')
    if (this.#names.has(name)) throw new Fault('FORMAT', `image ${name} comes twice`)
    if (this.#names.size >= MOST_IMAGES) throw new Fault('LIMIT', `more than ${MOST_IMAGES} images in one snapshot`)
    if (this.#channels.size >= MOST_OPEN) throw new Fault('LIMIT', `more than ${MOST_OPEN} images open at once`)
    this.#names.add(name)
    this.#listBytes += entryBytes(name)
    this.#entries.push(undefined)
    const writer = await this.#sink.open(name)
    this.#channels.set(channel, { name, writer, sum: this.#checked ? digest() : NO_DIGEST, size: 0 })
    this.#dedup.opened(channel, writer)
  }

  #channel(number: number): Channel {
    const channel = this.#channels.get(number)
    if (channel === undefined) throw new Fault('FORMAT', `channel ${number} is not open`)
    return channel
  }

  /** The channel to which the next `bytes` bytes belong. Throws `FORMAT` where they are not next, `LIMIT`. */
  #next({ channel: number, offset }: { channel: number; offset: number }, bytes: number): Channel {
    const channel = this.#channel(number)
    if (offset !== channel.size) throw new Fault('FORMAT', `image ${channel.name} does not go on where it ended`)
    if (offset + bytes > LARGEST_IMAGE) throw new Fault('LIMIT', `image ${channel.name} is too large`)
    return channel
  }

  async #takeData(frame: FrameOf<'data'>): Promise<void> {
    const channel = this.#next(frame, frame.length)
    const { room, wrote } = roomOf(channel)
    for (let left = frame.length; left > 0; ) {
      const wanted = room(left)
      const part = wanted.length > left ? wanted.subarray(0, left) : wanted
      if (!(await this.#reader.inlet.fill(part))) throw endedIn(channel.name)
      await wrote(part)
      left -= part.length
    }
    await this.#count(frame.length)
  }

  async #takePacked(frame: FrameOf<'packed'>): Promise<void> {
    const channel = this.#next(frame, frame.raw)
    await this.#unpack(frame, channel.name, roomOf(channel))
    await this.#count(frame.raw)
  }

  async #takeZeros(frame: FrameOf<'zeros'>): Promise<void> {
    const channel = this.#next(frame, frame.raw)
    if (!this.#dedup.zeros(frame.raw, channel)) await fillZeros(frame.raw, roomOf(channel))
    await this.#count(frame.raw)
  }

  async #takeSame(frame: FrameOf<'same'>): Promise<void> {
    const bytes = frame.pages * PAGE_BYTES
    this.#dedup.take(frame, this.#next(frame, bytes))
    await this.#count(bytes)
  }

  async #endImage(frame: FrameOf<'imageEnd'>): Promise<void> {
    const channel = this.#channel(frame.channel)
    const entry = { name: channel.name, size: channel.size, digest: channel.sum.finish() }
    if (entry.size !== frame.size || entry.digest !== frame.digest) throw damaged(channel.name, entry, frame)
    await channel.writer.end(entry)
    this.#entries[frame.channel - 1] = entry
    this.#channels.delete(frame.channel)
    await this.#options.onAck?.(frame.channel, entry.size)
  }

  #end(frame: FrameOf<'snapshotEnd'>): Snapshot {
    if (this.#channels.size > 0) throw new Fault('FORMAT', 'the snapshot ends while images are open')
    const entries = this.#entries as ImageEntry[]
    if (!encodeImageList(frame.images).equals(encodeImageList(entries))) {
      throw new Fault('DIGEST', 'the list of images is not what came')
    }
    const snapshot = summarize(entries, this.#layer?.last === false)
    if (snapshot.digest !== frame.digest) throw new Fault('DIGEST', 'the list of images is damaged')
    return snapshot
  }

  async #recall(frame: FrameOf<'recall'>): Promise<void> {
    const { onRecall } = this.#options
    if (onRecall === undefined) throw unexpected(frame)
    this.#recalls = true
    // A sender that asks and does not read the answers makes us hold one answer, and no more.
    await this.#recalling
    this.#recalling = onRecall(frame.offset)
  }

  #takeAnnouncement(frame: FrameOf<(typeof announcements)[number]>): void {
    const { onHandOver, onLayer, onReserved = async () => {} } = this.#options
    const begun = this.#reserves || this.#recalls || !this.#checked
    switch (frame.type) {
      case 'handOver':
        if (onHandOver === undefined || begun || this.#handsOver || this.#layer !== undefined) throw unexpected(frame)
        this.#handsOver = true
        onHandOver(frame.until, frame.token)
        break
      case 'layer':
        if (onLayer === undefined || begun || this.#layer !== undefined || (this.#handsOver && !frame.last)) {
          throw unexpected(frame)
        }
        this.#layer = frame
        onLayer(frame)
        break
      case 'unchecked':
        if (!this.#checked) throw unexpected(frame)
        this.#checked = false
        break
      case 'reserve':
        if (this.#reserves) throw unexpected(frame)
        this.#reserves = true
        // Images may come before it is done.
        void reserved(this.#sink.reserve?.(frame.offset), onReserved)
        break
    }
  }
}

async function reserved(ready = Promise.resolve(0), onReserved: (bytes: number) => Promise<void>): Promise<void> {
  try {
    await onReserved(await ready)
  } catch {
    // The link is gone, and its reader knows why.
  }
}

function damaged(
  name: ImageName,
  got: { size: number; digest: bigint },
  announced: { size: number; digest: bigint },
): Fault {
  const came = `${got.size} bytes, digest ${hex64(got.digest)}`
  const said = `announced ${announced.size}, ${hex64(announced.digest)}`
  return new Fault('DIGEST', `image ${name} is damaged: ${came}; ${said}`, {
    hint: 'the link or a store changed it; send it again',
  })
}

function roomOf(channel: Channel): Room {
  return {
    room: (wanted) => channel.writer.room(wanted),
    async wrote(bytes) {
      channel.sum.update(bytes)
      await channel.writer.wrote(bytes.length)
      channel.size += bytes.length
    },
  }
}

/** After the end of a one-way stream nothing may follow. Throws `TRAILING`. */
export async function expectEnd(reader: FrameReader): Promise<void> {
  if (await reader.inlet.fill(Buffer.alloc(1))) {
    throw new Fault('TRAILING', 'bytes after the end of the snapshot', { hint: 'one stream holds one snapshot' })
  }
}
