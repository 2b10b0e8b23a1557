/** What a cache has let go of, and somebody still reads, or shares pages of. */
import { Fault } from '../fault.ts'
import type { HoldingState } from '../format/holdings.ts'
import type { SnapshotId } from '../format/names.ts'
import type { MemorySnapshot } from './memory.ts'

/** One that has memory here. */
export interface Lying {
  id: SnapshotId
  state: Extract<HoldingState, 'arriving' | 'sealed' | 'leaving' | 'chain'>
  /** Rounds of a chain, else images. */
  count: number
  sink: Pick<MemorySnapshot, 'held' | 'shared'>
  /** By performance.now(). */
  since: number
}

export interface Left {
  readonly id: SnapshotId
  readonly images: ReadonlyMap<unknown, unknown>
  readonly sink: MemorySnapshot
  /** Who reads it. */
  readonly users: number
  readonly since: number
}

export interface RetiredSnapshots {
  add(one: Left): void
  readonly all: ReadonlySet<Left>
}

export function openRetired(): RetiredSnapshots {
  const leaving = new Set<Left>()
  function forget(): void {
    for (const one of leaving) if (one.users === 0 && one.sink.held === 0) leaving.delete(one)
  }
  return {
    add(one) {
      leaving.add(one)
      forget()
    },
    get all() {
      forget()
      return leaving
    },
  }
}

/** Of one that never was whole, or is no more. */
export function remains(id: SnapshotId, sink: MemorySnapshot, since = performance.now()): Left {
  return { id, images: sink.images, sink, users: 0, since }
}

/** For who comes when a restore has begun that was to be the only one. */
export function spent(id: SnapshotId): Fault {
  return new Fault('EXISTS', `the memory of snapshot ${id} is given back as it is restored`, {
    hint: 'start the cache without --release-early for more than one try',
  })
}
