/**
 * A chain in memory, flattened as it grows.
 *
 * After each round there is one plan of all pages so far (lib/format/page-runs.ts), and pages that the plan does not
 * need go back at once. When the last part is here its pagemaps are written anew, and its pages images become lists of
 * ranges in the memory of all rounds. No page is copied. All rounds share one memory in which pages lie apart (see
 * memory.ts), because a page that is replaced could not be given back otherwise.
 *
 * The last part is flattened while the tasks are frozen. So a pagemap is read as soon as it is here, while other images
 * still come, and memory is given back afterwards, by `settle`.
 */
import { Fault } from '../fault.ts'
import type { ImageEntry } from '../format/image-list.ts'
import type { ImageName } from '../format/names.ts'
import { closeRuns, entriesOf, overlay, pageRunsOf, type Range, type Runs, rangesOf } from '../format/page-runs.ts'
import { checkPagemaps, encodePagemap, PAGE_BYTES, PAGEMAP_STEP, readPagemap } from '../format/pagemap.ts'
import { faultIn, pagemapPattern, pagesName } from './directory-chain.ts'
import type { MemorySnapshot } from './memory.ts'
import { EXTENT } from './pool.ts'
import { type MemoryWriter, type Places, piecesAt, type StoredImage, stepsOf, writeInto } from './stored-image.ts'
import { runInBackground, runInSlices } from './time-slices.ts'
import { inventoryIn } from './validate.ts'

/** Pagemaps, flattened. */
type FlatPagemaps = Map<ImageName, { pagesId: number; runs: Runs }>

export class ChainMemory {
  readonly #sink: MemorySnapshot
  /** The pages of all rounds so far, by the name of their pagemap. */
  #below: FlatPagemaps = new Map()
  /** The pages of all rounds with the part that comes, for each of its pagemaps that was read. */
  #flat: FlatPagemaps = new Map()
  /** The pages images of these pagemaps. */
  #brought = new Set<ImageName>()
  /** Pagemaps that are read while other images come, one after the other. */
  #reading = Promise.resolve()
  /** Whether the code that `last` runs was warmed up. */
  #warm = false
  /** Pages that are not needed any more: address, pages, address, pages ... */
  readonly #unused: number[] = []
  /** Images that were read, and are not needed any more. */
  readonly #read: StoredImage[] = []
  /** Pages images whose memory is given back page by page from now on. */
  readonly #pages: StoredImage[] = []

  /** The images of one part after the other come into `sink`. */
  constructor(sink: MemorySnapshot) {
    this.#sink = sink
  }

  /** Begins an image of the part that comes. Throws as `MemorySnapshot.open` does. */
  open(name: ImageName): MemoryWriter {
    return this.#sink.open(name, (image) => this.#readEarly(image))
  }

  /**
   * The images in memory are those of a round: lays its pages over those below, and gives back what is not needed any
   * more. Throws `FORMAT`, `LIMIT`, or `MISSING` for a page that should be below and is not. The chain is of no use
   * then.
   */
  async round(): Promise<void> {
    inventoryIn(this.#sink.images)
    await this.#reading
    await runInSlices(this.#fold())
    await runInSlices(this.#warmUp())
    const pages = new Set(this.#pages)
    this.#read.push(...[...this.#sink.images.values()].filter((image) => !pages.has(image)))
    await runInSlices(this.#giveBack())
    this.#sink.reopen()
  }

  /**
   * The images in memory are those of a full dump: they become images that need no round. Throws as `round` does, and
   * `FAILED_DUMP` for a pre-dump.
   */
  async last(): Promise<void> {
    if (inventoryIn(this.#sink.images)?.preDump === true) {
      throw new Fault('FAILED_DUMP', 'a pre-dump has pages and no process: it cannot end a chain')
    }
    checkPagemaps(this.#sink.images.keys())
    await this.#reading
    await runInSlices(this.#flatten())
  }

  /** Gives back what the last part does not need, in the background. */
  settle(): Promise<void> {
    return runInBackground(this.#giveBack())
  }

  /** Where the pages of all rounds so far lie, between two of them. */
  *places(): Places {
    for (const { runs } of this.#below.values()) yield* placesOf(runs)
  }

  #readEarly(image: StoredImage): void {
    if (!pagemapPattern.test(image.name)) return
    this.#reading = this.#reading.then(() => runInSlices(this.#overlay(image, true)))
    this.#reading.catch(() => {})
  }

  /** Lays a pagemap of this part over that below. One that came `early` waits if its pages are not here yet. */
  *#overlay({ name, pieces }: StoredImage, early: boolean): Generator<void, void> {
    try {
      const { pagesId, batches } = readPagemap(stepsOf(pieces, PAGEMAP_STEP))
      const pages = pagesName(pagesId)
      const image = this.#sink.images.get(pages)
      if (early && image === undefined) return
      if (this.#brought.has(pages)) {
        throw new Fault('FORMAT', `its pages are in ${pages}, as those of another pagemap are`)
      }
      this.#brought.add(pages)
      const own = yield* pageRunsOf(batches, rangesIn(image), (bytes) => this.#sink.charges.add(bytes))
      const unused = (address: number, pages: number): void => void this.#unused.push(address, pages)
      const runs = yield* overlay(own, this.#below.get(name)?.runs, unused)
      closeRuns(own)
      this.#flat.set(name, { pagesId, runs })
    } catch (error) {
      throw faultIn(name)(error)
    }
  }

  /** Replaces the pages of all rounds so far with those of this part, and those below that it needs. */
  *#fold(): Generator<void, FlatPagemaps> {
    for (const image of this.#sink.images.values()) {
      if (pagemapPattern.test(image.name) && !this.#flat.has(image.name)) yield* this.#overlay(image, false)
    }
    for (const [name, { runs }] of this.#below) {
      if (!this.#flat.has(name)) {
        for (const [address, pages] of rangesOf(runs, EXTENT)) this.#unused.push(address, pages)
      }
      closeRuns(runs)
    }
    for (const name of this.#brought) {
      const pages = this.#sink.images.get(name)
      if (pages !== undefined) this.#pages.push(pages)
    }
    this.#below = this.#flat
    this.#flat = new Map()
    this.#brought = new Set()
    return this.#below
  }

  *#flatten(): Generator<unknown, void> {
    for (const [name, { pagesId, runs }] of yield* this.#fold()) {
      const old = this.#sink.images.get(name)
      if (old !== undefined) this.#read.push(old)
      const writer = this.#sink.open(name)
      let size = 0
      for (const part of encodePagemap(pagesId, entriesOf(runs))) {
        writeInto(writer, part)
        size += part.length
        yield
      }
      writer.end({ name, size, digest: 0n })
      const entry: ImageEntry = { name: pagesName(pagesId), size: presentBytes(runs), digest: 0n }
      this.#sink.replace({ ...entry, ...piecesAt(this.#sink.pool, placesOf(runs)) })
    }
  }

  /** Runs what `last` runs, once: code that is first called while the tasks are frozen is compiled while they are. */
  *#warmUp(): Generator<void, void> {
    if (this.#warm) return
    this.#warm = true
    for (const { pagesId, runs } of this.#below.values()) {
      presentBytes(runs)
      for (const _ of encodePagemap(pagesId, entriesOf(runs))) yield
    }
  }

  *#giveBack(): Generator<void, void> {
    for (const image of this.#pages.splice(0)) this.#sink.disown(image)
    for (const image of this.#read.splice(0)) this.#sink.discard(image)
    const unused = this.#unused
    for (let at = 0; at < unused.length; at += 2) {
      this.#sink.discardPages(unused[at] as number, unused[at + 1] as number)
      yield
    }
    unused.length = 0
  }
}

/** Where the pages of a pages image lie. Throws `FORMAT` where they are no whole pages. */
function* rangesIn(image: StoredImage | undefined): Generator<Range> {
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
