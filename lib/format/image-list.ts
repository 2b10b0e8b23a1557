/**
 * The list of a snapshot's images, which its end frame carries, and the numbers in it. docs/protocol/wire.md, Frames.
 */
import { Fault } from '../fault.ts'
import { type ImageName, imageName, LONGEST_NAME } from './names.ts'

/** Images in one snapshot: a tree of 5,000 processes has about 50,000. */
export const MOST_IMAGES = 2 ** 16
/** An image's size: far above any memory that is moved today, far below where numbers lose bytes. */
export const LARGEST_IMAGE = 2 ** 48
const ENTRY_FIXED = 1 + 8 + 8
/** Bytes of a list of no images. */
export const EMPTY_LIST_BYTES = 4
/** Bytes of the longest list. */
export const LONGEST_LIST = EMPTY_LIST_BYTES + MOST_IMAGES * (ENTRY_FIXED + LONGEST_NAME)

/** Bytes that an image of that name adds to a list. */
export function entryBytes(name: ImageName): number {
  return ENTRY_FIXED + name.length
}

export interface ImageEntry {
  name: ImageName
  /** Bytes. */
  size: number
  digest: bigint
}

/** The list of a snapshot's images, in the order in which they were opened: what the snapshot's digest is taken of. */
export function encodeImageList(images: readonly ImageEntry[]): Buffer {
  const parts = images.flatMap(({ name, size, digest }) => [
    Buffer.of(name.length),
    Buffer.from(name),
    numbers(BigInt(size), digest),
  ])
  return Buffer.concat([u32(images.length), ...parts])
}

/** The images of an encoded list. Throws `FORMAT`, `LIMIT` or `NAME`. */
export function decodeImageList(body: Buffer): ImageEntry[] {
  const count = body.readUInt32LE(0)
  if (count > MOST_IMAGES) throw new Fault('LIMIT', `a list of ${count} images, at most ${MOST_IMAGES} are allowed`)
  const images: ImageEntry[] = []
  let at = 4
  while (at < body.length) {
    const name = at + 1
    const numbersAt = name + body.readUInt8(at)
    if (numbersAt + 16 > body.length) throw new Fault('FORMAT', 'damaged list of images')
    images.push({
      name: imageName(body.toString('latin1', name, numbersAt)),
      size: readCount(body, numbersAt),
      digest: body.readBigUInt64LE(numbersAt + 8),
    })
    at = numbersAt + 16
  }
  if (images.length !== count) throw new Fault('FORMAT', 'damaged list of images')
  return images
}

/** A number of bytes that a peer says. Throws `LIMIT`. */
export function readCount(bytes: Buffer, at: number): number {
  const value = bytes.readBigUInt64LE(at)
  if (value > BigInt(LARGEST_IMAGE)) throw new Fault('LIMIT', `a size of ${value} bytes is above the limit`)
  return Number(value)
}

/** u64 each. */
export function numbers(...values: bigint[]): Buffer {
  const out = Buffer.alloc(8 * values.length)
  values.forEach((value, index) => {
    out.writeBigUInt64LE(value, 8 * index)
  })
  return out
}

export function u32(value: number): Buffer {
  const out = Buffer.alloc(4)
  out.writeUInt32LE(value)
  return out
}
