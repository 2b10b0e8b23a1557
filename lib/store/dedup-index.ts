/**
 * What a cache offers to a sender: the digests of pages that it holds, which the sender need not send again.
 *
 * The digests are our own, taken from the pages that lie here, so a peer that lies about a page harms only its own
 * snapshot. A digest is taken when a sender asks for the first time after its page came, and kept with the extent.
 * Extents with pages that were offered are pinned until the sender has ended: a snapshot that is dropped meanwhile
 * leaves its pages here. When memory runs out, the offer of a sender that was silent for long is withdrawn.
 */
import { Fault } from '../fault.ts'
import { DIGEST_WORDS, MOST_OFFERED, MOST_RECALLED, strongDigest, weakDigest } from '../format/page-digest.ts'
import { openPageTable, type PageTable } from '../format/page-table.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { semaphore } from '../stream/semaphore.ts'
import { Account } from './accounting.ts'
import { DIGESTS_BYTES, EXTENT, type Extent, PAGES, type Pool, pageIn } from './pool.ts'
import type { Place, Places } from './stored-image.ts'
import { runInSlices } from './time-slices.ts'

/** Taking digests keeps others no longer than about this: images may come meanwhile. */
const LONGEST_SLICE_MS = 3
/** Bytes for the address of a page. */
const ENTRY_BYTES = 8
/** Bytes for a page in the table that finds those that are here twice. */
const TABLE_BYTES = 24

const zerosDigest = digestOf(Buffer.alloc(PAGE_BYTES))

export class DedupIndex {
  readonly #pool: Pool
  readonly #open = new Set<DedupOffer>()
  /** The digests of one offer are taken at a time. */
  readonly #making = semaphore(1)

  constructor(pool: Pool) {
    this.#pool = pool
  }

  /** Opens an offer to one sender of the pages in `donors`, in their order. `donors` is called when the sender asks. */
  open(donors: () => Iterable<Places>): DedupOffer {
    const offer = new DedupOffer(this.#pool, this.#making, donors, () => this.#open.delete(offer))
    this.#open.add(offer)
    return offer
  }

  /** Withdraws the offer that was not used for longest, if that is at least `ms`. Returns whether there was one. */
  withdrawIdle(ms: number): boolean {
    const [oldest] = [...this.#open].sort((a, b) => a.since - b.since)
    if (oldest === undefined || performance.now() - oldest.since < ms) return false
    oldest.withdraw()
    return true
  }
}

export class DedupOffer {
  readonly #pool: Pool
  readonly #making: ReturnType<typeof semaphore>
  readonly #donors: () => Iterable<Places>
  readonly #onOver: () => void
  /** When the sender was last heard of, by performance.now(). */
  since = performance.now()
  /** The extents that are pinned, with 1 for each page that donors have. */
  readonly #pinned = new Map<Extent, Uint8Array>()
  /** The extents of which a page is offered. */
  readonly #offered = new Set<Extent>()
  /** The address of each page that is offered; undefined before the sender asks, and when the offer is over. */
  #addresses: Float64Array | undefined
  /** Pages that are offered. */
  #total = 0
  /** Pages whose digests the sender has. */
  #given = 0
  /** What the offer itself takes. The digests are charged with their extents. */
  readonly #account: Account
  /** Whether a recall is being answered. */
  #answering = false
  /** Why nothing is offered any more. */
  #over: Fault | undefined

  /** `onOver` is called when it is closed or withdrawn. */
  constructor(pool: Pool, making: ReturnType<typeof semaphore>, donors: () => Iterable<Places>, onOver: () => void) {
    this.#pool = pool
    this.#account = new Account(pool)
    this.#making = making
    this.#donors = donors
    this.#onOver = onOver
  }

  /**
   * The digests of the next pages, of `total` in all; `from` is how many the sender has. Throws `FORMAT` where it has
   * another number, or asks before it has its answer, and `MEMORY` or `ABORTED` when the offer is over.
   */
  async recall(from: number): Promise<{ total: number; digests: Uint32Array }> {
    if (this.#over !== undefined) throw this.#over
    if (from !== this.#given || this.#answering) {
      throw new Fault('FORMAT', `a recall from page ${from}, of ${this.#given} given so far`)
    }
    this.#answering = true
    if (this.#addresses === undefined) await this.#make()
    this.#answering = false
    this.used()
    const addresses = this.#addresses?.subarray(this.#given, Math.min(this.#given + MOST_RECALLED, this.#total)) ?? []
    const digests = new Uint32Array(addresses.length * DIGEST_WORDS)
    addresses.forEach((address, at) => {
      digests.set(this.#digestAt(address), at * DIGEST_WORDS)
    })
    this.#given += addresses.length
    return { total: this.#over === undefined ? this.#total : this.#given, digests }
  }

  /**
   * Where so many pages lie, from this number on. Throws `FORMAT` for pages whose digests were not given out, and
   * `MEMORY` or `ABORTED` when the offer is over.
   */
  places(first: number, pages: number): Place[] {
    if (this.#over !== undefined) throw this.#over
    if (first + pages > this.#given) {
      throw new Fault('FORMAT', `pages ${first} to ${first + pages - 1} were not offered: there are ${this.#given}`)
    }
    const places: Place[] = []
    for (let number = first; number < first + pages; number++) {
      const address = this.#addressOf(number)
      const last = places.at(-1)
      if (last !== undefined && last[0] + last[1] === address && address % EXTENT !== 0) last[1] += PAGE_BYTES
      else places.push([address, PAGE_BYTES])
    }
    return places
  }

  /** The sender is not silent. */
  used(): void {
    this.since = performance.now()
  }

  /** The sender has ended. */
  close(): void {
    this.#stop(new Fault('ABORTED', 'the sender has ended'))
  }

  /** Gives the offer up because memory is needed. */
  withdraw(): void {
    this.#stop(
      new Fault('MEMORY', 'the pages that were offered had to go: memory was needed', {
        hint: 'raise --max-memory, or send without --dedup',
      }),
    )
  }

  #stop(reason: Fault): void {
    this.#over ??= reason
    this.#onOver()
    for (const extent of this.#pinned.keys()) this.#pool.unpin(extent)
    this.#pinned.clear()
    this.#offered.clear()
    this.#account.close()
    this.#addresses = undefined
  }

  async #make(): Promise<void> {
    await this.#making.take()
    try {
      if (this.#over === undefined) await runInSlices(this.#takeDigests(), LONGEST_SLICE_MS)
    } catch (error) {
      // Memory ran out: the pages that have a number already are offered.
      if (!(error instanceof Fault)) throw error
    } finally {
      this.#making.give()
    }
    if (this.#over !== undefined) return
    this.#addresses ??= new Float64Array()
    for (const extent of this.#pinned.keys()) {
      if (this.#offered.has(extent)) continue
      this.#pinned.delete(extent)
      this.#pool.unpin(extent)
    }
  }

  *#takeDigests(): Generator<void, void> {
    const most = this.#pinAll()
    this.#account.add(most * ENTRY_BYTES + this.#pinned.size * PAGES)
    this.#addresses = new Float64Array(most)
    this.#account.add(most * TABLE_BYTES)
    try {
      yield* this.#numberPages(openPageTable(most))
    } finally {
      this.#account.add(-most * TABLE_BYTES)
    }
  }

  /** Pins the extents of all donors in one slice, before they can go. Returns how many pages donors have. */
  #pinAll(): number {
    let pages = 0
    for (const places of this.#donors()) {
      for (const [address, bytes] of places) {
        const extent = this.#pool.at(address)
        if (extent === undefined) continue
        const marks = this.#pinned.get(extent) ?? new Uint8Array(PAGES)
        if (!this.#pinned.has(extent)) this.#pool.pin(extent)
        this.#pinned.set(extent, marks)
        const first = pageIn(address)
        const count = Math.floor(bytes / PAGE_BYTES)
        marks.fill(1, first, first + count)
        pages += count
        if (pages >= MOST_OFFERED) return MOST_OFFERED
      }
    }
    return pages
  }

  /** Numbers the pages that are offered. After each slice the offer may be over, and its extents not pinned. */
  *#numberPages(table: PageTable): Generator<void, void> {
    for (const [extent, marks] of this.#pinned) {
      if (extent.digests === undefined) {
        this.#pool.charge(DIGESTS_BYTES)
        // This offer itself may have been withdrawn to make room.
        if (this.#over !== undefined) return this.#pool.charge(-DIGESTS_BYTES)
        extent.digests = { words: new Uint32Array(PAGES * DIGEST_WORDS), taken: new Uint8Array(PAGES) }
      }
      const { words, taken } = extent.digests
      for (let page = 0; page < PAGES; page++) {
        if (marks[page] === 0 || extent.holes?.pages[page] === 1) continue
        if (taken[page] === 0) {
          words.set(digestOf(extent.window.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)), page * DIGEST_WORDS)
          taken[page] = 1
        }
        const digest = words.subarray(page * DIGEST_WORDS, (page + 1) * DIGEST_WORDS)
        const address = Number(extent.address) + page * PAGE_BYTES
        if (!equal(digest, zerosDigest) && this.#numberPage(table, digest, address)) this.#offered.add(extent)
        yield
        if (this.#over !== undefined) return
      }
    }
  }

  /** Gives a page the next number unless its content has one, or the table is full. Returns whether it did. */
  #numberPage(table: PageTable, digest: Uint32Array, address: number): boolean {
    const weak = digest[0] as number
    const isEqual = (number: number): boolean => equal(digest, this.#digestAt(this.#addressOf(number)))
    if (table.find(weak, isEqual) !== undefined) return false
    const number = table.add(weak)
    if (number === undefined) return false
    ;(this.#addresses as Float64Array)[number] = address
    this.#total = number + 1
    return true
  }

  #addressOf(number: number): number {
    return (this.#addresses as Float64Array)[number] as number
  }

  #digestAt(address: number): Uint32Array {
    const { words } = (this.#pool.at(address) as Extent).digests as NonNullable<Extent['digests']>
    const at = pageIn(address) * DIGEST_WORDS
    return words.subarray(at, at + DIGEST_WORDS)
  }
}

function digestOf(page: Uint8Array): Uint32Array {
  const words = new Uint32Array(DIGEST_WORDS)
  words[0] = weakDigest(page)
  strongDigest(page, words, 1)
  return words
}

function equal(a: Uint32Array, b: Uint32Array): boolean {
  return a.every((word, index) => word === b[index])
}
