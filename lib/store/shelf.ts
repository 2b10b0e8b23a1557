/**
 * The snapshots that a cache holds, by id, and those who wait for one.
 *
 * "The newest" is the one that was sealed last; but while a newer one is arriving, whoever asks for the newest waits for
 * it: giving out the older one would start a process from its past.
 */
import { Fault } from '../fault.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import { type MemorySnapshot, memorySnapshot, type StoredImage } from './memory.ts'
import type { Pool } from './pool.ts'

export interface Sealed {
  readonly id: SnapshotId
  readonly images: ReadonlyMap<ImageName, StoredImage>
}

/** A snapshot on its way in. */
export interface Arriving {
  readonly sink: MemorySnapshot
  /** Everything is here and verified: whoever waits gets it. */
  seal(): void
  /** Forgets what came, unless it was sealed. */
  drop(): void
}

export interface Shelf {
  /** How many snapshots are sealed, and how many wait for one. */
  readonly counts: { snapshots: number; parked: number }
  /** Throws `EXISTS` if a snapshot of that id is here or on its way: nothing that was sealed is ever replaced. */
  receive(id: SnapshotId): Arriving
  /** Whether `find` would answer at once. */
  has(id: SnapshotId | undefined): boolean
  /** The snapshot of that id, or the newest; waits for it at most `timeoutMs`, then throws `TIMEOUT`, or until `signal`. */
  find(id: SnapshotId | undefined, timeoutMs: number, signal?: AbortSignal): Promise<Sealed>
}

interface Waiter {
  id: SnapshotId | undefined
  resolve: (snapshot: Sealed) => void
}

export function openShelf(pool: Pool): Shelf {
  const sealed = new Map<SnapshotId, Sealed>()
  const arriving = new Set<SnapshotId>()
  const waiters = new Set<Waiter>()

  function now(id: SnapshotId | undefined): Sealed | undefined {
    if (id !== undefined) return sealed.get(id)
    return arriving.size > 0 ? undefined : [...sealed.values()].at(-1)
  }

  function wake(): void {
    for (const waiter of waiters) {
      const snapshot = now(waiter.id)
      if (snapshot === undefined) continue
      waiters.delete(waiter)
      waiter.resolve(snapshot)
    }
  }

  return {
    get counts() {
      return { snapshots: sealed.size, parked: waiters.size }
    },
    receive(id) {
      if (sealed.has(id) || arriving.has(id)) {
        throw new Fault('EXISTS', `a snapshot ${id} is here already`, { hint: 'choose another --snapshot ID' })
      }
      arriving.add(id)
      const sink = memorySnapshot(pool)
      return {
        sink,
        seal() {
          sealed.set(id, { id, images: sink.images })
          arriving.delete(id)
          wake()
        },
        drop() {
          if (sealed.has(id)) return
          sink.drop()
          arriving.delete(id)
          wake()
        },
      }
    },
    has: (id) => now(id) !== undefined,
    find(id, timeoutMs, signal) {
      const snapshot = now(id)
      if (snapshot !== undefined) return Promise.resolve(snapshot)
      return new Promise((resolve, reject) => {
        const giveUp = (reason: unknown): void => {
          clearTimeout(timer)
          waiters.delete(waiter)
          reject(reason)
        }
        const what = id === undefined ? 'no snapshot' : `no snapshot ${id}`
        const tooLate = new Fault('TIMEOUT', `${what} was sealed within ${timeoutMs / 1000} s`)
        const timer = setTimeout(giveUp, timeoutMs, tooLate)
        signal?.addEventListener('abort', () => giveUp(signal.reason), { once: true })
        const waiter: Waiter = {
          id,
          resolve(found) {
            clearTimeout(timer)
            resolve(found)
          },
        }
        waiters.add(waiter)
      })
    },
  }
}
