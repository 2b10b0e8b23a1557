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
  /** More images come, those of a chain's next part. */
  reopen(): void
  /** Takes the place of an image of that name. */
  replace(image: StoredImage): void
  /** Pages that lie in it, at this address of a page and in one extent. */
  pagesAt(address: number, pages: number): Piece
  /** Gives pages back, each once; they cannot be read again. */
  discardPages(address: number, pages: number): void
  /** Gives back what only this image holds. */
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

/** Takes its first extent at once, so that many snapshots of nothing are not for nothing. Throws `MEMORY`. */
export function memorySnapshot(pool: Pool): MemorySnapshot {
  const images = new Map<ImageName, StoredImage>()
  const extents = new Map<number, Extent>()
  /** Extents of which a single image has it all. */
  const owned = new Set<number>()
  /** Made ready for what was announced. */
  const ahead: Extent[] = []
  /** Being made ready. They may be used all the same: contents stay. */
  const faulting = new Set<Extent>()
  let shared: Piece | undefined = { ...extent() }

  let open = true

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
    open = false
    pool.spare.delete(giveUp)
    for (const spare of ahead.splice(0)) pool.give(spare)
  }

  function own(taken: Extent): Extent {
    owned.add(Number(taken.address))
    return taken
  }

  function carve(bytes: number, align: number): Piece {
    let before = shared === undefined ? 0 : Number(-shared.address & BigInt(align - 1))
    if (shared === undefined || shared.window.length < before + bytes) {
      shared = { ...extent() }
      before = 0
    }
    const address = shared.address + BigInt(before)
    const piece = { address, window: shared.window.subarray(before, before + bytes) }
    shared = { address: address + BigInt(bytes), window: shared.window.subarray(before + bytes) }
    return piece
  }

  /** Of an image's only holder. */
  function giveOwn(address: number): void {
    const taken = owned.delete(address) ? extents.get(address) : undefined
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
      if (taken !== undefined && taken.holes === undefined && end - at === EXTENT) {
        extents.delete(begin)
        pool.give(taken)
      } else if (taken !== undefined && pool.givePages(taken, (at - begin) / PAGE_BYTES, (end - at) / PAGE_BYTES)) {
        extents.delete(begin)
        pool.give(taken)
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
    // A page of a process is a page here too, so that it can be given back.
    const align = pagesPattern.test(name) ? PAGE_BYTES : 1
    let next = Math.max(FIRST_PIECE, align)
    let space: Piece | undefined
    let filled = 0
    const close = (): void => {
      if (space !== undefined) pieces.push({ address: space.address, window: space.window.subarray(0, filled) })
      space = undefined
      filled = 0
    }
    return {
      room(wanted) {
        if (space !== undefined && filled === space.window.length) close()
        if (space === undefined) {
          while (next < wanted && next <= LARGEST_SHARED) next *= 4
          space = next > LARGEST_SHARED ? own(extent()) : carve(next, align)
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
      if (open) pool.spare.add(giveUp)
      const faultIn = async (): Promise<void> => {
        while (open && ready < bytes) {
          const extent = pool.ahead()
          if (extent === undefined) return
          ready += EXTENT
          faulting.add(extent)
          await populate(extent.address, EXTENT)
          if (!faulting.delete(extent)) continue
          if (open) ahead.push(extent)
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
      open = true
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
      for (const { address, window } of pieces) {
        const begin = Number(address)
        if (owned.has(begin)) giveOwn(begin)
        else discardBetween(begin, begin + window.length)
      }
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
