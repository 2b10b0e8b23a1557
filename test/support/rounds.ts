/** The parts of a chain as images in memory, made up or read from directories. */

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../../lib/fault.ts'
import type { Until, Verdict } from '../../lib/format/enums.ts'
import type { Layer } from '../../lib/format/frame.ts'
import { type ImageName, INVENTORY, imageName, snapshotId } from '../../lib/format/names.ts'
import { encodePagemap, PAGE_BYTES, type PagemapEntry, pageFlag, readPagemap } from '../../lib/format/pagemap.ts'
import type { MemorySnapshot } from '../../lib/store/memory.ts'
import { writeInto } from '../../lib/store/stored-image.ts'
import { DedupSender } from '../../lib/stream/dedup-send.ts'
import { connectEndpoint } from '../../lib/stream/endpoint.ts'
import { frameReader, frameWriter } from '../../lib/stream/frames.ts'
import type { ImageSource, OpenImage } from '../../lib/stream/image.ts'
import { sendSnapshot } from '../../lib/stream/send.ts'
import { anyFrame } from './any-frame.ts'
import { fixtures } from './run.ts'

/** Page number, pages, flags. */
export type Brief = [page: number, pages: number, flags: number]
export type Images = Record<string, Buffer>

export const inventory = readFileSync(join(fixtures, 'images', 'inventory.img'))
export const token = Buffer.alloc(16, 0xa5)

export function pagemap(pagesId: number, briefs: readonly Brief[]): Buffer {
  const entries = briefs.map(([page, pages, flags]): PagemapEntry => ({ vaddr: page * PAGE_BYTES, pages, flags }))
  return Buffer.concat([...encodePagemap(pagesId, entries)])
}

/** A process with these pages, each of which says `word` and its number. */
export function part(word: string, briefs: readonly Brief[], pagesId = 1): Images {
  const pages = briefs.flatMap(([first, count, flags]) =>
    (flags & pageFlag.present) === 0 ? [] : Array.from({ length: count }, (_, at) => pageOf(word, first + at)),
  )
  return { 'pagemap-7.img': pagemap(pagesId, briefs), [`pages-${pagesId}.img`]: Buffer.concat(pages) }
}

export function pageOf(word: string, number: number): Buffer {
  return Buffer.alloc(PAGE_BYTES, `${word} ${number} `)
}

/** Writes them into a new directory. */
export function putInto(directory: string, images: Images): string {
  mkdirSync(directory, { recursive: true })
  for (const [name, bytes] of Object.entries(images)) writeFileSync(join(directory, name), bytes)
  return directory
}

/** As a receiver does. */
export function put(sink: Pick<MemorySnapshot, 'open'>, images: Images): void {
  for (const [name, bytes] of Object.entries(images)) {
    const writer = sink.open(imageName(name))
    writeInto(writer, bytes)
    writer.end({ name: imageName(name), size: bytes.length, digest: 0n })
  }
}

export function imagesIn(directory: string): Images {
  const names = readdirSync(directory).filter((name) => name.endsWith('.img'))
  return Object.fromEntries(names.map((name) => [name, readFileSync(join(directory, name))]))
}

export function bytesIn({ images }: Pick<MemorySnapshot, 'images'>, name: string): Buffer {
  return Buffer.concat([...(images.get(name as ImageName)?.pieces ?? [])].map(({ window }) => window))
}

/** The pages of a process of these images by their numbers: what they say, or that they have no bytes. */
export function pagesOf(
  snapshot: Pick<MemorySnapshot, 'images'>,
  name = 'pagemap-7.img',
): Map<number, Buffer | 'lazy'> {
  const { pagesId, entries } = readPagemap([bytesIn(snapshot, name)])
  const bytes = bytesIn(snapshot, `pages-${pagesId}.img`)
  const found = new Map<number, Buffer | 'lazy'>()
  let offset = 0
  for (const { vaddr, pages, flags } of entries) {
    for (let at = 0; at < pages; at++) {
      const present = (flags & pageFlag.present) !== 0
      found.set(vaddr / PAGE_BYTES + at, present ? bytes.subarray(offset, offset + PAGE_BYTES) : 'lazy')
      if (present) offset += PAGE_BYTES
    }
  }
  if (offset !== bytes.length) throw new Error(`${bytes.length} bytes for ${offset}`)
  return found
}

/** The images that lie in a directory, as they are: what it has in a parent is not in them. */
function sourceOf(directory: string, between?: () => Promise<void>, ready?: Promise<void>): ImageSource {
  const images = Object.entries(imagesIn(directory)).sort(
    ([a], [b]) => Number(a === INVENTORY) - Number(b === INVENTORY),
  )
  return {
    images: (async function* (): AsyncGenerator<OpenImage> {
      await ready
      for (const [name, bytes] of images) {
        yield { name: imageName(name), body: { kind: 'pieces', pieces: [bytes] } }
        await between?.()
      }
    })(),
    destroy() {},
  }
}

/**
 * Sends one part of a chain, or a plain snapshot, without what the cache has if that is to be `known`, to a cache at
 * that port, and waits until it is sealed, or, as a hand-over, until it is kept. Throws the refusal.
 */
export async function sendPart(
  port: string,
  id: string,
  directory: string,
  layer?: Layer,
  until?: Until,
  between?: () => Promise<void>,
  known?: DedupSender,
  verdict: Verdict = 'go',
): Promise<void> {
  const { signal } = new AbortController()
  const link = await connectEndpoint({ kind: 'tcp', host: '127.0.0.1', port: Number(port) }, 5000, signal)
  try {
    const reader = frameReader(link.inlet)
    const writer = frameWriter(link.outlet)
    const sending = sendSnapshot(writer, snapshotId(id), sourceOf(directory, between, known?.ready), {
      known,
      layer,
      until,
      reserve: 4096,
    })
    sending.catch(() => {})
    for (;;) {
      const frame = await reader.expect(anyFrame)
      if (frame.type === 'refused') throw new Fault(frame.code, frame.reason)
      if (frame.type === 'recalled') known?.take(frame)
      if (frame.type === 'fate' && frame.fate === 'stored') return
      if (frame.type !== 'sealed') continue
      if (frame.digest !== (await sending).digest) throw new Error('another digest')
      if (until === undefined) return
      await writer.send({ type: 'verdict', verdict, token, id: snapshotId(id) })
    }
  } finally {
    link.destroy()
  }
}

/**
 * Sends the directories of a chain, the oldest first, each as a round and the newest as the last; with `dedup` returns
 * the bytes that each did without.
 */
export async function sendChain(
  port: string,
  id: string,
  directories: readonly string[],
  between?: () => Promise<void>,
  dedup = false,
): Promise<number[]> {
  const spared: number[] = []
  for (const [under, directory] of directories.entries()) {
    const known = dedup ? new DedupSender(() => {}) : undefined
    const layer = { under, last: under === directories.length - 1, token }
    await sendPart(port, id, directory, layer, undefined, between, known)
    spared.push(known?.spared ?? 0)
  }
  return spared
}
