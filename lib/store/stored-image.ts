/** A complete image in memory. */
import type { ImageEntry } from '../format/image-list.ts'
import type { ImageWriter } from '../stream/image.ts'

/** Consecutive bytes of an image. */
export interface Piece {
  address: bigint
  window: Uint8Array
  /** They are pages of a process, and whole pages here too: they can be lent and given back by themselves. */
  pages?: true
}

/** Consecutive bytes at an address, all in one extent. */
export type Place = [address: number, bytes: number]
export type Places = Iterable<Place>

export interface StoredImage extends ImageEntry {
  pieces: Iterable<Piece>
  /** Of pages that lie apart: the same as numbers. */
  places?: Places
  /** The memory that it fills itself, where that is not its pieces. */
  spaces?: readonly Piece[]
}

/** Its bytes, at most so many at a time. */
export function* stepsOf(pieces: Iterable<Piece>, most: number): Generator<Uint8Array> {
  for (const { window } of pieces) {
    for (let at = 0; at < window.length; at += most) yield window.subarray(at, at + most)
  }
}

/** An image on its way into memory. */
export interface MemoryWriter extends ImageWriter {
  wrote(bytes: number): void
  end(entry: ImageEntry): void
}
