/**
 * What a cache offers to one sender: digests of pages that it holds, so that the sender need not send them again.
 *
 * Digests are our own, taken from what lies here: what a peer says of a page decides only what becomes of that peer's own snapshot. They are
 * taken when a sender asks for the first time after the page came, and kept with the extent. What was offered is pinned until the sender has ended: a snapshot that
 * is dropped meanwhile leaves its pages here. When memory runs out, the offer of a sender that has been silent for long is withdrawn.
 */
import { Fault } from '../fault.ts'
import { DIGEST_WORDS, MOST_OFFERED, MOST_RECALLED, strongDigest, weakDigest } from '../format/page-digest.ts'
import { openPageTable, type PageTable } from '../format/page-table.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { semaphore } from '../stream/semaphore.ts'
import { runInSlices } from './in-turns.ts'
import type { Place, Places } from './memory.ts'
import { DIGESTS_BYTES, EXTENT, type Extent, PAGES, type Pool } from './pool.ts'

export interface DedupIndex {
  /** For one sender: of the pages in `donors`, those that come first first. `donors` is asked when the sender asks. */
  open(donors: () => Iterable<Places>): DedupOffer
  /** Withdraws the one that was not used for longest, if that is at least `ms`. */
  withdrawIdle(ms: number): boolean
}

export interface DedupOffer {
  /**
   * The digests of the next pages, of `total` in all; `from` is how many the sender has. Throws `FORMAT` where it has others, or asks before it has its
   * answer.
   */
  recall(from: number): Promise<{ total: number; digests: Uint32Array }>
  /** Where so many pages lie, from this number on. Throws `FORMAT` for those whose digests were not given out, `MEMORY` where they had to go. */
  places(first: number, pages: number): Place[]
  /** The sender is not silent. */
  used(): void
  close(): void
}

/** Others wait no longer than about this: an image may come meanwhile. */
const LONGEST_TURN_MS = 3
/** A page's address. */
const ENTRY_BYTES = 8
/** What it takes to find the pages that are here twice. */
const TABLE_BYTES = 24

export function openDedupIndex(pool: Pool): DedupIndex {
  const open = new Map<DedupOffer, { since: number; withdraw: () => void }>()
  /** One is made at a time. */
  const making = semaphore(1)
  const nothing = digestOf(Buffer.alloc(PAGE_BYTES))

  function openOffer(donors: () => Iterable<Places>): DedupOffer {
    const state = { since: performance.now(), withdraw }
    const pinned = new Map<Extent, Uint8Array>()
    /** Those of which a page is offered. */
    const kept = new Set<Extent>()
    let addresses: Float64Array | undefined
    let total = 0
    let given = 0
    let charged = 0
    let answering = false
    let over: Fault | undefined

    /** The room may be what this very offer had to leave. */
    function charge(bytes: number): void {
      pool.charge(bytes)
      if (over === undefined) return
      pool.charge(-bytes)
      throw over
    }

    function stop(reason: Fault): void {
      over ??= reason
      open.delete(offer)
      for (const extent of pinned.keys()) pool.unpin(extent)
      pinned.clear()
      kept.clear()
      pool.charge(-charged)
      charged = 0
      addresses = undefined
    }

    function withdraw(): void {
      stop(
        new Fault('MEMORY', 'the pages that were offered had to go: memory was needed', {
          hint: 'raise --max-memory, or send without --dedup',
        }),
      )
    }

    /** Nothing of it may go from here on: it is all done in one turn. Returns how many pages there are. */
    function pinAll(): number {
      let pages = 0
      for (const places of donors()) {
        for (const [address, bytes] of places) {
          const extent = pool.at(address)
          if (extent === undefined) continue
          const marks = pinned.get(extent) ?? new Uint8Array(PAGES)
          if (!pinned.has(extent)) pool.pin(extent)
          pinned.set(extent, marks)
          const first = (address % EXTENT) / PAGE_BYTES
          const count = Math.floor(bytes / PAGE_BYTES)
          marks.fill(1, first, first + count)
          pages += count
          if (pages >= MOST_OFFERED) return MOST_OFFERED
        }
      }
      return pages
    }

    /** After each turn of others it may be over, and the extents are somebody else's. */
    function* takeDigests(): Generator<void, void> {
      const most = pinAll()
      const own = most * ENTRY_BYTES + pinned.size * PAGES
      charge(own)
      charged += own
      addresses = new Float64Array(most)
      charge(most * TABLE_BYTES)
      try {
        yield* number(openPageTable(most))
      } finally {
        pool.charge(-most * TABLE_BYTES)
      }
    }

    function* number(table: PageTable): Generator<void, void> {
      for (const [extent, marks] of pinned) {
        if (extent.digests === undefined) {
          charge(DIGESTS_BYTES)
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
          if (!equal(digest, nothing) && note(table, digest, Number(extent.address) + page * PAGE_BYTES))
            kept.add(extent)
          yield
          if (over !== undefined) return
        }
      }
    }

    /** Returns whether it is one more. */
    function note(table: PageTable, digest: Uint32Array, address: number): boolean {
      const weak = digest[0] as number
      const known = addresses as Float64Array
      if (table.find(weak, (number) => equal(digest, digestAt(known[number] as number))) !== undefined) return false
      const number = table.add(weak)
      if (number === undefined) return false
      known[number] = address
      total = number + 1
      return true
    }

    function digestAt(address: number): Uint32Array {
      const { words } = (pool.at(address) as Extent).digests as NonNullable<Extent['digests']>
      const at = ((address % EXTENT) / PAGE_BYTES) * DIGEST_WORDS
      return words.subarray(at, at + DIGEST_WORDS)
    }

    async function make(): Promise<void> {
      await making.take()
      try {
        if (over === undefined) await runInSlices(takeDigests(), LONGEST_TURN_MS)
      } catch (error) {
        // What there is so far is enough.
        if (!(error instanceof Fault)) throw error
      } finally {
        making.give()
      }
      if (over !== undefined) return
      addresses ??= new Float64Array()
      for (const extent of pinned.keys()) {
        if (kept.has(extent)) continue
        pinned.delete(extent)
        pool.unpin(extent)
      }
    }

    const offer: DedupOffer = {
      async recall(from) {
        if (over !== undefined) throw over
        if (from !== given || answering)
          throw new Fault('FORMAT', `a recall from page ${from}, of ${given} given so far`)
        answering = true
        if (addresses === undefined) await make()
        answering = false
        state.since = performance.now()
        const count = over === undefined ? Math.min(total - given, MOST_RECALLED) : 0
        const digests = new Uint32Array(count * DIGEST_WORDS)
        for (let at = 0; at < count; at++) {
          digests.set(digestAt((addresses as Float64Array)[given + at] as number), at * DIGEST_WORDS)
        }
        given += count
        return { total: over === undefined ? total : given, digests }
      },
      places(first, pages) {
        if (over !== undefined) throw over
        if (first + pages > given) {
          throw new Fault('FORMAT', `pages ${first} to ${first + pages - 1} were not offered: there are ${given}`)
        }
        const places: Place[] = []
        for (let number = first; number < first + pages; number++) {
          const address = (addresses as Float64Array)[number] as number
          const last = places.at(-1)
          if (last !== undefined && last[0] + last[1] === address && address % EXTENT !== 0) last[1] += PAGE_BYTES
          else places.push([address, PAGE_BYTES])
        }
        return places
      },
      used() {
        state.since = performance.now()
      },
      close: () => stop(new Fault('ABORTED', 'the sender has ended')),
    }
    open.set(offer, state)
    return offer
  }

  return {
    open: openOffer,
    withdrawIdle(ms) {
      const [oldest] = [...open.values()].sort((a, b) => a.since - b.since)
      if (oldest === undefined || performance.now() - oldest.since < ms) return false
      oldest.withdraw()
      return true
    },
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
