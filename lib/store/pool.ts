/**
 * The memory that images lie in: extents of 2 MiB, aligned for huge pages, at most `limit` bytes of them.
 *
 * A page fault on memory that was never touched takes longer than filling it, so the first `reserve` bytes are faulted
 * in on another thread, from the start and again when they were given back. Memory is mapped in regions and carved up.
 * An extent that is given back is discarded: the system has its memory again, but it stays mapped for the next
 * snapshot, so a window that somebody still holds reads zeros and cannot crash. The limit holds for senders too: `take`
 * throws `MEMORY`, and the snapshot that asked is dropped while others stay. Extents that were only made ready ahead
 * give way to images, so an announcement costs nobody else anything, and takes no memory that the machine lacks.
 */

import { getHeapStatistics } from 'node:v8'
import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import { DIGEST_WORDS } from '../format/page-digest.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import {
  allowHuge,
  allowWriting,
  availableMemory,
  discard,
  HUGE_PAGE,
  mapMemory,
  populate,
  type Region,
} from '../kernel/mapped-memory.ts'
import { formatSize } from '../size.ts'

export interface Extent {
  address: bigint
  window: Uint8Array
  /** Pages that were given back before the rest: 1 for each. */
  holes?: { pages: Uint8Array; count: number } | undefined
  /** Counts who needs its pages, where not only its owner does. */
  sharing?: Sharing
  /** The digests of its pages that were taken so far, see dedup-index.ts. `taken`: 1 for each of these pages. */
  digests?: { words: Uint32Array; taken: Uint8Array }
  /** It may be read-only, see read-only.ts. */
  readOnly?: boolean
  /**
   * Somebody may still write into it. When it is given back it counts as free, and nobody gets it before this
   * resolves.
   */
  lent?: Promise<void>
}

interface Sharing {
  /** How many others need each page. */
  needs: Uint32Array
  /** 1 for a page that its owner has given back. */
  given: Uint8Array
  /** While there is a pin, no page goes back. */
  pins: number
}

export const EXTENT = HUGE_PAGE
/** Pages of an extent. */
export const PAGES = EXTENT / PAGE_BYTES
/** Bytes that the digests of an extent and the counts of its sharing take. */
export const DIGESTS_BYTES = PAGES * (DIGEST_WORDS * 4 + 1 + 4 + 1)
/**
 * A region is as large as all before it, within these bounds. Each region makes Node collect garbage, because it counts
 * windows as memory of its own: with regions of 64 MiB that took 0.2 s a GiB.
 */
const LEAST_REGION = 32 * EXTENT
const LARGEST_REGION = 512 * EXTENT
/** Bytes that `ahead` leaves to others on this machine. */
const LEFT_TO_OTHERS = 2 ** 28
/** The share of JavaScript's heap that `charge` may fill. The other half is for all else. */
const MOST_ON_HEAP = getHeapStatistics().heap_size_limit / 2

export class Pool {
  /** Bytes. */
  readonly limit: number
  /** Each gives up an extent that was only made ready ahead, if it has one. */
  readonly spare = new Set<() => Extent | undefined>()
  /**
   * Called when the limit is reached and no extent is spare: gives up some memory that is not needed now. Returns
   * whether it did.
   */
  relief: () => boolean = () => false
  /** Bytes that are kept ready. */
  readonly #reserve: number
  readonly #available: () => number
  readonly #mostOnHeap: number
  /** Extents that are not handed out. */
  readonly #free: Extent[] = []
  /** Free extents that are faulted in. */
  readonly #ready: Extent[] = []
  /** Free extents that are still read-only. */
  readonly #locked: Extent[] = []
  /** Extents that are handed out, by address. */
  readonly #handed = new Map<number, Extent>()
  #zeros: Region | undefined
  #used = 0
  /** Bytes of these that are charged on JavaScript's heap. */
  #heap = 0
  /** Bytes that are mapped. */
  #mapped = 0
  /** Whether `#refill` is at work. */
  #filling = false

  /**
   * A pool of at most `limit` bytes, of which `reserve` are kept ready. `available` says how many bytes this machine
   * can still give, `mostOnHeap` how many may be charged on JavaScript's heap.
   */
  constructor(limit: number, reserve = 0, available = availableMemory, mostOnHeap = MOST_ON_HEAP) {
    this.limit = limit
    this.#reserve = reserve
    this.#available = available
    this.#mostOnHeap = mostOnHeap
    void this.#refill()
  }

  /** Bytes that are handed out or charged. */
  get used(): number {
    return this.#used
  }

  /** Hands out an extent. Throws `MEMORY` when the limit is reached and nobody gives way. */
  take(): Extent {
    return this.#makeRoom(EXTENT) ?? this.#take()
  }

  /** Hands out an extent to make ready ahead; undefined where the limit, or the machine's memory, is near. */
  ahead(): Extent | undefined {
    if (this.#used + EXTENT > this.limit || this.#available() < LEFT_TO_OTHERS) return undefined
    try {
      return this.#take()
    } catch {
      return undefined
    }
  }

  /** Takes an extent back. Its owner has no window on it left. Pages that others need stay until none does. */
  give(extent: Extent): void {
    if (!this.#isOut(extent)) return
    if (extent.sharing !== undefined) return void this.givePages(extent, 0, PAGES)
    discard(extent.address, EXTENT)
    this.#finish(extent)
  }

  /**
   * Takes pages `first` to `first + count` of an extent back from its owner: the system has them again, and they count
   * as free as soon as nobody else needs them. A page is given once, however often this is called. Returns whether
   * they were the last of the extent, which is free then.
   */
  givePages(extent: Extent, first: number, count: number): boolean {
    if (!this.#isOut(extent)) return true
    extent.sharing?.given.fill(1, first, first + count)
    return this.#reclaim(extent, first, count)
  }

  /** Returns the extent with this address in it, if it is handed out. */
  at(address: number): Extent | undefined {
    return this.#handed.get(address - (address % EXTENT))
  }

  /** Returns the bytes at an address, which all lie in one extent or in the zeros. */
  window(address: number, bytes: number): Uint8Array {
    const { address: begin, window } = this.isZeros(address) ? (this.#zeros as Region) : (this.at(address) as Extent)
    return window.subarray(address - Number(begin), address - Number(begin) + bytes)
  }

  /** The address of an extent's worth of zeros that takes no memory, because nobody writes there. */
  get zeros(): number {
    if (this.#zeros === undefined) {
      this.#zeros = mapMemory(EXTENT)
      allowWriting(this.#zeros.address, EXTENT, false)
    }
    return Number(this.#zeros.address)
  }

  /** Whether the address is in the zeros. */
  isZeros(address: number): boolean {
    return this.#zeros !== undefined && address - (address % EXTENT) === Number(this.#zeros.address)
  }

  /** Keeps pages of one extent until `unshare`, whatever its owner gives back. Throws `MEMORY` if they are gone. */
  share(address: number, pages: number): void {
    const [extent, first] = [this.at(address), pageIn(address)]
    const gone = extent === undefined || extent.holes?.pages.subarray(first, first + pages).includes(1) === true
    if (gone) throw new Fault('MEMORY', 'pages that are shared had to go: memory was needed')
    this.#count(address, pages, 1)
  }

  /** Undoes `share` for all these places together: each extent among them is gone through once. */
  unshare(places: Iterable<[address: number, bytes: number]>): void {
    const touched = new Set<Extent | undefined>()
    for (const [address, bytes] of places) touched.add(this.#count(address, bytes / PAGE_BYTES, -1))
    for (const extent of touched) if (extent !== undefined) this.#reclaim(extent, 0, PAGES)
  }

  /** Keeps all pages of an extent, until as many `unpin`. */
  pin(extent: Extent): void {
    sharingOf(extent).pins++
  }

  unpin(extent: Extent): void {
    sharingOf(extent).pins--
    if (this.#isOut(extent)) this.#reclaim(extent, 0, PAGES)
  }

  /**
   * Counts memory that is not in extents; a negative number gives it back. `onHeap`: it is on JavaScript's heap, whose
   * own limit would end this process, whatever the pool's limit is. Throws `MEMORY`.
   */
  charge(bytes: number, onHeap = false): void {
    while (onHeap && bytes > 0 && this.#heap + bytes > this.#mostOnHeap) if (!this.relief()) throw tooMany()
    while (bytes > 0 && this.#used + bytes > this.limit) {
      const given = this.#makeRoom(bytes)
      if (given !== undefined) this.give(given)
    }
    this.#used += bytes
    if (onHeap) this.#heap += bytes
  }

  #isOut(extent: Extent): boolean {
    return this.#handed.get(Number(extent.address)) === extent
  }

  #take(): Extent {
    const extent = this.#ready.pop() ?? this.#fromFree()
    this.#used += EXTENT
    this.#handed.set(Number(extent.address), extent)
    return extent
  }

  /** Makes room for `bytes`, or throws `MEMORY`. An extent that it returns may be had instead. */
  #makeRoom(bytes: number): Extent | undefined {
    if (this.#used + bytes <= this.limit) return undefined
    for (const giveUp of this.spare) {
      const given = giveUp()
      if (given !== undefined) return given
    }
    while (this.relief()) if (this.#used + bytes <= this.limit) return undefined
    const [used, limit] = [formatSize(this.#used), formatSize(this.limit)]
    throw new Fault('MEMORY', `the memory for images is full: ${used} of ${limit}`, {
      hint: `raise --max-memory, or remove a snapshot: ${commandName('cache')} -D DIR --ls, and --rm ID`,
    })
  }

  #fromFree(): Extent {
    if (this.#free.length === 0) {
      const { address, bytes, window } = this.#mapRegion()
      this.#mapped += bytes
      for (let at = bytes - EXTENT; at >= 0; at -= EXTENT) {
        this.#free.push({ address: address + BigInt(at), window: window.subarray(at, at + EXTENT) })
      }
    }
    return this.#free.pop() as Extent
  }

  #mapRegion(): Region {
    const bytes = Math.min(Math.max(this.#mapped, LEAST_REGION), LARGEST_REGION)
    try {
      return mapMemory(bytes)
    } catch {
      return mapMemory(LEAST_REGION)
    }
  }

  /** Faults extents in until the reserve is ready. */
  async #refill(): Promise<void> {
    if (this.#filling) return
    this.#filling = true
    try {
      while (this.#used + (this.#ready.length + 1) * EXTENT <= this.#reserve) {
        const extent = this.#fromFree()
        await populate(extent.address, EXTENT)
        this.#ready.push(extent)
      }
    } catch {
      // `take` throws the error when the memory is needed.
    } finally {
      this.#filling = false
    }
  }

  /** Frees extents that were read-only. Where the kernel refuses, it is asked again when the next one comes back. */
  #unlock(): void {
    for (let last = this.#locked.at(-1); last !== undefined; last = this.#locked.at(-1)) {
      if (!allowWriting(last.address, EXTENT, true)) return
      this.#locked.pop()
      this.#free.push(last)
    }
  }

  /** Frees an extent of which every page is back. */
  #finish(extent: Extent): void {
    const { address, window, holes, digests, readOnly, lent } = extent
    this.#handed.delete(Number(address))
    this.#used -= heldIn(extent)
    if (digests !== undefined) this.#used -= DIGESTS_BYTES
    if (holes !== undefined) allowHuge(address, EXTENT, true)
    const back = (): void => {
      ;(readOnly ? this.#locked : this.#free).push({ address, window })
      this.#unlock()
      void this.#refill()
    }
    if (lent === undefined) back()
    else
      void lent.then(() => {
        discard(address, EXTENT)
        back()
      })
  }

  /** Discards those pages that their owner has given back and nobody needs. Returns whether the extent is free now. */
  #reclaim(extent: Extent, first: number, count: number): boolean {
    const { sharing } = extent
    // Holes split its huge page, so there are none before there is something to discard.
    if (sharing !== undefined && (sharing.pins > 0 || !sharing.given.includes(1))) return false
    const holes = holesOf(extent)
    const idle = (page: number): boolean =>
      holes.pages[page] === 0 && (sharing === undefined || (sharing.given[page] === 1 && sharing.needs[page] === 0))
    for (let at = first; at < first + count; ) {
      const begin = at
      while (at < first + count && idle(at)) at++
      if (at > begin) {
        holes.pages.fill(1, begin, at)
        holes.count += at - begin
        this.#used -= (at - begin) * PAGE_BYTES
        discard(extent.address + BigInt(begin * PAGE_BYTES), (at - begin) * PAGE_BYTES)
      } else at++
    }
    if (holes.count === PAGES) this.#finish(extent)
    return holes.count === PAGES
  }

  /** Counts one need more or less of each of these pages. Returns their extent, if it is handed out. */
  #count(address: number, pages: number, more: 1 | -1): Extent | undefined {
    const extent = this.at(address)
    if (extent === undefined) return undefined
    const first = pageIn(address)
    const { needs } = sharingOf(extent)
    for (let page = first; page < first + pages; page++) needs[page] = (needs[page] as number) + more
    return extent
  }
}

/** Bytes of an extent that are not given back. */
export function heldIn({ holes }: Extent): number {
  return EXTENT - (holes?.count ?? 0) * PAGE_BYTES
}

/** The number of a page in its extent. */
export function pageIn(address: number): number {
  return (address % EXTENT) / PAGE_BYTES
}

function sharingOf(extent: Extent): Sharing {
  extent.sharing ??= {
    needs: new Uint32Array(PAGES),
    given: extent.holes?.pages.slice() ?? new Uint8Array(PAGES),
    pins: 0,
  }
  return extent.sharing
}

/** A huge page must not come back where some of it is discarded. */
function holesOf(extent: Extent): NonNullable<Extent['holes']> {
  if (extent.holes === undefined) allowHuge(extent.address, EXTENT, false)
  extent.holes ??= { pages: new Uint8Array(PAGES), count: 0 }
  return extent.holes
}

function tooMany(): Fault {
  return new Fault('MEMORY', 'too many images are here at a time', {
    hint: `remove a snapshot: ${commandName('cache')} -D DIR --ls, and --rm ID`,
  })
}
