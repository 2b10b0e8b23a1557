/**
 * What goes from `pack` to `frames` in a sender: parts of images, in memory or still in CRIU's pipe.
 *
 * A part lends its memory to the stages below. Whoever made it waits for `out` before it uses that again, so no byte is
 * copied between stages, and an image has one part under way. Where the link takes bytes in place, an image goes
 * through the stages once, by reference: the link answers with a tap for its pipe.
 */
import { type Digest, digest, NO_DIGEST } from '../format/digest.ts'
import type { Frame } from '../format/frame-types.ts'
import type { ImageEntry } from '../format/image-list.ts'
import type { ImageName } from '../format/names.ts'
import type { PipeReader } from './pipe-reader.ts'

/** A frame, and the bytes of an image that follow it. */
export interface OutgoingFrame {
  frame: Frame
  bytes?: Uint8Array | undefined
}

/** An image whose bytes stay in CRIU's pipe until the link takes them. */
export interface PipedImage {
  readonly image: OutgoingImage
  readonly reader: PipeReader
  /** Bytes that one frame may have. */
  readonly most: number
  /** The tasks stay frozen: pages may go to the link by reference, where it takes them. */
  readonly byReference: boolean
}

/** Sends what is in the pipe now, in one frame. Returns the bytes on the link. */
export type Tap = () => Promise<number>

export class Part {
  /** What goes out in one piece; nothing where `pipe` is given. */
  readonly frames: readonly OutgoingFrame[]
  readonly pipe: PipedImage | undefined
  /** How the link takes bytes out of `pipe`: it is there when the part is out. */
  tap: Tap | undefined
  /** Resolves to the bytes on the link when what was lent may be used again. */
  readonly out: Promise<number>
  #resolve!: (bytes: number) => void
  #reject!: (reason: unknown) => void
  #begun = false
  #givenUp = false

  constructor(frames: readonly OutgoingFrame[], pipe?: PipedImage) {
    this.frames = frames
    this.pipe = pipe
    this.out = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
  }

  /** Called before the part is written. Returns false where it was given up: then nothing of it may be touched. */
  begin(): boolean {
    this.#begun = true
    return !this.#givenUp
  }

  /** `bytes` bytes are on the link. */
  sent(bytes: number): void {
    this.#resolve(bytes)
  }

  /** The link did not take it. */
  failed(reason: unknown): void {
    this.#reject(reason)
  }

  /** Rejects `out`, unless the part is being written: then that ends first. */
  giveUp(reason: unknown): void {
    if (this.#begun) return
    this.#givenUp = true
    this.#reject(reason)
  }
}

/** An image on its way, as far as it was taken from its source. */
export class OutgoingImage {
  readonly channel: number
  readonly name: ImageName
  /** Bytes that were taken. */
  size = 0
  readonly #digest: Digest
  readonly #onBytes: (bytes: number) => void

  /** `checked`: its digest is computed. */
  constructor(channel: number, name: ImageName, checked: boolean, onBytes: (bytes: number) => void) {
    this.channel = channel
    this.name = name
    this.#digest = checked ? digest() : NO_DIGEST
    this.#onBytes = onBytes
  }

  /** `bytes` are the next of the image. Returns their offset. */
  add(bytes: Uint8Array): number {
    this.#digest.update(bytes)
    return this.count(bytes.length)
  }

  /** The next `bytes` bytes go out by reference: nobody reads them here. Returns their offset. */
  count(bytes: number): number {
    this.size += bytes
    this.#onBytes(bytes)
    return this.size - bytes
  }

  /** The image is complete. */
  finish(): ImageEntry {
    return { name: this.name, size: this.size, digest: this.#digest.finish() }
  }
}
