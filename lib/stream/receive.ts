/**
 * Receiving a snapshot: frames to an image sink.
 *
 * Bytes go from the link straight to where the sink wants them and are checked there, while they are still in the
 * processor's cache. Nothing is believed before its digest has been seen to hold: the sink hears of an image's end
 * only then, and this returns only after the list of all images has been compared with what really came.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { digest, hex64, NO_DIGEST } from '../format/digest.ts'
import type { Until } from '../format/enums.ts'
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
import type { Layer } from '../format/wire.ts'
import { decompressor, endedIn, fillZeros, type Room } from './decompress.ts'
import { dedupReceiver, type Filling, type Offered } from './dedup-receive.ts'
import { accepting, type FrameReader, unexpected } from './frames.ts'
import type { ImageSink, ImageWriter } from './image.ts'
import { type Snapshot, summarize } from './summary.ts'

/** Bytes of images, and as much for each frame as takes about its time, before others get a turn. */
const MOST_AT_ONCE = 8 * 2 ** 20
const FRAME_COST = 4096
/** Images that a sender may have open at the same time; CRIU has 3 or 4. */
const MOST_OPEN = 64

interface Channel extends Filling {
  name: ImageName
  writer: ImageWriter
}

export interface ReceiveOptions {
  /** Told of every image that is complete and verified. */
  onAck?: (channel: number, size: number) => Promise<void>
  /** Told that the sender will give a verdict; a receiver without it has no way to take one. */
  onHandOver?: ((until: Until, token: Buffer | undefined) => void) | undefined
  /** Told, before anything is stored, that this is a part of a chain; may throw. A receiver without it keeps no chains. */
  onLayer?: ((layer: Layer) => void) | undefined
  /** Told how many bytes are ready for what the sender announced. */
  onReserved?: (bytes: number) => Promise<void>
  /** Asked for the digests of pages that may come as `same`: after so many. Resolves when the answer is on the link; never rejects. */
  onRecall?: ((from: number) => Promise<void>) | undefined
  /** What is held of the sender's words and buffers is counted there. */
  memory?: { add(bytes: number): void } | undefined
  /** What is offered to the sender; pages of zeros take no memory then. */
  offer?: Offered | undefined
}

/** Frames that bring images. */
const ofImages = ['image', 'data', 'packed', 'zeros', 'same', 'imageEnd', 'recall', 'snapshotEnd', 'failed'] as const
/** Before the first image the sender says what comes. */
const beforeImages = accepting(...ofImages, 'handOver', 'layer', 'unchecked', 'reserve')
const amongImages = accepting(...ofImages)
/** Payload bytes of any other frame here; a reason is the longest. */
const LARGEST_HEAD = 2 ** 11
/** Bytes of a `snapshotEnd` beside its list: the digest and the checksum. */
const END_BYTES = 8 + 4

/** Receives what follows a `snapshot` frame. */
export async function receiveSnapshot(
  reader: FrameReader,
  sink: ImageSink,
  options: ReceiveOptions = {},
): Promise<Snapshot> {
  const { onAck = async () => {}, onHandOver, onLayer, onReserved = async () => {}, onRecall } = options
  const same = dedupReceiver(options)
  const channels = new Map<number, Channel>()
  const names = new Set<string>()
  const entries: (ImageEntry | undefined)[] = []
  const { unpack } = decompressor(reader.inlet, options.memory)
  let grown = 0
  let listBytes = EMPTY_LIST_BYTES
  /** A link that is faster than we are never makes us wait, and few bytes of it make many: others get their turn meanwhile. */
  const breathe = async (bytes: number): Promise<void> => {
    grown += bytes
    if (grown < MOST_AT_ONCE) return
    grown = 0
    await turn()
  }
  let recalling = Promise.resolve()
  let offered = false
  let layer: Layer | undefined
  let reserving = false
  let checked = true

  let asked = false
  const begun = (): boolean => reserving || asked || !checked
  const open = (number: number): Channel => {
    const channel = channels.get(number)
    if (channel === undefined) throw new Fault('FORMAT', `channel ${number} is not open`)
    return channel
  }

  for (;;) {
    const takes = entries.length === 0 ? beforeImages : amongImages
    // The largest is a `snapshotEnd`, whose list is of what has come.
    const frame = await reader.expect(takes, Math.max(LARGEST_HEAD, listBytes + END_BYTES))
    await breathe(FRAME_COST)
    options.offer?.used()
    switch (frame.type) {
      case 'image': {
        if (frame.channel !== entries.length + 1) throw new Fault('FORMAT', 'channels are not numbered in order')
        if (names.has(frame.name)) throw new Fault('FORMAT', `image ${frame.name} comes twice`)
        if (names.size >= MOST_IMAGES) throw new Fault('LIMIT', `more than ${MOST_IMAGES} images in one snapshot`)
        if (channels.size >= MOST_OPEN) throw new Fault('LIMIT', `more than ${MOST_OPEN} images open at once`)
        names.add(frame.name)
        listBytes += entryBytes(frame.name)
        entries.push(undefined)
        const writer = await sink.open(frame.name)
        const sum = checked ? digest() : NO_DIGEST
        channels.set(frame.channel, { name: frame.name, writer, sum, size: 0 })
        same.opened(frame.channel, writer)
        break
      }
      case 'data':
        await receiveData(reader, goesOn(open(frame.channel), frame.offset, frame.length), frame.length)
        await breathe(frame.length)
        break
      case 'packed': {
        const channel = goesOn(open(frame.channel), frame.offset, frame.raw)
        await unpack(frame, channel.name, roomOf(channel))
        await breathe(frame.raw)
        break
      }
      case 'zeros': {
        const channel = goesOn(open(frame.channel), frame.offset, frame.raw)
        if (!same.zeros(frame.raw, channel)) await fillZeros(frame.raw, roomOf(channel))
        await breathe(frame.raw)
        break
      }
      case 'same': {
        const bytes = frame.pages * PAGE_BYTES
        same.take(frame, goesOn(open(frame.channel), frame.offset, bytes))
        await breathe(bytes)
        break
      }
      case 'recall':
        if (onRecall === undefined) throw unexpected(frame)
        asked = true
        // Who asks and does not read the answers makes us hold one, and no more.
        await recalling
        recalling = onRecall(frame.offset)
        break
      case 'imageEnd': {
        const channel = open(frame.channel)
        const entry = { name: channel.name, size: channel.size, digest: channel.sum.finish() }
        if (entry.size !== frame.size || entry.digest !== frame.digest) throw damaged(channel.name, entry, frame)
        await channel.writer.end(entry)
        entries[frame.channel - 1] = entry
        channels.delete(frame.channel)
        await onAck(frame.channel, entry.size)
        break
      }
      case 'snapshotEnd': {
        if (channels.size > 0) throw new Fault('FORMAT', 'the snapshot ends while images are open')
        const announced = encodeImageList(frame.images)
        if (!announced.equals(encodeImageList(entries as ImageEntry[]))) {
          throw new Fault('DIGEST', 'the list of images is not what came')
        }
        const snapshot = summarize(entries as ImageEntry[], layer?.last === false)
        if (snapshot.digest !== frame.digest) throw new Fault('DIGEST', 'the list of images is damaged')
        return snapshot
      }
      case 'handOver':
        if (onHandOver === undefined || begun() || offered || layer !== undefined) throw unexpected(frame)
        offered = true
        onHandOver(frame.until, frame.token)
        break
      case 'layer':
        if (onLayer === undefined || begun() || layer !== undefined || (offered && !frame.last)) throw unexpected(frame)
        layer = frame
        onLayer(frame)
        break
      case 'unchecked':
        if (!checked) throw unexpected(frame)
        checked = false
        break
      case 'reserve':
        if (reserving) throw unexpected(frame)
        reserving = true
        // Images may come before it is done.
        void reserved(sink.reserve?.(frame.offset), onReserved)
        break
      case 'failed':
        throw new Fault(frame.code, `the source gave up: ${frame.reason}`)
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
  said: { size: number; digest: bigint },
): Fault {
  const sizes = `${got.size} bytes, digest ${hex64(got.digest)}; announced ${said.size}, ${hex64(said.digest)}`
  return new Fault('DIGEST', `image ${name} is damaged: ${sizes}`, {
    hint: 'the link or a store changed it; send it again',
  })
}

/** The channel, if `bytes` bytes belong there. */
function goesOn(channel: Channel, offset: number, bytes: number): Channel {
  if (offset !== channel.size) throw new Fault('FORMAT', `image ${channel.name} does not go on where it ended`)
  if (offset + bytes > LARGEST_IMAGE) throw new Fault('LIMIT', `image ${channel.name} is too large`)
  return channel
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

async function receiveData(reader: FrameReader, channel: Channel, bytes: number): Promise<void> {
  const { room, wrote } = roomOf(channel)
  for (let left = bytes; left > 0; ) {
    const wanted = room(left)
    const part = wanted.length > left ? wanted.subarray(0, left) : wanted
    if (!(await reader.inlet.fill(part))) throw endedIn(channel.name)
    await wrote(part)
    left -= part.length
  }
}

/** After the end of a one-way stream nothing may follow. Throws `TRAILING`. */
export async function expectEnd(reader: FrameReader): Promise<void> {
  if (await reader.inlet.fill(Buffer.alloc(1))) {
    throw new Fault('TRAILING', 'bytes after the end of the snapshot', { hint: 'one stream holds one snapshot' })
  }
}
