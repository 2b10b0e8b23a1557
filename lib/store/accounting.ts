/** Memory of ours that is not in extents, counted to the pool for as long as somebody holds it. */
import { Fault } from '../fault.ts'
import type { Pool } from './pool.ts'

export interface Account {
  readonly bytes: number
  /** A negative number gives it back. Throws `MEMORY`, and `ABORTED` when it was closed: who still works then has nothing to work for. */
  add(bytes: number): void
  /** Gives all of it back. */
  close(): void
}

export function openAccount(pool: Pick<Pool, 'charge'>): Account {
  let bytes = 0
  let over = false
  return {
    get bytes() {
      return bytes
    },
    add(more) {
      if (over && more <= 0) return
      if (over) throw new Fault('ABORTED', 'the snapshot was dropped')
      pool.charge(more)
      // Whoever had to give way for it may have been its own holder.
      if (over) {
        pool.charge(-more)
        throw new Fault('ABORTED', 'the snapshot was dropped')
      }
      bytes += more
    },
    close() {
      over = true
      pool.charge(-bytes)
      bytes = 0
    },
  }
}

/**
 * What is held for peers beside their images: payloads that are read, buffers to decompress, answers that are not taken yet. One budget
 * of all of them, within the pool's limit, so that many who ask for little cannot ask for much together.
 */
export interface PeerMemory {
  /** Bytes. */
  readonly limit: number
  readonly used: number
  /** Those of one peer. `add` throws `MEMORY` where nobody gives way. */
  open(): Account
  /** Where the budget is used up: makes somebody give way, who closes its charges at once. Returns whether somebody did. */
  relief: () => boolean
}

/** Of a small pool: what four or five peers need at a time that compress. */
const LEAST_FOR_PEERS = 16 * 2 ** 20
const MOST_FOR_PEERS = 128 * 2 ** 20

export function openPeerMemory(pool: Pick<Pool, 'charge' | 'limit'>): PeerMemory {
  const limit = Math.min(pool.limit, MOST_FOR_PEERS, Math.max(LEAST_FOR_PEERS, pool.limit / 4))
  let used = 0
  const memory: PeerMemory = {
    limit,
    get used() {
      return used
    },
    open: () => openAccount({ charge }),
    relief: () => false,
  }
  function charge(bytes: number): void {
    while (bytes > 0 && used + bytes > limit) if (!memory.relief()) throw full()
    pool.charge(bytes)
    used += bytes
  }
  return memory
}

function full(): Fault {
  return new Fault('MEMORY', 'too much is held for peers at a time', { hint: 'raise --max-memory' })
}

/** What it takes to know of an image: one of pages, and any other. Measured: 1.9 KB where its name is long. */
const PAGES_IMAGE_BYTES = 4096
const IMAGE_BYTES = 2048
const PAID_AT_ONCE = 2 ** 18

/** Charges for images, whatever is in them. The first extent of a snapshot pays for the first of them. */
export function payForImages({ add }: Pick<Account, 'add'>): { opened(withPages: boolean): void; forgotten(): void } {
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
