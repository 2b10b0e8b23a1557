/**
 * CRIU's page server: what `criu dump --page-server` and `criu pre-dump --page-server` say on a connection
 * (criu/page-xfer.c).
 *
 *                      cmd u32   nr_pages    vaddr u64   dst_id u64
 *     to CRIU 4.1.1    0         u32 at 4    at 8        at 16        24 bytes
 *     from CRIU 4.2    0         u64 at 8    at 16       at 24        32 bytes; 4 to 7 are never set, and not always zero
 *
 * In host order. The upper half of cmd has the flags of ADD_F, which are those of a pagemap entry; the pages follow the
 * record if they are present. dst_id is the number of a task or of a shared memory object, times 256, plus a type.
 * Nothing says which layout it is. But bytes 16 to 23 of the first record are a dst_id, whose type is never 0, or an
 * address at which a page begins, whose lowest byte always is; in a first CLOSE both are 0, and there the difference is
 * whether 8 more zero bytes come.
 */
import { Fault } from '../fault.ts'
import { type ImageName, imageName } from './names.ts'
import { hex } from './pagemap.ts'

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
export function layoutOf(first: Buffer): Layout {
  return first.readUInt8(layouts.old - 8) === 0 ? layouts.new : layouts.old
}

const known: ReadonlySet<number> = new Set(Object.values(psCommand))

export function checkCommand({ command, flags }: PsRecord): void {
  if (!known.has(command)) throw refused(`sends the unknown command ${hex(command)}`)
  if (command === psCommand.GET) throw refused('asks for pages (GET): lazy pages are not served')
  if (flags !== 0 && command !== psCommand.ADD_F) {
    throw refused(`sends the command ${hex(command)} with flags ${hex(flags)}`)
  }
}

/** The name of the pagemap with a dst_id. Throws `CRIU_PROTOCOL`. */
export function namer(): (said: PsRecord) => ImageName {
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

export function refused(what: string): Fault {
  return new Fault('CRIU_PROTOCOL', `the client of the page server ${what}`)
}

/** Exact up to 2^53, and too large above. */
function u64(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at + 4) * 2 ** 32 + bytes.readUInt32LE(at)
}
