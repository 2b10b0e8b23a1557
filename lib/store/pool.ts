/**
 * The memory that images rest in: extents of 2 MiB, huge-page aligned, bounded by `limit`.
 *
 * Memory is mapped 64 MiB at a time and carved up. What is given back is discarded (the system has it again) but stays
 * mapped, for the next snapshot: a window that somebody still held reads zeros and cannot crash. Bounds hold for a
 * sender's appetite too: `take` throws `MEMORY`, and the snapshot that asked is dropped while others stay.
 */
import { Fault } from '../fault.ts'
import { discard, HUGE_PAGE, mapMemory } from '../kernel/memory.ts'
import { formatSize } from '../size.ts'

export interface Extent {
  address: bigint
  window: Uint8Array
}

export const EXTENT = HUGE_PAGE
const REGION = 32 * EXTENT

export interface Pool {
  readonly limit: number
  /** Bytes that are handed out. */
  readonly used: number
  /** Throws `MEMORY` when the limit is reached. */
  take(): Extent
  /** The caller has no window on it left. */
  give(extent: Extent): void
}

/** A pool of at most `limit` bytes. */
export function openPool(limit: number): Pool {
  const free: Extent[] = []
  let used = 0
  return {
    limit,
    get used() {
      return used
    },
    take() {
      if (used + EXTENT > limit) {
        throw new Fault('MEMORY', `the memory for images is full: ${formatSize(used)} of ${formatSize(limit)}`, {
          hint: 'raise --max-memory, or stop the cache to drop the snapshots that it holds',
        })
      }
      if (free.length === 0) {
        const region = mapMemory(REGION)
        for (let at = REGION - EXTENT; at >= 0; at -= EXTENT) {
          free.push({ address: region.address + BigInt(at), window: region.window.subarray(at, at + EXTENT) })
        }
      }
      used += EXTENT
      return free.pop() as Extent
    },
    give(extent) {
      discard(extent.address, EXTENT)
      used -= EXTENT
      free.push(extent)
    },
  }
}
