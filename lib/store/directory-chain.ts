/**
 * Reads an incremental dump, whose earlier rounds are in other directories, as if it were a full dump.
 *
 * CRIU leaves a link `parent` in each directory of a chain. The newest directory has everything but some of the pages.
 * Its pagemaps are written anew, its pages images are put together from those of all directories, and its other images
 * are passed on as they are.
 *
 * The plan of a pagemap is lib/format/chain-plan.ts. It is made twice, for the pagemap and for its pages, because it is
 * cheap and may be long: only a chunk of each directory's pagemap and one piece of pages are held.
 */
import { closeSync, existsSync, lstatSync, readlinkSync, readSync, realpathSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { planChain, plannedEntries } from '../format/chain-plan.ts'
import { MOST_DATA } from '../format/frame.ts'
import { decodeInventory } from '../format/inventory.ts'
import { type ImageName, INVENTORY, imageName } from '../format/names.ts'
import {
  checkPagemaps,
  encodePagemap,
  PAGE_BYTES,
  type PagemapEntry,
  presentPages,
  readPagemap,
} from '../format/pagemap.ts'
import type { ImageBody } from '../stream/image.ts'
import { faultBy, ioFault, listImages, openImage, orFault, piecesOf, readImage, unreadable } from './directory.ts'

export const pagemapPattern = /^pagemap-(shmem-)?\d+\.img$/

/** The name of CRIU's link to the directory of the dump before, which has the pages that did not change since. */
const PARENT = 'parent'
/** Bytes of a pagemap that are read at a time. */
const CHUNK_BYTES = 2 ** 16

/** The directory of a dump, then those of its earlier rounds, the newest first. */
export type DirectoryChain = readonly [string, ...string[]]

export interface FlatImage {
  name: ImageName
  body: Extract<ImageBody, { kind: 'pieces' }>
}

/** Follows the links `parent`. Throws `MISSING`, `FORMAT` or `IO`. */
export function chainOf(path: string): DirectoryChain {
  const chain: [string, ...string[]] = [path]
  const seen = new Set([identity(path)])
  for (let next = parentOf(path); next !== undefined; next = parentOf(next)) {
    const found = identity(next)
    if (seen.has(found)) throw new Fault('FORMAT', `the parents of ${path} lead in a circle: ${next} comes twice`)
    seen.add(found)
    chain.push(next)
  }
  return chain
}

/** `parent` is a link, or the directory itself where a chain was copied with `cp -L`. */
function parentOf(path: string): string | undefined {
  const link = join(path, PARENT)
  if (lstatSync(link, { throwIfNoEntry: false }) === undefined) return undefined
  return orFault(
    () => realpathSync(link),
    (cause) => {
      const what = `the parent of ${path}, ${readlinkSync(link)}, cannot be read`
      return faultBy('MISSING', what, 'the directories of a chain are moved together')(cause)
    },
  )
}

function identity(path: string): string {
  const found = orFault(() => statSync(path), unreadable(path))
  if (!found.isDirectory()) throw new Fault('MISSING', `${path} is not a directory`)
  return `${found.dev}:${found.ino}`
}

/**
 * The images of the newest dump of a chain, with all its pages. Throws `MISSING`, `FAILED_DUMP`, `FORMAT`, `LIMIT` or
 * `IO`.
 */
export function flatImages(chain: DirectoryChain): Iterable<FlatImage> {
  const names = listImages(chain[0])
  for (const directory of chain) checkInventory(directory, directory === chain[0])
  checkPagemaps(names, ` in ${chain[0]}`)
  return flattened(chain, names)
}

/** A directory that a page server has filled has no inventory, and is a parent all the same. */
function checkInventory(directory: string, newest: boolean): void {
  const file = join(directory, INVENTORY)
  if (!newest && !existsSync(file)) return
  const { preDump } = orFault(() => decodeInventory(readImage(file)), faultIn(file))
  if (newest && preDump) {
    throw new Fault('FAILED_DUMP', `${directory} is a pre-dump: it has pages, and no process`, {
      hint: 'name the directory of the dump that came after it',
    })
  }
}

/** Yields images in the order of `names`. Pagemaps come before pages there, and each brings its pages image itself. */
function* flattened(chain: DirectoryChain, names: readonly ImageName[]): Generator<FlatImage> {
  const brought = new Set<ImageName>()
  for (const name of names) {
    if (brought.has(name)) continue
    if (!pagemapPattern.test(name)) {
      yield { name, body: { kind: 'pieces', pieces: piecesOf(join(chain[0], name)) } }
      continue
    }
    const [pagesId = 0] = withLayers([chain[0]], name, (layers) => layers.map((layer) => layer.pagesId))
    const pages = pagesName(pagesId)
    if (brought.has(pages)) {
      throw new Fault('FORMAT', `${join(chain[0], name)} has its pages in ${pages}, as another pagemap has`)
    }
    brought.add(pages)
    const pagemap = withLayers(chain, name, (layers) => encodePagemap(pagesId, plannedEntries(planChain(layers))))
    yield { name, body: { kind: 'pieces', pieces: pagemap } }
    yield { name: pages, body: { kind: 'pieces', pieces: withLayers(chain, name, allPages) } }
  }
}

/** The pages image that a pagemap names. */
export function pagesName(pagesId: number): ImageName {
  return imageName(`pages-${pagesId}.img`)
}

/** A pagemap in one directory of a chain, and its pages. */
interface Layer extends Iterable<PagemapEntry> {
  pagesId: number
  /** Fills `into` with pages from that page on. Throws `FORMAT` where they are not there. */
  read(into: Buffer, page: number): void
  /** After the last entry: throws `FORMAT` unless there are just as many pages. */
  checkSize(): void
}

/**
 * Opens the pagemap `name` in each directory and yields what `work` makes of them. They end at the first directory that
 * has none: the process did not exist yet.
 */
function* withLayers<Made>(
  directories: readonly string[],
  name: ImageName,
  work: (layers: readonly Layer[]) => Iterable<Made>,
): Generator<Made> {
  const opened: number[] = []
  const layers: Layer[] = []
  try {
    for (const directory of directories) {
      if (!existsSync(join(directory, name))) break
      layers.push(openLayer(directory, name, opened))
    }
    yield* readingItems(join(directories[0] ?? '', name), work(layers))
  } finally {
    for (const fd of opened) closeSync(fd)
  }
}

function openLayer(directory: string, name: ImageName, opened: number[]): Layer {
  const file = join(directory, name)
  const fd = openFile(file, opened)
  const { pagesId, entries } = orFault(() => readPagemap(chunksOf(fd, file)), faultIn(file))
  const pages = join(directory, pagesName(pagesId))
  let pagesFd: number | undefined
  let count = 0
  function* counted(): Generator<PagemapEntry> {
    for (const entry of entries) {
      count += presentPages(entry)
      yield entry
    }
  }
  return {
    pagesId,
    [Symbol.iterator]: () => readingItems(file, counted()),
    checkSize() {
      const bytes = statSync(pages, { throwIfNoEntry: false })?.size ?? 0
      if (bytes === count * PAGE_BYTES) return
      throw new Fault('FORMAT', `${pages} has ${bytes} bytes for ${count} pages`, {
        hint: `it was changed, or made where a page is not ${PAGE_BYTES} bytes`,
      })
    },
    read(into, page) {
      pagesFd ??= openFile(pages, opened)
      const bytes = readAt(pagesFd, pages, into, page * PAGE_BYTES)
      if (bytes === into.length) return
      throw new Fault('FORMAT', `${pages} is cut off: page ${page + Math.floor(bytes / PAGE_BYTES)} is not there`)
    },
  }
}

/**
 * Yields the pages of the plan one behind the other, in pieces of a size that is good to write. A piece is overwritten
 * when the next one is asked for: fresh memory for each costs as much as reading into it.
 */
function* allPages(layers: readonly Layer[]): Generator<Buffer> {
  const piece = Buffer.allocUnsafeSlow(MOST_DATA)
  let filled = 0
  for (const range of planChain(layers)) {
    for (let page = 0; page < presentPages(range); ) {
      const pages = Math.min(range.pages - page, (MOST_DATA - filled) / PAGE_BYTES)
      const end = filled + pages * PAGE_BYTES
      layers[range.layer]?.read(piece.subarray(filled, end), range.offset + page)
      page += pages
      filled = end
      if (filled < MOST_DATA) continue
      yield piece
      filled = 0
    }
  }
  if (filled > 0) yield piece.subarray(0, filled)
  // Only the newest layer is sure to have been read to its end.
  layers[0]?.checkSize()
}

function openFile(file: string, opened: number[]): number {
  const fd = openImage(file)
  opened.push(fd)
  return fd
}

function* chunksOf(fd: number, file: string): Generator<Buffer> {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES)
  for (let at = 0; ; ) {
    const bytes = readAt(fd, file, chunk, at)
    if (bytes === 0) return
    yield chunk.subarray(0, bytes)
    at += bytes
  }
}

/** Fills `into` from `position` on, as far as the file goes. Returns how many bytes were there. Throws `IO`. */
function readAt(fd: number, file: string, into: Buffer, position: number): number {
  try {
    for (let done = 0; ; ) {
      const bytes = readSync(fd, into, done, into.length - done, position + done)
      done += bytes
      if (bytes === 0 || done === into.length) return done
    }
  } catch (cause) {
    return ioFault(file)(cause)
  }
}

function* readingItems<Item>(file: string, items: Iterable<Item>): Generator<Item> {
  try {
    yield* items
  } catch (error) {
    throw faultIn(file)(error)
  }
}

/** Returns a function that returns the error it gets. A Fault of the format becomes one that names the file. */
export function faultIn(file: string): (error: unknown) => unknown {
  return (error) => {
    const hasName = !(error instanceof Fault) || error.code === 'IO' || error.cause instanceof Fault
    if (hasName) return error
    const { code, message, hint } = error
    return new Fault(code, `${file}: ${message}`, { cause: error, ...(hint !== undefined && { hint }) })
  }
}
