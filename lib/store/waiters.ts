/** Searches that wait for a snapshot that is not here yet. */
import { Fault } from '../fault.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import type { StoredImage } from './stored-image.ts'

export type Images = ReadonlyMap<ImageName, StoredImage>

/** A snapshot that was on its way and comes to nothing. */
export interface LostSnapshot {
  id: SnapshotId
  /** The images of it that came. */
  images: Images
  /** Other snapshots are still on their way, or wait for their verdict. */
  others: boolean
}

/** Conditions of a search, beside the id. */
export interface FindOptions {
  /** An undecided snapshot will do. */
  early?: boolean
  /** Finds the newest whose images pass this test. */
  fits?: (images: Images) => boolean
  /** Whether the search is in vain after this failure. The default is `isLost`. */
  lost?: (failure: LostSnapshot) => boolean
}

export interface Search extends FindOptions {
  /** The newest if undefined. */
  id: SnapshotId | undefined
  /** When the search began, by performance.now(). */
  since: number
}

/** A search by an id waits for that one; a search for the newest as long as one is on its way, or is here. */
function isLost(failure: LostSnapshot, { id }: Search, isHere: boolean): boolean {
  return id === undefined ? !failure.others && !isHere : failure.id === id
}

export class Waiters<Snapshot> {
  readonly #find: (search: Search) => Snapshot | undefined
  /** What ends each search that waits. */
  readonly #waiting = new Map<Search, { found(snapshot: Snapshot): void; giveUp(reason: unknown): void }>()

  /** `find` returns the snapshot that is searched for, if it may be had now. */
  constructor(find: (search: Search) => Snapshot | undefined) {
    this.#find = find
  }

  /** How many searches wait. */
  get count(): number {
    return this.#waiting.size
  }

  /** Searches again for each of them. */
  wake(): void {
    for (const [search, { found }] of this.#waiting) {
      const snapshot = this.#find(search)
      if (snapshot !== undefined) found(snapshot)
    }
  }

  /** Rejects those whose snapshot was lost with `FAILED_DUMP`. */
  lose(failure: LostSnapshot): void {
    for (const [search, { giveUp }] of this.#waiting) {
      const inVain = search.lost?.(failure) ?? isLost(failure, search, this.#find(search) !== undefined)
      if (inVain) giveUp(new Fault('FAILED_DUMP', 'the dump that was on its way failed'))
    }
  }

  /** Resolves at once if the snapshot is here. Throws `TIMEOUT` after `timeoutMs`, or the reason of `signal`. */
  wait(search: Search, timeoutMs: number, signal?: AbortSignal): Promise<Snapshot> {
    const here = this.#find(search)
    if (here !== undefined) return Promise.resolve(here)
    return new Promise((resolve, reject) => {
      const end = (): void => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', aborted)
        this.#waiting.delete(search)
      }
      const found = (snapshot: Snapshot): void => {
        end()
        resolve(snapshot)
      }
      const giveUp = (reason: unknown): void => {
        end()
        reject(reason)
      }
      const aborted = (): void => giveUp(signal?.reason)
      const what = search.id === undefined ? 'no snapshot' : `no snapshot ${search.id}`
      const tooLate = new Fault('TIMEOUT', `${what} was sealed within ${timeoutMs / 1000} s`)
      const timer = setTimeout(giveUp, timeoutMs, tooLate)
      signal?.addEventListener('abort', aborted)
      this.#waiting.set(search, { found, giveUp })
    })
  }
}
