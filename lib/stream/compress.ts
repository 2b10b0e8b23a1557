/**
 * Images on their way out, compressed: a chunk at a time, up to 1 MiB, as many at a time as there are cores to spare.
 *
 * CRIU's pipe is read into a buffer here, whole pages of zeros are cut out of it, and what is left is compressed on
 * another thread while the next chunk is read. Chunks of an image go out in their order. What does not shrink goes out
 * as it is, and with `auto` so does what a sample says will not, and everything as long as the link is fast (see
 * pace.ts).
 */
import { availableParallelism } from 'node:os'
import type { CodecName } from '../format/enums.ts'
import { encodeFrame, MOST_DATA } from '../format/wire.ts'
import { type Compressor, compressor } from '../kernel/codec.ts'
import { type CompressionChooser, openCompressionChooser } from './adaptive-compression.ts'
import { type KnownRun, knownRuns } from './dedup-runs.ts'
import type { DedupSender } from './dedup-send.ts'
import { type FrameWriter, writerOver } from './frames.ts'
import type { Outlet } from './link.ts'
import type { PipeReader } from './pipe-reader.ts'
import { PAGE, type Run, zeroRuns } from './zero-pages.ts'

export type Compress = 'auto' | CodecName

/** One image on its way. */
export interface Outgoing {
  channel: number
  /** It has nothing but pages. */
  pages: boolean
  /** Bytes of it that were added. */
  size(): number
  /** Bytes go out next, in their order. Returns their offset. */
  add(bytes: Uint8Array): number
  /** Sends bytes as they are. */
  send(bytes: Uint8Array): Promise<void>
  /** Sends what is in CRIU's pipe now as it is. */
  pass(reader: PipeReader): Promise<void>
  stop: AbortSignal
}

export interface Packer {
  /** What everything goes through. */
  readonly writer: FrameWriter
  /** Bytes of images were taken from the source. */
  taken(bytes: number): void
  /** Sends an image out of CRIU's pipe. */
  sendPipe(reader: PipeReader, image: Outgoing): Promise<void>
  /** Sends bytes of an image, at most 1 MiB. */
  sendPiece(bytes: Uint8Array, image: Outgoing): Promise<void>
  /** Nothing is under way any more. */
  close(): void
}

/** Cores that compress; one is left to CRIU. libuv has four threads. */
const LANES = Math.max(1, Math.min(3, availableParallelism() - 1))
/** What takes so long as to send it to another thread. */
const LEAST_ASIDE = 32 * 2 ** 10
/** What shrinks less than this is sent as it is: the receiver has less to do. */
const SHRUNK = 0.95
/** Smaller ones are sent as they are. */
const LEAST_PACKED = 512
/** A sample is pages from all over a chunk; a chunk is at least so large. */
const SAMPLES = 4
const LEAST_SAMPLED = 64 * 2 ** 10
/** A page alone shrinks less than a chunk does. */
const SAMPLE_SHRUNK = 0.9

/** A buffer, and what it takes to compress it. */
interface Slot {
  raw: Buffer
  words: Int32Array
  out: Buffer
  coder(codec: CodecName): Compressor
  close(): void
}

interface Part {
  head: Buffer
  bytes?: Uint8Array
}

/** Whether `compress` can be done here. Throws `IO` where a library is not installed. */
export function checkCompress(compress: Compress): void {
  for (const codec of compress === 'auto' ? (['zstd', 'lz4'] as const) : [compress]) compressor(codec).close()
}

/**
 * Chunks have at most `most` bytes. Pages that are `known` are not sent; without `compress` the rest goes as it is.
 * Throws `IO` where a library is not installed.
 */
export function openPacker(
  compress: Compress | undefined,
  over: FrameWriter,
  most: number,
  known?: DedupSender,
): Packer {
  if (compress !== undefined) checkCompress(compress)
  const pace = compress === 'auto' ? openCompressionChooser(LANES, performance.now()) : undefined
  const writer = pace === undefined ? over : writerOver(over, (outlet) => timed(outlet, pace))
  const slots = pool(LANES + 1)
  const choose = (): CodecName | undefined => (compress === 'auto' ? pace?.choose(performance.now()) : compress)

  const looksUp = ({ pages }: Outgoing): boolean => pages && known?.offers === true

  async function partOf(
    slot: Slot,
    { from, to }: Run,
    at: number,
    image: Outgoing,
    codec: CodecName | undefined,
  ): Promise<Part> {
    const bytes = slot.raw.subarray(from, to)
    const raw = bytes.length
    const base = { channel: image.channel, offset: at + from }
    const plain: Part = { head: encodeFrame({ type: 'data', ...base, length: raw }), bytes }
    if (codec === undefined || raw < LEAST_PACKED || (pace !== undefined && raw >= LEAST_SAMPLED && !shrinks(bytes)))
      return plain
    const into = slot.out.subarray(from, from + Math.floor(raw * SHRUNK))
    const coder = slot.coder(codec)
    const begun = performance.now()
    const length = raw < LEAST_ASIDE ? coder.now(bytes, into) : await coder.aside(bytes, into)
    if (length === 0) return plain
    if (raw >= LEAST_SAMPLED) pace?.packed(codec, raw, length, performance.now() - begun)
    return { head: encodeFrame({ type: 'packed', ...base, codec, raw, length }), bytes: into.subarray(0, length) }
  }

  function runs(slot: Slot, bytes: number, at: number, image: Outgoing): KnownRun[] {
    if (known === undefined || !looksUp(image) || at % PAGE !== 0) return zeroRuns(slot.raw, slot.words, bytes)
    return knownRuns(known, slot, bytes, image.channel, at / PAGE)
  }

  async function pack(slot: Slot, bytes: number, at: number, image: Outgoing, codec: CodecName | undefined) {
    const parts: Part[] = []
    const { channel } = image
    for (const run of runs(slot, bytes, at, image)) {
      const { from, to, zero, same } = run
      const base = { channel, offset: at + from }
      if (zero) parts.push({ head: encodeFrame({ type: 'zeros', ...base, raw: to - from }) })
      else if (same === undefined) parts.push(await partOf(slot, run, at, image, codec))
      else parts.push({ head: encodeFrame({ type: 'same', ...base, ...same, pages: (to - from) / PAGE }) })
    }
    return parts
  }

  /** Compresses the first `bytes` bytes of the slot at once, and sends them after `before`. */
  async function launch(
    slot: Slot,
    bytes: number,
    image: Outgoing,
    codec: CodecName | undefined,
    before: Promise<void>,
  ) {
    try {
      const at = image.add(slot.raw.subarray(0, bytes))
      const parts = await pack(slot, bytes, at, image, codec)
      await before
      await writer.exclusive(async (outlet) => {
        for (const { head, bytes } of parts) {
          await outlet.send(head, bytes !== undefined)
          if (bytes !== undefined) await outlet.send(bytes)
        }
      })
      if (image.pages) known?.sent(image.channel, Math.floor((at + bytes) / PAGE))
    } finally {
      slots.give(slot)
    }
  }

  async function sendPipe(reader: PipeReader, image: Outgoing): Promise<void> {
    let last = Promise.resolve()
    try {
      while (await reader.ready()) {
        image.stop.throwIfAborted()
        const codec = choose()
        if (codec === undefined && !looksUp(image)) {
          await reader.whileSending(last)
          await image.pass(reader)
          continue
        }
        const slot = await reader.whileSending(slots.take())
        const beyond = looksUp(image) ? image.size() % PAGE : 0
        const bytes = fill(slot.raw.subarray(0, beyond === 0 ? most : PAGE - beyond), reader)
        if (bytes === 0) slots.give(slot)
        else {
          last = launch(slot, bytes, image, codec, last)
          last.catch((reason: Error) => reader.interrupt(reason))
        }
      }
    } finally {
      // A thread may still be at work on a slot.
      await reader.whileSending(last)
    }
  }

  async function sendPiece(bytes: Uint8Array, image: Outgoing): Promise<void> {
    const codec = choose()
    if (codec === undefined && !looksUp(image)) return image.send(bytes)
    image.stop.throwIfAborted()
    const slot = await slots.take()
    slot.raw.set(bytes)
    await launch(slot, bytes.length, image, codec, Promise.resolve())
  }

  return { writer, taken: (bytes) => pace?.taken(bytes), sendPipe, sendPiece, close: slots.close }
}

function fill(room: Uint8Array, reader: PipeReader): number {
  for (let filled = 0; ; ) {
    const got = filled === room.length ? 0 : reader.take(room.subarray(filled))
    if (got === 0) return filled
    filled += got
  }
}

function timed(outlet: Outlet, pace: CompressionChooser): Outlet {
  const { fillInPlace } = outlet
  const time = async (sending: () => Promise<void>, bytes: () => number): Promise<void> => {
    const begun = performance.now()
    await sending()
    pace.sent(bytes(), performance.now() - begun)
  }
  return {
    send: (bytes, more) =>
      time(
        () => outlet.send(bytes, more),
        () => bytes.length,
      ),
    ...(fillInPlace && {
      fillInPlace: (headBytes, most, fill) => {
        let bytes = 0
        const counted: typeof fill = (room) => {
          const filled = fill(room)
          if (filled !== undefined) bytes = filled.head.length + filled.bytes
          return filled
        }
        return time(
          () => fillInPlace(headBytes, most, counted),
          () => bytes,
        )
      },
    }),
    settle: outlet.settle,
    finish: outlet.finish,
  }
}

const scratch = Buffer.allocUnsafeSlow(PAGE)

/** Whether pages from all over `bytes` become smaller. */
function shrinks(bytes: Uint8Array): boolean {
  const sampler = compressor('lz4')
  const step = Math.floor((bytes.length - PAGE) / (SAMPLES - 1))
  let packed = 0
  for (let sample = 0; sample < SAMPLES; sample++) {
    packed += sampler.now(bytes.subarray(sample * step, sample * step + PAGE), scratch) || PAGE
  }
  return packed <= SAMPLES * PAGE * SAMPLE_SHRUNK
}

interface Slots {
  take(): Promise<Slot>
  give(slot: Slot): void
  close(): void
}

/** At most `most` slots, made when they are needed. */
function pool(most: number): Slots {
  const free: Slot[] = []
  const waiting: ((slot: Slot) => void)[] = []
  let made = 0
  return {
    async take() {
      const slot = free.pop()
      if (slot !== undefined) return slot
      if (made === most) return new Promise((resolve) => waiting.push(resolve))
      made++
      return openSlot()
    },
    give(slot) {
      const next = waiting.shift()
      if (next === undefined) free.push(slot)
      else next(slot)
    },
    close() {
      for (const slot of free.splice(0)) slot.close()
    },
  }
}

function openSlot(): Slot {
  const raw = Buffer.allocUnsafeSlow(MOST_DATA)
  const coders = new Map<CodecName, Compressor>()
  return {
    raw,
    words: new Int32Array(raw.buffer, raw.byteOffset, MOST_DATA / 4),
    out: Buffer.allocUnsafeSlow(MOST_DATA),
    coder(codec) {
      const coder = coders.get(codec) ?? compressor(codec)
      coders.set(codec, coder)
      return coder
    },
    close() {
      for (const coder of coders.values()) coder.close()
    },
  }
}
