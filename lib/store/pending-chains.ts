/**
 * The chains of a cache that have no last part yet, by the id of the snapshot that they become. A chain belongs to the
 * sender that knows its token: no other can continue, replace or end it.
 */
import { timingSafeEqual } from 'node:crypto'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Layer } from '../format/wire.ts'
import { ChainMemory } from './chain-memory.ts'
import { MemorySnapshot } from './memory.ts'
import type { Pool } from './pool.ts'

/** A chain, with the part of it that comes now. */
export interface PendingChain {
  readonly sink: MemorySnapshot
  readonly flat: ChainMemory
  readonly token: Buffer
  /** How many rounds are sealed. */
  rounds: number
  /** When it last grew, by performance.now(). */
  since: number
}

export interface PendingChains {
  has(id: SnapshotId): boolean
  readonly all: ReadonlyMap<SnapshotId, PendingChain>
  /**
   * Takes out the chain that this part continues, or begins one. The caller puts it back, or drops its memory. Throws
   * `MISSING` where the chain is not here as the part says, `EXISTS` for a chain of another owner, and `MEMORY`.
   */
  take(id: SnapshotId, layer: Layer): PendingChain
  /** Puts a chain back: it waits for its next part. */
  put(id: SnapshotId, chain: PendingChain): void
  /** Forgets the chain that was idle longest, if for at least `ms`; not one that is `spared`. Returns which. */
  dropIdle(ms: number, spared: ReadonlySet<SnapshotId>): { id: SnapshotId; ms: number } | undefined
  /** Forgets a chain and gives its memory back. Returns whether it was here. */
  drop(id: SnapshotId): boolean
}

/** `onDropped` is called with each chain that was dropped: other snapshots may still need some of its memory. */
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
      const sink = new MemorySnapshot(pool, true)
      return { sink, flat: new ChainMemory(sink), token: Buffer.from(token), rounds: 0, since: performance.now() }
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

/** Says the same of a chain that is not here and of one that another sender owns. */
function notHere(id: SnapshotId, under: number): Fault {
  return new Fault('MISSING', `no chain ${id} of ${under} ${under === 1 ? 'round' : 'rounds'} is here`, {
    hint: 'begin it anew: its tasks have changed pages that nobody noted',
  })
}

/** Says that a snapshot would take the place of an unfinished chain. */
export function unfinished(id: SnapshotId): Fault {
  return new Fault('EXISTS', `an unfinished chain ${id} of another sender is here`, {
    hint: 'choose another --snapshot ID',
  })
}
