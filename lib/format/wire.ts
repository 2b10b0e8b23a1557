/**
 * The wire: how a snapshot travels between two ends and how it rests in a file. PROTOCOL.md is its specification.
 *
 *     preamble (24)   magic 8 | version u16 | 0 u16 | required features u32 | optional features u32 | crc32 u32
 *     header   (24)   type u8 | 0 u8 | 0 u16 | channel u32 | offset u64 | length u32 | crc32 u32
 *     payload         `length` bytes; every frame but DATA ends its payload with a crc32 of the rest of it
 *
 * Numbers are little-endian. Pure: bytes in, values out; who reads and who writes is lib/stream.
 */
import { crc32 } from 'node:zlib'
import { Fault } from '../fault.ts'
import { decodeList, encodeList, type ImageEntry, LONGEST_LIST, numbers, readCount } from './list.ts'
import { type ImageName, imageName, LONGEST_ID, LONGEST_NAME, type SnapshotId, snapshotId } from './names.ts'
import { decodeJoin, encodeJoin, JOIN_BYTES, type Join } from './stripes.ts'
import {
  type Fate,
  fates,
  oneOf,
  type RefusalCode,
  refusalCodes,
  type Until,
  untils,
  type Verdict,
  verdicts,
} from './words.ts'

export const HEADER_BYTES = 24
const CRC_BYTES = 4

/** One DATA frame: as much as a pipe of an unprivileged user holds (fs.pipe-max-size is 1 MiB). */
export const MOST_DATA = 2 ** 20
const LONGEST_REASON = 512
/** What a sender must show to go on after its link broke; it chose the token itself. */
export const TOKEN_BYTES = 16
/** Of a hand-over that has none. */
export const NO_TOKEN = Buffer.alloc(TOKEN_BYTES)
/** What a timer of Node holds: 24 days. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1
const MOST_LIST = LONGEST_LIST + 8 + CRC_BYTES

export const frameType = {
  snapshot: 1,
  image: 2,
  data: 3,
  imageEnd: 4,
  snapshotEnd: 5,
  failed: 6,
  handOver: 7,
  resume: 8,
  reserve: 9,
  join: 10,
  hello: 16,
  get: 17,
  ack: 18,
  sealed: 19,
  refused: 20,
  ready: 21,
  verdict: 22,
  fate: 23,
  got: 24,
  reserved: 25,
  joined: 26,
} as const
type FrameName = keyof typeof frameType
export type FrameType = (typeof frameType)[FrameName]

export type Frame =
  | { type: 'snapshot'; id: SnapshotId }
  | { type: 'image'; channel: number; name: ImageName }
  | { type: 'data'; channel: number; offset: number; length: number }
  | { type: 'imageEnd'; channel: number; size: number; digest: bigint }
  | { type: 'snapshotEnd'; images: ImageEntry[]; digest: bigint }
  | { type: 'failed'; code: RefusalCode; reason: string }
  /** With a token the conversation outlives its link. */
  | { type: 'handOver'; until: Until; token?: Buffer }
  /** The first frame on a new link: `offset` bytes of the receiver's stream are here. */
  | { type: 'resume'; offset: number; token: Buffer; id: SnapshotId }
  /** About `offset` bytes of images will come: a receiver with memory may make it ready, and says `reserved`. */
  | { type: 'reserve'; offset: number }
  | { type: 'hello' }
  | { type: 'get'; id: SnapshotId | undefined; timeoutMs: number }
  | { type: 'ack'; channel: number; offset: number }
  | { type: 'sealed'; digest: bigint }
  | { type: 'refused'; code: RefusalCode; reason: string }
  | { type: 'ready' }
  /** The token is that of the `handOver`; zeros where there was none. */
  | { type: 'verdict'; verdict: Verdict; token: Buffer; id: SnapshotId }
  | { type: 'fate'; fate: Fate }
  /** `offset` bytes of the other's stream are here. */
  | { type: 'got'; offset: number }
  /** `offset` bytes of memory are ready. */
  | { type: 'reserved'; offset: number }
  /** The first frame of one of several connections that carry one stream, and its answer. */
  | ({ type: 'join' } & Join)
  | { type: 'joined' }

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
  imageEnd: [16 + CRC_BYTES, 16 + CRC_BYTES],
  snapshotEnd: [4 + 8 + CRC_BYTES, MOST_LIST],
  failed: [1 + CRC_BYTES, 1 + LONGEST_REASON + CRC_BYTES],
  handOver: [1 + CRC_BYTES, 1 + TOKEN_BYTES + CRC_BYTES],
  resume: [TOKEN_BYTES + 1 + CRC_BYTES, TOKEN_BYTES + LONGEST_ID + CRC_BYTES],
  reserve: [CRC_BYTES, CRC_BYTES],
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
}

/** A frame's header, and its payload for every frame but `data`, whose bytes follow apart. */
export function encodeFrame(frame: Frame): Buffer {
  const payload = frame.type === 'data' ? undefined : encodePayload(frame)
  const length = frame.type === 'data' ? frame.length : (payload as Buffer).length + CRC_BYTES
  const out = Buffer.alloc(HEADER_BYTES + (payload === undefined ? 0 : length))
  out.writeUInt8(frameType[frame.type], 0)
  out.writeUInt32LE('channel' in frame ? frame.channel : 0, 4)
  writeCount(out, 'offset' in frame ? frame.offset : 0, 8)
  out.writeUInt32LE(length, 16)
  out.writeUInt32LE(crc32(out.subarray(0, 20)), 20)
  if (payload !== undefined) {
    payload.copy(out, HEADER_BYTES)
    out.writeUInt32LE(crc32(payload), HEADER_BYTES + payload.length)
  }
  return out
}

function encodePayload(frame: Exclude<Frame, { type: 'data' }>): Buffer {
  switch (frame.type) {
    case 'snapshot':
      return Buffer.from(frame.id)
    case 'image':
      return Buffer.from(frame.name)
    case 'imageEnd':
      return numbers(BigInt(frame.size), frame.digest)
    case 'snapshotEnd':
      return Buffer.concat([encodeList(frame.images), numbers(frame.digest)])
    case 'failed':
    case 'refused':
      return Buffer.concat([Buffer.of(refusalCodes.indexOf(frame.code)), cutText(frame.reason)])
    case 'get': {
      const timeout = Buffer.alloc(4)
      timeout.writeUInt32LE(frame.timeoutMs)
      return Buffer.concat([timeout, Buffer.from(frame.id ?? '')])
    }
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
    case 'join':
      return encodeJoin(frame)
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

/** Frames whose header carries a number of bytes. */
const countsIn: ReadonlySet<FrameName> = new Set(['data', 'ack', 'resume', 'got', 'reserve', 'reserved'])

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
  const addressed = type === 'image' || type === 'data' || type === 'imageEnd' || type === 'ack'
  const counts = countsIn.has(type)
  if ((header.channel !== 0) !== addressed || (header.offset !== 0 && !counts)) {
    throw new Fault('FORMAT', `a ${type} frame with numbers that do not belong to it`)
  }
  return header
}

/** The frame of a header and its whole payload; `data` has none here. Throws `FORMAT`, `NAME` or `LIMIT`. */
export function decodeFrame(header: Header, payload: Buffer): Frame {
  const { type, channel, offset } = header
  if (type === 'data') return { type, channel, offset, length: header.length }
  const end = payload.length - CRC_BYTES
  const body = payload.subarray(0, end)
  if (crc32(body) !== payload.readUInt32LE(end)) throw new Fault('FORMAT', `damaged ${type} frame`)
  switch (type) {
    case 'snapshot':
      return { type, id: snapshotId(body.toString('latin1')) }
    case 'image':
      return { type, channel, name: imageName(body.toString('latin1')) }
    case 'imageEnd':
      return { type, channel, size: readCount(body, 0), digest: body.readBigUInt64LE(8) }
    case 'snapshotEnd':
      return { type, images: decodeList(body.subarray(0, -8)), digest: body.readBigUInt64LE(body.length - 8) }
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
      return { type, until: oneOf(untils, body.readUInt8(0), type), ...(token.length > 0 && { token }) }
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
      return { type, offset }
    case 'verdict':
      return {
        type,
        verdict: oneOf(verdicts, body.readUInt8(0), type),
        token: body.subarray(1, 1 + TOKEN_BYTES),
        id: snapshotId(body.toString('latin1', 1 + TOKEN_BYTES)),
      }
    case 'fate':
      return { type, fate: oneOf(fates, body.readUInt8(0), type) }
    case 'join':
      return { type, ...decodeJoin(body) }
    case 'hello':
    case 'joined':
    case 'ready':
      return { type }
  }
}

/** Without control characters: it ends up on somebody's terminal. */
function harmless(text: string): string {
  return text.replace(/\p{C}/gu, '?')
}

function writeCount(out: Buffer, value: number, at: number): void {
  out.writeBigUInt64LE(BigInt(value), at)
}

/** At most LONGEST_REASON bytes; a character that is cut becomes U+FFFD, three bytes. */
function cutText(text: string): Buffer {
  return Buffer.from(
    Buffer.from(text)
      .subarray(0, LONGEST_REASON - 3)
      .toString('utf8'),
  ).subarray(0, LONGEST_REASON)
}
