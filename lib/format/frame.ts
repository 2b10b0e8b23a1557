/**
 * The wire: how a snapshot travels between two ends and how it rests in a file. docs/protocol/wire.md is its
 * specification.
 *
 *     preamble (24)   magic 8 | version u16 | 0 u16 | required features u32 | optional features u32 | crc32 u32
 *     header   (24)   type u8 | 0 u8 | 0 u16 | channel u32 | offset u64 | length u32 | crc32 u32
 *     payload         `length` bytes; every frame but DATA ends its payload with a crc32 of the rest of it, PACKED its head
 *
 * Numbers are little-endian. Pure: bytes in, values out; who reads and who writes is lib/stream.
 */
import { crc32 } from 'node:zlib'
import { Fault } from '../fault.ts'
import { codecNames, enumOf, fates, refusalCodes, untils, verdicts } from './enums.ts'
import { type Frame, type FrameName, type FrameType, frameType } from './frame-types.ts'
import { decodeHoldings, encodeHoldings, LONGEST_LISTING } from './holdings.ts'
import { decodeImageList, encodeImageList, LONGEST_LIST, numbers, readCount, u32 } from './image-list.ts'
import { imageName, LONGEST_ID, LONGEST_NAME, snapshotId } from './names.ts'
import { decodeRecalled, decodeSame, encodeRecalled, encodeSame, LONGEST_RECALLED, SAME_BYTES } from './page-digest.ts'
import { cutText, harmless, LONGEST_REASON } from './reason.ts'
import { decodeJoin, encodeJoin, JOIN_BYTES } from './stripes.ts'

export const HEADER_BYTES = 24
const CRC_BYTES = 4

/** One DATA frame: as much as a pipe of an unprivileged user holds (fs.pipe-max-size is 1 MiB). */
export const MOST_DATA = 2 ** 20
/** What a PACKED frame says before its bytes: codec u8, raw length u32, crc. */
const PACKED_HEAD = 1 + 4 + CRC_BYTES
/** What a sender must show to go on after its link broke; it chose the token itself. */
export const TOKEN_BYTES = 16
/** Stands for the token of a hand-over that has none. */
export const NO_TOKEN = Buffer.alloc(TOKEN_BYTES)
/** What a timer of Node holds: 24 days. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1
/** Rounds of a chain: far more than a process is worth that never comes to rest. */
export const MOST_ROUNDS = 1000
const MOST_LIST = LONGEST_LIST + 8 + CRC_BYTES

export { type Frame, type FrameType, frameType, type Layer } from './frame-types.ts'

export interface Header {
  type: FrameName
  channel: number
  offset: number
  length: number
}

const typeNames = new Map(Object.entries(frameType).map(([name, code]) => [code, name as FrameName]))

/** Payload bytes that a frame may have, crc included. A peer cannot make us hold more. */
const payloadRange: Record<FrameName, [least: number, most: number]> = {
  snapshot: [1 + CRC_BYTES, LONGEST_ID + CRC_BYTES],
  image: [1 + CRC_BYTES, LONGEST_NAME + CRC_BYTES],
  data: [1, MOST_DATA],
  packed: [PACKED_HEAD + 1, PACKED_HEAD + MOST_DATA],
  zeros: [4 + CRC_BYTES, 4 + CRC_BYTES],
  imageEnd: [16 + CRC_BYTES, 16 + CRC_BYTES],
  snapshotEnd: [4 + 8 + CRC_BYTES, MOST_LIST],
  failed: [1 + CRC_BYTES, 1 + LONGEST_REASON + CRC_BYTES],
  handOver: [1 + CRC_BYTES, 1 + TOKEN_BYTES + CRC_BYTES],
  resume: [TOKEN_BYTES + 1 + CRC_BYTES, TOKEN_BYTES + LONGEST_ID + CRC_BYTES],
  reserve: [CRC_BYTES, CRC_BYTES],
  layer: [1 + TOKEN_BYTES + CRC_BYTES, 1 + TOKEN_BYTES + CRC_BYTES],
  unchecked: [CRC_BYTES, CRC_BYTES],
  hello: [CRC_BYTES, CRC_BYTES],
  get: [4 + CRC_BYTES, 4 + LONGEST_ID + CRC_BYTES],
  ack: [CRC_BYTES, CRC_BYTES],
  sealed: [8 + CRC_BYTES, 8 + CRC_BYTES],
  refused: [1 + CRC_BYTES, 1 + LONGEST_REASON + CRC_BYTES],
  ready: [CRC_BYTES, CRC_BYTES],
  verdict: [2 + TOKEN_BYTES + CRC_BYTES, 1 + TOKEN_BYTES + LONGEST_ID + CRC_BYTES],
  fate: [1 + CRC_BYTES, 1 + CRC_BYTES],
  got: [CRC_BYTES, CRC_BYTES],
  reserved: [CRC_BYTES, CRC_BYTES],
  join: [JOIN_BYTES + CRC_BYTES, JOIN_BYTES + CRC_BYTES],
  joined: [CRC_BYTES, CRC_BYTES],
  list: [CRC_BYTES, CRC_BYTES],
  listed: [4 + CRC_BYTES, LONGEST_LISTING + CRC_BYTES],
  remove: [1 + CRC_BYTES, LONGEST_ID + CRC_BYTES],
  pin: [2 + CRC_BYTES, 1 + LONGEST_ID + CRC_BYTES],
  recall: [CRC_BYTES, CRC_BYTES],
  recalled: [5 + CRC_BYTES, LONGEST_RECALLED + CRC_BYTES],
  same: [SAME_BYTES + CRC_BYTES, SAME_BYTES + CRC_BYTES],
}

/** A frame's header, and its payload: of `data` and `packed` without the bytes of the image, which follow apart. */
export function encodeFrame(frame: Frame): Buffer {
  const payload = frame.type === 'data' ? undefined : encodePayload(frame)
  const own = payload === undefined ? 0 : payload.length + CRC_BYTES
  const length = own + (frame.type === 'data' || frame.type === 'packed' ? frame.length : 0)
  const out = Buffer.alloc(HEADER_BYTES + own)
  out.writeUInt8(frameType[frame.type], 0)
  out.writeUInt32LE('channel' in frame ? frame.channel : 0, 4)
  writeCount(out, countOf(frame), 8)
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

function encodePayload(frame: Exclude<Frame, { type: 'data' }>): Buffer {
  switch (frame.type) {
    case 'snapshot':
    case 'remove':
      return Buffer.from(frame.id)
    case 'pin':
      return Buffer.concat([Buffer.of(Number(frame.pinned)), Buffer.from(frame.id)])
    case 'image':
      return Buffer.from(frame.name)
    case 'packed':
      return Buffer.concat([Buffer.of(codecNames.indexOf(frame.codec)), u32(frame.raw)])
    case 'zeros':
      return u32(frame.raw)
    case 'imageEnd':
      return numbers(BigInt(frame.size), frame.digest)
    case 'snapshotEnd':
      return Buffer.concat([encodeImageList(frame.images), numbers(frame.digest)])
    case 'failed':
    case 'refused':
      return Buffer.concat([Buffer.of(refusalCodes.indexOf(frame.code)), cutText(frame.reason)])
    case 'get':
      return Buffer.concat([u32(frame.timeoutMs), Buffer.from(frame.id ?? '')])
    case 'sealed':
      return numbers(frame.digest)
    case 'handOver':
      return Buffer.concat([Buffer.of(untils.indexOf(frame.until)), frame.token ?? Buffer.alloc(0)])
    case 'resume':
      return Buffer.concat([frame.token, Buffer.from(frame.id)])
    case 'verdict':
      return Buffer.concat([Buffer.of(verdicts.indexOf(frame.verdict)), frame.token, Buffer.from(frame.id)])
    case 'fate':
      return Buffer.of(fates.indexOf(frame.fate))
    case 'layer':
      return Buffer.concat([Buffer.of(frame.last ? 1 : 0), frame.token])
    case 'join':
      return encodeJoin(frame)
    case 'listed':
      return encodeHoldings(frame.total, frame.holdings)
    case 'recalled':
      return encodeRecalled(frame)
    case 'same':
      return encodeSame(frame)
    case 'recall':
    case 'list':
    case 'unchecked':
    case 'hello':
    case 'joined':
    case 'ack':
    case 'ready':
    case 'got':
    case 'reserve':
    case 'reserved':
      return Buffer.alloc(0)
  }
}

/** Frames whose header carries a number: of bytes, or of rounds. */
const counted = new Set<FrameName>([
  ...(['data', 'packed', 'zeros', 'same', 'ack', 'resume', 'got', 'layer', 'reserve', 'reserved', 'recall'] as const),
])

/** Frames that speak of an image. */
const addressed = new Set<FrameName>(['image', 'data', 'packed', 'zeros', 'same', 'imageEnd', 'ack'])

/** Throws `FORMAT` for a damaged or unknown header, `LIMIT` for a number above its limit. */
export function decodeHeader(bytes: Buffer): Header {
  if (crc32(bytes.subarray(0, 20)) !== bytes.readUInt32LE(20)) throw new Fault('FORMAT', 'damaged frame header')
  const type = typeNames.get(bytes.readUInt8(0) as FrameType)
  if (type === undefined) throw new Fault('FORMAT', `unknown frame type ${bytes.readUInt8(0)}`)
  if (bytes.readUInt8(1) !== 0 || bytes.readUInt16LE(2) !== 0) throw new Fault('FORMAT', 'reserved bits are set')
  const length = bytes.readUInt32LE(16)
  const [least, most] = payloadRange[type]
  if (length > most) throw new Fault('LIMIT', `${type} frame of ${length} bytes, at most ${most} are allowed`)
  if (length < least) throw new Fault('FORMAT', `${type} frame of ${length} bytes`)
  const header: Header = { type, channel: bytes.readUInt32LE(4), offset: readCount(bytes, 8), length }
  const counts = counted.has(type)
  if ((header.channel !== 0) !== addressed.has(type) || (header.offset !== 0 && !counts)) {
    throw new Fault('FORMAT', `a ${type} frame with numbers that do not belong to it`)
  }
  return header
}

/** Bytes of the payload that `decodeFrame` takes; those of an image come after them. */
export function headBytes({ type, length }: Header): number {
  if (type === 'data') return 0
  return type === 'packed' ? PACKED_HEAD : length
}

/** The frame of a header and `headBytes` bytes of its payload. Throws `FORMAT`, `NAME` or `LIMIT`. */
export function decodeFrame(header: Header, payload: Buffer): Frame {
  const { type, channel, offset } = header
  if (type === 'data') return { type, channel, offset, length: header.length }
  const end = payload.length - CRC_BYTES
  const body = payload.subarray(0, end)
  if (crc32(body) !== payload.readUInt32LE(end)) throw new Fault('FORMAT', `damaged ${type} frame`)
  switch (type) {
    case 'snapshot':
    case 'remove':
      return { type, id: snapshotId(body.toString('latin1')) }
    case 'pin':
      return {
        type,
        pinned: enumOf([false, true], body.readUInt8(0), type),
        id: snapshotId(body.toString('latin1', 1)),
      }
    case 'image':
      return { type, channel, name: imageName(body.toString('latin1')) }
    case 'packed': {
      const codec = enumOf(codecNames, body.readUInt8(0), type)
      return { type, channel, offset, codec, raw: rawBytes(body, 1), length: header.length - PACKED_HEAD }
    }
    case 'zeros':
      return { type, channel, offset, raw: rawBytes(body, 0) }
    case 'imageEnd':
      return { type, channel, size: readCount(body, 0), digest: body.readBigUInt64LE(8) }
    case 'snapshotEnd':
      return { type, images: decodeImageList(body.subarray(0, -8)), digest: body.readBigUInt64LE(body.length - 8) }
    case 'failed':
    case 'refused':
      return { type, code: refusalCodes[body.readUInt8(0)] ?? 'REFUSED', reason: harmless(body.toString('utf8', 1)) }
    case 'get': {
      const id = body.toString('latin1', 4)
      const timeoutMs = body.readUInt32LE(0)
      if (timeoutMs > LONGEST_TIMEOUT_MS) throw new Fault('LIMIT', `a time-out of ${timeoutMs} ms is above the limit`)
      return { type, timeoutMs, id: id === '' ? undefined : snapshotId(id) }
    }
    case 'sealed':
      return { type, digest: body.readBigUInt64LE(0) }
    case 'ack':
      return { type, channel, offset }
    case 'handOver': {
      const token = body.subarray(1)
      if (token.length !== 0 && token.length !== TOKEN_BYTES) throw new Fault('FORMAT', 'a token that is cut')
      return { type, until: enumOf(untils, body.readUInt8(0), type), ...(token.length > 0 && { token }) }
    }
    case 'resume':
      return {
        type,
        offset,
        token: body.subarray(0, TOKEN_BYTES),
        id: snapshotId(body.toString('latin1', TOKEN_BYTES)),
      }
    case 'got':
    case 'reserve':
    case 'reserved':
    case 'recall':
      return { type, offset }
    case 'recalled':
      return { type, ...decodeRecalled(body) }
    case 'same':
      return { type, channel, offset, ...decodeSame(body) }
    case 'verdict':
      return {
        type,
        verdict: enumOf(verdicts, body.readUInt8(0), type),
        token: body.subarray(1, 1 + TOKEN_BYTES),
        id: snapshotId(body.toString('latin1', 1 + TOKEN_BYTES)),
      }
    case 'fate':
      return { type, fate: enumOf(fates, body.readUInt8(0), type) }
    case 'layer': {
      if (offset > MOST_ROUNDS)
        throw new Fault('LIMIT', `a chain of ${offset} rounds, at most ${MOST_ROUNDS} are allowed`)
      return { type, under: offset, last: enumOf([false, true], body.readUInt8(0), type), token: body.subarray(1) }
    }
    case 'join':
      return { type, ...decodeJoin(body) }
    case 'listed':
      return { type, ...decodeHoldings(body) }
    case 'list':
    case 'unchecked':
    case 'hello':
    case 'joined':
    case 'ready':
      return { type }
  }
}

/** How many bytes of an image one frame stands for: a few bytes on the link never become more than that. */
function rawBytes(body: Buffer, at: number): number {
  const raw = body.readUInt32LE(at)
  if (raw > MOST_DATA) throw new Fault('LIMIT', `a frame for ${raw} bytes, at most ${MOST_DATA} are allowed`)
  if (raw === 0) throw new Fault('FORMAT', 'a frame for no bytes')
  return raw
}

function writeCount(out: Buffer, value: number, at: number): void {
  out.writeBigUInt64LE(BigInt(value), at)
}
