/** Those who wait for a snapshot that is not there yet. */
import { Fault } from '../fault.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import type { StoredImage } from './stored-image.ts'

export type Images = ReadonlyMap<ImageName, StoredImage>

/** A snapshot that was on its way and comes to nothing. */
export interface LostSnapshot {
  id: SnapshotId
  /** What there was of it. */
  images: Images
  /** Others are on their way still, or wait for their verdict. */
  others: boolean
}

/** What somebody wants, beside an id. */
export interface FindOptions {
  /** Also one that is undecided. */
  early?: boolean
  /** The newest of those that do, also as far as they have come. */
  fits?: (images: Images) => boolean
  /** Whether there is nothing to wait for any more; where it is not given, as `lostTo` says. */
  lost?: (failure: LostSnapshot) => boolean
}

export interface Search extends FindOptions {
  /** The newest if undefined. */
  id: SnapshotId | undefined
  /** By performance.now(). */
  since: number
}

export interface Waiters<Snapshot> {
  readonly count: number
  /** There may be something for them. */
  wake(): void
  /** Those for whom it was lost get `FAILED_DUMP`. */
  lose(failure: LostSnapshot): void
  /** Resolves at once if it is there; throws `TIMEOUT` after `timeoutMs`, or the reason of `signal`. */
  wait(wish: Search, timeoutMs: number, signal?: AbortSignal): Promise<Snapshot>
}

/** Who asked by an id waits for that one; who asked for the newest waits as long as one is on its way, or is here. */
function lostTo(failure: LostSnapshot, { id }: Search, isHere: boolean): boolean {
  return id === undefined ? !failure.others && !isHere : failure.id === id
}

/** `now` says what there is for a wish. */
export function openWaiters<Snapshot>(now: (wish: Search) => Snapshot | undefined): Waiters<Snapshot> {
  const waiting = new Map<Search, { found(snapshot: Snapshot): void; giveUp(reason: unknown): void }>()
  return {
    get count() {
      return waiting.size
    },
    wake() {
      for (const [wish, { found }] of waiting) {
        const snapshot = now(wish)
        if (snapshot !== undefined) found(snapshot)
      }
    },
    lose(failure) {
      for (const [wish, { giveUp }] of waiting) {
        const isLost = wish.lost?.(failure) ?? lostTo(failure, wish, now(wish) !== undefined)
        if (isLost) giveUp(new Fault('FAILED_DUMP', 'the dump that was on its way failed'))
      }
    },
    wait(wish, timeoutMs, signal) {
      const there = now(wish)
      if (there !== undefined) return Promise.resolve(there)
      return new Promise((resolve, reject) => {
        const over = (): void => {
          clearTimeout(timer)
          waiting.delete(wish)
        }
        const found = (snapshot: Snapshot): void => {
          over()
          resolve(snapshot)
        }
        const giveUp = (reason: unknown): void => {
          over()
          reject(reason)
        }
        const what = wish.id === undefined ? 'no snapshot' : `no snapshot ${wish.id}`
        const tooLate = new Fault('TIMEOUT', `${what} was sealed within ${timeoutMs / 1000} s`)
        const timer = setTimeout(giveUp, timeoutMs, tooLate)
        signal?.addEventListener('abort', () => giveUp(signal.reason), { once: true })
        waiting.set(wish, { found, giveUp })
      })
    },
  }
}
