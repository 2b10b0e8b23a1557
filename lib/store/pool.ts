/**
 * The memory that images rest in: extents of 2 MiB, huge-page aligned, bounded by `limit`.
 *
 * Page faults on memory that was never touched take longer than filling it, so the first `reserve` bytes are faulted in
 * aside, from the start and again when they were given back. Memory is mapped in regions and carved up. What is given back is discarded (the system has it again) but stays
 * mapped, for the next snapshot: a window that somebody still held reads zeros and cannot crash. Bounds hold for a
 * sender's appetite too: `take` throws `MEMORY`, and the snapshot that asked is dropped while others stay. What was only made ready
 * ahead gives way to images: an announcement costs nobody else anything, and takes no memory that the machine lacks.
 */
import { Fault } from '../fault.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { allowHuge, availableMemory, discard, HUGE_PAGE, mapMemory, populate, type Region } from '../kernel/memory.ts'
import { formatSize } from '../size.ts'

export interface Extent {
  address: bigint
  window: Uint8Array
  /** Pages that were given back before the rest: 1 for each. */
  holes?: { pages: Uint8Array; count: number } | undefined
}

export const EXTENT = HUGE_PAGE
const PAGES = EXTENT / PAGE_BYTES
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
  /** The caller has no window on it left. */
  give(extent: Extent): void
  /**
   * Pages of an extent, whose number this is of the first, are of no use any more: the system has them again, and they count as free.
   * Each is given once, whoever says it again. Returns whether that was the last of them: then the extent is to be given.
   */
  givePages(extent: Extent, first: number, count: number): boolean
}

/** A pool of at most `limit` bytes, of which `reserve` are kept ready. */
export function openPool(limit: number, reserve = 0, available = availableMemory): Pool {
  const free: Extent[] = []
  const ready: Extent[] = []
  const spare: Pool['spare'] = new Set()
  let used = 0
  let mapped = 0
  let filling = false

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
    take() {
      if (used + EXTENT <= limit) return take()
      for (const giveUp of spare) {
        const given = giveUp()
        if (given !== undefined) return given
      }
      while (pool.relief()) if (used + EXTENT <= limit) return take()
      throw new Fault('MEMORY', `the memory for images is full: ${formatSize(used)} of ${formatSize(limit)}`, {
        hint: 'raise --max-memory, or drop a snapshot: cache -D DIR --ls, and --rm ID',
      })
    },
    give(extent) {
      discard(extent.address, EXTENT)
      used -= EXTENT - (extent.holes?.count ?? 0) * PAGE_BYTES
      if (extent.holes !== undefined) allowHuge(extent.address, EXTENT, true)
      extent.holes = undefined
      free.push(extent)
      void refill()
    },
    givePages(extent, first, count) {
      if (extent.holes === undefined) allowHuge(extent.address, EXTENT, false)
      extent.holes ??= { pages: new Uint8Array(PAGES), count: 0 }
      const { holes } = extent
      for (let at = first; at < first + count; ) {
        const begin = at
        while (at < first + count && holes.pages[at] === 0) at++
        if (at > begin) {
          holes.pages.fill(1, begin, at)
          holes.count += at - begin
          used -= (at - begin) * PAGE_BYTES
          discard(extent.address + BigInt(begin * PAGE_BYTES), (at - begin) * PAGE_BYTES)
        } else at++
      }
      return holes.count === PAGES
    },
  }
  return pool
}
