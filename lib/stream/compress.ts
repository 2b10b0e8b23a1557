/**
 * Chunks of images become frames: pages of zeros are cut out, pages that the receiver has are named, and what is left
 * is compressed, on another thread while the next chunk is read. As many chunks at a time as there are cores to spare.
 *
 * What does not shrink goes out as it is. With `auto` so does what a sample says will not shrink, and everything as
 * long as the link is fast (adaptive-compression.ts).
 */
import { availableParallelism } from 'node:os'
import { type CodecName, codecNames } from '../format/enums.ts'
import { MOST_DATA } from '../format/frame.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { type Compressor, compressor } from '../kernel/codec.ts'
import { CompressionChooser } from './adaptive-compression.ts'
import { knownRuns, type Run, zeroRuns } from './chunk-runs.ts'
import type { DedupSender } from './dedup-send.ts'
import type { OutgoingFrame, OutgoingImage } from './image-part.ts'
import { semaphore } from './semaphore.ts'

export type Compress = 'auto' | CodecName

/** Chunks that are compressed at a time; one core is left to CRIU, and libuv has four threads. */
const LANES = Math.max(1, Math.min(3, availableParallelism() - 1))
/** Fewer bytes are compressed sooner than they are handed to another thread. */
const LEAST_ASIDE = 32 * 2 ** 10
/** What shrinks less than this is sent as it is: the receiver has less to do. */
const SHRUNK = 0.95
/** Fewer bytes are sent as they are. */
const LEAST_PACKED = 512
/** A sample is pages from all over a chunk; smaller chunks are not sampled. */
const SAMPLES = 4
const LEAST_SAMPLED = 64 * 2 ** 10
/** A page alone shrinks less than a chunk does. */
const SAMPLE_SHRUNK = 0.9

/** Checks that `compress` can be done here. Throws `IO` where a library is not installed. */
export function checkCompress(compress: Compress): void {
  for (const codec of compress === 'auto' ? codecNames : [compress]) compressor(codec).close()
}

/** A buffer for one chunk, and what it takes to compress it. */
export class Slot {
  readonly raw = Buffer.allocUnsafeSlow(MOST_DATA)
  readonly words = new Int32Array(this.raw.buffer, this.raw.byteOffset, MOST_DATA / 4)
  readonly out = Buffer.allocUnsafeSlow(MOST_DATA)
  readonly #compressors = new Map<CodecName, Compressor>()

  compressor(codec: CodecName): Compressor {
    const found = this.#compressors.get(codec) ?? compressor(codec)
    this.#compressors.set(codec, found)
    return found
  }

  close(): void {
    for (const one of this.#compressors.values()) one.close()
  }
}

/** Slots, made when they are needed: one more than chunks are compressed at a time. */
export class SlotPool {
  readonly #free: Slot[] = []
  readonly #inUse = semaphore(LANES + 1)

  async take(): Promise<Slot> {
    await this.#inUse.take()
    return this.#free.pop() ?? new Slot()
  }

  give(slot: Slot): void {
    this.#free.push(slot)
    this.#inUse.give()
  }

  close(): void {
    for (const slot of this.#free.splice(0)) slot.close()
  }
}

/** Where a chunk lies: `bytes` bytes of `slot`, which are `image` from `offset` on. */
export interface Chunk {
  slot: Slot
  bytes: number
  image: OutgoingImage
  offset: number
}

/** Decides for each chunk whether it is packed, and makes frames of it. */
export class ChunkPacker {
  readonly #compress: Compress | undefined
  /** Told what happens on the link; undefined unless compression is `auto`. */
  readonly chooser: CompressionChooser | undefined

  /** Throws `IO` where a library is not installed. */
  constructor(compress: Compress | undefined) {
    if (compress !== undefined) checkCompress(compress)
    this.#compress = compress
    this.chooser = compress === 'auto' ? new CompressionChooser(LANES, performance.now()) : undefined
  }

  /** The codec for what goes out now; undefined where it goes as it is. */
  codec(): CodecName | undefined {
    return this.#compress === 'auto' ? this.chooser?.choose(performance.now()) : this.#compress
  }

  /** The frames for a chunk. Pages that the receiver has are looked up in `known`. */
  async pack(chunk: Chunk, codec: CodecName | undefined, known: DedupSender | undefined): Promise<OutgoingFrame[]> {
    const frames: OutgoingFrame[] = []
    const { channel } = chunk.image
    for (const run of runsOf(chunk, known)) {
      const { from, to, zero, same } = run
      const offset = chunk.offset + from
      if (zero) frames.push({ frame: { type: 'zeros', channel, offset, raw: to - from } })
      else if (same === undefined) frames.push(await this.#packRun(chunk, run, codec))
      else frames.push({ frame: { type: 'same', channel, offset, ...same, pages: (to - from) / PAGE_BYTES } })
    }
    return frames
  }

  async #packRun(chunk: Chunk, { from, to }: Run, codec: CodecName | undefined): Promise<OutgoingFrame> {
    const { slot, image } = chunk
    const bytes = slot.raw.subarray(from, to)
    const raw = bytes.length
    const place = { channel: image.channel, offset: chunk.offset + from }
    const plain: OutgoingFrame = { frame: { type: 'data', ...place, length: raw }, bytes }
    if (codec === undefined || raw < LEAST_PACKED) return plain
    const sampled = raw >= LEAST_SAMPLED && this.chooser !== undefined
    if (sampled && !shrinks(bytes)) return plain
    const into = slot.out.subarray(from, from + Math.floor(raw * SHRUNK))
    const begun = performance.now()
    const packer = slot.compressor(codec)
    const length = raw < LEAST_ASIDE ? packer.now(bytes, into) : await packer.aside(bytes, into)
    if (length === 0) return plain
    if (sampled) this.chooser?.packed(codec, raw, length, performance.now() - begun)
    return { frame: { type: 'packed', ...place, codec, raw, length }, bytes: into.subarray(0, length) }
  }
}

function runsOf({ slot, bytes, image, offset }: Chunk, known: DedupSender | undefined): Run[] {
  if (known === undefined || offset % PAGE_BYTES !== 0) return zeroRuns(slot.raw, slot.words, bytes)
  return knownRuns(known, slot, bytes, image.channel, offset / PAGE_BYTES)
}

const scratch = Buffer.allocUnsafeSlow(PAGE_BYTES)

/** Whether pages from all over `bytes` become smaller. */
function shrinks(bytes: Uint8Array): boolean {
  const sampler = compressor('lz4')
  const step = Math.floor((bytes.length - PAGE_BYTES) / (SAMPLES - 1))
  let packed = 0
  for (let sample = 0; sample < SAMPLES; sample++) {
    packed += sampler.now(bytes.subarray(sample * step, sample * step + PAGE_BYTES), scratch) || PAGE_BYTES
  }
  return packed <= SAMPLES * PAGE_BYTES * SAMPLE_SHRUNK
}
