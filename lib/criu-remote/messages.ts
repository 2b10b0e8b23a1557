/**
 * The messages of `criu --remote`: of its image-proxy and its image-cache (trees of CRIU between 2017 and June 2020,
 * images/remote-image.proto). A message is a u32 length in host order and a protobuf body. There is no magic, no
 * version and no type: which message it is follows from who sends it, and when.
 *
 *     local_image_entry        name 1, snapshot_id 2, open_mode 3     first on every connection within a host
 *     remote_image_entry       the same, and size 4                   before the bytes of each image between the hosts
 *     local_image_reply_entry  error 1                                an errno
 *     snapshot_id_entry        snapshot_id 1                          one for each dump, the oldest first
 *
 * A finish has neither name nor snapshot id. Until February 2019 it had words instead, and so had the list of
 * snapshots.
 */
import pb from 'protobufjs/minimal.js'
import { Fault } from '../fault.ts'
import { type ImageName, imageName, printable } from '../format/names.ts'

/** The longest body: two of the longest strings, and what stands around them. */
export const LONGEST_MESSAGE = 8 * 2 ** 10 + 64
/** PATH_MAX without its NUL: the originals keep no more of a string. */
export const LONGEST_STRING = 4095
const LENGTH_BYTES = 4

/** Flags of open(2) on x86 and arm. The originals compare them and do not mask them. */
export const openMode = { read: 0, write: 1, append: 0x400 } as const
export type OpenMode = (typeof openMode)[keyof typeof openMode]

/** The errno for an image that does not exist. */
export const ENOENT = 2
/** Any errno but `ENOENT` makes criu give up. */
export const EIO = 5

/** The first message of a client on this host. */
export interface LocalImage {
  name: string
  /** The `-D` of the criu that dumped. */
  snapshot: string
  mode: number
}

export interface RemoteImage extends LocalImage {
  /** Bytes of the whole image, also where only the bytes that an append adds follow. */
  size: number
}

/** The meaning of a first message. */
export type RemoteRequest =
  /** A dump or a restore is over. */
  | { kind: 'finish'; of: 'dump' | 'restore' }
  /** The bytes of an image follow: the whole image, or more of it. */
  | { kind: 'write'; name: ImageName; snapshot: string; append: boolean }
  /** The client reads an image from its beginning to its end. */
  | { kind: 'read'; name: ImageName; snapshot: string }
  /** Snapshot ids follow on the same connection: they are added to the list, or replace it. */
  | { kind: 'push'; append: boolean }
  /** The client reads the list of snapshot ids. */
  | { kind: 'pull' }

/** A client that reads: an image, or the list of snapshot ids. */
export type ReadRequest = Extract<RemoteRequest, { kind: 'read' | 'pull' }>

/** The name of the list of snapshot ids. No image has that name, for `criu --remote` makes no link `parent`. */
export const LIST = 'parent'
/** What trees before February 2019 send instead of an empty snapshot id. */
export const NO_SNAPSHOT = 'null'
const finishWords: Record<string, 'dump' | 'restore'> = { DUMP_FINISH: 'dump', RESTORE_FINISH: 'restore' }

/**
 * The meaning of a first message. Throws `CRIU_PROTOCOL` for what no client sends, and `NAME` for an image name that we
 * refuse.
 */
export function requestOf({ name, snapshot, mode }: LocalImage): RemoteRequest {
  const nowhere = snapshot === '' || snapshot === NO_SNAPSHOT
  const old = finishWords[name]
  if (nowhere && old !== undefined) return { kind: 'finish', of: old }
  if (name === '' && snapshot === '') return { kind: 'finish', of: mode === openMode.read ? 'restore' : 'dump' }
  if (name === LIST && nowhere) {
    return mode === openMode.read ? { kind: 'pull' } : { kind: 'push', append: isAppend(mode) }
  }
  if (snapshot === '') throw wrong(`names ${printable(name)} of no snapshot`)
  const image = { name: imageName(name), snapshot }
  return mode === openMode.read ? { kind: 'read', ...image } : { kind: 'write', ...image, append: isAppend(mode) }
}

function isAppend(mode: number): boolean {
  if (mode === openMode.append || mode === openMode.write) return mode === openMode.append
  throw wrong(`has the open mode ${mode}`)
}

export function encodeLocalImage({ name, snapshot, mode }: LocalImage): Buffer {
  return framed(imageFields(name, snapshot, mode))
}

/** Throws `CRIU_PROTOCOL`. */
export function decodeLocalImage(body: Uint8Array): LocalImage {
  const [name, snapshot, mode] = fieldsOf(body, ['string', 'string', 'number'])
  return { name, snapshot, mode } as LocalImage
}

export function encodeRemoteImage({ name, snapshot, mode, size }: RemoteImage): Buffer {
  return framed(imageFields(name, snapshot, mode).uint32(32).uint64(size))
}

/** Throws `CRIU_PROTOCOL`, also for a size of 2^53 or more. */
export function decodeRemoteImage(body: Uint8Array): RemoteImage {
  const [name, snapshot, mode, size] = fieldsOf(body, ['string', 'string', 'number', 'number'])
  return { name, snapshot, mode, size } as RemoteImage
}

/** `error`: 0, or an errno. */
export function encodeLocalReply(error: number): Buffer {
  return framed(pb.Writer.create().uint32(8).uint32(error))
}

/** Throws `CRIU_PROTOCOL`. */
export function decodeLocalReply(body: Uint8Array): number {
  return fieldsOf(body, ['number'])[0] as number
}

export function encodeSnapshotId(snapshot: string): Buffer {
  return framed(pb.Writer.create().uint32(10).string(snapshot))
}

/** Throws `CRIU_PROTOCOL`, also for an empty id. */
export function decodeSnapshotId(body: Uint8Array): string {
  const [snapshot] = fieldsOf(body, ['string'])
  if (snapshot === '') throw wrong('is the id of no snapshot')
  return snapshot as string
}

export function encodeIds(ids: readonly string[]): Buffer {
  return Buffer.concat(ids.map(encodeSnapshotId))
}

/**
 * The snapshot ids in these bytes, up to the first one above `most`, and whether the last message is cut. Throws
 * `CRIU_PROTOCOL`.
 */
export function decodeIds(parts: Iterable<Uint8Array>, most: number): { ids: string[]; isCut: boolean } {
  const decoder = messageDecoder()
  const ids: string[] = []
  let isCut = false
  for (const part of parts) {
    for (let at = 0; at < part.length && ids.length <= most; ) {
      const { taken, body } = decoder.push(part.subarray(at))
      at += taken
      isCut = body === undefined
      if (body !== undefined) ids.push(decodeSnapshotId(body))
    }
  }
  return { ids, isCut }
}

/** Finds the messages in a stream of bytes that comes in any pieces. */
export interface MessageDecoder {
  /**
   * Takes bytes up to the end of one message, and no further. Returns how many it took, and the body if the message is
   * complete. Throws `CRIU_PROTOCOL` for a length beyond `LONGEST_MESSAGE`.
   */
  push(bytes: Uint8Array): { taken: number; body: Buffer | undefined }
  /**
   * Bytes that the message still needs, as far as is known: reading no more than that reads nothing behind the message.
   */
  readonly wanted: number
  /** The stream has ended. Throws `CRIU_PROTOCOL` in the middle of a message. */
  end(): void
}

export function messageDecoder(): MessageDecoder {
  const head = Buffer.alloc(LENGTH_BYTES)
  let filled = 0
  let body: Buffer | undefined
  const space = (): Buffer => body ?? head
  return {
    get wanted() {
      return space().length - filled
    },
    push(bytes) {
      let taken = 0
      for (;;) {
        const some = bytes.subarray(taken, taken + space().length - filled)
        space().set(some, filled)
        taken += some.length
        filled += some.length
        if (filled < space().length) return { taken, body: undefined }
        filled = 0
        const complete = body
        body = complete === undefined ? Buffer.alloc(lengthOf(head)) : undefined
        if (complete !== undefined) return { taken, body: complete }
      }
    },
    end() {
      if (filled > 0 || body !== undefined) throw wrong('is cut')
    },
  }
}

/** The length of the body. Throws `CRIU_PROTOCOL`: all messages have required fields, so no body is empty. */
function lengthOf(head: Buffer): number {
  const length = head.readUInt32LE(0)
  if (length > 0 && length <= LONGEST_MESSAGE) return length
  throw wrong(`has ${length} bytes, at most ${LONGEST_MESSAGE} are allowed`)
}

function imageFields(name: string, snapshot: string, mode: number): pb.Writer {
  return pb.Writer.create().uint32(10).string(name).uint32(18).string(snapshot).uint32(24).uint32(mode)
}

function framed(writer: pb.Writer): Buffer {
  const body = writer.finish()
  const out = Buffer.alloc(LENGTH_BYTES + body.length)
  out.writeUInt32LE(body.length)
  out.set(body, LENGTH_BYTES)
  return out
}

type Kind = 'string' | 'number'

const wireTypes: Record<Kind, number> = { number: 0, string: 2 }

/**
 * The values of the fields 1, 2, ... of these kinds, all of them required. Where a field occurs twice the last one
 * counts; unknown fields are skipped.
 */
function fieldsOf(body: Uint8Array, kinds: readonly Kind[]): (string | number)[] {
  const values: (string | number | undefined)[] = kinds.map(() => undefined)
  try {
    const reader = pb.Reader.create(body)
    while (reader.pos < reader.len) {
      const tag = reader.uint32()
      const at = (tag >>> 3) - 1
      const kind = kinds[at]
      if (kind === undefined || (tag & 7) !== wireTypes[kind]) reader.skipType(tag & 7)
      else values[at] = kind === 'string' ? text(reader.bytes()) : Number(String(reader.uint64()))
    }
  } catch (cause) {
    if (cause instanceof Fault) throw cause
    throw wrong('is not protobuf', cause)
  }
  for (const [at, value] of values.entries()) {
    if (value === undefined) throw wrong(`lacks field ${at + 1}`)
    if (typeof value === 'number' && !Number.isSafeInteger(value)) throw wrong(`has the number ${value}`)
  }
  return values as (string | number)[]
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function text(bytes: Uint8Array): string {
  if (bytes.length > LONGEST_STRING) throw wrong(`has a string of ${bytes.length} bytes`)
  if (bytes.includes(0)) throw wrong('has a string with a NUL')
  return utf8.decode(bytes)
}

function wrong(how: string, cause?: unknown): Fault {
  return new Fault('CRIU_PROTOCOL', `criu --remote: a message that ${how}`, { cause })
}
