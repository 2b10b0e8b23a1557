/**
 * The pages of one pagemap where all of them lie in memory: as runs, in columns, because there may be one for every
 * page.
 *
 * A layer over the pages below it gives such pages again: each page once, from the newest that has it. So a chain is
 * folded as it grows, one round at a time, and what no round above can need any more is known at once. Where layers are
 * files, lib/format/chain-plan.ts finds the same without holding any of it.
 */
import { Fault } from '../fault.ts'
import { hex, joins, PAGE_BYTES, type PagemapEntry, pageFlag } from './pagemap.ts'

/** Consecutive pages of one kind, side by side in memory: in order of `vaddr`. */
export interface Runs {
  count: number
  vaddr: Float64Array
  pages: Float64Array
  flags: Uint8Array
  /** Where the bytes of the first page lie; 0 where there are none. */
  address: Float64Array
  charge: Charge
}

/** Pages at an address. */
export type Range = [address: number, pages: number]
/** Counts what runs take; a negative number gives it back. May throw. */
export type Charge = (bytes: number) => void

/** Steps between two that others get a turn after. */
const STEPS = 2 ** 14
const FIRST = 64
/** Three columns of 8 bytes, and one of 1. */
const RUN_BYTES = 25
/** 128 GiB of which no two pages are side by side, in 1.7 GB of ours. */
const MOST_RUNS = 2 ** 25

function emptyRuns(charge: Charge): Runs {
  return {
    count: 0,
    vaddr: new Float64Array(FIRST),
    pages: new Float64Array(FIRST),
    flags: new Uint8Array(FIRST),
    address: new Float64Array(FIRST),
    charge,
  }
}

/** They are of no use any more: what they take beyond the least is given back. */
export function closeRuns({ vaddr, charge }: Runs): void {
  charge((FIRST - vaddr.length) * RUN_BYTES)
}

function push(runs: Runs, vaddr: number, pages: number, flags: number, address: number): void {
  if (runs.count === MOST_RUNS) throw new Fault('LIMIT', `a pagemap of more than ${MOST_RUNS} ranges`)
  const at = runs.count++
  if (at === runs.vaddr.length) grow(runs)
  runs.vaddr[at] = vaddr
  runs.pages[at] = pages
  runs.flags[at] = flags
  runs.address[at] = address
}

function grow(runs: Runs): void {
  const { vaddr, pages, flags, address } = runs
  const most = 2 * vaddr.length
  runs.charge(vaddr.length * RUN_BYTES)
  runs.vaddr = new Float64Array(most)
  runs.pages = new Float64Array(most)
  runs.flags = new Uint8Array(most)
  runs.address = new Float64Array(most)
  runs.vaddr.set(vaddr)
  runs.pages.set(pages)
  runs.flags.set(flags)
  runs.address.set(address)
}

/**
 * The runs of a pagemap whose pages lie, in order, at these addresses. Those in the parent have no address. Throws
 * `FORMAT` unless there are just as many pages, and what `batches` throws. Yields after each batch.
 */
export function* pageRunsOf(
  batches: Iterable<readonly PagemapEntry[]>,
  ranges: Iterable<Range>,
  charge: Charge = () => {},
): Generator<void, Runs> {
  const runs = emptyRuns(charge)
  const rest = ranges[Symbol.iterator]()
  let address = 0
  let left = 0

  function add({ vaddr, pages, flags }: PagemapEntry): void {
    if ((flags & pageFlag.present) === 0) {
      push(runs, vaddr, pages, flags, 0)
      return
    }
    for (let done = 0; done < pages; ) {
      while (left === 0) {
        const next = rest.next()
        if (next.done === true) throw unequal('fewer')
        ;[address, left] = next.value
      }
      const some = Math.min(left, pages - done)
      push(runs, vaddr + done * PAGE_BYTES, some, flags, address)
      done += some
      left -= some
      address += some * PAGE_BYTES
    }
  }

  for (const batch of batches) {
    batch.forEach(add)
    yield
  }
  if (left > 0 || rest.next().done !== true) throw unequal('more')
  return runs
}

function unequal(how: string): Fault {
  return new Fault('FORMAT', `there are ${how} pages than it says`, {
    hint: `it was changed, or made where a page is not ${PAGE_BYTES} bytes`,
  })
}

/**
 * `newer` with what it has in its parent, which is `older`: nothing of it is in a parent any more. `unused` is told of
 * the ranges of `older` that are not in it. Throws `MISSING` for a page that `older` does not have. Yields from time to
 * time.
 */
export function* overlay(
  newer: Runs,
  older: Runs | undefined,
  unused: (address: number, pages: number) => void,
): Generator<void, Runs> {
  const merged = emptyRuns(newer.charge)
  const count = older?.count ?? 0
  let below = 0
  /** Pages of the run below that are behind us. */
  let passed = 0

  /** Lets go of the pages below before `vaddr`. */
  function skipTo(vaddr: number): void {
    for (; older !== undefined && below < count; below++) {
      const begin = older.vaddr[below] as number
      const pages = older.pages[below] as number
      const until = Math.min(pages, Math.max(passed, (vaddr - begin) / PAGE_BYTES))
      const address = older.address[below] as number
      if (address !== 0 && until > passed) unused(address + passed * PAGE_BYTES, until - passed)
      passed = until
      if (passed < pages) return
      passed = 0
    }
  }

  // V8 does not optimize a loop inside of a generator: it calls what is to be fast.
  function place(at: number): void {
    const flags = newer.flags[at] as number
    const pages = newer.pages[at] as number
    let vaddr = newer.vaddr[at] as number
    if ((flags & pageFlag.parent) === 0) {
      push(merged, vaddr, pages, flags, newer.address[at] as number)
      return
    }
    for (let left = pages; left > 0; ) {
      skipTo(vaddr)
      if (older === undefined || below >= count) throw missing(vaddr)
      const begin = (older.vaddr[below] as number) + passed * PAGE_BYTES
      if (begin !== vaddr) throw missing(vaddr)
      const some = Math.min(left, (older.pages[below] as number) - passed)
      const address = older.address[below] as number
      push(merged, vaddr, some, older.flags[below] as number, address === 0 ? 0 : address + passed * PAGE_BYTES)
      passed += some
      left -= some
      vaddr += some * PAGE_BYTES
    }
  }

  for (let at = 0; at < newer.count; at++) {
    if (at % STEPS === 0) yield
    place(at)
  }
  skipTo(Number.POSITIVE_INFINITY)
  return merged
}

function missing(vaddr: number): Fault {
  return new Fault('MISSING', `the page at ${hex(vaddr)} is said to be in a round before, and none has it`, {
    hint: 'another dump came between the rounds, or one was lost: begin a new chain',
  })
}

/** As entries of a pagemap: neighbours of one kind are one, wherever they lie. */
export function* entriesOf({ count, vaddr, pages, flags }: Runs): Generator<PagemapEntry> {
  let last: PagemapEntry | undefined
  for (let at = 0; at < count; at++) {
    const next = { vaddr: vaddr[at] as number, pages: pages[at] as number, flags: flags[at] as number }
    if (last !== undefined && joins(last, next)) {
      last.pages += next.pages
      continue
    }
    if (last !== undefined) yield last
    last = next
  }
  if (last !== undefined) yield last
}

/**
 * Where the bytes of its pages are, in order: neighbours in memory are one, unless there is a multiple of `within`
 * between them.
 */
export function* rangesOf({ count, pages, address }: Runs, within: number): Generator<Range> {
  let [begin, end] = [0, 0]
  for (let at = 0; at < count; at++) {
    const next = address[at] as number
    if (next === 0) continue
    if (next !== end || end % within === 0) {
      if (end > begin) yield [begin, (end - begin) / PAGE_BYTES]
      begin = next
      end = next
    }
    end += (pages[at] as number) * PAGE_BYTES
  }
  if (end > begin) yield [begin, (end - begin) / PAGE_BYTES]
}
