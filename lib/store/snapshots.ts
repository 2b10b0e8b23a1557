/**
 * The snapshots that a cache holds, by id, and the restores that wait for one.
 *
 * "The newest" is the snapshot that was sealed last, whatever is on its way: a sender that begins a snapshot and falls
 * silent must not keep others from theirs. A restore that cannot be held must not have a snapshot before its verdict.
 * So the newest is waited for until its verdict is there, but only for a while: then the one before it is the newest,
 * also for a restore that has waited as long, whatever was sealed meanwhile. A restore that means a snapshot on its way
 * names it.
 */
import { Fault } from '../fault.ts'
import type { Layer } from '../format/frame.ts'
import type { HoldingState } from '../format/holdings.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import { dropped } from './accounting.ts'
import { DedupIndex, type DedupOffer } from './dedup-index.ts'
import { MemorySnapshot } from './memory.ts'
import { type PendingChain, PendingChains, unfinished } from './pending-chains.ts'
import type { Pool } from './pool.ts'
import type { MemoryWriter, Piece, Places, StoredImage } from './stored-image.ts'
import { runInBackground, runInSlices } from './time-slices.ts'
import { checkWhole } from './validate.ts'
import { type FindOptions, type Images, type Search, Waiters } from './waiters.ts'

/** How long the newest snapshot is waited for without its verdict: most verdicts take some milliseconds. */
const VERDICT_MS = 10_000

export interface SnapshotsOptions {
  /**
   * A chain that waited as long for its next part gives way when memory runs out, and so does an offer to a sender
   * that was silent as long.
   */
  idleMs?: number
  /** Senders are told which pages are here, and pages of several snapshots are stored once. */
  dedup?: boolean
  onDropped?: (id: SnapshotId, idleMs: number) => void
  /** When memory runs out, and none of that helps: makes a silent sender give way. Returns whether there was one. */
  relieve?: () => boolean
}

/** Something that has memory here. */
export interface MemoryUse {
  id: SnapshotId
  state: Extract<HoldingState, 'arriving' | 'sealed' | 'leaving' | 'chain'>
  /** Rounds of a chain, images of anything else. */
  count: number
  sink: Pick<MemorySnapshot, 'held' | 'shared'>
  /** When it began to come, was sealed or last grew, by performance.now(). */
  since: number
}

/** A snapshot that is complete. `Snapshots` alone changes its fields. */
export class SealedSnapshot {
  readonly id: SnapshotId
  readonly sink: MemorySnapshot
  readonly images: ReadonlyMap<ImageName, StoredImage>
  /** The source has not said yet what becomes of its tasks: only a restore that can be held may have the snapshot. */
  undecided: boolean
  /** A restore that waited before this time, by performance.now(), does not get it. */
  notBefore = 0
  /** Some of its memory was given back: its places may be another snapshot's memory by now. */
  released = false
  /** How many readers it has. */
  users = 0
  /** When it was sealed, by performance.now(). */
  readonly since = performance.now()
  readonly #onUnused: () => void
  readonly #protecting: Generator<void, void>

  /** `onUnused` is called when a reader has ended. */
  constructor(id: SnapshotId, sink: MemorySnapshot, undecided: boolean, onUnused: (own: SealedSnapshot) => void) {
    this.id = id
    this.sink = sink
    this.images = sink.images
    this.undecided = undecided
    this.#onUnused = () => onUnused(this)
    this.#protecting = sink.protect()
  }

  /**
   * Gives back the memory of a piece that was read, unless there is another reader. The snapshot cannot be used again
   * then.
   */
  release(piece: Piece): void {
    if (this.users !== 1) return
    this.released = true
    this.sink.release(piece)
  }

  /**
   * Adds a reader: the memory stays, read-only, until the returned function is called. Throws `EXISTS` where some of it
   * was released.
   */
  use(): () => void {
    if (this.released) {
      throw new Fault('EXISTS', `the memory of snapshot ${this.id} is given back as it is restored`, {
        hint: 'start the cache without --release-early for more than one try',
      })
    }
    for (const _ of this.#protecting);
    this.users++
    return () => {
      this.users--
      this.#onUnused()
    }
  }

  /** Makes its memory read-only in the background. `use` does what is left of it. */
  protect(): Promise<void> {
    return runInBackground(this.#protecting)
  }
}

/** A snapshot that was removed, while it is read or others share pages of it. */
type Retired = Pick<SealedSnapshot, 'id' | 'sink' | 'users' | 'since'>

/** A snapshot on its way in. Its methods throw `ABORTED` once it was dropped. */
export class IncomingSnapshot {
  readonly #id: SnapshotId
  readonly #snapshots: Snapshots
  /** Where its images go; undefined where the id is that of an unfinished chain, before `join`. */
  #sink: MemorySnapshot | undefined
  /** The part of a chain that it is, and the chain. */
  #layer: Layer | undefined
  #chain: PendingChain | undefined
  /** The pages that are offered to its sender, undefined where none are. The offer ends with `seal` or `drop`. */
  offer: DedupOffer | undefined
  #sealed = false
  #dropped = false

  constructor(id: SnapshotId, snapshots: Snapshots, layer: Layer | undefined) {
    this.#id = id
    this.#snapshots = snapshots
    if (layer !== undefined) this.join(layer)
    else if (!snapshots.chains.all.has(id))
      this.#begin(new MemorySnapshot(snapshots.pool, snapshots.dedup !== undefined))
  }

  /** Throws `EXISTS` where it would take the place of an unfinished chain. */
  get sink(): MemorySnapshot {
    this.#check()
    if (this.#sink === undefined) throw unfinished(this.#id)
    return this.#sink
  }

  /** Whether the id is this one's: that of an unfinished chain is not, before `join`. */
  get owns(): boolean {
    return this.#sink !== undefined
  }

  /** Begins an image that comes whole, and once: a pagemap is read while other images come. Throws as `sink` does. */
  open(name: ImageName): MemoryWriter {
    return (this.#chain === undefined ? this.sink : this.#chain.flat).open(name)
  }

  /**
   * Before the first image: it is a part of a chain. Throws `MISSING` or `EXISTS` where the chain is not here as the
   * part says, and `MEMORY`.
   */
  join(layer: Layer): void {
    this.#check()
    if (this.#sink === undefined) this.#snapshots.refuseTaken(this.#id)
    this.#sink?.drop()
    this.#chain = this.#snapshots.chains.take(this.#id, layer)
    this.#layer = layer
    this.#begin(this.#chain.sink)
  }

  /**
   * All its images are here: checks that they can be restored. A part of a chain is laid over those before it, and the
   * last part becomes what can be restored. Throws `FORMAT`, `LIMIT`, `MISSING`, `FAILED_DUMP` or `MEMORY`.
   */
  async complete(): Promise<void> {
    this.sink.complete()
    if (this.#chain === undefined) await runInSlices(checkWhole(this.sink.images))
    else if (this.#layer?.last === false) await this.#chain.flat.round()
    else await this.#chain.flat.last()
    // A drop from outside does not wait for the work above.
    this.#check()
  }

  /**
   * After `complete`. A round waits for the next part of its chain, and no restore can have it. Anything else goes to
   * the restores that wait for it, or, if it is `undecided`, only to those that may have it early.
   */
  seal(undecided = false): void {
    const { sink } = this
    const [id, snapshots, chain] = [this.#id, this.#snapshots, this.#chain]
    this.#sealed = true
    snapshots.incoming.delete(id)
    this.offer?.close()
    if (chain !== undefined && this.#layer?.last === false) {
      chain.rounds++
      snapshots.chains.put(id, chain)
      snapshots.waiters.wake()
      return
    }
    sink.complete()
    snapshots.add(id, sink, undecided)
    void chain?.flat.settle()
  }

  /**
   * Forgets what came, unless it was sealed, and with it the chain that it is a part of. The receiver calls this when
   * no more bytes come, also after a drop from outside: see `MemorySnapshot.drop`.
   */
  drop(): void {
    if (this.#dropped) {
      this.#sink?.drop()
      return
    }
    if (this.#sealed) return
    this.#dropped = true
    if (this.#sink === undefined) return
    const [id, snapshots, sink] = [this.#id, this.#snapshots, this.#sink]
    this.offer?.close()
    snapshots.incoming.delete(id)
    if (this.#layer?.last !== false) snapshots.lose(id, sink.images)
    sink.drop()
    snapshots.pinned.delete(id)
    snapshots.retire({ id, sink, users: 0, since: performance.now() })
    snapshots.waiters.wake()
  }

  #check(): void {
    if (this.#dropped) throw dropped()
  }

  #begin(sink: MemorySnapshot): void {
    this.#sink = sink
    this.#snapshots.incoming.set(this.#id, { sink, since: performance.now() })
    this.offer ??= this.#snapshots.dedup?.open(() => this.#snapshots.donors(this.#chain))
  }
}

/** All snapshots of a cache by their state. */
export class Snapshots {
  /**
   * The ids that neither a shortage of memory nor a restore removes. An id that is removed otherwise is taken out of
   * this set.
   */
  readonly pinned = new Set<SnapshotId>()
  /** `IncomingSnapshot` uses these five, and nobody else does. */
  readonly pool: Pool
  readonly dedup: DedupIndex | undefined
  readonly incoming = new Map<SnapshotId, { sink: MemorySnapshot; since: number }>()
  readonly chains: PendingChains
  readonly waiters = new Waiters<SealedSnapshot>((search) => this.#search(search))
  /** In the order of their sealing. */
  readonly #sealed = new Map<SnapshotId, SealedSnapshot>()
  readonly #retired = new Set<Retired>()

  constructor(
    pool: Pool,
    { idleMs = Number.POSITIVE_INFINITY, dedup = false, onDropped, relieve = () => false }: SnapshotsOptions = {},
  ) {
    this.pool = pool
    this.dedup = dedup ? new DedupIndex(pool) : undefined
    this.chains = new PendingChains(pool, (id, { sink, since }) => this.retire({ id, sink, users: 0, since }))
    pool.relief = () => {
      const idle = this.chains.dropIdle(idleMs, this.pinned)
      if (idle !== undefined) onDropped?.(idle.id, idle.ms)
      return idle !== undefined || this.dedup?.withdrawIdle(idleMs) === true || relieve()
    }
  }

  /** How many snapshots are sealed, how many chains wait for their next part, and how many restores for a snapshot. */
  get counts(): { snapshots: number; chains: number; parked: number } {
    return { snapshots: this.#sealed.size, chains: this.chains.all.size, parked: this.waiters.count }
  }

  /** Everything that has memory here. */
  get all(): MemoryUse[] {
    this.#forgetRetired()
    const useOf = (state: MemoryUse['state'], { id, sink, since }: Omit<Retired, 'users'>): MemoryUse => {
      return { id, state, count: sink.images.size, sink, since }
    }
    return [
      ...[...this.incoming].map(([id, coming]) => useOf('arriving', { id, ...coming })),
      ...[...this.#sealed.values()].map((snapshot) => useOf('sealed', snapshot)),
      ...[...this.#retired].map((snapshot) => useOf('leaving', snapshot)),
      ...[...this.chains.all].map(([id, chain]) => ({ ...useOf('chain', { id, ...chain }), count: chain.rounds })),
    ]
  }

  /**
   * Takes a snapshot in. Throws `EXISTS` if one of that id is here or on its way: nothing that was sealed is ever
   * replaced. Throws `MEMORY`, and what `IncomingSnapshot.join` throws.
   */
  receive(id: SnapshotId, layer?: Layer): IncomingSnapshot {
    this.refuseTaken(id)
    return new IncomingSnapshot(id, this, layer)
  }

  /** Whether some of the memory of this snapshot was given back: it cannot be restored any more. */
  isReleased(id: SnapshotId): boolean {
    return this.#sealed.get(id)?.released === true
  }

  /** Whether `find` would resolve at once. */
  has(id: SnapshotId | undefined): boolean {
    return this.#search({ id, since: performance.now() }) !== undefined
  }

  /**
   * Finds the snapshot of that id, or the newest. Waits for it until `signal`, or at most `timeoutMs`, then throws
   * `TIMEOUT`. Throws `FAILED_DUMP` when the dump that it waits for has failed.
   */
  find(
    id: SnapshotId | undefined,
    timeoutMs: number,
    signal?: AbortSignal,
    wants?: FindOptions,
  ): Promise<SealedSnapshot> {
    return this.waiters.wait({ ...wants, id, since: performance.now() }, timeoutMs, signal)
  }

  /**
   * The dump of that id failed, whichever way it came: searches that wait for it are rejected. `images`: those of it
   * that came.
   */
  lose(id: SnapshotId, images: Images = new Map()): void {
    const undecided = [...this.#sealed.values()].filter((snapshot) => snapshot.undecided)
    const onTheirWay = [...this.incoming.keys(), ...undecided.map((snapshot) => snapshot.id)]
    this.waiters.lose({ id, images, others: onTheirWay.some((other) => other !== id) })
  }

  /**
   * The verdict on an undecided snapshot is there: any restore may have it. Where the source's tasks run on, restores
   * that wait already do not get it: they did not ask for a copy.
   */
  decide(id: SnapshotId, sourceRuns: boolean): void {
    const snapshot = this.#sealed.get(id)
    if (snapshot === undefined) return
    snapshot.undecided = false
    if (sourceRuns) snapshot.notBefore = performance.now()
    this.waiters.wake()
  }

  /** Forgets a sealed snapshot, if it is here. Its memory goes when nobody reads it any more. */
  remove(id: SnapshotId): void {
    const snapshot = this.#sealed.get(id)
    this.#sealed.delete(id)
    this.pinned.delete(id)
    if (snapshot !== undefined) {
      if (snapshot.undecided) this.lose(id, snapshot.images)
      this.#dropIfUnused(snapshot)
    }
    this.waiters.wake()
  }

  /** Forgets a chain that waits for its next part. Returns whether it was here. */
  removeChain(id: SnapshotId): boolean {
    const wasHere = this.chains.drop(id)
    if (wasHere) this.pinned.delete(id)
    return wasHere
  }

  /** Adds a snapshot that is complete. Wakes the searches that may have it. */
  add(id: SnapshotId, sink: MemorySnapshot, undecided: boolean): void {
    const snapshot = new SealedSnapshot(id, sink, undecided, (own) => this.#dropIfUnused(own))
    this.#sealed.set(id, snapshot)
    void snapshot.protect()
    if (undecided) this.#wakeWithoutVerdict(snapshot)
    this.waiters.wake()
  }

  /** Throws `EXISTS` where a snapshot of that id is here or on its way. */
  refuseTaken(id: SnapshotId): void {
    if (!this.#sealed.has(id) && !this.incoming.has(id)) return
    throw new Fault('EXISTS', `a snapshot ${id} is here already`, { hint: 'choose another --snapshot ID' })
  }

  /** Yields the places of pages that can be offered to a sender: first its own chain, then the newest snapshot. */
  *donors(own: PendingChain | undefined): Generator<Places> {
    if (own !== undefined) yield own.flat.places()
    for (const { images, released } of [...this.#sealed.values()].reverse()) {
      if (released) continue
      for (const { places = [] } of images.values()) yield places
    }
    for (const { flat } of this.chains.all.values()) yield flat.places()
  }

  /** Lists the memory of a snapshot that was removed, for as long as it is read or others need some of it. */
  retire(snapshot: Retired): void {
    this.#retired.add(snapshot)
    this.#forgetRetired()
  }

  /** Returns the snapshot that is searched for, if it may be had now. */
  #search({ id, early, fits, since }: Search): SealedSnapshot | undefined {
    const mayHave = ({ undecided, notBefore }: SealedSnapshot): boolean => (early || !undecided) && notBefore <= since
    if (id !== undefined) {
      const found = this.#sealed.get(id)
      return found !== undefined && mayHave(found) ? found : undefined
    }
    const oldest = performance.now() - VERDICT_MS
    const waitsForVerdict = (snapshot: SealedSnapshot): boolean =>
      snapshot.undecided && Math.min(snapshot.since, since) > oldest
    const newest = [...this.#sealed.values()].findLast(
      (snapshot) => (fits?.(snapshot.images) ?? true) && (mayHave(snapshot) || waitsForVerdict(snapshot)),
    )
    return newest !== undefined && mayHave(newest) ? newest : undefined
  }

  /** Wakes the searches for the newest once they have waited for the verdict on `snapshot` long enough. */
  #wakeWithoutVerdict(snapshot: SealedSnapshot): void {
    const left = snapshot.since + VERDICT_MS - performance.now()
    // A timer may fire some milliseconds early, and `search` would find nothing then.
    if (left > 0) setTimeout(() => this.#wakeWithoutVerdict(snapshot), Math.ceil(left)).unref()
    else this.waiters.wake()
  }

  /** Drops the memory of a snapshot that was removed, once nobody reads it. */
  #dropIfUnused(snapshot: SealedSnapshot): void {
    if (this.#sealed.get(snapshot.id) === snapshot) return
    if (snapshot.users === 0) snapshot.sink.drop()
    this.retire(snapshot)
  }

  #forgetRetired(): void {
    for (const one of this.#retired) if (one.users === 0 && one.sink.held === 0) this.#retired.delete(one)
  }
}
