/**
 * CRIU's page server: what `criu dump --page-server` and `criu pre-dump --page-server` say on one connection, and what they are to be
 * answered. It is told which pages a pagemap has and gets them in the same order, so what comes is nearly the pages image; the records between
 * are taken out.
 */
import { Fault } from '../fault.ts'
import type { ImageName } from './names.ts'
import {
  checkCommand,
  decodeRecord,
  type Layout,
  layoutOf,
  layouts,
  namer,
  type PsRecord,
  psCommand,
  refused,
} from './page-record.ts'
import { endOf, flawOf, hex, PAGE_BYTES, type PagemapEntry, pageFlag, presentPages } from './pagemap.ts'

/** Records for one pagemap, about 60 bytes of memory each; 64 GiB of single pages. */
export const MOST_ENTRIES = 2 ** 24
/** Pages that come after a record in one piece of this size are not moved to those before it. */
const PIECE_OF_ITS_OWN = 64 * 2 ** 10

/** What a connection brings, in order. */
export type PageServerEvent =
  /** CRIU waits for these bytes. */
  | { kind: 'reply'; bytes: Uint8Array }
  /** From here on pages are those of this pagemap. */
  | { kind: 'open'; name: ImageName }
  /** Pages, or a part of one, as they follow each other in the pages image: a view, and the bytes between it and the next one are lost. */
  | { kind: 'pages'; bytes: Uint8Array }
  /** The pagemap that was open is complete. */
  | { kind: 'complete'; entries: PagemapEntry[] }
  /** There is no more; CRIU waits for `closeReply`. */
  | { kind: 'close' }

export interface PageServerDecoder {
  /**
   * What these bytes say, to be taken to the end before the next call. Pages are moved together inside of `bytes`. Throws `CRIU_PROTOCOL`, or
   * `LIMIT` for too many entries.
   */
  push(bytes: Buffer): Generator<PageServerEvent, void, void>
  /** The connection has ended. Throws `FAILED_DUMP` unless CLOSE came. */
  end(): void
}

interface OpenPagemap {
  name: ImageName
  inParent: boolean
  lastEnd: number
  entries: PagemapEntry[]
}

/** `hasParent` says whether a pagemap of that name is in the parent, with the pages that CRIU then leaves out. */
export function pageServerDecoder(
  hasParent: (name: ImageName) => boolean,
  mostEntries = MOST_ENTRIES,
): PageServerDecoder {
  let layout: Layout | undefined
  /** The beginning of a record whose end has not come. */
  const head = Buffer.alloc(layouts.new)
  let filled = 0
  /** Bytes of pages that are still to come. */
  let left = 0
  let closed = false
  /** Of a first CLOSE, 8 more bytes may belong to it. */
  let doubtful = 0
  let open: OpenPagemap | undefined
  const seen = new Set<ImageName>()
  const nameOf = namer()
  let input: Buffer = head
  let at = 0

  /** The next record of the input; undefined if its end is not there. */
  function record(): PsRecord | undefined {
    if (layout !== undefined && filled === 0 && input.length - at >= layout) {
      at += layout
      return decodeRecord(input, at - layout, layout)
    }
    const had = filled
    filled += input.copy(head, filled, at, at + (layout ?? layouts.old) - filled)
    at += filled - had
    if (filled < (layout ?? layouts.old)) return undefined
    if (layout === undefined) {
      layout = layoutOf(head)
      if (isClose(head.readUInt16LE(0))) {
        layout = layouts.old
        doubtful = layouts.new - layouts.old
      }
      return record()
    }
    filled = 0
    return decodeRecord(head, 0, layout)
  }

  function* complete(): Generator<PageServerEvent> {
    if (open !== undefined) yield { kind: 'complete', entries: open.entries }
    open = undefined
  }

  function* opened(name: ImageName, reply: boolean): Generator<PageServerEvent> {
    if (seen.has(name)) throw refused(`opens ${name} twice`)
    seen.add(name)
    const inParent = hasParent(name)
    if (reply) yield { kind: 'reply', bytes: Uint8Array.of(inParent ? 1 : 0) }
    yield* complete()
    open = { name, inParent, lastEnd: 0, entries: [] }
    yield { kind: 'open', name }
  }

  function add(to: OpenPagemap, command: number, { vaddr, pages, flags: given }: PsRecord): void {
    const legacy = command === psCommand.ADD ? pageFlag.present : pageFlag.parent
    const entry = { vaddr, pages, flags: command === psCommand.ADD_F ? given : legacy }
    const flaw = flawOf(entry) ?? oddityOf(entry, to)
    if (flaw !== undefined) throw refused(`the entry at ${hex(vaddr)} of ${to.name} ${flaw}`)
    if (to.entries.length >= mostEntries) {
      throw new Fault('LIMIT', `page server: ${to.name} has more than ${mostEntries} entries`)
    }
    to.lastEnd = endOf(entry)
    to.entries.push(entry)
    left = presentPages(entry) * PAGE_BYTES
  }

  function* obey(said: PsRecord): Generator<PageServerEvent> {
    const { command } = said
    if (isClose(command)) {
      if (input.length - at > doubtful) throw refused('goes on after CLOSE')
      at = input.length
      closed = true
      yield* complete()
      return yield { kind: 'close' }
    }
    const name = nameOf(said)
    if (command === psCommand.PARENT) return yield { kind: 'reply', bytes: int32(hasParent(name) ? 1 : 0) }
    if (command === psCommand.OPEN || command === psCommand.OPEN2)
      return yield* opened(name, command === psCommand.OPEN2)
    // CRIU's own page server opens what was never opened, too.
    if (open?.name !== name) yield* opened(name, false)
    if (open !== undefined) add(open, command, said)
  }

  return {
    *push(bytes) {
      if (closed) throw refused('goes on after CLOSE')
      input = bytes
      at = 0
      /** Where pages lie that are still to be given away. */
      let [from, to] = [0, 0]
      while (at < bytes.length) {
        if (left > 0) {
          const part = Math.min(left, bytes.length - at)
          if (to > from && at > to && part >= PIECE_OF_ITS_OWN) {
            yield { kind: 'pages', bytes: bytes.subarray(from, to) }
            from = to
          }
          if (from === to) from = to = at
          else if (at > to) bytes.copyWithin(to, at, at + part)
          to += part
          at += part
          left -= part
          continue
        }
        const said = record()
        if (said === undefined) break
        checkCommand(said)
        if (open !== undefined && isAdd(said.command) && nameOf(said) === open.name) {
          add(open, said.command, said)
          continue
        }
        if (to > from) yield { kind: 'pages', bytes: bytes.subarray(from, to) }
        from = to
        yield* obey(said)
      }
      if (to > from) yield { kind: 'pages', bytes: bytes.subarray(from, to) }
    },
    end() {
      if (closed) return
      const where = left > 0 ? ' in the middle of pages' : filled > 0 ? ' in the middle of a record' : ''
      throw new Fault('FAILED_DUMP', `CRIU left the page server${where}, without CLOSE: the dump did not finish`, {
        hint: "the process was not moved; see the dump's own log",
      })
    },
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
