/**
 * CRIU's pagemap images (`pagemap-N.img`, `pagemap-shmem-N.img`): which pages of a process, or of a shared memory
 * object, are in `pages-N.img`, in the order in which they stand there, and which are in the image of the same name in
 * the parent directory.
 *
 *     head     common magic u32 | pagemap magic u32
 *     first    size u32 | protobuf: pages_id = 1
 *     entries  size u32 | protobuf: vaddr = 1, nr_pages (u32) = 2, in_parent = 3, flags = 4, nr_pages (u64) = 5
 *
 * CRIU 4.1 and older know only the first nr_pages; 4.2 and newer write 0 there and the count into the second, and read
 * either. What is encoded here has both, so every release reads it. `in_parent` is what there was before flags.
 */
import { Fault } from '../fault.ts'

export const PAGE_BYTES = 4096
/** Images of nothing but pages. */
export const pagesPattern = /^pages-\d+\.img$/

/**
 * Every task with memory has an `mm-N.img`. Throws `FAILED_DUMP` where one has no pagemap; `where`: ends the words
 * `there is no pagemap-N.img`.
 */
export function checkPagemaps(names: Iterable<string>, where = ''): void {
  const all = new Set(names)
  const lost = [...all].map((name) => name.replace(/^mm-(?=\d+\.img$)/, 'pagemap-')).find((name) => !all.has(name))
  if (lost === undefined) return
  throw new Fault('FAILED_DUMP', `there is no ${lost}${where}: pages of this dump went elsewhere`, {
    hint: "a page server's pagemap-*.img and pages-*.img belong to the dump's other images",
  })
}

/** `flags` of an entry: CRIU's PE_PARENT, PE_LAZY, PE_PRESENT. Only a present page has bytes in the pages image. */
export const pageFlag = { parent: 1, lazy: 2, present: 4 } as const
const KNOWN_FLAGS = pageFlag.parent | pageFlag.lazy | pageFlag.present

/** Consecutive pages of one kind. */
export interface PagemapEntry {
  /** Address of the first; in a shared memory object its offset. */
  vaddr: number
  pages: number
  flags: number
}

const COMMON_MAGIC = 0x54564319
const PAGEMAP_MAGIC = 0x56084025
const HEAD_BYTES = 8
const SIZE_BYTES = 4
/** An entry with all five fields has at most 36 bytes. */
const MOST_ENTRY = 64
/** What the older of the two counts holds: 16 TiB. */
export const MOST_PAGES = 2 ** 32 - 1
/** The fields that we know: 1 to this. */
const FIRST_FIELDS = 1
const ENTRY_FIELDS = 5
/** So much of one is read between two looks at the clock: some 3,000 entries. */
export const PAGEMAP_STEP = 2 ** 16
/** The encoder gives its entries away in pieces of about this size. */
const PIECE_BYTES = 2 ** 16

/** Takes a pagemap image in chunks of any size, and keeps no more of it than a part of one entry. */
export class PagemapDecoder {
  /** The N of `pages-N.img`, once its bytes have come. */
  pagesId: number | undefined
  #pending: Uint8Array = new Uint8Array(0)
  #headSeen = false
  #lastEnd = 0

  /** The entries that these bytes complete. Throws `FORMAT` or `LIMIT`. */
  push(bytes: Uint8Array): PagemapEntry[] {
    const all = Buffer.concat([this.#pending, bytes])
    const entries: PagemapEntry[] = []
    let at = 0
    if (!this.#headSeen && all.length >= HEAD_BYTES) {
      checkHead(all)
      this.#headSeen = true
      at = HEAD_BYTES
    }
    while (this.#headSeen && all.length - at >= SIZE_BYTES) {
      const size = all.readUInt32LE(at)
      const begin = at + SIZE_BYTES
      const end = begin + Math.min(size, MOST_ENTRY)
      if (all.length < end) break
      if (size > MOST_ENTRY) {
        throw tooLong(size, all.subarray(begin, end), this.pagesId === undefined ? FIRST_FIELDS : ENTRY_FIELDS)
      }
      if (this.pagesId === undefined) this.pagesId = decodeFirst(all.subarray(begin, end))
      else entries.push(this.#inOrder(decodeEntry(all, begin, end)))
      at = end
    }
    this.#pending = Uint8Array.from(all.subarray(at)) // not a view, which would hold the whole chunk
    return entries
  }

  /** There are no more bytes. Throws `FORMAT`. */
  end(): void {
    if (this.#pending.length > 0 || this.pagesId === undefined) throw new Fault('FORMAT', 'a pagemap that is cut off')
  }

  #inOrder(entry: PagemapEntry): PagemapEntry {
    if (entry.vaddr < this.#lastEnd) throw new Fault('FORMAT', `pagemap entries out of order at ${hex(entry.vaddr)}`)
    this.#lastEnd = endOfEntry(entry)
    return entry
  }
}

/**
 * A pagemap that is read on as its entries are asked for: one by one, or those of a chunk together, which takes half
 * the time.
 */
export interface ReadPagemap {
  pagesId: number
  entries: Iterable<PagemapEntry>
  batches: Iterable<PagemapEntry[]>
}

/** The same for one whose bytes are at hand. Throws `FORMAT` or `LIMIT`. */
export function readPagemap(chunks: Iterable<Uint8Array>): ReadPagemap {
  const decoder = new PagemapDecoder()
  const rest = chunks[Symbol.iterator]()
  const more = (): PagemapEntry[] | undefined => {
    const next = rest.next()
    if (next.done === true) return void decoder.end()
    return decoder.push(next.value)
  }
  let list = more()
  while (decoder.pagesId === undefined) list = more()
  // One generator and not several in each other: each of them takes as long as the decoding.
  function* entries(): Generator<PagemapEntry> {
    for (; list !== undefined; list = more()) for (const entry of list) yield entry
  }
  function* batches(): Generator<PagemapEntry[]> {
    for (; list !== undefined; list = more()) yield list
  }
  return { pagesId: decoder.pagesId as number, entries: entries(), batches: batches() }
}

/** The image of entries that are in order and do not overlap. Throws `LIMIT`. */
export function* encodePagemap(pagesId: number, entries: Iterable<PagemapEntry>): Generator<Buffer> {
  let piece = Buffer.allocUnsafe(PIECE_BYTES + MOST_ENTRY)
  piece.writeUInt32LE(COMMON_MAGIC, 0)
  piece.writeUInt32LE(PAGEMAP_MAGIC, 4)
  let at = encodeFields(piece, HEAD_BYTES, [pagesId])
  for (const { vaddr, pages, flags } of entries) {
    if (pages > MOST_PAGES) throw new Fault('LIMIT', `a pagemap entry of ${pages} pages, at most ${MOST_PAGES} fit`)
    at = encodeFields(piece, at, [vaddr, pages, undefined, flags, pages])
    if (at < PIECE_BYTES) continue
    yield piece.subarray(0, at)
    piece = Buffer.allocUnsafe(PIECE_BYTES + MOST_ENTRY)
    at = 0
  }
  if (at > 0) yield piece.subarray(0, at)
}

/** A size, and the fields 1, 2 and so on. Returns where it ends. By hand: protobufjs takes ten times as long. */
function encodeFields(into: Buffer, begin: number, values: readonly (number | undefined)[]): number {
  let at = begin + SIZE_BYTES
  for (let field = 1; field <= values.length; field++) {
    let rest = values[field - 1]
    if (rest === undefined) continue
    into[at++] = field * 8
    for (; rest >= 128; rest = Math.floor(rest / 128)) into[at++] = (rest % 128) | 128
    into[at++] = rest
  }
  into.writeUInt32LE(at - begin - SIZE_BYTES, begin)
  return at
}

/** Pages that an entry has in the pages image. */
export function presentPages({ pages, flags }: PagemapEntry): number {
  return (flags & pageFlag.present) === 0 ? 0 : pages
}

/** The address after its last page. */
export function endOfEntry({ vaddr, pages }: PagemapEntry): number {
  return vaddr + pages * PAGE_BYTES
}

/** Whether one entry can stand for both: the second is of the same kind, and comes right behind the first. */
export function joins(first: PagemapEntry, second: PagemapEntry): boolean {
  const pages = first.pages + second.pages
  return endOfEntry(first) === second.vaddr && first.flags === second.flags && pages <= MOST_PAGES
}

/** An address as people know it. */
export function hex(vaddr: number): string {
  return `0x${vaddr.toString(16)}`
}

function checkHead(bytes: Buffer): void {
  if (bytes.readUInt32LE(0) === COMMON_MAGIC && bytes.readUInt32LE(4) === PAGEMAP_MAGIC) return
  throw new Fault('FORMAT', 'not a pagemap image of CRIU')
}

function decodeFirst(body: Uint8Array): number {
  const pagesId = decodeFields(body, FIRST_FIELDS)[1] as number
  if (pagesId === NONE) throw new Fault('FORMAT', 'a pagemap that does not name its pages image')
  if (pagesId > MOST_PAGES) throw new Fault('LIMIT', `pages-${pagesId}.img in a pagemap: the number is too large`)
  return pagesId
}

function decodeEntry(bytes: Uint8Array, begin: number, end: number): PagemapEntry {
  const found = decodeFields(bytes, ENTRY_FIELDS, begin, end)
  const vaddr = found[1] as number
  const oldPages = found[2] as number
  const given = found[4] as number
  if (vaddr === NONE || oldPages === NONE) throw new Fault('FORMAT', 'a pagemap entry without an address or a count')
  const pages = found[5] === NONE ? oldPages : (found[5] as number)
  const inParent = (found[3] as number) > 0
  const flags = inParent ? Math.max(given, 0) | pageFlag.parent : given === NONE ? pageFlag.present : given
  const entry = { vaddr, pages, flags }
  if (oldPages !== 0 && oldPages !== pages) throw refused(entry, `counts ${oldPages} pages and ${pages}`)
  const flaw = flawOf(entry)
  if (flaw !== undefined) throw refused(entry, flaw)
  return entry
}

/** What no entry may be, for a message that names its address; undefined where all is well. */
export function flawOf({ vaddr, pages, flags }: PagemapEntry): string | undefined {
  if (pages === 0) return 'has no pages'
  if (pages > MOST_PAGES || vaddr + pages * PAGE_BYTES > Number.MAX_SAFE_INTEGER) return `has ${pages} pages: too many`
  if (vaddr % PAGE_BYTES !== 0) return 'does not begin at a page'
  if (flags > KNOWN_FLAGS) return `has flags ${hex(flags)}, known are ${hex(KNOWN_FLAGS)}`
  if (flags === 0) return 'is said to be nowhere (flags 0)'
  const kinds = pageFlag.parent | pageFlag.present
  return (flags & kinds) === kinds ? `is said to be in the parent and not (flags ${flags})` : undefined
}

function refused({ vaddr }: PagemapEntry, what: string): Fault {
  return new Fault('FORMAT', `the pagemap entry at ${hex(vaddr)} ${what}`)
}

/** Named after a field that we do not know, if it begins with one that is so long. */
function tooLong(size: number, beginning: Uint8Array, known: number): Fault {
  decodeFields(beginning, known)
  return new Fault('LIMIT', `a pagemap entry of ${size} bytes, at most ${MOST_ENTRY} are known`)
}

/** The values of a message whose fields 1 to `known` are all numbers, by field number; until the next call. */
function decodeFields(body: Uint8Array, known: number, begin = 0, end = body.length): Float64Array {
  fields.fill(NONE)
  for (next = begin; next < end; ) {
    const tag = varint(body, end)
    const field = Math.floor(tag / 8)
    if (field > known) {
      throw new Fault('FORMAT', `a pagemap with field ${field}, known are 1 to ${known}`, {
        hint: 'a newer CRIU made it; compressed images are not understood',
      })
    }
    if (field === 0 || tag % 8 !== 0) throw new Fault('FORMAT', 'a damaged pagemap entry')
    fields[field] = varint(body, end)
  }
  return fields
}

/** What was decoded last, and where the next varint begins: not made anew for each of many entries. */
const fields = new Float64Array(ENTRY_FIELDS + 1)
const NONE = -1
let next = 0

function varint(body: Uint8Array, end: number): number {
  let value = 0
  for (let scale = 1; scale < 2 ** 70; scale *= 128) {
    const byte = next < end ? body[next++] : undefined
    if (byte === undefined) throw new Fault('FORMAT', 'a damaged pagemap entry')
    value += (byte & 127) * scale
    if (value > Number.MAX_SAFE_INTEGER) throw new Fault('LIMIT', 'a number in a pagemap is too large')
    if (byte < 128) return value
  }
  throw new Fault('FORMAT', 'a damaged pagemap entry')
}
