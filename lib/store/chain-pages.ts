/**
 * One pagemap of a chain of directories, flattened, and its pages, read from the pages images of all layers.
 *
 * The plan is lib/format/chain-plan.ts. It is made twice, for the pagemap and for its pages, because it is cheap and may be long:
 * what is held is a chunk of each layer's pagemap and one piece of pages.
 */
import { closeSync, existsSync, readSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { type PlannedRange, planChain, plannedEntries } from '../format/chain-plan.ts'
import { type ImageName, imageName } from '../format/names.ts'
import { encodePagemap, PAGE_BYTES, type PagemapEntry, presentPages, readPagemap } from '../format/pagemap.ts'
import { MOST_DATA } from '../format/wire.ts'
import { ioFault, openImage } from './directory.ts'

/** So much of a pagemap is read at a time. */
const CHUNK_BYTES = 2 ** 16

export interface ChainPages {
  /** `pages-N.img` of the newest layer. */
  pagesName: ImageName
  pagemap(): Generator<Buffer>
  /** A piece is overwritten when the next one is asked for: fresh memory for each costs as much as reading into it. */
  pages(): Generator<Buffer>
}

interface Layer {
  pagesId: number
  entries: Iterable<PagemapEntry>
  /** Reads `into`, all of it, from that page on. */
  read(into: Buffer, page: number): void
  /** All entries were asked for: throws `FORMAT` unless there are just as many pages. */
  checkSize(): void
}

/** `name` of the first of the directories, with what it has in the others. Throws `MISSING`, `FORMAT`, `LIMIT` or `IO`. */
export function chainPages(directories: readonly string[], name: ImageName): ChainPages {
  const [pagesId = 0] = withLayers(directories.slice(0, 1), name, (layers) => layers.map((layer) => layer.pagesId))
  return {
    pagesName: pagesName(pagesId),
    pagemap: () => withLayers(directories, name, (layers) => encodePagemap(pagesId, plannedEntries(plan(layers)))),
    pages: () => withLayers(directories, name, allPages),
  }
}

/** Only the newest layer is sure to have been read to its end. */
function* allPages(layers: readonly Layer[]): Generator<Buffer> {
  yield* gathered(plan(layers), layers)
  layers[0]?.checkSize()
}

function plan(layers: readonly Layer[]): Generator<PlannedRange> {
  return planChain(layers.map(({ entries }) => entries))
}

/** The pages image that a pagemap names. */
export function pagesName(pagesId: number): ImageName {
  return imageName(`pages-${pagesId}.img`)
}

/** What `work` makes of the layers, which end where a directory has no such pagemap: the process did not exist yet. */
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
    yield* namingAll(join(directories[0] ?? '', name), work(layers))
  } finally {
    for (const fd of opened) closeSync(fd)
  }
}

function openLayer(directory: string, name: ImageName, opened: number[]): Layer {
  const file = join(directory, name)
  const fd = openFile(file, opened)
  const { pagesId, entries } = naming(file, () => readPagemap(chunksOf(fd, file)))
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
    entries: namingAll(file, counted()),
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

/** Fills `into` from there on, or as much of it as there is. */
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

/** The pages of the plan one behind the other, in pieces of a size that is good to write. */
function* gathered(ranges: Iterable<PlannedRange>, layers: readonly Layer[]): Generator<Buffer> {
  const piece = Buffer.allocUnsafeSlow(MOST_DATA)
  let filled = 0
  for (const range of ranges) {
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
}

/** What `read` returns; a Fault of the format says in which file. */
export function naming<Result>(file: string, read: () => Result): Result {
  try {
    return read()
  } catch (error) {
    throw named(file, error)
  }
}

function* namingAll<Item>(file: string, items: Iterable<Item>): Generator<Item> {
  try {
    yield* items
  } catch (error) {
    throw named(file, error)
  }
}

/** A Fault of the format, saying in which file. */
export function named(file: string, error: unknown): unknown {
  const hasName = !(error instanceof Fault) || error.code === 'IO' || error.cause instanceof Fault
  if (hasName) return error
  const { code, message, hint } = error
  return new Fault(code, `${file}: ${message}`, { cause: error, ...(hint !== undefined && { hint }) })
}
