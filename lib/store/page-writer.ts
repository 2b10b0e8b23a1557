/**
 * An image of pages on its way into memory: pages that come, and pages that are here already, of others or of this snapshot. What comes fills
 * spaces of our own; where the bytes lie is noted in ranges, for a page that is shared may lie anywhere.
 */
import type { ImageName } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import type { PageRanges } from './page-ranges.ts'
import { first } from './piece-writer.ts'
import { PAGES, type Pool } from './pool.ts'
import type { MemoryWriter, Piece, Places, StoredImage } from './stored-image.ts'

/** The snapshot that it is written into. */
export interface PageOwner {
  /** Whole pages, at least one. */
  space(wanted: number): Piece
  /** Nothing comes behind the first `filled` bytes of a space. */
  leave(space: Piece, filled: number): void
  /** Keeps these pages for as long as it is here. */
  share(address: number, pages: number): void
  /** The image is complete. */
  end(image: StoredImage): void
}

export function pageWriter(name: ImageName, pool: Pool, ranges: PageRanges, home: PageOwner): MemoryWriter {
  const spaces: Piece[] = []
  let space: Piece | undefined
  let filled = 0

  function close(): void {
    if (space === undefined) return
    home.leave(space, filled)
    spaces.push(first(space, filled))
    space = undefined
    filled = 0
  }

  return {
    room(wanted) {
      if (space !== undefined && filled === space.window.length) close()
      space ??= home.space(wanted)
      return space.window.subarray(filled)
    },
    wrote(bytes) {
      if (space === undefined) return
      ranges.add(Number(space.address) + filled, bytes)
      filled += bytes
    },
    shared: {
      run: ranges.run,
      take(address, pages) {
        const bytes = pages * PAGE_BYTES
        if (!pool.isZeros(address)) home.share(address, pages)
        ranges.add(address, bytes)
        return pool.window(address, bytes)
      },
      *zeros(pages) {
        for (let left = pages; left > 0; ) {
          const some = Math.min(left, PAGES)
          ranges.add(pool.zeros, some * PAGE_BYTES)
          yield pool.window(pool.zeros, some * PAGE_BYTES)
          left -= some
        }
      },
    },
    end(entry) {
      close()
      home.end({ ...entry, name, ...lying(pool, ranges), spaces })
    },
  }
}

/** Pieces are made when they are asked for: there may be one for every page. */
export function lying(pool: Pool, places: Places): Required<Pick<StoredImage, 'pieces' | 'places'>> {
  const pieces = {
    *[Symbol.iterator](): Generator<Piece> {
      for (const [address, bytes] of places) {
        const piece: Piece = { address: BigInt(address), window: pool.window(address, bytes) }
        if (bytes % PAGE_BYTES === 0) piece.pages = true
        yield piece
      }
    },
  }
  return { pieces, places }
}
