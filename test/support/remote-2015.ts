/**
 * The first form of `criu --remote`, of a patch of 2015: what one TCP connection carries, as events. No command here
 * speaks it; it is for reading recordings, and docs/protocol/sockets.md describes it.
 *
 *     path       32 bytes    a C string; whatever lay behind its NUL comes along
 *     namespace  32 bytes    the same: the `-D` of the criu that dumped
 *     body                   up to the end of the connection
 *
 * No length and no sum says where a body ends: one that was cut is not to be told from a whole one. A connection either
 * puts an image or gets one; who gets is answered with such a header and then the body.
 */
import { Fault } from '../../lib/fault.ts'
import { type ImageName, imageName, printable } from '../../lib/format/names.ts'

/** Ports on TCP, of all addresses of a host. */
export const ports2015 = { proxyGet: 9995, proxyPut: 9996, cachePut: 9997, cacheGet: 9998 } as const

const FIELD_BYTES = 32
const HEADER_BYTES = 2 * FIELD_BYTES
/** The table of the originals has room for so many. */
export const MOST_NAMESPACES = 32

/** In place of a path: an end, or an image that is not there. */
const FINISH = 'DUMP_FINISH'
/** The list of namespaces, and the namespace that has it and the end. */
const LIST = 'parent'
const NO_NAMESPACE = 'null'

export interface Image2015 {
  name: ImageName
  namespace: string
}

export type Event2015 =
  /** Its bytes follow. */
  | ({ kind: 'image' } & Image2015)
  /** A view of what was pushed. */
  | { kind: 'bytes'; bytes: Uint8Array }
  /** The connection ended after so many bytes; nothing says whether that was all of the image. */
  | { kind: 'imageEnd'; bytes: number }
  /** The namespaces of all dumps, the oldest first. */
  | { kind: 'list'; namespaces: string[] }
  /** No more images will be put. */
  | { kind: 'finish' }
  /** The other side waits for this image, or for the list. */
  | ({ kind: 'get' } & Image2015)
  | { kind: 'getList' }
  /** There is no such image, and none will come. */
  | { kind: 'missing' }

export interface Decoder2015 {
  /** Throws `FORMAT`, `LIMIT`, or `NAME`. */
  push(bytes: Uint8Array): Generator<Event2015, void, void>
  /** The connection has ended. Throws `TRUNCATED` in the middle of a header or of a list. */
  end(): Generator<Event2015, void, void>
}

/** What a header says. */
type Header = ({ kind: 'image' | 'get' } & Image2015) | { kind: 'list' | 'finish' | 'getList' | 'missing' }

/** What comes on a connection that puts: an image, the list, or the end. */
export function putDecoder(): Decoder2015 {
  return connection((path, namespace) => {
    if (path === LIST && namespace === NO_NAMESPACE) return { kind: 'list' }
    if (path === FINISH && namespace === NO_NAMESPACE) return { kind: 'finish' }
    return { kind: 'image', ...imageOf(path, namespace) }
  })
}

/** What comes on a connection that gets: a header and nothing else. */
export function getDecoder(): Decoder2015 {
  return connection((path, namespace) => {
    if (path === LIST && namespace === NO_NAMESPACE) return { kind: 'getList' }
    return { kind: 'get', ...imageOf(path, namespace) }
  })
}

/** What the server says to who gets `asked`. */
export function replyDecoder(asked: Image2015 | 'list'): Decoder2015 {
  const [wantedPath, wantedNamespace] = asked === 'list' ? [LIST, NO_NAMESPACE] : [asked.name, asked.namespace]
  return connection((path, namespace) => {
    if (path === FINISH && namespace === NO_NAMESPACE) return { kind: 'missing' }
    if (path !== wantedPath || namespace !== wantedNamespace) {
      throw wrong(`${wantedPath} of ${printable(wantedNamespace)} was asked for, ${printable(path)} came`)
    }
    return asked === 'list' ? { kind: 'list' } : { kind: 'image', ...asked }
  })
}

function connection(meaning: (path: string, namespace: string) => Header): Decoder2015 {
  /** Of the header, then of the list. */
  const kept = Buffer.alloc(MOST_NAMESPACES * FIELD_BYTES)
  let filled = 0
  let header: Header | undefined
  let size = 0

  function keep(bytes: Uint8Array, most: number): Uint8Array {
    const some = bytes.subarray(0, most - filled)
    kept.set(some, filled)
    filled += some.length
    return bytes.subarray(some.length)
  }

  return {
    *push(bytes) {
      let rest = bytes
      if (header === undefined) {
        rest = keep(rest, HEADER_BYTES)
        if (filled < HEADER_BYTES) return
        header = meaning(fieldAt(kept, 0), fieldAt(kept, FIELD_BYTES))
        filled = 0
        if (header.kind === 'image' || header.kind === 'get') yield header
        else if (header.kind === 'getList') yield { kind: 'getList' }
      }
      if (rest.length === 0) return
      if (header.kind === 'image') {
        size += rest.length
        yield { kind: 'bytes', bytes: rest }
      } else if (header.kind === 'list') {
        if (keep(rest, kept.length).length > 0) {
          throw new Fault('LIMIT', `criu --remote of 2015: a list of more than ${MOST_NAMESPACES} namespaces`)
        }
      } else throw wrong(`bytes after ${header.kind === 'finish' ? 'the end' : 'a header without a body'}`)
    },
    *end() {
      if (header === undefined || filled % FIELD_BYTES !== 0) {
        const what = header === undefined ? 'header' : 'list of namespaces'
        throw new Fault('TRUNCATED', `criu --remote of 2015: the connection ended in the middle of a ${what}`)
      }
      if (header.kind === 'image') yield { kind: 'imageEnd', bytes: size }
      else if (header.kind === 'finish' || header.kind === 'missing') yield { kind: header.kind }
      else if (header.kind === 'list') yield { kind: 'list', namespaces: listOf(kept.subarray(0, filled)) }
    },
  }
}

function imageOf(path: string, namespace: string): Image2015 {
  if (path === LIST || path === FINISH || namespace === NO_NAMESPACE) {
    throw wrong(`${printable(path)} does not go with the namespace ${printable(namespace)}`)
  }
  return { name: imageName(path), namespace }
}

function listOf(bytes: Buffer): string[] {
  const namespaces: string[] = []
  for (let at = 0; at < bytes.length; at += FIELD_BYTES) namespaces.push(fieldAt(bytes, at))
  return namespaces
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** The string up to its NUL. One of 32 bytes and more has lost it, and with it its end. */
function fieldAt(bytes: Buffer, at: number): string {
  const field = bytes.subarray(at, at + FIELD_BYTES)
  const end = field.indexOf(0)
  const text = end < 1 ? '' : decode(field.subarray(0, end))
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  if (text !== '' && !/[\x00-\x1f\x7f]/.test(text)) return text
  throw new Fault('NAME', `criu --remote of 2015: name refused: ${printable(field.toString('latin1'))}`)
}

function decode(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes)
  } catch {
    return ''
  }
}

function wrong(how: string): Fault {
  return new Fault('FORMAT', `criu --remote of 2015: ${how}`)
}
