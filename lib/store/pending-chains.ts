/**
 * The chains of a cache that have no last part yet, by the id of the snapshot that they become. A chain belongs to the
 * sender that knows its token: no other can continue, replace or end it.
 */
import { timingSafeEqual } from 'node:crypto'
import { Fault } from '../fault.ts'
import type { Layer } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
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

export class PendingChains {
  readonly #pool: Pool
  readonly #onDropped: (id: SnapshotId, chain: PendingChain) => void
  /** Changed by the methods alone. */
  readonly all = new Map<SnapshotId, PendingChain>()

  /** `onDropped` is called with each chain that was dropped: other snapshots may still need some of its memory. */
  constructor(pool: Pool, onDropped: (id: SnapshotId, chain: PendingChain) => void) {
    this.#pool = pool
    this.#onDropped = onDropped
  }

  /**
   * Takes out the chain that this part continues, or begins one. The caller puts it back, or drops its memory. Throws
   * `MISSING` where the chain is not here as the part says, `EXISTS` for a chain of another owner, and `MEMORY`.
   */
  take(id: SnapshotId, { under, token }: Layer): PendingChain {
    const found = this.all.get(id)
    const isOwn = found !== undefined && timingSafeEqual(found.token, token)
    if (under > 0) {
      if (!isOwn || found.rounds !== under) throw notHere(id, under)
      this.all.delete(id)
      return found
    }
    if (found !== undefined && !isOwn) throw unfinished(id)
    this.drop(id)
    const sink = new MemorySnapshot(this.#pool, true)
    return { sink, flat: new ChainMemory(sink), token: Buffer.from(token), rounds: 0, since: performance.now() }
  }

  /** Puts a chain back: it waits for its next part. */
  put(id: SnapshotId, chain: PendingChain): void {
    chain.since = performance.now()
    this.all.set(id, chain)
  }

  /** Forgets a chain and gives its memory back. Returns whether it was here. */
  drop(id: SnapshotId): boolean {
    const chain = this.all.get(id)
    chain?.sink.drop()
    if (chain !== undefined) this.#onDropped(id, chain)
    return this.all.delete(id)
  }

  /** Drops the chain that was idle longest, if for at least `ms`; not one that is `spared`. Returns which. */
  dropIdle(ms: number, spared: ReadonlySet<SnapshotId>): { id: SnapshotId; ms: number } | undefined {
    const [oldest] = [...this.all].filter(([id]) => !spared.has(id)).sort(([, a], [, b]) => a.since - b.since)
    if (oldest === undefined) return undefined
    const [id, { since }] = oldest
    const idle = performance.now() - since
    if (idle < ms) return undefined
    this.drop(id)
    return { id, ms: idle }
  }
}

/** Says the same of a chain that is not here and of one that another sender owns. */
function notHere(id: SnapshotId, under: number): Fault {
  return new Fault('MISSING', `no chain ${id} of ${under} ${under === 1 ? 'round' : 'rounds'} is here`, {
    hint: 'begin it anew: not all pages that its tasks have changed are known',
  })
}

/** Says that a snapshot would take the place of an unfinished chain. */
export function unfinished(id: SnapshotId): Fault {
  return new Fault('EXISTS', `an unfinished chain ${id} of another sender is here`, {
    hint: 'choose another --snapshot ID',
  })
}
