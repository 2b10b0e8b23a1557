/**
 * Memory that is not in extents counts to the pool, too, for as long as it is held: what is known of images, what
 * peers send, long lists.
 */
import { Fault } from '../fault.ts'
import type { Pool } from './pool.ts'

export interface Account {
  /** Bytes that are counted now. */
  readonly bytes: number
  /**
   * Counts more bytes; a negative number gives bytes back. Throws `MEMORY` where the pool is full, and `ABORTED` once
   * the account was closed: whatever the memory was for is over.
   */
  add(bytes: number): void
  /** Gives all bytes back. May be called twice. */
  close(): void
}

/** Opens an account of which `pool` counts every byte. */
export function openAccount(pool: Pick<Pool, 'charge'>): Account {
  let bytes = 0
  let closed = false
  return {
    get bytes() {
      return bytes
    },
    add(more) {
      if (closed && more <= 0) return
      if (closed) throw dropped()
      pool.charge(more)
      // The holder that gave way for these bytes may have been the one that asks for them.
      if (closed) {
        pool.charge(-more)
        throw dropped()
      }
      bytes += more
    },
    close() {
      closed = true
      pool.charge(-bytes)
      bytes = 0
    },
  }
}

/** Tells work that goes on for a snapshot after it was dropped. */
export function dropped(): Fault {
  return new Fault('ABORTED', 'the snapshot was dropped')
}

/**
 * What is held for peers beside their images: payloads that are being read, buffers to decompress, answers that a peer
 * has not taken yet. All peers share one budget within the pool's limit, so that many peers that ask for little
 * cannot ask for much together.
 */
export interface PeerMemory {
  /** Bytes. */
  readonly limit: number
  /** Bytes that all peers hold now. */
  readonly used: number
  /** Opens the account of one peer. Its `add` throws `MEMORY` where no peer gives way. */
  open(): Account
  /**
   * Called when the budget is used up: makes a peer give way, whose account is closed at once. Returns whether one
   * did.
   */
  relief: () => boolean
}

/** The least budget, in a small pool: as much as four or five peers that compress need at a time. */
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

/** What it takes to know of an image of pages, and of any other. Measured: 1.9 KB where its name is long. */
const PAGES_IMAGE_BYTES = 4096
const IMAGE_BYTES = 2048
const CHARGED_AT_ONCE = 2 ** 18

/** Charges a snapshot for its images, whatever is in them: each takes memory beside its bytes. */
export interface ImageCharges {
  /** One more image was opened. Throws as `Account.add` does. */
  opened(withPages: boolean): void
  /** All images were forgotten: the next ones use what is charged already. */
  forgotten(): void
}

/** The first portion is not charged: it is covered by the first extent of a snapshot, which it holds anyway. */
export function openImageCharges({ add }: Pick<Account, 'add'>): ImageCharges {
  let known = 0
  let charged = CHARGED_AT_ONCE
  return {
    opened(withPages) {
      known += withPages ? PAGES_IMAGE_BYTES : IMAGE_BYTES
      for (; known > charged; charged += CHARGED_AT_ONCE) add(CHARGED_AT_ONCE)
    },
    forgotten() {
      known = 0
    },
  }
}
