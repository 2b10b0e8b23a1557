/** The stage `frames`: what the receiver is told first, then the parts of images as the frames of the wire. */
import { Transform, type TransformCallback } from 'node:stream'
import type { Until } from '../format/enums.ts'
import { encodeFrame } from '../format/frame.ts'
import type { Frame, Layer } from '../format/frame-types.ts'
import type { SnapshotId } from '../format/names.ts'
import type { DedupSender } from './dedup-send.ts'
import type { OutgoingFrame, Part, PipedImage } from './image-part.ts'
import type { Filled } from './link.ts'

export interface FramesOptions {
  id: SnapshotId
  /** It is a hand-over: the receiver is told how far we wait, and that a verdict follows. */
  until?: Until | undefined
  /** The receiver has been told the id and `until` already (see resuming-sender.ts). */
  greeted?: boolean
  /** The snapshot is a part of a chain: a round, or the full dump at its end. */
  layer?: Layer | undefined
  /** Nobody computes digests: only the sizes of images are compared. Must be what `pack` was told. */
  unchecked?: boolean
  /** About how many bytes will come: the receiver is told before the first image. */
  reserve?: number | undefined
  /** Asks the receiver which pages it has. */
  known?: DedupSender | undefined
}

interface EncodedFrame {
  head: Uint8Array
  bytes: Uint8Array | undefined
}

/** What `frames` gives to `link`. */
export interface EncodedPart {
  readonly frames: readonly EncodedFrame[]
  /** Bytes that are still in CRIU's pipe: how many come in one frame is known when they are taken. */
  readonly pipe?: PipedImage | undefined
  /** What the frames were made of; undefined for those that are of no image. */
  readonly part?: Part
}

/** The header for the next `bytes` bytes of a pipe, which go out by reference. */
export function headOf({ image }: PipedImage, bytes: number): Uint8Array {
  return encodeFrame({ type: 'data', channel: image.channel, offset: image.count(bytes), length: bytes })
}

/** Puts bytes of a pipe into `room`. Returns their header too, and undefined where there is nothing in the pipe. */
export function fillFrame({ image, reader }: PipedImage, room: Uint8Array): Filled | undefined {
  const bytes = reader.take(room)
  if (bytes === 0) return undefined
  const offset = image.add(room.subarray(0, bytes))
  return { head: encodeFrame({ type: 'data', channel: image.channel, offset, length: bytes }), bytes }
}

export class Frames extends Transform {
  /** What the receiver is told first. */
  readonly beginning: EncodedPart

  constructor(options: FramesOptions) {
    super({ objectMode: true })
    this.beginning = { frames: beginning(options).map((frame) => encoded({ frame })) }
    if (this.beginning.frames.length > 0) this.push(this.beginning)
    options.known?.ask((frame) => this.push({ frames: [encoded({ frame })] } satisfies EncodedPart))
  }

  override _transform(part: Part, _encoding: string, done: TransformCallback): void {
    done(null, { frames: part.frames.map(encoded), pipe: part.pipe, part } satisfies EncodedPart)
  }
}

function beginning({ id, until, greeted, layer, unchecked, reserve }: FramesOptions): Frame[] {
  const first: Frame[] = []
  if (!greeted) first.push({ type: 'snapshot', id })
  if (!greeted && until !== undefined) first.push({ type: 'handOver', until })
  if (layer !== undefined) first.push({ type: 'layer', ...layer })
  if (unchecked) first.push({ type: 'unchecked' })
  if (reserve !== undefined) first.push({ type: 'reserve', offset: reserve })
  return first
}

function encoded({ frame, bytes }: OutgoingFrame): EncodedFrame {
  return { head: encodeFrame(frame), bytes }
}

/** Makes frames of parts. The end of the snapshot is the last part that `pack` gives. */
export function frames(options: FramesOptions): Frames {
  return new Frames(options)
}
