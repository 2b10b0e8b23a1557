/**
 * CRIU's page server: what `criu dump --page-server` and `criu pre-dump --page-server` say on one connection
 * (criu/page-xfer.c), and what they are to be answered. It is told which pages a pagemap has and gets them in the same
 * order, so what comes is nearly the pages image; the records between are taken out.
 *
 *                      cmd u32   nr_pages    vaddr u64   dst_id u64
 *     to CRIU 4.1.1    0         u32 at 4    at 8        at 16        24 bytes
 *     from CRIU 4.2    0         u64 at 8    at 16       at 24        32 bytes; 4 to 7 are not set, nor always zero
 *
 * In host order. The upper half of cmd has the flags of ADD_F, which are those of a pagemap entry; the pages follow the
 * record if they are present. dst_id is the number of a task or of a shared memory object, times 256, plus a type.
 * Nothing says which layout it is. But bytes 16 to 23 of the first record are a dst_id, whose type is never 0, or an
 * address at which a page begins, whose lowest byte always is; in a first CLOSE both are 0, and there the difference is
 * whether 8 more zero bytes come.
 */
import { Fault } from '../fault.ts'
import { type ImageName, imageName } from './names.ts'
import { endOfEntry, flawOf, hex, PAGE_BYTES, type PagemapEntry, pageFlag, presentPages } from './pagemap.ts'

/** Bytes in a record: its layout. */
export const layouts = { old: 24, new: 32 } as const
export type Layout = (typeof layouts)[keyof typeof layouts]

export const psCommand = {
  ADD: 1,
  HOLE: 2,
  OPEN: 3,
  OPEN2: 4,
  PARENT: 5,
  ADD_F: 6,
  GET: 7,
  CLOSE: 0x1023,
  FORCE_CLOSE: 0x1024,
} as const

/** Types of dst_id: the first of each is what CRIU sends, the others are what it sent before 2018. */
const TASK_TYPES: readonly number[] = [1, 10, 11, 16, 17]
const SHMEM_TYPES: readonly number[] = [2, 27, 28, 29, 32, 33, 34]

/** PID_MAX_LIMIT of Linux. */
const MOST_PID = 2 ** 22

/** One record, as it is on the wire. */
export interface PsRecord {
  command: number
  /** The flags of ADD_F are those of a pagemap entry. */
  flags: number
  pages: number
  vaddr: number
  /** The type in dst_id; 0 where there is none. */
  type: number
  /** The number of the task, or of the shared memory object. */
  id: number
}

/** Records for one pagemap, about 60 bytes of memory each; 64 GiB of single pages. */
export const MOST_ENTRIES = 2 ** 24
/**
 * Bytes that are read at once at most, and pages that are given away at once. Single pages come in small reads, a
 * record before each: what the records leave is moved together, so that it goes on in few frames and not in one a page.
 */
const BUFFER_BYTES = 2 ** 20
/** There is room for this many bytes at least: a UNIX socket hands over about 200 KiB. */
const LEAST_ROOM = 2 ** 18

/** What a connection brings, in order. */
export type PageServerEvent =
  /** CRIU waits for these bytes. */
  | { kind: 'reply'; bytes: Uint8Array }
  /** From here on pages are those of this pagemap. */
  | { kind: 'open'; name: ImageName }
  /** Pages, or a part of one, as they follow each other in the pages image: a view, good until the next event. */
  | { kind: 'pages'; bytes: Uint8Array }
  /** The pagemap that was open is complete. */
  | { kind: 'complete'; entries: PagemapEntry[] }
  /** There is no more; CRIU waits for `closeReply`. */
  | { kind: 'close' }

interface OpenPagemap {
  name: ImageName
  inParent: boolean
  lastEnd: number
  entries: PagemapEntry[]
}

/** Decodes what one client of the page server sends. It can be fed in pieces of any size. */
export class PageServerDecoder {
  readonly #hasParent: (name: ImageName) => boolean
  readonly #mostEntries: number
  readonly #nameOf = namer()
  readonly #seen = new Set<ImageName>()
  #open: OpenPagemap | undefined
  #closed = false
  /** Unknown until the first record has come. */
  #layout: Layout | undefined
  /** The beginning of a record whose end has not come, and its length. */
  readonly #head = Buffer.alloc(layouts.new)
  #headLength = 0
  /** Bytes that may belong to a first CLOSE, whose layout cannot be told. */
  #closeTail = 0
  /** Bytes of pages that are still to come. */
  #pagesLeft = 0
  /** First pages that are not given away yet, then bytes that were read and not looked at. */
  readonly #buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES)
  #pagesEnd = 0
  #at = 0
  #end = 0

  /** `hasParent` says whether a pagemap of that name is in the parent, with the pages that CRIU then leaves out. */
  constructor(hasParent: (name: ImageName) => boolean, mostEntries = MOST_ENTRIES) {
    this.#hasParent = hasParent
    this.#mostEntries = mostEntries
  }

  /** Where the next bytes go. */
  room(): Buffer {
    return this.#buffer.subarray(this.#pagesEnd)
  }

  /**
   * Says what the next `bytes` bytes of the room bring. It must be run to its end before the next call. Throws
   * `CRIU_PROTOCOL`, or `LIMIT` for too many entries.
   */
  *push(bytes: number): Generator<PageServerEvent, void, void> {
    this.#at = this.#pagesEnd
    this.#end = this.#pagesEnd + bytes
    if (this.#closed) return this.#checkCloseTail()
    while (this.#at < this.#end) {
      if (this.#pagesLeft > 0) {
        this.#takePages()
        continue
      }
      const record = this.#nextRecord()
      if (record === undefined) break
      checkCommand(record)
      const open = this.#open
      if (open !== undefined && isAdd(record.command) && this.#nameOf(record) === open.name) this.#add(open, record)
      else yield* this.#obey(record)
    }
    if (this.#pagesEnd > BUFFER_BYTES - LEAST_ROOM) yield* this.#givePages()
  }

  /** Checks that the connection may end here. Throws `FAILED_DUMP` unless CLOSE came. */
  end(): void {
    if (this.#closed) return
    const inRecord = this.#headLength > 0 ? ' in the middle of a record' : ''
    const where = this.#pagesLeft > 0 ? ' in the middle of pages' : inRecord
    throw new Fault('FAILED_DUMP', `CRIU left the page server${where}, without CLOSE: the dump did not finish`, {
      hint: "the process was not moved; see the dump's own log",
    })
  }

  /** Moves pages to those that came before them. */
  #takePages(): void {
    const bytes = Math.min(this.#pagesLeft, this.#end - this.#at)
    if (this.#at > this.#pagesEnd) this.#buffer.copyWithin(this.#pagesEnd, this.#at, this.#at + bytes)
    this.#pagesEnd += bytes
    this.#at += bytes
    this.#pagesLeft -= bytes
  }

  /** Undefined if the end of the record is not there. */
  #nextRecord(): PsRecord | undefined {
    if (this.#layout !== undefined && this.#headLength === 0 && this.#end - this.#at >= this.#layout) {
      this.#at += this.#layout
      return decodeRecord(this.#buffer, this.#at - this.#layout, this.#layout)
    }
    const wanted = (this.#layout ?? layouts.old) - this.#headLength
    const copied = this.#buffer.copy(this.#head, this.#headLength, this.#at, Math.min(this.#end, this.#at + wanted))
    this.#headLength += copied
    this.#at += copied
    if (copied < wanted) return undefined
    if (this.#layout === undefined) {
      this.#layout = layoutOf(this.#head)
      if (isClose(this.#head.readUInt16LE(0))) {
        this.#layout = layouts.old
        this.#closeTail = layouts.new - layouts.old
      }
      return this.#nextRecord()
    }
    this.#headLength = 0
    return decodeRecord(this.#head, 0, this.#layout)
  }

  *#obey(record: PsRecord): Generator<PageServerEvent> {
    const { command } = record
    if (isClose(command)) {
      this.#closed = true
      this.#checkCloseTail()
      yield* this.#complete()
      return yield { kind: 'close' }
    }
    const name = this.#nameOf(record)
    if (command === psCommand.PARENT) return yield { kind: 'reply', bytes: int32(this.#hasParent(name) ? 1 : 0) }
    const answered = command === psCommand.OPEN2
    if (command === psCommand.OPEN || answered) return yield* this.#openPagemap(name, answered)
    // CRIU's own page server opens what was never opened, too.
    if (this.#open?.name !== name) yield* this.#openPagemap(name, false)
    if (this.#open !== undefined) this.#add(this.#open, record)
  }

  *#openPagemap(name: ImageName, reply: boolean): Generator<PageServerEvent> {
    if (this.#seen.has(name)) throw refused(`opens ${name} twice`)
    this.#seen.add(name)
    const inParent = this.#hasParent(name)
    if (reply) yield { kind: 'reply', bytes: Uint8Array.of(inParent ? 1 : 0) }
    yield* this.#complete()
    this.#open = { name, inParent, lastEnd: 0, entries: [] }
    yield { kind: 'open', name }
  }

  #add(to: OpenPagemap, { command, vaddr, pages, flags: given }: PsRecord): void {
    const legacy = command === psCommand.ADD ? pageFlag.present : pageFlag.parent
    const entry = { vaddr, pages, flags: command === psCommand.ADD_F ? given : legacy }
    const flaw = flawOf(entry) ?? oddityOf(entry, to)
    if (flaw !== undefined) throw refused(`the entry at ${hex(vaddr)} of ${to.name} ${flaw}`)
    if (to.entries.length >= this.#mostEntries) {
      throw new Fault('LIMIT', `page server: ${to.name} has more than ${this.#mostEntries} entries`)
    }
    to.lastEnd = endOfEntry(entry)
    to.entries.push(entry)
    this.#pagesLeft = presentPages(entry) * PAGE_BYTES
  }

  *#complete(): Generator<PageServerEvent> {
    yield* this.#givePages()
    if (this.#open !== undefined) yield { kind: 'complete', entries: this.#open.entries }
    this.#open = undefined
  }

  *#givePages(): Generator<PageServerEvent> {
    if (this.#pagesEnd > 0) yield { kind: 'pages', bytes: this.#buffer.subarray(0, this.#pagesEnd) }
    this.#pagesEnd = 0
  }

  #checkCloseTail(): void {
    this.#closeTail -= this.#end - this.#at
    if (this.#closeTail < 0) throw refused('goes on after CLOSE')
    this.#at = this.#end
  }
}

/** What CRIU gets as the answer to CLOSE: with `false` its dump fails. */
export function closeReply(ok: boolean): Uint8Array {
  return int32(ok ? 0 : -1)
}

function isClose(command: number): boolean {
  return command === psCommand.CLOSE || command === psCommand.FORCE_CLOSE
}

function isAdd(command: number): boolean {
  return command === psCommand.ADD_F || command === psCommand.ADD || command === psCommand.HOLE
}

/** What an entry may not be here, beside what none may be. */
function oddityOf({ vaddr, flags }: PagemapEntry, { inParent, lastEnd }: OpenPagemap): string | undefined {
  if (vaddr < lastEnd) return 'is out of order'
  if ((flags & pageFlag.parent) !== 0) return inParent ? undefined : 'is said to be in a parent, and there is none'
  return (flags & pageFlag.present) === 0 ? 'has no pages with it (lazy pages)' : undefined
}

function int32(value: number): Uint8Array {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32LE(value)
  return bytes
}

/** Throws nothing: the fields are checked by who uses them. */
export function decodeRecord(bytes: Buffer, at: number, layout: Layout): PsRecord {
  const command = bytes.readUInt32LE(at)
  const dst = at + layout - 8
  return {
    command: command % 2 ** 16,
    flags: command >>> 16,
    pages: layout === layouts.old ? bytes.readUInt32LE(at + 4) : u64(bytes, at + 8),
    vaddr: u64(bytes, at + layout - 16),
    type: bytes.readUInt8(dst),
    id: bytes.readUInt32LE(dst + 4) * 2 ** 24 + (bytes.readUInt32LE(dst) >>> 8),
  }
}

/** The layout of a connection, told from its first record, which must not be a CLOSE. */
function layoutOf(first: Buffer): Layout {
  return first.readUInt8(layouts.old - 8) === 0 ? layouts.new : layouts.old
}

const known: ReadonlySet<number> = new Set(Object.values(psCommand))

function checkCommand({ command, flags }: PsRecord): void {
  if (!known.has(command)) throw refused(`sends the unknown command ${hex(command)}`)
  if (command === psCommand.GET) throw refused('asks for pages (GET): lazy pages are not served')
  if (flags !== 0 && command !== psCommand.ADD_F) {
    throw refused(`sends the command ${hex(command)} with flags ${hex(flags)}`)
  }
}

/** The name of the pagemap with a dst_id. Throws `CRIU_PROTOCOL`. */
function namer(): (said: PsRecord) => ImageName {
  let last: { type: number; id: number; name: ImageName } | undefined
  return ({ type, id }) => {
    if (last?.id === id && last.type === type) return last.name
    const [isTask, isShmem] = [TASK_TYPES.includes(type), SHMEM_TYPES.includes(type)]
    if (!isTask && !isShmem) throw refused(`names pages of the unknown type ${type}`)
    const most = isTask ? MOST_PID : Number.MAX_SAFE_INTEGER
    if (id > most || (isTask && id === 0)) throw refused(`names pages of ${isTask ? 'task' : 'shared memory'} ${id}`)
    last = { type, id, name: imageName(isTask ? `pagemap-${id}.img` : `pagemap-shmem-${id}.img`) }
    return last.name
  }
}

function refused(what: string): Fault {
  return new Fault('CRIU_PROTOCOL', `the client of the page server ${what}`)
}

/** Exact up to 2^53, and too large above. */
function u64(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at + 4) * 2 ** 32 + bytes.readUInt32LE(at)
}
