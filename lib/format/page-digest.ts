/**
 * How two ends tell that they have the same page: 4 bytes of XXH64 to find what may be equal, 16 bytes of SHA-256 to
 * know it. XXH64 alone would not do: who can write into a process can make pages of one XXH64. docs/protocol/wire.md,
 * Frames. Pure.
 *
 * SHA-256 of a page takes 2.7 to 3.8 us here with the processor's own instructions, SHA-1 no less, and BLAKE2 twice as
 * much; XXH64 0.5 us. So a page that nobody has costs hardly anything.
 */
import { hash } from 'node:crypto'
import { xxh64 } from '@node-rs/xxhash'
import { Fault } from '../fault.ts'
import type { FrameOf } from './frame-types.ts'

/** Words of 32 bits in a digest: one of XXH64, four of SHA-256. */
export const DIGEST_WORDS = 5
/** Pages that a receiver offers to one sender: 4 GiB. */
export const MOST_OFFERED = 2 ** 20
/** Digests in one answer. */
export const MOST_RECALLED = 2 ** 15
export const LONGEST_RECALLED = 5 + MOST_RECALLED * DIGEST_WORDS * 4
/** Pages that one `same` stands for: as many bytes as a `data`. */
export const MOST_SAME = 256
/** Payload of a `same`: source u32, first u64, pages u32. */
export const SAME_BYTES = 16
/** No image has more pages. */
const MOST_FIRST = 2 ** 36
/** The source of a `same` that is not a channel. */
export const OFFERED = 0

/** The low half of a page's XXH64: pages that differ in it are not equal. */
export function weakDigest(page: Uint8Array): number {
  return Number(BigInt.asUintN(32, xxh64(page)))
}

/** Puts the first 16 bytes of a page's SHA-256 into `into`, from word `at` on. */
export function strongDigest(page: Uint8Array, into: Uint32Array, at: number): void {
  // As text it comes faster than as a buffer.
  const bytes = hash('sha256', page, 'binary')
  for (let word = 0; word < DIGEST_WORDS - 1; word++) {
    const first = 4 * word
    into[at + word] =
      bytes.charCodeAt(first) |
      (bytes.charCodeAt(first + 1) << 8) |
      (bytes.charCodeAt(first + 2) << 16) |
      (bytes.charCodeAt(first + 3) << 24)
  }
}

type Recalled = Omit<FrameOf<'recalled'>, 'type'>

export function encodeRecalled({ offers, total, digests }: Recalled): Buffer {
  const out = Buffer.alloc(5 + digests.length * 4)
  out.writeUInt8(offers ? 1 : 0)
  out.writeUInt32LE(total, 1)
  digests.forEach((word, index) => {
    out.writeUInt32LE(word, 5 + 4 * index)
  })
  return out
}

/** Throws `FORMAT` or `LIMIT`. */
export function decodeRecalled(body: Buffer): Recalled {
  const total = body.readUInt32LE(1)
  const offers = body.readUInt8(0)
  if (total > MOST_OFFERED) {
    throw new Fault('LIMIT', `an offer of ${total} pages, at most ${MOST_OFFERED} are allowed`)
  }
  const words = (body.length - 5) / 4
  if (offers > 1 || words % DIGEST_WORDS !== 0 || (offers === 0 && total > 0) || words > total * DIGEST_WORDS) {
    throw new Fault('FORMAT', 'a damaged offer of pages')
  }
  const digests = Uint32Array.from({ length: words }, (_, index) => body.readUInt32LE(5 + 4 * index))
  return { offers: offers === 1, total, digests }
}

type Same = Pick<FrameOf<'same'>, 'source' | 'first' | 'pages'>

export function encodeSame({ source, first, pages }: Same): Buffer {
  const out = Buffer.alloc(SAME_BYTES)
  out.writeUInt32LE(source)
  out.writeBigUInt64LE(BigInt(first), 4)
  out.writeUInt32LE(pages, 12)
  return out
}

/** Throws `FORMAT` or `LIMIT`. */
export function decodeSame(body: Buffer): Same {
  const [source, first, pages] = [body.readUInt32LE(0), body.readBigUInt64LE(4), body.readUInt32LE(12)]
  if (pages > MOST_SAME) throw new Fault('LIMIT', `a frame for ${pages} pages, at most ${MOST_SAME} are allowed`)
  if (pages === 0) throw new Fault('FORMAT', 'a frame for no pages')
  if (first > BigInt(MOST_FIRST)) throw new Fault('LIMIT', `page ${first} is above the limit`)
  return { source, first: Number(first), pages }
}
