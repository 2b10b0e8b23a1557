/**
 * A snapshot in memory. Large images own whole extents; small ones, which are most, share one: a piece of 1 KiB to
 * begin with, each next one four times as large.
 */

import { setTimeout } from 'node:timers/promises'
import type { ImageEntry } from '../format/list.ts'
import type { ImageName } from '../format/names.ts'
import { populate } from '../kernel/memory.ts'
import type { ImageSink, ImageWriter } from '../stream/image.ts'
import { EXTENT, type Extent, type Pool } from './pool.ts'

/** Consecutive bytes of an image. */
export interface Piece {
  address: bigint
  window: Uint8Array
}

export interface StoredImage extends ImageEntry {
  pieces: Piece[]
}

export interface MemorySnapshot extends ImageSink {
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
  /** Gives all memory back. Nothing may read the pieces any more. */
  drop(): void
}

/** Threads that fault memory in; libuv has four. */
const FAULTING = 2
/** How long a sender waits for what it announced; the rest becomes ready while its images come. */
const PATIENCE_MS = 10_000
const FIRST_PIECE = 2 ** 10
/** An image above this gets extents of its own. */
const LARGEST_SHARED = 64 * 2 ** 10

/** Takes its first extent at once, so that many snapshots of nothing are not for nothing. Throws `MEMORY`. */
export function memorySnapshot(pool: Pool): MemorySnapshot {
  const images = new Map<ImageName, StoredImage>()
  const extents = new Map<bigint, Extent>()
  /** Extents of which a single image has it all. */
  const owned = new Set<bigint>()
  /** Made ready for what was announced. */
  const ahead: Extent[] = []
  /** Being made ready. They may be used all the same: contents stay. */
  const faulting = new Set<Extent>()
  let shared: Piece | undefined = { ...extent() }

  let open = true

  function extent(): Extent {
    const taken = ahead.pop() ?? pool.take()
    extents.set(taken.address, taken)
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
    owned.add(taken.address)
    return taken
  }

  function carve(bytes: number): Piece {
    if (shared === undefined || shared.window.length < bytes) shared = { ...extent() }
    const piece = { address: shared.address, window: shared.window.subarray(0, bytes) }
    shared = { address: shared.address + BigInt(bytes), window: shared.window.subarray(bytes) }
    return piece
  }

  function openImage(name: ImageName): ImageWriter {
    const pieces: Piece[] = []
    let next = FIRST_PIECE
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
          space = next > LARGEST_SHARED ? own(extent()) : carve(next)
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
      return extents.size * EXTENT
    },
    release({ address }) {
      const taken = owned.delete(address) ? extents.get(address) : undefined
      if (taken === undefined) return
      extents.delete(address)
      pool.give(taken)
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
