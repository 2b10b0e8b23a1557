/**
 * The wire: how a snapshot travels between two ends and how it rests in a file. docs/protocol/wire.md is its
 * specification.
 *
 *     preamble (24)   magic 8 | version u16 | 0 u16 | required features u32 | optional features u32 | crc32 u32
 *     header   (24)   type u8 | 0 u8 | 0 u16 | channel u32 | offset u64 | length u32 | crc32 u32
 *     payload         `length` bytes; every frame but DATA ends it with a crc32 of the rest of it, PACKED its head
 *
 * Numbers are little-endian. Pure: bytes in, values out; who reads and who writes is lib/stream.
 */
import { crc32 } from 'node:zlib'
import { Fault } from '../fault.ts'
import { codecNames, enumOf, fates, type RefusalCode, refusalCodes, untils, verdicts } from './enums.ts'
import { type Frame, type FrameName, type FrameOf, type FrameType, frameType } from './frame-types.ts'
import { decodeHoldings, encodeHoldings, LONGEST_LISTING } from './holdings.ts'
import {
  decodeImageList,
  EMPTY_LIST_BYTES,
  encodeImageList,
  LONGEST_LIST,
  numbers,
  readCount,
  u32,
} from './image-list.ts'
import { imageName, LONGEST_ID, LONGEST_NAME, type SnapshotId, snapshotId } from './names.ts'
import { decodeRecalled, decodeSame, encodeRecalled, encodeSame, LONGEST_RECALLED, SAME_BYTES } from './page-digest.ts'
import { cutText, harmless, LONGEST_REASON } from './refusal.ts'
import { decodeJoin, encodeJoin, JOIN_BYTES } from './stripes.ts'

export const HEADER_BYTES = 24
const CRC_BYTES = 4

/** One DATA frame: as much as a pipe of an unprivileged user holds (fs.pipe-max-size is 1 MiB). */
export const MOST_DATA = 2 ** 20
/** What a sender must show to go on after its link broke; it chose the token itself. */
export const TOKEN_BYTES = 16
/** Stands for the token of a hand-over that has none. */
export const NO_TOKEN = Buffer.alloc(TOKEN_BYTES)
/** What a timer of Node holds: 24 days. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1
/** Rounds of a chain: far more than a process is worth that never comes to rest. */
export const MOST_ROUNDS = 1000

export { type Frame, type FrameType, frameType, type Layer } from './frame-types.ts'

export interface Header {
  type: FrameName
  channel: number
  offset: number
  length: number
}

const typeNames = new Map(Object.entries(frameType).map(([name, code]) => [code, name as FrameName]))

/** One value in a payload. */
interface Field<Value> {
  /** Bytes: a field before the last has always as many. */
  least: number
  most: number
  put(value: Value): Buffer
  /** Throws `FORMAT`, `NAME` or `LIMIT`. `type`: of the frame, for the message. */
  get(body: Buffer, at: number, type: FrameName): Value
}

function word<Word>(words: readonly Word[]): Field<Word> {
  return {
    least: 1,
    most: 1,
    put: (value) => Buffer.of(words.indexOf(value)),
    get: (body, at, type) => enumOf(words, body.readUInt8(at), type),
  }
}

/** The rest of the payload as text, which `parse` accepts or refuses. */
function text<Text extends string>(most: number, parse: (text: string) => Text): Field<Text> {
  return {
    least: 1,
    most,
    put: (value) => Buffer.from(value),
    get: (body, at) => parse(body.toString('latin1', at)),
  }
}

/** A u32 that `check` lets pass. */
function u32Where(check: (value: number) => void): Field<number> {
  return {
    least: 4,
    most: 4,
    put: u32,
    get(body, at) {
      const value = body.readUInt32LE(at)
      check(value)
      return value
    },
  }
}

const flag = word([false, true])
/** A code that this release does not know is a refusal all the same. */
const code: Field<RefusalCode> = {
  ...word(refusalCodes),
  get: (body, at) => refusalCodes[body.readUInt8(at)] ?? 'REFUSED',
}
const reason: Field<string> = {
  least: 0,
  most: LONGEST_REASON,
  put: cutText,
  get: (body, at) => harmless(body.toString('utf8', at)),
}
const id = text(LONGEST_ID, snapshotId)
const name = text(LONGEST_NAME, imageName)
const anyId: Field<SnapshotId | undefined> = {
  least: 0,
  most: LONGEST_ID,
  put: (value) => (value === undefined ? Buffer.alloc(0) : id.put(value)),
  get: (body, at, type) => (body.length === at ? undefined : id.get(body, at, type)),
}
const token: Field<Buffer> = {
  least: TOKEN_BYTES,
  most: TOKEN_BYTES,
  put: (value) => value,
  get: (body, at) => body.subarray(at, at + TOKEN_BYTES),
}
/** How many bytes of an image one frame stands for: a few bytes on the link never become more than that. */
const raw = u32Where((bytes) => {
  if (bytes > MOST_DATA) throw new Fault('LIMIT', `a frame for ${bytes} bytes, at most ${MOST_DATA} are allowed`)
  if (bytes === 0) throw new Fault('FORMAT', 'a frame for no bytes')
})
const timeoutMs = u32Where((ms) => {
  if (ms > LONGEST_TIMEOUT_MS) throw new Fault('LIMIT', `a time-out of ${ms} ms is above the limit`)
})
const size: Field<number> = { least: 8, most: 8, put: (value) => numbers(BigInt(value)), get: readCount }
const digest: Field<bigint> = { least: 8, most: 8, put: numbers, get: (body, at) => body.readBigUInt64LE(at) }

/** The payload of one type of frame, without its crc and the bytes of an image. */
interface Payload<Values> {
  least: number
  most: number
  encode(values: Values): Buffer
  /** Throws `FORMAT`, `NAME` or `LIMIT`. */
  decode(body: Buffer, type: FrameName): Values
}

/** A payload of these fields, one behind the other. */
function fields<Values extends object>(parts: { [Key in keyof Values]: Field<Values[Key]> }): Payload<Values> {
  const entries = Object.entries(parts) as [keyof Values, Field<Values[keyof Values]>][]
  return {
    least: entries.reduce((sum, [, { least }]) => sum + least, 0),
    most: entries.reduce((sum, [, { most }]) => sum + most, 0),
    encode: (values) => Buffer.concat(entries.map(([key, field]) => field.put(values[key]))),
    decode(body, type) {
      const values: Partial<Values> = {}
      let at = 0
      for (const [key, field] of entries) {
        values[key] = field.get(body, at, type)
        at += field.least
      }
      return values as Values
    },
  }
}

/** What stands in the header of a frame, and not in its payload. */
type HeaderField = 'type' | 'channel' | 'offset' | 'under' | 'length'

/** By type what a frame's payload may be: a peer cannot make us hold more. */
const payloads: { [Name in FrameName]: Payload<Omit<FrameOf<Name>, HeaderField>> } = {
  snapshot: fields({ id }),
  image: fields({ name }),
  data: fields({}),
  packed: fields({ codec: word(codecNames), raw }),
  zeros: fields({ raw }),
  imageEnd: fields({ size, digest }),
  snapshotEnd: {
    least: EMPTY_LIST_BYTES + 8,
    most: LONGEST_LIST + 8,
    encode: ({ images, digest }) => Buffer.concat([encodeImageList(images), numbers(digest)]),
    decode: (body) => ({
      images: decodeImageList(body.subarray(0, -8)),
      digest: body.readBigUInt64LE(body.length - 8),
    }),
  },
  failed: fields({ code, reason }),
  handOver: {
    least: 1,
    most: 1 + TOKEN_BYTES,
    encode: ({ until, token }) => Buffer.concat([Buffer.of(untils.indexOf(until)), token ?? Buffer.alloc(0)]),
    decode(body, type) {
      const token = body.subarray(1)
      if (token.length !== 0 && token.length !== TOKEN_BYTES) throw new Fault('FORMAT', 'a token that is cut')
      return { until: enumOf(untils, body.readUInt8(0), type), ...(token.length > 0 && { token }) }
    },
  },
  resume: fields({ token, id }),
  reserve: fields({}),
  layer: fields({ last: flag, token }),
  unchecked: fields({}),
  hello: fields({}),
  get: fields({ timeoutMs, id: anyId }),
  ack: fields({}),
  sealed: fields({ digest }),
  refused: fields({ code, reason }),
  ready: fields({}),
  verdict: fields({ verdict: word(verdicts), token, id }),
  fate: fields({ fate: word(fates) }),
  got: fields({}),
  reserved: fields({}),
  join: { least: JOIN_BYTES, most: JOIN_BYTES, encode: encodeJoin, decode: decodeJoin },
  joined: fields({}),
  list: fields({}),
  listed: { least: 4, most: LONGEST_LISTING, encode: encodeHoldings, decode: decodeHoldings },
  remove: fields({ id }),
  pin: fields({ pinned: flag, id }),
  recall: fields({}),
  recalled: { least: 5, most: LONGEST_RECALLED, encode: encodeRecalled, decode: decodeRecalled },
  same: { least: SAME_BYTES, most: SAME_BYTES, encode: encodeSame, decode: decodeSame },
}

/** A frame's header, and its payload: of `data` and `packed` without the bytes of the image, which follow apart. */
export function encodeFrame(frame: Frame): Buffer {
  const payload = frame.type === 'data' ? undefined : (payloads[frame.type] as Payload<Frame>).encode(frame)
  const own = payload === undefined ? 0 : payload.length + CRC_BYTES
  const length = own + ('length' in frame ? frame.length : 0)
  const out = Buffer.alloc(HEADER_BYTES + own)
  out.writeUInt8(frameType[frame.type], 0)
  out.writeUInt32LE('channel' in frame ? frame.channel : 0, 4)
  out.writeBigUInt64LE(BigInt(countOf(frame)), 8)
  out.writeUInt32LE(length, 16)
  out.writeUInt32LE(crc32(out.subarray(0, 20)), 20)
  if (payload !== undefined) {
    payload.copy(out, HEADER_BYTES)
    out.writeUInt32LE(crc32(payload), HEADER_BYTES + payload.length)
  }
  return out
}

/** The number in a frame's header. */
function countOf(frame: Frame): number {
  if (frame.type === 'layer') return frame.under
  return 'offset' in frame ? frame.offset : 0
}

/** Frames that speak of an image. */
const addressed = new Set<FrameName>(['image', 'data', 'packed', 'zeros', 'same', 'imageEnd', 'ack'])

/** Frames whose header carries a number: of bytes, or of rounds. */
const counted = new Set<FrameName>(['data', 'packed', 'zeros', 'same', 'ack', 'resume', 'got', 'layer'])
for (const type of ['reserve', 'reserved', 'recall'] as const) counted.add(type)

/** Frames that bytes of an image follow, at least one of them. */
function carriesBytes(type: FrameName): type is 'data' | 'packed' {
  return type === 'data' || type === 'packed'
}

/** Throws `FORMAT` for a damaged or unknown header, `LIMIT` for a number above its limit. */
export function decodeHeader(bytes: Buffer): Header {
  if (crc32(bytes.subarray(0, 20)) !== bytes.readUInt32LE(20)) throw new Fault('FORMAT', 'damaged frame header')
  const type = typeNames.get(bytes.readUInt8(0) as FrameType)
  if (type === undefined) throw new Fault('FORMAT', `unknown frame type ${bytes.readUInt8(0)}`)
  if (bytes.readUInt8(1) !== 0 || bytes.readUInt16LE(2) !== 0) throw new Fault('FORMAT', 'reserved bits are set')
  const length = bytes.readUInt32LE(16)
  const own = type === 'data' ? 0 : payloads[type].least + CRC_BYTES
  const least = own + (carriesBytes(type) ? 1 : 0)
  const most = own + payloads[type].most - payloads[type].least + (carriesBytes(type) ? MOST_DATA : 0)
  if (length > most) throw new Fault('LIMIT', `${type} frame of ${length} bytes, at most ${most} are allowed`)
  if (length < least) throw new Fault('FORMAT', `${type} frame of ${length} bytes`)
  const header: Header = { type, channel: bytes.readUInt32LE(4), offset: readCount(bytes, 8), length }
  if ((header.channel !== 0) !== addressed.has(type) || (header.offset !== 0 && !counted.has(type))) {
    throw new Fault('FORMAT', `a ${type} frame with numbers that do not belong to it`)
  }
  return header
}

/** Bytes of the payload that `decodeFrame` takes; those of an image come after them. */
export function headBytes({ type, length }: Header): number {
  if (type === 'data') return 0
  return type === 'packed' ? payloads.packed.least + CRC_BYTES : length
}

/** The frame of a header and `headBytes` bytes of its payload. Throws `FORMAT`, `NAME` or `LIMIT`. */
export function decodeFrame(header: Header, payload: Buffer): Frame {
  const { type, channel, offset, length } = header
  if (type === 'data') return { type, channel, offset, length }
  const end = payload.length - CRC_BYTES
  const body = payload.subarray(0, end)
  if (crc32(body) !== payload.readUInt32LE(end)) throw new Fault('FORMAT', `damaged ${type} frame`)
  if (type === 'layer' && offset > MOST_ROUNDS) {
    throw new Fault('LIMIT', `a chain of ${offset} rounds, at most ${MOST_ROUNDS} are allowed`)
  }
  const frame: Record<string, unknown> = payloads[type].decode(body, type)
  frame.type = type
  if (addressed.has(type)) frame.channel = channel
  if (counted.has(type)) frame[type === 'layer' ? 'under' : 'offset'] = offset
  if (type === 'packed') frame.length = length - headBytes(header)
  return frame as Frame
}
