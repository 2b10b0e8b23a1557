/**
 * A snapshot in memory. Large images fill extents of their own. Small ones, which are most, share an extent: each gets
 * a space of 1 KiB to begin with, and each next space is four times as large.
 */
import type { ImageName } from '../format/names.ts'
import { PAGE_BYTES, pagesPattern } from '../format/pagemap.ts'
import type { ImageSink } from '../stream/image.ts'
import { Account, ImageCharges } from './accounting.ts'
import { PageRanges } from './page-ranges.ts'
import { EXTENT, type Extent, heldIn, type Pool } from './pool.ts'
import { Prefault } from './prefault.ts'
import { makeReadOnly } from './read-only.ts'
import { firstOf, MemoryWriter, type Piece, type StoredImage, WriteGuard, type WriterTarget } from './stored-image.ts'

const FIRST_SPACE = 2 ** 10
/** A space above this is an extent of its own. */
const LARGEST_SHARED = 64 * 2 ** 10

/** An extent that several images share. */
interface SharedExtent {
  /** The part of it that no image has. */
  free: Piece | undefined
  /** This extent, and the full ones before it. */
  extents?: Piece[]
}

export class MemorySnapshot implements ImageSink {
  readonly pool: Pool
  /** Pages of processes lie by themselves, each in a page of ours, so that any of them can be given back. */
  readonly #apart: boolean
  readonly #guard = new WriteGuard()
  readonly #prefault: Prefault
  readonly #images = new Map<ImageName, StoredImage>()
  /** All extents that the snapshot holds, by address. */
  readonly #extents = new Map<number, Extent>()
  /** The addresses of extents that a single image fills. */
  readonly #owned = new Set<number>()
  /** The extent that small images share. */
  readonly #small: Required<SharedExtent>
  /** The same for small images of pages that lie apart. Its extents are given back page by page. */
  readonly #smallPages: SharedExtent = { free: undefined }
  /** Extents that were given back while other snapshots may need pages of them. */
  readonly #left = new Set<Extent>()
  /** Pages that the snapshot needs of others, or more than once of its own. They stay until `drop`. */
  readonly #needed: PageRanges
  /** The ranges of images of pages, since `reopen`. */
  readonly #ranges = new Set<PageRanges>()
  /** Memory outside of extents that is counted to the snapshot until `drop`. */
  readonly charges: Account
  /** What is known of images, on JavaScript's heap. */
  readonly #known: ImageCharges

  /** Takes its first extent at once, so that empty snapshots count, too. Throws `MEMORY`. */
  constructor(pool: Pool, apart = false) {
    this.pool = pool
    this.#apart = apart
    this.#prefault = new Prefault(pool)
    const first = this.#take()
    this.#small = { free: first, extents: [first] }
    this.#needed = new PageRanges(pool)
    this.charges = new Account(pool)
    this.#known = new ImageCharges({ charge: (bytes) => pool.charge(bytes, true) })
  }

  /** The images that are complete and verified. */
  get images(): ReadonlyMap<ImageName, StoredImage> {
    return this.#images
  }

  /**
   * Bytes of memory that the snapshot holds, unused ends and charges included. After `drop`, those that other
   * snapshots still need.
   */
  get held(): number {
    let bytes = this.charges.bytes + this.#known.bytes
    for (const extent of this.#extents.values()) bytes += heldIn(extent)
    for (const extent of this.#left) {
      const still = heldIn(extent)
      if (still === 0) this.#left.delete(extent)
      bytes += still
    }
    return bytes
  }

  /** Bytes that the snapshot needs of others, or more than once of its own. */
  get shared(): number {
    return this.#needed.bytes
  }

  /** Begins an image; `ended` is called when it is complete. Throws `MEMORY`, or `ABORTED` after `drop`. */
  open(name: ImageName, ended: (image: StoredImage) => void = () => {}): MemoryWriter {
    this.#guard.check()
    const apart = this.#apart && pagesPattern.test(name)
    this.#known.opened(apart)
    const target: WriterTarget = {
      guard: this.#guard,
      pool: this.pool,
      space: apart ? this.#spaces(PAGE_BYTES, this.#smallPages) : this.#spaces(FIRST_SPACE, this.#small),
      trim: (space, filled) => {
        if (apart || this.#owned.has(Number(space.address))) this.#discardBehind(space, filled)
      },
      share: (address, pages) => this.#share(address, pages),
      end: (image) => {
        this.#images.set(name, image)
        ended(image)
      },
    }
    if (!apart) return new MemoryWriter(target)
    const ranges = new PageRanges(this.pool)
    this.#ranges.add(ranges)
    return new MemoryWriter(target, ranges)
  }

  /** Makes memory ready for images that are announced. See `Prefault.reserve`. */
  reserve(bytes: number, patienceMs?: number): Promise<number> {
    return this.#prefault.reserve(bytes, patienceMs)
  }

  /** No more images come: gives back what was made ready for them. */
  complete(): void {
    this.#prefault.close()
  }

  /** Makes the memory read-only in this process, a part at a time. After `complete`. */
  protect(): Generator<void, void> {
    return makeReadOnly(this.#extents.values())
  }

  /**
   * The images of a chain's next part come. Forgets the images that are here and gives their memory back, but for pages
   * that lie apart.
   */
  reopen(): void {
    this.#images.clear()
    this.#known.forgotten()
    this.#closeRanges()
    for (const { address } of this.#small.extents.splice(1)) this.#giveAt(Number(address))
    this.#small.free = this.#small.extents[0]
    this.#prefault.reopen()
  }

  /** Puts `image` in the place of the image of that name. */
  replace(image: StoredImage): void {
    this.#images.set(image.name, image)
  }

  /** Gives back the memory that only this piece of a complete image holds. It cannot be read again. */
  release({ address, window, pages }: Piece): void {
    if (pages) this.discardPages(Number(address), window.length / PAGE_BYTES)
    else this.#giveOwned(Number(address))
  }

  /** Gives pages back, each once however often this is called. They cannot be read again. */
  discardPages(address: number, pages: number): void {
    const last = address + pages * PAGE_BYTES
    for (let at = address; at < last; ) {
      const begin = at - (at % EXTENT)
      const end = Math.min(begin + EXTENT, last)
      const extent = this.#extents.get(begin)
      const whole = extent?.holes === undefined && end - at === EXTENT
      if (
        extent !== undefined &&
        (whole || this.pool.givePages(extent, (at - begin) / PAGE_BYTES, (end - at) / PAGE_BYTES))
      ) {
        this.#giveAt(begin)
      }
      at = end
    }
  }

  /** Gives back the extents that only this image fills. */
  discard({ pieces, spaces }: StoredImage): void {
    for (const { address } of spaces ?? pieces) this.#giveOwned(Number(address))
  }

  /** From now on the extents of this image are given back page by page (`discardPages`), and not with the image. */
  disown({ pieces, spaces }: StoredImage): void {
    for (const { address } of spaces ?? pieces) this.#owned.delete(Number(address))
  }

  /**
   * Gives all memory back: nothing may read the pieces any more. Writers throw `ABORTED` from now on. The pool keeps
   * an extent into which bytes come just now until they are there, or until this is called again, when no more come.
   */
  drop(): void {
    if (!this.#guard.drop()) return
    this.#prefault.close()
    this.#images.clear()
    for (const extent of this.#extents.values()) this.#give(extent)
    this.#extents.clear()
    this.#owned.clear()
    this.pool.unshare(this.#needed)
    this.#needed.close()
    this.charges.close()
    this.#known.close()
    this.#closeRanges()
  }

  /** Returns a function that gives the spaces of one image, each larger than the last; small ones lie in `shared`. */
  #spaces(first: number, shared: SharedExtent): (wanted: number) => Piece {
    let next = first
    return (wanted) => {
      while (next < wanted && next <= LARGEST_SHARED) next *= 4
      const bytes = next
      next *= 4
      return bytes > LARGEST_SHARED ? this.#takeOwned() : this.#carve(shared, bytes)
    }
  }

  #carve(shared: SharedExtent, bytes: number): Piece {
    if (shared.free === undefined || shared.free.window.length < bytes) {
      shared.free = this.#take()
      shared.extents?.push(shared.free)
    }
    const { address, window } = shared.free
    shared.free = { address: address + BigInt(bytes), window: window.subarray(bytes) }
    return firstOf({ address, window }, bytes)
  }

  #takeOwned(): Extent {
    const extent = this.#take()
    this.#owned.add(Number(extent.address))
    return extent
  }

  #take(): Extent {
    const extent = this.#prefault.take() ?? this.pool.take()
    // This snapshot may have been dropped to make room for the extent.
    if (this.#guard.dropped) this.pool.give(extent)
    this.#guard.check()
    this.#extents.set(Number(extent.address), extent)
    return extent
  }

  #share(address: number, pages: number): void {
    this.#guard.check()
    this.pool.share(address, pages)
    try {
      this.#needed.add(address, pages * PAGE_BYTES)
    } catch (error) {
      this.pool.unshare([[address, pages * PAGE_BYTES]])
      throw error
    }
  }

  /** Gives an extent back if a single image fills it. */
  #giveOwned(address: number): void {
    if (this.#owned.delete(address)) this.#giveAt(address)
  }

  #giveAt(address: number): void {
    const extent = this.#extents.get(address)
    if (extent === undefined) return
    this.#extents.delete(address)
    this.#give(extent)
  }

  #give(extent: Extent): void {
    if (extent.sharing !== undefined) this.#left.add(extent)
    this.pool.give(extent)
  }

  /** Gives back the whole pages behind the first `filled` bytes: most of the memory of a tree of small processes. */
  #discardBehind({ address, window }: Piece, filled: number): void {
    const first = Math.ceil((Number(address) + filled) / PAGE_BYTES)
    const pages = Math.floor((Number(address) + window.length) / PAGE_BYTES) - first
    if (pages > 0) this.discardPages(first * PAGE_BYTES, pages)
  }

  #closeRanges(): void {
    for (const ranges of this.#ranges) ranges.close()
    this.#ranges.clear()
  }
}
