/**
 * The messages of `criu --remote`, of its image-proxy and its image-cache (trees of CRIU between 2017 and June 2020, images/remote-image.proto): a u32
 * length in host order, then a protobuf body. There is no magic, no version and no type: which message it is follows from who speaks, and when.
 *
 *     local_image_entry        name 1, snapshot_id 2, open_mode 3             the first word on every connection within a host
 *     remote_image_entry       the same, and size 4                           before the bytes of each image between the hosts
 *     local_image_reply_entry  error 1                                        an errno
 *     snapshot_id_entry        snapshot_id 1                                  one for each dump, the oldest first
 *
 * A finish has neither name nor snapshot; until February 2019 it had words instead, and so had the list of snapshots.
 */
import pb from 'protobufjs/minimal.js'
import { Fault } from '../fault.ts'
import { type ImageName, imageName, printable } from '../format/names.ts'

/** The two longest strings that there may be, with what stands around them. */
export const LONGEST_MESSAGE = 8 * 2 ** 10 + 64
/** PATH_MAX without its NUL: what the originals keep of a string. */
export const LONGEST_STRING = 4095
const LENGTH_BYTES = 4

/** Flags of open(2) on x86 and arm, compared and not masked. */
export const openMode = { read: 0, write: 1, append: 0x400 } as const
export type OpenMode = (typeof openMode)[keyof typeof openMode]

/** No such image. */
export const ENOENT = 2

/** What a client wants of its connection. */
export interface LocalImage {
  name: string
  /** The `-D` of the criu that dumped. */
  snapshot: string
  mode: number
}

export interface RemoteImage extends LocalImage {
  /** Bytes of the whole image, also where only those that an append added follow. */
  size: number
}

/** A client's first word, by what it means. */
export type RemoteRequest =
  /** A dump is over, or a restore. */
  | { kind: 'finish'; of: 'dump' | 'restore' }
  /** Bytes of an image follow: the whole, or more of it. */
  | { kind: 'write'; name: ImageName; snapshot: string; append: boolean }
  /** It reads an image from its beginning to its end. */
  | { kind: 'read'; name: ImageName; snapshot: string }
  /** The ids of snapshots follow, on the same connection: they come after those that are there, or instead of them. */
  | { kind: 'push'; append: boolean }
  /** It reads those ids. */
  | { kind: 'pull' }

/** The image that holds the ids of snapshots; there is no other of that name, for no link `parent` is made. */
const LIST = 'parent'
/** Until February 2019, instead of an empty string. */
const NO_SNAPSHOT = 'null'
const finishWords: Record<string, 'dump' | 'restore'> = { DUMP_FINISH: 'dump', RESTORE_FINISH: 'restore' }

/** What a first word asks for. Throws `CRIU_PROTOCOL` for what no client says, `NAME` for an image's name that we do not take. */
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

/** Throws `CRIU_PROTOCOL`, also for a size that no file has (2^53 or more). */
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

/** Throws `CRIU_PROTOCOL`, also for none. */
export function decodeSnapshotId(body: Uint8Array): string {
  const [snapshot] = fieldsOf(body, ['string'])
  if (snapshot === '') throw wrong('is the id of no snapshot')
  return snapshot as string
}

/** Takes messages out of a stream of bytes that may come in any pieces. */
export interface MessageDecoder {
  /**
   * Takes bytes up to the end of one message, and no further: `taken` of them, and the message's body if that was all of it. Throws
   * `CRIU_PROTOCOL` for a length beyond `LONGEST_MESSAGE`.
   */
  push(bytes: Uint8Array): { taken: number; body: Buffer | undefined }
  /** Bytes that the message needs still, as far as is known: whoever reads no more than that reads nothing that comes after it. */
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

/** Of a message's body. Throws `CRIU_PROTOCOL`: all messages have required fields, so none is empty. */
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

/** The fields 1, 2, ... of these kinds, all of them required; of one that is there twice the last, others are passed over. */
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
