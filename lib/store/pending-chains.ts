/**
 * The chains of a cache that have no last part yet, by the id of the snapshot that they are to become. Each belongs to whoever knows
 * its token: nobody else can continue, replace or end it.
 */
import { timingSafeEqual } from 'node:crypto'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Layer } from '../format/wire.ts'
import { type ChainMemory, chainMemory } from './chain-memory.ts'
import { type MemorySnapshot, memorySnapshot } from './memory.ts'
import type { Pool } from './pool.ts'

/** A chain, and the part of it that arrives. */
export interface PendingChain {
  readonly sink: MemorySnapshot
  readonly flat: ChainMemory
  readonly token: Buffer
  /** Sealed rounds. */
  rounds: number
  /** When it last grew, by performance.now(). */
  since: number
}

export interface PendingChains {
  has(id: SnapshotId): boolean
  readonly all: ReadonlyMap<SnapshotId, PendingChain>
  /**
   * Takes the chain that this part goes on with, or begins one; whoever takes it puts it back or drops its memory. Throws `MISSING` where it is not here as the
   * part says, `EXISTS` for one of another owner, `MEMORY`.
   */
  take(id: SnapshotId, layer: Layer): PendingChain
  put(id: SnapshotId, chain: PendingChain): void
  /** Forgets the one that was idle longest, if that was for at least `ms`, of those that are not `spared`. */
  dropIdle(ms: number, spared: ReadonlySet<SnapshotId>): { id: SnapshotId; ms: number } | undefined
  /** Forgets it, and gives its memory back. Returns whether it was there. */
  drop(id: SnapshotId): boolean
}

/** `onDropped` is told of memory that others may still need. */
export function openPendingChains(
  pool: Pool,
  onDropped: (id: SnapshotId, chain: PendingChain) => void = () => {},
): PendingChains {
  const chains = new Map<SnapshotId, PendingChain>()

  function drop(id: SnapshotId): boolean {
    const chain = chains.get(id)
    chain?.sink.drop()
    if (chain !== undefined) onDropped(id, chain)
    return chains.delete(id)
  }

  return {
    has: (id) => chains.has(id),
    all: chains,
    take(id, { under, token }) {
      const found = chains.get(id)
      const ours = found !== undefined && timingSafeEqual(found.token, token)
      if (under > 0) {
        if (!ours || found.rounds !== under) throw notHere(id, under)
        chains.delete(id)
        return found
      }
      if (found !== undefined && !ours) throw unfinished(id)
      drop(id)
      const sink = memorySnapshot(pool, true)
      return { sink, flat: chainMemory(sink), token: Buffer.from(token), rounds: 0, since: performance.now() }
    },
    put(id, chain) {
      chain.since = performance.now()
      chains.set(id, chain)
    },
    dropIdle(ms, spared) {
      const [oldest] = [...chains].filter(([id]) => !spared.has(id)).sort(([, a], [, b]) => a.since - b.since)
      if (oldest === undefined) return undefined
      const [id, { since }] = oldest
      const idle = performance.now() - since
      if (idle < ms) return undefined
      drop(id)
      return { id, ms: idle }
    },
    drop,
  }
}

/** The same words for a chain that is not here and for one of another owner. */
function notHere(id: SnapshotId, under: number): Fault {
  return new Fault('MISSING', `no chain ${id} of ${under} ${under === 1 ? 'round' : 'rounds'} is here`, {
    hint: 'begin it anew: its tasks have changed pages that nobody noted',
  })
}

/** Of a snapshot that would take its place. */
export function unfinished(id: SnapshotId): Fault {
  return new Fault('EXISTS', `an unfinished chain ${id} of another sender is here`, {
    hint: 'choose another --snapshot ID',
  })
}
