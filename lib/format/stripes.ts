/**
 * One stream over several connections (docs/protocol/wire.md, Several connections): the frame with which a connection
 * joins the others, and the header of each chunk.
 *
 *     join    (18)   token 16 | index u8 | count u8
 *     chunk   (16)   number u64 | length u32 | crc32 u32 of the twelve bytes before; `length` bytes follow
 *
 * A chunk of no bytes is the end. Pure.
 */
import { crc32 } from 'node:zlib'
import { Fault } from '../fault.ts'
import { readCount } from './image-list.ts'

/** Enough for any link that we could make: each has a descriptor and 128 KiB at the sender. */
export const MOST_CONNECTIONS = 16
export const JOIN_TOKEN_BYTES = 16
export const JOIN_BYTES = JOIN_TOKEN_BYTES + 2
export const CHUNK_HEADER_BYTES = 16
/** What a receiver takes; a sender chooses less. */
export const MOST_CHUNK = 2 ** 20

export interface Join {
  /** Random, the same on all connections that belong together. */
  token: Buffer
  /** From 0 on. */
  index: number
  count: number
}

export function encodeJoin({ token, index, count }: Join): Buffer {
  return Buffer.concat([token, Buffer.of(index, count)])
}

/** Throws `LIMIT` for more connections than we take, `FORMAT` for numbers that cannot be. */
export function decodeJoin(body: Buffer): Join {
  const index = body.readUInt8(JOIN_TOKEN_BYTES)
  const count = body.readUInt8(JOIN_TOKEN_BYTES + 1)
  if (count > MOST_CONNECTIONS)
    throw new Fault('LIMIT', `${count} connections, at most ${MOST_CONNECTIONS} are allowed`)
  if (count < 2 || index >= count) throw new Fault('FORMAT', `connection ${index} of ${count}`)
  return { token: body.subarray(0, JOIN_TOKEN_BYTES), index, count }
}

export interface Chunk {
  /** Counted over all connections, from 0 on. */
  number: number
  length: number
}

/** Writes a header at the start of `into`. */
export function encodeChunk(into: Buffer, { number, length }: Chunk): void {
  into.writeBigUInt64LE(BigInt(number), 0)
  into.writeUInt32LE(length, 8)
  into.writeUInt32LE(crc32(into.subarray(0, 12)), 12)
}

/** Throws `FORMAT` for a damaged header, `LIMIT` for a number above its limit. */
export function decodeChunk(bytes: Buffer): Chunk {
  if (crc32(bytes.subarray(0, 12)) !== bytes.readUInt32LE(12)) throw new Fault('FORMAT', 'damaged chunk header')
  const length = bytes.readUInt32LE(8)
  if (length > MOST_CHUNK) throw new Fault('LIMIT', `a chunk of ${length} bytes, at most ${MOST_CHUNK} are allowed`)
  return { number: readCount(bytes, 0), length }
}
