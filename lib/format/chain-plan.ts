/**
 * A chain of incremental dumps as one: each page of the newest once, from the newest layer that has it.
 *
 * A layer is the pagemap of one process, or of one shared memory object, in one dump of the chain. Only the newest says
 * which pages there are; a page that it has in its parent is looked up there, and so on down. All entries are in order
 * of their addresses, and so is what is looked up: every layer is read once, from its beginning to its end, and nothing
 * of it is kept.
 */
import { Fault } from '../fault.ts'
import { endOfEntry, hex, joins, PAGE_BYTES, type PagemapEntry, pageFlag, presentPages } from './pagemap.ts'

/** Consecutive pages that stand in one layer's pages image, one behind the other; or that no image has (lazy ones). */
export interface PlannedRange extends PagemapEntry {
  /** The layer whose pages image has them: 0 is the newest. */
  layer: number
  /** How many pages stand before them in that image. */
  offset: number
}

/** Finds all of `[vaddr, end)`, which is behind what was asked for before, in a layer or below it. */
type Find = (vaddr: number, end: number) => Generator<PlannedRange>

/**
 * The plan of a flattened dump, in order of addresses. `layers`: the newest first. Throws `MISSING` for a page that is
 * in no layer, and whatever the layers throw.
 */
export function planChain(layers: readonly Iterable<PagemapEntry>[]): Generator<PlannedRange> {
  return joined(resolved(layers), (last, next) => last.layer === next.layer)
}

/** The entries of the flattened dump's pagemap. */
export function plannedEntries(ranges: Iterable<PlannedRange>): Generator<PagemapEntry> {
  return joined(ranges, () => true)
}

function* resolved([newest = [], ...older]: readonly Iterable<PagemapEntry>[]): Generator<PlannedRange> {
  let below: Find | undefined
  for (let layer = older.length; layer > 0; layer--) below = layerOf(layer, older[layer - 1] ?? [], below)
  let offset = 0
  for (const entry of newest) {
    yield* pagesOf(entry, 0, offset, below)
    offset += presentPages(entry)
  }
}

/** `entry` as ranges: itself, which stands at `offset` in its own image, or what is in the layers below. */
function* pagesOf(
  entry: PagemapEntry,
  layer: number,
  offset: number,
  below: Find | undefined,
): Generator<PlannedRange> {
  if ((entry.flags & pageFlag.parent) === 0) yield { ...entry, layer, offset }
  else if (below === undefined) throw missing(entry.vaddr)
  else yield* below(entry.vaddr, endOfEntry(entry))
}

function layerOf(layer: number, entries: Iterable<PagemapEntry>, below: Find | undefined): Find {
  const rest = entries[Symbol.iterator]()
  let entry: PagemapEntry | undefined
  let offset = 0

  /** Steps to the entry that holds `vaddr`. */
  function seek(vaddr: number): PagemapEntry {
    while (entry === undefined || endOfEntry(entry) <= vaddr) {
      if (entry !== undefined) offset += presentPages(entry)
      const next = rest.next()
      if (next.done === true) throw missing(vaddr)
      entry = next.value
    }
    if (entry.vaddr > vaddr) throw missing(vaddr)
    return entry
  }

  return function* find(vaddr, end) {
    for (let at = vaddr; at < end; ) {
      const { vaddr: begin, flags, ...found } = seek(at)
      const until = Math.min(end, begin + found.pages * PAGE_BYTES)
      const part = { vaddr: at, pages: (until - at) / PAGE_BYTES, flags }
      const before = presentPages({ vaddr: begin, pages: (at - begin) / PAGE_BYTES, flags })
      yield* pagesOf(part, layer, offset + before, below)
      at = until
    }
  }
}

function missing(vaddr: number): Fault {
  return new Fault('MISSING', `the page at ${hex(vaddr)} is said to be in a parent, and no parent has it`, {
    hint: 'a parent of this dump was changed, or is another one',
  })
}

/** Neighbours of the same flags as one, where `fits` agrees. Those of one layer stand side by side in its image too. */
function* joined<Range extends PagemapEntry>(
  ranges: Iterable<Range>,
  fits: (last: Range, next: Range) => boolean,
): Generator<Range> {
  let last: Range | undefined
  for (const next of ranges) {
    if (last !== undefined && joins(last, next) && fits(last, next)) {
      last = { ...last, pages: last.pages + next.pages }
      continue
    }
    if (last !== undefined) yield last
    last = next
  }
  if (last !== undefined) yield last
}
