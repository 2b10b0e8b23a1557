/** Those who wait for a snapshot that is not there yet. */
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'

/** What somebody wants. */
export interface Wish<Snapshot> {
  /** The newest if undefined. */
  id: SnapshotId | undefined
  /** Also one that is undecided. */
  early: boolean
  fits: (snapshot: Snapshot) => boolean
  /** By performance.now(). */
  since: number
}

export interface Waiters<Snapshot> {
  readonly count: number
  /** There may be something for them. */
  wake(): void
  /** Resolves at once if it is there; throws `TIMEOUT` after `timeoutMs`, or the reason of `signal`. */
  wait(wish: Wish<Snapshot>, timeoutMs: number, signal?: AbortSignal): Promise<Snapshot>
}

/** `now` says what there is for a wish. */
export function openWaiters<Snapshot>(now: (wish: Wish<Snapshot>) => Snapshot | undefined): Waiters<Snapshot> {
  const waiting = new Map<Wish<Snapshot>, (snapshot: Snapshot) => void>()
  return {
    get count() {
      return waiting.size
    },
    wake() {
      for (const [wish, resolve] of waiting) {
        const snapshot = now(wish)
        if (snapshot === undefined) continue
        waiting.delete(wish)
        resolve(snapshot)
      }
    },
    wait(wish, timeoutMs, signal) {
      const there = now(wish)
      if (there !== undefined) return Promise.resolve(there)
      return new Promise((resolve, reject) => {
        const giveUp = (reason: unknown): void => {
          clearTimeout(timer)
          waiting.delete(wish)
          reject(reason)
        }
        const what = wish.id === undefined ? 'no snapshot' : `no snapshot ${wish.id}`
        const tooLate = new Fault('TIMEOUT', `${what} was sealed within ${timeoutMs / 1000} s`)
        const timer = setTimeout(giveUp, timeoutMs, tooLate)
        signal?.addEventListener('abort', () => giveUp(signal.reason), { once: true })
        waiting.set(wish, (found) => {
          clearTimeout(timer)
          resolve(found)
        })
      })
    },
  }
}
