/**
 * Memory that is not in extents counts to the pool, too, for as long as it is held: what is known of images, what
 * peers send, long lists.
 */
import { Fault } from '../fault.ts'
import type { Pool } from './pool.ts'

export class Account {
  readonly #counter: Pick<Pool, 'charge'>
  #bytes = 0
  #closed = false

  /** `counter` counts every byte of the account. */
  constructor(counter: Pick<Pool, 'charge'>) {
    this.#counter = counter
  }

  /** Bytes that are counted now. */
  get bytes(): number {
    return this.#bytes
  }

  /**
   * Counts more bytes; a negative number gives bytes back. Throws `MEMORY` where the pool is full, and `ABORTED` once
   * the account was closed: whatever the memory was for is over.
   */
  add(more: number): void {
    if (this.#closed && more <= 0) return
    if (this.#closed) throw dropped()
    this.#counter.charge(more)
    // The holder that gave way for these bytes may have been the one that asks for them.
    if (this.#closed) {
      this.#counter.charge(-more)
      throw dropped()
    }
    this.#bytes += more
  }

  /** Gives all bytes back. May be called twice. */
  close(): void {
    this.#closed = true
    this.#counter.charge(-this.#bytes)
    this.#bytes = 0
  }
}

/** Tells work that goes on for a snapshot after it was dropped. */
export function dropped(): Fault {
  return new Fault('ABORTED', 'the snapshot was dropped')
}

/** The least budget, in a small pool: as much as four or five peers that compress need at a time. */
const LEAST_FOR_PEERS = 16 * 2 ** 20
const MOST_FOR_PEERS = 128 * 2 ** 20

/**
 * What is held for peers beside their images: payloads that are being read, buffers to decompress, answers that a peer
 * has not taken yet. All peers share one budget within the pool's limit, so that many peers that ask for little
 * cannot ask for much together.
 */
export class PeerMemory {
  /** Bytes. */
  readonly limit: number
  /**
   * Called when the budget is used up: makes a peer give way, whose account is closed at once. Returns whether one
   * did.
   */
  relief: () => boolean = () => false
  readonly #pool: Pick<Pool, 'charge'>
  #used = 0

  constructor(pool: Pick<Pool, 'charge' | 'limit'>) {
    this.limit = Math.min(pool.limit, MOST_FOR_PEERS, Math.max(LEAST_FOR_PEERS, pool.limit / 4))
    this.#pool = pool
  }

  /** Bytes that all peers hold now. */
  get used(): number {
    return this.#used
  }

  /** Opens the account of one peer. Its `add` throws `MEMORY` where no peer gives way. */
  open(): Account {
    return new Account(this)
  }

  /** Counts bytes for a peer: for its account alone. */
  charge(bytes: number): void {
    while (bytes > 0 && this.#used + bytes > this.limit) {
      if (this.relief()) continue
      throw new Fault('MEMORY', 'too much is held for peers at a time', { hint: 'raise --max-memory' })
    }
    this.#pool.charge(bytes)
    this.#used += bytes
  }
}

/** What it takes to know of an image of pages, and of any other. Measured: 1.9 KB where its name is long. */
const PAGES_IMAGE_BYTES = 4096
const IMAGE_BYTES = 2048
const CHARGED_AT_ONCE = 2 ** 18

/**
 * What a snapshot is charged for its images, whatever is in them: each takes memory beside its bytes. The first portion
 * is not charged: it is covered by the first extent of a snapshot, which it holds anyway.
 */
export class ImageCharges extends Account {
  #known = 0
  #charged = CHARGED_AT_ONCE

  /** One more image was opened. Throws as `add` does. */
  opened(withPages: boolean): void {
    this.#known += withPages ? PAGES_IMAGE_BYTES : IMAGE_BYTES
    for (; this.#known > this.#charged; this.#charged += CHARGED_AT_ONCE) this.add(CHARGED_AT_ONCE)
  }

  /** All images were forgotten: the next ones use what is charged already. */
  forgotten(): void {
    this.#known = 0
  }
}
