/**
 * A chain in memory, flattened as it grows: after each round there is one plan of all pages so far (lib/format/page-runs.ts), and pages that
 * it does not need go back at once. When the last part is here its pagemaps are written anew, and its pages images become lists
 * of ranges in the memory of all rounds. No page is copied.
 *
 * The last part is flattened while the tasks are frozen. So a pagemap is looked through as soon as it is here, while other images still come, and what can wait is
 * left to `settle`. All rounds share one memory, which has whole pages for pages (see memory.ts): else a page that is replaced could not be given back.
 */
import { Fault } from '../fault.ts'
import type { ImageName } from '../format/names.ts'
import { closeRuns, entriesOf, overlay, pageRunsOf, type Range, type Runs, rangesOf } from '../format/page-runs.ts'
import { checkPagemaps, encodePagemap, PAGE_BYTES, PAGEMAP_STEP, readPagemap } from '../format/pagemap.ts'
import { named, pagesName } from './chain-pages.ts'
import { pagemapPattern } from './directory-chain.ts'
import { runInSlices, yieldSometimes } from './in-turns.ts'
import type { MemorySnapshot, MemoryWriter, Place, Places, StoredImage } from './memory.ts'
import { writeInto } from './piece-writer.ts'
import { EXTENT } from './pool.ts'
import { stepsOf } from './stored-image.ts'
import { inventoryIn } from './validate.ts'

export interface ChainMemory {
  /** Takes an image of the part that comes. */
  open(name: ImageName): MemoryWriter
  /**
   * The images in memory are those of a round: its pages lie over those below, and what is not needed any more is given back. Throws `FORMAT`, `LIMIT`, or
   * `MISSING` for a page that is said to be below and is not; then the chain is of no use.
   */
  round(): Promise<void>
  /** They are those of a full dump: they become images that need no round. Throws as `round` does, and `FAILED_DUMP` for a pre-dump. */
  last(): Promise<void>
  /** Gives back what the last part does not need; until then it is merely held. */
  settle(): Promise<void>
  /** Where the pages of all rounds so far lie, between two of them. */
  places(): Iterable<Place>
}

interface Flat {
  pagesId: number
  runs: Runs
}

/** Of a snapshot in which the images of one part after the other arrive. */
export function chainMemory(sink: MemorySnapshot): ChainMemory {
  /** All pages so far, by the name of their pagemap. */
  let below = new Map<ImageName, Flat>()
  /** The same with what has come since, as far as it is looked through; and the pages images that it has. */
  let flat = new Map<ImageName, Flat>()
  let brought = new Set<ImageName>()
  let looking = Promise.resolve()
  let rehearsed = false
  /** Address, pages, address, pages ... */
  const unused: number[] = []
  /** Images that are read: their own memory goes, or is given back page by page from here on. */
  const read: StoredImage[] = []
  const filled: StoredImage[] = []

  function image(name: ImageName): StoredImage | undefined {
    return sink.images.get(name)
  }

  /** Of a pagemap that has come `early`, the pages may come after it: then it waits for the others. */
  function* look({ name, pieces }: StoredImage, early: boolean): Generator<void, void> {
    try {
      const { pagesId, batches } = readPagemap(stepsOf(pieces, PAGEMAP_STEP))
      const pages = pagesName(pagesId)
      if (early && image(pages) === undefined) return
      if (brought.has(pages)) throw new Fault('FORMAT', `its pages are in ${pages}, as those of another pagemap are`)
      brought.add(pages)
      const own = yield* pageRunsOf(batches, ranges(image(pages)), sink.charge)
      const runs = yield* overlay(own, below.get(name)?.runs, (address, pages) => unused.push(address, pages))
      closeRuns(own)
      flat.set(name, { pagesId, runs })
    } catch (error) {
      throw named(name, error)
    }
  }

  function note(image: StoredImage): void {
    if (!pagemapPattern.test(image.name)) return
    looking = looking.then(() => runInSlices(look(image, true)))
    looking.catch(() => {})
  }

  function* fold(): Generator<void, Map<ImageName, Flat>> {
    for (const image of sink.images.values()) {
      if (pagemapPattern.test(image.name) && !flat.has(image.name)) yield* look(image, false)
    }
    for (const [name, { runs }] of below) {
      if (!flat.has(name)) for (const [address, pages] of rangesOf(runs, EXTENT)) unused.push(address, pages)
      closeRuns(runs)
    }
    for (const name of brought) {
      const pages = image(name)
      if (pages !== undefined) filled.push(pages)
    }
    below = flat
    flat = new Map()
    brought = new Set()
    return below
  }

  function check(last: boolean): void {
    const preDump = inventoryIn(sink.images)?.preDump === true
    if (last && preDump) throw new Fault('FAILED_DUMP', 'a pre-dump has pages and no process: it cannot end a chain')
    if (last) checkPagemaps(sink.images.keys())
  }

  function* flattened(): Generator<unknown, void> {
    for (const [name, { pagesId, runs }] of yield* fold()) {
      const old = image(name)
      if (old !== undefined) read.push(old)
      yield* rewrite(name, encodePagemap(pagesId, entriesOf(runs)))
      const size = presentBytes(runs)
      sink.replace({ name: pagesName(pagesId), size, digest: 0n, ...sink.lying(placesOf(runs)) })
    }
  }

  /** What is called for the first time while the tasks are frozen is compiled then. */
  function* rehearseLast(): Generator<void, void> {
    if (rehearsed) return
    rehearsed = true
    for (const { pagesId, runs } of below.values()) {
      presentBytes(runs)
      for (const _ of encodePagemap(pagesId, entriesOf(runs))) yield
    }
  }

  function* rewrite(name: ImageName, parts: Iterable<Buffer>): Generator<void, void> {
    const writer = sink.open(name)
    let size = 0
    for (const part of parts) {
      writeInto(writer, part)
      size += part.length
      yield
    }
    writer.end({ name, size, digest: 0n })
  }

  function* giveBack(): Generator<void, void> {
    for (const image of filled.splice(0)) sink.trim(image)
    for (const image of read.splice(0)) sink.discard(image)
    for (let at = 0; at < unused.length; at += 2) {
      sink.discardPages(unused[at] as number, unused[at + 1] as number)
      yield
    }
    unused.length = 0
  }

  return {
    open(name) {
      const writer = sink.open(name)
      return {
        ...writer,
        end(entry) {
          writer.end(entry)
          note(image(name) as StoredImage)
        },
      }
    },
    async round() {
      check(false)
      await looking
      await runInSlices(fold())
      await runInSlices(rehearseLast())
      const pages = new Set(filled)
      read.push(...[...sink.images.values()].filter((image) => !pages.has(image)))
      await runInSlices(giveBack())
      sink.reopen()
    },
    async last() {
      check(true)
      await looking
      await runInSlices(flattened())
    },
    *places() {
      for (const { runs } of below.values()) yield* placesOf(runs)
    },
    settle: () => yieldSometimes(giveBack()),
  }
}

function* ranges(image: StoredImage | undefined): Generator<Range> {
  if (image === undefined) return
  if (image.size % PAGE_BYTES !== 0)
    throw new Fault('FORMAT', `${image.name} has ${image.size} bytes, which are no pages`)
  for (const { address, window } of image.pieces) yield [Number(address), window.length / PAGE_BYTES]
}

function placesOf(runs: Runs): Places {
  return {
    *[Symbol.iterator]() {
      for (const [address, pages] of rangesOf(runs, EXTENT)) yield [address, pages * PAGE_BYTES]
    },
  }
}

function presentBytes({ count, pages, address }: Runs): number {
  let bytes = 0
  for (let at = 0; at < count; at++) if (address[at] !== 0) bytes += (pages[at] as number) * PAGE_BYTES
  return bytes
}
