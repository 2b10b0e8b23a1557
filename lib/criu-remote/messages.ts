/**
 * The messages of `criu --remote`: of its image-proxy and its image-cache (trees of CRIU between 2017 and June 2020,
 * images/remote-image.proto; lib/format/criu-messages.ts has the fields). A message is a u32 length in host order and a
 * protobuf body. There is no magic, no version and no type: which message it is follows from who sends it, and when.
 *
 *     local_image_entry        the first message on every connection within a host
 *     remote_image_entry       before the bytes of each image between the hosts
 *     local_image_reply_entry  an errno
 *     snapshot_id_entry        one for each dump, the oldest first
 *
 * A finish has neither name nor snapshot id. Until February 2019 it had words instead, and so had the list of
 * snapshots.
 */
import { Fault } from '../fault.ts'
import {
  decodeMessage,
  encodeMessage,
  localImageEntry,
  localImageReplyEntry,
  remoteImageEntry,
  snapshotIdEntry,
} from '../format/criu-messages.ts'
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

export function encodeLocalImage(image: LocalImage): Buffer {
  return framed(encodeMessage(localImageEntry, fieldsOf(image)))
}

/** Throws `CRIU_PROTOCOL`. */
export function decodeLocalImage(body: Uint8Array): LocalImage {
  const { name, snapshot_id: snapshot, open_mode: mode } = decode(localImageEntry, body)
  return { name, snapshot, mode }
}

export function encodeRemoteImage(image: RemoteImage): Buffer {
  return framed(encodeMessage(remoteImageEntry, { ...fieldsOf(image), size: image.size }))
}

/** Throws `CRIU_PROTOCOL`, also for a size of 2^53 or more. */
export function decodeRemoteImage(body: Uint8Array): RemoteImage {
  const { name, snapshot_id: snapshot, open_mode: mode, size } = decode(remoteImageEntry, body)
  return { name, snapshot, mode, size }
}

/** `error`: 0, or an errno. */
export function encodeLocalReply(error: number): Buffer {
  return framed(encodeMessage(localImageReplyEntry, { error }))
}

/** Throws `CRIU_PROTOCOL`. */
export function decodeLocalReply(body: Uint8Array): number {
  return decode(localImageReplyEntry, body).error
}

export function encodeSnapshotId(snapshot: string): Buffer {
  return framed(encodeMessage(snapshotIdEntry, { snapshot_id: Buffer.from(snapshot) }))
}

/** Throws `CRIU_PROTOCOL`, also for an empty id. */
export function decodeSnapshotId(body: Uint8Array): string {
  const { snapshot_id: snapshot } = decode(snapshotIdEntry, body)
  if (snapshot === '') throw wrong('is the id of no snapshot')
  return snapshot
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

function fieldsOf({ name, snapshot, mode }: LocalImage) {
  return { name: Buffer.from(name), snapshot_id: Buffer.from(snapshot), open_mode: mode }
}

function framed(body: Uint8Array): Buffer {
  const out = Buffer.alloc(LENGTH_BYTES + body.length)
  out.writeUInt32LE(body.length)
  out.set(body, LENGTH_BYTES)
  return out
}

type Fields = Parameters<typeof decodeMessage>[0]
type Decoded<Message extends Fields> = {
  [Name in keyof Message]: Message[Name][1] extends 'bytes' ? string : number
}

/** The fields of a message, all of them required; the strings are checked. Throws `CRIU_PROTOCOL`. */
function decode<Message extends Fields>(message: Message, body: Uint8Array): Decoded<Message> {
  const decoded: Record<string, string | number> = {}
  try {
    const values: Record<string, unknown> = decodeMessage(message, body)
    for (const [name, [number]] of Object.entries(message)) {
      const value = values[name]
      if (value === undefined) throw wrong(`lacks field ${number}`)
      if (typeof value === 'number' && !Number.isSafeInteger(value)) throw wrong(`has the number ${value}`)
      decoded[name] = typeof value === 'number' ? value : text(value as Uint8Array)
    }
  } catch (cause) {
    if (cause instanceof Fault) throw cause
    throw wrong('is not protobuf', cause)
  }
  return decoded as Decoded<Message>
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
