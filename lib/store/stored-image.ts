/**
 * Images in memory, and how they are written there.
 *
 * A writer fills spaces that its snapshot gives it. Most images become a list of pieces. An image of pages may also
 * refer to pages that are in memory already, of this snapshot or of another, so its writer notes in ranges where all
 * bytes lie.
 */
import type { ImageEntry } from '../format/image-list.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import type { ImageWriter, SharedPages } from '../stream/image.ts'
import { dropped } from './accounting.ts'
import type { PageRanges } from './page-ranges.ts'
import { type Extent, PAGES, type Pool } from './pool.ts'

/** Consecutive bytes of an image. */
export interface Piece {
  address: bigint
  window: Uint8Array
  /** The piece is whole pages of a process and fills whole pages here: each can be lent and given back by itself. */
  pages?: true
}

/** Consecutive bytes at an address, all in one extent. */
export type Place = [address: number, bytes: number]
export type Places = Iterable<Place>

export interface StoredImage extends ImageEntry {
  pieces: Iterable<Piece>
  /** The same as `pieces`, as numbers, where the snapshot keeps pages apart. */
  places?: Places
  /** The memory that the image fills itself, where that is not its pieces. */
  spaces?: readonly Piece[]
}

/** Yields the bytes of `pieces`, at most `most` at a time. */
export function* stepsOf(pieces: Iterable<Piece>, most: number): Generator<Uint8Array> {
  for (const { window } of pieces) {
    for (let at = 0; at < window.length; at += most) yield window.subarray(at, at + most)
  }
}

/** Returns an image's bytes at `places`. Pieces are made when they are asked for: there may be one for every page. */
export function piecesAt(pool: Pool, places: Places): Required<Pick<StoredImage, 'pieces' | 'places'>> {
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

/** The first `bytes` of a piece. */
export function firstOf({ address, window }: Piece, bytes: number): Piece {
  return { address, window: window.subarray(0, bytes) }
}

/** Keeps the writers of a snapshot out of its memory once it was dropped. */
export class WriteGuard {
  dropped = false
  /** The extent into which bytes come between a writer's `room` and its `wrote`. */
  #lent: Extent | undefined
  /** Resolves the promise `lent` of an extent that was dropped while bytes came. */
  #returned = (): void => {}

  /** Throws `ABORTED` once the snapshot was dropped. */
  check(): void {
    if (this.dropped) throw dropped()
  }

  /** Bytes may come into `extent` from now on, until `returned`. */
  lend(extent: Extent | undefined): void {
    this.#lent = extent
  }

  /** The bytes are there: no more come before the next `lend`. */
  returned(): void {
    this.#lent = undefined
    this.#returned()
  }

  /**
   * Refuses writers from now on. A drop from outside cannot stop bytes that come just now, so the pool keeps their
   * extent from others until they are there. A second call says that no more come. Returns whether this was the first.
   */
  drop(): boolean {
    if (this.dropped) {
      this.#returned()
      return false
    }
    this.dropped = true
    if (this.#lent !== undefined) {
      this.#lent.lent = new Promise((resolve) => {
        this.#returned = resolve
      })
    }
    return true
  }
}

/** What a writer needs of the snapshot that it writes into. */
export interface WriterTarget {
  readonly guard: WriteGuard
  readonly pool: Pool
  /** Returns memory for the next bytes: at least one byte, or one page for pages. Throws `MEMORY`. */
  space(wanted: number): Piece
  /** No more bytes come behind the first `filled` of a space. */
  trim(space: Piece, filled: number): void
  /** Keeps pages that are in memory already for as long as the snapshot. Throws `MEMORY` or `ABORTED`. */
  readonly share: (address: number, pages: number) => void
  /** The image is complete. */
  end(image: StoredImage): void
}

/** Takes one image into memory. All methods throw `ABORTED` once the snapshot was dropped. */
export class MemoryWriter implements ImageWriter {
  readonly #target: WriterTarget
  /** Where all bytes lie, for an image of pages that lie apart. */
  readonly #ranges: PageRanges | undefined
  /** The spaces that are filled. */
  readonly #spaces: Piece[] = []
  /** The space that is being filled, its extent, and the bytes of it that are written. */
  #space: Piece | undefined
  #extent: Extent | undefined
  #filled = 0
  /** Takes pages that need not be written, for an image of pages that lie apart. */
  readonly shared?: SharedPages

  /** `ranges`, which are empty, become the places of an image of pages. */
  constructor(target: WriterTarget, ranges?: PageRanges) {
    this.#target = target
    this.#ranges = ranges
    if (ranges !== undefined) this.shared = sharedPages(target, ranges)
  }

  room(wanted: number): Uint8Array {
    const { guard } = this.#target
    guard.check()
    if (this.#space !== undefined && this.#filled === this.#space.window.length) this.#close(this.#space)
    if (this.#space === undefined) {
      this.#space = this.#target.space(wanted)
      this.#extent = this.#target.pool.at(Number(this.#space.address))
    }
    guard.lend(this.#extent)
    return this.#space.window.subarray(this.#filled)
  }

  wrote(bytes: number): void {
    const { guard } = this.#target
    guard.returned()
    guard.check()
    if (this.#space === undefined) return
    this.#ranges?.add(Number(this.#space.address) + this.#filled, bytes)
    this.#filled += bytes
  }

  end(entry: ImageEntry): void {
    const { guard, pool } = this.#target
    guard.check()
    if (this.#space !== undefined) this.#close(this.#space)
    const spaces = this.#spaces
    if (this.#ranges === undefined) this.#target.end({ ...entry, pieces: spaces })
    else this.#target.end({ ...entry, ...piecesAt(pool, this.#ranges), spaces })
  }

  #close(space: Piece): void {
    this.#target.trim(space, this.#filled)
    this.#spaces.push(firstOf(space, this.#filled))
    this.#space = undefined
    this.#filled = 0
  }
}

function sharedPages({ pool, share }: WriterTarget, ranges: PageRanges): SharedPages {
  return {
    run: (page) => ranges.run(page),
    take(address, pages) {
      const bytes = pages * PAGE_BYTES
      if (!pool.isZeros(address)) share(address, pages)
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
  }
}

/** Copies `bytes` into an image. Throws what the writer throws. */
export function writeInto(writer: MemoryWriter, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) {
    const room = writer.room(bytes.length - at)
    const part = bytes.subarray(at, at + room.length)
    room.set(part)
    writer.wrote(part.length)
    at += part.length
  }
}
