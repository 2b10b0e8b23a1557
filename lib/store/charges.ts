/** Memory of ours that is not in extents, counted to the pool for as long as somebody holds it. */
import { Fault } from '../fault.ts'
import type { Pool } from './pool.ts'

export interface Charges {
  readonly bytes: number
  /** A negative number gives it back. Throws `MEMORY`, and `ABORTED` when it was closed: who still works then has nothing to work for. */
  add(bytes: number): void
  /** Gives all of it back. */
  close(): void
}

export function openCharges(pool: Pick<Pool, 'charge'>): Charges {
  let bytes = 0
  let over = false
  return {
    get bytes() {
      return bytes
    },
    add(more) {
      if (over) throw new Fault('ABORTED', 'the snapshot was dropped')
      pool.charge(more)
      bytes += more
    },
    close() {
      over = true
      pool.charge(-bytes)
      bytes = 0
    },
  }
}
