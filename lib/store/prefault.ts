/**
 * Memory that is faulted in before the images of a snapshot come: a page fault on memory that was never touched takes
 * longer than filling it. Extents that are only made ready give way to images, of this snapshot or of another.
 */
import { setTimeout } from 'node:timers/promises'
import { populate } from '../kernel/mapped-memory.ts'
import { EXTENT, type Extent, type Pool } from './pool.ts'

/** Threads that fault memory in; libuv has four. */
const FAULTING = 2
/** How long a sender waits for the memory that it announced; the rest becomes ready while its images come. */
const PATIENCE_MS = 10_000

export class Prefault {
  readonly #pool: Pool
  /** Extents that are faulted in. */
  readonly #ready: Extent[] = []
  /** Extents that are being faulted in. They may be used meanwhile: faulting in changes no contents. */
  readonly #faulting = new Set<Extent>()
  /** The announcements up to the next `close`. Extents that become ready for them later go back to the pool. */
  #batch = { open: true }

  constructor(pool: Pool) {
    this.#pool = pool
  }

  /** Returns an extent that is ready, if there is one. */
  take(): Extent | undefined {
    return this.#ready.pop()
  }

  /**
   * Faults in `bytes` of memory, or as much of it as the pool can spare. Resolves when it is ready, or after
   * `patienceMs`, to the bytes that are ready; the work goes on then.
   */
  async reserve(bytes: number, patienceMs = PATIENCE_MS): Promise<number> {
    let ready = 0
    const batch = this.#batch
    if (batch.open) this.#pool.spare.add(this.#giveUp)
    const faultIn = async (): Promise<void> => {
      while (batch.open && ready < bytes) {
        const extent = this.#pool.ahead()
        if (extent === undefined) return
        ready += EXTENT
        this.#faulting.add(extent)
        await populate(extent.address, EXTENT)
        if (!this.#faulting.delete(extent)) continue
        if (batch.open) this.#ready.push(extent)
        else this.#pool.give(extent)
      }
    }
    const all = Promise.all(Array.from({ length: FAULTING }, faultIn))
    await Promise.race([all, setTimeout(patienceMs, undefined, { ref: false })])
    return Math.min(ready, bytes)
  }

  /** No more images come for what was announced: gives back what they did not use. */
  close(): void {
    this.#batch.open = false
    this.#pool.spare.delete(this.#giveUp)
    for (const extent of this.#ready.splice(0)) this.#pool.give(extent)
  }

  /** More images come: `reserve` makes memory ready again. */
  reopen(): void {
    this.#batch = { open: true }
  }

  readonly #giveUp = (): Extent | undefined => {
    const extent = this.#ready.pop() ?? this.#faulting.values().next().value
    if (extent !== undefined) this.#faulting.delete(extent)
    return extent
  }
}
