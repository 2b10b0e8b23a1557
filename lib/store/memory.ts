/**
 * A snapshot in memory. Large images own whole extents; small ones, which are most, share one: a piece of 1 KiB to
 * begin with, each next one four times as large.
 */

import { setTimeout } from 'node:timers/promises'
import type { ImageEntry } from '../format/list.ts'
import type { ImageName } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { populate } from '../kernel/memory.ts'
import type { ImageSink, ImageWriter } from '../stream/image.ts'
import { EXTENT, type Extent, type Pool } from './pool.ts'

/** Consecutive bytes of an image. */
export interface Piece {
  address: bigint
  window: Uint8Array
  /** They are pages of a process, and whole pages here too: they can be lent and given back by themselves. */
  pages?: true
}

export interface StoredImage extends ImageEntry {
  pieces: Iterable<Piece>
}

export interface MemoryWriter extends ImageWriter {
  wrote(bytes: number): void
  end(entry: ImageEntry): void
}

export interface MemorySnapshot extends ImageSink {
  open(name: ImageName): MemoryWriter
  /** Only complete, verified images. */
  readonly images: ReadonlyMap<ImageName, StoredImage>
  /** Bytes of memory held, unused ends included. */
  readonly held: number
  /** Answers after `patienceMs` at most, and goes on. */
  reserve(bytes: number, patienceMs?: number): Promise<number>
  /** Gives back what only this piece of a complete image holds; it cannot be read again. */
  release(piece: Piece): void
  /** No more images come: what was reserved for them is given back. */
  complete(): void
  /** More images come, those of a chain's next part; what there was is forgotten, but for pages that lie apart. */
  reopen(): void
  /** Takes the place of an image of that name. */
  replace(image: StoredImage): void
  /** Pages that lie in it, at this address of a page and in one extent. */
  pagesAt(address: number, pages: number): Piece
  /** Gives pages back, each once; they cannot be read again. */
  discardPages(address: number, pages: number): void
  /** Gives back the extents that only this image holds. */
  discard(image: StoredImage): void
  /** Gives back what this image did not fill; from here on its pages are nobody's, and are given back one by one. */
  trim(image: StoredImage): void
  /** Gives all memory back. Nothing may read the pieces any more. */
  drop(): void
}

/** Threads that fault memory in; libuv has four. */
const FAULTING = 2
/** How long a sender waits for what it announced; the rest becomes ready while its images come. */
const PATIENCE_MS = 10_000
const FIRST_PIECE = 2 ** 10
/** Images of nothing but pages. */
export const pagesPattern = /^pages-\d+\.img$/
/** An image above this gets extents of its own. */
const LARGEST_SHARED = 64 * 2 ** 10

/**
 * Takes its first extent at once, so that many snapshots of nothing are not for nothing. `apart`: pages of processes lie by themselves, each in a
 * page of ours, so that any of them can be given back. Throws `MEMORY`.
 */
export function memorySnapshot(pool: Pool, apart = false): MemorySnapshot {
  const images = new Map<ImageName, StoredImage>()
  const extents = new Map<number, Extent>()
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

  /** Of the images that come now: what is made ready for them is for no others. */
  let arrival = { open: true }

  function extent(): Extent {
    const taken = ahead.pop() ?? pool.take()
    extents.set(Number(taken.address), taken)
    return taken
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

  function openImage(name: ImageName): MemoryWriter {
    const pieces: Piece[] = []
    const paged = apart && pagesPattern.test(name)
    let next = paged ? PAGE_BYTES : FIRST_PIECE
    let space: Piece | undefined
    let filled = 0
    const close = (): void => {
      if (space !== undefined) {
        const end = Number(space.address) + space.window.length
        if (paged && !owned.has(Number(space.address))) discardBetween(end - space.window.length + filled, end)
        pieces.push(first(space, filled))
      }
      space = undefined
      filled = 0
    }
    return {
      room(wanted) {
        if (space !== undefined && filled === space.window.length) close()
        if (space === undefined) {
          while (next < wanted && next <= LARGEST_SHARED) next *= 4
          space = next > LARGEST_SHARED ? own(extent()) : paged ? carvePages(next) : carve(next)
          next *= 4
        }
        return space.window.subarray(filled)
      },
      wrote(bytes) {
        filled += bytes
      },
      end(entry) {
        close()
        images.set(name, { ...entry, pieces })
      },
    }
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
    get held() {
      let bytes = extents.size * EXTENT
      for (const { holes } of extents.values()) bytes -= (holes?.count ?? 0) * PAGE_BYTES
      return bytes
    },
    release({ address, window, pages }) {
      if (pages) discardPages(Number(address), window.length / PAGE_BYTES)
      else giveOwn(Number(address))
    },
    reopen() {
      images.clear()
      // They lay there.
      for (const { address } of others.splice(1)) giveExtent(Number(address))
      shared = others[0]
      arrival = { open: true }
    },
    replace(image) {
      images.set(image.name, image)
    },
    pagesAt(address, pages) {
      const begin = address - (address % EXTENT)
      const { window } = extents.get(begin) as Extent
      const at = address - begin
      return { address: BigInt(address), window: window.subarray(at, at + pages * PAGE_BYTES), pages: true }
    },
    discardPages,
    discard({ pieces }) {
      for (const { address } of pieces) giveOwn(Number(address))
    },
    trim({ pieces }) {
      for (const { address, window } of pieces) {
        const begin = Number(address)
        if (owned.delete(begin)) discardBetween(begin + window.length, begin + EXTENT)
      }
    },
    drop() {
      giveAhead()
      images.clear()
      for (const taken of extents.values()) pool.give(taken)
      extents.clear()
      owned.clear()
      shared = undefined
    },
  }
}

function first({ address, window }: Piece, bytes: number): Piece {
  return { address, window: window.subarray(0, bytes) }
}

function behind({ address, window }: Piece, bytes: number): Piece {
  return { address: address + BigInt(bytes), window: window.subarray(bytes) }
}
