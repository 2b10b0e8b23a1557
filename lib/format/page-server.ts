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
import { endOfEntry, flawOf, hex, PAGE_BYTES, type PagemapEntry, pageFlag, presentPages } from './pagemap.ts'

/** Records for one pagemap, about 60 bytes of memory each; 64 GiB of single pages. */
export const MOST_ENTRIES = 2 ** 24
/**
 * Bytes that are read at once at most, and pages that are given away at once. Single pages come in small reads, a record before each: what the
 * records leave is moved together, so that it goes on in few frames and not in one a page.
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

export interface PageServerDecoder {
  /** Where the next bytes go. */
  room(): Buffer
  /**
   * That many bytes of the room are filled: what they say, to be taken to the end before the next call. Throws `CRIU_PROTOCOL`, or `LIMIT` for
   * too many entries.
   */
  push(bytes: number): Generator<PageServerEvent, void, void>
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
  /** Pages that are not given away yet, up to `kept`; what was read and not looked at, from `at` to `end`. */
  const buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES)
  let kept = 0
  let at = 0
  let end = 0

  /** The next record; undefined if its end is not there. */
  function record(): PsRecord | undefined {
    if (layout !== undefined && filled === 0 && end - at >= layout) {
      at += layout
      return decodeRecord(buffer, at - layout, layout)
    }
    const had = filled
    filled += buffer.copy(head, filled, at, Math.min(end, at + (layout ?? layouts.old) - filled))
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

  function afterClose(): void {
    doubtful -= end - at
    if (doubtful < 0) throw refused('goes on after CLOSE')
    at = end
  }

  function* keptPages(): Generator<PageServerEvent> {
    if (kept > 0) yield { kind: 'pages', bytes: buffer.subarray(0, kept) }
    kept = 0
  }

  function* complete(): Generator<PageServerEvent> {
    yield* keptPages()
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
    to.lastEnd = endOfEntry(entry)
    to.entries.push(entry)
    left = presentPages(entry) * PAGE_BYTES
  }

  function* obey(said: PsRecord): Generator<PageServerEvent> {
    const { command } = said
    if (isClose(command)) {
      closed = true
      afterClose()
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
    room: () => buffer.subarray(kept),
    *push(bytes) {
      at = kept
      end = kept + bytes
      if (closed) return afterClose()
      while (at < end) {
        if (left > 0) {
          const part = Math.min(left, end - at)
          if (at > kept) buffer.copyWithin(kept, at, at + part)
          kept += part
          at += part
          left -= part
          continue
        }
        const said = record()
        if (said === undefined) break
        checkCommand(said)
        if (open !== undefined && isAdd(said.command) && nameOf(said) === open.name) add(open, said.command, said)
        else yield* obey(said)
      }
      if (kept > BUFFER_BYTES - LEAST_ROOM) yield* keptPages()
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
