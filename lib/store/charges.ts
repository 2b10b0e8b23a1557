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

/** About what it takes to know of an image: one of pages, and any other. */
const PAGES_IMAGE_BYTES = 4096
const IMAGE_BYTES = 512
const PAID_AT_ONCE = 2 ** 18

/** Charges for images, whatever is in them. The first extent of a snapshot pays for the first of them. */
export function payForImages({ add }: Pick<Charges, 'add'>): { opened(withPages: boolean): void; forgotten(): void } {
  let known = 0
  let paid = PAID_AT_ONCE
  return {
    opened(withPages) {
      known += withPages ? PAGES_IMAGE_BYTES : IMAGE_BYTES
      for (; known > paid; paid += PAID_AT_ONCE) add(PAID_AT_ONCE)
    },
    forgotten() {
      known = 0
    },
  }
}
