/**
 * The snapshots that a cache holds, by id, and those who wait for one.
 *
 * "The newest" is the one that was sealed last, whatever arrives meanwhile: who begins a snapshot and falls silent must not keep others
 * from theirs. Its verdict, without which not everybody may have it, is waited for a while, and then the one before is the newest: also for
 * who has waited as long, whatever was sealed meanwhile. Who means one that is on its way names it.
 */
import { Fault } from '../fault.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import type { Layer } from '../format/wire.ts'
import { type DedupOffer, openDedupIndex } from './dedup-index.ts'
import { runInSlices, yieldSometimes } from './in-turns.ts'
import { type Lying, openRetired, remains, spent } from './leaving.ts'
import {
  type MemorySnapshot,
  type MemoryWriter,
  memorySnapshot,
  type Piece,
  type Places,
  type StoredImage,
} from './memory.ts'
import { openPendingChains, type PendingChain, unfinished } from './pending-chains.ts'
import type { Pool } from './pool.ts'
import { checkWhole } from './validate.ts'
import { type FindOptions, type Images, openWaiters, type Search } from './waiters.ts'

export interface SealedSnapshot {
  readonly id: SnapshotId
  readonly images: ReadonlyMap<ImageName, StoredImage>
  /** Gives back the memory of a piece that was read, unless others read too; then the snapshot is good for nothing else. */
  release(piece: Piece): void
  /**
   * Somebody reads it: its memory stays until the returned function is called, and nobody can write there. Throws
   * `EXISTS` where some of it is gone.
   */
  use(): () => void
  /** Its source has not said yet what becomes of the tasks: only who can hold a restored copy may have it. */
  readonly undecided: boolean
}

/** A snapshot on its way in. */
export interface IncomingSnapshot {
  /** Throws `EXISTS` where it would take the place of an unfinished chain. */
  readonly sink: MemorySnapshot
  /** Takes an image that comes whole, and once: it is looked through while others come. */
  open(name: ImageName): MemoryWriter
  /** Whether the id is this one's: that of an unfinished chain is not, before `join`. */
  readonly owns: boolean
  /** What is offered to its sender, undefined where nothing is. It ends with `seal` or `drop`. */
  readonly offer: DedupOffer | undefined
  /** It is a part of a chain. Before anything is stored. Throws `MISSING` or `EXISTS` where that is not here as it says, `MEMORY`. */
  join(layer: Layer): void
  /**
   * All its images are here: a part of a chain is looked through, and the last becomes what can be restored. Throws `FORMAT`, `LIMIT`, `MISSING`,
   * `FAILED_DUMP` or `MEMORY`.
   */
  complete(): Promise<void>
  /** Everything is here, verified and completed. A round waits for the next part, and nobody can have it. Else whoever waits gets it, or, if it is `undecided`, only who may have it early. */
  seal(undecided?: boolean): void
  /**
   * Forgets what came, unless it was sealed; with it the chain that it is a part of. All else throws `ABORTED` from then on. Who
   * takes it in calls this when nothing more comes, whoever called it before.
   */
  drop(): void
}

export interface Snapshots {
  /** How many snapshots are sealed, how many chains wait for their next part, and how many wait for a snapshot. */
  readonly counts: { snapshots: number; chains: number; parked: number }
  /** Of what is here, those that no shortage of memory and no restore takes away. One that goes otherwise is none of them. */
  readonly pinned: Set<SnapshotId>
  /** Everything that has memory here, or will have. */
  readonly all: Lying[]
  /** Throws `EXISTS` if a snapshot of that id is here or on its way: nothing that was sealed is ever replaced. Throws `MEMORY`. */
  receive(id: SnapshotId, layer?: Layer): IncomingSnapshot
  /** Whether `find` would answer at once. */
  has(id: SnapshotId | undefined): boolean
  /**
   * The snapshot of that id, or the newest; waits for it at most `timeoutMs`, then throws `TIMEOUT`, or until `signal`, or until the dump that it is of has failed: `FAILED_DUMP`.
   */
  find(
    id: SnapshotId | undefined,
    timeoutMs: number,
    signal?: AbortSignal,
    wants?: FindOptions,
  ): Promise<SealedSnapshot>
  /** What was on its way with that id comes to nothing, however it came: who waits for it waits no longer. */
  lose(id: SnapshotId): void
  /** An undecided snapshot is anybody's now. Where its source runs on, who waits already does not get it: nobody asked for a copy. */
  decide(id: SnapshotId, sourceRuns: boolean): void
  /** Forgets a sealed snapshot, if it is there; its memory goes when nobody reads it any more. */
  remove(id: SnapshotId): void
  /** Forgets a chain that waits for its next part. Returns whether it was there. */
  removeChain(id: SnapshotId): boolean
}

export interface SnapshotsOptions {
  /** A chain that waited as long gives way when memory runs out, and what was offered to a sender that was silent as long. */
  idleMs?: number
  /** Senders are told which pages are here, and pages of several snapshots are stored once. */
  dedup?: boolean
  onDropped?: (id: SnapshotId, idleMs: number) => void
  /** When memory runs out and nothing of that helps: makes a sender give way that is silent. Returns whether there was one. */
  relieve?: () => boolean
}

interface Entry extends SealedSnapshot {
  undecided: boolean
  sink: MemorySnapshot
  users: number
  removed: boolean
  /** Some of its memory was given back: what its places lead to may be somebody else's. */
  released: boolean
  since: number
  /** Who waited before this does not get it. */
  notBefore: number
}

/** How long a source may take for its verdict, as far as those go who ask for the newest: most take some milliseconds. */
const VERDICT_MS = 10_000

export function openSnapshots(
  pool: Pool,
  { idleMs = Number.POSITIVE_INFINITY, dedup = false, onDropped, relieve = () => false }: SnapshotsOptions = {},
): Snapshots {
  const sealed = new Map<SnapshotId, Entry>()
  const leaving = openRetired()
  const arriving = new Map<SnapshotId, { sink: MemorySnapshot; since: number }>()
  const chains = openPendingChains(pool, (id, { sink, since }) => leaving.add(remains(id, sink, since)))
  const offers = dedup ? openDedupIndex(pool) : undefined
  const waiters = openWaiters(now)
  const pinned = new Set<SnapshotId>()
  pool.relief = () => {
    const dropped = chains.dropIdle(idleMs, pinned)
    if (dropped !== undefined) onDropped?.(dropped.id, dropped.ms)
    return dropped !== undefined || offers?.withdrawIdle(idleMs) === true || relieve()
  }

  /** The newest first. */
  function* donors(own: PendingChain | undefined): Generator<Places> {
    if (own !== undefined) yield own.flat.places()
    for (const { images, released } of [...sealed.values()].reverse()) {
      if (released) continue
      for (const { places = [] } of images.values()) yield places
    }
    for (const { flat } of chains.all.values()) yield flat.places()
  }

  function* lying(): Generator<Lying> {
    for (const [id, { sink, since }] of arriving) yield { id, state: 'arriving', count: sink.images.size, sink, since }
    for (const { id, images, sink, since } of sealed.values()) {
      yield { id, state: 'sealed', count: images.size, sink, since }
    }
    for (const { id, images, sink, since } of leaving.all) {
      yield { id, state: 'leaving', count: images.size, sink, since }
    }
    for (const [id, { sink, rounds, since }] of chains.all) yield { id, state: 'chain', count: rounds, sink, since }
  }

  function now({ id, early, fits, since }: Search): SealedSnapshot | undefined {
    const may = ({ undecided, notBefore }: Entry): boolean => (early || !undecided) && notBefore <= since
    if (id !== undefined) {
      const entry = sealed.get(id)
      return entry !== undefined && may(entry) ? entry : undefined
    }
    const soon = performance.now() - VERDICT_MS
    const newest = [...sealed.values()].findLast(
      (entry) =>
        (fits?.(entry.images) ?? true) && (may(entry) || (entry.undecided && Math.min(entry.since, since) > soon)),
    )
    return newest !== undefined && may(newest) ? newest : undefined
  }

  function lose(id: SnapshotId, images: Images): void {
    const undecided = [...sealed.values()].filter((entry) => entry.undecided)
    const onTheirWay = [...arriving.keys(), ...undecided.map((entry) => entry.id)]
    waiters.lose({ id, images, others: onTheirWay.some((other) => other !== id) })
  }

  function refuseTaken(id: SnapshotId): void {
    if (!sealed.has(id) && !arriving.has(id)) return
    throw new Fault('EXISTS', `a snapshot ${id} is here already`, { hint: 'choose another --snapshot ID' })
  }

  function dropIfUnused(entry: Entry): void {
    if (!entry.removed) return
    if (entry.users === 0) entry.sink.drop()
    leaving.add(entry)
  }

  return {
    get counts() {
      return { snapshots: sealed.size, chains: chains.all.size, parked: waiters.count }
    },
    get all() {
      return [...lying()]
    },
    receive(id, part) {
      refuseTaken(id)
      let layer: Layer | undefined
      let chain: PendingChain | undefined
      let sink: MemorySnapshot | undefined
      let over = false
      let offer: DedupOffer | undefined
      function own(taken: MemorySnapshot): MemorySnapshot {
        sink = taken
        arriving.set(id, { sink: taken, since: performance.now() })
        if (offers !== undefined) offer ??= offers.open(() => donors(chain))
        return taken
      }
      let dropped = false
      function alive(): void {
        if (dropped) throw new Fault('ABORTED', 'the snapshot was dropped')
      }
      function owned(): MemorySnapshot {
        alive()
        if (sink === undefined) throw unfinished(id)
        return sink
      }
      function join(said: Layer): void {
        alive()
        if (sink === undefined) refuseTaken(id)
        sink?.drop()
        chain = chains.take(id, said)
        layer = said
        own(chain.sink)
      }
      if (part !== undefined) join(part)
      else if (!chains.has(id)) own(memorySnapshot(pool, dedup))
      return {
        get sink() {
          return owned()
        },
        open: (name) => (chain === undefined ? owned() : chain.flat).open(name),
        get owns() {
          return sink !== undefined
        },
        get offer() {
          return offer
        },
        join,
        async complete() {
          owned().complete()
          if (chain === undefined) await runInSlices(checkWhole(owned().images))
          else if (layer?.last === false) await chain.flat.round()
          else await chain.flat.last()
          // Who drops it does not wait for us.
          alive()
        },
        seal(undecided = false) {
          const sink = owned()
          over = true
          arriving.delete(id)
          offer?.close()
          if (chain !== undefined && layer?.last === false) {
            chain.rounds++
            chains.put(id, chain)
            return waiters.wake()
          }
          sink.complete()
          const protecting = sink.protect()
          const entry: Entry = {
            id,
            images: sink.images,
            release(piece) {
              if (entry.users !== 1) return
              entry.released = true
              sink.release(piece)
            },
            use() {
              if (entry.released) throw spent(id)
              for (const _ of protecting);
              entry.users++
              return () => {
                entry.users--
                dropIfUnused(entry)
              }
            },
            undecided,
            sink,
            users: 0,
            removed: false,
            released: false,
            since: performance.now(),
            notBefore: 0,
          }
          sealed.set(id, entry)
          void yieldSometimes(protecting)
          if (undecided) setTimeout(waiters.wake, VERDICT_MS).unref()
          void chain?.flat.settle()
          waiters.wake()
        },
        drop() {
          if (dropped) return sink?.drop()
          if (over) return
          dropped = true
          if (sink === undefined) return
          over = true
          offer?.close()
          arriving.delete(id)
          if (layer?.last !== false) lose(id, sink.images)
          sink.drop()
          pinned.delete(id)
          leaving.add(remains(id, sink))
          waiters.wake()
        },
      }
    },
    pinned,
    lose: (id) => lose(id, new Map()),
    has: (id) => now({ id, since: performance.now() }) !== undefined,
    find: (id, timeoutMs, signal, wants) => waiters.wait({ ...wants, id, since: performance.now() }, timeoutMs, signal),
    decide(id, sourceRuns) {
      const entry = sealed.get(id)
      if (entry === undefined) return
      entry.undecided = false
      if (sourceRuns) entry.notBefore = performance.now()
      waiters.wake()
    },
    remove(id) {
      const entry = sealed.get(id)
      sealed.delete(id)
      pinned.delete(id)
      if (entry !== undefined) {
        entry.removed = true
        if (entry.undecided) lose(id, entry.images)
        dropIfUnused(entry)
      }
      waiters.wake()
    },
    removeChain(id) {
      const dropped = chains.drop(id)
      if (dropped) pinned.delete(id)
      return dropped
    },
  }
}
