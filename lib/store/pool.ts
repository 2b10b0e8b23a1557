/**
 * The memory that images rest in: extents of 2 MiB, huge-page aligned, bounded by `limit`.
 *
 * Page faults on memory that was never touched take longer than filling it, so the first `reserve` bytes are faulted in
 * aside, from the start and again when they were given back. Memory is mapped in regions and carved up. What is given back is discarded (the system has it again) but stays
 * mapped, for the next snapshot: a window that somebody still held reads zeros and cannot crash. Bounds hold for a
 * sender's appetite too: `take` throws `MEMORY`, and the snapshot that asked is dropped while others stay. What was only made ready
 * ahead gives way to images: an announcement costs nobody else anything, and takes no memory that the machine lacks.
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
  /** Where others need pages of it. */
  sharing?: Sharing
  /** Those of its pages that were taken, see offer.ts. */
  digests?: Digests
  /** It may be: see read-only.ts. */
  readOnly?: boolean
  /** Somebody may still write there: when it is given back it counts as free, and is nobody's until this resolves. */
  lent?: Promise<void>
}

interface Sharing {
  /** Of each page: how many others need it. */
  needs: Uint32Array
  /** 1 for a page that its owner has given. */
  given: Uint8Array
  /** While there is one, no page goes. */
  pins: number
}

interface Digests {
  words: Uint32Array
  /** 1 for a page whose digest is there. */
  taken: Uint8Array
}

export const EXTENT = HUGE_PAGE
export const PAGES = EXTENT / PAGE_BYTES
/**
 * A region is as large as all before it, within these. Each one makes Node collect garbage, for it counts windows as if they were its
 * own: with regions of 64 MiB that took 0.2 s a GiB.
 */
const LEAST_REGION = 32 * EXTENT
const LARGEST_REGION = 512 * EXTENT
/** What an announcement leaves to others on this machine. */
const LEFT = 2 ** 28

export interface Pool {
  readonly limit: number
  /** Bytes that are handed out. */
  readonly used: number
  /** Throws `MEMORY` when the limit is reached and nobody has one to spare. */
  take(): Extent
  /** One to make ready ahead; undefined where the limit, or the machine's memory, is near. */
  ahead(): Extent | undefined
  /** Those who have such extents, each giving one up. */
  readonly spare: Set<() => Extent | undefined>
  /** When nobody has one to spare: gives up what nobody needs now, a part at a time. Returns whether somebody did. */
  relief: () => boolean
  /** The caller has no window on it left. Pages that others need stay until nobody does. */
  give(extent: Extent): void
  /** The extent with this address in it, if it is handed out. */
  at(address: number): Extent | undefined
  /** What is at this address, in one extent or in the zeros. */
  window(address: number, bytes: number): Uint8Array
  /** An extent's worth of zeros that takes no memory: nobody writes there. */
  readonly zeros: number
  /** Whether the address is in it. */
  isZeros(address: number): boolean
  /** Somebody else needs these pages, of one extent, until as many `unshare`; all at a time, for each extent is gone through once. Throws `MEMORY` where they have gone. */
  share(address: number, pages: number): void
  unshare(places: Iterable<[address: number, bytes: number]>): void
  /** All pages of it stay until as many `unpin`. */
  pin(extent: Extent): void
  unpin(extent: Extent): void
  /**
   * Counts memory that is not in extents; a negative number gives it back. `onHeap`: of JavaScript's heap, whose limit ends this process
   * whatever that of the pool is. Throws `MEMORY`.
   */
  charge(bytes: number, onHeap?: boolean): void
  /**
   * Pages of an extent, whose number this is of the first, are of no use any more: the system has them again, and they count as free.
   * Each is given once, whoever says it again, and is free when nobody else needs it. Returns whether that was the last of them: then the extent is free.
   */
  givePages(extent: Extent, first: number, count: number): boolean
}

/** The other half is for all else. */
const MOST_ON_HEAP = getHeapStatistics().heap_size_limit / 2

/** A pool of at most `limit` bytes, of which `reserve` are kept ready. */
export function openPool(limit: number, reserve = 0, available = availableMemory, mostOnHeap = MOST_ON_HEAP): Pool {
  const free: Extent[] = []
  const ready: Extent[] = []
  /** Free, but read-only still. */
  const locked: Extent[] = []
  const handed = new Map<number, Extent>()
  let zeros: Region | undefined
  const spare: Pool['spare'] = new Set()
  let used = 0
  let heap = 0
  let mapped = 0
  let filling = false

  /** Where the kernel refuses, it is asked again when more comes back. */
  function unlock(): void {
    for (let last = locked.at(-1); last !== undefined; last = locked.at(-1)) {
      if (!allowWriting(last.address, EXTENT, true)) return
      locked.pop()
      free.push(last)
    }
  }

  function fromFree(): Extent {
    if (free.length === 0) {
      const { address, bytes, window } = mapRegion()
      mapped += bytes
      for (let at = bytes - EXTENT; at >= 0; at -= EXTENT) {
        free.push({ address: address + BigInt(at), window: window.subarray(at, at + EXTENT) })
      }
    }
    return free.pop() as Extent
  }

  function mapRegion(): Region {
    const bytes = Math.min(Math.max(mapped, LEAST_REGION), LARGEST_REGION)
    try {
      return mapMemory(bytes)
    } catch {
      return mapMemory(LEAST_REGION)
    }
  }

  async function refill(): Promise<void> {
    if (filling) return
    filling = true
    try {
      while (used + (ready.length + 1) * EXTENT <= reserve) {
        const extent = fromFree()
        await populate(extent.address, EXTENT)
        ready.push(extent)
      }
    } catch {
      // Whoever needs it is told.
    } finally {
      filling = false
    }
  }
  void refill()

  function take(): Extent {
    const extent = ready.pop() ?? fromFree()
    used += EXTENT
    handed.set(Number(extent.address), extent)
    return extent
  }

  /** Makes room for as many bytes, or throws. What it returns may be had instead. */
  function makeRoom(bytes: number): Extent | undefined {
    if (used + bytes <= limit) return undefined
    for (const giveUp of spare) {
      const given = giveUp()
      if (given !== undefined) return given
    }
    while (pool.relief()) if (used + bytes <= limit) return undefined
    throw new Fault('MEMORY', `the memory for images is full: ${formatSize(used)} of ${formatSize(limit)}`, {
      hint: `raise --max-memory, or drop a snapshot: ${commandName('cache')} -D DIR --ls, and --rm ID`,
    })
  }

  function isOut(extent: Extent): boolean {
    return handed.get(Number(extent.address)) === extent
  }

  /** All of it is back. */
  function finish(extent: Extent): void {
    const { address, window, holes, digests, readOnly, lent } = extent
    handed.delete(Number(address))
    used -= heldIn(extent)
    if (digests !== undefined) used -= DIGESTS_BYTES
    if (holes !== undefined) allowHuge(address, EXTENT, true)
    const back = (): void => {
      ;(readOnly ? locked : free).push({ address, window })
      unlock()
      void refill()
    }
    if (lent === undefined) back()
    else
      void lent.then(() => {
        discard(address, EXTENT)
        back()
      })
  }

  /** Gives back those pages that their owner has given and nobody needs. */
  function reclaim(extent: Extent, first: number, count: number): boolean {
    const { sharing } = extent
    // Its huge page is split where there is something to give back.
    if (sharing !== undefined && (sharing.pins > 0 || !sharing.given.includes(1))) return false
    const holes = withHoles(extent)
    const idle = (page: number): boolean =>
      holes.pages[page] === 0 && (sharing === undefined || (sharing.given[page] === 1 && sharing.needs[page] === 0))
    for (let at = first; at < first + count; ) {
      const begin = at
      while (at < first + count && idle(at)) at++
      if (at > begin) {
        holes.pages.fill(1, begin, at)
        holes.count += at - begin
        used -= (at - begin) * PAGE_BYTES
        discard(extent.address + BigInt(begin * PAGE_BYTES), (at - begin) * PAGE_BYTES)
      } else at++
    }
    if (holes.count === PAGES) finish(extent)
    return holes.count === PAGES
  }

  function shared(extent: Extent): Sharing {
    extent.sharing ??= {
      needs: new Uint32Array(PAGES),
      given: extent.holes?.pages.slice() ?? new Uint8Array(PAGES),
      pins: 0,
    }
    return extent.sharing
  }

  function at(address: number): Extent | undefined {
    return handed.get(address - (address % EXTENT))
  }

  /** Those in need are counted one by one. */
  function need(address: number, pages: number, more: 1 | -1): Extent | undefined {
    const extent = at(address)
    if (extent === undefined) return undefined
    const first = pageIn(address)
    const { needs } = shared(extent)
    for (let page = first; page < first + pages; page++) needs[page] = (needs[page] as number) + more
    return extent
  }

  const pool: Pool = {
    limit,
    get used() {
      return used
    },
    spare,
    relief: () => false,
    ahead() {
      if (used + EXTENT > limit || available() < LEFT) return undefined
      try {
        return take()
      } catch {
        return undefined
      }
    },
    take: () => makeRoom(EXTENT) ?? take(),
    give(extent) {
      if (!isOut(extent)) return
      if (extent.sharing !== undefined) return void pool.givePages(extent, 0, PAGES)
      discard(extent.address, EXTENT)
      finish(extent)
    },
    at,
    window(address, bytes) {
      const { address: begin, window } = pool.isZeros(address) ? (zeros as Region) : (at(address) as Extent)
      return window.subarray(address - Number(begin), address - Number(begin) + bytes)
    },
    get zeros() {
      zeros ??= mapZeros()
      return Number(zeros.address)
    },
    isZeros: (address) => zeros !== undefined && address - (address % EXTENT) === Number(zeros.address),
    share(address, pages) {
      const [extent, first] = [at(address), pageIn(address)]
      const gone = extent === undefined || extent.holes?.pages.subarray(first, first + pages).includes(1) === true
      if (gone) throw new Fault('MEMORY', 'pages that are shared had to go: memory was needed')
      need(address, pages, 1)
    },
    unshare(places) {
      const touched = new Set<Extent | undefined>()
      for (const [address, bytes] of places) touched.add(need(address, bytes / PAGE_BYTES, -1))
      for (const extent of touched) if (extent !== undefined) reclaim(extent, 0, PAGES)
    },
    pin(extent) {
      shared(extent).pins++
    },
    unpin(extent) {
      shared(extent).pins--
      if (isOut(extent)) reclaim(extent, 0, PAGES)
    },
    charge(bytes, onHeap = false) {
      while (onHeap && bytes > 0 && heap + bytes > mostOnHeap) if (!pool.relief()) throw tooMany()
      while (bytes > 0 && used + bytes > limit) {
        const given = makeRoom(bytes)
        if (given !== undefined) pool.give(given)
      }
      used += bytes
      if (onHeap) heap += bytes
    },
    givePages(extent, first, count) {
      if (!isOut(extent)) return true
      extent.sharing?.given.fill(1, first, first + count)
      return reclaim(extent, first, count)
    },
  }
  return pool
}

function tooMany(): Fault {
  return new Fault('MEMORY', 'too many images are here at a time', {
    hint: `drop a snapshot: ${commandName('cache')} -D DIR --ls, and --rm ID`,
  })
}

function mapZeros(): Region {
  const region = mapMemory(EXTENT)
  allowWriting(region.address, region.bytes, false)
  return region
}

/** What an extent's digests take, and who shares its pages. */
export const DIGESTS_BYTES = PAGES * (DIGEST_WORDS * 4 + 1 + 4 + 1)

function pageIn(address: number): number {
  return (address % EXTENT) / PAGE_BYTES
}

export function heldIn({ holes }: Extent): number {
  return EXTENT - (holes?.count ?? 0) * PAGE_BYTES
}

/** A huge page must not come back where some of it is discarded. */
function withHoles(extent: Extent): NonNullable<Extent['holes']> {
  if (extent.holes === undefined) allowHuge(extent.address, EXTENT, false)
  extent.holes ??= { pages: new Uint8Array(PAGES), count: 0 }
  return extent.holes
}
