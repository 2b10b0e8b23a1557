/** Snapshots made up for tests: as a source, as the bytes of a stream, and what a memory sink holds in the end. */

import { Readable, Transform } from 'node:stream'
import { digest } from '../../lib/format/digest.ts'
import { encodeFrame, type Frame } from '../../lib/format/frame.ts'
import { encodeImageList, type ImageEntry } from '../../lib/format/image-list.ts'
import { type ImageName, imageName, type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { type Fd, makePipe } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { Pool } from '../../lib/store/pool.ts'
import { fdLink } from '../../lib/stream/fd-link.ts'
import { frameReader, unexpected } from '../../lib/stream/frames.ts'
import type { ImageSink, ImageSource, OpenImage } from '../../lib/stream/image.ts'
import type { Inlet, Link } from '../../lib/stream/link.ts'
import { duplexLink, readableLink } from '../../lib/stream/node-link.ts'
import { expectEnd, receiveSnapshot } from '../../lib/stream/receive.ts'
import type { Snapshot } from '../../lib/stream/summary.ts'
import { anyFrame } from '../support/any-frame.ts'

export const id: SnapshotId = snapshotId('s1')

export interface Given {
  name: string
  bytes: Uint8Array
  /** How the source holds it. */
  kind: 'pipe' | 'pieces'
  /** Bytes in one piece, or in one write into the pipe. */
  step: number
}

/** The same bytes for the same name and size, different ones for others. */
export function bytesOf(name: string, size: number): Buffer {
  const seed = Buffer.from(name).reduce((sum, byte) => (sum * 31 + byte) | 0, size)
  const bytes = Buffer.alloc(size)
  for (let at = 0, word = seed; at < size; at++) {
    word = (Math.imul(word, 1664525) + 1013904223) | 0
    bytes[at] = word >>> 24
  }
  return bytes
}

export function image(name: string, size: number, kind: Given['kind'] = 'pieces', step = 65536): Given {
  return { name, bytes: bytesOf(name, size), kind, step }
}

export interface TestSource extends ImageSource {
  /** Why `destroy` was called. */
  readonly destroyed: Error | undefined
  /** Settles when nobody writes into a pipe any more. */
  readonly written: Promise<unknown>
}

/** Opens all images at once, as fast as they are taken; throws `failure` after the last, if it is given. */
export function sourceOf(images: readonly Given[], failure?: Error): TestSource {
  let destroyed: Error | undefined
  const writers: Promise<void>[] = []
  async function* open(): AsyncGenerator<OpenImage> {
    for (const given of images) {
      if (destroyed !== undefined) throw destroyed
      const name = given.name as ImageName
      if (given.kind === 'pieces') yield { name, body: { kind: 'pieces', pieces: pieces(given) } }
      else {
        const [out, into] = makePipe()
        // A reader that goes away is the test's subject, not the writer's.
        writers.push(fill(into, given).catch(() => {}))
        yield { name, body: { kind: 'pipe', fd: out } }
      }
    }
    if (failure !== undefined) throw failure
  }
  return {
    images: open(),
    destroy(reason) {
      destroyed ??= reason
    },
    get destroyed() {
      return destroyed
    },
    get written() {
      return Promise.all(writers)
    },
  }
}

function* pieces({ bytes, step }: Given): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += step) yield bytes.subarray(at, at + step)
}

async function fill(into: Fd, given: Given): Promise<void> {
  try {
    for (const piece of pieces(given)) {
      await writeAll(into, piece)
      await new Promise((resolve) => setImmediate(resolve))
    }
  } finally {
    closeFd(into)
  }
}

/** Two ends of a pipe of the kernel, through their descriptors. */
export function pipeLinks(): { from: Link; to: Link } {
  const [out, into] = makePipe()
  return { from: fdLink(into, 'writer'), to: fdLink(out, 'reader') }
}

/** Two ends of a Node stream, which copies what is written, as a socket does: the sender uses its memory again. */
export function streamLinks(): { from: Link; to: Link } {
  const copying = new Transform({ transform: (chunk: Buffer, _encoding, done) => done(null, Buffer.from(chunk)) })
  const link = duplexLink(copying, 'stream')
  return { from: link, to: link }
}

export const pool = new Pool(2 ** 30)

/** Receives what proxy and dump-to-stdout send into a file: one snapshot and nothing after it. */
export async function receive(inlet: Inlet, sink: ImageSink): Promise<Snapshot & { id: SnapshotId }> {
  const reader = frameReader(inlet)
  const first = await reader.expect(anyFrame)
  if (first.type !== 'snapshot') throw unexpected(first)
  const snapshot = await receiveSnapshot(reader, sink)
  await expectEnd(reader)
  return { ...snapshot, id: first.id }
}

/** Receives the bytes of a stream into a new snapshot in memory, which is dropped. */
export async function receiveBytes(
  bytes: Uint8Array,
  sink: MemorySnapshot = new MemorySnapshot(pool),
): Promise<Snapshot> {
  try {
    return await receive(inletOf(bytes), sink)
  } finally {
    sink.drop()
  }
}

/** An inlet that ends after `bytes`, which come `step` at a time. */
export function inletOf(bytes: Uint8Array, step = Math.max(bytes.length, 1)): Inlet {
  const chunks: Uint8Array[] = []
  for (let at = 0; at < bytes.length; at += step) chunks.push(Buffer.from(bytes.subarray(at, at + step)))
  return readableLink(Readable.from(chunks, { objectMode: false }), 'bytes').inlet
}

/** The contents of a snapshot by name, in hex or whole. */
export function contents(snapshot: MemorySnapshot): Map<string, Buffer> {
  return new Map(
    [...snapshot.images].map(([name, { pieces }]) => [name, Buffer.concat([...pieces].map((piece) => piece.window))]),
  )
}

/** A stream out of frames and loose bytes. */
export function stream(...parts: (Frame | Uint8Array)[]): Buffer {
  return Buffer.concat([
    encodePreamble(),
    ...parts.map((part) => (part instanceof Uint8Array ? part : encodeFrame(part))),
  ])
}

/** A data frame and its bytes. */
export function data(channel: number, offset: number, bytes: Uint8Array): Buffer {
  return Buffer.concat([encodeFrame({ type: 'data', channel, offset, length: bytes.length }), bytes])
}

export function entry(name: string, bytes: Uint8Array): ImageEntry {
  return { name: imageName(name), size: bytes.length, digest: sum(bytes) }
}

/** The last frame of a snapshot of these images. */
export function end(...images: ImageEntry[]): Frame {
  return { type: 'snapshotEnd', images, digest: sum(encodeImageList(images)) }
}

function sum(bytes: Uint8Array): bigint {
  const state = digest()
  state.update(bytes)
  return state.finish()
}
