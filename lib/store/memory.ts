/**
 * A snapshot in memory. Large images own whole extents; small ones, which are most, share one: a piece of 1 KiB to
 * begin with, each next one four times as large.
 */

import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import type { ImageEntry } from '../format/image-list.ts'
import type { ImageName } from '../format/names.ts'
import { PAGE_BYTES, pagesPattern } from '../format/pagemap.ts'
import { populate } from '../kernel/mapped-memory.ts'
import type { ImageSink } from '../stream/image.ts'
import { openAccount, payForImages } from './accounting.ts'
import { openPageRanges, type PageRanges } from './page-ranges.ts'
import { lying, pageWriter } from './page-writer.ts'
import { behind, first, pieceWriter } from './piece-writer.ts'
import { EXTENT, type Extent, heldIn, type Pool } from './pool.ts'
import { makeReadOnly } from './read-only.ts'
import type { MemoryWriter, Piece, Places, StoredImage } from './stored-image.ts'

export type { MemoryWriter, Piece, Place, Places, StoredImage } from './stored-image.ts'

export interface MemorySnapshot extends ImageSink {
  open(name: ImageName): MemoryWriter
  /** Only complete, verified images. */
  readonly images: ReadonlyMap<ImageName, StoredImage>
  /** Bytes of memory held, unused ends and what was charged included; after `drop` what others still need of it. */
  readonly held: number
  /** Bytes that it needs of others, or more than once of its own. */
  readonly shared: number
  /** Answers after `patienceMs` at most, and goes on. */
  reserve(bytes: number, patienceMs?: number): Promise<number>
  /** Gives back what only this piece of a complete image holds; it cannot be read again. */
  release(piece: Piece): void
  /** No more images come: what was reserved for them is given back. */
  complete(): void
  /** Nobody can write into its memory any more when this has come to its end. After `complete`. */
  protect(): Generator<void, void>
  /** More images come, those of a chain's next part; what there was is forgotten, but for pages that lie apart. */
  reopen(): void
  /** Takes the place of an image of that name. */
  replace(image: StoredImage): void
  /** An image of pages that are here, in the parts of a chain. */
  lying(places: Places): Pick<StoredImage, 'pieces' | 'places'>
  /** Counts what is kept of it elsewhere, until `drop`. Throws as `Charges.add` does. */
  charge(bytes: number): void
  /** Gives pages back, each once; they cannot be read again. */
  discardPages(address: number, pages: number): void
  /** Gives back the extents that only this image holds. */
  discard(image: StoredImage): void
  /** From here on its pages are nobody's, and are given back one by one. */
  trim(image: StoredImage): void
  /**
   * Gives all memory back. Nothing may read the pieces any more. Writers throw `ABORTED` from now on; where bytes come just now
   * is nobody else's until they are there, or until this is called again: then no more come.
   */
  drop(): void
}

/** Threads that fault memory in; libuv has four. */
const FAULTING = 2
/** How long a sender waits for what it announced; the rest becomes ready while its images come. */
const PATIENCE_MS = 10_000
const FIRST_PIECE = 2 ** 10
/** An image above this gets extents of its own. */
const LARGEST_SHARED = 64 * 2 ** 10

/**
 * Takes its first extent at once, so that many snapshots of nothing are not for nothing. `apart`: pages of processes lie by themselves, each in a
 * page of ours, so that any of them can be given back. Throws `MEMORY`.
 */
export function memorySnapshot(pool: Pool, apart = false): MemorySnapshot {
  const images = new Map<ImageName, StoredImage>()
  const extents = new Map<number, Extent>()
  let dropped = false
  /** Extents of which a single image has it all. */
  const owned = new Set<number>()
  /** Made ready for what was announced. */
  const ahead: Extent[] = []
  /** Being made ready. They may be used all the same: contents stay. */
  const faulting = new Set<Extent>()
  let shared: Piece | undefined = { ...extent() }
  /** The same for pages that lie apart, and the extents of what does not. */
  let sharedPages: Piece | undefined
  const others: Piece[] = [shared]

  /** Given, while others may need pages of them. */
  const left = new Set<Extent>()
  /** Pages that we need of others, or once more of our own: until we drop all. */
  const needed = openPageRanges(pool)
  const lists = new Set<PageRanges>()
  const charges = openAccount(pool)
  /** On JavaScript's heap. */
  const known = openAccount({ charge: (bytes) => pool.charge(bytes, true) })
  const pay = payForImages(known)

  /** Where bytes come just now: who drops us from outside cannot stop that at once. */
  let lent: Extent | undefined
  let returned = (): void => {}

  /** Of the images that come now: what is made ready for them is for no others. */
  let arrival = { open: true }

  function extent(): Extent {
    const taken = ahead.pop() ?? pool.take()
    // Whoever had to give way for it may have been this very snapshot.
    if (dropped) pool.give(taken)
    alive()
    extents.set(Number(taken.address), taken)
    return taken
  }

  function alive(): void {
    if (dropped) throw new Fault('ABORTED', 'the snapshot was dropped')
  }

  function closeLists(): void {
    for (const ranges of lists) ranges.close()
    lists.clear()
  }

  function giveUp(): Extent | undefined {
    const extent = ahead.pop() ?? faulting.values().next().value
    if (extent !== undefined) faulting.delete(extent)
    return extent
  }

  function giveAhead(): void {
    arrival.open = false
    pool.spare.delete(giveUp)
    for (const spare of ahead.splice(0)) pool.give(spare)
  }

  function own(taken: Extent): Extent {
    owned.add(Number(taken.address))
    return taken
  }

  function carve(bytes: number): Piece {
    if (shared === undefined || shared.window.length < bytes) {
      shared = { ...extent() }
      others.push(shared)
    }
    const piece = first(shared, bytes)
    shared = behind(shared, bytes)
    return piece
  }

  function carvePages(bytes: number): Piece {
    if (sharedPages === undefined || sharedPages.window.length < bytes) sharedPages = { ...extent() }
    const piece = first(sharedPages, bytes)
    sharedPages = behind(sharedPages, bytes)
    return piece
  }

  /** Of an image's only holder. */
  function giveOwn(address: number): void {
    if (owned.delete(address)) giveExtent(address)
  }

  function giveExtent(address: number): void {
    const taken = extents.get(address)
    if (taken === undefined) return
    extents.delete(address)
    give(taken)
  }

  function give(taken: Extent): void {
    if (taken.sharing !== undefined) left.add(taken)
    pool.give(taken)
  }

  /** Each is known by its extent's holes: what was given back stays so. */
  function discardPages(address: number, pages: number): void {
    for (let at = address; at < address + pages * PAGE_BYTES; ) {
      const begin = at - (at % EXTENT)
      const end = Math.min(begin + EXTENT, address + pages * PAGE_BYTES)
      const taken = extents.get(begin)
      const whole = taken?.holes === undefined && end - at === EXTENT
      if (taken !== undefined && (whole || pool.givePages(taken, (at - begin) / PAGE_BYTES, (end - at) / PAGE_BYTES))) {
        giveExtent(begin)
      }
      at = end
    }
  }

  /** The whole pages between two addresses. */
  function discardBetween(begin: number, end: number): void {
    const first = Math.ceil(begin / PAGE_BYTES)
    const pages = Math.floor(end / PAGE_BYTES) - first
    if (pages > 0) discardPages(first * PAGE_BYTES, pages)
  }

  /** Nothing comes behind the first `filled` bytes of a space: of a tree of small processes that is most of the memory. */
  function leave({ address, window }: Piece, filled: number): void {
    discardBetween(Number(address) + filled, Number(address) + window.length)
  }

  /** Each next one is larger. */
  function spaces(first: number, carve: (bytes: number) => Piece): (wanted: number) => Piece {
    let next = first
    return (wanted) => {
      while (next < wanted && next <= LARGEST_SHARED) next *= 4
      const bytes = next
      next *= 4
      return bytes > LARGEST_SHARED ? own(extent()) : carve(bytes)
    }
  }

  /** What `make` makes of a way to get space: nothing goes into memory that is not ours any more. */
  function guarded(give: (wanted: number) => Piece, make: (space: typeof give) => MemoryWriter): MemoryWriter {
    let extent: Extent | undefined
    const writer = make((wanted) => {
      const space = give(wanted)
      extent = pool.at(Number(space.address))
      return space
    })
    return {
      ...writer,
      room(wanted) {
        alive()
        const room = writer.room(wanted)
        lent = extent
        return room
      },
      wrote(bytes) {
        lent = undefined
        returned()
        alive()
        writer.wrote(bytes)
      },
      end(entry) {
        alive()
        writer.end(entry)
      },
    }
  }

  function openPages(name: ImageName): MemoryWriter {
    const ranges = openPageRanges(pool)
    lists.add(ranges)
    const share = (address: number, pages: number): void => {
      alive()
      pool.share(address, pages)
      try {
        needed.add(address, pages * PAGE_BYTES)
      } catch (error) {
        pool.unshare([[address, pages * PAGE_BYTES]])
        throw error
      }
    }
    const end = (image: StoredImage): void => void images.set(name, image)
    return guarded(spaces(PAGE_BYTES, carvePages), (space) =>
      pageWriter(name, pool, ranges, { space, leave, share, end }),
    )
  }

  function openImage(name: ImageName): MemoryWriter {
    alive()
    const withPages = apart && pagesPattern.test(name)
    pay.opened(withPages)
    if (withPages) return openPages(name)
    const end = (entry: ImageEntry, pieces: Piece[]): void => {
      images.set(name, { ...entry, pieces })
      const last = pieces.at(-1)
      const extent = owned.has(Number(last?.address)) && extents.get(Number(last?.address))
      if (last && extent) leave(extent, last.window.length)
    }
    return guarded(spaces(FIRST_PIECE, carve), (space) => pieceWriter(space, end))
  }

  return {
    images,
    open: openImage,
    async reserve(bytes, patienceMs = PATIENCE_MS) {
      let ready = 0
      const mine = arrival
      if (mine.open) pool.spare.add(giveUp)
      const faultIn = async (): Promise<void> => {
        while (mine.open && ready < bytes) {
          const extent = pool.ahead()
          if (extent === undefined) return
          ready += EXTENT
          faulting.add(extent)
          await populate(extent.address, EXTENT)
          if (!faulting.delete(extent)) continue
          if (mine.open) ahead.push(extent)
          else pool.give(extent)
        }
      }
      const all = Promise.all(Array.from({ length: FAULTING }, faultIn))
      await Promise.race([all, setTimeout(patienceMs, undefined, { ref: false })])
      return Math.min(ready, bytes)
    },
    complete: giveAhead,
    protect: () => makeReadOnly(extents.values()),
    get held() {
      let bytes = charges.bytes + known.bytes
      for (const extent of extents.values()) bytes += heldIn(extent)
      for (const extent of left) {
        const still = heldIn(extent)
        if (still === 0) left.delete(extent)
        bytes += still
      }
      return bytes
    },
    get shared() {
      return needed.bytes
    },
    release({ address, window, pages }) {
      if (pages) discardPages(Number(address), window.length / PAGE_BYTES)
      else giveOwn(Number(address))
    },
    reopen() {
      images.clear()
      pay.forgotten()
      closeLists()
      // They lay there.
      for (const { address } of others.splice(1)) giveExtent(Number(address))
      shared = others[0]
      arrival = { open: true }
    },
    replace(image) {
      images.set(image.name, image)
    },
    lying: (places) => lying(pool, places),
    charge: charges.add,
    discardPages,
    discard({ pieces, spaces }) {
      for (const { address } of spaces ?? pieces) giveOwn(Number(address))
    },
    trim({ pieces, spaces }) {
      for (const { address } of spaces ?? pieces) owned.delete(Number(address))
    },
    drop() {
      if (dropped) return returned()
      dropped = true
      if (lent !== undefined) {
        lent.lent = new Promise((resolve) => {
          returned = resolve
        })
      }
      giveAhead()
      images.clear()
      for (const taken of extents.values()) give(taken)
      extents.clear()
      owned.clear()
      shared = undefined
      pool.unshare(needed)
      needed.close()
      charges.close()
      known.close()
      closeLists()
    },
  }
}
